"""Readers of all formats: MetaImage, NIfTI, DICOM, pictures, TIFF stacks, vendors' own files.

Every reader returns a `Content`: the voxels in the order slices, rows (depth), columns, and what else the file says.
`utils.volumes.grey_values.as_grey` then converts the voxels to 8- or 16-bit grey values.
"""

from pathlib import Path

from utils.errors import InputError
from utils.names import suffix_of
from utils.volumes.content import Content
from utils.volumes.dicom import read_dicom, scans_in_dicom
from utils.volumes.mhd import VOLUMES, open_voxels, read_header, read_volume
from utils.volumes.pictures import PICTURES, read_pictures
from utils.volumes.vendor_files import VENDORS_OWN, read_vendors_own, scans_in_vendors_own

DICOM = (".dcm", ".dicom")


def is_dicom(path):
    """Whether a file is DICOM by its suffix or by the mark in its head."""
    if suffix_of(path) in DICOM:
        return True
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def scans_in_file(path):
    """(scans, left_out): the scans that a single file holds.

    `scans` lists (paths, part), the arguments of `read_content`; part is None if the file is one scan. `left_out` lists
    (path, reason) for its parts that are no scans, or for the file itself if it holds no scan.
    """
    suffix = suffix_of(path)
    if suffix in VENDORS_OWN:
        parts, left_out = scans_in_vendors_own(Path(path), suffix)
        return [([str(path)], part) for part in parts], left_out
    if suffix not in (*VOLUMES, *PICTURES, *VENDORS_OWN) and is_dicom(path):
        return scans_in_dicom([path])
    return [([str(path)], None)], []


def read_content(paths, part=None):
    """`Content` of a scan in one file, or in several that hold a slice each, in order.

    `part` tells which scan, if the files hold several (see `scans_in_file`). Raises `InputError` if a file is missing,
    damaged, of an unknown kind, or needs a package that is not installed.
    """
    first = Path(paths[0])
    if not first.is_file():
        raise InputError(f"{first}: no such file")
    suffix = suffix_of(first)
    try:
        if suffix in VENDORS_OWN:
            return read_vendors_own(first, suffix, part)
        if suffix in PICTURES:
            return read_pictures(paths)
        if suffix not in VOLUMES and is_dicom(first):
            return read_dicom(paths, part)
    except OSError as error:
        raise InputError(f"{first}: cannot be read ({error.strerror or error})") from error
    opened = open_voxels(first) if suffix == ".mhd" else None  # slices are read when they are needed
    return Content(*(opened or read_volume(first)), placement=read_header(first).placement)
