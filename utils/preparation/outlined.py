"""What a case's reader outlined, what was not judged, and the reference that follows from both.

A fluid that nobody outlined is unknown in a case, never absent. ``outlined.csv`` in the folder of the cases says which
were, where the setting OUTLINED does not hold for all of them:

    root,outlined
    Spectralis/P1,IRF
    Topcon,IRF SRF

A root is a case's folder or one above it, relative to the file's; the nearest counts. It may have backslashes.
"""

import csv
from pathlib import Path, PurePosixPath

import numpy as np

from utils.errors import InputError
from utils.files import written_whole
from utils.labels import FLUIDS, NOT_JUDGED, in_order
from utils.volumes.mhd import read_volume_onto

NAME = "outlined.csv"
_COLUMNS = ["root", "outlined"]


def read_outlined(folder):
    """{root: names of the fluids outlined there} as ``outlined.csv`` in `folder` says; {} where there is none.

    Raises `InputError` with a line for each row that cannot be used.
    """
    path = Path(folder) / NAME
    if not path.exists():
        return {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV table in UTF-8 ({error}); save it again as one") from error
    if header != _COLUMNS:
        raise InputError(f"{path}: its columns are {','.join(header)}, expected {','.join(_COLUMNS)}")
    stated, complaints = {}, []
    for number, row in enumerate(rows, 2):
        root = PurePosixPath(row[0].strip().replace("\\", "/")).as_posix()
        names = row[1].split() if len(row) == 2 else []
        if len(row) != 2:
            complaints.append(f"{path}: line {number} has {len(row)} values, expected 2: root and outlined fluids")
        elif unknown := [name for name in names if name not in FLUIDS]:
            complaints.append(f"{path}: line {number} names {unknown[0]}, expected some of {' '.join(FLUIDS)}")
        elif root in stated:
            complaints.append(f"{path}: line {number} names {root} a second time, expected each root once")
        stated[root] = in_order(names)
    if complaints:
        raise InputError(*complaints)
    return stated


def write_outlined(folder, stated):
    """Write ``outlined.csv`` in `folder`: `stated`, as of `read_outlined`, in place of what it says of the same roots.

    Nothing is written where it says so already. Raises `InputError` as `read_outlined`.
    """
    before = read_outlined(folder)
    if before | stated == before:
        return
    with written_whole(Path(folder) / NAME) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows((root, " ".join(fluids)) for root, fluids in sorted((before | stated).items()))


def root_stated(root, stated):
    """The nearest of `root` and the folders above it that `stated` (of `read_outlined`) names, or None."""
    path = PurePosixPath(root)
    return next((name for above in (path, *path.parents) if (name := above.as_posix()) in stated), None)


def read_reference(case):
    """The reference of `case`, a `utils.preparation.cases.Case`: (slices, rows, columns), on the scan's grid.

    It holds labels and `NOT_JUDGED`, by `as_judged`, in the type of the file. Raises `InputError` where a volume cannot
    be read or lies elsewhere than the scan, and as `check_one_class`.
    """
    reference = read_volume_onto(case.reference_path, case.oct_path)
    if not case.is_stated:
        check_one_class(case.reference_path, reference)
    other = None if case.other_path is None else read_volume_onto(case.other_path, case.oct_path)
    return as_judged(reference, case.outlined, other, case.not_judged)


def check_one_class(path, reference):
    """Raise `InputError` where `reference`, as the file at `path` has it, holds 255 and no label: a mask of one class.

    Of a case that ``outlined.csv`` names, 255 is what nobody judged.
    """
    if (reference == NOT_JUDGED).any() and not (reference % NOT_JUDGED).any():
        raise InputError(
            f"{path}: holds 0 and 255, expected labels 0 to {len(FLUIDS)}; a mask of one class: replace 255 by that "
            f"class's label; if 255 is what nobody judged, name the case in {NAME}"
        )


def as_judged(reference, outlined, other=None, not_judged=()):
    """`reference`, labels of any shape, without what nobody said.

    The labels of fluids that are not among `outlined` become 0. Where it is 0 and `other`, findings that are no fluid
    for sure, holds one of the labels `not_judged`, it becomes `NOT_JUDGED`.
    """
    unknown = [label for fluid, label in FLUIDS.items() if fluid not in outlined]
    if unknown:
        reference = np.where(np.isin(reference, unknown), 0, reference)
    if other is not None:
        reference = np.where((reference == 0) & np.isin(other, not_judged), np.uint8(NOT_JUDGED), reference)
    return reference
