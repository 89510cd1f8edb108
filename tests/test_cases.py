"""Finding cases in every layout, and saying everything that is wrong with them."""

import re

import numpy as np
import pytest
import SimpleITK

from utils.cases import check_cases, find_cases, find_scans
from utils.errors import InputError
from utils.mhd import write_volume

SPACING_MM = (0.0117, 0.003872, 0.12)


def write_case(folder, shape=(2, 12, 10), dtype="uint8", spacing_mm=SPACING_MM, labels=(0, 1)):
    write_volume(folder / "oct.mhd", np.full(shape, 9, dtype), spacing_mm)
    if labels is not None:
        reference = np.resize(np.array(labels, np.uint8), shape)
        write_volume(folder / "reference.mhd", reference, spacing_mm)


def found(cases):
    return [(case.vendor, case.name, case.root) for case in cases]


def test_all_layouts(tmp_path):
    write_case(tmp_path / "RETOUCH-TrainingSet-Topcon" / "TRAIN049")
    write_case(tmp_path / "RETOUCH-TrainingSet-cirrus" / "TrainingCirrus" / "TRAIN001")
    write_case(tmp_path / "SPECTRALIS" / "0a1b2c")
    assert found(find_cases(tmp_path)) == [
        ("Cirrus", "TRAIN001", "RETOUCH-TrainingSet-cirrus/TrainingCirrus/TRAIN001"),
        ("Spectralis", "0a1b2c", "SPECTRALIS/0a1b2c"),
        ("Topcon", "TRAIN049", "RETOUCH-TrainingSet-Topcon/TRAIN049"),
    ]


def test_vendor_in_the_data_root_counts(tmp_path):
    write_case(tmp_path / "my Topcon scans" / "a")
    assert found(find_cases(tmp_path / "my Topcon scans")) == [("Topcon", "a", "a")]


@pytest.mark.parametrize(
    ("vendor", "rows", "dtype", "spacing_mm"),
    [
        ("Cirrus", 1024, "uint8", (0.011742, 0.001955, 0.047)),
        ("Spectralis", 496, "uint16", (0.0115, 0.003872, 0.12)),
        ("Topcon", 885, "uint8", (0.01172, 0.0026, 0.047)),
        ("Topcon", 650, "uint8", (0.01172, 0.0035, 0.047)),
    ],
)
def test_vendor_by_size_and_spacing(tmp_path, vendor, rows, dtype, spacing_mm):
    write_case(tmp_path / "data" / "a", (1, rows, 512), dtype, spacing_mm)
    assert [case.vendor for case in find_cases(tmp_path / "data")] == [vendor]


def test_unknown_vendors_are_all_named(tmp_path):
    write_case(tmp_path / "data" / "a")
    write_case(tmp_path / "data" / "b", (1, 885, 512), "uint8", (0.01172, 0.0035, 0.047))  # the spacing of 650 rows
    with pytest.raises(InputError) as raised:
        find_cases(tmp_path / "data")
    assert [message.split(":")[0].split("/")[-2] for message in raised.value.messages] == ["a", "b"]
    assert all("vendor unknown" in message for message in raised.value.messages)


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_cases(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no oct\.mhd"):
        find_cases(tmp_path)


def test_scans_from_file_case_folder_and_folder_of_cases(tmp_path):
    folder = tmp_path / "RETOUCH-TestSet-Topcon"
    write_case(folder / "TEST001", labels=None)
    write_case(folder / "TEST002")
    for path in (folder / "TEST001", folder / "TEST001" / "oct.mhd"):
        (scan,) = find_scans(path)
        assert (scan.vendor, scan.name, scan.reference_path) == ("Topcon", "TEST001", None)
    assert [scan.name for scan in find_scans(folder)] == ["TEST001", "TEST002"]
    assert find_scans(folder)[1].reference_path == folder / "TEST002" / "reference.mhd"
    assert find_scans(folder / "TEST001", "Cirrus")[0].vendor == "Cirrus"


def test_scans_of_another_name(tmp_path):
    write_volume(tmp_path / "scans" / "left.mhd", np.zeros((1, 4, 4), np.uint8), SPACING_MM)
    write_volume(tmp_path / "scans" / "right.mhd", np.zeros((1, 4, 4), np.uint8), SPACING_MM)
    assert [scan.name for scan in find_scans(tmp_path / "scans", "Cirrus")] == ["left", "right"]
    with pytest.raises(InputError, match="vendor unknown"):
        find_scans(tmp_path / "scans" / "left.mhd")
    with pytest.raises(InputError, match="expected one of Cirrus, Spectralis, Topcon"):
        find_scans(tmp_path / "scans", "Zeiss")
    with pytest.raises(InputError, match="no such file or folder"):
        find_scans(tmp_path / "scans" / "middle.mhd")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no scan"):
        find_scans(tmp_path / "empty")


def test_good_cases_pass_whatever_their_size(tmp_path):
    write_case(tmp_path / "Cirrus" / "a", labels=(0, 1, 2, 3))
    write_case(tmp_path / "Topcon" / "a", (3, 7, 5), "uint16", labels=(0,))
    check_cases(find_cases(tmp_path))


def complaints(root):
    with pytest.raises(InputError) as raised:
        check_cases(find_cases(root))
    assert all("\n" not in message for message in raised.value.messages)
    return raised.value.messages


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ((0, 255), "labels are 0 and 255.*replace 255 by that class's label"),
        ((0, 1, 4), "labels are 0, 1, 4, expected 0 background, 1 IRF, 2 SRF, 3 PED"),
        (None, r"has no reference\.mhd"),
    ],
)
def test_faults_of_the_reference(tmp_path, labels, expected):
    write_case(tmp_path / "Cirrus" / "a", labels=labels)
    (complaint,) = complaints(tmp_path)
    assert re.search(expected, complaint)


def test_all_faults_are_reported_at_once(tmp_path):
    folder = tmp_path / "Cirrus"
    write_case(folder / "a")
    (folder / "a" / "oct.raw").write_bytes(b"short")
    write_case(folder / "b")
    write_volume(folder / "b" / "reference.mhd", np.zeros((2, 12, 11), np.uint8), SPACING_MM)
    write_case(folder / "c", dtype="float32")
    write_case(folder / "d" / "e")
    write_case(folder / "f" / "e")
    write_case(tmp_path / "Topcon" / "e")
    SimpleITK.WriteImage(
        SimpleITK.GetImageFromArray(np.full((2, 12, 10), -1, np.int16)), str(folder / "f" / "e" / "reference.mhd")
    )
    lines = complaints(tmp_path)
    assert len(lines) == 6
    for part in (
        "a/oct.raw: 5 bytes, expected 240",
        "b/reference.mhd: 11 x 12 x 2 voxels, expected 10 x 12 x 2 voxels",
        "c/oct.mhd: grey values are float32",
        "d/e: 2 Cirrus cases are named e",
        "f/e: 2 Cirrus cases are named e",
        "f/e/reference.mhd: labels are -1",
    ):
        assert sum(part in line for line in lines) == 1, part
