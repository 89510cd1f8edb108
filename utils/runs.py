"""Run folders: the resolved settings, the log, the weights of every epoch, and the exported best model."""

import contextlib
import csv
import hashlib
import importlib.metadata
import json
import os
import platform
import textwrap
import time
from pathlib import Path

from utils.errors import InputError
from utils.files import locked, remove_unfinished, write_json, written_whole

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
        "THRESHOLD",
    ),
}
NETWORK_SETTINGS = ("MODEL", "BASE_FILTERS", "TRAIN_CLASSES")  # what decides the shapes of weights
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


def start_run(folder, settings, data, irrelevant=(), writes=True):
    """Create the run's `folder`, or check that it was started with the same settings and the same data.

    Writes ``config.json`` (settings), ``data.json`` (`data`, of `utils.prepared.describe_data`) and ``versions.json``
    (packages and hardware) if `writes`. `irrelevant` names settings that do not alter this step. Raises `InputError`
    with a line for each other setting that has changed, and for each part of the split that has.
    """
    path = Path(folder) / "config.json"
    if path.exists():
        before = read_json(path)
        settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
        names = [name for name in settings if name not in MAY_CHANGE and name not in irrelevant]
        changed = [name for name in names if name not in before or before[name] != settings[name]]
        if changed:
            raise InputError(
                *(f"{path}: {name} was {before.get(name)!r}, is now {settings[name]!r}" for name in changed),
                f"{path}: this run began with other settings; set them back or choose another RUN_NAME",
            )
        data_path = path.with_name("data.json")
        check_same_data(data_path, read_json(data_path) if data_path.exists() else None, data)
    if not writes:
        return
    write_json(path, settings)
    write_json(path.with_name("data.json"), data)
    write_json(Path(folder) / "versions.json", versions())


def check_same_data(path, before, data):
    """Raise `InputError` where the `data` of today are not those of `before`, which the file at `path` states.

    Both are of `utils.prepared.describe_data`; `before` is None in files of an earlier version of this collection: then
    a note is printed.
    """
    if before is None:
        print(f"note: {path} does not say which cases were used; going on with those of today's split")
        return
    complaints = []
    for part in ("train", "val"):
        cases, cases_before = set(data[part]["cases"]), set(before[part]["cases"])
        if cases != cases_before:
            new, gone = len(cases - cases_before), len(cases_before - cases)
            complaints.append(f"{path}: {part}_data.csv has {new} cases that it did not have, and lacks {gone}")
        elif data[part] != before[part]:
            complaints.append(f"{path}: {part}_data.csv lists other B-scans, or other patients, of the same cases")
    if data["preparation"] != before["preparation"]:
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


def settings_text(settings):
    """The `settings`, a dictionary, in some lines for the console."""
    return textwrap.fill(", ".join(f"{name}={value!r}" for name, value in settings.items()), 120)


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_json(path):
    """Content of a JSON file; `InputError` where it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found; run the step that writes it first") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); delete it and run the step that writes it") from None


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


# ---- The best model ------------------------------------------------------------------------------------------------
def export_best(folder, model, details):
    """Write ``best.keras`` (`model`, a float32 inference graph), then ``best.json``: `details` and its SHA-256.

    In between there is no ``best.json``: what a killed process leaves is no pair of two models' files.
    """
    path = Path(folder) / "best.keras"
    with written_whole(path) as temporary:
        model.save(temporary)
        path.with_suffix(".json").unlink(missing_ok=True)
    write_json(path.with_suffix(".json"), {**details, "sha256": sha256(path)})


def read_best(path):
    """Details of an exported model, after checking that it is the file that they describe.

    `path` is the ``.keras`` file. Raises `InputError` where either file is missing or the two do not belong together.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such model; train one with model_training.py or name another with --model")
    details = read_json(path.with_suffix(".json"))
    if details.get("sha256") != sha256(path):
        raise InputError(f"{path}: is not the model that {path.stem}.json describes; copy both files of one run")
    return details


def check_input(path, details, settings, remedy):
    """Raise `InputError` where the model at `path`, with these `details`, takes other images than `settings` say.

    `settings` and `details` are dictionaries with the axial spacing, the grey values' mean and standard deviation and
    the reference histogram (256 counts, or None); what `settings` lacks is not compared. `remedy` says what to do.
    """
    names = ("axial_spacing_mm", "slice_mean", "slice_sd")
    complaints = [
        f"{path}: its {name} is {details[name]:g}, config.{name.upper()} is {settings[name]:g}; {remedy}"
        for name in names
        if details[name] != settings[name]
    ]
    if "reference_histogram" in settings and details["reference_histogram"] != settings["reference_histogram"]:
        complaints.append(f"{path}: its grey values were matched to another reference histogram; {remedy}")
    if complaints:
        raise InputError(*complaints)


def find_best_model(adversarial, segmentation):
    """The model to evaluate and to segment with, of the run's step folders: (``best.keras``, why it is taken).

    That is the fine-tuned model where it was made from the segmentation model of today, else the latter. None where
    neither step has exported one. `why` is a clause for the console and the report.
    """
    fine_tuned, trained = (_exported(folder) for folder in (adversarial, segmentation))
    if fine_tuned is None:
        return trained and (trained, "there is no fine-tuned one")
    if trained is None:
        return fine_tuned, f"fine-tuned; there is no model in {segmentation} to compare its origin with"
    made_from = read_best(fine_tuned).get("made_from")
    if made_from is None:
        return fine_tuned, "fine-tuned; it was written before models kept what they were made from, so it may be old"
    if made_from != read_best(trained)["sha256"]:
        return trained, f"the fine-tuned one in {adversarial} was made from another segmentation model"
    return fine_tuned, f"fine-tuned from the model in {segmentation}"


def best_model(adversarial, segmentation):
    """As `find_best_model`; `InputError` where neither step has exported a model."""
    if found := find_best_model(adversarial, segmentation):
        return found
    raise InputError(f"{segmentation}: no best.keras there; run model_training.py first, or check RUN_NAME")


def _exported(folder):
    """Path of a step's complete ``best.keras``, or None."""
    path = Path(folder) / "best.keras"
    return path if path.with_suffix(".json").exists() else None


def set_weights(networks, path):
    """Give `networks`, all of one architecture, the weights of the exported model at `path`.

    Raises `InputError` where it is no Keras model, or another network.
    """
    import keras

    try:
        weights = keras.models.load_model(path, compile=False).get_weights()
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a Keras model ({str(error).strip().splitlines()[0]})") from error
    if [weight.shape for weight in weights] != [weight.shape for weight in networks[0].weights]:
        details = read_json(Path(path).with_suffix(".json")).get("config", {})
        its_own = ", ".join(f"{name} = {details[name]!r}" for name in NETWORK_SETTINGS if name in details)
        raise InputError(f"{path}: is another network than this run's; it was trained with {its_own or 'others'}")
    for network in networks:
        network.set_weights(weights)


def sha256(path):
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
