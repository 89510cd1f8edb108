"""How much training on one's own scans the model in the box saves: from random weights, and from its weights.

    python -m benchmarks.head_start DIR [--weights weights/phantom.keras] [--epochs 8] [--steps 60] [--folder .]

DIR holds the real cases of `benchmarks.real_transfer`. Its untouched patients are held out here. Every fifth of the
visible patients validates. Both runs are model_training.py's, with the settings of the model in the box. Prints Dice on
the validating patients by minutes, then the scores of both runs' best epochs on the untouched patients, as
`benchmarks.real_transfer` does.
"""

import argparse
import re
import sys
import tempfile
import zlib
from pathlib import Path

import pandas as pd

from benchmarks.real_transfer import PATIENTS, part_of
from benchmarks.scripts import run
from utils.preparation.cases import find_cases
from utils.tasks import BOX_SETTINGS, BOX_STAGES


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the cases")
    parser.add_argument("--weights", type=Path, default=Path("weights/phantom.keras"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60, help="steps an epoch")
    parser.add_argument("--folder", type=Path, default=Path(), help="where to write for the time being")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        compare(arguments, Path(folder))


def compare(arguments, output):
    settings = {**BOX_SETTINGS, "DATA_ROOT": arguments.data, "OUTPUT_ROOT": output, "PATIENT_PATTERN": PATIENTS}
    settings |= {"ADAM_LR": BOX_STAGES[0][1], "EPOCH": arguments.epochs, "STEPS_PER_EPOCH": arguments.steps}
    write_split(output, arguments.data)
    run("prepare_data.py", **settings)
    curves = {}
    for name, weights in (("noise", None), ("phantoms", arguments.weights)):
        run("model_training.py", **{**settings, "RUN_NAME": name, "INIT_WEIGHTS": weights})
        log = pd.read_csv(output / "runs" / name / "segmentation" / "log.csv")
        curves[name] = pd.DataFrame({"minutes": log["seconds"].cumsum() / 60, "dice": log["val_dice"]})
    print("| epoch | " + " | ".join(f"minutes, from {name} | Dice" for name in curves) + " |")
    print("|---" * (1 + 2 * len(curves)) + "|")
    for epoch in range(arguments.epochs):
        rows = (curve.iloc[epoch] for curve in curves.values())
        print(f"| {epoch + 1} | " + " | ".join(f"{row.minutes:.1f} | {row.dice:.3f}" for row in rows) + " |")
    models = {"phantoms alone": arguments.weights}
    models |= {f"from {name}": output / "runs" / name / "segmentation" / "best.keras" for name in curves}
    for name, model in models.items():
        scores = run("-m benchmarks.real_transfer", model, arguments.data, "--part", "untouched")
        print(f"\n{name}: {scores.partition(': ')[2]}")
        sys.stdout.flush()


def write_split(output, data):
    """Write prepare_data.py's splits: untouched patients are held out, a fifth of the others choose the epoch."""
    rows = {"train": [], "val": [], "test": []}
    for case in find_cases(data):
        patient = re.match(PATIENTS, case.name).group(1)
        chosen = zlib.crc32(patient.encode()) // 3 % 5 == 0
        part = "test" if part_of(patient) == "untouched" else "val" if chosen else "train"
        rows[part].append({"vendor": case.vendor, "image_name": case.name})
    for part, of_part in rows.items():
        pd.DataFrame(of_part).to_csv(output / f"{part}_data.csv", index=False)


if __name__ == "__main__":
    main()
