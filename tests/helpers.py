"""Helpers of several test files: run Python, write small inputs, read what was written."""

import contextlib
import io
import os
import runpy
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas

import config
from utils.files import digest, write_json
from utils.preparation.prepared import VOLUME_KINDS, SliceRow, record_path
from utils.settings.patch_settings import PatchSettings
from utils.volumes.mhd import write_volume
from utils.volumes.vendors import VENDORS

PROJECT = Path(__file__).resolve().parents[1]
SPACING_Y_MM = {"Cirrus": 0.001955, "Spectralis": 0.003872, "Topcon": 0.0026}
SLICES = 2  # of the cases of `write_raw_case`
STOPPING = (signal.SIGINT, signal.SIGTERM)


# ---- Running Python ------------------------------------------------------------------------------------------------
def run_python(*command, expected=0, before=(), cwd=PROJECT, environment=None, timeout=600):
    """Run Python with the arguments `command`, without a GPU. Returns (stdout, stderr).

    Fails with what was printed unless the exit code is `expected`. `before` are words of the command before Python,
    `environment` are variables that replace the test's own.
    """
    command = [*before, sys.executable, *map(str, command)]
    environment = {**(os.environ if environment is None else environment), "CUDA_VISIBLE_DEVICES": "-1"}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
    assert result.returncode == expected, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout, result.stderr


def run_here(script, *command, expected=0):
    """As `run_python`, but in this process, which has imported the libraries already.

    config.py's values, the standard streams and the signals' handlers are restored in the end.
    """
    settings, handlers = dict(vars(config)), {number: signal.getsignal(number) for number in STOPPING}
    printed = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    code = 0
    try:
        with (
            patch.object(sys, "argv", [script, *map(str, command)]),
            contextlib.redirect_stdout(printed[0]),
            contextlib.redirect_stderr(printed[1]),
        ):
            runpy.run_path(str(PROJECT / script), run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        vars(config).update(settings)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    stdout, stderr = (stream.buffer.getvalue().decode() for stream in printed)
    assert code == expected, f"{script} {command}\n{stdout}\n{stderr}"
    return stdout, stderr


def arguments(data_root, output_root, *settings, flags=()):
    """A script's arguments: `flags`, then ``--set`` for both roots and for each "NAME=VALUE" of `settings`."""
    settings = [f"DATA_ROOT={data_root}", f"OUTPUT_ROOT={output_root}", *settings]
    return [*flags, *(argument for setting in settings for argument in ("--set", setting))]


def prepare(*settings, flags=(), expected=0, by=run_python):
    """Run prepare_data.py `by` `run_python` or `run_here`; `settings` are those of `arguments`."""
    return by("prepare_data.py", *arguments(*settings, flags=flags), expected=expected)


# ---- Inputs --------------------------------------------------------------------------------------------------------
def noise(shape, low=1, high=200, seed=0):
    """Random grey values, uint8, from `low` to `high` - 1."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.uint8)


def one_hot(labels, dtype="float32"):
    """One-hot encoding of labels 0 to 3 in a new last axis."""
    return np.eye(4, dtype=dtype)[labels]


def write_raw_case(data_root, vendor, name, seed=0):
    """A tiny raw case: bright band, dark above and below; label 1 in slice 0, 2 and 3 in slice 1; its folder."""
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


def write_prepared_case(preprocessed_folder, vendor, name, volume, mask=None, roi=None):
    """Preprocessed volumes as step 1 writes them; by default without fluid, and with all pixels in the ROI."""
    mask = np.zeros(volume.shape, np.uint8) if mask is None else mask
    roi = np.ones(volume.shape, np.uint8) if roi is None else roi
    for kind, voxels in zip(VOLUME_KINDS, (volume, mask, roi), strict=True):
        write_volume(preprocessed_folder / kind / f"{vendor}_{name}.mhd", voxels, (0.0117, 0.003872, 0.047))


def write_record(output_root, vendor, name, voxels=None):
    """Records of a case that step 1 prepared with config.py's defaults; its voxels' digest is given, or its name."""
    record = {"AXIAL_SPACING_MM": 0.003872, "matched": False, "reference histogram": None}
    record |= {"preprocessing code": "", "voxels": voxels or name}
    images, roi = (record_path(output_root / "pre_processed", vendor, name, stage) for stage in ("images", "roi"))
    write_json(images, record)
    write_json(roi, {"images": digest(images.read_bytes())})


def write_slice_csv(path, rows):
    """A slice CSV of `rows`, each a `SliceRow` or its values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows, columns=SliceRow._fields).to_csv(path, index=False)


def batch_settings(preprocessed_folder, **changes):
    """config.py's `BatchSettings` with `changes` of its fields, or of its patches' fields."""
    of_patches = {field.name: changes.pop(field.name) for field in fields(PatchSettings) if field.name in changes}
    settings = config.batch_settings()
    patches = replace(settings.patches, **of_patches)
    return replace(settings, preprocessed_folder=preprocessed_folder, patches=patches, **changes)


# ---- Results -------------------------------------------------------------------------------------------------------
def read_csv(path):
    """A CSV as a DataFrame. Case names stay text."""
    return pandas.read_csv(path, keep_default_na=False, dtype={"image_name": str})
