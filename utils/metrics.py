"""segmentation_models' IoU and F-score on any Keras backend, of the three fluids together and one by one."""

from utils.base import OnKerasOps, import_segmentation_models
from utils.labels import FLUIDS

_metrics = import_segmentation_models().metrics


class IOUScore(OnKerasOps, _metrics.IOUScore):
    """Intersection over union over the whole batch, mean over the classes; a class absent from both counts as 1."""


class FScore(OnKerasOps, _metrics.FScore):
    """F-score (Dice) over the whole batch, mean over the classes; a class absent from both counts as 1."""


def segmentation_metrics(threshold=0.5):
    """IoU and F-score for ``model.compile``, for probabilities above `threshold`.

    `iou_score`, `f_score`: mean over the three fluids; `..._with_background`: over all four classes, as the original
    reports them; `iou_irf`, `f_irf` and so on: one fluid. An epoch's value is the mean of its batches' values.
    """
    groups = {"score": list(FLUIDS.values()), "score_with_background": None}
    groups |= {fluid.lower(): label for fluid, label in FLUIDS.items()}
    return [
        metric(class_indexes=classes, threshold=threshold, name=f"{prefix}_{group}")
        for group, classes in groups.items()
        for prefix, metric in (("iou", IOUScore), ("f", FScore))
    ]
