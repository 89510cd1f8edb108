"""The fovea: pits that lie where they were made, and maps without one."""

import numpy as np
import pytest

from utils.segmentation.fovea import find_fovea

X_MM, Z_MM = 0.012, 0.12


def thickness(column, b_scan, slices=49, columns=500, depth_mm=0.09):
    """A map in mm, (slices, columns): a pit of 0.35 mm at (`column`, `b_scan`), rough by 5 µm, thinner to one side."""
    x_mm, z_mm = np.meshgrid((np.arange(columns) - column) * X_MM, (np.arange(slices) - b_scan) * Z_MM)
    pit = depth_mm * np.exp(-((np.hypot(x_mm, z_mm) / 0.35) ** 2))
    return 0.31 - pit + 0.01 * x_mm + np.random.default_rng(0).normal(0, 0.005, pit.shape)


@pytest.mark.parametrize(("column", "b_scan"), [(250, 24), (190, 30), (300, 18.5)])
def test_a_pit_is_found(column, b_scan):
    found = find_fovea(thickness(column, b_scan), X_MM, Z_MM)
    assert np.hypot((found.column - column) * X_MM, (found.b_scan - b_scan) * Z_MM) < 0.1
    assert 0.5 < found.confidence <= 1


def test_a_single_b_scan_tells_its_column():
    found = find_fovea(thickness(230, 0, slices=1), X_MM, Z_MM)
    assert abs(found.column - 230) * X_MM < 0.1
    assert found.b_scan == 0


def test_one_wrong_b_scan_makes_no_pit():
    flat = thickness(250, 24, depth_mm=0)
    flat[10] = 0.1
    assert find_fovea(flat, X_MM, Z_MM) is None


def test_a_retina_that_gets_thinner_to_one_side_has_no_pit():
    assert find_fovea(np.tile(np.linspace(0.4, 0.1, 500), (49, 1)), X_MM, Z_MM) is None


def test_a_pit_at_the_border_is_none():
    assert find_fovea(thickness(5, 24), X_MM, Z_MM) is None
