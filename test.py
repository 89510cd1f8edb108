"""Step 5: segment scans.

    python test.py INPUT... --output DIR [--model FILE] [--vendor V] [--spacing-mm X Y Z] [--set NAME=VALUE ...]

Each INPUT is a MetaImage file, a case folder (with oct.mhd) or a folder of such cases. The model is the run's best,
fine-tuned if there is one. Vendor and spacing come from the folder names and the file, unless given.

Writes  DIR/<Vendor>_<case>.mhd (uint8 labels on the scan's own grid: 0 background, 1 IRF, 2 SRF, 3 PED), a folder of
        that name with mask_NNN.png and overlay_NNN.png for each B-scan, and DIR/volumes.csv (mm3 of each fluid)

A scan that fails does not stop the others. Exit code 0, or 2 where any failed.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

import config
from utils import runs
from utils.cases import find_scans
from utils.errors import InputError, run_script
from utils.files import write_csv
from utils.labels import FLUIDS
from utils.mhd import VENDORS, read_volume, write_volume
from utils.plots import save_mask, save_overlay
from utils.preprocessing import to_8_bit


def main(argv):
    parser = argparse.ArgumentParser(description="Segment retinal fluid in OCT scans.")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="a scan, a case folder, or a folder of cases")
    parser.add_argument("--output", required=True, metavar="DIR", help="where label volumes and pictures go")
    parser.add_argument("--model", metavar="FILE", help="a best.keras with its best.json; default: the run's best")
    parser.add_argument("--vendor", choices=sorted(VENDORS), help="of scans whose folders do not say it")
    parser.add_argument("--spacing-mm", nargs=3, type=float, metavar=("X", "Y", "Z"), help="instead of the file's")
    arguments = config.load(argv, parser)
    config.validate()
    if arguments.spacing_mm and min(arguments.spacing_mm) <= 0:
        raise InputError(f"--spacing-mm {' '.join(map(str, arguments.spacing_mm))}: expected three numbers above 0")
    scans = [scan for given in arguments.inputs for scan in find_scans(given, arguments.vendor)]
    check_names(scans)
    model_path = arguments.model or runs.best_model_path(
        config.run_folder("adversarial"), config.run_folder("segmentation")
    )
    details = runs.read_best(model_path)

    from utils import training

    training.set_up_keras(config.SEED, config.DETERMINISTIC)
    import keras

    from utils.tiling import PredictionSettings

    settings = PredictionSettings.from_details(details)
    if not arguments.model:  # the run's own model follows config; another's best.json says what it needs
        settings = dataclasses.replace(settings, threshold=config.THRESHOLD)
    model = keras.models.load_model(model_path, compile=False)
    print(f"model: {model_path} ({details['step']}, epoch {details['epoch']}); {len(scans)} scans")
    rows, failures = [], []
    for scan in scans:
        try:
            row = segment(model, settings, scan, arguments.spacing_mm, Path(arguments.output))
        except InputError as error:
            failures += error.messages
            tqdm.write(f"{scan.vendor} {scan.name}: failed", file=sys.stdout)
        else:
            rows.append(row)
            volumes = ", ".join(f"{fluid} {row[f'{fluid}_mm3']:.3f}" for fluid in FLUIDS)
            print(f"{scan.vendor} {scan.name}: {volumes} mm3", flush=True)
    if rows:
        write_csv(Path(arguments.output) / "volumes.csv", pd.DataFrame(rows))
        print(f"label volumes, masks and overlays of {len(rows)} scans: {arguments.output}")
    if failures:
        raise InputError(*failures)


def check_names(scans):
    """Raise `InputError` for each scan whose output would overwrite another's."""
    first, complaints = {}, []
    for scan in scans:
        other = first.setdefault(output_name(scan), scan)
        if other is not scan:
            complaints.append(
                f"{scan.oct_path}: same vendor and case name as {other.oct_path}; segment them one by one"
            )
    if complaints:
        raise InputError(*complaints)


def output_name(scan):
    """Name of a scan's label volume and picture folder."""
    return f"{scan.vendor}_{scan.name}"


def segment(model, settings, scan, spacing_mm, output):
    """Segment one scan and write its pictures, then its label volume; returns its row of volumes.csv."""
    from utils.tiling import segment_scan

    voxels, file_spacing_mm = read_volume(scan.oct_path)
    spacing_mm = tuple(spacing_mm or file_spacing_mm)
    with tqdm(total=len(voxels), desc=output_name(scan), unit="B-scan", leave=False, mininterval=1.0) as progress:
        segmentation = segment_scan(
            model, voxels, spacing_mm, scan.vendor, settings, on_slice=lambda *_: progress.update()
        )
    pictures = output / output_name(scan)
    for index, (grey, labels) in enumerate(zip(to_8_bit(voxels), segmentation.labels, strict=True)):
        save_mask(pictures / f"mask_{index:03d}.png", labels)
        save_overlay(pictures / f"overlay_{index:03d}.png", grey, labels)
    write_volume(output / f"{output_name(scan)}.mhd", segmentation.labels, spacing_mm)
    voxel_mm3 = float(np.prod(spacing_mm))
    volumes = {f"{fluid}_mm3": int((segmentation.labels == code).sum()) * voxel_mm3 for fluid, code in FLUIDS.items()}
    presence = {f"{fluid}_presence": score for fluid, score in zip(FLUIDS, segmentation.presence, strict=True)}
    return {"vendor": scan.vendor, "case": scan.name, "slices": len(voxels), **volumes, **presence}


if __name__ == "__main__":
    run_script(main)
