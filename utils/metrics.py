"""segmentation_models' IoU and F-score on any Keras backend, of the three fluids together and one by one."""

from utils.base import OnKerasOps, import_segmentation_models
from utils.labels import FLUIDS

_metrics = import_segmentation_models().metrics


class IOUScore(OnKerasOps, _metrics.IOUScore):
    """Intersection over union over the whole batch, mean over the classes; a class absent from both counts as 1."""


class FScore(OnKerasOps, _metrics.FScore):
    """F-score (Dice) over the whole batch, mean over the classes; a class absent from both counts as 1."""


def segmentation_metrics(threshold=0.5, fluids=tuple(FLUIDS)):
    """IoU and F-score for ``model.compile`` of the `fluids` (names) that are judged: probabilities above `threshold`.

    `iou_score`, `f_score`: mean over these fluids; `..._with_background`: with the background as well, as the original
    reports them; `iou_irf`, `f_irf` and so on: one fluid. An epoch's value is the mean of its batches' values. An empty
    list without fluids: one that nobody outlined would count as 1.
    """
    labels = [FLUIDS[fluid] for fluid in fluids]
    with_background = None if len(labels) == len(FLUIDS) else [0, *labels]  # None: all classes
    groups = {"score": labels, "score_with_background": with_background} if labels else {}
    groups |= {fluid.lower(): FLUIDS[fluid] for fluid in fluids}
    return [
        metric(class_indexes=classes, threshold=threshold, name=f"{prefix}_{group}")
        for group, classes in groups.items()
        for prefix, metric in (("iou", IOUScore), ("f", FScore))
    ]
