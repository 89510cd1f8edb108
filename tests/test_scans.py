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
from dicoms import dicom
from PIL import Image
from pydicom.dataset import Dataset

from utils.errors import InputError
from utils.volumes.geometry import NOT_STATED
from utils.volumes.grey_values import as_grey
from utils.volumes.mhd import VoxelFile, open_voxels, write_volume
from utils.volumes.scans import find_scans, read_scan
from utils.volumes.spacing import usual_spacing_mm

SPACING_MM = (0.0117, 0.003872, 0.12)
RNG = np.random.default_rng(3)
VOXELS = RNG.integers(0, 256, (4, 20, 30)).astype(np.uint8)


def read(path, vendor="Spectralis", spacing_mm=None):
    (files,) = find_scans([path])
    return read_scan(files, vendor, spacing_mm)


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
    # 4095 is no divisor of 65535: rounding before or after the inversion differs by one of 65535.
    np.testing.assert_allclose(read(tmp_path / "scan.dcm").voxels.astype(int), expected.astype(int), atol=1)


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


@pytest.mark.parametrize(
    "name", ["a.vol", "a.e2e", "a.xml", "a.fda", "a.fds", "a.png", "a.tif", "a.dcm", "a.mhd", "a.nii.gz"]
)
def test_what_is_not_what_its_name_says_is_one_line(tmp_path, name):
    (tmp_path / name).write_text("not a scan, but some text that was given this name\n" * 5)
    (files,) = find_scans([tmp_path / name])
    with pytest.raises(InputError) as raised:
        read_scan(files, "Spectralis", SPACING_MM)
    assert len(raised.value.messages) == 1
    assert "\n" not in raised.value.messages[0]
    assert name in raised.value.messages[0]


def test_the_sign_of_a_spacing_is_a_direction(tmp_path):
    header = "NDims = 3\nDimSize = 30 20 4\nElementSpacing = 0.0117 0.003872 -0.12\nElementType = MET_UCHAR\n"
    (tmp_path / "scan.mhd").write_text(f"ObjectType = Image\n{header}ElementDataFile = scan.raw\n")
    (tmp_path / "scan.raw").write_bytes(VOXELS.tobytes())
    affine = np.diag([SPACING_MM[0], -SPACING_MM[1], -SPACING_MM[2], 1])
    nibabel.save(nibabel.Nifti1Image(VOXELS.transpose(2, 1, 0), affine), tmp_path / "scan.nii")
    for name in ("scan.mhd", "scan.nii"):
        scan = read(tmp_path / name)
        assert (scan.spacing_mm, scan.notes) == (pytest.approx(SPACING_MM), ())


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
    assert scan.spacing_mm == pytest.approx((0.01145, 0.003872, 0.1225))
    assert "spacing x 0.01145 mm, y 0.003872 mm, z 0.1225 mm assumed" in scan.notes[0]
    assert read(tmp_path / "scan.mhd", spacing_mm=SPACING_MM).spacing_mm == SPACING_MM
    assert usual_spacing_mm("Cirrus", (128, 512, 1024)) == pytest.approx((0.005871, 0.00391, 0.04705))


@pytest.mark.parametrize(
    ("voxels", "expected", "note"),
    [
        (np.array([[[0, 0.5, 1.0]]]), [0, 32768, 65535], "range of 0 to 1"),
        (
            np.array([[[0, 128.25, 255.0]]], np.float32),
            [0, 32960, 65535],
            "values up to 255 in float32 taken for 8 bits",
        ),
        (np.array([[[np.nan, np.inf, 1.0]]]), [0, 0, 65535], "2 values that are not finite"),
        (np.array([[[0, 4095]]], np.int16), [0, 65535], "taken for 12 bits"),
        (np.array([[[0, 255]]], np.uint16), [0, 65535], "taken for 8 bits"),
        (np.array([[[0, 40000]]], np.int64), [0, 40000], None),
        (np.array([[[297, 65535]]], np.float32), [297, 65535], "up to 65535 in float32 taken for 16 bits"),
        (np.array([[[0, 2048, 4095]]], np.float64), [0, 32775, 65535], "up to 4095 in float64 taken for 12 bits"),
        (np.array([[[0.5, 65535]]]), [0, 65535], "up to 65535 in float64 taken for 16 bits"),
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
        (np.array([[[0.0, 1e5]]]), "from 0 to 100000, expected 0 to 65535"),
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


# ---- Where they lie ------------------------------------------------------------------------------------------------
ORIENTATION, ORIGIN_MM = [1, 0, 0, 0, 0, -1], (10.0, 20.0, 30.0)  # DICOM's: columns to the left, rows down
DOWN_AND_BACK = (1, 0, 0, 0, 0, 1, 0, -1, 0)  # as ITK has it: slices follow to the back


def world_mm(placement, index):
    """Where the voxel `index` (x, y, z) of a volume lies by SimpleITK."""
    image = SimpleITK.Image([1, 1, 1], SimpleITK.sitkUInt8)
    image.SetSpacing(SPACING_MM)
    image.SetDirection(placement.direction)
    image.SetOrigin(placement.origin_mm)
    return image.TransformIndexToPhysicalPoint(index)


@pytest.mark.parametrize("name", ["scan.mhd", "scan.mha", "scan.nrrd", "scan.nii.gz"])
def test_direction_and_origin_of_simpleitks_formats(tmp_path, name):
    image = SimpleITK.GetImageFromArray(VOXELS)
    image.SetSpacing(SPACING_MM)
    image.SetDirection(DOWN_AND_BACK)
    image.SetOrigin(ORIGIN_MM)
    SimpleITK.WriteImage(image, str(tmp_path / name))
    placement = read(tmp_path / name).placement
    for index in ((0, 0, 0), (29, 19, 3)):
        assert world_mm(placement, index) == pytest.approx(image.TransformIndexToPhysicalPoint(index), abs=1e-5)


def test_direction_and_origin_of_a_dicom_series(tmp_path):
    """Each file says where its own first pixel is. The order of reading the files does not matter."""
    for index, name in zip((2, 0, 3, 1), "abcd", strict=True):
        data = dicom(VOXELS[index])
        data.SeriesInstanceUID, data.PixelSpacing = "1.2.3", [SPACING_MM[1], SPACING_MM[0]]
        data.ImageOrientationPatient = ORIENTATION
        data.ImagePositionPatient = [ORIGIN_MM[0], ORIGIN_MM[1] + index * SPACING_MM[2], ORIGIN_MM[2]]
        data.save_as(tmp_path / f"{name}.dcm", enforce_file_format=True)
    scan = read(tmp_path)
    for n, slice_ in enumerate(scan.voxels):
        index = next(index for index, voxels in enumerate(VOXELS) if (voxels == slice_).all())
        expected = (ORIGIN_MM[0], ORIGIN_MM[1] + index * SPACING_MM[2], ORIGIN_MM[2])
        assert world_mm(scan.placement, (0, 0, n)) == pytest.approx(expected)
        below = (ORIGIN_MM[0], expected[1], ORIGIN_MM[2] - 19 * SPACING_MM[1])
        assert world_mm(scan.placement, (0, 19, n)) == pytest.approx(below)


def test_direction_and_origin_of_dicom_of_several_frames(tmp_path):
    """The frames follow from the back to the front, so z points there."""
    data = dicom(VOXELS)
    orientation, frames = Dataset(), []
    orientation.ImageOrientationPatient = ORIENTATION
    data.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence = pydicom.Sequence([orientation])
    for index in range(len(VOXELS)):
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = [ORIGIN_MM[0], ORIGIN_MM[1] - index * SPACING_MM[2], ORIGIN_MM[2]]
        frame.PlanePositionSequence = pydicom.Sequence([position])
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = pydicom.Sequence(frames)
    data.save_as(tmp_path / "scan.dcm", enforce_file_format=True)
    scan = read(tmp_path / "scan.dcm")
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    last = (ORIGIN_MM[0], ORIGIN_MM[1] - 3 * SPACING_MM[2], ORIGIN_MM[2])
    assert world_mm(scan.placement, (0, 0, 3)) == pytest.approx(last)
    assert world_mm(scan.placement, (0, 0, 0)) == pytest.approx(ORIGIN_MM)


def test_what_states_no_place_has_the_default(tmp_path):
    dicom(VOXELS).save_as(tmp_path / "scan.dcm", enforce_file_format=True)
    data, orientation = dicom(VOXELS), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0]
    data.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence = pydicom.Sequence([orientation])
    data.save_as(tmp_path / "cut.dcm", enforce_file_format=True)
    tifffile.imwrite(tmp_path / "stack.tif", VOXELS, photometric="minisblack")
    for name in ("scan.dcm", "stack.tif", "cut.dcm"):
        assert read(tmp_path / name).placement == NOT_STATED
