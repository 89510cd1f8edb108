"""A recipe trained once for each fold by the project's own scripts, each time for the same CPU seconds.

Below the output folder, data/ links to the folds' cases, and fold_K/ is the OUTPUT_ROOT in which fold K is held out.

    python -m benchmarks.real_training DIR [DIR ...] --output OUT

prepares OUT/fold_untouched for the model in the box. The patients of all folds train it, except a tenth, on whom its
epoch is chosen. The untouched patients are held out.
"""

import argparse
import contextlib
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil

from benchmarks.real_folds import (
    NOT_JUDGED,
    PATIENTS,
    UNTOUCHED,
    cases_of_folds,
    find_real_cases,
    patients_with,
    read_folds,
    some_patients,
)
from benchmarks.scripts import run
from utils.errors import InputError, run_script
from utils.files import locked, read_json, write_json
from utils.preparation.cases import find_cases
from utils.preparation.splits import patient_of
from utils.tasks import overrides

LOOK_SECONDS = 0.5  # between looks at how many CPU seconds a training has taken


@dataclass(frozen=True)
class Trained:
    """What a training has left."""

    model: Path  # best.keras
    cpu_seconds: float
    steps: int  # of whole epochs
    epochs: int


def main(argv):
    parser = argparse.ArgumentParser(description="Prepare the real scans that the model in the box is trained on.")
    parser.add_argument("data", type=Path, nargs="+", metavar="DIR", help="folders of the cases")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT")
    arguments = parser.parse_args(argv)
    of_fold = cases_of_folds(find_real_cases(arguments.data), read_folds())
    settings = {"MATCH_INTENSITIES": False, "NOT_JUDGED_OTHER": NOT_JUDGED}
    prepare_folds(of_fold, [UNTOUCHED], arguments.output, settings)


def prepare_folds(of_fold, held_out, output, settings):
    """Link the cases, write the split of each fold `held_out` and prepare its data; goes on where it stopped.

    `of_fold` is {fold: cases} of `benchmarks.real_folds.cases_of_folds`, without the untouched patients unless these
    are held out; `held_out` are some of its keys; `settings` are a recipe's, as a dictionary. With a DATA_ROOT among
    them, the cases of the same names there take the folds' place. Returns {fold held out: the settings with both
    roots}.
    """
    others = {case.name: case.folder for case in find_cases(settings["DATA_ROOT"])} if "DATA_ROOT" in settings else {}
    for case in (case for cases in of_fold.values() for case in cases):
        link_to(others.get(case.name, case.folder), output / "data" / (case.vendor or "") / case.name)
    held = patients_with([case for cases in of_fold.values() for case in cases])
    roots = {"DATA_ROOT": output / "data", "PATIENT_PATTERN": PATIENTS}
    of_folds = {fold: {**settings, **roots, "OUTPUT_ROOT": output / f"fold_{fold}"} for fold in held_out}
    for fold, of_this in of_folds.items():
        write_split(of_this["OUTPUT_ROOT"], split_of(fold, of_fold, held))
        run("prepare_data.py", **of_this)
    return of_folds


def link_to(path, link):
    """Make `link` one to `path`, a file or folder, also where it was one to another: scans may have moved."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(path.resolve())


def split_of(fold, of_fold, held):
    """{part: cases} in which `fold` is held out, and a fifth of the other folds' patients chooses the epoch.

    Where the untouched are held out it is a tenth: the more patients train, the better.
    """
    others = [case for other, cases in of_fold.items() if other != fold for case in cases]
    patients = [patient_of(case.name, PATIENTS) for case in others]
    validating = set(
        some_patients(sorted(set(patients)), held, 0.1 if fold == UNTOUCHED else 0.2)
    )  # on whom the epochs are chosen
    parts = {"train": [], "val": [], "test": of_fold[fold]}
    for case, patient in zip(others, patients, strict=True):
        parts["val" if patient in validating else "train"].append(case)
    return parts


def write_split(output, parts):
    """Write the CSVs of {part: cases} that prepare_data.py keeps; raises `InputError` where others are there."""
    for part, cases in parts.items():
        path = output / f"{part}_data.csv"
        names = sorted(case.name for case in cases)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [{"vendor": case.vendor, "image_name": case.name} for case in cases]
            pd.DataFrame(rows).to_csv(path, index=False)
        elif names != sorted(set(pd.read_csv(path, dtype=str, keep_default_na=False)["image_name"])):
            raise InputError(f"{path}: is of other folds or cases; name another --output")


def train_fold(name, settings, budget):
    """Train the recipe `name` with `settings`, of `prepare_folds`, for `budget` CPU seconds.

    These are user and system time of model_training.py with all that it does and starts: importing, validation, worker
    processes. Once they are spent it is stopped by SIGTERM, and its best whole epoch counts. What an earlier call has
    spent counts, too: with a larger budget the training goes on. Returns `Trained`; raises `InputError` where the
    training fails or ends no epoch.
    """
    settings = {**settings, "RUN_NAME": name}
    folder = settings["OUTPUT_ROOT"] / "runs" / name / "segmentation"
    spent_json, printed = folder.parent / "cpu_seconds.json", folder.parent / "printed.txt"
    with locked(folder.parent):
        command = [sys.executable, "model_training.py", *overrides(settings)]
        spent = read_json(spent_json) if spent_json.exists() else {"cpu_seconds": 0.0, "finished": None}
        if spent["cpu_seconds"] < budget and spent["finished"] != command[1:]:
            code = train_until(spent, spent_json, budget, command)
            if code not in (0, 128 + signal.SIGTERM):
                last = printed.read_text("utf-8", "replace").rstrip().rpartition("\n")[2]
                raise InputError(f"{printed}: model_training.py ended with exit code {code}: {last}")
    if not (folder / "best.json").exists():
        raise InputError(f"{folder}: no epoch has ended in {budget:g} CPU seconds; lower STEPS_PER_EPOCH")
    log = pd.read_csv(folder / "log.csv")
    return Trained(folder / "best.keras", spent["cpu_seconds"], int(log["steps"].sum()), len(log))


def train_until(spent, spent_json, budget, command):
    """Run `command` until it ends or ``spent["cpu_seconds"]`` reaches `budget`; returns its exit code.

    `spent` is brought up to date, and kept in the file `spent_json`, where a call that is killed leaves it. Its
    "finished" is the command that came to its own end, without the interpreter; None before.
    """
    before, of_children = spent["cpu_seconds"], children_seconds()
    with open(spent_json.with_name("printed.txt"), "ab") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
    try:
        while process.poll() is None and spent["cpu_seconds"] < budget:
            time.sleep(LOOK_SECONDS)
            with contextlib.suppress(psutil.NoSuchProcess):  # a process that ends meanwhile
                spent["cpu_seconds"] = before + seconds_taken(psutil.Process(process.pid))
                write_json(spent_json, spent)
    finally:
        process.terminate()
        code = process.wait()
        spent |= {"cpu_seconds": before + children_seconds() - of_children, "finished": None if code else command[1:]}
        write_json(spent_json, spent)
    return code


def seconds_taken(process):
    """User and system seconds of a running process and of its children, those that have ended included."""
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(of.user + of.system + of.children_user + of.children_system for of in times)


def children_seconds():
    """User and system seconds of this process's children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    run_script(main)
