"""Folders of pictures as one scan or as many, scans that fail, and what pages do not tell."""

import numpy as np
import pandas as pd
import pytest
from dicoms import dicom, save
from helpers import run_here
from PIL import Image
from stand_in import bright_scan, export_brightness_onnx
from vendor_writers import write_topcon, write_xml

from utils.errors import InputError
from utils.volumes.scans import find_scans, read_scan, search_scans

SPACING_MM = (0.0117, 0.003872, 0.12)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return export_brightness_onnx(tmp_path_factory.mktemp("model"))


def segment(model, source, output, *options, expected=0):
    """Run test.py; its (stdout, stderr)."""
    command = ("test.py", source, "--model", model, "--output", output, "--vendor", "Spectralis", *options)
    stdout, stderr = run_here(*command, expected=expected)
    assert "Traceback" not in stderr
    return stdout, stderr


def save_pictures(folder, count=5, shape=(40, 50)):
    folder.mkdir(parents=True, exist_ok=True)
    pages = np.random.default_rng(1).integers(0, 256, (count, *shape)).astype(np.uint8)
    for index, page in enumerate(pages):
        Image.fromarray(page).save(folder / f"b{index}.png")
    return pages


def test_a_folder_of_pictures_is_one_scan_or_with_each_as_many(tmp_path):
    pages = save_pictures(tmp_path)
    (scan,) = (read_scan(files, "Spectralis", SPACING_MM) for files in find_scans([tmp_path]))
    np.testing.assert_array_equal(scan.voxels, pages)
    assert scan.notes == ("5 pictures taken as one scan; --each takes each by itself",)
    scans, left_out = search_scans([tmp_path], each=True)
    assert ([files.name for files in scans], left_out) == (["b0", "b1", "b2", "b3", "b4"], [])
    for files, page in zip(scans, pages, strict=True):
        scan = read_scan(files, "Spectralis", SPACING_MM)
        np.testing.assert_array_equal(scan.voxels[0], page)
        assert scan.notes == ()


def test_pictures_of_odd_sizes_are_named(tmp_path):
    save_pictures(tmp_path)
    for name, size in (("b5.png", (50, 41)), ("b6.png", (60, 40))):
        Image.new("L", size).save(tmp_path / name)
    Image.fromarray(np.zeros((40, 50), np.uint16)).save(tmp_path / "b7.png")
    (files,) = find_scans([tmp_path])
    with pytest.raises(InputError) as raised:
        read_scan(files, "Spectralis", SPACING_MM)
    (line,) = raised.value.messages
    odd = "b5.png (50 x 41 uint8), b6.png (60 x 40 uint8), b7.png (50 x 40 uint16)"
    assert f"{tmp_path}: 5 pictures of 50 x 40 uint8 pixels, and {odd}; expected B-scans of one size" in line
    assert len(find_scans([tmp_path])) == 1
    assert len(search_scans([tmp_path], each=True)[0]) == 8


def test_each_picture_is_segmented_and_what_fails_is_listed(model, tmp_path):
    source, output = tmp_path / "Osterhase_Kunigunde", tmp_path / "out"
    source.mkdir()
    for index, page in enumerate(bright_scan()[:2]):
        Image.fromarray(page).save(source / f"b{index}.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(source / "photo.png")
    (source / "torn.png").write_bytes((source / "b0.png").read_bytes()[:-400])
    _, stderr = segment(model, source, output, "--each", expected=2)
    assert [path.name for path in sorted(output.glob("*.mhd"))] == ["Spectralis_b0.mhd", "Spectralis_b1.mhd"]
    failed = pd.read_csv(output / "failed.csv")
    assert list(failed.scan) == ["photo", "torn"]
    assert list(failed.path) == [str(source / f"{name}.png") for name in failed.scan]
    assert all(why in stderr for why in failed.why)
    page = (output / "index.html").read_text("utf-8")
    assert '<h2 id="failed">Failed</h2>' in page
    assert '<a href="failed.csv">' in page
    assert "<td>photo.png: a picture in colour, expected grey values" in page
    assert "Osterhase" not in page  # the folder's name
    for name in ("photo", "torn"):
        (source / f"{name}.png").unlink()
    segment(model, source, output, "--each")
    assert not (output / "failed.csv").exists()
    assert "Failed" not in (output / "index.html").read_text("utf-8")


def test_where_everything_fails_the_index_says_so(model, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"no picture")
    segment(model, tmp_path / "torn.png", tmp_path / "out", expected=2)
    assert "<td>torn.png: cannot be read" in (tmp_path / "out" / "index.html").read_text("utf-8")


@pytest.mark.slow
def test_names_and_birth_dates_are_on_no_page(model, tmp_path):
    source, output, voxels = tmp_path / "scans", tmp_path / "out", bright_scan()
    write_xml(source / "xml", voxels)
    write_topcon(source / "a.fda", voxels)
    told = {"PatientName": "Osterhase^Kunigunde", "PatientBirthDate": "19530405", "PatientID": "P1"}
    save(dicom(voxels, **told), source / "b.dcm")
    (source / "broken").mkdir()
    lost = write_xml(source / "broken", voxels)
    for path in source.glob("broken/*.tif"):
        path.unlink()
    segment(model, source, output, expected=2)
    pages = [*output.rglob("*.html"), *output.rglob("*.csv"), *output.rglob("*.json")]
    assert len(pages) >= 3 + 3 + 3
    for page in pages:
        text = page.read_text("utf-8")
        assert not [secret for secret in ("Osterhase", "Kunigunde", "1953") if secret in text], page
    assert lost.name in (output / "index.html").read_text("utf-8")
    with Image.open(output / "Spectralis_xml" / "fundus.png") as image:
        assert image.size == (40, 40)
