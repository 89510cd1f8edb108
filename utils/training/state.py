"""The checkpoint that an interrupted run resumes from.

Its arrays are in ``last-EEEE-SSSSSSS.npz``: E is the number of whole epochs, S the number of steps of the next epoch. A
JSON file of the same name is written last and completes it.
"""

from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files import read_json, sha256, write_json, written_whole

STATES_KEPT = 2  # checkpoints: the newest, and the one before it in case the newest is damaged


def save_state(folder, variables, progress):
    """Save a checkpoint: Keras `variables` (weights, optimizer slots, random states) and `progress`, a dict for JSON.

    `progress` holds at least ``epoch`` and ``step``. Of the earlier checkpoints, only the newest is kept. Checkpoints
    of later steps are removed, because the run did not resume from them.
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
    """(progress, path of the arrays) of the newest whole checkpoint in `folder`, or None if there is none.

    Prints a line for each damaged checkpoint that is skipped. Raises `InputError` if all are damaged.
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
                print(f"{other}: missing or damaged; resuming from {arrays.stem}")
            return progress, arrays
        damaged.append(arrays)
    if damaged:
        raise InputError(*(f"{path}: missing or damaged; delete last-* there to start again" for path in damaged))
    return None


def restore_variables(variables, arrays):
    """Put the arrays that `save_state` stored in the file `arrays` back into `variables`, in the same order."""
    with np.load(arrays) as stored:
        values = [stored[name] for name in stored.files]
    if [value.shape for value in values] != [tuple(variable.shape) for variable in variables]:
        raise InputError(f"{arrays}: holds another network than the one in config.py; choose another RUN_NAME")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
