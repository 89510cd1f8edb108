"""OCT volumes and reference masks in and out, as MetaImage files."""

import contextlib
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files import written_whole
from utils.names import is_utf8, suffix_of
from utils.volumes.file_checks import check_counts, check_data_file, check_size
from utils.volumes.geometry import IDENTITY, NIFTI_IDENTITY, NOT_STATED, Placement, find_reordering, stated_placement
from utils.volumes.metaimage import data_files, is_local, metaimage_fields, metaimage_head, named_files

VOLUMES = (".mhd", ".mha", ".nii", ".nii.gz", ".nrrd")  # what SimpleITK reads
_METAIMAGE = (".mhd", ".mha")
_ELEMENT_TYPES = {"uint8": "MET_UCHAR", "uint16": "MET_USHORT", "float32": "MET_FLOAT"}

# SimpleITK's name of every pixel type with one value -> numpy's
_PIXEL_TYPES = {f"{bits}-bit signed integer": f"int{bits}" for bits in (8, 16, 32, 64)}
_PIXEL_TYPES |= {f"{bits}-bit unsigned integer": f"uint{bits}" for bits in (8, 16, 32, 64)}
_PIXEL_TYPES |= {"32-bit float": "float32", "64-bit float": "float64"}

_SPACING_TOLERANCE = 0.01  # share by which a scan's and its labels' spacing may differ: some programs round it


@dataclass(frozen=True)
class VolumeHeader:
    """What a volume's header says. No voxel has been read."""

    shape: tuple  # (slices, rows, columns)
    spacing_mm: tuple  # (x, y, z)
    element_type: str  # numpy dtype name
    placement: Placement = NOT_STATED

    @property
    def size_text(self):
        """Columns, rows and slices as text for messages."""
        slices, rows, columns = self.shape
        return f"{columns} x {rows} x {slices} voxels"

    @property
    def spacing_text(self):
        """The spacing as text for messages."""
        return f"{_for_the_eye(self.spacing_mm, ' x ')} mm"

    @property
    def placement_text(self):
        """Direction (as in MetaImage's TransformMatrix) and origin, as text for messages."""
        matrix, origin = _transform_matrix(self.placement), _for_the_eye(self.placement.origin_mm)
        return f"direction {_for_the_eye(matrix)} and origin {origin} mm"


def write_volume(path, voxels, spacing_mm, placement=NOT_STATED):
    """Write `voxels` (slices, rows, columns; uint8, uint16 or float32) as uncompressed MetaImage.

    `path` ends in ``.mhd``. The voxels go into the ``.raw`` of the same name, which is complete before the header.
    `spacing_mm` is (x, y, z) = (column, row, slice) spacing in mm; `placement` says where the grid lies.
    """
    if voxels.ndim != 3 or voxels.dtype.name not in _ELEMENT_TYPES:
        raise ValueError(f"expected a 3-D array of {', '.join(_ELEMENT_TYPES)}, got {voxels.ndim}-D {voxels.dtype}")
    with volume_writer(path, voxels.shape, voxels.dtype, spacing_mm, placement) as write_slice:
        for slice_ in voxels:
            write_slice(slice_)


@contextlib.contextmanager
def volume_writer(path, shape, dtype, spacing_mm, placement=NOT_STATED):
    """``with volume_writer(...) as write_slice``: as `write_volume`, but slice by slice.

    `shape` is (slices, rows, columns). Call ``write_slice`` once for each slice (rows, columns), in order.
    """
    path, little_endian = Path(path), np.dtype(dtype).newbyteorder("<")
    slices, rows, columns = shape
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        f"TransformMatrix = {_as_text(_transform_matrix(placement))}\n"
        f"Offset = {_as_text(placement.origin_mm)}\nCenterOfRotation = 0 0 0\n"
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

    A 2-D image is one slice. It states no slice spacing, so 1 mm is returned for it. Raises `InputError` for a missing,
    truncated or unreadable file, and for anything other than grey values in two or three dimensions.
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


def read_volume_onto(path, onto):
    """Voxels of the volume at `path` in the order of the volume at `onto`. Errors as in `reordering_onto`."""
    reordering = reordering_onto(path, onto)
    return reordering.apply(read_volume(path)[0])


def reordering_onto(path, onto):
    """The `utils.volumes.geometry.Reordering` that brings the volume at `path` onto the grid of the one at `onto`.

    Reads only headers. Raises `InputError` if size, spacing or place in the world differ, and as `read_header` does.
    """
    return reordering_onto_grid(path, read_header(onto), onto)


def reordering_onto_grid(path, target, onto):
    """As `reordering_onto`, with the grid of the scan at `onto` given as a `VolumeHeader`, `target`."""
    header = read_header(path)
    reordering = find_reordering(header, target)
    if reordering is None and header.shape != target.shape:
        raise InputError(
            f"{path} has {header.size_text}, expected {target.size_text} as in {onto}; export both on one grid"
        )
    if reordering is None:
        raise InputError(
            f"{path} has {header.placement_text}, expected {target.placement_text} as in {onto}; resample it onto that "
            "one, or, if their voxels are in the same order, give both headers the same TransformMatrix and Offset"
        )
    check_spacing(path, header, reordering, target, onto)
    return reordering


def check_spacing(path, header, reordering, target, onto):
    """Raise `InputError` if the volume at `path`, reordered, has another spacing than the grid `target` of `onto`."""
    spacing_mm = np.array(header.spacing_mm)[list(reordering.axes)]
    if not np.allclose(spacing_mm, target.spacing_mm, rtol=_SPACING_TOLERANCE, atol=0):
        raise InputError(
            f"{path} has a spacing of {header.spacing_text}, expected {target.spacing_text} as in {onto}; "
            "give both headers the scan's ElementSpacing"
        )


def read_header(path):
    """`VolumeHeader` of a volume in any format that SimpleITK reads; reads no voxels. Errors as in `read_volume`."""
    import SimpleITK

    path = Path(path)
    reader = _read_information(path)
    size, spacing_mm = reader.GetSize(), reader.GetSpacing()
    element_type = _PIXEL_TYPES.get(SimpleITK.GetPixelIDValueAsString(reader.GetPixelID()))
    if element_type is None:
        raise InputError(f"{path}: several values per pixel, expected one grey value; convert it to a grey image")
    placement = _placement(path, reader.GetDirection(), reader.GetOrigin())
    if len(size) == 2:
        size, spacing_mm = (*size, 1), (*spacing_mm, 1.0)
    if set(size[3:]) == {1}:  # a series of volumes over time that holds one volume
        size, spacing_mm = size[:3], spacing_mm[:3]
    if len(size) != 3:
        raise InputError(f"{path}: {len(size)} dimensions, expected 3 (columns, rows, slices)")
    return VolumeHeader(tuple(size[::-1]), tuple(spacing_mm), element_type, placement)


def read_metadata(path):
    """{key: text} of what a volume's header says beyond its grid. Errors as in `read_header`."""
    reader = _read_information(Path(path))
    return {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}


def _read_information(path):
    """SimpleITK's reader of the file at `path`, which has read the header."""
    import SimpleITK

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
    return reader


def _placement(path, direction, origin_mm):
    """The `Placement` that a file states in two or more dimensions. Only the first three count."""
    axes = min(len(origin_mm), 3)
    matrix, origin = np.eye(3), np.zeros(3)
    matrix[:axes, :axes] = np.reshape(direction, (len(origin_mm), len(origin_mm)))[:axes, :axes]
    origin[:axes] = origin_mm[:axes]
    defaults = [IDENTITY, NIFTI_IDENTITY] if suffix_of(path) in (".nii", ".nii.gz") else [IDENTITY]
    return stated_placement(matrix.ravel().tolist(), origin.tolist(), defaults)


def _transform_matrix(placement):
    """The nine numbers of MetaImage's TransformMatrix: the unit vectors of x, y and z."""
    return placement.matrix.T.ravel()


def _as_text(numbers):
    return " ".join(f"{number + 0.0:.12g}" for number in numbers)  # no minus before 0


def _for_the_eye(numbers, separator=" "):
    return separator.join(f"{round(number, 6) + 0.0:.6g}" for number in numbers)


@contextlib.contextmanager
def _name_for_simpleitk(path):
    """``with _name_for_simpleitk(path) as name``: text under which SimpleITK opens the file at `path`.

    SimpleITK cannot open these files by their own names:

    - A name that is not UTF-8 crashes the process.
    - SimpleITK recognises a format only by a suffix in small letters.
    - SimpleITK takes a data file with % in its name for a pattern.

    Such a file and its data files are linked under other names in a temporary folder.
    """
    suffix = suffix_of(path)
    apart = suffix in _METAIMAGE and not is_local(path)
    found = data_files(path) if apart else []
    as_named = not apart or (found == named_files(path) and "%" not in found[0].name)
    if is_utf8(path) and path.name.endswith(suffix) and as_named:
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
    """Voxels (slices, rows, columns) in a file. A slice is read each time it is indexed."""

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
    """As `read_volume`, but the voxels are a `VoxelFile`.

    Returns None where the voxels cannot be read slice by slice: they are compressed, follow the header in its file, or
    have another byte order or type than 8 or 16 bits.
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

    Reads only the header; a slice is read from disk when it is indexed. Raises `InputError` for a missing file, another
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


def voxel_digest(voxels):
    """SHA-256, in hexadecimal, of the type, shape and values of a volume (slices, rows, columns)."""
    digest = hashlib.sha256(f"{voxels.dtype} {voxels.shape}".encode())
    digest.update(np.ascontiguousarray(voxels))
    return digest.hexdigest()


def volume_files(path):
    """The files that the volume at `path` consists of: itself and, if it is a MetaImage header, its data files."""
    path = Path(path)
    return list(dict.fromkeys([path, *data_files(path)])) if suffix_of(path) in _METAIMAGE else [path]


def _unreadable(path, error):
    reason = str(error).strip().splitlines()[-1].strip()
    if "Bad direction" in str(error):  # the last line of this message is a row of the matrix, not a reason
        reason = "the axes of its direction are not three"
    return InputError(f"{path}: cannot be read as an image ({reason}); copy or export it again")
