"""Scores of a label volume against a reader's: the RETOUCH challenge's measures, distances and lesions.

The challenge's are Dice and the absolute volume difference (Bogunovic et al., IEEE TMI 2019). Everything is computed
inside the bounding boxes of the masks, and distances from their borders alone: fluid fills a small part of a scan.
"""

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from utils.labels import FLUIDS

_N_LABELS = 4
_CONNECTED = np.ones((3, 3, 3), bool)  # voxels of a lesion touch by a face, an edge or a corner


def score_volume(labels, reference, spacing_mm):
    """Scores of one volume, a dictionary for each fluid.

    `labels` (predicted) and `reference` are uint8 (slices, rows, columns) with 0 background, 1 IRF, 2 SRF, 3 PED.
    `spacing_mm` is (x, y, z). Values are floats, numbers of lesions int. A lesion is a connected component (26
    neighbours).

    | key | value |
    |---|---|
    | ``fluid`` | its name |
    | ``dice`` | of the two masks: nan if both are empty, 0 if one is |
    | ``volume_mm3``, ``reference_mm3`` | predicted and true volume |
    | ``difference_mm3``, ``avd_mm3`` | predicted minus true volume, and its absolute value |
    | ``precision``, ``recall`` | of voxels; nan if nothing is predicted, or if the reference is empty |
    | ``hd95_mm``, ``assd_mm`` | of `surface_distances` |
    | ``lesions``, ``lesions_found`` | in the reference, and those of them that hold a predicted voxel |
    | ``lesions_predicted``, ``lesions_false`` | in the prediction, and those of them that hold no true voxel |

    Raises ValueError if shapes differ or a label is not among 0-3.
    """
    if labels.shape != reference.shape:
        raise ValueError(f"labels {labels.shape} and reference {reference.shape} differ in shape")
    if max(labels.max(), reference.max()) >= _N_LABELS:
        raise ValueError(f"labels 0 to {_N_LABELS - 1} expected, found {max(labels.max(), reference.max())}")
    counts = _joint_counts(labels, reference)
    labels_boxes = ndimage.find_objects(labels, _N_LABELS - 1)
    reference_boxes = ndimage.find_objects(reference, _N_LABELS - 1)
    voxel_mm3 = float(np.prod(spacing_mm))
    rows = []
    for fluid, code in FLUIDS.items():
        n_predicted, n_true, overlap = int(counts[:, code].sum()), int(counts[code].sum()), int(counts[code, code])
        predicted_box, true_box = labels_boxes[code - 1], reference_boxes[code - 1]
        hd95_mm = assd_mm = np.nan
        if n_predicted and n_true:
            surfaces = [
                border_points(volume[box] == code, [side.start for side in box], spacing_mm)
                for volume, box in ((labels, predicted_box), (reference, true_box))
            ]
            hd95_mm, assd_mm = surface_distances(*surfaces)
        lesions, lesions_found = _lesions(reference, labels, true_box, code)
        lesions_predicted, lesions_true = _lesions(labels, reference, predicted_box, code)
        difference_mm3 = (n_predicted - n_true) * voxel_mm3
        rows.append(
            {
                "fluid": fluid,
                "dice": _ratio(2 * overlap, n_predicted + n_true),
                "volume_mm3": n_predicted * voxel_mm3,
                "reference_mm3": n_true * voxel_mm3,
                "difference_mm3": difference_mm3,
                "avd_mm3": abs(difference_mm3),
                "precision": _ratio(overlap, n_predicted),
                "recall": _ratio(overlap, n_true),
                "hd95_mm": hd95_mm,
                "assd_mm": assd_mm,
                "lesions": lesions,
                "lesions_found": lesions_found,
                "lesions_predicted": lesions_predicted,
                "lesions_false": lesions_predicted - lesions_true,
            }
        )
    return rows


def border_points(mask, origin, spacing_mm):
    """Centres in mm of the mask's border voxels: those with a face neighbour outside the mask, or at the box's side.

    `mask` is bool (slices, rows, columns), a tight box cut from the whole mask, from the voxel `origin` on.
    `spacing_mm` is (x, y, z). Returns float64 (points, 3) as (z, y, x).
    """
    inner = mask.copy()
    for axis in range(3):
        for side in (0, -1):
            np.moveaxis(inner, axis, 0)[side] = False
        inside, before, after = (
            np.moveaxis(array, axis, 0)[part]
            for array, part in ((inner, slice(1, -1)), (mask, slice(None, -2)), (mask, slice(2, None)))
        )
        inside &= before & after
    return (np.argwhere(mask & ~inner) + origin) * np.asarray(spacing_mm[::-1], np.float64)


def surface_distances(points, other_points):
    """95th percentile of the Hausdorff distance and average symmetric surface distance of two surfaces, in mm.

    Both are arrays (points, 3) in mm. A distance is that of a point to the nearest point of the other surface. The
    first value is the 95th percentile of the distances in both directions together, the second the mean of both
    directions' means. These, and the borders of `border_points`, are MedPy's definitions.
    """
    there = KDTree(other_points, balanced_tree=False).query(points)[0]
    back = KDTree(points, balanced_tree=False).query(other_points)[0]
    return float(np.percentile(np.concatenate([there, back]), 95)), float((there.mean() + back.mean()) / 2)


def _joint_counts(labels, reference):
    """Number of voxels with each pair of labels: int64 (reference, predicted)."""
    counts = np.zeros(_N_LABELS**2, np.int64)
    for true, predicted in zip(reference, labels, strict=True):
        counts += np.bincount((true * np.uint8(_N_LABELS) + predicted).ravel(), minlength=_N_LABELS**2)
    return counts.reshape(_N_LABELS, _N_LABELS)


def _lesions(volume, other, box, code):
    """Number of lesions of the label `code` in `volume`, all within `box`, and of those that `other` touches."""
    if box is None:
        return 0, 0
    components, count = ndimage.label(volume[box] == code, _CONNECTED)
    touched = np.zeros(count + 1, bool)
    touched[components[other[box] == code]] = True
    return count, int(touched[1:].sum())


def _ratio(part, whole):
    return part / whole if whole else np.nan
