"""Settings from the command line and from recipes, checked against those of config.py.

`defaults` are config.py's settings as {name: value}, `types` its annotations, {name: type}: those of the settings whose
type the default does not say, because they may be None, or are one of a few words.
"""

import ast
import difflib
from pathlib import Path
from typing import get_args

from utils.errors import InputError

RENAMED = {"CROSS_ENTROPY": "LOSS"}  # since earlier versions
# Settings of earlier versions: (the value by which this version goes on, what is there instead). What the others gave
# is in docs/experiments.md.
RETIRED = {
    "D_VERDICT": ("patch", "the discriminator gives one verdict on a patch"),
    "D_MASKS": ("one-hot", "the discriminator sees one-hot masks"),
    "D_GENERATED_FROM": ("all", "the discriminator sees the masks of all images"),
    "D_SPECTRAL_NORM": (False, "the discriminator is not bounded"),
    "D_POOLING": ("max", "the maximum is pooled"),
    "D_SEES_IMAGE": (True, "the discriminator sees the image"),
    "D_READY_ACCURACY": (0.55, "it is a constant, in utils/settings/rules.py"),
    "D_AHEAD_ACCURACY": (0.9, "it is a constant, in utils/settings/rules.py"),
    "D_REAL_LABEL": (0.9, "it is a constant, in utils/settings/rules.py"),
    "SELF_TRAINING": (None, "the teacher takes part where SELF_TRAINING_WEIGHT is above 0"),
    "SELF_TRAINING_CONFIDENCE": (0.9, "it is a constant, in utils/training/teacher.py"),
    "NOISE_TRANSFER": (0.0, "patches take no other scans' noise"),
    "NOISE_ROOTS": ([], "patches take no other scans' noise"),
    "SLOW_DOWN_AFTER": (None, "LR_SCHEDULE = 'cosine' lowers the learning rate"),
    "MONITOR_EPOCHS": (3, "it is a constant, in utils/settings/rules.py"),
    "FLUID_THRESHOLDS": (None, "CHOOSE_DECISIONS chooses one for each fluid, and puts it into best.json"),
    "OPTIMIZER": (None, "WEIGHT_DECAY above 0 means AdamW"),
    **dict.fromkeys(
        ("ROTATION_DEGREES", "ROTATE_BOTH_WAYS", "GREY_AUGMENTATION", "SCALE_AUGMENTATION", "SCALE_RANGE"),
        (None, "AUGMENTATION is 'paper' or 'strong'"),
    ),
}
RECIPES = Path(__file__).parents[2] / "recipes"


def add_options(parser):
    """Give an `argparse.ArgumentParser` the options of every script: ``recipes`` and ``overrides``."""
    parser.add_argument(
        "--recipe",
        dest="recipes",
        metavar="NAME",
        action="append",
        default=[],
        help="settings of recipes/NAME.py or of a file; of several the later one wins, and --set over all",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="override a name in config.py for this run",
    )


def options_of(arguments):
    """The options of `add_options` in parsed `arguments`, as a list of arguments for another script."""
    options = [part for name in arguments.recipes for part in ("--recipe", name)]
    return options + [part for override in arguments.overrides for part in ("--set", override)]


def read_overrides(overrides, defaults, types):
    """The settings in texts ``NAME=VALUE``, as {name: value}; later ones win.

    A value is read by `ast.literal_eval`, else taken as text. Raises `InputError` with a line for each that is wrong.
    """
    changes, complaints = {}, []
    for override in overrides:
        name, separator, text = override.partition("=")
        try:
            value = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError):
            value = text
        try:
            if not separator:
                raise InputError(f"--set {override}: expected NAME=VALUE")
            changes[name] = _checked(f"--set {override}", name, value, defaults, types, text)
        except InputError as error:
            complaints += error.messages
    if complaints:
        raise InputError(*complaints)
    return changes


def read_recipe(name, defaults, types):
    """The settings in recipes/NAME.py, or in the file `name` where that is a path ending in ``.py``, as {name: value}.

    Its lines are ``NAME = value  # why``, with literal values. It is read, never executed. Raises `InputError` with a
    line for each that is wrong.
    """
    path = Path(name) if name.endswith(".py") else RECIPES / f"{name}.py"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.py")))
        raise InputError(f"--recipe {name}: no such file {path}; there are: {known}")
    try:
        statements = ast.parse(path.read_text("utf-8")).body
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{path}: not lines of NAME = value ({error})") from error
    changes, complaints = {}, []
    for statement in statements:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # text that says what the recipe is for
        place = f"{path}:{statement.lineno}"
        try:
            match statement:
                case ast.Assign(targets=[ast.Name(id=setting)], value=value):
                    pass
                case _:
                    raise InputError(f"{place}: expected NAME = value")
            try:
                value = ast.literal_eval(value)
            except (ValueError, TypeError):
                raise InputError(f"{place}: expected a plain value, such as a number or text in quotes") from None
            if setting in changes:
                raise InputError(f"{place}: {setting} is set twice")
            changes[setting] = _checked(f"{place}: {setting}", setting, value, defaults, types)
        except InputError as error:
            complaints += error.messages
    if complaints:
        raise InputError(*complaints)
    return changes


def _checked(place, name, value, defaults, types, text=None):
    """`value` as one for the setting `name`; `text` is what it was read from, where that may be meant as it stands."""
    if name in RETIRED:
        raise InputError(f"{place}: is no setting any more: {RETIRED[name][1]}")
    if name not in defaults:
        closest = difflib.get_close_matches(name.upper(), defaults, n=1, cutoff=0.4)
        closest = [RENAMED[name]] if name in RENAMED else closest
        raise InputError(f"{place}: no such name in config.py" + (f"; did you mean {closest[0]}?" * bool(closest)))
    known = get_args(types.get(name)) or (type(defaults[name]),)
    expected, may_be_none = known[0] if isinstance(known[0], type) else str, type(None) in known
    if expected is str and value is not None and text is not None:
        return text if not isinstance(value, str) else value
    if expected is float and type(value) is int:
        return float(value)
    if expected is tuple and type(value) is list:
        return tuple(value)
    if type(value) is expected or (value is None and may_be_none):
        return value
    alternative = " or None" if may_be_none else ""
    raise InputError(f"{place}: expected {expected.__name__}{alternative}, found {type(value).__name__}")
