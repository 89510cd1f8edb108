"""Masks at which shortcuts of morphology go wrong."""

import numpy as np


def adversarial_masks(shape, seed=0):
    """Masks (bool) of `shape` by name, at which shortcuts go wrong: even ones, lone pixels and lines, dense noise."""
    rows, columns = shape
    row, column = np.indices(shape)
    masks = {
        "empty": np.zeros(shape, bool),
        "full": np.ones(shape, bool),
        "middle pixel": (row == rows // 2) & (column == columns // 2),
        "corner pixel": (row == rows - 1) & (column == 0),
        "all but one pixel": (row != rows // 3) | (column != columns // 3),
        "middle row": row == rows // 2,
        "last column": column == columns - 1,
        "checkerboard": (row + column) % 2 == 0,
    }
    random = np.random.default_rng(seed).random(shape)
    return masks | {"sparse": random < 0.005, "random": random < 0.5, "dense": random < 0.995}
