"""docs/first_scan.ipynb runs from docs/, in a copy of the project, and stays small."""

import re
import shutil

import nbformat
import pytest
from helpers import PROJECT
from nbclient import NotebookClient

NOTEBOOK = PROJECT / "docs" / "first_scan.ipynb"


def test_the_notebook_is_small_and_names_no_place():
    text = NOTEBOOK.read_text("utf-8")
    assert len(text) < 300_000
    nbformat.validate(nbformat.reads(text, 4))
    assert not re.findall(r"/(?:home|root|work|tmp)/", re.sub(r'"image/jpeg": "[^"]*"', "", text))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    """With few steps of training."""
    copy = tmp_path / "project"
    left_out = shutil.ignore_patterns(".git", ".venv", "demo", "data", "output", "build", "tests", ".*_cache")
    shutil.copytree(PROJECT, copy, ignore=left_out)
    notebook = nbformat.read(NOTEBOOK, 4)
    replaced = 0
    for cell in notebook.cells:
        cell.source, count = re.subn(r'"(STEPS_PER_EPOCH|EPOCH)": \d+', r'"\1": 1', cell.source)
        replaced += count
    assert replaced == 2
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(copy / "docs")}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert len(re.findall(r"^ *IRF +\d+ +\d+ ", printed, re.M)) == 2
    assert (copy / "demo" / "first_scan" / "output" / "runs" / "unet" / "segmentation" / "best.keras").is_file()
