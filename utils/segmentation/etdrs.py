"""The ETDRS grid: circles around the fovea, and the nine subfields between them, on a scan seen from the front.

The grid is that of the Early Treatment Diabetic Retinopathy Study: circles of 1, 3 and 6 mm in diameter; the rings
between them are cut at 45 degrees.
"""

from dataclasses import dataclass

import numpy as np

CIRCLES_MM = (1, 3, 6)  # diameters
_NASAL = {"OD": "right", "OS": "left"}  # where the nose is in a right and a left eye's B-scans


@dataclass(frozen=True)
class Sides:
    """What the sides of a scan seen from the front are called, the first B-scan being drawn on top."""

    top: str = "superior"
    bottom: str = "inferior"
    left: str = "left"
    right: str = "right"
    assumed: bool = False  # whether the file does not say where up is
    turned: bool = False  # whether it states a direction that is not surely the patient's, and is not followed

    def in_words(self):
        """For reports."""
        nasal = {"nasal": "left", "temporal": "right"}.get(self.left, "unknown")
        top = f"{self.top}, as assumed" if self.assumed else self.top
        turned = "; the direction in its file is not followed" if self.turned else ""
        return f"first B-scan {top}; nasal side {nasal}{turned}"


def sides_of(laterality, placement, fundus=None):
    """The `Sides` of a scan of an eye, "OD", "OS" or None, with this `Placement` and `Fundus`.

    Where the direction is not the patient's, the B-scans' lines on the fundus tell the superior one; without these it
    is taken for the first. Columns then run to the patient's left, as OCT devices show them: the nose is on the right
    in right eyes. Without laterality the sides are left and right.
    """
    to_left, to_head = placement.matrix[0, 0], placement.matrix[2, 2]  # of columns, of slices
    known = placement.of_patient if min(abs(to_left), abs(to_head)) > 0.5 else ()
    is_upward = to_head > 0 if 2 in known else _is_upward(fundus)
    top, bottom = ("inferior", "superior") if is_upward else ("superior", "inferior")
    turned = placement.is_turned and not placement.of_patient
    if laterality not in _NASAL:
        return Sides(top, bottom, assumed=is_upward is None, turned=turned)
    nasal_right = (_NASAL[laterality] == "right") == (to_left > 0 or 0 not in known)
    left, right = ("temporal", "nasal") if nasal_right else ("nasal", "temporal")
    return Sides(top, bottom, left, right, is_upward is None, turned)


def _is_upward(fundus):
    """Whether the first B-scan lies below the last one on the `fundus`; None where its lines do not say."""
    if fundus is None or fundus.order_assumed or None in (fundus.lines[0], fundus.lines[-1]):
        return None
    right, down = (np.add(*np.split(np.subtract(fundus.lines[-1], fundus.lines[0]), 2))).tolist()
    return down < 0 if abs(down) > abs(right) else None


class EtdrsGrid:
    """Where circles and subfields lie.

    `x_mm` (columns,) and `z_mm` (slices,) are the places of columns and slices. `centre` is (column, slice), counted
    from 0; it may lie between two.
    """

    def __init__(self, x_mm, z_mm, centre):
        self._right, self._down = np.meshgrid(x_mm - place(centre[0], x_mm), z_mm - place(centre[1], z_mm))
        self._radius_mm = np.hypot(self._right, self._down)

    def circles(self):
        """{diameter in mm: (cells whose middle is inside, bool (slices, columns); the circle's area in mm2)}."""
        return {d: (self._radius_mm <= d / 2, np.pi * (d / 2) ** 2) for d in CIRCLES_MM}

    def subfields(self, sides):
        """{subfield: (cells whose middle is inside, area in mm2)}: centre, then inner_... and outer_... by `sides`."""
        inner, middle, outer = (diameter / 2 for diameter in CIRCLES_MM)
        beside = np.abs(self._right) > np.abs(self._down)
        quarters = {
            sides.top: ~beside & (self._down <= 0),
            sides.bottom: ~beside & (self._down > 0),
            sides.left: beside & (self._right < 0),
            sides.right: beside & (self._right > 0),
        }
        found = {"centre": (self._radius_mm <= inner, np.pi * inner**2)}
        for name, near, far in (("inner", inner, middle), ("outer", middle, outer)):
            ring = (self._radius_mm > near) & (self._radius_mm <= far)
            area_mm2 = np.pi * (far**2 - near**2) / 4
            found |= {f"{name}_{side}": (ring & quarter, area_mm2) for side, quarter in quarters.items()}
        return found


def place(index, places_mm):
    """Where `index` lies: between two of `places_mm`, or beyond the outermost as far as their distance says."""
    last = len(places_mm) - 1
    if not last:
        return places_mm[0]
    before, after = min(index, 0), max(index - last, 0)
    beyond_mm = before * (places_mm[1] - places_mm[0]) + after * (places_mm[-1] - places_mm[-2])
    return np.interp(index, np.arange(len(places_mm)), places_mm) + beyond_mm


def cell_lengths(places_mm, spacing_mm):
    """How long each cell at `places_mm` is: to the middle between its neighbours, and as far beyond the outermost."""
    if len(places_mm) < 2:
        return np.full(len(places_mm), spacing_mm)
    return np.abs(np.gradient(places_mm))
