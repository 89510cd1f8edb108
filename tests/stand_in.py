"""A network that tells IRF by brightness, stored as training stores one: labels with a meaning, without training."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras import layers

from utils.networks.exported_model import export_best

DETAILS = {
    "network": "Unet/resnet18",  # any that is not rebuilt from its weights
    "axial_spacing_mm": 0.003872,
    "slice_mean": 128.0,
    "slice_sd": 128.0,
    "threshold": 0.5,
    "reference_histogram": None,
    "step": "segmentation",
    "epoch": 1,
}


def brightness_model(n_classes=4, bias=-100):
    """The U-Net's sizes: IRF where the pixel is brighter than 128 + 64 (with the default `bias`), else background."""
    image = keras.Input((None, None, 3))
    grey = layers.Cropping2D(46)(image)
    to_logits = layers.Conv2D(n_classes, 1, activation="softmax")
    logits = to_logits(grey)
    kernel = np.zeros((1, 1, 3, n_classes), np.float32)
    kernel[0, 0, 1, 1] = 200  # the middle channel is the slice itself
    to_logits.set_weights([kernel, np.array([0, bias, -300, -300, -300][:n_classes], np.float32)])
    return keras.Model(image, logits)


def export_brightness_model(folder, n_classes=4, bias=-100, **details):
    """Write it as ``best.keras`` with ``best.json`` into `folder`; returns the former's path."""
    export_best(folder, brightness_model(n_classes, bias), {**DETAILS, **details})
    return folder / "best.keras"


def bright_scan(slices=3, rows=130, columns=140):
    """A Spectralis-like scan, uint8 (slices, rows, columns): noise with a block in it that the model calls IRF."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(140, 180, (slices, rows, columns)).astype(np.uint8)
    voxels[:, 40:60, 30:70] = 230
    voxels[-1, 40:60, 30:40] = 150  # no two slices alike
    return voxels
