"""Scores of label volumes against a reader's, by the RETOUCH challenge's measures (Bogunovic et al., IEEE TMI 2019)."""

import numpy as np
import pandas as pd
from scipy import stats

from utils.labels import FLUIDS


def score_volume(labels, reference, spacing_mm):
    """Scores of one volume, a dictionary for each fluid.

    `labels` and `reference` are uint8 (slices, rows, columns) with 0 background, 1 IRF, 2 SRF, 3 PED; `spacing_mm` is
    (x, y, z). Returns rows with fluid, dice (nan where both are empty), volume_mm3, reference_mm3, difference_mm3
    (signed: predicted minus reference) and avd_mm3 (absolute).
    """
    if labels.shape != reference.shape:
        raise ValueError(f"labels {labels.shape} and reference {reference.shape} differ in shape")
    voxel_mm3 = float(np.prod(spacing_mm))
    rows = []
    for fluid, code in FLUIDS.items():
        predicted, true = labels == code, reference == code
        n_predicted, n_true = int(predicted.sum()), int(true.sum())
        overlap = int((predicted & true).sum())
        difference_mm3 = (n_predicted - n_true) * voxel_mm3
        rows.append(
            {
                "fluid": fluid,
                "dice": 2 * overlap / (n_predicted + n_true) if n_predicted + n_true else np.nan,
                "volume_mm3": n_predicted * voxel_mm3,
                "reference_mm3": n_true * voxel_mm3,
                "difference_mm3": difference_mm3,
                "avd_mm3": abs(difference_mm3),
            }
        )
    return rows


def summarise_volumes(table):
    """Means over cases for each vendor and over all ("all"), for each fluid and over the fluids ("mean").

    `table` holds a row for each case and fluid: vendor, case, presence and the columns of `score_volume`. The challenge
    does not publish how it scores a volume that lacks a fluid, so Dice is reported under both conventions:
    ``dice_present`` is the mean over the cases whose reference holds the fluid; ``dice_all`` the mean over all cases,
    where both empty counts 1 and one empty 0. ``auc`` is the detection's area under the ROC curve, nan where all cases
    or none hold the fluid.
    """
    rows = []
    for vendor in [*sorted(table.vendor.unique()), "all"]:
        of_vendor = table if vendor == "all" else table[table.vendor == vendor]
        by_fluid = []
        for fluid in FLUIDS:
            cases = of_vendor[of_vendor.fluid == fluid]
            present = cases.reference_mm3 > 0
            by_fluid.append(
                {
                    "vendor": vendor,
                    "fluid": fluid,
                    "cases": len(cases),
                    "cases_with_fluid": int(present.sum()),
                    "dice_present": cases.dice[present].mean(),
                    "dice_all": cases.dice.fillna(1.0).mean(),
                    "avd_mm3": cases.avd_mm3.mean(),
                    "auc": area_under_roc(cases.presence[present], cases.presence[~present]),
                }
            )
        measures = ["dice_present", "dice_all", "avd_mm3", "auc"]
        mean = pd.DataFrame(by_fluid)[measures].mean().to_dict()
        counts = {"cases": by_fluid[0]["cases"], "cases_with_fluid": sum(row["cases_with_fluid"] for row in by_fluid)}
        rows += [*by_fluid, {"vendor": vendor, "fluid": "mean", **counts, **mean}]
    return pd.DataFrame(rows)


def area_under_roc(scores_with, scores_without):
    """Probability that a case with the fluid scores above one without (ties count half); nan where a side is empty."""
    if len(scores_with) == 0 or len(scores_without) == 0:
        return np.nan
    statistic = stats.mannwhitneyu(scores_with, scores_without).statistic
    return float(statistic) / (len(scores_with) * len(scores_without))
