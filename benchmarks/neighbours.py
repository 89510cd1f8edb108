"""Whether a network gains by the neighbouring slices, by how far these are away, on synthetic stacks.

    python -m benchmarks.neighbours OUT [--recipe NAME] [--variant NAME SETTING=VALUE ...]... [--cases 48] [--slices 5]

draws `--cases` varied phantoms of each distance between B-scans, and trains on three quarters of all together, once for
each variant: by default "neighbours" and "alone" (NEIGHBOURS=False). Prints the Dice of each fluid in the held-out
cases of each distance, pooled over their voxels. What OUT holds already is not computed again.
"""

import argparse
from pathlib import Path
from unittest import mock

import pandas as pd

from benchmarks.scripts import run, settings_of
from utils.evaluation.statistics import read_volumes
from utils.phantom import ranges
from utils.phantom.varied import generate_varied
from utils.volumes.mhd import write_volume

DISTANCES_MM = (0.05, 0.12, 0.24)
VARIANTS = [["neighbours"], ["alone", "NEIGHBOURS=False"]]
# A narrow network of the paper, with a schedule, since the last steps decide.
SETTINGS = {"BASE_FILTERS": 16, "ADAM_LR": 1e-3, "LR_SCHEDULE": "cosine", "WARM_UP_STEPS": 10, "STEPS_PER_EPOCH": 60}
SETTINGS |= {"EPOCH": 8, "VALIDATION_B_SCANS": 24, "MATCH_INTENSITIES": False}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--recipe", help="instead of the paper's network")
    parser.add_argument("--variant", nargs="+", action="append", metavar=("NAME", "SETTING=VALUE"))
    parser.add_argument("--cases", type=int, default=48, help="of each distance")
    parser.add_argument("--slices", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings")
    arguments = parser.parse_args()
    roots = {"DATA_ROOT": arguments.output / "data", "OUTPUT_ROOT": arguments.output / "output"}
    for distance_mm in DISTANCES_MM:
        draw(roots["DATA_ROOT"] / "Spectralis", distance_mm, arguments.cases, arguments.slices)
    common = {**({} if arguments.recipe else SETTINGS), **settings_of(arguments.settings), **roots}
    recipe = ["--recipe", arguments.recipe] if arguments.recipe else []
    run("prepare_data.py", *recipe, "--skip-bad", **common)
    rows = []
    for name, *changes in arguments.variant or VARIANTS:
        settings = {**common, **settings_of(changes), "RUN_NAME": f"{arguments.recipe or 'paper'}_{name}"}
        volumes = roots["OUTPUT_ROOT"] / "runs" / settings["RUN_NAME"] / "evaluation" / "volumes.csv"
        if not volumes.exists():
            run("model_training.py", *recipe, **settings)
            run("evaluate.py", *recipe, **settings)
        of_cases = read_volumes(volumes)
        both = of_cases.volume_mm3 + of_cases.reference_mm3
        parts = of_cases.assign(overlap=of_cases.dice * both, both=both, distance=of_cases.case.str.partition("N")[0])
        sums = parts.groupby(["fluid", "distance"])[["overlap", "both"]].sum()
        rows.append((sums.overlap / sums.both).rename(name))
    print(pd.DataFrame(rows).round(3).to_string())


def draw(folder, distance_mm, cases, slices):
    """Write `cases` varied phantoms of `slices` B-scans `distance_mm` apart as cases in `folder`."""
    distance = ranges.Range(distance_mm, distance_mm, "as asked")
    for number in range(cases):
        case = folder / f"{distance_mm:.2f}N{number:03d}"
        if (case / "oct.mhd").exists():
            continue
        with mock.patch.dict(ranges.RANGES, slice_mm=distance):
            voxels, reference, spacing_mm = generate_varied(slices, number)
        write_volume(case / "reference.mhd", reference, spacing_mm)
        write_volume(case / "oct.mhd", voxels, spacing_mm)


if __name__ == "__main__":
    main()
