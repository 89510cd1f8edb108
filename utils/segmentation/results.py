"""The results of segmented scans in a folder: when they are complete, and how they come to their places."""

import contextlib
import os
import shutil

import numpy as np

from utils.errors import InputError
from utils.files import UNFINISHED, read_json
from utils.names import as_text, suffix_of
from utils.volumes.mhd import VOLUMES, read_volume, voxel_digest

_OWN_VOLUMES = ("probability_", "uncertainty")  # how the names of the volumes in a scan's folder begin


def output_name(vendor, name):
    """Name of a scan's label files, without suffix, and of its folder."""
    return f"{vendor}_{name}"


def finished_record(output, name):
    """Content of the ``scan.json`` of the scan whose results are called `name` in the folder `output`.

    None if it is missing or damaged, or if one of its label files is missing.
    """
    record = _read_record(output, name)
    complete = record is not None and all((output / file).exists() for file in _label_files(record, name))
    return record if complete else None


def _read_record(output, name):
    try:
        return read_json(output / name / "scan.json")
    except InputError:
        return None


def _label_files(record, name):
    """Names of the label files of a record; records of before tell none."""
    return record.get("labels", [f"{name}.raw", f"{name}.mhd"])


def holds_labels(path, digest):
    """Whether the volume at `path` holds the labels of this `voxel_digest`, in the same order and of any type."""
    voxels, _ = read_volume(path)
    labels = voxels.astype(np.uint8)
    return bool((labels == voxels).all()) and voxel_digest(labels) == digest


def volumes_of_readers(folder):
    """Paths of the volumes in a scan's folder that test.py did not write, sorted."""
    return [
        path
        for path in sorted(folder.iterdir())
        if suffix_of(path) in VOLUMES and not path.name.startswith((".", *_OWN_VOLUMES))
    ]


def check_uncorrected(output, name, record):
    """Raise `InputError` if a reader's correction would be lost: a changed label file, or a volume in the folder.

    `record` is that of `finished_record`. DICOM segmentations, damaged files and files of before, whose record has no
    digest of the labels, are not compared.
    """
    record = record or _read_record(output, name)
    lost = volumes_of_readers(output / name) if (output / name).exists() else []
    files = _label_files(record, name) if record else []
    for path in (output / file for file in files if suffix_of(file) in VOLUMES):
        with contextlib.suppress(InputError):  # nothing is lost with a damaged file
            if "labels_digest" in record and not holds_labels(path, record["labels_digest"]):
                lost.append(path)
    if lost:
        raise InputError(f"{lost[0]}: was corrected since the scan was segmented; use another --output")


@contextlib.contextmanager
def working_folder(output, name, path):
    """The folder below `output` in which the files of the scan at `path` are made; it is gone after the block.

    `name` is that of its output. Raises `InputError` while another scan of that name is segmented, in any process: some
    names are alike only once the files have told their vendor. What a worker left that died with the same scan goes.
    """
    folder = output / f"{UNFINISHED}{name}"
    owner = folder / "scan.txt"
    if owner.exists() and owner.read_text("utf-8") == as_text(path):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
    except FileExistsError:
        other = f"another scan is being written to {output / name}"
        raise InputError(f"{path}: {other}; use another --output for one of them") from None
    owner.write_text(as_text(path), "utf-8")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # it is gone if a cluster gave the scan to another worker, too


def put_in_place(temporary, output, name, labels):
    """Move a finished scan's folder `name` and its label files, called `labels`, from one folder to the other.

    Label files of before go first, the new ones come last, in their order: a scan without all of them is not complete.
    """
    before = _read_record(output, name)
    old = [] if before is None else _label_files(before, name)
    for file in reversed(list(dict.fromkeys([*old, *labels]))):
        (output / file).unlink(missing_ok=True)
    if (output / name).exists():
        shutil.rmtree(output / name)
    for file in (name, *labels):
        os.replace(temporary / file, output / file)
