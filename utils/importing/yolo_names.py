"""Names of the class numbers in YOLO's text files. The nearest data.yaml, above or beside a text file, has them."""

from pathlib import Path, PurePosixPath

from utils.errors import InputError
from utils.importing.class_table import ClassTable

_FILE = "data.yaml"


def find_names(source, files, texts):
    """({text file: its data.yaml, or None}, {data.yaml: {number as text: name}}) of the files `texts`.

    `files` are all below `source`; both are relative to it. Raises `InputError` with a line for each data.yaml that
    has no names.
    """
    files, nearest = set(files), {}
    for text in texts:
        above = ((folder / _FILE).as_posix() for folder in PurePosixPath(text).parents)
        nearest[text] = next((file for file in above if file in files), None)
    names, complaints = {}, []
    for file in filter(None, dict.fromkeys(nearest.values())):
        try:
            names[file] = _read_names(Path(source, file))
        except InputError as error:
            complaints += error.messages
    if complaints:
        raise InputError(*complaints)
    return nearest, names


def by_name(classes, nearest, names):
    """`ClassTable` in which a number that names no class itself is replaced by its name.

    `nearest` and `names` are those of `find_names`. Raises `InputError` with a line for each number that means
    different classes, and for each class that gets two targets.
    """
    known = {name for of_file in names.values() for name in of_file.values()}
    targets, complaints = {}, []
    for stated, target in classes.targets.items():
        meanings = {}
        for file in dict.fromkeys(nearest.values()) if stated not in known else ():
            if (name := names[file].get(stated) if file else stated) is not None:
                meanings[file] = name
        if len(set(meanings.values())) > 1:
            found = [f"{name!r} {f'in {file}' if file else 'elsewhere'}" for file, name in meanings.items()]
            complaints.append(
                f"--labels {target}={stated}: {stated} is {' and '.join(found)}, expected one class; state names"
                + f", and add {_FILE} where there is none" * (None in meanings)
            )
            continue
        name = next(iter(meanings.values()), stated)
        if targets.setdefault(name, target) != target:
            complaints.append(
                f"--labels {target}={stated}: {name} is stated as {targets[name]} too, expected one target"
            )
    if complaints:
        raise InputError(*complaints)
    return ClassTable(targets)


def _read_names(path):
    """{number as text: name} of a data.yaml, whose ``names`` are a list or a mapping."""
    import yaml

    try:
        names = yaml.load(path.read_bytes(), yaml.BaseLoader)["names"]  # it leaves all text: a class may be called "no"
        if not isinstance(names, dict):
            names = dict(enumerate(names if isinstance(names, list) else [None]))
        if not names or not all(isinstance(name, str) for name in names.values()):
            raise ValueError("names is no list of names and no mapping of numbers to names")
        return {str(int(number)): name for number, name in names.items()}
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: tells no names of classes ({type(error).__name__}: {reason}), expected names: [irf, srf], or a "
            "number and a name a line; correct it, or remove it to state numbers"
        ) from error
