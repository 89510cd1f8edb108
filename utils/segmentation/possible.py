"""Where fluid can be, by the retina's surfaces: nothing above the retina, and nothing below Bruch's membrane.

The margins leave 99.5 % of every fluid as outlined, in 277 real B-scans and in varied phantoms with detachments up to
1 mm high: docs/experiments.md.
"""

import numpy as np

from utils.labels import FLUIDS

# How far, in mm, each fluid may lie above the inner limiting membrane (traction lifts cysts with it) and below Bruch's
# membrane (which is found too high under detachments as wide as the scan).
ABOVE_MM = {"IRF": 0.5, "SRF": 0.1, "PED": 0.15}
BELOW_MM = {"IRF": 0.15, "SRF": 0.1, "PED": 0.5}


def possible_places(surfaces, surfaces_row_mm, rows, row_mm):
    """Where each fluid can be in a B-scan, bool (rows, columns, fluids), `rows` of `row_mm` each.

    `surfaces` are its `utils.segmentation.surfaces.Surfaces`, in rows of `surfaces_row_mm`. Without a retina it is
    everywhere.
    """
    columns = len(surfaces.inner)
    if not surfaces.is_retina:
        return np.ones((rows, columns, len(FLUIDS)), bool)
    depth_mm = (np.arange(rows)[:, None] + 0.5) * row_mm
    inner_mm, bruch_mm = ((of + 0.5) * surfaces_row_mm for of in (surfaces.inner, surfaces.bruch))
    inside = [(depth_mm >= inner_mm - ABOVE_MM[fluid]) & (depth_mm <= bruch_mm + BELOW_MM[fluid]) for fluid in FLUIDS]
    return np.stack(inside, axis=-1)


def only_possible(probabilities, possible):
    """`probabilities`, float (rows, columns, channels), where `possible`; elsewhere they count as background's.

    `possible` is that of `possible_places`. Channels beyond the classes are kept.
    """
    fluids = slice(1, len(FLUIDS) + 1)
    kept = np.array(probabilities)
    kept[..., 0] += np.sum(kept[..., fluids], axis=-1, where=~possible)
    kept[..., fluids] *= possible
    return kept


def remove_ped_above_srf(labels):
    """Set PED above SRF of the same column to 0, in `labels` (uint8; rows, columns): it lies below that, always."""
    srf_below = np.logical_or.accumulate(labels[::-1] == FLUIDS["SRF"])[::-1]
    labels[(labels == FLUIDS["PED"]) & srf_below] = 0
