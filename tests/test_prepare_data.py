"""prepare_data.py as a user runs it: what it writes, and what it refuses to start with."""

import itertools
import os

import numpy as np
import pandas
import pytest
import SimpleITK
from helpers import PROJECT, SLICES, prepare, read_csv, write_raw_case
from PIL import Image

from utils.errors import InputError
from utils.preparation.preprocessing import preprocess_reference, preprocess_volume
from utils.volumes.mhd import open_volume, read_header, read_volume, write_volume
from utils.volumes.vendors import VENDORS

REAL_SCANS = PROJECT.parent / "shared" / "data" / "real_oct"
COLUMNS = ["image_name", "vendor", "root", "slice", "is_IRF", "is_SRF", "is_PED"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Three vendors with three cases each, one of them named NA, prepared by two processes."""
    folder = tmp_path_factory.mktemp("prepared")
    for number, (vendor, name) in enumerate(itertools.product(VENDORS, ["NA", "007", "case"])):
        write_raw_case(folder / "data", vendor, name, seed=number)
    stdout, _ = prepare(folder / "data", folder / "output", "WORKERS=2")
    return folder, stdout


def test_every_volume_is_written_on_the_common_grid(prepared):
    folder, _ = prepared
    for kind in ("oct_imgs", "oct_masks", "roi_masks"):
        files = sorted(path.name for path in (folder / "output" / "pre_processed" / kind).iterdir())
        expected = [f"{v}_{n}.{s}" for v in VENDORS for n in ("NA", "007", "case") for s in ("mhd", "raw")]
        assert files == sorted(expected)
        for vendor, rows in {"Cirrus": 151, "Spectralis": 300, "Topcon": 201}.items():
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
    grid = {"axial_spacing_mm": 0.003872}
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


def test_summary_and_overview(prepared):
    folder, stdout = prepared
    summary = pandas.read_csv(folder / "output" / "pre_processed" / "summary.csv").set_index("vendor")
    assert summary["volumes"].to_dict() == {"Cirrus": 3, "Spectralis": 3, "Topcon": 3, "all": 9}
    assert (summary["b_scans_with_SRF_percent"] == 50).all()
    # 10 x 40 pixels of 0.0117 x 0.0026 mm, 0.05 mm apart
    assert summary.loc["Topcon", "IRF_median_mm3"] == pytest.approx(400 * 0.0117 * 0.0026 * 0.05, abs=1e-4)
    assert "IRF_median_mm3" in stdout
    assert "Split: 3 train, 3 val, 3 test volumes" in stdout
    with Image.open(folder / "output" / "pre_processed" / "overview.png") as overview:
        assert min(overview.size) > 300


def test_no_unfinished_file_is_left(prepared):
    folder, _ = prepared
    assert not list((folder / "output").rglob(".unfinished*"))


def test_cases_too_small_for_a_patch_are_told(tmp_path, prepare_here, capsys):
    """151 and 300 rows of 140 columns: the first fill 30 % of a patch of 512 x 128."""
    write_raw_case(tmp_path / "data", "Cirrus", "c0")
    write_raw_case(tmp_path / "data", "Spectralis", "s0")
    prepare_here(tmp_path / "data", tmp_path / "output", "PATCH_SIZE_H=512")
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "give no patch" in line]
    assert warning.startswith("warning: 1 of 2 cases give no patch, as RETOUCH-TrainingSet-Cirrus/c0: ")
    assert "151 x 140 pixels (rows x columns) fill less than 50% of a patch of 512 x 128; lower PATCH_SIZE_H" in warning
    prepare_here(tmp_path / "data", tmp_path / "output")
    assert "give no patch" not in capsys.readouterr().out


def test_reference_histogram_from_a_file(tmp_path, prepare_here):
    write_raw_case(tmp_path / "data", "Cirrus", "c0")
    (tmp_path / "other.csv").write_text("grey_value,count\n77,5\n")
    prepare_here(tmp_path / "data", tmp_path / "output", f"REFERENCE_HISTOGRAM={tmp_path / 'other.csv'}")
    voxels, _ = open_volume(tmp_path / "output" / "pre_processed" / "oct_imgs" / "Cirrus_c0.mhd")
    assert set(np.unique(voxels)) == {77}


def test_grey_values_stay_as_they_are_where_they_are_not_to_be_matched(tmp_path, prepare_here):
    for number, vendor in enumerate(("Spectralis", "Spectralis", "Spectralis", "Cirrus")):
        write_raw_case(tmp_path / "data", vendor, f"c{number}", seed=number)
    values = []
    for matched in (True, False):
        output = tmp_path / str(matched)
        prepare_here(tmp_path / "data", output, f"MATCH_INTENSITIES={matched}")
        voxels, _ = open_volume(output / "pre_processed" / "oct_imgs" / "Cirrus_c3.mhd")
        values.append(np.array(voxels))
        assert (output / "pre_processed" / "reference_histogram.csv").exists() == matched
    assert (values[0] != values[1]).mean() > 0.01


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
    ("spoil", "expected"),
    [
        (truncate, "10 bytes"),
        (remove_reference, "reference.mhd is missing"),
        (make_0_255, "replace 255"),
        (crop_reference, "299 x 2 voxels"),
        (hide_vendor, "vendor unknown"),
    ],
)
def test_bad_case_is_told_and_nothing_is_written(tmp_path, prepare_here, capsys, monkeypatch, spoil, expected):
    monkeypatch.setenv("COLUMNS", "400")  # a table that breaks no cell
    spoil(write_raw_case(tmp_path / "data", "Topcon", "TRAIN049"))
    with pytest.raises(InputError, match=r"^1 case below .*--skip-bad$"):
        prepare_here(tmp_path / "data", tmp_path / "output")
    table = capsys.readouterr().err
    assert "what to do" in table
    assert expected in " ".join(table.split())
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("REFERENCE_CASE=TRAIN999", "no Spectralis case"),
        ("REFERENCE_HISTOGRAM=nowhere.csv", "nowhere.csv"),
        ("PATIENT_PATTERN=^X", "does not match PATIENT_PATTERN"),
        ("DASK_SCHEDULER=nonsense", "no Dask scheduler answers"),
    ],
)
def test_bad_setting_is_one_line_and_nothing_is_written(tmp_path, prepare_here, setting, expected):
    write_raw_case(tmp_path / "data", "Topcon", "TRAIN049")
    with pytest.raises(InputError, match=expected) as raised:
        prepare_here(tmp_path / "data", tmp_path / "output", setting)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "output").exists()


def test_bad_cases_end_the_script_with_2_and_can_be_skipped(tmp_path):
    write_raw_case(tmp_path / "data", "Topcon", "TRAIN050", seed=1)
    truncate(write_raw_case(tmp_path / "data", "Topcon", "TRAIN049"))
    make_0_255(write_raw_case(tmp_path / "data", "Cirrus", "TRAIN001", seed=2))
    _, stderr = prepare(tmp_path / "data", tmp_path / "output", expected=2)
    assert [line for line in stderr.splitlines() if "error" in line] == [
        f"prepare_data.py: error: 2 cases below {tmp_path / 'data'} cannot be used, see the table above; "
        "fix them, or leave them out with --skip-bad"
    ]
    assert not (tmp_path / "output").exists()
    prepare(tmp_path / "data", tmp_path / "output", flags=["--skip-bad"])
    folder = tmp_path / "output" / "pre_processed"
    assert set(read_csv(folder / "slice_gt.csv")["image_name"]) == {"TRAIN050"}
    skipped = pandas.read_csv(folder / "skipped.csv")
    assert skipped["case"].tolist() == ["RETOUCH-TrainingSet-Topcon/TRAIN049", "RETOUCH-TrainingSet-Cirrus/TRAIN001"]
    assert skipped["found"].tolist() == ["oct.raw: 10 bytes", "reference.mhd: holds 0 and 255"]


def test_names_of_any_bytes_in_a_locale_of_ascii(tmp_path, monkeypatch):
    """Umlauts in UTF-8 are prepared, capitals matter not, a folder of Latin-1 is named, a volume of no case too."""
    for name, value in (("LC_ALL", "C"), ("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0")):
        monkeypatch.setenv(name, value)
    data = tmp_path / "d\u00e4ta"
    write_raw_case(data, "Topcon", "M\u00fcller \u00b2")
    folder = write_raw_case(data, "Topcon", "B", seed=1)
    for name in ("oct.mhd", "oct.raw", "reference.mhd"):
        (folder / name).rename(folder / name.upper())
    write_raw_case(data, "Topcon", os.fsdecode(b"K\xf6hler"), seed=2)
    write_volume(data / "Topcon" / "other" / "scan.mhd", np.zeros((1, 5, 5), np.uint8), (0.01, 0.003, 0.1))
    _, stderr = prepare(data, tmp_path / "output", expected=2)
    assert "K\\udcf6hler  the folder's name" in stderr
    assert "Traceback" not in stderr
    assert stderr.count("left out: ") == 1
    assert "scan.mhd: called neither oct.mhd nor reference.mhd" in stderr
    prepare(data, tmp_path / "output", flags=["--skip-bad"])
    folder = tmp_path / "output" / "pre_processed"
    assert set(read_csv(folder / "slice_gt.csv")["image_name"]) == {"M\u00fcller \u00b2", "B"}
    assert pandas.read_csv(folder / "skipped.csv")["case"].tolist() == ["RETOUCH-TrainingSet-Topcon/K\u00f6hler"]
    assert open_volume(folder / "oct_imgs" / "Topcon_M\u00fcller \u00b2.mhd")[0].shape[0] == SLICES
    assert "images: 2 of 2 cases are done already" in prepare(data, tmp_path / "output", flags=["--skip-bad"])[0]


def test_cases_without_reference_are_taken_when_asked_for(tmp_path, prepare_here):
    write_raw_case(tmp_path / "data", "Topcon", "TRAIN049")
    remove_reference(write_raw_case(tmp_path / "data", "Topcon", "TEST001", seed=1))
    prepare_here(tmp_path / "data", tmp_path / "output", flags=["--unlabelled"])
    folder = tmp_path / "output" / "pre_processed"
    table = pandas.read_csv(folder / "slice_gt.csv", keep_default_na=False, dtype=str)
    assert table.loc[table["image_name"] == "TEST001", "is_IRF":].to_numpy().tolist() == [["", "", ""]] * SLICES
    assert table.loc[table["image_name"] == "TRAIN049", "is_IRF":].to_numpy().tolist() == [list("100"), list("011")]
    assert set(read_csv(tmp_path / "output" / "train_data.csv")["image_name"]) == {"TRAIN049"}
    assert (folder / "roi_masks" / "Topcon_TEST001.mhd").exists()
    assert not (folder / "oct_masks" / "Topcon_TEST001.mhd").exists()


def store_upside_down(folder, origin_y_mm):
    """The reference as a program stores it that counts rows from below, and says so in the header."""
    image = SimpleITK.ReadImage(str(folder / "reference.mhd"))
    image = SimpleITK.GetImageFromArray(SimpleITK.GetArrayFromImage(image)[::-1, ::-1])
    image.SetSpacing(read_header(folder / "reference.mhd").spacing_mm)
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, -1))
    image.SetOrigin((0, origin_y_mm, 0.05 * (SLICES - 1)))
    SimpleITK.WriteImage(image, str(folder / "reference.mhd"))


def test_a_reference_stored_upside_down_that_says_so_is_put_right(tmp_path, prepare_here, capsys):
    for name in ("upright", "turned"):
        folder = write_raw_case(tmp_path / name, "Topcon", "TRAIN049")
        if name == "turned":
            store_upside_down(folder, 0.0026 * 299)
        prepare_here(tmp_path / name, tmp_path / f"{name} output")
        noted = "reference.mhd: stored in another order by its direction; put right: y, z mirrored"
        assert (noted in capsys.readouterr().out) == (name == "turned")
    upright, turned = (tmp_path / f"{name} output" / "pre_processed" for name in ("upright", "turned"))
    for file in ("oct_masks/Topcon_TRAIN049.raw", "roi_masks/Topcon_TRAIN049.raw", "slice_gt.csv", "overview.png"):
        assert (turned / file).read_bytes() == (upright / file).read_bytes()


@pytest.mark.parametrize("origin_y_mm", [0, 0.0026 * 300])  # where the first row of the scan is, and a row too far
def test_a_reference_that_lies_elsewhere_is_listed(tmp_path, prepare_here, capsys, monkeypatch, origin_y_mm):
    monkeypatch.setenv("COLUMNS", "600")
    store_upside_down(write_raw_case(tmp_path / "data", "Topcon", "TRAIN049"), origin_y_mm)
    with pytest.raises(InputError, match="1 case below"):
        prepare_here(tmp_path / "data", tmp_path / "output")
    table = capsys.readouterr().err
    assert "reference.mhd has direction 1 0 0 0 -1 0 0 0 -1 and origin 0" in table
    assert "direction 1 0 0 0 1 0 0 0 1 and origin 0 0 0 mm as in oct.mhd" in table
    assert "TransformMatrix and Offset" in table


def test_prepared_volumes_lie_on_the_scan(tmp_path, prepare_here):
    """The upper edge of the first row, half a row above its centre, is where that of the scan is."""
    folder = write_raw_case(tmp_path / "data", "Cirrus", "TRAIN001")
    for name in ("oct", "reference"):
        image = SimpleITK.ReadImage(str(folder / f"{name}.mhd"))
        image.SetDirection((1, 0, 0, 0, 0, 1, 0, -1, 0))
        image.SetOrigin((10, 20, 30))
        SimpleITK.WriteImage(image, str(folder / f"{name}.mhd"))
    prepare_here(tmp_path / "data", tmp_path / "output")
    scan = SimpleITK.ReadImage(str(folder / "oct.mhd"))
    for kind in ("oct_imgs", "oct_masks", "roi_masks"):
        path = tmp_path / "output" / "pre_processed" / kind / "Cirrus_TRAIN001.mhd"
        prepared = SimpleITK.ReadImage(str(path))
        for x, z in ((0, 0), (139, SLICES - 1)):
            edges = [image.TransformContinuousIndexToPhysicalPoint((x, -0.5, z)) for image in (prepared, scan)]
            assert edges[0] == pytest.approx(edges[1], abs=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not REAL_SCANS.is_dir(), reason="real scans are not beside the project")
def test_real_scans(tmp_path):
    prepare(REAL_SCANS, tmp_path, r"PATIENT_PATTERN=^[A-Z]+-(\d+)")
    parts = [set(read_csv(tmp_path / f"{part}_data.csv")["image_name"]) for part in ("train", "val", "test")]
    assert sum(map(len, parts)) == 141
    patients = [{name.split("-")[1] for name in part} for part in parts]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 81
