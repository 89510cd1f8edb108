"""How far the retina's surfaces are found from the true ones, and what of the fluid lies where it can be, in phantoms.

    python -m benchmarks.surfaces [--cases 120] [--volumes 50]

Draws `--cases` varied B-scans with and without a wedge, a tenth as many pairs of B-scans like each vendor's with haze
of several grey values above the retina and with and without wedges, and volumes until `--volumes` of them show a fovea.
Prints, for each kind, the mean distance of each surface in a B-scan: mean, 95th percentile, share above 50 µm; in how
many a retina is seen; and the share of each fluid's outlines that `utils.segmentation.possible` leaves. Columns whose
surface is hidden or cut off do not count. Where there is subretinal fluid the outer surface may be its roof or its
floor. Then the distances of the foveas that are found from the true ones, and of the scans' centres.
"""

import argparse

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from utils.labels import FLUIDS
from utils.phantom import anatomy, varied_eye
from utils.phantom.retouch_like import draw_phantom
from utils.phantom.varied import draw_varied
from utils.preparation.preprocessing import preprocessed_slices
from utils.segmentation.etdrs import place
from utils.segmentation.fovea import find_fovea
from utils.segmentation.possible import possible_places
from utils.segmentation.surfaces import retinal_surfaces

AXIAL_MM = 0.003872
OFF_UM = 50
HAZES = (0, 47, 90)  # grey values
VENDOR_ROWS = (("Cirrus", 1024), ("Spectralis", 496), ("Topcon", 885))
AMOUNTS_MM3 = ((0, 0.3, 0.6), (0, 0.4), (0, 0, 0.5, 0.5, 2.5, 2.5))  # of IRF, SRF and PED, in turn


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=120, help="varied B-scans")
    parser.add_argument("--volumes", type=int, default=50, help="volumes with a fovea")
    arguments = parser.parse_args()
    table = pd.DataFrame(tqdm(measured(arguments.cases), unit="B-scan"))
    print(*(line_of(name, of) for name, of in [*table.groupby("kind", sort=False), ("all", table)]), sep="\n")
    print_foveas(arguments.volumes)


def measured(cases):
    """Yield the measurements of every B-scan, as dictionaries."""
    for seed in range(cases):
        for wedge in (False, True):
            *scan, eye = draw_varied(1, (77, seed), wedge)
            truth = truth_of(eye, varied_eye.LAYERS, "subretinal material", slice(0, 1))
            yield from compare("varied" + ", wedge" * wedge, *scan, "Spectralis", truth)
    for seed in range(cases // 10):
        amounts = {label: of[seed % len(of)] for label, of in zip(FLUIDS.values(), AMOUNTS_MM3, strict=True)}
        for vendor, rows in VENDOR_ROWS:
            for haze in HAZES:
                for wedges in (False, True):
                    *scan, eye, first = draw_phantom(vendor, rows, 2, (5, seed), amounts, wedges, haze=haze)
                    shown = slice(first, first + len(scan[0]))
                    truth = truth_of(eye, anatomy.LAYERS, "retinal pigment epithelium", shown)
                    yield from compare(f"like vendors', haze {haze}" + ", wedges" * wedges, *scan, vendor, truth)


def truth_of(eye, layers, below_srf, shown):
    """{surface: depths in mm, (slices, columns)} of the slices `shown` of an eye, and the height of its SRF."""
    names = ("nerve fibre layer", "ellipsoid zone", "retinal pigment epithelium", "choroid", "subretinal fluid")
    inner, outer, epithelium, bruch, srf, below = (
        eye.boundaries_mm[(*layers, "choroid").index(name), shown] for name in (*names, below_srf)
    )
    return {"inner": inner, "outer": outer, "epithelium": epithelium, "bruch": bruch, "srf": below - srf}


def compare(kind, voxels, reference, spacing_mm, vendor, truth):
    """Yield the measurements of each B-scan of a phantom."""
    slices = preprocessed_slices(voxels, spacing_mm, vendor, axial_spacing_mm=AXIAL_MM, reference_histogram=None)
    for index, slice_ in enumerate(slices):
        rows, columns = slice_.shape
        true = {name: of[index] / AXIAL_MM for name, of in truth.items()}
        found = retinal_surfaces(slice_, (spacing_mm[0], AXIAL_MM))
        row = {"kind": kind, "retina": found.is_retina}
        for name, paths in (("inner", ("inner",)), ("outer", ("outer", "epithelium")), ("bruch", ("bruch",))):
            off_um = np.abs(getattr(found, name) - true[paths[0]])
            if len(paths) > 1:
                other = np.abs(getattr(found, name) - true[paths[1]])
                off_um = np.where(true["srf"] > 5, np.minimum(off_um, other), off_um)
            row_of = np.rint(true[paths[0]]).astype(int)
            seen = (row_of > 2) & (row_of < rows - 3)
            for near in (-3, 3):
                seen &= slice_[np.clip(row_of + near, 0, rows - 1), np.arange(columns)] > 0
            row[name] = off_um[seen].mean() * AXIAL_MM * 1000 if seen.any() else np.nan
        labels = cv2.resize(reference[index], (columns, rows), interpolation=cv2.INTER_NEAREST_EXACT)
        possible = possible_places(found, rows, AXIAL_MM)
        for number, (fluid, label) in enumerate(FLUIDS.items()):
            row |= {fluid: (labels == label).sum(), f"{fluid} kept": ((labels == label) & possible[..., number]).sum()}
        yield row


def line_of(name, table):
    """A line of the printed table."""
    cells = [name, str(len(table))]
    for surface in ("inner", "outer", "bruch"):
        off_um = table[surface].dropna()
        cells.append(f"{off_um.mean():.0f}, {off_um.quantile(0.95):.0f}, {(off_um > OFF_UM).mean():.1%}")
    cells.append(f"{table['retina'].mean():.1%}")
    shares = [table[f"{fluid} kept"].sum() / table[fluid].sum() if table[fluid].any() else np.nan for fluid in FLUIDS]
    cells.append(" / ".join("–" if np.isnan(share) else f"{share:.2%}" for share in shares))
    return f"| {' | '.join(cells)} |"


def print_foveas(volumes):
    """Print the distances in mm of foveas that are found, in as many `volumes` that show one."""
    errors_mm, centres_mm, without, number = [], [], [], 0
    while len(errors_mm) < volumes:
        voxels, _, spacing_mm, eye = draw_varied(25, (7, number))
        number += 1
        x_mm, z_mm = eye.x_mm[0], eye.z_mm[:, 0]  # from the fovea
        found = fovea_of(voxels, spacing_mm, z_mm)
        if not (eye.has_pit and x_mm[0] < 0 < x_mm[-1] and z_mm[0] < 0 < z_mm[-1]):
            without.append(found is None)
            continue
        errors_mm.append(np.hypot(place(found.column, x_mm), place(found.b_scan, z_mm)) if found else np.nan)
        centres_mm.append(np.hypot(x_mm.mean(), z_mm.mean()))
    noise = np.random.default_rng(0).integers(1, 256, (12, 9, 300, 400)).astype(np.uint8)
    in_noise = sum(fovea_of(of, (0.0117, AXIAL_MM, 0.24), np.arange(9) * 0.24) is not None for of in noise)
    errors_mm = np.array(errors_mm)
    print(
        f"fovea: found in {(~np.isnan(errors_mm)).sum()} of {volumes}, median error {np.nanmedian(errors_mm):.2f} mm, "
        f"{(errors_mm > 0.5).sum()} above 0.5 mm; of the centre {np.median(centres_mm):.2f} mm; none found in "
        f"{sum(without)} of {len(without)} without a pit; found in {in_noise} of {len(noise)} volumes of noise"
    )


def fovea_of(voxels, spacing_mm, z_mm):
    """The `Fovea` of a Spectralis volume."""
    settings = {"axial_spacing_mm": AXIAL_MM, "reference_histogram": None}
    thickness_mm = []
    for slice_ in preprocessed_slices(voxels, spacing_mm, "Spectralis", **settings):
        of = retinal_surfaces(slice_, (spacing_mm[0], AXIAL_MM))
        thickness_mm.append((of.outer - of.inner) * AXIAL_MM if of.is_retina else np.full(len(of.inner), np.nan))
    return find_fovea(np.array(thickness_mm), spacing_mm[0], z_mm)


if __name__ == "__main__":
    main()
