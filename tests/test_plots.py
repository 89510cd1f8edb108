import numpy as np
from PIL import Image

from utils import plots


def test_every_class_has_its_own_colour():
    """Known mistake: every class painted where class 1 won."""
    labels = np.repeat(np.arange(4, dtype=np.uint8), 5)[np.newaxis].repeat(5, axis=0)
    picture = plots.overlay(np.full(labels.shape, 100, np.uint8), labels)
    colours = [tuple(picture[2, 2 + 5 * code].tolist()) for code in range(4)]
    assert colours[0] == (100, 100, 100)
    assert len(set(colours)) == 4
    for code in (1, 2, 3):  # inside: 55 % grey and 45 % colour, on the outline: the colour alone
        expected = np.rint(0.55 * 100 + 0.45 * plots.CLASS_COLOURS[code].astype(float))
        np.testing.assert_array_equal(colours[code], expected)
        np.testing.assert_array_equal(picture[2, 5 * code], plots.CLASS_COLOURS[code])


def test_fluid_that_the_scans_border_cuts_has_no_outline_there():
    labels = np.zeros((6, 6), np.uint8)
    labels[:4, :4] = 2
    on_outline = (plots.overlay(np.full((6, 6), 100, np.uint8), labels) == plots.CLASS_COLOURS[2]).all(axis=2)
    expected = np.zeros((6, 6), bool)
    expected[3, :4] = expected[:4, 3] = True
    np.testing.assert_array_equal(on_outline, expected)


def test_a_mask_png_stores_the_labels_and_shows_colours(tmp_path):
    labels = np.array([[0, 1], [2, 3]], np.uint8)
    plots.save_mask(tmp_path / "mask.png", labels)
    image = Image.open(tmp_path / "mask.png")
    np.testing.assert_array_equal(np.asarray(image), labels)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), plots.CLASS_COLOURS[labels])


def test_an_overlay_png_has_a_legend_below_the_b_scan(tmp_path):
    plots.save_overlay(tmp_path / "overlay.png", np.zeros((50, 300), np.uint8), np.zeros((50, 300), np.uint8))
    picture = np.asarray(Image.open(tmp_path / "overlay.png"))
    assert picture.shape[1:] == (300, 3)
    assert (picture[:50] == 0).all()
    shown = {tuple(colour) for colour in picture[50:].reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in plots.CLASS_COLOURS[1:].tolist()} <= shown


def test_curves_and_comparison_are_written(tmp_path):
    history = [{"epoch": 1, "loss": 1.0, "val_loss": 2.0}, {"epoch": 2, "loss": 0.5, "val_loss": 1.0}]
    plots.save_progress(tmp_path / "progress.png", history, {"loss": ["loss"], "again": ["loss"]})
    b_scan = np.zeros((40, 60), np.uint8)
    plots.save_comparison(tmp_path / "comparison.png", [("a case", b_scan, b_scan, b_scan)])
    for name in ("progress.png", "comparison.png"):
        assert np.asarray(Image.open(tmp_path / name)).std() > 1
