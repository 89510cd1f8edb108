"""Where the fovea is: the place whose retina is thinner than that around it on every side that the scan shows."""

import warnings
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

_CELL_MM = 0.05  # of the map that is searched
_CENTRE_MM = 0.25  # radius of the middle whose thickness counts
_RING_MM = (0.5, 1.1)  # radii of the ring around it, in which the retina is thickest
_SHOWN = 0.5  # share of a quarter of the ring that a scan must show to be compared with it
_DEEPEST_MM = 0.06  # a deeper pit counts no more: where surfaces are wrong, it is deeper still
_THICKEST_MM = 0.33  # of a pit's middle; a thicker one is swollen
_OFF_CENTRE_MM = 1.0  # scans are aimed at the fovea; this far off the middle a pit counts 0.6 of its depth
LEAST_CONFIDENCE = 0.5  # for a pit to be taken for the fovea


@dataclass(frozen=True)
class Fovea:
    """A pit in a scan."""

    column: float  # counted from 0, as `b_scan`
    b_scan: float
    confidence: float  # 0-1: the pit's depth, in 60 µm, less where it lies far from the scan's middle


def find_fovea(thickness_mm, x_mm, z_mm):
    """The `Fovea` in a map of the retina's thickness, float (slices, columns) in mm; None where no pit is clear.

    `x_mm` is the distance of columns, `z_mm` (slices,) are the places of the B-scans. The thickness is NaN where no
    retina is seen. The depth of a pit is by how much its middle is thinner than each quarter of the ring around it
    (right, below, left, above), for the quarter where that is least. Two opposite quarters must be in the scan. B-scans
    too near each other to show what is above and below count as one.
    """
    if np.isnan(thickness_mm).all():
        return None
    z_mm = np.asarray(z_mm, float)
    order = np.argsort(z_mm)
    cells, columns, slices = _cells(np.asarray(thickness_mm, np.float32)[order], x_mm, z_mm[order])
    worth = np.minimum(_pit_depths(cells, as_one=len(slices) == 1), _DEEPEST_MM) / _DEEPEST_MM
    height, width = cells.shape
    row, column = np.mgrid[:height, :width]
    off_centre_mm = np.hypot(row - (height - 1) / 2, column - (width - 1) / 2) * _CELL_MM
    worth *= np.exp(-0.5 * (off_centre_mm / _OFF_CENTRE_MM) ** 2)
    row, column = np.unravel_index(worth.argmax(), worth.shape)
    confidence = float(worth[row, column])
    if confidence < LEAST_CONFIDENCE:
        return None
    b_scan = np.interp(slices[row], np.arange(len(order)), order) if len(slices) > 1 else (len(order) - 1) / 2
    return Fovea(float(columns[column]), float(b_scan), confidence)


def _cells(thickness_mm, x_mm, z_mm):
    """(the map in cells, NaN where nothing is known; the column of each cell; the slice of each row of cells).

    `z_mm` are rising. Between B-scans the map is linear.
    """
    slices, columns = thickness_mm.shape
    smooth = _median(thickness_mm)
    extent_mm = z_mm[-1] - z_mm[0]
    width = max(1, round(columns * x_mm / _CELL_MM))
    ends = np.linspace(0, columns, width + 1)
    column = (ends[:-1] + ends[1:] - 1) / 2
    known = ~np.isnan(smooth)
    sums, counts = (
        np.stack([np.interp(ends, np.arange(columns + 1), np.r_[0, np.cumsum(of)]) for of in rows])
        for rows in (np.where(known, smooth, 0), known)
    )
    counts = np.diff(counts, axis=1)
    across = np.where(counts > 0, np.diff(sums, axis=1) / np.maximum(counts, 1e-6), np.nan)
    if extent_mm * slices / max(slices - 1, 1) < 2 * _RING_MM[0]:
        with warnings.catch_warnings(action="ignore"):  # of columns that no B-scan knows
            cells, place = np.nanmean(across, axis=0, keepdims=True), np.zeros(1)
    else:
        height = max(1, round(extent_mm / _CELL_MM)) + 1
        place = np.interp(np.linspace(z_mm[0], z_mm[-1], height), z_mm, np.arange(slices))
        before = np.minimum(place.astype(int), slices - 2)
        share = (place - before)[:, None]
        cells = np.where(share > 0, (1 - share) * across[before] + share * across[before + 1], across[before])
    known = ~np.isnan(cells)
    sums, counts = (cv2.blur(np.where(known, of, 0).astype(np.float32), (3, 3)) for of in (cells, known))
    return np.where(known, sums / np.maximum(counts, 1e-6), np.nan).astype(np.float32), column, place


def _median(thickness_mm):
    """The map after a median over 3 slices and 9 columns; NaN stays, and counts as the median of all."""
    known = ~np.isnan(thickness_mm)
    middle = np.nanmedian(thickness_mm)
    filled = np.where(known, thickness_mm, middle)
    smooth = ndimage.median_filter(filled, (3 if len(filled) > 2 else 1, 9))
    return np.where(known, smooth, np.nan)


def _pit_depths(cells, as_one):
    """By how much (mm) each cell's surroundings are thicker, on the side where that is least; 0 where none is known.

    `as_one`: the map is of a single B-scan, which shows left and right alone.
    """
    reach = round(_RING_MM[1] / _CELL_MM) + 1
    if as_one:
        cells = np.repeat(cells, 2 * reach + 1, axis=0)
    row, column = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    radius_mm, angle = np.hypot(row, column) * _CELL_MM, np.arctan2(row, column)
    middle, middle_known = _mean_of(cells, radius_mm <= _CENTRE_MM)
    ring = (radius_mm >= _RING_MM[0]) & (radius_mm <= _RING_MM[1])
    depth, opposite_shown = np.full(cells.shape, np.inf, np.float32), False
    for axis in (0,) if as_one else (0, 1):  # right and left; below and above
        both_shown = True
        for quarter in (axis, axis + 2):
            turned = np.abs(np.angle(np.exp(1j * (angle - quarter * np.pi / 2))))
            mean, share = _mean_of(cells, ring & (turned <= np.pi / 4))
            shown = share >= _SHOWN
            depth = np.where(shown, np.minimum(depth, mean - middle), depth)
            both_shown = both_shown & shown
        opposite_shown = opposite_shown | both_shown
    known = opposite_shown & (middle_known >= _SHOWN) & (middle <= _THICKEST_MM)
    depth = np.where(known, np.maximum(depth, 0), 0)
    return depth[reach : reach + 1] if as_one else depth


def _mean_of(cells, neighbours):
    """(mean of each cell's `neighbours` that are in the map, share of them that is)."""
    kernel = neighbours.astype(np.float32)
    known = ~np.isnan(cells)
    sums, counts = (
        cv2.filter2D(of.astype(np.float32), -1, kernel, borderType=cv2.BORDER_CONSTANT)
        for of in (np.where(known, cells, 0), known)
    )
    return sums / np.maximum(counts, 1e-6), counts / kernel.sum()
