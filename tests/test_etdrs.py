"""The ETDRS grid on hand-made volumes of both eyes."""

import numpy as np
import pytest

from utils.segmentation.etdrs import EtdrsGrid, Sides, cell_lengths, sides_of
from utils.segmentation.measurements import Measurements
from utils.volumes.geometry import NOT_STATED, Placement

SPACING_MM = (0.1, 0.01, 0.1)  # 61 x 61 cells: 6.1 x 6.1 mm
CENTRE = (30, 30)
# (slice, column) of one cell in each subfield, seen from the front with the first B-scan on top.
CELLS = {
    "centre": (30, 30),
    "inner_top": (20, 30),
    "inner_bottom": (40, 30),
    "inner_left": (30, 20),
    "inner_right": (30, 40),
    "outer_top": (8, 30),
    "outer_bottom": (52, 30),
    "outer_left": (30, 8),
    "outer_right": (30, 52),
}


def subfields_with(cells, sides, z_mm=None):
    """Those of IRF, where `cells`, {(slice, column): rows of fluid}, hold it."""
    measurements = Measurements((61, 20, 61), SPACING_MM, z_mm)
    labels = np.zeros((61, 20, 61), np.uint8)
    for (slice_, column), rows in cells.items():
        labels[slice_, :rows, column] = 1
    for index, of_slice in enumerate(labels):
        measurements.add(index, of_slice)
    return measurements.subfields(CENTRE, sides)[0]


@pytest.mark.parametrize(("laterality", "left", "right"), [("OD", "temporal", "nasal"), ("OS", "nasal", "temporal")])
def test_fluid_is_in_the_subfield_of_its_side(laterality, left, right):
    sides = sides_of(laterality, NOT_STATED)
    assert sides.assumed
    names = {"top": "superior", "bottom": "inferior", "left": left, "right": right}
    for rows, (place, cell) in enumerate(CELLS.items(), start=2):
        expected = place if place == "centre" else f"{place.split('_')[0]}_{names[place.split('_')[1]]}"
        found = subfields_with({cell: rows}, sides)
        assert len(found) == 9
        assert found[expected]["mm3"] == pytest.approx(rows * np.prod(SPACING_MM))
        assert found[expected]["max_um"] == pytest.approx(rows * 10)
        assert [name for name, values in found.items() if values["mm3"]] == [expected]


def test_mean_thickness_is_that_of_the_part_shown():
    found = subfields_with(dict.fromkeys(np.ndindex(61, 61), 7), Sides())
    assert all(values["mean_um"] == pytest.approx(70) for values in found.values())
    assert found["inner_left"]["covered"] == pytest.approx(1, abs=0.05)
    volumes = [values["mm3"] for values in found.values()]
    assert sum(volumes) == pytest.approx(np.pi * 9 * 0.07, rel=0.01)  # a disk of 6 mm, 70 µm high


def test_an_unknown_eye_has_a_left_and_a_right():
    assert sides_of(None, NOT_STATED).in_words() == "first B-scan superior, as assumed; nasal side unknown"
    assert {"inner_left", "outer_right"} < set(subfields_with({}, sides_of(None, NOT_STATED)))


def test_a_stated_direction_is_followed():
    upwards = Placement((1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0), (5.0, 0, 0), stated=True)  # slices towards the head
    mirrored = Placement((-1.0, 0, 0, 0, 1.0, 0, 0, 0, -1.0), (5.0, 0, 0), stated=True)  # columns to the right
    assert sides_of("OD", upwards) == Sides("inferior", "superior", "temporal", "nasal")
    assert sides_of("OD", mirrored) == Sides("superior", "inferior", "nasal", "temporal")
    assert sides_of("OS", mirrored).left == "temporal"


def test_uneven_slices_count_as_much_as_they_stand_for():
    np.testing.assert_allclose(cell_lengths(np.array([0, 0.1, 0.3, 0.7]), 0.2), [0.1, 0.15, 0.3, 0.4])
    assert cell_lengths(np.array([0.0]), 0.2) == pytest.approx([0.2])
    z_mm = np.r_[np.arange(31) * 0.1, 3 + np.arange(1, 31) * 0.2]  # wider steps behind the centre
    found = subfields_with({(20, 30): 5, (35, 30): 5}, Sides(), z_mm)
    assert found["inner_superior"]["mm3"] == pytest.approx(5 * 0.01 * 0.1 * 0.1)
    assert found["inner_inferior"]["mm3"] == pytest.approx(5 * 0.01 * 0.1 * 0.2)  # 1 mm away, not 0.5


def test_the_circles_are_those_of_the_grid():
    grid = EtdrsGrid(np.arange(61) * 0.1, np.arange(61) * 0.1, (30.5, 29.5))
    subfields = [inside for inside, _ in grid.subfields(Sides()).values()]
    np.testing.assert_array_equal(np.sum(subfields, axis=0), grid.circles()[6][0])
