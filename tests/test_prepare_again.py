"""prepare_data.py run again: after a kill, a change, beside another process, and with a split that stands."""

import itertools
import json
import signal
import subprocess
import sys
import time

import pytest
from helpers import PROJECT, arguments, prepare, read_csv, write_raw_case

import prepare_data
from utils.errors import InputError
from utils.files import locked
from utils.volumes.vendors import VENDORS


def contents(folder):
    """Every file below `folder` but records and checks, which hold times, as {name: bytes}."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_to_the_same_files(tmp_path):
    for number, (vendor, name) in enumerate(itertools.product(VENDORS, "abcd")):
        write_raw_case(tmp_path / "data", vendor, name, seed=number)
    prepare(tmp_path / "data", tmp_path / "whole", "WORKERS=2")
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
    prepare(tmp_path / "data", tmp_path / "killed", "WORKERS=2")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_dask_cluster_does_the_same(tmp_path):
    distributed = pytest.importorskip("distributed")
    for number, vendor in enumerate(VENDORS):
        write_raw_case(tmp_path / "data", vendor, "a", seed=number)
    prepare(tmp_path / "data", tmp_path / "here")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        prepare(tmp_path / "data", tmp_path / "cluster", f"DASK_SCHEDULER={address}")
    assert contents(tmp_path / "cluster") == contents(tmp_path / "here")


def test_existing_split_wins_without_spectralis(tmp_path, prepare_here, capsys):
    for number in range(4):
        write_raw_case(tmp_path / "data", "Cirrus", f"c{number}", seed=number)
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


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.rglob("*.raw"))}


def test_only_what_a_change_concerns_is_done_again(tmp_path, prepare_here, capsys):
    for number, vendor in enumerate(VENDORS):
        write_raw_case(tmp_path / "data", vendor, "a", seed=number)
    output = tmp_path / "output"

    def changed(*settings):
        before = times(output)
        prepare_here(tmp_path / "data", output, "PATIENT_PATTERN=^", *settings)
        return sorted(name for name, modified in times(output).items() if before.get(name) != modified)

    assert changed() == sorted([f"{vendor}_a.raw" for vendor in VENDORS])
    assert "3 to do: not prepared yet" in capsys.readouterr().out
    assert changed() == []
    assert changed("PATCH_SIZE_H=208", "PATCH_SIZE_W=136") == []  # training and prediction pad small B-scans
    write_raw_case(tmp_path / "data", "Cirrus", "a", seed=9)
    assert changed() == ["Cirrus_a.raw"]
    assert "1 to do: source files changed" in capsys.readouterr().out
    (output / "pre_processed" / "roi_masks" / "Topcon_a.raw").write_bytes(b"short")
    assert changed() == ["Topcon_a.raw"]
    assert "1 to do: files missing or damaged" in capsys.readouterr().out
    assert changed("AXIAL_SPACING_MM=0.004") == sorted([f"{vendor}_a.raw" for vendor in VENDORS])
    assert "AXIAL_SPACING_MM" in capsys.readouterr().out


def test_another_reference_redoes_those_that_are_matched_to_it(tmp_path, prepare_here, capsys):
    for number, vendor in enumerate(VENDORS):
        write_raw_case(tmp_path / "data", vendor, "a", seed=number)
    write_raw_case(tmp_path / "data", "Spectralis", "b", seed=5)
    prepare_here(tmp_path / "data", tmp_path / "output", "REFERENCE_CASE=a")
    before = times(tmp_path / "output")
    prepare_here(tmp_path / "data", tmp_path / "output", "REFERENCE_CASE=b")
    assert "2 to do: reference histogram changed" in capsys.readouterr().out
    after = times(tmp_path / "output")
    assert sorted(name for name in after if after[name] != before[name]) == ["Cirrus_a.raw", "Topcon_a.raw"]


def test_a_second_process_on_the_same_output_stops(tmp_path):
    write_raw_case(tmp_path / "data", "Topcon", "a")
    with locked(tmp_path / "output"):
        _, stderr = prepare(tmp_path / "data", tmp_path / "output", expected=2)
    assert "another process is writing there" in stderr
    assert not (tmp_path / "output" / "pre_processed").exists()
    prepare(tmp_path / "data", tmp_path / "output")


def test_a_split_drawn_by_another_process_meanwhile_stays(tmp_path, prepare_here, monkeypatch):
    """Two first runs on a new OUTPUT_ROOT: there is no folder to lock yet while the second checks its cases."""
    write_raw_case(tmp_path / "data", "Spectralis", "a")
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
    write_raw_case(tmp_path / "data", "Spectralis", "a")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "test_data.csv").write_text("vendor,image_name\nSpectralis,b\n")
    with pytest.raises(InputError, match="Spectralis case b is not in the data"):
        prepare_here(tmp_path / "data", tmp_path / "output")
    assert not (tmp_path / "output" / "pre_processed").exists()
