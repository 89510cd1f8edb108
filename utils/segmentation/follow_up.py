"""Several scans of one eye over time: the volumes of each fluid by date, in what all of them show."""

import base64
import html
import io
from urllib.parse import quote

import numpy as np
import pandas as pd

from utils.files import written_whole
from utils.html import html_page, html_table
from utils.labels import FLUIDS
from utils.names import portable
from utils.plots import CLASS_COLOURS
from utils.segmentation.columns import write_results
from utils.segmentation.results import output_name
from utils.segmentation.wording import volume_in_words
from utils.volumes.content import ANONYMISED

_OF_FLUID = ("compared_mm3", "change_mm3", "change_percent", "mm3", "centre_mm3", "confidence")
FOLLOW_UP_COLUMNS = ("patient", "laterality", "scan_date", "scan", "vendor", "compared")
FOLLOW_UP_COLUMNS += tuple(f"{fluid}_{what}" for fluid in FLUIDS for what in _OF_FLUID)
FOLLOW_UP_COLUMNS += ("circles_around", "model", "model_sha256", "threshold", "note")
_STYLE = ".visits { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 1.25rem; }"
_STYLE += " .visits figure { margin: 0; } .visits img, .plot { width: 100%; height: auto; } .plot { max-width: 44rem; }"
_SHOWN = 0.9  # of an ETDRS subfield: a fovea that is found 0.3 mm off hides no more of it in a scan of 6 x 6 mm


def write_follow_up(output, table):
    """Write what a `utils.segmentation.summary.summary_table` says of eyes that were scanned on several days.

    That is ``follow_up.csv`` and a page of each eye, below the folder `output`. An eye is known by patient and side; a
    scan without date counts for none, nor does a single B-scan. An identifier that may stand for several patients is no
    patient: see `utils.volumes.content.Content.person`. Files of before go.

    Returns [(eye in words, path of its page below `output`)], and a warning of the eyes that were left out, or None.
    """
    for old in [output / "follow_up.csv", *(output / "follow_up").glob("[0-9]*_O[DS].[hp][tn]*")]:  # .html; once, .png
        old.unlink(missing_ok=True)
    known = table[table.b_scans > 1].dropna(subset=["patient", "laterality", "scan_date"])
    days = known.groupby(["patient", "laterality"])["scan_date"].transform("nunique")
    mixed = known.patient.isin([patient for patient, of in known.groupby("patient") if _may_be_several(of.person)])
    followed = known[(days > 1) & ~mixed].sort_values(["patient", "laterality", "scan_date", "scan"])
    eyes = [(f"{patient}, {eye}", compared(of)) for (patient, eye), of in followed.groupby(["patient", "laterality"])]
    if eyes:
        write_results(output / "follow_up.csv", pd.concat([scans for _, scans in eyes])[list(FOLLOW_UP_COLUMNS)])
    pages = []
    for number, (title, scans) in enumerate(eyes, 1):
        patient, eye = scans.iloc[0][["patient", "laterality"]]
        name = f"follow_up/{number:03d}_{portable(patient)}_{eye}.html"
        write_visits(output / name, title, scans)
        pages.append((title, name))
    return pages, _warning(known[(days > 1) & mixed])


def _may_be_several(persons):
    """Whether scans with these `person`, all of one PatientID, may be of several patients."""
    return persons.nunique() > 1 or (persons == ANONYMISED).any()


def _warning(scans):
    if scans.empty:
        return None
    eyes = "; ".join(f"{patient}, {eye}" for patient, eye in scans.groupby(["patient", "laterality"]).groups)
    return (
        f"Not followed over time: {eyes}. The PatientID may stand for several patients, whose names or birth dates "
        "differ or were removed; say with --eye TABLE which patient each scan is of"
    )


def compared(scans):
    """The `scans` of an eye, rows of a `summary_table`, with what of them is compared.

    ``compared`` says it in words: the ETDRS subfields that every scan shows. ``<fluid>_compared_mm3`` is the volume
    there, NaN without such a subfield; ``<fluid>_change_mm3`` and ``<fluid>_change_percent`` are its change since the
    scan before.
    """
    covered = scans[[column for column in scans if column.endswith("_covered")]]
    fields = [column.removesuffix("_covered") for column in covered if (covered[column] >= _SHOWN).all()]
    words = "the whole ETDRS grid" if len(fields) == 9 else ", ".join(field.replace("_", " ") for field in fields)
    if not scans.circles_around.str.startswith("the fovea").all():
        words += ", around the scan's centre where no fovea was found"
    if not fields:
        words = "nothing, since no ETDRS subfield is shown by all scans; they may be of different areas"
    volumes = {
        f"{fluid}_compared_mm3": scans[[f"{fluid}_{field}_mm3" for field in fields]].sum(axis=1, min_count=1)
        for fluid in FLUIDS
    }
    scans = scans.assign(compared=words, **volumes)
    for fluid in FLUIDS:
        volume = scans[f"{fluid}_compared_mm3"]
        scans[f"{fluid}_change_mm3"] = volume.diff()
        scans[f"{fluid}_change_percent"] = 100 * volume.diff() / volume.shift().replace(0, np.nan)
    return scans


def write_visits(path, title, scans):
    """Write the page of an eye: its visits side by side, what changed, and a plot. `scans` are as of `compared`."""
    figures = []
    for row in scans.to_dict("records"):
        folder = quote(f"../{output_name(row['vendor'], row['scan'])}")
        words = f"{row['scan_date']}: {row['scan']}, B-scan {row['look_at']:.0f} of {row['b_scans']}"
        figures.append(
            f'<figure><a href="{folder}/report.html#{row["look_at"]:.0f}"><img src="{folder}/look_at.jpg" alt=""></a>'
            f"<figcaption>{html.escape(words)}</figcaption></figure>"
        )
    plot = base64.b64encode(follow_up_plot(title, scans)).decode("ascii")
    body = (
        f"<h1>{html.escape(title)}</h1>"
        + "".join(f'<p class="research">{html.escape(note)}</p>' for note in scans.note.unique())
        + f'<div class="visits">{"".join(figures)}</div>'
        + f"<h2>Change</h2><p>Compared: {html.escape(scans.compared.iloc[0])}.</p>{html_table(_changes(scans))}"
        + f'<img class="plot" alt="volume of each fluid by date" src="data:image/png;base64,{plot}">'
        + '<p><a href="../index.html">All scans</a></p>'
    )
    with written_whole(path) as temporary:
        temporary.write_text(html_page(title, body, _STYLE), "utf-8")


def _changes(scans):
    """The page's table: each fluid's volume in what is compared, a column for each visit, with the change."""
    table = pd.DataFrame({"fluid": list(FLUIDS)})
    for number, (_, row) in enumerate(scans.iterrows()):
        cells = []
        for fluid in FLUIDS:
            volume, change, percent = (row[f"{fluid}_{what}"] for what in _OF_FLUID[:3])
            share = "" if np.isnan(percent) else f", {percent:+.0f} %"
            changed = "" if np.isnan(change) else f" ({change:+.3f} mm³{share})"
            cells.append("-" if np.isnan(volume) else volume_in_words(volume) + changed)
        table.insert(number + 1, str(row.scan_date), cells, allow_duplicates=True)
    return table


def follow_up_plot(title, scans):
    """A plot of each fluid's volume by date: bytes of a PNG. `scans` are the result of `compared`, in order of time.

    Where nothing can be compared, it is the volume of the whole scans, and no line joins them.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, datestr2num
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    days = datestr2num(scans.scan_date.tolist())
    comparable = scans[[f"{fluid}_compared_mm3" for fluid in FLUIDS]].notna().any(axis=1).all()
    what, line = ("compared_mm3", "-") if comparable else ("mm3", "none")
    for (fluid, label), marker in zip(FLUIDS.items(), "os^", strict=True):
        colour = CLASS_COLOURS[label] / 255
        ax.plot(days, scans[f"{fluid}_{what}"], marker=marker, linestyle=line, color=colour, label=fluid)
    locator = AutoDateLocator()
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    ax.set_title(f"{title}\ncompared: {scans.compared.iloc[0]}", fontsize="medium", wrap=True)
    ax.set_ylabel("volume in what is compared (mm³)" if comparable else "volume of the whole scan (mm³)")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    ax.legend()
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    return file.getvalue()
