"""A scan's label volume in the formats that clinics and other programs take."""

import contextlib
import errno
import os
import tempfile
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.names import is_utf8
from utils.segmentation import dicom_seg
from utils.volumes.file_checks import check_data_file
from utils.volumes.mhd import open_volume, read_header

FORMATS = {"mhd": (".raw", ".mhd"), "nii.gz": (".nii.gz",), "dicom-seg": (".dcm",)}  # suffixes; the last comes last
_RIGHT_ANGLE = 1e-4  # largest scalar product of two axes


def check_installed(formats):
    """Raise `InputError` if a package that one of `formats` needs is not installed."""
    if "dicom-seg" in formats:
        dicom_seg.check_installed()


def check_formats(scan, formats):
    """Raise `InputError` if the labels of a `utils.volumes.scans.Scan` cannot be written in one of `formats`."""
    matrix = scan.placement.matrix
    if "nii.gz" in formats and np.abs(matrix.T @ matrix - np.eye(3)).max() > _RIGHT_ANGLE:
        raise InputError(
            f"{scan.path}: its direction has no right angles, or other lengths than 1; SimpleITK would write another "
            "one into a NIfTI file; leave nii.gz out of --format"
        )
    if "dicom-seg" in formats:
        dicom_seg.check_source(scan)


def write_label_files(path, scan, formats, model_sha256):
    """Write the labels in the ``.mhd`` at `path` beside it, in `formats` (keys of `FORMATS`). Returns the files' names.

    The ``.mhd`` is removed if it is not among `formats`. `model_sha256` identifies the model that made the labels.
    Raises `OSError`, which names the file, if one cannot be written.
    """
    labels = np.array(open_volume(path)[0])
    stem = path.name.removesuffix(".mhd")
    if "nii.gz" in formats:
        write_nifti(path.with_name(f"{stem}.nii.gz"), labels, scan.spacing_mm, scan.placement)
    if "dicom-seg" in formats:
        dicom_seg.write_dicom_seg(path.with_name(f"{stem}.dcm"), labels, scan, model_sha256)
    if "mhd" not in formats:
        for suffix in FORMATS["mhd"]:
            path.with_name(f"{stem}{suffix}").unlink()
    return [f"{stem}{suffix}" for name in FORMATS if name in formats for suffix in FORMATS[name]]


def write_nifti(path, labels, spacing_mm, placement):
    """Write `labels`, uint8 (slices, rows, columns), as the ``.nii.gz`` file `path`, in mm.

    `spacing_mm` is (x, y, z); `placement` says where the grid lies. Raises `OSError` if it cannot be written.
    """
    import SimpleITK

    path = Path(path)
    image = SimpleITK.GetImageFromArray(labels)
    image.SetSpacing(spacing_mm)
    image.SetDirection(placement.direction)
    image.SetOrigin(placement.origin_mm)
    written = path.with_name("labels.nii.gz")
    try:
        with _folder_in_utf8(path.parent) as folder:
            SimpleITK.WriteImage(image, str(folder / written.name), useCompression=True)
            check_data_file(folder / written.name, read_header(folder / written.name))  # a full disk is no error above
    except (RuntimeError, InputError) as error:
        raise OSError(errno.EIO, "could not be written whole; the disk may be full", str(path)) from error
    os.replace(written, path)


@contextlib.contextmanager
def _folder_in_utf8(folder):
    """``with _folder_in_utf8(folder) as path``: a path of the folder that SimpleITK can write to.

    SimpleITK crashes where a name is not UTF-8. Such a folder is linked under another name; Windows has none, and does
    not let everyone make links.
    """
    if is_utf8(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as links:
        link = Path(links, "folder")
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link
