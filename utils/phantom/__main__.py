"""Synthetic OCT volumes in RETOUCH layout, so that every script can be tried without the RETOUCH data.

    python -m utils.phantom --output data --cases 16 --slices 8 --seed 0

writes `RETOUCH-TrainingSet-<Vendor>/TRAINnnn/{oct,reference}.{mhd,raw}`: phantoms like RETOUCH's volumes
(`utils.phantom.retouch_like`) or, with ``--varied``, of a wide range (`utils.phantom.varied`). Same seed, same bytes.
"""

import argparse
from pathlib import Path

import numpy as np

from utils.errors import InputError, run_script
from utils.phantom.retouch_like import MOST_SLICES, draw_cases, generate_phantom
from utils.phantom.varied import generate_varied
from utils.progress import progress_bar
from utils.volumes.mhd import write_volume

VARIED_SLICES = 3  # largest number of slices of a varied case; the network sees as many at once
# Rows and columns. 'Valid' convolutions lose 46 pixels at a patch's border; this is rounded up.
MIRRORED_MARGIN = (48, 48)


def write_phantoms(output, cases, slices=None, seed=0, progress=False, **look):
    """Write `cases` synthetic cases in RETOUCH layout under `output` and return them as `PlannedCase`s.

    `look` are arguments of `draw_phantom`: padding and haze. Raises `InputError` if `output` holds other cases in this
    layout, so that two data sets are never mixed.
    """
    drawn = draw_cases(cases, seed)
    volumes = (
        generate_phantom(case.vendor, case.rows, slices, (seed, number), case.fluid_mm3, **look)
        for number, case in enumerate(drawn)
    )
    _write_cases(output, [(case.vendor, case.name) for case in drawn], volumes, progress)
    return drawn


def write_varied(output, cases, slices=None, seed=0, progress=False, padded_wedges=False):
    """Write `cases` of `utils.phantom.varied` as Spectralis cases of one to `slices` slices (None: `VARIED_SLICES`).

    They are mirrored outwards by `MIRRORED_MARGIN` above and at the sides, as a scan is for its prediction. So the
    network also learns from patches whose middle lies at a scan's border. Raises `InputError` as `write_phantoms`.
    """
    slices = slices or VARIED_SLICES
    volumes = (
        _with_margin(*generate_varied(1 + number % slices, (seed, number), padded_wedges)) for number in range(cases)
    )
    # Names of their own, so that nobody's patient is taken for one of them.
    _write_cases(output, [("Spectralis", f"VARIED{number + 1:04d}") for number in range(cases)], volumes, progress)


def _with_margin(voxels, reference, spacing_mm):
    rows, columns = MIRRORED_MARGIN
    wider = [np.pad(part, ((0, 0), (rows, 0), (columns, columns)), mode="symmetric") for part in (voxels, reference)]
    return *wider, spacing_mm


def _write_cases(output, names, volumes, progress):
    """Write voxels, reference and spacing of `volumes` as the cases of these (vendor, name)."""
    output = Path(output)
    folders = [output / f"RETOUCH-TrainingSet-{vendor}" / name for vendor, name in names]
    others = sorted({path for path in output.glob("RETOUCH-TrainingSet-*/*") if path.is_dir()} - set(folders))
    if others:
        raise InputError(
            f"{output}: holds {others[0].relative_to(output)}, none of the {len(folders)} cases to write; "
            "remove it or choose another folder"
        )
    for folder in progress_bar(folders, unit="case", disable=not progress):
        voxels, reference, spacing_mm = next(volumes)
        write_volume(folder / "reference.mhd", reference, spacing_mm)
        write_volume(folder / "oct.mhd", voxels, spacing_mm)


def main(argv):
    """Parse the command line and write the cases that it asks for."""
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", required=True, help="folder to write into, e.g. config.DATA_ROOT")
    parser.add_argument("--cases", type=int, default=16, help="cases in all, vendors in turn (default 16)")
    parser.add_argument(
        "--slices",
        type=int,
        help="slices a case, at most the vendor's (default: all); --varied: 1 to so many in turn (default 3)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default 0)")
    parser.add_argument("--varied", action="store_true", help="anatomy and appearance of wide range, to train on")
    parser.add_argument("--padded-wedges", action="store_true", help="white wedges in corners of every B-scan")
    parser.add_argument("--circular-crop", action="store_true", help="black outside a circle in every B-scan")
    parser.add_argument("--haze", type=float, default=0.0, metavar="GREY", help="of haze above the retina, 0 to 150")
    arguments = parser.parse_args(argv)
    complaints = []
    most_cases = 99_999 if arguments.varied else 999
    if not 1 <= arguments.cases <= most_cases:
        complaints.append(f"--cases {arguments.cases}: expected 1 to {most_cases}")
    if arguments.slices is not None and not 1 <= arguments.slices <= MOST_SLICES:
        complaints.append(f"--slices {arguments.slices}: expected 1 to {MOST_SLICES}")
    if not 0 <= arguments.haze <= 150:
        complaints.append(f"--haze {arguments.haze:g}: expected 0 to 150")
    if arguments.seed < 0:
        complaints.append(f"--seed {arguments.seed}: expected 0 or more")
    if Path(arguments.output).is_file():
        complaints.append(f"--output {arguments.output}: is a file, expected a folder")
    if complaints:
        raise InputError(*complaints)
    options = vars(arguments)
    if options.pop("varied"):
        if options.pop("circular_crop") | (options.pop("haze") > 0):
            raise InputError(
                "--varied: has no circular crops, and draws haze itself; leave --circular-crop, --haze out"
            )
        write = write_varied
    else:
        write = write_phantoms
    try:
        write(**options, progress=True)
    except OSError as error:
        raise InputError(f"{error.filename or arguments.output}: cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    run_script(main)
