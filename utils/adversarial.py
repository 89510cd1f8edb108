"""One step of adversarial fine-tuning, compiled, on TensorFlow or JAX."""

import keras
import numpy as np
from keras import ops

from loss_functions import discriminator_loss, generator_loss, straight_through_one_hot
from utils.base import crop_and_cast


class AdversarialStep:
    """Alternating updates of a discriminator and a segmentation network (the generator) on one batch.

    The generator's forward pass is computed once. The discriminator then learns to tell the reader's one-hot masks from
    the generated ones, whose gradient stops there; after its update the generator minimises its segmentation losses,
    its weight penalties and `adversarial_weight` times the loss of the updated discriminator calling its masks real.
    That gradient passes straight through the argmax to the softmax. Each network changes only by its own update.
    `real_label` smooths what the discriminator is to say of a reader's mask.

    Calling the step with (images, targets), float32 (B, H, W, 3) and the one-hot mask (B, H, W, 4) or the list of all
    four targets, returns a dictionary of floats: ``loss`` (segmentation and weight penalties), ``adversarial_loss``,
    ``d_loss``, and ``d_accuracy_real`` and ``d_accuracy_generated``, the shares of masks that the discriminator told
    rightly before its update.
    """

    def __init__(
        self,
        generator,
        discriminator,
        generator_optimizer,
        discriminator_optimizer,
        segmentation_losses,
        adversarial_weight,
        real_label=1.0,
    ):
        self.generator, self.discriminator = generator, discriminator
        self.generator_optimizer, self.discriminator_optimizer = generator_optimizer, discriminator_optimizer
        self.segmentation_losses = segmentation_losses
        self.adversarial_weight, self.real_label = adversarial_weight, real_label
        generator_optimizer.build(generator.trainable_variables)
        discriminator_optimizer.build(discriminator.trainable_variables)
        backend = keras.backend.backend()
        if backend == "tensorflow":
            import tensorflow

            self._step = tensorflow.function(self._tensorflow_step, reduce_retracing=True)
        elif backend == "jax":
            import jax

            self._compiled_jax_step = jax.jit(self._jax_step, donate_argnums=0)
            self._step = self._stateful_jax_step
        else:
            raise ValueError(f"adversarial training runs on tensorflow or jax, not on {backend}")

    @property
    def variables(self):
        """Everything that a step changes: weights, random states and both optimizers' variables."""
        return [variable for group in self._variable_groups() for variable in group]

    def __call__(self, images, targets):
        targets = list(targets) if isinstance(targets, list | tuple) else [targets]
        return {name: float(np.asarray(value)) for name, value in self._step(images, targets).items()}

    # ---- What is computed, whatever the backend --------------------------------------------------------------------
    def _generator_terms(self, outputs, targets, penalties, logits_on_generated):
        """(what the generator minimises, segmentation losses with penalties, adversarial loss)."""
        outputs = outputs if isinstance(outputs, list) else [outputs]
        losses = [
            loss(target, output)
            for loss, target, output in zip(self.segmentation_losses, targets, outputs, strict=True)
        ]
        segmentation = sum([*losses, *penalties])
        adversarial = generator_loss(logits_on_generated)
        return segmentation + self.adversarial_weight * adversarial, segmentation, adversarial

    @staticmethod
    def _discriminator_inputs(images, mask, outputs):
        """(image crop, reader's mask, generated mask), the masks one-hot float32 of the output's size."""
        probabilities = outputs[0] if isinstance(outputs, list) else outputs
        real, probabilities = crop_and_cast(mask, probabilities)
        image, _ = crop_and_cast(images, probabilities)
        return image, real, straight_through_one_hot(probabilities)

    @staticmethod
    def _metrics(segmentation, adversarial, d_loss, logits_on_real, logits_on_generated):
        return {
            "loss": segmentation,
            "adversarial_loss": adversarial,
            "d_loss": d_loss,
            "d_accuracy_real": ops.mean(ops.cast(logits_on_real > 0, "float32")),
            "d_accuracy_generated": ops.mean(ops.cast(logits_on_generated <= 0, "float32")),
        }

    # ---- TensorFlow ------------------------------------------------------------------------------------------------
    def _tensorflow_step(self, images, targets):
        import tensorflow

        with tensorflow.GradientTape() as generator_tape:
            outputs = self.generator(images, training=True)
            image, real, generated = self._discriminator_inputs(images, targets[0], outputs)
            with generator_tape.stop_recording(), tensorflow.GradientTape() as discriminator_tape:
                logits_on_real = self.discriminator([image, real], training=True)
                logits_on_generated = self.discriminator([image, ops.stop_gradient(generated)], training=True)
                d_loss = discriminator_loss(logits_on_real, logits_on_generated, self.real_label)
            weights = self.discriminator.trainable_variables
            self.discriminator_optimizer.apply(discriminator_tape.gradient(d_loss, weights), weights)
            total, segmentation, adversarial = self._generator_terms(
                outputs, targets, self.generator.losses, self.discriminator([image, generated], training=True)
            )
        weights = self.generator.trainable_variables
        self.generator_optimizer.apply(generator_tape.gradient(total, weights), weights)
        return self._metrics(segmentation, adversarial, d_loss, logits_on_real, logits_on_generated)

    # ---- JAX -------------------------------------------------------------------------------------------------------
    def _variable_groups(self):
        return (
            self.generator.trainable_variables,
            self.generator.non_trainable_variables,
            self.generator_optimizer.variables,
            self.discriminator.trainable_variables,
            self.discriminator.non_trainable_variables,
            self.discriminator_optimizer.variables,
        )

    def _stateful_jax_step(self, images, targets):
        groups = self._variable_groups()
        state = [[variable.value for variable in group] for group in groups]
        state, metrics = self._compiled_jax_step(state, images, targets)
        for group, values in zip(groups, state, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)
        return metrics

    def _jax_step(self, state, images, targets):
        import jax

        g_weights, g_others, g_slots, d_weights, d_others, d_slots = state

        def generate(weights):
            outputs, others, penalties = self.generator.stateless_call(
                weights, g_others, images, training=True, return_losses=True
            )
            return (outputs, penalties), others

        def discriminate(weights, image, mask):
            return self.discriminator.stateless_call(weights, d_others, [image, mask], training=True)[0]

        def d_terms(weights, image, real, generated):
            logits_on_real, logits_on_generated = (discriminate(weights, image, mask) for mask in (real, generated))
            return discriminator_loss(logits_on_real, logits_on_generated, self.real_label), (
                logits_on_real,
                logits_on_generated,
            )

        def g_terms(outputs, penalties):
            image, _, generated = self._discriminator_inputs(images, targets[0], outputs)
            total, *terms = self._generator_terms(
                outputs, targets, penalties, discriminate(d_weights, image, generated)
            )
            return total, terms

        (outputs, penalties), back_to_weights, g_others = jax.vjp(generate, g_weights, has_aux=True)
        inputs = self._discriminator_inputs(images, targets[0], outputs)
        (d_loss, logits), gradients = jax.value_and_grad(d_terms, has_aux=True)(d_weights, *inputs)
        d_weights, d_slots = self.discriminator_optimizer.stateless_apply(d_slots, gradients, d_weights)
        cotangents, (segmentation, adversarial) = jax.grad(g_terms, argnums=(0, 1), has_aux=True)(outputs, penalties)
        (gradients,) = back_to_weights(cotangents)
        g_weights, g_slots = self.generator_optimizer.stateless_apply(g_slots, gradients, g_weights)
        metrics = self._metrics(segmentation, adversarial, d_loss, *logits)
        return [g_weights, g_others, g_slots, d_weights, d_others, d_slots], metrics
