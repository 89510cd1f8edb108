"""ONNX models: the same outputs as Keras', and test.py without Keras."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import run_python
from stand_in import DETAILS, bright_scan, export_brightness_model

from model import create_unet_model
from utils.errors import InputError
from utils.files import read_json, sha256, write_json
from utils.networks.exported_model import export_best, read_best
from utils.networks.networks import as_list, create_inference_network, tile_step
from utils.networks.onnx_model import OnnxNetwork
from utils.segmentation.predict import load_network
from utils.tools import export_onnx as export_module
from utils.tools.export_onnx import export_onnx, main
from utils.volumes.mhd import read_volume, write_volume

SPACING_MM = (0.0117, 0.003872, 0.12)
SLOW_NETWORKS = ("Unet/resnet18", "Unet/efficientnetb0", "Linknet/seresnet18", "FPN/mobilenetv2", "PSPNet/resnet18")
WITHOUT_KERAS = "import runpy, sys; sys.modules |= {'keras': None, 'tensorflow': None}; sys.argv = sys.argv[1:]; "
WITHOUT_KERAS += "runpy.run_path(sys.argv[0], run_name='__main__')"


def network_of(name):
    """An exported network with random weights, small if it can be."""
    if name == "presence heads":
        return "tennakoon", create_unet_model((None, None, 3), base_filters=4, train_classes=True, seed=1)
    if name == "same padding":
        return "tennakoon", create_unet_model((None, None, 3), base_filters=4, padding="same", seed=1)
    settings = {"n_classes": 4, "regularizer_weight": 0.0, "seed": 1, "batch_norm_momentum": 0.0}
    model = create_inference_network(name, input_shape=(192, 96, 3), **settings)
    model(np.random.default_rng(0).normal(size=(2, 192, 96, 3)).astype(np.float32), training=True)  # sets batch norms
    kernel = next(layer.kernel for layer in reversed(model.layers) if hasattr(layer, "kernel"))
    kernel.assign(kernel / 10)  # else a change of the image by 1e-6 changes random networks' outputs by 4e-4
    return name, model


@pytest.mark.parametrize(
    "name",
    [
        *("presence heads", "same padding"),
        pytest.param("Unet/efficientnetlite0", marks=[pytest.mark.slow, pytest.mark.ci]),
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_NETWORKS),
    ],
)
def test_outputs_are_those_of_keras_whatever_the_size(name, tmp_path):
    kind, model = network_of(name)
    padding = {"config": {"PADDING": "same"}} if name == "same padding" else {}
    export_best(tmp_path, model, {**DETAILS, "network": kind, **padding})
    export_onnx(tmp_path / "best.keras", tmp_path / "best.onnx")
    network = load_network(tmp_path / "best.onnx").model
    assert network.input_shape == model.input_shape
    step, fixed = tile_step(kind), model.input_shape[1:3]
    sizes = [fixed] if fixed[0] else [(8 * step, 6 * step), (7 * step, 11 * step)]
    for rows, columns in [(136, 152)] if step == 8 else sizes:
        images = np.random.default_rng(rows).normal(size=(2, rows, columns, 3)).astype(np.float32)
        outputs, expected = (as_list(of.predict_on_batch(images)) for of in (network, model))
        assert len(outputs) == len(expected) == len(as_list(network.output))
        for one, other in zip(outputs, expected, strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, atol=1e-4)
    assert np.ptp(expected[0]) > 0.01  # not the same everywhere


def test_the_file_holds_its_details(tmp_path):
    keras_model = export_brightness_model(tmp_path, decisions={"temperature": 1.5})
    main([str(keras_model)])
    path = tmp_path / "best.onnx"
    of_keras = read_json(tmp_path / "best.json")
    assert read_best(path) == of_keras | {"sha256": sha256(path), "made_from": of_keras["sha256"]}
    assert [opset.version for opset in onnx.load(path).opset_import if not opset.domain] == [18]
    onnx.checker.check_model(onnx.load(path))


def test_scans_are_segmented_without_keras(tmp_path):
    voxels = bright_scan()
    write_volume(tmp_path / "Spectralis" / "scan.mhd", voxels, SPACING_MM)
    model = export_brightness_model(tmp_path)
    export_onnx(model, tmp_path / "best.onnx")
    scan, output = tmp_path / "Spectralis" / "scan.mhd", tmp_path / "out"
    options = ("--mirrored", "--set", "WORKERS=2")
    command = (WITHOUT_KERAS, "test.py", scan, "--output", output, "--model")
    stdout, _ = run_python("-c", *command, tmp_path / "best.onnx", *options)
    assert "1 scans" in stdout
    labels, _ = read_volume(output / "Spectralis_scan.mhd")
    np.testing.assert_array_equal(labels == 1, voxels == 230)
    facts = read_json(output / "Spectralis_scan" / "scan.json")["facts"]
    assert facts["model_sha256"] == sha256(tmp_path / "best.onnx")
    _, stderr = run_python("-c", *command, model, expected=2)
    assert stderr.strip().endswith("name a model exported as ONNX")


@pytest.mark.parametrize("named", [(), ("--model", "box")])
def test_without_keras_the_box_is_an_onnx_model(tmp_path, named):
    write_volume(tmp_path / "Spectralis" / "scan.mhd", bright_scan(), SPACING_MM)
    command = ("test.py", tmp_path / "Spectralis", "--output", tmp_path / "out", "--set", f"OUTPUT_ROOT={tmp_path}")
    stdout, _ = run_python("-c", WITHOUT_KERAS, *command, *named)
    assert "weights/oct_fluid.onnx (segmentation" in stdout


def test_the_box_is_one_model_in_two_forms():
    box = Path(__file__).parents[1] / "weights"
    assert read_best(box / "oct_fluid.onnx")["made_from"] == read_best(box / "oct_fluid.keras")["sha256"]
    assert (box / "oct_fluid.onnx").stat().st_size < 16e6


@pytest.fixture
def exported(tmp_path):
    model = export_brightness_model(tmp_path)
    export_onnx(model, tmp_path / "best.onnx")
    return model.with_suffix(".onnx")


@pytest.mark.parametrize("change", [{"sha256": "another"}, {"decisions": {"temperature": 2.0}}])
def test_an_onnx_file_that_is_older_than_its_model_is_noticed(exported, change):
    read_best(exported)
    details = exported.with_suffix(".json")
    write_json(details, {**read_json(details), **change})
    with pytest.raises(InputError, match=r"best\.onnx: is older than best\.json beside it; export it anew"):
        read_best(exported)
    details.unlink()  # sent by itself
    read_best(exported)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"dtype_policy": "mixed_bfloat16"}, "an ONNX model computes in float32"),
    ],
)
def test_what_onnx_cannot_do_is_said(exported, options, complaint):
    with pytest.raises(InputError, match=complaint):
        load_network(exported, **options)


def test_damaged_and_foreign_files_are_refused(exported, tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "cut.onnx").write_bytes(exported.read_bytes()[:500])
    foreign = onnx.load(exported)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    two_classes = export_brightness_model(tmp_path / "two", n_classes=2)
    with pytest.raises(InputError, match="tells 2 classes"):
        export_onnx(two_classes, tmp_path / "two.onnx")
    for name, complaint in {
        "text": "not an ONNX model",
        "cut": "not an ONNX model",
        "foreign": "its metadata hold no best.json",
        "missing": "no such model",
    }.items():
        with pytest.raises(InputError, match=complaint) as caught:
            read_best(tmp_path / f"{name}.onnx")
        assert "\n" not in str(caught.value)


def test_a_network_that_comes_out_different_is_not_written(tmp_path, monkeypatch):
    model = export_brightness_model(tmp_path)

    class Wrong(OnnxNetwork):
        def predict_on_batch(self, images):
            return super().predict_on_batch(images) + np.float32(0.001)

    monkeypatch.setattr(export_module, "OnnxNetwork", Wrong)
    with pytest.raises(InputError, match=r"its outputs differ by 0\.001"):
        export_onnx(model, tmp_path / "best.onnx")
    assert not list(tmp_path.glob("*onnx"))


def test_names_that_cannot_be_exported_are_refused(tmp_path):
    model = export_brightness_model(tmp_path)
    shutil.copy(model, tmp_path / "copy.onnx")
    for arguments in ([tmp_path / "copy.onnx"], [model, "--output", tmp_path / "best.bin"]):
        with pytest.raises(InputError, match=r"expected a \.keras file"):
            main(list(map(str, arguments)))
    assert not (tmp_path / "best.bin").exists()
