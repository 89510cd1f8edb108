"""Judges of the files that the scripts have written: are they whole, and do two folders hold the same?"""

import csv
import hashlib
import io
import json
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from utils.errors import InputError
from utils.files import UNFINISHED, sha256
from utils.networks.exported_model import read_best
from utils.volumes.mhd import open_volume

# Names in tables and JSON that two equal runs may differ in; Keras puts addresses in memory into a model's config.
NOT_RESULTS = {"seconds", "patches_per_s", "WORKERS", "shared_object_id"}
ROUNDING = 1e-5  # an epoch's means are put together from those over its parts, in float32
LEFT_OUT = ("tensorboard", ".lock")  # event files grow while they are written, and have a process's name


def files_below(folder):
    """{path relative to `folder`: path} of the files under final names."""
    found = {path.relative_to(folder): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    return {
        name: path
        for name, path in found.items()
        if not any(part in LEFT_OUT or part.startswith(UNFINISHED) for part in name.parts)
    }


# ---- Whole ---------------------------------------------------------------------------------------------------------
def incomplete(folder):
    """A line for each file below `folder` that has its final name and is not whole.

    A pair's first file (.raw, .keras, .npz) counts from its second (.mhd, .json) on.
    """
    complaints = []
    for name, path in files_below(folder).items():
        try:
            _check_whole(path)
        except (ValueError, KeyError, OSError, InputError, zipfile.BadZipFile) as error:
            complaints.append(f"{name}: {error}")
    return complaints


def _check_whole(path):
    if path.suffix == ".mhd":
        open_volume(path)
    elif path.suffix == ".json":
        content = json.loads(path.read_text("utf-8"))
        if path.name == "best.json":
            read_best(path.with_suffix(".keras"))
        elif path.name.startswith("last-") and content["sha256"] != sha256(path.with_suffix(".npz")):
            raise ValueError("does not belong to its arrays")
    elif path.suffix == ".csv":
        text = path.read_text("utf-8")
        if not text.endswith("\n") or len({len(row) for row in csv.reader(io.StringIO(text))}) != 1:
            raise ValueError("ends within a row")
    elif path.suffix in (".png", ".jpg", ".tif"):
        with Image.open(path) as image:
            image.load()
        if path.suffix == ".png" and path.read_bytes()[-8:-4] != b"IEND":  # which is not looked for in loading
            raise ValueError("has no end")
    elif path.suffix == ".html":
        if not path.read_text("utf-8").rstrip().endswith("</html>"):
            raise ValueError("has no end")
    elif path.suffix == ".h5":
        h5py.File(path).close()


# ---- The same ------------------------------------------------------------------------------------------------------
def difference(folder, reference):
    """In words the first difference between what two folders hold, or None.

    Voxels, labels, pictures, tables and reports are compared byte for byte, networks and states by their arrays, logged
    numbers within `ROUNDING`. Times, the number of processes and the models' checksums, which hold a date, may differ,
    and so may the step of the state that is kept beside the newest: the clock chooses it.
    """
    ours, theirs = (_without_older_states(files_below(root)) for root in (folder, reference))
    if ours.keys() != theirs.keys():
        return f"only in one: {', '.join(map(str, sorted(ours.keys() ^ theirs.keys())))}"
    unfinished = [str(path.relative_to(folder)) for path in Path(folder).rglob(f"{UNFINISHED}*")]
    if unfinished:
        return f"left behind: {', '.join(unfinished)}"
    checksums = _model_checksums(folder), _model_checksums(reference)
    for name, path in ours.items():
        if path.read_bytes() == theirs[name].read_bytes():
            continue
        contents = [_content(file, of) for file, of in zip((path, theirs[name]), checksums, strict=True)]
        if where := _unequal(*contents):
            return f"{name}{where}"
    return None


def _without_older_states(files):
    """`files` of `files_below` without the ``last-*`` of each folder but the newest."""
    newest = {name.parent: name.stem for name in sorted(files) if name.name.startswith("last-")}
    return {
        name: path
        for name, path in files.items()
        if not name.name.startswith("last-") or name.stem == newest[name.parent]
    }


def _model_checksums(folder):
    """{SHA-256 of each exported model below `folder`: its path in there}."""
    return {sha256(path): str(path.relative_to(folder)) for path in sorted(Path(folder).rglob("best.keras"))}


def _content(path, checksums):
    """What a file says, with models' paths for their `checksums`, as dictionaries, lists, numbers, texts and arrays."""
    if path.suffix == ".npz":
        with np.load(path) as stored:
            return {name: stored[name] for name in stored.files}
    if path.suffix == ".h5":
        return _arrays(path)
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            return {"config": config, **_arrays(io.BytesIO(archive.read("model.weights.h5")))}
    if path.name == "progress.png":  # drawn from log.csv, whose numbers may differ by ROUNDING
        with Image.open(path) as image:
            return image.size
    if path.suffix not in (".json", ".csv", ".html", ".md"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    text = path.read_text("utf-8")
    for checksum, model in checksums.items():
        text = text.replace(checksum, model).replace(checksum[:12], model)
    if path.suffix == ".json":
        return json.loads(text)
    if path.suffix == ".csv":
        return [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(io.StringIO(text))]
    return re.sub("WORKERS *[=:] *[0-9]+", "", text)


def _arrays(file):
    """{name: array} of an HDF5 file."""
    arrays = {}
    with h5py.File(file) as stored:
        stored.visititems(
            lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
    return arrays


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def _unequal(ours, theirs):
    """Where two contents differ, as text that continues a file's name; None if they are equal."""
    if isinstance(ours, np.ndarray) and isinstance(theirs, np.ndarray):
        return None if np.array_equal(ours, theirs) else ": arrays differ"
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.keys() != theirs.keys():
            return f": has {', '.join(sorted(ours.keys() ^ theirs.keys()))} in one only"
        places = ((f", {key}", ours[key], theirs[key]) for key in ours if key not in NOT_RESULTS)
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        places = ((f", {index}", *pair) for index, pair in enumerate(zip(ours, theirs, strict=True)))
    elif isinstance(ours, float) and isinstance(theirs, float) and np.isclose(ours, theirs, ROUNDING, equal_nan=True):
        return None
    else:
        return None if ours == theirs else f": {str(ours)[:80]} instead of {str(theirs)[:80]}"
    return next((place + where for place, *pair in places if (where := _unequal(*pair))), None)
