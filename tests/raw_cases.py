"""Tiny raw cases, and prepare_data.py run on them as a user does."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas

from utils.volumes.mhd import write_volume
from utils.volumes.vendors import VENDORS

PROJECT = Path(__file__).resolve().parents[1]
SPACING_Y_MM = {"Cirrus": 0.001955, "Spectralis": 0.003872, "Topcon": 0.0026}
SLICES = 2


def write_case(data_root, vendor, name, seed=0):
    """A tiny case: bright band, dark above and below; label 1 in slice 0, 2 and 3 in slice 1."""
    rng = np.random.default_rng(seed)
    shape = (SLICES, 300, 140)
    voxels = rng.integers(1, 100, shape)
    voxels[:, 100:200] = rng.integers(100, 256, (SLICES, 100, 140))
    reference = np.zeros(shape, np.uint8)
    reference[0, 140:150, 20:60] = 1
    reference[1, 140:150, 20:60] = 2
    reference[1, 170:180, 20:60] = 3
    if VENDORS[vendor].element_type == "uint16":
        voxels = voxels * 257
    spacing_mm = (0.0117, SPACING_Y_MM[vendor], 0.05)
    folder = data_root / f"RETOUCH-TrainingSet-{vendor}" / name
    write_volume(folder / "oct.mhd", voxels.astype(VENDORS[vendor].element_type), spacing_mm)
    write_volume(folder / "reference.mhd", reference, spacing_mm)
    return folder


def arguments(data_root, output_root, *settings, flags=()):
    settings = [f"DATA_ROOT={data_root}", f"OUTPUT_ROOT={output_root}", *settings]
    return [*flags, *(argument for setting in settings for argument in ("--set", setting))]


def prepare(*settings, flags=()):
    """Run the script as a user does."""
    command = [sys.executable, "prepare_data.py", *arguments(*settings, flags=flags)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)


def read_csv(path):
    return pandas.read_csv(path, keep_default_na=False, dtype={"image_name": str})
