"""Grey values, filters, rows, invalid pixels and ROI; scikit-image and SciPy are the independent implementations."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage, signal
from skimage import exposure, morphology
from skimage.filters import rank

from utils.cases import find_cases
from utils.errors import InputError
from utils.invalid import find_circular_crop_radius, find_invalid
from utils.mhd import read_volume
from utils.preprocessing import (
    grey_value_histogram,
    histogram_matching_table,
    preprocess_reference,
    preprocess_volume,
    resampled_rows,
    resampling_matrix,
    to_8_bit,
)
from utils.roi import close_with_disk, local_entropy, roi_mask

REAL_SCANS = Path(__file__).resolve().parents[2] / "shared" / "data" / "real_oct"
SPACING_MM = (0.0117, 0.003872, 0.12)
SAME_ROWS = {"axial_spacing_mm": 0.003872, "minimum_shape": (1, 1)}


def noise(shape, low=1, high=200, seed=0):
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.uint8)


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


def test_unknown_vendor_is_a_bug():
    with pytest.raises(ValueError, match="Cirrus, Spectralis, Topcon"):
        preprocess_volume(noise((1, 4, 4)), SPACING_MM, "Zeiss", **SAME_ROWS)


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


def test_shrinking_does_not_alias():
    stripes = np.tile([0.0, 100.0], 512)
    shrunk = resampling_matrix(1024, 517) @ stripes
    assert np.abs(shrunk[1:-1] - 50).max() < 5
    plain = stripes[np.rint((np.arange(517) + 0.5) * 1024 / 517 - 0.5).astype(int)]
    assert np.abs(plain - 50).max() == 50


def test_reference_is_resampled_to_the_nearest_label():
    reference = np.array([0, 1, 2, 3], np.uint8).reshape(1, 4, 1)
    enlarged = preprocess_reference(reference, (1, 2.0, 1), axial_spacing_mm=1.0, minimum_shape=(1, 1))
    assert enlarged.ravel().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    shrunk = preprocess_reference(reference[:, :3], (1, 1.0, 1), axial_spacing_mm=3.0, minimum_shape=(1, 1))
    assert shrunk.ravel().tolist() == [1]  # the middle one of three


def test_scan_and_reference_stay_aligned():
    """A bright band and its label end up on the same rows."""
    volume, reference = noise((1, 1024, 130), 20, 30), np.zeros((1, 1024, 130), np.uint8)
    volume[:, 300:500] = noise((1, 200, 130), 180, 230)
    reference[:, 300:500] = 1
    scale = {"axial_spacing_mm": 0.003872, "minimum_shape": (256, 128)}
    spacing_mm = (0.0117, 0.001955, 0.047)
    bright = preprocess_volume(volume, spacing_mm, "Spectralis", **scale) > 110
    labelled = preprocess_reference(reference, spacing_mm, **scale) == 1
    assert bright.shape == labelled.shape == (1, 517, 130)
    assert (bright != labelled).any(axis=(0, 2)).sum() <= 2  # rows, one at each edge of the band


def test_small_scans_are_padded_at_the_bottom_and_the_right():
    volume = noise((2, 100, 90))
    preprocessed = preprocess_volume(volume, SPACING_MM, "Spectralis", axial_spacing_mm=0.003872)
    assert preprocessed.shape == (2, 256, 128)
    np.testing.assert_array_equal(preprocessed[:, :100, :90], volume)
    assert not preprocessed[:, 100:].any()
    assert not preprocessed[:, :, 90:].any()
    reference = preprocess_reference(np.ones((2, 100, 90), np.uint8), SPACING_MM, axial_spacing_mm=0.003872)
    np.testing.assert_array_equal(reference > 0, preprocessed > 0)


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
    preprocessed = preprocess_volume(volume, (1, 0.5, 1), "Spectralis", axial_spacing_mm=0.9, minimum_shape=(1, 1))
    assert set(np.unique(preprocessed)) <= {0, 40, 41}
    assert (preprocessed[0, :, 0] == 0).sum() == pytest.approx(51 * 0.5 / 0.9, abs=1)


# ---- Invalid pixels ------------------------------------------------------------------------------------------------
def tilted(rows=200, columns=150):
    """Wedge below a slanted line."""
    row, column = np.ogrid[:rows, :columns]
    return row > rows - 60 + column * 0.3


@pytest.mark.parametrize("colour", ["black", "white", "blurred white"])
def test_wedges_are_found_to_the_pixel(colour):
    rng = np.random.default_rng(0)
    volume = rng.integers(10, 120, (2, 200, 150)).astype(np.uint8)
    wedge = tilted()
    volume[1, wedge] = {"black": 0, "white": 255, "blurred white": rng.integers(246, 256, wedge.sum())}[colour]
    invalid = find_invalid(volume)
    assert not invalid[0].any()
    assert (invalid[1] != wedge).mean() < 0.001


def test_thin_white_strip_at_the_border_is_padding():
    volume = noise((1, 200, 150), 10, 120)
    volume[:, :, -1] = 255
    expected = np.zeros(volume.shape, bool)
    expected[:, :, -1] = True
    np.testing.assert_array_equal(find_invalid(volume), expected)


def test_blurred_edge_of_white_padding_is_padding_too():
    volume = noise((1, 200, 150), 10, 100)
    volume[:, 150:] = 255
    volume[:, 149] = 200
    assert find_invalid(volume)[0, 149].all()
    assert not find_invalid(volume)[0, :149].any()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_black_noise_is_valid(share):
    """Vitreous may be mostly exact zeros; connected to the border and large it is, but not even."""
    rng = np.random.default_rng(1)
    volume = rng.integers(1, 60, (3, 300, 256)).astype(np.uint8)
    volume[rng.random(volume.shape) < share] = 0
    assert not find_invalid(volume).any()


def test_saturated_tissue_and_dark_cysts_are_valid():
    volume = noise((1, 200, 150), 10, 120)
    volume[0, 100:108] = 255  # a bright layer from side to side, eight pixels thick
    volume[0, 40:80, 40:80] = 0  # a cyst, not connected to the border
    volume[0, 0, ::3] = 0
    assert not find_invalid(volume).any()


def test_circular_crop():
    volume = noise((2, 200, 160), 0, 120)
    row, column = np.ogrid[:200, :160]
    outside = np.hypot(row - 99.5, column - 79.5) >= 105
    volume[:, outside] = 0
    invalid = find_invalid(volume)
    assert invalid[:, outside].all()
    assert invalid[:, ~outside].mean() < 0.0005  # black noise that touches the padding
    assert find_circular_crop_radius(outside) == 105


def test_other_padding_is_no_circular_crop():
    frame = np.ones((200, 160), bool)
    frame[30:-30, 30:-30] = False
    for padding in (frame, tilted(), np.ones((20, 20), bool), np.zeros((20, 20), bool)):
        assert find_circular_crop_radius(padding) is None


def test_find_invalid_takes_8_bit_volumes_only():
    with pytest.raises(ValueError, match="uint16"):
        find_invalid(np.zeros((1, 4, 4), np.uint16))


# ---- ROI -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(70, 50), (20, 90)])
def test_entropy_equals_scikit_image(shape):
    image = noise(shape, 0, 256)
    image[:, :20] = 7  # even: entropy 0
    expected = rank.entropy(image, morphology.disk(15))
    np.testing.assert_allclose(local_entropy(image, 15), expected, atol=1e-10)
    assert local_entropy(image, 15)[10, 0] == 0


@pytest.mark.parametrize("seed", range(3))
def test_closing_equals_scikit_image_with_background_outside(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((150, 130)) < 0.01
    mask[0, 40], mask[149, 100], mask[70, 0] = True, True, True
    expected = morphology.closing(np.pad(mask, 30), morphology.disk(14))[30:-30, 30:-30]
    np.testing.assert_array_equal(close_with_disk(mask, 14), expected)
    assert expected.sum() > mask.sum()


@pytest.mark.parametrize("seed", range(3))
def test_closing_with_the_disk_of_the_roi(seed):
    """By counting with an FFT how many mask pixels the disk covers."""
    mask = np.random.default_rng(seed).random((150, 130)) < 0.0015
    disk = morphology.disk(55).astype(float)
    dilated = signal.fftconvolve(np.pad(mask, 120).astype(float), disk, mode="same") > 0.5
    expected = signal.fftconvolve(dilated.astype(float), disk, mode="same") > disk.sum() - 0.5
    np.testing.assert_array_equal(close_with_disk(mask, 55), expected[120:-120, 120:-120])


def test_closing_joins_what_a_disk_does_not_fit_between():
    """Two full rows: a disk of radius 5 fits between them from 11 free rows on."""
    for free_rows, closed in ((10, True), (11, False)):
        mask = np.zeros((60, 200), bool)
        mask[[20, 21 + free_rows]] = True
        assert close_with_disk(mask, 5)[20 + free_rows // 2, 100] == closed


def test_everything_darker_than_128_is_outside_the_roi():
    """Half of the B-scan is dark texture, half bright."""
    slice_ = noise((300, 300), 1, 128)
    slice_[200:230] = noise((30, 300), 129, 256)
    roi = roi_mask(slice_)
    assert roi.dtype == np.uint8
    assert not roi[:184].any()
    assert roi[200:230].all()
    assert not roi[247:].any()


def test_gaps_between_bright_parts_are_closed():
    slice_ = noise((300, 300), 1, 120)
    slice_[100:200] = noise((100, 300), 129, 256)
    slice_[:, 130:200] = noise((300, 70), 1, 120)  # of these, entropy reaches 15 from each side
    roi = roi_mask(slice_)
    assert roi[150].all()
    assert not roi[50, 165]


def test_fluid_and_the_columns_to_it_are_in_the_roi():
    slice_ = noise((400, 200), 1, 120)
    slice_[300:320] = noise((20, 200), 129, 256)
    reference = np.zeros((400, 200), np.uint8)
    reference[50:60, 90:110] = 2
    assert not roi_mask(slice_)[50:200].any()
    roi = roi_mask(slice_, reference)
    assert roi[50:320, 90:110].all()
    assert not roi[:280, :30].any()


def test_invalid_pixels_leave_the_roi_last():
    slice_ = noise((300, 200), 100, 256)
    slice_[140:160] = 0
    roi = roi_mask(slice_, np.ones((300, 200), np.uint8))
    np.testing.assert_array_equal(roi, slice_ > 0)


def test_roi_of_an_even_slice_is_empty():
    assert not roi_mask(np.full((60, 50), 90, np.uint8)).any()


# ---- Real scans, where they lie beside the project -----------------------------------------------------------------
@pytest.mark.skipif(not REAL_SCANS.is_dir(), reason="real scans are not beside the project")
@pytest.mark.parametrize(
    ("name", "invalid_share"),  # white pixels next to the border, counted by eye and threshold
    [("DME-306172-122", 0.286), ("DME-8525575-116", 0.0865), ("DME-1896542-23", 0.0463), ("CNV-9320911-1", 0.0)],
)
def test_real_scans(name, invalid_share):
    case = next(case for case in find_cases(REAL_SCANS) if case.name == name)
    voxels, spacing_mm = read_volume(case.oct_path)
    invalid = find_invalid(to_8_bit(voxels))
    assert invalid.mean() == pytest.approx(invalid_share, abs=0.005)
    preprocessed = preprocess_volume(voxels, spacing_mm, case.vendor, axial_spacing_mm=0.003872)
    roi = roi_mask(preprocessed[0])
    assert 0.1 < roi[preprocessed[0] > 0].mean() < 0.9
