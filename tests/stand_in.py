"""A network that tells IRF by brightness, stored as training stores one: labels with a meaning, without training."""

import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import onnx
from keras import layers
from onnx import TensorProto, helper, numpy_helper

from utils.networks.exported_model import export_best
from utils.tools.export_onnx import OPSET

DETAILS = {
    "network": "Unet/resnet18",  # any that is not rebuilt from its weights
    "axial_spacing_mm": 0.003872,
    "slice_mean": 128.0,
    "slice_sd": 128.0,
    "threshold": 0.5,
    "reference_histogram": None,
    "step": "segmentation",
    "epoch": 1,
}


def brightness_model(n_classes=4, bias=-100):
    """The U-Net's sizes: IRF where the pixel is brighter than 128 + 64 (with the default `bias`), else background."""
    image = keras.Input((None, None, 3))
    grey = layers.Cropping2D(46)(image)
    to_logits = layers.Conv2D(n_classes, 1, activation="softmax")
    logits = to_logits(grey)
    kernel = np.zeros((1, 1, 3, n_classes), np.float32)
    kernel[0, 0, 1, 1] = 200  # the middle channel is the slice itself
    to_logits.set_weights([kernel, np.array([0, bias, -300, -300, -300][:n_classes], np.float32)])
    return keras.Model(image, logits)


def export_brightness_model(folder, n_classes=4, bias=-100, **details):
    """Write it as ``best.keras`` with ``best.json`` into `folder`; returns the former's path."""
    export_best(folder, brightness_model(n_classes, bias), {**DETAILS, **details})
    return folder / "best.keras"


def export_brightness_onnx(folder, **details):
    """Write the same network as ``best.onnx`` into `folder`: scripts that are run with it need no Keras, which is slow.

    Returns the file's path.
    """
    kernel = np.zeros((3, 4), np.float32)
    kernel[1, 1] = 200
    constants = {"kernel": kernel, "bias": np.array([0, -100, -300, -300], np.float32)}
    constants |= {"first": np.array([46, 46]), "end": np.array([-46, -46]), "axes": np.array([1, 2])}
    nodes = [
        helper.make_node("Slice", ["image", "first", "end", "axes"], ["grey"]),
        helper.make_node("MatMul", ["grey", "kernel"], ["weighted"]),
        helper.make_node("Add", ["weighted", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["segmentation"], axis=-1),
    ]
    image, segmentation = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ("n", "rows", "columns", channels))
        for name, channels in (("image", 3), ("segmentation", 4))
    )
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "brightness", [image], [segmentation], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    helper.set_model_props(model, {"best.json": json.dumps({**DETAILS, "sha256": 64 * "0", **details})})
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "best.onnx")
    return folder / "best.onnx"


def bright_scan(slices=3, rows=130, columns=140):
    """A Spectralis-like scan, uint8 (slices, rows, columns): noise with a block in it that the model calls IRF."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(140, 180, (slices, rows, columns)).astype(np.uint8)
    voxels[:, 40:60, 30:70] = 230
    voxels[-1, 40:60, 30:40] = 150  # no two slices alike
    return voxels
