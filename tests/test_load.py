"""Many cases, several users, and folders that are not one's own: small forms of what `benchmarks.load` measures."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from benchmarks.load import TRAINING
from benchmarks.sampling import print_stretches, stretches_of
from utils.compiled import compiled
from utils.tasks import overrides

PROJECT = Path(__file__).parents[1]
# Permissions do not bind root, unless it gives up what makes it root.
IS_ROOT = os.geteuid() == 0
AS_ANYBODY = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if IS_ROOT and shutil.which("setpriv") else []
permissions_bind = pytest.mark.skipif(IS_ROOT and not AS_ANYBODY, reason="root without setpriv")


def run(*command, cwd=PROJECT, expected=0, **environment):
    """Run Python with arguments; returns its (stdout, stderr)."""
    command = [*AS_ANYBODY, sys.executable, *map(str, command)]
    environment = {"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": "-1", **environment}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == expected, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout, result.stderr


def test_time_and_memory_of_each_item_and_how_they_rise(tmp_path, capsys):
    for number, end in enumerate((10, 12, 14, 17, 20)):
        (tmp_path / str(number)).touch()
        os.utime(tmp_path / str(number), (end, end))
    samples = np.array([(time, 100 + 5 * time, time / 2) for time in range(30)])
    stretches = stretches_of(dict.fromkeys(tmp_path.iterdir(), "scan"), samples)
    expected = [(1, 2, 1, 160), (2, 2, 1, 170), (3, 3, 1.5, 185), (4, 3, 1.5, 200)]
    np.testing.assert_allclose(stretches["scan"], expected)
    print_stretches(stretches)
    printed = capsys.readouterr().out
    assert "| scan | 4 | 2.00 / 3.00 | 1.00 / 1.50 | 160 / 200 |" in printed
    # Least squares: numbers -1.5, -0.5, 0.5, 1.5 about their mean (sum of squares 5) with each column.
    assert "for every 100 items: +40.00 s and +20.00 CPU s an item, +1350.0 MiB" in printed


def test_code_is_compiled_where_it_cannot_be_kept():
    definition = {}
    exec(compile("def double(number):\n    return 2 * number", "/no/such/folder/double.py", "exec"), definition)
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(definition["double"])
    assert compiled(definition["double"])(21) == 42


@permissions_bind
@pytest.mark.parametrize("mode", [0o444, 0o000])
def test_another_users_lock_is_one_line(tmp_path, mode):
    (tmp_path / ".lock").touch()
    (tmp_path / ".lock").chmod(mode)
    code = (
        "import sys; from utils.errors import run_script; from utils.files import locked;"
        "run_script(lambda argv: locked(argv[0]).__enter__())"
    )
    _, stderr = run("-c", code, tmp_path, expected=2)
    assert stderr == f"-c: error: {tmp_path / '.lock'}: Permission denied\n"


@pytest.mark.slow
@permissions_bind
def test_scripts_that_may_not_write_beside_themselves_work_from_anywhere(tmp_path):
    """No cache of compiled code can be kept, neither Python's nor numba's, and paths have spaces and other letters."""
    source, home = tmp_path / "Augen ärzte 眼", tmp_path / "eigene Däten"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "demo", "data", "output", "build")
    shutil.copytree(PROJECT, source, ignore=left_out)
    home.mkdir()
    for path in (*source.rglob("*"), source):
        path.chmod(0o555 if path.is_dir() else 0o444)
    touched = subprocess.run([*AS_ANYBODY, "touch", source / "new.py"], capture_output=True)
    assert touched.returncode  # or else nothing is shown
    settings = {**TRAINING, "EPOCH": 1, "DATA_ROOT": "Aufnahmen ü", "OUTPUT_ROOT": "Ausgabe ü"}
    run("-m", "utils.phantom", "--output", home / settings["DATA_ROOT"], "--cases", 12, "--slices", 2, cwd=source)
    scan = Path(settings["DATA_ROOT"], "RETOUCH-TrainingSet-Cirrus", "TRAIN001")
    for script, *arguments in (
        ["prepare_data.py"],
        ["model_training.py"],
        ["adversarial_training.py"],
        ["evaluate.py"],
        ["test.py", scan, "--output", "Flüssigkeit 眼"],
    ):
        _, stderr = run(source / script, *arguments, *overrides(settings), cwd=home, HOME="/proc/none")
        assert "Traceback" not in stderr
    assert (home / "Flüssigkeit 眼" / "Cirrus_TRAIN001.mhd").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("users",), "test.py, the same twice: exit codes [0, 2]"),
        (("segment", "--scans", 100), "98 of 100 segmented"),
        (("prepare", "--slices", 1, "--workers", 2), "for every 100 items"),
    ],
)
def test_the_benchmark_of_load_finds_nothing_wrong(tmp_path, arguments, says):
    assert says in run("-m", "benchmarks.load", *arguments, "--folder", tmp_path)[0]
