"""The five scripts as a user runs them: one after the other, mostly as subprocesses, on a small synthetic set."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pandas as pd
import psutil
import pytest
import SimpleITK
from helpers import PROJECT, read_csv, run_here, run_python
from PIL import Image
from stand_in import DETAILS
from test_efficientnet_lite import random_weights, write_weights

import adversarial_training
import evaluate
import model_training
from model import create_unet_model
from utils.errors import InputError
from utils.files import read_json, sha256, write_json
from utils.networks.exported_model import export_best, read_best
from utils.preparation.prepared import record_path
from utils.tasks import overrides
from utils.volumes.mhd import read_volume, write_volume

SETTINGS = {"BASE_FILTERS": 2, "BATCH_SIZE": 4, "EPOCH": 2, "STEPS_PER_EPOCH": 2, "ADVERSARIAL_EPOCH": 1}
SETTINGS |= {"VALIDATION_B_SCANS": 4, "D_WARM_UP_STEPS": 0, "ADVERSARIAL_RAMP_STEPS": 0}


def run(script, *arguments, expected=0, by=run_python, **settings):
    """Run a script with settings, in a process of its own unless `by` is `run_here`; returns its (stdout, stderr)."""
    return by(*script.split(), *arguments, *overrides(settings), expected=expected)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Twelve cases of two slices, prepared: three Cirrus, three Spectralis, six Topcon. Returns the settings."""
    folder = tmp_path_factory.mktemp("project")
    run("-m utils.phantom", "--output", folder / "data", "--cases", 12, "--slices", 2, "--seed", 4)
    settings = {**SETTINGS, "DATA_ROOT": folder / "data", "OUTPUT_ROOT": folder / "output"}
    run("prepare_data.py", **settings)
    return settings


@pytest.fixture(scope="module")
def trained(prepared):
    """Trained and fine-tuned, with the held-out cases out of reach. Returns the settings and both scripts' output.

    Of the three Topcon cases that train, one does so from MIXED_ROOTS, and another has trained the model that training
    starts from. Fine-tuning mixes nothing in.
    """
    output = prepared["OUTPUT_ROOT"]
    prepared = {**prepared, **seen_elsewhere(output)}
    test_csv = output / "test_data.csv"
    held_out = pd.read_csv(test_csv, dtype=str)
    hidden = output / "hidden"
    hidden.mkdir()
    for name in sorted(set(held_out.vendor + "_" + held_out.image_name)):
        for file in (output / "pre_processed").glob(f"*/{name}.*"):
            file.rename(hidden / f"{file.parent.name}-{file.name}")
    test_csv.rename(hidden / "test_data.csv")
    printed = [run("model_training.py", **prepared)[0]]
    printed += [run("adversarial_training.py", **{**prepared, "MIXED_ROOTS": {}})[0]]
    (hidden / "test_data.csv").rename(test_csv)
    for file in hidden.iterdir():
        kind, name = file.name.split("-")
        file.rename(output / "pre_processed" / kind / name)
    return prepared, printed


def seen_elsewhere(output):
    """Take two Topcon cases out of train_data.csv; the settings by which training has seen them all the same."""
    table = read_csv(output / "train_data.csv")
    mixed, earlier = table.image_name[table.vendor == "Topcon"].unique()[:2]
    root = output.parent / "mixed"
    root.mkdir()
    (root / "pre_processed").symlink_to(output / "pre_processed")
    table[table.image_name == mixed].to_csv(root / "train_data.csv", index=False)
    table[~table.image_name.isin([mixed, earlier])].to_csv(output / "train_data.csv", index=False)
    record = record_path(output / "pre_processed", "Topcon", earlier, "images")
    data = {"train": {"cases": [read_json(record)["voxels"]], "patients": []}}
    network = create_unet_model((None, None, 3), base_filters=SETTINGS["BASE_FILTERS"], seed=3)
    export_best(output.parent / "start", network, {**DETAILS, "network": "tennakoon", "data": data})
    return {"MIXED_ROOTS": {str(root): 0.3}, "INIT_WEIGHTS": output.parent / "start" / "best.keras"}


def run_folder(settings, step):
    return settings["OUTPUT_ROOT"] / "runs" / "unet" / step


def test_training_needs_no_held_out_case_and_leaves_a_record(trained):
    """Known mistake: the test cases used to choose the best epoch."""
    settings, (printed, _) = trained
    folder = run_folder(settings, "segmentation")
    log = pd.read_csv(folder / "log.csv")
    assert log.epoch.tolist() == [1, 2]
    assert {"loss", "iou_score", "f_score", "val_loss", "val_f_irf", "val_f_srf", "val_f_ped"} <= set(log.columns)
    best = json.loads((folder / "best.json").read_text())
    first, second = log.val_dice
    scores = [first, min(second, (first + second) / 2)]  # of the last epoch and their mean over three
    assert (best["metric"], best["epoch"]) == ("val_dice", 1 + int(np.argmax(scores)))
    assert best["score"] == pytest.approx(max(scores))
    assert best["value"] == pytest.approx(log.val_dice[best["epoch"] - 1])
    assert best["class_names"] == ["background", "IRF", "SRF", "PED"]
    assert (best["slice_mean"], best["slice_sd"], best["threshold"]) == (128, 128, 0.5)
    assert len(best["reference_histogram"]) == 256
    assert json.loads((folder / "config.json").read_text())["BASE_FILTERS"] == 2
    with Image.open(folder / "progress.png") as picture:
        shown = {tuple(colour) for colour in np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()}
    assert (31, 119, 180) in shown  # a curve in Matplotlib's first colour
    assert list((folder / "tensorboard").iterdir())
    assert not list(folder.rglob(".unfinished*"))
    assert f"best: epoch {best['epoch']}" in printed


def test_the_same_command_says_that_the_run_is_finished_and_other_settings_stop(trained):
    settings, _ = trained
    before = (run_folder(settings, "segmentation") / "best.keras").stat().st_mtime_ns
    assert "finished" in run("model_training.py", by=run_here, **settings)[0]
    _, stderr = run("model_training.py", **{**settings, "ADAM_LR": 0.5}, by=run_here, expected=2)
    assert "ADAM_LR was 0.0002, is now 0.5" in stderr
    assert "Traceback" not in stderr
    assert (run_folder(settings, "segmentation") / "best.keras").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.ci
def test_training_that_diverges_is_one_line_and_keeps_what_was_before(trained, tmp_path, set_config):
    output = tmp_path / "output"
    shutil.copytree(trained[0]["OUTPUT_ROOT"], output, ignore=shutil.ignore_patterns("adversarial"))
    settings = {**trained[0], "OUTPUT_ROOT": output}
    for script, name, changed in (
        (model_training, "other", {"ADAM_LR": 1e30}),
        (adversarial_training, "unet", {"D_ADAM_LR": 1e30}),
    ):
        set_config()
        with pytest.raises(InputError, match="training has diverged in epoch 1"):
            script.main(overrides({**settings, "RUN_NAME": name, **changed}))
    runs = output / "runs"
    assert not list((runs / "other" / "segmentation").glob("best.*"))
    assert read_best(runs / "unet" / "adversarial" / "best.keras")["epoch"] == 0


def test_best_model_loads_without_this_code(trained):
    settings, _ = trained
    code = (
        "import sys, keras, numpy; m = keras.models.load_model(sys.argv[1], compile=False);"
        "print(m.predict_on_batch(numpy.zeros((1, 256, 128, 3), 'float32')).shape, m.dtype_policy.name)"
    )
    path = run_folder(settings, "segmentation") / "best.keras"
    assert run_python("-c", code, path, cwd=path.parent)[0].strip() == "(1, 164, 36, 4) float32"


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_continues_where_it_was_interrupted(trained, tmp_path):
    """One epoch, then the second: the same weights as two at once. Validation leaves the weights alone, or its other
    cases would show (known mistake: validation through train_on_batch)."""
    settings, _ = trained
    output = tmp_path / "output"
    shutil.copytree(settings["OUTPUT_ROOT"], output, ignore=shutil.ignore_patterns("runs"))
    other_validation = pd.read_csv(output / "val_data.csv", dtype=str)
    other_validation[::-1].to_csv(output / "val_data.csv", index=False)
    settings = {**settings, "OUTPUT_ROOT": output}
    run("model_training.py", **{**settings, "EPOCH": 1})
    printed, _ = run("model_training.py", **settings)
    assert "continuing after epoch 1 of 2\n" in printed
    arrays = []
    for root in (output, trained[0]["OUTPUT_ROOT"]):
        with np.load(root / "runs" / "unet" / "segmentation" / "last-0002-0000000.npz") as stored:
            arrays.append([stored[name] for name in stored.files])
    for continued, uninterrupted in zip(*arrays, strict=True):
        np.testing.assert_array_equal(continued, uninterrupted)


def test_fine_tuning_keeps_the_starting_model_unless_it_is_beaten(trained):
    settings, (_, printed) = trained
    log = pd.read_csv(run_folder(settings, "adversarial") / "log.csv")
    best = json.loads((run_folder(settings, "adversarial") / "best.json").read_text())
    start = json.loads((run_folder(settings, "segmentation") / "best.json").read_text())
    assert {"d_loss", "d_accuracy_real", "d_accuracy_generated", "adversarial_loss"} <= set(log.columns)
    assert log.epoch.tolist() == [0, 1]
    assert log.val_dice[0] == pytest.approx(start["value"], abs=1e-6)
    assert best["epoch"] == int(min(log.val_dice[1], log.val_dice.mean()) > log.val_dice[0])
    assert best["value"] == pytest.approx(log.val_dice[best["epoch"]])
    assert "epoch 0, the model of the segmentation step" in printed
    assert best["made_from"] == start["sha256"]
    network = keras.models.load_model(run_folder(settings, "segmentation") / "best.keras", compile=False)
    before = network.get_weights()
    (last,) = (run_folder(settings, "adversarial") / "epochs").iterdir()
    network.load_weights(last)
    assert any((one != other).any() for one, other in zip(before, network.get_weights(), strict=True))


def test_fine_tuning_with_unlabelled_scans_says_where_there_are_none(trained):
    settings, _ = trained
    unlabelled = {"UNLABELLED_SHARE": 0.5, "SELF_TRAINING_WEIGHT": 1.0, "EMA_MOMENTUM": 0.9}
    _, stderr = run("adversarial_training.py", expected=2, by=run_here, **settings, **unlabelled)
    (line,) = stderr.strip().splitlines()
    assert "slice_gt.csv: holds 0 B-scans without labels" in line


def test_evaluation_scores_the_held_out_cases(trained):
    settings, _ = trained
    printed, _ = run("evaluate.py", **settings)
    folder = run_folder(settings, "evaluation")
    volumes = pd.read_csv(folder / "volumes.csv", dtype={"case": str})
    held_out = pd.read_csv(settings["OUTPUT_ROOT"] / "test_data.csv", dtype=str)
    assert set(volumes.case) == set(held_out.image_name)
    for row in volumes.itertuples():  # the reference's volume, straight from the raw file
        root = held_out.root[held_out.image_name == row.case].iloc[0]
        image = SimpleITK.ReadImage(str(settings["DATA_ROOT"] / root / "reference.mhd"))
        label = {"IRF": 1, "SRF": 2, "PED": 3}[row.fluid]
        expected = (SimpleITK.GetArrayFromImage(image) == label).sum() * np.prod(image.GetSpacing())
        assert row.reference_mm3 == pytest.approx(expected)
    assert set(volumes.columns) >= {"precision", "hd95_mm", "lesions_found", "average_precision", "score_probability"}
    predictions = {path.name for path in (folder / "predictions").glob("*.mhd")}
    assert predictions == set(volumes.vendor + "_" + volumes.case + ".mhd")
    detection = pd.read_csv(folder / "detection.csv")
    assert detection.score.isin(["score_probability", "score_volume"]).all()
    summary = json.loads((folder / "summary.json").read_text())
    assert 0 <= summary["patches"]["iou_score"] <= summary["patches"]["f_score"] <= 1
    assert {row["vendor"] for row in summary["volumes"]} == {"Cirrus", "Spectralis", "Topcon", "all"}
    assert (folder / "report.md").read_text().partition("\n## By vendor")[0] in printed
    assert (folder / "comparison.png").exists()
    assert (folder / "report.html").exists()


def test_label_volumes_of_any_origin_are_scored_compared_and_ranked(prepared, tmp_path):
    """The references themselves, with a fluid left out in the second method's."""
    cases = sorted(prepared["DATA_ROOT"].glob("*/*/reference.mhd"))[:4]
    for path in cases:
        name = f"{path.parent.parent.name.rpartition('-')[2]}_{path.parent.name}"
        for method in ("perfect", "without_ped"):
            labels, spacing_mm = read_volume(path)
            labels[labels == 3] = 3 if method == "perfect" else 0
            write_volume(tmp_path / method / f"{name}.mhd", labels, spacing_mm)
        shutil.copytree(path.parent, tmp_path / "reference" / path.parent.parent.name / path.parent.name)
    for method in ("perfect", "without_ped"):
        folders = ("--predictions", tmp_path / method, "--reference", tmp_path / "reference")
        run("evaluate.py", *folders, "--output", tmp_path / f"{method}_scores", by=run_here, **prepared)
    volumes = pd.read_csv(tmp_path / "perfect_scores" / "volumes.csv")
    assert volumes.dice.dropna().eq(1).all()
    assert len(volumes) == 3 * len(cases)
    names = [tmp_path / f"{method}_scores" for method in ("without_ped", "perfect")]
    printed, _ = run("evaluate.py", "--compare", *names, "--output", tmp_path / "compared", by=run_here, **prepared)
    assert f"A: {names[0]}\nB: {names[1]}\na_minus_b: mean difference A - B." in printed
    compared = pd.read_csv(tmp_path / "compared" / "comparison.csv").set_index(["vendor", "fluid", "measure"])
    ped = compared.loc[("all", "PED", "dice_present")]
    assert (ped.mean_a, ped.mean_b, ped.a_minus_b) == (0, 1, -1)
    assert compared.a_minus_b[("all", "IRF", "dice_all")] == 0
    printed, _ = run("evaluate.py", "--rank", *names, by=run_here, **prepared)
    assert printed.index("perfect_scores |") < printed.rindex("without_ped_scores |")
    next((tmp_path / "perfect").glob("*.mhd")).unlink()
    folders = ("--predictions", tmp_path / "perfect", "--reference", tmp_path / "reference")
    _, stderr = run("evaluate.py", *folders, "--output", tmp_path / "fewer", expected=2, by=run_here, **prepared)
    assert "no prediction, expected" in stderr
    assert len(pd.read_csv(tmp_path / "fewer" / "volumes.csv")) == 3 * (len(cases) - 1)


@pytest.mark.parametrize("way", ["mixed", "earlier"])
def test_evaluation_refuses_what_an_ancestor_has_seen(trained, tmp_path, set_config, way):
    """The fine-tuned model: its own step saw neither case, and the one that it was made from is not at hand."""
    settings, _ = trained
    output = settings["OUTPUT_ROOT"]
    rows = read_csv(output / "pre_processed" / "slice_gt.csv")
    known = pd.concat([read_csv(output / f"{part}_data.csv") for part in ("train", "val", "test")])
    mixed = read_csv(output.parent / "mixed" / "train_data.csv").image_name
    left = rows[~rows.image_name.isin([*known.image_name, *mixed])]
    seen = rows[rows.image_name.isin(mixed)] if way == "mixed" else left
    (tmp_path / "runs" / "unet").mkdir(parents=True)
    for name in ("pre_processed", "runs/unet/adversarial", "train_data.csv", "val_data.csv"):
        (tmp_path / name).symlink_to(output / name)
    pd.concat([read_csv(output / "test_data.csv"), seen]).to_csv(tmp_path / "test_data.csv", index=False)
    set_config()
    with pytest.raises(InputError) as caught:
        evaluate.main(overrides({**settings, "OUTPUT_ROOT": tmp_path}))
    (message,) = caught.value.messages
    (name,) = seen.image_name.unique()
    assert f"test_data.csv: Topcon {name} was used to train this network" in message


@pytest.mark.parametrize("changed", ["mixed/train_data.csv", "start/best.keras"])
def test_a_run_does_not_go_on_from_other_data_or_another_start(trained, set_config, changed):
    settings, _ = trained
    path = settings["OUTPUT_ROOT"].parent / changed
    files = [path] if path.suffix == ".csv" else [path, path.with_suffix(".json")]
    before = [file.read_bytes() for file in files]
    if path.suffix == ".csv":
        read_csv(path)[1:].to_csv(path, index=False)
        expected = r"data\.json: data set 1 of MIXED_ROOTS lists other B-scans"
    else:
        details = read_best(path)
        path.write_bytes(before[0] + b"of another file")
        write_json(files[1], {**details, "sha256": sha256(path)})
        expected = r"config\.json: the SHA-256 of the model that training starts from was '\w+', is now '\w+'"
    set_config()
    try:
        with pytest.raises(InputError, match=expected):
            model_training.main(overrides(settings))
    finally:
        for file, content in zip(files, before, strict=True):
            file.write_bytes(content)


@pytest.mark.parametrize("step", ["segmentation", "adversarial"])
def test_a_damaged_best_model_of_a_finished_run_is_restored_from_its_checkpoint(trained, tmp_path, set_config, step):
    settings, _ = trained
    output = settings["OUTPUT_ROOT"]
    for name in ("pre_processed", "train_data.csv", "val_data.csv"):
        (tmp_path / name).symlink_to(output / name)
    shutil.copytree(output / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("evaluation"))
    folder = tmp_path / "runs" / "unet" / step
    best = folder / "best.keras"
    (weights,) = (folder / "epochs").iterdir()  # of the last epoch
    expected = keras.models.load_model(best, compile=False)
    expected.load_weights(weights)
    weights.unlink()
    best.write_bytes(best.read_bytes()[:1000])
    settings = {**settings, "OUTPUT_ROOT": tmp_path}
    set_config()
    if step == "segmentation":
        model_training.main(overrides(settings))
    else:
        adversarial_training.main(overrides({**settings, "MIXED_ROOTS": {}}))
    assert read_best(best)["epoch"] == int(weights.name[:4])
    for one, other in zip(keras.models.load_model(best, compile=False).weights, expected.weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_evaluation_goes_on_and_a_damaged_case_costs_no_other(trained, tmp_path):
    settings, _ = trained
    settings = {**settings, "OUTPUT_ROOT": tmp_path / "output", "DATA_ROOT": tmp_path / "data"}
    for name in ("OUTPUT_ROOT", "DATA_ROOT"):
        shutil.copytree(trained[0][name], settings[name])
    folder = run_folder(settings, "evaluation")
    process = start("evaluate.py", **settings)
    wait_for(folder / "predictions", process)
    while not list((folder / "predictions").glob("*.json")):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    first = next((folder / "predictions").glob("*.json"))
    written = first.stat().st_mtime_ns
    held_out = pd.read_csv(settings["OUTPUT_ROOT"] / "test_data.csv", dtype=str).drop_duplicates(
        ["vendor", "image_name"]
    )
    damaged = held_out[held_out.vendor + "_" + held_out.image_name != first.stem].iloc[0]
    raw = settings["DATA_ROOT"] / damaged.root / "oct.raw"
    os.truncate(raw, raw.stat().st_size // 2)
    _, stderr = run("evaluate.py", expected=2, **settings)
    assert f"{damaged.image_name}/oct" in stderr.splitlines()[-1]
    assert first.stat().st_mtime_ns == written
    volumes = pd.read_csv(folder / "volumes.csv", dtype=str)
    assert set(volumes.vendor + volumes.case) == set(held_out.vendor + held_out.image_name) - {
        damaged.vendor + damaged.image_name
    }
    assert "Not scored: 1" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_all_folds_as_one_command_that_goes_on_after_a_kill(tmp_path):
    run("-m utils.phantom", "--output", tmp_path / "data", "--cases", 12, "--slices", 2, "--seed", 4)
    settings = {**SETTINGS, "DATA_ROOT": tmp_path / "data", "OUTPUT_ROOT": tmp_path / "out put", "FOLDS": 2, "EPOCH": 1}
    command = ["./reproduce.sh", *overrides(settings)]
    environment = {**os.environ, "PYTHON": sys.executable}
    process = subprocess.Popen(command, cwd=PROJECT, env=environment, start_new_session=True)
    wait_for(settings["OUTPUT_ROOT"] / "fold_1" / "train_data.csv", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = settings["OUTPUT_ROOT"] / "fold_0" / "runs" / "unet" / "segmentation" / "best.keras"
    written = done.stat().st_mtime_ns
    subprocess.run(command, cwd=PROJECT, env=environment, check=True, timeout=500)
    assert done.stat().st_mtime_ns == written
    pooled = pd.read_csv(run_folder(settings, "evaluation") / "volumes.csv")
    folds = [pd.read_csv(settings["OUTPUT_ROOT"] / f"fold_{fold}" / "test_data.csv") for fold in (0, 1)]
    assert set(pooled.case) == set(pd.concat(folds).image_name)
    assert len(pooled) == 3 * pooled.case.nunique()


def test_segmenting_a_scan_and_a_case_with_the_runs_own_model(trained, tmp_path):
    settings, _ = trained
    data = settings["DATA_ROOT"]
    scan = data / "RETOUCH-TrainingSet-Cirrus" / "TRAIN001" / "oct.mhd"
    case = data / "RETOUCH-TrainingSet-Spectralis" / "TRAIN002"
    voxels, spacing_mm = read_volume(scan)
    output = tmp_path / "segmented"
    run("test.py", scan, case, "--output", output, **settings)
    assert {path.stem for path in output.glob("*.mhd")} == {"Cirrus_TRAIN001", "Spectralis_TRAIN002"}
    labels, written_spacing_mm = read_volume(output / "Cirrus_TRAIN001.mhd")
    assert labels.dtype == np.uint8
    assert labels.shape == voxels.shape
    assert written_spacing_mm == pytest.approx(spacing_mm)
    assert labels.max() <= 3
    record = json.loads((output / "Cirrus_TRAIN001" / "scan.json").read_text())
    assert (record["notes"], record["warnings"]) == ([], [])
    best = json.loads((run_folder(settings, "adversarial") / "best.json").read_text())
    assert record["facts"]["model_sha256"] == best["sha256"]
    assert set(best["training_appearance"]) == {"Cirrus", "Spectralis", "Topcon"}


@pytest.mark.slow
def test_training_starts_from_the_weights_it_is_given(trained, tmp_path):
    settings, _ = trained
    start = tmp_path / "best.keras"
    shutil.copy(run_folder(settings, "adversarial") / "best.keras", start)
    details = read_best(run_folder(settings, "adversarial") / "best.keras")
    write_json(start.with_suffix(".json"), {**details, "data": {}})  # else the validation cases would be refused
    # A step of this size leaves every weight where it is, to three decimals.
    run("model_training.py", **{**settings, "INIT_WEIGHTS": start, "RUN_NAME": "started", "EPOCH": 1, "ADAM_LR": 1e-6})
    ended = settings["OUTPUT_ROOT"] / "runs" / "started" / "segmentation" / "best.keras"
    weights = [keras.models.load_model(path, compile=False).trainable_weights for path in (start, ended)]
    for before, after in zip(*weights, strict=True):
        np.testing.assert_allclose(before.numpy(), after.numpy(), atol=1e-5)
    lite = {"MODEL": "Unet/efficientnetlite0", "PATCH_SIZE_W": 160, "ENCODER_WEIGHTS": tmp_path / "gone.pth"}
    _, stderr = run("model_training.py", **{**settings, **lite, "INIT_WEIGHTS": start, "RUN_NAME": "lite"}, expected=2)
    assert f"{start}: is another network than this run's" in stderr  # ENCODER_WEIGHTS is not asked for
    wider = {**settings, "INIT_WEIGHTS": start, "RUN_NAME": "wider", "BASE_FILTERS": 3}
    _, stderr = run("model_training.py", **wider, expected=2)
    (line,) = stderr.strip().splitlines()
    assert f"{start}: is another network than this run's" in line
    assert "BASE_FILTERS = 2" in line


@pytest.mark.parametrize(
    ("script", "arguments", "settings", "message"),
    [
        ("model_training.py", (), {}, "train_data.csv"),
        ("model_training.py", (), {"EPOCHS": 3}, "did you mean EPOCH?"),
        ("adversarial_training.py", (), {}, "train_data.csv"),
        ("evaluate.py", (), {}, "test_data.csv"),
        ("test.py", ("nowhere", "--output", "out"), {}, "nowhere: no such file or folder"),
        ("test.py", ("nowhere", "--output", "out", "--spacing-mm", "12", "4", "120"), {}, "divide micrometres"),
    ],
)
def test_what_the_user_can_mend_is_one_line(script, arguments, settings, message, tmp_path):
    _, stderr = run(script, *arguments, expected=2, OUTPUT_ROOT=tmp_path / "output", **settings)
    lines = stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{script}: error: ")
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_training_and_segmenting_with_presence_heads_in_bfloat16_on_jax(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    settings = {**prepared, "RUN_NAME": "jax", "TRAIN_CLASSES": True, "DTYPE_POLICY": "mixed_bfloat16", "EPOCH": 1}
    for script in ("model_training.py", "adversarial_training.py", "evaluate.py"):
        run(script, **settings)
    case = settings["DATA_ROOT"] / "RETOUCH-TrainingSet-Spectralis" / "TRAIN002"
    run("test.py", case, "--output", tmp_path, **settings)
    assert (tmp_path / "Spectralis_TRAIN002.mhd").exists()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_the_strong_recipe_runs_through_and_continues_to_the_bit(prepared, tmp_path, monkeypatch, backend):
    """Averaged weights and the schedule too: stopped after the first epoch, and not stopped."""
    monkeypatch.setenv("KERAS_BACKEND", backend)
    settings = {**prepared, "OUTPUT_ROOT": tmp_path / "output", "STEPS_PER_EPOCH": 3, "WARM_UP_STEPS": 2}
    settings |= {"RUN_NAME": "unet", "ENCODER_WEIGHTS": None}
    run("prepare_data.py", "--recipe", "strong", **settings)
    phantoms = {"DATA_ROOT": tmp_path / "phantoms", "OUTPUT_ROOT": tmp_path / "mixed", "MATCH_INTENSITIES": False}
    run_python("-m", "utils.phantom", "--varied", "--output", phantoms["DATA_ROOT"], "--cases", 6, "--slices", 1)
    run("prepare_data.py", **phantoms)
    settings["MIXED_ROOTS"] = {str(phantoms["OUTPUT_ROOT"]): 0.4}
    states = []
    for name in ("unet", "stopped"):
        settings["RUN_NAME"] = name
        folder = settings["OUTPUT_ROOT"] / "runs" / name / "segmentation"
        if name == "stopped":
            process = start("model_training.py", "--recipe", "strong", **settings)
            wait_for(folder / "log.csv", process)
            process.send_signal(signal.SIGTERM)
            process.communicate()
            assert process.returncode == 128 + signal.SIGTERM
        run("model_training.py", "--recipe", "strong", **settings)
        with np.load(folder / "last-0002-0000000.npz") as stored:
            states.append([stored[key] for key in stored.files])
    for uninterrupted, continued in zip(*states, strict=True):
        np.testing.assert_array_equal(uninterrupted, continued)
    assert "decisions" in read_best(folder / "best.keras")
    for script in ("adversarial_training.py", "evaluate.py"):
        run(script, "--recipe", "strong", **settings)
    case = settings["DATA_ROOT"] / "RETOUCH-TrainingSet-Spectralis" / "TRAIN002"
    run("test.py", case, "--output", tmp_path / "segmented", "--recipe", "strong", **settings)
    assert (tmp_path / "segmented" / "Spectralis_TRAIN002.mhd").exists()


@pytest.mark.slow
def test_the_lite_encoder_is_trained_fine_tuned_and_segments_without_its_weights_file(prepared, tmp_path):
    weights = write_weights(tmp_path / "random.pth", random_weights())
    settings = {**prepared, "MODEL": "Unet/efficientnetlite0", "RUN_NAME": "lite", "EPOCH": 1, "BATCH_SIZE": 2}
    settings |= {"PATCH_SIZE_H": 128, "PATCH_SIZE_W": 128, "ENCODER_WEIGHTS": weights, "ADAM_LR": 1e-6}
    run("model_training.py", **settings)
    best = settings["OUTPUT_ROOT"] / "runs" / "lite" / "segmentation" / "best.keras"
    kernel = keras.models.load_model(best, compile=False).get_layer("conv_stem").get_weights()[0]
    np.testing.assert_allclose(kernel, random_weights()["_conv_stem.weight"].transpose(2, 3, 1, 0), atol=1e-4)
    weights.unlink()
    run("adversarial_training.py", **settings)
    case = settings["DATA_ROOT"] / "RETOUCH-TrainingSet-Spectralis" / "TRAIN002"
    run("test.py", case, "--output", tmp_path / "out", **settings)
    assert (tmp_path / "out" / "Spectralis_TRAIN002.mhd").exists()
    _, stderr = run("model_training.py", **{**settings, "RUN_NAME": "again"}, expected=2)
    assert stderr.startswith("model_training.py: error: config.ENCODER_WEIGHTS = ")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["missing", "truncated"])
def test_a_volume_that_is_damaged_after_the_start_ends_training_with_its_name(prepared, tmp_path, fault):
    settings = {**prepared, "OUTPUT_ROOT": tmp_path / "output", "WORKERS": 2, "EPOCH": 50, "STEPS_PER_EPOCH": None}
    shutil.copytree(prepared["OUTPUT_ROOT"], settings["OUTPUT_ROOT"], ignore=shutil.ignore_patterns("runs"))
    process = start("model_training.py", **settings)
    wait_for(run_folder(settings, "segmentation") / "log.csv", process)
    training = pd.read_csv(settings["OUTPUT_ROOT"] / "train_data.csv", dtype=str).iloc[0]
    name = f"{training.vendor}_{training.image_name}.raw"
    path = settings["OUTPUT_ROOT"] / "pre_processed" / "oct_imgs" / name
    path.unlink() if fault == "missing" else os.truncate(path, 1000)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2, stderr
    assert re.search(rf"model_training\.py: error: .*oct_imgs/.*{name}", stderr)
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_training_with_a_sentence_and_the_run_goes_on(prepared, tmp_path):
    settings = {**prepared, "RUN_NAME": "worker", "WORKERS": 2, "EPOCH": 50}
    process = start("model_training.py", **settings)
    log = run_folder(settings, "segmentation").parents[1] / "worker" / "segmentation" / "log.csv"
    wait_for(log, process)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:  # a worker without work is replaced in silence
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                if "popen_loky" in " ".join(child.cmdline()):
                    child.kill()
        time.sleep(0.05)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 2, stderr
    assert "a process was killed" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    run("model_training.py", **{**settings, "EPOCH": len(pd.read_csv(log)) + 1})


def start(script, *arguments, **settings):
    """Start a script without waiting for it."""
    command = [sys.executable, script, *arguments, *overrides(settings)]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path, process):
    """Wait until the script has written `path`."""
    ends = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends, f"{path} does not come"
        time.sleep(0.1)
