"""Imported cases on disk. They are written whole, with a record of each case's source files."""

import os
import shutil
from pathlib import Path

from utils.errors import InputError
from utils.files import UNFINISHED, read_json, write_json, written_whole
from utils.preparation.outlined import read_outlined, root_stated, write_outlined
from utils.volumes.mhd import write_volume

_RECORD = "provenance.json"


def owned_cases(output, settings, files):
    """The cases of this import that exist below `output` already, as a set of roots.

    `settings` are the import's. `files` is {case's root: {source file: SHA-256}}. Raises `InputError` with a line for
    each existing case of another import, of other files, or of unknown origin.
    """
    imports = _imports(output)
    there, complaints = set(), []
    for root, of_case in files.items():
        if not (output / root).exists():
            continue
        owner = next((one for one in imports if root in one["cases"]), None)
        if owner is not None and owner["settings"] == settings and owner["cases"][root] == of_case:
            there.add(root)
            continue
        if owner is None:
            origin = f"of unknown origin: {_RECORD} does not have it"
        elif owner["settings"] == settings:
            origin = "from source files that have changed since"
        else:
            origin = f"of another import: {owner['command']}"
        complaints.append(f"{output / root}: is there, {origin}; remove it, or name another --output")
    if complaints:
        raise InputError(*complaints)
    return there


def record_import(output, settings, files, circumstances):
    """Record this import before its cases are written, so that a killed one can resume. Arguments as above."""
    imports = _imports(output)
    for one in imports:  # a case that was removed may have another origin now
        one["cases"] = {root: of_case for root, of_case in one["cases"].items() if root not in files}
    same = [one for one in imports if one["settings"] == settings]
    earlier = same[0]["cases"] if same else {}
    imports = [one for one in imports if one["settings"] != settings and one["cases"]]
    imports.append({**circumstances, "settings": settings, "cases": {**earlier, **files}})
    write_json(output / _RECORD, {"imports": imports})


def record_outlined(output, outlined, roots, there):
    """Say in ``outlined.csv`` that `outlined`, names of fluids, were outlined in the cases `roots`.

    Of those that are `there` already, what the file says stays. To be called before the cases are written, so that none
    is without its row, however the import ends. Raises `InputError` if the file cannot be used.
    """
    before = read_outlined(output)
    new = [root for root in roots if root not in there or root_stated(root, before) is None]
    write_outlined(output, dict.fromkeys(new, outlined))


def write_case(folder, volumes, spacing_mm, placement, record=None):
    """Write `volumes` ({"oct": (slices, rows, columns), ...}) as MetaImage into a `folder` that appears whole.

    A `record` (a dictionary) is written beside them as ``correction.json``.
    """
    folder = Path(folder)
    temporary = folder.parent / f"{UNFINISHED}{folder.name}"
    for name, voxels in volumes.items():
        write_volume(temporary / f"{name}.mhd", voxels, spacing_mm, placement)
    if record is not None:
        write_json(temporary / "correction.json", record)
    try:
        os.replace(temporary, folder)
    except OSError:
        shutil.rmtree(temporary)
        raise


def write_recipe(output, patient_pattern):
    """Write ``recipe.py``, where the cases below `output` are and what is made of them goes. Returns its path."""
    data, path = Path(output).absolute(), Path(output) / "recipe.py"
    lines = [
        '"""The imported cases beside this file, for --recipe."""\n',
        f"DATA_ROOT = {str(data)!r}",
        f"OUTPUT_ROOT = {str(data.with_name(f'{data.name}-output'))!r}",
        f"PATIENT_PATTERN = {patient_pattern!r}",
    ]
    with written_whole(path) as temporary:
        Path(temporary).write_text("\n".join(lines) + "\n", "utf-8")
    return path


def _imports(output):
    path = output / _RECORD
    if not path.exists():
        return []
    try:
        return read_json(path)["imports"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not a record of imports ({error!r}); name another --output") from error
