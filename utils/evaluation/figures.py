"""Figures of the evaluation report: vector drawings, legible on light and dark pages, and outlined B-scans."""

import base64
import io
import itertools

import numpy as np
from PIL import Image
from scipy import ndimage

from utils.labels import FLUIDS
from utils.plots import CLASS_COLOURS

_INK = "#7b7f86"  # axes and text: legible on white and on near-black
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "report",  # the same report has the same bytes
    "font.family": "sans-serif",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
}
_MARKERS = "osD^v<>"
REFERENCE_COLOUR, PREDICTION_COLOUR, BOTH_COLOUR = (0, 214, 143), (255, 64, 200), (255, 255, 255)
_STYLES = (
    "-",
    "--",
    "-.",
    ":",
    (0, (6, 1)),
    (0, (3, 1, 1, 1)),
    (0, (1, 4)),
)  # of lines; the first is that of all vendors
_RELIABLE_VOXELS = 100  # a share of fewer is left out
_MARGIN_ROWS = 80  # rows shown above and below the fluid


def dice_strips(volumes):
    """SVG: Dice of every case that holds the fluid, by vendor, with the mean as a line. A panel for each fluid."""
    vendors = sorted(volumes.vendor.unique())
    rng = np.random.default_rng(0)  # shifts points sideways, so that equal ones do not hide each other

    def draw(ax, fluid, colour):
        present = volumes[(volumes.fluid == fluid) & (volumes.reference_mm3 > 0)]
        for place, vendor in enumerate(vendors):
            dice = present.dice[present.vendor == vendor].to_numpy()
            ax.scatter(place + rng.uniform(-0.16, 0.16, len(dice)), dice, s=22, color=colour, alpha=0.75, linewidths=0)
            if len(dice):
                ax.plot([place - 0.3, place + 0.3], [dice.mean()] * 2, color=_INK, linewidth=1.6)
        ax.set(xticks=range(len(vendors)), xticklabels=vendors, ylim=(-0.03, 1.03), xlim=(-0.6, len(vendors) - 0.4))
        ax.grid(axis="y", alpha=0.25)

    return _panels(draw, "Dice", sharey=True)


def bland_altman(volumes):
    """SVG: predicted minus true volume against their mean, bias and limits of agreement. A panel for each fluid."""
    vendors = sorted(volumes.vendor.unique())

    def draw(ax, fluid, colour):
        cases = volumes[volumes.fluid == fluid]
        for marker, vendor in zip(itertools.cycle(_MARKERS), vendors, strict=False):
            of_vendor = cases[cases.vendor == vendor]
            mean = (of_vendor.volume_mm3 + of_vendor.reference_mm3) / 2
            ax.scatter(mean, of_vendor.difference_mm3, s=24, marker=marker, color=colour, alpha=0.75, linewidths=0)
        bias, spread = cases.difference_mm3.mean(), 1.96 * cases.difference_mm3.std()
        ax.axhline(bias, color=_INK, linewidth=1.6)
        for limit in (bias - spread, bias + spread):
            ax.axhline(limit, color=_INK, linewidth=1, linestyle=(0, (5, 4)))
        ax.set_xlabel("mean of both (mm³)")
        ax.grid(alpha=0.2)
        if fluid == "IRF":
            handles = [
                ax.scatter([], [], marker=marker, color=_INK, label=vendor)
                for marker, vendor in zip(itertools.cycle(_MARKERS), vendors, strict=False)
            ]
            ax.legend(handles=handles, fontsize=8, frameon=False)

    return _panels(draw, "predicted − true (mm³)")


def roc_curves(curves):
    """SVG of ROC curves, {(vendor, fluid): (false positive rate, true positive rate)}. A panel for each fluid."""
    vendors = sorted({vendor for vendor, _ in curves}, key=lambda vendor: (vendor != "all", vendor))

    def draw(ax, fluid, colour):
        ax.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=(0, (2, 4)))
        for style, vendor in zip(itertools.cycle(_STYLES), vendors, strict=False):
            if (vendor, fluid) in curves:
                width = 2.2 if vendor == "all" else 1.3
                ax.plot(*curves[vendor, fluid], linestyle=style, color=colour, linewidth=width, label=vendor)
        ax.set(xlabel="1 − specificity", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        if len(ax.lines) > 1:
            ax.legend(fontsize=8, frameon=False, loc="lower right")

    return _panels(draw, "sensitivity", sharey=True)


def reliability_curves(reliability):
    """SVG of a `reliability_table`: how often the fluid is there, by its probability. Steps of few voxels are left out.

    The dotted diagonal is a network whose probabilities are frequencies. A panel for each fluid.
    """

    def draw(ax, fluid, colour):
        ax.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=(0, (2, 4)))
        enough = reliability[(reliability.fluid == fluid) & (reliability.voxels >= _RELIABLE_VOXELS)]
        ax.plot(enough.mean_probability, enough.share_of_fluid, color=colour, marker="o", markersize=4, linewidth=1.8)
        ax.set(xlabel="probability", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")

    return _panels(draw, "share that is the fluid", sharey=True)


def _panels(draw, label, **options):
    """SVG of a panel for each fluid; ``draw(ax, fluid, colour)`` fills one."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 3.3), layout="constrained")
        axes_of_fluids = figure.subplots(1, len(FLUIDS), **options)
        for ax, (fluid, code) in zip(axes_of_fluids, FLUIDS.items(), strict=True):
            draw(ax, fluid, CLASS_COLOURS[code] / 255)
            ax.set_title(fluid)
        axes_of_fluids[0].set_ylabel(label)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def outlined(grey, reference, labels, code):
    """The rows of a B-scan around its fluid of label `code`, with the reader's and the predicted mask outlined.

    All arrays are uint8 (rows, columns). Returns uint8 (fewer rows, columns, 3).
    """
    picture = np.repeat(grey[..., np.newaxis], 3, axis=2)
    true, predicted = (_outline(mask == code) for mask in (reference, labels))
    picture[true], picture[predicted], picture[true & predicted] = REFERENCE_COLOUR, PREDICTION_COLOUR, BOTH_COLOUR
    rows = np.flatnonzero((true | predicted).any(axis=1))
    if not rows.size:
        return picture
    return picture[max(rows[0] - _MARGIN_ROWS, 0) : rows[-1] + _MARGIN_ROWS]


def _outline(mask):
    return mask & ~ndimage.binary_erosion(mask, border_value=1)


def data_uri(picture):
    """A picture, uint8 (rows, columns, 3), as a JPEG in a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=88, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
