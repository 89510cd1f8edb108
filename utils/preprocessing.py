"""From a scan as exported to the volume that networks see: grey values, filters and rows brought to one scale."""

from dataclasses import dataclass

import cv2
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
    volume = to_8_bit(voxels)
    invalid = find_invalid(volume)
    if rule.match_histogram and reference_histogram is not None:
        volume = histogram_matching_table(grey_value_histogram(volume, invalid), reference_histogram)[volume]
    volume = np.where(invalid, np.uint8(0), volume)
    if rule.slice_median:
        volume = _median_over_slices(volume)
    if rule.pixel_median:
        volume = np.stack([cv2.medianBlur(slice_, 3) for slice_ in volume])
    rows = resampled_rows(volume.shape[1], spacing_mm[1], axial_spacing_mm)
    return _padded(_resample_valid(volume, invalid, rows), minimum_shape)


def preprocess_reference(reference, spacing_mm, *, axial_spacing_mm, minimum_shape=(256, 128)):
    """Labels (slices, rows, columns) on the grid of `preprocess_volume` (uint8), by nearest neighbour."""
    rows_in = reference.shape[1]
    rows_out = resampled_rows(rows_in, spacing_mm[1], axial_spacing_mm)
    nearest = ((2 * np.arange(rows_out) + 1) * rows_in) // (2 * rows_out)
    return _padded(reference[:, nearest].astype(np.uint8), minimum_shape)


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
    """Number of valid voxels (int64, 256) of each grey value in `volume` (uint8), `invalid` (bool) left out."""
    counts = [np.bincount(slice_[~left_out], minlength=256) for slice_, left_out in zip(volume, invalid, strict=True)]
    return np.sum(counts, axis=0)


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


def _median_over_slices(volume):
    filtered = volume.copy()
    before, here, after = volume[:-2], volume[1:-1], volume[2:]
    filtered[1:-1] = np.maximum(np.minimum(before, here), np.minimum(np.maximum(before, here), after))
    return filtered


def _resample_valid(volume, invalid, rows_out):
    """Rows of `volume` resampled from valid pixels alone; 0 where most of what a pixel covers is `invalid`."""
    matrix = resampling_matrix(volume.shape[1], rows_out)
    resampled = np.zeros((len(volume), rows_out, volume.shape[2]), np.uint8)
    for slice_, slice_invalid, target in zip(volume, invalid, resampled, strict=True):
        grey_values = matrix @ np.where(slice_invalid, 0, slice_).astype(np.float32)
        if slice_invalid.any():
            coverage = matrix @ (~slice_invalid).astype(np.float32)
            valid = coverage >= 0.5
            grey_values /= np.where(valid, coverage, 1)
        else:
            valid = np.True_
        target[:] = np.where(valid, np.clip(np.rint(grey_values), 1, 255), 0)
    return resampled


def _padded(volume, minimum_shape):
    """`volume` (slices, rows, columns) with zeros at the bottom and the right up to `minimum_shape` (rows, columns)."""
    missing = [max(0, least - length) for least, length in zip(minimum_shape, volume.shape[1:], strict=True)]
    return np.pad(volume, [(0, 0), *((0, count) for count in missing)])
