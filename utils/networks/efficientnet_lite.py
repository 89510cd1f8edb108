"""A U-Net on an EfficientNet-Lite0 encoder, whose weights can be those that ImageNet's photographs have taught.

The encoder is that of https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite without its head:
inverted bottlenecks (Tan and Le, ICML 2019) without squeeze-and-excitation, with ReLU6. The decoder is a plain one.
"""

import re

import keras
import numpy as np
from keras import layers

from model import LayerOptions
from utils.errors import InputError
from utils.networks.torch_weights import read_torch_weights

# (repeats, kernel size, stride of the first, expansion, filters) of each stage of inverted bottlenecks.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_FILTERS = 32
SKIPS = (4, 2, 1, 0)  # stages whose maps the decoder joins, at 1/16, 1/8, 1/4 and 1/2 of the image's size
DECODER_FILTERS = (128, 64, 48, 32, 16)
INPUT_OFFSET = 1 / 128  # ImageNet's grey values came as (g - 127) / 128, ours come as (g - 128) / 128
# What Keras' variables are called in a file of weights.
_TORCH_NAMES = {"kernel": "weight", "gamma": "weight", "beta": "bias"}
_TORCH_NAMES |= {"moving_mean": "running_mean", "moving_variance": "running_var"}


def create_efficientnet_lite_unet(
    input_shape,
    *,
    n_classes=4,
    encoder_weights=None,
    regularizer_weight=1e-4,
    dtype_policy="float32",
    batch_norm_momentum=0.9,
    seed=None,
):
    """The network as a plain graph of standard Keras layers.

    Input `image`: float32 (B, height, width, 3), the slices z - 1, z, z + 1 as (grey value - 128) / 128; height and
    width are multiples of 32 or None. Output `segmentation`: float32 class probabilities (B, height, width, n_classes).
    `encoder_weights` is a file of weights as in `set_encoder_weights`; None: random ones. Convolution kernels carry an
    L2 penalty of `regularizer_weight`; `seed` and `dtype_policy` are as in `model.create_unet_model`.
    """
    options = LayerOptions(
        np.random.default_rng(seed),
        padding="same",
        regularizer=keras.regularizers.L2(regularizer_weight),
        dtype_policy=dtype_policy,
        batch_norm_momentum=batch_norm_momentum,
    )
    image = keras.Input(input_shape, name="image")
    tensor, skips = _encode(image, options)
    for level, filters in enumerate(DECODER_FILTERS, start=1):
        skip = skips[SKIPS[level - 1]] if level <= len(SKIPS) else None
        tensor = _decode(tensor, skip, filters, f"decoder{level}", options)
    logits = layers.Conv2D(n_classes, 3, padding="same", **options.kernel(), name="logits")(tensor)
    # float32 under every policy: bfloat16 has no number between 0.996 and 1
    probabilities = layers.Activation("softmax", dtype="float32", name="segmentation")(logits)
    unet = keras.Model(image, probabilities, name="Unet_efficientnetlite0")
    if encoder_weights is not None:
        set_encoder_weights(unet, encoder_weights)
    return unet


def set_encoder_weights(unet, path):
    """Give the encoder of `unet` the weights in `path`, a file of EfficientNet-Lite0's as `read_torch_weights` takes.

    The names in it are those of the package efficientnet-lite-pytorch, and so are those of the encoder's layers. What
    it holds beyond them, the classifier, is left out. Raises `InputError` where one is missing or has another shape.
    """
    tensors = read_torch_weights(path)
    for variable, name in encoder_variables(unet):
        if name not in tensors:
            raise InputError(f"{path}: lacks {name}; expected the weights of EfficientNet-Lite0")
        tensor = tensors[name]
        if (
            tensor.ndim == 4
        ):  # (filters, channels, rows, columns); a depthwise kernel's are (channels, 1, rows, columns)
            tensor = tensor.transpose((2, 3, 0, 1) if "depthwise" in name else (2, 3, 1, 0))
        if tensor.shape != tuple(variable.shape):
            raise InputError(f"{path}: {name} is {tensor.shape}, expected {tuple(variable.shape)} (in Keras' order)")
        variable.assign(tensor)


def encoder_variables(unet):
    """Each variable of the encoder, with the name that its value has in a file of weights."""
    layer_name = re.compile(
        r"(?:block(?P<block>\d+)_)?(?P<part>conv_stem|expand_conv|depthwise_conv|project_conv|bn\d)"
    )
    pairs = []
    for layer in unet.layers:
        if match := layer_name.fullmatch(layer.name):
            block = "" if match["block"] is None else f"_blocks.{match['block']}."
            pairs += [
                (variable, f"{block}_{match['part']}.{_TORCH_NAMES[variable.name]}") for variable in layer.weights
            ]
    return pairs


def _encode(image, options):
    """The image at 1/32 of its size, and each stage's output."""
    tensor = layers.Rescaling(1.0, INPUT_OFFSET, dtype=options.dtype_policy, name="as_trained")(image)
    tensor = _convolve(tensor, STEM_FILTERS, 3, ("conv_stem", "bn0"), options, strides=2)
    outputs, n_blocks = [], 0
    for repeats, size, strides, expansion, filters in STAGES:
        for repeat in range(repeats):
            of_block = strides if repeat == 0 else 1
            tensor = _inverted_bottleneck(tensor, filters, size, of_block, expansion, f"block{n_blocks}", options)
            n_blocks += 1
        outputs.append(tensor)
    return tensor, outputs


def _inverted_bottleneck(tensor, filters, size, strides, expansion, name, options):
    """Widen `expansion` times, convolve each channel for itself, narrow to `filters`; added to the input if it fits."""
    block_input, channels = tensor, tensor.shape[-1]
    if expansion != 1:
        tensor = _convolve(tensor, expansion * channels, 1, (f"{name}_expand_conv", f"{name}_bn0"), options)
    tensor = layers.DepthwiseConv2D(
        size,
        strides=strides,
        padding="same",
        use_bias=False,
        depthwise_initializer=_initializer(options),
        depthwise_regularizer=options.regularizer,
        dtype=options.dtype_policy,
        name=f"{name}_depthwise_conv",
    )(tensor)
    tensor = _normalise(tensor, f"{name}_bn1", options, "relu6")
    tensor = _convolve(tensor, filters, 1, (f"{name}_project_conv", f"{name}_bn2"), options, activation=None)
    if strides == 1 and filters == channels:
        tensor = layers.Add(dtype=options.dtype_policy, name=f"{name}_sum")([tensor, block_input])
    return tensor


def _decode(tensor, skip, filters, name, options):
    """Double the size of `tensor`, join the encoder's map `skip` (or None), convolve twice."""
    tensor = layers.UpSampling2D(2, dtype=options.dtype_policy, name=f"{name}_upsampled")(tensor)
    if skip is not None:
        tensor = layers.Concatenate(dtype=options.dtype_policy, name=f"{name}_joined")([tensor, skip])
    for index in (1, 2):
        tensor = _convolve(tensor, filters, 3, (f"{name}_conv{index}", f"{name}_bn{index}"), options, activation="relu")
    return tensor


def _convolve(tensor, filters, size, names, options, strides=1, activation="relu6"):
    """A convolution without bias, then batch norm, of these two `names`, then the `activation`, if any."""
    kernel = {**options.kernel(), "kernel_initializer": _initializer(options)}
    convolution = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False, **kernel, name=names[0])
    return _normalise(convolution(tensor), names[1], options, activation)


def _normalise(tensor, name, options, activation):
    """Batch norm, then the `activation`, if any."""
    tensor = layers.BatchNormalization(
        momentum=options.batch_norm_momentum, epsilon=1e-3, dtype=options.dtype_policy, name=name
    )(tensor)
    if activation is None:
        return tensor
    return layers.Activation(activation, dtype=options.dtype_policy, name=f"{name}_{activation}")(tensor)


def _initializer(options):
    """EfficientNet's own. Glorot's would count a depthwise kernel's channels as inputs and make it nearly zero."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal", seed=options.seed())
