import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import run_python
from stand_in import export_brightness_model

import config
from utils import tasks
from utils.segmentation.predict import load_network


@pytest.mark.parametrize("settings", [tasks.DEMO_SETTINGS, tasks.FINE_TUNING_SETTINGS])
@pytest.mark.usefixtures("set_config")
def test_the_demos_settings_are_valid(settings):
    config.load(tasks.overrides(settings))
    config.validate()
    assert config.BASE_FILTERS == 16
    assert config.RUN_NAME == "demo"
    assert str(tasks.DEMO / "data") == config.DATA_ROOT


def test_a_command_that_fails_ends_the_task_with_its_exit_code(capfd):
    with pytest.raises(SystemExit) as caught:
        tasks.run("false")
    assert caught.value.code == 1
    assert "$ false" in capfd.readouterr().out


@pytest.mark.parametrize("choose_decisions", [False, True])
def test_a_case_that_cannot_be_scored_leaves_the_table_of_all_folds(tmp_path, monkeypatch, choose_decisions):
    (tmp_path / "test_data.csv").write_text("root\ncase\n")
    monkeypatch.setattr(tasks, "values_of", lambda *_: ([tmp_path, tmp_path], "data", "unet", choose_decisions))
    table = tmp_path / "runs" / "unet" / "evaluation" / "volumes.csv"
    table.parent.mkdir(parents=True)
    commands, codes, writes = [], [2, 0, 0], True  # the codes of evaluate.py's calls

    def of_script(command):
        commands.append("decisions" if "--choose-decisions" in command else Path(command[1]).name)
        if commands[-1] != "evaluate.py":
            return subprocess.CompletedProcess(command, 0)
        if writes:
            table.write_text("")
        return subprocess.CompletedProcess(command, codes.pop(0))

    monkeypatch.setattr("subprocess.run", of_script)
    with pytest.raises(SystemExit) as caught:
        tasks.reproduce("python", [], [])
    assert caught.value.code == 2
    of_held_out = ["evaluate.py", "test.py", "evaluate.py", "test.py", "evaluate.py"]
    assert commands[6:] == ["decisions"] * choose_decisions + of_held_out
    codes, writes = [2], False  # nothing could be scored: no table of before is taken for the result
    with pytest.raises(SystemExit) as caught:
        tasks.reproduce("python", [], [])
    assert caught.value.code == 2
    assert len(commands) == 18 + 2 * choose_decisions


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("EPCH=3", "did you mean EPOCH"),
        ("EPOCH=0", "config.EPOCH = 0"),
        ("FOLDS=None", "FOLDS = None, expected"),
    ],
)
def test_a_wrong_setting_is_one_line_of_the_first_command(setting, message):
    _, stderr = run_python("-m", "utils.tasks", "reproduce", "--set", setting, expected=2)
    (line,) = stderr.strip().splitlines()
    assert message in line


def test_packages_are_installed_once_for_each_version_of_the_requirements(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = []
    monkeypatch.setattr(tasks, "run", lambda *command: commands.append(command))
    python = tmp_path / tasks.ENVIRONMENT / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    (tmp_path / "requirements.txt").write_text("numpy")
    for _ in range(2):
        tasks.environment("requirements.txt")
    assert len(commands) == 1
    (tmp_path / "requirements.txt").write_text("numpy>2")
    tasks.environment("requirements.txt")
    assert len(commands) == 2
    assert commands[0][1:4] == ("-m", "pip", "install")


def test_the_box_model_is_copied_with_its_weights_to_the_bit(tmp_path):
    model = export_brightness_model(tmp_path / "trained")
    target = tmp_path / "oct_fluid.keras"
    tasks.copy_compressed(model, target)
    assert target.stat().st_size < model.stat().st_size
    copied = load_network(target)
    original = load_network(model)
    assert {**copied.details, "sha256": ""} == {**original.details, "sha256": ""}
    for weight, expected in zip(copied.model.get_weights(), original.model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize("arguments", [["weights"], ["demo", "--real", "scans"], ["test", "--set", "EPOCH=1"]])
def test_each_task_has_its_own_options(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tasks", *arguments])
    with pytest.raises(SystemExit):
        tasks.main()
    assert "argument" in capsys.readouterr().err


def test_vendors_of_any_name_concern_the_preparation_alone(monkeypatch):
    monkeypatch.setattr("sys.argv", ["tasks", "adapt", "--vendor-folders", "--skip-bad", "--set", "EPOCH=1"])
    commands = {}
    monkeypatch.setattr(tasks, "run", lambda _, script, *options, allowed=(0,): commands.update({script.name: options}))
    monkeypatch.setattr(tasks, "values_of", lambda *_: ({"train": 9, "test": 9}, 1, "evaluation"))
    monkeypatch.setattr(tasks, "mean_dice", lambda _: 0.5)
    tasks.main()
    of_preparation = {"--vendor-folders", "--skip-bad"}
    assert [name for name, options in commands.items() if of_preparation & set(options)] == ["prepare_data.py"]
    assert of_preparation < set(commands["prepare_data.py"])
    assert all(options[-2:] == ("--set", "EPOCH=1") for options in commands.values())
    assert len(commands) == 3


def test_the_help_names_the_options_of_settings(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tasks", "reproduce", "--help"])
    with pytest.raises(SystemExit):
        tasks.main()
    assert {"--recipe", "--set"} <= set(capsys.readouterr().out.split())
