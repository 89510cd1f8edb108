"""Finding raw cases on disk."""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from utils.errors import InputError
from utils.labels import FLUIDS, in_order
from utils.names import as_text, file_called, same_name, suffix_of
from utils.preparation.outlined import NAME, read_outlined, root_stated
from utils.volumes.mhd import VOLUMES
from utils.volumes.vendors import VENDORS, vendor_by_size, vendor_in

_MOST_NAMED = 5  # of the roots in a message
_NAMES = {"oct.mhd", "reference.mhd", "other.mhd"}  # of a case's files, in upper or lower case


@dataclass(frozen=True)
class Case:
    """One scan and, where there is one, its reference."""

    name: str  # the case folder's name, e.g. TRAIN001
    vendor: str | None  # of `utils.volumes.vendors.KNOWN`, or its folder's name; None where nothing tells
    folder: Path
    oct_path: Path
    reference_path: Path | None
    root: str  # `folder` relative to the folder that was searched, with "/"
    outlined: tuple = tuple(FLUIDS)  # names of the fluids that its reader outlined
    is_stated: bool = False  # whether outlined.csv says so
    other_path: Path | None = None  # other findings, some of which are not judged
    not_judged: tuple = ()  # labels there of what may be fluid or not


def find_cases(data_root, outlined=tuple(FLUIDS), not_judged=(), vendor_folders=False):
    """Every case below `data_root`, sorted by vendor and name: the folders that hold ``oct.mhd`` (in any case).

    A folder that holds ``reference.mhd`` alone is a case too, whose scan is missing. The vendor is the first that a
    folder name says, from the case's folder up to `data_root`; else the one that spacing and size fit; else None. With
    `vendor_folders`, a folder in `data_root` is a vendor of its own where no name says one of `VENDORS`.
    `outlined` are the fluids that were outlined where no ``outlined.csv`` says something else, `not_judged` the labels
    in ``other.mhd`` of what nobody judged. Raises `InputError` if `data_root` is missing or holds no case. Prints a
    warning where ``outlined.csv`` names a root without a case.
    """
    data_root = Path(data_root)
    if not data_root.is_dir():
        raise InputError(f"{data_root}: no such folder; set DATA_ROOT to the folder of the raw volumes")
    folders = [folder for folder, names in folders_below(data_root) if set(map(same_name, names)) & _NAMES]
    if not folders:
        raise InputError(f"{data_root}: holds no oct.mhd, expected <Vendor>/<case>/oct.mhd; set DATA_ROOT")
    stated = outlined_below(data_root)
    cases, used = [], set()
    oct_paths = [file_called(folder, "oct.mhd") or folder / "oct.mhd" for folder in folders]
    for case in _cases(oct_paths, data_root, vendor_folders):
        root = root_stated(case.root, stated)
        used.add(root)
        other_path = file_called(case.folder, "other.mhd") if not_judged else None
        case = replace(case, outlined=in_order(stated.get(root, outlined)), is_stated=root is not None)
        cases.append(replace(case, other_path=other_path, not_judged=tuple(not_judged) if other_path else ()))
    warn_of_unused(data_root, stated, used)
    return cases


def outlined_below(top):
    """{root: names of the fluids outlined there} as every ``outlined.csv`` in `top` and the folders below says.

    Roots are relative to `top`. Raises `InputError` where `top` has no table, and one above is about what lies in it.
    """
    top = Path(top)
    for above in () if (top / NAME).exists() else top.resolve().parents:
        place = PurePosixPath(top.resolve().relative_to(above).as_posix())
        roots = map(PurePosixPath, read_outlined(above))
        if any(place.is_relative_to(root) or root.is_relative_to(place) for root in roots):
            raise InputError(
                f"{above / NAME}: says what was outlined in {top}; name {above} instead, or put such a table there"
            )
    stated = {}
    for folder, names in folders_below(top):
        if NAME in names:
            place = folder.relative_to(top)
            stated |= {(place / root).as_posix(): fluids for root, fluids in read_outlined(folder).items()}
    return stated


def warn_of_unused(top, stated, used):
    """Print a warning where `stated`, of `outlined_below`, names roots that are not among `used`."""
    if unused := sorted(stated.keys() - used):
        names = ", ".join(unused[:_MOST_NAMED]) + ", ..." * (len(unused) > _MOST_NAMED)
        print(f"warning: {top}: {NAME} names {names}, where no case is", file=sys.stderr)


def volumes_of_no_case(data_root):
    """Paths of the volume files below `data_root` that belong to no case. No step reads them."""
    return [
        folder / name
        for folder, names in folders_below(data_root)
        for name in sorted(names)
        if suffix_of(name) in VOLUMES and same_name(name) not in _NAMES
    ]


def folders_below(top):
    """Yield (folder, names of its files) for `top` and the folders below: linked folders too, hidden ones not."""
    for folder, below, names in os.walk(top, followlinks=True):
        real, above = os.path.realpath(folder), os.path.realpath(os.path.dirname(os.path.abspath(folder)))
        if folder != str(top) and Path(above).is_relative_to(real):  # a link to a folder above would never end
            below.clear()
            continue
        below[:] = sorted(name for name in below if name[0] != ".")
        yield Path(folder), names


def _cases(oct_paths, top, vendor_folders):
    cases = []
    for oct_path in oct_paths:
        folder = oct_path.parent
        root = folder.relative_to(top)
        vendor = vendor_in([*reversed(root.parts), top.resolve().name])
        if vendor_folders and vendor not in VENDORS and len(root.parts) > 1:
            vendor = as_text(root.parts[0])
        vendor = vendor or vendor_by_size(oct_path)
        name = as_text(Path(os.path.abspath(folder)).name)
        cases.append(Case(name, vendor, folder, oct_path, file_called(folder, "reference.mhd"), root.as_posix()))
    return sorted(cases, key=lambda case: (case.vendor or "", case.name, case.root))
