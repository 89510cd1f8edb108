"""Volumes in and out: SimpleITK is the independent reader and writer."""

import numpy as np
import pytest
import SimpleITK

from utils.errors import InputError
from utils.mhd import open_volume, open_voxels, read_header, read_volume, write_volume

SPACING_MM = (0.0117, 0.003872, 0.12)


def some_voxels(dtype):
    return np.arange(2 * 5 * 7).reshape(2, 5, 7).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_written_volume_is_what_simpleitk_and_memmap_read(tmp_path, dtype):
    write_volume(tmp_path / "a.mhd", some_voxels(dtype), SPACING_MM)
    image = SimpleITK.ReadImage(str(tmp_path / "a.mhd"))
    assert image.GetSize() == (7, 5, 2)
    assert image.GetSpacing() == pytest.approx(SPACING_MM)
    for voxels, spacing_mm in (read_volume(tmp_path / "a.mhd"), open_volume(tmp_path / "a.mhd")):
        assert voxels.dtype == dtype
        np.testing.assert_array_equal(voxels, SimpleITK.GetArrayFromImage(image))
        assert spacing_mm == pytest.approx(SPACING_MM)


def test_opened_volume_is_a_read_only_memmap(tmp_path):
    write_volume(tmp_path / "a.mhd", some_voxels("uint8"), SPACING_MM)
    voxels, _ = open_volume(tmp_path / "a.mhd")
    assert isinstance(voxels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        voxels[0, 0, 0] = 1


def test_voxels_of_16_bit_come_slice_by_slice(tmp_path):
    write_volume(tmp_path / "a.mhd", some_voxels("uint16"), SPACING_MM)
    voxels, spacing_mm = open_voxels(tmp_path / "a.mhd")
    np.testing.assert_array_equal(np.stack(list(voxels)), some_voxels("uint16"))
    assert spacing_mm == pytest.approx(SPACING_MM)


@pytest.mark.parametrize("field", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
def test_voxels_of_another_byte_order_are_not_taken_as_they_lie(tmp_path, field):
    path = tmp_path / "a.mhd"
    write_volume(path, some_voxels("uint16"), SPACING_MM)
    path.with_suffix(".raw").write_bytes(some_voxels(">u2").tobytes())
    path.write_text(path.read_text().replace("BinaryDataByteOrderMSB = False", f"{field} = True"))
    assert open_voxels(path) is None
    np.testing.assert_array_equal(read_volume(path)[0], some_voxels("uint16"))


def test_header_without_voxels(tmp_path):
    write_volume(tmp_path / "a.mhd", some_voxels("uint16"), SPACING_MM)
    header = read_header(tmp_path / "a.mhd")
    assert (header.shape, header.element_type) == ((2, 5, 7), "uint16")
    assert header.spacing_mm == pytest.approx(SPACING_MM)


@pytest.mark.parametrize("name", ["a.mhd", "a.mha", "a.nii.gz"])
def test_other_writers_files_are_read(tmp_path, name):
    image = SimpleITK.GetImageFromArray(some_voxels("uint16"))
    SimpleITK.WriteImage(image, str(tmp_path / name), useCompression=True)
    np.testing.assert_array_equal(read_volume(tmp_path / name)[0], some_voxels("uint16"))


def test_flat_image_is_one_slice(tmp_path):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(some_voxels("uint8")[0]), str(tmp_path / "a.png"))
    voxels, spacing_mm = read_volume(tmp_path / "a.png")
    assert voxels.shape == (1, 5, 7)
    assert len(spacing_mm) == 3


@pytest.mark.parametrize("read", [read_volume, open_volume])
def test_missing_truncated_and_garbled_files_are_one_line(tmp_path, read):
    path = tmp_path / "a.mhd"
    with pytest.raises(InputError, match=r"a\.mhd.*no such file|a\.mhd: No such file"):
        read(path)
    write_volume(path, some_voxels("uint8"), SPACING_MM)
    (tmp_path / "a.raw").write_bytes(bytes(69))
    with pytest.raises(InputError, match=r"a\.raw: 69 bytes, expected 70 by a\.mhd"):
        read(path)
    (tmp_path / "a.raw").unlink()
    with pytest.raises(InputError, match=r"a\.raw is missing"):
        read(path)
    path.write_text("no header")
    with pytest.raises(InputError) as raised:
        read(path)
    assert "a.mhd" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_damaged_compressed_voxels_are_not_returned(tmp_path):
    """SimpleITK returns them as if nothing were wrong."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 30, 40)).astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(noise), str(tmp_path / "a.mhd"), useCompression=True)
    compressed = bytearray((tmp_path / "a.zraw").read_bytes())
    compressed[500:900] = bytes(400)
    (tmp_path / "a.zraw").write_bytes(compressed)
    with pytest.raises(InputError, match=r"a\.zraw: damaged"):
        read_volume(tmp_path / "a.mhd")
    (tmp_path / "a.zraw").write_bytes(compressed[:500])
    with pytest.raises(InputError, match=r"a\.zraw: 500 bytes"):
        read_volume(tmp_path / "a.mhd")


def test_colours_and_four_dimensions_are_refused(tmp_path):
    colours = SimpleITK.GetImageFromArray(np.zeros((4, 5, 3), np.uint8), isVector=True)
    SimpleITK.WriteImage(colours, str(tmp_path / "a.png"))
    with pytest.raises(InputError, match="grey"):
        read_volume(tmp_path / "a.png")
    SimpleITK.WriteImage(SimpleITK.Image([2, 2, 2, 2], SimpleITK.sitkUInt8), str(tmp_path / "b.mha"))
    with pytest.raises(InputError, match="4 dimensions"):
        read_volume(tmp_path / "b.mha")


def test_compressed_volume_cannot_be_opened(tmp_path):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(some_voxels("uint8")), str(tmp_path / "a.mhd"), True)
    with pytest.raises(InputError, match="prepare the data again"):
        open_volume(tmp_path / "a.mhd")


def test_write_volume_refuses_other_types(tmp_path):
    with pytest.raises(ValueError, match="uint8, uint16, float32"):
        write_volume(tmp_path / "a.mhd", some_voxels("int64"), SPACING_MM)
    with pytest.raises(ValueError, match="2-D"):
        write_volume(tmp_path / "a.mhd", some_voxels("uint8")[0], SPACING_MM)
