"""What a network learns from readers who did not outline every fluid, on synthetic scans.

    python -m benchmarks.partly_outlined OUT [--seeds 0 1] [--cases 48] [--slices 6] [--set NAME=VALUE ...]

For every seed, phantoms of three vendors are split once. The same network is trained on

- all: everything is outlined.
- one root: IRF alone is outlined in every other training and validation case, SRF and PED in those between, as
  outlined.csv says.
- mixed: the same as two prepared data sets, the second one in MIXED_ROOTS.
- background: the same references, taken as if everything were outlined.

All are judged by the fully outlined held-out cases. Prints each fluid's Dice, pooled over their voxels, and the mean
over the seeds. What OUT holds already is not computed again.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.scripts import prepare, run, settings_of
from utils.evaluation.statistics import read_volumes
from utils.labels import FLUIDS
from utils.preparation.outlined import as_judged, write_outlined
from utils.volumes.mhd import read_volume, write_volume

HALVES = (("IRF",), ("SRF", "PED"))
PARTS = ("train", "val", "test")
# As the demo's, with a schedule, since the last steps decide.
SETTINGS = {"BASE_FILTERS": 16, "ADAM_LR": 1e-3, "LR_SCHEDULE": "cosine", "WARM_UP_STEPS": 10, "STEPS_PER_EPOCH": 60}
SETTINGS |= {"EPOCH": 8, "VALIDATION_B_SCANS": 24, "WORKERS": 1, "MATCH_INTENSITIES": False}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="SEED")
    parser.add_argument("--cases", type=int, default=48)
    parser.add_argument("--slices", type=int, default=6)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        settings = {**SETTINGS, "SEED": seed, **settings_of(arguments.settings)}
        rows += of_seed(arguments.output / f"seed{seed}", arguments.cases, arguments.slices, settings)
    table = pd.DataFrame(rows).pivot_table(index="trained on", columns="fluid", values="dice", sort=False)
    print(table.assign(mean=table.mean(axis=1)).round(3).to_string())


def of_seed(folder, cases, slices, settings):
    """Rows {trained on, fluid, dice} of all four trainings in `folder`."""
    settings = settings | {"RUN_NAME": "trained", "DATA_ROOT": folder / "data", "OUTPUT_ROOT": folder / "output"}
    if not (folder / "output" / "test_data.csv").exists():
        prepare(folder, cases, slices, settings["SEED"], **settings)
    rows = []
    for name in ("all", "one root", "mixed", "background"):
        volumes = folder / f"{name}.csv"
        if not volumes.exists():
            of_this = settings if name == "all" else settings | prepared(folder, name, settings)
            run("model_training.py", **of_this)
            run("evaluate.py", **of_this)
            shutil.copy(of_this["OUTPUT_ROOT"] / "runs" / "trained" / "evaluation" / "volumes.csv", volumes)
        of_cases = read_volumes(volumes)
        print(f"seed {settings['SEED']}, {name}: scored {of_cases.case.nunique()} cases", flush=True)
        for fluid in FLUIDS:
            of_fluid = of_cases[of_cases.fluid == fluid]
            both = of_fluid.volume_mm3 + of_fluid.reference_mm3
            overlap = (of_fluid.dice * both / 2).sum()
            rows.append(
                {"seed": settings["SEED"], "trained on": name, "fluid": fluid, "dice": 2 * overlap / both.sum()}
            )
    return rows


def prepared(folder, name, settings):
    """The roots for the training of this `name`, prepared in `folder` from the fully outlined data there."""
    splits = {part: pd.read_csv(folder / "output" / f"{part}_data.csv", dtype=str) for part in PARTS}
    halves = {}  # of every vendor's training and validation cases in turn; the held-out cases stay as they are
    for part in ("train", "val"):
        for number, root in enumerate(dict.fromkeys(splits[part].root)):
            halves[root] = number % 2
    if name == "mixed":
        others = write_root(folder / name / "other", 1, splits, halves, settings)
        run("prepare_data.py", **settings | others)
        own = write_root(folder / name / "own", 0, splits, halves, settings)
        own |= {"MIXED_ROOTS": {str(others["OUTPUT_ROOT"]): 0.5}}
    else:
        own = write_root(folder / name, None, splits, halves, settings, states=name == "one root")
    run("prepare_data.py", **settings | own)
    return own


def write_root(folder, half, splits, halves, settings, states=True):
    """A DATA_ROOT with the cases of one `half` (None: of both) and the held-out ones, and their split.

    Their references lack what was not outlined; outlined.csv `states` it. Returns the settings with both roots.
    """
    roots, stated = {"DATA_ROOT": folder / "data", "OUTPUT_ROOT": folder / "output"}, {}
    for part, table in splits.items():
        kept = table[[half is None or halves.get(root, half) == half for root in table.root]]
        (folder / "output").mkdir(parents=True, exist_ok=True)
        kept.to_csv(folder / "output" / f"{part}_data.csv", index=False)
        for root in dict.fromkeys(kept.root):
            source, target = settings["DATA_ROOT"] / root, folder / "data" / root
            reference, spacing_mm = read_volume(source / "reference.mhd")
            if root in halves:
                stated[root] = HALVES[halves[root]]
                reference = as_judged(reference, stated[root])
            write_volume(target / "reference.mhd", reference.astype(np.uint8), spacing_mm)
            write_volume(target / "oct.mhd", *read_volume(source / "oct.mhd"))
    if states:
        write_outlined(folder / "data", stated)
    return roots


if __name__ == "__main__":
    main()
