"""Pictures: training curves, masks and overlays of fluid on B-scans."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.files import written_whole
from utils.labels import CLASS_NAMES, EVERY_CLASS, NOT_JUDGED

# One colour for each class, distinguishable with all common colour vision deficiencies (Okabe and Ito 2008).
CLASS_COLOURS = np.array([(0, 0, 0), (230, 159, 0), (86, 180, 233), (204, 121, 167)], np.uint8)
NOT_JUDGED_COLOUR = np.array([0, 158, 115], np.uint8)
_OPACITY = 0.45
_LEGEND_ROWS = 22


def save_mask(path, labels):
    """Write labels (rows, columns; uint8 0-3) as a palette PNG: the stored values are the labels, shown in colour."""
    image = Image.fromarray(labels)
    image.putpalette(CLASS_COLOURS.tobytes())
    with written_whole(path) as temporary:
        image.save(temporary)


def overlay(grey, labels):
    """Fluid drawn over a B-scan: translucent areas with solid outlines; what was not judged is tinted.

    `grey` and `labels`, as `utils.labels` says, are uint8 (rows, columns); returns uint8 (rows, columns, 3).
    """
    unjudged = labels & EVERY_CLASS == EVERY_CLASS
    labels = np.where(labels < len(CLASS_NAMES), labels, 0)
    padded = np.pad(labels, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    outline = np.logical_or.reduce([labels != neighbour for neighbour in neighbours]) & (labels > 0)
    opacity = np.where(outline, 1.0, np.where(labels > 0, _OPACITY, 0.0))[..., np.newaxis]
    picture = np.rint(grey[..., np.newaxis] * (1 - opacity) + CLASS_COLOURS[labels] * opacity).astype(np.uint8)
    return tinted(picture, unjudged, NOT_JUDGED_COLOUR)


def tinted(picture, where, colour):
    """`picture` (uint8; rows, columns, 3) with a translucent `colour` where `where` (bool) says so."""
    if where.any():
        picture = picture.copy()
        picture[where] = np.rint((1 - _OPACITY) * picture[where] + _OPACITY * colour)
    return picture


def save_overlay(path, grey, labels):
    """Write the `overlay` of a B-scan with a legend below it as PNG."""
    picture = overlay(grey, labels)
    canvas = Image.new("RGB", (max(picture.shape[1], 240), picture.shape[0] + _LEGEND_ROWS))
    canvas.paste(Image.fromarray(picture))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    top = picture.shape[0] + 4
    for code, name in list(enumerate(CLASS_NAMES))[1:]:
        left = 8 + 78 * (code - 1)
        draw.rectangle([left, top, left + 13, top + 13], fill=tuple(CLASS_COLOURS[code].tolist()))
        draw.text((left + 19, top - 2), name, fill="white", font=font)
    with written_whole(path) as temporary:
        canvas.save(temporary)


def save_fundus(path, fundus, lines):
    """Write a picture of the fundus, uint8 (rows, columns), with the B-scans' `lines` as PNG.

    A line is (column, row, column, row) of a B-scan's start and end, or None. The first B-scan's is white.
    """
    picture = Image.fromarray(fundus).convert("RGB")
    draw = ImageDraw.Draw(picture)
    colours = ["white", *[tuple(CLASS_COLOURS[1].tolist())] * (len(lines) - 1)]
    for line, colour in zip(reversed(lines), reversed(colours), strict=True):
        if line is not None:
            draw.line(line, fill=colour)
    with written_whole(path) as temporary:
        picture.save(temporary)


def save_comparison(path, rows, names=("reader", "model")):
    """Write B-scans with labels from several sources side by side as PNG.

    `rows` is a list of (title, grey, *labels), each array uint8 (rows, columns), with labels for each of `names`.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = 1 + len(names)
    figure = Figure(figsize=(4 * columns, 3.4 * len(rows) + 0.6), layout="constrained")
    for axes, (title, grey, *labels) in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        pictures = [np.repeat(grey[..., np.newaxis], 3, axis=2), *(overlay(grey, of_source) for of_source in labels)]
        for ax, picture, name in zip(axes, pictures, (title, *names), strict=True):
            ax.imshow(picture, aspect="auto")
            ax.set_title(name, fontsize=10)
            ax.axis("off")
    patches = [Patch(color=CLASS_COLOURS[code] / 255, label=CLASS_NAMES[code]) for code in (1, 2, 3)]
    if any((of_source == NOT_JUDGED).any() for _, _, *labels in rows for of_source in labels):
        patches.append(Patch(color=NOT_JUDGED_COLOUR / 255, label="not judged"))
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches))
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=80)


def save_progress(path, history, panels):
    """Write training curves as PNG.

    `history` is a list of one dictionary an epoch. `panels` is {panel's title: names to draw in it}. A name's
    validation curve (``val_<name>``), if there is one, is drawn dashed.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for ax, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for index, name in enumerate(names):
            for prefix, style in (("", "-"), ("val_", "--")):
                if prefix + name in history[-1]:
                    values = [np.nan if (value := row.get(prefix + name)) is None else value for row in history]
                    ax.plot(epochs, values, style, marker=".", color=f"C{index}", label=prefix + name)
        ax.set(title=title, xlabel="epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        if ax.lines:
            ax.legend(fontsize=8)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=100)


def save_thickness(path, thickness_um, spacing_mm):
    """Write en-face maps of the fluids' thickness, float (3, slices, columns) in micrometres, side by side as PNG."""
    from matplotlib.figure import Figure

    _, slices, columns = thickness_um.shape
    width_mm, depth_mm = columns * spacing_mm[0], slices * spacing_mm[2]
    height = 3.6 * min(2.0, max(0.3, depth_mm / width_mm)) + 0.8
    figure = Figure(figsize=(14, height), layout="constrained")
    for ax, label, of_fluid in zip(figure.subplots(1, 3), (1, 2, 3), thickness_um, strict=True):
        image = ax.imshow(
            of_fluid,
            cmap="inferno",
            vmin=0,
            vmax=max(1.0, of_fluid.max()),
            extent=(0, width_mm, depth_mm, 0),
            aspect="auto",
        )
        ax.set(title=f"{CLASS_NAMES[label]}, thickness (µm)", xlabel="mm", ylabel="mm")
        figure.colorbar(image, ax=ax)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=80)
