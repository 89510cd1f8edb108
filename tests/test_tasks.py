import pytest

import config
from utils import tasks


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
