"""The region in which fluid is looked for: how much fluid it misses, and how large it is, by `BRIGHT_GREY`.

    python -m benchmarks.region DIR [DIR ...]

Each DIR holds cases in RETOUCH layout. The table has a row for each DIR and grey value:

- the share of each outlined fluid outside `utils.preparation.roi.prediction_region`;
- the region's area as a multiple of training's region of interest, for all B-scans and for those whose 99th percentile
  is at least 180.

Grey value 0 brightens nothing. Cirrus and Topcon are not matched to Spectralis, so that they stay dim.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from utils.labels import FLUIDS
from utils.preparation.cases import find_cases
from utils.preparation.preprocessing import preprocess_reference, preprocess_volume
from utils.preparation.roi import prediction_region, roi_mask
from utils.volumes.mhd import read_volume

GREY_VALUES = (0, 180, 190, 200, 210, 220, 230, 240)
WELL_EXPOSED = 180
GRID = {"axial_spacing_mm": 0.003872}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="+", help="folders of cases")
    print("| cases | B-scans | `BRIGHT_GREY` | IRF outside | SRF outside | PED outside | area | area, well exposed |")
    print("|---|---|---|---|---|---|---|---|")
    for folder in parser.parse_args().data:
        pixels = pd.DataFrame([row for case in find_cases(folder) for row in count_pixels(case)])
        n_b_scans = len(pixels) // len(GREY_VALUES)
        for bright_grey, of_value in pixels.groupby("bright_grey"):
            outside = [
                f"{of_value[f'{fluid} outside'].sum() / total:.1%}" if (total := of_value[fluid].sum()) else "–"
                for fluid in FLUIDS
            ]
            areas = [
                f"{rows['region'].sum() / rows['training'].sum():.2f}"
                for rows in (of_value, of_value[of_value["p99"] >= WELL_EXPOSED])
            ]
            print(f"| {folder.name} | {n_b_scans} | {bright_grey} | {' | '.join([*outside, *areas])} |", flush=True)


def count_pixels(case):
    """Yield a row of pixel counts for each B-scan of a case and grey value."""
    voxels, spacing_mm = read_volume(case.oct_path)
    volume = preprocess_volume(voxels, spacing_mm, case.vendor, **GRID)
    labels = np.zeros_like(volume)
    if case.reference_path is not None:
        labels = preprocess_reference(read_volume(case.reference_path)[0], spacing_mm, **GRID)
    for slice_, label in zip(volume, labels, strict=True):
        common = {"p99": np.percentile(slice_[slice_ > 0], 99), "training": roi_mask(slice_, label).sum()}
        for bright_grey in GREY_VALUES:
            region = prediction_region(slice_, bright_grey)
            row = {**common, "bright_grey": bright_grey, "region": region.sum()}
            for fluid, code in FLUIDS.items():
                row |= {fluid: (label == code).sum(), f"{fluid} outside": ((label == code) & (region == 0)).sum()}
            yield row


if __name__ == "__main__":
    main()
