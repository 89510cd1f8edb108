"""DICOM: which scans the files hold, and their content.

A scan is a list of frames in one file or several. The headers tell which frames belong together, and in which order.
"""

import hashlib
import os

import numpy as np

from utils.errors import InputError
from utils.names import as_text
from utils.volumes.content import ANONYMISED, Content, iso_date
from utils.volumes.dicom_frames import (
    directions,
    first_value,
    grouped,
    numbers_of,
    ordered,
    places,
    read_header,
    sop_class,
)
from utils.volumes.dicom_pixels import read_file
from utils.volumes.geometry import placement_of_planes
from utils.volumes.vendors import vendor_of_device

TOMOGRAPHY = "1.2.840.10008.5.1.4.1.1.77.1.5.4"
_PHOTOGRAPHY = ("1.2.840.10008.5.1.4.1.1.77.1.5.1", "1.2.840.10008.5.1.4.1.1.77.1.5.2")  # 8 and 16 bits
_NO_B_SCANS = (  # images of other things, by their class
    "1.2.840.10008.5.1.4.1.1.66.4",  # segmentation
    "1.2.840.10008.5.1.4.1.1.77.1.5.5",  # wide field photography
    "1.2.840.10008.5.1.4.1.1.77.1.5.6",
    "1.2.840.10008.5.1.4.1.1.77.1.5.7",  # en face
    "1.2.840.10008.5.1.4.1.1.77.1.5.8",  # analysis of a volume's B-scans
    "1.2.840.10008.5.1.4.1.1.81.1",  # thickness map
)


# ---- Which scans there are -----------------------------------------------------------------------------------------
def scans_in_dicom(paths):
    """(scans, left_out): the scans that DICOM files of one folder hold.

    `scans` lists (paths, part). `paths` are the files that hold the scan, with copies of them. `part` is the scan's
    number in these files, from 0, or None if they hold one scan. `left_out` lists (path, reason). A damaged file counts
    as a scan; its reader then reports what is wrong.
    """
    headers = {str(path): read_header(path) for path in paths}
    left_out = {path: reason for path, header in headers.items() if (reason := _why_not_a_scan(header))}
    if any(_is_tomography(header) for path, header in headers.items() if path not in left_out):
        others = [path for path, header in headers.items() if header is not None and not _is_tomography(header)]
        left_out = dict.fromkeys(others, "a photograph or screen capture beside tomographies") | left_out
    scans, series = [], {}
    for path, header in headers.items():
        if path not in left_out:
            series.setdefault(_series(header, path), {})[path] = header
    for files in series.values():
        groups, copies = grouped(files)
        for group in groups:
            of_group = list(dict.fromkeys(frame.path for frame in group))
            if any(frame.path in of_group for other in groups if other is not group for frame in other):
                scans.append((list(files), groups.index(group)))
            else:
                scans.append((of_group + [copy for copy, original in copies.items() if original in of_group], None))
    return scans, list(left_out.items())


def _why_not_a_scan(header):
    """The reason why a file is no scan; None if it may be one. A damaged image may be one."""
    from pydicom.uid import UID

    uid = UID("" if header is None else sop_class(header))
    if not uid:
        return None
    name = uid.name.removesuffix(" Storage")
    if uid in _NO_B_SCANS:
        return f"a DICOM file of the kind {name}, which holds no B-scans"
    if "Rows" not in header and "Image Storage" not in uid.name:
        return f"a DICOM file of the kind {name}, which holds no pixels"
    return None


def _is_tomography(header):
    """Whether a file says that it is a tomography. If no file does, every image may be a B-scan."""
    if header is None or sop_class(header) == TOMOGRAPHY:
        return header is not None
    is_grey = header.get("SamplesPerPixel") != 3
    return header.get("Modality") == "OPT" and sop_class(header) not in _PHOTOGRAPHY and is_grey


def _series(header, path):
    return path if header is None else str(header.get("SeriesInstanceUID", path))


# ---- What they hold ------------------------------------------------------------------------------------------------
def read_dicom(paths, part=None):
    """`Content` of one of the scans in DICOM files, as `scans_in_dicom` lists them.

    Raises `InputError`, which names the file, if one is damaged, in colour, or needs a decoder that is not installed.
    """
    files = {str(path): read_header(path) for path in paths}
    groups, copies = grouped(files)
    frames, spacing_z_mm, notes = ordered(groups[part or 0])
    if copies:
        names = ", ".join(as_text(os.path.basename(path)) for path in sorted(copies))
        notes.append(f"copies of files of this scan are left out: {names}")
    if frames[0].orientation and len(frames) > 1 and len(set(directions(frames))) > 1:
        notes.append("the B-scans have different directions; volumes are those of parallel ones")
    by_path = {}
    for path in dict.fromkeys(frame.path for frame in frames):
        by_path[path] = read_file(path, [frame.index for frame in frames if frame.path == path])
    header = by_path[frames[-1].path].header
    notes += dict.fromkeys(note for file in by_path.values() for note in file.notes)
    bits = {file.bits for file in by_path.values()}
    try:
        told = _told_of_scan(header, frames, spacing_z_mm)
    except Exception as error:  # values that pydicom cannot convert
        raise InputError(f"{frames[-1].path}: not a readable DICOM image ({error})") from error
    return Content(
        np.stack([by_path[frame.path].pixels.pop(frame.index) for frame in frames]),
        bits=bits.pop() if len(bits) == 1 else None,
        notes=notes,
        placement=placement_of_planes([(frame.orientation, frame.position_mm) for frame in frames]),
        z_mm=places(frames),
        frames=tuple(frames),
        **told,
    )


def _told_of_scan(header, frames, spacing_z_mm):
    """What a header says about the whole scan: arguments of `Content`."""
    y, x = numbers_of(first_value(header, "PixelSpacing"), 2) or (None, None)
    z = spacing_z_mm or first_value(header, "SpacingBetweenSlices", "SliceThickness")
    device = (str(header.get(name, "")) for name in ("Manufacturer", "ManufacturerModelName"))
    eye = next((frame.eye for frame in frames if frame.eye), None)
    eye = eye or first_value(header, "ImageLaterality", "Laterality", "FrameLaterality")
    date = first_value(header, "AcquisitionDateTime", "AcquisitionDate", "ContentDate", "StudyDate")
    return {
        "spacing_mm": (x, y, None if z is None else float(z)),
        "vendor": vendor_of_device(*device),
        "laterality": {"R": "OD", "L": "OS"}.get(str(eye)),
        "scan_date": iso_date(date),
        "patient": str(header.get("PatientID") or "").strip() or None,
        "person": _person(header),
        "inverted": header.get("PhotometricInterpretation") == "MONOCHROME1",
    }


def _person(header):
    """Tells patients of one PatientID apart: a checksum of name and date of birth; None if both are missing.

    It is one of 256 values, so that neither can be found from it. Many programs give all patients whose names they
    remove one PatientID, and then it is `ANONYMISED`.
    """
    if str(header.get("PatientIdentityRemoved") or "").upper() == "YES" or "DeidentificationMethod" in header:
        return ANONYMISED
    name = str(header.get("PatientName") or "").split("=")[0]  # in Latin letters
    told = "".join(filter(str.isalnum, f"{name}{header.get('PatientBirthDate') or ''}".casefold()))
    return hashlib.sha256(told.encode()).hexdigest()[:2] if told else None
