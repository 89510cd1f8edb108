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


def places_of(path, colour):
    """Rows and columns of a picture's pixels of about this colour (red, green, blue), as shares of its size."""
    with Image.open(path) as image:
        picture = np.asarray(image.convert("RGB")).astype(int)
    near = np.argwhere(np.abs(picture - colour).max(axis=2) <= 8)
    return near / picture.shape[:2]


def test_progress_draws_each_panels_curves_from_their_first_epoch_to_the_last(tmp_path):
    """Loss falls in the left panel; the right one has its own curve, which rises, in the same first colour."""
    history = [{"epoch": 1, "loss": 1.0, "dice": 0.1}, {"epoch": 2, "loss": 0.5, "dice": 0.9}]
    plots.save_progress(tmp_path / "progress.png", history, {"loss": ["loss"], "Dice": ["dice"]})
    curve = places_of(tmp_path / "progress.png", (31, 119, 180))  # Matplotlib's first colour
    for left, falls in ((0.0, True), (0.5, False)):
        in_panel = curve[(curve[:, 1] >= left) & (curve[:, 1] < left + 0.5)]
        first, last = in_panel[in_panel[:, 1].argmin()], in_panel[in_panel[:, 1].argmax()]
        assert (last[0] > first[0]) == falls  # rows count downwards
        assert last[1] - first[1] > 0.3  # over most of the panel's width


def test_a_missing_value_interrupts_a_curve_and_validation_is_dashed(tmp_path):
    history = [{"epoch": epoch, "loss": 1.0, "val_loss": 2.0 if epoch != 3 else None} for epoch in range(1, 6)]
    plots.save_progress(tmp_path / "whole.png", history, {"loss": ["loss"]})
    curve = places_of(tmp_path / "whole.png", (31, 119, 180))
    lower, upper = (curve[half] for half in (curve[:, 0] > 0.7, curve[:, 0] < 0.3))  # losses 1 and 2
    widths = [len(np.unique(half[:, 1].round(3))) for half in (lower, upper)]
    assert 0 < widths[1] < 0.7 * widths[0]


def test_a_comparison_shows_the_scan_then_each_source_with_its_own_fluid(tmp_path):
    """The reader's IRF is at the upper left of the second picture, the model's PED at the lower right of the third."""
    grey, reader, model = np.full((3, 40, 60), [[[100]], [[0]], [[0]]], np.uint8)
    reader[:20, :30], model[20:, 30:] = 1, 3
    plots.save_comparison(tmp_path / "comparison.png", [("a case", grey, reader, model)])
    for label, third, (above, left) in ((1, 1, (True, True)), (3, 2, (False, False))):
        mixed = np.rint(0.55 * 100 + 0.45 * plots.CLASS_COLOURS[label].astype(float))
        rows, columns = places_of(tmp_path / "comparison.png", mixed).T
        assert len(rows) > 1000
        assert ((columns * 3).astype(int) == third).all()
        assert ((columns * 3 - third < 0.5) == left).all()
        assert ((rows < 0.48) == above).all()
