"""Imports run one way: a module imports from its own layer or from those below it."""

import ast
from pathlib import Path

import pytest

from utils.preparation.preprocessing import PREPROCESSING_CODE
from utils.preparation.roi import ROI_CODE

PROJECT = Path(__file__).parents[1]

# From the bottom. A name with a folder stands for all modules in it.
LAYERS = [
    {"errors", "own_code", "files", "names", "labels", "parallel", "compiled", "html", "plots", "progress"},
    {"loss_functions", "model", "base", "losses", "metrics", "networks", "settings"},
    {"volumes"},
    {"preparation", "phantom"},  # phantoms stand on volumes alone
    {"patches", "custom_nuts", "data_prepare"},
    {"segmentation"},
    {"training", "evaluation", "importing"},
    {"tools"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Neighbours of one layer that must not know each other.
STRANGERS = {
    ("training", "evaluation"),
    ("evaluation", "training"),
    ("phantom", "preparation"),
    ("preparation", "phantom"),
}
SCRIPTS = ("prepare_data", "model_training", "adversarial_training", "evaluate", "test")
MODULES = [*(PROJECT / "utils").rglob("*.py"), PROJECT / "model.py", PROJECT / "loss_functions.py"]
CONFIG_NEEDS = {"errors", "settings", "networks"}
TASKS_NEED = {"settings"}  # which needs no installed package either


def part_of(module):
    """The part of the house that a module's dotted name belongs to: a folder, or a module that stands alone."""
    names = module.split(".")
    return names[1] if names[0] == "utils" and len(names) > 1 else names[0]


def imported(path):
    """Dotted names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ([f"utils.{alias.name}" for alias in node.names] if node.module == "utils" else [node.module])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_a_module_imports_from_no_layer_above(path):
    module = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
    part = part_of(module)
    if part in ("tasks", "__init__"):  # commands that need no installed package
        assert {part_of(name) for name in imported(path)} & set(LEVEL) <= TASKS_NEED
        return
    for name in imported(path):
        other = part_of(name)
        assert other not in SCRIPTS, f"{module} imports the script {other}"
        if other in LEVEL:
            assert LEVEL[other] <= LEVEL[part], f"{module} imports {name} from a layer above"
            assert (part, other) not in STRANGERS, f"{module} imports {name}"


@pytest.mark.parametrize("code", [PREPROCESSING_CODE, ROI_CODE])
def test_cases_are_prepared_again_where_any_module_of_it_changes(code):
    paths = [PROJECT.joinpath(*name.split(".")).with_suffix(".py") for name in code]
    needed = {name for path in paths for name in imported(path) if name.startswith("utils.preparation.")}
    assert needed <= set(code)


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_imports_another(script):
    assert not {part_of(name) for name in imported(PROJECT / f"{script}.py")} & set(SCRIPTS)


@pytest.mark.parametrize("folder", ["", "utils", "benchmarks", "tests"])
def test_every_name_that_is_imported_is_there(folder):
    """Also where nothing runs it: in benchmarks, and in functions that import what few users have."""
    paths = PROJECT.glob("*.py") if not folder else (PROJECT / folder).rglob("*.py")
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            module = PROJECT.joinpath(*node.module.split("."))
            if module.with_suffix(".py").is_file():
                missing = {alias.name for alias in node.names} - names_in(module.with_suffix(".py"))
                assert not missing, f"{path}: {node.module} has no {missing}"


def names_in(path):
    """What a module defines and imports."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    aliases = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    return names | {(alias.asname or alias.name).partition(".")[0] for alias in aliases}


def test_config_needs_little():
    known = {part_of(name) for name in imported(PROJECT / "config.py")} & set(LEVEL)
    assert known == CONFIG_NEEDS


def test_every_part_has_its_layer():
    parts = {path.name.removesuffix(".py") for path in (PROJECT / "utils").iterdir() if path.name[0] not in "_."}
    assert parts - {"tasks"} <= set(LEVEL)
