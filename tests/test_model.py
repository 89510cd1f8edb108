"""Shapes, parameters, equivariance and storage of the networks; run again on JAX by the last test."""

import importlib.util
import json
import os
import zipfile

import keras
import numpy as np
import pytest
from helpers import PROJECT, run_python
from keras import layers, ops

from loss_functions import get_combined_cross_entropy_and_dice_loss_function, get_dice_loss
from model import LayerOptions, create_discriminator, create_encoder_layer, create_unet_model, main
from utils.errors import InputError


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def predict(model, inputs, training=False):
    """Outputs as numpy arrays, without the cost of compiling."""
    outputs = model(inputs, training=training)
    if isinstance(outputs, list):
        return [ops.convert_to_numpy(output) for output in outputs]
    return ops.convert_to_numpy(outputs)


def test_default_size_and_parameters():
    model = create_unet_model()
    assert model.count_params() == 7_781_828
    assert model.input_shape == (None, 256, 128, 3)
    assert model.output_shape == (None, 164, 36, 4)
    assert model.layers[-1].name == "segmentation"


def test_the_drawing_of_the_networks_takes_no_arguments():
    with pytest.raises(InputError, match="expected none"):
        main(["--unknown"])


def test_layers_of_the_unet():
    model = create_unet_model(base_filters=4)
    by_name = {layer.name: layer for layer in model.layers}
    convolutions = [layer for layer in model.layers if isinstance(layer, layers.Conv2D | layers.Conv2DTranspose)]
    assert all(layer.kernel_regularizer.l2 == pytest.approx(1e-4) for layer in convolutions)
    filters = [by_name[f"{name}_convolution2"].filters for name in ("encoder1", "encoder2", "encoder3", "bottleneck")]
    assert filters == [4, 8, 16, 32]
    assert [by_name[f"decoder{level}_convolution2"].filters for level in (3, 2, 1)] == [16, 8, 4]

    normalised = {layer.name for layer in model.layers if isinstance(layer, layers.BatchNormalization)}
    blocks = ("encoder1", "encoder2", "encoder3", "bottleneck", "decoder3", "decoder2")
    assert normalised == {f"{block}_batch_norm" for block in blocks}
    assert by_name["encoder1_convolution1"].activation is keras.activations.relu
    assert by_name["encoder1_convolution2"].activation is keras.activations.linear  # ReLU follows the normalisation
    assert by_name["segmentation_logits"].activation is keras.activations.linear

    rates = [by_name[f"decoder{level}_{side}_dropout"].rate for level in (3, 2, 1) for side in ("upsampled", "skip")]
    assert rates == [0.25, 0.25, 0.25, 0.25, 0.5, 0.5]
    assert by_name["decoder1_dropout"].rate == 0.25
    crops = {layer.name: layer.cropping for layer in model.layers if isinstance(layer, layers.Cropping2D)}
    assert crops == {
        "decoder3_skip": ((5, 4), (5, 4)),
        "decoder2_skip": ((17, 17), (17, 17)),
        "decoder1_skip": ((42, 42), (42, 42)),
        "output_x8_cropped": ((14, 14), (14, 14)),
        "output_x4_cropped": ((6, 6), (6, 6)),
        "output_x2_cropped": ((2, 2), (2, 2)),
    }


def test_output_scales_are_centred_on_the_input():
    """A bright pixel must move the output around its own place, at every scale that it reaches."""
    model = create_unet_model(base_filters=4, seed=0)
    dark = np.zeros((1, 256, 128, 3), "float32")
    bright = dark.copy()
    bright[0, 128, 64] = 100
    change = np.abs(predict(model, bright) - predict(model, dark)).sum(axis=(0, 3))
    rows, columns = np.nonzero(change > 0.05 * change.max())
    weights = change[rows, columns]
    assert np.average(rows, weights=weights) == pytest.approx(128 - 46, abs=4)
    assert np.average(columns, weights=weights) == pytest.approx(64 - 46, abs=4)


def test_the_descriptions_example_maps_224_pixels_to_224():
    model = create_unet_model(input_shape=(224, 224, 3), padding="same")
    assert model.output_shape == (None, 224, 224, 4)
    assert model.count_params() == 7_781_828


def test_activations_and_penalties_are_those_asked_for():
    model = create_unet_model(
        (96, 96, 3), "l1", 0.25, activation="sigmoid", convolution_activation="elu", base_filters=4
    )
    by_name = {layer.name: layer for layer in model.layers}
    assert by_name["segmentation"].activation is keras.activations.sigmoid
    elus = ("image_convolution", "encoder1_convolution1", "encoder1_activation", "decoder1_activation")
    assert all(by_name[name].activation is keras.activations.elu for name in elus)
    kernels = [layer.kernel for layer in model.layers if isinstance(layer, layers.Conv2D | layers.Conv2DTranspose)]
    absolute_sum = sum(np.abs(ops.convert_to_numpy(kernel)).sum() for kernel in kernels)
    assert float(sum(model.losses)) == pytest.approx(0.25 * absolute_sum, rel=1e-5)


def test_the_encoder_layers_two_forms():
    """The first convolves with 7x7 filters at full size, a later one pools first; 'valid' loses 4 pixels."""
    image = keras.Input((64, 48, 3))
    options = LayerOptions(np.random.default_rng(0))
    first = keras.Model(image, create_encoder_layer(image, 5, "encoder1", options, is_first=True))
    later = keras.Model(image, create_encoder_layer(image, 5, "encoder2", options))
    assert (first.output_shape, later.output_shape) == ((None, 60, 44, 5), (None, 28, 20, 5))
    kernels = [
        [layer.kernel_size for layer in model.layers if isinstance(layer, layers.Conv2D)] for model in (first, later)
    ]
    assert kernels == [[(7, 7), (3, 3), (3, 3)], [(3, 3), (3, 3)]]
    assert [layer.pool_size for layer in later.layers if isinstance(layer, layers.MaxPooling2D)] == [(2, 2)]
    assert not [layer for layer in first.layers if isinstance(layer, layers.MaxPooling2D)]


def test_padding_same_keeps_the_size():
    assert create_unet_model((64, 48, 3), base_filters=4, padding="same").output_shape == (None, 64, 48, 4)
    same, valid = (create_unet_model(padding=padding, base_filters=4) for padding in ("same", "valid"))
    assert same.count_params() == valid.count_params()
    anywhere = create_unet_model((None, None, 3), base_filters=4, padding="same")
    assert predict(anywhere, images(1, 40, 16, 3)).shape == (1, 40, 16, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (250, 128, 3)}, "multiples of 8"),
        ({"input_shape": (88, 128, 3)}, "96 or more"),
        ({"padding": "reflect"}, "'valid' and 'same'"),
        ({"regularizer_type": "l3"}, "l1, l2"),
    ],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_unet_model(**arguments)


@pytest.mark.parametrize("size", [(256, 128), (304, 600), (96, 104)])
def test_a_model_without_fixed_size_equals_the_fixed_one(size):
    fixed = create_unet_model((*size, 3), base_filters=4, seed=1)
    free = create_unet_model((None, None, 3), base_filters=4, seed=2)
    free.set_weights(fixed.get_weights())
    image = images(1, *size, 3)
    expected = predict(fixed, image)
    assert expected.shape == (1, size[0] - 92, size[1] - 92, 4)
    np.testing.assert_allclose(predict(free, image), expected, atol=1e-6)
    np.testing.assert_allclose(expected.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("axis", [1, 2])
def test_shifting_the_input_by_8_shifts_the_output_by_8(axis):
    model = create_unet_model((None, None, 3), base_filters=8, seed=0)
    image = images(1, 208, 208, 3)
    here, shifted = (predict(model, np.take(image, range(start, start + 200), axis)) for start in (0, 8))
    here, shifted = np.moveaxis(here, axis, 0)[8:], np.moveaxis(shifted, axis, 0)[:-8]
    assert len(here) == 100
    np.testing.assert_allclose(here[1:-1], shifted[1:-1], atol=1e-4)
    np.testing.assert_allclose(here[9:-9], shifted[9:-9], atol=1e-6)
    assert np.abs(here[0] - shifted[0]).max() > 1e-4  # the last convolution sees the rim


def test_seed_fixes_weights_and_dropout_and_leaves_global_state_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    image = images(2, 96, 96, 3)
    first, again, other = (create_unet_model((96, 96, 3), base_filters=4, seed=seed) for seed in (5, 5, 6))
    for weight, same_weight in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same_weight)
    assert np.abs(first.get_weights()[0] - other.get_weights()[0]).max() > 0.01
    kernels = [layer.kernel_initializer.seed for layer in first.layers if hasattr(layer, "kernel_initializer")]
    assert len(set(kernels)) == len(kernels)
    one_draw = predict(first, image, training=True)
    np.testing.assert_array_equal(one_draw, predict(again, image, training=True))
    assert np.abs(one_draw - predict(first, image, training=True)).max() > 1e-3  # another draw of channels
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.slow
@pytest.mark.ci
def test_train_classes_adds_three_heads_that_train():
    model = create_unet_model((96, 96, 3), base_filters=4, train_classes=True, seed=0)
    assert model.output_names == ["segmentation", "irf", "srf", "ped"]
    assert [output.shape for output in model.outputs] == [(None, 4, 4, 4), (None, 1), (None, 1), (None, 1)]
    image = images(4, 96, 96, 3)
    mask = np.zeros((4, 96, 96, 4), "uint8")
    mask[..., 0] = 1
    image[:2, :, :, 0] += 2
    is_irf = np.array([[1], [1], [0], [0]], "float32")
    targets = (mask, is_irf, 1 - is_irf, np.zeros((4, 1), "float32"))
    dice_and_cross_entropy = get_combined_cross_entropy_and_dice_loss_function(4, 4)
    model.compile(keras.optimizers.Adam(0.01), [dice_and_cross_entropy, *["binary_crossentropy"] * 3])
    for _ in range(20):
        model.train_on_batch(image, targets)
    _, irf, srf, ped = predict(model, image)
    assert irf.min() >= 0
    assert irf.max() <= 1
    assert irf[:2].min() > irf[2:].max()
    assert srf[:2].max() < srf[2:].min()
    assert ped.max() < 0.5


@pytest.mark.parametrize("train_classes", [False, True])
def test_a_saved_model_loads_without_this_code(tmp_path, train_classes):
    model = create_unet_model((None, None, 3), base_filters=4, train_classes=train_classes, seed=0)
    path = tmp_path / "best.keras"
    model.save(path)
    loaded = keras.models.load_model(path, compile=False)
    image = images(1, 104, 96, 3)
    for expected, output in zip(predict(model, image), predict(loaded, image), strict=True):
        np.testing.assert_allclose(output, expected, atol=1e-6)
    modules, registered_names = set(), set()
    collect_classes(json.loads(zipfile.ZipFile(path).read("config.json")), modules, registered_names)
    assert {module.split(".")[0] for module in modules} == {"keras"}
    assert registered_names <= {None, "Functional"}


def collect_classes(config, modules, registered_names):
    """Where the classes that a saved configuration names come from."""
    if isinstance(config, dict):
        if "class_name" in config and "module" in config:
            modules.add(config["module"])
            registered_names.add(config["registered_name"])
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            collect_classes(part, modules, registered_names)


def test_mixed_precision_keeps_float32_outputs_and_weights():
    mixed = create_unet_model((96, 96, 3), base_filters=4, train_classes=True, seed=0, dtype_policy="mixed_bfloat16")
    assert mixed.get_layer("encoder2_convolution1").compute_dtype == "bfloat16"
    assert {output.dtype for output in mixed.outputs} == {"float32"}
    assert {weight.dtype for weight in mixed.trainable_variables} == {"float32"}
    plain = create_unet_model((96, 96, 3), base_filters=4, train_classes=True, seed=1)
    plain.set_weights(mixed.get_weights())
    image = images(1, 96, 96, 3)
    segmentation = predict(mixed, image)[0]
    np.testing.assert_allclose(segmentation, predict(plain, image)[0], atol=0.02)
    np.testing.assert_allclose(segmentation.sum(axis=-1), 1, atol=1e-5)  # bfloat16 would be off by 0.004
    discriminator = create_discriminator(base_filters=4, dtype_policy="mixed_bfloat16")
    assert discriminator.output.dtype == "float32"


def test_discriminator():
    model = create_discriminator()
    # 7x7 and two 3x3 per branch; 128, 256 and 512 filters twice each; one dense unit
    branches = 7 * 7 * (3 + 4) * 64 + 2 * 64 + 4 * (9 * 64 * 64 + 64)
    levels = 2 * (9 * 128 * 128 + 128) + 9 * 256 * (128 + 256) + 2 * 256 + 9 * 512 * (256 + 512) + 2 * 512
    assert model.count_params() == branches + levels + 512 + 1
    assert model.output_shape == (None, 1)
    assert [pool.pool_size for pool in model.layers if isinstance(pool, layers.MaxPooling2D)] == [
        (2, 2),
        (2, 1),
        (2, 1),
    ]
    assert not [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert model.layers[-1].activation is keras.activations.linear


def test_discriminator_of_any_size():
    fixed = create_discriminator(base_filters=4, seed=3)
    free = create_discriminator((None, None, 3), base_filters=4, seed=3)
    inputs = [images(2, 164, 36, 3), np.eye(4, dtype="float32")[np.random.default_rng(0).integers(0, 4, (2, 164, 36))]]
    logits = predict(fixed, inputs)
    np.testing.assert_allclose(predict(free, inputs), logits, atol=1e-6)
    assert predict(free, [images(1, 40, 24, 3), images(1, 40, 24, 4)]).shape == (1, 1)
    other_mask = [inputs[0], np.roll(inputs[1], 1, axis=-1)]
    assert np.abs(predict(fixed, other_mask) - logits).min() > 1e-5


def test_one_wrong_place_counts_as_much_however_large_the_patch():
    """An average over the patch would hardly change by it."""
    discriminator, differences = create_discriminator((None, None, 3), base_filters=4, seed=3), []
    for rows in (164, 492):
        mask = np.zeros((1, rows, 36, 4), "float32")
        mask[..., 0] = 1
        speck = mask.copy()
        speck[0, 80:84, 16:20] = (0, 1, 0, 0)
        image = np.zeros((1, rows, 36, 3), "float32")
        logits = [float(predict(discriminator, [image, shown])[0, 0]) for shown in (mask, speck)]
        differences.append(abs(logits[1] - logits[0]))
    assert differences[1] == pytest.approx(differences[0], rel=1e-3)
    assert differences[0] > 1e-3


@pytest.mark.slow
@pytest.mark.ci
def test_one_batch_can_be_learned_by_heart():
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:128, :120]
    image = rng.normal(-0.3, 0.1, (2, 128, 120, 3)).astype("float32")
    labels = np.zeros((2, 128, 120), int)
    for index in range(2):
        for label in (1, 2, 3):
            row, column = rng.integers(48, 80), rng.integers(48, 72)
            disk = (rows - row) ** 2 + (columns - column) ** 2 < 7**2
            labels[index][disk] = label
            image[index][disk] = (-0.9, 0.3, 0.9)[label - 1]
    mask = np.eye(4, dtype="uint8")[labels]
    model = create_unet_model((128, 120, 3), base_filters=8, seed=0)
    model.compile(
        keras.optimizers.Adam(5e-3, beta_1=0.5),
        get_combined_cross_entropy_and_dice_loss_function(2, 4),
    )
    for _ in range(60):
        model.train_on_batch(image, mask)
    prediction = predict(model, image)
    assert float(get_dice_loss(mask, prediction)) < 0.05
    fluid = labels[:, 46:-46, 46:-46] > 0
    assert (prediction.argmax(axis=-1) == labels[:, 46:-46, 46:-46])[fluid].mean() > 0.95  # and of the right kind


def test_pictures_need_graphviz(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"model_unet.png: found no pydot or no Graphviz"):
        main([])
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax") is None or keras.backend.backend() == "jax", reason="JAX missing or already in use"
)
def test_everything_here_passes_on_jax():
    files = [PROJECT / "tests" / f"test_{name}.py" for name in ("model", "loss_functions", "metrics")]
    run_python("-m", "pytest", "-q", "-m", "not slow", *files, environment={**os.environ, "KERAS_BACKEND": "jax"})


@pytest.mark.parametrize(("padding", "train_classes"), [("valid", True), ("same", False)])
def test_the_rearranged_output_is_the_plain_ones(padding, train_classes):
    settings = {"base_filters": 4, "seed": 3, "padding": padding, "train_classes": train_classes}
    plain = create_unet_model((104, 112, 3), **settings)
    rearranged = create_unet_model((104, 112, 3), **settings, rearranged_output=True)
    for weight, same in zip(plain.weights, rearranged.weights, strict=True):
        assert weight.path.split("/")[-2:] == same.path.split("/")[-2:]
        np.testing.assert_array_equal(weight, same)
    rng = np.random.default_rng(0)
    for model in (plain, rearranged):
        bias = model.get_layer("segmentation_logits").bias
        bias.assign([0.1, -0.2, 0.3, 0.0])
    image = rng.normal(size=(2, 104, 112, 3)).astype(np.float32)
    outputs, same = (keras.tree.flatten(model.predict_on_batch(image)) for model in (plain, rearranged))
    for output, expected in zip(same, outputs, strict=True):
        np.testing.assert_allclose(output, expected, atol=1e-6)
    losses = []
    target = np.eye(4, dtype=np.float32)[rng.integers(0, 4, outputs[0].shape[:3])]
    for model in (plain, rearranged):  # one step of steepest descent, dropout and penalties included
        keras.utils.set_random_seed(0)
        output = model.outputs[0] if train_classes else model.output
        trained = keras.Model(model.input, output)
        trained.compile(keras.optimizers.SGD(0.1), "categorical_crossentropy")
        losses.append(trained.train_on_batch(image, target))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for weight, same in zip(plain.get_weights(), rearranged.get_weights(), strict=True):
        np.testing.assert_allclose(same, weight, atol=1e-5)


def test_the_rearranged_output_takes_images_of_any_size():
    model = create_unet_model((None, None, 3), base_filters=2, seed=3, rearranged_output=True)
    assert model.output_shape == (None, None, None, 4)
    assert model.predict_on_batch(np.zeros((1, 104, 128, 3), np.float32)).shape == (1, 12, 36, 4)
