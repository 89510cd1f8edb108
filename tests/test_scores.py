import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from utils.evaluation.scores import score_volume

SPACING_MM = (0.5, 0.2, 3.0)  # x, y, z
SHAPE = (5, 12, 10)


def volume(*voxels, code=1, shape=SHAPE):
    """A label volume of zeros, except at `voxels`, (slice, row, column) each."""
    labels = np.zeros(shape, np.uint8)
    for voxel in voxels:
        labels[voxel] = code
    return labels


def test_scores_worked_out_by_hand():
    reference = np.zeros((1, 2, 4), np.uint8)
    labels = np.zeros((1, 2, 4), np.uint8)
    reference[0, 0] = 1  # four IRF pixels
    labels[0, 0, :2] = 1  # two of them found, and one beside
    labels[0, 1, 0] = 1
    labels[0, 1, 3] = 3  # PED where there is none
    irf, srf, ped = score_volume(labels, reference, (0.1, 0.2, 0.5))  # 0.01 mm3 a voxel
    assert irf["dice"] == pytest.approx(2 * 2 / (3 + 4))
    assert (irf["volume_mm3"], irf["reference_mm3"]) == (pytest.approx(0.03), pytest.approx(0.04))
    assert (irf["difference_mm3"], irf["avd_mm3"]) == (pytest.approx(-0.01), pytest.approx(0.01))
    assert (irf["precision"], irf["recall"]) == (pytest.approx(2 / 3), pytest.approx(2 / 4))
    # All voxels are borders. To the prediction: 0, 0, 0.1, 0.2 mm; back: 0, 0, 0.2 mm.
    assert irf["assd_mm"] == pytest.approx((0.3 / 4 + 0.2 / 3) / 2)
    assert irf["hd95_mm"] == pytest.approx(0.2)
    assert np.isnan(srf["dice"])
    assert srf["avd_mm3"] == 0
    assert ped["dice"] == 0
    assert ped["difference_mm3"] == pytest.approx(0.01)


def test_both_empty():
    for row in score_volume(volume(), volume(), SPACING_MM):
        assert all(np.isnan(row[name]) for name in ("dice", "precision", "recall", "hd95_mm", "assd_mm"))
        assert row["avd_mm3"] == row["volume_mm3"] == row["reference_mm3"] == 0
        assert row["lesions"] == row["lesions_found"] == row["lesions_predicted"] == row["lesions_false"] == 0


def test_one_empty():
    missed = score_volume(volume(), volume((2, 3, 4), (2, 9, 9)), SPACING_MM)[0]
    assert (missed["dice"], missed["recall"], missed["lesions"], missed["lesions_found"]) == (0, 0, 2, 0)
    assert missed["difference_mm3"] == pytest.approx(-0.6)
    assert np.isnan(missed["precision"])
    assert np.isnan(missed["hd95_mm"])
    false = score_volume(volume((2, 3, 4)), volume(), SPACING_MM)[0]
    assert (false["dice"], false["precision"], false["lesions_predicted"], false["lesions_false"]) == (0, 0, 1, 1)
    assert np.isnan(false["recall"])


def test_one_voxel_each():
    """Two columns, one row and one slice apart: sqrt(1.0^2 + 0.2^2 + 3.0^2) mm."""
    row = score_volume(volume((1, 4, 5)), volume((2, 5, 7)), SPACING_MM)[0]
    assert row["dice"] == 0
    assert row["hd95_mm"] == row["assd_mm"] == pytest.approx(np.sqrt(1 + 0.04 + 9))
    same = score_volume(volume((1, 4, 5)), volume((1, 4, 5)), SPACING_MM)[0]
    assert (same["dice"], same["hd95_mm"], same["assd_mm"]) == (1, 0, 0)


def test_whole_slices():
    reference, labels = volume(), volume()
    reference[1], labels[3] = 2, 2
    srf = score_volume(labels, reference, SPACING_MM)[1]
    assert srf["dice"] == 0
    assert srf["volume_mm3"] == pytest.approx(12 * 10 * 0.3)
    assert srf["hd95_mm"] == srf["assd_mm"] == pytest.approx(6.0)  # every voxel lies two slices away
    assert (srf["lesions"], srf["lesions_found"], srf["lesions_predicted"], srf["lesions_false"]) == (1, 0, 1, 1)


def test_lesions_touch_by_a_corner_and_count_once():
    reference = volume((0, 0, 0), (1, 1, 1), (4, 8, 8), (4, 8, 9), (2, 5, 5), code=3)  # three lesions
    labels = volume((1, 1, 1), (4, 8, 8), (4, 8, 0), (0, 8, 4), code=3)  # two of them, two false ones
    ped = score_volume(labels, reference, SPACING_MM)[2]
    assert (ped["lesions"], ped["lesions_found"], ped["lesions_predicted"], ped["lesions_false"]) == (3, 2, 4, 2)


@pytest.mark.parametrize("seed", range(6))
def test_distances_equal_those_between_all_pairs_of_border_voxels(seed):
    """A second implementation: borders by erosion of the whole volume, distances between all pairs."""
    rng = np.random.default_rng(seed)
    smooth = [ndimage.gaussian_filter(rng.normal(size=(7, 30, 24)), 2) for _ in range(2)]
    labels, reference = (np.digitize(field, np.quantile(field, (0.5, 0.7, 0.85))).astype(np.uint8) for field in smooth)
    for row, code in zip(score_volume(labels, reference, SPACING_MM), (1, 2, 3), strict=True):
        borders = [
            np.argwhere((mask == code) & ~ndimage.binary_erosion(mask == code)) * SPACING_MM[::-1]
            for mask in (labels, reference)
        ]
        distances = cdist(*borders)
        nearest = distances.min(axis=1), distances.min(axis=0)
        assert row["hd95_mm"] == pytest.approx(np.percentile(np.hstack(nearest), 95), abs=1e-12)
        assert row["assd_mm"] == pytest.approx(np.mean([side.mean() for side in nearest]), abs=1e-12)


def test_sizes_must_agree_and_labels_be_known():
    with pytest.raises(ValueError, match="differ in shape"):
        score_volume(np.zeros((1, 2, 2), np.uint8), np.zeros((1, 2, 3), np.uint8), (1, 1, 1))
    with pytest.raises(ValueError, match="found 4"):
        score_volume(volume((0, 0, 0), code=4), volume(), SPACING_MM)
