import numpy as np
import pandas as pd
import pytest
from scipy import stats

from utils.errors import InputError
from utils.evaluation.statistics import (
    MEASURES,
    compare_volumes,
    interval,
    rank_methods,
    resampled_means,
    summarise_volumes,
    times_drawn,
    with_patients,
)

EMPTY = {"volume_mm3": 0.0, "reference_mm3": 0.0, "difference_mm3": 0.0, "avd_mm3": 0.0}
EMPTY |= {"lesions": 0, "lesions_found": 0, "lesions_predicted": 0, "lesions_false": 0}
EMPTY |= dict.fromkeys(("dice", "precision", "recall", "hd95_mm", "assd_mm", "average_precision"), np.nan)


def table(irf, vendor="Cirrus", names="abcdefgh", pattern=".*"):
    """Volumes of cases a, b, ...: `irf` is a list of dictionaries; the other fluids are absent and not predicted."""
    rows = []
    for name, row in zip(names, irf, strict=False):
        rows += [{"vendor": vendor, "case": name, "fluid": fluid, **EMPTY} for fluid in ("SRF", "PED")]
        rows.append({"vendor": vendor, "case": name, "fluid": "IRF", **EMPTY, **row})
    return with_patients(pd.DataFrame(rows), pattern)


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


def test_intervals_equal_scipys():
    """SciPy's bootstrap of 95 %; the interval of 80 % would be 0.65 times as wide."""
    dice = np.random.default_rng(3).random(60)
    names = [f"case {number}" for number in range(60)]
    volumes = table([{"dice": value, "reference_mm3": 1.0} for value in dice], names=names)
    summary = summarise_volumes(volumes, seed=5).set_index(["vendor", "fluid", "measure"])
    irf = summary.loc[("all", "IRF", "dice_present")]
    expected = stats.bootstrap((dice,), np.mean, method="percentile", rng=np.random.default_rng(0), n_resamples=9999)
    low, high = expected.confidence_interval
    assert (irf.low, irf.high) == (pytest.approx(low, abs=0.05 * (high - low)), pytest.approx(high, abs=0.005))
    other = table([{"dice": 0.0, "reference_mm3": 1.0}] * 60, names=names)
    compared = compare_volumes(volumes, other, seed=5).set_index(["vendor", "fluid", "measure"])
    difference = compared.loc[("all", "IRF", "dice_present")]
    assert (difference.low, difference.high) == (pytest.approx(irf.low), pytest.approx(irf.high))


def test_an_interval_holds_95_percent_of_the_resamples():
    assert interval(np.array([*range(101), np.nan])) == (2.5, 97.5)
    assert np.isnan(interval(np.full(3, np.nan))).all()


def test_the_same_patients_are_drawn_for_all_columns():
    values = np.random.default_rng(3).normal(size=60)
    resampled = resampled_means(np.column_stack([values, values + 1, np.full(60, 7.0)]), np.arange(60) // 2, seed=5)
    np.testing.assert_allclose(resampled[:, 1], resampled[:, 0] + 1)
    np.testing.assert_allclose(resampled[:, 2], 7)


def test_a_patient_is_drawn_with_all_cases():
    patients = ["b", "a", "b", "c"]
    drawn = times_drawn(patients, seed=0)
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 2])
    assert set(drawn[:, [0, 1, 3]].sum(axis=1)) == {3}  # as many patients as there are
    assert drawn.mean(axis=0) == pytest.approx(1, abs=0.1)
    values = np.array([[1.0, np.nan], [4.0, 2.0], [1.0, np.nan], [4.0, np.nan]])
    means = resampled_means(values, patients, seed=0)
    np.testing.assert_allclose(means[:, 0], drawn @ values[:, 0] / drawn.sum(axis=1))
    assert np.isnan(means[:, 1]).all()  # a single patient says nothing about others
    assert np.isnan(resampled_means(values[[0, 2]], ["b", "b"], seed=0)).all()


def coverage(as_patients, studies=200, patients=40, seed=0):
    """Share of simulated studies whose interval holds the true mean 0. Each patient has two eyes, of whose values 0.9
    of the variance is the patient's."""
    rng, held = np.random.default_rng(seed), 0
    for study in range(studies):
        of_patients, of_eyes = rng.normal(0, 0.9**0.5, (patients, 1)), rng.normal(0, 0.1**0.5, (patients, 2))
        names = np.repeat(np.arange(patients), 2) if as_patients else np.arange(2 * patients)
        low, high = interval(resampled_means((of_patients + of_eyes).reshape(-1, 1), names, seed=study)[:, 0])
        held += low <= 0 <= high
    return held / studies


def test_intervals_of_two_alike_eyes_each_hold_the_truth_nearly_as_often_as_they_say():
    """In 3,000 studies 93 %; over eyes as if each were a patient 82 %, near 2 Phi(1.96 / sqrt(1.9)) - 1 = 84 %."""
    assert coverage(as_patients=True) > 0.9
    assert coverage(as_patients=False) < 0.87


def test_patients_are_found_in_the_names_of_cases():
    volumes = table([{}, {}, {}], names=["12_OD", "12_OS", "13_OD"], pattern=r"^(\d+)_")
    assert volumes.groupby("case").patient.first().to_dict() == {"12_OD": "12", "12_OS": "12", "13_OD": "13"}
    summary = summarise_volumes(volumes, seed=0)
    assert set(summary.patients) == {2}
    assert set(summary.cases) == {3}
    with pytest.raises(InputError) as caught:
        with_patients(volumes, "(OS)")
    assert len(caught.value.messages) == 2
    assert caught.value.messages[0].startswith("case 12_OD: does not match PATIENT_PATTERN '(OS)'")


def test_paired_comparison():
    dice = np.array([0.5, 0.6, 0.7, 0.8, 0.9])
    gains = np.array([0.01, 0.02, 0.03, 0.04, 0.10])
    sides = [table([{"dice": value, "reference_mm3": 1.0} for value in values]) for values in (dice + gains, dice)]
    sides[1] = sides[1][::-1]  # pairs are found by case, not by place
    compared = compare_volumes(*sides, seed=0).set_index(["vendor", "fluid", "measure"])
    irf = compared.loc[("all", "IRF", "dice_present")]
    assert (irf.n, irf.mean_a, irf.mean_b) == (5, pytest.approx(0.74), pytest.approx(0.7))
    assert irf.a_minus_b == pytest.approx(0.04)
    assert 0.01 < irf.low < 0.04 < irf.high < 0.1
    assert irf.p == pytest.approx(2 / 2**5)  # all five differences have one sign
    assert compared.p[("all", "SRF", "dice_all")] == 1
    assert compared.n[("all", "SRF", "dice_present")] == 0
    with pytest.raises(InputError, match="B: lacks Cirrus e"):
        compare_volumes(sides[0], sides[1][sides[1].case != "e"], seed=0)


def test_pairs_of_one_patient_count_once_in_the_test():
    """Three patients of two eyes, whose differences are on the mean 0.2, -0.3, 0.45: ranks 1, -2 and 3."""
    names = ["a1", "a2", "b1", "b2", "c1", "c2"]
    differences = [0.1, 0.3, -0.1, -0.5, 0.2, 0.7]
    sides = [
        table([{"dice": value, "reference_mm3": 1.0} for value in values], names=names, pattern="[abc]")
        for values in (np.full(6, 0.5) + differences, np.full(6, 0.5))
    ]
    irf = compare_volumes(*sides, seed=0).set_index(["vendor", "fluid", "measure"]).loc[("all", "IRF", "dice_present")]
    assert (irf.patients, irf.n, irf.a_minus_b) == (3, 6, pytest.approx(0.7 / 6))
    assert irf.p == pytest.approx(6 / 2**3)  # of the 8 ways to give signs, 6 part them at least as unevenly as 4 to 2


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


@pytest.mark.parametrize("change", [lambda table: table[1:], lambda table: table.assign(reference_mm3=0.9)])
def test_what_was_judged_by_other_references_is_not_compared(change):
    """A method must not gain from a case that its evaluation takes for not outlined."""
    volumes = table([{"dice": value, "reference_mm3": 1.0} for value in (0.2, 0.8)])
    tables = {"A": volumes, "B": change(volumes)}
    for compare in (lambda: rank_methods(tables), lambda: compare_volumes(*tables.values(), seed=0)):
        with pytest.raises(InputError, match=r"B: has other references than A, in \d fluids of cases, such as Cirrus"):
            compare()
