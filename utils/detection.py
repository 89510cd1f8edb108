"""Is the fluid in the scan at all? ROC curves of a score for each scan, thresholds, and voxels' average precision.

Which score, and above which threshold a fluid counts as detected, is decided on validation cases alone.
"""

import numpy as np
import pandas as pd

from utils.labels import FLUIDS
from utils.summary import N_RESAMPLES, interval

SCORES = {  # in the order of preference where they are equally good
    "score_probability": "largest probability of the fluid after a 5 x 5 mean",
    "score_volume": "predicted volume",
    "score_head": "largest output of the network's presence head",
}
_N_BINS = 1000


def area_under_roc(scores_with, scores_without):
    """Probability that a case with the fluid scores above one without (ties count half); nan where a side is empty."""
    wins = _wins(scores_with, scores_without)
    return float(wins.mean()) if wins.size else np.nan


def auc_interval(scores_with, scores_without, seed):
    """95 % bootstrap interval of `area_under_roc`; cases with and without the fluid are drawn anew, each among
    themselves. Returns (low, high), nan where a side is empty or both have a single case."""
    wins = _wins(scores_with, scores_without)
    if wins.size < 2:
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    weights = [rng.multinomial(count, np.full(count, 1 / count), N_RESAMPLES) for count in wins.shape]
    return interval(((weights[0] @ wins) * weights[1]).sum(axis=1) / wins.size)


def _wins(scores_with, scores_without):
    """1, 1/2 or 0 for each case with the fluid (rows) against each without (columns)."""
    difference = np.subtract.outer(np.asarray(scores_with, np.float64), np.asarray(scores_without, np.float64))
    return (np.sign(difference) + 1) / 2


def roc_curve(present, scores):
    """False and true positive rates of every threshold, from none detected to all.

    `present` is bool, `scores` float, one each a case. Returns two float arrays, or None where all cases or none hold
    the fluid.
    """
    present, scores = np.asarray(present, bool), np.asarray(scores, np.float64)
    if present.all() or not present.any():
        return None
    thresholds = np.concatenate([[np.inf], np.unique(scores)[::-1]])
    detected = scores >= thresholds[:, np.newaxis]
    return detected[:, ~present].mean(axis=1), detected[:, present].mean(axis=1)


def youden_threshold(present, scores):
    """The threshold with the largest sensitivity + specificity (Youden 1950), half-way between two cases' scores.

    A fluid counts as detected where its score is above. nan where all cases or none hold the fluid.
    """
    present, scores = np.asarray(present, bool), np.asarray(scores, np.float64)
    if present.all() or not present.any():
        return np.nan
    values = np.unique(scores)
    candidates = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1]]])
    detected = scores > candidates[:, np.newaxis]
    return float(candidates[(detected[:, present].mean(axis=1) - detected[:, ~present].mean(axis=1)).argmax()])


def sensitivity_specificity(present, scores, threshold):
    """Shares of the cases with the fluid that score above `threshold`, and of those without that do not.

    `threshold` is one number or one for each case; without one (nan) a case does not count. nan where none counts.
    """
    threshold = np.broadcast_to(threshold, np.shape(scores))
    present, detected = np.asarray(present, bool), np.asarray(scores, np.float64) > threshold
    counts = ~np.isnan(threshold)
    sides = detected[present & counts], ~detected[~present & counts]
    return tuple(float(side.mean()) if side.size else np.nan for side in sides)


def choose_score(validation):
    """The score with the largest AUC on the validation cases, mean of the fluids; AUCs by score.

    `validation` holds a row for each case and fluid: fluid, reference_mm3 and `SCORES`, nan where a score is not to be
    had. Where no AUC has a value, the first score that is to be had is chosen.
    """
    aucs = {}
    for score in SCORES:
        if validation[score].notna().all():
            of_fluids = [_split(validation[validation.fluid == fluid], score) for fluid in FLUIDS]
            values = [value for value in (area_under_roc(*sides) for sides in of_fluids) if not np.isnan(value)]
            aucs[score] = float(np.mean(values)) if values else np.nan
    return max(aucs, key=lambda score: -1 if np.isnan(aucs[score]) else aucs[score]), aucs


def thresholds(validation, score):
    """{fluid: threshold} of `score`, chosen on the validation cases; the table is that of `choose_score`."""
    by_fluid = {fluid: validation[validation.fluid == fluid] for fluid in FLUIDS}
    return {fluid: youden_threshold(cases.reference_mm3 > 0, cases[score]) for fluid, cases in by_fluid.items()}


def detection_table(volumes, score, seed):
    """Detection of each fluid by vendor and over "all": a DataFrame with

    vendor, fluid (also "mean"), score, cases, cases_with_fluid, auc, low, high (95 % bootstrap), threshold, sensitivity
    and specificity. `volumes` holds a row for each case and fluid: vendor, fluid, reference_mm3, `score` and
    the threshold for it, which may differ between cases (folds have their own; then the table shows nan).
    """
    rows = []
    for vendor in [*sorted(volumes.vendor.unique()), "all"]:
        of_vendor = volumes if vendor == "all" else volumes[volumes.vendor == vendor]
        by_fluid = []
        for fluid in FLUIDS:
            cases = of_vendor[of_vendor.fluid == fluid]
            sides, present = _split(cases, score), cases.reference_mm3 > 0
            low, high = auc_interval(*sides, seed)
            sensitivity, specificity = sensitivity_specificity(present, cases[score], cases.threshold)
            threshold = cases.threshold.iloc[0] if cases.threshold.nunique() == 1 else np.nan
            counts = {"cases": len(cases), "cases_with_fluid": int(present.sum())}
            measured = {"auc": area_under_roc(*sides), "low": low, "high": high, "threshold": threshold}
            measured |= {"sensitivity": sensitivity, "specificity": specificity}
            by_fluid.append({"vendor": vendor, "fluid": fluid, "score": score, **counts, **measured})
        mean = pd.DataFrame(by_fluid)[["auc", "sensitivity", "specificity"]].mean().to_dict()
        counts = {"cases": by_fluid[0]["cases"], "cases_with_fluid": sum(row["cases_with_fluid"] for row in by_fluid)}
        rows += [*by_fluid, {"vendor": vendor, "fluid": "mean", "score": score, **counts, **mean}]
    return pd.DataFrame(rows)


def _split(cases, score):
    """Scores of the cases with the fluid and of those without."""
    present = cases.reference_mm3 > 0
    return cases[score][present].to_numpy(), cases[score][~present].to_numpy()


class VoxelPrecision:
    """Average precision of each fluid's probability over the voxels of a scan, B-scan by B-scan.

    Probabilities are counted in 1,001 steps of a thousandth, so that no voxel needs to be kept.
    """

    def __init__(self):
        self._counts = np.zeros((len(FLUIDS), 2, _N_BINS + 1), np.int64)  # (fluid, without or with it, probability)

    def add(self, probabilities, reference):
        """Count a B-scan: `probabilities` float (rows, columns, 4), `reference` uint8 (rows, columns)."""
        for counts, code in zip(self._counts, FLUIDS.values(), strict=True):
            # Rounding may put a sum of float32 weights a little above 1.
            steps = np.rint(np.clip(probabilities[..., code], 0, 1) * _N_BINS).astype(np.intp)
            both = np.bincount((steps + (_N_BINS + 1) * (reference == code)).ravel(), minlength=counts.size)
            counts += both.reshape(counts.shape)

    def values(self):
        """Average precision of IRF, SRF and PED; nan where the reference does not hold the fluid."""
        return [average_precision(*counts) for counts in self._counts]


def average_precision(negatives, positives):
    """Sum over thresholds of precision times gain in recall, from the numbers of voxels by rising probability."""
    if not positives.sum():
        return np.nan
    found, false = positives[::-1].cumsum(), negatives[::-1].cumsum()
    precision = found / np.maximum(found + false, 1)
    return float((precision * positives[::-1]).sum() / positives.sum())
