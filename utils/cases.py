"""Finding raw cases on disk."""

import os
from dataclasses import dataclass
from pathlib import Path

from utils.errors import InputError
from utils.mhd import VENDORS, VOLUMES, read_header
from utils.names import as_text, file_called, same_name, suffix_of

_NAMES = {"oct.mhd", "reference.mhd"}  # of a case's files, whatever their case
_SPACING_TOLERANCE = 0.03  # share by which a spacing may differ from a vendor's and still be its own


@dataclass(frozen=True)
class Case:
    """One scan and, where there is one, its reference."""

    name: str  # the case folder's name, e.g. TRAIN001
    vendor: str | None  # a key of VENDORS; None where nothing tells
    folder: Path
    oct_path: Path
    reference_path: Path | None
    root: str  # `folder` relative to the folder that was searched, with "/"


def find_cases(data_root):
    """Every case below `data_root`, sorted by vendor and name: folders that hold ``oct.mhd``, whatever its case.

    A folder that holds ``reference.mhd`` alone is a case too, whose scan is missing. The vendor is the one named in
    the nearest folder name on the way (whatever its case), up to `data_root` itself; else what spacing and size say;
    else None. Raises `InputError` where `data_root` is missing or holds no case.
    """
    data_root = Path(data_root)
    if not data_root.is_dir():
        raise InputError(f"{data_root}: no such folder; set DATA_ROOT to the folder of the raw volumes")
    folders = [folder for folder, names in _folders_below(data_root) if set(map(same_name, names)) & _NAMES]
    if not folders:
        raise InputError(f"{data_root}: holds no oct.mhd, expected <Vendor>/<case>/oct.mhd; set DATA_ROOT")
    return _cases([file_called(folder, "oct.mhd") or folder / "oct.mhd" for folder in folders], data_root)


def volumes_of_no_case(data_root):
    """Paths of the volume files below `data_root` that are no case's scan or reference, which nobody will read."""
    return [
        folder / name
        for folder, names in _folders_below(data_root)
        for name in sorted(names)
        if suffix_of(name) in VOLUMES and same_name(name) not in _NAMES
    ]


def why_vendor_unknown(header):
    """What of a scan with this `VolumeHeader` failed to tell its vendor."""
    _, rows, columns = header.shape
    spacing_x_mm, spacing_y_mm, _ = header.spacing_mm
    return (
        f"no folder on the way is named after one, and {columns} x {rows} {header.element_type} pixels of "
        f"{spacing_x_mm:g} x {spacing_y_mm:g} mm are no vendor's own"
    )


def _folders_below(top):
    """(folder, names of its files) of `top` and the folders below, linked ones too, but for hidden ones."""
    for folder, below, names in os.walk(top, followlinks=True):
        real, above = os.path.realpath(folder), os.path.realpath(os.path.dirname(os.path.abspath(folder)))
        if folder != str(top) and os.path.commonpath([real, above]) == real:  # a link to a folder above: without end
            below.clear()
            continue
        below[:] = sorted(name for name in below if name[0] != ".")
        yield Path(folder), names


def _cases(oct_paths, top):
    cases = []
    for oct_path in oct_paths:
        folder = oct_path.parent
        root = folder.relative_to(top)
        vendor = vendor_in([*reversed(root.parts), top.resolve().name]) or vendor_by_size(oct_path)
        name = as_text(Path(os.path.abspath(folder)).name)
        cases.append(Case(name, vendor, folder, oct_path, file_called(folder, "reference.mhd"), root.as_posix()))
    return sorted(cases, key=lambda case: (case.vendor or "", case.name, case.root))


def vendor_in(names):
    """The vendor that the first of `names` to hold exactly one vendor's name holds; None where none does."""
    for name in names:
        held = [vendor for vendor in VENDORS if vendor.lower() in name.lower()]
        if len(held) == 1:
            return held[0]
    return None


def vendor_by_size(oct_path):
    """The vendor whose exports have the element type, size and spacing of a volume file, else None."""
    try:
        header = read_header(oct_path)
    except InputError:  # whoever needs more than the vendor reads it again and says so
        return None
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
    return None
