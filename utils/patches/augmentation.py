"""How training's B-scans and patches are varied: mirrored, rotated, scaled, and in their grey values."""

import cv2
import numpy as np
from nutsflow import nut_processor

# Ranges that the changes of a patch's grey values are drawn from; grey values are those of 255.
GAMMA = 0.5  # largest absolute logarithm of the exponent
CONTRAST = 0.35  # largest absolute logarithm of the factor about the patch's mean
BRIGHTNESS = 30  # grey values up or down
NOISE = 20  # largest standard deviation of additive noise, grey values
SPECKLE = 0.3  # largest standard deviation of multiplicative noise
BLUR = 1.5  # largest standard deviation of a Gaussian blur, pixels
COARSER = 2.5  # largest factor by which rows or columns become coarser


@nut_processor
def MirrorAndRotate(samples, probability, rng, angles_degrees=(0, 10)):
    """samples >> MirrorAndRotate(probability, rng): B-scans as they are, mirrored, rotated.

    Takes (row, image, mask, roi) and yields (row, mirrored, angle_degrees, middle_slice, mask, roi), where the last
    three, uint8 (rows, columns), are turned as the first three say; the neighbouring slices are of no use for deciding
    on patches. A B-scan comes untouched and, with `probability`, mirrored as well; each of these as it is and, with
    `probability`, rotated as well, by an angle drawn evenly from `angles_degrees`, (smallest, largest),
    counter-clockwise. With 0.5 these are 2.25 a B-scan, as nutsml's AugmentImage gives with 'identical' and 'fliplr',
    then 'identical' and 'rotate'.
    """
    for row, image, mask, roi in samples:
        planes = (cv2.extractChannel(image, 1), mask, roi)
        variants = [(False, planes)]
        if rng.random() < probability:
            variants.append((True, tuple(cv2.flip(plane, 1) for plane in planes)))
        for mirrored, planes in variants:
            yield row, mirrored, 0.0, *planes
            if rng.random() < probability:
                angle_degrees = rng.uniform(*angles_degrees)
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


# ---- Patches -------------------------------------------------------------------------------------------------------
def draw_scale(rng, settings):
    """Factors (rows, columns) by which a patch covers more of its B-scan than its size, below 1 less; often (1, 1).

    `settings` are `AugmentationSettings`. A factor's logarithm is drawn evenly, so that stretching is as likely as
    shrinking.
    """
    if rng.random() >= settings.scale:
        return 1.0, 1.0
    return tuple(np.exp(rng.uniform(-1, 1, 2) * np.log1p(settings.scale_range)).tolist())


def resized(image, mask, shape):
    """`image` (uint8; rows, columns, channels; 0 invalid) and `mask` (uint8) with `shape` rows and columns.

    Grey values are interpolated, labels and what is invalid taken from the nearest pixel.
    """
    size = (shape[1], shape[0])
    valid = cv2.resize((image > 0).view(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return np.maximum(image, 1) * valid, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)


def with_other_grey_values(image, rng, probability):
    """A patch as another scanner, or another exposure, might show it: uint8, 0 stays invalid, all else is 1 to 255.

    `image` is uint8 (rows, columns, channels). Each of these happens with `probability`: gamma, contrast, brightness,
    blur, a lower resolution, speckle, additive noise. Noise is each channel's own.
    """
    chosen = rng.random(7) < probability
    if not chosen.any():
        return image
    valid = image > 0
    values = cv2.LUT(image, _tone_curve(image, rng, chosen[:3]))
    if chosen[3]:
        row_sigma, column_sigma = rng.uniform(0.2, BLUR, 2)
        values = cv2.GaussianBlur(values, (0, 0), sigmaX=column_sigma, sigmaY=row_sigma)
    if chosen[4]:
        rows, columns = image.shape[:2]
        coarse = (round(columns / rng.uniform(1, COARSER)), round(rows / rng.uniform(1, COARSER)))
        coarser = cv2.resize(values, coarse, interpolation=cv2.INTER_AREA)
        values = cv2.resize(coarser, (columns, rows), interpolation=cv2.INTER_LINEAR)
    if chosen[5]:
        values = values * (1 + np.float32(rng.uniform(0, SPECKLE)) * rng.standard_normal(image.shape, np.float32))
    if chosen[6]:
        values = values + np.float32(rng.uniform(0, NOISE)) * rng.standard_normal(image.shape, np.float32)
    return np.where(valid, np.clip(np.rint(values), 1, 255), 0).astype(np.uint8)


def _tone_curve(image, rng, chosen):
    """Gamma, contrast and brightness, where `chosen` (three bool), as a table of 256 grey values (float32)."""
    grey_values = np.arange(256, dtype=np.float32)
    if chosen[0]:
        grey_values = 255 * (grey_values / 255) ** np.exp(rng.uniform(-GAMMA, GAMMA))
    if chosen[1]:
        counts = cv2.calcHist([image], [1], None, [256], [0, 256]).ravel()
        counts[0] = 0  # invalid
        mean = float(counts @ grey_values) / max(float(counts.sum()), 1)
        grey_values = mean + (grey_values - mean) * np.exp(rng.uniform(-CONTRAST, CONTRAST))
    if chosen[2]:
        grey_values = grey_values + rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    return np.clip(grey_values, 0, 255).astype(np.float32)
