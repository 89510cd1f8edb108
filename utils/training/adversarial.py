"""One step of adversarial fine-tuning, compiled, on TensorFlow or JAX."""

import keras
import numpy as np
from keras import ops

from loss_functions import (
    discriminator_loss,
    generator_loss,
    generator_to_discriminator_gradient,
    get_dice_loss,
)
from utils.networks.networks import as_list
from utils.training.measured_step import MeasuredStep
from utils.training.verdicts import Verdicts, masks_of_both, told_rightly

_ACCURACY_MEMORY = 0.95  # share of the running accuracy that a step keeps: a mean over about 20 steps


def discriminator_policy(dtype_policy):
    """The discriminator's dtype policy for a U-Net with `dtype_policy`. It is never float16.

    For a generated mask with a logit below about -10, the gradient of the discriminator's loss at the mask is smaller
    than float16's smallest number. The generator's gradient is a multiple of it and would be lost.
    """
    return "float32" if dtype_policy == "mixed_float16" else dtype_policy


class AdversarialStep(MeasuredStep):
    """Alternating updates of a segmentation network (the generator) and a discriminator, on one batch.

    Each network's forward and backward pass is computed once and serves both updates. The order is that of CycleGAN's
    code (Zhu et al., ICCV 2017):

    - The generator minimises its segmentation losses, its weight penalties, and `adversarial_weight` times the
      adversarial loss, which is low when the discriminator calls its masks real. The gradient of that loss passes
      straight through the argmax to the softmax.
    - The discriminator learns to tell the reader's one-hot masks from the generated ones, as they were before the
      generator's update.
    - Each network changes only by its own update.
    - The two networks' gradients at a generated mask differ only by a factor.

    `rules`, `AdversarialRules`, keep the two in balance:

    - ``real_label`` is the discriminator's target for a reader's mask. Below 1 it keeps the discriminator less
      confident.
    - For the first ``warm_up_steps`` only the discriminator learns. The generator makes its masks as in training, with
      dropout, but its weights and batch statistics do not change.
    - After that the weight of the adversarial loss rises linearly and reaches ``weight`` after ``ramp_steps``.
    - ``limit`` caps the norm of the adversarial gradient at the U-Net's logits, over the batch. It is a multiple of the
      norm of the other losses' gradient; None means no cap. The more confident the discriminator, the larger its
      gradient. Without a cap it overwhelms the segmentation losses, even with a small weight.
    - What the discriminator says counts only while its accuracy is at least ``ready_accuracy``; 0 means always.
    - The discriminator learns only while its accuracy is at most ``ahead_accuracy``; 1 means always. Accuracies are
      running means over about 20 steps.

    The optimizers are built here, also a `keras.optimizers.LossScaleOptimizer` (for "mixed_float16"). The
    `discriminator` is one of `model.create_discriminator` with a `discriminator_policy`. Raises `ValueError` if it is
    in float16.

    Call the step with (images, targets): float32 (B, H, W, 3), and a list of the targets, the mask (B, H, W, 4) as for
    the losses first. Its measures, `means`, are

    | name | content |
    |---|---|
    | ``loss`` | segmentation losses and weight penalties |
    | ``adversarial_loss`` | -log of the discriminator's probability that generated masks are real |
    | ``adversarial_weight`` | its weight, 0 in the warm-up |
    | ``adversarial_share`` | norm of its gradient divided by the segmentation losses', before the cap |
    | ``foreground_dice`` | Dice of the probabilities of any fluid |
    | ``d_loss`` | the discriminator's loss |
    | ``d_accuracy_real``, ``d_accuracy_generated`` | its accuracy before its update |
    | ``d_updates`` | share of steps in which it learned |
    """

    names = (
        *("loss", "adversarial_loss", "adversarial_weight", "adversarial_share", "foreground_dice"),
        *("d_loss", "d_accuracy_real", "d_accuracy_generated", "d_updates"),
    )

    def __init__(
        self, generator, discriminator, generator_optimizer, discriminator_optimizer, segmentation_losses, rules
    ):
        super().__init__()
        if any(layer.compute_dtype == "float16" for layer in discriminator.layers):
            raise ValueError("the discriminator is in float16, which loses gradients; see `discriminator_policy`")
        self.generator, self.discriminator = generator, discriminator
        self.generator_optimizer, self.discriminator_optimizer = generator_optimizer, discriminator_optimizer
        self.segmentation_losses, self.rules = segmentation_losses, rules
        generator_optimizer.build(generator.trainable_variables)
        discriminator_optimizer.build(discriminator.trainable_variables)
        self._verdicts = Verdicts(discriminator)
        self.d_accuracy = keras.Variable(0.5, dtype="float32", trainable=False, name="running_accuracy")
        self.compile(self._step, generator.jit_compile)
        self._compiled_n_right = self._backend.compiled(self._n_right, generator.jit_compile)
        self._compiled_probabilities = self._backend.compiled(self._verdicts.probabilities, generator.jit_compile)

    @property
    def variables(self):
        """Weights, random states, both optimizers' variables, the steps taken and the running accuracy."""
        networks = [*self.generator.variables, *self.discriminator.variables]
        optimizers = [*self.generator_optimizer.variables, *self.discriminator_optimizer.variables]
        return [*networks, *optimizers, self.taken_steps, self.d_accuracy]

    def __call__(self, images, targets):
        super().__call__(images, as_list(targets))

    # ---- Measures --------------------------------------------------------------------------------------------------
    def held_out_accuracy(self, batches):
        """``d_held_out_real`` and ``d_held_out_generated``: the discriminator's accuracy, without dropout.

        `batches` yields (images, targets) as for a step. Neither network may have been trained on these patches.
        """
        right, n_patches = np.zeros(2), 0
        for images, targets in batches:
            mask = targets[0] if isinstance(targets, list | tuple) else targets
            right += ops.convert_to_numpy(self._compiled_n_right(images, mask))
            n_patches += len(images)
        return dict(zip(("d_held_out_real", "d_held_out_generated"), (right / n_patches).tolist(), strict=True))

    def verdict(self, images, masks):
        """The discriminator's probabilities, float32 (B,), that one-hot `masks` (B, h, w, 4) are a reader's.

        `images` are float32 (B, H, W, 3) as for a step. They are centre-cropped to the masks' size.
        """
        return ops.convert_to_numpy(self._compiled_probabilities(images, masks))

    def _n_right(self, images, mask):
        """How many of a batch's masks the discriminator judges right: of the reader's, of the generated."""
        readers, generated = masks_of_both(mask, self._outputs(images, training=False)[0])
        return ops.stack(
            [ops.sum(right) for right in told_rightly(*self._verdicts.on_both(images, readers, generated))]
        )

    # ---- Learning --------------------------------------------------------------------------------------------------
    def _step(self, images, targets):
        """Both updates on one batch.

        One backward pass through the discriminator's loss serves both. Its gradient at the discriminator's weights
        trains the discriminator. Its gradient at a generated mask, times a factor that the logit gives
        (`generator_to_discriminator_gradient`), is that of the generator's adversarial loss: the path from the logit
        back to the mask is the same.
        """
        backend, generator, discriminator = self._backend, self.generator, self.discriminator

        # 1. Forward: the generator's outputs and masks, and its weight penalties. Its old statistics are kept.
        statistics = generator.non_trainable_weights
        before = [ops.copy(variable) for variable in statistics]

        def forward():
            outputs = self._outputs(images, training=True)
            _, generated = masks_of_both(targets[0], outputs[0])
            return (outputs, generated, sum(generator.losses, ops.zeros(()))), {}

        (outputs, generated, penalty), _, pull = backend.pullback(forward, generator.trainable_variables)

        # 2. Both losses, and back to the discriminator's weights, the generated masks and the outputs.
        def losses(generated, *outputs):
            return self._losses(images, targets, generated, outputs)

        _, measures, pull_losses = backend.pullback(losses, discriminator.trainable_variables, generated, *outputs)
        d_gradients, (at_generated, *at_outputs) = pull_losses(ops.ones(()))
        measures["loss"] = measures["segmentation_loss"] + penalty

        # 3. The adversarial gradient at the generated masks, weighted, scaled as the generator's losses, and capped.
        scale = self.generator_optimizer.scale_loss(ops.ones(()))
        factor = measures["adversarial_weight"] * scale
        factor *= measures["generator_factors"] / self.discriminator_optimizer.scale_loss(ops.ones(()))
        at_generated *= ops.reshape(factor, (-1, 1, 1, 1))
        lengths = [_length_at_logits(gradient, outputs[0]) for gradient in (at_outputs[0], at_generated)]
        share = lengths[1] / ops.maximum(lengths[0], 1e-30)
        if self.rules.limit is not None:
            at_generated *= ops.minimum(1.0, self.rules.limit / ops.maximum(share, 1e-30))
        measures["adversarial_share"] = share

        # 4. Which network learns: the generator after the warm-up, the discriminator unless it is far ahead.
        g_learns = self.taken_steps >= self.rules.warm_up_steps if self.rules.warm_up_steps else True
        accuracy = (measures["d_accuracy_real"] + measures["d_accuracy_generated"]) / 2
        self.d_accuracy.assign(_ACCURACY_MEMORY * self.d_accuracy + (1 - _ACCURACY_MEMORY) * accuracy)
        d_learns = self.d_accuracy <= self.rules.ahead_accuracy if self.rules.ahead_accuracy < 1 else True

        # 5. The updates. If the generator does not learn, its statistics are restored.
        def g_gradients():
            return pull((at_outputs, at_generated, scale))[0]

        backend.update_where(g_learns, self.generator_optimizer, g_gradients, generator.trainable_variables)
        backend.update_where(
            d_learns, self.discriminator_optimizer, lambda: d_gradients, discriminator.trainable_variables
        )
        for variable, value in zip(statistics, before, strict=True):
            variable.assign(ops.where(g_learns, variable.value, value))

        # 6. Measures for the log.
        measures["d_updates"] = d_learns
        self.count(measures)

    def _losses(self, images, targets, generated, outputs):
        """Both networks' losses on a batch: (their sum, each scaled for its optimizer; measures)."""
        readers, _ = masks_of_both(targets[0], outputs[0])
        on_real, on_generated = self._verdicts.on_both(images, readers, generated)
        terms = zip(self.segmentation_losses, targets, outputs, strict=True)
        segmentation_loss = sum(loss(target, output) for loss, target, output in terms)
        right_on_real, right_on_generated = told_rightly(on_real, on_generated)
        measures = {
            "segmentation_loss": segmentation_loss,
            "adversarial_loss": generator_loss(on_generated),
            "adversarial_weight": self._weight(),
            "foreground_dice": 1 - get_dice_loss(targets[0], outputs[0]),
            "d_loss": discriminator_loss(on_real, on_generated, self.rules.real_label),
            "d_accuracy_real": ops.mean(right_on_real),
            "d_accuracy_generated": ops.mean(right_on_generated),
            "generator_factors": generator_to_discriminator_gradient(on_generated),
        }
        total = self.generator_optimizer.scale_loss(segmentation_loss)
        return total + self.discriminator_optimizer.scale_loss(measures["d_loss"]), measures

    def _weight(self):
        """Weight of the adversarial loss in this step; 0 while the discriminator is not ready."""
        weight = self.ramped(self.rules.weight, self.rules.ramp_steps, self.rules.warm_up_steps)
        return ops.where(self.d_accuracy >= self.rules.ready_accuracy, weight, 0.0)

    def _outputs(self, images, training):
        """The generator's outputs, a list."""
        return as_list(self.generator(images, training=training))


def _length_at_logits(gradient, probabilities):
    """Norm (float32) at the logits of a `gradient` that is given at the softmax `probabilities` (B, H, W, classes)."""
    gradient, probabilities = ops.cast(gradient, "float32"), ops.cast(probabilities, "float32")
    mean = ops.sum(probabilities * gradient, axis=-1, keepdims=True)
    return ops.sqrt(ops.sum(ops.square(probabilities * (gradient - mean))))
