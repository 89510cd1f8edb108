"""The inner and the outer surface of the retina in a B-scan: how thick the retina is, and whether there is one.

Both are found as the strongest path of dark-to-bright edges from the first to the last column (dynamic programming; a
path of edges for each layer boundary is the idea of Chiu et al., Optics Express 2010).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from utils.compiled import compiled

# Heights in mm of what is compared above and below an edge; grey values are scaled to 0-1 before.
_BELOW, _ABOVE, _FAR_ABOVE = 0.04, 0.085, 0.23
_CLEAR_EDGE = 0.2  # a stronger one counts no more, so that the brighter outer surface is not taken for the inner one
_THINNEST, _THICKEST = 0.1, 0.9  # mm between both surfaces
_DEPTH_COST = 0.15  # of an outer edge, for each mm below the inner surface: the choroid has edges, too
_INNER_RISE, _OUTER_RISE = 3, 2  # rows from column to column, at most
_SEEN_INNER, _SEEN_OUTER = 0.08, 0.12  # strength from which an edge is one
_SMOOTH_OUTER = 0.45  # rows from column to column, in the mean; noise and photographs have rougher paths


@dataclass(frozen=True)
class Surfaces:
    """The surfaces of a B-scan, each in rows, int (columns,)."""

    inner: np.ndarray  # the inner limiting membrane
    outer: np.ndarray  # where the bright layers of photoreceptors and pigment epithelium begin
    is_retina: bool  # whether both are clear enough to be a retina's


def retinal_surfaces(slice_, axial_spacing_mm):
    """The `Surfaces` of a preprocessed B-scan `slice_` (rows, columns; uint8, 0 = invalid).

    Where no retina is, they are paths of no meaning.
    """
    rows, columns = slice_.shape
    valid = slice_ > 0
    if not valid.any():
        nothing = np.zeros(columns, int)
        return Surfaces(nothing, nothing, False)
    sums = _column_sums(_scaled(slice_, valid))
    below, above, far = (max(1, round(height / axial_spacing_mm)) for height in (_BELOW, _ABOVE, _FAR_ABOVE))
    row = np.arange(rows)[:, None]

    edge = _mean(sums, 0, below) - _mean(sums, -above, 0)
    strength = np.minimum(edge, _CLEAR_EDGE) - _mean(sums, -far, -2)  # the vitreous is dark far up
    rough = strongest_path(np.where(valid, strength, -1), _INNER_RISE)
    sharp = _mean(sums, 0, below) - _mean(sums, -above // 2, 0)
    near = (row >= rough - 4) & (row <= rough + above // 2 + 5) & valid
    inner = strongest_path(np.where(near, sharp, -1), _INNER_RISE)

    depth_mm = (row - inner) * axial_spacing_mm
    strength = edge - 0.3 * _mean(sums, below, 3 * below) - _DEPTH_COST * depth_mm
    outer = strongest_path(np.where((depth_mm > _THINNEST) & (depth_mm < _THICKEST), strength, -1), _OUTER_RISE)

    column = np.arange(columns)
    outer_seen = (edge[outer, column] > _SEEN_OUTER) & (outer < rows - 2)
    inner_seen = (edge[inner, column] > _SEEN_INNER) & (inner > 1)
    # The retina's top may be cut off. Its outer surface is then seen everywhere, and smooth.
    smooth = np.abs(np.diff(outer)).mean() <= _SMOOTH_OUTER if columns > 1 else False
    is_retina = (inner_seen & outer_seen).mean() >= 0.5 or (outer_seen.mean() > 0.95 and smooth)
    return Surfaces(inner, outer, bool(is_retina))


@compiled
def strongest_path(strength, most_rise):
    """The row in each column (int64) of the path with the largest sum of `strength` (rows, columns; float).

    From column to column it rises or falls by at most `most_rise` rows.
    """
    rows, columns = strength.shape
    total = strength[:, 0].copy()
    came_from = np.zeros((columns, rows), np.int32)
    longer = np.empty_like(total)
    for column in range(1, columns):
        for row in range(rows):
            best = row
            for other in range(max(0, row - most_rise), min(rows, row + most_rise + 1)):
                if total[other] > total[best]:
                    best = other
            came_from[column, row] = best
            longer[row] = total[best] + strength[row, column]
        total[:] = longer
    path = np.empty(columns, np.int64)
    path[-1] = total.argmax()
    for column in range(columns - 1, 0, -1):
        path[column - 1] = came_from[column, path[column]]
    return path


def _scaled(slice_, valid):
    """Smoothed grey values, float32: 0 at the 10th percentile, 1 at the 99.5th, at most 1.2."""
    smoothed = cv2.GaussianBlur(slice_.astype(np.float32), (0, 0), sigmaX=4, sigmaY=1)
    low, high = np.percentile(smoothed[valid], (10, 99.5))
    return np.clip((smoothed - low) / max(high - low, 1), 0, 1.2)


def _column_sums(image):
    """Sums of all rows above each, (rows + 1, columns)."""
    return np.concatenate([np.zeros((1, image.shape[1]), np.float32), np.cumsum(image, axis=0, dtype=np.float32)])


def _mean(sums, first, end):
    """Mean of the rows r + `first` to r + `end` - 1 for each row r, as far as they are in the image."""
    rows = len(sums) - 1
    from_row, to_row = (np.clip(np.arange(rows) + offset, 0, rows) for offset in (first, end))
    return (sums[to_row] - sums[from_row]) / np.maximum(to_row - from_row, 1)[:, None]
