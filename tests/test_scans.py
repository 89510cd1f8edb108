"""Scans in every format, written by independent libraries."""

import datetime
import struct

import cv2
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset

from utils.errors import InputError
from utils.mhd import VoxelFile, open_voxels, write_volume
from utils.scan_formats import as_grey
from utils.scans import find_scans, read_scan, usual_spacing_mm

SPACING_MM = (0.0117, 0.003872, 0.12)
RNG = np.random.default_rng(3)
VOXELS = RNG.integers(0, 256, (4, 20, 30)).astype(np.uint8)


def read(path, vendor="Spectralis", spacing_mm=None):
    (files,) = find_scans([path])
    return read_scan(files, vendor, spacing_mm)


def dicom(frames, bits=8):
    """A DICOM data set with these frames (n, rows, columns), or one (rows, columns)."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.5.4"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.Manufacturer, data.ImageLaterality, data.StudyDate = "Heidelberg Engineering", "L", "20260131"
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated = 8 if bits == 8 else 16
    data.BitsStored, data.HighBit = bits, bits - 1
    data.Rows, data.Columns = frames.shape[-2:]
    if frames.ndim == 3:
        data.NumberOfFrames = len(frames)
        measures, shared = Dataset(), Dataset()
        measures.PixelSpacing, measures.SliceThickness = [SPACING_MM[1], SPACING_MM[0]], SPACING_MM[2]
        shared.PixelMeasuresSequence = pydicom.Sequence([measures])
        data.SharedFunctionalGroupsSequence = pydicom.Sequence([shared])
    data.PixelData = frames.astype(np.uint8 if bits == 8 else "<u2").tobytes()
    return data


# ---- Formats -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["scan.mha", "scan.mhd", "scan.nrrd", "scan.nii.gz"])
@pytest.mark.parametrize("compressed", [True, False])
def test_simpleitks_formats(tmp_path, name, compressed):
    image = SimpleITK.GetImageFromArray(VOXELS)
    image.SetSpacing(SPACING_MM)
    SimpleITK.WriteImage(image, str(tmp_path / name), compressed)
    scan = read(tmp_path / name)
    np.testing.assert_array_equal(np.stack(list(scan.voxels)), VOXELS)
    assert scan.spacing_mm == pytest.approx(SPACING_MM)
    assert (scan.name, scan.notes) == ("scan", ())


def test_nifti_of_nibabel(tmp_path):
    nibabel.save(
        nibabel.Nifti1Image(VOXELS.astype(np.int16).transpose(2, 1, 0), np.diag([*SPACING_MM, 1])),
        tmp_path / "scan.nii.gz",
    )
    scan = read(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(scan.voxels, VOXELS.astype(np.uint16) * 257)
    assert scan.spacing_mm == pytest.approx(SPACING_MM)
    assert "taken for 8 bits" in scan.notes[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_stack_of_tifffile(tmp_path, dtype):
    voxels = VOXELS.astype(dtype) * (257 if dtype == np.uint16 else 1)
    tifffile.imwrite(tmp_path / "stack.tif", voxels, photometric="minisblack")
    scan = read(tmp_path, spacing_mm=SPACING_MM)
    np.testing.assert_array_equal(scan.voxels, voxels)
    assert scan.name == "stack"


def test_b_scans_of_opencv_in_the_order_of_their_numbers(tmp_path):
    folder = tmp_path / "Topcon" / "left"
    folder.mkdir(parents=True)
    for index in (0, 9, 10):
        cv2.imwrite(str(folder / f"b{index}.png"), VOXELS[index % 4])
    scan = read(folder, vendor=None)
    np.testing.assert_array_equal(scan.voxels, VOXELS[[0, 1, 2]])
    assert (scan.vendor, scan.name) == ("Topcon", "left")
    assert "spacing x 0.200021 mm, y 0.11505 mm, z 0.04688 mm assumed" in scan.notes[0]
    assert [files.name for files in find_scans([folder / "b*.png"])] == ["b0", "b10", "b9"]
    assert read(folder / "b9.png").voxels.shape == (1, 20, 30)


def test_grey_pictures_with_colour_channels(tmp_path):
    Image.fromarray(VOXELS[0]).convert("RGBA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png").voxels[0], VOXELS[0])
    Image.fromarray(VOXELS[0]).convert("P").save(tmp_path / "p.png")
    np.testing.assert_array_equal(read(tmp_path / "p.png").voxels[0], VOXELS[0])


def test_dicom_of_several_frames(tmp_path):
    dicom(VOXELS).save_as(tmp_path / "scan.dcm", enforce_file_format=True)
    scan = read(tmp_path / "scan.dcm", vendor=None)
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    assert scan.spacing_mm == pytest.approx(SPACING_MM)
    assert (scan.vendor, scan.laterality, scan.scan_date) == ("Spectralis", "OS", "2026-01-31")


def test_dicom_whose_white_is_0_is_inverted_within_its_bits(tmp_path):
    data = dicom(VOXELS.astype(np.uint16) * 16, bits=12)
    data.PhotometricInterpretation = "MONOCHROME1"
    data.save_as(tmp_path / "scan.dcm", enforce_file_format=True)
    expected, _ = as_grey(4095 - VOXELS.astype(np.uint16) * 16, "scan", bits=12)
    np.testing.assert_array_equal(read(tmp_path / "scan.dcm").voxels, expected)


def test_dicom_series_in_the_order_of_positions(tmp_path):
    twelve_bits = VOXELS.astype(np.uint16) * 16
    for index, name in zip((2, 0, 3, 1), ("a", "b.dcm", "c.dcm", "d.dcm"), strict=True):
        data = dicom(twelve_bits[index], bits=12)
        data.SeriesInstanceUID, data.InstanceNumber = "1.2.3", 9 - index
        data.PixelSpacing = [SPACING_MM[1], SPACING_MM[0]]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [0, 0, index * SPACING_MM[2]]
        data.save_as(tmp_path / name, enforce_file_format=True)
    (tmp_path / "damaged.dcm").write_bytes((tmp_path / "a").read_bytes()[:200])
    damaged, series = sorted(find_scans([tmp_path]), key=lambda files: len(files.paths))
    with pytest.raises(InputError, match=r"damaged\.dcm: not a readable DICOM"):
        read_scan(damaged)
    scan = read_scan(series)
    np.testing.assert_array_equal(scan.voxels, twelve_bits.astype(np.uint32) * 65535 // 4095)
    assert scan.spacing_mm == pytest.approx(SPACING_MM)


def test_heidelbergs_vol(tmp_path):
    pytest.importorskip("eyepy")
    slices, rows, columns = VOXELS.shape
    exam = int((datetime.datetime(2026, 1, 31) - datetime.datetime(1601, 1, 1)).total_seconds()) * 10**7
    visit = float((datetime.date(2026, 1, 31) - datetime.date(1899, 12, 30)).days)
    content = struct.pack(
        "<12s3I3d2I2dId4sQiI",
        *(b"HSF-OCT-103", columns, slices, rows, SPACING_MM[0], SPACING_MM[2]),
        *(SPACING_MM[1], 8, 8, 0.01, 0.01, 30, 0.0, b"OS", exam, 3, 256),
    )
    content += struct.pack(
        "<16s16sI24sdI24sd4I34s1790x", *(b"1", b"", 1, b"x", 30000.0, 1, b"", visit, 0, 0, 0, 0, b"")
    )
    assert len(content) == 2048
    content += bytes(8 * 8)
    for index, slice_ in enumerate(VOXELS):
        z = index * SPACING_MM[2]
        header = (b"HSF-BS-103", 256, 0.0, z, columns * SPACING_MM[0], z, 0, 256, 30.0, 0, *[0.0] * 6)
        content += struct.pack("<12sI4d2IfI6f168x", *header)
        content += (np.exp(slice_ / 255 * 8.285 - 8.3) - 2.44e-4).astype("<f4").tobytes()  # the display's formula
    (tmp_path / "scan.vol").write_bytes(content)
    scan = read(tmp_path / "scan.vol", vendor=None)
    assert np.abs(scan.voxels.astype(int) - VOXELS).max() <= 1
    assert scan.spacing_mm == pytest.approx(SPACING_MM)
    assert (scan.vendor, scan.laterality, scan.scan_date) == ("Spectralis", "OS", "2026-01-31")


@pytest.mark.parametrize("name", ["a.vol", "a.e2e", "a.xml", "a.fda", "a.png", "a.tif", "a.dcm", "a.mhd", "a.nii.gz"])
def test_what_is_not_what_its_name_says_is_one_line(tmp_path, name):
    (tmp_path / name).write_text("not a scan, but some text that was given this name\n" * 5)
    (files,) = find_scans([tmp_path / name])
    with pytest.raises(InputError) as raised:
        read_scan(files, "Spectralis", SPACING_MM)
    assert len(raised.value.messages) == 1
    assert "\n" not in raised.value.messages[0]
    assert name in raised.value.messages[0]


# ---- Finding -------------------------------------------------------------------------------------------------------
def test_scans_from_file_case_folder_folder_of_cases_and_pattern(tmp_path):
    folder = tmp_path / "RETOUCH-TestSet-Topcon"
    for name in ("TEST001", "TEST002"):
        write_volume(folder / name / "oct.mhd", VOXELS, SPACING_MM)
        write_volume(folder / name / "reference.mhd", VOXELS, SPACING_MM)
    for path in (folder / "TEST001", folder / "TEST001" / "oct.mhd"):
        scan = read(path, vendor=None)
        assert (scan.vendor, scan.name) == ("Topcon", "TEST001")
    assert [files.name for files in find_scans([folder])] == ["TEST001", "TEST002"]
    assert [files.name for files in find_scans([str(folder / "*2"), folder / "TEST002"])] == ["TEST002"]
    assert read_scan(find_scans([folder])[0], "Cirrus").notes[0] == (
        "taken for a Cirrus scan as said; by its file or folder it is from Topcon"
    )


def test_a_link_to_a_folder_above_is_not_followed_for_ever(tmp_path):
    write_volume(tmp_path / "a" / "scan.mhd", VOXELS, SPACING_MM)
    (tmp_path / "a" / "above").symlink_to(tmp_path, target_is_directory=True)
    assert [scan.name for scan in find_scans([tmp_path])] == ["scan"]


def test_a_folder_of_folders_and_what_was_written_before(tmp_path):
    write_volume(tmp_path / "scans" / "b" / "left.mhd", VOXELS, SPACING_MM)
    write_volume(tmp_path / "scans" / "a" / "right.mhd", VOXELS, SPACING_MM)
    write_volume(tmp_path / "scans" / "out" / "labels.mhd", VOXELS, SPACING_MM)
    (tmp_path / "scans" / "notes.txt").write_text("no scan")
    found = find_scans([tmp_path / "scans"], leave_out=tmp_path / "scans" / "out")
    assert [files.name for files in found] == ["right", "left"]


def test_nothing_there(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no scan")
    with pytest.raises(InputError) as raised:
        find_scans([tmp_path / "empty", tmp_path / "nowhere", tmp_path / "*.png", tmp_path / "notes.txt"])
    for message, expected in zip(
        raised.value.messages, ("holds no scan", "no such file or folder", "no such file", "not a scan"), strict=True
    ):
        assert expected in message


# ---- What scans look like ------------------------------------------------------------------------------------------
def test_vendor_unknown_and_usual_spacings(tmp_path):
    write_volume(tmp_path / "scan.mhd", VOXELS, (1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="vendor unknown"):
        read(tmp_path / "scan.mhd", vendor=None)
    scan = read(tmp_path / "scan.mhd")
    assert scan.spacing_mm == pytest.approx((0.01145, 0.003872, 1.0))
    assert "spacing x 0.01145 mm, y 0.003872 mm assumed" in scan.notes[0]
    assert read(tmp_path / "scan.mhd", spacing_mm=SPACING_MM).spacing_mm == SPACING_MM
    assert usual_spacing_mm("Cirrus", (128, 512, 1024)) == pytest.approx((0.005871, 0.00391, 0.04705))


@pytest.mark.parametrize(
    ("voxels", "expected", "note"),
    [
        (np.array([[[0, 0.5, 1.0]]]), [0, 32768, 65535], "range of 0 to 1"),
        (np.array([[[0, 128.25, 255.0]]], np.float32), [0, 32960, 65535], "range of 0 to 255"),
        (np.array([[[np.nan, np.inf, 1.0]]]), [0, 0, 65535], "2 values that are not finite"),
        (np.array([[[0, 4095]]], np.int16), [0, 65535], "taken for 12 bits"),
        (np.array([[[0, 255]]], np.uint16), [0, 65535], "taken for 8 bits"),
        (np.array([[[0, 40000]]], np.int64), [0, 40000], None),
        (np.array([[[7, 7]]], np.uint8), [7, 7], None),
    ],
)
def test_grey_values_of_other_types(voxels, expected, note):
    grey, notes = as_grey(voxels, "scan")
    np.testing.assert_array_equal(grey.ravel(), expected)
    assert grey.dtype in (np.uint8, np.uint16)
    assert len(notes) == 0 if note is None else note in notes[0]


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (np.array([[[-1, 5]]]), "values from -1 to 5"),
        (np.array([[[0, 70000]]]), "0 to 70000"),
        (np.array([[[0.0, 1e4]]]), "whose range is not known"),
        (np.zeros((1, 0, 5), np.uint8), "holds no pixels"),
        (np.zeros((1, 2, 2), complex), "complex128"),
    ],
)
def test_grey_values_that_cannot_be(voxels, message):
    with pytest.raises(InputError, match=message):
        as_grey(voxels, "scan")


def test_voxels_come_from_the_file_slice_by_slice(tmp_path):
    write_volume(tmp_path / "scan.mhd", VOXELS, SPACING_MM)
    voxels, _ = open_voxels(tmp_path / "scan.mhd")
    assert isinstance(voxels, VoxelFile)
    assert (voxels.min(), voxels.max(), len(voxels)) == (VOXELS.min(), VOXELS.max(), 4)
    np.testing.assert_array_equal(np.stack(list(voxels)), VOXELS)
    (tmp_path / "scan.raw").write_bytes(b"short")
    with pytest.raises(InputError, match="became shorter"):
        voxels[1]
