"""Region of interest of a B-scan: where there is texture bright enough to be retina, or fluid."""

import functools

import cv2
import numpy as np

from utils.compiled import compiled
from utils.labels import NOT_JUDGED
from utils.preparation.disk_morphology import close_with_disk, count_in_disk, half_widths

ROI_CODE = (
    "utils.preparation.disk_morphology",
    "utils.preparation.roi",
)  # modules that decide what the ROI is, for `utils.files.code_digest`
ENTROPY_RADIUS = 15  # pixels
CLOSING_RADIUS = 55  # pixels
ENTROPY_THRESHOLD = 0.01  # of the B-scan's largest local entropy
BRIGHT_GREY = 210  # in a well exposed B-scan 1 % of the pixels exceed this grey value; see benchmarks/README.md
_ROUNDING = 1e-9  # bits; more than what rounding can add to or take from an entropy


def roi_mask(slice_, reference_slice=None):
    """ROI (rows, columns; uint8, 0 or 1) of a preprocessed B-scan `slice_` (rows, columns; uint8, 0 = invalid).

    1. The local entropy of everything brighter than 128 exceeds 1 % of its maximum, or `reference_slice` (labels of the
       same shape) holds fluid.
    2. That mask is closed with a disk.
    3. Each column is filled from its first to its last row.
    4. Invalid pixels are removed.
    """
    roi = textured(_bright_part(slice_), ENTROPY_RADIUS, ENTROPY_THRESHOLD)
    if reference_slice is not None:
        roi |= (reference_slice > 0) & (reference_slice != NOT_JUDGED)
    roi = _fill_columns(close_with_disk(roi, CLOSING_RADIUS))
    return (roi & (slice_ > 0)).astype(np.uint8)


def prediction_region(slice_, bright_grey=BRIGHT_GREY):
    """Where fluid is looked for in a preprocessed B-scan: its ROI, after brightening a B-scan that is too dark.

    The ROI takes only what is brighter than 128 for retina, and dim exports have little of that. In 244 real Spectralis
    B-scans (Kermany et al. 2018) 10 % of the outlined IRF lay outside the ROI; 2 % lie outside this region. Argument
    and result are as for `roi_mask`. Both regions are equal if 1 % of the B-scan's pixels exceed `bright_grey`.
    """
    counts = np.bincount(slice_.ravel(), minlength=256)
    counts[0] = 0  # invalid
    bright = np.searchsorted(np.cumsum(counts), 0.99 * counts.sum())
    factor = max(1.0, bright_grey / max(bright, 1))
    grey_values = np.clip(np.rint(factor * np.arange(256)), 0, 255).astype(np.uint8)
    return roi_mask(cv2.LUT(np.ascontiguousarray(slice_), grey_values))


def textured(image, radius, share):
    """Where (rows, columns; bool) the local entropy of `image` exceeds `share` of its largest value in the image.

    Local entropy is the Shannon entropy in bits of the grey values within `radius` pixels. `image` is uint8 (rows,
    columns) and contiguous; beyond its border there are no pixels. The result equals ``entropy > share *
    entropy.max()`` with `skimage.filters.rank.entropy`. A count of black pixels bounds the entropy. The bounds decide
    99 of 100 pixels. Only the others, and those that may have the largest entropy, need a histogram.
    """
    disk, count_log_count = half_widths(radius), _count_log_count(radius)
    values = max(1, np.count_nonzero(np.bincount(image.ravel(), minlength=256)[1:]))
    pixels, not_black = _pixels_in_disk(image.shape, radius), count_in_disk(image > 0, radius)
    least, most = _entropy_bounds(pixels, not_black, values, count_log_count)
    threshold = share * _largest_entropy(image, most, disk, count_log_count)
    exceeds = least > threshold
    undecided = np.flatnonzero((most > threshold) & ~exceeds)
    exceeds.ravel()[undecided] = _entropies(image, undecided, disk, count_log_count) > threshold
    return exceeds


def _bright_part(slice_):
    """max(0, g / 128 - 1) scaled to 8 bit: 0 up to grey value 128, 253 at 255. Without it all speckle is texture."""
    grey_values = np.arange(256)
    table = np.rint(np.maximum(0, grey_values / 128 - 1) * 255).astype(np.uint8)
    return cv2.LUT(np.ascontiguousarray(slice_), table)


@functools.lru_cache(maxsize=4)  # the B-scans of a volume are all of one shape
def _pixels_in_disk(shape, radius):
    return count_in_disk(np.ones(shape, bool), radius)


@functools.lru_cache(maxsize=4)
def _count_log_count(radius):
    """n log2 n for every number n of pixels in a disk."""
    counts = np.arange((2 * radius + 1) ** 2 + 1, dtype=np.float64)
    return counts * np.log2(np.maximum(counts, 1))


@compiled
def _entropy_bounds(pixels, not_black, values, count_log_count):
    """Bounds (rows, columns; float64) of the entropy of a disk of n `pixels` of which k are `not_black`.

    - Least: all pixels that are not black are alike. It is a coin's entropy that shows black in n - k of n throws.
    - Most: log2(k) k / n bits more. All pixels that are not black differ, as far as the number of `values` (at least 1)
      that are not black in the image allows.
    """
    rows, columns = pixels.shape
    bits = np.log2(values)
    least, most = np.zeros((rows, columns)), np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            n, k = pixels[row, column], not_black[row, column]
            if k > 0:
                coin = (count_log_count[n] - count_log_count[k] - count_log_count[n - k]) / n
                least[row, column] = coin - _ROUNDING
                most[row, column] = coin + min(count_log_count[k], k * bits) / n + _ROUNDING
    return least, most


@compiled
def _largest_entropy(image, most, half_widths, count_log_count):
    """Largest local entropy. Pixels are tried by decreasing `most` until no other pixel can exceed what was found."""
    histogram = np.zeros(256, np.int64)
    possible = most.ravel()
    largest = _entropy_at(image, possible.argmax(), half_widths, count_log_count, histogram)
    candidates = np.flatnonzero(possible > largest)
    for index in candidates[np.argsort(-possible[candidates])]:
        if possible[index] <= largest:
            break
        largest = max(largest, _entropy_at(image, index, half_widths, count_log_count, histogram))
    return largest


@compiled
def _entropies(image, indices, half_widths, count_log_count):
    """Local entropy (float64) at each flat index of `indices`."""
    histogram = np.zeros(256, np.int64)
    entropies = np.empty(len(indices))
    for place, index in enumerate(indices):
        entropies[place] = _entropy_at(image, index, half_widths, count_log_count, histogram)
    return entropies


@compiled
def _entropy_at(image, index, half_widths, count_log_count, histogram):
    """Entropy in bits at one flat `index`: log2 n - sum(c log2 c) / n for n pixels and counts c of each value.

    `histogram` is memory for 256 counts. Black pixels are not counted but computed as the rest, which halves the time.
    """
    rows, columns = image.shape
    row, column = index // columns, index % columns
    radius = len(half_widths) // 2
    histogram[:] = 0
    pixels = 0
    for other in range(max(0, row - radius), min(rows, row + radius + 1)):
        half_width = half_widths[other - row + radius]
        first, end = max(0, column - half_width), min(columns, column + half_width + 1)
        pixels += end - first
        for value in image[other, first:end]:
            if value > 0:
                histogram[value] += 1
    black = pixels
    total = 0.0
    for count in histogram:
        total += count_log_count[count]
        black -= count
    total += count_log_count[black]
    return max(0.0, np.log2(pixels) - total / pixels)


def _fill_columns(mask):
    """`mask` (rows, columns; bool) with each column filled from its first to its last row."""
    rows = np.arange(len(mask))[:, None]
    first, last = mask.argmax(axis=0), len(mask) - 1 - mask[::-1].argmax(axis=0)
    return (rows >= first) & (rows <= last) & mask.any(axis=0)
