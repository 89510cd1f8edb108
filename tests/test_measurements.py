import numpy as np
import pytest
from scipy import ndimage

from utils.segmentation.etdrs import Sides
from utils.segmentation.measurements import LesionCount, Measurements


def measured(labels, spacing_mm, centre):
    measurements = Measurements(labels.shape, spacing_mm)
    for index, slice_ in enumerate(labels):
        measurements.add(index, slice_)
    return {row["fluid"]: row for row in measurements.values(centre)}, measurements


def test_volumes_thickness_and_lesions_by_hand():
    labels = np.zeros((3, 10, 20), np.uint8)
    labels[0, 2:5, 4] = 1  # 3 pixels high
    labels[1, 7:9, 5] = 1  # not connected with it
    labels[2, :, 10] = 3
    rows, measurements = measured(labels, (0.5, 0.01, 2.0), (4, 0))
    voxel_mm3 = 0.5 * 0.01 * 2.0
    assert rows["IRF"]["volume_mm3"] == pytest.approx(5 * voxel_mm3)
    assert rows["IRF"]["thickness_um"] == pytest.approx(30)
    assert (rows["SRF"]["thickness_um"], rows["PED"]["thickness_um"]) == (0, pytest.approx(100))
    assert (rows["IRF"]["lesions"], rows["SRF"]["lesions"], rows["PED"]["lesions"]) == (2, 0, 1)
    # (column 5, slice 1) is hypot(0.5, 2) = 2.06 mm from the centre, (10, 2) hypot(3, 4) = 5 mm
    assert rows["IRF"]["volume_1mm_mm3"] == rows["IRF"]["volume_3mm_mm3"] == pytest.approx(3 * voxel_mm3)
    assert rows["IRF"]["volume_6mm_mm3"] == pytest.approx(5 * voxel_mm3)
    assert rows["PED"]["volume_6mm_mm3"] == 0
    assert rows["PED"]["volume_mm3"] == pytest.approx(10 * voxel_mm3)
    assert measurements.thickness_um().shape == (3, 3, 20)
    assert measurements.thickness_um()[0, 0, 4] == pytest.approx(30)


def test_a_single_b_scan_has_an_area():
    labels = np.zeros((1, 10, 20), np.uint8)
    labels[0, 2:5, 4:6] = 2
    rows, measurements = measured(labels, (0.5, 0.01, 2.0), (4, 0))
    assert rows["SRF"] == {"fluid": "SRF", "area_mm2": pytest.approx(6 * 0.5 * 0.01), "thickness_um": 30, "lesions": 1}
    assert measurements.subfields((4, 0), Sides()) == [{}, {}, {}]


def test_how_much_of_a_circle_a_scan_shows():
    labels = np.zeros((120, 4, 120), np.uint8)
    rows, _ = measured(labels, (0.05, 0.004, 0.05), (59.5, 59.5))  # 6 x 6 mm
    assert rows["IRF"]["covered_1mm"] == pytest.approx(1, abs=0.02)
    assert rows["IRF"]["covered_6mm"] == pytest.approx(1, abs=0.02)
    rows, _ = measured(labels, (0.05, 0.004, 0.05), (-0.5, 59.5))  # at the left border
    assert rows["IRF"]["covered_3mm"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("density", [0.02, 0.06, 0.1, 0.3])
def test_lesions_are_scipys_components(density):
    volume = np.random.default_rng(1).random((9, 30, 40)) < density
    volume[4] = False
    lesions = LesionCount()
    for slice_ in volume:
        lesions.add(slice_)
    assert lesions.count() == ndimage.label(volume, np.ones((3, 3, 3)))[1]
