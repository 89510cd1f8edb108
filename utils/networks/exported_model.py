"""The exported model: ``best.keras``, a plain network, and ``best.json``, which says what it is and what it needs.

``best.json`` is written last, so a pair that has it is complete. This module writes, finds, reads and compares pairs.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files import read_json, sha256, write_json, written_whole
from utils.labels import CLASS_NAMES, FLUIDS, in_order
from utils.networks.onnx_model import is_onnx, read_onnx_details

BOX_MODEL = Path(__file__).parents[2] / "weights" / "oct_fluid.keras"  # the model in the box
NETWORK_SETTINGS = ("MODEL", "BASE_FILTERS", "TRAIN_CLASSES")  # what decides the shapes of weights


@dataclass(frozen=True)
class PredictionSettings:
    """What turns a scan into the network's input and its output into labels; stored in ``best.json``."""

    network: str  # as `config.MODEL`
    axial_spacing_mm: float
    slice_mean: float
    slice_sd: float
    threshold: float
    reference_histogram: list | None  # counts of the 256 grey values that Cirrus and Topcon are matched to
    neighbours: bool = True  # whether its channels are slices z-1, z, z+1, else z alone
    taught: tuple = tuple(FLUIDS)  # names of the fluids that somebody outlined for it

    @classmethod
    def from_details(cls, details):
        """The settings in the content of ``best.json``; `InputError` where one is missing."""
        details = {**details, "neighbours": sees_neighbours(details), "taught": taught_fluids(details)}
        missing = [name for name in cls.__dataclass_fields__ if name not in details]
        if missing:
            raise InputError(f"best.json: lacks {', '.join(missing)}; train the model with this version's scripts")
        return cls(**{name: details[name] for name in cls.__dataclass_fields__})


def taught_fluids(details):
    """Names of the fluids that a model was taught, by its ``best.json``: those that a training case outlines, its own
    or one of a model that it was made from. Files that do not say so are of models that were taught all."""
    return in_order(details.get("taught", FLUIDS))


def sees_neighbours(details):
    """Whether a model sees slices z-1, z, z+1, by its ``best.json``. Files that do not say so are of models that do."""
    return details.get("neighbours", True)


def export_best(folder, model, details):
    """Write ``best.keras`` (`model`, a float32 inference graph), then ``best.json``.

    ``best.json`` holds `details` (a dictionary), the class names and the model's SHA-256. The old ``best.json`` is
    removed first, so that a killed process leaves no pair of two different models' files.
    """
    path = Path(folder) / "best.keras"
    with written_whole(path) as temporary:
        model.save(temporary)
        path.with_suffix(".json").unlink(missing_ok=True)
    write_json(path.with_suffix(".json"), {**details, "class_names": CLASS_NAMES, "sha256": sha256(path)})


def export_epoch(folder, model, details, best):
    """`export_best` of an epoch: `best` holds its number and score, `details` everything else."""
    export_best(folder, model, {**best, **details})


def read_best(path):
    """Details of an exported model, after checking that it is the file that they describe.

    `path` is the ``.keras`` file, whose details are in the ``.json`` beside it, or an ``.onnx`` file, which holds them.
    Raises `InputError` if a file is missing or damaged, or the two do not belong together, and where what they say of
    the fluids that were taught or of the cases that were seen is not what training writes. An ONNX file beside the
    ``.json`` of another model or of later decisions is an old one.
    """
    path = Path(path)
    if is_onnx(path):
        details = read_onnx_details(path)
        beside = path.with_suffix(".json")
        now = read_json(beside) if beside.exists() else {**details, "sha256": details["made_from"]}
        if (now.get("sha256"), now.get("decisions")) != (details["made_from"], details.get("decisions")):
            raise InputError(f"{path}: is older than {beside.name} beside it; export it anew, or move it elsewhere")
        _check_stated(path, details)
        return details
    if not path.exists():
        raise InputError(f"{path}: no such model; train one with model_training.py or name another with --model")
    details = read_json(path.with_suffix(".json"))
    if details.get("sha256") != sha256(path):
        raise InputError(
            f"{path}: is not the model that {path.stem}.json describes; copy both files of one run, "
            "or repeat the command that trained it"
        )
    _check_stated(path.with_suffix(".json"), details)
    return details


def _check_stated(path, details):
    """Raise `InputError` where ``best.json`` was edited so that nobody can tell what the model was taught, or saw."""
    taught, data = details.get("taught", FLUIDS), details.get("data", {})
    if not taught or not set(taught) <= set(FLUIDS):
        raise InputError(f"{path}: taught is {taught!r}, expected some of {', '.join(FLUIDS)}; bring back the file")
    broken = [name for name in data if name != "preparation" and not {"cases", "patients"} <= set(data[name])]
    if broken:
        raise InputError(
            f"{path}: data {', '.join(broken)} lacks cases or patients, expected both; bring back the file"
        )


def is_whole(path):
    """Whether there is an exported model at `path` that `read_best` takes."""
    try:
        read_best(path)
    except InputError:
        return False
    return True


def check_input(path, details, settings, remedy):
    """Raise `InputError` if the model at `path` was trained on images that were prepared with other settings.

    `details` (of the model) and `settings` are dictionaries with the axial spacing, the grey values' mean and standard
    deviation, whether neighbours are seen, and the reference histogram (256 counts, or None). Without a histogram in
    `settings`, none is compared. `remedy` says what to do.
    """
    names = ("axial_spacing_mm", "slice_mean", "slice_sd")
    complaints = [
        f"{path}: its {name} is {details[name]:g}, config.{name.upper()} is {settings[name]:g}; {remedy}"
        for name in names
        if details[name] != settings[name]
    ]
    if sees_neighbours(details) != settings["neighbours"]:
        complaints.append(
            f"{path}: its neighbours is {sees_neighbours(details)}, config.NEIGHBOURS is {settings['neighbours']}; "
            f"{remedy}"
        )
    if "reference_histogram" in settings and details["reference_histogram"] != settings["reference_histogram"]:
        its_own, today = (
            "no reference histogram" if counts is None else f"a reference histogram of {sum(counts):,} voxels"
            for counts in (details["reference_histogram"], settings["reference_histogram"])
        )
        complaints.append(
            f"{path}: its grey values were matched to {its_own}, MATCH_INTENSITIES and reference_histogram.csv ask for "
            f"{today}; {remedy}"
        )
    if complaints:
        raise InputError(*complaints)


def find_best_model(adversarial, segmentation):
    """The model to evaluate and to segment with, of the run's step folders: (``best.keras``, why it is taken).

    That is the fine-tuned model if it was made from the current segmentation model, else the latter. None if neither
    step has exported a model. `why` is a clause for the console and the report.
    """
    fine_tuned, trained = (_exported(folder) for folder in (adversarial, segmentation))
    if fine_tuned is None:
        return trained and (trained, "there is no fine-tuned one")
    if trained is None:
        return fine_tuned, f"fine-tuned; there is no model in {segmentation} to compare its origin with"
    made_from = read_best(fine_tuned).get("made_from")
    if made_from is None:
        return fine_tuned, "fine-tuned; it does not say which model it was made from, so it may be out of date"
    if made_from != read_best(trained)["sha256"]:
        return trained, f"the fine-tuned one in {adversarial} was made from another segmentation model"
    return fine_tuned, f"fine-tuned from the model in {segmentation}"


def best_model(adversarial, segmentation):
    """As `find_best_model`, but raises `InputError` if neither step has exported a model."""
    if found := find_best_model(adversarial, segmentation):
        return found
    raise InputError(f"{segmentation}: no best.keras there; run model_training.py first, or check RUN_NAME")


def _exported(folder):
    """Path of a step's complete ``best.keras``, or None."""
    path = Path(folder) / "best.keras"
    return path if path.with_suffix(".json").exists() else None


def set_weights(networks, path):
    """Load the weights of the exported model at `path` into `networks`, all of one architecture.

    Raises `InputError` if the file is no Keras model, another network, or holds NaN.
    """
    import keras

    try:
        weights = keras.models.load_model(path, compile=False).get_weights()
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a Keras model ({str(error).strip().splitlines()[0]})") from error
    if [weight.shape for weight in weights] != [weight.shape for weight in networks[0].weights]:
        details = read_json(Path(path).with_suffix(".json")).get("config", {})
        its_own = ", ".join(f"{name} = {details[name]!r}" for name in NETWORK_SETTINGS if name in details)
        raise InputError(
            f"{path}: is another network than this run's; set these as it was trained: {its_own or 'not recorded'}"
        )
    if not all(np.isfinite(weight).all() for weight in weights):
        raise InputError(f"{path}: holds weights that are not finite, expected numbers; start from another model")
    for network in networks:
        network.set_weights(weights)
