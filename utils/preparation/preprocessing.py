"""From an exported scan to the volume that networks see: grey values matched, filtered, rows resampled."""

import itertools
from dataclasses import dataclass

import cv2
import numpy as np

from utils.compiled import compiled
from utils.errors import InputError
from utils.preparation.invalid import InvalidPixels
from utils.volumes.vendors import why_no_vendor_name


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

_NONE = VendorRule(match_histogram=False, slice_median=False, pixel_median=False)  # of any other vendor


def vendor_rule(vendor):
    """The `VendorRule` of a vendor's volumes. Raises `ValueError` for a name that no vendor can have."""
    if why := why_no_vendor_name(vendor):
        raise ValueError(f"vendor {vendor!r}: {why}; one of {', '.join(VENDOR_RULES)}, or another's name")
    return VENDOR_RULES.get(vendor, _NONE)


# Modules that decide what preprocessed voxels are and where they lie, for `utils.files.code_digest`.
PREPROCESSING_CODE = (
    "utils.volumes.geometry",
    "utils.preparation.disk_morphology",
    "utils.preparation.drawn",
    "utils.preparation.invalid",
    "utils.preparation.preprocessing",
)


def preprocess_volume(voxels, spacing_mm, vendor, *, axial_spacing_mm, reference_histogram=None):
    """Preprocessed volume (slices, rows', columns; uint8, 0 = invalid, valid 1-255).

    `voxels` (slices, rows, columns) is uint8 or uint16, `spacing_mm` (x, y, z). `reference_histogram` (256 counts) is
    what Cirrus and Topcon are matched to; None leaves grey values as they are. Rows are resampled to
    `axial_spacing_mm`.
    """
    slices = preprocessed_slices(
        voxels, spacing_mm, vendor, axial_spacing_mm=axial_spacing_mm, reference_histogram=reference_histogram
    )
    first = next(slices)
    preprocessed = np.empty((len(voxels), *first.shape), np.uint8)
    for target, slice_ in zip(preprocessed, itertools.chain([first], slices), strict=True):
        target[:] = slice_
    return preprocessed


def preprocessed_slices(voxels, spacing_mm, vendor, *, axial_spacing_mm, reference_histogram=None, invalid=None):
    """Yield the slices of `preprocess_volume`. With a `utils.volumes.mhd.VoxelFile` as `voxels`, few are in memory.

    `invalid` are the `invalid_pixels` of `voxels`, if the caller has them already.
    """
    rule = vendor_rule(vendor)
    invalid = invalid_pixels(voxels) if invalid is None else invalid
    table = np.arange(256, dtype=np.uint8)
    if rule.match_histogram and reference_histogram is not None:
        table = histogram_matching_table(grey_value_histogram(_slices_of_8_bit(voxels), invalid), reference_histogram)
    matched = map(matched_slice, _slices_of_8_bit(voxels), invalid, itertools.repeat(table))
    _, rows, columns = voxels.shape
    rows_out = resampled_rows(rows, spacing_mm[1], axial_spacing_mm)
    first, weights = band(resampling_matrix(rows, rows_out))
    for slice_, left_out in zip(filtered_slices(matched, rule), invalid, strict=True):
        preprocessed = np.empty((rows_out, columns), np.uint8)
        resample_valid(slice_, left_out, first, weights, preprocessed)
        yield preprocessed


def invalid_pixels(voxels):
    """The `InvalidPixels` (padding and drawings) of an exported scan (slices, rows, columns; uint8 or uint16)."""
    return InvalidPixels(_slices_of_8_bit(voxels), int(to_8_bit(np.array(voxels.max()))))


def _slices_of_8_bit(voxels):
    return (np.ascontiguousarray(to_8_bit(slice_)) for slice_ in voxels)


def preprocess_reference(reference, spacing_mm, *, axial_spacing_mm):
    """Labels (slices, rows, columns) on the grid of `preprocess_volume` (uint8), by nearest neighbour."""
    rows_in = reference.shape[1]
    rows_out = resampled_rows(rows_in, spacing_mm[1], axial_spacing_mm)
    nearest = ((2 * np.arange(rows_out) + 1) * rows_in) // (2 * rows_out)
    return reference[:, nearest].astype(np.uint8)


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
    """Number (int64, 256) of voxels of each grey value in `volume` (uint8), without those that are `invalid` (bool).

    Both are iterables of slices (rows, columns). Counts are exact for slices of up to 16 million pixels, because OpenCV
    counts in float32.
    """
    counts = np.zeros(256, np.int64)
    for slice_, left_out in zip(volume, invalid, strict=True):
        valid = (~left_out).astype(np.uint8)
        counts += cv2.calcHist([np.ascontiguousarray(slice_)], [0], valid, [256], [0, 256]).ravel().astype(np.int64)
    return counts


def matched_slice(slice_, invalid, table):
    """`slice_` (rows, columns; uint8) with its grey values looked up in `table` (256, uint8); 0 where `invalid`."""
    matched = cv2.LUT(slice_, table)
    matched[invalid] = 0
    return matched


def histogram_matching_table(source_histogram, reference_histogram):
    """For each grey value (uint8, 256) the one at the same place of the reference's cumulative distribution.

    Both histograms are 256 counts. The two distributions are interpolated linearly at the values that occur, as in
    `skimage.exposure.match_histograms`. A source without valid voxels keeps its grey values.
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

    Pixel centres are aligned and edges clamped. With fewer rows out than in, the interpolating triangle is wider by
    that ratio, so that every input row counts (no aliasing). Each output row's weights sum to 1.
    """
    ratio = rows_in / rows_out
    width = max(1.0, ratio)
    centres = np.clip((np.arange(rows_out) + 0.5) * ratio - 0.5, 0, rows_in - 1)
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(rows_in)) / width)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def filtered_slices(slices, rule):
    """Yield each of `slices`, an iterable of uint8 (rows, columns), after the medians that `rule` asks for."""
    for before, slice_, after in with_neighbours(slices):
        if rule.slice_median and before is not None and after is not None:
            slice_ = np.maximum(np.minimum(before, slice_), np.minimum(np.maximum(before, slice_), after))
        yield cv2.medianBlur(slice_, 3) if rule.pixel_median else slice_


def with_neighbours(slices):
    """Yield (slice before, slice, slice after) for each of `slices`, an iterable; None beyond its ends."""
    ended = itertools.chain([None], slices, [None])
    before, slice_ = next(ended), next(ended)
    for after in ended:
        yield before, slice_, after
        before, slice_ = slice_, after


def band(matrix):
    """The nonzero part of each row of `matrix`: (first columns, weights). All rows have equally many weights."""
    columns = matrix.shape[1]
    length = (matrix > 0).sum(axis=1).max()
    first = np.minimum((matrix > 0).argmax(axis=1), columns - length)
    return first, np.take_along_axis(matrix, first[:, None] + np.arange(length), axis=1)


@compiled
def resample_valid(slice_, invalid, first, weights, target):
    """Fill `target` with the rows of `slice_`, resampled from valid pixels alone.

    `slice_` and `target` are uint8 (rows, columns), `invalid` is bool, `first` and `weights` are a `band`. A pixel is 0
    where most of what it covers is invalid, else 1-255. Sums are taken in the order of the rows and in float32, so that
    half-way cases round alike on every CPU.
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
