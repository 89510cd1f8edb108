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

# ---- Where things are ----------------------------------------------------------------------------------------------
DATA_ROOT = "data"  # folder of the raw volumes: RETOUCH-TrainingSet-<Vendor>/<case>/{oct,reference}.mhd
OUTPUT_ROOT = "output"  # everything that the scripts write; an absolute path or relative to the working directory
RUN_NAME = "unet"  # name of the experiment; results go to OUTPUT_ROOT/runs/RUN_NAME

# ---- Randomness ----------------------------------------------------------------------------------------------------
SEED = 0  # split, initial weights, patches, dropout and augmentation all follow from it
DETERMINISTIC = True  # same weights from the same seed on the same machine; False lets TensorFlow choose faster kernels

# ---- Data and splits -----------------------------------------------------------------------------------------------
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
BASE_FILTERS = 64  # filters of the first level, doubled at each; 16 trains about ten times faster on a CPU
REGULARIZER_WEIGHT = 1e-4  # L2 penalty on convolution kernels
TRAIN_CLASSES = False  # True adds three heads that say whether IRF, SRF, PED is in the patch
DTYPE_POLICY = "float32"  # "mixed_bfloat16" is up to twice as fast where the hardware supports it
THRESHOLD = 0.5  # a pixel whose likeliest class is less probable than this is background

# ---- Training ------------------------------------------------------------------------------------------------------
BATCH_SIZE = 16  # patches a step
EPOCH = 100  # epochs of model_training.py
STEPS_PER_EPOCH = None  # steps an epoch; None: every slice of the stratified draw
ADAM_LR = 2e-4  # learning rate of the segmentation network
ADAM_BETA_1 = 0.5  # first-moment decay; 0.5 rather than 0.9 is what adversarial training is usually stable with
VALIDATION_B_SCANS = 48  # whole B-scans on which Dice is measured after every epoch
KEEP_EPOCHS = 1  # how many epochs' weights stay on disk: 0 none, N the last N, None all
WORKERS = 0  # processes that prepare data beside the main one; 0: everything in-process

# ---- Adversarial fine-tuning ---------------------------------------------------------------------------------------
ADVERSARIAL_EPOCH = None  # epochs of adversarial_training.py; None: as EPOCH
ADVERSARIAL_WEIGHT = 0.05  # weight of "the discriminator calls the mask real" beside the segmentation loss
D_ADAM_LR = 1e-4  # learning rate of the discriminator; below the U-Net's, since it learns faster
D_ADAM_BETA_1 = 0.5  # as ADAM_BETA_1


# ---- Derived from the values above; functions, so that they follow an overridden root ------------------------------
def preprocessed_folder():
    """Folder of the preprocessed volumes, ROI masks and slice_gt.csv."""
    return Path(OUTPUT_ROOT) / "pre_processed"


def split_csv(part):
    """CSV of the slices in `part`: "train", "val" or "test"."""
    return Path(OUTPUT_ROOT) / f"{part}_data.csv"


def run_folder(step):
    """Folder of this run's `step`: "segmentation", "adversarial" or "evaluation"."""
    return Path(OUTPUT_ROOT) / "runs" / RUN_NAME / step


def values():
    """Every setting as a dictionary, in the order of this file."""
    return {name: value for name, value in globals().items() if name.isupper()}
