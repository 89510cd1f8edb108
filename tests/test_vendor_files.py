"""Heidelberg's XML exports and Topcon's files, as the tests draw them; real files where they lie beside the project."""

import os
import shutil
import struct
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK
import tifffile
from dicoms import dicom, save, save_series
from PIL import Image
from vendor_writers import (
    LOCALIZER_MM,
    NAMES,
    SPACING_MM,
    export_text,
    image_text,
    lines_of,
    series_text,
    write_topcon,
    write_xml,
)

from utils.errors import InputError
from utils.preparation.preprocessing import to_8_bit
from utils.volumes.scans import find_scans, read_scan, search_scans
from utils.volumes.vendor_files import fundus_of

VOXELS = np.random.default_rng(5).integers(0, 256, (5, 24, 30)).astype(np.uint8)
TIMES = int(os.environ.get("DAMAGES", "60"))  # damaged copies of each file
REAL = Path(__file__).parents[2] / "shared" / "data" / "vendor_files"
real_files = pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files beside the project")


def read(path, **given):
    (files,) = find_scans([path])
    return read_scan(files, **given)


def refused(path):
    """The one line with which a scan is refused."""
    with pytest.raises(InputError) as raised:
        read(path)
    (line,) = raised.value.messages
    assert "\n" not in line
    return line


# ---- Heidelberg's XML ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(("suffix", "saved_as"), [(".tif", None), (".tif", ".TIF"), (".bmp", None), (".tif", ".png")])
def test_an_export_of_either_form_is_one_scan(tmp_path, old, suffix, saved_as):
    folder = tmp_path / "renamed"
    path = write_xml(folder, VOXELS, old=old, suffix=suffix, saved_as=saved_as)
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    for given in (folder, path):
        scan = read(given)
        np.testing.assert_array_equal(scan.voxels, VOXELS)
        assert scan.spacing_mm == pytest.approx(SPACING_MM)
        assert (scan.vendor, scan.laterality, scan.scan_date) == ("Spectralis", "OS", "2000-01-31")
        assert (scan.notes, scan.z_mm) == ((), None)
        assert (scan.fundus.image == 90).all()
        expected = np.array(lines_of(5, 30 * SPACING_MM[0])) / LOCALIZER_MM
        np.testing.assert_allclose(scan.fundus.lines, expected, atol=0.01)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_pictures_that_the_list_does_not_name_are_a_scan_of_their_own(tmp_path, is_damaged):
    """The name 1.png is no name in the list, though "1." stands in its numbers."""
    path = write_xml(tmp_path, VOXELS)
    Image.fromarray(VOXELS[0]).save(tmp_path / "1.png")
    if is_damaged:
        path.write_bytes(path.read_bytes()[:-40])
    scans, left_out = search_scans([tmp_path])
    assert ([len(scan.paths) for scan in scans], left_out) == ([1, 1], [])
    assert [Path(scan.paths[0]).name for scan in scans] == [path.name, "1.png"]


def test_pictures_of_jpeg(tmp_path):
    smooth = np.repeat(np.arange(5, dtype=np.uint8)[:, None, None] * 40, 24, axis=1).repeat(32, axis=2)
    write_xml(tmp_path / "a", smooth, suffix=".jpg")
    np.testing.assert_allclose(read(tmp_path / "a").voxels, smooth, atol=2)


def test_b_scans_keep_the_order_of_the_list_whatever_their_names(tmp_path):
    names = [NAMES[0], *(f"{index}" for index in (3, 1, 2, 0, 4))]
    write_xml(tmp_path / "a", VOXELS, names=names)
    np.testing.assert_array_equal(read(tmp_path / "a").voxels, VOXELS)


def save_b_scans(folder, *names):
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        Image.fromarray(VOXELS[index % 5]).save(folder / name)


def b_scan_text(name, eye=None, line=None, shape=(24, 30), scales=SPACING_MM[:2]):
    return image_text("OCT", name, shape, scales, line=line, eye=eye)


def export(tmp_path, *series):
    (tmp_path / "all.xml").write_text(export_text(*series), "utf-8")
    return tmp_path / "all.xml"


def test_two_eyes_or_series_are_two_scans(tmp_path):
    save_b_scans(tmp_path, *(f"{index}.tif" for index in range(5)))
    both_eyes = [b_scan_text("0.tif", "R"), b_scan_text("1.tif", "L"), b_scan_text("2.tif", "R")]
    path = export(tmp_path, series_text(both_eyes), series_text([b_scan_text("3.tif"), b_scan_text("4.tif")], eye="L"))
    for given in (path, tmp_path):
        scans, left_out = search_scans([given])
        assert left_out == []
        read_scans = [read_scan(scan) for scan in scans]
        assert [scan.laterality for scan in read_scans] == ["OD", "OS", "OS"]
        for scan, slices in zip(read_scans, ([0, 2], [1], [3, 4]), strict=True):
            np.testing.assert_array_equal(scan.voxels, VOXELS[slices])
        assert len({scan.name for scan in scans}) == 3


def test_circles_and_stars_are_left_out_by_name(tmp_path):
    save_b_scans(tmp_path, *(f"{index}.tif" for index in range(4)))
    radius_mm = 30 * SPACING_MM[0] / (2 * np.pi)  # HEYEX gives a circle's centre and a point on it
    circle = [b_scan_text("0.tif", line=(3, 3, 3 + radius_mm, 3))]
    star = [b_scan_text("1.tif", line=(1, 3, 1.366, 3)), b_scan_text("2.tif", line=(1.1, 2.8, 1.1, 3.166))]
    path = export(tmp_path, series_text(circle), series_text(star), series_text([b_scan_text("3.tif")]))
    (scan,), left_out = search_scans([path])
    np.testing.assert_array_equal(read_scan(scan).voxels, VOXELS[3:4])
    assert [one.why.partition(",")[0] for one in left_out] == ["a circular B-scan", "a radial scan"]
    assert [one.path.rpartition(", ")[2] for one in left_out] == ["series 1", "series 2"]


def test_uneven_and_oblique_b_scans(tmp_path):
    """Lines at 30 degrees; the distances between them are across, whatever their ends' rows are."""
    along, across = np.array([np.cos(np.pi / 6), np.sin(np.pi / 6)]), np.array([-np.sin(np.pi / 6), np.cos(np.pi / 6)])
    places = (0.0, 0.1, 0.3)
    names = [f"{index}.tif" for index in range(3)]
    save_b_scans(tmp_path, *names)
    lines = [(*(2 + across * z), *(2 + across * z + along * 0.366)) for z in places]
    path = export(
        tmp_path, series_text([b_scan_text(name, line=line) for name, line in zip(names, lines, strict=True)])
    )
    scan = read(path)
    assert scan.spacing_mm[2] == pytest.approx(0.15, abs=1e-3)
    np.testing.assert_allclose(scan.z_mm, places, atol=1e-3)


def test_lost_pictures_are_named(tmp_path):
    path = write_xml(tmp_path / "a", VOXELS)
    for name in NAMES[2:4]:
        (tmp_path / "a" / f"{name}.tif").unlink()
    assert refused(path).endswith(
        f"lists 5 B-scans, and {NAMES[2]}.tif, {NAMES[3]}.tif not beside it; copy or export them again"
    )
    (tmp_path / "a" / f"{NAMES[0]}.tif").unlink()  # of the fundus
    assert NAMES[0] not in refused(path)


def test_pictures_of_another_size_than_stated_are_refused(tmp_path):
    save_b_scans(tmp_path, "0.tif")
    path = export(tmp_path, series_text([b_scan_text("0.tif", shape=(24, 31))]))
    assert "30 x 24 pixels, expected 31 x 24 by all.xml" in refused(path)


def test_scales_that_differ_are_refused_and_missing_images_noted(tmp_path):
    save_b_scans(tmp_path, "0.tif", "1.tif")
    first, other = b_scan_text("0.tif"), b_scan_text("1.tif", scales=(0.0061, 0.0039))
    path = export(tmp_path, series_text([first, other]))
    assert "ScaleX from 0.0061 to 0.0122 mm, expected one" in refused(path)
    export(tmp_path, series_text([first], stated=4))
    assert "the export states 4 images and lists 1" in read(path).notes


def test_names_in_another_encoding_do_not_matter(tmp_path):
    path = write_xml(tmp_path / "a", VOXELS)
    text = path.read_text("utf-8").replace("Osterhase", "Osterhäse")
    path.write_bytes(b'<?xml version="1.0" encoding="UTF-8"?>' + text.encode("cp1252"))
    np.testing.assert_array_equal(read(path).voxels, VOXELS)


def test_entities_are_refused_before_they_grow(tmp_path):
    """Each entity is ten of the one before: nine of them would be 10 ** 9 times three letters."""
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    bomb = (
        f'<?xml version="1.0"?><!DOCTYPE HEDX [<!ENTITY e0 "lol">{entities}]><HEDX><ImageType>&e9;</ImageType></HEDX>'
    )
    (tmp_path / "a.xml").write_text(bomb)
    tracemalloc.start()
    assert "entities" in refused(tmp_path / "a.xml")
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


# ---- Topcon --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "form"),
    [("a.fda", {}), ("a.fda", {"pictures": False, "name": "@IMG_MOT_COMP_03"}), ("a.fds", {"pictures": False})],
)
def test_topcon(tmp_path, name, form):
    write_topcon(tmp_path / name, VOXELS, **form)
    for given in (tmp_path, tmp_path / name):
        scan = read(given)
        expected = VOXELS if not form else VOXELS.astype(np.uint16) * 257
        np.testing.assert_array_equal(scan.voxels, expected)
        assert scan.spacing_mm == pytest.approx(SPACING_MM)
        assert (scan.vendor, scan.laterality, scan.scan_date) == ("Topcon", "OS", "2000-01-31")
        assert scan.fundus.image.shape == (40, 50)
        assert scan.fundus.lines == tuple((10, row, 30, row) for row in (10, 14, 18, 22, 26))
        assert scan.fundus.order_assumed


def test_a_fundus_that_cannot_be_read_costs_no_scan(tmp_path):
    write_topcon(tmp_path / "a.fda", VOXELS)
    content = (tmp_path / "a.fda").read_bytes()
    (tmp_path / "b.fda").write_bytes(content.replace(b"@IMG_FUNDUS", b"@IMG_FUNDER"))
    picture = content.index(b"@IMG_FUNDUS") + 11 + 4 + 24
    (tmp_path / "c.fda").write_bytes(content[:picture] + bytes(40) + content[picture + 40 :])
    outside = content.replace(struct.pack("<2I", 30, 28), struct.pack("<2I", 30, 41))
    (tmp_path / "d.fda").write_bytes(outside)
    assert [read(tmp_path / f"{name}.fda").fundus for name in "bc"] == [None, None]
    assert read(tmp_path / "d.fda").fundus.lines == (None,) * 5


def test_the_older_block_of_sizes(tmp_path):
    write_topcon(tmp_path / "a.fda", VOXELS)
    content = (tmp_path / "a.fda").read_bytes()
    old, sizes = b"\x0e@PARAM_SCAN_04", (0.6, 3.0, 2.6)
    place = content.index(old)
    block = b"\x0e@PARAM_SCAN_02" + struct.pack("<I", 61) + bytes(21) + struct.pack("<3d", *sizes) + bytes(16)
    (tmp_path / "a.fda").write_bytes(content[:place] + block + content[place + len(old) + 4 + 61 :])
    assert read(tmp_path / "a.fda").spacing_mm == pytest.approx((0.02, 0.0026, 0.6))


@pytest.mark.parametrize(("mode", "why"), [(3, "a radial scan"), (4, "two crossing B-scans")])
def test_topcons_other_patterns_are_left_out_by_name(tmp_path, mode, why):
    write_topcon(tmp_path / "a.fda", VOXELS, mode=mode)
    write_topcon(tmp_path / "b.fda", VOXELS)
    (scan,), (left,) = search_scans([tmp_path])
    assert (scan.name, left.why) == ("b", f"{why}, expected parallel B-scans")


def test_a_topcon_file_without_b_scans_says_so(tmp_path):
    (tmp_path / "a.fda").write_bytes(b"FOCTFDA" + bytes(8) + b"\x03@ABCDEF")
    assert "holds none of @IMG_JPEG" in refused(tmp_path / "a.fda")
    (tmp_path / "a.fda").write_bytes(b"not Topcon's")
    assert "expected b'FOCT'" in refused(tmp_path / "a.fda")


def test_b_scans_that_are_cut_off_or_of_another_size_are_refused(tmp_path):
    write_topcon(tmp_path / "a.fda", VOXELS)
    content = (tmp_path / "a.fda").read_bytes()
    first = content.index(b"@IMG_JPEG") + len("@IMG_JPEG") + 4
    (tmp_path / "a.fda").write_bytes(content[: first + 25 + 4 + 300])  # within the first B-scan's picture
    assert refused(tmp_path / "a.fda").endswith("damaged: it holds fewer bytes than it states; copy or export it again")
    columns = first + 9
    (tmp_path / "a.fda").write_bytes(content[:columns] + struct.pack("<I", 31) + content[columns + 4 :])
    assert refused(tmp_path / "a.fda").endswith("B-scan 1 has 30 x 24 pixels of the kind L, expected 31 x 24 in grey")


# ---- Heidelberg's .vol ---------------------------------------------------------------------------------------------
def test_a_circular_vol_is_left_out_by_name(tmp_path):
    head = struct.pack("<12s3I3d2I2dId4sQi", b"HSF-OCT-103", 8, 1, 8, *[0.01] * 3, 8, 8, 0.01, 0.01, 30, 0, b"OS", 0, 2)
    (tmp_path / "circle.vol").write_bytes(head + bytes(2000))
    write_topcon(tmp_path / "b.fda", VOXELS)
    for given in ([tmp_path], [tmp_path / "b.fda", tmp_path / "circle.vol"]):
        (scan,), (left,) = search_scans(given)
        assert (scan.name, left.why) == ("b", "a circular B-scan, expected parallel B-scans")
    with pytest.raises(InputError, match=r"circle\.vol: a circular B-scan"):
        search_scans([tmp_path / "circle.vol"])


@pytest.mark.parametrize(("unit", "origin"), [("mm", 0), ("°", 15)])
def test_lines_on_the_fundus_of_eyepy(unit, origin):
    """A picture of 60 x 60 pixels of 0.5 mm or degrees; a B-scan from 3 to 27 in row 6, from its corner."""
    line = {"start_pos": (3 - origin, 6 - origin), "end_pos": (27 - origin, 6 - origin), "pos_unit": unit}
    meta = {"scale_x": 0.5, "scale_y": 0.5, "scale_unit": unit, "modality": "NIR"}
    localizer = SimpleNamespace(data=np.zeros((60, 60), np.uint8), meta=meta)
    volume = SimpleNamespace(localizer=localizer, meta={"bscan_meta": [line]}, data=np.zeros((1, 4, 4)))
    assert fundus_of(volume).lines == ((6, 12, 54, 12),)
    line["pos_unit"] = "pixel"
    assert fundus_of(volume).lines == (None,)
    meta["modality"] = None  # eyepy's own projection
    assert fundus_of(volume) is None


# ---- One volume in many forms ---------------------------------------------------------------------------------------
def test_one_volume_is_the_same_through_every_reader(tmp_path):
    """Written by Pillow, tifffile, SimpleITK, pydicom, and as the vendors do."""
    image = SimpleITK.GetImageFromArray(VOXELS)
    image.SetSpacing(SPACING_MM)
    for suffix in ("mhd", "mha", "nii", "nii.gz", "nrrd"):
        SimpleITK.WriteImage(image, str(tmp_path / f"of_itk.{suffix}"))
    tifffile.imwrite(tmp_path / "stack.tif", VOXELS, photometric="minisblack")
    save(dicom(VOXELS), tmp_path / "frames.dcm")
    save_series(tmp_path / "series", VOXELS, InstanceNumber=range(5))
    for suffix in ("png", "bmp", "tif"):
        (tmp_path / suffix).mkdir()
        for index, slice_ in enumerate(VOXELS):
            Image.fromarray(slice_).save(tmp_path / suffix / f"{index}.{suffix}")
    for old in (True, False):
        write_xml(tmp_path / f"xml_{old}", VOXELS, old=old)
    write_topcon(tmp_path / "pictures.fda", VOXELS)
    write_topcon(tmp_path / "plain.fda", VOXELS, pictures=False, name="@IMG_MOT_COMP_03")
    write_topcon(tmp_path / "plain.fds", VOXELS, pictures=False)
    given = [path for path in sorted(tmp_path.iterdir()) if path.suffix != ".raw"]
    assert len(given) == 16
    for path in given:
        scan = read(path, vendor="Spectralis", spacing_mm=SPACING_MM)
        np.testing.assert_array_equal(to_8_bit(scan.voxels), VOXELS, str(path))


# ---- Damage --------------------------------------------------------------------------------------------------------
def damaged(content, rng):
    """`content`, cut off, with up to three bits turned over, or with up to three digits exchanged."""
    kind = rng.integers(3)
    if kind == 0:
        return content[: rng.integers(len(content))]
    content = bytearray(content)
    places = np.arange(len(content)) if kind == 1 else np.flatnonzero(np.isin(content, list(b"0123456789")))
    for place in rng.choice(places, rng.integers(1, 4)):
        content[place] = content[place] ^ 1 << rng.integers(8) if kind == 1 else rng.choice(list(b"0123456789.-e"))
    return bytes(content)


def outcome(path):
    """The sizes of the scans in a file, or the lines with which it is refused."""
    try:
        return [read_scan(files, "Spectralis", SPACING_MM).voxels.shape for files in find_scans([path])], ()
    except InputError as error:
        return [], error.messages


def check_damage(path, times, seed):
    """Each damaged copy ends in one line, or in a scan of the stated size."""
    whole, rng, read_well = path.read_bytes(), np.random.default_rng(seed), 0
    for _ in range(times):
        path.write_bytes(damaged(whole, rng))
        shapes, lines = outcome(path)
        assert len(lines) == (not shapes)
        assert "\n" not in "".join(lines)
        assert all(shape[0] <= 5 and shape[1:] == VOXELS.shape[1:] for shape in shapes)
        read_well += bool(shapes)
    assert 0 < read_well < times


@pytest.mark.parametrize("old", [True, False])
def test_damaged_lists_end_in_one_line(tmp_path, old):
    check_damage(write_xml(tmp_path / "a", VOXELS, old=old), TIMES, seed=old)


@pytest.mark.parametrize("pictures", [True, False])
def test_damaged_topcon_files_end_in_one_line(tmp_path, pictures):
    write_topcon(tmp_path / "a.fda", VOXELS, pictures=pictures)
    check_damage(tmp_path / "a.fda", TIMES, seed=pictures)


# ---- Real files ----------------------------------------------------------------------------------------------------
@real_files
def test_a_real_topcon_file():
    """Size and lengths are those of its blocks: 512 columns, 650 rows, 6 mm, 3.5 µm; taken of a left eye."""
    scan = read(REAL / "fda_minimized.fda")
    assert (scan.voxels.shape, scan.voxels.dtype) == ((1, 650, 512), np.uint8)
    assert scan.spacing_mm[:2] == (6 / 512, 0.0035)
    assert (scan.vendor, scan.laterality, scan.scan_date) == ("Topcon", "OS", "2010-07-09")
    rows = scan.voxels[0].astype(float).mean(axis=1)
    assert 250 < rows.argmax() < 420  # the retina, where its contours lie


@real_files
@pytest.mark.parametrize(("name", "eye"), [("TEST_T_2707_0.vol", "OD"), ("TEST_T_2715_0.vol", "OS")])
def test_real_line_scans(tmp_path, name, eye):
    pytest.importorskip("eyepy")
    shutil.copy(REAL / name, tmp_path / name)
    scan, head = read(tmp_path / name), (REAL / name).read_bytes()[:96]
    assert scan.voxels.shape == (1, 496, 768)
    assert scan.spacing_mm[:2] == (struct.unpack_from("<d", head, 24)[0], struct.unpack_from("<d", head, 40)[0])
    assert (scan.laterality, head[84:86].decode()) == (eye, eye)
    assert scan.scan_date == "2023-06-28"
    assert scan.fundus.image.shape == (768, 768)
    (line,) = scan.fundus.lines
    assert line[2] - line[0] == pytest.approx(768, abs=1)  # as wide as the picture


@real_files
def test_a_real_circle_and_a_real_database_without_a_series():
    with pytest.raises(InputError, match=r"circle\.vol: a circular B-scan, expected parallel B-scans"):
        find_scans([REAL / "circle.vol"])
    pytest.importorskip("eyepy")
    assert "e2e_minimized.E2E: holds no series of B-scans that is whole" in refused(REAL / "e2e_minimized.E2E")
