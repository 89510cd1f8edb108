"""The evaluation as one page: report.html, which needs no other file, and report.md with the same text and tables."""

import html
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from utils.evaluation import figures
from utils.files import written_whole
from utils.html import cell_text, html_page, html_table, number
from utils.labels import FLUIDS

# Published figures: method, data, Dice (IRF / SRF / PED or their mean), AVD in mm3, AUC, source.
PUBLISHED = [
    (
        "Tennakoon's network, re-implemented",
        "70 RETOUCH training volumes, one 80/20 split",
        *("0.71 / 0.85 / 0.71", "-", "-"),
        "Terroso, MSc dissertation, Univ. Porto 2025",
    ),
    ("SFU, winner of 2017", "RETOUCH hidden test", "mean 0.7667", "-", "1.00", "Lu et al., MedIA 2019"),
    (
        "UCF 2017",
        "RETOUCH",
        *("0.522 / 0.682 / 0.612", "0.285 / 0.115 / 0.156", "-"),
        "arXiv:1708.05464",
    ),
    ("nnUNet_RASPP 2023", "RETOUCH hidden test", "0.840 / 0.800 / 0.830", "-", "1.00", "arXiv:2302.13195"),
    ("MMIS-Net 2025", "RETOUCH hidden test", "mean 0.83", "mean 0.035", "1", "arXiv:2508.13936"),
]
_HEADLINE = {
    "dice_present": "Dice, cases with the fluid",
    "dice_all": "Dice, all cases",
    "avd_mm3": "AVD (mm³)",
}
_FURTHER = {
    "precision": "precision",
    "recall": "recall",
    "hd95_mm": "HD95 (mm)",
    "assd_mm": "ASSD (mm)",
    "lesion_precision": "lesion precision",
    "lesion_recall": "lesion recall",
    "average_precision": "voxel AP",
}
_CONVENTIONS = (
    "Values are means over cases with a 95 % bootstrap interval. The bootstrap draws patients, each with all cases. "
    "Dice has two conventions, because the challenge does not publish how it scores a volume that lacks a fluid. The "
    "first is the mean over the cases whose reference holds the fluid. The second is the mean over all cases: a case "
    "counts 1 if both masks are empty, and 0 if one is. AVD is the absolute volume difference over all cases. AUC is "
    "the area under the ROC curve of detection. The row “mean” is the mean of the fluids."
)
_FURTHER_TEXT = (
    "Precision and recall are those of voxels, over the cases in which they are defined. HD95 is the 95th percentile "
    "of the Hausdorff distance, ASSD the average symmetric surface distance, both over the cases in which both masks "
    "hold the fluid. A lesion is a connected component. Lesion recall is the share of the reader's lesions that the "
    "prediction touches. Lesion precision is the share of the predicted lesions that touch a true voxel. Voxel AP is "
    "the average precision of the fluid's probability over the voxels of a case."
)


@dataclass(frozen=True)
class Evaluation:
    """What a report tells."""

    title: str
    facts: dict  # {name: text}
    volumes: pd.DataFrame  # of `utils.evaluation.scores`
    summary: pd.DataFrame  # of `utils.evaluation.statistics`
    detection: pd.DataFrame  # of `utils.evaluation.detection`
    curves: dict  # {(vendor, fluid): (false positive rate, true positive rate)}
    patches: dict = field(default_factory=dict)  # {name: score}
    reliability: pd.DataFrame | None = None  # of `utils.evaluation.detection.reliability_table`
    overlays: list = field(default_factory=list)  # of `utils.evaluation.pairs.typical_cases`
    failed: list = field(default_factory=list)  # a line for each case that could not be scored
    notes: list = field(default_factory=list)  # sentences


def write_report(folder, evaluation):
    """Write an `Evaluation` as ``report.html`` and ``report.md`` into `folder`."""
    blocks = report_blocks(evaluation)
    for name, text in (("report.md", to_markdown(blocks)), ("report.html", to_html(evaluation.title, blocks))):
        with written_whole(folder / name) as temporary:
            temporary.write_text(text, "utf-8")


def report_blocks(evaluation):
    """The report as a list of (kind, content, ...). The two writers below know the kinds."""
    volumes, summary, detection = evaluation.volumes, evaluation.summary, evaluation.detection
    n_cases, n_patients = len(volumes.drop_duplicates(["vendor", "case"])), volumes.patient.nunique()
    vendors = list(summary.vendor.unique())
    blocks = [
        ("title", evaluation.title),
        ("facts", evaluation.facts),
        ("text", f"{n_cases} cases of {n_patients} patients: {', '.join(vendors[:-1])}."),
    ]
    if evaluation.failed:
        blocks += [("heading", f"Not scored: {len(evaluation.failed)}"), ("list", evaluation.failed)]
    blocks += [("heading", "Results"), ("text", _CONVENTIONS)]
    blocks += [("table", headline(summary, detection, ["all"]).drop(columns="vendor"))]
    blocks += [("list", evaluation.notes)] if evaluation.notes else []
    blocks += [("heading", "By vendor"), ("table", headline(summary, detection, vendors[:-1]))]
    blocks += [("figure", "Dice of each case that holds the fluid; lines are means.", figures.dice_strips(volumes))]
    blocks += [
        (
            "figure",
            "Volumes: difference against mean (Bland and Altman 1986) of each case; bias and 95 % limits of agreement.",
            figures.bland_altman(volumes),
        )
    ]
    blocks += [("heading", "Further measures"), ("text", _FURTHER_TEXT)]
    blocks += [("table", measures(summary, vendors, _FURTHER))]
    blocks += [("heading", "Detection"), ("table", detection_text(detection))]
    if evaluation.curves:
        blocks += [("figure", "ROC curves of detection.", figures.roc_curves(evaluation.curves))]
    if evaluation.reliability is not None:
        caption = "Reliability: how often voxels are the fluid, by its probability."
        blocks += [("figure", caption, figures.reliability_curves(evaluation.reliability))]
    if evaluation.overlays:
        legend = "Outlined: reader (green), prediction (magenta), both (white); the B-scan with most of the fluid."
        blocks += [("heading", "Best, median and worst case"), ("text", legend), ("pictures", evaluation.overlays)]
    if evaluation.patches:
        blocks += [("heading", "Held-out patches"), ("text", "IoU and F-score: means of batches, as in training.")]
        blocks += [("table", pd.DataFrame([{name: f"{value:.3f}" for name, value in evaluation.patches.items()}]))]
    blocks += [("heading", "Published figures"), ("text", _not_comparable(n_cases))]
    blocks += [("table", published(summary, detection, n_cases))]
    return [*blocks, ("heading", "Every case"), ("long table", volumes)]


def _not_comparable(n_cases):
    return (
        f"Not comparable with this page: these are {n_cases} cases of this run's own data. The challenge's hidden test "
        "set (42 volumes) is scored by its organisers alone, and other splits of its training set hold other cases."
    )


def headline(summary, detection, vendors):
    """Dice, AVD and AUC of every fluid for each of `vendors`, as text."""
    table, auc = measures(summary, vendors, _HEADLINE), detection.set_index(["vendor", "fluid"])
    texts = [
        with_interval(*auc.loc[(vendor, fluid), ["auc", "low", "high"]])
        for vendor, fluid in zip(table.vendor, table.fluid, strict=True)
    ]
    return table.assign(AUC=texts)


def measures(summary, vendors, names):
    """The measures in `names`, {measure: column title}, of every fluid for each of `vendors`, as text."""
    by_measure = summary.set_index(["vendor", "fluid", "measure"]).sort_index()
    rows = []
    for vendor in vendors:
        for fluid in [*FLUIDS, "mean"]:
            of_fluid = by_measure.loc[(vendor, fluid)]
            texts = {
                title: with_interval(*of_fluid.loc[name, ["mean", "low", "high"]]) for name, title in names.items()
            }
            cases = f"{of_fluid.cases_with_fluid.iloc[0]} of {of_fluid.cases.iloc[0]}" if fluid != "mean" else ""
            cases = "not outlined" if cases == "0 of 0" else cases
            rows.append({"vendor": vendor, "fluid": fluid, "cases with it": cases, **texts})
    return pd.DataFrame(rows)


def detection_text(detection):
    """The table of `utils.evaluation.detection.detection_table` as text."""
    rows = []
    for row in detection.to_dict("records"):
        values = {name: number(row[name]) for name in ("threshold", "sensitivity", "specificity")}
        auc = with_interval(row["auc"], row["low"], row["high"])
        of_score = row["threshold_score"] if isinstance(row["threshold_score"], str) else ""  # of means there is none
        names = {"vendor": row["vendor"], "fluid": row["fluid"], "AUC": auc, "threshold of": of_score}
        rows.append({**names, **values})
    return pd.DataFrame(rows)


def published(summary, detection, n_cases):
    """A table of this evaluation's figures, and published ones below them."""
    mean = summary[summary.vendor == "all"].set_index(["measure", "fluid"])["mean"]
    dice, avd = (" / ".join(number(mean[name, fluid]) for fluid in FLUIDS) for name in ("dice_present", "avd_mm3"))
    auc = number(detection.auc.iloc[-1])
    ours = ("this evaluation", f"{n_cases} cases of this run", dice, avd, auc, "above; Dice of cases with the fluid")
    rows = [("", *ours), *(("not comparable", *row) for row in PUBLISHED)]
    return pd.DataFrame(rows, columns=["", "method", "data", "Dice IRF / SRF / PED", "AVD (mm³)", "AUC", "source"])


def with_interval(value, low, high):
    """A mean and its interval as text."""
    return number(value) if np.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


# ---- Markdown ------------------------------------------------------------------------------------------------------
def to_markdown(blocks):
    """The blocks as Markdown, without the pictures."""
    parts = []
    for kind, content, *_ in blocks:
        if kind in ("table", "long table"):
            parts.append(markdown_table(content))
        elif kind == "facts":
            parts.append("\n".join(f"- {name}: {_one_line(text)}" for name, text in content.items()))
        elif kind == "list":
            parts.append("\n".join(f"- {_one_line(text)}" for text in content))
        elif kind in ("title", "heading", "text"):
            parts.append({"title": "# ", "heading": "## ", "text": ""}[kind] + _one_line(content))
        elif kind == "figure":
            parts.append(f"({content.rstrip('.')}: see report.html)")
    return "\n\n".join(parts) + "\n"


def markdown_table(table):
    """A DataFrame as a Markdown table. Numbers have three decimals; a missing one is "-"."""
    lines = [list(table.columns), ["---"] * len(table.columns)]
    lines += [
        [_one_line(cell_text(value)).replace("|", "\\|") for value in row] for row in table.itertuples(index=False)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _one_line(text):
    """Text on one line, with HTML escaped, because Markdown would render it."""
    return html.escape(" ".join(str(text).split()), quote=False)


# ---- HTML ----------------------------------------------------------------------------------------------------------
def to_html(title, blocks):
    """The blocks as a page that needs no other file and no script."""
    return html_page(title, "\n".join(_html_block(*block) for block in blocks))


def _html_block(kind, content, *more):
    if kind == "title":
        return f"<h1>{html.escape(content)}</h1>"
    if kind == "heading":
        return f"<h2>{html.escape(content)}</h2>"
    if kind == "text":
        return f"<p>{html.escape(content)}</p>"
    if kind == "facts":
        pairs = (f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(text))}</dd>" for name, text in content.items())
        return f"<dl>{''.join(pairs)}</dl>"
    if kind == "list":
        return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in content)}</ul>"
    if kind == "figure":
        alt = html.escape(content)
        return f'<figure><div role="img" aria-label="{alt}">{more[0]}</div><figcaption>{alt}</figcaption></figure>'
    if kind == "pictures":
        return f'<div class="pictures">{"".join(map(_html_picture, content))}</div>'
    table = html_table(content)
    return f"<details><summary>{len(content)} rows</summary>{table}</details>" if kind == "long table" else table


def _html_picture(overlay):
    picture = figures.outlined(overlay["grey"], overlay["reference"], overlay["labels"], FLUIDS[overlay["fluid"]])
    caption = html.escape(f"{overlay['fluid']}, {overlay['rank']}: {overlay['title']}, Dice {overlay['dice']:.3f}")
    source = figures.data_uri(picture)
    return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
