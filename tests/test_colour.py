"""Pictures in colour: those that are grey in truth, B-scans in a colour map, and photographs."""

import io

import cv2
import numpy as np
import pytest
import skimage.data
import tifffile
from foreign_data import coloured, picture, save
from importing import BY_COLOUR, COLOURS, PAIRED, read_case, run_import, write_pairs
from PIL import Image, ImageDraw

from utils.errors import InputError
from utils.volumes.colour import grey_of, is_coloured
from utils.volumes.scans import find_scans, read_scan, search_scans

SPACING_MM = (0.0117, 0.003872, 0.12)


def b_scan(rows=120, columns=160):
    """Layers with a little noise."""
    rng = np.random.default_rng(4)
    bands = np.repeat(np.array([20, 150, 90, 200, 60, 30]), rows // 6)[:, np.newaxis]
    return np.clip(bands + rng.normal(0, 6, (rows, columns)), 0, 255).astype(np.uint8)


def read(path):
    (files,) = find_scans([path])
    return read_scan(files, "Spectralis", SPACING_MM)


def of_jpeg(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return np.asarray(Image.open(file))


def coloured_by(name, grey):
    """A picture in a colour map: OpenCV's jet, or the edges of the colour cube from black to white."""
    if name == "jet":
        return cv2.applyColorMap(grey, cv2.COLORMAP_JET)[..., ::-1]
    corners = [(0, 0, 0), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0), (255, 255, 255)]
    channels = [np.interp(grey, np.linspace(0, 255, 7), channel) for channel in np.transpose(corners)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


# ---- Grey in truth -------------------------------------------------------------------------------------------------
def test_a_tint_is_grey(tmp_path):
    """(200, 190, 170) has the luminance 0.299 * 200 + 0.587 * 190 + 0.114 * 170 = 190.71."""
    pixels = np.full((20, 30, 3), (200, 190, 170), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    scan = read(tmp_path / "a.png")
    assert (scan.voxels == 191).all()
    assert scan.notes == ("a picture in colour, taken for grey",)
    cv2.imwrite(str(tmp_path / "wide.png"), pixels[..., ::-1].astype(np.uint16) * 257)
    assert (read(tmp_path / "wide.png").voxels == round(190.71 * 257)).all()
    grey, _ = grey_of(pixels / np.float32(255), "a")
    np.testing.assert_allclose(grey, 190.71 / 255, rtol=1e-5)


def test_channels_that_are_nearly_equal_are_kept_as_they_are(tmp_path):
    pixels = np.repeat(b_scan()[..., np.newaxis], 3, axis=2)
    pixels[..., 1:] = np.minimum(pixels[..., 1:], 247) + 8
    Image.fromarray(pixels).save(tmp_path / "a.png")
    scan = read(tmp_path / "a.png")
    np.testing.assert_array_equal(scan.voxels[0], pixels[..., 0])
    assert scan.notes == ()


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.bmp", "wide.png", "palette.png"])
def test_a_small_drawing_in_colour_is_white(tmp_path, name):
    image = Image.fromarray(b_scan()).convert("RGB")
    ImageDraw.Draw(image).rectangle((10, 80, 40, 110), outline=(255, 0, 255))
    if name == "wide.png":  # of 16 bits
        cv2.imwrite(str(tmp_path / name), np.asarray(image)[..., ::-1].astype(np.uint16) * 257)
    elif name == "palette.png":
        image.quantize(256, dither=Image.Dither.NONE).save(tmp_path / name)
    else:
        image.convert("RGB" if name == "a.bmp" else "RGBA").save(tmp_path / name)
    expected, drawn = b_scan(), np.zeros(b_scan().shape, bool)
    drawn[80:111, [10, 40]] = drawn[[80, 110], 10:41] = True
    expected[drawn] = 255
    scan = read(tmp_path / name)
    factor = 257 if name == "wide.png" else 1
    np.testing.assert_allclose(scan.voxels[0], expected * np.uint16(factor), atol=20 if name == "palette.png" else 1)
    assert scan.notes == ("a drawing in colour (120 pixels) on a grey picture, taken for white",)


# ---- Colour maps ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["jet", "of Topcon"])
@pytest.mark.parametrize(("options", "mean"), [(None, 3), ({"quality": 90}, 6), ({"quality": 75, "subsampling": 2}, 8)])
def test_a_colour_map_is_turned_back(tmp_path, name, options, mean):
    pixels = coloured_by(name, b_scan())
    pixels = pixels if options is None else of_jpeg(pixels, **options)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    scan = read(tmp_path / "a.png")
    assert np.abs(scan.voxels[0].astype(int) - b_scan()).mean() < mean
    assert scan.notes == (f"a picture in the colour map {name}, turned back into grey values",)


def test_a_stack_of_coloured_pages(tmp_path):
    pages = np.stack([coloured_by("jet", b_scan()), coloured_by("jet", b_scan()[::-1])])
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="rgb")
    scan = read(tmp_path / "a.tif")
    assert np.abs(scan.voxels.astype(int) - np.stack([b_scan(), b_scan()[::-1]])).mean() < 3


# ---- Photographs ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket", "fundus"])
def test_photographs_are_refused_with_what_to_do(tmp_path, name):
    if name == "fundus":
        light = np.random.default_rng(0).uniform(0.2, 1, (60, 80, 1))
        pixels = (np.array([220, 110, 50]) * light).astype(np.uint8)
    else:
        pixels = getattr(skimage.data, name)()[::4, ::4]
    assert is_coloured(pixels)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    with pytest.raises(InputError, match=r"photo\.png: a picture in colour, .* export it in grey"):
        read(tmp_path / "photo.png")


def test_a_tinted_picture_beside_grey_ones_is_one_of_them(tmp_path):
    Image.fromarray(b_scan()).save(tmp_path / "first.png")
    tinted = np.stack([b_scan(), np.minimum(b_scan(), 225) + 30, b_scan()], axis=-1)
    Image.fromarray(tinted).save(tmp_path / "second.png")
    Image.fromarray(coloured_by("jet", b_scan())).save(tmp_path / "map.png")
    (scan,), (left,) = search_scans([tmp_path])
    assert len(scan.paths) == 2
    assert left.path.endswith("map.png")
    assert left.why == "a picture in colour, and others beside it are grey; --each takes it by itself"


def test_masks_in_colour_are_no_scans(tmp_path):
    """Red and green lie on Topcon's colour map, and few pixels may be a drawing; but a B-scan has many values."""
    for size in (2, 30):
        mask = np.zeros((60, 80, 3), np.uint8)
        mask[:size, :size], mask[-size:, -size:] = (255, 0, 0), (0, 255, 0)
        with pytest.raises(InputError, match="a picture in colour"):
            grey_of(mask, "mask.png")


# ---- Imports -------------------------------------------------------------------------------------------------------
def test_imports_take_the_same_pictures(tmp_path, capsys):
    source = tmp_path / "source"
    write_pairs(source, coloured(COLOURS), names=("1-a", "2-b", "3-c"))
    jet, tinted = coloured_by("jet", picture(0)), np.stack([picture(1)] * 3, axis=-1)
    tinted[..., 1] = np.minimum(tinted[..., 1], 225) + 30
    save(source / "images" / "1-a.png", jet)
    save(source / "images" / "2-b.png", tinted)
    output = run_import(tmp_path, "masks", *PAIRED, *BY_COLOUR)
    voxels, _ = read_case(output, "1__1-a")
    assert np.abs(voxels[0].astype(int) - picture(0)).mean() < 3
    voxels, _ = read_case(output, "2__2-b")
    np.testing.assert_array_equal(voxels[0], grey_of(tinted, "2-b")[0])
    printed = capsys.readouterr().out
    assert "a picture in the colour map jet, turned back into grey values" in printed
    assert "a picture in colour, taken for grey" in printed
