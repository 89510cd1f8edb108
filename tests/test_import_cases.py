"""The command that turns other people's data into cases: what it is told, what it leaves on disk, what it is for."""

import json
import re
import shlex

import pytest
from foreign_data import CYST, FLUID, coloured, flat, picture, save, write_coco
from helpers import PROJECT, read_csv, run_python
from importing import BY_COLOUR, COLOURS, PAIRED, SAID, refusal, run_import, write_pairs

from utils.errors import InputError
from utils.preparation.outlined import read_outlined
from utils.tools.import_cases import main
from utils.volumes.mhd import read_volume


# ---- What is said ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"said": [*SAID[:3], "1", "1", "1"]}, "--spacing-mm 1.0 1.0 1.0: expected x 0.0005 to 0.045"),
        ({"patient": ["--patient-pattern", r"(\d{5})"]}, "1-a.png: --patient-pattern (\\d{5}) finds no patient in it"),
        ({"patient": ["--patient-pattern", r"\d"]}, "--patient-pattern \\d: expected a group"),
        ({"patient": ["--patient-pattern", "("]}, "--patient-pattern (: no regular expression"),
    ],
)
def test_what_must_be_said(tmp_path, options, expected):
    write_pairs(tmp_path / "source", coloured(COLOURS), names=("1-a",))
    (line,) = refusal(tmp_path, "masks", *PAIRED, *BY_COLOUR, **options)
    assert expected in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([*PAIRED, "--labels", "CYST=1"], "--labels CYST=1: expected TARGET=CLASS with IRF, SRF, PED"),
        ([*PAIRED, "--labels", "IRF=1", "SRF=1"], "--labels SRF=1: 1 is stated as IRF too"),
        ([*PAIRED, "--labels", "IRF=1", "SRF=1,2,3"], "are numbers and colours"),
        ([*PAIRED, "--labels", "IRF=cyst"], "--labels IRF=cyst: expected a number or a colour"),
        ([*PAIRED], "--masks: expected TARGET=PATTERN for each fluid, or one PATTERN and --labels"),
        ([*PAIRED, *BY_COLOUR, "--tolerance", "128"], "--tolerance 128: two of the stated values and 0 are only 255"),
        ([*PAIRED, *BY_COLOUR, "--annotator", "anna"], "--annotator anna: mark with {annotator}"),
        (["--images", "*/*.png", *PAIRED[2:], *BY_COLOUR], "--masks masks/*.png: has 1 *, expected 2"),
        (["--images", "images/*.jpg", *PAIRED[2:], *BY_COLOUR], "--images images/*.jpg: no file below the source"),
    ],
)
def test_what_is_said_wrongly(tmp_path, options, expected):
    write_pairs(tmp_path / "source", coloured(COLOURS), names=("1-a",))
    (line,) = refusal(tmp_path, "masks", *options)
    assert expected in line


def test_all_that_is_missing_is_named_at_once_with_an_example(tmp_path):
    *missing, example = refusal(tmp_path, "masks", "--images", "*.png", said=[], patient=[])
    assert missing == [f"--{name}: masks needs it" for name in ("masks", "patient-pattern", "spacing-mm", "vendor")]
    assert re.sub(r" /\S+", " DIR", example) == (
        r"for example: masks DIR --vendor Spectralis --patient-pattern '(\d+)_' --images 'images/*.png' "
        "--masks 'masks/*.png' --spacing-mm 0.0115 0.00387 --output DIR"
    )


def test_b_scans_by_themselves_need_no_third_spacing_and_may_each_be_of_a_patient(tmp_path):
    write_pairs(tmp_path / "source", coloured(COLOURS))
    said = [*SAID[:2], "--spacing-mm", "0.0115", "0.00387"]
    output = run_import(tmp_path, "masks", *PAIRED, *BY_COLOUR, said=said, patient=["--patient-pattern", "each"])
    assert sorted(path.name for path in (output / "Spectralis").iterdir()) == ["1-a__1-a", "2-b__2-b"]
    assert read_volume(output / "Spectralis" / "1-a__1-a" / "oct.mhd")[1] == pytest.approx((0.0115, 0.00387, 0.12))


def test_commands_of_the_documentation_are_understood():
    """All that is wrong with them is that their folder is not here."""
    text = (PROJECT / "docs" / "data.md").read_text("utf-8")
    blocks = re.findall(r"^```shell\n(.*?)^```$", text, re.M | re.S)
    assert len(blocks) == 7
    for block in blocks:
        command = shlex.split(block.replace("\\\n", " "))
        assert command[:3] == ["python", "-m", "utils.tools.import_cases"]
        with pytest.raises(InputError, match=f"^{re.escape(command[4])}: no such folder$"):
            main(command[3:])


def test_two_images_of_one_name_are_refused(tmp_path):
    write_pairs(tmp_path / "source", coloured(COLOURS), names=("1-a", "1-A"))
    (line,) = refusal(tmp_path, "masks", *PAIRED, *BY_COLOUR)
    assert "would be case 1__1-a, as" in line.replace("1__1-A", "1__1-a")


# ---- On disk -------------------------------------------------------------------------------------------------------
def test_a_dry_run_writes_nothing(tmp_path, capsys):
    write_pairs(tmp_path / "source", coloured(COLOURS))
    output = run_import(tmp_path, "masks", *PAIRED, *BY_COLOUR, "--dry-run")
    assert not output.exists()
    assert "pairs     2, a case each" in capsys.readouterr().out


def test_the_same_command_goes_on_and_another_overwrites_nothing(tmp_path, capsys):
    source = tmp_path / "source"
    write_pairs(source, coloured(COLOURS))
    command = ["masks", *PAIRED, *BY_COLOUR]
    output = run_import(tmp_path, *command, "--licence", "CC BY 4.0")
    folder = output / "Spectralis" / "1__1-a"
    before = (folder / "oct.mhd").stat().st_mtime_ns
    for file in (output / "Spectralis" / "2__2-b").iterdir():
        file.unlink()
    (output / "Spectralis" / "2__2-b").rmdir()
    save(source / "images" / "3-c.png", picture(3))
    save(source / "masks" / "3-c.png", coloured(COLOURS))
    capsys.readouterr()
    run_import(tmp_path, *command, "--licence", "CC BY 4.0")
    assert "2 cases written" in capsys.readouterr().out
    assert (folder / "oct.mhd").stat().st_mtime_ns == before
    (record,) = json.loads((output / "provenance.json").read_text())["imports"]
    assert record["licence"] == "CC BY 4.0"
    assert record["settings"]["labels"] == BY_COLOUR[1:]
    assert sorted(record["cases"]) == [f"Spectralis/{name}" for name in ("1__1-a", "2__2-b", "3__3-c")]
    assert list(record["cases"]["Spectralis/1__1-a"]) == ["images/1-a.png", "masks/1-a.png"]
    with pytest.raises(InputError, match=r"1__1-a: is there, of another import: python -m utils.tools.import_cases"):
        run_import(tmp_path, "masks", *PAIRED, "--labels", "PED=255,0,0", "SRF=0,255,0")
    save(source / "masks" / "1-a.png", coloured({(255, 0, 0): FLUID}))
    with pytest.raises(InputError, match="1__1-a: is there, from source files that have changed since") as caught:
        run_import(tmp_path, *command)
    assert len(caught.value.messages) == 1
    (output / "provenance.json").unlink()
    with pytest.raises(InputError, match="1__1-a: is there, of unknown origin"):
        run_import(tmp_path, *command)
    assert (folder / "oct.mhd").stat().st_mtime_ns == before


def test_a_second_data_set_joins_the_first(tmp_path):
    write_pairs(tmp_path / "source", coloured(COLOURS))
    run_import(tmp_path, "masks", *PAIRED, *BY_COLOUR)
    for path in (tmp_path / "source").glob("*/*.png"):
        path.rename(path.with_name(f"7{path.name}"))
    output = run_import(tmp_path, "masks", *PAIRED, *BY_COLOUR, said=["--vendor", "Topcon", *SAID[2:]])
    assert len(json.loads((output / "provenance.json").read_text())["imports"]) == 2
    assert len(list(output.glob("*/*/oct.mhd"))) == 4


# ---- What was outlined ---------------------------------------------------------------------------------------------
ROOTS = ["Spectralis/1__1-a", "Spectralis/2__2-b"]


@pytest.mark.parametrize(
    ("options", "outlined", "unknown"),
    [
        ([*PAIRED, *BY_COLOUR, "OTHER1=0,0,255", "BACKGROUND=9,9,9"], ("IRF", "SRF"), "PED"),
        ([*PAIRED, *BY_COLOUR, "PED=9,9,9"], ("IRF", "SRF", "PED"), None),
        ([*PAIRED, *BY_COLOUR, "--outlined", "PED", "IRF"], ("IRF", "PED"), "SRF"),
        ([*PAIRED[:2], "--masks", "SRF=masks/*.png", "--tolerance", "127"], ("SRF",), "IRF, PED"),
    ],
)
def test_a_fluid_without_a_class_is_not_outlined(tmp_path, options, outlined, unknown, capsys):
    write_pairs(tmp_path / "source", coloured({(255, 255, 255): CYST} if "SRF=masks/*.png" in options else COLOURS))
    output = run_import(tmp_path, "masks", *options)
    assert read_outlined(output) == dict.fromkeys(ROOTS, outlined)
    lines = [line for line in capsys.readouterr().out.splitlines() if "not outlined" in line]
    assert lines == ([f"not outlined: {unknown}; unknown there, not absent"] if unknown else [])


def test_an_interrupted_import_leaves_no_case_without_its_row(tmp_path, monkeypatch):
    write_pairs(tmp_path / "source", coloured(COLOURS))
    (tmp_path / "data").mkdir()
    path, command = tmp_path / "data" / "outlined.csv", ["masks", *PAIRED, *BY_COLOUR]
    path.write_text("root,outlined\nSpectralis/1__1-a,PED\nTopcon,IRF\n")  # of another import
    with monkeypatch.context() as patch:
        patch.setattr("utils.tools.import_cases.write_case", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_import(tmp_path, *command)
    expected = dict.fromkeys(ROOTS, ("IRF", "SRF")) | {"Topcon": ("IRF",)}
    for _ in range(2):
        assert read_outlined(path.parent) == expected
        before = path.stat().st_mtime_ns
        run_import(tmp_path, *command)
        assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("by_hand", [{ROOTS[0]: "IRF", ROOTS[1]: "IRF SRF"}, {"Spectralis": "PED"}, {}])
def test_the_same_import_leaves_what_was_said_by_hand_since(tmp_path, by_hand):
    write_pairs(tmp_path / "source", coloured(COLOURS))
    output = run_import(tmp_path, "masks", *PAIRED, *BY_COLOUR)
    rows = [f"{root},{fluids}\n" for root, fluids in by_hand.items()]
    (output / "outlined.csv").write_text("".join(["root,outlined\n", *rows]))
    run_import(tmp_path, "masks", *PAIRED, *BY_COLOUR)
    expected = by_hand or dict.fromkeys(ROOTS, "IRF SRF")
    assert read_outlined(output) == {root: tuple(fluids.split()) for root, fluids in expected.items()}


def test_a_table_of_outlined_fluids_that_cannot_be_read_is_refused(tmp_path):
    write_pairs(tmp_path / "source", coloured(COLOURS))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "outlined.csv").write_text("root;outlined\n")
    (line,) = refusal(tmp_path, "masks", *PAIRED, *BY_COLOUR)
    assert "outlined.csv: its columns are root;outlined" in line
    assert not (tmp_path / "data" / "provenance.json").exists()


# ---- Used ----------------------------------------------------------------------------------------------------------
def write_many(tmp_path):
    """Six patients with two pictures each, outlined in COCO's layout; imported. Returns the folder."""
    outlined = [("cyst", flat(CYST)), ("fluid", flat(FLUID))]
    images = {f"CNV-{patient}-{n}.jpg": outlined for patient in range(6) for n in range(2)}
    write_coco(tmp_path / "source" / "_annotations.coco.json", images)
    options = ["--masks", "_annotations.coco.json", "--labels", "IRF=cyst", "SRF=fluid"]
    return run_import(tmp_path, "coco", *options, patient=["--patient-pattern", r"CNV-(\d+)-"])


def test_imported_cases_are_prepared_and_split_by_patient(tmp_path, prepare_here):
    data = write_many(tmp_path)
    prepare_here(data, tmp_path / "output", "PATIENT_PATTERN=^(.+?)__")
    rows = read_csv(tmp_path / "output" / "pre_processed" / "slice_gt.csv")
    assert len(rows) == 12
    assert rows[["is_IRF", "is_SRF"]].all(axis=None)
    parts = [read_csv(tmp_path / "output" / f"{part}_data.csv") for part in ("train", "val", "test")]
    patients = [set(rows.image_name.str.partition("__")[0]) for rows in parts]
    assert sum(map(len, patients)) == 6
    assert all(patients)
    assert [len(rows) for rows in parts] == [2 * len(of_part) for of_part in patients]


@pytest.mark.slow
def test_imported_cases_are_trained_on(tmp_path):
    data = write_many(tmp_path)
    settings = {"DATA_ROOT": data, "OUTPUT_ROOT": tmp_path / "output", "PATIENT_PATTERN": "^(.+?)__"}
    settings |= {"BASE_FILTERS": 2, "BATCH_SIZE": 4, "EPOCH": 1, "STEPS_PER_EPOCH": 2, "VALIDATION_B_SCANS": 2}
    given = [argument for name, value in settings.items() for argument in ("--set", f"{name}={value}")]
    for script in ("prepare_data.py", "model_training.py"):
        run_python(script, *given)
    assert (tmp_path / "output" / "runs" / "unet" / "segmentation" / "best.keras").is_file()
