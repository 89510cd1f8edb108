"""Self-training with a teacher: the average of a U-Net's weights labels what its next steps learn from."""

import keras
from keras import ops

from loss_functions import self_training_loss
from utils.base import center_crop, crop_and_cast
from utils.labels import FLUIDS
from utils.networks.networks import as_list
from utils.training.measured_step import MeasuredStep
from utils.training.optimizer import average_into

CONFIDENCE = 0.9  # a pixel is learned from where the teacher gives its likeliest class more
_PASTED_AREA = 0.5  # of a patch


class TeacherStep(MeasuredStep):
    """One update of a U-Net: segmentation losses of patches with outlines, the `teacher`'s labels of others without.

    The cross-entropy of the pixels of which the teacher is certain (`confidence`) is minimised beside the segmentation
    losses. Its weight rises linearly and reaches `weight` after `ramp_steps`. The optimizer, which keeps the average
    of the weights (`OptimizerSettings.ema_momentum`), is built here.

    Call the step with (images, targets, unlabelled images): float32 (B, H, W, 3), and targets as for `AdversarialStep`.
    Its measures are ``loss``, of the segmentation losses and weight penalties, ``self_training_loss``, and
    ``self_training_share``, the share of certain pixels.
    """

    names = ("loss", "self_training_loss", "self_training_share")

    def __init__(self, network, optimizer, segmentation_losses, teacher, weight, ramp_steps, confidence=CONFIDENCE):
        super().__init__()
        self.generator, self.generator_optimizer, self.teacher = network, optimizer, teacher
        self._losses, self._confidence = segmentation_losses, confidence
        self._weight, self._ramp_steps = weight, ramp_steps
        optimizer.build(network.trainable_variables)
        self.compile(self._step, network.jit_compile, teacher.network.variables)  # every step gives the teacher others

    @property
    def variables(self):
        """Weights, random states, the optimizer's variables and the steps taken. The teacher's weights follow."""
        return [
            *(*self.generator.variables, *self.generator_optimizer.variables),
            *(self.teacher.places.state, self.taken_steps),
        ]

    def __call__(self, images, targets, unlabelled):
        super().__call__(images, as_list(targets), unlabelled)

    def _step(self, images, targets, unlabelled):
        network, optimizer = self.generator, self.generator_optimizer
        unlabelled, labels, is_certain = self.teacher.teach(unlabelled, network, optimizer, self._confidence)
        n_labelled, everything = ops.shape(targets[0])[0], ops.concatenate([images, unlabelled])

        def forward():
            outputs = as_list(network(everything, training=True))
            terms = zip(self._losses, targets, outputs, strict=True)
            loss = sum(of_output(target, output[:n_labelled]) for of_output, target, output in terms)
            loss += sum(network.losses, ops.zeros(()))
            of_teacher = self_training_loss(labels, is_certain, ops.cast(outputs[0][n_labelled:], "float32"))
            minimised = loss + self.ramped(self._weight, self._ramp_steps) * of_teacher
            return optimizer.scale_loss(minimised), {"loss": loss, "self_training_loss": of_teacher}

        _, measures, pull = self._backend.pullback(forward, network.trainable_variables)
        gradients, _ = pull(ops.ones(()))
        self._backend.update_where(True, optimizer, lambda: gradients, network.trainable_variables)
        self.count(measures | {"self_training_share": ops.mean(is_certain)})


class Teacher:
    """A network with the running average of a U-Net's weights (Tarvainen and Valpola, NeurIPS 2017).

    It labels patches without outlines. The U-Net sees these with a rectangle of half their area pasted in from another
    patch of the batch, labels and all, at a place drawn anew in each step (CutMix: French et al., BMVC 2020). Of the
    very patch that the teacher saw it would learn next to nothing. `network` has the U-Net's form and no weights of its
    own; `seed` is that of the places. Fluids that are not among `taught` (names) it calls background.
    """

    def __init__(self, network, seed, taught=tuple(FLUIDS)):
        self.network, self.places = network, keras.random.SeedGenerator(seed)
        self._merged = [1.0, *(float(fluid not in taught) for fluid in FLUIDS)]

    def teach(self, images, unet, optimizer, confidence):
        """(images with rectangles pasted in, their labels one-hot, and which pixels are certain: 0 or 1), float32.

        `images` are (B, H, W, 3), the others (B, h, w, 4) and (B, h, w) of the network's output. A pixel is certain
        where the likeliest class has more than `confidence`. The average is that of the `optimizer` of the `unet`, and
        the batch statistics are the unet's.
        """
        average_into(self.network, optimizer)
        pairs = zip(self.network.non_trainable_weights, unet.non_trainable_weights, strict=True)
        for statistic, of_unet in pairs:
            statistic.assign(of_unet.value)
        output = as_list(self.network(images, training=False))[0]
        probabilities = crop_and_cast(ops.broadcast_to(self._merged, ops.shape(output)), output)[1]
        labels = ops.one_hot(ops.argmax(probabilities, axis=-1), probabilities.shape[-1], dtype="float32")
        is_certain = ops.cast(ops.max(probabilities, axis=-1, keepdims=True) > confidence, "float32")
        drawn = keras.random.uniform((ops.shape(images)[0], 3), seed=self.places)
        is_pasted = pasted_rectangles(images.shape[1:3], drawn)
        images = _pasted(images, is_pasted)
        is_pasted = center_crop(is_pasted, *labels.shape[1:3])
        return images, _pasted(labels, is_pasted), _pasted(is_certain, is_pasted)[..., 0]


def pasted_rectangles(shape, drawn):
    """Where rectangles lie in patches of `shape` (rows, columns): bool (B, rows, columns, 1).

    `drawn` are three numbers from 0 to 1 for each patch, (B, 3): the rectangle's form, from as high as the patch and
    half as wide to half as high and as wide, and its place from top to bottom and from left to right.
    """
    height = _PASTED_AREA ** drawn[:, :1]
    inside = []
    for length, share, place in zip(shape, (height, _PASTED_AREA / height), (drawn[:, 1:2], drawn[:, 2:]), strict=True):
        pixels, first = ops.arange(length, dtype="float32")[None], place * (1 - share) * length
        inside.append(ops.logical_and(pixels >= first, pixels < first + share * length))
    of_rows, of_columns = inside
    return ops.logical_and(of_rows[:, :, None, None], of_columns[:, None, :, None])


def _pasted(arrays, is_pasted):
    """`arrays` (B, rows, columns, n), each with what the one before it holds where `is_pasted`."""
    return ops.where(is_pasted, ops.roll(arrays, 1, axis=0), arrays)
