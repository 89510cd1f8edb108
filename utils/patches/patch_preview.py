"""A preview of the patches that training gets: a sheet of patches with outlines and labels, and the class balance."""

import numpy as np
import pandas as pd

from utils.files import written_whole
from utils.labels import CLASS_NAMES, EVERY_CLASS, FLUIDS
from utils.plots import CLASS_COLOURS, NOT_JUDGED_COLOUR, overlay

PATCHES_A_VENDOR = 500  # patches for the class balance; they take 65 MB
_PATCHES_SHOWN = 12  # of each vendor


def class_balance(patches):
    """A DataFrame with a column for each vendor and one for all together.

    `patches` is {vendor: samples (image, mask, is_IRF, is_SRF, is_PED)}. Rows: number of patches; percentage of patches
    with any fluid, and with each fluid, by their labels; percentage of the pixels of each class. What may be background
    counts as background; with pixels that were not judged, their percentage has a row.
    """
    everything = {**patches, "all": [sample for samples in patches.values() for sample in samples]}
    return pd.DataFrame({vendor: _balance(samples) for vendor, samples in everything.items()}).round(2)


def _balance(samples):
    if not samples:
        return {"patches": 0}
    fluids = np.array([sample[2:] for sample in samples]) == 1
    values = sum(np.bincount(sample[1].ravel(), minlength=256) for sample in samples)
    of_class = np.arange(256) * (np.arange(256) < len(CLASS_NAMES))
    unjudged = np.arange(256) & EVERY_CLASS == EVERY_CLASS
    pixels = np.bincount(of_class[~unjudged], values[~unjudged], minlength=len(CLASS_NAMES))
    balance = {"patches": len(samples), "% with fluid": 100 * fluids.any(axis=1).mean()}
    balance |= {f"% with {name}": 100 * share for name, share in zip(FLUIDS, fluids.mean(axis=0), strict=True)}
    balance |= {f"% of pixels {name}": 100 * n / values.sum() for name, n in zip(CLASS_NAMES, pixels, strict=True)}
    if values[unjudged].any():
        balance["% of pixels not judged"] = 100 * values[unjudged].sum() / values.sum()
    return balance


def save_patch_sheet(path, patches):
    """Write the first of each vendor's `patches` (as in `class_balance`) as PNG: a row each vendor, fluid outlined.

    Above each patch are its labels. Fluid near a patch's border gives no label.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(1.2 * _PATCHES_SHOWN, 2.6 * len(patches) + 0.4), layout="constrained")
    panels = figure.subplots(len(patches), _PATCHES_SHOWN, squeeze=False)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[], frame_on=False)
    for of_vendor, (vendor, samples) in zip(panels, patches.items(), strict=True):
        of_vendor[0].set_ylabel(vendor, fontsize=12)
        for panel, (image, mask, *fluids) in zip(of_vendor, samples, strict=False):
            held = [name for name, is_held in zip(FLUIDS, fluids, strict=True) if is_held == 1]
            panel.imshow(overlay(image[..., 1], mask))
            panel.set_title(" ".join(held) or "none", fontsize=8)
    legend = [Patch(color=CLASS_COLOURS[label] / 255, label=name) for name, label in FLUIDS.items()]
    if any((mask & EVERY_CLASS == EVERY_CLASS).any() for samples in patches.values() for _, mask, *_ in samples):
        legend.append(Patch(color=NOT_JUDGED_COLOUR / 255, label="not judged"))
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend))
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=100)
