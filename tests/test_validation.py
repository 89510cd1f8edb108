import gc
import weakref
from collections import Counter

import keras
import numpy as np
import pytest

from utils.errors import InputError
from utils.preparation.prepared import SliceRow
from utils.segmentation.decisions import labels_from_probabilities
from utils.segmentation.tiling import Predictor
from utils.settings.patch_settings import AugmentationSettings, BatchSettings, PatchSettings
from utils.training.epoch import fit_epoch, keras_batches
from utils.training.validation import FluidDice, check_monitor, choose_b_scans, predicted_b_scans
from utils.volumes.mhd import write_volume


def rows(vendor, kinds, image_name="a"):
    """A row for each letter: I, S, P or - for none."""
    return [
        SliceRow(image_name, vendor, "r", z, *(int(kind == fluid) for fluid in "ISP")) for z, kind in enumerate(kinds)
    ]


def kind(row):
    return "ISP-"[[row.is_IRF, row.is_SRF, row.is_PED, 1].index(1)]


def test_b_scans_are_chosen_evenly_from_vendors_and_fluids():
    everything = rows("Cirrus", "-" * 200 + "I" * 30 + "S" * 9 + "P" * 3) + rows("Topcon", "I-SP" * 5)
    chosen = choose_b_scans(everything, 24, seed=0)
    assert len(set(chosen)) == 24
    assert Counter((row.vendor, kind(row)) for row in chosen) == {
        **{("Cirrus", fluid): 3 for fluid in "ISP-"},
        **{("Topcon", fluid): 3 for fluid in "ISP-"},
    }
    assert Counter(row.vendor for row in chosen[:2]) == {"Cirrus": 1, "Topcon": 1}


def test_where_a_fluid_is_rare_other_b_scans_take_the_place():
    chosen = choose_b_scans(rows("Cirrus", "---------I"), 6, seed=0)
    assert Counter(map(kind, chosen)) == {"-": 5, "I": 1}
    assert len(choose_b_scans(rows("Cirrus", "I-"), 6, seed=0)) == 2


def test_the_choice_follows_from_the_seed_not_from_the_order_of_rows():
    everything = rows("Cirrus", "-I-S" * 20) + rows("Topcon", "P--I" * 20)
    chosen = choose_b_scans(everything, 10, seed=3)
    assert choose_b_scans(everything[::-1], 10, seed=3) == chosen
    assert choose_b_scans(everything, 10, seed=4) != chosen


def test_a_monitor_without_a_value_is_refused():
    b_scans = rows("Cirrus", "I-")
    for monitor in ("val_dice", "val_dice_irf", "val_f_irf", "val_iou_score", "val_loss"):
        check_monitor(monitor, b_scans, "val.csv")
    for monitor in ("val_dice_ped", "val_f_ped"):
        with pytest.raises(InputError, match=rf"val\.csv: its B-scans hold IRF, so that {monitor} says nothing"):
            check_monitor(monitor, b_scans, "val.csv")
    for monitor in ("val_dice", "val_f_score"):
        with pytest.raises(InputError, match="hold no fluid"):
            check_monitor(monitor, rows("Cirrus", "--"), "val.csv")
        with pytest.raises(InputError, match="hold IRF, of which IRF is not taught, so that val_"):
            check_monitor(monitor, b_scans, "val.csv", taught=("SRF",))
    for monitor in ("val_loss", "epoch"):
        check_monitor(monitor, b_scans, "val.csv", taught=("SRF",))


def test_dice_is_of_all_b_scans_together():
    dice = FluidDice()
    reference, labels = np.zeros((2, 4, 4), np.uint8)
    reference[0] = 1
    labels[0, :2] = 1
    labels[3] = 2  # SRF where there is none, in a B-scan without any
    dice.add(reference, labels)
    dice.add(np.full((4, 4), 1, np.uint8), np.full((4, 4), 1, np.uint8))
    values = dice.values()
    assert values["dice_irf"] == pytest.approx(2 * (2 + 16) / (4 + 2 + 16 + 16))
    assert values["dice_srf"] is None
    assert values["dice_ped"] is None
    assert values["dice"] == values["dice_irf"]


def test_false_fluid_counts_where_another_b_scan_holds_it():
    dice = FluidDice()
    dice.add(np.array([[3, 3, 0, 0]], np.uint8), np.array([[3, 0, 0, 0]], np.uint8))
    dice.add(np.array([[0, 0, 0, 0]], np.uint8), np.array([[3, 3, 0, 0]], np.uint8))
    assert dice.values()["dice_ped"] == pytest.approx(2 / (2 + 3))


@pytest.mark.parametrize(("neighbours", "channel"), [(True, 1), (False, 0)])
def test_b_scans_are_segmented_as_a_new_scans_would_be(tmp_path, neighbours, channel):
    """A network that says IRF where its middle channel is bright, or its first one, which then is the slice, too."""
    rng = np.random.default_rng(0)
    volume = rng.integers(1, 100, (3, 256, 128), dtype=np.uint8)
    volume[:, 100:140] += 150
    volume[:, 250, 64] = 250  # a lone speck is no texture
    masks = np.zeros_like(volume)
    masks[2, 100:120] = 1
    for folder, voxels in (("oct_imgs", volume), ("oct_masks", masks), ("roi_masks", masks)):
        write_volume(tmp_path / folder / "Topcon_a.mhd", voxels, (1, 1, 1))

    def bright(image):
        is_bright = keras.ops.cast(image[..., channel : channel + 1] > 0.5, "float32")
        return is_bright * [0.0, 1.0, 0.0, 0.0] + (1 - is_bright) * [1.0, 0.0, 0.0, 0.0]

    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Cropping2D(46), keras.layers.Lambda(bright)])
    asked = rows("Topcon", "--I")[::-2]
    patches = PatchSettings((256, 128), 12, 42, 0.75, AugmentationSettings(0, False, 0, 0, 0), neighbours=neighbours)
    settings = BatchSettings(tmp_path, patches, seed=0, batch_size=4, slice_mean=128.0, slice_sd=100.0)
    results = list(predicted_b_scans(Predictor(model, 128.0, 100.0), asked, settings))
    assert [row.slice for row, *_ in results] == [0, 2]
    for row, grey, reference, probabilities, spacing_mm in results:
        labels = labels_from_probabilities(probabilities, 0.5)
        assert spacing_mm == (1, 1, 1)
        np.testing.assert_array_equal(grey, volume[row.slice])
        np.testing.assert_array_equal(reference, masks[row.slice])
        is_bright = volume[row.slice] > 178
        assert labels[250, 64] == 0
        assert (labels[~is_bright] == 0).all()
        assert labels[100:140].sum() == is_bright.sum() - 1


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="another backend takes the iterator")
def test_keras_gets_every_batch_from_a_dataset_that_nothing_tunes_by_the_clock():
    batches = [(np.full((n, 4, 4, 3), n, np.float32), (np.full((n, 1), n, np.uint8),)) for n in (2, 2, 1)]
    dataset = keras_batches(iter(batches))
    assert dataset.options().autotune.enabled is False
    for (images, (present,)), expected in zip(dataset, batches, strict=True):
        np.testing.assert_array_equal(images, expected[0])
        np.testing.assert_array_equal(present, expected[1][0])
        assert (images.dtype, present.dtype) == ("float32", "uint8")


def test_no_batch_outlives_its_epoch():
    """TensorFlow keeps the function that a dataset's batches come from. It once held the first batch of each epoch."""
    given = []

    def batches():
        for _ in range(3):
            given.append(weakref.ref(image := np.zeros((2, 4), np.float32)))
            yield image, np.zeros((2, 1), np.float32)

    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    network.compile(loss="mse")
    fit_epoch(network, batches(), lambda *_: None)
    network.evaluate(keras_batches(batches()), verbose=0)
    gc.collect()
    assert [batch() is None for batch in given] == [True] * 6
