"""segmentation_models' losses on any Keras backend; each takes the full patch's reference and the smaller prediction.

Arguments, formulas and the ``a + 0.5 * b`` notation are segmentation_models'.
"""

from utils.base import OnKerasOps, import_segmentation_models

_losses = import_segmentation_models().losses


class JaccardLoss(OnKerasOps, _losses.JaccardLoss):
    """1 - intersection over union."""


class DiceLoss(OnKerasOps, _losses.DiceLoss):
    """1 - F-score, on every class including the background unless `class_indexes` says otherwise."""


class CategoricalCELoss(OnKerasOps, _losses.CategoricalCELoss):
    """Cross-entropy, mean over pixels and classes."""


class CategoricalFocalLoss(OnKerasOps, _losses.CategoricalFocalLoss):
    """Cross-entropy weighted by alpha * (1 - p)^gamma, mean over pixels and classes."""
