"""Volumes in and out: SimpleITK is the independent reader and writer."""

import os

import nibabel
import numpy as np
import pytest
import SimpleITK

from utils.errors import InputError
from utils.volumes.mhd import open_volume, open_voxels, read_header, read_volume, volume_files, write_volume

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


def test_four_dimensions_of_one_volume_are_three(tmp_path):
    image = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(some_voxels("uint8"))])
    assert image.GetDimension() == 4
    image.SetSpacing((*SPACING_MM, 1))
    for name in ("a.mhd", "a.nrrd", "a.nii.gz"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
        voxels, spacing_mm = read_volume(tmp_path / name)
        np.testing.assert_array_equal(voxels, some_voxels("uint8"))
        assert spacing_mm == pytest.approx(SPACING_MM)


@pytest.mark.parametrize("name", ["scaled.nii", "scaled.nii.gz", "SCALED.NII.GZ"])
def test_scaled_integers_of_nifti(tmp_path, name):
    fractions = np.arange(3 * 40 * 50).reshape(3, 40, 50) / 6000
    image = nibabel.Nifti1Image(fractions.transpose(2, 1, 0), np.diag([*SPACING_MM, 1]))
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / name.lower())
    (tmp_path / name.lower()).rename(tmp_path / name)
    expected = image.from_bytes(image.to_bytes()).get_fdata().transpose(2, 1, 0)
    np.testing.assert_allclose(read_volume(tmp_path / name)[0], expected, atol=1e-6)
    if name == "scaled.nii":
        os.truncate(tmp_path / name, 352 + 2 * 6000 - 5)
        with pytest.raises(InputError, match=r"scaled\.nii: 12347 bytes"):
            read_volume(tmp_path / name)


def with_header(path, text):
    path.write_text(path.read_text().replace(f"ElementDataFile = {path.stem}.raw\n", text))


def test_a_header_longer_than_64_kib(tmp_path):
    for name in ("a.mhd", "a.mha"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(some_voxels("uint16")), str(tmp_path / name))
        lines = b"".join(b"Frame%06d = 1515760436\n" % number for number in range(5000))
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content.replace(b"ElementDataFile", lines + b"ElementDataFile"))
        np.testing.assert_array_equal(read_volume(tmp_path / name)[0], some_voxels("uint16"))
    assert open_voxels(tmp_path / "a.mhd")[0].max() == 69


@pytest.mark.parametrize("data_file", ["slice%d.raw 0 1 1", "LIST\nslice0.raw\nslice1.raw"])
@pytest.mark.parametrize("suffix", [".mhd", ".MHD"])
def test_a_slice_a_file(tmp_path, data_file, suffix):
    path = tmp_path / "a.mhd"
    write_volume(path, some_voxels("uint8"), SPACING_MM)
    with_header(path, f"ElementDataFile = {data_file}\n")
    for number, slice_ in enumerate(some_voxels("uint8")):
        (tmp_path / f"slice{number}.raw").write_bytes(slice_.tobytes())
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))), some_voxels("uint8"))
    path.rename(path.with_suffix(suffix))
    np.testing.assert_array_equal(read_volume(path.with_suffix(suffix))[0], some_voxels("uint8"))
    assert open_voxels(path.with_suffix(suffix)) is None
    os.truncate(tmp_path / "slice1.raw", 34)
    with pytest.raises(InputError, match=r"slice1\.raw: 34 bytes, expected 35"):
        read_volume(path.with_suffix(suffix))


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("in_header", [b"M\xfcller", "M\u00fcller".encode(), b"m\xdcLLER"])
@pytest.mark.parametrize("on_disk", [b"M\xfcller", "M\u00fcller".encode(), "Mu\u0308ller".encode()])
def test_umlauts_in_utf8_and_latin1(tmp_path, compressed, in_header, on_disk):
    """Header and file system may each have them in another way; SimpleITK opens the bytes that the header has."""
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(some_voxels("uint8")), str(tmp_path / "x.mhd"), compressed)
    suffix, named = (".zraw", b"x.zraw") if compressed else (".raw", b"x.raw")
    content = (tmp_path / "x.mhd").read_bytes().replace(named, in_header + suffix.encode())
    (tmp_path / f"x{suffix}").rename(tmp_path / (os.fsdecode(on_disk) + suffix))
    path = tmp_path / os.fsdecode(on_disk + b".mhd")
    path.write_bytes(content)
    np.testing.assert_array_equal(read_volume(path)[0], some_voxels("uint8"))
    if not compressed:
        assert open_voxels(path)[0].max() == 69
        assert volume_files(path) == [path, path.with_suffix(".raw")]


def test_what_is_written_under_any_name_is_opened(tmp_path):
    path = tmp_path / "Spectralis_M\u00fcller 50% \u00b2.mhd"
    write_volume(path, some_voxels("uint8"), SPACING_MM)
    for read in (read_volume, open_volume, open_voxels):
        np.testing.assert_array_equal(np.stack(list(read(path)[0])), some_voxels("uint8"))


def test_compressed_volume_cannot_be_opened(tmp_path):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(some_voxels("uint8")), str(tmp_path / "a.mhd"), True)
    with pytest.raises(InputError, match="prepare the data again"):
        open_volume(tmp_path / "a.mhd")


def test_write_volume_refuses_other_types(tmp_path):
    with pytest.raises(ValueError, match="uint8, uint16, float32"):
        write_volume(tmp_path / "a.mhd", some_voxels("int64"), SPACING_MM)
    with pytest.raises(ValueError, match="2-D"):
        write_volume(tmp_path / "a.mhd", some_voxels("uint8")[0], SPACING_MM)
