"""The HTML page of a segmented scan: a single file that needs no other."""

import base64
import html
import io
import json
import os
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
from PIL import Image

from utils.files import written_whole
from utils.html import STYLE, html_table
from utils.labels import FLUIDS
from utils.plots import CLASS_COLOURS, overlay
from utils.preparation.preprocessing import to_8_bit
from utils.segmentation.etdrs import CIRCLES_MM
from utils.segmentation.wording import how_sure, least_sure, volume_in_words, without_options

_TEMPLATE = Path(__file__).with_name("page.html")
_LONG_NAMES = {"IRF": "intraretinal fluid", "SRF": "subretinal fluid", "PED": "pigment epithelial detachment"}
_JPEG_QUALITY = 80
_LINE_STEP = 4  # columns between the points of a surface's line
_SHOWN_ROW_MM = 0.003872  # this depth is drawn as high as a column is wide, for all vendors
_SMALL_COLUMNS = 320  # of the small picture of a B-scan
_AROUND_MM = 0.15  # above and below the retina in it
_FUNDUS_COLUMNS = 512  # at most, of the fundus on the page
_EYES = {"OD": "right eye (OD)", "OS": "left eye (OS)"}
_CORRECT = Path(__file__).parents[2] / "docs" / "correct.md"


def save_b_scan(path, grey):
    """Write a B-scan (rows, columns; uint8) as the JPEG that the page takes."""
    Image.fromarray(np.ascontiguousarray(grey)).save(path, "JPEG", quality=_JPEG_QUALITY)


def save_b_scan_to_look_at(path, images, scan, found, index):
    """Write a small picture of the B-scan `index` of a `Scan`, its retina alone, with its labels as JPEG.

    `found` are its `Findings`, `images` the files by `save_b_scan`.
    """
    grey, surfaces, row_mm = np.asarray(Image.open(images[index])), found.surfaces[index], scan.spacing_mm[1]
    labels = labels_of_runs(found.runs[index], grey.shape)
    if surfaces.is_retina:
        rows = np.array([surfaces.inner.min(), surfaces.bruch.max()]) * found.rows_per_row
        top, bottom = np.rint(rows + np.array([-1, 1]) * _AROUND_MM / row_mm).astype(int)
        grey, labels = (picture[max(0, top) : bottom] for picture in (grey, labels))
    height = max(1, round(len(grey) * row_mm / _SHOWN_ROW_MM * _SMALL_COLUMNS / grey.shape[1]))
    small = [
        Image.fromarray(picture).resize((_SMALL_COLUMNS, height), method)
        for picture, method in ((grey, Image.Resampling.LANCZOS), (labels, Image.Resampling.NEAREST))
    ]
    Image.fromarray(overlay(*map(np.asarray, small))).save(path, "JPEG", quality=_JPEG_QUALITY)


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


def labels_of_runs(runs, shape):
    """The labels, uint8 of `shape` (rows, columns), of which `runs` are the `label_runs`."""
    labels = np.zeros(shape[0] * shape[1], np.uint8)
    for label, of_fluid in zip(FLUIDS.values(), runs, strict=True):
        ends = np.cumsum(of_fluid)
        for start, end in zip(ends[::2], ends[1::2], strict=True):
            labels[start:end] = label
    return labels.reshape(shape)


def surface_lines(surfaces, rows_per_row):
    """A list for each of a B-scan's `Surfaces`, from the inner one to Bruch's membrane: its row in every fourth column.

    `rows_per_row` are the scan's rows in one of the surfaces'. None where no retina is seen.
    """
    if not surfaces.is_retina:
        return None
    paths = (surfaces.inner, surfaces.outer, surfaces.bruch)
    return [np.rint((path[::_LINE_STEP] + 0.5) * rows_per_row - 0.5).astype(int).tolist() for path in paths]


def write_scan_page(path, scan, found, record, images, centre):
    """Write the page of a `utils.volumes.scans.Scan`.

    | argument | content |
    |---|---|
    | `found` | its `utils.segmentation.findings.Findings` |
    | `record` | what `scan.json` says of it |
    | `images` | the file by `save_b_scan` of each B-scan |
    | `centre` | (column, slice) of the circles' centre, counted from 0 |
    """
    slices, rows, columns = scan.voxels.shape
    x_mm, y_mm, z_mm = scan.spacing_mm
    data = {
        "columns": columns,
        "rows": rows,
        "slices": slices,
        "first": record["look_at"] - 1,
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
            for of_fluid in found.measurements.thickness_um()
        ],
        "fundus": _fundus(scan.fundus),
    }
    page = _TEMPLATE.read_text("utf-8")
    for place, content in {"style": STYLE, **_texts(path, record, scan)}.items():
        page = page.replace(f"<!--{place}-->", content)
    before, after = page.split("<!--data-->")
    with written_whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(before + json.dumps(data).replace("<", "\\u003c").removesuffix("}"))
        for name, of_slices in (
            ("images", (_data_uri(image.read_bytes()) for image in images)),
            ("runs", found.runs),
            ("lines", (surface_lines(of, found.rows_per_row) for of in found.surfaces)),
        ):  # written one by one: together they are large
            file.write(f', "{name}": [')
            for index, of_slice in enumerate(of_slices):
                file.write("," * (index > 0) + json.dumps(of_slice, separators=(",", ":")))
            file.write("]")
        file.write("}" + after)


def _texts(path, record, scan):
    """{place in the template: HTML} of all that the page says in words."""
    facts, is_volume = record["facts"], record["facts"]["b_scans"] > 1
    hidden = {"patient"} if is_volume else {"patient", "spacing_z_mm"}  # pages are shown to others
    shown = {name: value for name, value in facts.items() if name not in hidden and value is not None}
    count = f"{facts['b_scans']} B-scans" if is_volume else "a single B-scan, so areas are measured"
    in_words = next(row["in_words"] for row in record["fluids"] if row["fluid"] == record["least_sure"])
    sure = f"How sure is the model: {record['in_words']}; "
    sure += f"{least_sure(record['least_sure'], in_words, record['confidence'])}."
    remarks = [("warning", text) for text in record["warnings"]] + [("remark", text) for text in record["notes"]]
    settings = pd.DataFrame(shown.items(), columns=["setting", "value"])
    return {
        "title": html.escape(f"{scan.vendor} {scan.name}"),
        "kind": "volume" if is_volume else "single",
        "what": html.escape(" · ".join(filter(None, [_EYES.get(scan.laterality), scan.scan_date, count]))),
        "research": html.escape(record["note"]),
        "sure": html.escape(sure + f" Look first at B-scan {record['look_at']}." * is_volume),
        "centre": html.escape(facts["circles_around"] or ""),
        "remarks": "".join(f'<p class="{kind}">{html.escape(without_options(text))}</p>' for kind, text in remarks),
        "measurements": html_table(measurement_table(record["fluids"])),
        "subfields": html_table(subfield_table(record["fluids"])) if is_volume else "",
        "model": html.escape(f"Model: {facts['model']}, {facts['model_sha256'][:8]}. Decisions: {facts['threshold']}."),
        "settings": html_table(settings),
        "correct": link_to_correct(Path(path).parents[1]),  # as deep as the folder that its own comes to be
    }


def link_to_correct(folder):
    """The address of docs/correct.md from a page in `folder`."""
    try:
        return quote(Path(os.path.relpath(_CORRECT, folder)).as_posix())
    except ValueError:  # on another drive
        return _CORRECT.as_uri()


def _data_uri(jpeg):
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def _fundus(fundus):
    """The fundus' picture, its aspect and the B-scans' lines in shares of its width and height; None without one."""
    if fundus is None:
        return None
    picture = Image.fromarray(to_8_bit(fundus.image))
    columns, rows = picture.size
    picture.thumbnail((_FUNDUS_COLUMNS, _FUNDUS_COLUMNS))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_JPEG_QUALITY)
    scale = np.array([columns, rows, columns, rows])
    lines = [line and (np.array(line) / scale).round(4).tolist() for line in fundus.lines]
    assumed = ", if the first B-scan is the uppermost" if fundus.order_assumed else ""
    return {"image": _data_uri(file.getvalue()), "aspect": columns / rows, "lines": lines, "assumed": assumed}


def measurement_table(fluids):
    """The page's table of measurements of the `fluids` of a record: volumes, or areas of a single B-scan.

    Of a fluid that the model was not taught it says so.
    """
    table = pd.DataFrame(
        {
            "fluid": row["fluid"],
            **_sizes(row),
            "thickest (µm)": f"{row['thickness_um']:.0f}",
            "lesions": row["lesions"],
            "how sure": how_sure(row["in_words"], row["confidence"], row["calibrated"]),
            **(
                {"uncertainty": "-" if row["uncertainty"] is None else f"{row['uncertainty']:.3f}"}
                if "uncertainty" in row
                else {}
            ),
        }
        for row in fluids
    ).astype(object)
    untaught = [not row["taught"] for row in fluids]
    table.loc[untaught, table.columns[1:]] = "-"
    table.loc[untaught, table.columns[1]] = "not taught"
    return table


def _sizes(row):
    if "area_mm2" in row:
        return {"area": volume_in_words(None, row["area_mm2"])}
    within = {
        f"within {diameter} mm": _partly(row[f"volume_{diameter}mm_mm3"], row[f"covered_{diameter}mm"])
        for diameter in CIRCLES_MM
    }
    return {"volume": volume_in_words(row["volume_mm3"]), **within}


def subfield_table(fluids):
    """The page's table of the ETDRS subfields of the `fluids` of a record."""
    rows = []
    for name, of_first in fluids[0]["subfields"].items():
        row = {"subfield": name.replace("_", " ")}
        for of_fluid in fluids:
            fluid, values = of_fluid["fluid"], of_fluid["subfields"][name]
            shown = values["mean_um"] is not None and of_fluid["taught"]
            row[f"{fluid} (mm³)"] = f"{values['mm3']:.3f}" if shown else "-"
            row[f"{fluid} mean, thickest (µm)"] = f"{values['mean_um']:.0f}, {values['max_um']:.0f}" if shown else "-"
        rows.append({**row, "scanned": f"{of_first['covered']:.0%}"})
    return pd.DataFrame(rows)


def _partly(volume_mm3, covered):
    """A circle's volume, and the share of the circle that the scan shows if that is below 98 %."""
    return volume_in_words(volume_mm3) + (f" ({covered:.0%} of it scanned)" if covered < 0.98 else "")
