"""Pictures and TIFF stacks as their writers stored them; PIL, OpenCV and tifffile are the judges."""

import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from utils.errors import InputError
from utils.importing.mask_files import read_mask
from utils.volumes.pictures import fundus_columns
from utils.volumes.scans import find_scans, read_scan

SPACING_MM = (0.0117, 0.003872, 0.12)
VOXELS = np.random.default_rng(3).integers(0, 256, (5, 32, 48)).astype(np.uint8)
WIDE = VOXELS.astype(np.uint16) * 257


def read(path):
    (files,) = find_scans([path])
    return read_scan(files, "Spectralis", SPACING_MM)


# ---- TIFF stacks ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("voxels", [VOXELS, WIDE])
@pytest.mark.parametrize(
    "options",
    [
        {"imagej": True},
        {"imagej": True, "truncate": True},
        {"photometric": "minisblack", "truncate": True},
        {"photometric": "minisblack", "volumetric": True, "tile": (1, 16, 16)},
        {"photometric": "minisblack", "volumetric": True, "tile": (16, 16, 16)},
        {"photometric": "minisblack", "bigtiff": True, "compression": "zlib", "predictor": True},
        {"photometric": "minisblack", "ome": True},
        {"photometric": "minisblack", "byteorder": ">"},
    ],
)
def test_a_stack_is_read_whole_however_it_is_stored(tmp_path, voxels, options):
    tifffile.imwrite(tmp_path / "stack.tif", voxels, **options)
    for path in (tmp_path, tmp_path / "stack.tif"):
        scan = read(path)
        np.testing.assert_array_equal(scan.voxels, voxels)
        assert (scan.name, scan.notes) == ("stack", ())


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate"])
def test_pages_that_pillow_compresses(tmp_path, compression):
    pages = [Image.fromarray(page) for page in VOXELS]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:], compression=compression)
    np.testing.assert_array_equal(read(tmp_path).voxels, VOXELS)


def test_luminance_and_colour_differences(tmp_path):
    luminance = np.stack([VOXELS[0], *[np.full_like(VOXELS[0], 128)] * 2], axis=-1)
    tifffile.imwrite(tmp_path / "a.tif", luminance, photometric="ycbcr")
    np.testing.assert_allclose(read(tmp_path).voxels[0], VOXELS[0], atol=2)


def test_a_compression_that_nothing_here_reads_names_the_package(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, VOXELS, photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for page in tiff.pages:
            page.tags["Compression"].overwrite(50002)  # JPEG XL
    with pytest.raises(InputError, match=r"a\.tif: cannot be read .*pip install imagecodecs"):
        read(path)


def test_pages_that_lead_back_to_an_earlier_one_have_an_end(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, VOXELS[:2], photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as tiff:
        tags, first = len(tiff.pages[1].tags), tiff.pages[0].offset
        end = tiff.pages[1].offset + 2 + 12 * tags
    content = bytearray(path.read_bytes())
    content[end : end + 4] = first.to_bytes(4, "little")
    path.write_bytes(content)
    np.testing.assert_array_equal(read(path).voxels[:2], VOXELS[:2])


def test_thumbnails_and_second_channels_of_a_stack_are_left_out_with_a_note(tmp_path):
    with tifffile.TiffWriter(tmp_path / "small.tif") as tiff:
        tiff.write(VOXELS, photometric="minisblack")
        tiff.write(VOXELS[0, ::4, ::4], photometric="minisblack", subfiletype=1)
    scan = read(tmp_path / "small.tif")
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    assert "smaller copies" in scan.notes[0]
    channels = np.stack([VOXELS, VOXELS[::-1]], axis=1)
    tifffile.imwrite(tmp_path / "channels.tif", channels, imagej=True, metadata={"axes": "ZCYX"})
    scan = read(tmp_path / "channels.tif")
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    assert "the first of 2 channels" in scan.notes[0]


@pytest.mark.parametrize(
    "options",
    [
        {"imagej": True, "truncate": True},
        {"photometric": "minisblack", "truncate": True},
        {"photometric": "minisblack", "volumetric": True, "tile": (1, 16, 16)},
        {"photometric": "minisblack"},
        {"photometric": "minisblack", "compression": "zlib"},
    ],
)
def test_a_stack_that_is_cut_off_is_refused(tmp_path, options):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, VOXELS, **options)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(InputError, match=r"stack\.tif: "):
        read(path)


# ---- Grey values ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("voxels", [VOXELS, WIDE])
def test_white_is_zero(tmp_path, voxels):
    tifffile.imwrite(tmp_path / "white.tif", voxels, photometric="miniswhite")
    np.testing.assert_array_equal(read(tmp_path).voxels, np.iinfo(voxels.dtype).max - voxels)


def test_white_is_zero_in_twelve_of_sixteen_bits(tmp_path):
    tifffile.imwrite(tmp_path / "white.tif", WIDE >> 4, photometric="miniswhite")
    expected = 65535 - (WIDE.astype(np.uint32) >> 4) * 65535 // 4095
    np.testing.assert_array_equal(read(tmp_path).voxels, expected)


def test_white_is_zero_with_lzw(tmp_path):
    tag = {262: 0}  # PhotometricInterpretation
    Image.fromarray(VOXELS[0]).save(tmp_path / "white.tif", compression="tiff_lzw", tiffinfo=tag)
    with Image.open(tmp_path / "white.tif") as image:
        np.testing.assert_array_equal(read(tmp_path).voxels[0], np.asarray(image.convert("L")))


def test_palettes_inks_and_opacity(tmp_path):
    page = VOXELS[0]
    palette = np.repeat(255 - np.arange(256, dtype=np.uint8), 3)
    image = Image.fromarray(page, "L").convert("P")
    image.putpalette(palette.tobytes())
    for name in ("a.png", "a.bmp", "a.tif"):
        image.save(tmp_path / name)
        np.testing.assert_array_equal(read(tmp_path / name).voxels[0], 255 - page)
    inks = np.stack([np.zeros_like(page)] * 3 + [255 - page], axis=-1)
    Image.fromarray(inks, "CMYK").save(tmp_path / "inks.tif")
    np.testing.assert_array_equal(read(tmp_path / "inks.tif").voxels[0], page)
    Image.fromarray(inks, "CMYK").save(tmp_path / "inks.jpg", quality=100)
    assert np.abs(read(tmp_path / "inks.jpg").voxels[0].astype(int) - page).max() <= 8
    for mode in ("LA", "RGBA"):
        Image.fromarray(page).convert(mode).save(tmp_path / f"{mode}.png")
        np.testing.assert_array_equal(read(tmp_path / f"{mode}.png").voxels[0], page)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_of_a_png_are_kept(tmp_path, channels):
    pixels = np.stack([WIDE[0] // 3] * channels, axis=-1).squeeze()  # not 257 times something
    cv2.imwrite(str(tmp_path / "wide.png"), pixels)
    expected = pixels if channels == 1 else pixels[..., 0]
    np.testing.assert_array_equal(read(tmp_path).voxels[0], expected)


def test_the_damaged_picture_is_named(tmp_path):
    for index, page in enumerate(VOXELS[:3]):
        Image.fromarray(page).save(tmp_path / f"b{index + 8}.png")
    (tmp_path / "b10.png").write_bytes((tmp_path / "b10.png").read_bytes()[:-400])
    with pytest.raises(InputError, match=r"b10\.png: cannot be read"):
        read(tmp_path)


# ---- Orientation ---------------------------------------------------------------------------------------------------
def save_turned(path, stored, orientation):
    """Write pixels (rows, columns) with an orientation, in the way that the end of the file's name says."""
    image, exif = Image.fromarray(stored), Image.Exif()
    exif[0x0112] = orientation
    if path.name == "wide.png":  # of three channels, which Pillow does not write
        _, content = cv2.imencode(".png", np.stack([stored.astype(np.uint16) * 257] * 3, axis=-1))
        chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        length, check = (len(chunk) - 4).to_bytes(4, "big"), zlib.crc32(chunk).to_bytes(4, "big")
        path.write_bytes(content[:33].tobytes() + length + chunk + check + content[33:].tobytes())
    elif path.name == "plain.tif":
        tifffile.imwrite(path, stored, extratags=[(0x0112, "H", 1, orientation, True)])
    elif path.name == "jpeg.tif":
        image.convert("YCbCr").save(path, compression="jpeg", quality=100, tiffinfo={0x0112: orientation or 1})
    else:
        image.save(path, exif=exif, **({"quality": 100} if path.suffix == ".jpg" else {}))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "wide.png", "plain.tif", "jpeg.tif"])
@pytest.mark.parametrize("orientation", range(9))
def test_pictures_are_turned_as_viewers_show_them(tmp_path, name, orientation):
    """The first row and the first column are stored as what the orientation says (TIFF 6.0, page 36)."""
    shown = np.repeat(np.repeat(VOXELS[0, :8, :12], 8, axis=0), 8, axis=1)  # blocks, which JPEG keeps
    stored = [
        shown,  # 0 is none
        shown,
        shown[:, ::-1],
        shown[::-1, ::-1],
        shown[::-1],
        shown.T,
        np.rot90(shown),
        shown[::-1, ::-1].T,
        np.rot90(shown, -1),
    ][orientation]
    save_turned(tmp_path / name, np.ascontiguousarray(stored), orientation)
    scan = read(tmp_path / name)
    factor = 257 if name == "wide.png" else 1
    np.testing.assert_allclose(scan.voxels[0], shown * np.uint16(factor), atol=2)
    assert ("turned or mirrored" in " ".join(scan.notes)) == (orientation > 1)
    if name == "plain.tif" and orientation > 4:
        with pytest.raises(InputError, match=r"plain\.tif: lies on its side by TIFF's orientation, .*; save it again"):
            read_mask(tmp_path / name, tmp_path / name, 3)
        return
    values = read_mask(tmp_path / name, tmp_path / name, 3)[0][0, ..., 0]
    np.testing.assert_allclose(values, shown, atol=2)


# ---- Screen exports ------------------------------------------------------------------------------------------------
def b_scan(rows=300, columns=400, seed=0):
    """A dark picture with a bright band, which is what a B-scan has in common with others."""
    rng = np.random.default_rng(seed)
    depth = np.arange(rows)[:, np.newaxis] / rows - 0.45 - 0.05 * np.cos(np.arange(columns) / columns * 5)
    grey = np.where(np.abs(depth) < 0.15, 150, np.where(depth > 0, 60, 15))
    return np.clip(grey * rng.gamma(9, 1 / 9, grey.shape), 0, 255).astype(np.uint8)


def fundus(size=300, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    vessels = sum(np.exp(-(((x * np.cos(a) + y * np.sin(a) - o) / 0.01) ** 2)) for a, o in rng.uniform(-0.4, 3, (8, 2)))
    return np.clip(120 - 80 * (x**2 + y**2) - 40 * vessels + rng.normal(0, 8, x.shape), 0, 255).astype(np.uint8)


def test_a_fundus_image_beside_the_b_scan_is_cut_off(tmp_path):
    export = np.concatenate([fundus(), b_scan()], axis=1)
    Image.fromarray(export).save(tmp_path / "export.png")
    scan = read(tmp_path)
    np.testing.assert_array_equal(scan.voxels[0], b_scan())
    assert "fundus image in the left 300 of 700 columns" in scan.notes[0]


def test_nothing_is_cut_off_a_b_scan(tmp_path):
    ordinary = b_scan(columns=700)
    beside_wedge = ordinary.copy()
    beside_wedge[:, :300] = np.maximum(beside_wedge[:, :300], 0)
    beside_wedge[:100, :300] = 255  # white where a tilted scan was not measured
    shadow = ordinary.copy()
    shadow[:, 300:] //= 2
    montage = np.concatenate([b_scan(columns=320), b_scan(columns=380, seed=1)[::-1]], axis=1)
    for picture in (ordinary, beside_wedge, shadow, montage, b_scan(columns=400)):
        assert fundus_columns(picture[np.newaxis]) == 0
