"""Label volumes as ITK-SNAP, 3D Slicer and others save them: whole or cropped, with labels of their own numbering."""

import re

import numpy as np

from utils.errors import InputError
from utils.labels import FLUIDS
from utils.volumes.geometry import find_part
from utils.volumes.mhd import check_spacing, read_header, read_metadata, read_volume, reordering_onto_grid

_SEGMENT = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer)")  # keys of 3D Slicer's .seg.nrrd


def read_segmentation(path, grid, scan_path, targets):
    """({class: bool mask (slices, rows, columns)}, notes) of the label volume at `path`, on the scan's grid.

    `grid` is the scan's `VolumeHeader`; `scan_path` names it in messages. A volume that was cropped to what is outlined
    is put in place. The class of a label is, in this order:

    - the name of its segment, if the file has segments, or its number, where `targets` (names of classes) holds it;
    - IRF, SRF or PED, if the segment is called so, in upper or lower case;
    - IRF, SRF or PED for the numbers 1, 2, 3, if the segment's name says no other number.

    Raises `InputError` for other labels, and if size, spacing or place do not fit the scan.
    """
    metadata = read_metadata(path)
    if read_header(path).shape == (1, 1, 1) and any(key.startswith("Segmentation_") for key in metadata):
        return {}, []  # 3D Slicer writes a single voxel, wherever it lies, if every segment is empty
    segments = _segments(metadata, path)
    values, notes = _read_onto(path, grid, scan_path)
    found = np.unique(values)
    if (found != np.rint(found)).any():  # also for NaN
        raise InputError(f"{path}: values that are not whole numbers, expected labels 0 to {len(FLUIDS)}")
    masks = {}
    for value in map(int, found[found != 0]):
        name = segments.get(value) if segments else str(value)
        of_class = _class_of(name, value, targets)
        if of_class is None:
            what = f"segment {name!r} of value {value}" if segments and name else f"label {value}"
            raise InputError(
                f"{path}: holds {what}, expected 0 to {len(FLUIDS)} ({', '.join(FLUIDS)}), or segments of these names; "
                f"rename it, or say what it is: --labels IRF={name or value}, or IGNORE={name or value} where nobody "
                "judged it"
            )
        if segments and name.upper() not in FLUIDS and name not in targets:
            notes.append(f"{path}: segment {name!r} is taken for {of_class} by its number")
        masks[of_class] = masks.get(of_class, False) | (values == value)
    return masks, notes


def _class_of(name, value, targets):
    """The class of a label of this `value` whose segment, or number, is called `name`; None if nothing tells it."""
    if name is None or name in targets:
        return name
    if name.upper() in FLUIDS:
        return name.upper()
    numbers = [int(number) for number in re.findall(r"\d+", name)]
    return next((fluid for fluid, label in FLUIDS.items() if numbers == [label] == [value]), None)


def _segments(metadata, path):
    """{label: name} of the segments that 3D Slicer lists in a ``.seg.nrrd``; empty if the file lists none."""
    listed = {}
    for key, text in metadata.items():
        if match := _SEGMENT.fullmatch(key):
            listed.setdefault(match[1], {})[match[2]] = text.strip()
    if len({segment.get("Layer", "0") for segment in listed.values()}) > 1:
        raise InputError(f"{path}: its segments overlap, expected one label a voxel; remove the overlap and save again")
    try:
        return {int(segment["LabelValue"]): segment["Name"] for segment in listed.values()}
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: lists segments without name or label ({error}); save it again") from error


def _read_onto(path, grid, scan_path):
    """(values on the `grid`, notes)."""
    header = read_header(path)
    part = find_part(header, grid) if sorted(header.shape) != sorted(grid.shape) else None
    if part is None:
        reordering = reordering_onto_grid(path, grid, scan_path)
        values = reordering.apply(read_volume(path)[0])
    else:
        reordering, first = part
        check_spacing(path, header, reordering, grid, scan_path)
        cropped = reordering.apply(read_volume(path)[0])
        values = np.zeros(grid.shape, cropped.dtype)
        values[tuple(slice(start, start + size) for start, size in zip(first, cropped.shape, strict=True))] = cropped
    return values, [] if reordering.note is None else [f"{path}: {reordering.note}"]
