"""Real B-scans as the middle of three, between two other B-scans of their patients.

    python -m benchmarks.real_stacks DIR [DIR ...] --output STACKS [--lone]

writes a case of three B-scans for each case below DIR whose patient has several, in the same layout, for
`benchmarks.real_transfer` to judge by or, as DATA_ROOT, to train on; with --lone the others as they are. Neighbours are
the patient's case before and after, by name, in a circle. They are cropped or padded with 0 to the middle's size, and
shifted so that their outer surface's median row is the middle's. Nobody judges them: other.mhd calls them 2.
"""

import argparse
from itertools import groupby
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
    cases = sorted((case for case in find_real_cases(arguments.data) if case.reference_path), key=lambda case: case.name)
    written = 0
    for _, of_patient in groupby(cases, lambda case: patient_of(case.name, PATIENTS)):
        of_patient = list(of_patient)
        for number, case in enumerate(of_patient):
            if len(of_patient) == 1 and not arguments.lone:
                continue
            near = [of_patient[number - 1], of_patient[(number + 1) % len(of_patient)]] if len(of_patient) > 1 else []
            write_stack(arguments.output / (case.vendor or "") / case.name, case, near)
            written += 1
    print(f"{arguments.output}: {written} cases")


def write_stack(folder, case, near):
    """Write the B-scan of `case`, between those of the two cases `near` (or of none), as a case in `folder`."""
    (grey,), spacing_mm = read_volume(case.oct_path)
    volumes = {name: read_volume(path)[0] for name, path in (("reference", case.reference_path),)}
    other_path = case.reference_path.with_name("other.mhd")
    volumes["other"] = read_volume(other_path)[0] if other_path.exists() else np.zeros_like(volumes["reference"])
    if near:
        before, after = (moved(read_volume(one.oct_path)[0][0], grey, spacing_mm[1]) for one in near)
        stack = np.stack([before, grey, after])
        unknown = {"reference": 0, "other": NOT_JUDGED[-1]}
        volumes = {
            name: np.stack([np.full_like(middle, unknown[name]), middle, np.full_like(middle, unknown[name])])
            for name, (middle,) in volumes.items()
        }
    else:
        stack = grey[np.newaxis]
    for name, voxels in {**volumes, "oct": stack}.items():
        write_volume(folder / f"{name}.mhd", voxels, spacing_mm)


def moved(grey, middle, axial_spacing_mm):
    """`grey` (rows, columns) on the grid of `middle`, its retina as high as there; 0 where nothing is."""
    down = outer_row(middle, axial_spacing_mm) - outer_row(grey, axial_spacing_mm)
    rows = np.arange(len(middle)) - down
    there = (rows >= 0) & (rows < len(grey))
    columns = min(grey.shape[1], middle.shape[1])
    onto = np.zeros_like(middle)
    onto[there, :columns] = grey[rows[there], :columns]
    return onto


def outer_row(grey, axial_spacing_mm):
    """Median row of the retina's outer surface in an exported B-scan."""
    return round(np.median(retinal_surfaces(to_8_bit(grey), axial_spacing_mm).outer))


if __name__ == "__main__":
    run_script(main)
