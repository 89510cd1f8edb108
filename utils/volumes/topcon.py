"""Topcon's .fda and .fds files.

Both are a list of named blocks in little-endian order. What the blocks hold was found out by others and is described at
https://bitbucket.org/uocte/uocte/wiki/Topcon%20File%20Format. B-scans are pictures (JPEG or JPEG 2000) in most .fda
files, and plain values of 16 bits in .fds files and in those of some devices.
"""

import datetime
import io
import math
import struct

import numpy as np
from PIL import Image

from utils.errors import InputError
from utils.volumes.content import Content, Fundus

_MARK = b"FOCT"
_FIRST_BLOCK = 15  # bytes before it
_PICTURES = "@IMG_JPEG"
_PLAIN = ("@IMG_MOT_COMP_03", "@IMG_SCAN_03")
_PICTURES_HEAD = struct.Struct("<B2I3II")  # scan mode, two unknown, columns, rows, B-scans, unknown
_PLAIN_HEAD = struct.Struct("<B4IBI")  # scan mode, columns, rows, bits, B-scans, format, bytes
_FUNDUS_HEAD = struct.Struct("<6I")  # columns, rows, bits, pictures, unknown, bytes
_RANGE = struct.Struct("<4I")  # left, top, right, bottom of what was scanned, in pixels of the fundus
_SIZE = struct.Struct("<I")
_SCANNED = {"@PARAM_SCAN_04": 12, "@PARAM_SCAN_02": 21}  # bytes before width (mm), length (mm) and row (µm) as doubles
_CAPTURED = {"@CAPTURE_INFO_02": 106, "@CAPTURE_INFO": 1}  # bytes before year, month and day; the eye comes first
_EYES = {0: "OD", 1: "OS"}
_NO_VOLUMES = {3: "a radial scan", 4: "two crossing B-scans"}  # by scan mode
_MOST_VOXELS = 2**31


def scans_in_topcon(path):
    """(parts, left_out) of a file, as `utils.volumes.vendor_files.scans_in_vendors_own` gives them."""
    try:
        mode = _head(path, _blocks(path))[0]
    except InputError:  # its reader reports what is wrong
        return [None], []
    if mode in _NO_VOLUMES:
        return [], [(str(path), f"{_NO_VOLUMES[mode]}, expected parallel B-scans")]
    return [None], []


def read_topcon(path):
    """`Content` of a file. Raises `InputError` if it is damaged or holds no B-scans of a known kind."""
    blocks = _blocks(path)
    _, (columns, _, slices) = _head(path, blocks)
    voxels = _of_pictures(path, blocks[_PICTURES]) if _PICTURES in blocks else _of_plain(path, blocks)
    x_mm = y_mm = z_mm = None
    for name, offset in _SCANNED.items():
        if len(block := blocks.get(name, b"")) >= offset + 24:
            width, length, row = struct.unpack_from("<3d", block, offset)
            x_mm, y_mm = width / columns, row / 1000
            z_mm = length / slices if slices > 1 else None
            break
    eye = date = None
    for name, offset in _CAPTURED.items():
        if len(block := blocks.get(name, b"")) >= offset + 6:
            eye, date = _EYES.get(block[0]), _date(struct.unpack_from("<3H", block, offset))
            break
    return Content(
        voxels,
        spacing_mm=(x_mm, y_mm, z_mm),
        vendor="Topcon",
        laterality=eye,
        scan_date=date,
        fundus=_fundus(blocks, len(voxels)),
    )


def _fundus(blocks, slices):
    """The `Fundus`, in grey; None where it is missing or cannot be read, since it is not needed.

    The B-scans are taken to fill the scanned part evenly, the first on top, which the file does not say.
    """
    try:
        with Image.open(io.BytesIO(blocks["@IMG_FUNDUS"][_FUNDUS_HEAD.size :])) as image:
            picture = np.asarray(image.convert("L"))
    except (KeyError, OSError, ValueError, SyntaxError):
        return None
    block = blocks.get("@EFFECTIVE_SCAN_RANGE", b"")
    if len(block) < _RANGE.size:
        return Fundus(picture, (None,) * slices)
    left, top, right, bottom = _RANGE.unpack_from(block)
    if not (left < right <= picture.shape[1] and top < bottom <= picture.shape[0]):
        return Fundus(picture, (None,) * slices)
    rows = (top + (np.arange(slices) + 0.5) / slices * (bottom - top)).tolist()
    return Fundus(picture, tuple((left, row, right, row) for row in rows), order_assumed=slices > 1)


def _blocks(path):
    """{name: content} of a file's blocks; of several with one name the first."""
    content = path.read_bytes()
    if content[:4] != _MARK:
        raise InputError(f"{path}: begins with {content[:4]!r}, expected {_MARK!r} as Topcon's files do")
    blocks, place = {}, _FIRST_BLOCK
    while place < len(content) and content[place]:
        name = content[place + 1 : place + 1 + content[place]].decode("latin-1")
        place += 1 + content[place]
        if place + _SIZE.size > len(content):
            break
        (size,) = _SIZE.unpack_from(content, place)
        place += _SIZE.size
        blocks.setdefault(name, memoryview(content)[place : place + size])  # a cut one is noticed by its reader
        place += size
    return blocks


def _head(path, blocks):
    """(scan mode, (columns, rows, B-scans)) of the block with the B-scans."""
    name = next((name for name in (_PICTURES, *_PLAIN) if name in blocks), None)
    if name is None:
        raise InputError(f"{path}: holds none of {', '.join((_PICTURES, *_PLAIN))}, so no B-scans that can be read")
    head = _PICTURES_HEAD if name == _PICTURES else _PLAIN_HEAD
    if len(blocks[name]) < head.size:
        raise _cut_off(path)
    mode, *values = head.unpack_from(blocks[name])
    size = tuple(values[2:5]) if name == _PICTURES else (values[0], values[1], values[3])
    if not 0 < math.prod(size) <= _MOST_VOXELS:
        raise InputError(f"{path}: {' x '.join(map(str, size))} voxels stated, which no OCT scan has")
    return mode, size


def _of_pictures(path, block):
    """uint8 or uint16 (slices, rows, columns) of a block of pictures, each after its number of bytes."""
    _, _, _, columns, rows, slices, _ = _PICTURES_HEAD.unpack_from(block)
    place, pages = _PICTURES_HEAD.size, []
    for number in range(1, slices + 1):
        if place + _SIZE.size > len(block):
            raise _cut_off(path)
        (size,) = _SIZE.unpack_from(block, place)
        place += _SIZE.size
        if place + size > len(block):
            raise _cut_off(path)
        try:
            with Image.open(io.BytesIO(block[place : place + size])) as image:
                if image.size != (columns, rows) or image.mode not in ("L", "I;16", "I;16L", "I;16B"):
                    found = "{} x {} pixels of the kind {}".format(*image.size, image.mode)
                    raise InputError(f"{path}: B-scan {number} has {found}, expected {columns} x {rows} in grey")
                pages.append(np.asarray(image))
        except InputError:
            raise
        except Exception as error:  # Pillow's parsers raise exceptions of any kind for damaged pictures
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"{path}: B-scan {number} cannot be read ({reason[0]}); export it again") from error
        if pages[-1].dtype != pages[0].dtype:
            raise InputError(f"{path}: B-scan {number} has another number of bits than the first; export it again")
        place += size
    return np.stack(pages)


def _of_plain(path, blocks):
    """uint16 (slices, rows, columns) of the first block of plain values."""
    block = next(blocks[name] for name in _PLAIN if name in blocks)
    _, columns, rows, bits, slices, _, _ = _PLAIN_HEAD.unpack_from(block)
    if bits != 16:
        raise InputError(f"{path}: values of {bits} bits, expected 16; export it as DICOM")
    count = columns * rows * slices
    if len(block) < _PLAIN_HEAD.size + 2 * count:
        raise _cut_off(path)
    return np.frombuffer(block, "<u2", count, _PLAIN_HEAD.size).reshape(slices, rows, columns)


def _cut_off(path):
    return InputError(f"{path}: damaged: it holds fewer bytes than it states; copy or export it again")


def _date(parts):
    try:
        return datetime.date(*parts).isoformat()
    except ValueError:
        return None
