"""prepare_data.py as a user runs it: what it writes, and what it refuses to start with."""

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

import config
import prepare_data
from utils.errors import InputError
from utils.files import locked
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


def arguments(data_root, output_root, *settings, flags=()):
    settings = [f"DATA_ROOT={data_root}", f"OUTPUT_ROOT={output_root}", *settings]
    return [*flags, *(argument for setting in settings for argument in ("--set", setting))]


def prepare(*settings, flags=()):
    """Run the script as a user does."""
    command = [sys.executable, "prepare_data.py", *arguments(*settings, flags=flags)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def prepare_here(monkeypatch):
    """Run the script in this process, after which the settings are as before."""
    defaults = config.values()

    def run(*settings, flags=()):
        for name, value in defaults.items():
            monkeypatch.setattr(config, name, value)
        prepare_data.main(arguments(*settings, flags=flags))

    return run


def read_csv(path):
    return pandas.read_csv(path, keep_default_na=False, dtype={"image_name": str})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Three vendors with three cases each, one of them named NA, prepared by two processes."""
    folder = tmp_path_factory.mktemp("prepared")
    for number, (vendor, name) in enumerate(itertools.product(VENDORS, ["NA", "007", "case"])):
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


def test_summary_and_overview(prepared):
    folder, result = prepared
    summary = pandas.read_csv(folder / "output" / "pre_processed" / "summary.csv").set_index("vendor")
    assert summary["volumes"].to_dict() == {"Cirrus": 3, "Spectralis": 3, "Topcon": 3, "all": 9}
    assert (summary["b_scans_with_SRF_percent"] == 50).all()
    # 10 x 40 pixels of 0.0117 x 0.0026 mm, 0.05 mm apart
    assert summary.loc["Topcon", "IRF_median_mm3"] == pytest.approx(400 * 0.0117 * 0.0026 * 0.05, abs=1e-4)
    assert "IRF_median_mm3" in result.stdout
    assert "Split: 3 train, 3 val, 3 test volumes" in result.stdout
    with Image.open(folder / "output" / "pre_processed" / "overview.png") as overview:
        assert min(overview.size) > 300


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


def test_grey_values_stay_as_they_are_where_they_are_not_to_be_matched(tmp_path, prepare_here):
    for number, vendor in enumerate(("Spectralis", "Spectralis", "Spectralis", "Cirrus")):
        write_case(tmp_path / "data", vendor, f"c{number}", seed=number)
    values = []
    for matched in (True, False):
        output = tmp_path / str(matched)
        prepare_here(tmp_path / "data", output, f"MATCH_INTENSITIES={matched}")
        voxels, _ = open_volume(output / "pre_processed" / "oct_imgs" / "Cirrus_c3.mhd")
        values.append(np.array(voxels))
        assert (output / "pre_processed" / "reference_histogram.csv").exists() == matched
    assert (values[0] != values[1]).mean() > 0.01


def contents(folder):
    """Every file below `folder` but records and checks, which hold times, as {name: bytes}."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_files(tmp_path):
    for number, (vendor, name) in enumerate(itertools.product(VENDORS, "abcd")):
        write_case(tmp_path / "data", vendor, name, seed=number)
    assert prepare(tmp_path / "data", tmp_path / "whole", "WORKERS=2").returncode == 0
    command = [sys.executable, "prepare_data.py", *arguments(tmp_path / "data", tmp_path / "killed", "WORKERS=2")]
    finished = 0
    for delay_s in (2.0, 2.5, 3.0, 3.5, 4.0):
        process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for record in (tmp_path / "killed").rglob("finished/*.json"):
            json.loads(record.read_text())
        now = len(list((tmp_path / "killed").rglob("finished/*.json")))
        assert now >= finished  # nothing is done twice
        finished = now
    assert prepare(tmp_path / "data", tmp_path / "killed", "WORKERS=2").returncode == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_dask_cluster_does_the_same(tmp_path):
    distributed = pytest.importorskip("distributed")
    for number, vendor in enumerate(VENDORS):
        write_case(tmp_path / "data", vendor, "a", seed=number)
    assert prepare(tmp_path / "data", tmp_path / "here").returncode == 0
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        result = prepare(tmp_path / "data", tmp_path / "cluster", f"DASK_SCHEDULER={address}")
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "cluster") == contents(tmp_path / "here")


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
def test_bad_case_is_told_and_nothing_is_written(tmp_path, prepare_here, capsys, spoil, expected):
    spoil(write_case(tmp_path / "data", "Topcon", "TRAIN049"))
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
    write_case(tmp_path / "data", "Topcon", "TRAIN049")
    with pytest.raises(InputError, match=expected) as raised:
        prepare_here(tmp_path / "data", tmp_path / "output", setting)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "output").exists()


def test_bad_cases_end_the_script_with_2_and_can_be_skipped(tmp_path):
    write_case(tmp_path / "data", "Topcon", "TRAIN050", seed=1)
    truncate(write_case(tmp_path / "data", "Topcon", "TRAIN049"))
    make_0_255(write_case(tmp_path / "data", "Cirrus", "TRAIN001", seed=2))
    result = prepare(tmp_path / "data", tmp_path / "output")
    assert result.returncode == 2
    assert [line for line in result.stderr.splitlines() if "error" in line] == [
        f"prepare_data.py: error: 2 cases below {tmp_path / 'data'} cannot be used, see the table above; "
        "mend them, or go on without them: --skip-bad"
    ]
    assert not (tmp_path / "output").exists()
    assert prepare(tmp_path / "data", tmp_path / "output", flags=["--skip-bad"]).returncode == 0
    folder = tmp_path / "output" / "pre_processed"
    assert set(read_csv(folder / "slice_gt.csv")["image_name"]) == {"TRAIN050"}
    skipped = pandas.read_csv(folder / "skipped.csv")
    assert skipped["case"].tolist() == ["RETOUCH-TrainingSet-Topcon/TRAIN049", "RETOUCH-TrainingSet-Cirrus/TRAIN001"]
    assert skipped["found"].tolist() == ["oct.raw: 10 bytes", "reference.mhd holds 0, 255"]


def test_cases_without_reference_are_taken_when_asked_for(tmp_path, prepare_here):
    write_case(tmp_path / "data", "Topcon", "TRAIN049")
    remove_reference(write_case(tmp_path / "data", "Topcon", "TEST001", seed=1))
    prepare_here(tmp_path / "data", tmp_path / "output", flags=["--unlabelled"])
    folder = tmp_path / "output" / "pre_processed"
    table = pandas.read_csv(folder / "slice_gt.csv", keep_default_na=False, dtype=str)
    assert table.loc[table["image_name"] == "TEST001", "is_IRF":].to_numpy().tolist() == [["", "", ""]] * SLICES
    assert table.loc[table["image_name"] == "TRAIN049", "is_IRF":].to_numpy().tolist() == [list("100"), list("011")]
    assert set(read_csv(tmp_path / "output" / "train_data.csv")["image_name"]) == {"TRAIN049"}
    assert (folder / "roi_masks" / "Topcon_TEST001.mhd").exists()
    assert not (folder / "oct_masks" / "Topcon_TEST001.mhd").exists()


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.rglob("*.raw"))}


def test_only_what_a_change_concerns_is_done_again(tmp_path, prepare_here, capsys):
    for number, vendor in enumerate(VENDORS):
        write_case(tmp_path / "data", vendor, "a", seed=number)
    output = tmp_path / "output"

    def changed(*settings):
        before = times(output)
        prepare_here(tmp_path / "data", output, "PATIENT_PATTERN=^", *settings)
        return sorted(name for name, modified in times(output).items() if before.get(name) != modified)

    assert changed() == sorted([f"{vendor}_a.raw" for vendor in VENDORS])
    assert "3 to do: not prepared yet" in capsys.readouterr().out
    assert changed() == []
    assert changed("PATCH_SIZE_H=208", "PATCH_SIZE_W=136") == ["Cirrus_a.raw", "Topcon_a.raw"]  # 151 and 201 rows
    assert "2 to do: size changed" in capsys.readouterr().out
    changed()
    write_case(tmp_path / "data", "Cirrus", "a", seed=9)
    assert changed() == ["Cirrus_a.raw"]
    assert "1 to do: source files changed" in capsys.readouterr().out
    (output / "pre_processed" / "roi_masks" / "Topcon_a.raw").write_bytes(b"short")
    assert changed() == ["Topcon_a.raw"]
    assert "1 to do: files missing or damaged" in capsys.readouterr().out
    assert changed("AXIAL_SPACING_MM=0.004") == sorted([f"{vendor}_a.raw" for vendor in VENDORS])
    assert "AXIAL_SPACING_MM" in capsys.readouterr().out


def test_another_reference_redoes_those_that_are_matched_to_it(tmp_path, prepare_here, capsys):
    for number, vendor in enumerate(VENDORS):
        write_case(tmp_path / "data", vendor, "a", seed=number)
    write_case(tmp_path / "data", "Spectralis", "b", seed=5)
    prepare_here(tmp_path / "data", tmp_path / "output", "REFERENCE_CASE=a")
    before = times(tmp_path / "output")
    prepare_here(tmp_path / "data", tmp_path / "output", "REFERENCE_CASE=b")
    assert "2 to do: reference histogram changed" in capsys.readouterr().out
    after = times(tmp_path / "output")
    assert sorted(name for name in after if after[name] != before[name]) == ["Cirrus_a.raw", "Topcon_a.raw"]


def test_a_second_process_on_the_same_output_stops(tmp_path):
    write_case(tmp_path / "data", "Topcon", "a")
    with locked(tmp_path / "output"):
        result = prepare(tmp_path / "data", tmp_path / "output")
    assert result.returncode == 2
    assert "another process is writing there" in result.stderr
    assert not (tmp_path / "output" / "pre_processed").exists()
    assert prepare(tmp_path / "data", tmp_path / "output").returncode == 0


def test_a_split_drawn_by_another_process_meanwhile_stays(tmp_path, prepare_here, monkeypatch):
    """Two first runs on a new OUTPUT_ROOT: there is no folder to lock yet while the second checks its cases."""
    write_case(tmp_path / "data", "Spectralis", "a")
    find_histogram, split = prepare_data.find_reference_histogram, tmp_path / "output" / "test_data.csv"

    def find_while_another_process_prepares(*arguments):
        split.parent.mkdir()
        split.write_text("drawn by another")
        return find_histogram(*arguments)

    monkeypatch.setattr(prepare_data, "find_reference_histogram", find_while_another_process_prepares)
    with pytest.raises(InputError, match="another process has drawn a split there meanwhile; start again"):
        prepare_here(tmp_path / "data", tmp_path / "output")
    assert split.read_text() == "drawn by another"
    assert not (tmp_path / "output" / "pre_processed").exists()


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
