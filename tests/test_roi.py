"""The region of interest, against scikit-image."""

import numpy as np
import pytest
from images import noise
from scipy import signal
from skimage import morphology
from skimage.filters import rank

from utils.roi import close_with_disk, local_entropy, roi_mask


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
