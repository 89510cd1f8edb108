"""The fovea: pits that lie where they were made, and maps without one."""

import numpy as np
import pytest

from utils.segmentation.fovea import find_fovea

X_MM, Z_MM = 0.012, 0.12


def found_in(thickness_mm):
    return find_fovea(thickness_mm, X_MM, np.arange(len(thickness_mm)) * Z_MM)


def thickness(column, b_scan, slices=49, columns=500, depth_mm=0.09):
    """A map in mm, (slices, columns): a pit of 0.35 mm at (`column`, `b_scan`), rough by 5 µm, thinner to one side."""
    x_mm, z_mm = np.meshgrid((np.arange(columns) - column) * X_MM, (np.arange(slices) - b_scan) * Z_MM)
    pit = depth_mm * np.exp(-((np.hypot(x_mm, z_mm) / 0.35) ** 2))
    return 0.31 - pit + 0.01 * x_mm + np.random.default_rng(0).normal(0, 0.005, pit.shape)


@pytest.mark.parametrize(("column", "b_scan"), [(250, 24), (190, 30), (300, 18.5)])
def test_a_pit_is_found(column, b_scan):
    found = found_in(thickness(column, b_scan))
    assert np.hypot((found.column - column) * X_MM, (found.b_scan - b_scan) * Z_MM) < 0.1
    assert 0.5 < found.confidence <= 1


def test_a_single_b_scan_tells_its_column():
    found = found_in(thickness(230, 0, slices=1))
    assert abs(found.column - 230) * X_MM < 0.1
    assert found.b_scan == 0


def test_one_wrong_b_scan_makes_no_pit():
    flat = thickness(250, 24, depth_mm=0)
    flat[10] = 0.1
    assert found_in(flat) is None


def test_a_retina_that_gets_thinner_to_one_side_has_no_pit():
    assert found_in(np.tile(np.linspace(0.4, 0.1, 500), (49, 1))) is None


def test_a_pit_at_the_border_is_none():
    assert found_in(thickness(5, 24)) is None


def test_b_scans_at_uneven_distances_are_where_they_are():
    """An eye that is scanned twice as densely in the first half, and the same one from the other end."""
    z_mm = np.r_[np.arange(25) * 0.06, 24 * 0.06 + np.arange(1, 30) * 0.12]
    x_mm, places_mm = np.meshgrid((np.arange(500) - 230) * X_MM, z_mm - z_mm[28])
    pit = 0.09 * np.exp(-((np.hypot(x_mm, places_mm) / 0.35) ** 2))
    thickness_mm = 0.31 - pit + np.random.default_rng(0).normal(0, 0.005, pit.shape)
    found = find_fovea(thickness_mm, X_MM, z_mm)
    assert abs(found.column - 230) * X_MM < 0.1
    assert abs(found.b_scan - 28) * 0.12 < 0.1
    turned = find_fovea(thickness_mm[::-1], X_MM, z_mm[::-1])
    assert abs(turned.b_scan - 25) * 0.12 < 0.1  # of 54 B-scans


def test_a_swollen_pit_is_no_fovea():
    swollen = thickness(250, 24) + 0.12  # 0.34 mm in the middle
    assert found_in(swollen) is None


def test_where_no_retina_is_seen_there_is_no_pit():
    partly = thickness(250, 24)
    assert found_in(np.full_like(partly, np.nan)) is None
    unknown = partly.copy()
    unknown[22:27] = np.nan
    assert found_in(unknown) is None
    partly[:10] = partly[40] = np.nan  # elsewhere it does not matter
    assert abs(found_in(partly).b_scan - 24) * Z_MM < 0.15
