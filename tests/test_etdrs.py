"""The ETDRS grid on hand-made volumes of both eyes."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK

from utils.segmentation.etdrs import EtdrsGrid, Sides, cell_lengths, place, sides_of
from utils.segmentation.measurements import Measurements
from utils.volumes.content import Fundus
from utils.volumes.geometry import IDENTITY, NIFTI_IDENTITY, NOT_STATED, placement_of_planes
from utils.volumes.mhd import read_header

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
    for rows, (field, cell) in enumerate(CELLS.items(), start=2):
        expected = field if field == "centre" else f"{field.split('_')[0]}_{names[field.split('_')[1]]}"
        found = subfields_with({cell: rows}, sides)
        assert len(found) == 9
        assert found[expected]["mm3"] == pytest.approx(rows * np.prod(SPACING_MM))
        assert found[expected]["max_um"] == pytest.approx(rows * 10)
        assert [name for name, values in found.items() if values["mm3"]] == [expected]


def test_the_largest_thickness_is_that_of_the_subfield():
    found = subfields_with({cell: rows for rows, cell in enumerate(CELLS.values(), start=2)}, Sides())
    largest = [values["max_um"] for values in found.values()]
    assert sorted(largest) == pytest.approx([rows * 10 for rows in range(2, 11)])


def test_mean_thickness_is_that_of_the_part_shown():
    found = subfields_with(dict.fromkeys(np.ndindex(61, 61), 7), Sides())
    assert all(values["mean_um"] == pytest.approx(70) for values in found.values())
    assert found["inner_left"]["covered"] == pytest.approx(1, abs=0.05)
    volumes = [values["mm3"] for values in found.values()]
    assert sum(volumes) == pytest.approx(np.pi * 9 * 0.07, rel=0.01)  # a disk of 6 mm, 70 µm high


def test_an_unknown_eye_has_a_left_and_a_right():
    assert sides_of(None, NOT_STATED).in_words() == "first B-scan superior, as assumed; nasal side unknown"
    assert {"inner_left", "outer_right"} < set(subfields_with({}, sides_of(None, NOT_STATED)))


@pytest.mark.parametrize("first_mm", [(0, 0, 0), (5, 0, 7)])
def test_the_direction_of_dicom_is_followed_wherever_it_lies(first_mm):
    def planes(to_left, to_head):
        places_mm = [[first_mm[0], first_mm[1], first_mm[2] + n * to_head] for n in range(3)]
        return placement_of_planes([([to_left, 0, 0, 0, 1, 0], place_mm) for place_mm in places_mm])

    assert sides_of("OD", planes(1, 1)) == Sides("inferior", "superior", "temporal", "nasal")
    assert sides_of("OD", planes(-1, -1)) == Sides("superior", "inferior", "nasal", "temporal")
    assert sides_of("OS", planes(-1, -1)).left == "temporal"
    # Without positions of the B-scans, it says where left is alone.
    assert sides_of("OD", planes(-1, 1e-9)) == sides_of("OD", planes(-1, 0))
    assert sides_of("OD", planes(-1, 0)) == Sides("superior", "inferior", "nasal", "temporal", assumed=True)


@pytest.mark.parametrize(
    ("first", "last", "top"),
    [
        ((10, 90, 50, 92), (12, 20, 52, 22), "inferior"),
        ((10, 20, 50, 20), (10, 90, 50, 90), "superior"),
        ((10, 20, 10, 90), (50, 20, 50, 90), "superior, as assumed"),  # upright B-scans, side by side
        ((10, 20, 50, 20), None, "superior, as assumed"),
    ],
)
def test_the_lines_on_the_fundus_tell_where_up_is(first, last, top):
    fundus = Fundus(np.zeros((100, 100), np.uint8), (first, None, last))
    assert sides_of(None, NOT_STATED, fundus).in_words().startswith(f"first B-scan {top};")
    assumed = replace(fundus, order_assumed=True)
    assert sides_of(None, NOT_STATED, assumed).in_words().startswith("first B-scan superior, as assumed;")


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.mha", "scan.nrrd"])
@pytest.mark.parametrize("direction", [IDENTITY, NIFTI_IDENTITY, (-1, 0, 0, 0, 1, 0, 0, 0, -1)])
@pytest.mark.parametrize("origin_mm", [(0, 0, 0), (5, 0, 7)])
def test_other_formats_tell_no_sides(tmp_path, name, direction, origin_mm):
    """Programs crop, centre and turn volumes without knowing where left and up are."""
    image = SimpleITK.Image([5, 4, 3], SimpleITK.sitkUInt8)
    image.SetDirection(direction)
    image.SetOrigin(origin_mm)
    SimpleITK.WriteImage(image, str(tmp_path / name))
    placement = read_header(tmp_path / name).placement
    assert placement.origin_mm == pytest.approx(origin_mm)  # labels lie there
    turned = direction[8] < 0
    assert sides_of("OD", placement) == Sides("superior", "inferior", "temporal", "nasal", True, turned)
    assert ("not followed" in sides_of(None, placement).in_words()) == turned


@pytest.mark.parametrize("places_mm", [np.arange(5) * 0.2, np.array([0, 0.1, 0.3, 0.5, 0.8])])
def test_both_ends_are_alike(places_mm):
    """A centre half a step beyond the first or the last B-scan, in a volume and in its mirror image."""
    mirrored_mm = (places_mm[-1] - places_mm)[::-1]
    for index in (-0.5, -0.2, 0, 1.7, 4, 4.3, 4.5):
        assert place(index, places_mm) == pytest.approx(places_mm[-1] - place(4 - index, mirrored_mm))
    assert place(4.5, np.arange(5) * 0.2) == pytest.approx(0.9)
    assert place(0.3, np.array([1.0])) == 1.0


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
