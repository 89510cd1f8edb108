"""Every hyperparameter and path of the scripts, with unit and reason.

Edit a value here, or override it for one run: ``python model_training.py --set EPOCH=5 --set RUN_NAME=trial``.
`load` is the only place that rebinds a value; paths further down follow the roots.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Literal

from utils.errors import InputError
from utils.networks import exported_model
from utils.settings import setting_rules
from utils.settings.patch_settings import BatchSettings, MixedRoot, PatchSettings, augmentations
from utils.settings.rules import AdversarialRules, OptimizerSettings, ScoringRules, SplitRules, TrainingRules
from utils.settings.settings import add_options, options_of, read_overrides, read_recipe

# ---- Where things are ----------------------------------------------------------------------------------------------
# Folder of the raw volumes: RETOUCH-TrainingSet-<Vendor>/<case>/{oct,reference}.mhd.
DATA_ROOT = "data"
# Folder for everything that the scripts write: an absolute path, or relative to where a script is called.
OUTPUT_ROOT = "output"
# Name of the experiment; results go to OUTPUT_ROOT/runs/RUN_NAME.
RUN_NAME = "unet"

# ---- Randomness ----------------------------------------------------------------------------------------------------
# The split, initial weights, patches, dropout and augmentation all follow from it.
SEED = 0
# The same seed gives the same weights on the same machine. False lets TensorFlow choose faster kernels.
DETERMINISTIC = True

# ---- Data and splits -----------------------------------------------------------------------------------------------
# Match the grey values of Cirrus and Topcon to Spectralis. Set False for a model that must cope with any grey values.
MATCH_INTENSITIES = True
# The Spectralis case whose grey values Cirrus and Topcon are matched to. None: the first one that trains.
REFERENCE_CASE: str | None = None
# A CSV (grey_value, count) to match to where no Spectralis case trains, for example another data set's.
REFERENCE_HISTOGRAM: str | None = None
# A regular expression on the case name. Its first group names the patient, whom no split divides.
PATIENT_PATTERN = r"^(.*)$"
# Share of each vendor's patients that is held out for evaluate.py (the original's 75/25).
TEST_FRACTION = 0.25
# Number of cross-validation folds. None: one split by TEST_FRACTION.
FOLDS: int | None = None
# Which fold is held out when FOLDS is set, counted from 0.
FOLD = 0
# Share of the remaining patients on which epochs and thresholds are chosen.
VALIDATION_FRACTION = 0.2

# ---- Labels --------------------------------------------------------------------------------------------------------
# Which of IRF, SRF and PED the references outline. One that is missing here is unknown in them, not absent. DATA_ROOT's
# outlined.csv says it for single cases.
OUTLINED = ("IRF", "SRF", "PED")
# Labels in the other.mhd beside a reference of what may be fluid or not: nobody judged these pixels.
NOT_JUDGED_OTHER = ()
IRF_CODE = 1  # intraretinal fluid in reference.raw
SRF_CODE = 2  # subretinal fluid
PED_CODE = 3  # pigment epithelial detachment
N_CLASSES = 4  # background and the three fluids

# ---- Preprocessing and patches -------------------------------------------------------------------------------------
# Rows of a patch. The network needs multiples of 8.
PATCH_SIZE_H = 256
# Columns of a patch.
PATCH_SIZE_W = 128
# The network sees slices z-1, z and z+1, as in the paper. False: slice z alone, so that no neighbour misleads it.
NEIGHBOURS = True
# Every volume is resampled to this row spacing, Spectralis' own.
AXIAL_SPACING_MM = 0.003872
# The grey value that becomes 0 in the network's input.
SLICE_MEAN = 128.0
# The number of grey values that becomes 1.
SLICE_SD = 128.0
# At most so many patches of a B-scan along the region of interest. A fifth as many again come from anywhere in it.
PATCHES_PER_SLICE = 12
# Pixels. A patch counts as holding a fluid only if the fluid lies this far inside.
PATCH_BORDER = 42
# Share of the patches without fluid that is dropped, since most of the retina is healthy.
DROP_HEALTHY = 0.75

# ---- Network -------------------------------------------------------------------------------------------------------
# "tennakoon" is the paper's U-Net, "Unet/efficientnetlite0" a U-Net on a small pretrained encoder. Others are
# segmentation_models' by "architecture/backbone", such as "Unet/resnet34". "module:function" is yours (docs/code.md).
MODEL = "tennakoon"
# "imagenet", or a file of pretrained weights for such a backbone. None: random ones.
ENCODER_WEIGHTS: str | None = None
# A best.keras of the same network to start from, or "box" for the one in weights/. None: random weights.
INIT_WEIGHTS: str | None = None
# Of the paper's network: filters of the first level, doubled at each further one. 16 trains about ten times faster on a
# CPU.
BASE_FILTERS = 64
# L2 penalty on convolution kernels.
REGULARIZER_WEIGHT = 1e-4
# Momentum of batch normalisation. Keras' own, 0.99, suits batches that differ much; it lags hundreds of steps behind.
BATCH_NORM_MOMENTUM = 0.9
# True adds three heads that say whether IRF, SRF and PED are in the patch.
TRAIN_CLASSES = False
# "mixed_bfloat16" is up to twice as fast where the hardware supports it.
DTYPE_POLICY: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
# Memory for a tile's intermediate results when scans are segmented. A GPU is faster with more.
PREDICTION_GB = 0.8
# A pixel whose likeliest class is less probable than this is background.
THRESHOLD = 0.5
# Choose at the end of training, on validation cases: a threshold for each fluid, from which presence it counts, whether
# only where the retina's surfaces let it be, the smallest lesion, and a temperature of the probabilities. They go into
# best.json and win over THRESHOLD. Where --set gives that one, the temperature and the probability of presence stay.
CHOOSE_DECISIONS = False

# ---- Training ------------------------------------------------------------------------------------------------------
# Patches a step.
BATCH_SIZE = 16
# Epochs of model_training.py.
EPOCH = 100
# Steps an epoch. None: every B-scan of the stratified draw.
STEPS_PER_EPOCH: int | None = None
# Learning rate of the segmentation network.
ADAM_LR = 2e-4
# First-moment decay of Adam. Adversarial training is usually stable with 0.5 rather than 0.9.
ADAM_BETA_1 = 0.5
# Whole B-scans, balanced over vendors and fluids, that every epoch is scored on.
VALIDATION_B_SCANS = 48
# Column of log.csv that chooses the best epoch: the Dice on those B-scans, mean of the fluids. "epoch": the last is it.
MONITOR = "val_dice"
# Epochs without a better one after which training ends. None: it continues to EPOCH.
PATIENCE: int | None = None
# How many epochs' weights stay on disk: 0 none, N the last N, None all.
KEEP_EPOCHS: int | None = 1
# Minutes between two checkpoints within an epoch: what a power cut can cost.
SAVE_MINUTES = 15.0
# Processes that prepare data beside the main one. 0: everything in-process.
WORKERS = 0
# Minutes that test.py may take for a scan. A slower one fails, the others go on. None: any time.
SCAN_MINUTES: float | None = None
# GPUs of a host that share every batch (without a GPU: parts of the CPU, for trials).
DEVICES = 1
# Machines that share every batch. Several need KERAS_BACKEND=jax and one OUTPUT_ROOT for all.
HOSTS = 1
# Which of them this is, counted from 0. The first writes the results.
HOST = 0
# "address:port" at which the others reach host 0.
COORDINATOR: str | None = None
# "tcp://host:port" of a Dask cluster that cases and scans go to instead of WORKERS.
DASK_SCHEDULER: str | None = None

# ---- Beyond the paper: off here, for recipes -----------------------------------------------------------------------
# Of the paper's network: "same" gives an output of the patch's size, so that every pixel carries a loss. With "valid",
# as in the paper, 18 % do.
PADDING: Literal["valid", "same"] = "valid"
# Dice loss and cross-entropy. "balanced", as in the paper: every class of a patch has the same weight. With "plain"
# every pixel has, and each fluid has its own Dice: fewer false pixels. "module:function" is your own (docs/code.md).
LOSS = "balanced"
# Decoupled weight decay a step (AdamW), as a share of the learning rate; biases and batch normalisation have none.
WEIGHT_DECAY = 0.0
# Largest norm of a step's gradient, over all weights. None: no limit.
GRADIENT_CLIP: float | None = None
# "cosine" lets the learning rate fall from ADAM_LR to 0 over all steps. It needs STEPS_PER_EPOCH.
LR_SCHEDULE: Literal["constant", "cosine"] = "constant"
# Steps over which the learning rate of "cosine" first rises from 0 to ADAM_LR.
WARM_UP_STEPS = 0
# Validation, export and prediction take a running average of the weights with this momentum, such as 0.99. None: not.
EMA_MOMENTUM: float | None = None
# Other prepared data sets that training draws from as well, such as synthetic scans: {OUTPUT_ROOT: share of B-scans}.
MIXED_ROOTS = {}
# Draws B-scans that hold a rare fluid more often: 0 not, 1 until IRF, SRF, PED and none are equally frequent.
OVERSAMPLING = 0.0
# How training's B-scans are varied. "paper": mirrored, and rotated by up to 10 degrees, counter-clockwise. "strong"
# rotates by up to 15 to either side, stretches every other patch, and changes grey values, noise and resolution.
AUGMENTATION: Literal["paper", "strong"] = "paper"

# Share of the patches of a step of adversarial_training.py that scans without outlines give, beside BATCH_SIZE with
# outlines. prepare_data.py --unlabelled prepares them. DROP_HEALTHY and OVERSAMPLING then do not apply to any patch.
UNLABELLED_SHARE = 0.0
# Weight of what the teacher says of them, beside the segmentation loss. It is the running average of the weights that
# EMA_MOMENTUM keeps, labels patches before they are pasted into one another, and takes the discriminator's place.
SELF_TRAINING_WEIGHT = 0.0

# ---- Adversarial fine-tuning ---------------------------------------------------------------------------------------
# Epochs of adversarial_training.py. None: as EPOCH.
ADVERSARIAL_EPOCH: int | None = None
# Weight of the adversarial loss, that the discriminator call the mask real, beside the segmentation loss.
ADVERSARIAL_WEIGHT = 0.05
# Caps the adversarial gradient norm at this share of the segmentation losses'. None: no cap.
# Without the cap, a confident discriminator overwhelmed the segmentation loss in our tests.
ADVERSARIAL_LIMIT: float | None = 0.3
# Filters of the discriminator's first level. None: as BASE_FILTERS.
D_BASE_FILTERS: int | None = None
# Learning rate of the discriminator, below the U-Net's, since it learns faster.
D_ADAM_LR = 1e-4
# First-moment decay of the discriminator's Adam, as ADAM_BETA_1.
D_ADAM_BETA_1 = 0.5
# Steps in which the discriminator learns alone. An untrained one would teach the U-Net noise.
D_WARM_UP_STEPS = 200
# Steps over which ADVERSARIAL_WEIGHT then rises from 0.
ADVERSARIAL_RAMP_STEPS = 500
# The step ends after so many epochs with an accuracy near one half on held-out masks, having been better. None: never.
D_PATIENCE: int | None = 5


# ---- Derived from the values above; functions, so that they follow an overridden root ------------------------------
def preprocessed_folder():
    """Folder of the preprocessed volumes, ROI masks and slice_gt.csv."""
    return Path(OUTPUT_ROOT) / "pre_processed"


def reference_histogram_csv(preprocessed=None):
    """The intensity distribution that Cirrus and Topcon volumes were matched to; absent where nothing was matched."""
    return (preprocessed or preprocessed_folder()) / "reference_histogram.csv"


def split_csv(part):
    """CSV of the slices in `part`: "train", "val" or "test"."""
    return Path(OUTPUT_ROOT) / f"{part}_data.csv"


def training_data_settings():
    """Arguments of `utils.training.data.read_training_data`, but `start`."""
    return {
        "csv_paths": {part: split_csv(part) for part in ("train", "val")},
        "mixed": mixed_roots(),
        "n_b_scans": VALIDATION_B_SCANS,
        "seed": SEED,
        "monitor": MONITOR,
        "preparation": preparation_settings(),
        "reference_histogram": REFERENCE_HISTOGRAM,
    }


def run_folder(step):
    """Folder of this run's `step`: "segmentation", "adversarial" or "evaluation"."""
    return Path(OUTPUT_ROOT) / "runs" / RUN_NAME / step


def fold_root(fold):
    """OUTPUT_ROOT of one of FOLDS, below the OUTPUT_ROOT that all of them share."""
    return Path(OUTPUT_ROOT) / f"fold_{fold}"


def starting_model():
    """The path of the model that INIT_WEIGHTS names, or None."""
    return exported_model.BOX_MODEL if INIT_WEIGHTS == "box" else INIT_WEIGHTS and Path(INIT_WEIGHTS)


def matched_histogram_csv(preprocessed=None):
    """The file of `reference_histogram_csv`; None where grey values are not to be matched."""
    return reference_histogram_csv(preprocessed) if MATCH_INTENSITIES else None


def preparation_settings(preprocessed=None):
    """Arguments of `describe_data`: where step 1 has put its files, and how it should have made them.

    `preprocessed` is a fold's folder in place of `preprocessed_folder`.
    """
    return {
        "preprocessed_folder": preprocessed or preprocessed_folder(),
        "axial_spacing_mm": AXIAL_SPACING_MM,
        "reference_histogram_csv": matched_histogram_csv(preprocessed),
        "patient_pattern": PATIENT_PATTERN,
    }


def split_rules():
    """The `SplitRules` by which patients train, validate or test."""
    return SplitRules(PATIENT_PATTERN, TEST_FRACTION, VALIDATION_FRACTION, SEED, FOLDS, FOLD)


def mixed_roots():
    """The `MixedRoot` of each of MIXED_ROOTS."""
    return tuple(
        MixedRoot(Path(root) / "train_data.csv", Path(root) / "pre_processed", share)
        for root, share in MIXED_ROOTS.items()
    )


def unlabelled_batch_size():
    """Patches of a step that scans without outlines give."""
    return max(1, round(BATCH_SIZE * UNLABELLED_SHARE / (1 - UNLABELLED_SHARE)))


def batch_settings():
    """Which patches are drawn, and how they become batches, in training, validation and evaluation alike."""
    patches = PatchSettings(
        shape=(PATCH_SIZE_H, PATCH_SIZE_W),
        per_slice=PATCHES_PER_SLICE,
        patch_border=PATCH_BORDER,
        neighbours=NEIGHBOURS,
        drop_healthy=DROP_HEALTHY,
        augmentation=augmentations()[AUGMENTATION],
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
        mixed=mixed_roots(),
        oversampling=OVERSAMPLING,
    )


def network_settings():
    """Arguments of `utils.networks.networks.create_network`."""
    return {
        "name": MODEL,
        "encoder_weights": ENCODER_WEIGHTS,
        "input_shape": (PATCH_SIZE_H, PATCH_SIZE_W, 3),
        "regularizer_weight": REGULARIZER_WEIGHT,
        "batch_norm_momentum": BATCH_NORM_MOMENTUM,
        "base_filters": BASE_FILTERS,
        "padding": PADDING,
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
        patience=PATIENCE,
        keep_epochs=KEEP_EPOCHS,
        save_minutes=SAVE_MINUTES,
    )


def scoring_rules():
    """The `ScoringRules` by which epochs are scored on the validation cases."""
    return ScoringRules(split_csv("val"), batch_settings(), MODEL, THRESHOLD)


def optimizer_settings(epochs):
    """The `OptimizerSettings` of the segmentation network in a run of so many epochs."""
    return OptimizerSettings(
        learning_rate=ADAM_LR,
        beta_1=ADAM_BETA_1,
        weight_decay=WEIGHT_DECAY,
        clip_norm=GRADIENT_CLIP,
        cosine_steps=epochs * STEPS_PER_EPOCH if LR_SCHEDULE == "cosine" else None,
        warm_up_steps=WARM_UP_STEPS,
        ema_momentum=EMA_MOMENTUM,
    )


def adversarial_rules():
    """The `AdversarialRules` of a run."""
    return AdversarialRules(
        weight=ADVERSARIAL_WEIGHT,
        warm_up_steps=D_WARM_UP_STEPS,
        ramp_steps=ADVERSARIAL_RAMP_STEPS,
        limit=ADVERSARIAL_LIMIT,
    )


def prediction_settings():
    """What a prediction needs besides weights and reference histogram; goes into ``best.json``."""
    return {
        "network": MODEL,
        "axial_spacing_mm": AXIAL_SPACING_MM,
        "slice_mean": SLICE_MEAN,
        "slice_sd": SLICE_SD,
        "neighbours": NEIGHBOURS,
        "threshold": THRESHOLD,
    }


def decision_settings():
    """Arguments of `utils.segmentation.decisions.decisions_of_run`."""
    return {"threshold": THRESHOLD, "given": "THRESHOLD" in _given}


def values():
    """Every setting as a dictionary, in the order of this file."""
    return {name: value for name, value in globals().items() if name.isupper() and not name.startswith("_")}


def defaults():
    """As `values`, without what --recipe and --set have changed."""
    return dict(_DEFAULTS)


# ---- Overriding and checking ---------------------------------------------------------------------------------------
_given = frozenset()  # names that --set has given
_options, _changed_by = [], ()  # --recipe and --set as arguments, and their values
_DEFAULTS = values()


def load(argv, parser=None):
    """Apply every ``--recipe NAME``, then every ``--set NAME=VALUE`` in `argv`, and return the other arguments.

    `parser` is the script's own `argparse.ArgumentParser`, to which both are added. A recipe is a file, or one of those
    in recipes/ (`read_recipe`). Raises `InputError` for an unknown name (with the closest match) or a
    value of another type than the one in this file.
    """
    parser = parser or argparse.ArgumentParser()
    add_options(parser)
    arguments = parser.parse_args(argv)
    changes = {}
    for name in arguments.recipes:
        changes |= recipe(name)
    overrides = read_overrides(arguments.overrides, values(), __annotations__)
    globals().update(changes | overrides, _given=frozenset(overrides))
    globals().update(_options=options_of(arguments), _changed_by=(*arguments.recipes, *arguments.overrides))
    return arguments


def recipe(name):
    """The settings in recipes/NAME.py, or in the file NAME if that is a path, as a dictionary.

    Raises `InputError` where one is unknown, or there is no such file.
    """
    return read_recipe(name, values(), __annotations__)


def command(script, *arguments):
    """The command that calls another `script` with the recipes and settings that this one was called with."""
    return shlex.join(["python", str(Path(sys.argv[0]).with_name(script)), *map(str, arguments), *_options])


def called_with():
    """The settings of this call in a line: config.py's, and what changes them."""
    return " + ".join(["config.py", *_changed_by])


def validate():
    """Raise `InputError` with a line for each setting whose value cannot work: name, value, what is allowed."""
    if complaints := setting_rules.faults(values(), __annotations__):
        raise InputError(*complaints)
