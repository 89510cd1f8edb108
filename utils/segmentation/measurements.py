"""Measurements of a segmented scan, slice by slice: volumes (whole scan and around the fovea), thickness, lesions.

A single B-scan is no volume: of it, areas are measured.
"""

import cv2
import numpy as np
from scipy import sparse

from utils.labels import FLUIDS
from utils.segmentation.etdrs import EtdrsGrid, cell_lengths


class Measurements:
    """Collects the measurements of a scan from its label slices, in order. The slices are not kept.

    `shape` is the scan's (slices, rows, columns), `spacing_mm` (x, y, z). `z_mm` are the places of the slices, float
    (slices,); None: at equal distances.
    """

    def __init__(self, shape, spacing_mm, z_mm=None):
        x_mm, y_mm, distance_mm = spacing_mm
        self.pixels = np.zeros((len(FLUIDS), shape[0], shape[2]), np.int32)  # of each fluid in each column
        self.row_mm, self._column_mm, self.is_volume = y_mm, x_mm, shape[0] > 1
        self._x_mm = np.arange(shape[2]) * x_mm
        self.z_mm = np.arange(shape[0]) * distance_mm if z_mm is None else np.asarray(z_mm, float)
        self._cells_mm2 = np.outer(cell_lengths(self.z_mm, distance_mm), np.full(shape[2], x_mm))
        self._lesions = [LesionCount() for _ in FLUIDS]

    def add(self, index, labels):
        """Count the slice `index`; `labels` are uint8 (rows, columns) of 0 to 3."""
        for pixels, lesions, label in zip(self.pixels, self._lesions, FLUIDS.values(), strict=True):
            mask = labels == label
            pixels[index] = mask.sum(axis=0)
            lesions.add(mask)

    def thickness_um(self):
        """En-face maps of the thickness of IRF, SRF and PED in micrometres, float32 (3, slices, columns)."""
        return (self.pixels * (self.row_mm * 1000)).astype(np.float32)

    def values(self, centre):
        """A dictionary for each fluid: fluid, volumes in mm3 or the area in mm2, thickness, lesions.

        `centre` is (column, slice) of the circles' centre, in pixels from the middle of the first pixel.

        | key | value |
        |---|---|
        | ``volume_mm3`` | of the whole scan |
        | ``volume_1mm_mm3``, ... | within a circle of this diameter |
        | ``covered_1mm``, ... | share of that circle that the scan shows |
        | ``area_mm2`` | of a single B-scan, in place of the above |
        | ``thickness_um`` | largest thickness |
        | ``lesions`` | number of connected components |
        """
        circles = EtdrsGrid(self._x_mm, self.z_mm, centre).circles()
        rows = []
        for fluid, pixels, lesions in zip(FLUIDS, self.pixels, self._lesions, strict=True):
            row = {"fluid": fluid}
            if self.is_volume:
                row["volume_mm3"] = self._volume_mm3(pixels)
                for diameter, (inside, area_mm2) in circles.items():
                    row[f"volume_{diameter}mm_mm3"] = self._volume_mm3(pixels, inside)
                    row[f"covered_{diameter}mm"] = self._covered(inside, area_mm2)
            else:
                row["area_mm2"] = float(pixels.sum() * self._column_mm * self.row_mm)
            row["thickness_um"] = int(pixels.max()) * self.row_mm * 1000
            rows.append({**row, "lesions": lesions.count()})
        return rows

    def subfields(self, centre, sides):
        """A dictionary for each fluid: {subfield: {...}} of the nine ETDRS subfields around `centre`.

        A single B-scan has none. `sides` are the scan's `utils.segmentation.etdrs.Sides`. Each subfield has ``mm3``,
        its volume; ``mean_um`` and ``max_um``, the mean and the largest thickness of the part of it that the scan
        shows, None if none is shown; and ``covered``, the share of it that is shown.
        """
        grid = EtdrsGrid(self._x_mm, self.z_mm, centre).subfields(sides) if self.is_volume else {}
        return [
            {name: self._of_subfield(pixels, inside, area_mm2) for name, (inside, area_mm2) in grid.items()}
            for pixels in self.pixels
        ]

    def _of_subfield(self, pixels, inside, area_mm2):
        volume_mm3, shown_mm2 = self._volume_mm3(pixels, inside), float(self._cells_mm2[inside].sum())
        return {
            "mm3": volume_mm3,
            "mean_um": volume_mm3 / shown_mm2 * 1000 if shown_mm2 else None,
            "max_um": int(pixels[inside].max()) * self.row_mm * 1000 if shown_mm2 else None,
            "covered": self._covered(inside, area_mm2),
        }

    def _volume_mm3(self, pixels, inside=True):
        return float((pixels * self._cells_mm2).sum(where=inside) * self.row_mm)

    def _covered(self, inside, area_mm2):
        return min(1.0, float(self._cells_mm2[inside].sum()) / area_mm2)


class LesionCount:
    """Counts the connected components (26 neighbours) of a volume whose slices are added one by one."""

    def __init__(self):
        self._before = None  # the last slice, as component numbers, with an empty border of 1 pixel
        self._n_parts, self._links = 0, []

    def add(self, mask):
        """Add the next slice, bool (rows, columns)."""
        n_labels, parts = cv2.connectedComponents(np.pad(mask, 1).astype(np.uint8), connectivity=8)
        parts[parts > 0] += self._n_parts
        if n_labels > 1 and self._before is not None:
            self._links += _touching(parts, self._before)
        self._n_parts += n_labels - 1
        self._before = parts if n_labels > 1 else None

    def count(self):
        """The number so far."""
        if not self._n_parts:
            return 0
        links = np.array(self._links or [(1, 1)]).T - 1
        graph = sparse.coo_matrix((np.ones(links.shape[1]), links), shape=(self._n_parts, self._n_parts))
        return int(sparse.csgraph.connected_components(graph, directed=False)[0])


def _touching(parts, before):
    """Pairs of touching components of two slices (rows, columns; int32, with an empty border)."""
    rows, columns = np.nonzero(parts)
    pairs = set()
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            other = before[rows + row, columns + column]
            found = np.unique(np.stack([parts[rows, columns], other])[:, other > 0], axis=1)
            pairs.update(map(tuple, found.T.tolist()))
    return list(pairs)
