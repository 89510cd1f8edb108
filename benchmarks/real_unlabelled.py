"""Is adversarial fine-tuning worth it where few scans have outlines and many have none? On the folds of real B-scans.

    python -m benchmarks.real_unlabelled --folds DIR [DIR ...] --output OUT [--only FOLD ...] [--outlined 0.15]
        [--start SETTING=VALUE ...] [--tune SETTING=VALUE ...] --variant NAME [SETTING=VALUE ...] [--variant ...]

For every fold of `benchmarks.real_transfer`, which judges:

1. Of `--outlined` of the patients who train, the outlines are kept; of the others the scans alone.
2. model_training.py with recipes/strong.py and the settings of `--start`. All variants start from its best epoch.
3. adversarial_training.py for each variant with the recipe, and the settings of `--start`, `--tune` and the variant.
   The first one is the control: its weights of the adversarial loss and of self-training should be 0. All see the same
   patches, and their discriminators learn alone for as many steps.

The best epoch of each, chosen on validation B-scans, segments the fold's B-scans, and so does the last epoch. Prints
the table of `benchmarks.real_transfer`, with each line's gain over the control's, and the discriminators' held-out
accuracy. What is finished is not done again.
"""

import argparse
import shutil
from pathlib import Path

import pandas as pd

import config
from benchmarks.real_folds import (
    PATIENTS,
    UNTOUCHED,
    cases_of_folds,
    find_real_cases,
    patients_with,
    read_folds,
    some_patients,
)
from benchmarks.real_scoring import Judged
from benchmarks.real_training import link_to, split_of, write_split
from benchmarks.real_transfer import fluid_lines, heading
from benchmarks.scripts import run, settings_of
from utils.errors import run_script
from utils.files import write_csv
from utils.networks.exported_model import export_best, read_best
from utils.preparation.splits import patient_of


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folds", type=Path, nargs="+", required=True, metavar="DIR", help="folders of the cases")
    parser.add_argument("--output", type=Path, required=True, help="folder of trainings and scores")
    parser.add_argument("--only", nargs="+", metavar="FOLD", help="these folds alone")
    parser.add_argument("--outlined", type=float, default=0.15, help="share of the training patients with outlines")
    parser.add_argument("--start", nargs="+", default=[], metavar="SETTING=VALUE", help="of both trainings")
    parser.add_argument("--tune", nargs="+", default=[], metavar="SETTING=VALUE", help="of every fine-tuning")
    parser.add_argument("--variant", nargs="+", action="append", required=True, metavar=("NAME", "SETTING=VALUE"))
    arguments = parser.parse_args(argv)
    of_fold = cases_of_folds(find_real_cases(arguments.folds), read_folds())
    of_fold.pop(UNTOUCHED)
    held = patients_with([case for cases in of_fold.values() for case in cases])
    recipe = config.recipe("strong") | settings_of(arguments.start)
    judged = {}
    for fold in arguments.only or of_fold:
        parts = split_of(fold, of_fold, held)
        of_this = {**recipe, **prepare_fold(arguments.output / f"fold_{fold}", parts, held, arguments.outlined)}
        runs = of_this["OUTPUT_ROOT"] / "runs"
        run("model_training.py", **of_this | {"RUN_NAME": "start"})
        judged.setdefault("start", []).append((runs / "start" / "segmentation" / "best.keras", of_fold[fold]))
        for name, *given in arguments.variant:
            tuned = of_this | settings_of(arguments.tune) | settings_of(given)
            if not (runs / name).exists():
                shutil.copytree(runs / "start" / "segmentation", runs / name / "segmentation")
            run("adversarial_training.py", **tuned | {"RUN_NAME": name})
            best = runs / name / "adversarial" / "best.keras"
            judged.setdefault(name, []).append((best, of_fold[fold]))
            judged.setdefault(f"{name}, last epoch", []).append((export_last(best), of_fold[fold]))
            print(f"fold {fold}, {name}: fine-tuned", flush=True)
    print_table(judged, arguments.variant[0][0], arguments.output)


def prepare_fold(output, parts, held, share):
    """Prepare the cases of `parts` (of `split_of`) below `output`; only a `share` of the training patients is outlined.

    Returns the settings that say where.
    """
    patients = sorted({patient_of(case.name, PATIENTS) for case in parts["train"]})
    outlined = set(some_patients(patients, held, share))
    train = [case for case in parts["train"] if patient_of(case.name, PATIENTS) in outlined]
    for case in (case for cases in parts.values() for case in cases):
        folder = output / "data" / (case.vendor or "") / case.name
        if case in parts["train"] and case not in train:
            for path in case.folder.glob("oct.*"):
                link_to(path, folder / path.name)
        else:
            link_to(case.folder, folder)
    settings = {"DATA_ROOT": output / "data", "OUTPUT_ROOT": output / "output", "PATIENT_PATTERN": PATIENTS}
    write_split(settings["OUTPUT_ROOT"], {**parts, "train": train})
    run("prepare_data.py", "--unlabelled", **settings, MATCH_INTENSITIES=False)
    return settings


def export_last(best):
    """The model of a run's last epoch, exported below the folder of the `best` one's; returns its path."""
    import keras

    last, weights = best.parent / "last_epoch" / best.name, max((best.parent / "epochs").glob("*.weights.h5"))
    details = read_best(best) | {"epoch": int(weights.name.partition(".")[0])}
    if not last.exists() or read_best(last)["epoch"] != details["epoch"]:
        last.parent.mkdir(exist_ok=True)
        network = keras.models.load_model(best, compile=False)
        network.load_weights(weights)
        export_best(last.parent, network, details)
    return last


def print_table(judged, control, output):
    """Print a line for each network of `judged`, {name: [(model file, cases)]}, with its gain over `control`.

    The gain of a last epoch is that over the last epoch of `control`.
    """
    rows, accuracies = {}, {}
    for name, models in judged.items():
        of_models = [Judged(model, cases, output / "scores").scores() for model, cases in models]
        rows[name] = pd.concat(of_models)
        write_csv(output / f"{name}.csv", rows[name])
        fine_tuned = [model for model, _ in models if model.parent.name == "adversarial"]
        if fine_tuned:
            logs = [pd.read_csv(model.with_name("log.csv")) for model in fine_tuned]
            held_out = [log[["d_held_out_real", "d_held_out_generated"]].iloc[1:].mean(axis=1) for log in logs]
            accuracies[name] = ", ".join(f"{of_fold.min():.2f} to {of_fold.max():.2f}" for of_fold in held_out)
    print(heading([]))
    for name, of_name in rows.items():
        compared = f"{control}, last epoch" if name.endswith(", last epoch") else control
        for line in fluid_lines(of_name, rows[compared], {}).values():
            print(f"| {name} | {accuracies.get(name, '–')} | {line} |")


if __name__ == "__main__":
    run_script(main)
