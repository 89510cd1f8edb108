"""An exported model as one ONNX file, for onnxruntime.

    python -m utils.tools.export_onnx best.keras [--output best.onnx]

The file takes every size of image that the Keras model takes. Its metadata hold best.json. Before it is written, its
outputs are compared with Keras'. test.py --model best.onnx needs neither TensorFlow nor Keras. Exporting needs
`pip install tf2onnx onnxruntime`.
"""

import argparse
import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from utils.errors import InputError, run_script
from utils.files import written_whole
from utils.networks.exported_model import read_best
from utils.networks.keras_setup import set_up_keras
from utils.networks.networks import as_list
from utils.networks.onnx_model import DETAILS, SUFFIX, OnnxNetwork, is_onnx
from utils.segmentation.predict import load_network

NEEDED = ("tf2onnx", "onnxruntime")
OPSET = 18
LARGEST_DIFFERENCE = 1e-4  # of a probability
CHECKED_SIZES = ((192, 256), (288, 224))  # which every network takes that takes more than one


def main(argv):
    parser = argparse.ArgumentParser(
        prog="python -m utils.tools.export_onnx", description="An exported model as an ONNX file."
    )
    parser.add_argument("model", type=Path, metavar="FILE", help="a best.keras with its best.json")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: beside the model, with the suffix .onnx")
    arguments = parser.parse_args(argv)
    output = arguments.output or arguments.model.with_suffix(SUFFIX)
    difference = export_onnx(arguments.model, output)
    size_mb = output.stat().st_size / 1e6
    print(f"{output}: {size_mb:.1f} MB, opset {OPSET}; differs from {arguments.model} by at most {difference:.1g}")


def export_onnx(path, output):
    """Write the model at `path`, a ``.keras`` file with its ``best.json``, as the ONNX file `output`.

    Returns by how much its outputs differ at most from Keras' on images of noise. Raises `InputError` where that is
    more than `LARGEST_DIFFERENCE`, a file is no model, or the converter is not installed.
    """
    if is_onnx(path) or not is_onnx(output):
        raise InputError(f"{path} to {output}: expected a .keras file, and a name that ends in {SUFFIX}")
    details = read_best(path)
    if missing := [package for package in NEEDED if not find_spec(package)]:
        raise InputError(f"{', '.join(missing)}: not installed; to export, pip install {' '.join(NEEDED)}")
    os.environ["KERAS_BACKEND"] = "tensorflow"  # whose graphs are converted; the model may be of another backend
    set_up_keras(seed=0, deterministic=True)
    import onnx
    import tensorflow
    import tf2onnx

    model = load_network(path).model
    for_onnx = _with_onnx_layers(model)
    converted, _ = tf2onnx.convert.from_function(
        tensorflow.function(lambda image: as_list(for_onnx(image, training=False))),
        input_signature=[tensorflow.TensorSpec(model.input_shape, tensorflow.float32, model.inputs[0].name)],
        opset=OPSET,
    )
    _name_outputs(converted.graph, model.output_names)
    onnx.helper.set_model_props(converted, {DETAILS: json.dumps(details)})
    with written_whole(output) as temporary:
        onnx.save(converted, temporary)
        difference = _largest_difference(model, OnnxNetwork(temporary))
        if difference > LARGEST_DIFFERENCE:
            raise InputError(f"{path}: as ONNX its outputs differ by {difference:.2g}; please report this network")
    return difference


def _with_onnx_layers(model):
    """`model` with layers that onnxruntime computes faster in place of two that tf2onnx takes apart."""
    import keras
    import tensorflow

    class Enlarged(keras.layers.Layer):
        """Pixels repeated, as ONNX's Resize; from Keras' own layer come Tile and Transpose."""

        def __init__(self, layer):
            super().__init__(name=layer.name)
            self._size = layer.size

        def call(self, tensor):
            size = tensorflow.shape(tensor)[1:3] * self._size
            return tensorflow.raw_ops.ResizeNearestNeighbor(images=tensor, size=size)

    class Softmax(keras.layers.Layer):
        """Written out: ONNX's Softmax is slow over the channels."""

        def call(self, tensor):
            powers = tensorflow.exp(tensor - tensorflow.reduce_max(tensor, axis=-1, keepdims=True))
            return powers / tensorflow.reduce_sum(powers, axis=-1, keepdims=True)

    def layer_for_onnx(layer):
        if isinstance(layer, keras.layers.UpSampling2D) and layer.interpolation == "nearest":
            return Enlarged(layer)
        if getattr(layer, "activation", None) is keras.activations.softmax and not layer.weights:
            return Softmax(name=layer.name)
        return layer

    return keras.models.clone_model(model, clone_function=layer_for_onnx)


def _name_outputs(graph, names):
    """Give the outputs of an ONNX `graph`, in their order, the `names`."""
    new = dict(zip((output.name for output in graph.output), names, strict=True))
    for output in graph.output:
        output.name = new[output.name]
    for node in graph.node:
        node.output[:] = [new.get(name, name) for name in node.output]
        node.input[:] = [new.get(name, name) for name in node.input]


def _largest_difference(model, network):
    """The largest absolute difference between the outputs of the Keras `model` and an `OnnxNetwork`."""
    noise = np.random.default_rng(0)
    sizes = CHECKED_SIZES if model.input_shape[1] is None else [model.input_shape[1:3]]
    differences = []
    for size in sizes:
        image = noise.normal(size=(1, *size, 3)).astype(np.float32)
        outputs = zip(*(as_list(of.predict_on_batch(image)) for of in (model, network)), strict=True)
        differences += [float(np.abs(ours - theirs).max()) for ours, theirs in outputs]
    return max(differences)


if __name__ == "__main__":
    run_script(main)
