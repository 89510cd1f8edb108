"""The label volumes in test.py's output that a reader has corrected since, as items to import."""

import datetime
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import InputError
from utils.files import fingerprint, read_json
from utils.importing.class_table import ClassTable
from utils.importing.layouts import Found, Item
from utils.importing.segmentations import read_segmentation
from utils.labels import FLUIDS
from utils.names import as_text, same_name, suffix_of
from utils.segmentation.results import holds_labels, volumes_of_readers
from utils.volumes.formats import read_content
from utils.volumes.mhd import VOLUMES, VolumeHeader, volume_files, voxel_digest
from utils.volumes.scans import search_scans

_LEFT_OUT = {
    "unchanged": "their labels are as test.py wrote them (--all takes them too)",
    "without": "they have no label volume; save one as .nii.gz, .nrrd or .mha (DICOM segmentations are not read back)",
    "unknown": "nothing tells what test.py wrote, as scan.json is older and masks are gone (--all takes them)",
}
_FACTS = ("scan", "vendor", "model_sha256", "spacing_x_mm", "spacing_y_mm", "spacing_z_mm")


@dataclass(frozen=True)
class _Result:
    """What test.py left about a scan, and the label volumes that are there now."""

    name: str  # <Vendor>_<case>
    record: dict  # scan.json
    volumes: list  # paths

    @property
    def spacing_mm(self):
        return tuple(self.record["facts"][f"spacing_{axis}_mm"] for axis in "xyz")


def find_corrected(source, options, classes):
    """`Found` of the corrected label volumes in the folder `source`, an output of test.py.

    A scan's label volumes are those called as test.py calls them, or so and further words, and all in the scan's own
    folder. A volume counts as corrected if its labels are not those that test.py wrote. With ``options.all`` the other
    scans are items too. Raises `InputError` with a line for each scan with several corrections, for each volume that
    does not fit its scan, and for each scan that is not found.
    """
    source = Path(source)
    results, notes = _results(source)
    classes = ClassTable({fluid: fluid for fluid in FLUIDS} | classes.targets)
    items, complaints, left_out = [], [], {"unchanged": [], "without": [], "unknown": []}
    for result in results:
        written, digest = _as_written(source / result.name, result.record)
        if not result.volumes:
            left_out["without"].append(result.name)
        elif digest is None and not options.all:
            left_out["unknown"].append(result.name)
        else:
            try:
                item = _item(result, written, digest, options, classes, notes)
                items += [item] if item else []
                left_out["unchanged"] += [] if item else [result.name]
            except InputError as error:
                complaints += error.messages
    if complaints:
        raise InputError(*complaints)
    notes += [
        f"{len(names)} scans are left out, {names[0]} first: {_LEFT_OUT[why]}"
        for why, names in left_out.items()
        if names
    ]
    if not items:
        raise InputError(f"{source}: holds no corrected label volume", *notes)
    return Found(items, classes, len(items), notes=tuple(notes))


# ---- What is there -------------------------------------------------------------------------------------------------
def _results(source):
    """(list of `_Result`, notes) of a folder that test.py wrote."""
    if not source.is_dir():
        raise InputError(f"{source}: no such folder")
    records, complaints = {}, []
    for path in sorted(source.glob("*/scan.json")):
        try:
            records[path.parent.name] = _checked(path)
        except InputError as error:
            complaints += error.messages
    if complaints:
        raise InputError(*complaints)
    if not records:
        raise InputError(f"{source}: holds no <scan>/scan.json, expected a folder that test.py wrote (its --output)")
    volumes, notes = {name: [] for name in records}, []
    for path in sorted(source.iterdir()):
        if suffix_of(path) in VOLUMES and path.name[0] != ".":
            owner = _owner(path.name, records)
            if owner is None:
                notes.append(f"{path}: is left out: named after none of the scans; name it <scan>{suffix_of(path)}")
            else:
                volumes[owner].append(path)
    for name in records:
        volumes[name] += volumes_of_readers(source / name)
    return [_Result(name, record, volumes[name]) for name, record in records.items()], notes


def _checked(path):
    """Content of a ``scan.json``."""
    record = read_json(path)
    try:
        if all(name in record["facts"] for name in _FACTS) and record["path"] and record["made_from"]["files"]:
            return record
    except (KeyError, TypeError):
        pass
    raise InputError(f"{path}: lacks the scan's path or facts, expected what test.py writes; segment the scan again")


def _owner(file_name, names):
    """The longest of `names` that a file's name begins with, before its end or another than a letter or digit."""
    file_name = same_name(file_name)
    owners = [
        name
        for name in names
        if file_name.startswith(same_name(name)) and not file_name[len(same_name(name)) :][:1].isalnum()
    ]
    return max(owners, key=len, default=None)


def _as_written(folder, record):
    """(labels, digest) that test.py wrote: of its masks, and of its record. None where there are none, or others."""
    masks = [folder / f"mask_{index:03d}.png" for index in range(record["facts"].get("b_scans", 0))]
    labels = None
    if masks and all(path.is_file() for path in masks):
        try:
            labels = np.stack([np.asarray(Image.open(path)) for path in masks])
        except Exception:  # Pillow raises exceptions of any kind for damaged files, numpy for different sizes
            labels = None
    of_masks = None if labels is None else voxel_digest(labels)
    digest = record.get("labels_digest", of_masks)
    return (labels if of_masks == digest else None), digest


# ---- What was corrected --------------------------------------------------------------------------------------------
def _item(result, written, digest, options, classes, notes):
    """The `Item` of a scan's corrected labels; None if none are corrected. `notes` grows by what was assumed."""
    changed = [path for path in result.volumes if not holds_labels(path, digest)]
    if not changed and not options.all:
        return None
    files = _scan_files(result.record, options.moved)
    content = read_content(files.paths, files.part)
    grid = VolumeHeader(content.voxels.shape, result.spacing_mm, content.voxels.dtype.name, content.placement)
    read, found = partial(_read_labels, grid=grid, scan_path=files.path, classes=classes), {}
    for path in changed or result.volumes[:1]:
        labels, of_path = read(path)
        found.setdefault(voxel_digest(labels), (path, labels, of_path))
    corrections = [one for of_labels, one in found.items() if of_labels != digest]
    if not corrections and not options.all:
        return None
    if len(corrections) > 1:
        raise InputError(
            f"{', '.join(str(path) for path, *_ in corrections)}: their labels differ, and from what test.py wrote, "
            "expected one correction; move the others away"
        )
    path, labels, of_path = (corrections or list(found.values()))[0]
    notes += [*of_path, *_renumbered(path, labels, written)]
    scan_name = result.record["facts"]["scan"]
    text = as_text(Path(files.path).as_posix())
    return Item(
        name=scan_name.partition("__")[2] or scan_name,
        path_text=text[: len(text) - len(suffix_of(text))] if options.patient_pattern else scan_name,
        files=(*files.all_paths(), *reversed(volume_files(path))),
        read_image=partial(read_content, files.paths, files.part),
        read_masks=lambda shape: (read_segmentation(path, grid, files.path, classes.targets)[0], {}),
        vendor=result.record["facts"]["vendor"],
        spacing_mm=result.spacing_mm,
        record=_correction(result.record, path, labels, written, digest and bool(corrections)),
    )


def _renumbered(path, labels, written):
    """A warning for each fluid that lies mostly where another was: some exports number segments by their order."""
    if written is None:
        return
    for fluid, label in FLUIDS.items():
        before = np.bincount(written[labels == label], minlength=len(FLUIDS) + 1)[1:]
        other = list(FLUIDS)[int(before.argmax())]
        if other != fluid and before.max() > before.sum() / 2:
            yield f"{path}: {fluid} lies mostly where {other} was before; did an export renumber the labels?"


def _read_labels(path, grid, scan_path, classes):
    """(labels 0-3, notes) of a volume on the scan's grid."""
    masks, notes = read_segmentation(path, grid, scan_path, classes.targets)
    return classes.labels(masks, grid.shape, path)[0], notes


def _scan_files(record, moved):
    """The `ScanFiles` of the scan that a record is about. `moved` is (old, new) beginning of its path, or None."""
    path = record["path"]
    if moved and os.path.join(path, "").startswith(os.path.join(moved[0], "")):
        path = os.path.join(moved[1], os.path.relpath(path, moved[0]))
    if not os.path.exists(path):
        raise InputError(f"{path}: the scan is not there any more; say where scans lie now: --moved OLD NEW (folders)")
    expected = [tuple(file[:2]) for file in record["made_from"]["files"]]  # of before: of an .xml that file alone
    here = [files for files in search_scans([path])[0] if as_text(files.path) == as_text(os.path.abspath(path))]
    same = [files for files in here if expected in (_names_and_sizes(files.all_paths()), _names_and_sizes(files.paths))]
    if len(same) > 1:  # records of before know the scan's name alone
        by_name = "part" not in record
        same = [one for one in same if (one.name == record["facts"]["scan"] if by_name else one.part == record["part"])]
    if len(same) != 1:
        raise InputError(f"{path}: is not the scan that was segmented: other files or sizes; segment it again")
    return same[0]


def _names_and_sizes(paths):
    return [(name, size) for name, size, _ in fingerprint(map(Path, paths))]


def _correction(record, path, labels, written, corrected):
    """What ``correction.json`` says about a case. `written` are the labels before, or None."""
    status = path.stat()
    time = datetime.datetime.fromtimestamp(status.st_mtime, datetime.UTC)
    changes = None
    if written is not None:
        changes = {"b_scans": np.flatnonzero((labels != written).any(axis=(1, 2))).tolist()}
        for fluid, label in FLUIDS.items():
            before, after = written == label, labels == label
            counts = (before, after, after & ~before, before & ~after)
            names = ("voxels_before", "voxels_after", "added", "removed")
            changes[fluid] = {name: int(np.count_nonzero(count)) for name, count in zip(names, counts, strict=True)}
    return {
        "scan": record["path"],
        "model_sha256": record["facts"]["model_sha256"],
        "labels": as_text(path.absolute()),
        "saved": time.isoformat(timespec="seconds"),
        "owner": _owner_of_file(path),
        "corrected": corrected,
        "changes": changes,
    }


def _owner_of_file(path):
    """The user name of a file's owner; None where the system does not tell it."""
    try:
        return as_text(path.owner())
    except (KeyError, NotImplementedError):
        return None
