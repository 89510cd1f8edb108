import os
from dataclasses import replace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
from stand_in import DETAILS, bright_scan, brightness_model, export_brightness_model

from model import create_unet_model
from utils.errors import InputError
from utils.networks.exported_model import PredictionSettings, export_best
from utils.preparation.invalid import find_invalid
from utils.preparation.prepared import SliceRow
from utils.preparation.preprocessing import resampling_matrix
from utils.preparation.roi import prediction_region, roi_mask
from utils.segmentation.appearance import Appearance, training_appearance, unlike_training
from utils.segmentation.decisions import Decisions
from utils.segmentation.predict import (
    Ensemble,
    LoadedNetwork,
    _tile_pixels,
    load_network,
    segment_scan,
    segment_volume,
)
from utils.segmentation.tiling import TILE_PIXELS
from utils.volumes.mhd import write_volume

SETTINGS = PredictionSettings("tennakoon", 0.003872, 128.0, 128.0, 0.5, None)


def loaded(model, **settings):
    """`model` as `segment_scan` takes it."""
    return LoadedNetwork(model, replace(SETTINGS, **settings), 200_000, {}, Decisions(0.5))


def always_irf():
    """A network that says IRF for every image."""
    model = brightness_model()
    model.layers[-1].set_weights([np.zeros((1, 1, 3, 4), np.float32), np.array([0, 9, 0, 0], np.float32)])
    return model


def retina(rows=256, columns=160, slices=2):
    """Bright noise over the whole B-scan, all of it below IRF's threshold of `brightness_model`."""
    rng = np.random.default_rng(0)
    return rng.integers(140, 180, (slices, rows, columns)).astype(np.uint8)


@pytest.mark.parametrize("rows", [256, 512])
def test_a_scan_gets_labels_on_its_own_grid(rows):
    """A bright block, twice as fine in the rows at 512, is found where it lies."""
    voxels = np.repeat(retina(), rows // 256, axis=1)
    voxels[0, rows // 4 : rows // 2, 40:80] = 250
    segmentation = segment_scan(loaded(brightness_model()), voxels, (0.0117, 0.003872 * 256 / rows, 0.1), "Spectralis")
    assert segmentation.labels.shape == voxels.shape
    assert segmentation.labels.dtype == np.uint8
    disagree = (segmentation.labels == 1) != (voxels == 250)
    assert disagree.sum() <= 2 * 40  # at most a row at the block's upper and lower end
    assert segmentation.presence[0] > 0.9
    assert segmentation.presence[1] < 0.1


def test_a_scan_smaller_than_a_patch_is_segmented_whole():
    voxels = retina(rows=130, columns=90, slices=1)
    voxels[0, 100:, 60:] += 70  # the corner, which padding touches
    segmentation = segment_scan(loaded(brightness_model()), voxels, (0.0117, 0.003872, 0.1), "Spectralis")
    np.testing.assert_array_equal(segmentation.labels == 1, voxels > 192)


def test_nothing_is_found_outside_the_region_of_interest():
    """Training's patches are centred on the retina: a bright artefact far away from it is not fluid."""
    voxels = np.full((1, 496, 200), 20, np.uint8)
    voxels[0, 300:360] = retina(60, 200, 1)[0]
    bright = voxels[0].copy()
    labels = segment_scan(loaded(always_irf()), voxels, (0.0117, 0.003872, 0.1), "Spectralis").labels[0]
    np.testing.assert_array_equal(labels == 1, prediction_region(bright) == 1)
    assert (labels[:250] == 0).all()
    assert (labels[300:360] == 1).all()


@pytest.mark.parametrize("case", ["wedge", "circular crop"])
def test_padding_gets_no_label_where_rows_are_resampled(case):
    """A network that says IRF everywhere; Cirrus' rows are twice as fine as those that it sees."""
    voxels = retina(rows=512)
    row, column = np.ogrid[:512, :160]
    padding = row < 90 - column if case == "wedge" else np.hypot(row - 255.5, column - 79.5) >= 255
    voxels[:, padding] = 255 if case == "wedge" else 0
    invalid = find_invalid(voxels)
    labels = segment_scan(loaded(always_irf()), voxels, (0.0117, 0.001936, 0.1), "Cirrus").labels
    assert invalid[:, padding].all()
    assert not labels[invalid].any()
    assert (labels[~invalid] == 1).mean() > 0.98


def test_another_threshold_may_be_asked_for():
    model = always_irf()
    model.layers[-1].set_weights([np.zeros((1, 1, 3, 4), np.float32), np.log([0.4, 0.6, 1e-9, 1e-9])])
    for threshold, found in ((None, True), (0.7, False)):
        decisions = threshold and Decisions(threshold)
        segmentation = segment_scan(loaded(model), retina(), (0.0117, 0.003872, 0.1), "Spectralis", decisions=decisions)
        assert (segmentation.labels == 1).any() == found


def test_channels_are_the_slice_before_the_slice_and_the_one_after():
    kernel = np.zeros((1, 1, 3, 4), np.float32)
    kernel[0, 0] = [[0, 200, 0, 0], [0, 0, 0, 0], [0, 0, 200, 0]]  # IRF where the one before is bright, SRF after
    model = brightness_model()
    model.layers[-1].set_weights([kernel, np.array([0, -100, -100, -300], np.float32)])
    voxels = retina(slices=3)
    voxels[0, 100:120, 40:60] = voxels[2, 140:160, 40:60] = 250
    labels = segment_scan(loaded(model), voxels, (0.0117, 0.003872, 0.1), "Spectralis").labels[1]
    np.testing.assert_array_equal(labels == 1, voxels[0] == 250)
    np.testing.assert_array_equal(labels == 2, voxels[2] == 250)


def test_a_model_of_the_slice_alone_says_the_same_of_it_in_a_stack():
    """A network with random weights, which its channels outweigh one another."""
    unet = create_unet_model(base_filters=2, input_shape=(None, None, 3), seed=1)
    stack, spacing_mm = bright_scan(), (0.0117, 0.003872, 0.1)
    for neighbours in (False, True):
        network = loaded(unet, neighbours=neighbours)
        in_stack, alone = [], []
        for voxels, kept in [(stack, in_stack), *((stack[index : index + 1], alone) for index in range(len(stack)))]:
            segment_scan(network, voxels, spacing_mm, "Spectralis", on_slice=lambda _, of, kept=kept: kept.append(of))
        equal = [np.allclose(*pair, atol=1e-6) for pair in zip(in_stack, alone, strict=True)]
        assert all(equal) if not neighbours else not any(equal)


def test_probabilities_go_back_by_linear_interpolation():
    rows = np.arange(50, dtype=np.float32)[:, np.newaxis]
    fine = resampling_matrix(50, 100) @ rows
    np.testing.assert_allclose(fine[1:-1, 0], np.arange(1, 99) / 2 - 0.25, atol=1e-5)


# ---- Networks ------------------------------------------------------------------------------------------------------
def small_unet(train_classes=False):
    """A U-Net of 4 filters whose outputs vary, dropout's effect included."""
    unet = create_unet_model((None, None, 3), base_filters=4, seed=3, train_classes=train_classes)
    rng = np.random.default_rng(1)
    unet.set_weights([rng.normal(scale=0.2, size=weight.shape) ** 2 for weight in unet.get_weights()])
    return unet


def export_unet(folder, unet, **details):
    export_best(folder, unet, {**DETAILS, "network": "tennakoon", **details})
    return folder / "best.keras"


@pytest.mark.parametrize("train_classes", [False, True])
def test_a_loaded_network_computes_what_was_exported(tmp_path, train_classes):
    exported = small_unet(train_classes)
    network = load_network(export_unet(tmp_path, exported), memory_gb=0.1)
    images = np.random.default_rng(2).normal(size=(1, 136, 144, 3)).astype(np.float32)
    outputs, expected = (model.predict_on_batch(images) for model in (network.model, exported))
    if not train_classes:
        outputs, expected = [outputs], [expected]
    for one, other in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)  # logits are large
    assert network.tile_pixels == int(0.1e9 / (22 * 4 + 520))
    half = load_network(tmp_path / "best.keras", dtype_policy="mixed_bfloat16").model.predict_on_batch(images)
    half = half[0] if train_classes else half
    assert half.dtype == np.float32
    assert 1e-6 < np.abs(half - expected[0]).mean() < 0.03


def test_tiles_of_other_networks_are_as_large_as_memory_allows():
    assert _tile_pixels("Unet/resnet18", 0.8, base_filters=64) == TILE_PIXELS
    assert _tile_pixels("Unet/resnet18", 0.2, base_filters=64) == TILE_PIXELS / 4


def test_volumes_are_segmented_in_one_call(tmp_path):
    voxels = bright_scan()
    labels, probabilities = segment_volume(
        voxels, (0.0117, 0.003872, 0.12), "Spectralis", export_brightness_model(tmp_path)
    )
    np.testing.assert_array_equal(labels == 1, voxels == 230)
    assert probabilities.shape == (*voxels.shape, 4)
    np.testing.assert_array_equal(probabilities.argmax(axis=-1), labels)
    with pytest.raises(InputError, match=r"spacing_mm 11\.7 3\.872 120: expected x .* divide micrometres by 1000"):
        segment_volume(voxels, (11.7, 3.872, 120), "Spectralis", tmp_path / "best.keras")


def test_mirrored_predictions_are_averaged_and_compared():
    unet = small_unet()
    images = np.random.default_rng(2).normal(size=(2, 136, 144, 3)).astype(np.float32)
    plain = unet.predict_on_batch(images)
    mirrored = unet.predict_on_batch(np.ascontiguousarray(images[:, :, ::-1]))[:, :, ::-1]
    (both,) = Ensemble([unet], mirrored=True).predict_on_batch(images)
    np.testing.assert_allclose(both[..., :4], (plain + mirrored) / 2, atol=1e-6)
    np.testing.assert_allclose(both[..., 4], np.abs(plain - mirrored).sum(axis=-1) / 4, atol=1e-6)
    assert both[..., 4].max() > 0.01


def test_several_models_are_averaged_and_so_are_their_decisions(tmp_path):
    paths = [
        export_brightness_model(tmp_path / name, bias=bias, decisions={"fluid_thresholds": [value, 0.5, 0.5]})
        for name, bias, value in (("one", -100, 0.2), ("two", -1000, 0.6))
    ]
    network = load_network(*paths)
    images = np.full((1, 120, 120, 3), (200 - 128) / 128, np.float32)
    (found,) = network.model.predict_on_batch(images)
    np.testing.assert_allclose(found[0, 0, 0], [0.5, 0.5, 0, 0, 0.5], atol=1e-3)  # one is sure of IRF, one that not
    assert network.decisions == Decisions(0.5, (pytest.approx(0.4), 0.5, 0.5))
    assert network.details["sha256"] != load_network(*reversed(paths)).details["sha256"]
    other = export_brightness_model(tmp_path / "other", slice_mean=120.0)
    with pytest.raises(InputError, match=r"other/best.keras: is another network than .*one/best.keras, or takes other"):
        load_network(*paths, other)


def test_decisions_in_best_json_are_followed(tmp_path):
    """The model is sure of what it calls IRF; with a threshold above 1 nothing is left."""
    voxels = bright_scan()
    for threshold, found in ((0.9, True), (1.01, False)):
        path = export_brightness_model(tmp_path, decisions={"fluid_thresholds": [threshold, 0.5, 0.5]})
        labels, _ = segment_volume(voxels, (0.0117, 0.003872, 0.12), "Spectralis", path)
        assert (labels == 1).any() == found


def test_what_is_no_model_of_ours_is_refused(tmp_path):
    with pytest.raises(InputError, match="5 classes; expected 3 slices and 4 classes"):
        load_network(export_brightness_model(tmp_path / "five", n_classes=5))
    (tmp_path / "text").mkdir()
    path = export_brightness_model(tmp_path / "text")
    path.write_text("no model")
    with pytest.raises(InputError, match="is not the model that best"):
        load_network(path)
    export_best(tmp_path / "text", type("NoModel", (), {"save": lambda self, path: path.write_text("text")})(), DETAILS)
    with pytest.raises(InputError, match="not a Keras model"):
        load_network(path)
    other = export_brightness_model(tmp_path / "other", network="tennakoon")
    with pytest.raises(InputError, match="weights are not those of the network"):
        load_network(other)


def test_a_model_that_carries_code_is_refused_and_the_code_not_run(tmp_path):
    ran = tmp_path / "ran"
    image = keras.Input((None, None, 3))
    code = keras.layers.Lambda(
        lambda tensor, path=str(ran): (open(path, "w").close(), tensor[..., :1] * [1, 1, 1, 1])[1]
    )
    export_best(tmp_path, keras.Model(image, code(image)), DETAILS)
    ran.unlink()
    with pytest.raises(InputError, match="not a Keras model"):
        load_network(tmp_path / "best.keras")
    assert not ran.exists()


# ---- Scans unlike the training data --------------------------------------------------------------------------------
def appearance_of(voxels):
    appearance = Appearance()
    for slice_ in voxels:
        appearance.add(slice_, prediction_region(slice_))
    return appearance


def test_a_training_scan_that_is_dimmed_has_its_retina_where_it_was(tmp_path):
    """Most of its retina is a little too dark for the region that training's patches are drawn from."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(1, 90, (2, 500, 160)).astype(np.uint8)
    voxels[:, 100:400] = rng.integers(90, 124, (2, 300, 160))
    voxels[:, 240:260] = rng.integers(129, 180, (2, 20, 160))
    for kind, of_kind in (("oct_imgs", voxels), ("roi_masks", np.stack([roi_mask(slice_) for slice_ in voxels]))):
        write_volume(tmp_path / kind / "Spectralis_a.mhd", of_kind, (0.0117, 0.003872, 0.12))
    rows = [SliceRow("a", "Spectralis", "a", index, 0, 0, 0) for index in range(2)]
    training = training_appearance(rows, tmp_path)
    for factor in (1, 0.7):
        dimmed = np.rint(voxels * factor).astype(np.uint8)
        warnings = unlike_training(training, "Spectralis", (0.0117, 0.003872, 0.12), appearance_of(dimmed), True)
        assert not any("retina" in warning for warning in warnings)


def test_the_range_of_the_training_scans_is_kept(tmp_path):
    """Three scans, half dark and half bright texture; of the third all is texture, and it is the odd one out."""
    shares = []
    for name, bright_rows in (("a", 100), ("b", 100), ("c", 300)):
        voxels = np.full((1, 300, 160), 20, np.uint8)
        voxels[:, :bright_rows] = retina(bright_rows, 160, 1)
        write_volume(tmp_path / "oct_imgs" / f"Spectralis_{name}.mhd", voxels, (0.0117, 0.003872, 0.12))
        shares.append(appearance_of(voxels).values())
    rows = [SliceRow(name, "Spectralis", name, 0, 0, 0, 0) for name in "abc"]
    known = training_appearance(rows, tmp_path)["Spectralis"]
    assert known["cases"] == 3
    assert known["roi_share"] == [shares[0][1], shares[2][1]]
    mean = np.mean([grey_values for grey_values, _ in shares], axis=0)
    np.testing.assert_allclose(known["grey_values"], mean, atol=1e-6)
    farthest = np.abs(np.cumsum(shares[2][0] - mean)).sum()
    assert known["largest_distance"] == pytest.approx(farthest, rel=1e-3)
    assert known["spacing_x_z_mm"] == [[0.0117, None], [0.0117, None]]  # single B-scans lie nowhere from one another


def test_a_scan_unlike_the_training_data_is_told():
    voxels = np.full((2, 256, 160), 60, np.uint8) + np.random.default_rng(0).integers(0, 9, (2, 256, 160)).astype(
        np.uint8
    )
    voxels[:, 80:160] = retina()[:, :80]
    grey_values, share = appearance_of(voxels).values()
    known = {"grey_values": grey_values.tolist(), "largest_distance": 2.0, "roi_share": [share, share]}
    training = {"Spectralis": {**known, "spacing_x_z_mm": [[0.011, 0.1], [0.012, 0.13]]}}
    spacing_mm = (0.0117, 0.0039, 0.12)
    assert unlike_training(training, "Spectralis", spacing_mm, appearance_of(voxels), True) == []
    assert unlike_training(None, "Spectralis", spacing_mm, appearance_of(voxels), True) == []
    assert (
        "not been trained on Cirrus" in unlike_training(training, "Cirrus", spacing_mm, appearance_of(voxels), True)[0]
    )
    (warning,) = unlike_training(training, "Spectralis", spacing_mm, appearance_of(np.clip(voxels, 1, 235) + 20), True)
    assert "grey values are 20 levels away" in warning
    (warning,) = unlike_training(training, "Spectralis", (0.03, 0.0039, 0.12), appearance_of(voxels), True)
    assert "spacing x is 0.03 mm, in training 0.011 to 0.012 mm" in warning
    (warning,) = unlike_training(training, "Spectralis", (0.0117, 0.0039, 0.5), appearance_of(voxels), True)
    assert "spacing z is 0.5 mm, in training 0.1 to 0.13 mm" in warning
    assert unlike_training(training, "Spectralis", (0.0117, 0.0039, 0.5), appearance_of(voxels[:1]), True) == []
    assert unlike_training(training, "Spectralis", (0.0117, 0.0039, 0.5), appearance_of(voxels), False) == []
    assert unlike_training(training, "Spectralis", (0.0117, 0.0039, 0.24), appearance_of(voxels), True) == []
    training["Spectralis"]["spacing_x_z_mm"] = [[0.011, None], [0.012, None]]
    assert unlike_training(training, "Spectralis", (0.0117, 0.0039, 0.5), appearance_of(voxels), True) == []
    warnings = unlike_training(training, "Spectralis", spacing_mm, appearance_of(np.full_like(voxels, 60)), True)
    assert "retina not found" in warnings[-1]
