"""Patches that are stretched, shrunk and changed in their grey values; mirroring and rotation: test_custom_nuts.py."""

from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
from helpers import batch_settings, write_prepared_case

from utils.custom_nuts import CutPatch, Patch
from utils.data_prepare import SliceRow
from utils.patches import augmentation
from utils.patches.augmentation import draw_scale, resized, with_other_grey_values
from utils.patches.patch_stream import plan_block
from utils.settings.patch_settings import AugmentationSettings, PatchSettings

Row = namedtuple("Row", "image_name vendor slice folder is_IRF is_SRF is_PED", defaults=(None, 0, 0, 0))
NONE = AugmentationSettings(10.0, False, 0.0, 0.0, 0.0)
CHANGES = ["gamma", "contrast", "brightness", "blur", "resolution", "speckle", "noise"]


@pytest.fixture
def patch():
    """A patch of noise with an invalid corner."""
    image = np.random.default_rng(0).integers(60, 180, (64, 48, 3), dtype=np.uint8)
    image[:20, :10] = 0
    return image


class Chosen:
    """A generator that chooses only the change with this number; all else is numpy's."""

    def __init__(self, number):
        self.number, self.rng = number, np.random.default_rng(3)

    def random(self, n):
        return np.where(np.arange(n) == self.number, 0.0, 1.0)

    def __getattr__(self, name):
        return getattr(self.rng, name)


# ---- Grey values ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", range(7), ids=CHANGES)
def test_each_change_leaves_what_is_invalid_and_makes_nothing_invalid(patch, number):
    changed = with_other_grey_values(patch, Chosen(number), 0.5)
    assert (changed.shape, changed.dtype) == (patch.shape, np.uint8)
    np.testing.assert_array_equal(changed == 0, patch == 0)
    assert (changed != patch)[20:].mean() > 0.3


def test_grey_values_follow_the_seed_and_not_the_others(patch):
    one, again, other = (with_other_grey_values(patch, np.random.default_rng(seed), 0.9) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert with_other_grey_values(patch, np.random.default_rng(1), 0.0) is patch


def test_an_invalid_patch_stays_invalid():
    nothing = np.zeros((32, 32, 3), np.uint8)
    for seed in range(20):
        assert not with_other_grey_values(nothing, np.random.default_rng(seed), 0.9).any()


def test_contrast_by_hand(monkeypatch):
    """A factor of 2 about the mean of the valid pixels, 120: 100 becomes 80, 140 becomes 160."""
    monkeypatch.setattr(augmentation, "CONTRAST", np.log(2))
    image = np.array([[0, 100, 140]], np.uint8)[..., None].repeat(3, axis=2)
    rng = Chosen(1)
    rng.uniform = lambda low, high: high
    assert with_other_grey_values(image, rng, 0.5)[0, :, 1].tolist() == [0, 80, 160]


# ---- Scale ---------------------------------------------------------------------------------------------------------
def test_scales_stretch_as_often_as_they_shrink_and_stay_in_their_range():
    rng = np.random.default_rng(0)
    scales = np.array([draw_scale(rng, replace(NONE, scale=0.75, scale_range=0.5)) for _ in range(4000)])
    untouched = (scales == 1).all(axis=1)
    assert untouched.mean() == pytest.approx(0.25, abs=0.03)
    drawn = scales[~untouched]
    assert drawn.min() > 1 / 1.5
    assert drawn.max() < 1.5
    assert np.median(drawn) == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.06  # rows and columns have their own


def test_labels_and_what_is_invalid_come_from_the_nearest_pixel():
    image = np.full((4, 4, 3), 90, np.uint8)
    image[:, :2] = 0
    mask = np.array([[0, 0, 3, 3]] * 4, np.uint8)
    larger, larger_mask = resized(image, mask, (8, 8))
    assert larger_mask[0].tolist() == [0, 0, 0, 0, 3, 3, 3, 3]
    assert (larger[0, :, 1] > 0).tolist() == [False] * 4 + [True] * 4
    assert larger[0, 5:, 1].tolist() == [90] * 3


def test_a_dark_valid_pixel_beside_invalid_ones_stays_valid():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:, 2:] = 1  # halfway to 0 it would be rounded to 0
    larger, _ = resized(image, np.zeros((4, 4), np.uint8), (16, 16))
    assert (larger[0, :, 1] > 0).tolist() == [False] * 8 + [True] * 8


@pytest.mark.parametrize("angle_degrees", [0.0, 10.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_scaled_patch_shows_a_wider_window_about_the_same_middle(tmp_path, monkeypatch, mirrored, angle_degrees):
    """With a factor of 2, every second pixel of a window twice as large."""
    rng = np.random.default_rng(1)
    volume = rng.integers(1, 256, (1, 160, 170), dtype=np.uint8)
    masks = rng.integers(0, 4, volume.shape, dtype=np.uint8)
    write_prepared_case(tmp_path, "Topcon", "a", volume, masks)
    row = Row("a", "Topcon", 0)
    once = PatchSettings((40, 30), 12, 4, 0.75, NONE)
    twice = replace(once, shape=(80, 60))
    _, window, *_ = CutPatch(tmp_path, twice)(Patch(row, mirrored, angle_degrees, 30, 45, 0.0, None, 1, 1, 1))
    monkeypatch.setattr("utils.custom_nuts.draw_scale", lambda *_: (2.0, 2.0))
    patch = CutPatch(tmp_path, once)(Patch(row, mirrored, angle_degrees, 50, 60, 0.0, 7, 0, 0, 0))
    image, mask, *labels = patch
    assert (image.shape, mask.shape) == ((40, 30, 3), (40, 30))
    np.testing.assert_array_equal(mask, window[::2, ::2])
    assert labels == [1, 1, 1]  # of what is there now, not of what was decided on


def test_a_window_larger_than_the_b_scan_ends_with_it(tmp_path, monkeypatch):
    volume = np.full((1, 50, 60), 100, np.uint8)
    write_prepared_case(tmp_path, "Topcon", "a", volume)
    monkeypatch.setattr("utils.custom_nuts.draw_scale", lambda *_: (3.0, 0.5))
    cut = CutPatch(tmp_path, PatchSettings((40, 30), 12, 4, 0.75, NONE))
    image, *_ = cut(Patch(Row("a", "Topcon", 0), False, 0.0, 10, 30, 0.0, 7, 0, 0, 0))
    assert image.shape == (40, 30, 3)
    assert (image == 100).all()


# ---- Plans ---------------------------------------------------------------------------------------------------------
def test_which_patches_there_are_does_not_depend_on_how_they_are_varied(tmp_path):
    volume = np.random.default_rng(0).integers(1, 256, (4, 110, 150), dtype=np.uint8)
    write_prepared_case(tmp_path, "Topcon", "a", volume, volume % 4)
    rows = [SliceRow("a", "Topcon", "r", z, 0, 0, 0) for z in range(4)]
    settings = batch_settings(tmp_path, shape=(104, 104))
    varied = replace(settings, patches=replace(settings.patches, augmentation=replace(NONE, grey=0.3, scale=0.5)))

    def plan(settings, training=True):
        return plan_block((0, rows), settings, training=training, epoch=0)

    assert {patch.seed for patch in plan(settings)} == {None}
    assert len({patch.seed for patch in plan(varied)}) == len(plan(varied))
    assert sorted(patch._replace(seed=0) for patch in plan(varied)) == sorted(
        patch._replace(seed=0) for patch in plan(settings)
    )
    assert plan(varied, training=False) == plan(settings, training=False)


def test_b_scans_turn_both_ways_where_that_is_asked_for(tmp_path):
    volume = np.random.default_rng(0).integers(1, 256, (1, 110, 150), dtype=np.uint8)
    write_prepared_case(tmp_path, "Topcon", "a", volume, volume % 4)
    rows = [SliceRow("a", "Topcon", "r", 0, 0, 0, 0)]
    settings = batch_settings(tmp_path, shape=(104, 104))
    both = replace(NONE, rotation_degrees=15.0, rotate_both_ways=True)

    def angles(augmentation):
        varied = replace(settings, patches=replace(settings.patches, augmentation=augmentation))
        blocks = (plan_block((number, rows), varied, training=True, epoch=0) for number in range(40))
        return [patch.angle_degrees for block in blocks for patch in block]

    assert -15 < min(angles(both)) < -8
    assert 8 < max(angles(both)) < 15
    assert min(angles(NONE)) == 0
