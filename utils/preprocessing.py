"""From a scan as exported to the volume that networks see: grey values, filters and rows brought to one scale."""

from dataclasses import dataclass

import cv2
import numba
import numpy as np

from utils.errors import InputError
from utils.invalid import find_invalid


@dataclass(frozen=True)
class VendorRule:
    """What is done to a vendor's volumes before they are resampled."""

    match_histogram: bool  # to the reference volume's, which is a Spectralis one
    slice_median: bool  # over slices z-1, z, z+1; the first and the last slice stay
    pixel_median: bool  # 3 x 3 in each slice


VENDOR_RULES = {
    "Cirrus": VendorRule(match_histogram=True, slice_median=True, pixel_median=True),
    "Spectralis": VendorRule(match_histogram=False, slice_median=False, pixel_median=False),
    "Topcon": VendorRule(match_histogram=True, slice_median=True, pixel_median=True),
}


def preprocess_volume(
    voxels, spacing_mm, vendor, *, axial_spacing_mm, reference_histogram=None, minimum_shape=(256, 128)
):
    """Preprocessed volume (slices, rows', columns'; uint8, 0 = invalid, valid 1-255).

    `voxels` (slices, rows, columns) is uint8 or uint16, `spacing_mm` (x, y, z). `reference_histogram` (256 counts) is
    what Cirrus and Topcon are matched to; None leaves grey values as they are. Rows are resampled to
    `axial_spacing_mm`, then rows and columns padded at the bottom and the right to at least `minimum_shape`.
    """
    if vendor not in VENDOR_RULES:
        raise ValueError(f"vendor must be one of {', '.join(VENDOR_RULES)}, got {vendor!r}")
    rule = VENDOR_RULES[vendor]
    volume = np.ascontiguousarray(to_8_bit(voxels))
    invalid = find_invalid(volume)
    volume = match_volume(volume, invalid, reference_histogram if rule.match_histogram else None)
    slices, rows, columns = volume.shape
    rows_out = resampled_rows(rows, spacing_mm[1], axial_spacing_mm)
    first, weights = band(resampling_matrix(rows, rows_out))
    preprocessed = _zeros((slices, rows_out, columns), minimum_shape)
    for slice_, left_out, target in zip(filtered_slices(volume, rule), invalid, preprocessed, strict=True):
        resample_valid(slice_, left_out, first, weights, target[:rows_out, :columns])
    return preprocessed


def preprocess_reference(reference, spacing_mm, *, axial_spacing_mm, minimum_shape=(256, 128)):
    """Labels (slices, rows, columns) on the grid of `preprocess_volume` (uint8), by nearest neighbour."""
    rows_in = reference.shape[1]
    rows_out = resampled_rows(rows_in, spacing_mm[1], axial_spacing_mm)
    nearest = ((2 * np.arange(rows_out) + 1) * rows_in) // (2 * rows_out)
    slices, _, columns = reference.shape
    preprocessed = _zeros((slices, rows_out, columns), minimum_shape)
    preprocessed[:, :rows_out, :columns] = reference[:, nearest]
    return preprocessed


def to_8_bit(voxels):
    """Grey values as uint8: uint16 scaled by 255 / 65535 and rounded to nearest, uint8 as they are.

    Raises `InputError` for any other type, whose range is unknown.
    """
    if voxels.dtype == np.uint8:
        return voxels
    if voxels.dtype != np.uint16:
        raise InputError(
            f"grey values of type {voxels.dtype}, expected uint8 or uint16; export the scan as one of these"
        )
    return ((voxels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257, odd: nothing lies half-way


def grey_value_histogram(volume, invalid):
    """Number of valid voxels (int64, 256) of each grey value in `volume` (uint8), `invalid` (bool) left out.

    Both are (slices, rows, columns). A slice's counts are exact up to 16 million pixels (float32 in OpenCV).
    """
    counts = np.zeros(256, np.int64)
    for slice_, left_out in zip(volume, invalid, strict=True):
        valid = (~left_out).astype(np.uint8)
        counts += cv2.calcHist([np.ascontiguousarray(slice_)], [0], valid, [256], [0, 256]).ravel().astype(np.int64)
    return counts


def match_volume(volume, invalid, reference_histogram):
    """`volume` (slices, rows, columns; uint8) matched to `reference_histogram`, if there is one; 0 where `invalid`."""
    table = np.arange(256, dtype=np.uint8)
    if reference_histogram is not None:
        table = histogram_matching_table(grey_value_histogram(volume, invalid), reference_histogram)
    matched = np.empty_like(volume)
    for slice_, left_out, target in zip(volume, invalid, matched, strict=True):
        cv2.LUT(slice_, table, target)
        target[left_out] = 0
    return matched


def histogram_matching_table(source_histogram, reference_histogram):
    """For each grey value (uint8, 256) the one at the same place of the reference's cumulative distribution.

    Both histograms are 256 counts. Linear interpolation between the two distributions at the values that occur, as in
    `skimage.exposure.match_histograms`. A source without valid voxels is left as it is.
    """
    source, reference = np.asarray(source_histogram, np.float64), np.asarray(reference_histogram, np.float64)
    if source.sum() == 0:
        return np.arange(256, dtype=np.uint8)
    if reference.sum() == 0:
        raise ValueError("the reference histogram is empty")
    occurring = np.flatnonzero(reference)
    source_share = np.cumsum(source) / source.sum()
    reference_share = np.cumsum(reference)[occurring] / reference.sum()
    return np.rint(np.interp(source_share, reference_share, occurring)).astype(np.uint8)


def resampled_rows(rows, spacing_y_mm, axial_spacing_mm):
    """Number of rows at `axial_spacing_mm` of an image of `rows` rows at `spacing_y_mm`."""
    return max(1, round(rows * spacing_y_mm / axial_spacing_mm))


def resampling_matrix(rows_in, rows_out):
    """Weights (rows_out, rows_in; float32) that resample rows linearly: ``matrix @ image``.

    Pixel centres are aligned and edges clamped. Where rows are lost, the interpolating triangle is widened by the
    ratio, so that every input row counts (no aliasing); each output row's weights sum to 1.
    """
    ratio = rows_in / rows_out
    width = max(1.0, ratio)
    centres = np.clip((np.arange(rows_out) + 0.5) * ratio - 0.5, 0, rows_in - 1)
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(rows_in)) / width)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def filtered_slices(volume, rule):
    """Yield each slice of `volume` (slices, rows, columns; uint8) after the medians that `rule` asks for."""
    for index, slice_ in enumerate(volume):
        if rule.slice_median and 0 < index < len(volume) - 1:
            before, after = volume[index - 1], volume[index + 1]
            slice_ = np.maximum(np.minimum(before, slice_), np.minimum(np.maximum(before, slice_), after))
        yield cv2.medianBlur(slice_, 3) if rule.pixel_median else slice_


def band(matrix):
    """The part of each row of `matrix` that is not zero: (first columns, weights), as many weights for every row."""
    columns = matrix.shape[1]
    length = (matrix > 0).sum(axis=1).max()
    first = np.minimum((matrix > 0).argmax(axis=1), columns - length)
    return first, np.take_along_axis(matrix, first[:, None] + np.arange(length), axis=1)


@numba.njit(cache=True, nogil=True)
def resample_valid(slice_, invalid, first, weights, target):
    """Fill `target` with the rows of `slice_`, resampled from valid pixels alone.

    `slice_` and `target` are uint8 (rows, columns), `invalid` is bool, `first` and `weights` are a `band`. 0 where most
    of what a pixel covers is invalid, else 1-255. Each sum is taken in order of the rows and in float32, so that
    half-way cases round alike on every processor.
    """
    rows_out, columns = target.shape
    any_invalid = invalid.any()
    grey_values, coverage = np.empty(columns, np.float32), np.ones(columns, np.float32)
    for row in range(rows_out):
        grey_values[:] = 0
        coverage[:] = 0 if any_invalid else 1
        for place in range(weights.shape[1]):
            weight = weights[row, place]
            grey_source, invalid_source = slice_[first[row] + place], invalid[first[row] + place]
            if any_invalid:
                for column in range(columns):
                    counted = np.float32(0) if invalid_source[column] else weight
                    grey_values[column] += counted * np.float32(grey_source[column])
                    coverage[column] += counted
            else:
                for column in range(columns):
                    grey_values[column] += weight * np.float32(grey_source[column])
        here = target[row]
        for column in range(columns):
            valid = coverage[column] >= 0.5
            mean = np.rint(grey_values[column] / coverage[column]) if valid else np.float32(0)
            here[column] = np.uint8(min(max(mean, np.float32(1)), np.float32(255))) if valid else np.uint8(0)


def _zeros(shape, minimum_shape):
    """Empty volume (uint8) of `shape` (slices, rows, columns), rows and columns at least `minimum_shape`."""
    return np.zeros((shape[0], *np.maximum(shape[1:], minimum_shape)), np.uint8)
