"""Padding and circular crops, on made images and on real scans where they lie beside the project."""

from pathlib import Path

import numpy as np
import pytest
from images import noise

from utils.cases import find_cases
from utils.invalid import find_circular_crop_radius, find_invalid
from utils.mhd import read_volume
from utils.preprocessing import (
    preprocess_volume,
    to_8_bit,
)
from utils.roi import roi_mask

REAL_SCANS = Path(__file__).resolve().parents[2] / "shared" / "data" / "real_oct"


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
