"""Morphology and counting with disks, against scikit-image and scipy, on random and on adversarial images."""

import numpy as np
import pytest
from images import adversarial_masks
from scipy import ndimage, signal
from skimage import morphology

from utils.preparation.disk_morphology import close_with_disk, count_in_disk, dilate_with_disk, erode_with_disk

MASKS = adversarial_masks((70, 60))


def padded_closing(mask, radius):
    """Closing by scikit-image in an image large enough for everything outside to be background."""
    margin = 2 * radius + 1
    return morphology.closing(np.pad(mask, margin), morphology.disk(radius))[margin:-margin, margin:-margin]


@pytest.mark.parametrize("radius", [1, 4, 9])
@pytest.mark.parametrize("name", MASKS)
def test_dilation_erosion_closing_and_counts_equal_the_libraries(name, radius):
    mask, disk = MASKS[name], morphology.disk(radius)
    np.testing.assert_array_equal(dilate_with_disk(mask, radius), ndimage.binary_dilation(mask, disk))
    np.testing.assert_array_equal(erode_with_disk(mask, radius), ndimage.binary_erosion(mask, disk, border_value=1))
    np.testing.assert_array_equal(close_with_disk(mask, radius), padded_closing(mask, radius))
    counts = ndimage.convolve(mask.astype(np.int32), disk.astype(np.int32), mode="constant")
    np.testing.assert_array_equal(count_in_disk(mask, radius), counts)


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1), (3, 200), (200, 3)])
def test_images_smaller_than_the_disk(shape):
    for mask in adversarial_masks(shape).values():
        np.testing.assert_array_equal(
            dilate_with_disk(mask, 9), ndimage.binary_dilation(mask, morphology.disk(9)), err_msg=str(shape)
        )
        np.testing.assert_array_equal(close_with_disk(mask, 9), padded_closing(mask, 9), err_msg=str(shape))
        counts = ndimage.convolve(mask.astype(np.int32), morphology.disk(9).astype(np.int32), mode="constant")
        np.testing.assert_array_equal(count_in_disk(mask, 9), counts)


@pytest.mark.parametrize("seed", range(3))
def test_closing_with_the_disk_of_the_roi(seed):
    """By counting with an FFT how many mask pixels the disk covers."""
    mask = np.random.default_rng(seed).random((150, 130)) < 0.0015
    disk = morphology.disk(55).astype(float)
    dilated = signal.fftconvolve(np.pad(mask, 120).astype(float), disk, mode="same") > 0.5
    expected = signal.fftconvolve(dilated.astype(float), disk, mode="same") > disk.sum() - 0.5
    np.testing.assert_array_equal(close_with_disk(mask, 55), expected[120:-120, 120:-120])
    assert expected.sum() > mask.sum()


def test_closing_joins_what_a_disk_does_not_fit_between():
    """Two full rows: a disk of radius 5 fits between them from 11 free rows on."""
    for free_rows, closed in ((10, True), (11, False)):
        mask = np.zeros((60, 200), bool)
        mask[[20, 21 + free_rows]] = True
        assert close_with_disk(mask, 5)[20 + free_rows // 2, 100] == closed


def test_the_largest_disk_reaches_as_far_as_it_says():
    mask = np.zeros((300, 300), bool)
    mask[0, 0] = True
    reached = dilate_with_disk(mask, 253)
    assert reached[253, 0]
    assert reached[0, 253]
    assert not reached[254, 0]
    with pytest.raises(ValueError, match="from 0 to 253"):
        dilate_with_disk(mask, 254)


def test_views_with_any_strides_are_taken():
    mask = MASKS["random"]
    np.testing.assert_array_equal(dilate_with_disk(mask[::-1, ::-1].T, 4), dilate_with_disk(mask, 4)[::-1, ::-1].T)
