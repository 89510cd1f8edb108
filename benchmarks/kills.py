"""Kill a training script at random moments, let it go on each time, and compare its end with an undisturbed run's.

    python -m benchmarks.kills [--script model_training.py] [--kills 20] [--seed 0] [--workers 0]

Makes a small synthetic set in a temporary folder and trains a narrow network on it. Exit code 0 where every array of
the last state (weights, optimizer slots, random states) is identical, and every logged value but times as good as.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.scripts import prepare, run
from utils.tasks import overrides

SETTINGS = {"BASE_FILTERS": 2, "BATCH_SIZE": 4, "STEPS_PER_EPOCH": 12, "EPOCH": 3, "ADVERSARIAL_EPOCH": 3}
SETTINGS |= {"VALIDATION_B_SCANS": 3, "SAVE_MINUTES": 0.005}
STEPS = {"model_training.py": "segmentation", "adversarial_training.py": "adversarial"}
TIMES = {"seconds", "patches_per_s"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--script", choices=STEPS, default="model_training.py")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        settings = prepare(folder, cases=12, slices=2, seed=4, **SETTINGS, WORKERS=arguments.workers)
        sys.exit(compare(arguments, folder / "output" / "runs", settings))


def compare(arguments, runs, settings):
    """Train without and with kills; returns the exit code."""
    if arguments.script == "adversarial_training.py":
        for name in ("undisturbed", "killed"):
            run("model_training.py", **{**settings, "RUN_NAME": name, "EPOCH": 1})
    started = time.monotonic()
    run(arguments.script, **settings, RUN_NAME="undisturbed")
    seconds = time.monotonic() - started
    command = [arguments.script, *overrides({**settings, "RUN_NAME": "killed"})]
    rng = random.Random(arguments.seed)
    state = runs / "killed" / STEPS[arguments.script]
    for number in range(1, arguments.kills + 1):
        delay = rng.uniform(0, seconds)
        killed = run_and_kill(command, delay)
        newest = max((path.stem for path in state.glob("last-*.json")), default="nothing")
        print(f"{number}: {'killed' if killed else 'had finished'} after {delay:.1f} s with {newest} saved", flush=True)
        if not killed:  # begin anew: kills of a finished run would show nothing
            if difference(runs, arguments.script):
                break
            for path in sorted(state.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
    run(*command)
    different = difference(runs, arguments.script)
    print(different or f"identical after {arguments.kills} kills")
    return int(different is not None)


def difference(runs, script):
    """In words how the two runs' ends differ, or None."""
    ends = []
    for name in ("undisturbed", "killed"):
        folder = runs / name / STEPS[script]
        newest = max(folder.glob("last-*.npz"))
        with np.load(newest) as stored:
            arrays = [stored[key] for key in stored.files]
        with open(folder / "log.csv", newline="") as file:
            log = [{key: row[key] for key in row if key not in TIMES} for row in csv.DictReader(file)]
        ends.append((newest.name, arrays, log))
    (name, arrays, log), (killed_name, killed_arrays, killed_log) = ends
    if name != killed_name:
        return f"{killed_name} instead of {name}"
    pairs = enumerate(zip(arrays, killed_arrays, strict=True))
    different = [index for index, pair in pairs if not np.array_equal(*pair)]
    if different:
        return f"arrays {different} of {len(arrays)} differ"
    for row, killed_row in zip(log, killed_log, strict=True):
        for key in row:
            # Means over an epoch are put together from those over its parts, in float32.
            if row[key] != killed_row[key] and not np.isclose(float(row[key]), float(killed_row[key]), rtol=1e-5):
                return f"log.csv, epoch {row['epoch']}: {key} is {killed_row[key]}, not {row[key]}"
    return None


def run_and_kill(command, delay):
    """Start a Python command and kill it with its children after `delay` seconds; whether it was still running."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


if __name__ == "__main__":
    main()
