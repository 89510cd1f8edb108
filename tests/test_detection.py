import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from utils.errors import InputError
from utils.evaluation.detection import (
    VoxelPrecision,
    area_under_roc,
    auc_interval,
    check_thresholds,
    choose_score,
    detection_table,
    reliability_table,
    roc_curve,
    sensitivity_specificity,
    with_thresholds,
    youden_threshold,
)
from utils.labels import FLUIDS


def test_area_under_roc():
    assert area_under_roc([0.9, 0.4], [0.5, 0.1]) == pytest.approx(0.75)
    assert area_under_roc([0.5], [0.5]) == 0.5
    assert np.isnan(area_under_roc([], [0.5]))


@pytest.mark.parametrize("seed", range(5))
def test_auc_and_curve_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    present = rng.random(40) < 0.4
    scores = np.round(rng.normal(present * 0.8, 1), 1)  # with ties
    assert area_under_roc(scores[present], scores[~present]) == pytest.approx(metrics.roc_auc_score(present, scores))
    false_rate, true_rate, _ = metrics.roc_curve(present, scores, drop_intermediate=False)
    curve = roc_curve(present, scores)
    np.testing.assert_allclose(curve, (false_rate, true_rate))
    assert roc_curve(np.ones(3), scores[:3]) is None


def test_interval_holds_the_auc_and_narrows_with_cases():
    rng = np.random.default_rng(0)
    widths = []
    for n in (10, 160):
        sides = rng.normal(1, 1, n), rng.normal(0, 1, n)
        cases = np.repeat([True, False], n), np.concatenate(sides), np.arange(2 * n)
        low, high = auc_interval(*cases, seed=1)
        assert low < area_under_roc(*sides) < high
        assert auc_interval(*cases, seed=1) == (low, high)
        widths.append(high - low)
    assert widths[1] < widths[0] / 2  # 1 / sqrt(16) of it, about
    assert auc_interval([True, True, False, False], [1.0, 2.0, 0.0, 0.5], list("abcd"), seed=0) == (1, 1)
    assert np.isnan(auc_interval([True, False], [1.0, 0.0], list("ab"), seed=0)).all()


def test_the_aucs_interval_is_over_patients():
    """Two equal eyes each say no more than one: the same patients are drawn."""
    rng = np.random.default_rng(0)
    present = np.repeat([True, False], 20)
    scores, patients = rng.normal(present, 1), np.arange(40)
    one_eye = auc_interval(present, scores, patients, seed=1)
    two_eyes = auc_interval(np.repeat(present, 2), np.repeat(scores, 2), np.repeat(patients, 2), seed=1)
    assert two_eyes == pytest.approx(one_eye)
    two_patients = auc_interval(np.repeat(present, 2), np.repeat(scores, 2), np.arange(80), seed=1)
    assert two_patients[1] - two_patients[0] < 0.8 * (one_eye[1] - one_eye[0])  # 1 / sqrt(2) of it, about
    # One patient with two eyes on either side is a single patient on either side.
    assert np.isnan(auc_interval([True, True, False, False], [1.0, 2.0, 0.0, 0.5], list("aabb"), seed=0)).all()


def test_threshold_lies_between_the_cases_that_it_parts():
    present, scores = [False, False, True, False, True, True], [0.1, 0.2, 0.3, 0.4, 0.6, 0.9]
    threshold = youden_threshold(present, scores)  # above 0.2: 3/3 + 2/3; above 0.4: 2/3 + 3/3, as good, but later
    assert threshold == pytest.approx(0.25)
    assert sensitivity_specificity(present, scores, threshold) == (pytest.approx(1), pytest.approx(2 / 3))
    assert np.isnan(youden_threshold([True, True], [0.1, 0.2]))
    assert youden_threshold([True, False], [0.5, 0.5]) in (-0.5, 0.5)  # all or none


def test_a_fluid_is_detected_above_the_threshold_not_at_it():
    assert sensitivity_specificity([True, False], [0.5, 0.5], 0.5) == (0, 1)
    assert sensitivity_specificity([True, False], [0.0, 0.1], 0.0) == (0, 0)  # of volumes: any, or none


def test_cases_without_a_threshold_do_not_count():
    sensitivity, specificity = sensitivity_specificity([True, True, False], [0.9, 0.1, 0.2], [0.5, np.nan, 0.1])
    assert (sensitivity, specificity) == (1, 0)
    assert np.isnan(sensitivity_specificity([True], [1.0], np.nan)).all()


def cases(vendor, fluid, present, **scores):
    rows = pd.DataFrame({"reference_mm3": np.asarray(present, float), **scores})
    return rows.assign(vendor=vendor, fluid=fluid)


def test_the_best_score_on_validation_cases_is_chosen():
    good, bad = [0.9, 0.8, 0.1], [0.1, 0.8, 0.9]
    validation = pd.concat(
        cases("Cirrus", fluid, [1, 1, 0], score_probability=bad, score_volume=good) for fluid in ("IRF", "SRF", "PED")
    )
    score, aucs = choose_score([validation])
    assert score == "score_volume"
    assert aucs == {"score_probability": 0, "score_volume": 1}
    equal = validation.assign(score_probability=validation.score_volume)
    assert choose_score([equal])[0] == "score_probability"  # the first of equals


def test_of_several_models_each_is_judged_on_its_own_validation_cases():
    """Scores of the second model lie elsewhere: thrown together, the volume's AUC would be 1/2 and the probability's
    3/4."""
    fluids = ("IRF", "SRF", "PED")

    def validation(probability, volume):
        options = {"score_probability": probability, "score_volume": volume}
        return pd.concat(cases("Cirrus", fluid, [1, 0], **options) for fluid in fluids)

    first, second = validation([0.9, 0.1], [2.0, 1.0]), validation([0.1, 0.2], [20.0, 10.0])
    score, aucs = choose_score([first, second])
    assert score == "score_volume"
    assert aucs == {"score_probability": 0.5, "score_volume": 1}


def test_every_threshold_is_held_against_the_score_that_it_was_chosen_for():
    """Two folds: the first by probability, the second by mm3. Held against the other, each would call all or none."""
    fluids = ("IRF", "SRF", "PED")
    first = [cases("Cirrus", fluid, [1, 0], score_probability=[0.9, 0.2], score_volume=[0.0, 0.3]) for fluid in fluids]
    second = [cases("Cirrus", fluid, [1, 0], score_probability=[0.1, 0.8], score_volume=[5.0, 2.0]) for fluid in fluids]
    first, second = (pd.concat(tables).assign(patient=list("abcdef")) for tables in (first, second))
    pooled = pd.concat(
        [with_thresholds(first, first, "score_probability"), with_thresholds(second, second, "score_volume")]
    )
    assert pooled.threshold.unique().tolist() == [pytest.approx(0.55), 3.5]
    row = detection_table(pooled, "score_volume", seed=0).set_index(["vendor", "fluid"]).loc[("all", "IRF")]
    assert (row.sensitivity, row.specificity) == (1, 1)
    assert row.auc == 0.5  # volumes 0 and 5 against 0.3 and 2
    assert row.threshold_score == "score_probability, score_volume"
    assert np.isnan(row.threshold)


def test_thresholds_without_the_name_of_their_score_are_refused():
    table = cases("Cirrus", "IRF", [1, 0], score_probability=0.5, score_volume=1.0, threshold=0.5)
    with pytest.raises(InputError, match=r"fold_1/volumes\.csv: lacks the columns threshold_score; run evaluate\.py"):
        check_thresholds("fold_1/volumes.csv", table)
    with pytest.raises(InputError, match="threshold_score is volume, expected one of score_probability"):
        check_thresholds("volumes.csv", table.assign(threshold_score="volume"))
    check_thresholds("volumes.csv", table.assign(threshold_score="score_volume"))


def test_table_by_vendor_and_over_all():
    volumes = pd.concat(
        [
            *(cases("Cirrus", fluid, [1, 0], score=[0.9, 0.2], patient=["a", "b"]) for fluid in ("IRF", "SRF", "PED")),
            *(cases("Topcon", fluid, [1, 0], score=[0.1, 0.6], patient=["c", "c"]) for fluid in ("IRF", "SRF", "PED")),
        ]
    ).assign(threshold=0.5, threshold_score="score")
    table = detection_table(volumes, "score", seed=0).set_index(["vendor", "fluid"])
    assert table.auc[("Cirrus", "IRF")] == 1
    assert table.auc[("Topcon", "mean")] == 0
    everyone = table.loc[("all", "PED")]
    assert everyone.auc == 0.5  # 0.9 beats both, 0.1 none
    assert (everyone.cases, everyone.cases_with_fluid, everyone.threshold) == (4, 2, 0.5)
    assert (everyone.patients, everyone.threshold_score) == (3, "score")
    assert (everyone.sensitivity, everyone.specificity) == (0.5, 0.5)
    assert everyone.low <= 0.5 <= everyone.high


def test_voxel_precision_equals_scikit_learn_on_thousandths():
    rng = np.random.default_rng(0)
    probabilities = np.round(rng.dirichlet((2, 1, 1, 1), (2, 40, 30)), 3).astype(np.float32)
    reference = rng.integers(0, 3, (2, 40, 30)).astype(np.uint8)  # no PED
    precision = VoxelPrecision()
    for of_slice, mask in zip(probabilities, reference, strict=True):
        precision.add(of_slice, mask)
    irf, srf, ped = precision.values()
    for value, code in ((irf, 1), (srf, 2)):
        expected = metrics.average_precision_score((reference == code).ravel(), probabilities[..., code].ravel())
        assert value == pytest.approx(expected)
    assert np.isnan(ped)
    table = reliability_table(precision.by_probability()).set_index("fluid")
    for fluid, code in FLUIDS.items():
        values, found = probabilities[..., code].astype(float), table.loc[fluid]
        for step in (0, 3):
            inside = (values >= step / 10 - 1e-6) & (values < (step + 1) / 10 - 1e-6)
            assert found.voxels.iloc[step] == inside.sum()
            assert found.mean_probability.iloc[step] == pytest.approx(values[inside].mean(), abs=1e-6)
            assert found.share_of_fluid.iloc[step] == pytest.approx((reference[inside] == code).mean())
    assert table.loc["PED", "share_of_fluid"].dropna().eq(0).all()
