"""A network in an ONNX file, which onnxruntime computes without Keras. The file's metadata hold its best.json."""

import json
from pathlib import Path

from utils.errors import InputError
from utils.files import sha256

SUFFIX = ".onnx"
DETAILS = "best.json"  # the key of the metadata


def is_onnx(path):
    """Whether the model at `path` is an ONNX file, by its name."""
    return Path(path).suffix.lower() == SUFFIX


def read_onnx_details(path):
    """The details of the ONNX file at `path`: those of the model it was made from, and its own SHA-256 as `sha256`.

    ``made_from`` is the SHA-256 of the ``.keras`` file. Raises `InputError` as `open_session` does.
    """
    details = json.loads(open_session(path, optimised=False).get_modelmeta().custom_metadata_map[DETAILS])
    return details | {"made_from": details["sha256"], "sha256": sha256(path)}


def open_session(path, threads=None, optimised=True):
    """An ``onnxruntime.InferenceSession`` of the file at `path` on `threads` cores of the CPU (None: all).

    `optimised` is whether it will compute. Raises `InputError` where onnxruntime is not installed, or the file is not
    one by `utils.tools.export_onnx`.
    """
    try:
        import onnxruntime
    except ImportError:
        raise InputError(f"{path}: onnxruntime is not installed; pip install -r requirements-segment.txt") from None
    if not Path(path).exists():
        raise InputError(f"{path}: no such model; name another with --model")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors; they arrive as exceptions, too
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's classes have no parent of their own
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{path}: not an ONNX model ({reason}); export it again") from error
    if DETAILS not in session.get_modelmeta().custom_metadata_map:
        raise InputError(f"{path}: its metadata hold no {DETAILS}; export it with python -m utils.tools.export_onnx")
    return session


class OnnxNetwork:
    """What a prediction needs of a Keras model, computed by onnxruntime."""

    def __init__(self, path, threads=None):
        self._session = open_session(path, threads)
        (image,) = self._session.get_inputs()
        self._image = image.name
        self.input_shape = tuple(size if isinstance(size, int) else None for size in image.shape)
        self.output = self._session.get_outputs()  # each has a `shape`

    def predict_on_batch(self, images):
        """The outputs for `images`, float32 (B, H, W, 3), as a list of numpy arrays."""
        return self._session.run(None, {self._image: images})
