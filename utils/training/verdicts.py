"""What the discriminator is shown of readers' and generated masks, and what it says of them."""

import keras
from keras import ops

from loss_functions import smoothed_reference, straight_through_one_hot
from utils.base import crop_and_cast, cropped_to


class Verdicts:
    """A discriminator of `model.create_discriminator`, and how masks are put before it.

    `masks` is that of `utils.training.rules.AdversarialRules`. Images are float32 (B, H, W, 3), as for a step; they are
    centre-cropped to the masks. Logits are float32 (B, 1), or (B, rows, columns, 1) where `on_fields`.
    """

    def __init__(self, discriminator, masks):
        self.discriminator, self.sees_probabilities = discriminator, masks == "probabilities"
        self.on_fields = len(discriminator.output.shape) == 4
        self._image_features = None
        if len(discriminator.inputs) == 2:
            # In two parts, because both masks of a patch share the discriminator's features of the image.
            image_features, _ = discriminator.get_layer("joined").input
            image, mask = discriminator.inputs
            self._image_features = keras.Model(image, image_features)
            self._on_features = keras.Model([image_features, mask], discriminator.output)

    def generated_mask(self, output, mask):
        """What is shown of the U-Net's `output` (B, h, w, 4), float32, with its gradient.

        It is another tensor than `output`, so that each has a gradient of its own. `mask` (B', H, W, 4) is the readers'
        on the first B' of the images: classes that it merges are merged here too.
        """
        n_read = ops.shape(mask)[0]
        merged = [crop_and_cast(mask, output[:n_read])[1], ops.cast(output[n_read:], "float32")]
        probabilities = ops.concatenate(merged)
        return probabilities if self.sees_probabilities else straight_through_one_hot(probabilities)

    def readers_mask(self, mask, output):
        """What is shown of the one-hot `mask` (B, H, W, 4), float32, beside the U-Net's `output` on the same images."""
        mask, output = crop_and_cast(mask, output)
        return ops.stop_gradient(smoothed_reference(mask, output)) if self.sees_probabilities else mask

    def logits_on_both(self, images, readers, generated, first=0):
        """Logits on `readers` masks, of the first `images`, and on `generated` ones, of all from `first` on."""
        features = self._features(images, generated)
        of_readers = of_generated = None
        if features is not None:
            of_readers, of_generated = features[: ops.shape(readers)[0]], features[first:]
        return self._logits(of_readers, readers), self._logits(of_generated, generated[first:])

    def probabilities(self, images, masks):
        """The probabilities (B,) that `masks` (B, h, w, 4) are a reader's."""
        logits = self._logits(self._features(images, masks), ops.cast(masks, "float32"))
        return of_patches(ops.sigmoid(logits))[:, 0]

    def _features(self, images, masks):
        """The features of the images' middles; None if the discriminator sees no image."""
        return self._image_features and self._image_features(cropped_to(images, masks))

    def _logits(self, features, masks):
        return self.discriminator(masks) if features is None else self._on_features([features, masks])


def of_patches(verdicts):
    """The mean (B, 1) of each patch's verdicts, (B, 1) or (B, rows, columns, 1)."""
    return verdicts if len(verdicts.shape) == 2 else ops.mean(verdicts, axis=(1, 2))


def told_rightly(logits_on_readers, logits_on_generated):
    """1 for each mask that the discriminator judges right, else 0: two float32 (B, 1)."""
    on_readers, on_generated = of_patches(logits_on_readers), of_patches(logits_on_generated)
    return [ops.cast(right, "float32") for right in (on_readers > 0, on_generated <= 0)]
