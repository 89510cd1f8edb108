"""Losses against values worked out by hand on 2 x 2 images."""

import importlib.util
import math
import os

import keras
import numpy as np
import pytest
from helpers import PROJECT, one_hot, run_python
from keras import ops

from loss_functions import (
    discriminator_loss,
    generator_loss,
    generator_to_discriminator_gradient,
    get_balanced_cross_entropy_loss_function,
    get_combined_cross_entropy_and_dice_loss_function,
    get_dice_loss,
    get_plain_cross_entropy_and_class_dice_loss_function,
    presence_loss,
    self_training_loss,
    straight_through_one_hot,
)
from utils.base import center_crop
from utils.metrics import FScore, IOUScore

# Two images of 2 x 2 pixels. The first holds background, class 1, class 2, background; the second only background.
LABELS = np.array([[[0, 1], [2, 0]], [[0, 0], [0, 0]]])
REFERENCE = np.eye(4, dtype="uint8")[LABELS]
PREDICTION = np.array(
    [
        [[[0.9, 0.1, 0.0, 0.0], [0.2, 0.5, 0.3, 0.0]], [[0.4, 0.2, 0.25, 0.15], [0.5, 0.2, 0.2, 0.1]]],
        [[[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]], [[1.0, 0.0, 0.0, 0.0], [0.6, 0.0, 0.4, 0.0]]],
    ],
    "float32",
)
# foreground predicted: 0.1, 0.8, 0.6, 0.5 and 0, 0, 0, 0.4; overlap 0.8 + 0.6
DICE_LOSS = 1 - 2 * 1.4 / (2 + 2.4)
# background of two pixels, class 1, class 2, no class 3; and background of four pixels alone
BALANCED_CROSS_ENTROPY = (
    ((-math.log(0.9) - math.log(0.5)) / 2 - math.log(0.5) - math.log(0.25)) / 4 + (-math.log(0.6) / 4) / 4
) / 2


# Two images of 1 x 3 pixels, of which a reader outlined IRF alone in the first, everything in the second. Channels are
# the classes that a pixel may be: IRF, then background, SRF or PED, then not judged; background, SRF, background.
PARTLY = np.array([[[[0, 1, 0, 0], [1, 0, 1, 1], [1, 1, 1, 1]]], [[[1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]]], "uint8")
PARTLY_PREDICTED = np.array(
    [
        [[[0.2, 0.5, 0.2, 0.1], [0.3, 0.1, 0.4, 0.2], [0.1, 0.6, 0.2, 0.1]]],
        [[[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25], [0.4, 0.2, 0.3, 0.1]]],
    ],
    "float32",
)
# What counts of it: background is 0.9 in the second pixel, of which IRF has 0.1; the third is background for certain.
PARTLY_DICE_LOSS = 1 - 2 * (0.8 + 0.75) / (2 + 0.8 + 0.1 + 0.3 + 0.75 + 0.6)
# The first image has one pixel of IRF and one of background, the second two of background and one of SRF.
PARTLY_BALANCED = -(math.log(0.5) + math.log(0.9) + (math.log(0.7) + math.log(0.4)) / 2 + math.log(0.25)) / 4 / 2
PARTLY_PLAIN = -(math.log(0.5) + math.log(0.9) + 0 + math.log(0.7) + math.log(0.25) + math.log(0.4)) / 6
PARTLY_FLUIDS_DICE = 1 - (2 * 0.5 / (1 + 0.5 + 0.1 + 0.1 + 0.25 + 0.2) + 2 * 0.25 / (1 + 0.2 + 0.1 + 0.25 + 0.3)) / 2
PARTLY_LOSSES = {
    get_dice_loss: PARTLY_DICE_LOSS,
    get_balanced_cross_entropy_loss_function(2, 4): PARTLY_BALANCED,
    get_combined_cross_entropy_and_dice_loss_function(2, 4): (PARTLY_DICE_LOSS + PARTLY_BALANCED) / 2,
    get_plain_cross_entropy_and_class_dice_loss_function(4): (PARTLY_PLAIN + PARTLY_FLUIDS_DICE) / 2,
}


def gradient(function, values):
    """Gradient of the scalar `function` at the array `values`, on any backend: what one step of SGD subtracts."""

    class Variable(keras.layers.Layer):
        def build(self, _):
            self.values = self.add_weight(
                shape=values.shape, initializer=lambda *_, **__: ops.convert_to_tensor(values)
            )

        def call(self, _):
            return ops.reshape(function(self.values), (1, 1))

    model = keras.Sequential([keras.Input((1,)), Variable()])
    model.compile(keras.optimizers.SGD(1.0), loss=lambda _, output: ops.mean(output))
    model.train_on_batch(np.zeros((1, 1)), np.zeros((1, 1)))
    return values - model.get_weights()[0]


def test_dice_loss_by_hand():
    assert float(get_dice_loss(REFERENCE, PREDICTION)) == pytest.approx(DICE_LOSS, abs=1e-6)
    first = float(get_dice_loss(REFERENCE[:1], PREDICTION[:1]))
    assert first == pytest.approx(0.3, abs=1e-6)  # not the mean over images: the batch is summed first


def test_dice_loss_falls_as_the_overlap_grows():
    disjoint, half, perfect = (one_hot([[[0, 1, 1, 0]]]), one_hot([[[1, 1, 0, 0]]]), one_hot([[[1, 0, 0, 1]]]))
    losses = [float(get_dice_loss(perfect, prediction)) for prediction in (disjoint, half, perfect)]
    assert losses == pytest.approx([1, 0.5, 0], abs=1e-6)


def test_dice_loss_of_background_alone_is_0():
    assert float(get_dice_loss(REFERENCE[1:], one_hot(LABELS[1:]))) == pytest.approx(0, abs=1e-6)


def test_a_missed_lesion_costs_nearly_1():
    labels = np.zeros((1, 256, 128), int)
    labels[0, 100:110, 60:70] = 1
    background = np.tile(np.array([0.9999, 0.0001, 0, 0], "float32"), (1, 256, 128, 1))
    assert float(get_dice_loss(one_hot(labels), background)) > 0.97


def test_balanced_cross_entropy_by_hand():
    loss = get_balanced_cross_entropy_loss_function(2, 4)
    assert float(loss(REFERENCE, PREDICTION)) == pytest.approx(BALANCED_CROSS_ENTROPY, abs=1e-6)


def test_balanced_cross_entropy_of_an_impossible_class_is_finite():
    loss = float(get_balanced_cross_entropy_loss_function(1, 4)(one_hot([[[1]]]), one_hot([[[2]]])))
    assert loss == pytest.approx(-math.log(1e-7) / 4, rel=1e-5)


def test_balanced_cross_entropy_names_a_wrong_class_number():
    with pytest.raises(ValueError, match="num_classes is 3, the prediction has 4"):
        get_balanced_cross_entropy_loss_function(2, 3)(REFERENCE, PREDICTION)


def test_combined_loss_is_half_the_sum():
    loss = get_combined_cross_entropy_and_dice_loss_function(2, 4)
    assert float(loss(REFERENCE, PREDICTION)) == pytest.approx(0.5 * (BALANCED_CROSS_ENTROPY + DICE_LOSS), abs=1e-6)


def test_plain_cross_entropy_and_dice_of_each_fluid_by_hand():
    loss = get_plain_cross_entropy_and_class_dice_loss_function(4)
    cross_entropy = -(math.log(0.9) + math.log(0.5) + math.log(0.25) + math.log(0.5) + math.log(0.6)) / 8
    # class 1: overlap 0.5, predicted 1.0; class 2: overlap 0.25, predicted 1.15; class 3 is absent
    dice = (1 - 2 * 0.5 / (1 + 1.0) + 1 - 2 * 0.25 / (1 + 1.15)) / 2
    assert float(loss(REFERENCE, PREDICTION)) == pytest.approx(0.5 * (cross_entropy + dice), abs=1e-6)
    assert float(loss(REFERENCE[1:], PREDICTION[1:])) == pytest.approx(-0.5 * math.log(0.6) / 4, abs=1e-6)
    with pytest.raises(ValueError, match="num_classes is 3, the prediction has 4"):
        get_plain_cross_entropy_and_class_dice_loss_function(3)(REFERENCE, PREDICTION)


@pytest.mark.parametrize(("loss", "expected"), PARTLY_LOSSES.items(), ids=["dice", "balanced", "combined", "plain"])
def test_losses_where_not_everything_was_outlined_by_hand(loss, expected):
    assert float(loss(PARTLY, PARTLY_PREDICTED)) == pytest.approx(expected, abs=1e-6)
    slopes = gradient(lambda values: loss(PARTLY, values), PARTLY_PREDICTED)
    assert not slopes[0, 0, 2].any()  # nobody judged this pixel
    assert slopes[0, 0, 1, 2:] == pytest.approx(slopes[0, 0, 1, 0], rel=1e-5)  # one class: nobody says which of them
    assert slopes[0, 0, 1, 1] >= 0 > slopes[0, 0, 1, 0]  # and it is no IRF


def test_nothing_judged_costs_nothing():
    for loss in PARTLY_LOSSES:
        unjudged = np.ones_like(PARTLY)
        assert float(loss(unjudged, PARTLY_PREDICTED)) == pytest.approx(0, abs=1e-6)
        assert not gradient(lambda values, loss=loss, y=unjudged: loss(y, values), PARTLY_PREDICTED).any()


def test_metrics_where_not_everything_was_outlined_by_hand():
    """At a threshold of 0.15: IRF is predicted in pixels 1, 5 and 6 and true in 1; SRF in 1, 5 and 6, true in 5."""
    options = {"class_indexes": [1, 2], "threshold": 0.15}
    assert float(FScore(**options)(PARTLY, PARTLY_PREDICTED)) == pytest.approx(2 / 4, abs=1e-4)
    assert float(IOUScore(**options)(PARTLY, PARTLY_PREDICTED)) == pytest.approx(1 / 3, abs=1e-4)


def test_presence_loss_by_hand():
    """The third patch does not count, the mean is over all four."""
    known, predicted = np.array([[0], [1], [255], [1]], "uint8"), np.array([[0.2], [0.6], [0.9], [0.5]], "float32")
    expected = -(math.log(0.8) + math.log(0.6) + math.log(0.5)) / 4
    assert float(presence_loss(known, predicted)) == pytest.approx(expected, abs=1e-6)
    slopes = gradient(lambda values: presence_loss(known, values), predicted)
    assert (slopes != 0).ravel().tolist() == [True, True, False, True]


def test_the_reference_is_cropped_to_the_prediction():
    labels = np.full((2, 256, 128), 3)  # the rim is all PED; only the middle must count
    labels[:, 46:210, 46:82] = 0
    labels[0, 46, 46] = labels[1, 209, 81] = 1
    expected = np.zeros((2, 164, 36), int)
    expected[0, 0, 0] = expected[1, -1, -1] = 1
    loss = get_combined_cross_entropy_and_dice_loss_function(2, 4)
    assert float(loss(one_hot(labels, "uint8"), one_hot(expected))) == pytest.approx(0, abs=1e-6)


def test_center_crop():
    tensor = np.arange(5 * 6).reshape(1, 5, 6, 1)
    np.testing.assert_array_equal(center_crop(tensor, 2, 4)[0, :, :, 0], [[7, 8, 9, 10], [13, 14, 15, 16]])
    np.testing.assert_array_equal(center_crop(tensor, 5, 6), tensor)
    with pytest.raises(ValueError, match="5 x 6 pixels has no 2 x 7"):
        center_crop(tensor, 2, 7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_does_not_overflow(dtype):
    """512 x 512 pixels sum to 262,144, four times float16's largest number."""
    labels = np.random.default_rng(0).integers(0, 4, (1, 512, 512))
    prediction = np.full((1, 512, 512, 4), 0.25, "float32")
    loss = get_combined_cross_entropy_and_dice_loss_function(1, 4)
    exact = float(loss(one_hot(labels), prediction))
    half = loss(ops.cast(one_hot(labels), dtype), ops.cast(prediction, dtype))
    assert keras.backend.standardize_dtype(half.dtype) == "float32"
    assert float(half) == pytest.approx(exact, abs=1e-5)  # 0, 0.25 and 1 are exact in every format


def test_the_generator_is_rewarded_for_fooling_the_discriminator():
    logits = np.array([[-2.0], [0.0], [3.0]], "float32")
    expected = np.mean([math.log1p(math.exp(2)), math.log(2), math.log1p(math.exp(-3))])
    assert float(generator_loss(logits)) == pytest.approx(expected, abs=1e-6)
    assert float(generator_loss(logits + 1)) < float(generator_loss(logits))
    on_real = np.ones((3, 1), "float32")
    assert float(discriminator_loss(on_real, logits + 1)) > float(discriminator_loss(on_real, logits))
    assert float(discriminator_loss(on_real + 1, logits)) < float(discriminator_loss(on_real, logits))


def test_discriminator_loss_by_hand():
    blind = np.zeros((2, 1), "float32")
    assert float(discriminator_loss(blind, blind)) == pytest.approx(math.log(2), abs=1e-6)
    on_real, on_generated = np.array([[1.0]], "float32"), np.array([[-2.0]], "float32")
    called_real = 1 / (1 + math.exp(-1))
    on_real_loss = -0.9 * math.log(called_real) - 0.1 * math.log(1 - called_real)
    expected = (on_real_loss + math.log1p(math.exp(-2))) / 2
    assert float(discriminator_loss(on_real, on_generated, real_label=0.9)) == pytest.approx(expected, abs=1e-6)
    assert float(generator_loss(np.array([[-1e4]], "float32"))) == pytest.approx(1e4)  # no overflow


def test_the_generators_gradient_from_the_discriminators():
    """At a logit of 0, one sample: -1/2 (of -log s) against 1/4 (of -log(1 - s) / 2); at 2, -2 exp(-2) times."""
    logits = np.array([[0.0], [2.0], [-100.0]], "float32")
    factors = ops.convert_to_numpy(generator_to_discriminator_gradient(logits))
    np.testing.assert_allclose(factors, [[-2], [-0.270671], [-2 * math.exp(60)]], rtol=1e-5)


def test_self_training_loss_by_hand():
    labels = one_hot(np.array([[[0, 1, 2]]]))
    probabilities = np.array([[[[0.5, 0.5, 0, 0], [0.2, 0.8, 0, 0], [1, 0, 0, 0]]]], "float32")
    is_certain = np.array([[[1, 1, 0]]], "float32")
    expected = -(math.log(0.5) + math.log(0.8)) / 2
    assert float(self_training_loss(labels, is_certain, probabilities)) == pytest.approx(expected, abs=1e-6)
    assert float(self_training_loss(labels, 0 * is_certain, probabilities)) == 0


def test_straight_through_one_hot_is_exactly_one_hot():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), (2, 30, 30)).astype("float32")
    masks = ops.convert_to_numpy(straight_through_one_hot(ops.convert_to_tensor(probabilities)))
    np.testing.assert_array_equal(masks, one_hot(probabilities.argmax(axis=-1)))


def test_straight_through_one_hot_passes_the_gradient_on():
    weights = np.random.default_rng(1).normal(size=PREDICTION.shape).astype("float32")
    passed_on = gradient(lambda values: ops.sum(weights * straight_through_one_hot(values)), PREDICTION)
    np.testing.assert_allclose(passed_on, weights, atol=1e-6)


def test_dice_gradient_raises_the_foreground_of_a_lesion():
    wanted = gradient(lambda values: get_dice_loss(REFERENCE, values), PREDICTION)
    assert wanted[0, 0, 1, 0] > 0  # descending lowers p(background) where the lesion is
    assert wanted[0, 0, 0, 0] < 0


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax") is None or keras.backend.backend() == "jax", reason="JAX missing or already in use"
)
def test_losses_and_metrics_pass_on_jax():
    files = [PROJECT / "tests" / f"test_{name}.py" for name in ("loss_functions", "metrics")]
    run_python("-m", "pytest", "-q", *files, environment={**os.environ, "KERAS_BACKEND": "jax"})
