"""Scans of one eye over time: who and when, from files and tables, and what is written about it."""

import os
import re

import numpy as np
import pandas as pd
import pytest
from dicoms import save, tomography
from helpers import run_here
from matplotlib.axes import Axes
from stand_in import bright_scan, export_brightness_onnx

from utils.errors import InputError
from utils.files import read_json
from utils.labels import FLUIDS
from utils.segmentation.follow_up import compared, write_follow_up
from utils.volumes.content import ANONYMISED
from utils.volumes.eyes import Told, with_eyes
from utils.volumes.mhd import write_volume
from utils.volumes.scans import find_scans, read_scan

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
    output, model = tmp_path / "out", export_brightness_onnx(tmp_path)
    command = ("test.py", scans, "--output", output, "--model", model, "--eye", table)
    stdout, _ = run_here(*command)
    assert "1 eyes over time" in stdout
    followed = pd.read_csv(output / "follow_up.csv")
    assert followed.scan.tolist() == ["first", "second"]
    assert followed.scan_date.tolist() == ["2023-11-20", "2024-03-01"]
    np.testing.assert_allclose(followed.IRF_mm3, np.array([4, 10]) * 40 * 3 * np.prod(SPACING_MM), rtol=0.02)
    (page,) = (output / "follow_up").iterdir()
    assert page.name == "001_Miller_7_OD.html"
    assert 'href="follow_up/001_Miller_7_OD.html"' in (output / "index.html").read_text("utf-8")
    for name in re.findall(r'(?:src|href)="(?!data:)([^"#]+)', page.read_text("utf-8")):
        assert (page.parent / name).is_file()
    assert "Miller" not in (output / "Spectralis_first" / "report.html").read_text("utf-8")
    assert {"inner_nasal", "inner_temporal"} < set(
        read_json(output / "Spectralis_first" / "scan.json")["fluids"][0]["subfields"]
    )
    # A table that says less: only that scan is segmented again, and nothing is followed any more.
    table.write_text("scan,eye\nfirst,OS\nsecond,OD\n")
    before = (output / "Spectralis_second.mhd").stat().st_mtime_ns
    table.write_text(table.read_text() + "other,OS\n")
    run_here(*command)
    assert read_json(output / "Spectralis_first" / "scan.json")["facts"]["laterality"] == "OS"
    assert (output / "Spectralis_second.mhd").stat().st_mtime_ns > before  # its patient is no longer told
    assert not (output / "follow_up.csv").exists()
    assert not list((output / "follow_up").iterdir())


def test_an_eye_is_said_of_all_scans(tmp_path):
    scans = find_scans([write_scans(tmp_path, a=2, b=3)])
    assert [scan.told for scan in with_eyes(scans, "l")] == [Told(eye="OS")] * 2


@pytest.mark.parametrize("relative", [False, True])
def test_a_scan_is_named_by_its_path_too(tmp_path, monkeypatch, relative):
    monkeypatch.chdir(tmp_path)
    scans = find_scans([write_scans(tmp_path, a=2, b=3)])
    path = os.path.relpath(scans[1].path) if relative else scans[1].path
    (tmp_path / "eyes.csv").write_text(f"scan,eye\n{path},OD\n")
    assert [scan.told and scan.told.eye for scan in with_eyes(scans, str(tmp_path / "eyes.csv"))] == [None, "OD"]


@pytest.mark.parametrize(
    ("content", "complaints"),
    [
        ("name,eye\na,OD\n", ["lacks the column(s) scan; it has name, eye"]),
        ("scan,eye,date\na,both,2024-01-01\nb,OD,soon\n", ["line 2: the eye is 'both'", "line 3: the date is 'soon'"]),
        ("scan,eye\na,OD\na,OS\n", ["line 3: a is there before, with other values"]),
        ("scan,eye\n,OD\n", ["line 2: names no scan"]),
        ("scan,eye,date\na,OD,2023-02-30\n", ["line 2: the date is '2023-02-30'"]),
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


def test_what_is_said_against_the_file_is_noted(tmp_path):
    """The file says OS, 2026-01-31 and P7."""
    save(tomography(np.zeros((3, 7, 9), np.uint8), range(3)), tmp_path / "scan.dcm")
    table = tmp_path / "eyes.csv"

    def read_with(row):
        table.write_text(f"scan,eye,patient,date\n{row}\n")
        (files,) = with_eyes(find_scans([tmp_path / "scan.dcm"]), str(table))
        return read_scan(files)

    scan = read_with("scan,OD,P8,2026-01-30")
    assert (scan.laterality, scan.patient, scan.scan_date) == ("OD", "P8", "2026-01-30")
    assert scan.notes[-2:] == (
        "the eye is OD as said; its file says OS",
        "the date is 2026-01-30 as said; its file says 2026-01-31",
    )
    assert not any("said" in note for row in ("scan,OS,P7,2026-01-31", "scan,,,") for note in read_with(row).notes)


# ---- What is compared ----------------------------------------------------------------------------------------------
FIELDS = (
    "centre",
    *(f"{ring}_{side}" for ring in ("inner", "outer") for side in ("superior", "inferior", "nasal", "temporal")),
)


def visit(date, irf_mm3=1.0, shown=FIELDS, person=None, scan=None, patient="P1", centre="the fovea as found"):
    """A row of a `summary_table`: 1 mm3 of IRF in each subfield that is shown, `irf_mm3` in the whole scan."""
    row = {"patient": patient, "laterality": "OD", "scan_date": date, "scan": scan or date, "vendor": "Cirrus"}
    for fluid in FLUIDS:
        row |= {f"{fluid}_{field}_mm3": float(field in shown) for field in FIELDS}
        row |= {f"{fluid}_mm3": irf_mm3, f"{fluid}_confidence": 1.0}
    row |= {f"{field}_covered": 0.95 if field in shown else 0.85 for field in FIELDS}
    row |= {"b_scans": 9, "look_at": 3, "note": "for research"}
    return row | {"circles_around": centre, "model": "m", "model_sha256": "0", "threshold": "0.5", "person": person}


@pytest.mark.parametrize(
    ("first", "second", "words", "volume_mm3"),
    [
        (FIELDS, FIELDS, "the whole ETDRS grid", 9),
        (FIELDS, FIELDS[:2], "centre, inner superior", 2),
        (FIELDS[1:3], FIELDS[:2], "inner superior", 1),
        (FIELDS[:1], FIELDS[1:], "nothing, since no ETDRS subfield is shown by all", np.nan),
    ],
)
def test_what_all_scans_show_is_compared(tmp_path, monkeypatch, first, second, words, volume_mm3):
    """Once in the table, and once in the plot, which joins the points of what can be compared alone."""
    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda ax, x, y, **style: drawn.append((y.tolist(), style["linestyle"])))
    monkeypatch.setattr(Axes, "legend", lambda ax: None)
    write_follow_up(tmp_path, pd.DataFrame([visit("2024-01-01", 7.0, first), visit("2024-02-01", 3.0, second)]))
    followed = pd.read_csv(tmp_path / "follow_up.csv")
    assert followed.compared.str.startswith(words).all()
    np.testing.assert_array_equal(followed.IRF_compared_mm3, [volume_mm3, volume_mm3])
    assert followed.IRF_mm3.tolist() == [7, 3]
    assert drawn == [([7, 3], "none") if np.isnan(volume_mm3) else ([volume_mm3] * 2, "-")] * 3


def test_changes_are_told_in_mm3_and_percent(tmp_path):
    """Of IRF in one subfield: 1, 2.5, 0 and 0.5 mm3. A single B-scan among the visits is no volume, and left out."""
    visits = [visit(f"2024-0{month}-01", shown=FIELDS[:1]) for month in range(1, 6)]
    for row, volume in zip(visits, (1, 2.5, 0, 0.5), strict=False):
        row["IRF_centre_mm3"] = volume
    visits[4]["b_scans"] = 1
    write_follow_up(tmp_path, pd.DataFrame(visits))
    followed = pd.read_csv(tmp_path / "follow_up.csv")
    np.testing.assert_array_equal(followed.IRF_change_mm3, [np.nan, 1.5, -2.5, 0.5])
    np.testing.assert_array_equal(followed.IRF_change_percent, [np.nan, 150, -100, np.nan])
    page = (tmp_path / "follow_up" / "001_P1_OD.html").read_text("utf-8")
    assert page.count("<figure>") == 4
    assert '<p class="research">for research</p>' in page
    assert "Compared: centre." in page
    cells = ["1.000 mm³", "2.500 mm³ (+1.500 mm³, +150 %)", "0.000 mm³ (-2.500 mm³, -100 %)", "0.500 mm³ (+0.500 mm³)"]
    assert "".join(f"<td>{cell}</td>" for cell in cells) in page


def test_other_centres_than_the_fovea_are_said():
    scans = pd.DataFrame([visit("2024-01-01"), visit("2024-02-01", centre="the scan's centre")])
    assert compared(scans).compared.iloc[0].endswith("around the scan's centre where no fovea was found")


def test_visits_are_in_the_order_of_their_dates(tmp_path, monkeypatch):
    """The summary has scans by name, and a plot joins its points in the order that it is given."""
    drawn = []
    monkeypatch.setattr("utils.segmentation.follow_up.write_visits", lambda path, title, scans: drawn.append(scans))
    dates = {"a": "2024-03-01", "b": "2023-11-20", "c": "2024-01-05"}
    write_follow_up(tmp_path, pd.DataFrame([visit(date, scan=scan) for scan, date in dates.items()]))
    assert drawn[0].scan.tolist() == pd.read_csv(tmp_path / "follow_up.csv").scan.tolist() == ["b", "c", "a"]


# ---- Whose eye it is -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("persons", "is_followed"),
    [
        (["a0", "a0"], True),
        ([None, None], True),
        (["a0", None], True),  # a scan that is no DICOM, with a table
        (["a0", "b7"], False),
        ([ANONYMISED, ANONYMISED], False),
        ([ANONYMISED, None], False),
    ],
)
def test_one_patient_id_of_several_patients_is_no_eye(tmp_path, persons, is_followed):
    visits = [visit(f"2024-0{month}-01", person=person) for month, person in enumerate(persons, 1)]
    others = [visit(f"2024-0{month}-01", patient="P2", person="c1") for month in (1, 2)]
    plots, warning = write_follow_up(tmp_path, pd.DataFrame(visits + others))
    assert [title for title, _ in plots] == (["P1, OD"] if is_followed else []) + ["P2, OD"]
    assert set(pd.read_csv(tmp_path / "follow_up.csv").patient) == ({"P1", "P2"} if is_followed else {"P2"})
    assert warning is None if is_followed else warning.startswith("Not followed over time: P1, OD. The PatientID")


def test_a_single_visit_needs_no_warning(tmp_path):
    assert write_follow_up(tmp_path, pd.DataFrame([visit("2024-01-01", person=ANONYMISED)])) == ([], None)


def person_of(path, told=None, **attributes):
    save(tomography(np.zeros((3, 7, 9), np.uint8), range(3), **attributes), path)
    (files,) = with_eyes(find_scans([path]), told) if told else find_scans([path])
    scan = read_scan(files)
    assert not any(private in repr(scan) for private in ("Doe", "DOE", "Jane", "1950"))
    return scan.person


def test_who_a_dicom_file_is_of(tmp_path):
    """Programs write one name in several ways. A checksum of 256 values tells nobody who it is."""
    path = tmp_path / "scan.dcm"
    jane = person_of(path)  # Doe^Jane, born 19500131
    assert len(jane) == 2
    assert person_of(path, PatientName="DOE^JANE^^") == jane
    assert len({jane, person_of(path, PatientName="Doe^John"), person_of(path, PatientBirthDate="19600131")}) == 3
    assert person_of(path, PatientName="", PatientBirthDate="") is None
    assert person_of(path, PatientIdentityRemoved="YES") == person_of(path, DeidentificationMethod="x") == ANONYMISED
    assert person_of(path, PatientIdentityRemoved="NO") == jane
    (tmp_path / "eyes.csv").write_text("scan,eye,patient\nscan,OD,P7\n")
    assert person_of(path, str(tmp_path / "eyes.csv"), PatientIdentityRemoved="YES") is None
