"""The segmentation U-Net and its discriminator, after Tennakoon et al., ISBI 2018 (Keras functional models).

``python model.py`` draws both into plots/model_unet.png and plots/model_discriminator.png (needs Graphviz).
"""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

from utils.errors import InputError, run_script
from utils.files import written_whole
from utils.labels import FLUIDS

# Pixels cut from ((top, bottom), (left, right)) of the encoder maps, from the deepest decoder level up, and from every
# side of the four enlarged scales. They are the same for every input size n divisible by 8: the 'valid' encoder maps
# have n/4 - 7, n/2 - 6 and n - 4 pixels, the decoder maps n/4 - 16, n/2 - 40 and n - 88.
_SKIP_CROPS = (((5, 4), (5, 4)), ((17, 17), (17, 17)), ((42, 42), (42, 42)))
_OUTPUT_FACTORS = (8, 4, 2, 1)
_OUTPUT_CROPS = (14, 6, 2, 0)
_SMALLEST_VALID_SIZE = 96  # pixels; the next smaller multiple of 8 leaves no output

_SKIP_DROPOUT = (0.25, 0.25, 0.5)  # from the deepest decoder level up
_OUTPUT_DROPOUT = 0.25
_REGULARIZERS = {"l1": keras.regularizers.L1, "l2": keras.regularizers.L2}


@dataclass(frozen=True)
class LayerOptions:
    """Options that all layers of one network share."""

    random_generator: np.random.Generator  # seeds of initial weights and dropout are drawn from it, layer by layer
    padding: str = "valid"
    regularizer: keras.regularizers.Regularizer | None = None  # penalty on kernels
    dtype_policy: str = "float32"
    batch_norm_momentum: float = 0.9
    activation: str = "relu"  # of every convolution, by Keras' name

    def seed(self):
        """The next layer's seed."""
        return int(self.random_generator.integers(2**31))

    def kernel(self):
        """Keyword arguments of a layer with a kernel."""
        return {
            "kernel_initializer": keras.initializers.GlorotUniform(seed=self.seed()),
            "kernel_regularizer": self.regularizer,
            "dtype": self.dtype_policy,
        }

    def spatial_dropout(self, tensor, rate, name):
        """Drop whole channels of `tensor` (B, H, W, C)."""
        return layers.SpatialDropout2D(rate, seed=self.seed(), dtype=self.dtype_policy, name=name)(tensor)


def create_encoder_layer(tensor, filters, name, options, is_first=False):
    """One level of the encoder, in one of two forms.

    | form | before the two 3x3 convolutions | maps (B, H, W, C) to |
    |---|---|---|
    | `is_first` | 7x7 'same' convolution of the image | (B, H - 4, W - 4, filters) |
    | later levels | 2x2 max-pooling | (B, H / 2 - 4, W / 2 - 4, filters) |

    With ``options.padding == "same"`` the 4 pixels are not lost.
    """
    if is_first:
        tensor = layers.Conv2D(
            filters, 7, padding="same", activation=options.activation, **options.kernel(), name="image_convolution"
        )(tensor)
    else:
        tensor = layers.MaxPooling2D(2, dtype=options.dtype_policy, name=f"{name}_pooled")(tensor)
    return _two_convolutions(tensor, filters, name, options)


def create_decoder_layer(tensor, skip, filters, dropout_rate, name, options, skip_crop=None, batch_norm=True):
    """One level of the decoder: double the size of `tensor`, join the encoder map `skip`, drop channels, convolve.

    (B, H, W, C) -> (B, 2H - 4, 2W - 4, filters), or (B, 2H, 2W, filters) with ``options.padding == "same"``.
    `skip_crop`, ((top, bottom), (left, right)) in pixels, crops `skip` to (B, 2H, 2W, any); None does not crop it.
    Spatial dropout with `dropout_rate` is applied to both before they are joined. `batch_norm` is as in
    `_two_convolutions`.
    """
    dtype = options.dtype_policy
    tensor = layers.Conv2DTranspose(filters, 2, strides=2, **options.kernel(), name=f"{name}_upsampled")(tensor)
    if skip_crop is not None:
        skip = layers.Cropping2D(skip_crop, dtype=dtype, name=f"{name}_skip")(skip)
    tensor = options.spatial_dropout(tensor, dropout_rate, f"{name}_upsampled_dropout")
    skip = options.spatial_dropout(skip, dropout_rate, f"{name}_skip_dropout")
    tensor = layers.Concatenate(dtype=dtype, name=f"{name}_joined")([tensor, skip])
    return _two_convolutions(tensor, filters, name, options, batch_norm)


def _two_convolutions(tensor, filters, name, options, batch_norm=True):
    """Two 3x3 convolutions with ``options.activation``. `batch_norm` normalises before the second one."""
    padding, dtype, momentum = options.padding, options.dtype_policy, options.batch_norm_momentum
    tensor = layers.Conv2D(
        filters, 3, padding=padding, activation=options.activation, **options.kernel(), name=f"{name}_convolution1"
    )(tensor)
    tensor = layers.Conv2D(filters, 3, padding=padding, **options.kernel(), name=f"{name}_convolution2")(tensor)
    if batch_norm:
        tensor = layers.BatchNormalization(momentum=momentum, dtype=dtype, name=f"{name}_batch_norm")(tensor)
    return layers.Activation(options.activation, dtype=dtype, name=f"{name}_activation")(tensor)


def create_unet_model(
    input_shape=(256, 128, 3),
    regularizer_type="l2",
    regularizer_weight=1e-4,
    activation="softmax",
    base_filters=64,
    padding="valid",
    train_classes=False,
    n_classes=4,
    seed=None,
    dtype_policy="float32",
    batch_norm_momentum=0.9,
    rearranged_output=False,
    convolution_activation="relu",
):
    """U-Net of Tennakoon et al. (ISBI 2018). Its output layer sees all four scales.

    Input `image`: float32 (B, height, width, channels). Height and width are multiples of 8, or None for any such size.
    Output `segmentation`: float32 class probabilities (B, height - 92, width - 92, n_classes). The default padding is
    "valid", as in the paper, and loses 46 pixels on every side. With ``padding="same"`` the output has the input's
    size: ``create_unet_model(input_shape=(224, 224, 3), padding="same")`` maps 224 x 224 x 3 to 224 x 224 x 4.

    - Kernels have a penalty `regularizer_type` ("l1" or "l2") with the weight `regularizer_weight`.
    - `activation` is the output's, `convolution_activation` that of all convolutions before it, by Keras' names.
    - With `train_classes` the output is a list of `segmentation`, `irf`, `srf` and `ped`. The last three are float32
      (B, 1): the probability that the patch holds that fluid.
    - `seed` fixes initial weights and dropout and leaves the global random state alone; None draws fresh ones.
    - `dtype_policy` is a Keras policy. Under "mixed_bfloat16" weights and outputs stay float32.
    - `rearranged_output` computes the output layer as `ConvolutionOfScales`: faster, in less memory, but such a model
      does not load without this file.

    ``plain_model.set_weights(model.get_weights())`` turns a model with the last two into a plain float32 model.
    """
    _check_unet_arguments(input_shape, regularizer_type, padding)
    valid = padding == "valid"
    regularizer = _REGULARIZERS[regularizer_type](regularizer_weight)
    options = LayerOptions(
        np.random.default_rng(seed), padding, regularizer, dtype_policy, batch_norm_momentum, convolution_activation
    )

    image = keras.Input(input_shape, name="image")
    tensor, skips = image, []
    for level in (1, 2, 3):
        filters = base_filters * 2 ** (level - 1)
        tensor = create_encoder_layer(tensor, filters, f"encoder{level}", options, is_first=level == 1)
        skips.append(tensor)
    bottleneck = tensor = create_encoder_layer(tensor, base_filters * 8, "bottleneck", options)

    scales = [bottleneck]
    for level, dropout_rate, skip_crop in zip((3, 2, 1), _SKIP_DROPOUT, _SKIP_CROPS, strict=True):
        tensor = create_decoder_layer(
            tensor,
            skips[level - 1],
            base_filters * 2 ** (level - 1),
            dropout_rate,
            f"decoder{level}",
            options,
            skip_crop=skip_crop if valid else None,
            batch_norm=level > 1,
        )
        scales.append(tensor)
    scales[-1] = options.spatial_dropout(tensor, _OUTPUT_DROPOUT, "decoder1_dropout")

    crops = _OUTPUT_CROPS if valid else (0, 0, 0, 0)
    if rearranged_output:
        logits = ConvolutionOfScales(n_classes, crops, **options.kernel(), name="segmentation_logits")(scales)
    else:
        enlarged = []
        for tensor, factor, crop in zip(scales, _OUTPUT_FACTORS, crops, strict=True):
            if factor > 1:
                tensor = layers.UpSampling2D(factor, dtype=dtype_policy, name=f"output_x{factor}")(tensor)
            if crop > 0:
                tensor = layers.Cropping2D(crop, dtype=dtype_policy, name=f"output_x{factor}_cropped")(tensor)
            enlarged.append(tensor)
        tensor = layers.Concatenate(dtype=dtype_policy, name="output_joined")(enlarged)
        logits = layers.Conv2D(n_classes, 3, padding="same", **options.kernel(), name="segmentation_logits")(tensor)
    # float32 under every policy: bfloat16 has no number between 0.996 and 1
    segmentation = layers.Activation(activation, dtype="float32", name="segmentation")(logits)
    if not train_classes:
        return keras.Model(image, segmentation, name="unet")
    return keras.Model(image, [segmentation, *_fluid_presence([bottleneck, scales[-1]], options)], name="unet")


class ConvolutionOfScales(layers.Layer):
    """The 3x3 convolution of all scales (enlarged, cropped and joined), computed before they are enlarged.

    1. A 1x1 convolution turns each scale (B, H, W, C) into 9 x classes channels, one for each tap of the kernel. This
       may come first because enlarging only repeats pixels.
    2. These channels are enlarged, cropped and added up over the scales.
    3. The convolution is the sum of the channels, each shifted by its tap.

    Weights are those of ``Conv2D(classes, 3, padding="same")`` on the joined scales. The result is the same up to
    rounding.
    """

    def __init__(self, n_classes, crops, kernel_initializer, kernel_regularizer, **options):
        super().__init__(**options)
        self.n_classes, self.crops = n_classes, crops
        self._kernel_options = {"initializer": kernel_initializer, "regularizer": kernel_regularizer}

    def build(self, shapes):
        self._channels = [shape[-1] for shape in shapes]
        shape = (3, 3, sum(self._channels), self.n_classes)
        self.kernel = self.add_weight(name="kernel", shape=shape, **self._kernel_options)
        self.bias = self.add_weight(name="bias", shape=(self.n_classes,), initializer="zeros")

    def call(self, scales):
        n_taps = 9 * self.n_classes
        # (3, 3, C, classes) -> (1, 1, C, 9 x classes)
        kernel = ops.reshape(ops.transpose(self.kernel, (2, 0, 1, 3)), (1, 1, -1, n_taps))
        taps, first = 0, 0
        for tensor, channels, factor, crop in zip(scales, self._channels, _OUTPUT_FACTORS, self.crops, strict=True):
            of_scale = ops.conv(tensor, kernel[:, :, first : first + channels], padding="valid")
            enlarged = ops.repeat(ops.repeat(of_scale, factor, axis=1), factor, axis=2)
            taps = taps + (enlarged[:, crop:-crop, crop:-crop] if crop else enlarged)
            first += channels
        # A kernel with 1 at (i, j), and 0 elsewhere, shifts the tap (i, j) of class k to its place.
        shifts = np.eye(n_taps, dtype=np.float32).reshape(n_taps, 3, 3, self.n_classes).transpose(1, 2, 0, 3)
        shifted = ops.conv(taps, ops.cast(shifts, taps.dtype), padding="same")
        return shifted + self.bias

    def compute_output_shape(self, shapes):
        return (*shapes[-1][:-1], self.n_classes)


def _fluid_presence(feature_maps, options):
    """Probability (B, 1) of each fluid from the channels' maxima (for small lesions) and means (for the extent)."""
    pooled = []
    for tensor, scale in zip(feature_maps, ("coarse", "fine"), strict=True):
        pooled.append(layers.GlobalMaxPooling2D(dtype=options.dtype_policy, name=f"{scale}_maximum")(tensor))
        pooled.append(layers.GlobalAveragePooling2D(dtype=options.dtype_policy, name=f"{scale}_mean")(tensor))
    features = layers.Concatenate(dtype=options.dtype_policy, name="presence_features")(pooled)
    outputs = []
    for fluid in map(str.lower, FLUIDS):
        logit = layers.Dense(1, **options.kernel(), name=f"{fluid}_logit")(features)
        outputs.append(layers.Activation("sigmoid", dtype="float32", name=fluid)(logit))
    return outputs


def _check_unet_arguments(input_shape, regularizer_type, padding):
    if padding not in ("valid", "same"):
        raise ValueError(f"padding is {padding!r}; allowed are 'valid' and 'same'")
    if regularizer_type not in _REGULARIZERS:
        raise ValueError(f"regularizer_type is {regularizer_type!r}; allowed are {', '.join(_REGULARIZERS)}")
    smallest = _SMALLEST_VALID_SIZE if padding == "valid" else 8
    for size in input_shape[:2]:
        if size is not None and (size % 8 != 0 or size < smallest):
            raise ValueError(
                f"input_shape is {input_shape}; with padding={padding!r} height and width must be multiples of 8, "
                f"{smallest} or more, or None"
            )


def create_discriminator(
    image_shape=(164, 36, 3),
    n_classes=4,
    base_filters=64,
    seed=None,
    dtype_policy="float32",
):
    """Network that tells reference masks from generated ones, given the image.

    Inputs [`image`, `mask`]: the image's centre crop (B, height, width, channels) and a one-hot mask (B, height, width,
    n_classes), both float32. Height and width may be None. Output `logit`: linear, float32 (B, 1), above 0 if the mask
    looks like a reference. `seed` and `dtype_policy` are as in `create_unet_model`. The features' maximum over the
    patch counts: an average hardly changes where one place of many is wrong.
    """
    options = LayerOptions(np.random.default_rng(seed), padding="same", dtype_policy=dtype_policy)

    def convolve(tensor, filters, size, name):
        convolution = layers.Conv2D(
            filters, size, padding=options.padding, activation="relu", **options.kernel(), name=name
        )
        return convolution(tensor)

    inputs = [keras.Input(image_shape, name="image"), keras.Input((*image_shape[:2], n_classes), name="mask")]
    branches = []
    for tensor in inputs:
        name = tensor.name
        tensor = convolve(tensor, base_filters, 7, f"{name}_convolution1")
        tensor = convolve(tensor, base_filters, 3, f"{name}_convolution2")
        branches.append(convolve(tensor, base_filters, 3, f"{name}_convolution3"))
    tensor = layers.Concatenate(dtype=dtype_policy, name="joined")(branches)
    # Pooling before the convolutions keeps the cost of a pass below half of the U-Net's.
    for level, pool_size in enumerate(((2, 2), (2, 1), (2, 1)), start=1):
        tensor = layers.MaxPooling2D(pool_size, dtype=dtype_policy, name=f"level{level}_pooled")(tensor)
        tensor = convolve(tensor, base_filters * 2**level, 3, f"level{level}_convolution1")
        tensor = convolve(tensor, base_filters * 2**level, 3, f"level{level}_convolution2")
    tensor = layers.GlobalMaxPooling2D(dtype="float32", name="max")(tensor)
    kernel_initializer = keras.initializers.GlorotUniform(seed=options.seed())
    to_logit = layers.Dense(1, kernel_initializer=kernel_initializer, dtype="float32", name="logit")
    return keras.Model(inputs, to_logit(tensor), name="discriminator")


def main(argv):
    """Draw the U-Net and the discriminator at their default sizes into plots/."""
    if argv:
        raise InputError(f"found arguments {' '.join(argv)}; expected none: python model.py")
    for model in (create_unet_model(), create_discriminator()):
        path = Path("plots") / f"model_{model.name}.png"
        with written_whole(path) as temporary:
            try:
                keras.utils.plot_model(model, temporary, show_shapes=True, show_layer_names=True, dpi=56)
            except ImportError:
                raise InputError(
                    f"{path}: found no pydot or no Graphviz to draw with; install both: pip install pydot, "
                    "apt-get install graphviz"
                ) from None
        print(f"wrote {path} ({model.count_params():,} parameters)")


if __name__ == "__main__":
    run_script(main)
