"""Every hyperparameter and path of the scripts, with unit and reason.

Edit a value here, or override it for one run: ``python model_training.py --set EPOCH=5 --set RUN_NAME=trial``.
`load` is the only place that rebinds a value; paths further down follow the roots.
"""

import argparse
import ast
import difflib
import re
from pathlib import Path

from utils.errors import InputError
from utils.networks import check_network
from utils.patch_settings import BatchSettings, PatchSettings
from utils.training.rules import TrainingRules

# ---- Where things are ----------------------------------------------------------------------------------------------
DATA_ROOT = "data"  # folder of the raw volumes: RETOUCH-TrainingSet-<Vendor>/<case>/{oct,reference}.mhd
OUTPUT_ROOT = "output"  # everything that the scripts write; an absolute path or relative to the working directory
RUN_NAME = "unet"  # name of the experiment; results go to OUTPUT_ROOT/runs/RUN_NAME

# ---- Randomness ----------------------------------------------------------------------------------------------------
SEED = 0  # split, initial weights, patches, dropout and augmentation all follow from it
DETERMINISTIC = True  # same weights from the same seed on the same machine; False lets TensorFlow choose faster kernels

# ---- Data and splits -----------------------------------------------------------------------------------------------
MATCH_INTENSITIES = True  # Cirrus and Topcon to Spectralis; False where what is trained is to cope with any
REFERENCE_CASE = None  # Spectralis case whose intensities Cirrus and Topcon are matched to; None: first training one
REFERENCE_HISTOGRAM = None  # CSV (grey_value, count) used when no Spectralis case exists, e.g. another data set's
PATIENT_PATTERN = r"^(.*)$"  # regular expression on the case name; its first group names the patient, never split
TEST_FRACTION = 0.25  # share of each vendor's patients held out for evaluate.py (the original's 75/25)
FOLDS = None  # number of cross-validation folds; None: one split by TEST_FRACTION
FOLD = 0  # which fold is held out when FOLDS is set, counted from 0
VALIDATION_FRACTION = 0.2  # share of the remaining patients on which epochs and thresholds are chosen

# ---- Labels --------------------------------------------------------------------------------------------------------
IRF_CODE = 1  # intraretinal fluid in reference.raw
SRF_CODE = 2  # subretinal fluid
PED_CODE = 3  # pigment epithelial detachment
N_CLASSES = 4  # background and the three fluids

# ---- Preprocessing and patches -------------------------------------------------------------------------------------
PATCH_SIZE_H = 256  # rows of a patch; the network wants multiples of 8
PATCH_SIZE_W = 128  # columns of a patch
AXIAL_SPACING_MM = 0.003872  # every volume is resampled to this row spacing, Spectralis' own
SLICE_MEAN = 128.0  # grey value that becomes 0 in the network's input
SLICE_SD = 128.0  # grey values that become 1
PATCHES_PER_SLICE = 12  # at most; a fifth as many again come from anywhere in the ROI
PATCH_BORDER = 42  # pixels; a patch counts as holding a fluid only if the fluid lies this far inside
DROP_HEALTHY = 0.75  # share of patches without fluid that is dropped, since most of the retina is healthy

# ---- Network -------------------------------------------------------------------------------------------------------
MODEL = "tennakoon"  # the paper's U-Net, "Unet/efficientnetlite0", or segmentation_models', e.g. "Unet/resnet34"
ENCODER_WEIGHTS = None  # "imagenet", or a file of pretrained weights for such a backbone; None: random ones
INIT_WEIGHTS = None  # best.keras to start from, of the same network, e.g. "weights/phantom.keras"; None: random ones
BASE_FILTERS = 64  # filters of the first level, doubled at each; 16 trains about ten times faster on a CPU
REGULARIZER_WEIGHT = 1e-4  # L2 penalty on convolution kernels
BATCH_NORM_MOMENTUM = 0.9  # 0.99, Keras' own, for batches that differ much; it lags hundreds of steps behind
TRAIN_CLASSES = False  # True adds three heads that say whether IRF, SRF, PED is in the patch
DTYPE_POLICY = "float32"  # "mixed_bfloat16" is up to twice as fast where the hardware supports it
PREDICTION_GB = 0.8  # memory for a tile's intermediate results when scans are segmented; a GPU is faster with more
THRESHOLD = 0.5  # a pixel whose likeliest class is less probable than this is background

# ---- Training ------------------------------------------------------------------------------------------------------
BATCH_SIZE = 16  # patches a step
EPOCH = 100  # epochs of model_training.py
STEPS_PER_EPOCH = None  # steps an epoch; None: every slice of the stratified draw
ADAM_LR = 2e-4  # learning rate of the segmentation network
ADAM_BETA_1 = 0.5  # first-moment decay; 0.5 rather than 0.9 is what adversarial training is usually stable with
VALIDATION_B_SCANS = 48  # whole B-scans, balanced over vendors and fluids, that every epoch is scored on
MONITOR = "val_dice"  # column of log.csv that chooses the best epoch: Dice on those B-scans, mean of the fluids
MONITOR_EPOCHS = 3  # epochs that it is averaged over against noise; an epoch never counts for more than it reached
PATIENCE = None  # epochs without a better one after which training ends; None: it goes on to EPOCH
SLOW_DOWN_AFTER = None  # epochs without a better one after which the learning rate is halved; None: it stays
KEEP_EPOCHS = 1  # how many epochs' weights stay on disk: 0 none, N the last N, None all
SAVE_MINUTES = 15.0  # how often the state is saved within an epoch: what a power cut can cost
WORKERS = 0  # processes that prepare data beside the main one; 0: everything in-process
DEVICES = 1  # GPUs of a host that share every batch (without a GPU: parts of the processor, for trials)
HOSTS = 1  # machines that share every batch; several need KERAS_BACKEND=jax and one OUTPUT_ROOT for all
HOST = 0  # which of them this is, counted from 0; the first writes the results
COORDINATOR = None  # "address:port" at which host 0 can be reached by the others
DASK_SCHEDULER = None  # "tcp://host:port" of a Dask cluster that prepare_data.py's cases go to instead

# ---- Adversarial fine-tuning ---------------------------------------------------------------------------------------
ADVERSARIAL_EPOCH = None  # epochs of adversarial_training.py; None: as EPOCH
ADVERSARIAL_WEIGHT = 0.05  # weight of "the discriminator calls the mask real" beside the segmentation loss
ADVERSARIAL_LIMIT = 0.3  # longest its gradient may be, of the segmentation's, which a sure D drowns; None: no limit
D_BASE_FILTERS = None  # filters of the discriminator's first level; None: as BASE_FILTERS
D_POOLING = "max"  # of its features over the patch, or "average", which loses one wrong place among the right ones
D_ADAM_LR = 1e-4  # learning rate of the discriminator; below the U-Net's, since it learns faster
D_ADAM_BETA_1 = 0.5  # as ADAM_BETA_1
D_REAL_LABEL = 0.9  # what the discriminator is to say of a reader's mask; below 1 it stays less sure of itself
D_WARM_UP_STEPS = 200  # steps in which the discriminator alone learns: an untrained one would teach the U-Net noise
ADVERSARIAL_RAMP_STEPS = 500  # steps over which ADVERSARIAL_WEIGHT rises from 0, so that the U-Net is not shaken
D_READY_ACCURACY = 0.55  # the U-Net listens only while the discriminator is right as often: an idle one teaches noise
D_AHEAD_ACCURACY = 0.9  # the discriminator pauses while it is right more often: one that always wins teaches nothing
D_PATIENCE = 5  # epochs near one half on held-out masks, having been better, after which training ends; None: never


# ---- Derived from the values above; functions, so that they follow an overridden root ------------------------------
def preprocessed_folder():
    """Folder of the preprocessed volumes, ROI masks and slice_gt.csv."""
    return Path(OUTPUT_ROOT) / "pre_processed"


def reference_histogram_csv():
    """The intensity distribution that Cirrus and Topcon volumes were matched to; absent where nothing was matched."""
    return preprocessed_folder() / "reference_histogram.csv"


def split_csv(part):
    """CSV of the slices in `part`: "train", "val" or "test"."""
    return Path(OUTPUT_ROOT) / f"{part}_data.csv"


def training_data_settings():
    """Arguments of `utils.training.data.read_training_data`."""
    return {
        "csv_paths": {part: split_csv(part) for part in ("train", "val")},
        "n_b_scans": VALIDATION_B_SCANS,
        "seed": SEED,
        "monitor": MONITOR,
        "preparation": preparation_settings(),
    }


def run_folder(step):
    """Folder of this run's `step`: "segmentation", "adversarial" or "evaluation"."""
    return Path(OUTPUT_ROOT) / "runs" / RUN_NAME / step


def fold_root(fold):
    """OUTPUT_ROOT of one of FOLDS, below the OUTPUT_ROOT that all of them share."""
    return Path(OUTPUT_ROOT) / f"fold_{fold}"


def matched_histogram_csv():
    """The file of `reference_histogram_csv`; None where grey values are not to be matched."""
    return reference_histogram_csv() if MATCH_INTENSITIES else None


def preparation_settings():
    """Arguments of `utils.prepared.describe_data`: where step 1 has put its files, and how it should have made them."""
    return {
        "preprocessed_folder": preprocessed_folder(),
        "axial_spacing_mm": AXIAL_SPACING_MM,
        "reference_histogram_csv": matched_histogram_csv(),
        "patient_pattern": PATIENT_PATTERN,
    }


def batch_settings():
    """Which patches are drawn, and how they become batches, in training, validation and evaluation alike."""
    patches = PatchSettings(
        shape=(PATCH_SIZE_H, PATCH_SIZE_W),
        per_slice=PATCHES_PER_SLICE,
        border=PATCH_BORDER,
        drop_healthy=DROP_HEALTHY,
        fluid_labels=(IRF_CODE, SRF_CODE, PED_CODE),
    )
    return BatchSettings(
        preprocessed_folder=preprocessed_folder(),
        patches=patches,
        seed=SEED,
        batch_size=BATCH_SIZE,
        slice_mean=SLICE_MEAN,
        slice_sd=SLICE_SD,
        n_classes=N_CLASSES,
        train_classes=TRAIN_CLASSES,
        workers=WORKERS,
    )


def network_settings():
    """Arguments of `utils.networks.create_network`."""
    return {
        "name": MODEL,
        "encoder_weights": ENCODER_WEIGHTS,
        "input_shape": (PATCH_SIZE_H, PATCH_SIZE_W, 3),
        "regularizer_weight": REGULARIZER_WEIGHT,
        "batch_norm_momentum": BATCH_NORM_MOMENTUM,
        "base_filters": BASE_FILTERS,
        "train_classes": TRAIN_CLASSES,
        "n_classes": N_CLASSES,
        "dtype_policy": DTYPE_POLICY,
        "seed": SEED,
    }


def training_rules(epochs):
    """The `TrainingRules` of a run of so many epochs."""
    return TrainingRules(
        epochs=epochs,
        monitor=MONITOR,
        window=MONITOR_EPOCHS,
        patience=PATIENCE,
        slow_down_after=SLOW_DOWN_AFTER,
        keep_epochs=KEEP_EPOCHS,
        save_minutes=SAVE_MINUTES,
    )


def prediction_settings():
    """What a prediction needs besides weights and reference histogram; goes into ``best.json``."""
    return {
        "network": MODEL,
        "axial_spacing_mm": AXIAL_SPACING_MM,
        "slice_mean": SLICE_MEAN,
        "slice_sd": SLICE_SD,
        "threshold": THRESHOLD,
    }


def values():
    """Every setting as a dictionary, in the order of this file."""
    return {name: value for name, value in globals().items() if name.isupper() and not name.startswith("_")}


# ---- Overriding and checking ---------------------------------------------------------------------------------------
# Names that may be None and the type that they have otherwise.
_OPTIONAL = {
    "REFERENCE_CASE": str,
    "REFERENCE_HISTOGRAM": str,
    "FOLDS": int,
    "ENCODER_WEIGHTS": str,
    "INIT_WEIGHTS": str,
    "STEPS_PER_EPOCH": int,
    "DASK_SCHEDULER": str,
    "COORDINATOR": str,
    "KEEP_EPOCHS": int,
    "PATIENCE": int,
    "SLOW_DOWN_AFTER": int,
    "D_PATIENCE": int,
    "ADVERSARIAL_LIMIT": float,
    "D_BASE_FILTERS": int,
    "ADVERSARIAL_EPOCH": int,
}

_MEASURES = ["dice", "dice_irf", "dice_srf", "dice_ped", "iou_score", "f_score", "f_irf", "f_srf", "f_ped", "loss"]
_MONITORS = [f"val_{measure}" for measure in _MEASURES]

# (names, test, what is allowed): every complaint of `validate` comes from one of these rows.
_RULES = [
    (
        "BATCH_SIZE EPOCH BASE_FILTERS PATCHES_PER_SLICE STEPS_PER_EPOCH ADVERSARIAL_EPOCH VALIDATION_B_SCANS "
        "MONITOR_EPOCHS PATIENCE D_PATIENCE D_BASE_FILTERS SLOW_DOWN_AFTER DEVICES HOSTS",
        lambda value: value >= 1,
        "at least 1",
    ),
    ("D_WARM_UP_STEPS ADVERSARIAL_RAMP_STEPS", lambda value: value >= 0, "at least 0"),
    ("SEED FOLD WORKERS HOST KEEP_EPOCHS PATCH_BORDER REGULARIZER_WEIGHT", lambda value: value >= 0, "at least 0"),
    ("ADVERSARIAL_WEIGHT ADVERSARIAL_LIMIT", lambda value: value >= 0, "at least 0"),
    ("AXIAL_SPACING_MM SLICE_SD ADAM_LR D_ADAM_LR SAVE_MINUTES PREDICTION_GB", lambda value: value > 0, "above 0"),
    ("FOLDS", lambda value: value >= 2, "at least 2, or None for one split"),
    ("ADAM_BETA_1 D_ADAM_BETA_1 DROP_HEALTHY BATCH_NORM_MOMENTUM", lambda value: 0 <= value < 1, "from 0 to below 1"),
    ("TEST_FRACTION VALIDATION_FRACTION", lambda value: 0 < value < 1, "between 0 and 1"),
    ("D_POOLING", lambda value: value in ("average", "max"), "'average' or 'max'"),
    ("D_READY_ACCURACY", lambda value: 0 <= value <= 1, "from 0 to 1"),
    ("D_REAL_LABEL D_AHEAD_ACCURACY", lambda value: 0.5 <= value <= 1, "from 0.5 to 1"),
    ("THRESHOLD", lambda value: 0 <= value <= 1, "from 0 to 1"),
    ("PATCH_SIZE_H PATCH_SIZE_W", lambda value: value >= 104 and value % 8 == 0, "a multiple of 8 from 104 on"),
    ("MONITOR", lambda value: value in _MONITORS, "one of " + ", ".join(_MONITORS)),
    ("N_CLASSES", lambda value: value == 4, "4: background, IRF, SRF, PED"),
    ("DTYPE_POLICY", lambda value: value in ("float32", "mixed_bfloat16", "mixed_float16"), "float32 or mixed_*16"),
    (
        "RUN_NAME",
        lambda value: re.fullmatch(r"\w[\w.-]*", value) is not None,
        "letters, digits, '_', '-' and '.', as it names a folder",
    ),
]


def load(argv, parser=None):
    """Apply every ``--set NAME=VALUE`` in `argv` and return the other arguments.

    `parser` is the script's own `argparse.ArgumentParser`; ``--set`` is added to it. A value is read by
    `ast.literal_eval`, else taken as a string. Raises `InputError` for an unknown name (with the closest match) or a
    value of another type than the one in this file.
    """
    parser = parser or argparse.ArgumentParser()
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="override a name in config.py for this run",
    )
    arguments = parser.parse_args(argv)
    changes, complaints = {}, []
    for override in arguments.overrides:
        name, separator, text = override.partition("=")
        try:
            if not separator:
                raise InputError(f"--set {override}: expected NAME=VALUE")
            changes[name] = _converted(name, text)
        except InputError as error:
            complaints += error.messages
    if complaints:
        raise InputError(*complaints)
    globals().update(changes)
    return arguments


def _converted(name, text):
    """`text` as a value for the setting `name`."""
    defaults = values()
    if name not in defaults:
        closest = difflib.get_close_matches(name.upper(), defaults, n=1, cutoff=0.4)
        raise InputError(f"--set {name}: no such name in config.py" + (f"; did you mean {closest[0]}?" * bool(closest)))
    expected = _OPTIONAL.get(name, type(defaults[name]))
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if expected is str and value is not None:
        return text if not isinstance(value, str) else value
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is expected or (value is None and name in _OPTIONAL):
        return value
    optional = " or None" if name in _OPTIONAL else ""
    raise InputError(f"--set {name}={text}: expected {expected.__name__}{optional}, found {type(value).__name__}")


def validate():
    """Raise `InputError` with a line for each setting whose value cannot work: name, value, what is allowed."""
    current, complaints = values(), []
    for names, is_allowed, allowed in _RULES:
        for name in names.split():
            value = current[name]
            if value is None and name in _OPTIONAL:
                continue
            try:
                allows = is_allowed(value)
            except TypeError:  # text where a number belongs
                allows = False
            if not allows:
                complaints.append(f"config.{name} = {value!r}: must be {allowed}")
    codes = (IRF_CODE, SRF_CODE, PED_CODE)
    if codes != (1, 2, 3):
        complaints.append(f"config.IRF_CODE, SRF_CODE, PED_CODE = {codes}: must be (1, 2, 3), the labels of RETOUCH")
    if FOLDS is not None and FOLD >= FOLDS:
        complaints.append(f"config.FOLD = {FOLD}: must be below FOLDS = {FOLDS}")
    if HOST >= HOSTS:
        complaints.append(f"config.HOST = {HOST}: must be below HOSTS = {HOSTS}")
    if HOSTS > 1 and COORDINATOR is None:
        complaints.append(f"config.COORDINATOR = None: must be address:port of host 0, since HOSTS = {HOSTS}")
    if BATCH_SIZE % (DEVICES * HOSTS):
        shares = f"DEVICES * HOSTS = {DEVICES * HOSTS}"
        complaints.append(f"config.BATCH_SIZE = {BATCH_SIZE}: must be a multiple of {shares}, which share it")
    if min(PATCH_SIZE_H, PATCH_SIZE_W) <= 2 * PATCH_BORDER:
        complaints.append(f"config.PATCH_BORDER = {PATCH_BORDER}: must be below half the patch's smaller side")
    try:
        check_network(MODEL, (PATCH_SIZE_H, PATCH_SIZE_W), train_classes=TRAIN_CLASSES, encoder_weights=ENCODER_WEIGHTS)
    except InputError as error:
        complaints += error.messages
    try:
        re.compile(PATIENT_PATTERN)
    except re.error as error:
        complaints.append(f"config.PATIENT_PATTERN = {PATIENT_PATTERN!r}: must be a regular expression ({error})")
    if complaints:
        raise InputError(*complaints)
