"""Exact morphology and counting with disks x² + y² <= radius² of pixels, at a cost that grows with the radius alone."""

import math

import numpy as np

from utils.compiled import compiled


def dilate_with_disk(mask, radius):
    """Where `mask` (rows, columns; bool) has a true pixel within `radius` pixels. Pixels outside the image are false.

    `radius` is at most 253: vertical distances are kept in bytes.
    """
    if not 0 <= radius <= 253:
        raise ValueError(f"radius must be from 0 to 253 pixels, got {radius}")
    return _dilated(np.ascontiguousarray(mask), half_widths(radius))


def erode_with_disk(mask, radius):
    """Where `mask` (rows, columns; bool) is true within `radius` pixels. Pixels outside the image are ignored."""
    return ~dilate_with_disk(~mask, radius)


def close_with_disk(mask, radius):
    """Binary closing of `mask` (rows, columns; bool) with a disk. Outside the image is background.

    The image is extended by `radius`, dilated, then eroded. Closing adds nothing beyond the first and the last row and
    column that hold a true pixel, so only these are computed.
    """
    closed = np.zeros_like(mask)
    if mask.any():
        box = tuple(_extent(mask.any(axis=axis)) for axis in (1, 0))
        extended = np.pad(mask[box], radius)
        extended = erode_with_disk(dilate_with_disk(extended, radius), radius)
        closed[box] = extended[radius : len(extended) - radius, radius : extended.shape[1] - radius]
    return closed


def count_in_disk(mask, radius):
    """Number (rows, columns; int32) of true pixels of `mask` (rows, columns; bool) within `radius` of each pixel."""
    return _counted(np.ascontiguousarray(mask), half_widths(radius))


def half_widths(radius):
    """For each of the disk's 2 `radius` + 1 rows, how far it reaches to either side (int64)."""
    return np.array([math.isqrt(radius**2 - offset**2) for offset in range(-radius, radius + 1)])


def _extent(line):
    """Slice from the first to the last true element of `line`."""
    places = np.flatnonzero(line)
    return slice(places[0], places[-1] + 1)


@compiled
def _dilated(mask, half_heights):
    """The disk is a row of vertical runs. A pixel is reached if a nearby column has a true pixel within its run.

    1. The vertical distance to a true pixel is computed, capped at one more than the disk reaches.
    2. For each column of the disk the distance is compared with the run's half height.

    Inner loops run over views of rows, from 0 on, and use bytes. So the compiler vectorises them: 64 pixels at once.
    """
    rows, columns = mask.shape
    radius = len(half_heights) // 2
    far = np.uint8(radius + 1)
    distance = np.full((rows, columns), far, np.uint8)
    for row in range(rows):
        here, above, true = distance[row], distance[max(0, row - 1)], mask[row]
        for column in range(columns):
            here[column] = np.uint8(0) if true[column] else min(far, np.uint8(above[column] + 1))
    for row in range(rows - 2, -1, -1):
        here, below = distance[row], distance[row + 1]
        for column in range(columns):
            here[column] = min(here[column], np.uint8(below[column] + 1))
    reached = np.zeros((rows, columns), np.uint8)
    for row in range(rows):
        for offset in range(max(-radius, 1 - columns), min(radius, columns - 1) + 1):
            height = np.uint8(half_heights[offset + radius])
            length = columns - abs(offset)
            here = reached[row, max(0, -offset) :][:length]
            beside = distance[row, max(0, offset) :][:length]
            for column in range(length):
                here[column] |= beside[column] <= height
    return reached.view(np.bool_)


@compiled
def _counted(mask, half_widths):
    """Differences of running sums along rows, summed over the disk's rows. Vectorised as in `_dilated`."""
    rows, columns = mask.shape
    radius = len(half_widths) // 2
    # Running sums, with as many columns on either side as the disk may reach beyond the image.
    sums = np.zeros((rows, columns + 2 * radius + 1), np.int32)
    for row in range(rows):
        sums[row, radius + 1 : radius + 1 + columns] = np.cumsum(mask[row])
        sums[row, radius + 1 + columns :] = sums[row, radius + columns]
    counts = np.zeros((rows, columns), np.int32)
    for row in range(rows):
        here = counts[row]
        for other in range(max(0, row - radius), min(rows, row + radius + 1)):
            half_width = half_widths[other - row + radius]
            until_last = sums[other, radius + 1 + half_width :]
            before_first = sums[other, radius - half_width :]
            for column in range(columns):
                here[column] += until_last[column] - before_first[column]
    return counts
