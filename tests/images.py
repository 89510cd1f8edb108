"""Images that several test files make."""

import numpy as np


def noise(shape, low=1, high=200, seed=0):
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.uint8)
