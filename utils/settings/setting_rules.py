"""What the settings in config.py may be, and which cannot work together."""

import re
from types import SimpleNamespace
from typing import Literal, get_args, get_origin

from utils.errors import InputError
from utils.labels import FLUIDS
from utils.networks.networks import check_network
from utils.own_code import check_own, is_own

_MEASURES = ["dice", "dice_irf", "dice_srf", "dice_ped", "iou_score", "f_score", "f_irf", "f_srf", "f_ped", "loss"]
_MONITORS = ["epoch", *(f"val_{measure}" for measure in _MEASURES)]

# (names, test, what is allowed): every complaint of `validate` comes from one of these rows.
_RULES = [
    (
        "BATCH_SIZE EPOCH BASE_FILTERS PATCHES_PER_SLICE STEPS_PER_EPOCH ADVERSARIAL_EPOCH VALIDATION_B_SCANS "
        "PATIENCE D_PATIENCE D_BASE_FILTERS DEVICES HOSTS",
        lambda value: value >= 1,
        "at least 1",
    ),
    (
        "D_WARM_UP_STEPS ADVERSARIAL_RAMP_STEPS WARM_UP_STEPS WEIGHT_DECAY SEED FOLD WORKERS HOST KEEP_EPOCHS "
        "PATCH_BORDER REGULARIZER_WEIGHT ADVERSARIAL_WEIGHT ADVERSARIAL_LIMIT SELF_TRAINING_WEIGHT",
        lambda value: value >= 0,
        "at least 0",
    ),
    ("SCAN_MINUTES", lambda value: value > 0, "above 0, or None for any time"),
    ("GRADIENT_CLIP", lambda value: value > 0, "above 0, or None for no limit"),
    ("EMA_MOMENTUM", lambda value: 0 < value < 1, "between 0 and 1, or None"),
    ("OVERSAMPLING", lambda value: 0 <= value <= 1, "from 0 to 1"),
    (
        "MIXED_ROOTS",
        lambda value: (
            all(isinstance(root, str) and 0 < share < 1 for root, share in value.items()) and sum(value.values()) < 1
        ),
        "{OUTPUT_ROOT: share, ...} with shares above 0 that leave some for the run's own data",
    ),
    (
        "OUTLINED",
        lambda value: bool(value) and set(value) <= set(FLUIDS) and len(set(value)) == len(value),
        "some of ('IRF', 'SRF', 'PED')",
    ),
    (
        "NOT_JUDGED_OTHER",
        lambda value: all(type(label) is int and 0 < label < 256 for label in value),
        "labels from 1 to 255, such as (1, 2)",
    ),
    ("LOSS", lambda value: value in ("balanced", "plain") or is_own(value), "'balanced', 'plain' or module:function"),
    ("AXIAL_SPACING_MM SLICE_SD ADAM_LR D_ADAM_LR SAVE_MINUTES PREDICTION_GB", lambda value: value > 0, "above 0"),
    ("FOLDS", lambda value: value >= 2, "at least 2, or None for one split"),
    ("ADAM_BETA_1 D_ADAM_BETA_1 DROP_HEALTHY BATCH_NORM_MOMENTUM", lambda value: 0 <= value < 1, "from 0 to below 1"),
    ("TEST_FRACTION VALIDATION_FRACTION", lambda value: 0 < value < 1, "between 0 and 1"),
    ("UNLABELLED_SHARE", lambda value: 0 <= value <= 0.9, "from 0 to 0.9"),
    ("THRESHOLD", lambda value: 0 <= value <= 1, "from 0 to 1"),
    ("PATCH_SIZE_H PATCH_SIZE_W", lambda value: value >= 104 and value % 8 == 0, "a multiple of 8 from 104 on"),
    ("MONITOR", lambda value: value in _MONITORS, "one of " + ", ".join(_MONITORS)),
    ("N_CLASSES", lambda value: value == 4, "4: background, IRF, SRF, PED"),
    (
        "RUN_NAME",
        lambda value: re.fullmatch(r"\w[\w.-]*", value) is not None,
        "letters, digits, '_', '-' and '.', as it names a folder",
    ),
]


def faults(values, types):
    """A line for each of config.py's `values` ({name: value}) that cannot work: name, value, what is allowed.

    `types` are its annotations, {name: type}, of the settings whose type the default does not say.
    """
    config, complaints = SimpleNamespace(**values), []
    for name, of_name in types.items():
        choices = get_args(of_name) if get_origin(of_name) is Literal else (values[name],)
        if values[name] not in choices:
            complaints.append(f"config.{name} = {values[name]!r}: must be {' or '.join(map(repr, choices))}")
    for names, is_allowed, allowed in _RULES:
        for name in names.split():
            value = values[name]
            if value is None and type(None) in get_args(types.get(name)):
                continue
            try:
                allows = is_allowed(value)
            except TypeError:  # text where a number belongs
                allows = False
            if not allows:
                complaints.append(f"config.{name} = {value!r}: must be {allowed}")
    codes = (config.IRF_CODE, config.SRF_CODE, config.PED_CODE)
    if codes != (1, 2, 3):
        complaints.append(f"config.IRF_CODE, SRF_CODE, PED_CODE = {codes}: must be (1, 2, 3), the labels of RETOUCH")
    if config.FOLDS is not None and config.FOLD >= config.FOLDS:
        complaints.append(f"config.FOLD = {config.FOLD}: must be below FOLDS = {config.FOLDS}")
    if config.LR_SCHEDULE == "cosine" and config.STEPS_PER_EPOCH is None:
        complaints.append(
            "config.STEPS_PER_EPOCH = None: must be a number with LR_SCHEDULE = 'cosine', which ends with it"
        )
    if config.WARM_UP_STEPS and config.LR_SCHEDULE == "constant":
        complaints.append(f"config.WARM_UP_STEPS = {config.WARM_UP_STEPS}: must be 0 with LR_SCHEDULE = 'constant'")
    if (config.UNLABELLED_SHARE > 0) != (config.SELF_TRAINING_WEIGHT > 0):
        complaints.append(
            f"config.SELF_TRAINING_WEIGHT = {config.SELF_TRAINING_WEIGHT:g}: must be above 0 with UNLABELLED_SHARE "
            f"above 0, else 0; that is {config.UNLABELLED_SHARE:g}"
        )
    if config.SELF_TRAINING_WEIGHT and config.EMA_MOMENTUM is None:
        complaints.append("config.EMA_MOMENTUM = None: must be a number with SELF_TRAINING_WEIGHT above 0")
    if config.HOST >= config.HOSTS:
        complaints.append(f"config.HOST = {config.HOST}: must be below HOSTS = {config.HOSTS}")
    if config.HOSTS > 1 and config.COORDINATOR is None:
        complaints.append(f"config.COORDINATOR = None: must be address:port of host 0, since HOSTS = {config.HOSTS}")
    if config.BATCH_SIZE % (config.DEVICES * config.HOSTS):
        shares = f"DEVICES * HOSTS = {config.DEVICES * config.HOSTS}"
        complaints.append(f"config.BATCH_SIZE = {config.BATCH_SIZE}: must be a multiple of {shares}, which share it")
    if min(config.PATCH_SIZE_H, config.PATCH_SIZE_W) <= 2 * config.PATCH_BORDER:
        complaints.append(f"config.PATCH_BORDER = {config.PATCH_BORDER}: must be below half the patch's smaller side")
    if is_own(config.MODEL) and config.DTYPE_POLICY != "float32":
        complaints.append(f"config.DTYPE_POLICY = {config.DTYPE_POLICY!r}: must be 'float32' with a MODEL of your own")
    try:
        if is_own(config.LOSS):
            check_own("LOSS", config.LOSS)
    except InputError as error:
        complaints += error.messages
    try:
        check_network(
            config.MODEL,
            (config.PATCH_SIZE_H, config.PATCH_SIZE_W),
            train_classes=config.TRAIN_CLASSES,
            encoder_weights=config.ENCODER_WEIGHTS,
        )
    except InputError as error:
        complaints += error.messages
    try:
        re.compile(config.PATIENT_PATTERN)
    except re.error as error:
        complaints.append(
            f"config.PATIENT_PATTERN = {config.PATIENT_PATTERN!r}: must be a regular expression ({error})"
        )
    return complaints
