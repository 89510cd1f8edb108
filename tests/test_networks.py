import random

import numpy as np
import pytest
from helpers import run_python

from utils.errors import InputError
from utils.networks.networks import (
    BACKBONES,
    FIXED_SIZE,
    LITE_UNET,
    SIZE_STEPS,
    check_encoder_weights,
    check_network,
    create_inference_network,
    create_network,
    tile_step,
)

SETTINGS = {"input_shape": (96, 96, 3), "regularizer_weight": 1e-4, "base_filters": 2, "train_classes": False}
SETTINGS |= {"n_classes": 4, "dtype_policy": "float32", "seed": 5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Unet/resnet43", (256, 128)), "did you mean 'Unet/resnet34'"),
        (("unet/resnet34", (256, 128)), "did you mean 'Unet/resnet34'"),
        (("Unet", (256, 128)), "must be 'tennakoon' or an architecture (Unet, Linknet, FPN, PSPNet) and a backbone"),
        (("Unet/densenet121", (256, 128)), "must be"),
        (("PSPNet/resnet34", (256, 128)), "patches are 256 x 128 pixels, must be multiples of 48, e.g. 240 x 144"),
        (("FPN/vgg16", (200, 128)), "must be multiples of 32, e.g. 192 x 128"),
        (("Unet/efficientnetlite0", (200, 128)), "must be multiples of 32, e.g. 192 x 128"),
        (("Unet/efficientnetlite1", (256, 128)), "did you mean 'Unet/efficientnetlite0'"),
        (("Linknet/efficientnetlite0", (256, 128)), "did you mean"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(arguments, message):
    with pytest.raises(InputError) as error:
        check_network(*arguments)
    assert message in error.value.messages[0]
    assert error.value.messages[0].startswith(f"config.MODEL = {arguments[0]!r}: ")


@pytest.mark.parametrize("name", ["Unet/vgg16", LITE_UNET])
def test_presence_heads_and_missing_weights_are_refused(name, tmp_path):
    missing = str(tmp_path / "weights.h5")
    with pytest.raises(InputError, match=r"config\.TRAIN_CLASSES = True: only 'tennakoon' has these heads"):
        check_network(name, (256, 128), train_classes=True)
    check_network(name, (256, 128), encoder_weights=missing)  # a prediction can do without it
    with pytest.raises(InputError, match=r"config\.ENCODER_WEIGHTS = '.*weights\.h5': no such file"):
        check_encoder_weights(name, missing)
    for weights in (missing, "imagenet"):
        with pytest.raises(InputError, match="the network 'tennakoon' takes none"):
            check_network("tennakoon", (256, 128), encoder_weights=weights)


def test_what_works_is_accepted():
    check_network("tennakoon", (256, 128), train_classes=True)
    for architecture, step in SIZE_STEPS.items():
        for backbone in BACKBONES:
            check_network(f"{architecture}/{backbone}", (4 * step, 2 * step), encoder_weights="imagenet")
    check_network(LITE_UNET, (192, 256), encoder_weights="imagenet")
    check_encoder_weights("Unet/vgg16", "imagenet")  # they are downloaded later
    assert [tile_step(name) for name in ("tennakoon", "Unet/vgg16", "PSPNet/vgg16")] == [8, 32, 48]


def test_the_papers_network_is_model_pys():
    network = create_network("tennakoon", **{**SETTINGS, "input_shape": (104, 104, 3)})
    assert network.name == "unet"
    assert network.output_shape == (None, 12, 12, 4)
    inference = create_inference_network("tennakoon", **SETTINGS)
    assert inference.output_shape == (None, None, None, 4)


@pytest.mark.slow
@pytest.mark.ci
def test_a_network_of_segmentation_models_is_seeded_and_exports_its_weights():
    settings = {**SETTINGS, "dtype_policy": "mixed_bfloat16"}
    before = random.getstate()
    network = create_network("Linknet/mobilenetv2", **settings, batch_norm_momentum=0.77)
    assert random.getstate() == before
    norms = [layer for layer in network.layers if type(layer).__name__ == "BatchNormalization"]
    assert {layer.momentum for layer in norms} == {0.77}
    kernels = [layer for layer in network.layers if type(layer).__name__ == "Conv2D"]
    assert {float(layer.kernel_regularizer.l2) for layer in kernels} == {1e-4}
    assert network.output_shape == (None, 96, 96, 4)
    assert network.output.dtype == "float32"
    again = create_network("Linknet/mobilenetv2", **settings)
    for weight, same in zip(network.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    other = create_network("Linknet/mobilenetv2", **{**settings, "seed": 6})
    assert any((a != b).any() for a, b in zip(network.get_weights(), other.get_weights(), strict=True))
    inference = create_inference_network("Linknet/mobilenetv2", **settings)
    inference.set_weights(network.get_weights())
    image = np.random.default_rng(0).normal(size=(1, 128, 96, 3)).astype(np.float32)
    probabilities = inference.predict_on_batch(image)
    assert probabilities.shape == (1, 128, 96, 4)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["Unet/resnet18", "FPN/efficientnetb0", "PSPNet/seresnet18", "Linknet/inceptionresnetv2", "Unet/resnext50"]
)
def test_an_exported_network_loads_without_this_code_and_computes_the_same(name, tmp_path):
    network = create_inference_network(name, **SETTINGS)
    network.save(tmp_path / "best.keras")
    image = np.random.default_rng(0).normal(size=(1, 96, 96, 3)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    code = (
        "import keras, numpy; m = keras.models.load_model('best.keras', compile=False, safe_mode=True);"
        "numpy.save('p.npy', m.predict_on_batch(numpy.load('image.npy')))"
    )
    run_python("-c", code, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), network.predict_on_batch(image), atol=1e-6)
    if name.partition("/")[0] not in FIXED_SIZE:  # after the second size, TensorFlow compiles for any
        for rows, columns in ((128, 96), (96, 192)):
            larger = np.zeros((1, rows, columns, 3), np.float32)
            assert network.predict_on_batch(larger).shape == (1, rows, columns, 4)


@pytest.mark.slow
def test_pretrained_weights_reach_the_encoder_and_those_of_another_are_refused(tmp_path):
    import keras

    backbone = keras.applications.MobileNetV2(input_shape=(96, 96, 3), include_top=False, weights=None)
    weights = str(tmp_path / "backbone.weights.h5")
    backbone.save_weights(weights)
    network = create_network("Linknet/mobilenetv2", encoder_weights=weights, **SETTINGS)
    for name in ("Conv1", "block_16_project"):
        expected = backbone.get_layer(name).get_weights()[0]
        np.testing.assert_array_equal(network.get_layer(name).get_weights()[0], expected)
    with pytest.raises(InputError, match=r"backbone\.weights\.h5: not a weights file of vgg16"):
        create_network("Unet/vgg16", encoder_weights=weights, **SETTINGS)


def test_weights_that_cannot_be_downloaded_are_one_line_and_bugs_stay_bugs(monkeypatch):
    class Builder:
        raised = Exception("URL fetch failure on https://host/resnet18.h5: None -- Name or service not known")

        @classmethod
        def Unet(cls, *arguments, **options):
            assert options["encoder_weights"] == "imagenet"
            raise cls.raised

    monkeypatch.setattr("utils.base.import_segmentation_models", lambda: Builder)
    with pytest.raises(InputError) as error:
        create_network("Unet/resnet18", **SETTINGS, encoder_weights="imagenet")
    (message,) = error.value.messages
    assert message.startswith(
        "config.ENCODER_WEIGHTS = 'imagenet': the weights of resnet18 could not be downloaded (URL"
    )
    Builder.raised = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        create_network("Unet/resnet18", **SETTINGS, encoder_weights="imagenet")
