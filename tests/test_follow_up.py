"""Scans of one eye over time: who and when, from files and tables, and what is written about it."""

import numpy as np
import pandas as pd
import pytest
from helpers import run_python
from PIL import Image
from stand_in import bright_scan, export_brightness_model

from utils.errors import InputError
from utils.files import read_json
from utils.volumes.eyes import Told, with_eyes
from utils.volumes.mhd import write_volume
from utils.volumes.scans import find_scans

SPACING_MM = (0.0117, 0.003872, 0.12)


def write_scans(folder, **heights):
    """Spectralis-like scans with IRF of these heights in rows; returns the folder."""
    for name, rows in heights.items():
        voxels = bright_scan()
        voxels[:, 40:60, 30:70] = 150
        voxels[:, 40 : 40 + rows, 30:70] = 230
        write_volume(folder / "Spectralis" / f"{name}.mhd", voxels, SPACING_MM)
    return folder / "Spectralis"


def test_volumes_of_an_eye_by_date(tmp_path):
    scans = write_scans(tmp_path, first=4, second=10, other=6, undated=8)
    table = tmp_path / "eyes.csv"
    table.write_text(
        "scan, eye, patient, date\n"
        "second, OD, Miller/7, 2024-03-01\nfirst, right, Miller/7, 2023-11-20\n"
        "other, OS, Miller/7, 2024-03-01\nundated, OD, Miller/7,\nnot here, OD, x, 2020-01-01\n"
    )
    output, model = tmp_path / "out", export_brightness_model(tmp_path)
    command = ("test.py", scans, "--output", output, "--model", model, "--eye", table)
    stdout, _ = run_python(*command)
    assert "1 eyes over time" in stdout
    followed = pd.read_csv(output / "follow_up.csv")
    assert followed.scan.tolist() == ["first", "second"]
    assert followed.scan_date.tolist() == ["2023-11-20", "2024-03-01"]
    np.testing.assert_allclose(followed.IRF_mm3, np.array([4, 10]) * 40 * 3 * np.prod(SPACING_MM), rtol=0.02)
    (plot,) = (output / "follow_up").iterdir()
    assert plot.name == "001_Miller_7_OD.png"
    assert Image.open(plot).width == 700
    assert 'href="follow_up/001_Miller_7_OD.png"' in (output / "index.html").read_text("utf-8")
    assert "Miller" not in (output / "Spectralis_first" / "report.html").read_text("utf-8")
    assert {"inner_nasal", "inner_temporal"} < set(
        read_json(output / "Spectralis_first" / "scan.json")["fluids"][0]["subfields"]
    )
    # A table that says less: only that scan is segmented again, and nothing is followed any more.
    table.write_text("scan,eye\nfirst,OS\nsecond,OD\n")
    before = (output / "Spectralis_second.mhd").stat().st_mtime_ns
    table.write_text(table.read_text() + "other,OS\n")
    run_python(*command)
    assert read_json(output / "Spectralis_first" / "scan.json")["facts"]["laterality"] == "OS"
    assert (output / "Spectralis_second.mhd").stat().st_mtime_ns > before  # its patient is no longer told
    assert not (output / "follow_up.csv").exists()
    assert not list((output / "follow_up").iterdir())


def test_an_eye_is_said_of_all_scans(tmp_path):
    scans = find_scans([write_scans(tmp_path, a=2, b=3)])
    assert [scan.told for scan in with_eyes(scans, "l")] == [Told(eye="OS")] * 2


def test_a_scan_is_named_by_its_path_too(tmp_path):
    scans = find_scans([write_scans(tmp_path, a=2, b=3)])
    (tmp_path / "eyes.csv").write_text(f"scan,eye\n{scans[1].path},OD\n")
    assert [scan.told and scan.told.eye for scan in with_eyes(scans, str(tmp_path / "eyes.csv"))] == [None, "OD"]


@pytest.mark.parametrize(
    ("content", "complaints"),
    [
        ("name,eye\na,OD\n", ["lacks the column(s) scan; it has name, eye"]),
        ("scan,eye,date\na,both,2024-01-01\nb,OD,soon\n", ["line 2: the eye is 'both'", "line 3: the date is 'soon'"]),
        ("scan,eye\na,OD\na,OS\n", ["line 3: a is there before, with other values"]),
        ("", ["cannot be read as CSV"]),
        (None, ["is no eye and no file"]),
    ],
)
def test_faults_of_a_table_are_told(content, complaints, tmp_path):
    path = tmp_path / "eyes.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as caught:
        with_eyes(find_scans([write_scans(tmp_path, a=2)]), str(path))
    assert len(caught.value.messages) == len(complaints)
    for message, complaint in zip(caught.value.messages, complaints, strict=True):
        assert message.startswith(f"--eye {path}")
        assert complaint in message
