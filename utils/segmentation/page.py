"""The HTML page of a segmented scan, and the index page of several. Each is a single file that needs no other."""

import base64
import html
import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from utils.files import written_whole
from utils.html import STYLE, html_page, html_table
from utils.labels import FLUIDS
from utils.plots import CLASS_COLOURS
from utils.segmentation.etdrs import CIRCLES_MM

_TEMPLATE = Path(__file__).with_name("page.html")
_LONG_NAMES = {"IRF": "intraretinal fluid", "SRF": "subretinal fluid", "PED": "pigment epithelial detachment"}
_JPEG_QUALITY = 80
_LINE_STEP = 4  # columns between the points of a surface's line
_SHOWN_ROW_MM = 0.003872  # this depth is drawn as high as a column is wide, for all vendors


def save_b_scan(path, grey):
    """Write a B-scan (rows, columns; uint8) as the JPEG that the page takes."""
    Image.fromarray(np.ascontiguousarray(grey)).save(path, "JPEG", quality=_JPEG_QUALITY)


def label_runs(labels):
    """A list for each fluid: a B-scan's pixels, row by row, as [pixels skipped, pixels of the fluid, ...].

    `labels` are uint8 (rows, columns) of 0 to 3.
    """
    runs = []
    for label in FLUIDS.values():
        mask = np.concatenate([[False], labels.ravel() == label, [False]])
        edges = np.flatnonzero(mask[1:] != mask[:-1])
        runs.append(np.diff(edges, prepend=0).tolist())
    return runs


def surface_lines(surfaces, rows_per_row):
    """A list for each of a B-scan's `Surfaces`, from the inner one to Bruch's membrane: its row in every fourth column.

    `rows_per_row` are the scan's rows in one of the surfaces'. None where no retina is seen.
    """
    if not surfaces.is_retina:
        return None
    paths = (surfaces.inner, surfaces.outer, surfaces.bruch)
    return [np.rint((path[::_LINE_STEP] + 0.5) * rows_per_row - 0.5).astype(int).tolist() for path in paths]


def write_scan_page(
    path, *, title, images, runs, lines, thickness_um, spacing_mm, rows, centre, centre_name, warnings, tables
):
    """Write the page of one scan.

    | argument | content |
    |---|---|
    | `images` | the file by `save_b_scan` of each B-scan |
    | `runs` | the `label_runs` of each B-scan |
    | `lines` | the `surface_lines` of each B-scan |
    | `thickness_um` | float (3, slices, columns) |
    | `spacing_mm` | (x, y, z) |
    | `rows` | rows of a B-scan |
    | `centre`, `centre_name` | (column, slice) of the circles' centre, and what it is in words |
    | `warnings` | sentences |
    | `tables` | [(heading, DataFrame), ...] |
    """
    _, slices, columns = thickness_um.shape
    x_mm, y_mm, z_mm = spacing_mm
    fluid_pixels = [sum(sum(of_fluid[1::2]) for of_fluid in of_slice) for of_slice in runs]
    data = {
        "columns": columns,
        "rows": rows,
        "slices": slices,
        "first": int(np.argmax(fluid_pixels)) if any(fluid_pixels) else slices // 2,
        "aspect": columns / (rows * y_mm / _SHOWN_ROW_MM),
        "line_step": _LINE_STEP,
        "pixel_mm2": x_mm * y_mm,
        "width_mm": columns * x_mm,
        "depth_mm": slices * z_mm,
        "centre": list(centre),
        "fluids": [
            {"name": fluid, "long_name": _LONG_NAMES[fluid], "rgb": CLASS_COLOURS[label].tolist()}
            for fluid, label in FLUIDS.items()
        ],
        "thickness": [
            base64.b64encode(np.rint(np.minimum(of_fluid, 65535)).astype("<u2").tobytes()).decode("ascii")
            for of_fluid in thickness_um
        ],
    }
    page = _TEMPLATE.read_text("utf-8")
    for place, content in {
        "style": STYLE,
        "title": html.escape(title),
        "centre": html.escape(centre_name),
        "warnings": "".join(f'<p class="warning">{html.escape(warning)}</p>' for warning in warnings),
        "tables": "".join(f"<h2>{html.escape(heading)}</h2>{html_table(table)}" for heading, table in tables),
    }.items():
        page = page.replace(f"<!--{place}-->", content)
    before, after = page.split("<!--data-->")
    with written_whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(before + json.dumps(data).replace("<", "\\u003c").removesuffix("}"))
        uris = ("data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode("ascii") for path in images)
        for name, of_slices in (
            ("images", uris),
            ("runs", runs),
            ("lines", lines),
        ):  # written one by one: together they are large
            file.write(f', "{name}": [')
            for index, of_slice in enumerate(of_slices):
                file.write("," * (index > 0) + json.dumps(of_slice, separators=(",", ":")))
            file.write("]")
        file.write("}" + after)


def measurement_table(rows):
    """The page's table of measurements. `rows` has the values of `utils.segmentation.measurements` for each fluid.

    Of a fluid that the model was not taught it says so.
    """
    table = pd.DataFrame(
        {
            "fluid": row["fluid"],
            "volume (mm³)": row["volume_mm3"],
            **{
                f"within {diameter} mm": _partly(row[f"volume_{diameter}mm_mm3"], row[f"covered_{diameter}mm"])
                for diameter in CIRCLES_MM
            },
            "thickest (µm)": f"{row['thickness_um']:.0f}",
            "lesions": row["lesions"],
            "presence in the likeliest B-scan": row["presence"],
            "how sure": f"{row['in_words']} ({row['confidence']:.2f})",
            **(
                {"uncertainty": "-" if row["uncertainty"] is None else f"{row['uncertainty']:.3f}"}
                if "uncertainty" in row
                else {}
            ),
        }
        for row in rows
    ).astype(object)
    untaught = [not row["taught"] for row in rows]
    table.loc[untaught, table.columns[1:]] = "-"
    table.loc[untaught, "volume (mm³)"] = "not taught"
    return table


def subfield_table(subfields):
    """The page's table of ETDRS subfields. `subfields` has those of `Measurements.subfields` for each fluid."""
    rows = []
    for name, of_first in subfields[0].items():
        row = {"subfield": name.replace("_", " ")}
        for fluid, of_fluid in zip(FLUIDS, subfields, strict=True):
            values, shown = of_fluid[name], of_fluid[name]["mean_um"] is not None
            row[f"{fluid} (mm³)"] = f"{values['mm3']:.3f}" if shown else "-"
            row[f"{fluid} mean, thickest (µm)"] = f"{values['mean_um']:.0f}, {values['max_um']:.0f}" if shown else "-"
        rows.append({**row, "scanned": f"{of_first['covered']:.0%}"})
    return pd.DataFrame(rows)


def _partly(volume_mm3, covered):
    """A circle's volume, and the share of the circle that the scan shows if that is below 98 %."""
    return f"{volume_mm3:.3f}" + (f" ({covered:.0%} of it scanned)" if covered < 0.98 else "")


def write_index(path, table, links, warning=None, plots=(), failed=()):
    """Write a page with `table`, a DataFrame. Its first column links to `links`: relative addresses, one for each row.

    `warning`, a sentence, stands above the table; below it links to `plots` of eyes over time, [(title, address)], and
    scans that `failed`, [(name, why)]. `table` is None where there is none but these.
    """
    body = "" if table is None else html_table(table)
    for text, link in () if table is None else zip(table.iloc[:, 0], links, strict=True):
        cell = f"<td>{html.escape(str(text))}</td>"
        body = body.replace(cell, f'<td><a href="{html.escape(link)}">{html.escape(str(text))}</a></td>', 1)
    above = f'<p class="warning"><strong>{html.escape(warning)}</strong></p>\n' if warning else ""
    if plots:
        items = "".join(f'<li><a href="{html.escape(link)}">{html.escape(title)}</a></li>' for title, link in plots)
        body += f"\n<h2>Over time</h2>\n<ul>{items}</ul>"
    if failed:
        body += f"\n<h2>Failed</h2>\n{html_table(pd.DataFrame(failed, columns=['scan', 'why']))}"
    style = "td:last-child { white-space: normal; min-width: 16rem; }"
    with written_whole(path) as temporary:
        temporary.write_text(html_page("Segmented scans", f"<h1>Segmented scans</h1>\n{above}{body}", style), "utf-8")
