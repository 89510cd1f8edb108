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
        ("EPOCH={[]: 1}", "--set EPOCH={[]: 1}: expected int, found str"),
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


# ---- Recipes -------------------------------------------------------------------------------------------------------
def write_recipe(monkeypatch, folder, text, name="mine"):
    monkeypatch.setattr("utils.settings.settings.RECIPES", folder)
    (folder / f"{name}.py").write_text(text, "utf-8")


def test_set_wins_over_a_recipe_and_a_recipe_over_the_file(monkeypatch, tmp_path):
    write_recipe(
        monkeypatch, tmp_path, '"""Why."""\n\nEPOCH = 7  # short\nRUN_NAME = "mine"\nADAM_LR = 1\nFOLDS = None\n'
    )
    arguments = config.load(["--recipe", "mine", "--set", "EPOCH=3"])
    assert (config.EPOCH, config.RUN_NAME, config.ADAM_LR, config.FOLDS) == (3, "mine", 1.0, None)
    assert arguments.recipes == ["mine"]


def test_of_several_recipes_the_later_one_wins(monkeypatch, tmp_path):
    write_recipe(monkeypatch, tmp_path, "EPOCH = 7\nSEED = 7\nADAM_LR = 0.7\n")
    write_recipe(monkeypatch, tmp_path, "SEED = 8\nADAM_LR = 0.8\n", name="yours")
    config.load(["--recipe", "mine", "--set", "ADAM_LR=0.9", "--recipe", "yours"])
    assert (config.EPOCH, config.SEED, config.ADAM_LR) == (7, 8, 0.9)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("EPOCHS = 3", "mine.py:2: EPOCHS: no such name in config.py; did you mean EPOCH?"),
        ("EPOCH = 2.5", "mine.py:2: EPOCH: expected int, found float"),
        ("ADAM_LR = '1e-3'", "mine.py:2: ADAM_LR: expected float, found str"),
        ("SEED = 1", "mine.py:2: SEED is set twice"),
        ("EPOCH = {[]: 1}", "mine.py:2: expected a plain value"),
        ("EPOCH = 3 * 5", "mine.py:2: expected a plain value"),
        ("RUN_NAME = open('made', 'w')", "mine.py:2: expected a plain value"),
        ("EPOCH = SEED = 3", "mine.py:2: expected NAME = value"),
        ("EPOCH, SEED = 1, 2", "mine.py:2: expected NAME = value"),
        ("import os", "mine.py:2: expected NAME = value"),
        ("EPOCH =", "mine.py: not lines of NAME = value"),
        ("EPOCH = " + "(" * 500, "mine.py: not lines of NAME = value"),
        ("RUN_NAME = 'a\0b'", "mine.py: not lines of NAME = value"),
    ],
)
def test_a_wrong_line_of_a_recipe_is_named_changes_nothing_and_is_never_run(monkeypatch, tmp_path, line, expected):
    write_recipe(monkeypatch, tmp_path, f"SEED = 9\n{line}\n")
    monkeypatch.chdir(tmp_path)
    before = config.values()
    with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
        config.load(["--recipe", "mine"])
    assert expected in str(caught.value)
    assert config.values() == before
    assert not Path("made").exists()


def test_an_unknown_recipe_says_which_there_are(monkeypatch, tmp_path):
    write_recipe(monkeypatch, tmp_path, "")
    with pytest.raises(InputError, match=r"--recipe yours: no such file .*; there are: mine$"):
        config.load(["--recipe", "yours"])


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("CROSS_ENTROPY", "no such name in config.py; did you mean LOSS?"),
        ("OPTIMIZER", "is no setting any more: WEIGHT_DECAY above 0 means AdamW"),
        ("SCALE_RANGE", "is no setting any more: AUGMENTATION is 'paper' or 'strong'"),
    ],
)
def test_what_an_earlier_version_had_is_answered_with_what_is_there_instead(name, instead):
    with pytest.raises(InputError) as caught:
        config.load(["--set", f"{name}=1"])
    assert str(caught.value).endswith(f"{name}=1: {instead}")


@pytest.mark.parametrize("path", sorted((PROJECT / "recipes").glob("*.py")), ids=lambda path: path.stem)
def test_the_recipes_in_the_box_are_valid_and_give_a_reason_for_each_value(path):
    config.load(["--recipe", path.stem])
    config.validate()
    for line in path.read_text("utf-8").splitlines():
        assert " = " not in line or "  # " in line, line


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["LR_SCHEDULE=cosine"], "STEPS_PER_EPOCH = None: must be a number with LR_SCHEDULE = 'cosine'"),
        (["MIXED_ROOTS={'a': 0.6, 'b': 0.4}"], "MIXED_ROOTS = {'a': 0.6, 'b': 0.4}: must be {OUTPUT_ROOT: share, ...}"),
        (["MIXED_ROOTS={'a': 0}"], "MIXED_ROOTS = {'a': 0}: must be"),
        (["MIXED_ROOTS={'a': 'b'}"], "MIXED_ROOTS = {'a': 'b'}: must be"),
        (["WARM_UP_STEPS=5"], "WARM_UP_STEPS = 5: must be 0 with LR_SCHEDULE = 'constant'"),
        (["EMA_MOMENTUM=1.0"], "EMA_MOMENTUM = 1.0: must be between 0 and 1, or None"),
        (["GRADIENT_CLIP=0"], "GRADIENT_CLIP = 0.0: must be above 0"),
        (["AUGMENTATION=wild"], "AUGMENTATION = 'wild': must be 'paper' or 'strong'"),
        (["PADDING=reflect"], "PADDING = 'reflect': must be 'valid' or 'same'"),
        (
            ["UNLABELLED_SHARE=1.0", "SELF_TRAINING_WEIGHT=1", "EMA_MOMENTUM=0.9"],
            "UNLABELLED_SHARE = 1.0: must be from 0",
        ),
        (
            ["UNLABELLED_SHARE=0.5", "EMA_MOMENTUM=0.9"],
            "SELF_TRAINING_WEIGHT = 0: must be above 0 with UNLABELLED_SHARE",
        ),
        (
            ["SELF_TRAINING_WEIGHT=5", "EMA_MOMENTUM=0.9"],
            "SELF_TRAINING_WEIGHT = 5: must be above 0 with UNLABELLED_SH",
        ),
        (["UNLABELLED_SHARE=0.5", "SELF_TRAINING_WEIGHT=5"], "EMA_MOMENTUM = None: must be a number with SELF_TRAIN"),
    ],
)
def test_settings_of_recipes_that_cannot_work_are_named(overrides, expected):
    for override in overrides:
        config.load(["--set", override])
    with pytest.raises(InputError) as caught:
        config.validate()
    (message,) = caught.value.messages
    assert expected in message


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
