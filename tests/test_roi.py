"""The region of interest, against scikit-image."""

import numpy as np
import pytest
from helpers import noise
from images import adversarial_masks
from skimage import morphology
from skimage.filters import rank

from utils.preparation.roi import prediction_region, roi_mask, textured

SHAPE = (90, 70)
ENTROPY_RADIUS, CLOSING_RADIUS = 15, 55  # the method's
ADVERSARIAL_IMAGES = {
    f"{name}: {background} and {foreground}": np.where(mask, foreground, background).astype(np.uint8)
    for name, mask in adversarial_masks(SHAPE).items()
    for background, foreground in ((0, 255), (255, 0), (7, 200), (254, 255))
} | {
    "bright noise": noise(SHAPE, 129, 256),
    "noise": noise(SHAPE, 0, 256),
    "saturated noise": np.clip(noise(SHAPE, 0, 256).astype(int) * 3, 0, 255).astype(np.uint8),
    "sparse noise": np.where(adversarial_masks(SHAPE)["sparse"], noise(SHAPE, 0, 256), 0).astype(np.uint8),
    "ramp": np.broadcast_to(np.arange(70, dtype=np.uint8) * 3, SHAPE).copy(),
    "halves": np.repeat(np.array([[0, 255]], np.uint8), 35, axis=1).repeat(90, axis=0),
}


def textured_oracle(image, share):
    entropy = rank.entropy(image, morphology.disk(ENTROPY_RADIUS))
    return entropy > share * entropy.max()


@pytest.mark.parametrize("name", ADVERSARIAL_IMAGES)
def test_texture_equals_scikit_image_on_adversarial_images(name):
    image = ADVERSARIAL_IMAGES[name]
    for share in (0.01, 0.5, 0.99):
        np.testing.assert_array_equal(textured(image, ENTROPY_RADIUS, share), textured_oracle(image, share))


def test_no_texture_exceeds_the_largest():
    assert not textured(noise(SHAPE, 0, 256), ENTROPY_RADIUS, 1.0).any()


@pytest.mark.parametrize("shape", [(1, 60), (60, 1), (1, 1), (20, 90)])
def test_texture_of_images_smaller_than_the_disk(shape):
    for seed in range(5):
        image = noise(shape, 0, 256, seed)
        np.testing.assert_array_equal(textured(image, ENTROPY_RADIUS, 0.5), textured_oracle(image, 0.5))


@pytest.mark.parametrize("seed", range(4))
def test_texture_at_every_density_of_bright_pixels(seed):
    """Left to right from none to all; the share puts the threshold among the entropies of some place or other."""
    rng = np.random.default_rng(seed)
    image = rng.integers(1, 256, (60, 300)).astype(np.uint8)
    image[rng.random(image.shape) > np.linspace(0, 1, 300) ** 2] = 0
    for share in (0.01, 0.1, 0.3, 0.7, 0.9, 0.999):
        np.testing.assert_array_equal(textured(image, ENTROPY_RADIUS, share), textured_oracle(image, share))


def test_roi_equals_the_method_step_by_step():
    """Written with scikit-image and a loop over columns."""
    slice_ = noise((260, 200), 1, 129)
    slice_[100:130, 20:80] = slice_[120:150, 130:190] = noise((30, 60), 90, 256)
    slice_[190, ::60] = 255
    slice_[:60, :30] = 0
    reference = np.zeros(slice_.shape, np.uint8)
    reference[200:204, 100:110] = 3
    bright = np.rint(np.maximum(0, slice_ / 128 - 1) * 255).astype(np.uint8)
    expected = textured_oracle(bright, 0.01) | (reference > 0)
    margin = 2 * CLOSING_RADIUS + 1
    extended = morphology.isotropic_closing(np.pad(expected, margin), CLOSING_RADIUS)
    expected = extended[margin:-margin, margin:-margin]
    for column in range(slice_.shape[1]):
        rows = np.flatnonzero(expected[:, column])
        if len(rows):
            expected[rows[0] : rows[-1] + 1, column] = True
    np.testing.assert_array_equal(roi_mask(slice_, reference), expected & (slice_ > 0))
    assert 0.2 < expected.mean() < 0.9


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


def test_fluid_is_looked_for_in_dim_scans_as_in_bright_ones():
    slice_ = noise((300, 200), 1, 40)
    slice_[100:200] = noise((100, 200), 129, 256)
    slice_[:, :20] = 0  # invalid
    dim = np.where(slice_ > 0, np.maximum(slice_ // 3, 1), 0).astype(np.uint8)
    assert not roi_mask(dim).any()
    assert prediction_region(dim)[100:200, 20:].all()
    assert not prediction_region(dim)[:, :20].any()
    difference = prediction_region(dim) != roi_mask(slice_)
    assert difference.mean() < 0.02
    np.testing.assert_array_equal(prediction_region(slice_), roi_mask(slice_))


def test_a_b_scan_is_brightened_until_a_hundredth_of_its_valid_pixels_exceeds_210():
    """Of 10,000 valid pixels a hundred are at 200 and a hundred at 105, which becomes 210."""
    slice_ = np.zeros((200, 200), np.uint8)  # of which three quarters are invalid
    slice_[100:, 100:] = noise((100, 100), 1, 40)
    slice_[150:, 100:103] = noise((50, 3), 60, 69)  # up to twice 68: in the region
    slice_[150:, 197:] = noise((50, 3), 55, 63)  # up to twice 62: not
    slice_[100, 100:], slice_[101, 100:] = 200, 105
    region = prediction_region(slice_)
    np.testing.assert_array_equal(region, roi_mask(2 * np.minimum(slice_, 127)))
    for factor in (1.9, 2.1):
        assert (region != roi_mask(np.minimum(np.rint(factor * slice_), 255).astype(np.uint8))).any()


def test_roi_of_an_even_slice_is_empty():
    assert not roi_mask(np.full((60, 50), 90, np.uint8)).any()
