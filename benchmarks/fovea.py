"""How far from the true one the fovea is found, in varied phantoms whose pit is known.

    python -m benchmarks.fovea [--volumes 50] [--slices 25] [--seed 7]

Draws volumes until `--volumes` of them have a pit inside. The eyes are ill, the scans off the fovea by up to 0.9 mm
both ways. Prints the errors of the foveas that were found and of the scans' centres, and in how many volumes without a
pit none was found.
"""

import argparse

import numpy as np
from tqdm import tqdm

from utils.phantom.varied import draw_varied
from utils.preparation.preprocessing import preprocessed_slices
from utils.segmentation.etdrs import place
from utils.segmentation.fovea import find_fovea
from utils.segmentation.surfaces import retinal_surfaces

AXIAL_MM = 0.003872


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--volumes", type=int, default=50)
    parser.add_argument("--slices", type=int, default=25)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    errors_mm, centres_mm, without, number = [], [], [], 0
    with tqdm(total=arguments.volumes, unit="volume") as progress:
        while len(errors_mm) < arguments.volumes:
            found, true, centre = compare(*draw_varied(arguments.slices, (arguments.seed, number)))
            number += 1
            if true is None:
                without.append(found is None)
                continue
            progress.update()
            errors_mm.append(np.nan if found is None else np.hypot(*np.subtract(found, true)))
            centres_mm.append(np.hypot(*np.subtract(centre, true)))
    errors_mm, centres_mm = np.array(errors_mm), np.array(centres_mm)
    is_found = ~np.isnan(errors_mm)
    print("| volumes with a pit | found | median error (mm) | errors above 0.5 mm | the centre's median error (mm) |")
    print("|---|---|---|---|---|")
    print(
        f"| {len(errors_mm)} | {is_found.sum()} | {np.median(errors_mm[is_found]):.2f} | {(errors_mm > 0.5).sum()} | "
        f"{np.median(centres_mm):.2f} |"
    )
    print(f"Without a pit: none found in {sum(without)} of {len(without)}")


def compare(voxels, _, spacing_mm, eye):
    """Places (x, z) in mm of the fovea that is found, of the true one, and of the centre. None where there is none."""
    settings = {"axial_spacing_mm": AXIAL_MM, "reference_histogram": None}
    thickness_mm = []
    for slice_ in preprocessed_slices(voxels, spacing_mm, "Spectralis", **settings):
        surfaces = retinal_surfaces(slice_, AXIAL_MM)
        thickness_mm.append((surfaces.outer - surfaces.inner) * AXIAL_MM)
    found = find_fovea(np.array(thickness_mm), spacing_mm[0], spacing_mm[2])
    x_mm, z_mm = eye.x_mm[0], eye.z_mm[:, 0]  # from the fovea
    has_pit = eye.has_pit and x_mm[0] < 0 < x_mm[-1] and z_mm[0] < 0 < z_mm[-1]
    return (
        found and (place(found.column, x_mm), place(found.b_scan, z_mm)),
        (0.0, 0.0) if has_pit else None,
        (x_mm.mean(), z_mm.mean()),
    )


if __name__ == "__main__":
    main()
