"""Helpers of the tests of utils.tools.import_cases: run it, read its cases, and see it refuse."""

import numpy as np
import pytest
from foreign_data import CYST, FLUID, picture, save

from utils.errors import InputError
from utils.tools.import_cases import main
from utils.volumes.mhd import read_volume

SPACING_MM = (0.0115, 0.00387, 0.12)
SAID = ["--vendor", "Spectralis", "--spacing-mm", *map(str, SPACING_MM)]
PATIENT = ["--patient-pattern", r"(\d+)-"]
COLOURS = {(255, 0, 0): CYST, (0, 255, 0): FLUID}


def run_import(tmp_path, layout, *options, said=SAID, patient=PATIENT):
    """Import the folder ``source`` into ``data``; the latter."""
    output = tmp_path / "data"
    main([layout, str(tmp_path / "source"), "--output", str(output), *said, *patient, *options])
    return output


def read_case(output, name, vendor="Spectralis"):
    """(voxels, reference) of a case, whose spacings are as said."""
    (voxels, spacing_mm), (reference, of_reference) = (
        read_volume(output / vendor / name / f"{kind}.mhd") for kind in ("oct", "reference")
    )
    np.testing.assert_allclose([spacing_mm, of_reference], [SPACING_MM] * 2)
    assert reference.dtype == np.uint8
    return voxels, reference


def refusal(tmp_path, layout, *options, **said):
    """The lines of the refusal, after which nothing is there."""
    with pytest.raises(InputError) as caught:
        run_import(tmp_path, layout, *options, **said)
    assert not list((tmp_path / "data").glob("*/*/*.mhd"))
    assert all("\n" not in message for message in caught.value.messages)
    return list(caught.value.messages)


def write_pairs(source, mask, names=("1-a", "2-b"), suffix=".png"):
    """Pictures images/NAME and masks masks/NAME, all with the same `mask`."""
    for number, name in enumerate(names):
        save(source / "images" / f"{name}.png", picture(number))
        save(source / "masks" / f"{name}{suffix}", mask, **({"quality": 95} if suffix == ".jpg" else {}))


PAIRED = ["--images", "images/*.png", "--masks", "masks/*.png"]
BY_COLOUR = ["--labels", "IRF=255,0,0", "SRF=0,255,0"]
