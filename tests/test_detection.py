import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from utils.detection import (
    VoxelPrecision,
    area_under_roc,
    auc_interval,
    choose_score,
    detection_table,
    roc_curve,
    sensitivity_specificity,
    youden_threshold,
)


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
        low, high = auc_interval(*sides, seed=1)
        assert low < area_under_roc(*sides) < high
        assert auc_interval(*sides, seed=1) == (low, high)
        widths.append(high - low)
    assert widths[1] < widths[0] / 2  # 1 / sqrt(16) of it, about
    assert auc_interval([1.0, 2.0], [0.0, 0.5], seed=0) == (1, 1)
    assert np.isnan(auc_interval([1.0], [0.0], seed=0)).all()


def test_threshold_lies_between_the_cases_that_it_parts():
    present, scores = [False, False, True, False, True, True], [0.1, 0.2, 0.3, 0.4, 0.6, 0.9]
    threshold = youden_threshold(present, scores)  # above 0.2: 3/3 + 2/3; above 0.4: 2/3 + 3/3, as good, but later
    assert threshold == pytest.approx(0.25)
    assert sensitivity_specificity(present, scores, threshold) == (pytest.approx(1), pytest.approx(2 / 3))
    assert np.isnan(youden_threshold([True, True], [0.1, 0.2]))
    assert youden_threshold([True, False], [0.5, 0.5]) in (-0.5, 0.5)  # all or none


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
        cases("Cirrus", fluid, [1, 1, 0], score_probability=bad, score_volume=good, score_head=[np.nan] * 3)
        for fluid in ("IRF", "SRF", "PED")
    )
    score, aucs = choose_score(validation)
    assert score == "score_volume"
    assert aucs == {"score_probability": 0, "score_volume": 1}  # a score that is not to be had is not tried
    assert (
        choose_score(validation.assign(score_head=validation.score_volume))[0] == "score_volume"
    )  # the first of equals


def test_table_by_vendor_and_over_all():
    volumes = pd.concat(
        [
            *(cases("Cirrus", fluid, [1, 0], score=[0.9, 0.2], threshold=0.5) for fluid in ("IRF", "SRF", "PED")),
            *(cases("Topcon", fluid, [1, 0], score=[0.1, 0.6], threshold=0.5) for fluid in ("IRF", "SRF", "PED")),
        ]
    )
    table = detection_table(volumes, "score", seed=0).set_index(["vendor", "fluid"])
    assert table.auc[("Cirrus", "IRF")] == 1
    assert table.auc[("Topcon", "mean")] == 0
    everyone = table.loc[("all", "PED")]
    assert everyone.auc == 0.5  # 0.9 beats both, 0.1 none
    assert (everyone.cases, everyone.cases_with_fluid, everyone.threshold) == (4, 2, 0.5)
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
