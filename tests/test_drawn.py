"""Lines, arrows, scale bars and letters that were drawn into B-scans; bright tissue that was not."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.preparation.cases import find_cases
from utils.preparation.drawn import drawn_pixels
from utils.preparation.invalid import find_invalid
from utils.preparation.preprocessing import grey_value_histogram, preprocess_volume, to_8_bit
from utils.volumes.mhd import read_volume

REAL_SCANS = [Path(__file__).resolve().parents[2] / "shared" / "data" / name for name in ("real_oct", "real_oct_whole")]
ROWS, COLUMNS = 300, 400


def b_scan(seed=0):
    """Dark vitreous, a grey retina whose lower border is bright, partly saturated and thin, dark choroid."""
    rng = np.random.default_rng(seed)
    row, column = np.ogrid[:ROWS, :COLUMNS]
    top = 110 + 10 * np.sin(column / 60)
    bright = 170 + 8 * np.sin(column / 25)
    grey = np.where(row < top, 20.0, np.where(row < bright, 90.0, 50.0))
    grey = np.where((row >= bright) & (row < bright + 5), 220.0, grey)
    speckle = cv2.GaussianBlur(rng.gamma(4, 1 / 4, (ROWS, COLUMNS)), (0, 0), 0.8)
    return np.clip(grey * speckle, 0, 255).astype(np.uint8)


def jpeg(image, quality):
    """`image` after JPEG compression; None leaves it as it is."""
    if quality is None:
        return image
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


def rectangle(canvas, thickness):
    cv2.rectangle(canvas, (40, 210), (130, 280), 255, thickness)


def horizontal(canvas, thickness):
    cv2.line(canvas, (50, 40), (150, 40), 255, thickness)


def vertical(canvas, thickness):
    cv2.line(canvas, (200, 10), (200, 290), 255, thickness)  # across vitreous, retina and choroid


def oblique(canvas, thickness):
    cv2.line(canvas, (60, 20), (180, 75), 255, thickness)


def arrow(canvas, thickness):
    cv2.arrowedLine(canvas, (300, 280), (340, 200), 255, thickness, tipLength=0.1)


def scale_bar(canvas, thickness):
    cv2.line(canvas, (40, 280), (120, 280), 255, thickness)
    for end in (40, 120):
        cv2.line(canvas, (end, 274), (end, 286), 255, thickness)
    text(canvas, "200", (60, 265))


def date(canvas, thickness):
    text(canvas, "24-03-2019", (20, 60), 0.5 + 0.2 * thickness)


def text(canvas, letters, place, scale=0.6):
    """Letter by letter, so that none touches the next, on the base line that starts at `place`."""
    for letter in letters:
        cv2.putText(canvas, letter, place, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1)
        place = place[0] + cv2.getTextSize(letter, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0] + 3, place[1]


DRAWINGS = [rectangle, horizontal, vertical, oblique, arrow, scale_bar, date]


def drawn_into(image, draw, thickness, grey=255, quality=None):
    """`image` with a drawing, and where that is."""
    canvas = np.zeros_like(image)
    draw(canvas, thickness)
    return jpeg(np.where(canvas > 0, grey, image).astype(np.uint8), quality), canvas > 0


def found(image):
    return drawn_pixels(image, np.zeros(image.shape, bool))


@pytest.mark.parametrize("quality", [None, 90, 75])
@pytest.mark.parametrize("thickness", [1, 2, 3])
@pytest.mark.parametrize("draw", DRAWINGS)
def test_drawings_are_found_and_nothing_far_from_them(draw, thickness, quality):
    image, drawing = drawn_into(b_scan(), draw, thickness, quality=quality)
    mask = found(image)
    assert mask[drawing].mean() > 0.8
    near = cv2.dilate(drawing.astype(np.uint8), np.ones((31, 31), np.uint8)) > 0
    assert not mask[~near].any()


def test_ticks_of_a_scale_bar_are_found():
    image, _ = drawn_into(b_scan(), scale_bar, 1)
    assert found(image)[274:287, [40, 120]].all()


@pytest.mark.parametrize("grey", [200, 230])
@pytest.mark.parametrize("draw", [rectangle, horizontal, oblique])
def test_light_grey_drawings_are_found(draw, grey):
    image, drawing = drawn_into(b_scan(), draw, 2, grey)
    assert found(image)[drawing].mean() > 0.8


@pytest.mark.parametrize("quality", [None, 90])
def test_what_a_rectangle_encloses_stays_valid_but_for_a_fringe(quality):
    image, drawing = drawn_into(b_scan(), rectangle, 2, quality=quality)
    mask = found(image)
    assert mask[drawing].all()
    assert mask[213:278, 42].all()  # the first pixel inside
    assert not mask[216:275, 46:125].any()


def test_a_letter_beside_a_line_is_found_and_one_alone_is_not():
    def letter(canvas, _):
        cv2.putText(canvas, "N", (140, 250), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1)

    def both(canvas, thickness):
        letter(canvas, thickness)
        rectangle(canvas, thickness)

    _, of_letter = drawn_into(b_scan(), letter, 1)
    image, _ = drawn_into(b_scan(), both, 2)
    assert found(image)[of_letter].all()
    assert not found(drawn_into(b_scan(), letter, 1)[0]).any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("quality", [None, 75])
def test_tissue_is_valid(seed, quality):
    assert not found(jpeg(b_scan(seed), quality)).any()


def test_bright_foci_curved_strands_and_wide_columns_are_valid():
    image = b_scan()
    rng = np.random.default_rng(3)
    for row, column in zip(rng.integers(120, 165, 20), rng.integers(20, 380, 20), strict=True):
        cv2.circle(image, (int(column), int(row)), 2, 255, -1)
    column = np.arange(COLUMNS)
    image[(60 + 12 * np.sin(column / 12)).astype(int), column] = 255
    image[20:105, 200:210] = 255
    assert not found(image).any()


def test_lines_at_padding_are_not_sought():
    image, _ = drawn_into(b_scan(), horizontal, 2)
    padding = np.zeros(image.shape, bool)
    padding[:38] = True
    assert not drawn_pixels(image, padding).any()


def test_overexposed_pictures_are_not_taken_for_drawings():
    """A grating of lines over the whole picture."""
    image = np.full((200, 200), 30, np.uint8)
    image[10:190:12, 10:190] = 255
    assert not found(image).any()
    image[:, 30:] = 30
    image[10, 10:190] = 255
    assert found(image)[10, 10:190].all()


def test_drawings_are_invalid_and_leave_histogram_and_volume():
    image, drawing = drawn_into(b_scan(), rectangle, 4)
    volume = np.stack([b_scan(1), image])
    invalid = find_invalid(volume)
    assert invalid[1][drawing].all()
    assert not invalid[0].any()
    assert grey_value_histogram(volume, invalid).sum() == (~invalid).sum()
    spacing_mm = (0.011, 0.003872, 0.12)
    for voxels in (volume, volume.astype(np.uint16) * 257):
        same_rows = preprocess_volume(voxels, spacing_mm, "Spectralis", axial_spacing_mm=0.003872)
        np.testing.assert_array_equal(same_rows == 0, invalid)
    twice_as_many = preprocess_volume(volume, spacing_mm, "Spectralis", axial_spacing_mm=0.001936)
    assert (twice_as_many[1][np.repeat(drawing, 2, axis=0)] == 0).mean() > 0.99
    assert (twice_as_many[1][440:540, 50:120] > 0).all()


@pytest.mark.skipif(not all(map(Path.is_dir, REAL_SCANS)), reason="real scans are not beside the project")
def test_nothing_is_drawn_into_real_scans():
    for root in REAL_SCANS:
        for case in find_cases(root):
            for slice_ in to_8_bit(read_volume(case.oct_path)[0]):
                assert not found(np.ascontiguousarray(slice_)).any(), case.name
