"""One step of adversarial fine-tuning, compiled, on TensorFlow or JAX."""

import keras
import numpy as np
from keras import ops

from loss_functions import (
    discriminator_loss,
    generator_loss,
    generator_to_discriminator_gradient,
    get_dice_loss,
    straight_through_one_hot,
)
from utils.base import crop_and_cast
from utils.networks import as_list
from utils.training.backends import create_backend

MEANS = (
    *("loss", "adversarial_loss", "adversarial_weight", "adversarial_share", "foreground_dice"),
    *("d_loss", "d_accuracy_real", "d_accuracy_generated", "d_updates"),
)
_ACCURACY_MEMORY = 0.95  # share of the running accuracy that a step keeps: a mean over about 20 steps


def discriminator_policy(dtype_policy):
    """The discriminator's dtype policy for a U-Net with `dtype_policy`. It is never float16.

    For a generated mask with a logit below about -10, the gradient of the discriminator's loss at the mask is smaller
    than float16's smallest number. The generator's gradient is a multiple of it and would be lost.
    """
    return "float32" if dtype_policy == "mixed_float16" else dtype_policy


class AdversarialStep:
    """Alternating updates of a segmentation network (the generator) and a discriminator, on one batch.

    Each network's forward and backward pass is computed once and serves both updates. The order is that of CycleGAN's
    code (Zhu et al., ICCV 2017):

    - The generator minimises its segmentation losses, its weight penalties, and `adversarial_weight` times the
      adversarial loss, which is low when the discriminator calls its masks real. The gradient of that loss passes
      straight through the argmax to the softmax.
    - The discriminator learns to tell the reader's one-hot masks from the generated ones, as they were before the
      generator's update.
    - Each network changes only by its own update.
    - At a generated mask, the two networks' gradients differ only by a factor.

    These settings keep the two in balance:

    - `real_label` is the discriminator's target for a reader's mask. Below 1 it keeps the discriminator less confident.
    - For the first `warm_up_steps` only the discriminator learns. The generator makes its masks as in training, with
      dropout, but its weights and batch statistics do not change.
    - After that the weight of the adversarial loss rises linearly and reaches `adversarial_weight` after `ramp_steps`.
    - `adversarial_limit` caps the norm of the adversarial gradient at the U-Net's logits, over the batch. It is a
      multiple of the norm of the segmentation losses' gradient; None means no cap. The more confident the
      discriminator, the larger its gradient. Without a cap it overwhelms the segmentation losses, even with a small
      weight.
    - The adversarial loss counts only while the discriminator's accuracy is at least `d_ready_accuracy`; 0 means
      always.
    - The discriminator learns only while its accuracy is at most `d_ahead_accuracy`; 1 means always. Accuracies are
      running means over about 20 steps.

    The optimizers are built here, also a `keras.optimizers.LossScaleOptimizer` (for "mixed_float16"). The
    `discriminator` is one of `model.create_discriminator` with a `discriminator_policy`. Raises `ValueError` if it is
    in float16.

    Call the step with (images, targets): float32 (B, H, W, 3), and the one-hot mask (B, H, W, 4) or the list of all
    four targets. `variables` hold everything that a step changes and that the next step depends on.
    """

    def __init__(
        self,
        generator,
        discriminator,
        generator_optimizer,
        discriminator_optimizer,
        segmentation_losses,
        adversarial_weight,
        *,
        real_label=1.0,
        warm_up_steps=0,
        ramp_steps=0,
        adversarial_limit=None,
        d_ready_accuracy=0.0,
        d_ahead_accuracy=1.0,
    ):
        if any(layer.compute_dtype == "float16" for layer in discriminator.layers):
            raise ValueError("the discriminator is in float16, which loses gradients; see `discriminator_policy`")
        self.generator, self.discriminator = generator, discriminator
        self.generator_optimizer, self.discriminator_optimizer = generator_optimizer, discriminator_optimizer
        self.segmentation_losses = segmentation_losses
        self.adversarial_weight, self.real_label = adversarial_weight, real_label
        self.warm_up_steps, self.ramp_steps = warm_up_steps, ramp_steps
        self.adversarial_limit = adversarial_limit
        self.d_ready_accuracy, self.d_ahead_accuracy = d_ready_accuracy, d_ahead_accuracy
        generator_optimizer.build(generator.trainable_variables)
        discriminator_optimizer.build(discriminator.trainable_variables)
        # In two parts, because both masks of a patch share the discriminator's features of the image.
        image_features, _ = discriminator.get_layer("joined").input
        image, mask = discriminator.inputs
        self._image_features = keras.Model(image, image_features)
        self._logits = keras.Model([image_features, mask], discriminator.output)

        self.taken_steps = keras.Variable(0, dtype="int32", trainable=False, name="taken_steps")
        self.d_accuracy = keras.Variable(0.5, dtype="float32", trainable=False, name="running_accuracy")
        self._sums = keras.Variable(np.zeros(len(MEANS)), dtype="float32", trainable=False, name="sums")
        self._summed_steps = 0
        self._backend = create_backend([*self.variables, self._sums])
        self._compiled_step = self._backend.compiled(self._step, generator.jit_compile)
        self._compiled_verdicts = self._backend.compiled(self._verdicts, generator.jit_compile)
        self._compiled_probability = self._backend.compiled(self._probability, generator.jit_compile)

    @property
    def variables(self):
        """Weights, random states, both optimizers' variables, the steps taken and the running accuracy."""
        networks = [*self.generator.variables, *self.discriminator.variables]
        optimizers = [*self.generator_optimizer.variables, *self.discriminator_optimizer.variables]
        return [*networks, *optimizers, self.taken_steps, self.d_accuracy]

    def __call__(self, images, targets):
        targets = list(targets) if isinstance(targets, list | tuple) else [targets]
        self._compiled_step(images, targets)
        self._summed_steps += 1

    # ---- Measures --------------------------------------------------------------------------------------------------
    def begin_means(self):
        """Start the `means` anew from the next step."""
        self._sums.assign(np.zeros(len(MEANS)))
        self._summed_steps = 0

    def means(self):
        """Means over the steps since `begin_means`, a dictionary of floats. Waits for the last step.

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
        sums = ops.convert_to_numpy(self._sums.value)
        return {name: float(total) / self._summed_steps for name, total in zip(MEANS, sums, strict=True)}

    def held_out_accuracy(self, batches):
        """``d_held_out_real`` and ``d_held_out_generated``: the discriminator's accuracy, without dropout.

        `batches` yields (images, targets) as for a step. Neither network may have been trained on these patches.
        """
        right, n_patches = np.zeros(2), 0
        for images, targets in batches:
            mask = targets[0] if isinstance(targets, list | tuple) else targets
            right += ops.convert_to_numpy(self._compiled_verdicts(images, mask))
            n_patches += len(images)
        return dict(zip(("d_held_out_real", "d_held_out_generated"), (right / n_patches).tolist(), strict=True))

    def verdict(self, images, masks):
        """The discriminator's probabilities, float32 (B,), that one-hot `masks` (B, h, w, 4) are a reader's.

        `images` are float32 (B, H, W, 3) as for a step. They are centre-cropped to the masks' size.
        """
        return ops.convert_to_numpy(self._compiled_probability(images, masks))

    def _verdicts(self, images, mask):
        """How many of a batch's masks the discriminator judges right: of the reader's, of the generated."""
        _, generated = self._generate(images, training=False)
        image, real = self._cropped(images, mask, generated)
        right_on_real, right_on_generated = _told_rightly(*self._logits_on_both(image, real, generated))
        return ops.stack([ops.sum(right_on_real), ops.sum(right_on_generated)])

    def _probability(self, images, masks):
        image, masks = crop_and_cast(images, masks)
        return ops.sigmoid(self.discriminator([image, masks], training=False)[:, 0])

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
            outputs, generated = self._generate(images, training=True)
            return (outputs, generated, sum(generator.losses, ops.zeros(()))), {}

        (outputs, generated, penalty), _, pull = backend.pullback(forward, generator.trainable_variables)

        # 2. Both losses, and back to the discriminator's weights, the generated masks and the outputs.
        def losses(generated, *outputs):
            return self._losses(images, targets, generated, outputs)

        total, measures, pull_losses = backend.pullback(losses, discriminator.trainable_variables, generated, *outputs)
        d_gradients, (at_generated, *at_outputs) = pull_losses(ops.ones_like(total))
        measures["loss"] = measures["segmentation_loss"] + penalty

        # 3. The adversarial gradient at the generated masks, weighted, scaled as the generator's losses, and capped.
        scale = self.generator_optimizer.scale_loss(ops.ones(()))
        factor = measures["adversarial_weight"] * generator_to_discriminator_gradient(measures["logits"])
        factor *= scale / self.discriminator_optimizer.scale_loss(ops.ones(()))
        at_generated *= ops.reshape(factor, (-1, 1, 1, 1))
        lengths = [_length_at_logits(gradient, outputs[0]) for gradient in (at_outputs[0], at_generated)]
        share = lengths[1] / ops.maximum(lengths[0], 1e-30)
        if self.adversarial_limit is not None:
            at_generated *= ops.minimum(1.0, self.adversarial_limit / ops.maximum(share, 1e-30))
        measures["adversarial_share"] = share

        # 4. Which network learns: the generator after the warm-up, the discriminator unless it is far ahead.
        g_learns = self.taken_steps >= self.warm_up_steps if self.warm_up_steps else True
        accuracy = (measures["d_accuracy_real"] + measures["d_accuracy_generated"]) / 2
        self.d_accuracy.assign(_ACCURACY_MEMORY * self.d_accuracy + (1 - _ACCURACY_MEMORY) * accuracy)
        d_learns = self.d_accuracy <= self.d_ahead_accuracy if self.d_ahead_accuracy < 1 else True

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
        self.taken_steps.assign_add(1)
        measures["d_updates"] = d_learns
        self._sums.assign_add(ops.stack([ops.cast(measures[name], "float32") for name in MEANS]))

    def _losses(self, images, targets, generated, outputs):
        """(sum of both networks' losses, each scaled for its optimizer; measures of the batch)."""
        image, real = self._cropped(images, targets[0], generated)
        on_real, on_generated = self._logits_on_both(image, real, generated)
        terms = zip(self.segmentation_losses, targets, outputs, strict=True)
        segmentation_loss = sum(loss(target, output) for loss, target, output in terms)
        right_on_real, right_on_generated = _told_rightly(on_real, on_generated)
        measures = {
            "segmentation_loss": segmentation_loss,
            "adversarial_loss": generator_loss(on_generated),
            "adversarial_weight": self._weight(),
            "foreground_dice": 1 - get_dice_loss(targets[0], outputs[0]),
            "d_loss": discriminator_loss(on_real, on_generated, self.real_label),
            "d_accuracy_real": ops.mean(right_on_real),
            "d_accuracy_generated": ops.mean(right_on_generated),
            "logits": on_generated,
        }
        minimised = self.generator_optimizer.scale_loss(segmentation_loss)
        return minimised + self.discriminator_optimizer.scale_loss(measures["d_loss"]), measures

    def _weight(self):
        """Weight of the adversarial loss in this step: 0 in the warm-up, then rising linearly to the full weight.

        It is 0 while the discriminator is not ready.
        """
        ramped_steps = ops.cast(self.taken_steps - self.warm_up_steps + 1, "float32")
        weight = self.adversarial_weight * ops.clip(ramped_steps / (self.ramp_steps + 1), 0.0, 1.0)
        return ops.where(self.d_accuracy >= self.d_ready_accuracy, weight, 0.0)

    def _generate(self, images, training):
        """The generator's outputs, a list, and its masks, one-hot float32."""
        outputs = self.generator(images, training=training)
        outputs = as_list(outputs)
        return outputs, straight_through_one_hot(ops.cast(outputs[0], "float32"))

    def _logits_on_both(self, image, real, generated):
        """The discriminator's logits (B, 1) on real and on generated masks."""
        features = self._image_features(image)
        return [self._logits([features, mask]) for mask in (real, generated)]

    @staticmethod
    def _cropped(images, mask, generated):
        """The middles of images and readers' masks of the size of `generated`, float32."""
        return [crop_and_cast(whole, generated)[0] for whole in (images, mask)]


def _length_at_logits(gradient, probabilities):
    """Norm (float32) at the logits of a `gradient` that is given at the softmax `probabilities` (B, H, W, classes)."""
    gradient, probabilities = ops.cast(gradient, "float32"), ops.cast(probabilities, "float32")
    mean = ops.sum(probabilities * gradient, axis=-1, keepdims=True)
    return ops.sqrt(ops.sum(ops.square(probabilities * (gradient - mean))))


def _told_rightly(logits_on_real, logits_on_generated):
    """1 for each mask that the discriminator judges right, else 0: two float32 (B, 1)."""
    return [ops.cast(right, "float32") for right in (logits_on_real > 0, logits_on_generated <= 0)]
