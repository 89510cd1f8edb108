import numpy as np
import pandas as pd
import pytest
from scipy import stats

from utils.errors import InputError
from utils.summary import MEASURES, compare_volumes, rank_methods, resampled_means, summarise_volumes

EMPTY = {"volume_mm3": 0.0, "reference_mm3": 0.0, "difference_mm3": 0.0, "avd_mm3": 0.0}
EMPTY |= {"lesions": 0, "lesions_found": 0, "lesions_predicted": 0, "lesions_false": 0}
EMPTY |= dict.fromkeys(("dice", "precision", "recall", "hd95_mm", "assd_mm", "average_precision"), np.nan)


def table(irf, vendor="Cirrus"):
    """Volumes of cases a, b, ...: `irf` is a list of dictionaries; the other fluids are absent and not predicted."""
    rows = []
    for name, row in zip("abcdefgh", irf, strict=False):
        rows += [{"vendor": vendor, "case": name, "fluid": fluid, **EMPTY} for fluid in ("SRF", "PED")]
        rows.append({"vendor": vendor, "case": name, "fluid": "IRF", **EMPTY, **row})
    return pd.DataFrame(rows)


def test_both_conventions_for_absent_fluids():
    """IRF: Dice 0.8 where present, both empty, a false alarm. The others are absent throughout."""
    present = {"dice": 0.8, "reference_mm3": 1.0, "avd_mm3": 0.2, "lesions": 4, "lesions_found": 3}
    volumes = table([present, {}, {"dice": 0.0, "avd_mm3": 0.4, "lesions_predicted": 2, "lesions_false": 2}])
    summary = summarise_volumes(volumes, seed=0).set_index(["vendor", "fluid", "measure"]).sort_index()
    assert set(summary.index.get_level_values("measure")) == set(MEASURES)
    irf = summary.loc[("Cirrus", "IRF")]
    assert (irf.cases["dice_all"], irf.cases_with_fluid["dice_all"]) == (3, 1)
    assert (irf.n["dice_present"], irf["mean"]["dice_present"]) == (1, pytest.approx(0.8))
    assert np.isnan(irf.low["dice_present"])  # one case says nothing about others
    assert irf["mean"]["dice_all"] == pytest.approx((0.8 + 1 + 0) / 3)
    assert irf["median"]["dice_all"] == pytest.approx(0.8)
    assert irf.sd["dice_all"] == pytest.approx(np.std([0.8, 1, 0], ddof=1))
    assert 0 <= irf.low["dice_all"] < irf["mean"]["dice_all"] < irf.high["dice_all"] <= 1
    assert irf["mean"]["avd_mm3"] == pytest.approx(0.2)
    assert irf["mean"]["lesion_recall"] == pytest.approx(0.75)
    assert irf["mean"]["lesion_precision"] == 0
    mean = summary.loc[("all", "mean")]
    assert mean["mean"]["dice_present"] == pytest.approx(0.8)  # of the fluids that are present at all
    assert mean["mean"]["dice_all"] == pytest.approx(((0.8 + 1 + 0) / 3 + 1 + 1) / 3)
    assert mean.cases_with_fluid["dice_all"] == 1


def test_intervals_have_their_width_and_equal_scipys():
    values = np.random.default_rng(3).normal(size=60)
    resampled = resampled_means(np.column_stack([values, values + 1, np.full(60, 7.0)]), seed=5)
    low, high = np.percentile(resampled[:, 0], (2.5, 97.5))
    expected = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0), n_resamples=9999)
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.03)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.03)
    np.testing.assert_allclose(resampled[:, 1], resampled[:, 0] + 1)  # the same cases for all columns
    np.testing.assert_allclose(resampled[:, 2], 7)


def test_paired_comparison():
    dice = np.array([0.5, 0.6, 0.7, 0.8, 0.9])
    gains = np.array([0.01, 0.02, 0.03, 0.04, 0.10])
    sides = [table([{"dice": value, "reference_mm3": 1.0} for value in values]) for values in (dice, dice + gains)]
    sides[1] = sides[1][::-1]  # pairs are found by case, not by place
    compared = compare_volumes(*sides, seed=0).set_index(["vendor", "fluid", "measure"])
    irf = compared.loc[("all", "IRF", "dice_present")]
    assert (irf.n, irf["mean"], irf.other_mean) == (5, pytest.approx(0.7), pytest.approx(0.74))
    assert irf.difference == pytest.approx(0.04)
    assert 0.01 < irf.low < 0.04 < irf.high < 0.1
    assert irf.p == pytest.approx(2 / 2**5)  # all five differences have one sign
    assert compared.p[("all", "SRF", "dice_all")] == 1
    assert compared.n[("all", "SRF", "dice_present")] == 0
    with pytest.raises(InputError, match="second: lacks Cirrus e"):
        compare_volumes(sides[0], sides[1][sides[1].case != "e"], seed=0)


def test_ranks():
    """Three methods on two vendors; only IRF is present, AVD ranks the other fluids, too."""

    def method(dice, avd):
        row = {"dice": dice, "reference_mm3": 1.0, "avd_mm3": avd}
        return pd.concat([table([row, row]), table([row], "Topcon")])

    ranks, order = rank_methods({"good": method(0.9, 0.1), "fair": method(0.8, 0.1), "bad": method(0.2, 0.5)})
    assert len(ranks) == 2 * (1 + 3)
    by_measure = ranks.set_index(["vendor", "fluid", "measure"])
    assert by_measure.loc[("Cirrus", "IRF", "dice_present")].tolist() == [1, 2, 3]
    assert by_measure.loc[("Topcon", "IRF", "avd_mm3")].tolist() == [1.5, 1.5, 3]  # less is better, equals share
    assert by_measure.loc[("Topcon", "SRF", "avd_mm3")].tolist() == [2, 2, 2]
    assert order.index.tolist() == ["good", "fair", "bad"]
    assert order["good"] == pytest.approx((1 + 1.5 + 2 + 2) / 4)
