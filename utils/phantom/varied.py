"""Varied phantoms: B-scans whose anatomy, disease and appearance are drawn from `utils.phantom.ranges`.

`utils.phantom.retouch_like` imitates three scanners and the challenge's volumes of fluid. These phantoms instead train
a network for scans of unknown devices. A case has few slices.
"""

import cv2
import numpy as np

from utils.labels import FLUIDS
from utils.phantom.anatomy import lateral_grid_mm
from utils.phantom.ranges import Knobs
from utils.phantom.varied_drawing import VariedDrawing
from utils.phantom.varied_eye import VariedEye
from utils.phantom.varied_scanner import VariedScanner

LEAST_PIXELS = 25  # a smaller body of fluid in a B-scan gets no label, because no reader would outline it


def generate_varied(slices=1, seed=0, padded_wedges=False):
    """One varied case: voxels (slices, rows, columns; uint8), reference (likewise, labels 0-3) and spacing in mm.

    The spacing is (x, y, z). `seed` is an int or a sequence of ints; equal seeds give equal cases. With `padded_wedges`
    every case has a white corner; else some have. Raises ValueError for less than one slice.
    """
    return draw_varied(slices, seed, padded_wedges)[:3]


def draw_varied(slices, seed, padded_wedges=False):
    """As `generate_varied`, and the `VariedEye` that is shown."""
    if slices < 1:
        raise ValueError(f"expected at least one slice, got {slices}")
    rng = np.random.default_rng(seed)
    knobs = Knobs(rng)
    spacing_mm = (knobs("column_mm"), knobs("row_mm"), knobs("slice_mm"))
    columns = knobs.count("columns")
    x_mm, z_mm = _lateral_grid(knobs, slices, columns, spacing_mm)
    eye = VariedEye(knobs, x_mm, z_mm, spacing_mm)
    drawing = VariedDrawing(eye)
    render = VariedScanner(knobs, eye.rows, columns, spacing_mm, padded_wedges)
    b_scans, labels = zip(*(drawing.b_scan(index) for index in range(slices)), strict=True)
    voxels = np.stack([render(b_scan) for b_scan in b_scans])
    reference = np.stack(labels)
    for hidden, grey in render.hidden:
        voxels[:, hidden] = grey
        reference[:, hidden] = 0
    for labels in reference:
        _leave_out_specks(labels)
    return voxels, reference, tuple(round(value, 6) for value in spacing_mm), eye


def _leave_out_specks(labels):
    """Set bodies of fewer than `LEAST_PIXELS` in `labels` (rows, columns; uint8) to background, in place."""
    for fluid in FLUIDS.values():
        _, bodies, statistics, _ = cv2.connectedComponentsWithStats(np.uint8(labels == fluid), connectivity=4)
        small = statistics[:, cv2.CC_STAT_AREA] < LEAST_PIXELS
        small[0] = False  # the background
        labels[small[bodies]] = 0


def _lateral_grid(knobs, slices, columns, spacing_mm):
    """x and z of every A-scan relative to the fovea, each (slices, columns) float32."""
    x_mm, z_mm = lateral_grid_mm(slices, columns, spacing_mm)
    return x_mm + np.float32(knobs("eccentricity_mm")), z_mm + np.float32(knobs("eccentricity_mm"))
