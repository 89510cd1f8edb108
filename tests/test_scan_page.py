import html
import re

import numpy as np
import pandas as pd
import pytest
from browser import needs_browser, open_page, printed_pages

from utils.labels import FLUIDS
from utils.segmentation.columns import write_columns, write_results
from utils.segmentation.decisions import Decisions
from utils.segmentation.etdrs import Sides
from utils.segmentation.findings import Findings
from utils.segmentation.index import write_index
from utils.segmentation.page import (
    label_runs,
    labels_of_runs,
    measurement_table,
    save_b_scan,
    surface_lines,
    write_scan_page,
)
from utils.segmentation.surfaces import Surfaces
from utils.segmentation.wording import RESEARCH, model_note, volume_in_words, without_options
from utils.volumes.content import Fundus
from utils.volumes.scans import Scan

HOSTILE = '<script>alert("x")</script><!--data-->'
ROWS, COLUMNS, SLICES = 60, 80, 5
SPACING_MM = (0.05, 0.004, 1.0)


def write_page(folder, slices=SLICES):
    """The page of five B-scans, or fewer: IRF in the third, SRF in the fourth, text that would be markup everywhere."""
    labels = np.zeros((slices, ROWS, COLUMNS), np.uint8)
    labels[2:3, 10:20, 30:50] = 1
    labels[3:4, 30:36, 10:20] = 2
    fundus = Fundus(np.full((40, 80), 90, np.uint8), tuple((0, 4 + 8 * index, 80, 4 + 8 * index) for index in range(5)))
    voxels = np.zeros((slices, ROWS, COLUMNS), np.uint8)
    scan = Scan(HOSTILE, "", "Cirrus", voxels, SPACING_MM, "OS", "2026-01-31", (), fundus=fundus)
    found = Findings(scan, SPACING_MM[1])
    images = [folder / f"{index}.jpg" for index in range(slices)]
    for index, path in enumerate(images):
        save_b_scan(path, np.full((ROWS, COLUMNS), 40 * index + 20, np.uint8))
        found.measurements.add(index, labels[index])
        found.runs.append(label_runs(labels[index]))
        surfaces = Surfaces(*(np.full(COLUMNS, row) for row in (5, 45, 50)), is_retina=index == 2)
        found.add_preprocessed(np.full((ROWS, COLUMNS), 9, np.uint8), np.ones((ROWS, COLUMNS), np.uint8), surfaces)
    centre = (39.5, 2)
    sure = {"in_words": "absent, likely", "confidence": 0.6, "calibrated": True, "taught": True, "presence": 0.4}
    fluids = [row | sure for row in found.measurements.values(centre)]
    for row, of_fluid in zip(fluids, found.measurements.subfields(centre, Sides()), strict=True):
        row["subfields"] = of_fluid
    record = {
        "facts": {"scan": HOSTILE, "vendor": "Cirrus", "patient": "P1", "b_scans": slices, "spacing_z_mm": 1.0}
        | {"circles_around": "the scan's centre: column 40.5, B-scan 3", "model": "m", "model_sha256": "0123456789"}
        | {"threshold": "0.5"},
        "fluids": fluids,
        **{"confidence": 0.6, "least_sure": "PED", "in_words": "likely", "look_at": min(3, slices)},
        "warnings": [HOSTILE],
        "notes": ["spacing x 0.0117 mm assumed, as is usual for Cirrus; say it with --spacing-mm"],
        "note": f"{RESEARCH} It was not taught PED.",
    }
    write_scan_page(folder / "report.html", scan, found, record, images, centre)
    return (folder / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("page"))


def test_runs_hold_the_labels():
    labels = np.array([[0, 1, 1, 2], [2, 2, 0, 1]], np.uint8)
    assert label_runs(labels) == [[1, 2, 4, 1], [3, 3], []]
    assert label_runs(np.full((2, 2), 3, np.uint8)) == [[], [], [0, 4]]
    np.testing.assert_array_equal(labels_of_runs(label_runs(labels), labels.shape), labels)


def test_surfaces_are_lines_on_the_scans_rows():
    """A scan whose rows are half as high: row 10 ends where its rows 20 and 21 are."""
    inner, outer, bruch = np.arange(9), np.full(9, 10), np.full(9, 20)
    assert surface_lines(Surfaces(inner, outer, bruch, True), 2) == [[0, 8, 16], [20, 20, 20], [40, 40, 40]]
    assert surface_lines(Surfaces(inner, outer, bruch, False), 2) is None


def test_text_stays_text_and_nothing_is_loaded_from_elsewhere(page):
    assert page.count("<script") == 2  # the page's own: data and code
    assert html.escape(HOSTILE) in page
    assert not re.search(r'src="(?!data:)', page)
    links = re.findall(r'href="(?!data:)([^"]*)', page)
    assert [link.rpartition("/")[2] for link in links] == ["correct.md", "index.html"]
    assert "http" not in page


def test_the_page_speaks_to_doctors(page):
    """What it is not for, of what it is how sure; no option of a command, and no patient."""
    assert f'<p class="research">{RESEARCH} It was not taught PED.</p>' in page
    assert "How sure is the model: likely; least sure of PED: absent, likely (0.60). Look first at B-scan 3." in page
    assert "spacing x 0.0117 mm assumed, as is usual for Cirrus<" in page
    assert "left eye (OS) · 2026-01-31 · 5 B-scans" in page
    assert not re.search(r"--[a-z]+-mm", page)
    assert "P1" not in page


def test_a_single_b_scan_has_areas_and_no_map(tmp_path):
    page = write_page(tmp_path, 1)
    assert '<body class="single">' in page
    assert "<th>area</th>" in page
    assert "<td>0.000 mm²</td>" in page
    assert "mm³" not in page


DRIVE = """async inner => {
  const get = id => inner.document.getElementById(id), pause = () => new Promise(done => setTimeout(done, 60));
  const seen = {}, pixel = (id, x, y) => [...get(id).getContext("2d").getImageData(x, y, 1, 1).data];
  const press = key => inner.document.body.dispatchEvent(new inner.KeyboardEvent("keydown", { key, bubbles: true }));
  const change = (id, name, value) => {
    get(id)[name] = value;
    get(id).dispatchEvent(new inner.Event("input", { bubbles: true }));
  };
  await pause();
  seen.first = get("said").textContent;
  seen.grey = pixel("image", 5, 5)[0];
  seen.fill = pixel("overlay", 40, 15);
  seen.edges = [[30, 15], [49, 15], [40, 10], [40, 19]].map(([x, y]) => pixel("overlay", x, y));
  seen.outside = pixel("overlay", 29, 10);
  press("s");
  seen.surfaces = [5, 45].map(row => pixel("overlay", 2, row)[3] > 0);
  press("s");
  seen.no_surfaces = pixel("overlay", 2, 5);
  change("opacity", "value", 80);
  seen.denser = pixel("overlay", 40, 15);
  press("f");
  seen.outlined = pixel("overlay", 40, 15);
  press("f");
  change("fluid0", "checked", false);
  seen.without_irf = pixel("overlay", 30, 10);
  change("fluid0", "checked", true);
  press("o");
  seen.hidden = pixel("overlay", 30, 10);
  press("o");
  press("ArrowRight");
  await pause();
  seen.next = get("said").textContent;
  seen.next_grey = pixel("image", 5, 5)[0];
  seen.srf = pixel("overlay", 10, 30);
  change("slider", "value", 0);
  seen.slid = get("said").textContent;
  press("ArrowLeft");
  seen.stays = get("said").textContent;
  press("End");
  seen.end = get("said").textContent;
  get("previous").click();
  seen.button = get("said").textContent;
  inner.location.hash = "1";
  await pause();
  seen.asked = get("said").textContent;
  const box = get("map").getBoundingClientRect();
  const place = { clientX: box.left + 9, clientY: box.top + box.height * 0.3 };
  get("map").dispatchEvent(new inner.MouseEvent("click", place));
  seen.clicked = get("said").textContent;
  seen.line = pixel("marks", 3, Math.floor(get("marks").height * 0.3));
  seen.fundus = ["x1", "y1", "x2", "y2"].map(name => Number(get("fundus-line").getAttribute(name)));
  seen.fundus_shown = [get("fundus-field").hidden, get("fundus-image").naturalWidth];
  seen.thickest = get("thickest").textContent;
  change("map1", "checked", true);
  seen.thickest_srf = get("thickest").textContent;
  seen.brightest = pixel("thickness", 40, 2);
  change("map0", "checked", true);
  seen.brightest_irf = pixel("thickness", 40, 2);
  seen.names = [...inner.document.querySelectorAll("input, button, canvas")].filter(element =>
    element.tagName !== "CANVAS" && !element.labels?.length && !element.getAttribute("aria-label")).length;
  return seen;
}"""


@needs_browser
def test_the_page_is_driven_in_a_browser(page, tmp_path):
    for width in (1280, 390):
        seen, complaints = open_page(page, width, tmp_path, DRIVE)
        assert complaints == []
        assert seen["first"] == "B-scan 3 of 5: IRF 0.040 mm², SRF 0.000 mm², PED 0.000 mm²"
        assert abs(seen["grey"] - 100) <= 2
        assert seen["fill"][3] == pytest.approx(0.45 * 255, abs=1)
        assert seen["edges"] == [[230, 159, 0, 255]] * 4  # left, right, top, bottom
        assert seen["outside"][3] == seen["outlined"][3] == seen["without_irf"][3] == seen["hidden"][3] == 0
        assert seen["surfaces"] == [True, True]
        assert seen["no_surfaces"][3] == 0
        assert seen["denser"][3] == pytest.approx(0.8 * 255, abs=1)
        assert seen["next"].startswith("B-scan 4 of 5: IRF 0.000 mm², SRF 0.012 mm²")
        assert abs(seen["next_grey"] - 140) <= 2
        assert seen["srf"] == [86, 180, 233, 255]
        assert seen["slid"][:8] == seen["stays"][:8] == "B-scan 1"
        assert (seen["end"][:8], seen["button"][:8], seen["clicked"][:8]) == ("B-scan 5", "B-scan 4", "B-scan 2")
        assert seen["asked"].startswith("B-scan 1 of 5")  # as the index links to a B-scan
        assert seen["line"][:3] == [86, 180, 233]
        assert seen["fundus"] == [0, 0.3, 1, 0.3]  # row 12 of 40
        assert seen["fundus_shown"] == [False, 80]
        assert (seen["thickest"], seen["thickest_srf"]) == ("40 µm", "24 µm")
        assert sum(seen["brightest"][:3]) < 30 < 400 < sum(seen["brightest_irf"][:3])
        assert seen["names"] == 0  # every control has a name for screen readers


@needs_browser
def test_a_page_is_printed_on_one_sheet(tmp_path):
    """The page of a scan; and one without the rules for print, to know that more sheets are counted."""
    page = write_page(tmp_path)
    assert printed_pages(page, tmp_path) == 1
    assert printed_pages(page.replace("@media print", "@media speech"), tmp_path) > 1


# ---- The work list -------------------------------------------------------------------------------------------------
def row_of(scan, irf_mm3, confidence, warnings="", irf_mm2=None, date=None):
    """A row of a `summary_table`."""
    row = {"scan": scan, "vendor": "Cirrus", "laterality": None, "scan_date": date, "b_scans": 1 if irf_mm2 else 9}
    for fluid in FLUIDS:
        row |= {f"{fluid}_mm3": irf_mm3, f"{fluid}_mm2": irf_mm2, f"{fluid}_confidence": confidence}
        row |= {f"{fluid}_in_words": "outline likely", f"{fluid}_calibrated": fluid != "PED"}
    row |= {"confidence": confidence, "least_sure": "SRF", "in_words": "likely", "look_at": 4, "warnings": warnings}
    row |= {"model": "m", "model_sha256": "0123456789", "threshold": "0.5", "notes": "assumed", "note": RESEARCH}
    return row


LISTED = """inner => {
  const names = () => [...inner.document.querySelectorAll(".list td:nth-child(2) a")].map(link => link.textContent);
  const press = number => inner.document.querySelectorAll(".list th button")[number].click();
  const seen = { first: names(), links: [...inner.document.links].map(link => link.getAttribute("href")) };
  press(2);
  seen.by_irf = names();
  press(2);
  seen.down = names();
  seen.said = [...inner.document.querySelectorAll(".list th[aria-sort]")].map(head => head.getAttribute("aria-sort"));
  press(0);
  seen.by_name = names();
  press(5);
  seen.again = names();
  const list = inner.document.querySelector(".scroll");
  seen.hidden = list.scrollWidth - list.clientWidth;
  return seen;
}"""


@needs_browser
def test_the_index_is_a_work_list(tmp_path):
    """Doubtful scans first, whatever the numbers; sorting by numbers and names; all of it within 800 pixels."""
    long = "the model has not been trained on Cirrus scans, but on those of Spectralis"
    rows = [row_of("eye 9", 0.05, 0.6), row_of("eye 10", 0.4, 0.9, long), row_of(HOSTILE, np.nan, 0.5, irf_mm2=0.25)]
    failed = [("torn", "torn.png: vendor unknown: neither file nor folders name it; say it with --vendor, one of A, B")]
    (tmp_path / "summary.csv").touch()
    write_index(tmp_path, pd.DataFrame(rows), ["Two models."], [("P1, OD", "follow_up/001_P1_OD.html")], failed)
    content = (tmp_path / "index.html").read_text("utf-8")
    assert RESEARCH in content
    assert "Model: m, 01234567. Decisions: 0.5." in content
    assert "neither file nor folders name it</td>" in content
    assert "<strong>likely</strong><small>least sure of SRF: outline likely (0.90)</small>" in content
    assert '<span class="nowrap">0.250 mm²</span><small>outline likely (0.50, not calibrated)</small>' in content
    for width in (1400, 800):
        seen, complaints = open_page(content, width, tmp_path, LISTED)
        assert complaints == []
        assert seen["first"] == seen["again"] == ["eye 10", HOSTILE, "eye 9"]
        assert seen["by_irf"] == ["eye 9", HOSTILE, "eye 10"]
        assert seen["down"] == seen["by_irf"][::-1]
        assert seen["said"] == [*2 * ["none"], "descending", *3 * ["none"]]
        assert seen["by_name"] == [HOSTILE, "eye 9", "eye 10"]
        assert {"summary.csv", "#failed", "Cirrus_eye%2010/report.html#4", "follow_up/001_P1_OD.html"} < {
            *seen["links"]
        }
        assert seen["hidden"] == 0


def test_results_of_earlier_versions_are_listed(tmp_path):
    missing = {key: None for key in row_of("a", 0.5, 0.5) if key.endswith(("in_words", "confidence", "least_sure"))}
    write_index(tmp_path, pd.DataFrame([row_of("a", 0.5, 0.5) | missing, row_of("b", 0.5, 0.5)]))
    assert "segment the scan again" in (tmp_path / "index.html").read_text("utf-8")


# ---- Words ---------------------------------------------------------------------------------------------------------
def test_advice_on_options_is_for_those_who_type_them():
    assert (
        without_options("5 pictures taken as one scan; --each takes each by itself") == "5 pictures taken as one scan"
    )
    assert without_options("a; if whole, say --spacing-mm 1 2 3") == "a"
    assert without_options("no retina; is this OCT?") == "no retina; is this OCT?"


def test_a_model_says_what_it_never_saw_or_was_not_taught():
    """SRF's line was not calibrated; PED was not taught."""
    lines = {"presence_offsets": (0.5, 0.0, 0.0), "presence_slopes": (1.0, 1.0, 1.0)}
    note = model_note({"training_appearance": {"Spectralis": {}}, "taught": ["IRF", "SRF"]}, Decisions(0.5, **lines))
    assert note == (
        f"{RESEARCH} The model has seen scans of Spectralis, never of Cirrus, Topcon or another device. It was not "
        "taught PED, and never finds it. How sure it is of SRF says little: no validation scan held it."
    )
    assert model_note({}, Decisions(0.5)) == f"{RESEARCH} Which devices' scans the model has seen is not recorded."


def test_what_is_there_is_never_nothing():
    assert [volume_in_words(value) for value in (0, 0.0004, 0.0006)] == ["0.000 mm³", "<0.001 mm³", "0.001 mm³"]
    assert volume_in_words(None, 0.25) == "0.250 mm²"


def test_the_table_says_what_is_not_taught_or_calibrated():
    row = {"area_mm2": 0.1, "thickness_um": 50.0, "lesions": 1, "in_words": "present, sure", "confidence": 0.9}
    rows = [{"fluid": fluid, **row, "taught": fluid != "IRF", "calibrated": fluid != "PED"} for fluid in FLUIDS]
    table = measurement_table(rows).set_index("fluid")
    assert table.loc["IRF"].tolist() == ["not taught", "-", "-", "-"]
    assert table["how sure"].tolist()[1:] == ["present, sure (0.90)", "present, sure (0.90, not calibrated)"]


def test_numbers_have_the_decimals_that_mean_something(tmp_path):
    table = pd.DataFrame({"scan": ["a", "b"], "b_scans": [25, np.nan], "IRF_mm3": [0.123456, np.nan]})
    write_results(tmp_path / "a.csv", table.assign(SRF_inner_nasal_mm3=None, IRF_confidence=[0.98765, 1]))
    assert (tmp_path / "a.csv").read_text() == (
        "scan,b_scans,IRF_mm3,SRF_inner_nasal_mm3,IRF_confidence\na,25,0.1235,,0.988\nb,,,,1.0\n"
    )
    write_columns(tmp_path / "columns.csv", ["seconds", "SRF_inner_nasal_mm3"])
    assert pd.read_csv(tmp_path / "columns.csv").to_numpy().tolist() == [
        ["seconds", "s", "time that the scan took"],
        ["SRF_inner_nasal_mm3", "mm3", "volume of SRF in the ETDRS subfield inner nasal"],
    ]
    with pytest.raises(KeyError, match="unheard_of"):
        write_results(tmp_path / "a.csv", table.assign(unheard_of=1))
