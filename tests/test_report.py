import html
import re

import numpy as np
import pandas as pd
import pytest
from browser import needs_browser, open_page

from utils.evaluation.detection import detection_table, reliability_table, roc_curve
from utils.evaluation.report import Evaluation, markdown_table, write_report
from utils.evaluation.scores import score_volume
from utils.evaluation.statistics import summarise_volumes

HOSTILE = '<script>alert("x")</script>&|'


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of four cases of two vendors, without PED, in a folder."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    rows, overlays = [], []
    for vendor, name in (("Cirrus", HOSTILE), ("Cirrus", "b"), ("Topcon", "c"), ("Topcon", "d")):
        reference = np.zeros((2, 40, 60), np.uint8)
        if name != "b":
            reference[:, 10:20, 5:30], reference[0, 25:30, 5:40] = 1, 2
        labels = np.where(rng.random(reference.shape) < 0.9, reference, 0).astype(np.uint8)
        for row in score_volume(labels, reference, (0.01, 0.004, 0.1)):
            names = {"vendor": vendor, "case": name, "patient": "P" if name in "cd" else name}
            detected = {"average_precision": np.nan, "threshold": 0.0, "threshold_score": "volume_mm3"}
            rows.append({**names, **row, **detected})
        grey = rng.integers(0, 255, (40, 60)).astype(np.uint8)
        pictured = {"grey": grey, "reference": reference[0], "labels": labels[0]}
        overlays.append({"fluid": "IRF", "rank": "best", "title": name, "dice": 0.5, **pictured})
    volumes = pd.DataFrame(rows)
    irf = volumes[volumes.fluid == "IRF"]
    evaluation = Evaluation(
        title="A report",
        facts={"model": HOSTILE},
        volumes=volumes,
        summary=summarise_volumes(volumes, 0),
        detection=detection_table(volumes, "volume_mm3", 0),
        curves={("all", "IRF"): roc_curve(irf.reference_mm3 > 0, irf.volume_mm3)},
        patches={"loss": 0.25},
        reliability=reliability_table(np.tile([200, 20, 30_000], (3, 10, 1))),
        overlays=overlays,
        failed=[f"{HOSTILE}: no prediction"],
        notes=["A note."],
    )
    write_report(folder, evaluation)
    return folder


def test_both_reports_hold_the_tables(report):
    page, text = ((report / name).read_text("utf-8") for name in ("report.html", "report.md"))
    assert sorted(path.name for path in report.iterdir()) == ["report.html", "report.md"]
    for content in (page, text):
        assert "Not scored: 1" in content
        assert "not comparable" in content
        assert "nnUNet_RASPP 2023" in content
        assert "A note." in content
        assert "<script" not in content
        assert html.escape(HOSTILE, quote=False).split("|")[0] in content.replace("&quot;", '"')
    assert page.count("<svg") == 4
    assert page.count("data:image/jpeg") == 4
    assert "3 of 4" in text  # cases with IRF
    assert "4 cases of 3 patients" in text
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>', "", page, flags=re.DOTALL)


def test_markdown_tables_keep_their_columns():
    table = pd.DataFrame({"name": ["a|b", "c\nd"], "value": [0.12345, np.nan]})
    assert markdown_table(table) == "| name | value |\n| --- | --- |\n| a\\|b | 0.123 |\n| c d | - |"


@needs_browser
def test_the_page_opens_without_complaint_on_a_desktop_and_a_phone(report, tmp_path):
    page = (report / "report.html").read_text("utf-8")
    for width in (1280, 390):
        assert open_page(page, width, tmp_path) == (None, [])
    broken = page.replace("</body>", '<script>undefined_name()</script><div style="width:3000px">wide</div></body>')
    _, (error, overflow) = open_page(broken, 390, tmp_path)
    assert "undefined_name" in error
    assert overflow == "overflow"
