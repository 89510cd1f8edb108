"""Devices beyond the three vendors, and the scale of pictures, which state none."""

import shutil

import numpy as np
import pytest
from dicoms import dicom, save
from foreign_data import coloured
from helpers import noise, read_csv, run_python, write_raw_case
from importing import BY_COLOUR, COLOURS, PAIRED, SAID, refusal, run_import, write_pairs
from PIL import Image
from stand_in import bright_scan, export_brightness_model

from utils.errors import InputError
from utils.evaluation.figures import roc_curves
from utils.evaluation.pairs import match_pairs
from utils.files import write_json
from utils.preparation.cases import find_cases
from utils.preparation.checks import check_headers
from utils.preparation.preprocessing import preprocess_volume, vendor_rule
from utils.segmentation.appearance import Appearance, unlike_training
from utils.volumes.mhd import write_volume
from utils.volumes.scans import find_scans, read_scan
from utils.volumes.spacing import scale_doubt
from utils.volumes.vendors import vendor_in, vendor_of_device, why_no_vendor_name

SPACING_MM = (0.0117, 0.003872, 0.12)


def read(path, **given):
    (files,) = find_scans([path])
    return read_scan(files, **given)


# ---- Which device --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "vendor"),
    [
        ("maestro2", "Topcon"),
        ("DRI-OCT_Triton", "Topcon"),
        ("RETOUCH-TrainingSet-Cirrus", "Cirrus"),
        ("plex_elite", "Other"),
        ("PLEX Elite 9000", "Other"),
        ("Nidek_RS3000", "Other"),
        ("Optovue", "Other"),
        ("canon-01", "Other"),
        ("Bioptigen", "Other"),
        ("Other", "Other"),
        ("other", None),  # a usual name of a folder
        ("canonical", None),
        ("Cirrus and Nidek", None),
        ("scan", None),
    ],
)
def test_devices_are_known_by_their_names(name, vendor):
    assert vendor_in([name]) == vendor


@pytest.mark.parametrize(
    ("manufacturer", "model", "vendor"),
    [
        ("Carl Zeiss Meditec", "CIRRUS HD-OCT 5000", "Cirrus"),
        ("Carl Zeiss Meditec", "", "Cirrus"),
        ("Carl Zeiss Meditec", "PLEX Elite 9000", "Other"),
        ("Heidelberg Engineering", "Spectralis", "Spectralis"),
        ("TOPCON", "3DOCT-1Maestro2", "Topcon"),
        ("NIDEK", "RS-3000", "Other"),
        ("a program", "", None),
    ],
)
def test_devices_that_files_name(tmp_path, manufacturer, model, vendor):
    assert vendor_of_device(manufacturer, model) == vendor
    save(dicom(noise((3, 20, 30)), Manufacturer=manufacturer, ManufacturerModelName=model), tmp_path / "scan.dcm")
    if vendor:
        assert read(tmp_path).vendor == vendor
    else:
        with pytest.raises(InputError, match=r"vendor unknown.* one of Cirrus, Spectralis, Topcon, Other"):
            read(tmp_path)


def test_a_device_of_none_of_the_three_must_state_its_spacing(tmp_path):
    Image.fromarray(noise((20, 30))).save(tmp_path / "nidek.png")
    with pytest.raises(InputError, match=r"nidek\.png: no spacing stated along x, y, z, .*: --spacing-mm X Y Z"):
        read(tmp_path / "nidek.png")
    scan = read(tmp_path / "nidek.png", spacing_mm=SPACING_MM)
    assert (scan.vendor, scan.spacing_mm, scan.notes) == ("Other", SPACING_MM, ())
    write_volume(tmp_path / "scan.mhd", noise((2, 20, 30)), (0.0117, 0.003872, 0.12))
    assert read(tmp_path / "scan.mhd", vendor="Other").spacing_mm == SPACING_MM


# ---- What is done to its scans -------------------------------------------------------------------------------------
@pytest.mark.parametrize("vendor", ["Other", "Nidek"])
def test_its_grey_values_are_neither_matched_nor_filtered(vendor):
    voxels, histogram = noise((3, 20, 30)), np.arange(256)
    expected = preprocess_volume(voxels, SPACING_MM, vendor, axial_spacing_mm=SPACING_MM[1])
    np.testing.assert_array_equal(expected, voxels)
    options = {"axial_spacing_mm": SPACING_MM[1], "reference_histogram": histogram}
    np.testing.assert_array_equal(preprocess_volume(voxels, SPACING_MM, vendor, **options), voxels)
    assert (preprocess_volume(voxels, SPACING_MM, "Cirrus", **options) != voxels).any()


@pytest.mark.parametrize("name", ["spectralis", "my device", "a_b", "9elite", "", "ALL", "Unknown", "NA", "Über"])
def test_names_that_no_vendor_can_have(name):
    assert why_no_vendor_name(name)
    with pytest.raises(ValueError, match="vendor "):
        vendor_rule(name)


def test_the_warning_says_what_the_model_has_seen():
    appearance = Appearance()
    (warning,) = unlike_training({"Spectralis": {}, "Topcon": {}}, "Other", SPACING_MM, appearance, True)
    assert warning.endswith("may never have seen; it was trained on scans of Spectralis, Topcon")
    (warning,) = unlike_training(None, "Other", SPACING_MM, appearance, True)
    assert warning.endswith("what the model was trained on is not recorded")
    assert unlike_training(None, "Cirrus", SPACING_MM, appearance, True) == []


@pytest.mark.slow
def test_segmenting_with_a_vendor_that_the_model_may_not_have_seen(tmp_path):
    model = export_brightness_model(tmp_path)
    write_volume(tmp_path / "scan.mhd", bright_scan(), SPACING_MM)
    command = ("test.py", tmp_path / "scan.mhd", "--model", model, "--output", tmp_path / "out", "--vendor")
    _, stderr = run_python(*command, "spectralis", expected=2)
    assert "expected one of Cirrus, Spectralis, Topcon, Other; did you mean Spectralis?" in stderr
    stdout, _ = run_python(*command, "Other")
    assert "a device that the model may never have seen" in stdout
    assert (tmp_path / "out" / "Other_scan.mhd").exists()


# ---- Training ------------------------------------------------------------------------------------------------------
def test_folders_are_vendors_only_if_that_is_said(tmp_path):
    for folder in ("Nidek", "Acme", "my-device", "RETOUCH-TrainingSet-Cirrus", "Other"):
        write_volume(tmp_path / folder / "a" / "oct.mhd", noise((2, 20, 30)), SPACING_MM)
    assert {case.root: case.vendor for case in find_cases(tmp_path)} == {
        "Nidek/a": "Other",
        "Other/a": "Other",
        "Acme/a": None,
        "my-device/a": None,
        "RETOUCH-TrainingSet-Cirrus/a": "Cirrus",
    }
    cases = find_cases(tmp_path, vendor_folders=True)
    assert {case.vendor for case in cases} == {"Nidek", "Acme", "my-device", "Cirrus", "Other"}
    (finding,) = check_headers(cases, need_reference=False)
    assert (finding.case.vendor, finding.remedy) == ("my-device", "rename the folder")


def test_split_and_tables_follow_the_folders(tmp_path, prepare_here):
    data, output = tmp_path / "data", tmp_path / "output"
    for place, vendor in enumerate(("Nidek", "Acme")):
        for number in range(4):
            folder = write_raw_case(data, "Spectralis", f"{vendor}{number}", seed=10 * place + number)
            (data / vendor).mkdir(exist_ok=True)
            folder.rename(data / vendor / folder.name)
    with pytest.raises(InputError):
        prepare_here(data, output)
    prepare_here(data, output, flags=("--vendor-folders",))
    parts = {part: set(read_csv(output / f"{part}_data.csv").vendor) for part in ("train", "val", "test")}
    assert all(vendors == {"Acme", "Nidek"} for vendors in parts.values())
    assert (output / "pre_processed" / "oct_imgs" / "Nidek_Nidek0.mhd").exists()
    assert set(read_csv(output / "pre_processed" / "summary.csv").vendor) >= {"Acme", "Nidek"}


def test_labels_of_own_vendors_find_their_references(tmp_path):
    labels, predictions = np.zeros((2, 4, 5), np.uint8), tmp_path / "segmented"
    for folder, name in (("Nidek", "a"), ("Acme", "b"), ("Cirrus", "c"), ("Nidek", "c")):
        write_volume(tmp_path / "data" / folder / name / "reference.mhd", labels, SPACING_MM)
    for vendor, name in (("Nidek", "a"), ("Acme", "b"), ("Cirrus", "c"), ("Other", "c")):
        write_volume(predictions / f"{vendor}_{name}.mhd", labels, SPACING_MM)
        write_json(predictions / f"{vendor}_{name}" / "scan.json", {"facts": {"vendor": vendor}})
    pairs, complaints = match_pairs(predictions, tmp_path / "data")
    assert complaints == []
    assert {(pair.vendor, pair.name) for pair in pairs} == {
        ("Nidek", "a"),
        ("Acme", "b"),
        ("Cirrus", "c"),
        ("Other", "c"),
    }


def test_curves_of_many_vendors_are_all_drawn():
    vendors = [f"Device{number}" for number in range(8)]
    curves = {(vendor, "IRF"): (np.array([0, 1]), np.array([0, 1])) for vendor in ["all", *vendors]}
    assert all(vendor in roc_curves(curves) for vendor in vendors)


# ---- Scale ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("vendor", "rows", "row_mm", "fits"),
    [
        ("Cirrus", 586, 0.00195, "0.003413"),  # 2.0 mm / 586
        ("Cirrus", 1024, 0.00195, None),
        ("Spectralis", 496, 0.003872, None),
        ("Spectralis", 853, 0.003872, "0.002251"),  # 1.92 mm / 853
        ("Spectralis", 1050, 0.003872, "0.001829"),
        ("Spectralis", 400, 0.003872, "0.0048"),
        ("Topcon", 885, 0.0026, None),
        ("Topcon", 650, 0.0026, "0.003538"),
        ("Other", 650, 0.0001, None),
    ],
)
def test_a_depth_that_the_device_does_not_have_is_asked_about(vendor, rows, row_mm, fits):
    question = scale_doubt((0.0117, row_mm, 0.12), vendor, (1, rows, 512))
    assert (question is None) == (fits is None)
    assert fits is None or question.endswith(f"if it is shown whole, say --spacing-mm 0.0117 {fits} 0.12")


def test_pictures_are_asked_about_and_volumes_not(tmp_path):
    Image.fromarray(noise((60, 30))).save(tmp_path / "picture.png")
    write_volume(tmp_path / "volume.mhd", noise((1, 60, 30)), SPACING_MM)
    assert "60 rows of 0.003872 mm are 0.23 mm" in read(tmp_path / "picture.png", vendor="Spectralis").scale_doubt
    assert read(tmp_path / "volume.mhd", vendor="Spectralis").scale_doubt is None
    assert read(tmp_path / "picture.png", vendor="Cirrus").scale_doubt is None  # taken for the whole depth


@pytest.mark.slow
def test_the_question_is_a_warning_or_a_note_where_the_scale_was_said(tmp_path):
    model = export_brightness_model(tmp_path)
    Image.fromarray(bright_scan()[0]).save(tmp_path / "picture.png")
    command = ("test.py", tmp_path / "picture.png", "--model", model, "--vendor", "Spectralis", "--output")
    stdout, _ = run_python(*command, tmp_path / "assumed")
    assert "  warning: 130 rows of 0.003872 mm are 0.5 mm, and a Spectralis scan is 1.9 mm deep" in stdout
    stdout, _ = run_python(*command, tmp_path / "said", "--spacing-mm", *SPACING_MM)
    assert "  note: 130 rows of 0.003872 mm are 0.5 mm" in stdout


# ---- Imports -------------------------------------------------------------------------------------------------------
def test_imports_take_any_device_and_ask_about_the_scale(tmp_path, capsys):
    write_pairs(tmp_path / "source", coloured(COLOURS))
    rows = 300 * 0.00387
    for vendor, flag in (("Other", ""), ("Acme", "--vendor-folders "), ("Spectralis", "")):
        said = ["--vendor", vendor, *SAID[2:]]
        output = run_import(tmp_path, "masks", *PAIRED, *BY_COLOUR, said=said)
        assert (output / vendor / "1__1-a" / "oct.mhd").exists()
        printed = capsys.readouterr().out
        assert f"next: python prepare_data.py {flag}--recipe " in printed
        assert (f"300 rows of 0.00387 mm are {rows:.2g} mm" in printed) == (vendor == "Spectralis")
        shutil.rmtree(output)
    (line,) = refusal(tmp_path, "masks", *PAIRED, *BY_COLOUR, said=["--vendor", "my-device", *SAID[2:]])
    assert line.startswith("--vendor my-device: expected letters and digits")
