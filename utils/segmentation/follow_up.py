"""Several scans of one eye over time: the volumes of each fluid by date."""

from utils.files import write_csv, written_whole
from utils.labels import FLUIDS
from utils.names import portable
from utils.plots import CLASS_COLOURS


def write_follow_up(output, table):
    """Write what a `utils.segmentation.summary.summary_table` says of eyes that were scanned on several days.

    That is ``follow_up.csv`` and a plot of each eye, below the folder `output`. An eye is known by patient and side; a
    scan without date counts for none. Files of before go. Returns [(eye in words, path of its plot below `output`)].
    """
    for old in [output / "follow_up.csv", *(output / "follow_up").glob("*.png")]:
        old.unlink(missing_ok=True)
    known = table.dropna(subset=["patient", "laterality", "scan_date"])
    days = known.groupby(["patient", "laterality"])["scan_date"].transform("nunique")
    known = known[days > 1].sort_values(["patient", "laterality", "scan_date", "scan"])
    if known.empty:
        return []
    columns = ["patient", "laterality", "scan_date", "scan", "vendor"]
    columns += [f"{fluid}_{what}" for fluid in FLUIDS for what in ("mm3", "centre_mm3", "confidence")]
    write_csv(output / "follow_up.csv", known[[*columns, "circles_around", "model", "model_sha256", "threshold"]])
    plots = []
    for number, ((patient, eye), scans) in enumerate(known.groupby(["patient", "laterality"]), 1):
        name = f"follow_up/{number:03d}_{portable(patient)}_{eye}.png"
        save_follow_up(output / name, f"{patient}, {eye}", scans)
        plots.append((f"{patient}, {eye}", name))
    return plots


def save_follow_up(path, title, scans):
    """Write a plot of each fluid's volume by date as PNG. `scans` are rows of a `summary_table`, in order of time."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, datestr2num
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    days = datestr2num(scans.scan_date.tolist())
    for (fluid, label), marker in zip(FLUIDS.items(), "os^", strict=True):
        ax.plot(days, scans[f"{fluid}_mm3"], marker=marker, color=CLASS_COLOURS[label] / 255, label=fluid)
    locator = AutoDateLocator()
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    ax.set(title=title, ylabel="volume (mm³)")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    ax.legend()
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=100)
