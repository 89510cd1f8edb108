"""Patches with another scanner's noise: anatomy stays, noise and grey values are the other's."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import batch_settings, write_prepared_case

from utils.data_prepare import SliceRow, patch_samples
from utils.errors import InputError
from utils.noise_transfer import OtherScans, with_noise_of

RNG = np.random.default_rng(0)


def scan(noise, shape=(96, 80), step=60):
    """A bright band across a dark ground, with Gaussian noise of this standard deviation."""
    grey = np.full(shape, 70.0)
    grey[shape[0] // 3 : shape[0] // 2] += step
    return np.clip(np.rint(grey + noise * RNG.standard_normal(shape)), 1, 255).astype(np.uint8)


def spread(image):
    """Standard deviation of the upper quarter's grey values, where there is no anatomy."""
    return image[: len(image) // 4].std()


def test_singular_components_by_an_independent_implementation():
    image, other = scan(4), scan(20)
    u, s, v = np.linalg.svd(image.astype(float), full_matrices=False)
    u2, s2, v2 = np.linalg.svd(other.astype(float), full_matrices=False)
    expected = (u[:, :8] * s[:8]) @ v[:8] + (u2[:, 8:] * s2[8:]) @ v2[8:]
    got = with_noise_of(image[..., None], other, 8)[..., 0].astype(int)
    in_order = got.ravel()[np.argsort(expected.ravel(), kind="stable")]
    assert (np.diff(in_order) >= -2).all()  # a growing function of the expected values, which were rounded
    assert abs(np.sort(got.ravel()) - np.sort(other.ravel().astype(int))).mean() < 1  # with the other's distribution


def test_a_patch_keeps_its_anatomy_and_takes_the_others_noise():
    quiet, loud = scan(3), scan(25, step=0)
    noisy = with_noise_of(quiet[..., None], loud, 10)[..., 0]
    assert spread(noisy) > 3 * spread(quiet)
    rows = noisy.mean(axis=1)
    assert rows[34:46].min() > rows[:30].max()


def test_what_is_invalid_stays_so_and_each_channel_is_changed_by_itself():
    other, image = scan(20), np.dstack([scan(3), scan(6), scan(6)])
    image[..., 2] = image[..., 1]
    image[:10, :10] = 0
    other[-5:, -5:] = 0
    noisy = with_noise_of(image, other, 12)
    np.testing.assert_array_equal(noisy == 0, image == 0)
    for channel in range(3):
        alone = with_noise_of(image[..., channel : channel + 1], other, 12)
        np.testing.assert_array_equal(alone[..., 0], noisy[..., channel])


@pytest.fixture
def folders(tmp_path):
    """Preprocessed folders of a quiet case and of another scanner's, small and noisy."""
    for name, noise, shape in (("own", 2, (120, 130)), ("others", 25, (60, 300))):
        write_prepared_case(tmp_path / name, "Topcon", name, np.stack([scan(noise, shape, 0), scan(noise, shape, 0)]))
    return tmp_path / "own", tmp_path / "others"


def test_patches_come_from_anywhere_and_small_b_scans_are_mirrored(folders):
    others, rng = OtherScans(folders), np.random.default_rng(1)
    patches = [others.patch((104, 104), rng) for _ in range(30)]
    assert {patch.shape for patch in patches} == {(104, 104)}
    assert 5 < sum(spread(patch) > 10 for patch in patches) < 25
    assert len({patch.tobytes() for patch in patches}) == 30
    small = next(patch for patch in patches if spread(patch) > 10)
    np.testing.assert_array_equal(small[60:], small[16:60][::-1])


def test_a_patch_of_padding_is_not_taken(tmp_path):
    write_prepared_case(tmp_path, "Topcon", "a", np.zeros((1, 60, 60), np.uint8))
    assert OtherScans([tmp_path]).patch((50, 50), np.random.default_rng(0)) is None


def test_a_folder_without_volumes_is_refused(tmp_path):
    with pytest.raises(InputError, match="no volume to take noise from"):
        OtherScans([tmp_path])


def test_training_draws_noise_by_seed_and_validation_none(folders):
    own, others = folders
    settings = batch_settings(own, shape=(104, 104), drop_healthy=0.0)
    augmentation = replace(settings.patches.augmentation, noise_transfer=0.5, noise_folders=(others,))
    noisy = replace(settings, patches=replace(settings.patches, augmentation=augmentation))
    rows = [SliceRow("own", "Topcon", "r", z, 0, 0, 0) for z in (0, 1)]

    def images(settings, training, epoch=0):
        return [image for image, *_ in patch_samples(rows, settings, training=training, epoch=epoch)]

    spreads = [spread(image[..., 1]) for epoch in range(8) for image in images(noisy, True, epoch)]
    assert 0.35 < np.mean(np.array(spreads) > 10) < 0.65
    assert all(map(np.array_equal, images(noisy, training=True), images(noisy, training=True)))
    assert all(map(np.array_equal, images(noisy, training=False), images(settings, training=False)))
