"""Does training on corrected scans help? Synthetic scans of one vendor, from the model in the box on.

    python -m benchmarks.corrections [--vendor Cirrus] [--corrected 6] [--others 6] [--slices 6] [--seed 5]
        [--folder FOLDER] [--picture docs/correct.jpg]

1. Segment the scans with the model in the box.
2. Save the phantoms' own labels beside test.py's, as a reader would who corrects all that is wrong.
3. Import them, prepare them, and train on for few steps: the commands of docs/correct.md.
4. Segment other scans of the same kind with both models, and score both.

Prints a table, and writes a picture of one of the other scans: reader, model in the box, the model trained on.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.scripts import run
from utils.evaluation.pairs import read_labels
from utils.labels import FLUIDS
from utils.plots import overlay
from utils.preparation.preprocessing import to_8_bit
from utils.segmentation.label_files import write_nifti
from utils.volumes.mhd import read_header, read_volume

BOX = Path("weights", "oct_fluid.keras")
PATIENTS = {"PATIENT_PATTERN": "^(.+?)__"}
GO_ON = {"INIT_WEIGHTS": BOX, "ENCODER_WEIGHTS": None, "ADAM_LR": 3e-4, "STEPS_PER_EPOCH": 60, "EPOCH": 3}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vendor", default="Cirrus")
    parser.add_argument("--corrected", type=int, default=6, help="scans that are corrected")
    parser.add_argument("--others", type=int, default=6, help="scans that both models are judged on")
    parser.add_argument("--slices", type=int, default=6)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where all files stay; default: a temporary folder")
    parser.add_argument("--picture", type=Path, help="file to draw one of the other scans into")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        draw_scans(folder, arguments)
        before, after = folder / "segmented", folder / "output" / "runs" / "corrected" / "segmentation" / "best.keras"
        run("test.py", folder / "scans", "--output", before, "--model", BOX)
        correct(folder)
        started = time.monotonic()
        run("-m utils.tools.import_cases", "corrected", before, "--output", folder / "data")
        roots = {"DATA_ROOT": folder / "data", "OUTPUT_ROOT": folder / "output", **PATIENTS}
        run("prepare_data.py", "--recipe", "strong", **roots)
        print(run("model_training.py", "--recipe", "strong", **roots, **GO_ON, RUN_NAME="corrected"))
        minutes = (time.monotonic() - started) / 60
        rows = {}
        for name, model in (("box", BOX), ("corrected", after)):
            predictions, scored = folder / f"others_{name}", folder / f"scored_{name}"
            run("test.py", folder / "others", "--output", predictions, "--model", model)
            run("evaluate.py", "--predictions", predictions, "--reference", folder / "others", "--output", scored)
            rows[name] = dice(scored)
        print(f"import, preparation and training: {minutes:.1f} minutes\n")
        print_table(rows)
        if arguments.picture:
            draw(folder, arguments.picture)


def draw_scans(folder, arguments):
    """Write the phantoms, and put the vendor's into "scans" and "others"."""
    number = 3 * (arguments.corrected + arguments.others)  # the vendors come in turn
    phantoms = folder / "phantoms"
    run(
        "-m utils.phantom",
        "--output",
        phantoms,
        "--cases",
        number,
        "--slices",
        arguments.slices,
        "--seed",
        arguments.seed,
    )
    cases = sorted((phantoms / f"RETOUCH-TrainingSet-{arguments.vendor}").iterdir())
    for index, case in enumerate(cases):
        kind = "scans" if index < arguments.corrected else "others"
        shutil.copytree(case, folder / kind / arguments.vendor / case.name, dirs_exist_ok=True)


def correct(folder):
    """Save each scan's own labels beside those that test.py wrote."""
    for path in (folder / "scans").glob("*/*/reference.mhd"):
        header = read_header(path)
        name = f"{path.parents[1].name}_{path.parent.name}"
        target = folder / "segmented" / f"{name}_corrected.nii.gz"
        write_nifti(target, read_labels(path), header.spacing_mm, header.placement)


def dice(scored):
    """{fluid: (mean Dice of the cases that hold it, their number)} of an evaluation's folder."""
    table = pd.read_csv(scored / "volumes.csv")
    present = table[table.reference_mm3 > 0]
    return {fluid: (present.dice[present.fluid == fluid].mean(), sum(present.fluid == fluid)) for fluid in FLUIDS}


def print_table(rows):
    """A row for each model."""
    print(f"| model | {' | '.join(FLUIDS)} |\n|---|{'---|' * len(FLUIDS)}")
    for name, of_fluids in rows.items():
        print(f"| {name} | {' | '.join(f'{mean:.3f} ({n})' for mean, n in of_fluids.values())} |")


def draw(folder, picture):
    """The B-scan of the other scans on which the models differ most: reader, model in the box, trained on."""
    found = []
    for path in sorted((folder / "others").glob("*/*/oct.mhd")):
        name = f"{path.parents[1].name}_{path.parent.name}.mhd"
        files = [path.with_name("reference.mhd"), folder / "others_box" / name, folder / "others_corrected" / name]
        labels = np.stack([read_labels(file) for file in files])
        differ = (labels[1] != labels[2]).sum(axis=(1, 2))
        index = int(differ.argmax())
        found.append((differ[index], read_volume(path)[0][index : index + 1], labels[:, index]))
    _, voxels, labels = max(found, key=lambda one: one[0])
    panels = [overlay(to_8_bit(voxels)[0], of_model) for of_model in labels]
    rows = np.flatnonzero(labels.any(axis=(0, 2)))
    middle, height = int(rows.mean()), panels[0].shape[1]  # square parts around the fluid
    top = max(0, min(middle - height // 2, panels[0].shape[0] - height))
    image = Image.fromarray(np.concatenate([panel[top : top + height] for panel in panels], axis=1))
    image.resize((1200, round(1200 * image.height / image.width))).save(picture, quality=85)


if __name__ == "__main__":
    main()
