"""Beside nnU-Net: its own 2D configuration, trained on the same real B-scans for the same CPU seconds, judged alike.

    python3 -m venv NN && NN/bin/pip install "nnunetv2==2.8.1" "torch==2.14.1"
    python -m benchmarks.beside_nnunet --folds DIR [DIR ...] --output OUT --python NN/bin/python [--cpu-seconds 9000]
        [--gpu-memory GB] [--only FOLD ...] [--no-unlike] [--csv NAME FILE]...

The folds, their validation cases and what is not judged are those of `benchmarks.real_training.prepare_folds` for a
recipe with "NOT_JUDGED_OTHER=(1,2)"; what is not judged is nnU-Net's ignore label. nnU-Net gets the exported pictures
with their spacing, and its defaults decide all else: plans, augmentation, optimizer, mirrored predictions, argmax. Only
the lengths of its schedule are chosen, to end with the seconds (`benchmarks/nnunet_steps.py`). --gpu-memory is its
planner's own option: with less, batches are smaller and more steps fit into the seconds. Its last checkpoint is judged.
A fold's trained network and its scores are kept; an interrupted training begins anew.

Prints the table of `benchmarks.real_transfer`, the gain over each FILE, an OUT/NAME.csv of that benchmark, and what
each fold took. Writes OUT/nnU-Net.csv.
"""

import argparse
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk

from benchmarks.nnunet_steps import DATASET
from benchmarks.real_folds import N_FOLDS, UNTOUCHED, cases_of_folds, find_real_cases, patients_with, read_folds
from benchmarks.real_measures import gain_text
from benchmarks.real_scoring import count_pixels, expected_dice, read_b_scan
from benchmarks.real_training import split_of, train_until
from benchmarks.real_transfer import fluid_lines, heading
from benchmarks.real_unlike import WAYS, make_unlike
from utils.errors import InputError, run_script
from utils.evaluation.held_out import where_judged
from utils.files import locked, read_json, write_csv, write_json
from utils.labels import FLUIDS, NOT_JUDGED
from utils.segmentation.decisions import Decisions
from utils.segmentation.tiling import presence_scores

NAME = "nnU-Net"
STEPS = Path(__file__).with_name("nnunet_steps.py")
LABELS = {"background": 0, **FLUIDS, "ignore": len(FLUIDS) + 1}  # nnU-Net wants the ignore label to be the highest


def main(argv):
    arguments = parse(argv)
    of_fold = cases_of_folds(find_real_cases(arguments.folds), read_folds())
    of_fold.pop(UNTOUCHED)
    held = patients_with([case for cases in of_fold.values() for case in cases])
    ways = [] if arguments.no_unlike else list(WAYS)
    rows, took = {way: [] for way in (None, *ways)}, []
    for fold in arguments.only or of_fold:
        folder = arguments.output / f"fold_{fold}"
        with locked(folder):
            made_from = {"cpu_seconds": arguments.cpu_seconds, "gpu_memory": arguments.gpu_memory}
            took.append(train_fold(folder, split_of(fold, of_fold, held), made_from, arguments.python))
            for way, of_way in rows.items():
                of_way.append(scores(folder, of_fold[fold], way, arguments.python))
        print(f"fold {fold}: {in_words(took[-1], read_json(folder / 'scores' / 'cost.json'))}", flush=True)
    exported, *unlike = (pd.concat(of_way) for of_way in rows.values())
    write_csv(arguments.output / f"{NAME}.csv", exported)
    cost = f"{np.mean([of['cpu_seconds'] for of in took]):.0f}, {np.mean([of['steps'] for of in took]):.0f} steps"
    lines = fluid_lines(exported, exported, dict(zip(ways, unlike, strict=True))).values()
    print(heading(ways), *(f"| {NAME} | {cost} | {line} |" for line in lines), sep="\n")
    for name, path in arguments.csv:
        for fluid in FLUIDS:
            print(f"{fluid}, {NAME} less {name}: {gain_over(path, exported, fluid)}")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folds", type=Path, nargs="+", required=True, metavar="DIR", help="folders of the cases")
    parser.add_argument("--output", type=Path, required=True, help="folder of trainings and scores")
    parser.add_argument("--python", type=Path, required=True, help="of the environment that holds nnunetv2")
    parser.add_argument("--cpu-seconds", type=float, default=9000.0, help="of each fold's training")
    parser.add_argument(
        "--gpu-memory", type=float, default=8.0, metavar="GB", help="that nnU-Net plans for; default: 8"
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(map(str, range(N_FOLDS))), metavar="FOLD", help="these folds alone"
    )
    parser.add_argument("--no-unlike", action="store_true", help="leave the scans made unlike out")
    parser.add_argument("--csv", nargs=2, action="append", default=[], metavar=("NAME", "FILE"), help="to compare with")
    return parser.parse_args(argv)


# ---- nnU-Net's side -------------------------------------------------------------------------------------------------
def write_layout(folder, parts):
    """Write the training and validation cases of `parts`, of `split_of`, and this split in nnU-Net's layout."""
    raw, learned = folder / "raw" / DATASET, [*parts["train"], *parts["val"]]
    for case in learned:
        b_scan, _, _ = read_b_scan(case)
        labels = np.where(b_scan.reference == NOT_JUDGED, np.uint8(LABELS["ignore"]), b_scan.reference)
        write_picture(raw / "imagesTr" / f"{case.name}_0000.mha", b_scan.grey, b_scan.spacing_mm)
        write_picture(raw / "labelsTr" / f"{case.name}.mha", labels, b_scan.spacing_mm)
    described = {"channel_names": {"0": "OCT"}, "labels": LABELS, "numTraining": len(learned), "file_ending": ".mha"}
    write_json(raw / "dataset.json", described)
    write_json(folder / "preprocessed" / DATASET / "splits_final.json", [names_of(parts)])


def write_picture(path, pixels, spacing_mm):
    """Write `pixels`, uint8 (rows, columns), as a picture of two dimensions; `spacing_mm` is (x, y, z)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = sitk.GetImageFromArray(pixels)
    picture.SetSpacing(spacing_mm[:2])
    sitk.WriteImage(picture, path)


def names_of(parts):
    """What nnU-Net calls a split: the names of the cases that train, and of those that validate."""
    return {part: sorted(case.name for case in parts[part]) for part in ("train", "val")}


def train_fold(folder, parts, made_from, python):
    """Plan and train one fold in `folder`; returns what is kept in "trained.json" and more.

    `made_from` holds "cpu_seconds" and "gpu_memory". Raises `InputError` where nnU-Net fails, or another split was
    trained there, or with others of these.
    """
    made_from, budget = made_from | {"split": names_of(parts)}, made_from["cpu_seconds"]
    if not (folder / "planned.json").exists():
        write_layout(folder, parts)
        write_json(folder / "made_from.json", made_from)
        step(python, folder, "plan", made_from["gpu_memory"])
    if read_json(folder / "made_from.json") != made_from:
        raise InputError(f"{folder}: is of another split, --cpu-seconds or --gpu-memory; name another --output")
    if not (folder / "trained.json").exists():
        command = [str(python), str(STEPS), str(folder), "train", f"{budget}"]
        spent = {"cpu_seconds": 0.0, "finished": None}
        if code := train_until(spent, folder / "cpu_seconds.json", budget, command):
            seconds = f"{spent['cpu_seconds']:.0f} of {budget:.0f} CPU seconds"
            raise InputError(f"{folder / 'printed.txt'}: the training ended with exit code {code} after {seconds}")
    planned, trained, spent = (read_json(folder / f"{name}.json") for name in ("planned", "trained", "cpu_seconds"))
    return planned | trained | spent


def step(python, folder, *arguments):
    """Run a step of `benchmarks/nnunet_steps.py`; raises `InputError` where it fails."""
    with open(folder / "printed.txt", "ab") as printed:
        command = [python, STEPS, folder, *arguments]
        code = subprocess.run([str(part) for part in command], stdout=printed, stderr=subprocess.STDOUT).returncode
    if code:
        raise InputError(f"{printed.name}: {arguments[0]} ended with exit code {code}")


# ---- Scores ---------------------------------------------------------------------------------------------------------
def scores(folder, cases, way, python):
    """The rows of `count_pixels` of `cases` by the network trained in `folder`; made unlike unless `way` is None."""
    kept = folder / "scores" / f"{way or 'as exported'}.csv"
    if not kept.exists():
        b_scans = {case.name: read_b_scan(case)[0] for case in cases}
        if way is not None:
            b_scans = {name: make_unlike(b_scan, name, way) for name, b_scan in b_scans.items()}
        with tempfile.TemporaryDirectory(dir=folder) as predicted:
            for name, b_scan in b_scans.items():
                write_picture(Path(predicted) / f"{name}_0000.mha", b_scan.grey, b_scan.spacing_mm)
            step(python, folder, "predict", predicted, predicted)
            rows = []
            for case in cases:
                rows += rows_of(case, b_scans[case.name], np.load(Path(predicted) / f"{case.name}.npy"))
            if way is None:
                write_json(kept.with_name("cost.json"), read_json(Path(predicted) / "cost.json"))
        write_csv(kept, pd.DataFrame(rows))
    return pd.read_csv(kept, keep_default_na=False, na_values={"expected_dice": ""})


def rows_of(case, b_scan, probabilities):
    """A row of `count_pixels` for each fluid of a `BScan`, by `probabilities`, float (rows, columns, 4)."""
    labels, presence = probabilities.argmax(axis=-1).astype(np.uint8), presence_scores(probabilities)
    labels, probabilities, presence, reference = where_judged(labels, probabilities, presence, b_scan.reference)
    expected = expected_dice(labels, probabilities, presence, Decisions(threshold=0.0))
    return count_pixels(case, replace(b_scan, reference=reference), labels, presence, expected)


def gain_over(path, rows, fluid):
    """`gain_text` of a fluid's `rows` over those in a CSV; raises `InputError` where B-scans are missing there."""
    others = pd.read_csv(path, keep_default_na=False)
    if missing := set(rows["b_scan"]) - set(others["b_scan"]):
        raise InputError(
            f"{path}: lacks {len(missing)} of the {rows['b_scan'].nunique()} B-scans; name its folds: --only"
        )
    rows, others = (table[table["fluid"] == fluid] for table in (rows, others))
    return gain_text(rows, others)


def in_words(trained, predicted):
    """What a fold took, for the console."""
    rows, columns = trained["patch_size"]
    iterations = trained["iterations"]
    return (
        f"{trained['batch_size']} patches of {rows} x {columns}, {trained['parameters'] / 1e6:.1f} M parameters, "
        f"{trained['s_an_iteration']:.1f} s an iteration; {len(iterations)} epochs of {min(iterations)} to "
        f"{max(iterations)} iterations; {trained['peak_gib']:.1f} GiB; a B-scan {predicted['s_a_b_scan']:.1f} s, "
        f"{predicted['peak_gib']:.1f} GiB"
    )


if __name__ == "__main__":
    run_script(main)
