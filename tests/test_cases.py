"""Finding cases in every layout."""

import os

import numpy as np
import pytest

from utils.errors import InputError
from utils.preparation.cases import find_cases, volumes_of_no_case
from utils.preparation.checks import check_headers
from utils.volumes.mhd import read_volume, write_volume

SPACING_MM = (0.0117, 0.003872, 0.12)


def write_case(folder, shape=(2, 12, 10), dtype="uint8", spacing_mm=SPACING_MM, with_reference=True):
    write_volume(folder / "oct.mhd", np.full(shape, 9, dtype), spacing_mm)
    if with_reference:
        write_volume(folder / "reference.mhd", np.zeros(shape, np.uint8), spacing_mm)


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


def test_the_nearest_folder_that_names_a_vendor_counts(tmp_path):
    write_case(tmp_path / "compared with Cirrus" / "Topcon" / "a")
    assert [case.vendor for case in find_cases(tmp_path)] == ["Topcon"]


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


def test_unknown_vendor_is_none(tmp_path):
    write_case(tmp_path / "data" / "a")
    write_case(tmp_path / "data" / "b", (1, 885, 512), "uint8", (0.01172, 0.0035, 0.047))  # the spacing of 650 rows
    write_case(tmp_path / "data" / "c")
    (tmp_path / "data" / "c" / "oct.mhd").write_text("no header")
    assert [case.vendor for case in find_cases(tmp_path / "data")] == [None, None, None]


def test_linked_folders_are_searched(tmp_path):
    write_case(tmp_path / "elsewhere" / "Topcon" / "a")
    write_case(tmp_path / "elsewhere" / "0a1b2c")
    (tmp_path / "data" / "Cirrus").mkdir(parents=True)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere" / "Topcon")
    (tmp_path / "data" / "Cirrus" / "b").symlink_to(tmp_path / "elsewhere" / "0a1b2c")
    assert found(find_cases(tmp_path / "data")) == [("Cirrus", "b", "Cirrus/b"), (None, "a", "linked/a")][::-1]


def test_data_root_is_taken_as_it_is(tmp_path, monkeypatch):
    folder = tmp_path / "Topcon [1]"
    write_case(folder / "a")
    assert found(find_cases(folder)) == [("Topcon", "a", "a")]
    monkeypatch.chdir(folder / "a")
    write_volume(folder / "a" / "oct.mhd", np.zeros((1, 650, 512), np.uint8), (0.01172, 0.0035, 0.047))
    assert found(find_cases(".")) == [("Topcon", "a", ".")]


def test_reference_alone_is_a_case(tmp_path):
    write_case(tmp_path / "Cirrus" / "a")
    (tmp_path / "Cirrus" / "a" / "oct.mhd").unlink()
    (case,) = find_cases(tmp_path)
    assert case.reference_path == tmp_path / "Cirrus" / "a" / "reference.mhd"


def test_names_whatever_their_case(tmp_path):
    write_case(tmp_path / "Cirrus" / "a")
    for old, new in (("oct.mhd", "OCT.MHD"), ("oct.raw", "Oct.RAW"), ("reference.mhd", "Reference.mhd")):
        (tmp_path / "Cirrus" / "a" / old).rename(tmp_path / "Cirrus" / "a" / new)
    (case,) = find_cases(tmp_path)
    assert (case.oct_path.name, case.reference_path.name) == ("OCT.MHD", "Reference.mhd")
    assert check_headers([case]) == []
    np.testing.assert_array_equal(read_volume(case.oct_path)[0], np.full((2, 12, 10), 9))


def test_volumes_of_no_case_are_told(tmp_path):
    write_case(tmp_path / "Cirrus" / "a")
    write_volume(tmp_path / "Cirrus" / "b" / "scan.mhd", np.zeros((1, 5, 5), np.uint8), SPACING_MM)
    assert volumes_of_no_case(tmp_path) == [tmp_path / "Cirrus" / "b" / "scan.mhd"]


def test_a_link_to_a_folder_above_is_not_followed_for_ever(tmp_path):
    write_case(tmp_path / "Cirrus" / "a")
    (tmp_path / "Cirrus" / "above").symlink_to(tmp_path)
    assert [case.root for case in find_cases(tmp_path)] == ["Cirrus/a"]


def test_a_folder_that_no_table_can_name_is_a_finding(tmp_path):
    write_case(tmp_path / "Cirrus" / os.fsdecode(b"M\xfcller"))
    write_case(tmp_path / "Cirrus" / "M\u00fcller 2")
    write_case(tmp_path / "Cirrus" / "two\nlines")
    cases = find_cases(tmp_path)
    assert [case.name for case in cases] == ["M\u00fcller", "M\u00fcller 2", "two_lines"]
    findings = check_headers(cases)
    assert [finding.case for finding in findings] == [cases[0], cases[2]]
    assert {finding.found for finding in findings} == {"the folder's name is no line of UTF-8"}


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_cases(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no oct\.mhd"):
        find_cases(tmp_path)
