"""Where the fovea is: the place whose retina is thinner than that around it on every side that the scan shows."""

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

    `x_mm` and `z_mm` are the distances of columns and slices. The depth of a pit is by how much its middle is thinner
    than each quarter of the ring around it (right, below, left, above), for the quarter where that is least. Two
    opposite quarters must be in the scan. B-scans too near each other to show what is above and below count as one.
    """
    slices, columns = thickness_mm.shape
    as_one = slices * z_mm < 2 * _RING_MM[0]
    width = max(1, round(columns * x_mm / _CELL_MM))
    height = 1 if as_one else round(slices * z_mm / _CELL_MM)
    smooth = ndimage.median_filter(thickness_mm.astype(np.float32), (3 if slices > 2 else 1, 9))
    interpolation = cv2.INTER_AREA if width < columns else cv2.INTER_LINEAR
    cells = cv2.blur(cv2.resize(smooth, (width, height), interpolation=interpolation), (3, 3))
    worth = np.minimum(_pit_depths(cells, as_one), _DEEPEST_MM) / _DEEPEST_MM
    row, column = np.mgrid[:height, :width]
    off_centre_mm = np.hypot(row - (height - 1) / 2, column - (width - 1) / 2) * _CELL_MM
    worth *= np.exp(-0.5 * (off_centre_mm / _OFF_CENTRE_MM) ** 2)
    row, column = np.unravel_index(worth.argmax(), worth.shape)
    confidence = float(worth[row, column])
    if confidence < LEAST_CONFIDENCE:
        return None
    return Fovea((column + 0.5) * columns / width - 0.5, (row + 0.5) * slices / height - 0.5, confidence)


def _pit_depths(cells, as_one):
    """By how much (mm) each cell's surroundings are thicker, on the side where that is least; 0 where none is known.

    `as_one`: the map is of a single B-scan, which shows left and right alone.
    """
    reach = round(_RING_MM[1] / _CELL_MM) + 1
    if as_one:
        cells = np.repeat(cells, 2 * reach + 1, axis=0)
    row, column = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    radius_mm, angle = np.hypot(row, column) * _CELL_MM, np.arctan2(row, column)
    middle, _ = _mean_of(cells, radius_mm <= _CENTRE_MM)
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
    depth = np.where(opposite_shown & (middle <= _THICKEST_MM), np.maximum(depth, 0), 0)
    return depth[reach : reach + 1] if as_one else depth


def _mean_of(cells, neighbours):
    """(mean of each cell's `neighbours` that are in the map, share of them that is)."""
    kernel = neighbours.astype(np.float32)
    sums, counts = (cv2.filter2D(of, -1, kernel, borderType=cv2.BORDER_CONSTANT) for of in (cells, np.ones_like(cells)))
    return sums / np.maximum(counts, 1e-6), counts / kernel.sum()
