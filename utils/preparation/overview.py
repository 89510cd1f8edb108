"""A picture of what data preparation did: B-scans and grey values before and after."""

import numpy as np

from utils.files import written_whole
from utils.labels import CLASS_NAMES, FLUIDS, NOT_JUDGED
from utils.plots import CLASS_COLOURS, NOT_JUDGED_COLOUR, tinted
from utils.preparation.outlined import read_reference
from utils.preparation.preprocessing import histogram_matching_table, to_8_bit, vendor_rule
from utils.volumes.mhd import open_volume, read_volume

_MOST_CASES = 2  # of a vendor
_ROI_COLOUR = np.array([94, 201, 98])
_INVALID_COLOUR = np.array([90, 60, 110], np.uint8)


def save_overview(path, facts, files, reference_histogram=None):
    """Write the picture as PNG: a row for each of up to two prepared cases a vendor, with its grey values beside it.

    `facts` is {`Case`: `CaseFacts`}, `files` {`Case`: `PreparedFiles`}. Of each case the B-scan with the most fluid is
    shown, or the middle one. `reference_histogram` (256 counts) is what Cirrus and Topcon were matched to.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    cases = _chosen(facts)
    figure = Figure(figsize=(16, 2.6 * len(cases) + 0.6), layout="constrained")
    panels = figure.subplots(len(cases), 3, squeeze=False, width_ratios=(1, 1, 0.5))
    for (before, after, distribution), case in zip(panels, cases, strict=True):
        slice_index = _slice_to_show(facts[case])
        _draw(before, f"{case.vendor} {case.name}, slice {slice_index}: as exported", *_exported(case, slice_index))
        _draw(after, "preprocessed", *_preprocessed(case, files[case], slice_index))
        _draw_distribution(distribution, case.vendor, facts[case].grey_counts, reference_histogram)
    legend = [Patch(color=CLASS_COLOURS[label] / 255, label=CLASS_NAMES[label]) for label in FLUIDS.values()]
    legend += [
        Patch(color=_ROI_COLOUR / 255, label="region of interest"),
        Patch(color=_INVALID_COLOUR / 255, label="invalid"),
    ]
    if any(of_case.not_judged and any(of_case.not_judged) for of_case in map(facts.get, cases)):
        legend.append(Patch(color=NOT_JUDGED_COLOUR / 255, label="not judged"))
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend))
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=80)


def _chosen(cases):
    """Up to `_MOST_CASES` of each vendor, from the first to the last by name."""
    chosen = []
    for vendor in sorted({case.vendor for case in cases}):
        of_vendor = sorted((case for case in cases if case.vendor == vendor), key=lambda case: case.name)
        places = np.linspace(0, len(of_vendor) - 1, min(_MOST_CASES, len(of_vendor)))
        chosen += [of_vendor[int(place)] for place in places]
    return chosen


def _slice_to_show(facts):
    """The slice with the most fluid, or the middle one."""
    fluid = np.zeros(facts.shape[0]) if facts.label_counts is None else np.array(facts.label_counts)[:, 1:].sum(axis=1)
    return int(fluid.argmax()) if fluid.any() else facts.shape[0] // 2


def _exported(case, slice_index):
    """Grey values, labels (or None) and the height of a pixel in its widths, of a B-scan as it was exported."""
    voxels, spacing_mm = read_volume(case.oct_path)
    labels = None if case.reference_path is None else read_reference(case)[slice_index]
    return to_8_bit(voxels[slice_index]), labels, spacing_mm[1] / spacing_mm[0]


def _preprocessed(case, files, slice_index):
    """As `_exported`, of the preprocessed B-scan, and its ROI as a fourth value."""
    volume, spacing_mm = open_volume(files.oct)
    labels = None if case.reference_path is None else open_volume(files.mask)[0][slice_index]
    return volume[slice_index], labels, spacing_mm[1] / spacing_mm[0], open_volume(files.roi)[0][slice_index]


def _draw(ax, title, grey, labels, aspect, roi=None):
    """Draw a B-scan with its labels outlined. With `roi`, outline that too and tint invalid pixels."""
    picture = np.repeat(grey[..., np.newaxis], 3, axis=2)
    if roi is not None:
        picture[grey == 0] = _INVALID_COLOUR
        if roi.any():
            ax.contour(roi, [0.5], colors=[_ROI_COLOUR / 255], linewidths=1)
    if labels is not None:
        picture = tinted(picture, labels == NOT_JUDGED, NOT_JUDGED_COLOUR)
    ax.imshow(picture, aspect=aspect, interpolation="antialiased")
    for label in FLUIDS.values():
        if labels is not None and (labels == label).any():
            ax.contour(labels == label, [0.5], colors=[CLASS_COLOURS[label] / 255], linewidths=1.2)
    ax.set_title(title, fontsize=10)
    ax.axis("off")


def _draw_distribution(ax, vendor, grey_counts, reference_histogram):
    """Draw a volume's cumulative distributions of grey values: as exported, matched, and what it was matched to."""
    curves = [("as exported", grey_counts, "C0-")]
    if reference_histogram is not None and vendor_rule(vendor).match_histogram:
        table = histogram_matching_table(grey_counts, reference_histogram)
        curves.append(("matched", np.bincount(table, weights=grey_counts, minlength=256), "C1-"))
        curves.append(("matched to", reference_histogram, "k--"))
    for name, counts, style in curves:
        ax.plot(100 * np.cumsum(counts) / np.sum(counts), style, label=name, linewidth=1)
    ax.set_title("% of the volume's voxels up to a grey value", fontsize=9)
    ax.set(xlim=(0, 255), ylim=(0, 101))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, loc="lower right")
