import numpy as np
import pandas as pd
import pytest

from utils.scores import area_under_roc, score_volume, summarise_volumes


def test_scores_worked_out_by_hand():
    reference = np.zeros((1, 2, 4), np.uint8)
    labels = np.zeros((1, 2, 4), np.uint8)
    reference[0, 0] = 1  # four IRF pixels
    labels[0, 0, :2] = 1  # two of them found, and one beside
    labels[0, 1, 0] = 1
    labels[0, 1, 3] = 3  # PED where there is none
    irf, srf, ped = score_volume(labels, reference, (0.1, 0.2, 0.5))  # 0.01 mm3 a voxel
    assert irf["dice"] == pytest.approx(2 * 2 / (3 + 4))
    assert (irf["volume_mm3"], irf["reference_mm3"]) == (pytest.approx(0.03), pytest.approx(0.04))
    assert (irf["difference_mm3"], irf["avd_mm3"]) == (pytest.approx(-0.01), pytest.approx(0.01))
    assert np.isnan(srf["dice"])
    assert srf["avd_mm3"] == 0
    assert ped["dice"] == 0
    assert ped["difference_mm3"] == pytest.approx(0.01)


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        score_volume(np.zeros((1, 2, 2), np.uint8), np.zeros((1, 2, 3), np.uint8), (1, 1, 1))


def test_both_conventions_for_absent_fluids():
    """IRF: Dice 0.8 where present, both empty, a false alarm. The others are absent throughout."""
    rows = [
        {"case": "a", "fluid": "IRF", "dice": 0.8, "reference_mm3": 1.0, "avd_mm3": 0.2, "presence": 0.9},
        {"case": "b", "fluid": "IRF", "dice": np.nan, "reference_mm3": 0.0, "avd_mm3": 0.0, "presence": 0.1},
        {"case": "c", "fluid": "IRF", "dice": 0.0, "reference_mm3": 0.0, "avd_mm3": 0.4, "presence": 0.9},
    ]
    for fluid in ("SRF", "PED"):
        rows += [{**row, "fluid": fluid, "dice": np.nan, "reference_mm3": 0.0, "avd_mm3": 0.0} for row in rows[:3]]
    table = summarise_volumes(pd.DataFrame([{"vendor": "Cirrus", **row} for row in rows]))
    assert table.vendor.unique().tolist() == ["Cirrus", "all"]
    irf = table[(table.vendor == "Cirrus") & (table.fluid == "IRF")].iloc[0]
    assert irf.cases_with_fluid == 1
    assert irf.dice_present == pytest.approx(0.8)
    assert irf.dice_all == pytest.approx((0.8 + 1 + 0) / 3)
    assert irf.avd_mm3 == pytest.approx(0.2)
    assert irf.auc == pytest.approx(0.75)  # beats one of the two others and ties with one
    mean = table[(table.vendor == "Cirrus") & (table.fluid == "mean")].iloc[0]
    assert mean.dice_present == pytest.approx(0.8)  # of the fluids that are present at all
    assert mean.dice_all == pytest.approx(((0.8 + 1 + 0) / 3 + 1 + 1) / 3)


def test_area_under_roc():
    assert area_under_roc([0.9, 0.4], [0.5, 0.1]) == pytest.approx(0.75)
    assert np.isnan(area_under_roc([], [0.5]))
