"""The scripts under load: memory and time over many cases, faulty scans among good ones, two users of one folder.

    python -m benchmarks.load prepare [--workers 0] [--slices N] [--folder .]    70 volumes of full size
    python -m benchmarks.load segment [--scans 500] [--model FILE] [--folder .]  one call of test.py, every 50th faulty
    python -m benchmarks.load users [--folder .]                                 each script twice at the same time

Everything is written to a temporary folder in --folder, which is removed. Prints Markdown tables: see
benchmarks/README.md. Exit code 0 if every good case is done, every faulty one is named, and nothing is damaged.
"""

import argparse
import csv
import gzip
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.sampling import print_stretches, run_sampled, stretches_of
from benchmarks.scripts import prepare, run
from utils.errors import InputError, run_script
from utils.exported_model import read_best
from utils.phantom.retouch_like import generate_phantom
from utils.tasks import overrides
from utils.volumes.mhd import volume_files, write_volume

# The challenge's training set: vendor, rows, slices, cases. Which Topcon volumes have 64 slices is not published.
CHALLENGE_SET = [("Cirrus", 1024, 128, 24), ("Spectralis", 496, 49, 24), ("Topcon", 885, 128, 12)]
CHALLENGE_SET += [("Topcon", 650, 128, 8), ("Topcon", 650, 64, 2)]
FAULTY_EVERY = 50
REPEATED = 24  # the last scans are the first ones again, and must get the same labels
TIMES = ("seconds", "patches_per_s")  # columns of log.csv that no two runs share
BUSY = "another process is writing there"
TRAINING = {"BASE_FILTERS": 2, "BATCH_SIZE": 4, "STEPS_PER_EPOCH": 4, "EPOCH": 2, "ADVERSARIAL_EPOCH": 2}
TRAINING |= {"VALIDATION_B_SCANS": 3}


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=("prepare", "segment", "users"))
    parser.add_argument("--workers", type=int, default=0, help="WORKERS of the script")
    parser.add_argument("--slices", type=int, help="of each volume to prepare, at most (default: the vendor's)")
    parser.add_argument("--scans", type=int, default=500, help="to segment, at least 50")
    parser.add_argument("--model", default="weights/oct_fluid.keras", help="to segment them with")
    parser.add_argument("--folder", default=".", help="on the disk to use")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        part = {"prepare": prepare_challenge_set, "segment": segment_many, "users": two_users}[arguments.part]
        complaints = part(Path(folder).resolve(), arguments)
    if complaints:
        raise InputError(*complaints)


# ---- Preparation ---------------------------------------------------------------------------------------------------
def prepare_challenge_set(folder, arguments):
    """Write the set, prepare it, print memory and time over its cases; returns complaints."""
    write_challenge_set(folder / "data", arguments.slices)
    settings = {"DATA_ROOT": folder / "data", "OUTPUT_ROOT": folder / "output", "WORKERS": arguments.workers}
    code, errors, samples = run_sampled("prepare_data.py", *overrides(settings))
    if code:
        return [f"prepare_data.py: exit code {code}: {errors[-500:]}"]
    kinds = {f"{vendor}_{name}": kind for vendor, name, kind in challenge_cases()}
    preprocessed = folder / "output" / "pre_processed"
    finished = {path: kinds[path.stem] for path in (preprocessed / "finished").iterdir()}
    checking = samples[samples[:, 0] < (preprocessed / "checked.json").stat().st_mtime]
    print("\n| prepare_data.py | s | CPU s | peak MiB |\n|---|---|---|---|")
    for name, part in (("checks", checking), ("in all", samples)):
        (start, _, _), (end, _, cpu_seconds) = part[[0, -1]]
        print(f"| {name} | {end - start:.0f} | {cpu_seconds:.0f} | {part[:, 1].max():.0f} |")
    print_stretches(stretches_of(finished, samples))
    return [] if len(finished) == len(kinds) else [f"{len(finished)} cases prepared, not {len(kinds)}"]


def challenge_cases():
    """Yield vendor, name and kind (vendor, rows, slices) of the cases of the challenge's training set."""
    numbers = itertools.count(1)
    for vendor, rows, slices, cases in CHALLENGE_SET:
        for _ in range(cases):
            yield vendor, f"TRAIN{next(numbers):03d}", (vendor, rows, slices)


def write_challenge_set(folder, most_slices=None):
    """Write every case of the challenge's set in its size; raises `InputError` where the disk is too small.

    Volumes of one kind are one phantom, whose B-scans and columns begin elsewhere in each case: no two have the same
    voxels, and generating 6,936 B-scans would take longer than preparing them.
    """
    cases = list(challenge_cases())
    size = sum(2 * 512 * rows * slices * (2 + (vendor == "Spectralis")) for vendor, _, (_, rows, slices) in cases)
    folder.mkdir()
    if shutil.disk_usage(folder).free < size and most_slices is None:
        raise InputError(f"{folder}: {size / 1e9:.0f} GB are needed; name a --folder on a larger disk")
    for kind, of_kind in itertools.groupby(cases, key=lambda case: case[2]):
        vendor, rows, slices = kind
        voxels, reference, spacing_mm = generate_phantom(vendor, rows, min(slices, most_slices or slices), seed=slices)
        for number, (_, name, _) in enumerate(of_kind):
            case = folder / f"RETOUCH-TrainingSet-{vendor}" / name
            for file, volume in (("reference", reference), ("oct", voxels)):
                rolled = np.roll(volume, (number, 20 * number), axis=(0, 2))
                write_volume(case / f"{file}.mhd", rolled, spacing_mm)


# ---- Segmentation --------------------------------------------------------------------------------------------------
def segment_many(folder, arguments):
    """Segment many scans, some of them faulty, in one call of test.py; returns complaints."""
    scans, output = folder / "scans", folder / "segmented"
    names, faulty = write_scans(scans, arguments.scans)
    settings = {"WORKERS": arguments.workers, "OUTPUT_ROOT": folder / "none"}
    options = ("--output", output, "--model", arguments.model, *overrides(settings))
    code, errors, samples = run_sampled("test.py", scans, *options)
    records = {path: path.parent.name.partition("_")[0] for path in output.glob("*/scan.json")}
    lines = [line for line in errors.replace("\r", "\n").splitlines() if "test.py: error: " in line]
    print(f"\n{len(records)} of {len(names)} segmented, at most {samples[:, 1].max():.0f} MiB")
    print_stretches(stretches_of(records, samples))
    if code != 2:  # it came to an early end, or missed every fault
        return [f"test.py: exit code {code}, not 2: {errors[-500:]}"]
    print("\n| fault | what test.py says |\n|---|---|")
    complaints = []
    for name, fault in faulty.items():
        about = [line for line in lines if f"{scans / name}." in line]
        print(f"| {fault} | {' / '.join(about).replace(f'test.py: error: {scans}/', '')} |")
        complaints += [f"{name}: {len(about)} lines about it"] if len(about) != 1 else []
    complaints += [f"{len(lines)} lines of errors, not {len(faulty)}"] if len(lines) != len(faulty) else []
    complaints += ["a traceback"] if "Traceback" in errors else []
    vendors = {name: name.partition("_")[2] for name in names}
    missing = [name for name in names if not (output / f"{vendors[name]}_{name}.mhd").exists()]
    complaints += [f"{name}: not segmented" for name in missing if name not in faulty]
    for first, last in zip(names[:REPEATED], names[-REPEATED:], strict=True):
        labels = [output / f"{vendors[name]}_{name}.raw" for name in (first, last)]
        if all(path.exists() for path in labels) and labels[0].read_bytes() != labels[1].read_bytes():
            complaints.append(f"{last}: other labels than {first}, which has the same voxels")
    return complaints


def write_scans(folder, count):
    """Write `count` scans of one or two B-scans of three vendors; returns their names, and {faulty name: fault}.

    All differ in size and content (stretches of 30 phantoms, mirrored or not) but the last `REPEATED`, which are the
    first ones again.
    """
    vendors = (("Cirrus", 1024), ("Spectralis", 496), ("Topcon", 650))
    phantoms = [generate_phantom(*vendors[seed % 3], slices=2, seed=seed) for seed in range(30)]
    names, faulty, faults = [], {}, itertools.cycle(FAULTS.items())
    for number in range(count):
        seed = number if number < count - REPEATED else number - (count - REPEATED)
        voxels, _, spacing_mm = phantoms[seed % len(phantoms)]
        rng = np.random.default_rng(seed)
        first, width = rng.integers(0, 390), rng.integers(60, 120)
        voxels = voxels[: rng.integers(1, 3), :, first : first + width][:, :, :: rng.choice([-1, 1])]
        names.append(f"{number:04d}_{vendors[seed % 3][0]}")
        path = folder / f"{names[-1]}.mhd"
        write_volume(path, voxels, spacing_mm)
        if number % FAULTY_EVERY == FAULTY_EVERY // 2:
            faulty[names[-1]], spoil = next(faults)
            spoil(path)
    return names, faulty


def _cut(path):
    raw = path.with_suffix(".raw")
    os.truncate(raw, raw.stat().st_size // 2)


def _header(pattern, replacement):
    """What replaces a line in the header of a scan."""

    def change(path):
        changed, count = re.subn(pattern, replacement, path.read_text("utf-8"))
        if count != 1:
            raise ValueError(f"{path}: {pattern} occurs {count} times")
        path.write_text(changed, "utf-8")

    return change


def _cut_nifti(path):
    import SimpleITK

    compressed = path.with_suffix(".nii.gz")
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(compressed))
    os.truncate(compressed, compressed.stat().st_size // 2)
    for file in volume_files(path):
        file.unlink()


def _no_gzip(path):
    for file in volume_files(path):
        file.unlink()
    path.with_suffix(".nii.gz").write_bytes(gzip.compress(b"no scan"))


FAULTS = {
    "voxels cut off in the middle": _cut,
    "header of more B-scans than there are": _header(r"(DimSize = \d+ \d+) \d+", r"\1 9"),
    "no file of voxels": lambda path: path.with_suffix(".raw").unlink(),
    "complex numbers": _header(r"MET_\w+", "MET_FLOAT_COMPLEX"),
    "header of terabytes": _header(r"(DimSize =) .*", r"\1 90000 90000 900"),
    "header is a poem": lambda path: path.write_text("Rose, oh reiner Widerspruch", "utf-8"),
    "empty header": lambda path: path.write_bytes(b""),
    "voxels in a folder above": _header(r"(ElementDataFile =) ", r"\1 ../"),
    "compressed NIfTI, cut": _cut_nifti,
    "compressed NIfTI that holds something else": _no_gzip,
}


# ---- Two users -----------------------------------------------------------------------------------------------------
def two_users(folder, _):
    """Start each script twice at the same time; returns complaints."""
    settings = prepare(folder, cases=12, slices=2, seed=4, **TRAINING)
    alone, complaints = settings["OUTPUT_ROOT"], []

    def at_once(script, *arguments, **changes):
        complaints.extend(one_gives_way(script, *arguments, *overrides({**settings, **changes})))

    shared = folder / "shared"
    at_once("prepare_data.py", OUTPUT_ROOT=shared)
    complaints += differing_files(alone, shared)
    for script in ("model_training.py", "adversarial_training.py"):
        step = script.partition("_")[0].replace("model", "segmentation")
        at_once(script, RUN_NAME="both")
        commands = [[script, *overrides({**settings, "RUN_NAME": name})] for name in ("first", "second")]
        results = at_the_same_time(*commands)
        print(f"{script}, two RUN_NAMEs: exit codes {[code for code, _ in results]}")
        complaints += [f"{script}, two RUN_NAMEs: {errors}" for code, errors in results if code]
        logs = [read_log(alone / "runs" / name / step) for name in ("both", "first", "second")]
        complaints += [] if logs[0] == logs[1] == logs[2] else [f"{script}: the logs of three equal runs differ"]
    for name in ("both", "first"):
        read_best(alone / "runs" / name / "adversarial" / "best.keras")  # raises where it is damaged
    run("evaluate.py", **settings, RUN_NAME="first")
    at_once("evaluate.py", RUN_NAME="both")
    # The last digits of probabilities differ from run to run, and with them average_precision.
    volumes = [pd.read_csv(alone / "runs" / name / "evaluation" / "volumes.csv") for name in ("first", "both")]
    numbers = [table.select_dtypes("number") for table in volumes]
    same = len(numbers[0]) == len(numbers[1]) and np.allclose(*numbers, rtol=1e-5, equal_nan=True)
    complaints += [] if same else ["evaluate.py: volumes.csv differs"]
    scans = sorted(settings["DATA_ROOT"].glob("*/*/oct.mhd"))
    run("test.py", *scans, "--output", folder / "segmented", **settings, RUN_NAME="first")
    at_once("test.py", *scans, "--output", folder / "both", RUN_NAME="first")
    return complaints + differing_files(folder / "segmented", folder / "both", "*.raw")


def one_gives_way(script, *arguments):
    """Run a command twice at the same time; complaints unless one ends well and one in a line that says why not."""
    results = sorted(at_the_same_time(*[[script, *arguments]] * 2))
    lines = [line for line in results[1][1].splitlines() if "error: " in line]
    print(f"{script}, the same twice: exit codes {[code for code, _ in results]}, {lines}")
    if [code for code, _ in results] != [0, 2] or len(lines) != 1 or BUSY not in lines[0]:
        return [f"{script}, the same twice: {results}"]
    return []


def at_the_same_time(*commands):
    """Exit code and errors of each of `commands`, a script and its arguments, that run beside each other."""
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, *map(str, command)], **pipes) for command in commands]
    errors = [process.communicate()[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, errors, strict=True)]


def differing_files(first, second, pattern="**/*"):
    """A complaint for each file that is in one of two folders alone, or not the same in both."""
    files = [
        {path.relative_to(folder): path for path in folder.glob(pattern) if path.is_file()}
        for folder in (first, second)
    ]
    names = sorted(files[0].keys() | files[1].keys())
    same = {
        name for name in files[0].keys() & files[1].keys() if files[0][name].read_bytes() == files[1][name].read_bytes()
    }
    return [f"{name}: not the same in {first} and {second}" for name in names if name not in same]


def read_log(folder):
    """The rows of a run's log.csv without its times."""
    with open(folder / "log.csv", newline="", encoding="utf-8") as file:
        return [{name: row[name] for name in row if name not in TIMES} for row in csv.DictReader(file)]


if __name__ == "__main__":
    run_script(main)
