"""Does a volume's file hold what its header claims? Checked before memory is allocated for it."""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.volumes.metaimage import data_files, is_local, metaimage_fields, metaimage_head

_MOST_BYTES = 2**31  # of voxels; the largest OCT volumes have half as many
_HEAD_BYTES = 65_536  # longest header
_PIECE_BYTES = 1 << 22
_NIFTI_HEAD_BYTES = 348
# Bytes a voxel of each NIfTI data type. SimpleITK tells another type: the one after scaling.
_NIFTI_BYTES = {2: 1, 256: 1, 4: 2, 512: 2, 8: 4, 768: 4, 16: 4, 64: 8, 1024: 8, 1280: 8}


def check_counts(path):
    """Raise `InputError` if a MetaImage header lacks a number for some dimension. SimpleITK would crash."""
    fields = metaimage_fields(path)
    dimensions = fields.get("NDims", "")
    if dimensions not in map(str, range(1, 7)):
        raise InputError(
            f"{path}: cannot be read as an image (NDims is {dimensions or 'missing'}); copy or export it again"
        )
    n = int(dimensions)
    counts = dict.fromkeys(("DimSize", "ElementSpacing", "ElementSize", "Offset", "CenterOfRotation"), n)
    for name, count in (counts | {"TransformMatrix": n * n}).items():
        if name in fields and len(fields[name].split()) != count:
            raise InputError(
                f"{path}: cannot be read as an image ({name} has not {count} numbers); copy or export it again"
            )


def check_data_file(path, header, decompress=True):
    """Raise `InputError` if a file does not hold all voxels that its `VolumeHeader` claims, or holds damaged ones.

    SimpleITK does not help here: its message gives no reason, it returns damaged compressed data without an error, and
    it allocates memory for any claimed size before it reads. Without `decompress` no voxel is read.
    """
    path = Path(path)
    suffixes = path.name.lower()
    expected = math.prod(header.shape) * np.dtype(header.element_type).itemsize
    if expected > _MOST_BYTES:
        raise InputError(f"{path}: {' x '.join(map(str, header.shape[::-1]))} voxels, which no OCT scan has")
    if suffixes.endswith((".mhd", ".mha")):
        _check_metaimage(path, expected, decompress)
    elif suffixes.endswith((".nii", ".nii.gz")):
        _check_nifti(path, header, suffixes.endswith(".gz"), decompress)
    elif suffixes.endswith(".nrrd"):
        _check_nrrd(path, expected, decompress)


def _check_metaimage(path, expected, decompress):
    fields, paths, local = metaimage_fields(path), data_files(path), is_local(path)
    if fields.get("CompressedData", "False").lower() != "true":
        for data_path in paths:
            check_size(path, data_path, expected // len(paths), local or "HeaderSize" in fields)
        return
    if len(paths) > 1:
        raise InputError(f"{path}: its compressed voxels are in {len(paths)} files; save it as one volume")
    try:
        compressed = int(fields.get("CompressedDataSize", 0))
    except ValueError as error:
        raise InputError(f"{path}: CompressedDataSize {fields['CompressedDataSize']} is no number") from error
    check_size(path, paths[0], compressed, True)
    if decompress:
        _check_inflated(path, paths[0], expected, len(metaimage_head(path)) if local else 0)


def _check_nifti(path, header, gzipped, decompress):
    try:
        with gzip.open(path) if gzipped else open(path, "rb") as file:
            head = file.read(_NIFTI_HEAD_BYTES)
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: damaged ({error}); copy or export it again") from error
    order = "<" if head[:4] == struct.pack("<i", _NIFTI_HEAD_BYTES) else ">"
    (code,) = struct.unpack(f"{order}h", head[70:72]) if len(head) == _NIFTI_HEAD_BYTES else (None,)
    n_bytes = math.prod(header.shape) * _NIFTI_BYTES.get(code, np.dtype(header.element_type).itemsize)
    if not gzipped:
        check_size(path, path, _NIFTI_HEAD_BYTES + n_bytes, may_be_longer=True)
    elif decompress:
        _check_inflated(path, path, n_bytes, gzipped=True)


def _check_nrrd(path, expected, decompress):
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES).partition(b"\n\n")[0]
    fields = dict(line.split(b":", 1) for line in head.lower().split(b"\n") if b":" in line)
    fields = {name.strip().replace(b" ", b""): value.strip() for name, value in fields.items()}
    if b"datafile" in fields:
        raise InputError(f"{path}: its voxels are in another file; save it as one")
    encoding = fields.get(b"encoding")
    if encoding == b"raw":
        check_size(path, path, expected, may_be_longer=True)
    elif encoding in (b"gzip", b"gz"):
        if decompress:
            _check_inflated(path, path, expected, len(head) + 2, gzipped=True)
    else:
        raise InputError(f"{path}: its voxels are encoded as {str(encoding)[2:-1]}; save it as raw or gzip")


def _check_inflated(path, data_path, expected, offset=0, gzipped=False):
    """Raise `InputError` unless the data in `data_path` from `offset` on inflate to the expected number of bytes.

    With `gzipped` a header may come in addition. Inflating stops at that size, because data may expand without end.
    """
    found, most = 0, expected + (_HEAD_BYTES if gzipped else 0)
    try:
        with open(data_path, "rb") as file:
            file.seek(offset)
            for n_bytes in _gunzipped(file) if gzipped else _inflated(file):
                found += n_bytes
                if found > most:
                    break
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{data_path}: damaged ({error}); copy or export the case again") from error
    if not expected <= found <= most:
        raise _wrong_size(path, data_path, f"{'over ' * (found > most)}{found}", expected)


def _gunzipped(file):
    """Sizes of the pieces that a gzip file inflates to."""
    with gzip.GzipFile(fileobj=file) as inflated:
        while piece := inflated.read(_PIECE_BYTES):
            yield len(piece)


def _inflated(file):
    """Sizes of the pieces that a zlib stream inflates to."""
    inflater, piece = zlib.decompressobj(), b""
    while not inflater.eof:
        compressed = inflater.unconsumed_tail or file.read(_PIECE_BYTES)
        piece = inflater.decompress(compressed, _PIECE_BYTES)
        if not (compressed or piece):
            return
        yield len(piece)


def check_size(path, data_path, expected, may_be_longer=False):
    if not os.path.isfile(data_path):  # False for names that no file can have
        raise InputError(f"{path}: its data file {data_path.name} is missing; copy or export the case again")
    found = data_path.stat().st_size
    if found < expected or (found > expected and not may_be_longer):
        raise _wrong_size(path, data_path, found, expected)


def _wrong_size(path, data_path, found, expected):
    return InputError(f"{data_path}: {found} bytes, expected {expected} by {path.name}; copy or export the case again")
