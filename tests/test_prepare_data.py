"""prepare_data.py as a user runs it: what it writes, and what it refuses to start with."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

import config
import prepare_data
from utils.errors import InputError
from utils.mhd import VENDORS, open_volume, read_volume, write_volume
from utils.preprocessing import preprocess_reference, preprocess_volume

PROJECT = Path(__file__).resolve().parents[1]
REAL_SCANS = PROJECT.parent / "shared" / "data" / "real_oct"
SPACING_Y_MM = {"Cirrus": 0.001955, "Spectralis": 0.003872, "Topcon": 0.0026}
COLUMNS = ["image_name", "vendor", "root", "slice", "is_IRF", "is_SRF", "is_PED"]
SLICES = 2


def write_case(data_root, vendor, name, seed=0):
    """A tiny case: bright band, dark above and below; label 1 in slice 0, 2 and 3 in slice 1."""
    rng = np.random.default_rng(seed)
    shape = (SLICES, 300, 140)
    voxels = rng.integers(1, 100, shape)
    voxels[:, 100:200] = rng.integers(100, 256, (SLICES, 100, 140))
    reference = np.zeros(shape, np.uint8)
    reference[0, 140:150, 20:60] = 1
    reference[1, 140:150, 20:60] = 2
    reference[1, 170:180, 20:60] = 3
    if VENDORS[vendor].element_type == "uint16":
        voxels = voxels * 257
    spacing_mm = (0.0117, SPACING_Y_MM[vendor], 0.05)
    folder = data_root / f"RETOUCH-TrainingSet-{vendor}" / name
    write_volume(folder / "oct.mhd", voxels.astype(VENDORS[vendor].element_type), spacing_mm)
    write_volume(folder / "reference.mhd", reference, spacing_mm)
    return folder


def arguments(data_root, output_root, *settings):
    settings = [f"DATA_ROOT={data_root}", f"OUTPUT_ROOT={output_root}", *settings]
    return [argument for setting in settings for argument in ("--set", setting)]


def prepare(*settings):
    """Run the script as a user does."""
    command = [sys.executable, "prepare_data.py", *arguments(*settings)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def prepare_here(monkeypatch):
    """Run the script in this process, after which the settings are as before."""
    for name, value in config.values().items():
        monkeypatch.setattr(config, name, value)
    return lambda *settings: prepare_data.main(arguments(*settings))


def read_csv(path):
    return pandas.read_csv(path, keep_default_na=False, dtype={"image_name": str})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Three vendors with three cases each, one of them named NA, prepared by two processes."""
    folder = tmp_path_factory.mktemp("prepared")
    for vendor in VENDORS:
        for number, name in enumerate(["NA", "007", "case"]):
            write_case(folder / "data", vendor, name, seed=number)
    result = prepare(folder / "data", folder / "output", "WORKERS=2")
    assert result.returncode == 0, result.stderr
    return folder, result


def test_every_volume_is_written_on_the_common_grid(prepared):
    folder, _ = prepared
    for kind in ("oct_imgs", "oct_masks", "roi_masks"):
        files = sorted(path.name for path in (folder / "output" / "pre_processed" / kind).iterdir())
        expected = [f"{v}_{n}.{s}" for v in VENDORS for n in ("NA", "007", "case") for s in ("mhd", "raw")]
        assert files == sorted(expected)
        for vendor, rows in {"Cirrus": 256, "Spectralis": 300, "Topcon": 256}.items():  # 151 and 201 are padded
            voxels, spacing_mm = open_volume(folder / "output" / "pre_processed" / kind / f"{vendor}_NA.mhd")
            assert (voxels.shape, voxels.dtype) == ((SLICES, rows, 140), np.uint8)
            assert spacing_mm == pytest.approx((0.0117, 0.003872, 0.05))


def test_volumes_hold_what_the_library_computes(prepared):
    folder, _ = prepared
    output = folder / "output" / "pre_processed"
    histogram = pandas.read_csv(output / "reference_histogram.csv")
    assert list(histogram) == ["grey_value", "count"]
    assert histogram["grey_value"].tolist() == list(range(256))
    assert histogram["count"].sum() == SLICES * 300 * 140  # one whole Spectralis volume
    case = folder / "data" / "RETOUCH-TrainingSet-Cirrus" / "NA"
    voxels, spacing_mm = read_volume(case / "oct.mhd")
    grid = {"axial_spacing_mm": 0.003872, "minimum_shape": (256, 128)}
    expected = preprocess_volume(
        voxels, spacing_mm, "Cirrus", reference_histogram=histogram["count"].to_numpy(), **grid
    )
    np.testing.assert_array_equal(open_volume(output / "oct_imgs" / "Cirrus_NA.mhd")[0], expected)
    mask = open_volume(output / "oct_masks" / "Cirrus_NA.mhd")[0]
    np.testing.assert_array_equal(
        mask, preprocess_reference(read_volume(case / "reference.mhd")[0], spacing_mm, **grid)
    )
    roi = open_volume(output / "roi_masks" / "Cirrus_NA.mhd")[0]
    assert set(np.unique(roi)) == {0, 1}
    assert roi[mask > 0].all()
    assert not roi[expected == 0].any()


def test_reference_is_the_first_spectralis_case_that_trains(prepared):
    folder, _ = prepared
    train = read_csv(folder / "output" / "train_data.csv")
    name = min(train.loc[train["vendor"] == "Spectralis", "image_name"])
    voxels, _ = read_volume(folder / "data" / "RETOUCH-TrainingSet-Spectralis" / name / "oct.mhd")
    histogram = pandas.read_csv(folder / "output" / "pre_processed" / "reference_histogram.csv")
    np.testing.assert_array_equal(histogram["count"], np.bincount(voxels.ravel() // 257, minlength=256))


def test_slice_table(prepared):
    folder, _ = prepared
    table = read_csv(folder / "output" / "pre_processed" / "slice_gt.csv")
    assert list(table) == COLUMNS
    assert len(table) == 9 * SLICES
    rows = table[(table["vendor"] == "Topcon") & (table["image_name"] == "NA")]
    assert rows["root"].unique().tolist() == ["RETOUCH-TrainingSet-Topcon/NA"]
    assert rows[COLUMNS[3:]].to_numpy().tolist() == [[0, 1, 0, 0], [1, 0, 1, 1]]


def test_parts_share_no_case_and_lose_none(prepared):
    folder, _ = prepared
    parts = [read_csv(folder / "output" / f"{part}_data.csv") for part in ("train", "val", "test")]
    assert all(list(part) == COLUMNS for part in parts)
    assert [len(part) for part in parts] == [3 * SLICES] * 3  # of three cases a vendor, one each
    together = pandas.concat(parts).sort_values(COLUMNS).reset_index(drop=True)
    whole = read_csv(folder / "output" / "pre_processed" / "slice_gt.csv").sort_values(COLUMNS).reset_index(drop=True)
    pandas.testing.assert_frame_equal(together, whole)
    cases = [set(zip(part["vendor"], part["image_name"], strict=True)) for part in parts]
    assert all(len(one) == 3 for one in cases)
    assert len(set.union(*cases)) == 9


def test_summary_per_vendor(prepared):
    _, result = prepared
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Topcon")]
    assert line.split()[1:] == ["3", "6", "3", "3", "3", "3", "3", "3"]
    assert "Volumes: 3 train, 3 val, 3 test" in result.stdout


def test_no_unfinished_file_is_left(prepared):
    folder, _ = prepared
    assert not list((folder / "output").rglob(".unfinished*"))


def test_existing_split_wins_without_spectralis(tmp_path, prepare_here, capsys):
    for number in range(4):
        write_case(tmp_path / "data", "Cirrus", f"c{number}", seed=number)
    output = tmp_path / "output"
    output.mkdir()
    for part, name in (("test", "c0"), ("val", "c1"), ("train", "c2")):
        (output / f"{part}_data.csv").write_text(f"vendor,image_name\nCirrus,{name}\n")
    (output / "pre_processed").mkdir()
    (output / "pre_processed" / "reference_histogram.csv").write_text("grey_value,count\n0,1\n")
    prepare_here(tmp_path / "data", output)
    out, err = capsys.readouterr()
    assert "grey values are not matched" in err
    assert "1 volumes are in no part" in out
    assert set(read_csv(output / "test_data.csv")["image_name"]) == {"c0"}
    assert set(read_csv(output / "train_data.csv")["image_name"]) == {"c2"}
    assert not (output / "pre_processed" / "reference_histogram.csv").exists()  # an earlier run's


def test_reference_histogram_from_a_file(tmp_path, prepare_here):
    write_case(tmp_path / "data", "Cirrus", "c0")
    (tmp_path / "other.csv").write_text("grey_value,count\n77,5\n")
    prepare_here(tmp_path / "data", tmp_path / "output", f"REFERENCE_HISTOGRAM={tmp_path / 'other.csv'}")
    voxels, _ = open_volume(tmp_path / "output" / "pre_processed" / "oct_imgs" / "Cirrus_c0.mhd")
    assert set(np.unique(voxels)) == {0, 77}


def truncate(folder):
    (folder / "oct.raw").write_bytes(bytes(10))


def remove_reference(folder):
    (folder / "reference.mhd").unlink()


def make_0_255(folder):
    reference, spacing_mm = read_volume(folder / "reference.mhd")
    write_volume(folder / "reference.mhd", np.where(reference > 0, 255, 0).astype(np.uint8), spacing_mm)


def crop_reference(folder):
    reference, spacing_mm = read_volume(folder / "reference.mhd")
    write_volume(folder / "reference.mhd", reference[:, :-1], spacing_mm)


def hide_vendor(folder):
    folder.parent.rename(folder.parent.with_name("scans"))


@pytest.mark.parametrize(
    ("spoil", "settings", "expected"),
    [
        (truncate, [], "oct.raw: 10 bytes, expected 84000"),
        (remove_reference, [], "has no reference.mhd"),
        (make_0_255, [], "labels are 0 and 255"),
        (crop_reference, [], "140 x 299 x 2 voxels, expected 140 x 300 x 2"),
        (hide_vendor, [], "vendor unknown"),
        (None, ["REFERENCE_CASE=TRAIN999"], "no Spectralis case"),
        (None, ["REFERENCE_HISTOGRAM=nowhere.csv"], "nowhere.csv"),
        (None, ["PATIENT_PATTERN=^X"], "does not match PATIENT_PATTERN"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, prepare_here, spoil, settings, expected):
    folder = write_case(tmp_path / "data", "Topcon", "TRAIN049")
    if spoil is not None:
        spoil(folder)
    with pytest.raises(InputError) as raised:
        prepare_here(tmp_path / "data", tmp_path / "output", *settings)
    (message,) = raised.value.messages
    assert "\n" not in message
    assert expected in message
    assert not (tmp_path / "output").exists()


def test_bad_input_ends_the_script_with_2_and_a_line_each(tmp_path):
    truncate(write_case(tmp_path / "data", "Topcon", "TRAIN049"))
    make_0_255(write_case(tmp_path / "data", "Cirrus", "TRAIN001"))
    result = prepare(tmp_path / "data", tmp_path / "output")
    assert result.returncode == 2
    assert [line.split(": ")[:2] for line in result.stderr.splitlines()] == [["prepare_data.py", "error"]] * 2
    assert not (tmp_path / "output").exists()


def test_split_that_names_a_missing_case_is_refused(tmp_path, prepare_here):
    write_case(tmp_path / "data", "Spectralis", "a")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "test_data.csv").write_text("vendor,image_name\nSpectralis,b\n")
    with pytest.raises(InputError, match="Spectralis case b is not in the data"):
        prepare_here(tmp_path / "data", tmp_path / "output")
    assert not (tmp_path / "output" / "pre_processed").exists()


@pytest.mark.slow
@pytest.mark.skipif(not REAL_SCANS.is_dir(), reason="real scans are not beside the project")
def test_real_scans(tmp_path):
    result = prepare(REAL_SCANS, tmp_path, r"PATIENT_PATTERN=^[A-Z]+-(\d+)")
    assert result.returncode == 0, result.stderr
    parts = [set(read_csv(tmp_path / f"{part}_data.csv")["image_name"]) for part in ("train", "val", "test")]
    assert sum(map(len, parts)) == 141
    patients = [{name.split("-")[1] for name in part} for part in parts]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 81
