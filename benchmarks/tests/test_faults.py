"""The judges of `benchmarks.faults`, a death at every change to a folder, and a few of its disturbances."""

import itertools
import json
import os
import shutil

import numpy as np
import pytest
from helpers import run_python
from PIL import Image

from benchmarks.states import difference, incomplete
from utils.files import remove_unfinished
from utils.networks.exported_model import export_best
from utils.segmentation.results import put_in_place
from utils.training.state import save_state
from utils.volumes.mhd import write_volume


class Model:
    def save(self, path):
        path.write_text("network")


@pytest.fixture
def folder(tmp_path):
    """A whole file of each kind."""
    folder = tmp_path / "output"
    write_volume(folder / "scan.mhd", np.zeros((2, 4, 4), np.uint8), (1, 1, 1))
    save_state(folder, [np.arange(4.0)], {"epoch": 1, "step": 0, "seconds": 3.5, "history": [{"loss": 0.5}]})
    export_best(folder, Model(), {"epoch": 1})
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder / "mask.png")
    (folder / "log.csv").write_text("epoch,loss,seconds\n1,0.5,3.5\n")
    (folder / "report.html").write_text("<html></html>\n")
    return folder


def test_whole_files_are_whole_and_as_their_copies(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert incomplete(folder) == []
    assert difference(folder, tmp_path / "copy") is None


@pytest.mark.parametrize(
    "name", ["scan.raw", "last-0001-0000000.npz", "best.keras", "best.json", "mask.png", "log.csv", "report.html"]
)
def test_a_file_that_was_cut_off_is_incomplete_under_its_final_name(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) - 7])
    assert len(incomplete(folder)) == 1


def test_the_first_file_of_a_pair_counts_from_the_second_on(folder):
    (folder / "best.json").unlink()
    (folder / "best.keras").write_text("netw")
    assert incomplete(folder) == []


def test_times_may_differ_and_results_may_not(folder, tmp_path):
    other = tmp_path / "copy"
    shutil.copytree(folder, other)
    (other / "log.csv").write_text("epoch,loss,seconds\n1,0.500001,9.5\n")
    progress = json.loads((other / "last-0001-0000000.json").read_text())
    (other / "last-0001-0000000.json").write_text(json.dumps({**progress, "seconds": 9.5}))
    for suffix in (".json", ".npz"):  # the checkpoint before, which the clock chooses
        shutil.copy(other / f"last-0001-0000000{suffix}", other / f"last-0000-0000003{suffix}")
    assert difference(folder, other) is None
    (other / "log.csv").write_text("epoch,loss,seconds\n1,0.501,3.5\n")
    assert difference(folder, other) == "log.csv, 0, loss: 0.5 instead of 0.501"


def test_different_arrays_voxels_and_left_over_files_are_found(folder, tmp_path):
    other = tmp_path / "copy"
    shutil.copytree(folder, other)
    (other / "scan.raw").write_bytes(bytes(31) + b"\1")
    assert difference(folder, other).startswith("scan.raw: ")
    shutil.copy(folder / "scan.raw", other)
    save_state(other, [np.arange(4.0) + 1e-7], json.loads((other / "last-0001-0000000.json").read_text()))
    assert difference(folder, other).startswith("last-0001-0000000")
    save_state(other, [np.arange(4.0)], json.loads((other / "last-0001-0000000.json").read_text()))
    (folder / ".unfinished-1-log.csv").write_text("epoch")
    assert difference(folder, other) == "left behind: .unfinished-1-log.csv"


def rewrite_volume(folder, content):
    write_volume(folder / "scan.mhd", np.full((2, 4, 4), content, np.uint8), (1, 1, 1))


def rewrite_state(folder, content):
    save_state(folder, [np.arange(4.0) + content], {"epoch": content, "step": 0})


def rewrite_best(folder, content):
    model = Model()
    model.save = lambda path: path.write_text(f"network {content}")
    export_best(folder, model, {"epoch": content})


def rewrite_scan(folder, content):
    """A scan of another size, which test.py segments into the same place."""
    temporary = folder / f".unfinished-{content}"
    write_volume(temporary / "scan.mhd", np.zeros((content, 4, 4), np.uint8), (1, 1, 1))
    (temporary / "scan").mkdir()
    (temporary / "scan" / "scan.json").write_text("{}")
    put_in_place(temporary, folder, "scan", ["scan.raw", "scan.mhd"])


@pytest.mark.parametrize("rewrite", [rewrite_volume, rewrite_state, rewrite_best, rewrite_scan])
def test_whenever_a_process_dies_no_file_under_a_final_name_is_incomplete(rewrite, tmp_path, monkeypatch):
    """Dies before the first change to a folder's entries, before the second, and so on."""

    class Died(BaseException):
        pass

    for changes_before_death in itertools.count():
        folder = tmp_path / str(changes_before_death)
        folder.mkdir()
        rewrite(folder, 1)
        left = iter(range(changes_before_death))

        def or_die(change, left=left):
            def changed(*arguments, **options):
                if next(left, None) is None:
                    raise Died
                return change(*arguments, **options)

            return changed

        with monkeypatch.context() as patched:
            for name in ("replace", "unlink", "remove", "rmdir"):
                patched.setattr(os, name, or_die(getattr(os, name)))
            try:
                rewrite(folder, 2)
                died = False
            except Died:
                died = True
        assert incomplete(folder) == []
        remove_unfinished(folder)
        rewrite(folder, 2)
        assert incomplete(folder) == []
        if not died:
            break
    assert changes_before_death > 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "fault", "seed"),
    [
        ("prepare_data.py", "worker", 0),
        ("prepare_data.py", "vanishing-file", 0),
        pytest.param("model_training.py", "kill", 0, marks=pytest.mark.ci),
        ("model_training.py", "terminate", 3),
        ("adversarial_training.py", "kill", 1),
    ],
)
def test_a_disturbed_script_ends_as_one_that_was_not(script, fault, seed):
    options = ("--script", script, "--fault", fault, "--kills", 1, "--times", 1, "--seed", seed)
    stdout, _ = run_python("-m", "benchmarks.faults", *options)
    assert stdout.endswith("all survived: same results as undisturbed\n")
