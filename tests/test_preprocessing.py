"""Grey values, filters and rows, against hand-made numbers and independent implementations."""

import numpy as np
import pytest
from helpers import noise
from images import adversarial_masks
from scipy import ndimage
from skimage import exposure

from utils.errors import InputError
from utils.preparation.invalid import find_invalid
from utils.preparation.preprocessing import (
    grey_value_histogram,
    histogram_matching_table,
    preprocess_reference,
    preprocess_volume,
    resampled_rows,
    resampling_matrix,
    to_8_bit,
)

SPACING_MM = (0.0117, 0.003872, 0.12)
SAME_ROWS = {"axial_spacing_mm": 0.003872}


# ---- Intensity -----------------------------------------------------------------------------------------------------
def test_16_bit_is_rounded_to_nearest():
    every_value = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(to_8_bit(every_value), np.rint(every_value / 65535 * 255))
    assert to_8_bit(np.array([128, 129], np.uint16)).tolist() == [0, 1]  # 0.498, 0.502


def test_8_bit_stays_and_other_types_are_refused():
    assert to_8_bit(np.array([7], np.uint8)).tolist() == [7]
    for dtype in ("int16", "float32"):
        with pytest.raises(InputError, match=f"{dtype}, expected uint8 or uint16"):
            to_8_bit(np.zeros(3, dtype))


@pytest.mark.parametrize("seed", range(4))
def test_histogram_matching_equals_scikit_image(seed):
    rng = np.random.default_rng(seed)
    source = np.clip(rng.gamma(2, 20, (3, 50, 40)) + 35, 0, 255).astype(np.uint8)
    reference = np.clip(rng.exponential(30, (2, 60, 50)) // 2 * 2, 0, 255).astype(np.uint8)  # even values only
    counts = [np.bincount(volume.ravel(), minlength=256) for volume in (source, reference)]
    matched = histogram_matching_table(*counts)[source].astype(float)
    assert np.abs(matched - exposure.match_histograms(source, reference)).max() <= 1


def test_histogram_matching_by_hand():
    """Half at 10 and half at 20 matched to half at 100 and half at 200."""
    source, reference = np.zeros(256), np.zeros(256)
    source[[10, 20]] = 5
    reference[[100, 200]] = 7
    table = histogram_matching_table(source, reference)
    assert table[[10, 20]].tolist() == [100, 200]


@pytest.mark.parametrize("name", adversarial_masks((5, 5)))
def test_matching_by_table_equals_scikit_image_on_adversarial_volumes(name):
    source = np.where(adversarial_masks((30, 40))[name], 255, 3).astype(np.uint8)[np.newaxis]
    reference = noise((2, 50, 40), 20, 250)
    valid = np.zeros(source.shape, bool), np.zeros(reference.shape, bool)
    counts = [grey_value_histogram(volume, invalid) for volume, invalid in zip((source, reference), valid, strict=True)]
    matched = histogram_matching_table(*counts)[source]
    np.testing.assert_array_equal(matched, np.rint(exposure.match_histograms(source, reference)))


def test_invalid_pixels_are_in_no_histogram():
    volume = np.array([[[0, 3], [3, 255]]], np.uint8)
    invalid = np.array([[[True, False], [False, True]]])
    histogram = grey_value_histogram(volume, invalid)
    assert histogram.shape == (256,)
    assert (histogram[3], histogram.sum()) == (2, 2)


# ---- Filters: vendor by vendor -------------------------------------------------------------------------------------
def median_oracle(volume):
    over_slices = volume.copy()
    over_slices[1:-1] = np.median(np.stack([volume[:-2], volume[1:-1], volume[2:]]), axis=0)
    return np.stack([ndimage.median_filter(slice_, 3, mode="nearest") for slice_ in over_slices])


@pytest.mark.parametrize("vendor", ["Cirrus", "Topcon"])
def test_cirrus_and_topcon_get_both_medians(vendor):
    volume = noise((4, 40, 30))
    filtered = preprocess_volume(volume, SPACING_MM, vendor, **SAME_ROWS)
    np.testing.assert_array_equal(filtered, median_oracle(volume))


@pytest.mark.parametrize("name", adversarial_masks((5, 5)))
def test_medians_of_adversarial_volumes(name):
    volume = np.where([adversarial_masks((40, 30), seed)[name] for seed in range(4)], 200, 60).astype(np.uint8)
    volume[::2] = volume[::2, ::-1]  # not every slice the same
    volume[:, 0, 0] = 255  # the maximum: nothing else is white, and so padding
    filtered = preprocess_volume(volume, SPACING_MM, "Topcon", **SAME_ROWS)
    np.testing.assert_array_equal(filtered, median_oracle(volume))


def test_medians_see_padding_as_black():
    volume = noise((4, 80, 60), 10, 200)
    volume[1:3, :, 40:] = 255
    invalid = find_invalid(volume)
    filtered = preprocess_volume(volume, SPACING_MM, "Cirrus", **SAME_ROWS)
    expected = median_oracle(np.where(invalid, 0, volume))
    np.testing.assert_array_equal(filtered, np.where(invalid, 0, np.maximum(expected, 1)))
    assert invalid[1, :, 40:].all()
    assert not invalid[:, :, :36].any()


def test_cirrus_slice_median_is_not_overwritten():
    """A patch in one slice alone goes; in the first slice, which has no neighbour on one side, it stays."""
    volume = np.full((4, 30, 30), 50, np.uint8)
    volume[:, 0, 0] = 60  # not one value all over
    volume[2, 10:20, 10:20] = 200
    assert preprocess_volume(volume, SPACING_MM, "Cirrus", **SAME_ROWS)[2, 15, 15] == 50
    volume[0, 10:20, 10:20] = 200
    assert preprocess_volume(volume, SPACING_MM, "Cirrus", **SAME_ROWS)[0, 15, 15] == 200


def test_spectralis_is_neither_filtered_nor_matched():
    volume = noise((3, 40, 30))
    reference_histogram = np.bincount([200, 201], minlength=256)
    preprocessed = preprocess_volume(
        volume, SPACING_MM, "Spectralis", reference_histogram=reference_histogram, **SAME_ROWS
    )
    np.testing.assert_array_equal(preprocessed, volume)


@pytest.mark.parametrize("vendor", ["Cirrus", "Topcon"])
def test_others_are_matched_when_there_is_a_reference(vendor):
    volume = noise((3, 40, 30))
    reference_histogram = np.bincount([200, 201], minlength=256)
    matched = preprocess_volume(volume, SPACING_MM, vendor, reference_histogram=reference_histogram, **SAME_ROWS)
    assert set(np.unique(matched)) <= {200, 201}


def test_a_misspelt_vendor_is_a_bug():
    with pytest.raises(ValueError, match="Cirrus, Spectralis, Topcon"):
        preprocess_volume(noise((1, 4, 4)), SPACING_MM, "cirrus", **SAME_ROWS)


# ---- Scale ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rows", "spacing_y_mm", "expected"), [(1024, 0.001955, 517), (496, 0.003872, 496), (885, 0.0026, 594)]
)
def test_rows_of_each_vendor(rows, spacing_y_mm, expected):
    assert resampled_rows(rows, spacing_y_mm, 0.003872) == expected


def test_resampling_by_hand():
    np.testing.assert_allclose(resampling_matrix(3, 3), np.eye(3))
    # 2 -> 4: centres at -0.25, 0.25, 0.75, 1.25, the outer ones clamped to the edge
    np.testing.assert_allclose(resampling_matrix(2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    # 4 -> 2: centres at 0.5 and 2.5, weights 1 - distance / 2 = .75 .75 .25, normalised
    np.testing.assert_allclose(resampling_matrix(4, 2), np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7, rtol=1e-6)


@pytest.mark.parametrize(("rows_in", "rows_out"), [(1024, 517), (517, 1024), (650, 588), (10, 1)])
def test_resampling_keeps_constants_and_ramps(rows_in, rows_out):
    matrix = resampling_matrix(rows_in, rows_out)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    ramp = matrix @ np.arange(rows_in)
    centres = (np.arange(rows_out) + 0.5) * rows_in / rows_out - 0.5
    np.testing.assert_allclose(ramp[2:-2], centres[2:-2], atol=0.3)


@pytest.mark.parametrize("rows", [1024, 885, 650, 496, 300, 41, 1])
def test_resampling_a_volume_equals_the_matrix(rows):
    """Rows by a band of the matrix, invalid pixels left out, against the whole matrix in float64."""
    volume = noise((2, rows, 40), 1, 130)
    volume[0, :, 25:] = 255  # white padding, with a slanted edge
    volume[0] = np.where(np.arange(40) * rows > 900 * (rows - np.arange(rows))[:, None], 255, volume[0])
    invalid = find_invalid(volume)
    rows_out = resampled_rows(rows, 2.0, 3.872)
    matrix = resampling_matrix(rows, rows_out).astype(np.float64)
    coverage = matrix @ ~invalid
    mean = matrix @ np.where(invalid, 0, volume) / np.maximum(coverage, 1e-9)
    resampled = preprocess_volume(volume, (1, 2.0, 1), "Spectralis", axial_spacing_mm=3.872)
    decided = np.abs(coverage - 0.5) > 1e-5
    np.testing.assert_array_equal((resampled > 0)[decided], (coverage > 0.5)[decided])
    valid = resampled > 0
    assert np.abs(resampled[valid] - mean[valid]).max() <= 0.5 + 1e-4
    assert rows < 41 or (invalid.any() and not invalid.all())


def test_arrays_of_any_strides_are_taken():
    volume = noise((3, 60, 50))
    flipped = preprocess_volume(volume[:, ::-1, ::-1], SPACING_MM, "Cirrus", **SAME_ROWS)
    copied = preprocess_volume(volume[:, ::-1, ::-1].copy(), SPACING_MM, "Cirrus", **SAME_ROWS)
    np.testing.assert_array_equal(flipped, copied)
    histogram = grey_value_histogram(volume[:, ::-1, ::-1], np.zeros(volume.shape, bool))
    np.testing.assert_array_equal(histogram, np.bincount(volume.ravel(), minlength=256))


def test_shrinking_does_not_alias():
    stripes = np.tile([0.0, 100.0], 512)
    shrunk = resampling_matrix(1024, 517) @ stripes
    assert np.abs(shrunk[1:-1] - 50).max() < 5
    plain = stripes[np.rint((np.arange(517) + 0.5) * 1024 / 517 - 0.5).astype(int)]
    assert np.abs(plain - 50).max() == 50


def test_reference_is_resampled_to_the_nearest_label():
    reference = np.array([0, 1, 2, 3], np.uint8).reshape(1, 4, 1)
    enlarged = preprocess_reference(reference, (1, 2.0, 1), axial_spacing_mm=1.0)
    assert enlarged.ravel().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    shrunk = preprocess_reference(reference[:, :3], (1, 1.0, 1), axial_spacing_mm=3.0)
    assert shrunk.ravel().tolist() == [1]  # the middle one of three


def test_scan_and_reference_stay_aligned():
    """A bright band and its label end up on the same rows."""
    volume, reference = noise((1, 1024, 130), 20, 30), np.zeros((1, 1024, 130), np.uint8)
    volume[:, 300:500] = noise((1, 200, 130), 180, 230)
    reference[:, 300:500] = 1
    scale = {"axial_spacing_mm": 0.003872}
    spacing_mm = (0.0117, 0.001955, 0.047)
    bright = preprocess_volume(volume, spacing_mm, "Spectralis", **scale) > 110
    labelled = preprocess_reference(reference, spacing_mm, **scale) == 1
    assert bright.shape == labelled.shape == (1, 517, 130)
    assert (bright != labelled).any(axis=(0, 2)).sum() <= 2  # rows, one at each edge of the band


def test_small_scans_stay_as_small_as_they_are():
    volume = noise((2, 100, 90))
    np.testing.assert_array_equal(preprocess_volume(volume, SPACING_MM, "Spectralis", **SAME_ROWS), volume)
    reference = np.ones((2, 100, 90), np.uint8)
    np.testing.assert_array_equal(preprocess_reference(reference, SPACING_MM, **SAME_ROWS), reference)


def test_valid_black_becomes_1_and_padding_becomes_0():
    volume = noise((1, 100, 90), low=0, high=3)
    volume[:, :, -20:] = 0
    preprocessed = preprocess_volume(volume, SPACING_MM, "Spectralis", **SAME_ROWS)
    assert preprocessed[:, :, :65].min() == 1  # black noise within 4 pixels of padding is taken for it
    assert not preprocessed[:, :, -20:].any()


def test_white_padding_does_not_bleed_into_its_neighbours():
    volume = np.full((1, 200, 60), 40, np.uint8)
    volume[0, ::7, ::5] = 41
    volume[:, 149:] = 255  # covers 30 % of an output row
    preprocessed = preprocess_volume(volume, (1, 0.5, 1), "Spectralis", axial_spacing_mm=0.9)
    assert set(np.unique(preprocessed)) <= {0, 40, 41}
    assert (preprocessed[0, :, 0] == 0).sum() == pytest.approx(51 * 0.5 / 0.9, abs=1)
