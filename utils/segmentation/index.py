"""The work list: a page with all segmented scans in a folder, those to look at first on top."""

import html
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from utils.files import written_whole
from utils.html import STYLE, html_table
from utils.labels import FLUIDS
from utils.segmentation.page import link_to_correct
from utils.segmentation.results import output_name
from utils.segmentation.wording import RESEARCH, how_sure, least_sure, volume_in_words, without_options

_TEMPLATE = Path(__file__).with_name("index.html")
_SORTED_BY = {"scan": "none", "eye, date": "none", **dict.fromkeys(FLUIDS, "none"), "how sure": "ascending"}
_FILES = {
    "summary.csv": "all results",
    "columns.csv": "what its columns mean",
    "follow_up.csv": "eyes over time",
    "failed.csv": "scans that failed",
    "left_out.csv": "files that are no scans",
}


def write_index(output, table, warnings=(), followed=(), failed=()):
    """Write ``index.html`` into the folder `output`.

    `table` is its `utils.segmentation.summary.summary_table`, maybe empty. `warnings` are sentences on all scans,
    `followed` pages of eyes over time, [(title, address)], `failed` the scans of this run that failed, [(name, why)].
    """
    path = Path(output) / "index.html"
    texts = {
        "style": STYLE,
        "research": _paragraphs("research", table.note.unique() if len(table) else [RESEARCH]),
        "warnings": _paragraphs("warning", map(without_options, warnings)),
        "summary": "<br>".join([*_models(table), _links(output, len(table), failed)]),
        "list": _list(table) + _followed(followed) + _failed(failed),
    }
    page = _TEMPLATE.read_text("utf-8")
    for place, content in texts.items():
        page = page.replace(f"<!--{place}-->", content)
    with written_whole(path) as temporary:
        temporary.write_text(page, "utf-8")


def _paragraphs(kind, texts):
    return "".join(f'<p class="{kind}">{html.escape(text)}</p>' for text in texts)


def _models(table):
    """A line for each model and threshold that segmented scans of the table."""
    if table.empty:
        return []
    groups = table.groupby(["model", "model_sha256", "threshold"], sort=False).size()
    return [
        html.escape(f"Model: {model}, {sha256[:8]}. Decisions: {threshold}.")
        + (f" {scans} scans." if len(groups) > 1 else "")
        for (model, sha256, threshold), scans in groups.items()
    ]


def _links(output, count, failed):
    found = [name for name in _FILES if (Path(output) / name).exists()]
    links = [f'<a href="{name}">{name}</a> ({_FILES[name]})' for name in found]
    links.append(f'<a href="{link_to_correct(output)}">docs/correct.md</a> (how to correct outlines)')
    counted = f"{count} scans" + (f', <a href="#failed">{len(failed)} failed</a>' if failed else "")
    return f"{counted}. {', '.join(links)}"


def _list(table):
    """The table of scans: doubtful by a warning first, then by how sure the model is."""
    if table.empty:
        return ""
    heads = "<th>B-scan to look at</th>" + "".join(
        f'<th aria-sort="{order}"><button type="button">{name}</button></th>' for name, order in _SORTED_BY.items()
    )
    in_order = table.assign(unlike=table.warnings == "").sort_values(["unlike", "confidence"], kind="stable")
    rows = "".join(_row(row, order) for order, row in enumerate(in_order.to_dict("records")))
    return f'<div class="scroll"><table class="list"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(row, order):
    """A table row of a scan; each cell's data-value is what its column is sorted by."""
    folder = quote(output_name(row["vendor"], row["scan"]))
    link, look_at = f"{folder}/report.html", row["look_at"]
    if pd.notna(look_at):
        link += f"#{look_at:.0f}"
    b_scans = "1 B-scan" if row["b_scans"] == 1 else f"B-scan {look_at:.0f} of {row['b_scans']}"
    picture = f'<a href="{link}"><img src="{folder}/look_at.jpg" alt="" loading="lazy"></a><small>{b_scans}</small>'
    name = f'<a href="{link}">{html.escape(str(row["scan"]))}</a>'
    notes = _small(row["vendor"]) + "".join(map(_small, filter(None, [row["notes"]])))
    eye, date = (row[key] if pd.notna(row[key]) else "" for key in ("laterality", "scan_date"))
    cells = [("", picture), (row["scan"], name + notes), (f"{date} {eye}", f'<span class="nowrap">{date}</span> {eye}')]
    cells += [_fluid_cell(row, fluid) for fluid in FLUIDS]
    cells.append((order, _sure(row)))
    return "<tr>" + "".join(f'<td data-value="{html.escape(str(by))}">{cell}</td>' for by, cell in cells) + "</tr>"


def _fluid_cell(row, fluid):
    mm3, mm2 = row[f"{fluid}_mm3"], row[f"{fluid}_mm2"]
    if pd.isna(mm3) and pd.isna(mm2):
        return -1, "not taught"
    size = volume_in_words(mm3, None if pd.isna(mm2) else mm2)
    in_words, confidence, calibrated = (row[f"{fluid}_{key}"] for key in ("in_words", "confidence", "calibrated"))
    sure = _small(how_sure(in_words, confidence, calibrated))
    return mm3 if pd.isna(mm2) else mm2, f'<span class="nowrap">{html.escape(size)}</span>{sure}'


def _sure(row):
    fluid = row["least_sure"]
    if not isinstance(fluid, str):
        return "not known; segment the scan again"  # results of an earlier version
    text = _small(least_sure(fluid, row[f"{fluid}_in_words"], row["confidence"]))
    why = f'<small class="why">{html.escape(row["warnings"])}</small>' if row["warnings"] else ""
    return f"<strong>{row['in_words']}</strong>{text}{why}"


def _small(text):
    return f"<small>{html.escape(text)}</small>"


def _followed(followed):
    if not followed:
        return ""
    items = "".join(f'<li><a href="{quote(link)}">{html.escape(title)}</a></li>' for title, link in followed)
    return f"\n<h2>Over time</h2>\n<ul>{items}</ul>"


def _failed(failed):
    if not failed:
        return ""
    rows = pd.DataFrame([(name, without_options(why)) for name, why in failed], columns=["scan", "why"])
    return f'\n<h2 id="failed">Failed</h2>\n{html_table(rows)}'
