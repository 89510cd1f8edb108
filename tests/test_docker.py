"""The Dockerfile's words, and its entry point with the files that it copies. No image is built."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
from helpers import PROJECT, run_python
from stand_in import bright_scan, export_brightness_model

from utils.tools.export_onnx import export_onnx
from utils.volumes.mhd import read_volume, write_volume

LINES = [line for line in (PROJECT / "Dockerfile").read_text("utf-8").splitlines() if line and line[0] != "#"]
COPIED = [(words[1:-1], words[-1]) for line in LINES if (words := line.split())[0] == "COPY"]
# What the image lacks and this environment has, by the names of modules.
ABSENT = "{'keras', 'tensorflow', 'nutsml', 'nutsflow', 'segmentation_models', 'highdicom', 'jax'}"
BLOCKED = f"import runpy, sys; sys.modules |= dict.fromkeys({ABSENT}); sys.argv = sys.argv[1:]; "
BLOCKED += "sys.path.insert(0, sys.argv[0].rpartition('/')[0]); runpy.run_path(sys.argv[0], run_name='__main__')"


def test_it_is_short_and_installs_what_segmenting_needs():
    assert len((PROJECT / "Dockerfile").read_text("utf-8").splitlines()) < 20
    assert LINES[0] in ("FROM python:3.11-slim", "FROM python:3.12-slim")
    (installed,) = (line for line in LINES if "pip install" in line)
    assert installed.endswith("-r requirements-segment.txt")
    requirements = (PROJECT / "requirements-segment.txt").read_text("utf-8")
    assert re.search(r"^onnxruntime>=", requirements, re.M)
    assert re.search(r"^eyepy>=", requirements, re.M)
    assert not re.search(r"^(tensorflow|keras)\b", requirements, re.M)


def test_what_is_copied_exists_and_is_not_ignored():
    ignored = (PROJECT / ".dockerignore").read_text("utf-8").splitlines()
    assert ignored[0] == "**"
    for source in (source for sources, _ in COPIED for source in sources):
        assert (PROJECT / source).exists()
        assert any(line.startswith(f"!{source}") for line in ignored)


def test_its_entry_point_segments_with_what_is_copied(tmp_path):
    app, data = tmp_path / "app", tmp_path / "data"
    app.mkdir()
    for sources, target in COPIED:
        for source in sources:
            if (PROJECT / source).is_dir():
                shutil.copytree(PROJECT / source, app / target, ignore=shutil.ignore_patterns("*.keras", "build"))
            else:
                shutil.copy(PROJECT / source, app / target)
    model = export_brightness_model(tmp_path)
    shutil.copy(model.with_suffix(".json"), app / "weights" / "oct_fluid.json")
    export_onnx(model, app / "weights" / "oct_fluid.onnx")
    write_volume(data / "scan.mhd", bright_scan(), (0.0117, 0.003872, 0.12))
    (entry,) = (json.loads(line.removeprefix("ENTRYPOINT ")) for line in LINES if line.startswith("ENTRYPOINT"))
    assert entry == ["python", "/app/test.py"]
    command = ("-c", BLOCKED, app / "test.py", "scan.mhd", "--vendor", "Spectralis", "--output", "segmented")
    stdout, _ = run_python(*command, cwd=data)
    assert f"this is {Path('weights', 'oct_fluid.onnx')}" in stdout
    labels, _ = read_volume(data / "segmented" / "Spectralis_scan.mhd")
    np.testing.assert_array_equal(labels == 1, bright_scan() == 230)
