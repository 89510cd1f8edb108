"""Many scans on a Dask cluster: a worker that dies, one that is stuck, a scheduler that stops."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from helpers import run_python
from stand_in import bright_scan, export_brightness_onnx

from utils.errors import InputError
from utils.files import UNFINISHED
from utils.parallel import map_unordered
from utils.segmentation.results import working_folder
from utils.volumes.mhd import write_volume

PROJECT = Path(__file__).parents[1]
SPACING_MM = (0.0117, 0.003872, 0.12)


@pytest.fixture
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster


@pytest.mark.slow
def test_scans_of_workers_that_die_go_to_others(cluster, tmp_path):
    count = 24
    for number in range(count):
        write_volume(tmp_path / "Spectralis" / f"s{number:02d}.mhd", bright_scan(slices=1), SPACING_MM)
    model, output = export_brightness_onnx(tmp_path), tmp_path / "out"
    workers, killed = [nanny.process.process.pid for nanny in cluster.workers.values()], []

    def kill_two():
        for pid, enough in zip(workers, (3, 10), strict=True):
            while len(list(output.glob("*/scan.json"))) < enough:
                time.sleep(0.05)
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    thread = threading.Thread(target=kill_two, daemon=True)
    thread.start()
    stdout, _ = run_python(
        *("test.py", tmp_path / "Spectralis", "--output", output, "--model", model),
        *("--set", f"DASK_SCHEDULER={cluster.scheduler_address}"),
    )
    thread.join()
    assert len(killed) == 2
    assert f"{count} scans" in stdout
    table = pd.read_csv(output / "summary.csv")
    assert table.scan.tolist() == [f"s{number:02d}" for number in range(count)]
    assert table.IRF_mm2.nunique() == 1
    assert not list(output.glob(f"{UNFINISHED}*"))


def die(number):
    if number == 3:
        os._exit(1)
    return number


@pytest.mark.slow
def test_an_item_that_kills_every_worker_is_lost_alone(cluster):
    found = dict(
        map_unordered(die, range(6), dask_scheduler=cluster.scheduler_address, lost=lambda item: f"lost {item}")
    )
    assert found == {number: number for number in range(6)} | {3: "lost 3"}
    with pytest.raises(InputError, match="every Dask worker that tried 3 died"):
        dict(map_unordered(die, [3], dask_scheduler=cluster.scheduler_address))


@pytest.mark.slow
def test_a_scheduler_that_stops_is_told(tmp_path):
    pytest.importorskip("distributed")
    scheduler_file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard", "--port", "0"]
    scheduler = subprocess.Popen([*dask, "--scheduler-file", scheduler_file], stderr=subprocess.DEVNULL)
    try:
        while not scheduler_file.exists():
            assert scheduler.poll() is None
            time.sleep(0.1)
        address = pd.read_json(scheduler_file, typ="series")["address"]
        threading.Timer(3, scheduler.kill).start()
        with pytest.raises(InputError, match="the scheduler stopped"):
            dict(map_unordered(abs, range(4), dask_scheduler=address))  # no worker comes
    finally:
        scheduler.kill()
        scheduler.wait()


def test_a_slow_scan_fails_and_the_others_go_on(tmp_path):
    for name, slices in (("long", 12), ("short", 1)):
        write_volume(tmp_path / "Spectralis" / f"{name}.mhd", bright_scan(slices), SPACING_MM)
    model, output = export_brightness_onnx(tmp_path), tmp_path / "out"
    command = ("test.py", tmp_path / "Spectralis", "--output", output, "--model", model, "--set", "SCAN_MINUTES=1e-6")
    _, stderr = run_python(*command, expected=2)
    (line,) = [line for line in stderr.splitlines() if "error" in line]
    assert "long.mhd: 1 of 12 B-scans took more than SCAN_MINUTES = 1e-06" in line
    assert [path.name for path in output.glob("*.mhd")] == ["Spectralis_short.mhd"]
    assert not list(output.glob(f"{UNFINISHED}*"))


@pytest.mark.parametrize(("ends_when_stuck", "code"), [(True, 1), (False, 0)])
def test_a_worker_whose_scan_is_stuck_ends_itself(ends_when_stuck, code):
    block = "with output._stuck_no_longer_than(output.Job('out', (), '', minutes=1e-3, ends_when_stuck=%s)):"
    given = f"import time; from utils.segmentation import output\n{block % ends_when_stuck} time.sleep(1)"
    run_python("-c", given, expected=code)


def test_what_a_dead_worker_left_goes_and_what_another_scan_writes_stays(tmp_path):
    with working_folder(tmp_path, "Cirrus_a", "x/a.mhd") as folder:
        shutil.copytree(folder, tmp_path / "left")
        with (
            pytest.raises(InputError, match="another scan is being written"),
            working_folder(tmp_path, "Cirrus_a", "y/a.mhd"),
        ):
            pass
        assert folder.exists()
    (tmp_path / "left" / "half").write_text("")
    shutil.move(tmp_path / "left", folder)
    with working_folder(tmp_path, "Cirrus_a", "x/a.mhd") as again:
        assert not (again / "half").exists()
    assert not folder.exists()
