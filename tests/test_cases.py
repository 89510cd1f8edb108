"""Finding cases in every layout."""

import numpy as np
import pytest

from utils.cases import find_cases
from utils.errors import InputError
from utils.mhd import write_volume

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


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_cases(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no oct\.mhd"):
        find_cases(tmp_path)
