"""Region of interest of a B-scan: where there is texture bright enough to be retina, or fluid."""

import numba
import numpy as np

from utils.invalid import distance_to_zero

ENTROPY_RADIUS = 15  # pixels
CLOSING_RADIUS = 55  # pixels
ENTROPY_THRESHOLD = 0.01  # of the B-scan's largest local entropy


def roi_mask(slice_, reference_slice=None):
    """ROI (rows, columns; uint8, 0 or 1) of a preprocessed B-scan `slice_` (rows, columns; uint8, 0 = invalid).

    Where the local entropy of everything brighter than 128 exceeds 1 % of its maximum, or `reference_slice` (labels of
    the same shape) holds fluid; closed with a disk, then each column filled from its first to its last row. Invalid
    pixels are never in it.
    """
    entropy = local_entropy(_bright_part(slice_), ENTROPY_RADIUS)
    roi = entropy > ENTROPY_THRESHOLD * entropy.max()
    if reference_slice is not None:
        roi |= reference_slice > 0
    roi = _fill_columns(close_with_disk(roi, CLOSING_RADIUS))
    return (roi & (slice_ > 0)).astype(np.uint8)


def _bright_part(slice_):
    """max(0, g / 128 - 1) scaled to 8 bit: 0 up to grey value 128, 253 at 255. Without it all speckle is texture."""
    grey_values = np.arange(256)
    table = np.rint(np.maximum(0, grey_values / 128 - 1) * 255).astype(np.uint8)
    return table[slice_]


def local_entropy(image, radius):
    """Shannon entropy in bits (rows, columns; float64) of the grey values within `radius` pixels of each pixel.

    `image` is uint8 (rows, columns). Beyond the border there are no pixels. Equals `skimage.filters.rank.entropy`.
    """
    counts = np.arange((2 * radius + 1) ** 2 + 1, dtype=np.float64)
    count_log_count = counts * np.log2(np.maximum(counts, 1))
    offsets = np.arange(-radius, radius + 1)
    half_widths = np.sqrt(radius**2 - offsets**2).astype(np.int64)  # of the disk's rows
    return _sliding_entropy(np.ascontiguousarray(image), half_widths, count_log_count)


@numba.njit(cache=True, nogil=True)
def _sliding_entropy(image, half_widths, count_log_count):
    """Entropy in a disk that slides along each row, updating one histogram.

    With n pixels and counts c, H = log2(n) - sum(c log2 c) / n; a pixel that enters or leaves changes one term.
    """
    rows, columns = image.shape
    radius = len(half_widths) // 2
    entropy = np.empty((rows, columns))
    histogram = np.empty(256, np.int64)
    for row in range(rows):
        histogram[:] = 0
        pixels = 0
        total = 0.0
        first, last = max(0, row - radius), min(rows - 1, row + radius)
        for column in range(-radius, columns):
            for other in range(first, last + 1):
                half_width = half_widths[other - row + radius]
                entering, leaving = column + half_width, column - half_width - 1
                if 0 <= entering < columns:
                    count = histogram[image[other, entering]]
                    total += count_log_count[count + 1] - count_log_count[count]
                    histogram[image[other, entering]] = count + 1
                    pixels += 1
                if 0 <= leaving < columns:
                    count = histogram[image[other, leaving]]
                    total += count_log_count[count - 1] - count_log_count[count]
                    histogram[image[other, leaving]] = count - 1
                    pixels -= 1
            if column >= 0:
                entropy[row, column] = max(0.0, np.log2(pixels) - total / pixels)
    return entropy


def close_with_disk(mask, radius):
    """Binary closing of `mask` (rows, columns; bool) with the disk x² + y² <= radius²; outside is background.

    By two exact distance transforms, whose cost does not grow with the radius: dilation keeps what is at most `radius`
    from the mask, erosion what is farther than `radius` from everything else. The dilation may leave the image, so the
    image is extended by what it can reach.
    """
    if not mask.any():
        return mask.copy()
    margin = radius + 1
    extended = np.pad(mask, margin)
    dilated = distance_to_zero(~extended) < radius + 0.5 / (radius + 1)
    closed = distance_to_zero(dilated) >= radius + 0.25 / (radius + 1)
    return closed[margin:-margin, margin:-margin]


def _fill_columns(mask):
    """`mask` (rows, columns; bool) with each column filled from its first to its last row."""
    from_first = np.logical_or.accumulate(mask, axis=0)
    to_last = np.logical_or.accumulate(mask[::-1], axis=0)[::-1]
    return from_first & to_last
