"""Where fluid can be: rows by hand."""

import numpy as np
import pytest

from utils.labels import FLUIDS
from utils.segmentation.possible import only_possible, possible_places, remove_ped_above_srf
from utils.segmentation.surfaces import Surfaces


def places(is_retina=True, rows=300, row_mm=0.01):
    """Of a retina from row 100 to 150, with Bruch's membrane in row 160 of the second column, 170 of the first."""
    inner, outer, bruch = np.array([100, 100]), np.array([150, 150]), np.array([170, 160])
    return possible_places(Surfaces(inner, outer, bruch, is_retina), rows, row_mm)


@pytest.mark.parametrize(
    ("fluid", "last"),
    [("IRF", 180), ("SRF", 190), ("PED", 210)],
)
def test_a_fluid_can_be_within_its_margins(fluid, last):
    """From 0.5 mm above the retina to 0.2, 0.3 and 0.5 mm below Bruch's membrane."""
    found = places()[:, :, list(FLUIDS).index(fluid)]
    rows = np.flatnonzero(found[:, 1])
    assert (rows[0], rows[-1], len(rows)) == (50, last, last - 49)
    assert np.flatnonzero(found[:, 0])[-1] == last + 10


def test_where_no_retina_was_found_fluid_can_be_anywhere():
    found = places(is_retina=False)
    assert found.shape == (300, 2, 3)
    assert found.all()


def test_impossible_fluid_counts_as_background():
    probabilities = np.array([[[0.1, 0.2, 0.3, 0.4, 0.7]]], np.float32)  # the last is an ensemble's disagreement
    found = only_possible(probabilities, np.array([[[True, False, False]]]))
    np.testing.assert_allclose(found, [[[0.8, 0.2, 0, 0, 0.7]]], atol=1e-6)
    np.testing.assert_array_equal(only_possible(probabilities, np.ones((1, 1, 3), bool)), probabilities)
    assert probabilities[0, 0, 3] == np.float32(0.4)


def test_ped_above_srf_is_none():
    labels = np.array([[3, 3, 1], [2, 3, 3], [3, 0, 2], [0, 0, 3]], np.uint8)
    remove_ped_above_srf(labels)
    np.testing.assert_array_equal(labels, [[0, 3, 1], [2, 3, 0], [3, 0, 2], [0, 0, 3]])
