"""segmentation_models' formulas on keras.ops, so that they run on every Keras backend."""

import contextlib
import io
import os
import types

import keras
from keras import ops


def center_crop(tensor, height, width):
    """The middle `height` x `width` pixels of `tensor` (B, H, W, C). Of an odd surplus, one more is cut at the end.

    Raises ValueError, which names both sizes, if `tensor` is smaller.
    """
    rows, columns = ops.shape(tensor)[1:3]
    if any(isinstance(surplus, int) and surplus < 0 for surplus in (rows - height, columns - width)):
        raise ValueError(f"a tensor of {rows} x {columns} pixels has no {height} x {width} centre")
    top, left = (rows - height) // 2, (columns - width) // 2
    return tensor[:, top : top + height, left : left + width]


def crop_and_cast(reference, prediction):
    """`reference` (B, H, W, C; any dtype) centre-cropped to `prediction` (B, h, w, C), and both merged, as float32.

    Channel c of `reference` is 1 where a pixel may be of class c, class 0 being the background. Where a pixel may be
    background or some fluids, nobody can say which, so that these count as one class: the probabilities of all of them
    become background's, and those fluids' become 0. Of the reference background alone stays. It is then one-hot, and
    where it was one-hot before, nothing has changed. Where every class is allowed the prediction is background with
    probability 1, so that no gradient comes from there.
    """
    reference = ops.cast(cropped_to(reference, prediction), "float32")
    prediction = ops.cast(prediction, "float32")
    background, fluids = reference[..., :1], reference[..., 1:]
    merged = background * fluids  # 1 for fluids that count as background
    of_fluids = prediction[..., 1:]
    of_background = prediction[..., :1] + ops.sum(merged * of_fluids, axis=-1, keepdims=True)
    of_background = ops.where(is_judged(reference), of_background, 1.0)
    return (
        ops.concatenate([background, fluids - merged], axis=-1),
        ops.concatenate([of_background, of_fluids - merged * of_fluids], axis=-1),
    )


def cropped_to(tensor, prediction):
    """The middle of `tensor` (B, H, W, C) of the size of `prediction` (B, h, w, classes)."""
    return center_crop(tensor, *ops.shape(prediction)[1:3])


def is_judged(reference):
    """Where (B, h, w, 1; bool) a `reference` (B, h, w, C), as `crop_and_cast` takes it, does not allow every class."""
    return ops.min(reference, axis=-1, keepdims=True) == 0


def import_segmentation_models():
    """The package segmentation_models, which chooses its framework and announces it when first imported."""
    os.environ.setdefault("SM_FRAMEWORK", "tf.keras")  # its own default does not work with Keras 3
    with contextlib.redirect_stdout(io.StringIO()):
        import segmentation_models
    return segmentation_models


# The functions of the old Keras backend that segmentation_models' losses and metrics call, by their names there.
backend = types.SimpleNamespace(
    binary_crossentropy=ops.binary_crossentropy,
    cast=ops.cast,
    clip=ops.clip,
    epsilon=keras.config.epsilon,
    floatx=keras.config.floatx,
    gather=lambda tensor, indices: ops.take(tensor, ops.convert_to_tensor(indices), axis=0),
    greater=ops.greater,
    image_data_format=keras.config.image_data_format,
    log=ops.log,
    mean=ops.mean,
    permute_dimensions=ops.transpose,
    pow=ops.power,
    sum=ops.sum,
)


class OnKerasOps:
    """Mixin for a subclass of a segmentation_models loss or metric: computes it through `backend`.

    The call takes the reference of the full patch (B, H, W, C; one-hot, any dtype) and the network's smaller prediction
    (B, h, w, C). Only the subclass is bound; segmentation_models' own classes keep the framework that they have.
    """

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        cls.set_submodules(backend=backend, layers=keras.layers, models=keras.models, utils=keras.utils)

    def __call__(self, reference, prediction):
        return super().__call__(*crop_and_cast(reference, prediction))
