"""The spacing of scans: which values are plausible, which ones of a file to believe, and defaults for missing ones."""

import itertools
import math

import numpy as np

from utils.errors import InputError
from utils.volumes.vendors import VENDORS

# Smallest and largest spacing (mm) that a retinal scan has. x, between A-scans: 3 mm in 4096 to 9 mm in 200. y, along
# the A-scan: finer than any retinal device resolves, to coarser than any. z, between B-scans: up to line scans.
# RETOUCH has 0.011-0.012, 0.002-0.004, 0.047-0.129.
PLAUSIBLE_SPACING_MM = {"x": (0.0005, 0.045), "y": (0.0005, 0.01), "z": (0.0005, 2.0)}
_USUAL_SIZE_MM = (6.0, 2.0, 6.0)  # of a scan: columns, depth, slices
_ORDERS = tuple(itertools.permutations(range(3)))[1:]  # in which x, y and z may come by mistake
_DEPTH_MM = {"Cirrus": 2.0, "Spectralis": 1.92, "Topcon": 2.3}  # of the devices' scans, as RETOUCH has them
_DEPTH_TOLERANCE = 0.15  # share by which a picture's depth may differ from that
_DEFAULT = 1.0  # mm; programs that know no spacing write this


def is_plausible(spacing_mm):
    """Whether an OCT scan can have this spacing (x, y, z)."""
    return None not in _plausible(spacing_mm)


def check_spacing(name, spacing_mm):
    """Raise `InputError` where no OCT scan has the spacing (x, y, z) that was given as `name`."""
    if is_plausible(spacing_mm):
        return
    expected = ", ".join(f"{axis} {low:g} to {high:g}" for axis, (low, high) in PLAUSIBLE_SPACING_MM.items())
    if _is_in_another_order(spacing_mm):
        remedy = "give it in the order x, y, z: between columns, rows, B-scans"
    elif None not in spacing_mm and is_plausible([value / 1000 for value in spacing_mm]):
        remedy = "divide micrometres by 1000"
    else:
        remedy = "give the device's own"
    raise InputError(f"{name} {' '.join(map(str, spacing_mm))}: expected {expected} mm; {remedy}")


def believed_spacing_mm(spacing_mm, shape):
    """`spacing_mm` (x, y, z) of a volume of `shape` (slices, rows, columns), with None for values not to believe:

    - values that the file does not state (None), or that no OCT scan has;
    - all three values if they are plausible in another order;
    - 1 mm between slices, a common default, if there is one slice or another value is not believed.
    """
    if _is_in_another_order(spacing_mm):
        return None, None, None
    x, y, z = _plausible(spacing_mm)
    if z == _DEFAULT and (shape[0] == 1 or x is None or y is None):
        z = None
    return x, y, z


def spacing_to_use(stated_mm, vendor, shape):
    """(spacing (x, y, z) in mm, notes): values of `stated_mm` that are believed, else the vendor's usual ones.

    Raises `InputError` where the vendor is none of `VENDORS` and one of the values is not believed.
    """
    believed = believed_spacing_mm(stated_mm, shape)
    if None not in believed:
        return believed, []
    if vendor not in VENDORS:
        missing = ", ".join(axis for axis, value in zip("xyz", believed, strict=True) if value is None)
        stated = f"no spacing stated along {missing}, and none is usual for {vendor}"
        raise InputError(f"{stated}; say it: --spacing-mm X Y Z")
    usual = usual_spacing_mm(vendor, shape)
    spacing_mm = tuple(other if value is None else value for value, other in zip(believed, usual, strict=True))
    axes = "xyz" if shape[0] > 1 else "xy"  # a single B-scan has no distance to others
    assumed = ", ".join(
        f"{axis} {value:g} mm" for axis, value, known in zip(axes, spacing_mm, believed, strict=False) if known is None
    )
    note = f"spacing {assumed} assumed, as is usual for {vendor}; say it with --spacing-mm"
    return spacing_mm, [note] if assumed else []


def usual_spacing_mm(vendor, shape):
    """(x, y, z) in mm of the vendor's usual scan, for a volume of `shape` (slices, rows, columns).

    Cirrus and Topcon scans cover a fixed depth and width, with any number of pixels. Spectralis pixels have one size.
    """
    known = VENDORS[vendor]
    _, rows, columns = shape
    x, y, z = (float(np.mean(values)) for values in (known.spacing_x_mm, known.spacing_y_mm[:1], known.spacing_z_mm))
    if vendor == "Spectralis":
        return x, y, z
    return x * known.columns / columns, y * known.rows[0] / rows, z


def scale_doubt(spacing_mm, vendor, shape):
    """A question, where pictures of `shape` (slices, rows, columns) are not as deep as the device's scans; else None.

    Pictures state no spacing, and many were resized: then the model sees another scale than it was taught.
    """
    x, y, z = spacing_mm
    depth_mm, usual_mm = shape[1] * y, _DEPTH_MM.get(vendor)
    if usual_mm is None or abs(depth_mm / usual_mm - 1) <= _DEPTH_TOLERANCE:
        return None
    return (
        f"{shape[1]} rows of {y:.4g} mm are {depth_mm:.2g} mm, and a {vendor} scan is {usual_mm:.2g} mm deep: a wrong "
        f"scale misses fluid; if it is shown whole, say --spacing-mm {x:.4g} {usual_mm / shape[1]:.4g} {z:.4g}"
    )


def has_swapped_axes(shape, spacing_mm):
    """Whether a volume of `shape` (slices, rows, columns) is clearly stored with its axes in another order.

    - With a spacing (x, y, z): it is plausible only in another order, and gives a more usual scan size in that order.
    - Without one: in another order the numbers of columns, rows and slices are those of a vendor.
    """
    sizes = shape[::-1]
    if _is_in_another_order(spacing_mm):
        order = next(order for order in _ORDERS if is_plausible(_in(order, spacing_mm)))
        ordered, swapped = _in(order, spacing_mm), _in(order, sizes)
        # If both are equally strange: a B-scan has more columns than rows.
        return (_strangeness(swapped, ordered), -swapped[0]) < (_strangeness(sizes, ordered), -sizes[0])
    if any(value is not None and value != _DEFAULT for value in spacing_mm):
        return False
    return any(
        columns == known.columns and rows in known.rows and slices <= known.slices
        for columns, rows, slices in (_in(order, sizes) for order in _ORDERS if order[2] != 2)
        for known in VENDORS.values()
    )


def _in(order, values):
    return tuple(values[axis] for axis in order)


def _plausible(spacing_mm):
    """`spacing_mm` (x, y, z) with None for values that no OCT scan has."""
    limits = PLAUSIBLE_SPACING_MM.values()
    return tuple(
        value if value is not None and low <= value <= high else None
        for value, (low, high) in zip(spacing_mm, limits, strict=True)
    )


def _is_in_another_order(spacing_mm):
    """Whether a spacing is not plausible as it is, but is once x, y and z change places."""
    return not is_plausible(spacing_mm) and any(is_plausible(_in(order, spacing_mm)) for order in _ORDERS)


def _strangeness(sizes, spacing_mm):
    """How far a volume's size in mm is from the usual one: the sum of three ratios' absolute logarithms, to 0.1."""
    lengths = (max(size, 1) * spacing for size, spacing in zip(sizes, spacing_mm, strict=True))
    return round(sum(abs(math.log(length / usual)) for length, usual in zip(lengths, _USUAL_SIZE_MM, strict=True)), 1)
