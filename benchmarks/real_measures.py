"""What the protocol of real scans states, from counts of pixels of each B-scan and fluid.

A table here has a row for each B-scan of one fluid: patient, eye ("healthy", "drusen" or "other"), score (how sure the
network is that the fluid is anywhere), expected_dice (of the labels, nan without any), and the numbers of pixels: true
(outlined), predicted and overlap (both). Every statement comes with its 95 % interval over patients, drawn with
replacement with all their B-scans.
"""

import functools

import numpy as np

from utils.evaluation.detection import area_under_roc, auc_interval
from utils.evaluation.statistics import interval, times_drawn

SEED = 0
EYES = ("healthy", "drusen", "other")
COUNTS = ["true", "predicted", "overlap"]


def with_interval(measure, rows):
    """(value, low, high) of `measure`, a function of a table and of how often each row counts, int (n, rows)."""
    once = np.ones((1, len(rows)), int)
    return float(measure(rows, once)[0]), *interval(measure(rows, times_drawn(rows["patient"], SEED)))


def auc(rows):
    """(value, low, high) of the area under the ROC curve of the score: does the B-scan hold the fluid at all?"""
    present, scores = (rows["true"] > 0).to_numpy(), rows["score"].to_numpy()
    value = area_under_roc(scores[present], scores[~present])
    return value, *auc_interval(present, scores, rows["patient"], SEED)


# ---- Pooled: the pixels of all B-scans together ---------------------------------------------------------------------
def pooled_dice(rows, drawn):
    return _ratio(drawn @ (2 * rows["overlap"]), drawn @ (rows["predicted"] + rows["true"]))


def pooled_precision(rows, drawn):
    return _ratio(drawn @ rows["overlap"], drawn @ rows["predicted"])


def pooled_recall(rows, drawn):
    return _ratio(drawn @ rows["overlap"], drawn @ rows["true"])


# ---- The mean of the B-scans that hold the fluid -----------------------------------------------------------------
def mean_dice(rows, drawn):
    return _mean(2 * rows["overlap"] / (rows["predicted"] + rows["true"]), rows["true"] > 0, drawn)


def mean_precision(rows, drawn):
    """Of those in which any is predicted."""
    predicted = rows["predicted"].where(rows["predicted"] > 0, 1)
    return _mean(rows["overlap"] / predicted, (rows["true"] > 0) & (rows["predicted"] > 0), drawn)


def mean_recall(rows, drawn):
    return _mean(rows["overlap"] / rows["true"].where(rows["true"] > 0, 1), rows["true"] > 0, drawn)


# ---- How sure ----------------------------------------------------------------------------------------------------
def reliability_text(rows):
    """Mean expected and true Dice of each third of the B-scans in which the fluid is predicted, least sure first."""
    called = rows[rows["predicted"] > 0].sort_values("expected_dice", kind="stable")
    called = called.assign(dice=2 * called["overlap"] / (called["predicted"] + called["true"]))
    thirds = [called.iloc[part] for part in np.array_split(np.arange(len(called)), 3)]
    pairs = [f"{third['expected_dice'].mean():.2f} / {third['dice'].mean():.2f}" for third in thirds if len(third)]
    return f"expected / true Dice of {len(called)} B-scans, by thirds: {', '.join(pairs)}"


# ---- False fluid -------------------------------------------------------------------------------------------------
def false_pixels(rows, drawn, eye):
    """Pixels a B-scan of this kind of eye that are predicted and not outlined as the fluid."""
    return _mean(rows["predicted"] - rows["overlap"], rows["eye"] == eye, drawn)


def _mean(values, enters, drawn):
    """Mean of `values` over the rows that enter; nan where none is drawn."""
    enters = enters.to_numpy()
    return _ratio(drawn[:, enters] @ values.to_numpy(float)[enters], drawn[:, enters].sum(axis=1))


def _ratio(numerator, denominator):
    return np.asarray(numerator, float) / np.where(denominator, denominator, np.nan)


# Column of the protocol's table -> (function of a table, digits).
COLUMNS = {
    "pooled Dice": (functools.partial(with_interval, pooled_dice), 3),
    "precision": (functools.partial(with_interval, pooled_precision), 3),
    "recall": (functools.partial(with_interval, pooled_recall), 3),
    "Dice a B-scan": (functools.partial(with_interval, mean_dice), 3),
    "precision a B-scan": (functools.partial(with_interval, mean_precision), 3),
    "recall a B-scan": (functools.partial(with_interval, mean_recall), 3),
    "AUC": (auc, 3),
}
COLUMNS |= {
    f"false pixels, {eye}": (functools.partial(with_interval, functools.partial(false_pixels, eye=eye)), 0)
    for eye in EYES
}


def cells(rows):
    """A text for each of `COLUMNS`: value and interval."""
    texts = []
    for measure, digits in COLUMNS.values():
        value, low, high = measure(rows)
        texts.append("–" if np.isnan(value) else f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
    return texts


def gain_text(rows, first):
    """By how much pooled Dice of `rows` exceeds that of `first`, other rows of the same B-scans, with its interval.

    A B-scan that several networks judge has a row of each.
    """
    of_b_scans = rows.groupby("b_scan", sort=False)
    rows = of_b_scans[COUNTS].sum().assign(patient=of_b_scans["patient"].first())
    first = first.groupby("b_scan")[COUNTS].sum().loc[rows.index]
    low, high = interval(_gain(rows, first, times_drawn(rows["patient"], SEED)))
    return f"{_gain(rows, first, np.ones((1, len(rows)), int))[0]:+.3f} ({low:+.3f} to {high:+.3f})"


def _gain(rows, first, drawn):
    return pooled_dice(rows, drawn) - pooled_dice(first, drawn)


def counts_text(rows):
    """In words in how many B-scans a fluid is found: what few patients allow to say."""
    present, found, predicted = rows["true"] > 0, rows["overlap"] > 0, rows["predicted"] > 0
    return (
        f"found in {(present & found).sum()} of {present.sum()} B-scans that hold it, predicted in "
        f"{(~present & predicted).sum()} of {(~present).sum()} that do not; pixels: {rows['true'].sum()} outlined, "
        f"{rows['predicted'].sum()} predicted, {rows['overlap'].sum()} both"
    )
