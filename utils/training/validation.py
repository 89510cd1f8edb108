"""Scores and pictures of whole validation B-scans. The score chooses the best epoch.

Scores of patches would be too good, because patches for training lie where the fluid is.
"""

import itertools

import numpy as np

from utils.errors import InputError
from utils.labels import FLUIDS, in_order, without_unjudged
from utils.preparation.prepared import volume_paths
from utils.preparation.roi import prediction_region
from utils.segmentation.decisions import of_taught_fluids
from utils.volumes.mhd import open_volume

_STREAM = 7  # separates the random numbers of this choice from others of the same seed


def choose_b_scans(rows, count, seed):
    """Up to `count` of `rows` (a list of `SliceRow`), taken in turn from every vendor and kind: IRF, SRF, PED or none.

    A B-scan is of kind none where none of the fluids that were outlined in it is there. If a vendor has no further
    B-scan of a kind, others take its place. `seed` and the rows determine the choice; the order of `rows` does not. The
    result is in the order of the choice, so that its beginning is balanced too.
    """
    rows = sorted(rows, key=lambda row: (row.vendor, row.image_name, row.slice))
    np.random.default_rng([seed, _STREAM]).shuffle(rows)
    vendors = sorted({row.vendor for row in rows})
    waiting = [
        [row for row in rows if row.vendor == vendor and kind in _kinds(row)]
        for kind in ("IRF", "SRF", "PED", "none")
        for vendor in vendors
    ]
    chosen = {}
    while any(waiting) and len(chosen) < count:
        for queue in waiting:
            while queue and queue[0] in chosen:
                queue.pop(0)
            if queue and len(chosen) < count:
                chosen[queue.pop(0)] = None
    return list(chosen)


def _kinds(row):
    """The fluids that a B-scan holds, or "none"."""
    return [fluid for fluid in FLUIDS if getattr(row, f"is_{fluid}")] or ["none"]


def check_monitor(monitor, b_scans, csv_path, taught=tuple(FLUIDS)):
    """Raise `InputError` if none of `b_scans`, chosen from `csv_path`, holds the fluid whose score is monitored.

    A fluid that is not among `taught` is none to monitor: it is never predicted, so that its Dice is 0 throughout. The
    F-score of patches without the fluid is 1 throughout. The first epoch would be the best.
    """
    held = {kind for row in b_scans for kind in _kinds(row)} - {"none"}
    fluids, named = held & set(taught), monitor.rpartition("_")[2].upper()
    needed = {named} if named in FLUIDS else set() if monitor in ("epoch", "val_loss") else fluids or {"a fluid"}
    if not needed <= fluids:
        found = ", ".join(in_order(held)) or "no fluid"
        untaught = [fluid for fluid in in_order(held) if fluid not in taught]
        unknown = f", of which {' and '.join(untaught)} is not taught" * bool(untaught)
        raise InputError(
            f"{csv_path}: its B-scans hold {found}{unknown}, so that {monitor} says nothing; choose another MONITOR"
        )


def predicted_b_scans(predictor, rows, settings, taught=tuple(FLUIDS)):
    """Yield (row, grey, reference, probabilities, spacing in mm) for each of `rows`, by preprocessed volumes.

    grey and reference are uint8 (rows, columns), probabilities float32 (rows, columns, 4); fluids that are not among
    `taught` count as background. `predictor` is a `Predictor`, `settings` are `BatchSettings`.
    Predictions are limited to the region of interest, as for a new scan.
    """
    by_case = sorted(rows, key=lambda row: (row.vendor, row.image_name, row.slice))
    for (vendor, image_name), of_case in itertools.groupby(by_case, lambda row: (row.vendor, row.image_name)):
        of_case = list(of_case)
        volume_path, masks_path, _ = volume_paths(settings.preprocessed_folder, vendor, image_name)
        (volume, spacing_mm), (masks, _) = open_volume(volume_path), open_volume(masks_path)
        slices, neighbours = [row.slice for row in of_case], settings.patches.neighbours
        probabilities_of_slices = predictor.of_volume(volume, prediction_region, slices=slices, neighbours=neighbours)
        for row, probabilities in zip(of_case, probabilities_of_slices, strict=True):
            probabilities = of_taught_fluids(probabilities, taught)
            yield row, np.array(volume[row.slice]), np.array(masks[row.slice]), probabilities, spacing_mm


class FluidDice:
    """Dice of each fluid over all B-scans together. The smallest lesions would dominate a mean over B-scans."""

    def __init__(self):
        self._overlap, self._sizes = np.zeros(len(FLUIDS), np.int64), np.zeros((2, len(FLUIDS)), np.int64)

    def add(self, reference, labels, outlined=tuple(FLUIDS)):
        """Count a B-scan's pixels of the fluids that were `outlined` in it.

        `labels` are uint8 (rows, columns) of labels 0 to 3, `reference` may hold `NOT_JUDGED` as well.
        """
        labels, reference = without_unjudged(labels, reference)
        for index, (fluid, label) in enumerate(FLUIDS.items()):
            if fluid not in outlined:
                continue
            is_reference, is_predicted = reference == label, labels == label
            self._overlap[index] += np.count_nonzero(is_reference & is_predicted)
            self._sizes[:, index] += np.count_nonzero(is_reference), np.count_nonzero(is_predicted)

    def values(self):
        """``dice_irf``, ``dice_srf``, ``dice_ped`` (None if no reference holds the fluid) and their mean ``dice``."""
        values = {
            f"dice_{fluid.lower()}": 2 * int(overlap) / int(sum(sizes)) if sizes[0] else None
            for fluid, overlap, sizes in zip(FLUIDS, self._overlap, self._sizes.T, strict=True)
        }
        known = [value for value in values.values() if value is not None]
        return {"dice": float(np.mean(known)) if known else None, **values}
