"""Several scans of one eye over time: the volumes of each fluid by date, in what all of them show."""

import pandas as pd

from utils.files import write_csv, written_whole
from utils.labels import FLUIDS
from utils.names import portable
from utils.plots import CLASS_COLOURS
from utils.volumes.content import ANONYMISED

_SHOWN = 0.9  # of an ETDRS subfield: a fovea that is found 0.3 mm off hides no more of it in a scan of 6 x 6 mm


def write_follow_up(output, table):
    """Write what a `utils.segmentation.summary.summary_table` says of eyes that were scanned on several days.

    That is ``follow_up.csv`` and a plot of each eye, below the folder `output`. An eye is known by patient and side; a
    scan without date counts for none. An identifier that may stand for several patients is no patient: see
    `utils.volumes.content.Content.person`. Files of before go.

    Returns [(eye in words, path of its plot below `output`)], and a warning of the eyes that were left out, or None.
    """
    for old in [output / "follow_up.csv", *(output / "follow_up").glob("*.png")]:
        old.unlink(missing_ok=True)
    known = table.dropna(subset=["patient", "laterality", "scan_date"])
    days = known.groupby(["patient", "laterality"])["scan_date"].transform("nunique")
    mixed = known.patient.isin([patient for patient, of in known.groupby("patient") if _may_be_several(of.person)])
    followed = known[(days > 1) & ~mixed].sort_values(["patient", "laterality", "scan_date", "scan"])
    eyes = [(f"{patient}, {eye}", compared(of)) for (patient, eye), of in followed.groupby(["patient", "laterality"])]
    if eyes:
        columns = ["patient", "laterality", "scan_date", "scan", "vendor", "compared"]
        for fluid in FLUIDS:
            columns += [f"{fluid}_{what}" for what in ("compared_mm3", "mm3", "centre_mm3", "confidence")]
        columns += ["circles_around", "model", "model_sha256", "threshold"]
        write_csv(output / "follow_up.csv", pd.concat([scans for _, scans in eyes])[columns])
    plots = []
    for number, (title, scans) in enumerate(eyes, 1):
        patient, eye = scans.iloc[0][["patient", "laterality"]]
        name = f"follow_up/{number:03d}_{portable(patient)}_{eye}.png"
        save_follow_up(output / name, title, scans)
        plots.append((title, name))
    return plots, _warning(known[(days > 1) & mixed])


def _may_be_several(persons):
    """Whether scans with these `person`, all of one PatientID, may be of several patients."""
    return persons.nunique() > 1 or (persons == ANONYMISED).any()


def _warning(scans):
    if scans.empty:
        return None
    eyes = "; ".join(f"{patient}, {eye}" for patient, eye in scans.groupby(["patient", "laterality"]).groups)
    return (
        f"Not followed over time: {eyes}. The PatientID may stand for several patients, whose names or birth dates "
        "differ or were removed. Say with --eye TABLE which patient each scan is of."
    )


def compared(scans):
    """The `scans` of an eye, rows of a `summary_table`, with what of them is compared.

    ``compared`` says it in words: the ETDRS subfields that every scan shows. ``<fluid>_compared_mm3`` is the volume
    there, NaN without such a subfield.
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
    return scans.assign(compared=words, **volumes)


def save_follow_up(path, title, scans):
    """Write a plot of each fluid's volume by date as PNG. `scans` are the result of `compared`, in order of time.

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
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=100)
