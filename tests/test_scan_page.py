import html
import re

import numpy as np
import pandas as pd
import pytest
from browser import needs_browser, open_page

from utils.segmentation.page import label_runs, save_b_scan, surface_lines, write_index, write_scan_page
from utils.segmentation.surfaces import Surfaces

HOSTILE = '<script>alert("x")</script><!--data-->'
ROWS, COLUMNS, SLICES = 60, 80, 5


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of five B-scans: IRF in the third, SRF in the fourth, text that would be markup everywhere."""
    folder = tmp_path_factory.mktemp("page")
    labels = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
    labels[2, 10:20, 30:50] = 1
    labels[3, 30:36, 10:20] = 2
    images = [folder / f"{index}.jpg" for index in range(SLICES)]
    for index, path in enumerate(images):
        save_b_scan(path, np.full((ROWS, COLUMNS), 40 * index + 20, np.uint8))
    surfaces = Surfaces(*(np.full(COLUMNS, row) for row in (5, 45, 50)), is_retina=True)
    thickness_um = np.stack([(labels == label).sum(axis=1) * 4.0 for label in (1, 2, 3)])
    write_scan_page(
        folder / "report.html",
        title=HOSTILE,
        images=images,
        runs=[label_runs(slice_) for slice_ in labels],
        lines=[None, None, surface_lines(surfaces, 1), None, None],
        thickness_um=thickness_um,
        spacing_mm=(0.05, 0.004, 1.0),
        rows=ROWS,
        centre=(39.5, 2),
        centre_name="the scan's centre",
        warnings=[HOSTILE],
        tables=[("Measurements", pd.DataFrame({"fluid": [HOSTILE], "volume": [0.5]}))],
    )
    return (folder / "report.html").read_text("utf-8")


def test_runs_hold_the_labels():
    labels = np.array([[0, 1, 1, 2], [2, 2, 0, 1]], np.uint8)
    assert label_runs(labels) == [[1, 2, 4, 1], [3, 3], []]
    assert label_runs(np.full((2, 2), 3, np.uint8)) == [[], [], [0, 4]]


def test_surfaces_are_lines_on_the_scans_rows():
    """A scan whose rows are half as high: row 10 ends where its rows 20 and 21 are."""
    inner, outer, bruch = np.arange(9), np.full(9, 10), np.full(9, 20)
    assert surface_lines(Surfaces(inner, outer, bruch, True), 2) == [[0, 8, 16], [20, 20, 20], [40, 40, 40]]
    assert surface_lines(Surfaces(inner, outer, bruch, False), 2) is None


def test_text_stays_text_and_nothing_is_loaded_from_elsewhere(page):
    assert page.count("<script") == 2  # the page's own: data and code
    assert html.escape(HOSTILE) in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in page


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
        assert (seen["thickest"], seen["thickest_srf"]) == ("40 µm", "24 µm")
        assert sum(seen["brightest"][:3]) < 30 < 400 < sum(seen["brightest_irf"][:3])
        assert seen["names"] == 0  # every control has a name for screen readers


@needs_browser
def test_the_index_leads_to_every_page(tmp_path):
    table = pd.DataFrame({"scan": ["left", HOSTILE], "vendor": ["Cirrus", "Topcon"], "IRF_mm3": [0.5, 0.0]})
    write_index(tmp_path / "index.html", table, ["Cirrus_left/report.html", "a b/report.html"])
    content = (tmp_path / "index.html").read_text("utf-8")
    assert '<a href="Cirrus_left/report.html">left</a>' in content
    script = "inner => [...inner.document.links].map(link => [link.textContent, link.getAttribute('href')])"
    links, complaints = open_page(content, 390, tmp_path, script)
    assert complaints == []
    assert links == [["left", "Cirrus_left/report.html"], [HOSTILE, "a b/report.html"]]
