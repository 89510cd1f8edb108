"""What lies beside scans: every file of a folder is part of a scan, or named with a reason."""

import os

import numpy as np
import pytest
import SimpleITK
from dicoms import save_series
from PIL import Image
from test_scans import dicom

from utils.errors import InputError
from utils.volumes.mhd import write_volume
from utils.volumes.not_scans import kind_by_name, kind_of_folder
from utils.volumes.scan_names import told_apart
from utils.volumes.scans import find_scans, search_scans

SPACING_MM = (0.0117, 0.003872, 0.12)
RNG = np.random.default_rng(5)
VOXELS = RNG.integers(0, 256, (4, 20, 30)).astype(np.uint8)
MASK = (VOXELS > 128).astype(np.uint8) * 255


def picture(path, pixels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(VOXELS[0] if pixels is None else pixels).save(path)


def found(*inputs, **options):
    """({name: names of the scan's files}, {name of the file left out: why})."""
    scans, left_out = search_scans(inputs, **options)
    scans = told_apart(scans)
    assert len({scan.name for scan in scans}) == len(scans)
    named = {scan.name: [os.path.basename(path) for path in scan.paths] for scan in scans}
    return named, {os.path.basename(one.path): one.why for one in left_out}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("b0_mask", "labels or a mask"),
        ("scanSeg", "labels or a mask"),
        ("case-1 Ground Truth", "labels or a mask"),
        ("octmasks", "labels or a mask"),
        ("P1_fundus", "fundus"),
        ("SLO", "fundus"),
        ("En-Face", "fundus"),
        ("report_2020", "report"),
        ("b1_thumb", "smaller"),
        ("overlay_003", "drawing"),
        ("slovak", None),
        ("segovia 12", None),
        ("b10", None),
        ("flabella", None),
        ("OCT", None),
        ("\u00b2", None),
    ],
)
def test_words_in_names(name, kind):
    assert kind in kind_by_name(name) if kind else kind_by_name(name) is None


def test_names_of_folders():
    for name in ("masks", "labelsTr", "ground_truth", "manual_masks", "Segmentations"):
        assert "labels" in kind_of_folder(name)
    for name in ("mask_study", "scans", "label 7 days", "42"):
        assert kind_of_folder(name) is None


def test_a_folder_of_everything(tmp_path):
    top = tmp_path / "all"
    write_volume(top / "oct.mhd", VOXELS, SPACING_MM)
    write_volume(top / "reference.mhd", MASK, SPACING_MM)
    write_volume(top / "other.mhd", MASK, SPACING_MM)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOXELS), str(top / "left.MHD".lower()), True)
    (top / "left.mhd").rename(top / "LEFT.MHD")
    write_volume(top / "LEFT_irf.mhd", MASK // 255, SPACING_MM)
    for number, slice_ in enumerate(VOXELS):
        picture(top / f"b{number}.PNG", slice_)
        picture(top / f"b{number}_x.png", MASK[number])
    picture(top / "slo.jpg", VOXELS[0])
    picture(top / "eye.png", RNG.integers(0, 256, (50, 50)).astype(np.uint8))
    picture(top / "photo.jpg", RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8))
    dicom(VOXELS).save_as(top / "1.2.840.77", enforce_file_format=True)
    dicom(VOXELS).save_as(top / "frames.Dcm", enforce_file_format=True)
    (top / "report.pdf").write_bytes(b"%PDF")
    (top / "layers.xml").write_text("<layers/>")
    (top / "lost.raw").write_bytes(b"voxels of nobody")
    (top / ".DS_Store").write_bytes(b"")
    (top / "gone.mhd").symlink_to(top / "nowhere.mhd")
    os.mkfifo(top / "pipe.png")
    write_volume(top / "masks" / "left.mhd", MASK, SPACING_MM)
    write_volume(top / "Cirrus_a.mhd", MASK, SPACING_MM)
    (top / "Cirrus_a").mkdir()
    (top / "Cirrus_a" / "scan.json").write_text("{}")
    named, left_out = found(top)
    assert named == {
        "all_mhd": ["oct.mhd"],
        "all_png": ["b0.PNG", "b1.PNG", "b2.PNG", "b3.PNG"],
        "LEFT": ["LEFT.MHD"],
        "1.2.840.77": ["1.2.840.77"],
        "frames": ["frames.Dcm"],
    }
    few = "labels or a mask: it holds at most 8 values"
    assert left_out == {
        "reference.mhd": "a scan's reference",
        "other.mhd": "outlines of a scan's other findings",
        "LEFT_irf.mhd": few,
        **{f"b{number}_x.png": few for number in range(4)},
        "slo.jpg": "an image of the fundus by its name",
        "eye.png": "50 x 50 pixels, and the 4 others have 30 x 20",
        "photo.jpg": "a picture in colour, and others beside it are grey; --each takes it by itself",
        "report.pdf": "of no format that is read",
        "layers.xml": "of no format that is read",
        "lost.raw": "of no format that is read",
        ".DS_Store": "a hidden file",
        "gone.mhd": "a link that leads nowhere",
        "pipe.png": "no file",
        "left.mhd": "labels or a mask by its name",
        "Cirrus_a.mhd": "labels that test.py wrote",
        "Cirrus_a": "results of test.py",
    }


def test_oct_mhd_hides_no_other_scan(tmp_path):
    write_volume(tmp_path / "P1" / "oct.mhd", VOXELS, SPACING_MM)
    write_volume(tmp_path / "P2" / "scan.mhd", VOXELS, SPACING_MM)
    write_volume(tmp_path / "P4" / "other.mhd", VOXELS, SPACING_MM)  # outlines of findings only beside an oct.mhd
    write_volume(tmp_path / "P3" / "OCT.mhd", VOXELS, SPACING_MM)
    (tmp_path / "P3" / "OCT.mhd").rename(tmp_path / "P3" / "OCT.MHD")
    scans = {"P1": ["oct.mhd"], "scan": ["scan.mhd"], "P3": ["OCT.MHD"], "other": ["other.mhd"]}
    assert found(tmp_path) == (scans, {})


def test_where_all_is_named_like_masks_it_is_taken(tmp_path):
    for number, slice_ in enumerate(VOXELS):
        picture(tmp_path / "masks" / f"seg_{number}.png", slice_)
    assert found(tmp_path)[0] == {"masks": [f"seg_{number}.png" for number in range(4)]}
    picture(tmp_path / "images" / "0.png")
    named, left_out = found(tmp_path)
    assert (named, len(left_out)) == ({"0": ["0.png"]}, 4)
    assert len(found(tmp_path / "masks")[0]) == 1  # the user means it
    write_volume(tmp_path / "a" / "reference.mhd", MASK, SPACING_MM)
    with pytest.raises(InputError, match=r"holds no scan.*left out: reference\.mhd \(a scan's reference\)"):
        find_scans([tmp_path / "a"])


def test_files_named_one_by_one(tmp_path):
    """Masks beside their scan are left out, as a shell's pattern names them; one that is named alone is meant."""
    for number in range(2):
        picture(tmp_path / f"b{number}.png")
        picture(tmp_path / f"b{number}_mask.png")
        picture(tmp_path / f"b{number}-z.png", MASK[0])
    named, left_out = found(tmp_path / "*.png")
    assert sorted(named) == ["b0", "b1"]
    assert sorted(left_out) == ["b0-z.png", "b0_mask.png", "b1-z.png", "b1_mask.png"]
    assert found(tmp_path / "b0_mask.png") == ({"b0_mask": ["b0_mask.png"]}, {})
    assert sorted(found(tmp_path / "b0_mask.png", tmp_path / "b1.png")[0]) == ["b0_mask", "b1"]


def test_results_are_no_scans_whatever_names_them(tmp_path):
    """Folders of scans and results may be one, and a shell's pattern names all that is there."""
    picture(tmp_path / "Spectralis_anna" / "mask_000.png")
    (tmp_path / "Spectralis_anna" / "scan.json").write_text("{}")
    for name in ("anna", "Spectralis_anna", "Spectralis_anna/uncertainty"):
        write_volume(tmp_path / f"{name}.mhd", VOXELS, SPACING_MM)
    for inputs in ([tmp_path / "*.mhd"], [tmp_path / "**" / "*.mhd", tmp_path / "**" / "*.png"], [tmp_path]):
        assert found(*inputs, leave_out=tmp_path)[0] == {"anna": ["anna.mhd"]}
    with pytest.raises(InputError, match=r"Spectralis_anna\.mhd: results of test\.py"):
        found(tmp_path / "Spectralis_anna.mhd")


def test_slices_that_a_pattern_names_are_one_scan(tmp_path):
    (tmp_path / "anna").mkdir()
    save_series(tmp_path / "anna", VOXELS)
    ((name, files),) = found(tmp_path / "anna" / "*")[0].items()
    assert (name, len(files)) == ("anna", len(VOXELS))
    assert found(tmp_path / "anna") == found(tmp_path / "anna" / "*")


def test_pictures_of_a_scan_and_labels_of_another_name(tmp_path):
    write_volume(tmp_path / "volume" / "P1.mhd", VOXELS, SPACING_MM)
    picture(tmp_path / "volume" / "p1.JPG")
    for number in range(3):
        picture(tmp_path / "pictures" / f"b{number}.png", VOXELS[number])
        picture(tmp_path / "pictures" / f"a{number}.bmp", MASK[number] // 255)
        picture(tmp_path / "pictures" / f"c{number}.png", VOXELS[3 - number])
    named, left_out = found(tmp_path)
    assert {name: len(files) for name, files in named.items()} == {"P1": 1, "pictures": 6}
    few = "labels or a mask: it holds at most 8 values"
    assert left_out == {"p1.JPG": "a picture of P1.mhd by its name", **{f"a{number}.bmp": few for number in range(3)}}


def test_names_that_other_programs_cannot_take(tmp_path):
    write_volume(tmp_path / "100%\n1.mhd", VOXELS, SPACING_MM)
    (tmp_path / "100%\n1.mhd").write_text((tmp_path / "100%\n1.mhd").read_text().replace("100%\n1.raw", "LOCAL"))
    assert [scan.name for scan in find_scans([tmp_path])] == ["100__1"]


def test_second_channels(tmp_path):
    for name in ("a_ch1", "a_ch2", "b", "b-Channel 2", "ch1", "ch2", *(f"p_ch{number}" for number in range(5))):
        write_volume(tmp_path / f"{name}.mhd", VOXELS, SPACING_MM)
    named, left_out = found(tmp_path)
    assert left_out == {"a_ch2.mhd": "another channel of a_ch1.mhd", "b-Channel 2.mhd": "another channel of b.mhd"}
    assert len(named) == 9


def test_no_scan_is_taken_for_labels_by_few_values_alone(tmp_path):
    write_volume(tmp_path / "black.mhd", VOXELS * 0, SPACING_MM)
    write_volume(tmp_path / "black_2.mhd", VOXELS * 0, SPACING_MM)
    write_volume(tmp_path / "grey.mhd", VOXELS, SPACING_MM)
    write_volume(tmp_path / "grey2.mhd", MASK, SPACING_MM)
    assert len(find_scans([tmp_path])) == 4


def test_pictures_of_two_sizes_stay_an_error(tmp_path):
    """Two scans in a folder, or a B-scan of another size among others: nothing says which to leave out."""
    for number in range(6):
        picture(tmp_path / f"b{number}.png", VOXELS[0] if number != 3 else VOXELS[0][:10])
    assert found(tmp_path) == ({tmp_path.name: [f"b{number}.png" for number in range(6)]}, {})
    picture(tmp_path / "b6.png", VOXELS[0][:, :10])
    assert found(tmp_path)[1] == {"b6.png": "10 x 20 pixels, and the 5 others have 30 x 20"}


def test_data_files_in_a_folder_below_belong_to_their_header(tmp_path):
    write_volume(tmp_path / "scan.mhd", VOXELS, SPACING_MM)
    (tmp_path / "data").mkdir()
    (tmp_path / "scan.raw").rename(tmp_path / "data" / "Scan.raw")
    text = (tmp_path / "scan.mhd").read_text()
    (tmp_path / "scan.mhd").write_text(text.replace("scan.raw", "data/scan.raw"))
    assert found(tmp_path) == ({"scan": ["scan.mhd"]}, {})


def test_heidelbergs_export_and_what_else_is_there(tmp_path):
    (tmp_path / "a.xml").write_text("<HEDX><ImageType/><ExamURL>C:\\x\\0a.tif</ExamURL></HEDX>")
    picture(tmp_path / "0A.tif")
    write_volume(tmp_path / "scan.mhd", VOXELS, SPACING_MM)
    assert found(tmp_path) == ({tmp_path.name: ["a.xml"], "scan": ["scan.mhd"]}, {})


def test_scans_of_one_name_are_told_apart(tmp_path):
    for folder in ("A1/x", "A2/x", "A1/y", "A1/x/z"):
        write_volume(tmp_path / folder / "scan.mhd", VOXELS, SPACING_MM)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOXELS), str(tmp_path / "A1" / "y" / "Scan.nii.gz"))
    scans = find_scans([tmp_path])
    assert sorted(scan.name for scan in scans) == ["Scan", "scan", "scan", "scan", "scan"]
    names = {os.path.relpath(scan.path, tmp_path): scan.name for scan in told_apart(scans)}
    assert names == {
        "A1/x/scan.mhd": "A1_x_scan",
        "A2/x/scan.mhd": "A2_x_scan",
        "A1/x/z/scan.mhd": "z_scan",
        "A1/y/scan.mhd": "y_scan_mhd",
        "A1/y/Scan.nii.gz": "y_Scan_nii_gz",
    }


def test_folders_of_names_that_other_programs_refuse_tell_scans_apart(tmp_path):
    for folder in ("50%", "a: left"):
        write_volume(tmp_path / folder / "scan.mhd", VOXELS, SPACING_MM)
    assert sorted(scan.name for scan in told_apart(find_scans([tmp_path]))) == ["50__scan", "a_ left_scan"]


def test_scans_of_two_vendors_keep_their_names(tmp_path):
    for vendor in ("Cirrus", "Topcon"):
        write_volume(tmp_path / vendor / "scan.mhd", VOXELS, SPACING_MM)
    scans = find_scans([tmp_path])
    assert [scan.name for scan in told_apart(scans)] == ["scan", "scan"]
    assert [scan.name for scan in told_apart(scans, "Cirrus")] == ["Cirrus_scan", "Topcon_scan"]


def test_digits_of_other_scripts(tmp_path):
    for name in ("5\u00b21", "5\u00b210", "5\u00b22", "\u0663", "\u2460", "\u0be7"):
        picture(tmp_path / f"{name}.png")
    (scan,) = find_scans([tmp_path])
    names = [os.path.basename(path) for path in scan.paths]
    order = [names.index(f"5\u00b2{number}.png") for number in (1, 2, 10)]
    assert order == sorted(order)
