"""The state that an interrupted run continues from: arrays in ``last-EEEE-SSSSSSS.npz``, completed by the JSON of that
name, where E is the number of whole epochs and S the number of steps of the next one that it holds."""

from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files import read_json, sha256, write_json, written_whole

STATES_KEPT = 2  # the newest, and the one before in case that it is damaged


def save_state(folder, variables, progress):
    """Save Keras `variables` (weights, optimizer slots, random states) and `progress`, a dictionary for JSON.

    `progress` holds at least ``epoch`` and ``step``. Of the states before, all but the newest are removed, and so are
    those of later steps: the run did not continue from them.
    """
    folder = Path(folder)
    stem = f"last-{progress['epoch']:04d}-{progress['step']:07d}"
    arrays = folder / f"{stem}.npz"
    with written_whole(arrays) as temporary:
        np.savez(temporary, *[np.asarray(variable) for variable in variables])
    write_json(arrays.with_suffix(".json"), {**progress, "sha256": sha256(arrays)})
    earlier = sorted(path.stem for path in folder.glob("last-*.json") if path.stem < stem)
    kept = {stem, *earlier[1 - STATES_KEPT :]}
    for outdated in [*folder.glob("last-*.json"), *folder.glob("last-*.npz")]:
        if outdated.stem not in kept:
            outdated.unlink()


def newest_state(folder):
    """(progress, path of the arrays) of the newest whole state in `folder`, or None where there has been none.

    Prints a line for each damaged one that is passed over; raises `InputError` where all are.
    """
    damaged = []
    for path in sorted(Path(folder).glob("last-*.json"), reverse=True):
        arrays = path.with_suffix(".npz")
        try:
            progress = read_json(path)
            whole = arrays.exists() and progress["sha256"] == sha256(arrays)
        except InputError:
            whole = False
        if whole:
            for other in damaged:
                print(f"{other}: missing or damaged; going back to {arrays.stem}")
            return progress, arrays
        damaged.append(arrays)
    if damaged:
        raise InputError(*(f"{path}: missing or damaged; delete last-* there to begin anew" for path in damaged))
    return None


def restore_variables(variables, arrays):
    """Put the arrays that `save_state` stored in the file `arrays` back into `variables`, in the same order."""
    with np.load(arrays) as stored:
        values = [stored[name] for name in stored.files]
    if [value.shape for value in values] != [tuple(variable.shape) for variable in variables]:
        raise InputError(f"{arrays}: holds another network than the one in config.py; choose another RUN_NAME")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
