"""Scans without outlines in adversarial fine-tuning: their rows and patches, the step, the script."""

import json
import shutil
import signal
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from helpers import batch_settings, noise, read_csv, write_prepared_case, write_record
from keras import layers
from test_adversarial import SEGMENTATION_LOSS, SIZE, arrays, batch, changed, no_segmentation_loss
from test_scripts import SETTINGS, run, start, wait_for

import adversarial_training
from utils.data_prepare import get_iterator_nuts, patch_samples
from utils.errors import InputError
from utils.preparation.prepared import (
    COLUMNS,
    SliceRow,
    check_volumes_exist,
    read_csv_data,
    read_unlabelled_rows,
)
from utils.settings.patch_settings import blind_to_labels
from utils.settings.rules import OptimizerSettings
from utils.training.data import TrainingData, with_unlabelled
from utils.training.optimizer import create_optimizer
from utils.training.teacher import Teacher, TeacherStep, pasted_rectangles

PATIENT = r"^(p\d)"
UNLABELLED = 2  # patches of a step
CONFIDENCE = 0.3


# ---- Rows and patches ----------------------------------------------------------------------------------------------
def write_csvs(folder):
    """slice_gt.csv with the patients p1 and p2, who have labels, and p2, p3 and p4 without; p2 and p4 are held out."""
    rows = [("p1a", "Topcon", "r", 0, 1, 0, 0), ("p2a", "Topcon", "r", 0, 0, 0, 0)]
    plain = [(name, "Topcon", "r", index, "", "", "") for name in ("p2b", "p3a", "p4a") for index in range(2)]
    pd.DataFrame(rows + plain, columns=COLUMNS).to_csv(folder / "slice_gt.csv", index=False)
    pd.DataFrame(rows[1:], columns=COLUMNS).to_csv(folder / "val.csv", index=False)
    pd.DataFrame([("p4", "Topcon", "r", 0, 0, 0, 0)], columns=COLUMNS).to_csv(folder / "test.csv", index=False)
    return folder / "slice_gt.csv", [folder / "val.csv", folder / "test.csv"]


def test_unlabelled_rows_are_those_of_patients_who_are_not_held_out(tmp_path):
    rows = read_unlabelled_rows(*write_csvs(tmp_path), PATIENT)
    assert rows == [SliceRow("p3a", "Topcon", "r", index, None, None, None) for index in range(2)]


@pytest.mark.parametrize(
    ("kept", "message"),
    [(["p1a", "p2a"], "holds 0 B-scans without labels"), (["p1a", "p4a"], "2 B-scans without labels, all of val")],
)
def test_without_any_the_error_says_so(tmp_path, kept, message):
    slice_csv, held_out = write_csvs(tmp_path)
    table = read_csv(slice_csv)
    table[table.image_name.isin(kept)].to_csv(slice_csv, index=False)
    with pytest.raises(
        InputError, match=message + r".*, expected some with UNLABELLED_SHARE above 0; run prepare_data"
    ):
        read_unlabelled_rows(slice_csv, held_out, PATIENT)


def test_a_copy_of_a_validation_scan_under_another_name_is_refused(tmp_path):
    slice_csv, (val_csv, test_csv) = write_csvs(tmp_path)
    for name in ("p2a", "p3a"):
        write_prepared_case(tmp_path / "pre_processed", "Topcon", name, noise((2, 30, 30)))
        write_record(tmp_path, "Topcon", name)
    preparation = {"preprocessed_folder": tmp_path / "pre_processed", "patient_pattern": PATIENT}
    preparation |= {"axial_spacing_mm": 0.003872, "reference_histogram_csv": None}
    data = TrainingData({"val": read_csv_data(val_csv)}, [], {"data": {}}, start=None)
    arguments = data, slice_csv, {"val": val_csv, "test": test_csv}, preparation
    assert {row.image_name for row in with_unlabelled(*arguments).unlabelled} == {"p3a"}
    write_record(tmp_path, "Topcon", "p3a", voxels="p2a")
    with pytest.raises(InputError, match=r"val\.csv: Topcon p2a was used to train"):
        with_unlabelled(*arguments)


@pytest.fixture
def plain_case(tmp_path):
    """A prepared case without a mask, and its rows."""
    write_prepared_case(tmp_path, "Topcon", "plain", noise((2, 300, 140)))
    for path in (tmp_path / "oct_masks").iterdir():
        path.unlink()
    return tmp_path, [SliceRow("plain", "Topcon", "r", index, None, None, None) for index in range(2)]


def test_patches_of_unlabelled_rows_need_no_mask_and_none_is_dropped(plain_case):
    folder, rows = plain_case
    check_volumes_exist(rows, folder)
    settings = blind_to_labels(batch_settings(folder, drop_healthy=0.9, oversampling=0.5, batch_size=UNLABELLED))
    samples = list(patch_samples(rows, settings, training=False, epoch=0))
    assert len(samples) == 2 * 2  # columns every 10 pixels where a patch fits; a fifth as many is none
    assert {is_held for _, _, *held in samples for is_held in held} == {255}  # unknown
    assert {value & 15 for _, mask, *_ in samples for value in np.unique(mask)} == {15}  # any class may be anywhere
    labelled = [row._replace(is_IRF=0, is_SRF=0, is_PED=0) for row in rows]
    with pytest.raises(InputError, match="oct_masks"):
        check_volumes_exist(labelled, folder)
    batches = get_iterator_nuts(rows, settings, training=True, epoch=1, repeated=True)
    images = [next(batches)[0] for _ in range(6)]
    resumed = get_iterator_nuts(rows, settings, training=True, epoch=1, first_batch=4, repeated=True)
    np.testing.assert_array_equal(next(resumed)[0], images[4])


# ---- The step ------------------------------------------------------------------------------------------------------
def create_generator():
    """'valid' convolutions without batch normalisation or dropout: images of a batch don't depend on each other."""
    image = keras.Input((SIZE, SIZE, 3))
    tensor = layers.Conv2D(6, 3, activation="tanh", kernel_initializer=keras.initializers.GlorotUniform(seed=1))(image)
    tensor = layers.Conv2D(4, 3, kernel_initializer=keras.initializers.GlorotUniform(seed=3))(tensor)
    return keras.Model(image, layers.Softmax(dtype="float32")(tensor))


def averaging(momentum=0.5):
    return create_optimizer(OptimizerSettings(0.05, 0.9, ema_momentum=momentum), "float32", "generator_adam")


def create_step(losses=(SEGMENTATION_LOSS,), weight=1.0, momentum=0.5):
    """A step whose teacher is sure where it gives a class more than `CONFIDENCE`."""
    teacher = Teacher(create_generator(), seed=5)
    return TeacherStep(create_generator(), averaging(momentum), losses, teacher, weight, 0, CONFIDENCE)


def unlabelled_images(seed=5):
    return batch(seed, n_patches=UNLABELLED)[0][:, ::-1] * 0.7


def weights_after(step, *unlabelled):
    for images in unlabelled:
        step(*batch(), images)
    return arrays(step.generator.weights)


def test_unlabelled_images_never_reach_a_segmentation_loss():
    """With a weight of 0 it does not matter which they are, and the U-Net learns as without them."""
    first, second = (weights_after(create_step(weight=0.0), unlabelled_images(seed)) for seed in (5, 6))
    plain = create_generator()
    plain.compile(optimizer=averaging(), loss=SEGMENTATION_LOSS)
    plain.train_on_batch(*batch())
    for one, other, expected in zip(first, second, arrays(plain.weights), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-5)


# ---- Self-training -------------------------------------------------------------------------------------------------
def test_rectangles_of_half_a_patch_lie_where_the_numbers_say():
    drawn = np.array([[0, 0.5, 0.25], [1, 1, 0.5], [0.5, 0, 1]], np.float32)
    tall, wide, square = np.asarray(pasted_rectangles((20, 40), drawn))[..., 0]
    assert tall.sum() == wide.sum() == 400
    assert tall[:, 5:25].all()  # half as wide, a quarter of what is left of it
    assert wide[10:].all()  # half as high, at the bottom
    assert square[:15, 12:].all()  # 14.1 rows and 28.3 columns, at the top and the right
    assert square.sum() == 15 * 28


def test_the_teacher_has_the_average_of_the_weights_and_teaches_pasted_patches():
    """Before the first step the average is zeros, which are sure of nothing; then it is the weights."""
    step, same_places = create_step(), keras.random.SeedGenerator(5)
    network, confidence = step.teacher.network, CONFIDENCE
    averages, shares, certain = None, [], []
    for seed in range(3):
        before = arrays(step.generator.weights)
        images = unlabelled_images(seed)
        drawn = keras.random.uniform((len(images), 3), seed=same_places)
        is_pasted = np.asarray(pasted_rectangles((SIZE, SIZE), drawn))
        step.begin_means()
        step(*batch(seed), images)
        shares.append(step.means()["self_training_share"])
        if seed:
            for variable, average in zip(network.weights, averages, strict=True):
                np.testing.assert_allclose(variable, average, rtol=1e-5, atol=1e-6)
            probabilities = network.predict_on_batch(images)
            seen = np.where(is_pasted, images[::-1], images)  # of two patches, either is the one before the other
            probabilities = np.where(is_pasted[:, 2:-2, 2:-2], probabilities[::-1], probabilities)
            certain.append(np.mean(probabilities.max(axis=-1) > confidence))
            labels = np.eye(4)[probabilities.argmax(axis=-1)]
            student = create_generator()
            student.set_weights(before)
            cross_entropy = -np.sum(labels * np.log(student.predict_on_batch(seen)), axis=-1)
            expected = cross_entropy[probabilities.max(axis=-1) > confidence].mean()
            assert step.means()["self_training_loss"] == pytest.approx(expected, rel=1e-3)
        after = arrays(step.generator.weights)
        averages = after if averages is None else [(old + new) / 2 for old, new in zip(averages, after, strict=True)]
    assert shares == pytest.approx([0, *certain], abs=1e-3)
    assert 0 < certain[0] < 1


def test_what_the_teacher_says_changes_the_unet():
    """From the second step on: before, the average is zeros, which are sure of nothing."""
    states = [
        weights_after(create_step((no_segmentation_loss,), weight, momentum=0.01), *2 * [unlabelled_images()])
        for weight in (0.0, 1.0)
    ]
    assert any(changed(*states))


# ---- The script ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("weight", "row", "says"),
    [
        (0.05, {"d_accuracy_real": 0.8}, "adversarial 0.600, D loss 0.700, D right on real/generated 0.80/0.60"),
        (0.0, {"d_accuracy_real": 0.8}, None),
        (0.05, {"self_training_loss": 0.02, "self_training_share": 0.9}, "self-training 0.0200 on 90% of the pixels"),
    ],
)
def test_an_epochs_line_says_what_the_unet_learns_from(set_config, capsys, weight, row, says):
    set_config(ADVERSARIAL_WEIGHT=weight)
    row |= {"epoch": 2, "loss": 0.5, "val_dice": 0.7, "seconds": 3.2, "adversarial_loss": 0.6, "d_loss": 0.7}
    row |= {"d_accuracy_generated": 0.6}
    adversarial_training.report(row, {"epoch": 2, "metric": "val_dice"}, seconds_left=120)
    between = f", {says}" if says else ""
    assert capsys.readouterr().out == f"epoch 2: loss 0.5000{between}, val_dice 0.7000, 3 s, 2 min left  *best\n"


def test_a_model_has_seen_the_vendors_of_scans_without_outlines(set_config, monkeypatch):
    set_config()
    start = SimpleNamespace(details={"training_appearance": "the start's", "reference_histogram": None})
    data = SimpleNamespace(start=start, record={}, rows={"train": ["outlined"]}, unlabelled=())
    monkeypatch.setattr(adversarial_training, "training_appearance", lambda rows, _: rows)
    assert adversarial_training.model_details(data)["training_appearance"] == "the start's"
    data.unlabelled = ("plain",)
    assert adversarial_training.model_details(data)["training_appearance"] == ["outlined", "plain"]


def test_fine_tuning_ends_once_the_discriminator_is_blind_or_with_its_epochs(set_config):
    set_config(D_PATIENCE=2, ADVERSARIAL_EPOCH=5)
    history = [{"d_held_out_real": right, "d_held_out_generated": right} for right in (0.9, 0.5, 0.5)]
    progress = {"history": history, "epoch": 3}
    assert "not told held-out masks apart for 2 epochs" in adversarial_training.why_ended(progress)
    progress["history"] = history[:2]
    assert adversarial_training.why_ended(progress) is None
    assert "5" in adversarial_training.why_ended({**progress, "epoch": 5})


@pytest.fixture(scope="module")
def plain_scans(tmp_path_factory):
    """Twelve phantoms; a third of the training cases have lost their outlines. Returns the settings, trained."""
    folder = tmp_path_factory.mktemp("plain")
    run("-m utils.phantom", "--output", folder / "data", "--cases", 12, "--slices", 2, "--seed", 4)
    settings = {**SETTINGS, "DATA_ROOT": folder / "data", "OUTPUT_ROOT": folder / "output", "EMA_MOMENTUM": 0.9}
    run("prepare_data.py", **settings)
    train_csv = folder / "output" / "train_data.csv"
    table = read_csv(train_csv)
    plain = table.drop_duplicates("image_name").groupby("vendor").head(1)
    table[~table.image_name.isin(plain.image_name)].to_csv(train_csv, index=False)
    for root in plain.root:
        for file in (folder / "data" / root).glob("reference.*"):
            file.unlink()
    run("prepare_data.py", "--unlabelled", **settings)
    run("model_training.py", **settings)
    return settings, sorted(plain.image_name)


@pytest.mark.slow
def test_fine_tuning_with_unlabelled_scans_continues_to_the_bit(plain_scans):
    settings, plain = plain_scans
    settings = {**settings, "ADVERSARIAL_EPOCH": 2, "UNLABELLED_SHARE": 0.5, "SELF_TRAINING_WEIGHT": 1.0}
    settings |= {"ADVERSARIAL_RAMP_STEPS": 1}
    runs, states = settings["OUTPUT_ROOT"] / "runs", []
    for name in ("whole", "stopped"):
        shutil.copytree(runs / "unet" / "segmentation", runs / name / "segmentation")
        settings["RUN_NAME"] = name
        folder = runs / name / "adversarial"
        if name == "stopped":
            process = start("adversarial_training.py", **settings)
            wait_for(folder / "last-0001-0000000.json", process)
            process.send_signal(signal.SIGTERM)
            process.communicate()
            assert process.returncode == 128 + signal.SIGTERM  # in the second epoch
        run("adversarial_training.py", **settings)
        with np.load(folder / "last-0002-0000000.npz") as stored:
            states.append([stored[key] for key in stored.files])
    for whole, stopped in zip(*states, strict=True):
        np.testing.assert_array_equal(whole, stopped)
    log = pd.read_csv(folder / "log.csv")
    assert "self_training_share" in log
    assert "d_loss" not in log  # there is no discriminator
    data = json.loads((folder / "best.json").read_text())["data"]
    assert len(data["unlabelled"]["cases"]) == len(plain) == 3
