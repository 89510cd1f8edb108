"""Detection, whether a scan holds a fluid at all: ROC curves of a score, thresholds, average precision of voxels.

Validation cases alone decide which score is used, and above which threshold a fluid counts as detected.
"""

import numpy as np
import pandas as pd

from utils.errors import InputError
from utils.evaluation.statistics import interval, times_drawn
from utils.labels import FLUIDS

SCORES = {  # of equally good scores, the first is preferred
    "score_probability": "largest probability of the fluid after a 5 x 5 mean",
    "score_volume": "predicted volume",
}
_N_BINS = 1000


def area_under_roc(scores_with, scores_without):
    """Probability that a case with the fluid scores above one without (ties count half); nan if a side is empty."""
    wins = _wins(scores_with, scores_without)
    return float(wins.mean()) if wins.size else np.nan


def auc_interval(present, scores, patients, seed):
    """95 % bootstrap interval of `area_under_roc`, of patients drawn as in `utils.evaluation.statistics.times_drawn`.

    `present` (bool), `scores` (float) and `patients` (names) have one value for each case. Samples without a case on a
    side are left out. Returns (low, high), nan if a side is empty or if both have a single patient.
    """
    present, scores, patients = np.asarray(present, bool), np.asarray(scores, np.float64), np.asarray(patients)
    if len(set(patients[present])) * len(set(patients[~present])) < 2:
        return np.nan, np.nan
    drawn = times_drawn(patients, seed)
    drawn_with, drawn_without = drawn[:, present], drawn[:, ~present]
    pairs = drawn_with.sum(axis=1) * drawn_without.sum(axis=1)
    wins = ((drawn_with @ _wins(scores[present], scores[~present])) * drawn_without).sum(axis=1)
    return interval(wins / np.where(pairs, pairs, np.nan))


def _wins(scores_with, scores_without):
    """1, 1/2 or 0 for each case with the fluid (rows) against each without (columns)."""
    difference = np.subtract.outer(np.asarray(scores_with, np.float64), np.asarray(scores_without, np.float64))
    return (np.sign(difference) + 1) / 2


def roc_curve(present, scores):
    """False and true positive rates of every threshold, from none detected to all.

    `present` (bool) and `scores` (float) have one value for each case. Returns two float arrays, or None if all cases
    or no case hold the fluid.
    """
    present, scores = np.asarray(present, bool), np.asarray(scores, np.float64)
    if present.all() or not present.any():
        return None
    thresholds = np.concatenate([[np.inf], np.unique(scores)[::-1]])
    detected = scores >= thresholds[:, np.newaxis]
    return detected[:, ~present].mean(axis=1), detected[:, present].mean(axis=1)


def youden_threshold(present, scores):
    """The threshold with the largest sensitivity + specificity (Youden 1950), half-way between two cases' scores.

    A fluid counts as detected if its score is above it. nan if all cases or no case hold the fluid.
    """
    present, scores = np.asarray(present, bool), np.asarray(scores, np.float64)
    if present.all() or not present.any():
        return np.nan
    values = np.unique(scores)
    candidates = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1]]])
    detected = scores > candidates[:, np.newaxis]
    return float(candidates[(detected[:, present].mean(axis=1) - detected[:, ~present].mean(axis=1)).argmax()])


def sensitivity_specificity(present, scores, threshold):
    """(sensitivity, specificity): shares of the cases with the fluid above `threshold`, and of those without not above.

    `threshold` is one number, or one for each case. A case with the threshold nan does not count. nan if none counts.
    """
    threshold = np.broadcast_to(threshold, np.shape(scores))
    present, detected = np.asarray(present, bool), np.asarray(scores, np.float64) > threshold
    counts = ~np.isnan(threshold)
    sides = detected[present & counts], ~detected[~present & counts]
    return tuple(float(side.mean()) if side.size else np.nan for side in sides)


def choose_score(validations):
    """The score with the largest AUC on validation cases, and the AUCs by score.

    `validations` has a table for each model (each fold has its own). A table has a row for each case and fluid: fluid,
    reference_mm3 and `SCORES`. An AUC is the mean over the models of the mean over the fluids. Cases of different
    models are never compared, because their scores may differ in scale. If no AUC has a value, the first score is
    chosen.
    """
    aucs = {score: _mean([_mean(_aucs_of_fluids(validation, score)) for validation in validations]) for score in SCORES}
    return max(aucs, key=lambda score: -1 if np.isnan(aucs[score]) else aucs[score]), aucs


def _aucs_of_fluids(validation, score):
    return [area_under_roc(*_split(validation[validation.fluid == fluid], score)) for fluid in FLUIDS]


def _mean(values):
    """Mean of the values that are not nan; nan where there is none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


def thresholds(validation, score):
    """{fluid: threshold} of `score`, chosen on the validation cases; the table is that of `choose_score`."""
    by_fluid = {fluid: validation[validation.fluid == fluid] for fluid in FLUIDS}
    return {fluid: youden_threshold(cases.reference_mm3 > 0, cases[score]) for fluid, cases in by_fluid.items()}


def with_thresholds(volumes, validation, score):
    """`volumes` with the columns threshold, chosen on the validation cases, and threshold_score, its score's name.

    Both tables are as in `choose_score`, of one model.
    """
    return volumes.assign(threshold=volumes.fluid.map(thresholds(validation, score)), threshold_score=score)


def check_thresholds(path, volumes):
    """Raise `InputError` if the table at `path` lacks a score, or does not say which score its thresholds are for."""
    missing = [name for name in (*SCORES, "threshold", "threshold_score") if name not in volumes]
    if missing:
        raise InputError(f"{path}: lacks the columns {', '.join(missing)}; run evaluate.py for it again")
    unknown = sorted(set(volumes.threshold_score.astype(str)) - set(SCORES))
    if unknown:
        names = ", ".join(SCORES)
        raise InputError(
            f"{path}: threshold_score is {', '.join(unknown)}, expected one of {names}; run evaluate.py again"
        )


def detection_table(volumes, score, seed):
    """Detection of each fluid by vendor and over "all", as a DataFrame.

    Its columns: vendor, fluid (also "mean"), score, patients, cases, cases_with_fluid, auc, low, high (95 % bootstrap
    over patients of `score`'s AUC), threshold_score, threshold, sensitivity and specificity. `volumes` has a row for
    each case and fluid: vendor, patient, fluid, reference_mm3, `score`, the threshold of the case's own model,
    threshold_score (the name of the score that this is for) and that score. If the folds' models have chosen several
    scores, the table names all, and the threshold is nan.
    """
    rows = []
    for vendor in [*sorted(volumes.vendor.unique()), "all"]:
        of_vendor = volumes if vendor == "all" else volumes[volumes.vendor == vendor]
        by_fluid = []
        for fluid in FLUIDS:
            cases = of_vendor[of_vendor.fluid == fluid]
            present = cases.reference_mm3 > 0
            low, high = auc_interval(present, cases[score], cases.patient, seed)
            sensitivity, specificity = sensitivity_specificity(present, scores_of_thresholds(cases), cases.threshold)
            chosen = cases[["threshold_score", "threshold"]].drop_duplicates()
            threshold = chosen.threshold.iloc[0] if len(chosen) == 1 else np.nan
            counts = {"cases": len(cases), "cases_with_fluid": int(present.sum())}
            measured = {"auc": area_under_roc(*_split(cases, score)), "low": low, "high": high}
            measured |= {"threshold_score": ", ".join(sorted(set(chosen.threshold_score))), "threshold": threshold}
            measured |= {"sensitivity": sensitivity, "specificity": specificity}
            names = {"vendor": vendor, "fluid": fluid, "score": score, "patients": cases.patient.nunique()}
            by_fluid.append({**names, **counts, **measured})
        mean = pd.DataFrame(by_fluid)[["auc", "sensitivity", "specificity"]].mean().to_dict()
        counts = {"patients": of_vendor.patient.nunique(), "cases": max(row["cases"] for row in by_fluid)}
        counts["cases_with_fluid"] = sum(row["cases_with_fluid"] for row in by_fluid)
        rows += [*by_fluid, {"vendor": vendor, "fluid": "mean", "score": score, **counts, **mean}]
    return pd.DataFrame(rows)


def scores_of_thresholds(cases):
    """For each case the score that threshold_score names, the one that its threshold is for: float (cases,)."""
    scores = np.full(len(cases), np.nan)
    for name in cases.threshold_score.unique():
        chosen = (cases.threshold_score == name).to_numpy()
        scores[chosen] = cases[name].to_numpy()[chosen]
    return scores


def _split(cases, score):
    """Scores of the cases with the fluid and of those without."""
    present = cases.reference_mm3 > 0
    return cases[score][present].to_numpy(), cases[score][~present].to_numpy()


class VoxelPrecision:
    """Average precision of each fluid's probability over the voxels of a scan, B-scan by B-scan.

    Probabilities are counted in 1,001 steps of 0.001, so that no voxel is kept in memory.
    """

    def __init__(self):
        self._counts = np.zeros((len(FLUIDS), 2, _N_BINS + 1), np.int64)  # (fluid, without or with it, probability)

    def add(self, probabilities, reference, judged=...):
        """Count a B-scan where it is `judged` (bool; rows, columns), by default everywhere.

        `probabilities` is float (rows, columns, 4), `reference` uint8 (rows, columns) of labels.
        """
        probabilities, reference = probabilities[judged], reference[judged]
        for counts, code in zip(self._counts, FLUIDS.values(), strict=True):
            # Rounding may put a sum of float32 weights a little above 1.
            steps = np.rint(np.clip(probabilities[..., code], 0, 1) * _N_BINS).astype(np.intp)
            both = np.bincount((steps + (_N_BINS + 1) * (reference == code)).ravel(), minlength=counts.size)
            counts += both.reshape(counts.shape)

    def by_probability(self):
        """Voxels of each fluid by its probability in ten steps: int (fluids, 10, 3).

        The last axis: how many, how many are the fluid, the sum of their probabilities in thousandths.
        """
        steps = np.arange(_N_BINS + 1)
        step_of_ten = np.minimum(steps * 10 // _N_BINS, 9)
        both = self._counts.sum(axis=1)
        return np.stack(
            [
                np.stack([np.bincount(step_of_ten, weights, minlength=10) for weights in of_fluid], axis=-1)
                for of_fluid in zip(both, self._counts[:, 1], both * steps, strict=True)
            ]
        ).astype(np.int64)

    def values(self):
        """Average precision of IRF, SRF and PED; nan if the reference does not hold the fluid."""
        return [average_precision(*counts) for counts in self._counts]


def reliability_table(counts):
    """How often each fluid is there that is called so probable: a DataFrame of ten rows a fluid.

    `counts` are `VoxelPrecision.by_probability`, summed over cases. Without voxels the values are nan.
    """
    rows = []
    for fluid, of_fluid in zip(FLUIDS, counts, strict=True):
        for step, (voxels, true, thousandths) in enumerate(of_fluid.tolist()):
            shares = (thousandths / _N_BINS / voxels, true / voxels) if voxels else (np.nan, np.nan)
            rows.append((fluid, step / 10, (step + 1) / 10, voxels, *shares))
    return pd.DataFrame(rows, columns=["fluid", "from", "to", "voxels", "mean_probability", "share_of_fluid"])


def average_precision(negatives, positives):
    """Sum over thresholds of precision times gain in recall. Both count voxels by rising probability."""
    if not positives.sum():
        return np.nan
    found, false = positives[::-1].cumsum(), negatives[::-1].cumsum()
    precision = found / np.maximum(found + false, 1)
    return float((precision * positives[::-1]).sum() / positives.sum())
