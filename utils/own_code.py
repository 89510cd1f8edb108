"""Networks and losses of the user's own: settings that name a function as "module:function"."""

import importlib
import importlib.util
import os
import sys

from utils.errors import InputError


def is_own(name):
    """Whether a setting's value names a function of the user's own."""
    return ":" in name


def check_own(setting, name):
    """Raise `InputError` where the module of "module:function" is not found. It is not imported."""
    module, _, function = name.partition(":")
    _look_here()
    try:
        found = module and function and importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if not found:
        raise InputError(
            f"config.{setting} = {name!r}: no module {module!r}, expected module:function; it is looked for where the "
            "script is called, and among the installed packages"
        )


def own_function(setting, name):
    """The function that the value `name` of a `setting`, "module:function", stands for; `InputError` without one."""
    check_own(setting, name)
    module, _, function = name.partition(":")
    found = getattr(importlib.import_module(module), function, None)
    if not callable(found):
        raise InputError(f"config.{setting} = {name!r}: {module} has no function {function!r}")
    return found


def check_standard(setting, name, network):
    """Raise `InputError` where a Keras `network` needs more than Keras to be loaded: best.keras holds no code."""
    import keras

    foreign = sorted(_foreign_classes(keras.saving.serialize_keras_object(network)))
    if foreign:
        raise InputError(
            f"config.{setting} = {name!r}: {', '.join(foreign)} in it would not load from best.keras, which holds no "
            "code; build the network of Keras' own layers and functions"
        )


def _foreign_classes(config):
    """Yield the names of what a serialised network takes from elsewhere than Keras, and of Python code in it."""
    if isinstance(config, dict):
        if {"class_name", "module"} <= set(config):
            name, module = config["class_name"], config["module"] or ""
            if name == "Lambda" or not module.startswith("keras"):
                yield str(config["config"]) if name == "function" else name
        elif set(config) == {"value"}:  # as Keras writes a lambda function
            yield "a lambda function"
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            yield from _foreign_classes(part)


def _look_here():
    """Let modules be found where the script is called."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
