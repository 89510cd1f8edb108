"""Finding raw cases on disk, and checking all of them before anything is computed."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.mhd import VENDORS, read_header, read_volume

_SPACING_TOLERANCE = 0.03  # share by which a spacing may differ from a vendor's and still be its own


@dataclass(frozen=True)
class Case:
    """One scan and, where there is one, its reference."""

    name: str  # the case folder's name, e.g. TRAIN001
    vendor: str  # a key of VENDORS
    folder: Path
    oct_path: Path
    reference_path: Path | None
    root: str  # `folder` relative to the folder that was searched, with "/"


def find_cases(data_root):
    """Every case below `data_root`, sorted by vendor and name: folders that hold ``oct.mhd``, at any depth.

    The vendor is the one named in the nearest folder name on the way (whatever its case), up to `data_root` itself;
    else what spacing and size say. Raises `InputError` where `data_root` is missing or holds no case, and for every
    case whose vendor cannot be told.
    """
    data_root = Path(data_root)
    if not data_root.is_dir():
        raise InputError(f"{data_root}: no such folder; set DATA_ROOT to the folder of the raw volumes")
    oct_paths = sorted(data_root.rglob("oct.mhd"))
    if not oct_paths:
        raise InputError(f"{data_root}: holds no oct.mhd, expected <Vendor>/<case>/oct.mhd; set DATA_ROOT")
    return _cases(oct_paths, data_root)


def find_scans(path, vendor=None):
    """The scans that `path` stands for: a scan file, a case folder, or a folder of either; a reference is optional.

    In a folder these are the ``oct.mhd`` at any depth, or else its own ``.mhd`` files. A file named otherwise than
    ``oct`` gives the scan its name. `vendor` is taken as said; None finds it as `find_cases` does, in the folder names
    up to the second above the scan's or the given folder.
    """
    path = Path(os.path.abspath(path))
    if vendor is not None and vendor not in VENDORS:
        raise InputError(f"vendor {vendor}: expected one of {', '.join(VENDORS)}")
    if path.is_file():
        scan_paths = [path]
    elif path.is_dir():
        scan_paths = sorted(path.rglob("oct.mhd")) or sorted(
            file for file in path.glob("*.mhd") if file.stem != "reference"
        )
    else:
        raise InputError(f"{path}: no such file or folder")
    if not scan_paths:
        raise InputError(f"{path}: holds no scan, expected oct.mhd or another .mhd file")
    folder = path.parent if path.is_file() else path
    return _cases(scan_paths, folder.parent.parent, vendor)


def check_cases(cases):
    """Raise `InputError` with one line for every file that cannot be used, after looking at all of them.

    Looks for: a missing reference, unreadable or truncated files, grey values that are not 8 or 16 bit unsigned, sizes
    that differ between scan and reference, labels outside 0-3, and names that two cases of a vendor share.
    """
    complaints = []
    times_used = Counter((case.vendor, case.name) for case in cases)
    for case in cases:
        if times_used[case.vendor, case.name] > 1:
            complaints.append(
                f"{case.folder}: {times_used[case.vendor, case.name]} {case.vendor} cases are named {case.name}, "
                "expected one; rename the folder"
            )
        try:
            complaints += _complaints(case)
        except InputError as error:
            complaints += error.messages
    if complaints:
        raise InputError(*complaints)


def _complaints(case):
    scan, spacing_mm = read_volume(case.oct_path)
    if scan.dtype.name not in ("uint8", "uint16"):
        yield f"{case.oct_path}: grey values are {scan.dtype}, expected uint8 or uint16; export it as one of these"
    if not all(0 < value < np.inf for value in spacing_mm):
        yield f"{case.oct_path}: spacing is {spacing_mm}, expected mm above 0; correct ElementSpacing"
    if case.reference_path is None:
        yield f"{case.folder}: has no reference.mhd beside oct.mhd; add it, or move the folder out of DATA_ROOT"
        return
    reference, _ = read_volume(case.reference_path)
    if reference.shape != scan.shape:
        yield (
            f"{case.reference_path}: {_size(reference)}, expected {_size(scan)} as in {case.oct_path.name}; "
            "export both on one grid"
        )
    labels = np.unique(np.concatenate([np.unique(slice_) for slice_ in reference]))
    if set(labels.tolist()) in ({0, 255}, {255}):
        yield (
            f"{case.reference_path}: labels are 0 and 255, expected 0 background, 1 IRF, 2 SRF, 3 PED; "
            "this is a mask of one class: replace 255 by that class's label"
        )
    elif not set(labels.tolist()) <= {0, 1, 2, 3}:
        found = ", ".join(f"{label:g}" for label in labels[:8]) + (", ..." if len(labels) > 8 else "")
        yield (
            f"{case.reference_path}: labels are {found}, expected 0 background, 1 IRF, 2 SRF, 3 PED; "
            "replace them by these"
        )


def _size(volume):
    slices, rows, columns = volume.shape
    return f"{columns} x {rows} x {slices} voxels"


def _cases(oct_paths, top, vendor=None):
    cases, complaints = [], []
    for oct_path in oct_paths:
        folder = oct_path.parent
        names = [*reversed(folder.relative_to(top).parts), top.resolve().name]
        try:
            found = vendor or _vendor_in(names) or _vendor_by_size(oct_path)
        except InputError as error:
            complaints += error.messages
            continue
        reference_path = folder / "reference.mhd"
        name = folder.resolve().name if oct_path.stem == "oct" else oct_path.name.split(".")[0]
        has_reference = oct_path.stem == "oct" and reference_path.is_file()
        root = folder.relative_to(top).as_posix()
        cases.append(Case(name, found, folder, oct_path, reference_path if has_reference else None, root))
    if complaints:
        raise InputError(*complaints)
    return sorted(cases, key=lambda case: (case.vendor, case.name, case.root))


def _vendor_in(names):
    """The vendor that the first of `names` to hold exactly one vendor's name holds; None where none does."""
    for name in names:
        held = [vendor for vendor in VENDORS if vendor.lower() in name.lower()]
        if len(held) == 1:
            return held[0]
    return None


def _vendor_by_size(oct_path):
    """The vendor whose exports have this element type, size and spacing; the number of slices may differ."""
    header = read_header(oct_path)
    _, rows, columns = header.shape
    spacing_x_mm, spacing_y_mm, _ = header.spacing_mm
    for vendor, known in VENDORS.items():
        row_spacings_mm = dict(zip(known.rows, known.spacing_y_mm, strict=True))
        if (
            header.element_type == known.element_type
            and columns == known.columns
            and rows in row_spacings_mm
            and abs(spacing_y_mm / row_spacings_mm[rows] - 1) <= _SPACING_TOLERANCE
            and min(known.spacing_x_mm) * (1 - _SPACING_TOLERANCE) <= spacing_x_mm
            and spacing_x_mm <= max(known.spacing_x_mm) * (1 + _SPACING_TOLERANCE)
        ):
            return vendor
    raise InputError(
        f"{oct_path}: vendor unknown: no folder on the way is named after one, and {columns} x {rows} "
        f"{header.element_type} pixels of {spacing_x_mm:g} x {spacing_y_mm:g} mm are no vendor's own; "
        f"expected one of {', '.join(VENDORS)} in a folder's name"
    )
