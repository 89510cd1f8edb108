"""Folders that the user may not write to."""

import os
import shutil
import subprocess
from pathlib import Path

import numba
import pytest
from helpers import PROJECT, run_python

from utils.compiled import compiled
from utils.tasks import overrides

# Permissions do not bind root, unless it gives up what makes it root.
IS_ROOT = os.geteuid() == 0
AS_ANYBODY = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if IS_ROOT and shutil.which("setpriv") else []
permissions_bind = pytest.mark.skipif(IS_ROOT and not AS_ANYBODY, reason="root without setpriv")


def run(*command, expected=0, cwd=PROJECT, **environment):
    """Run Python bound by permissions, without a language; returns its (stdout, stderr)."""
    environment = {"PATH": os.environ["PATH"], **environment}
    return run_python(*command, expected=expected, before=AS_ANYBODY, cwd=cwd, environment=environment)


def test_code_is_compiled_where_it_cannot_be_stored():
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
    """Neither Python nor numba can store compiled code, and paths have spaces and other letters."""
    source, home = tmp_path / "Augen ärzte 眼", tmp_path / "eigene Däten"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "demo", "data", "output", "build")
    shutil.copytree(PROJECT, source, ignore=left_out)
    home.mkdir()
    for path in (*source.rglob("*"), source):
        path.chmod(0o555 if path.is_dir() else 0o444)
    touched = subprocess.run([*AS_ANYBODY, "touch", source / "new.py"], capture_output=True)
    assert touched.returncode  # or else nothing is shown
    training = {
        "BASE_FILTERS": 2,
        "BATCH_SIZE": 4,
        "STEPS_PER_EPOCH": 4,
        "ADVERSARIAL_EPOCH": 2,
        "VALIDATION_B_SCANS": 3,
    }
    settings = {**training, "EPOCH": 1, "DATA_ROOT": "Aufnahmen ü", "OUTPUT_ROOT": "Ausgabe ü"}
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
