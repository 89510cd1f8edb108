"""Measurements of a segmented scan, slice by slice: volumes (whole scan and around the fovea), thickness, lesions."""

import cv2
import numpy as np
from scipy import sparse

from utils.labels import FLUIDS

CIRCLES_MM = (1, 3, 6)  # diameters around the fovea, those of the ETDRS grid


class Measurements:
    """Collects the measurements of a scan from its label slices, in order. The slices are not kept.

    `shape` is the scan's (slices, rows, columns), `spacing_mm` (x, y, z).
    """

    def __init__(self, shape, spacing_mm):
        self.spacing_mm = spacing_mm
        self.pixels = np.zeros((len(FLUIDS), shape[0], shape[2]), np.int32)  # of each fluid in each column
        self._lesions = [LesionCount() for _ in FLUIDS]

    def add(self, index, labels):
        """Count the slice `index`; `labels` are uint8 (rows, columns) of 0 to 3."""
        for pixels, lesions, label in zip(self.pixels, self._lesions, FLUIDS.values(), strict=True):
            mask = labels == label
            pixels[index] = mask.sum(axis=0)
            lesions.add(mask)

    def thickness_um(self):
        """En-face maps of the thickness of IRF, SRF and PED in micrometres, float32 (3, slices, columns)."""
        return (self.pixels * (self.spacing_mm[1] * 1000)).astype(np.float32)

    def values(self, centre):
        """A dictionary for each fluid: fluid, volumes in mm3, thickness, lesions.

        `centre` is (column, slice) of the circles' centre, in pixels from the middle of the first pixel.

        | key | value |
        |---|---|
        | ``volume_mm3`` | of the whole scan |
        | ``volume_1mm_mm3``, ... | within a circle of this diameter |
        | ``covered_1mm``, ... | share of that circle that the scan shows |
        | ``thickness_um`` | largest thickness |
        | ``lesions`` | number of connected components |
        """
        cell_mm3, circles = float(np.prod(self.spacing_mm)), self._circles(centre)
        rows = []
        for fluid, pixels, lesions in zip(FLUIDS, self.pixels, self._lesions, strict=True):
            row = {"fluid": fluid, "volume_mm3": int(pixels.sum()) * cell_mm3}
            for diameter, (inside, covered) in circles.items():
                row[f"volume_{diameter}mm_mm3"] = int(pixels[inside].sum()) * cell_mm3
                row[f"covered_{diameter}mm"] = covered
            row["thickness_um"] = int(pixels.max()) * self.spacing_mm[1] * 1000
            rows.append({**row, "lesions": lesions.count()})
        return rows

    def _circles(self, centre):
        """{diameter in mm: (cells (slices, columns; bool) whose middle is inside, share of the circle covered)}."""
        x_mm, _, z_mm = self.spacing_mm
        _, slices, columns = self.pixels.shape
        squared = ((np.arange(slices) - centre[1]) * z_mm)[:, None] ** 2 + (
            (np.arange(columns) - centre[0]) * x_mm
        ) ** 2
        circles = {}
        for diameter in CIRCLES_MM:
            inside = squared <= (diameter / 2) ** 2
            area_mm2 = np.pi * (diameter / 2) ** 2
            circles[diameter] = inside, min(1.0, inside.sum() * x_mm * z_mm / area_mm2)
        return circles


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
