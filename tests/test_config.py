import ast
import json
from pathlib import Path

import pytest

import config
from utils.errors import InputError

PROJECT = Path(config.__file__).parent
pytestmark = pytest.mark.usefixtures("set_config")  # config.load changes values
SCRIPTS = ["prepare_data.py", "model_training.py", "adversarial_training.py", "evaluate.py", "test.py"]


def test_set_overrides_a_value_and_derived_paths_follow():
    config.load(["--set", "OUTPUT_ROOT=elsewhere", "--set", "RUN_NAME=7", "--set", "ADAM_LR=1", "--set", "EPOCH=3"])
    assert (config.RUN_NAME, config.ADAM_LR, config.EPOCH) == ("7", 1.0, 3)
    assert isinstance(config.ADAM_LR, float)
    assert config.run_folder("segmentation") == Path("elsewhere/runs/7/segmentation")
    assert config.split_csv("val") == Path("elsewhere/val_data.csv")


def test_an_optional_value_may_be_set_and_unset():
    config.load(["--set", "STEPS_PER_EPOCH=5"])
    assert config.STEPS_PER_EPOCH == 5
    config.load(["--set", "STEPS_PER_EPOCH=None"])
    assert config.STEPS_PER_EPOCH is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("EPOCHS=3", "no such name in config.py; did you mean EPOCH?"),
        ("EPOCH=many", "--set EPOCH=many: expected int, found str"),
        ("EPOCH=None", "expected int, found NoneType"),
        ("FOLDS=2.5", "expected int or None, found float"),
        ("TRAIN_CLASSES=1", "expected bool, found int"),
        ("EPOCH", "expected NAME=VALUE"),
    ],
)
def test_a_wrong_override_is_an_error_and_changes_nothing(override, expected):
    before = config.values()
    with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
        config.load(["--set", "SEED=9", "--set", override])
    assert expected in str(caught.value)
    assert config.values() == before


def test_every_complaint_is_listed_with_name_value_and_what_is_allowed():
    config.load(["--set", "EPOCH=0", "--set", "PATCH_SIZE_W=100", "--set", "RUN_NAME=../x", "--set", "FOLDS=5"])
    config.load(["--set", "FOLD=5", "--set", "PATIENT_PATTERN=(", "--set", "DTYPE_POLICY=float8"])
    with pytest.raises(InputError) as caught:
        config.validate()
    text = "\n".join(caught.value.messages)
    assert len(caught.value.messages) == 6
    for part in ("EPOCH = 0: must be at least 1", "PATCH_SIZE_W = 100", "RUN_NAME = '../x'", "FOLD = 5", "'float8'"):
        assert part in text


def test_a_value_of_a_wrong_type_in_the_file_is_a_complaint():
    config.EPOCH = "many"
    with pytest.raises(InputError, match="EPOCH = 'many': must be at least 1"):
        config.validate()


def test_the_shipped_values_are_valid_and_serialisable():
    config.validate()
    assert json.loads(json.dumps(config.values()))["PATCH_SIZE_H"] == 256
    assert config.values()["AXIAL_SPACING_MM"] == 0.003872


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_rebinds_a_config_value(script):
    """Known mistake: config values reassigned in a script."""
    for node in ast.walk(ast.parse((PROJECT / script).read_text("utf-8"))):
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        for target in targets:
            assert not (isinstance(target, ast.Attribute) and getattr(target.value, "id", "") == "config")
        assert getattr(getattr(node, "func", None), "id", "") != "setattr"


@pytest.mark.parametrize(
    "path", [*(PROJECT / "utils").rglob("*.py"), PROJECT / "model.py", PROJECT / "loss_functions.py"]
)
def test_only_scripts_read_config(path):
    """And what `python -m utils.X` runs: a function called main."""
    tree = ast.parse(path.read_text("utf-8"))
    tree.body = [node for node in tree.body if getattr(node, "name", "") != "main"]
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert "config" not in names
        assert getattr(node, "module", None) != "config"
