"""Metrics and losses bound to keras.ops, by hand and against segmentation_models' own binding."""

import keras
import numpy as np
import pytest
from helpers import one_hot

import utils.losses
import utils.metrics
from utils.base import import_segmentation_models
from utils.metrics import FScore, IOUScore, segmentation_metrics
from utils.training.epoch import compile_for_scoring

segmentation_models = import_segmentation_models()
needs_tensorflow = pytest.mark.skipif(
    not hasattr(segmentation_models.metrics.IOUScore().backend, "permute_dimensions"),
    reason="segmentation_models' own binding computes with TensorFlow",
)

LABELS = np.array([[[0, 1, 1], [1, 2, 0]], [[0, 0, 0], [2, 2, 1]]])
PREDICTED = np.array([[[0, 1, 0], [1, 2, 2]], [[0, 1, 0], [0, 2, 1]]])
# class: intersection, reference, predicted.  0: 3, 5, 5   1: 3, 4, 4   2: 2, 3, 3   3: absent from both
IOU = {"irf": 3 / 5, "srf": 2 / 4, "ped": 1.0}
F = {"irf": 6 / 8, "srf": 4 / 6, "ped": 1.0}


def random_pair():
    rng = np.random.default_rng(0)
    reference = one_hot(rng.integers(0, 3, (3, 20, 24)))  # class 3 is absent
    prediction = rng.dirichlet(np.full(4, 0.5), (3, 20, 24)).astype("float32")
    return reference, prediction


def test_metrics_by_hand():
    values = {
        metric.name: float(metric(one_hot(LABELS, "uint8"), one_hot(PREDICTED))) for metric in segmentation_metrics()
    }
    expected = {f"iou_{fluid}": iou for fluid, iou in IOU.items()} | {f"f_{fluid}": f for fluid, f in F.items()}
    expected["iou_score"], expected["f_score"] = sum(IOU.values()) / 3, sum(F.values()) / 3
    expected["iou_score_with_background"] = (3 / 7 + sum(IOU.values())) / 4
    expected["f_score_with_background"] = (6 / 10 + sum(F.values())) / 4
    assert values == pytest.approx(expected, abs=1e-5)


def test_a_probability_must_exceed_the_threshold():
    reference = one_hot([[[1, 1]]])
    prediction = np.array([[[[0.0, 0.51, 0.49, 0.0], [0.5, 0.5, 0.0, 0.0]]]], "float32")
    assert float(IOUScore(class_indexes=1, threshold=0.5)(reference, prediction)) == pytest.approx(0.5, abs=1e-4)
    by_name = {metric.name: metric for metric in segmentation_metrics(threshold=0.4)}
    of_two = {metric.name: metric.class_indexes for metric in segmentation_metrics(0.4, ("IRF", "PED"))}
    assert {name.removeprefix("f_"): classes for name, classes in of_two.items() if name[0] == "f"} == {
        "score": [1, 3],
        "score_with_background": [0, 1, 3],
        "irf": 1,
        "ped": 3,
    }
    assert segmentation_metrics(0.4, ()) == []
    assert float(by_name["iou_irf"](reference, prediction)) == pytest.approx(1)


def test_the_reference_is_cropped():
    labels = np.full((1, 256, 128), 3)
    labels[0, 46:210, 46:82] = 0
    labels[0, 46, 46] = 1
    predicted = np.zeros((1, 164, 36), int)
    predicted[0, 0, 0] = 1
    for metric in segmentation_metrics():
        assert float(metric(one_hot(labels, "uint8"), one_hot(predicted))) == pytest.approx(1)


@needs_tensorflow
@pytest.mark.parametrize("name", ["IOUScore", "FScore"])
@pytest.mark.parametrize("arguments", [{}, {"threshold": 0.5}, {"class_indexes": [1, 2, 3]}, {"per_image": True}])
def test_metrics_equal_segmentation_models_own(name, arguments):
    reference, prediction = random_pair()
    own = getattr(segmentation_models.metrics, name)(**arguments)(reference, prediction)
    bound = getattr(utils.metrics, name)(**arguments)(reference, prediction)
    assert float(bound) == pytest.approx(float(own), abs=1e-6)


@needs_tensorflow
@pytest.mark.parametrize("name", ["JaccardLoss", "DiceLoss", "CategoricalCELoss", "CategoricalFocalLoss"])
@pytest.mark.parametrize("class_indexes", [None, 2])
def test_losses_equal_segmentation_models_own(name, class_indexes):
    reference, prediction = random_pair()
    own = getattr(segmentation_models.losses, name)(class_indexes=class_indexes)(reference, prediction)
    bound = getattr(utils.losses, name)(class_indexes=class_indexes)(reference.astype("uint8"), prediction)
    assert float(bound) == pytest.approx(float(own), abs=1e-6)


def test_losses_add_up():
    reference, prediction = random_pair()
    dice, jaccard = utils.losses.DiceLoss(), utils.losses.JaccardLoss()
    total = float((dice + 0.5 * jaccard)(reference, prediction))
    assert total == pytest.approx(float(dice(reference, prediction)) + 0.5 * float(jaccard(reference, prediction)))


def test_segmentation_models_own_classes_keep_their_binding():
    assert IOUScore().backend is utils.losses.DiceLoss().backend
    assert segmentation_models.metrics.IOUScore().backend is not FScore().backend


def test_metrics_and_bound_losses_in_a_compiled_model():
    model = keras.Sequential([keras.Input((6, 6, 4)), keras.layers.Cropping2D(1), keras.layers.Softmax()])
    model.compile(loss=utils.losses.DiceLoss(), metrics=segmentation_metrics())
    labels = np.random.default_rng(0).integers(0, 4, (2, 6, 6))
    result = model.evaluate(100 * one_hot(labels), one_hot(labels, "uint8"), verbose=0, return_dict=True)
    assert result["loss"] == pytest.approx(0, abs=1e-5)
    assert [result[f"{prefix}_{fluid}"] for prefix in ("iou", "f") for fluid in IOU] == pytest.approx([1] * 6)


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, 1.0), (0.5, 1.0), (0.9, 0.0)])
def test_a_threshold_of_0_which_is_none_scores_patches_at_a_half(threshold, expected):
    """IRF by 0.6 everywhere, and right: at 0 SRF and PED would be false everywhere."""
    model = keras.Sequential([keras.Input((2, 2, 4)), keras.layers.Identity()])
    compile_for_scoring(model, ["categorical_crossentropy"], threshold)
    scores = model.evaluate(
        np.full((1, 2, 2, 4), [0.2, 0.6, 0.1, 0.1]), np.full((1, 2, 2, 4), [0.0, 1, 0, 0]), verbose=0, return_dict=True
    )
    assert scores["f_irf"] == pytest.approx(expected, abs=1e-4)
    assert scores["f_srf"] == 1  # absent from both
