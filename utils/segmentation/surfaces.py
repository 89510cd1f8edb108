"""The retina's surfaces in a B-scan: how thick the retina is, where fluid can be, and whether there is a retina.

The inner and the outer one are the best pair of paths from the first to the last column (dynamic programming; a path of
edges for each layer boundary is the idea of Chiu et al., Optics Express 2010). What makes a pair good was weighted by
logistic regression on phantoms, in which the true pair competes with all others of its column; terms that changed no
result were left out. Bruch's membrane is the smooth curve under the outer surface that does not follow its bulges
(asymmetric least squares, Eilers 2003).
"""

import itertools
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import linalg, ndimage

from utils.compiled import compiled

# Grey values are scaled to 0-1 before. Weights are relative to an outer edge's.
_EDGE, _SHARP_EDGE = 0.95, 1.65  # of the inner surface: its edge, the edge near by
_INSIDE, _FAR_ABOVE = 0.4, -0.4  # the tissue below it is bright, what lies up to 0.6 mm above it is dark
_SHARPEST = 0.4  # a sharper edge counts no more: the outer surface is often the sharpest
_BRIGHTEST = 0.5  # of the outer surface: how bright it is beside its column's brightest
_ROUGHNESS_COST = 8.0  # for each mm that a surface rises or falls, where a column's strength is about 1
_STEEPEST_INNER, _STEEPEST_OUTER = 1.5, 1.0  # mm in a mm, at most
_THINNEST_MM, _THICKEST_MM = 0.1, 1.5  # between both surfaces
_SMOOTHING_MM = 0.047  # along a B-scan, before edges are looked for
_COLUMN_MM = 0.0235  # distance of the columns that are looked at, so that the smoothing loses nothing
_NOWHERE = -3.0  # strength of what cannot be

_STEP_MM = 0.05  # of the places where Bruch's membrane is computed
_STIFFNESS = 0.03  # mm⁴; the membrane bends as an eye does, and spans detachments
_BULGE_MM, _BULGE_WEIGHT = 0.03, 0.003  # a higher outer surface is a bulge, and hardly counts
_DEEPER_MM = 0.08  # an outer surface this far below the membrane counts half
_BENEATH_MM = 0.06  # of the membrane below the outer surface, where nothing lies between: the photoreceptors' ends
_ROUNDS = 20

# Share of the grey values' variance near the surfaces that the depth alone explains. Of 277 real B-scans the least had
# 0.55; noise and photographs had at most 0.44.
_LAYERED = 0.5
_NEAR_INNER_MM, _NEAR_OUTER_MM = (-0.3, 0.08), (-0.06, 0.1)


@dataclass(frozen=True)
class Surfaces:
    """The surfaces of a B-scan, each in rows, int (columns,)."""

    inner: np.ndarray  # the inner limiting membrane
    outer: np.ndarray  # where the bright layers of photoreceptors and pigment epithelium begin
    bruch: np.ndarray  # Bruch's membrane, also below detachments
    is_retina: bool  # whether inner and outer one are clear enough to be a retina's


def retinal_surfaces(slice_, spacing_mm):
    """The `Surfaces` of a preprocessed B-scan `slice_` (rows, columns; uint8, 0 = invalid).

    `spacing_mm` are the distances of columns and of rows. The border of invalid pixels is no edge. Where no retina is,
    surfaces are paths of no meaning.
    """
    rows, columns = slice_.shape
    column_mm, row_mm = spacing_mm
    valid = slice_ > 0
    if not valid.any():
        nothing = np.zeros(columns, int)
        return Surfaces(nothing, nothing, nothing, False)
    grey = _scaled(slice_, valid, column_mm)
    looked_at = np.unique(np.rint(np.arange(0, columns - 0.5, max(1, _COLUMN_MM / column_mm))).astype(int))
    valid = valid[:, looked_at]
    image = _Columns(grey[:, looked_at], valid, row_mm)
    inner_strength, outer_strength = _strengths(image)

    nearest, farthest = (max(1, round(mm / row_mm)) for mm in (_THINNEST_MM, _THICKEST_MM))
    best_inner = image.highest(inner_strength, -farthest, -nearest)
    pair = np.where(valid, outer_strength + best_inner, _NOWHERE)
    step_mm = max(_COLUMN_MM, column_mm)
    cost = _ROUGHNESS_COST * row_mm
    outer = strongest_path(pair, max(1, round(_STEEPEST_OUTER * step_mm / row_mm)), cost)
    rows_above = outer - np.arange(rows)[:, None]
    possible = (rows_above >= nearest) & (rows_above <= farthest)
    inner_strength = np.where(possible, inner_strength, _NOWHERE)
    inner = strongest_path(inner_strength, max(1, round(_STEEPEST_INNER * step_mm / row_mm)), cost)

    is_retina = _explained_by_depth(image, inner, outer) >= _LAYERED
    inner, outer = (np.rint(np.interp(np.arange(columns), looked_at, path)).astype(int) for path in (inner, outer))
    return Surfaces(inner, outer, bruchs_membrane(outer, spacing_mm), is_retina)


def bruchs_membrane(outer, spacing_mm):
    """Rows of Bruch's membrane, int (columns,), under the outer surface `outer` (columns,), in rows.

    `spacing_mm` are the distances of columns and of rows.
    """
    column_mm, row_mm = spacing_mm
    columns = len(outer)
    ends = np.linspace(0, columns, max(4, round(columns * column_mm / _STEP_MM)) + 1).astype(int)
    ends = np.unique(ends)
    heights_mm = np.array([np.median(outer[start:end]) for start, end in itertools.pairwise(ends)]) * row_mm
    if len(heights_mm) < 4:
        return np.asarray(outer) + round(_BENEATH_MM / row_mm)
    bends = np.diff(np.eye(len(heights_mm)), 2, axis=0)
    stiffness = _STIFFNESS / _STEP_MM**4 * bends.T @ bends
    weights, membrane_mm = np.ones_like(heights_mm), heights_mm
    for _ in range(_ROUNDS):
        membrane_mm = linalg.solve(stiffness + np.diag(weights), weights * heights_mm, assume_a="pos")
        deeper_mm = heights_mm - membrane_mm
        weights = 1 / (1 + (np.maximum(deeper_mm, 0) / _DEEPER_MM) ** 2)
        weights[deeper_mm < -_BULGE_MM] = _BULGE_WEIGHT
    middles = (ends[:-1] + ends[1:] - 1) / 2
    return np.rint((np.interp(np.arange(columns), middles, membrane_mm) + _BENEATH_MM) / row_mm).astype(int)


@compiled
def strongest_path(strength, most_rows, cost=0.0):
    """The row in each column (int64) of the path with the largest sum of `strength` (rows, columns; float).

    From column to column it rises or falls by at most `most_rows` rows, each of which takes `cost` off the sum.
    """
    rows, columns = strength.shape
    total = strength[:, 0].copy()
    came_from = np.zeros((columns, rows), np.int32)
    longer = np.empty_like(total)
    for column in range(1, columns):
        for row in range(rows):
            best, largest = row, total[row]
            for other in range(max(0, row - most_rows), min(rows, row + most_rows + 1)):
                value = total[other] - cost * abs(other - row)
                if value > largest:
                    best, largest = other, value
            came_from[column, row] = best
            longer[row] = largest + strength[row, column]
        total[:] = longer
    path = np.empty(columns, np.int64)
    path[-1] = total.argmax()
    for column in range(columns - 1, 0, -1):
        path[column - 1] = came_from[column, path[column]]
    return path


def _strengths(image):
    """(strength as the inner surface, strength as the outer one) of each pixel of the `_Columns`, (rows, columns)."""
    below = image.mean(0, 0.04, least=0.5)
    edge = np.nan_to_num(below - image.mean(-0.085, 0))
    sharp = np.nan_to_num(image.mean(0, 0.02) - image.mean(-0.03, 0)) * image.valid
    inner = _EDGE * edge + _SHARP_EDGE * np.minimum(sharp, _SHARPEST)
    inner += _INSIDE * np.nan_to_num(image.mean(0.01, 0.15, least=0.1))
    dark = np.percentile(image.grey[image.valid], 20)  # where nothing is known
    inner += _FAR_ABOVE * np.nan_to_num(image.mean(-0.6, -2 * image.row_mm, least=0.1), nan=dark)
    bright, reach = np.nan_to_num(below), round(1.2 / image.row_mm)
    brightest = image.highest(bright * image.valid, -reach, reach)
    outer = edge + _BRIGHTEST * bright / np.maximum(brightest, 0.05)
    return np.where(image.valid, inner, -1), outer


def _explained_by_depth(image, inner, outer):
    """Share of the variance near both surfaces that the depth alone explains: columns of a retina are alike."""
    parts = []
    for surface, ends_mm in ((inner, _NEAR_INNER_MM), (outer, _NEAR_OUTER_MM)):
        first, end = (round(mm / image.row_mm) for mm in ends_mm)
        parts.append(surface + np.arange(first, end)[:, None])
    rows = np.concatenate(parts)
    inside = np.clip(rows, 0, len(image.grey) - 1)
    column = np.arange(len(inner))
    known = (rows == inside) & image.valid[inside, column]
    grey = image.grey[inside, column]
    means = (grey * known).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    total = np.sum((grey - grey[known].mean()) ** 2, where=known) if known.any() else 0.0
    left = np.sum((grey - means[:, None]) ** 2, where=known)
    return float(1 - left / total) if total > 0 else 0.0


class _Columns:
    """A B-scan whose columns are looked along, at valid pixels alone."""

    def __init__(self, grey, valid, row_mm):
        self.grey, self.valid, self.row_mm = grey, valid, row_mm
        self._sums, self._counts = (
            np.concatenate([np.zeros((1, grey.shape[1]), np.float32), np.cumsum(of, axis=0, dtype=np.float32)])
            for of in (grey * valid, valid)
        )

    def mean(self, first_mm, end_mm, least=0.3):
        """Mean from `first_mm` to `end_mm` below each pixel; NaN where less than the share `least` of it is valid."""
        rows = len(self.grey)
        first, end = (round(first_mm / self.row_mm), round(end_mm / self.row_mm))
        end = max(end, first + 1)
        from_row, to_row = (np.clip(np.arange(rows) + offset, 0, rows) for offset in (first, end))
        counts = self._counts[to_row] - self._counts[from_row]
        means = (self._sums[to_row] - self._sums[from_row]) / np.maximum(counts, 1)
        return np.where(counts >= least * (end - first), means, np.nan).astype(np.float32)

    def highest(self, values, first, last):
        """Largest of `values` (rows, columns) `first` to `last` rows below each pixel; `_NOWHERE` where none is."""
        rows, columns = values.shape
        beyond = np.full((max(abs(first), abs(last)), columns), _NOWHERE, np.float32)
        padded = np.concatenate([beyond, values.astype(np.float32), beyond])
        length = last - first + 1
        highest = ndimage.maximum_filter1d(padded, length, axis=0)
        return highest[len(beyond) + first + length // 2 :][:rows]


def _scaled(slice_, valid, column_mm):
    """Smoothed grey values, float32: 0 at the 10th percentile, 1 at the 99.5th, at most 1.2."""
    sums, weights = (
        cv2.GaussianBlur(of.astype(np.float32), (0, 0), sigmaX=_SMOOTHING_MM / column_mm, sigmaY=1)
        for of in (slice_, valid)
    )
    smoothed = sums / np.maximum(weights, 1e-3)
    low, high = np.percentile(smoothed[valid], (10, 99.5))
    return np.clip((smoothed - low) / max(high - low, 1), 0, 1.2)
