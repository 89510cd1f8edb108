"""Finding and reading the scans that a command line names."""

import glob
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.cases import vendor_by_size, vendor_in
from utils.errors import InputError
from utils.files import natural_order
from utils.geometry import NOT_STATED, Placement
from utils.grey_values import as_grey
from utils.mhd import VENDORS
from utils.scan_dicom import scans_in_dicom
from utils.scan_formats import DICOM, VOLUMES, is_dicom, read_content, scans_in_file
from utils.scan_formats import suffix_of as _suffix
from utils.scan_pictures import PICTURES, TIFF, count_pages
from utils.scan_vendors import VENDORS_OWN

_LARGEST_MM = (0.2, 0.2, 3.0)  # of a spacing (x, y, z) in OCT; more is a file's way of stating none


@dataclass(frozen=True)
class ScanFiles:
    """Where a scan is."""

    name: str
    paths: tuple  # one file, or several with a slice each, as text
    folder_names: tuple  # from the nearest on, in which a vendor may be named
    part: int | None = None  # which of the scans in these files; None where they hold no other

    @property
    def path(self):
        """The file or, of several, their folder."""
        return self.paths[0] if len(self.paths) == 1 else os.path.dirname(self.paths[0])


@dataclass(frozen=True)
class Scan:
    """A scan as it was read."""

    name: str
    path: str
    vendor: str  # a key of `utils.mhd.VENDORS`
    voxels: np.ndarray  # uint8 or uint16 (slices, rows, columns); or a `utils.mhd.VoxelFile`
    spacing_mm: tuple  # (x, y, z)
    laterality: str | None  # "OD" (right) or "OS" (left)
    scan_date: str | None  # YYYY-MM-DD
    notes: tuple  # what was assumed, a sentence each
    placement: Placement = NOT_STATED  # as far as the file states it


# ---- Finding -------------------------------------------------------------------------------------------------------
def find_scans(inputs, leave_out=None, left_out=None):
    """The scans, a list of `ScanFiles`, that `inputs` stand for: files, folders and patterns with ``*``.

    In a folder these are the ``oct.mhd`` at any depth; else, in it and each folder below: every volume file, every
    DICOM series, and all pictures together, in the order of the numbers in their names. The folder `leave_out` is not
    searched. What is no scan though its format is read is added to the list `left_out`, if given, as (path, reason).
    Raises `InputError` with a line for each of `inputs` that stands for none.
    """
    left_out = [] if left_out is None else left_out
    scans, complaints = [], []
    for given in inputs:
        try:
            scans += _scans_of(str(given), leave_out and os.path.abspath(leave_out), left_out)
        except InputError as error:
            complaints += error.messages
    if complaints:
        raise InputError(*complaints)
    if not scans:
        raise InputError(*(f"{path}: {reason}" for path, reason in left_out))
    return list({(scan.paths, scan.part): scan for scan in scans}.values())


def _scans_of(given, leave_out, left_out):
    if not os.path.exists(given):
        matching = sorted(glob.glob(given, recursive=True))
        if not matching:
            raise InputError(f"{given}: no such file or folder")
        return [scan for path in matching for scan in _scans_of(path, leave_out, left_out)]
    path = Path(os.path.abspath(given))
    if path.is_file():
        if not _is_known(path):
            raise InputError(f"{path}: not a scan: its name and content are of none of the formats that are read")
        return _scans_in_file(path, left_out)
    scans, walked, left = [], set(), []
    for folder, below, names in os.walk(path, followlinks=True):
        if os.path.realpath(folder) in walked:  # a link to a folder above would be followed for ever
            below.clear()
            continue
        walked.add(os.path.realpath(folder))
        below[:] = sorted(name for name in below if os.path.join(folder, name) != leave_out and name[0] != ".")
        if folder != leave_out:
            scans += _scans_in(Path(folder), sorted(names, key=natural_order), left)
    cases = [scan for scan in scans if os.path.basename(scan.paths[0]) == "oct.mhd"]
    if not scans:
        reasons = "".join(f"; {os.path.basename(path)} is {reason}" for path, reason in left)
        raise InputError(f"{path}: holds no scan: no volume file, no DICOM series, no pictures{reasons}")
    left_out += left
    return cases or scans


def _scans_in(folder, names, left_out):
    """The scans among the files called `names` of one folder."""
    paths = [folder / name for name in names if name[0] != "." and not name.startswith("reference.")]
    exported = [path for path in paths if _suffix(path) == ".xml"]
    if exported:  # Heidelberg's: the pictures beside it belong to it
        return [_scan_files([path], name=folder.name) for path in exported]
    single = [path for path in paths if _suffix(path) in (*VOLUMES, *VENDORS_OWN)]
    scans = [scan for path in single for scan in _scans_in_file(path, left_out)]
    pictures = [path for path in paths if _suffix(path) in PICTURES]
    stacks = [path for path in pictures if _suffix(path) in TIFF and count_pages(path) > 1]
    scans += [_scan_files([path]) for path in stacks]
    pictures = [path for path in pictures if path not in stacks]
    if pictures:
        scans.append(_scan_files(pictures, name=folder.name if len(pictures) > 1 else None))
    series, left = scans_in_dicom([path for path in paths if _suffix(path) in (*DICOM, "") and is_dicom(path)])
    left_out += left
    for number, (files, part) in enumerate(series):
        name = folder.name if len(series) == 1 else f"{folder.name}_{number + 1}"
        scans.append(_scan_files(files, name=name if len(files) > 1 or part is not None else None, part=part))
    return scans


def _scans_in_file(path, left_out):
    """The scans that a file holds by itself, numbered where it holds several."""
    found, left = scans_in_file(path)
    left_out += left
    scans = [_scan_files(paths, part=part) for paths, part in found]
    if len(scans) > 1:
        scans = [replace(scan, name=f"{scan.name}_{number}") for number, scan in enumerate(scans, 1)]
    return scans


def _scan_files(paths, name=None, part=None):
    first = Path(paths[0])
    folder = first.parent
    if name is None:
        name = folder.name if first.name == "oct.mhd" else first.name[: len(first.name) - len(_suffix(first))]
    above = (folder.name, folder.parent.name, folder.parent.parent.name)
    return ScanFiles(name, tuple(map(str, paths)), (name, *above), part)


def _is_known(path):
    return _suffix(path) in (*VOLUMES, *PICTURES, *VENDORS_OWN) or is_dicom(path)


# ---- Reading -------------------------------------------------------------------------------------------------------
def read_scan(files, vendor=None, spacing_mm=None):
    """The `Scan` in `files`, a `ScanFiles`; `vendor` and `spacing_mm` (x, y, z) are what the user says, None nothing.

    The vendor is what the user says, else what the file tells, else the one in the names of file and folders, else the
    one whose exports have this size and spacing. A spacing that the file does not state, or that no OCT scan has, is
    that vendor's usual one. Raises `InputError` where the vendor is not known or the scan cannot be read.
    """
    content = read_content(files.paths, files.part)
    voxels, notes = as_grey(content.voxels, files.path, content.bits, content.inverted)
    notes = [*content.notes, *notes]
    known = content.vendor or vendor_in(files.folder_names)
    if known is None and _suffix(files.paths[0]) in VOLUMES:
        known = vendor_by_size(files.paths[0])
    if vendor and known and vendor != known:
        notes.append(f"taken for a {vendor} scan as said; by its file or folder it is from {known}")
    vendor = vendor or known
    if vendor is None:
        raise InputError(
            f"{files.path}: vendor unknown: neither file nor folders name it; say it with --vendor, one of "
            f"{', '.join(VENDORS)}"
        )
    if spacing_mm is None:
        spacing_mm, assumed = _with_usual_spacing(content.spacing_mm, vendor, voxels.shape)
        notes += assumed
    return Scan(
        files.name,
        files.path,
        vendor,
        voxels,
        tuple(map(float, spacing_mm)),
        content.laterality,
        content.scan_date,
        tuple(notes),
        content.placement,
    )


def _with_usual_spacing(stated, vendor, shape):
    """(spacing (x, y, z) in mm, notes): `stated` where it can be true, else what the vendor's scans usually have."""
    plausible = [
        value is not None and np.isfinite(value) and 0 < value <= largest
        for value, largest in zip(stated, _LARGEST_MM, strict=True)
    ]
    if all(plausible):
        return tuple(stated), []
    usual = usual_spacing_mm(vendor, shape)
    spacing_mm = tuple(value if ok else other for value, other, ok in zip(stated, usual, plausible, strict=True))
    assumed = ", ".join(
        f"{axis} {value:g} mm" for axis, value, ok in zip("xyz", spacing_mm, plausible, strict=True) if not ok
    )
    return spacing_mm, [f"spacing {assumed} assumed, as is usual for {vendor}; say it with --spacing-mm"]


def usual_spacing_mm(vendor, shape):
    """(x, y, z) in mm of the vendor's usual scan, for a volume of `shape` (slices, rows, columns).

    Cirrus and Topcon cover the same depth and width however many pixels show them; a Spectralis pixel has one size.
    """
    known = VENDORS[vendor]
    _, rows, columns = shape
    x, y, z = (float(np.mean(values)) for values in (known.spacing_x_mm, known.spacing_y_mm[:1], known.spacing_z_mm))
    if vendor == "Spectralis":
        return x, y, z
    return x * known.columns / columns, y * known.rows[0] / rows, z
