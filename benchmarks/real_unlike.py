"""Real B-scans made unlike what a network has been trained on, each time in the same way.

Each way takes a B-scan of a case and gives another case: grey values, outlines on their grid, spacing and vendor. What
is drawn follows from the case's name, so that all networks see the same.
"""

import functools
import zlib
from dataclasses import dataclass, replace

import cv2
import numpy as np

from utils.phantom.retouch_like import generate_phantom
from utils.preparation.invalid import find_invalid
from utils.preparation.preprocessing import grey_value_histogram, histogram_matching_table


@dataclass(frozen=True)
class BScan:
    """What is segmented and scored."""

    grey: np.ndarray  # uint8 (rows, columns), as exported
    reference: np.ndarray  # uint8 (rows, columns): 0 background, 1 IRF, 2 SRF, 3 PED, 255 not judged
    spacing_mm: tuple  # (x, y, z)
    vendor: str


def make_unlike(b_scan, name, way):
    """The `BScan` of the case `name` made unlike, `way` one of `WAYS`."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), zlib.crc32(way.encode())])
    return WAYS[way](b_scan, rng)


def add_noise(b_scan, rng):
    """Speckle of 25 % of the signal, and noise of 12 grey values."""
    speckle, noise = rng.standard_normal((2, *b_scan.grey.shape))
    return _with_grey(b_scan, b_scan.grey * (1 + 0.25 * speckle) + 12 * noise)


def blur(b_scan, rng):
    """A Gaussian of 1.5 pixels along rows and columns."""
    return _with_grey(b_scan, cv2.GaussianBlur(b_scan.grey.astype(np.float32), (0, 0), 1.5))


def change_gamma(b_scan, rng):
    """Grey values to the power of 0.6 (brighter) or 1.6 (darker)."""
    return _with_grey(b_scan, 255 * (b_scan.grey / 255) ** rng.choice([0.6, 1.6]))


def resample(b_scan, rng):
    """Fewer pixels: 0.7 of the rows and 0.6 of the columns, with the spacings that this gives."""
    rows, columns = b_scan.grey.shape
    new = max(1, round(0.7 * rows)), max(1, round(0.6 * columns))
    grey = cv2.resize(b_scan.grey, new[::-1], interpolation=cv2.INTER_AREA)
    reference = cv2.resize(b_scan.reference, new[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    x_mm, y_mm, z_mm = b_scan.spacing_mm
    spacing_mm = (x_mm * columns / new[1], y_mm * rows / new[0], z_mm)
    return replace(b_scan, grey=grey, reference=reference, spacing_mm=spacing_mm)


def crop(b_scan, rng):
    """0.8 of the rows and 0.6 of the columns, from anywhere."""
    slices = []
    for length, share in zip(b_scan.grey.shape, (0.8, 0.6), strict=True):
        kept = max(1, round(share * length))
        first = rng.integers(length - kept + 1)
        slices.append(slice(first, first + kept))
    window = tuple(slices)
    grey, reference = (np.ascontiguousarray(array[window]) for array in (b_scan.grey, b_scan.reference))
    return replace(b_scan, grey=grey, reference=reference)


def look_like_topcon(b_scan, rng):
    """Grey values distributed as in a synthetic Topcon scan, with its grain; declared as Topcon's, with its filters."""
    grain, histogram = _topcon()
    invalid = find_invalid(b_scan.grey[np.newaxis])
    table = histogram_matching_table(grey_value_histogram(b_scan.grey[np.newaxis], invalid), histogram)
    repeats = [-(-length // period) for length, period in zip(b_scan.grey.shape, grain.shape, strict=True)]
    rows, columns = b_scan.grey.shape
    tiled = np.tile(np.roll(grain, rng.integers(grain.shape), axis=(0, 1)), repeats)[:rows, :columns]
    return replace(_with_grey(b_scan, table[b_scan.grey] + tiled), vendor="Topcon")


@functools.cache
def _topcon():
    """Of a synthetic Topcon B-scan: its grain (grey values less their 3 x 3 median, float) and 256 counts."""
    grey, _, _ = generate_phantom("Topcon", 650, slices=1, seed=0)
    grain = grey[0].astype(np.float32) - cv2.medianBlur(grey[0], 3)
    return grain, grey_value_histogram(grey, find_invalid(grey))


def _with_grey(b_scan, grey):
    """`b_scan` with other grey values, rounded and kept within those of its padding, 0 and 255."""
    padding = find_invalid(b_scan.grey[np.newaxis])[0]
    inside = np.rint(np.clip(grey, 1, 254)).astype(np.uint8)
    return replace(b_scan, grey=np.where(padding, b_scan.grey, inside))


WAYS = {
    "noise": add_noise,
    "blur": blur,
    "gamma": change_gamma,
    "resampled": resample,
    "cropped": crop,
    "as Topcon": look_like_topcon,
}
