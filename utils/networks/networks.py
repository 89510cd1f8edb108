"""The networks beside the U-Net of model.py: checked before Keras is there, seeded, of standard layers.

Each is named "architecture/backbone", such as "Unet/resnet34", and its output has the size of its input. All are
segmentation_models', except for `LITE_UNET`, which is ours. "module:function" is the user's own.
"""

import contextlib
import difflib
import random
from pathlib import Path

from utils.errors import InputError
from utils.networks.torch_weights import find_efficientnet_lite_weights
from utils.own_code import check_own, check_standard, is_own, own_function

OUR_NETWORK = "tennakoon"  # model.create_unet_model
LITE_UNET = "Unet/efficientnetlite0"  # utils.networks.efficientnet_lite
IMAGENET = "imagenet"  # as ENCODER_WEIGHTS: those of the backbone's authors

# Pixels of which height and width must be multiples: what the encoder divides by, and for PSPNet the six cells of its
# finest pooling, of 8 pixels each.
SIZE_STEPS = {"Unet": 32, "Linknet": 32, "FPN": 32, "PSPNet": 48}
# For one size of image only: PSPNet pools over shares of the image, and both enlarge bilinearly, which Keras cannot
# compile for sizes that it does not know.
FIXED_SIZE = {"PSPNet", "FPN"}

# Pixels that such networks see around the core of a tile; 96 takes 1.5 times as long and halves the seams.
FAR_CONTEXT = 64

# segmentation_models' backbones, without its DenseNets: those have "/" in layers' names, which Keras 3 refuses.
BACKBONES = (
    *("vgg16", "vgg19", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50", "resnext101"),
    *("seresnet18", "seresnet34", "seresnet50", "seresnet101", "seresnet152", "seresnext50", "seresnext101"),
    *("senet154", "inceptionv3", "inceptionresnetv2", "mobilenet", "mobilenetv2"),
    *(f"efficientnetb{size}" for size in range(8)),
)


def check_network(name, patch_shape, *, train_classes=False, encoder_weights=None):
    """Raise `InputError` with a line for each reason why the network cannot be built or trained on such patches.

    `patch_shape` is (rows, columns) in pixels; `encoder_weights` "imagenet", a file or None, which
    `check_encoder_weights` looks for. Keras is not imported.
    """
    if name == OUR_NETWORK:
        if encoder_weights is not None:
            raise InputError(f"config.ENCODER_WEIGHTS = {encoder_weights!r}: the network {name!r} takes none; set None")
        return
    if is_own(name):
        check_own("MODEL", name)
        if train_classes or encoder_weights is not None:
            raise InputError(f"config.MODEL = {name!r}: must go with TRAIN_CLASSES = False and ENCODER_WEIGHTS = None")
        return
    architecture, _, backbone = name.partition("/")
    if name != LITE_UNET and (architecture not in SIZE_STEPS or backbone not in BACKBONES):
        raise InputError(f"config.MODEL = {name!r}: must be {_expected_name(name)}")
    complaints = []
    step = SIZE_STEPS[architecture]
    if any(size % step for size in patch_shape):
        fitting = " x ".join(str(max(1, round(size / step)) * step) for size in patch_shape)
        found = " x ".join(map(str, patch_shape))
        complaints.append(
            f"config.MODEL = {name!r}: patches are {found} pixels, must be multiples of {step}, e.g. {fitting}"
        )
    if train_classes:
        complaints.append(f"config.TRAIN_CLASSES = True: only {OUR_NETWORK!r} has these heads, {name!r} has none")
    if complaints:
        raise InputError(*complaints)


def check_encoder_weights(name, encoder_weights):
    """Raise `InputError` where the weights that the encoder of the network `name` is to start from are not there.

    Only a training that starts needs them. `encoder_weights` is as in `check_network`. Those of "imagenet" are an
    installed package's for `LITE_UNET`; for the others they are downloaded when the network is created.
    """
    if encoder_weights == IMAGENET:
        if name == LITE_UNET:
            find_efficientnet_lite_weights()
    elif encoder_weights is not None and not Path(encoder_weights).is_file():
        raise InputError(
            f"config.ENCODER_WEIGHTS = {encoder_weights!r}: no such file; name one that you have, {IMAGENET!r} or None"
        )


def _expected_name(name):
    """In words what a network's name is, with the one closest to `name`."""
    allowed = [
        OUR_NETWORK,
        LITE_UNET,
        *(f"{architecture}/{backbone}" for architecture in SIZE_STEPS for backbone in BACKBONES),
    ]
    lower_case = {known.lower(): known for known in allowed}
    closest = difflib.get_close_matches(name.lower(), lower_case, n=1, cutoff=0.5)
    nearest = f"; did you mean {lower_case[closest[0]]!r}?" if closest else ""
    return (
        f"{OUR_NETWORK!r} or an architecture ({', '.join(SIZE_STEPS)}) and a backbone ({', '.join(BACKBONES)}), such "
        f"as 'Unet/resnet34', or {LITE_UNET!r}, or a module:function of your own{nearest}"
    )


def as_list(outputs):
    """What a network gives, or is given, as a list, whether it has one output or several."""
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def tile_step(name):
    """Pixels of which a tile's sides must be multiples."""
    return 32 if is_own(name) else SIZE_STEPS.get(name.partition("/")[0], 8)


def create_network(name, *, encoder_weights=None, rearranged_output=True, **settings):
    """The network `name` as it is trained; `settings` are those of `model.create_unet_model`."""
    if name == OUR_NETWORK:
        from model import create_unet_model

        return create_unet_model(**settings, rearranged_output=rearranged_output)
    if is_own(name):
        return _own_network(name, settings["input_shape"], settings["n_classes"])
    settings = {key: settings[key] for key in settings if key not in ("base_filters", "train_classes", "padding")}
    if name == LITE_UNET:
        from utils.networks.efficientnet_lite import create_efficientnet_lite_unet

        path = find_efficientnet_lite_weights() if encoder_weights == IMAGENET else encoder_weights
        return create_efficientnet_lite_unet(**settings, encoder_weights=path)
    return _segmentation_models_network(name, encoder_weights, **settings)


def create_inference_network(name, *, input_shape, encoder_weights=None, **settings):
    """The same network as it is exported: float32, of standard layers, for images of any size that `tile_step` divides.

    Networks of `FIXED_SIZE` stay for images of `input_shape` alone.
    """
    if name.partition("/")[0] not in FIXED_SIZE:
        input_shape = (None, None, input_shape[2])
    settings |= {"input_shape": input_shape, "dtype_policy": "float32"}
    return create_network(name, rearranged_output=False, **settings)


def _own_network(name, input_shape, n_classes):
    """The network that the user's function gives for ``(input_shape, n_classes)``.

    It must be a plain Keras model of class probabilities, (B, height, width, `n_classes`), of images of `input_shape`,
    whose height and width are multiples of 32 or None. Its output may be smaller than its input, by at most
    `FAR_CONTEXT` at each side. Raises `InputError`.
    """
    network = own_function("MODEL", name)(input_shape, n_classes)
    shapes = tuple(network.input_shape[1:]), network.output_shape[-1]
    if shapes != (tuple(input_shape), n_classes):
        raise InputError(
            f"config.MODEL = {name!r}: takes {shapes[0]} and gives {shapes[1]} channels, expected {tuple(input_shape)} "
            f"and {n_classes}"
        )
    sides = [side for side in zip(input_shape[:2], network.output_shape[1:3], strict=True) if None not in side]
    if any(not 0 <= before - after <= 2 * FAR_CONTEXT for before, after in sides):
        raise InputError(
            f"config.MODEL = {name!r}: takes {tuple(input_shape[:2])} pixels and gives {network.output_shape[1:3]}, "
            f"expected at most {FAR_CONTEXT} fewer at each side; pad its convolutions"
        )
    check_standard("MODEL", name, network)
    return network


def _segmentation_models_network(
    name, encoder_weights, *, input_shape, n_classes, regularizer_weight, dtype_policy, batch_norm_momentum=0.9, seed
):
    """One of segmentation_models' networks as a plain graph of standard Keras layers.

    Input `image`: float32 (B, height, width, 3), the slices z - 1, z, z + 1; height and width may be None except for
    `FIXED_SIZE`. Output `segmentation`: float32 class probabilities (B, height, width, n_classes). Convolution kernels
    carry an L2 penalty, batch norms the momentum given (MobileNetV2's own, 0.999, would lag thousands of steps behind),
    and `seed` and `dtype_policy` are as in `model.create_unet_model`.

    `encoder_weights` is a file of weights for the backbone without its top, as `load_weights` takes it; "imagenet":
    those that the backbone's authors publish, which are downloaded once; None: random ones. Raises `InputError` where
    the file does not fit or cannot be downloaded.
    """
    import keras

    penalty = keras.regularizers.L2(regularizer_weight)
    architecture, _, backbone = name.partition("/")
    image = keras.Input(input_shape, name="image")
    with _seeded_python_random(seed):
        theirs = _build(architecture, backbone, input_shape, n_classes, encoder_weights)
        ours = keras.models.clone_model(
            theirs,
            input_tensors=image,
            clone_function=lambda layer: _standard_layer(layer, dtype_policy, penalty, batch_norm_momentum),
            call_function=lambda layer, *inputs, **_: layer(*inputs),  # Lambda layers were given mask=None, too
        )
    ours.set_weights(theirs.get_weights())
    return keras.Model(image, ours.output, name=f"{architecture}_{backbone}")


@contextlib.contextmanager
def _seeded_python_random(seed):
    """Let Keras draw the seeds of initial weights and of dropout, where none is given, from `seed`.

    It takes them from Python's random module, whose state is put back. segmentation_models passes no seeds.
    """
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _build(architecture, backbone, input_shape, n_classes, encoder_weights):
    """The network as segmentation_models builds it."""
    from utils.base import import_segmentation_models

    builder = getattr(import_segmentation_models(), architecture)
    weights = None if encoder_weights is None else str(encoder_weights)
    try:
        return builder(
            backbone, input_shape=input_shape, classes=n_classes, activation="softmax", encoder_weights=weights
        )
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        if weights == IMAGENET and type(error) is Exception:  # what Keras raises where a download fails
            raise InputError(
                f"config.ENCODER_WEIGHTS = {IMAGENET!r}: the weights of {backbone} could not be downloaded ({reason}); "
                "connect to the internet, name a file, or set None"
            ) from error
        if weights in (None, IMAGENET) or not isinstance(error, ValueError | OSError):
            raise
        raise InputError(f"{weights}: not a weights file of {backbone} without its top ({reason})") from error


def _standard_layer(layer, dtype_policy, penalty, batch_norm_momentum):
    """A new layer that computes what `layer` does and loads without segmentation_models.

    `dtype_policy`, the `penalty` on kernels and `batch_norm_momentum` are the new layer's.
    """
    from keras import layers

    config = {**layer.get_config(), "dtype": dtype_policy}
    if isinstance(layer, layers.Lambda):
        return _instead_of_lambda(layer, config["name"], dtype_policy)
    if isinstance(layer, layers.Dropout):  # efficientnet's own subclass drops alike
        return layers.Dropout.from_config(config)
    if isinstance(layer, layers.Activation) and layer.activation.__name__ == "softmax":
        # float32 under every policy: bfloat16 has no number between 0.996 and 1
        return layers.Activation("softmax", name="segmentation", dtype="float32")
    if isinstance(layer, layers.BatchNormalization):
        config["momentum"] = batch_norm_momentum
    if getattr(layer, "activation", None) is not None and layer.activation.__name__ == "swish":
        config["activation"] = "silu"  # efficientnet's own function of the same formula
    for regularizer in {"kernel_regularizer", "depthwise_regularizer"} & set(config):
        config[regularizer] = penalty
    return type(layer).from_config(config)


def _instead_of_lambda(layer, name, dtype_policy):
    """What the backbones' Lambda layers, known by their arguments, are in standard layers."""
    import keras
    from keras import layers

    inputs = as_list(layer.input)
    channels = inputs[0].shape[-1]
    match layer.arguments:
        case {"channels_axis": 3}:  # squeeze and excitation: (B, C) -> (B, 1, 1, C)
            return layers.Reshape((1, 1, channels), name=name, dtype=dtype_policy)
        case {"start": start, "stop": stop, "axis": 3}:  # a group of a grouped convolution: the last axis cropped
            crop = ((0, 0), (start, channels - stop))
            return layers.Cropping2D(crop, data_format="channels_first", name=name, dtype=dtype_policy)
        case {"scale": scale}:  # residual connection: x + scale * y
            x, y = (keras.Input(tensor.shape[1:], dtype=tensor.dtype) for tensor in inputs)
            scaled = layers.Rescaling(scale, dtype=dtype_policy)(y)
            return keras.Model([x, y], layers.Add(dtype=dtype_policy)([x, scaled]), name=name)
    raise ValueError(f"a Lambda layer {layer.name} with arguments {layer.arguments} has no standard equivalent here")
