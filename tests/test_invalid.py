"""Padding and circular crops, on made images and on real scans where they lie beside the project."""

from pathlib import Path

import numpy as np
import pytest
from helpers import noise
from images import adversarial_masks
from scipy import ndimage

from utils.preparation.cases import find_cases
from utils.preparation.invalid import find_circular_crop_radius, find_invalid
from utils.preparation.preprocessing import preprocess_volume, to_8_bit
from utils.preparation.roi import roi_mask
from utils.volumes.mhd import read_volume

REAL_SCANS = Path(__file__).resolve().parents[2] / "shared" / "data" / "real_oct"


def tilted(rows=200, columns=150):
    """Wedge below a slanted line."""
    row, column = np.ogrid[:rows, :columns]
    return row > rows - 60 + column * 0.3


def padding_oracle(candidates, seed_radius, edge_radius, least_run):
    """Padding of one colour by scipy's distance transform and labels, without any early way out."""
    if candidates.all():
        return candidates
    depth = ndimage.distance_transform_edt(candidates)
    seeds = depth > seed_radius
    for line in ((0, ...), (-1, ...), (..., 0), (..., -1)):
        for run in ndimage.find_objects(ndimage.label(candidates[line])[0]):
            if run[0].stop - run[0].start >= max(32, least_run * len(candidates[line])):
                seeds[line][run] = True
    opened = (depth > edge_radius).any() & (ndimage.distance_transform_edt(depth <= edge_radius) <= edge_radius)
    labels, _ = ndimage.label(seeds | opened, np.ones((3, 3)))
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    padding = np.isin(labels, np.intersect1d(labels[seeds], border))
    return ndimage.binary_dilation(padding, np.ones((3, 3)), edge_radius, mask=candidates) if padding.any() else padding


def invalid_oracle(slice_, maximum):
    black = padding_oracle(slice_ == 0, 9, 4, 0.5)
    white = padding_oracle(slice_ >= max(maximum - 10, maximum // 2 + 1), 6, 2, 0)
    if white.any():
        white = ndimage.binary_dilation(white, np.ones((3, 3)), 4, mask=white | (slice_ > maximum // 2))
    return black | white


@pytest.mark.parametrize("seed", range(60))
def test_padding_equals_that_by_scipy(seed):
    """On noise with black and white boxes, many of them at the border and about as large as the disks."""
    rng = np.random.default_rng(seed)
    slice_ = rng.integers(0, 256, rng.integers(20, 120, 2)).astype(np.uint8)
    for _ in range(rng.integers(1, 8)):
        (row, column), (height, width) = rng.integers(0, slice_.shape), rng.integers(2, 40, 2)
        slice_[max(0, row - height // 2) : row + height // 2, max(0, column - width // 2) : column + width // 2] = (
            rng.choice([0, 255, 248])
        )
    expected = invalid_oracle(slice_, int(slice_.max()))
    corners = expected[[0, 0, -1, -1], [0, -1, 0, -1]]
    if not corners.all():  # else it may be a circular crop
        np.testing.assert_array_equal(find_invalid(slice_[np.newaxis])[0], expected)


@pytest.mark.parametrize("name", adversarial_masks((5, 5)))
@pytest.mark.parametrize("shape", [(60, 50), (1, 80), (80, 1), (1, 1)])
def test_padding_of_adversarial_images_equals_that_by_scipy(name, shape):
    for values in ((0, 90), (90, 255)):
        slice_ = np.where(adversarial_masks(shape)[name], *values).astype(np.uint8)
        expected = invalid_oracle(slice_, int(slice_.max()))
        np.testing.assert_array_equal(find_invalid(slice_[np.newaxis])[0], expected)


@pytest.mark.parametrize("colour", ["black", "white", "blurred white"])
def test_wedges_are_found_to_the_pixel(colour):
    rng = np.random.default_rng(0)
    volume = rng.integers(10, 120, (2, 200, 150)).astype(np.uint8)
    wedge = tilted()
    volume[1, wedge] = {"black": 0, "white": 255, "blurred white": rng.integers(246, 256, wedge.sum())}[colour]
    invalid = find_invalid(volume)
    assert not invalid[0].any()
    assert (invalid[1] != wedge).mean() < 0.001


@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_thin_strip_at_the_border_is_padding(width, colour):
    """Too thin for a disk, but long."""
    volume = noise((1, 200, 150), 10, 120)
    volume[:, :, -width:] = colour
    expected = np.zeros(volume.shape, bool)
    expected[:, :, -width:] = True
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


def test_outside_a_circular_crop_what_is_not_black_is_invalid_too():
    """Dust on the exported picture, at exactly the crop's radius."""
    volume = noise((2, 201, 161), 1, 120)
    row, column = np.ogrid[:201, :161]
    outside = np.hypot(row - 100, column - 80) >= 75
    volume[:, outside] = 0
    volume[1, 95:106, 155:] = 90
    assert outside[100, 155]
    np.testing.assert_array_equal(find_invalid(volume)[1], outside)


def test_a_crop_of_one_slice_is_not_that_of_the_others():
    volume = noise((2, 200, 160), 1, 120)
    row, column = np.ogrid[:200, :160]
    volume[0, np.hypot(row - 99.5, column - 79.5) >= 105] = 0
    assert find_invalid(volume)[0].any()
    assert not find_invalid(volume)[1].any()


@pytest.mark.parametrize(("share", "radius"), [(0.03, 105), (0.06, None)])
def test_padding_that_disagrees_with_a_circle_by_more_than_4_percent_is_none(share, radius):
    row, column = np.ogrid[:200, :160]
    padding = np.hypot(row - 99.5, column - 79.5) >= 105
    inside = np.flatnonzero(np.hypot(row - 99.5, column - 79.5) < 50)
    padding.ravel()[inside[: round(share * padding.sum())]] = True
    assert find_circular_crop_radius(padding) == radius


def test_other_padding_is_no_circular_crop():
    frame = np.ones((200, 160), bool)
    frame[30:-30, 30:-30] = False
    for padding in (frame, tilted(), np.ones((20, 20), bool), np.zeros((20, 20), bool)):
        assert find_circular_crop_radius(padding) is None


def test_find_invalid_takes_8_bit_volumes_only():
    with pytest.raises(ValueError, match="uint16"):
        find_invalid(np.zeros((1, 4, 4), np.uint16))


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
