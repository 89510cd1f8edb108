"""The adversarial step, on the Keras backend of the environment; the last test runs this file on the other one."""

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest

from loss_functions import get_combined_cross_entropy_and_dice_loss_function
from model import create_discriminator, create_unet_model
from utils.adversarial import AdversarialStep

SEGMENTATION_LOSS = get_combined_cross_entropy_and_dice_loss_function(4, 4)


def batch(seed=0):
    """Images whose left half is bright, and masks that say SRF there."""
    rng = np.random.default_rng(seed)
    images = rng.normal(scale=0.3, size=(4, 104, 104, 3)).astype(np.float32)
    images[:, :, :52] += 1
    labels = np.zeros((4, 104, 104), np.uint8)
    labels[:, :, :52] = 2
    return images, np.eye(4, dtype=np.uint8)[labels]


def no_segmentation_loss(y_true, y_pred):
    return keras.ops.zeros(())


def create_step(adversarial_weight, segmentation_loss):
    unet = create_unet_model((104, 104, 3), base_filters=2, seed=1, regularizer_weight=0.0)
    discriminator = create_discriminator((12, 12, 3), base_filters=4, seed=2)
    optimizers = keras.optimizers.Adam(3e-3, beta_1=0.5), keras.optimizers.Adam(3e-3, beta_1=0.5)
    return AdversarialStep(unet, discriminator, *optimizers, [segmentation_loss], adversarial_weight)


def arrays(variables):
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


class Restored:
    """A compiled step that starts every test from the same state; compiling takes seconds."""

    def __init__(self, step):
        self.step, self.state = step, arrays(step.variables)

    def __call__(self, unet_learns=True, discriminator_learns=True):
        for variable, value in zip(self.step.variables, self.state, strict=True):
            variable.assign(value)
        self.step.generator_optimizer.learning_rate = 3e-3 * unet_learns
        self.step.discriminator_optimizer.learning_rate = 3e-3 * discriminator_learns
        return self.step


@pytest.fixture(scope="module")
def adversarial_alone():
    return Restored(create_step(1.0, no_segmentation_loss))


@pytest.fixture(scope="module")
def segmentation_alone():
    return Restored(create_step(0.0, SEGMENTATION_LOSS))


def changed(before, after):
    return [not np.array_equal(one, other) for one, other in zip(before, after, strict=True)]


def test_the_adversarial_term_alone_moves_the_unet(adversarial_alone):
    """Known mistake: no gradient through the argmax, so that the term does nothing."""
    step = adversarial_alone()
    before = arrays(step.generator.trainable_variables)
    step(*batch())
    assert sum(changed(before, arrays(step.generator.trainable_variables))) > len(before) / 2


def test_the_generators_update_leaves_the_discriminator_alone(adversarial_alone):
    step = adversarial_alone(discriminator_learns=False)
    before = arrays(step.discriminator.variables)
    step(*batch())
    assert not any(changed(before, arrays(step.discriminator.variables)))


def test_the_discriminators_update_leaves_the_unet_alone(adversarial_alone):
    step = adversarial_alone(unet_learns=False)
    generator = arrays(step.generator.trainable_variables)
    discriminator = arrays(step.discriminator.trainable_variables)
    step(*batch())
    assert not any(changed(generator, arrays(step.generator.trainable_variables)))
    assert all(changed(discriminator, arrays(step.discriminator.trainable_variables)))


def test_without_adversarial_weight_the_discriminator_does_not_matter(segmentation_alone):
    trained = []
    for discriminator_learns in (True, False):
        step = segmentation_alone(discriminator_learns=discriminator_learns)
        for seed in (0, 1):
            step(*batch(seed))
        trained.append(step.generator.get_weights())
    assert any(changed(trained[0], segmentation_alone().generator.get_weights()))
    assert not any(changed(*trained))


def test_the_discriminator_learns_to_separate_fixed_masks(adversarial_alone):
    step = adversarial_alone(unet_learns=False)
    losses = [step(*batch(seed))["d_loss"] for seed in range(30)]
    assert losses[0] == pytest.approx(np.log(2), abs=0.1)
    assert losses[-1] < 0.4


def test_the_unet_learns_to_fool_a_fixed_discriminator(adversarial_alone):
    """Known mistake: the generator rewarded for helping the discriminator."""
    step = adversarial_alone(unet_learns=False)
    for seed in range(30):
        step(*batch(seed))
    step.generator_optimizer.learning_rate = 3e-3
    step.discriminator_optimizer.learning_rate = 0.0
    rejection = [step(*batch(seed))["adversarial_loss"] for seed in range(15)]
    assert np.mean(rejection[-3:]) < 0.8 * np.mean(rejection[:3])


def test_all_state_is_among_the_variables(segmentation_alone):
    """What is saved and restored continues exactly: weights, both optimizers' slots, dropout's random state."""
    step = segmentation_alone()
    step(*batch(0))
    saved = arrays(step.variables)
    step(*batch(1))
    expected = arrays(step.variables)
    for variable, value in zip(step.variables, saved, strict=True):
        variable.assign(value)
    step(*batch(1))
    for one, other in zip(arrays(step.variables), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)


@pytest.mark.slow
def test_the_same_on_the_other_backend():
    if os.environ.get("KERAS_BACKEND") == "jax":
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", __file__]
    result = subprocess.run(
        command,
        env={**os.environ, "KERAS_BACKEND": "jax"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout
