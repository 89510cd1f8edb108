"""OCT volumes and reference masks in and out: MetaImage files, vendors and what their scans look like."""

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files import written_whole
from utils.metaimage import data_files, is_local, metaimage_fields, metaimage_head, named_files
from utils.names import suffix_of
from utils.volume_checks import check_counts, check_data_file, check_size


@dataclass(frozen=True)
class VendorFormat:
    """How a vendor's volumes are exported in RETOUCH (measured on the 70 training volumes)."""

    element_type: str  # numpy dtype of oct.raw
    columns: int
    rows: tuple  # every height seen
    slices: int
    spacing_x_mm: tuple  # smallest and largest column spacing seen
    spacing_y_mm: tuple  # row spacing for each height in `rows`
    spacing_z_mm: tuple  # smallest and largest slice spacing seen


VENDORS = {
    "Cirrus": VendorFormat("uint8", 512, (1024,), 128, (0.011742, 0.011742), (0.001955,), (0.0469, 0.0472)),
    "Spectralis": VendorFormat("uint16", 512, (496,), 49, (0.0109, 0.0120), (0.003872,), (0.116, 0.129)),
    "Topcon": VendorFormat("uint8", 512, (885, 650), 128, (0.01172, 0.01172), (0.0026, 0.0035), (0.04688, 0.04688)),
}

VOLUMES = (".mhd", ".mha", ".nii", ".nii.gz", ".nrrd")  # what SimpleITK reads
_METAIMAGE = (".mhd", ".mha")
_ELEMENT_TYPES = {"uint8": "MET_UCHAR", "uint16": "MET_USHORT", "float32": "MET_FLOAT"}

# SimpleITK's name of every pixel type with one value -> numpy's
_PIXEL_TYPES = {f"{bits}-bit signed integer": f"int{bits}" for bits in (8, 16, 32, 64)}
_PIXEL_TYPES |= {f"{bits}-bit unsigned integer": f"uint{bits}" for bits in (8, 16, 32, 64)}
_PIXEL_TYPES |= {"32-bit float": "float32", "64-bit float": "float64"}


@dataclass(frozen=True)
class VolumeHeader:
    """What a volume's header says, before any voxel is read."""

    shape: tuple  # (slices, rows, columns)
    spacing_mm: tuple  # (x, y, z)
    element_type: str  # numpy dtype name


def write_volume(path, voxels, spacing_mm):
    """Write `voxels` (slices, rows, columns; uint8, uint16 or float32) as uncompressed MetaImage.

    `path` ends in ``.mhd``; the voxels go into the ``.raw`` beside it, which is complete before the header appears.
    `spacing_mm` is (x, y, z) = (column, row, slice) spacing in mm.
    """
    if voxels.ndim != 3 or voxels.dtype.name not in _ELEMENT_TYPES:
        raise ValueError(f"expected a 3-D array of {', '.join(_ELEMENT_TYPES)}, got {voxels.ndim}-D {voxels.dtype}")
    with volume_writer(path, voxels.shape, voxels.dtype, spacing_mm) as write_slice:
        for slice_ in voxels:
            write_slice(slice_)


@contextlib.contextmanager
def volume_writer(path, shape, dtype, spacing_mm):
    """``with volume_writer(...) as write_slice``: what `write_volume` writes, slice by slice.

    `shape` is (slices, rows, columns); each slice (rows, columns) is given once, in order.
    """
    path, little_endian = Path(path), np.dtype(dtype).newbyteorder("<")
    slices, rows, columns = shape
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nCenterOfRotation = 0 0 0\n"
        f"ElementSpacing = {' '.join(f'{value:.10g}' for value in spacing_mm)}\n"
        f"DimSize = {columns} {rows} {slices}\n"
        f"ElementType = {_ELEMENT_TYPES[np.dtype(dtype).name]}\n"
        f"ElementDataFile = {path.with_suffix('.raw').name}\n"
    )
    with written_whole(path.with_suffix(".raw")) as temporary, open(temporary, "wb") as file:
        yield lambda slice_: file.write(np.ascontiguousarray(slice_, little_endian).data)
    with written_whole(path) as temporary:
        temporary.write_text(header, "utf-8")


def read_volume(path):
    """Voxels (slices, rows, columns) and spacing (x, y, z) in mm of a volume in any format that SimpleITK reads.

    A 2-D image is one slice; its slice spacing, which it does not state, is given as 1 mm. Raises `InputError` for a
    missing, truncated or unreadable file, and for anything but grey values in two or three dimensions.
    """
    import SimpleITK  # here, because preprocessed volumes are read on machines without it

    path = Path(path)
    header = read_header(path)
    check_data_file(path, header)
    try:
        with _name_for_simpleitk(path) as name:
            voxels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(name))
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return voxels.reshape(header.shape), header.spacing_mm


def read_header(path):
    """`VolumeHeader` of a volume in any format that SimpleITK reads; reads no voxels. Errors as in `read_volume`."""
    import SimpleITK

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if suffix_of(path) in _METAIMAGE:
        check_counts(path)
    reader = SimpleITK.ImageFileReader()
    try:
        with _name_for_simpleitk(path) as name:
            reader.SetFileName(name)
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    size, spacing_mm = reader.GetSize(), reader.GetSpacing()
    element_type = _PIXEL_TYPES.get(SimpleITK.GetPixelIDValueAsString(reader.GetPixelID()))
    if element_type is None:
        raise InputError(f"{path}: several values per pixel, expected one grey value; convert it to a grey image")
    if len(size) == 2:
        size, spacing_mm = (*size, 1), (*spacing_mm, 1.0)
    if set(size[3:]) == {1}:  # volumes over time, of which there is one
        size, spacing_mm = size[:3], spacing_mm[:3]
    if len(size) != 3:
        raise InputError(f"{path}: {len(size)} dimensions, expected 3 (columns, rows, slices)")
    return VolumeHeader(tuple(size[::-1]), tuple(spacing_mm), element_type)


@contextlib.contextmanager
def _name_for_simpleitk(path):
    """``with _name_for_simpleitk(path) as name``: text under which SimpleITK opens the file at `path`.

    A name that is not UTF-8 ends the process, it knows formats by small letters alone, and takes a data file with % in
    its name for a pattern. Such a file is linked under another name, with the data files that its header names.
    """
    suffix = suffix_of(path)
    apart = suffix in _METAIMAGE and not is_local(path)
    found = data_files(path) if apart else []
    is_utf8 = os.fsencode(path) == str(path).encode("utf-8", "replace")
    as_named = not apart or (found == named_files(path) and "%" not in found[0].name)
    if is_utf8 and path.name.endswith(suffix) and as_named:
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, f"image{suffix}")
        if apart:
            names = []
            for number, data_path in enumerate(found):
                names.append(f"data{number}")
                Path(folder, names[-1]).symlink_to(os.path.abspath(data_path))
            head = metaimage_head(path)
            head = head[: head.rindex(b"ElementDataFile")]
            named = names[0] if len(names) == 1 else "\n".join(["LIST", *names])
            link.write_bytes(head + f"ElementDataFile = {named}\n".encode())
        else:
            link.symlink_to(os.path.abspath(path))
        yield str(link)


class VoxelFile:
    """Voxels (slices, rows, columns) in a file, of which a slice is read whenever it is asked for."""

    def __init__(self, path, shape, dtype):
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self.ndim, self.size = len(shape), int(np.prod(shape))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        count = self.shape[1] * self.shape[2]
        slice_ = np.fromfile(self.path, self.dtype, count, offset=index * count * self.dtype.itemsize)
        if slice_.size < count:
            raise InputError(f"{self.path}: became shorter while it was read; copy or export the case again")
        return slice_.reshape(self.shape[1:])

    def min(self):
        """The smallest voxel."""
        return min(slice_.min() for slice_ in self)

    def max(self):
        """The largest voxel."""
        return max(slice_.max() for slice_ in self)


def open_voxels(path):
    """As `read_volume`, but the voxels as a `VoxelFile`; None where they do not lie in a file of their own as 8 or 16
    bits: compressed, in the header's file, of another byte order or type.
    """
    header = read_header(path)
    check_data_file(path, header)
    fields = metaimage_fields(path)
    as_they_are = (
        fields.get("CompressedData", "False").lower() != "true"
        and fields.get("BinaryDataByteOrderMSB", "False").lower() != "true"
        and fields.get("ElementByteOrderMSB", "False").lower() != "true"
        and header.element_type in ("uint8", "uint16")
        and not {"HeaderSize", "ElementNumberOfChannels"} & set(fields)
    )
    paths = data_files(path)
    if not as_they_are or is_local(path) or len(paths) > 1:
        return None
    return VoxelFile(paths[0], header.shape, header.element_type), header.spacing_mm


def open_volume(path):
    """Read-only `numpy.memmap` (slices, rows, columns) and spacing (x, y, z) in mm of a volume by `write_volume`.

    Reads the header alone; a slice comes from disk when it is indexed. Raises `InputError` for a missing file, another
    kind of MetaImage, or a ``.raw`` whose size does not fit the header.
    """
    path = Path(path)
    fields = metaimage_fields(path)
    try:
        shape = tuple(int(value) for value in fields["DimSize"].split())[::-1]
        spacing_mm = tuple(float(value) for value in fields["ElementSpacing"].split())
        element_type = {name: dtype_name for dtype_name, name in _ELEMENT_TYPES.items()}[fields["ElementType"]]
        (data_path,) = data_files(path)
        if len(shape) != 3 or len(spacing_mm) != 3 or fields.get("CompressedData", "False") == "True":
            raise ValueError("not an uncompressed volume of three dimensions")
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path}: not an uncompressed 3-D MetaImage as prepare_data.py writes it ({error}); prepare the data again"
        ) from error
    dtype = np.dtype(element_type).newbyteorder("<")
    expected = int(np.prod(shape)) * dtype.itemsize
    check_size(path, data_path, expected)
    if min(shape) < 1:
        raise InputError(f"{path}: DimSize {fields['DimSize']} holds no voxels; prepare the data again")
    return np.memmap(data_path, dtype, mode="r", shape=shape), spacing_mm


def volume_files(path):
    """The files that the volume at `path` consists of: the header and, where it names them, its data files."""
    path = Path(path)
    return list(dict.fromkeys([path, *data_files(path)])) if suffix_of(path) in _METAIMAGE else [path]


def _unreadable(path, error):
    reason = str(error).strip().splitlines()[-1].strip()
    return InputError(f"{path}: cannot be read as an image ({reason}); copy or export it again")
