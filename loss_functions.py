"""Losses of the segmentation network and of the discriminator, in float32 on any Keras backend.

The reference is one-hot (B, H, W, classes) of the full patch, any dtype; where a reader did not outline every fluid it
allows several classes. `utils.base.crop_and_cast` crops it to the prediction, class probabilities (B, h, w, classes),
and makes it one-hot. Class 0 is the background. Losses are scalars: means over the batch, except Dice, which sums over
the batch first. With several replicas the Dice loss is the mean of the replicas' losses. That differs from the Dice
loss of the global batch.
"""

import keras
from keras import ops

from utils.base import crop_and_cast, cropped_to, is_judged
from utils.labels import NOT_JUDGED

_EPSILON = 1e-7


def get_dice_loss(y_true, y_pred):
    """1 - Dice of the foreground, on 1 - p(background), summed over the whole batch (Milletari et al., 3DV 2016).

    It is 0 if both are all background, and near 1 if a lesion is missed.
    """
    y_true, y_pred = crop_and_cast(y_true, y_pred)
    reference, prediction = 1 - y_true[..., 0], 1 - y_pred[..., 0]
    overlap = 2 * ops.sum(reference * prediction)
    return 1 - (overlap + _EPSILON) / (ops.sum(reference) + ops.sum(prediction) + _EPSILON)


def get_balanced_cross_entropy_loss_function(batch_size, num_classes):
    """Function (y_true, y_pred) -> cross-entropy in which every class has the same weight, even with few pixels.

    For each image and class, the summed cross-entropy is divided by the class's pixel count. The loss is the mean over
    all `num_classes` and images. A class that the image lacks adds 0. Pixels that were not judged are not counted.
    `batch_size` is unused; the original's signature has it.
    """

    def balanced_cross_entropy_loss(y_true, y_pred):
        if num_classes != y_pred.shape[-1]:
            raise ValueError(f"num_classes is {num_classes}, the prediction has {y_pred.shape[-1]}")
        judged = ops.cast(is_judged(cropped_to(y_true, y_pred)), "float32")
        y_true, y_pred = crop_and_cast(y_true, y_pred)
        cross_entropy = ops.sum(-y_true * ops.log(ops.clip(y_pred, _EPSILON, 1.0)), axis=(1, 2))
        pixel_count = ops.sum(y_true * judged, axis=(1, 2))
        return ops.mean(cross_entropy / ops.maximum(pixel_count, 1.0))

    return balanced_cross_entropy_loss


def get_combined_cross_entropy_and_dice_loss_function(batch_size, num_classes):
    """Function (y_true, y_pred) -> 0.5 * (balanced cross-entropy + Dice loss). Arguments as for the cross-entropy."""
    balanced_cross_entropy_loss = get_balanced_cross_entropy_loss_function(batch_size, num_classes)

    def combined_loss(y_true, y_pred):
        return 0.5 * (balanced_cross_entropy_loss(y_true, y_pred) + get_dice_loss(y_true, y_pred))

    return combined_loss


def get_plain_cross_entropy_and_class_dice_loss_function(num_classes):
    """Function (y_true, y_pred) -> 0.5 * (mean cross-entropy of the pixels + mean Dice loss of the fluids).

    As in nnU-Net (Isensee et al., Nature Methods 2021): every pixel weighs the same, so that a probability of 0.5 is
    as often right as wrong, and each fluid has a Dice loss of its own, summed over the batch. Fluids that the batch
    lacks have none; the cross-entropy pays for calling them.
    """

    def combined_loss(y_true, y_pred):
        if num_classes != y_pred.shape[-1]:
            raise ValueError(f"num_classes is {num_classes}, the prediction has {y_pred.shape[-1]}")
        y_true, y_pred = crop_and_cast(y_true, y_pred)
        cross_entropy = ops.mean(ops.sum(-y_true * ops.log(ops.clip(y_pred, _EPSILON, 1.0)), axis=-1))
        overlap, reference, prediction = (
            ops.sum(pixels, axis=(0, 1, 2))[1:] for pixels in (y_true * y_pred, y_true, y_pred)
        )
        present = ops.cast(reference > 0, "float32")
        dice_losses = present * (1 - 2 * overlap / (reference + prediction + _EPSILON))
        return 0.5 * (cross_entropy + ops.sum(dice_losses) / ops.maximum(ops.sum(present), 1.0))

    return combined_loss


def presence_loss(y_true, y_pred):
    """Binary cross-entropy of a presence head's output (B, 1), mean over the batch.

    `y_true` (B, 1) is 0, 1, or 255 where it is not known whether the fluid is there: such a patch adds 0.
    """
    known = y_true != NOT_JUDGED
    cross_entropy = keras.losses.BinaryCrossentropy()
    return cross_entropy(ops.where(known, y_true, 0), y_pred, sample_weight=ops.cast(known[:, 0], "float32"))


def generator_loss(d_logits_on_generated):
    """What the segmentation network pays for a discriminator that sees through its masks: -log D(generated).

    It falls as the discriminator's logits (B, 1) rise: the non-saturating loss of Goodfellow et al., NeurIPS 2014.
    """
    return _binary_cross_entropy(1.0, d_logits_on_generated)


def discriminator_loss(d_logits_on_real, d_logits_on_generated, real_label=1.0):
    """Mean cross-entropy of calling references `real_label` and generated masks 0; log 2 for a blind discriminator.

    A `real_label` below 1, say 0.9, keeps the discriminator from growing overconfident (one-sided label smoothing,
    Salimans et al., NeurIPS 2016).
    """
    on_real = _binary_cross_entropy(real_label, d_logits_on_real)
    return 0.5 * (on_real + _binary_cross_entropy(0.0, d_logits_on_generated))


def generator_to_discriminator_gradient(d_logits_on_generated):
    """Factor (B, 1) that turns `discriminator_loss`'s gradient at each generated mask into `generator_loss`'s.

    With s = sigmoid(logit), the gradients at the logit are s / 2 and s - 1, divided by the batch size. The path from
    the logit to the mask is the same for both, so the factor is -2 (1 - s) / s = -2 exp(-logit). Below a logit of -60
    (s = 1e-26) the factor stays constant, so that it does not exceed float32.
    """
    return -2 * ops.exp(-ops.maximum(ops.cast(d_logits_on_generated, "float32"), -60.0))


def straight_through_one_hot(probabilities):
    """Exactly one-hot of the likeliest class, with the gradient of `probabilities` (B, H, W, classes).

    Real and generated masks must both be one-hot. Otherwise the discriminator would recognise generated masks by their
    soft values alone. A plain argmax has no gradient, so this is a straight-through estimator (Bengio et al.,
    arXiv:1308.3432).
    """
    one_hot = ops.one_hot(ops.argmax(probabilities, axis=-1), probabilities.shape[-1], dtype=probabilities.dtype)
    return ops.stop_gradient(one_hot) + (probabilities - ops.stop_gradient(probabilities))


def self_training_loss(labels, is_certain, probabilities):
    """Mean cross-entropy of the pixels that are certain; 0 where none is.

    `labels` are one-hot (B, H, W, classes), `is_certain` (B, H, W) is 0 or 1, all float32. Neither has a gradient.
    """
    labels, is_certain = ops.stop_gradient(labels), ops.stop_gradient(is_certain)
    cross_entropy = -ops.sum(labels * ops.log(ops.clip(probabilities, _EPSILON, 1.0)), axis=-1)
    return ops.sum(is_certain * cross_entropy) / ops.maximum(ops.sum(is_certain), 1.0)


def _binary_cross_entropy(label, logits):
    logits = ops.cast(logits, "float32")
    return ops.mean(ops.softplus(logits) - label * logits)  # -label log s - (1 - label) log(1 - s), s = sigmoid(logits)
