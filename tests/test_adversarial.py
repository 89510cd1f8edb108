"""The adversarial step, on the Keras backend of the environment; the slow tests run this file on JAX as well.

    KERAS_BACKEND=jax python tests/test_adversarial.py WEIGHTS RESULT

takes some steps from the stored weights and stores the result: what the two backends are compared by.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
import pytest
from helpers import run_python
from keras import layers

from loss_functions import (
    discriminator_loss,
    generator_loss,
    get_combined_cross_entropy_and_dice_loss_function,
    straight_through_one_hot,
)
from model import create_discriminator, create_unet_model
from utils.settings.rules import AdversarialRules
from utils.training.adversarial import AdversarialStep, discriminator_policy
from utils.training.teacher import Teacher, TeacherStep

SEGMENTATION_LOSS = get_combined_cross_entropy_and_dice_loss_function(4, 4)
SIZE = 24  # pixels of a patch's sides; the masks have 4 less
WARM_UP, RAMP, READY, AHEAD = 2, 4, 0.05, 0.9
BALANCE = {"real_label": 0.9, "warm_up_steps": WARM_UP, "ramp_steps": RAMP}
BALANCE |= {"ready_accuracy": READY, "ahead_accuracy": AHEAD}
ALWAYS = {"ready_accuracy": 0.0, "ahead_accuracy": 1.0}
ON_JAX = keras.backend.backend() == "jax"


def batch(seed=0, size=SIZE, n_patches=4):
    """Images whose left half is bright, and masks that say SRF there."""
    rng = np.random.default_rng(seed)
    images = rng.normal(scale=0.3, size=(n_patches, size, size, 3)).astype(np.float32)
    images[:, :, : size // 2] += 1
    labels = np.zeros((n_patches, size, size), np.uint8)
    labels[:, :, : size // 2] = 2
    return images, np.eye(4, dtype=np.uint8)[labels]


def no_segmentation_loss(y_true, y_pred):
    return keras.ops.zeros(())


def create_generator(dropout=0.25, penalty=0.0, dtype_policy="float32"):
    """As much of the U-Net as a step can tell: 'valid' convolutions, penalties, batch norm and dropout."""
    image = keras.Input((SIZE, SIZE, 3))
    options = {"kernel_regularizer": keras.regularizers.L2(penalty), "dtype": dtype_policy}
    initializer = keras.initializers.GlorotUniform(seed=1)
    tensor = layers.Conv2D(6, 3, kernel_initializer=initializer, **options)(image)
    tensor = layers.BatchNormalization(momentum=0.9, dtype=dtype_policy)(tensor)
    tensor = layers.SpatialDropout2D(dropout, seed=2, dtype=dtype_policy)(layers.ReLU(dtype=dtype_policy)(tensor))
    initializer = keras.initializers.GlorotUniform(seed=3)
    tensor = layers.Conv2D(4, 3, kernel_initializer=initializer, dtype=dtype_policy)(tensor)
    return keras.Model(image, layers.Softmax(dtype="float32")(tensor))


def adam():
    return keras.optimizers.Adam(3e-3, beta_1=0.5)


def create_step(
    generator, adversarial_weight, segmentation_losses, optimizers=None, d_dtype_policy="float32", **options
):
    height, width = keras.tree.flatten(generator.output)[0].shape[1:3]
    discriminator = create_discriminator((height, width, 3), base_filters=4, seed=2, dtype_policy=d_dtype_policy)
    optimizers = optimizers or (adam(), adam())
    rules = AdversarialRules(adversarial_weight, **{"real_label": 1.0, **ALWAYS, **options})
    return AdversarialStep(generator, discriminator, *optimizers, segmentation_losses, rules)


def arrays(variables):
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def changed(before, after):
    return [not np.array_equal(one, other) for one, other in zip(before, after, strict=True)]


class Restored:
    """A compiled step that starts every test from the same state; compiling takes seconds."""

    def __init__(self, step):
        self.step, self.state = step, arrays(step.variables)

    def __call__(self, unet_learns=True, discriminator_learns=True, taken_steps=WARM_UP + RAMP):
        for variable, value in zip(self.step.variables, self.state, strict=True):
            variable.assign(value)
        self.step.generator_optimizer.learning_rate = 3e-3 * unet_learns
        self.step.discriminator_optimizer.learning_rate = 3e-3 * discriminator_learns
        self.step.taken_steps.assign(taken_steps)
        self.step.begin_means()
        return self.step


@pytest.fixture(scope="module")
def adversarial_alone():
    """A step whose only loss of the U-Net is the adversarial one."""
    return Restored(create_step(create_generator(), 1.0, [no_segmentation_loss], **BALANCE))


def take(step, *seeds):
    """Take steps and return each one's measures."""
    measures = []
    for seed in seeds:
        step.begin_means()
        step(*batch(seed))
        measures.append(step.means())
    return measures


# ---- Each network changes only by its own update -------------------------------------------------------------------
def test_the_adversarial_term_alone_moves_the_unet(adversarial_alone):
    """Known mistake: no gradient through the argmax, so that the term does nothing."""
    step = adversarial_alone()
    before = arrays(step.generator.trainable_variables)
    take(step, 0)
    assert all(changed(before, arrays(step.generator.trainable_variables))[1:])  # a bias before batch norm has none


def test_the_generators_update_leaves_the_discriminator_alone(adversarial_alone):
    step = adversarial_alone(discriminator_learns=False)
    before = arrays(step.discriminator.variables)
    take(step, 0)
    assert not any(changed(before, arrays(step.discriminator.variables)))


def test_the_discriminators_update_leaves_the_unet_alone(adversarial_alone):
    step = adversarial_alone(unet_learns=False)
    generator = arrays(step.generator.trainable_variables)
    discriminator = arrays(step.discriminator.trainable_variables)
    take(step, 0)
    assert not any(changed(generator, arrays(step.generator.trainable_variables)))
    assert all(changed(discriminator, arrays(step.discriminator.trainable_variables)))


def test_the_discriminator_learns_to_separate_fixed_masks(adversarial_alone):
    measures = take(adversarial_alone(unet_learns=False), *range(25))
    assert measures[0]["d_loss"] == pytest.approx(np.log(2), abs=0.1)
    assert measures[-1]["d_loss"] < 0.4
    assert measures[-1]["d_accuracy_real"] == measures[-1]["d_accuracy_generated"] == 1


def test_the_unet_learns_to_fool_a_fixed_discriminator(adversarial_alone):
    """Known mistake: the generator rewarded for helping the discriminator."""
    step = adversarial_alone(unet_learns=False)
    take(step, *range(25))
    step.generator_optimizer.learning_rate = 3e-3
    step.discriminator_optimizer.learning_rate = 0.0
    rejection = [measures["adversarial_loss"] for measures in take(step, *range(40))]
    assert np.mean(rejection[-3:]) < 0.8 * np.mean(rejection[:3])


@pytest.mark.skipif(ON_JAX, reason="the tape is TensorFlow's; the backends are compared below")
@pytest.mark.parametrize("limit", [None, 0.01])
def test_one_pass_back_through_the_discriminator_serves_both(limit):
    """Plain gradient descent on all losses, each differentiated by itself."""
    import tensorflow

    optimizers = keras.optimizers.SGD(1.0), keras.optimizers.SGD(1.0)
    step = create_step(
        create_generator(dropout=0.0, penalty=0.01),
        0.7,
        [SEGMENTATION_LOSS],
        optimizers,
        real_label=0.9,
        limit=limit,
    )
    unet, discriminator = step.generator, step.discriminator
    images, masks = batch()
    inner = slice(2, SIZE - 2)
    crop, real = map(tensorflow.constant, (images[:, inner, inner], masks[:, inner, inner].astype(np.float32)))
    variables = [*unet.trainable_variables, *discriminator.trainable_variables]
    before = arrays(variables)
    statistics = arrays(unet.non_trainable_variables)
    with tensorflow.GradientTape(persistent=True) as tape:
        logits = tensorflow.math.log(unet(images, training=True))  # up to a constant, which softmax ignores
        probabilities = tensorflow.nn.softmax(logits)
        on_generated = discriminator([crop, straight_through_one_hot(probabilities)])
        segmentation, penalty = SEGMENTATION_LOSS(masks, probabilities), sum(unet.losses)
        adversarial = 0.7 * generator_loss(on_generated)
        d_loss = discriminator_loss(discriminator([crop, real]), on_generated, 0.9)
    share = tensorflow.norm(tape.gradient(adversarial, logits)) / tensorflow.norm(tape.gradient(segmentation, logits))
    factor = 1 if limit is None else limit / share
    assert factor == 1 or factor < 0.9
    unet_variables = [variable.value for variable in unet.trainable_variables]
    gradients = [
        of_segmentation + of_penalty + factor * of_adversarial
        for of_segmentation, of_penalty, of_adversarial in zip(
            *(
                tape.gradient(loss, unet_variables, unconnected_gradients="zero")
                for loss in (segmentation, penalty, adversarial)
            ),
            strict=True,
        )
    ]
    gradients += tape.gradient(d_loss, [variable.value for variable in discriminator.trainable_variables])
    for variable, value in zip(unet.non_trainable_variables, statistics, strict=True):
        variable.assign(value)
    step.begin_means()
    step(images, masks)
    assert step.means()["adversarial_share"] == pytest.approx(float(share), rel=1e-4)
    for variable, value, gradient in zip(variables, before, gradients, strict=True):
        np.testing.assert_allclose(variable, value - gradient, rtol=1e-4, atol=1e-6, err_msg=variable.path)


@pytest.mark.skipif(ON_JAX, reason="the tape is TensorFlow's; the backends are compared below")
@pytest.mark.parametrize("logit", [-16.0, 0.0])
def test_the_generator_hears_a_sure_discriminator_in_float16_too(logit):
    """At a logit of -16 the gradient of the discriminator's loss is 1e-7 of the generator's gradient."""
    import tensorflow

    images, masks = batch()
    optimizers = [keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0)) for _ in range(2)]
    unet = create_generator(dropout=0.0, dtype_policy="mixed_float16")
    d_dtype_policy = discriminator_policy("mixed_float16")
    step = create_step(unet, 1.0, [no_segmentation_loss], optimizers, d_dtype_policy=d_dtype_policy)
    step.discriminator.get_layer("logit").bias.assign([logit])
    in_float32 = create_generator(dropout=0.0)
    in_float32.set_weights(unet.get_weights())
    crop = tensorflow.constant(images[:, 2:-2, 2:-2])
    variables = [variable.value for variable in in_float32.trainable_variables]
    with tensorflow.GradientTape() as tape:
        on_generated = step.discriminator([crop, straight_through_one_hot(in_float32(images, training=True))])
        loss = generator_loss(on_generated)
    np.testing.assert_allclose(on_generated, logit, atol=1)
    expected = np.concatenate([np.ravel(gradient) for gradient in tape.gradient(loss, variables)])
    before = arrays(unet.trainable_variables)
    step(images, masks)
    found = np.concatenate(
        [np.ravel(old - new) for old, new in zip(before, arrays(unet.trainable_variables), strict=True)]
    )
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_a_discriminator_in_float16_is_refused():
    with pytest.raises(ValueError, match="float16"):
        create_step(create_generator(), 1.0, [no_segmentation_loss], d_dtype_policy="mixed_float16")
    assert [discriminator_policy(policy) for policy in ("float32", "mixed_bfloat16")] == ["float32", "mixed_bfloat16"]


# ---- In balance ----------------------------------------------------------------------------------------------------
def test_in_the_warm_up_only_the_discriminator_learns(adversarial_alone):
    """Weights, optimizer and batch statistics of the U-Net stay; its dropout continues."""
    step = adversarial_alone(taken_steps=0)
    weights, slots = arrays(step.generator.weights), arrays(step.generator_optimizer.variables)
    discriminator = arrays(step.discriminator.trainable_variables)
    take(step, *range(WARM_UP))
    assert not any(changed(weights, arrays(step.generator.weights)))
    assert not any(changed(slots, arrays(step.generator_optimizer.variables)))
    assert all(changed(discriminator, arrays(step.discriminator.trainable_variables)))
    random_states = [variable for variable in step.generator.variables if variable.name == "seed_generator_state"]
    assert len(random_states) == 1
    assert random_states[0].value[1] == WARM_UP  # numbers drawn so far
    take(step, WARM_UP)
    statistics = [variable.name for variable in step.generator.non_trainable_weights]
    assert statistics == ["moving_mean", "moving_variance"]
    assert all(changed(weights, arrays(step.generator.weights))[2:])


def test_the_adversarial_loss_gains_weight_step_by_step(adversarial_alone):
    weights = [measures["adversarial_weight"] for measures in take(adversarial_alone(taken_steps=0), *range(8))]
    assert weights == pytest.approx([0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1])


def test_the_unet_does_not_listen_to_a_discriminator_that_is_not_ready(adversarial_alone):
    step = adversarial_alone()
    weights = arrays(step.generator.trainable_variables)
    for accuracy, weight in ((READY - 0.01, 0), (READY, 1)):
        step.d_accuracy.assign(accuracy)
        assert take(step, 0)[0]["adversarial_weight"] == weight
        assert any(changed(weights, arrays(step.generator.trainable_variables))) == bool(weight)


def test_a_discriminator_that_is_far_ahead_pauses(adversarial_alone):
    step = adversarial_alone()
    step.d_accuracy.assign(0.99)  # after a step at least 0.95 * 0.99 = 0.94, of two at least 0.893
    variables = [*step.discriminator.variables, *step.discriminator_optimizer.variables]
    before = arrays(variables)
    (measures,) = take(step, 0)
    assert measures["d_updates"] == 0
    assert not any(changed(before, arrays(variables)))
    accuracy = (measures["d_accuracy_real"] + measures["d_accuracy_generated"]) / 2
    assert float(step.d_accuracy) == pytest.approx(0.95 * 0.99 + 0.05 * accuracy)
    step.d_accuracy.assign(0.5)
    assert take(step, 1)[0]["d_updates"] == 1
    assert any(changed(before, arrays(variables)))


# ---- What is reported ----------------------------------------------------------------------------------------------
def test_measures_of_a_discriminator_that_takes_every_mask_for_a_readers(adversarial_alone):
    """A logit of 2 for every mask: log(1 + e^2) = 2.126928 is the loss of saying 0, 0.126928 that of saying 1."""
    step = adversarial_alone()
    kernel, bias = step.discriminator.get_layer("logit").variables
    kernel.assign(np.zeros(kernel.shape))
    bias.assign([2.0])
    (measures,) = take(step, 0)
    assert measures["adversarial_loss"] == pytest.approx(0.126928, abs=1e-5)
    assert measures["d_loss"] == pytest.approx((0.9 * 0.126928 + 0.1 * 2.126928 + 2.126928) / 2, abs=1e-5)
    assert (measures["d_accuracy_real"], measures["d_accuracy_generated"]) == (1, 0)
    assert measures["loss"] == 0
    bias.assign([0.0])  # neither: what is not taken for a reader's is taken for generated
    step.begin_means()
    step(*batch(0))
    assert (step.means()["d_accuracy_real"], step.means()["d_accuracy_generated"]) == (0, 1)


def test_means_are_over_all_steps_since_they_began(adversarial_alone):
    one_by_one = take(adversarial_alone(), 0, 1)
    step = adversarial_alone()
    step(*batch(0))
    step(*batch(1))
    means = step.means()
    assert set(one_by_one[0]) == set(means)
    for name, value in means.items():
        assert value == pytest.approx((one_by_one[0][name] + one_by_one[1][name]) / 2, rel=1e-5), name


def test_held_out_accuracy_and_verdicts_are_those_of_the_networks_at_rest(adversarial_alone):
    step = adversarial_alone(unet_learns=False)
    take(step, *range(12))
    state = arrays(step.variables)
    batches = [batch(30), batch(31, n_patches=3)]
    right, said = np.zeros(2), []
    for images, masks in batches:
        labels = step.generator.predict_on_batch(images).argmax(axis=-1)
        inner = slice(2, SIZE - 2)
        for index, mask in enumerate((masks[:, inner, inner], np.eye(4)[labels])):
            logits = step.discriminator.predict_on_batch([images[:, inner, inner], mask.astype(np.float32)])
            right[index] += np.sum(logits > 0 if index == 0 else logits <= 0)
            said.append((images, mask, logits))
    accuracy = step.held_out_accuracy(batches)
    assert accuracy == {"d_held_out_real": right[0] / 7, "d_held_out_generated": right[1] / 7}
    assert not any(changed(state, arrays(step.variables)))
    images, mask, logits = said[-1]
    np.testing.assert_allclose(step.verdict(images, mask), 1 / (1 + np.exp(-logits[:, 0])), rtol=1e-4)


def test_all_state_is_among_the_variables(adversarial_alone):
    """What is saved and restored continues exactly: ramps, running accuracy, both optimizers' slots, dropout."""
    step = adversarial_alone(taken_steps=1)
    take(step, 0)
    saved = arrays(step.variables)
    take(step, 1, 2)
    compared = [*step.variables, step.taken_steps, step.d_accuracy]
    expected = arrays(compared)
    for variable, value in zip(step.variables, saved, strict=True):
        variable.assign(value)
    take(step, 1, 2)
    for one, other in zip(arrays(compared), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)


# ---- The same as plain training ------------------------------------------------------------------------------------
@pytest.fixture
def deterministic_kernels():
    """TensorFlow's reproducible kernels for one test; there is no public way back from them."""
    if ON_JAX:
        yield
        return
    from tensorflow.python.framework import config

    config.enable_op_determinism()
    yield
    config.disable_op_determinism()


def small_unet():
    return create_unet_model((104, 104, 3), base_filters=2, seed=1, regularizer_weight=0.01)


@pytest.mark.parametrize(
    ("create", "size"),
    [(lambda: create_generator(penalty=0.01), SIZE), pytest.param(small_unet, 104, marks=pytest.mark.slow)],
)
def test_without_adversarial_weight_the_trajectory_is_plain_trainings(create, size, deterministic_kernels):
    """Bit for bit on TensorFlow: weights, batch statistics, dropout's random state."""
    plain = create()
    plain.compile(optimizer=adam(), loss=SEGMENTATION_LOSS)
    step = create_step(create(), 0.0, [SEGMENTATION_LOSS], real_label=0.9)
    start = arrays(plain.variables)
    for seed in range(4):
        images, masks = batch(seed, size)
        plain.train_on_batch(images, masks)
        step(images, masks)
    assert any(changed(start, arrays(plain.variables)))
    for one, other in zip(arrays(step.generator.variables), arrays(plain.variables), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4 * ON_JAX, atol=1e-5 * ON_JAX)


def test_loss_scaling_changes_nothing_where_nothing_underflows():
    """A scale that is a power of 2 is exact, and gradient descent, unlike Adam, would show a scale left in."""
    trained = []
    for scaled in (False, True):
        optimizers = [keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1)]
        if scaled:
            optimizers = [keras.optimizers.LossScaleOptimizer(optimizer) for optimizer in optimizers]
        step = create_step(create_generator(), 1.0, [SEGMENTATION_LOSS], optimizers)
        take(step, 0, 1)
        trained.append(arrays([*step.generator.weights, *step.discriminator.weights]))
    for one, other in zip(*trained, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# ---- The other backend ---------------------------------------------------------------------------------------------
def run_on_jax(*command):
    run_python(*command, environment={**os.environ, "KERAS_BACKEND": "jax"})


def trained_for_comparison(weights=None):
    """(the networks' weights, those after some steps with every option on, and the steps' measures).

    Of an adversarial step and of one with a teacher. Without dropout, which each backend draws in its own way, as it
    does the places where a teacher pastes: the images of a batch without outlines are one. And without Adam, which
    enlarges rounding errors.
    """
    adversarial = create_step(
        create_generator(dropout=0.0, penalty=0.01),
        0.5,
        [SEGMENTATION_LOSS],
        (keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1)),
        **BALANCE,
        limit=0.01,
    )
    averaging = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    averaging.average_into = averaging.finalize_variable_values
    network, teacher = create_generator(dropout=0.0, penalty=0.01), Teacher(create_generator(dropout=0.0), seed=5)
    taught = TeacherStep(network, averaging, [SEGMENTATION_LOSS], teacher, 0.5, RAMP, confidence=0.3)
    before, after, weights = [], [], list(weights or [])
    for step, variables in (
        (adversarial, [*adversarial.generator.weights, *adversarial.discriminator.weights]),
        (taught, network.weights),
    ):
        given, weights = weights[: len(variables)] or arrays(variables), weights[len(variables) :]
        for variable, value in zip(variables, given, strict=True):
            variable.assign(value)
        before += arrays(variables)
        for seed in range(WARM_UP + 4):
            step.begin_means()
            unlabelled = [batch(seed + 50, n_patches=1)[0].repeat(4, axis=0)] * (step is taught)
            step(*batch(seed), *unlabelled)
            after.append(np.array(list(step.means().values())))
        after += arrays(variables)
    return before, after


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.skipif(ON_JAX, reason="started from TensorFlow")
def test_both_backends_agree(tmp_path):
    before, after = trained_for_comparison()
    np.savez(tmp_path / "weights.npz", *before)
    run_on_jax(__file__, tmp_path / "weights.npz", tmp_path / "result.npz")
    with np.load(tmp_path / "result.npz") as result:
        for one, other in zip(after, result.values(), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(ON_JAX, reason="started from TensorFlow")
def test_the_same_on_jax():
    run_on_jax("-m", "pytest", "-q", "-m", "not slow", __file__)


if __name__ == "__main__":
    with np.load(sys.argv[1]) as stored:
        np.savez(sys.argv[2], *trained_for_comparison(list(stored.values()))[1])
