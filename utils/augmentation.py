"""Nuts that turn B-scans into further ones for training: mirrored and rotated."""

import cv2
import numpy as np
from nutsflow import nut_processor

ROTATION_DEGREES = (0, 10)  # smallest and largest rotation of an augmented B-scan, counter-clockwise


@nut_processor
def MirrorAndRotate(samples, probability, rng):
    """samples >> MirrorAndRotate(probability, rng): B-scans as they are, mirrored, rotated.

    Takes (row, image, mask, roi) and yields (row, mirrored, angle_degrees, middle_slice, mask, roi), where the last
    three, uint8 (rows, columns), are turned as the first three say; the neighbouring slices are of no use for deciding
    on patches. A B-scan comes untouched and, with `probability`, mirrored as well; each of these as it is and, with
    `probability`, rotated as well, by an angle drawn evenly from `ROTATION_DEGREES`. With 0.5 these are 2.25 a B-scan,
    as nutsml's AugmentImage gives with 'identical' and 'fliplr', then 'identical' and 'rotate'.
    """
    for row, image, mask, roi in samples:
        planes = (cv2.extractChannel(image, 1), mask, roi)
        variants = [(False, planes)]
        if rng.random() < probability:
            variants.append((True, tuple(cv2.flip(plane, 1) for plane in planes)))
        for mirrored, planes in variants:
            yield row, mirrored, 0.0, *planes
            if rng.random() < probability:
                angle_degrees = rng.uniform(*ROTATION_DEGREES)
                source_map, box = rotation_map(mask.shape, angle_degrees)
                yield row, mirrored, angle_degrees, *(rotated(plane[box], source_map) for plane in planes)


def rotation_map(shape, angle_degrees, window=(slice(None), slice(None))):
    """Where each pixel in a `window` of a B-scan of `shape` comes from when it is turned about its centre.

    `shape` is (rows, columns), `window` slices of both; counter-clockwise. Returns (source_map, box): `box`, slices of
    both, holds every pixel that the window needs; source_map, int16 (rows, columns, 2), has for each pixel of the
    window column and row of the nearest one in the box, or beyond where there is none. Coordinates are sums of integers
    (65536ths of a pixel), so that a window shows exactly what it would of the whole rotated B-scan.
    """
    cosine, sine = np.cos(np.deg2rad(angle_degrees)), np.sin(np.deg2rad(angle_degrees))
    middle_row, middle_column = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    rows, columns = np.arange(shape[0])[window[0]] - middle_row, np.arange(shape[1])[window[1]] - middle_column
    source_map, box = np.empty((len(rows), len(columns), 2), np.int32), [None, None]
    for axis, along_rows, along_columns in (
        (0, cosine * rows + middle_row + 0.5, sine * columns),
        (1, -sine * rows + middle_column + 0.5, cosine * columns),
    ):
        along_rows, along_columns = (np.rint(part * 65536).astype(np.int32) for part in (along_rows, along_columns))
        first = max((along_rows.min() + along_columns.min()) >> 16, 0)
        last = min((along_rows.max() + along_columns.max()) >> 16, shape[axis] - 1)
        np.add.outer(along_rows - (first << 16), along_columns, out=source_map[..., 1 - axis])
        box[axis] = slice(first, last + 1)
    source_map >>= 16
    return source_map.astype(np.int16), tuple(box)


def rotated(plane, source_map):
    """The pixels of `plane` (rows, columns[, channels]) that `source_map` (n, m, 2) names: (n, m[, channels]).

    Nearest neighbour, so that labels stay labels and 0 stays invalid; what comes from outside the plane is 0.
    """
    return cv2.remap(plane, source_map, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
