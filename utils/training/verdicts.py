"""What the discriminator is shown of readers' and generated masks, and what it says of them."""

import keras
from keras import ops

from loss_functions import straight_through_one_hot
from utils.base import crop_and_cast, cropped_to


class Verdicts:
    """A discriminator of `model.create_discriminator`, in two parts: both masks of a patch share its image's features.

    Images are float32 (B, H, W, 3), as for a step; they are centre-cropped to the masks. Logits are float32 (B, 1).
    """

    def __init__(self, discriminator):
        image_features, _ = discriminator.get_layer("joined").input
        image, mask = discriminator.inputs
        self._image_features = keras.Model(image, image_features)
        self._on_features = keras.Model([image_features, mask], discriminator.output)

    def on_both(self, images, readers, generated):
        """Logits on the masks `readers`, and on the `generated` ones, of the same `images`."""
        features = self._image_features(cropped_to(images, generated))
        return self._on_features([features, readers]), self._on_features([features, generated])

    def probabilities(self, images, masks):
        """The probabilities (B,) that `masks` (B, h, w, 4) are a reader's."""
        features = self._image_features(cropped_to(images, masks))
        return ops.sigmoid(self._on_features([features, ops.cast(masks, "float32")]))[:, 0]


def masks_of_both(mask, output):
    """The reader's mask and the generated one, one-hot (B, h, w, 4), float32: what is shown of a U-Net's `output`.

    Classes that the reader's `mask` (B, H, W, 4) merges are merged in both. The generated mask is another tensor than
    `output`, so that each has a gradient of its own.
    """
    readers, probabilities = crop_and_cast(mask, output)
    return readers, straight_through_one_hot(probabilities)


def told_rightly(logits_on_readers, logits_on_generated):
    """1 for each mask that the discriminator judges right, else 0: two float32 (B, 1)."""
    return [ops.cast(right, "float32") for right in (logits_on_readers > 0, logits_on_generated <= 0)]
