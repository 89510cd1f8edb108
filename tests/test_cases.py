"""Finding cases in every layout."""

import numpy as np
import pytest

from utils.cases import find_cases, find_scans
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
    assert [scan.name for scan in find_scans(tmp_path / "data", "Cirrus")] == ["a", "b"]


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


def test_scans_from_file_case_folder_and_folder_of_cases(tmp_path):
    folder = tmp_path / "RETOUCH-TestSet-Topcon"
    write_case(folder / "TEST001", with_reference=False)
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
    with pytest.raises(InputError) as raised:
        find_scans(tmp_path / "scans")
    assert len(raised.value.messages) == 2
    for name, message in zip(("left", "right"), raised.value.messages, strict=True):
        assert f"{name}.mhd: vendor unknown" in message
        assert "4 x 4 uint8 pixels of 0.0117 x 0.003872 mm" in message
    with pytest.raises(InputError, match="expected one of Cirrus, Spectralis, Topcon"):
        find_scans(tmp_path / "scans", "Zeiss")
    with pytest.raises(InputError, match="no such file or folder"):
        find_scans(tmp_path / "scans" / "middle.mhd")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no scan"):
        find_scans(tmp_path / "empty")
