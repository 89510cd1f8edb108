"""Finding and reading the scans that a command line names."""

import glob
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files import natural_order
from utils.names import suffix_of
from utils.volumes.content import Fundus
from utils.volumes.eyes import Told, contradictions
from utils.volumes.formats import is_dicom, read_content
from utils.volumes.geometry import NOT_STATED, Placement
from utils.volumes.grey_values import as_grey
from utils.volumes.mhd import VOLUMES, volume_files
from utils.volumes.not_scans import LeftOut, kind_of_folder, labels_of_others, with_scan_beside
from utils.volumes.pictures import PICTURES
from utils.volumes.scan_folder import is_result, scans_in, scans_of_dicom, scans_of_file
from utils.volumes.spacing import has_swapped_axes, scale_doubt, spacing_to_use
from utils.volumes.vendor_files import VENDORS_OWN
from utils.volumes.vendors import KNOWN, VENDORS, vendor_by_size, vendor_in


@dataclass(frozen=True)
class Scan:
    """A scan as it was read."""

    name: str
    path: str
    vendor: str  # of `utils.volumes.vendors.KNOWN`, or one that the user said
    voxels: np.ndarray  # uint8 or uint16 (slices, rows, columns); or a `utils.volumes.mhd.VoxelFile`
    spacing_mm: tuple  # (x, y, z)
    laterality: str | None  # "OD" (right) or "OS" (left)
    scan_date: str | None  # YYYY-MM-DD
    notes: tuple  # assumptions, a sentence each
    placement: Placement = NOT_STATED
    patient: str | None = None  # the patient's identifier
    z_mm: np.ndarray | None = None  # place of each slice along the volume; None: at equal distances
    frames: tuple | None = None  # the `utils.volumes.dicom_frames.Frame` of each slice; None if it is not DICOM
    person: str | None = None  # as in `utils.volumes.content.Content`; None of a patient whom the user told
    fundus: Fundus | None = None
    scale_doubt: str | None = None  # a question to the user


# ---- Finding -------------------------------------------------------------------------------------------------------
def find_scans(inputs, leave_out=None):
    """Only the scans of `search_scans`."""
    return search_scans(inputs, leave_out)[0]


def search_scans(inputs, leave_out=None, each=False):
    """(scans, left out), lists of `ScanFiles` and `LeftOut`, of `inputs`: files, folders and patterns with ``*``.

    A folder and each folder below it hold these scans: every volume file, every DICOM series, and all pictures together
    in the order of the numbers in their names; with `each`, every picture by itself. A scan called oct.mhd is named
    after its folder. Other files are left out (see `utils.volumes.not_scans`). Files that only their names rule out are
    taken if there is nothing else. The folder `leave_out` is not searched below another. Raises `InputError` with a
    line for each of `inputs` that is none of these, and if there is no scan at all.
    """
    scans, left_out, files, complaints = [], [], [], []
    for given in map(str, inputs):
        matching = [given] if os.path.exists(given) else sorted(glob.glob(given, recursive=True))
        if not matching:
            complaints.append(f"{given}: no such file or folder")
        for path in map(os.path.abspath, matching):
            if not os.path.isdir(path):
                files.append(Path(path))
                continue
            in_folder, left = _scans_below(path, leave_out and os.path.abspath(leave_out), each)
            scans, left_out = scans + in_folder, left_out + left
            if not in_folder:
                complaints.append(f"{path}: holds no scan: no volume file, no DICOM series, no pictures{_named(left)}")
    complaints += [
        f"{path}: not a scan: its name and content are of none of the formats that are read"
        for path in files
        if not _is_known(path)
    ]
    if complaints:
        raise InputError(*complaints)
    files = {path: is_result(path) or (path.parent / "scan.json").is_file() for path in files}
    left_out += [LeftOut(str(path), "results of test.py") for path, is_own in files.items() if is_own]
    singles, left = _without_masks([path for path, is_own in files.items() if not is_own])
    for paths in _by_series(singles):
        in_files, left_in_files = scans_of_file(paths[0]) if len(paths) == 1 else scans_of_dicom(paths)
        scans, left = scans + in_files, left + left_in_files
    if not scans:
        raise InputError(*(f"{one.path}: {one.why}" for one in [*left_out, *left]))
    scans = list({(scan.paths, scan.part): scan for scan in scans}.values())
    taken = {path for scan in scans for path in scan.paths}
    left = {one.path: one for one in [*left_out, *left] if one.path not in taken}
    return scans, list(left.values())


def _without_masks(files):
    """(files, left out) of files that are named one by one. A mask is left out if its scan is named too."""
    by_folder = defaultdict(list)
    for path in files:
        if suffix_of(path) in (*VOLUMES, *PICTURES):
            by_folder[path.parent].append(path)
    masks = {}
    for paths in by_folder.values():
        of_folder = with_scan_beside(paths)
        masks |= of_folder | labels_of_others([path for path in paths if path not in of_folder])
    return [path for path in files if path not in masks], [LeftOut(str(path), why) for path, why in masks.items()]


def _by_series(paths):
    """Lists of one of `paths` each, but the DICOM files of a folder together: they may be the slices of a scan."""
    groups = defaultdict(list)
    for path in paths:
        groups[path.parent if is_dicom(path) else path].append(path)
    return groups.values()


def _scans_below(top, leave_out, each):
    """(scans, left out) of a folder and those below."""
    for by_name in (True, False):
        scans, left_out, walked = [], [], set()
        errors = []
        for folder, below, names in os.walk(top, followlinks=True, onerror=errors.append):
            if os.path.realpath(folder) in walked:  # a link to a folder above would never end
                below.clear()
                continue
            walked.add(os.path.realpath(folder))
            if folder == leave_out and folder != top:  # where scans and results share a folder, scan.json tells
                below.clear()
                continue
            hidden = [name for name in below if name[0] == "."]
            written = [name for name in below if os.path.isfile(os.path.join(folder, name, "scan.json"))]
            left_out += [LeftOut(os.path.join(folder, name), "a hidden folder, not searched") for name in hidden]
            left_out += [LeftOut(os.path.join(folder, name), "results of test.py") for name in written]
            below[:] = sorted(set(below) - {*hidden, *written}, key=natural_order)
            parts = Path(folder).relative_to(top).parts
            kind = next(filter(None, map(kind_of_folder, parts)), None)
            in_folder, left = scans_in(Path(folder), sorted(names, key=natural_order), kind, by_name, each)
            scans, left_out = scans + in_folder, left_out + left
        left_out += [LeftOut(error.filename, error.strerror) for error in errors]
        if scans:
            break
    headers = [*(path for scan in scans for path in scan.paths), *(one.path for one in left_out)]
    belonging = {str(path) for header in headers for path in _data_files(header)}
    return scans, [one for one in left_out if one.path not in belonging]


def _data_files(header):
    """The data files that a MetaImage's header names; none if it is no MetaImage or cannot be read."""
    try:
        return [path for path in volume_files(header) if str(path) != header]
    except InputError:  # its reader reports what is wrong
        return []


def _is_known(path):
    return suffix_of(path) in (*VOLUMES, *PICTURES, *VENDORS_OWN) or is_dicom(path)


def _named(left_out):
    """The first three files that were left out, for the end of a message."""
    first = ", ".join(f"{os.path.basename(one.path)} ({one.why})" for one in left_out[:3])
    return f"; left out: {first}" + f" and {len(left_out) - 3} more" * (len(left_out) > 3) if left_out else ""


# ---- Reading -------------------------------------------------------------------------------------------------------
def read_scan(files, vendor=None, spacing_mm=None):
    """The `Scan` in `files`, a `ScanFiles`. The user may give `vendor` and `spacing_mm` (x, y, z).

    What `files` are told of patient, eye and date wins over what they state.

    The vendor is the first of these that is known: the user's, the file's, the one in the names of file and folders,
    the one whose exports have this size and spacing. A spacing that the file does not state, or that no OCT scan has,
    is replaced by the vendor's usual one. Raises `InputError` if the vendor is unknown, or has no usual spacing and the
    file states none, if the scan cannot be read, or if its axes are clearly not in the order columns, rows, slices and
    the user gives no spacing.
    """
    content = read_content(files.paths, files.part)
    in_volume = suffix_of(files.paths[0]) in VOLUMES
    if in_volume and spacing_mm is None and has_swapped_axes(content.voxels.shape, content.spacing_mm):
        raise InputError(_swapped(files.path, content))
    voxels, notes = as_grey(content.voxels, files.path, content.bits, content.inverted)
    notes = [*content.notes, *notes]
    known = content.vendor or vendor_in(files.folder_names)
    if known is None and in_volume:
        known = vendor_by_size(files.paths[0])
    if vendor and known and vendor != known and (vendor in VENDORS or known in VENDORS):
        notes.append(f"taken for a {vendor} scan as said; by its file or folder it is from {known}")
    vendor = vendor or known
    if vendor is None:
        raise InputError(
            f"{files.path}: vendor unknown: neither file nor folders name it; say it with --vendor, one of "
            f"{', '.join(KNOWN)}"
        )
    told, z_mm = files.told or Told(), None
    notes += contradictions(told, content)
    if spacing_mm is None:
        try:
            spacing_mm, assumed = spacing_to_use(content.spacing_mm, vendor, voxels.shape)
        except InputError as error:
            raise InputError(f"{files.path}: {error}") from error
        notes += assumed
        z_mm = content.z_mm if spacing_mm[2] == content.spacing_mm[2] else None
    if len(files.paths) > 1 and suffix_of(files.paths[0]) in PICTURES:
        notes.append(f"{len(files.paths)} pictures taken as one scan; --each takes each by itself")
    return Scan(
        files.name,
        files.path,
        vendor,
        voxels,
        tuple(map(float, spacing_mm)),
        told.eye or content.laterality,
        told.date or content.scan_date,
        tuple(notes),
        content.placement,
        told.patient or content.patient,
        z_mm,
        content.frames,
        None if told.patient else content.person,
        content.fundus,
        scale_doubt(spacing_mm, vendor, voxels.shape) if suffix_of(files.paths[0]) in PICTURES else None,
    )


def _swapped(path, content):
    """What is wrong with a volume whose axes are in another order."""
    size = " x ".join(map(str, content.voxels.shape[::-1]))
    stated = " x ".join(f"{value:.4g}" for value in content.spacing_mm)
    return (
        f"{path}: {size} voxels of {stated} mm, expected columns x rows x slices: its axes are swapped; save it in "
        "this order, or say with --spacing-mm that it is"
    )
