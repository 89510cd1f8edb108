"""Where fluid can be, by the retina's surfaces: nothing above the retina, and nothing below Bruch's membrane.

The margins leave 99.5 % of every fluid as outlined, in 277 real B-scans and in varied phantoms with detachments up to
1 mm high: benchmarks/README.md.
"""

import numpy as np

from utils.labels import FLUIDS

ABOVE_MM = 0.5  # how far any fluid may lie above the inner limiting membrane: traction lifts cysts with it
# How far each may lie below Bruch's membrane, which is found too high under detachments as wide as the scan.
BELOW_MM = {"IRF": 0.2, "SRF": 0.3, "PED": 0.5}


def possible_places(surfaces, rows, row_mm):
    """Where each fluid can be in a B-scan of `rows`, each `row_mm` high, bool (rows, columns, fluids).

    `surfaces` are its `utils.segmentation.surfaces.Surfaces`. Where no retina was found it is everywhere.
    """
    columns = len(surfaces.inner)
    if not surfaces.is_retina:
        return np.ones((rows, columns, len(FLUIDS)), bool)
    row = np.arange(rows)[:, None, None]
    below = np.array([BELOW_MM[fluid] for fluid in FLUIDS]) / row_mm
    return (row >= surfaces.inner[:, None] - ABOVE_MM / row_mm) & (row <= surfaces.bruch[:, None] + below)


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
