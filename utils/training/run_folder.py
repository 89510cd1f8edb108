"""Run folders: the resolved settings, the log, the weights of every epoch, and the exported best model."""

import contextlib
import csv
import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path

from utils.errors import InputError
from utils.files import locked, read_json, remove_unfinished, write_json, written_whole
from utils.preparation.prepared import all_seen
from utils.settings.patch_settings import AugmentationSettings, augmentations
from utils.settings.settings import RENAMED, RETIRED

# Settings that may differ when a run goes on: they say how long, where and with how many processes, not what.
MAY_CHANGE = {
    *("DATA_ROOT", "OUTPUT_ROOT", "RUN_NAME", "REFERENCE_HISTOGRAM"),
    *(
        "EPOCH",
        "ADVERSARIAL_EPOCH",
        "PATIENCE",
        "D_PATIENCE",
        "WORKERS",
        "DASK_SCHEDULER",
        "HOSTS",
        "HOST",
        "COORDINATOR",
        "KEEP_EPOCHS",
        "SAVE_MINUTES",
        "PREDICTION_GB",
        "SCAN_MINUTES",
        "THRESHOLD",
        "CHOOSE_DECISIONS",
    ),
    *("OUTLINED", "NOT_JUDGED_OTHER"),  # of step 1: the rows and records of what it has prepared are compared
}
CSV_OF = {"train": "train_data.csv", "val": "val_data.csv", "unlabelled": "slice_gt.csv, where it has no labels,"}
OWN_PARTS = ("train", "val")  # of the data, by which both steps of a run go
_MEANING = {"STARTING_MODEL": "the SHA-256 of the model that training starts from"}
_PACKAGES = [
    *("tensorflow", "jax", "keras", "segmentation-models", "nutsml", "numpy", "numba"),
    *("pandas", "scikit-image", "SimpleITK"),
]


@contextlib.contextmanager
def only_writer(folder, writes=True):
    """Lock the run's `folder` in the block, after removing what a killed process left unfinished there.

    Does nothing unless this process `writes`: of several hosts, the first does.
    """
    if not writes:
        yield
        return
    with locked(folder):
        remove_unfinished(folder)
        yield


def start_run(folder, settings, data, irrelevant=(), writes=True, defaults=()):
    """Create the run's `folder`, or check that it was started with the same settings and the same data.

    Writes ``config.json`` (settings), ``data.json`` (`data`, as `check_same_data` takes it) and ``versions.json``
    (packages and hardware) if `writes`. `irrelevant` names settings that do not alter this step. A setting that the run
    did not know yet was at its default, as `defaults`, a dictionary, says. Raises `InputError` with a line for each
    other setting that has changed, and for each part of the split that has. A run that failed before its first
    checkpoint is started anew.
    """
    path = Path(folder) / "config.json"
    if path.exists() and _has_results(path.parent):
        settings, defaults = json.loads(json.dumps([settings, dict(defaults)]))  # tuples become lists, as in the file
        stored = {RENAMED.get(name, name): value for name, value in read_json(path).items()}
        before = defaults | with_augmentation(stored)
        may_change = MAY_CHANGE - ({"EPOCH", "ADVERSARIAL_EPOCH"} if settings.get("LR_SCHEDULE") == "cosine" else set())
        names = [name for name in settings if name not in may_change and name not in irrelevant]
        if "STARTING_MODEL" not in before:  # earlier versions did not note which file INIT_WEIGHTS named
            names = [name for name in names if name != "STARTING_MODEL"]
        changed = [name for name in names if name not in before or before[name] != settings[name]]
        retired = [name for name, (left, _) in RETIRED.items() if left is not None and stored.get(name, left) != left]
        if retired := [name for name in retired if name not in irrelevant]:
            raise InputError(
                *(f"{path}: {name} was {stored[name]!r}, which is gone: {RETIRED[name][1]}" for name in retired),
                f"{path}: this run goes on with the version that began it; choose another RUN_NAME for this one",
            )
        if changed:
            raise InputError(
                *(
                    f"{path}: {_MEANING.get(name, name)} was {before.get(name)!r}, is now {settings[name]!r}"
                    for name in changed
                ),
                f"{path}: this run began with other settings; {_remedy(path.parent, changed)}",
            )
        data_path = path.with_name("data.json")
        check_same_data(data_path, read_json(data_path) if data_path.exists() else None, data)
    if not writes:
        return
    write_json(path, settings)
    write_json(path.with_name("data.json"), data)
    write_json(Path(folder) / "versions.json", versions())


def _remedy(folder, changed):
    """What to do where the settings `changed` are not those that the run in `folder` began with."""
    if changed == ["STARTING_MODEL"]:  # another RUN_NAME may have no such model
        return f"to start from the model of today, delete {folder} or move it away"
    return "set them back or choose another RUN_NAME"


def _has_results(folder):
    """Whether a run has left a checkpoint, a log or a model in its `folder`."""
    return any(next(folder.glob(pattern), None) for pattern in ("last-*", "log.csv", "best.*"))


def with_augmentation(stored):
    """Settings of a run as `stored`, with AUGMENTATION where an earlier version has five settings in its place."""
    names = ("ROTATION_DEGREES", "ROTATE_BOTH_WAYS", "GREY_AUGMENTATION", "SCALE_AUGMENTATION", "SCALE_RANGE")
    if "AUGMENTATION" in stored or not set(names) <= set(stored):
        return stored
    before = AugmentationSettings(*(stored[name] for name in names))
    known = [name for name, settings in augmentations().items() if settings == before]
    return {**stored, "AUGMENTATION": known[0] if known else str(before)}


def check_same_data(path, before, data, parts=None):
    """Raise `InputError` where the `data` of today are not those of `before`, which the file at `path` states.

    Both are a `TrainingData`'s description; `before` is None in files of an earlier version of this collection: then a
    note is printed. `parts` are those that are compared, by default all that `before` has: a run that goes on forgets
    nothing that it has seen.
    """
    if before is None:
        print(f"note: {path} does not say which cases were used; going on with those of today's split")
        return
    complaints = []
    for part in parts or (part for part in before if part not in ("preparation", "earlier")):
        now, then = (of.get(part, {"cases": []}) for of in (data, before))
        name = CSV_OF.get(part) or f"data set {part.removeprefix('mixed ')} of MIXED_ROOTS"
        cases, cases_before = set(now["cases"]), set(then["cases"])
        # The patients of a mixed data set follow from its cases; earlier versions found them in another way.
        changed = [key for key in then if now.get(key) != then[key] and (key != "patients" or part in CSV_OF)]
        if cases != cases_before:
            new, gone = len(cases - cases_before), len(cases_before - cases)
            complaints.append(f"{path}: {name} has {new} cases that it did not have, and lacks {gone}")
        elif changed == ["preparation"]:
            complaints.append(f"{path}: {name} has been prepared in another way since")
        elif changed:
            complaints.append(f"{path}: {name} lists other B-scans, or other patients, of the same cases")
    seen, earlier = all_seen(data), {} if parts else before.get("earlier", {})
    if any(set(earlier.get(kind, ())) - set(seen[kind]) for kind in seen):
        complaints.append(f"{path}: the model that training starts from has not seen all that it had seen then")
    if data["preparation"] != before.get("preparation"):
        complaints.append(f"{path}: the volumes have been prepared in another way since")
    if complaints:
        raise InputError(*complaints, f"{path}: began with other data; bring them back or choose another RUN_NAME")


def versions():
    """Versions of Python and packages, and the hardware, as a dictionary."""
    found = {name: _version(name) for name in _PACKAGES}
    found |= {"python": platform.python_version(), "keras_backend": backend_name()}
    return found | {"platform": platform.platform(), "processor_cores": os.cpu_count()}


def backend_name():
    """The Keras backend that is asked for, whether Keras is imported already or not."""
    return os.environ.get("KERAS_BACKEND", "tensorflow")


def versions_text():
    """The `versions` in one line."""
    return ", ".join(f"{name} {value}" for name, value in versions().items() if value is not None)


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# ---- The weights of every epoch -----------------------------------------------------------------------------------
def keep_epoch_weights(folder, model, epoch, keep):
    """Store this epoch's weights as ``epochs/NNNN.weights.h5`` and remove all but the last `keep` (None: all)."""
    if keep == 0:
        return
    folder = Path(folder) / "epochs"
    with written_whole(folder / f"{epoch:04d}.weights.h5") as temporary:
        model.save_weights(temporary, overwrite=True)
    stored = sorted(folder.glob("[0-9]*.weights.h5"))
    for outdated in stored[:-keep] if keep else []:
        outdated.unlink()


# ---- The log -------------------------------------------------------------------------------------------------------
def write_log(folder, history):
    """Rewrite ``log.csv`` from `history`, a list of one dictionary an epoch; the last one names the columns."""
    with written_whole(Path(folder) / "log.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[-1]))
        writer.writeheader()
        writer.writerows(history)


class EventLog:
    """TensorBoard scalars, one event file a process, for any Keras backend.

    keras.callbacks.TensorBoard needs TensorFlow and reopens its writers at every call of `fit`.
    """

    def __init__(self, folder):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(Path(folder) / "tensorboard"))

    def write(self, epoch, scalars):
        """Add a dictionary of floats at step `epoch`."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=epoch, summary=Summary(value=values)))
        self._writer.flush()

    def close(self):
        """Close the event file."""
        self._writer.close()
