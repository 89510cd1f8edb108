"""Real B-scans as the middle of three, between two other B-scans of their patients.

    python -m benchmarks.real_stacks DIR [DIR ...] --output STACKS [--lone]

writes a case of three B-scans for each case below DIR whose patient has several, in the same layout, for
`benchmarks.real_transfer` to judge by or, as DATA_ROOT, to train on; with --lone the others as they are. Neighbours are
the patient's case before and after, by name, in a circle. They are cropped or padded with 0 to the middle's size, and
shifted so that their outer surface's median row is the middle's. Nobody judges them: other.mhd calls them 2.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.real_folds import NOT_JUDGED, PATIENTS, find_real_cases
from utils.errors import run_script
from utils.preparation.preprocessing import to_8_bit
from utils.preparation.splits import patient_of
from utils.segmentation.surfaces import retinal_surfaces
from utils.volumes.mhd import read_volume, write_volume


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="+", metavar="DIR", help="folders of the cases")
    parser.add_argument("--output", type=Path, required=True, metavar="STACKS")
    parser.add_argument("--lone", action="store_true", help="write cases without neighbours, too, as they are")
    arguments = parser.parse_args(argv)
    by_patient = {}
    for case in sorted(find_real_cases(arguments.data), key=lambda case: case.name):
        if case.reference_path:
            by_patient.setdefault(patient_of(case.name, PATIENTS), []).append(case)
    for of_patient in by_patient.values():
        for number, case in enumerate(of_patient):
            near = [of_patient[number - 1], of_patient[(number + 1) % len(of_patient)]] if len(of_patient) > 1 else []
            if near or arguments.lone:
                write_stack(arguments.output / (case.vendor or "") / case.name, case, near)


def write_stack(folder, case, near):
    """Write the B-scan of `case`, between those of the two cases `near` (or of none), as a case in `folder`."""
    (grey,), spacing_mm = read_volume(case.oct_path)
    (reference,), _ = read_volume(case.reference_path)
    other_path = case.reference_path.with_name("other.mhd")
    other = read_volume(other_path)[0][0] if other_path.exists() else np.zeros_like(reference)
    around = [moved(read_volume(one.oct_path)[0][0], grey, spacing_mm[:2]) for one in near]
    unjudged = len(around) // 2 * [np.full_like(other, NOT_JUDGED[-1])]
    volumes = {
        "oct": [*around[:1], grey, *around[1:]],
        "reference": [np.zeros_like(reference), reference, np.zeros_like(reference)] if near else [reference],
        "other": [*unjudged, other, *unjudged],
    }
    for name, slices in volumes.items():
        write_volume(folder / f"{name}.mhd", np.stack(slices), spacing_mm)


def moved(grey, middle, spacing_mm):
    """`grey` (rows, columns) on the grid of `middle`, its retina as high as there; 0 where nothing is."""
    down = outer_row(middle, spacing_mm) - outer_row(grey, spacing_mm)
    rows = np.arange(len(middle)) - down
    there = (rows >= 0) & (rows < len(grey))
    columns = min(grey.shape[1], middle.shape[1])
    onto = np.zeros_like(middle)
    onto[there, :columns] = grey[rows[there], :columns]
    return onto


def outer_row(grey, spacing_mm):
    """Median row of the retina's outer surface in an exported B-scan."""
    return round(np.median(retinal_surfaces(to_8_bit(grey), spacing_mm).outer))


if __name__ == "__main__":
    run_script(main)
