"""Scans in the formats that they come in: MetaImage, NIfTI, DICOM, pictures, TIFF stacks, vendors' own files.

Every reader returns the voxels in the order slices, rows (depth), columns, and what else the file tells; `as_grey`
then makes 8- or 16-bit grey values of them.
"""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.mhd import VOLUMES, open_voxels, read_volume
from utils.names import suffix_of

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
DICOM = (".dcm", ".dicom")
VENDORS_OWN = {".vol": "Spectralis", ".e2e": "Spectralis", ".xml": "Spectralis", ".fda": "Topcon"}
_MANUFACTURERS = {"heidelberg": "Spectralis", "zeiss": "Cirrus", "topcon": "Topcon"}  # in DICOM
_GREY_TOLERANCE = 8  # grey values by which the channels of a grey picture may differ, after JPEG


@dataclass
class Content:
    """What a file holds."""

    voxels: np.ndarray  # (slices, rows, columns), of any type
    spacing_mm: tuple = (None, None, None)  # (x, y, z), None where the file states none
    vendor: str | None = None
    laterality: str | None = None  # "OD" (right) or "OS" (left)
    scan_date: str | None = None  # YYYY-MM-DD
    bits: int | None = None  # that the voxels' type uses, where the file says so
    notes: list = field(default_factory=list)


def is_dicom(path):
    """Whether a file is DICOM by its suffix or by the mark in its head."""
    if suffix_of(path) in DICOM:
        return True
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_content(paths):
    """`Content` of a scan: of one file, or of several that hold a slice each, in their order.

    Raises `InputError` where a file is missing, damaged, of a kind that is not known, or needs a package that is not
    there.
    """
    first = Path(paths[0])
    if not first.is_file():
        raise InputError(f"{first}: no such file")
    suffix = suffix_of(first)
    try:
        if suffix in VENDORS_OWN:
            return _read_vendors_own(first, suffix)
        if suffix in PICTURES:
            return _read_pictures(paths)
        if suffix not in VOLUMES and is_dicom(first):
            return _read_dicom(paths)
    except OSError as error:
        raise InputError(f"{first}: cannot be read ({error.strerror or error})") from error
    opened = open_voxels(first) if suffix == ".mhd" else None  # of which only what is needed comes into memory
    return Content(*(opened or read_volume(first)))


# ---- Pictures ------------------------------------------------------------------------------------------------------
def _read_pictures(paths):
    """PNG, JPEG, BMP and TIFF, of one page or many: a page is a B-scan. They state no spacing that could be trusted."""
    from PIL import Image, ImageSequence

    slices = []
    for path in paths:
        try:
            with Image.open(path) as image:
                slices += [_grey_page(page, path) for page in ImageSequence.Iterator(image)]
        except (InputError, OSError):
            raise
        except Exception as error:  # Pillow's parsers raise whatever a damaged file leads to
            raise InputError(f"{path}: not a readable picture ({error})") from error
        if slices[-1].shape != slices[0].shape or slices[-1].dtype != slices[0].dtype:
            sizes = " and ".join(f"{one.shape[1]} x {one.shape[0]} {one.dtype}" for one in (slices[0], slices[-1]))
            raise InputError(f"{path}: {sizes} pixels in one scan, expected B-scans of one size; name them one by one")
    return Content(np.stack(slices))


def _grey_page(page, path):
    """A page as (rows, columns); `InputError` where it is in colour."""
    if page.mode in ("1", "P", "PA"):
        page = page.convert("RGB")
    return _grey(np.asarray(page), path)


def _grey(pixels, path):
    """`pixels` (rows, columns, channels) of a grey picture as (rows, columns); opacity is ignored."""
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[-1] in (2, 4):
        pixels = pixels[..., :-1]
    reference = pixels[..., :1].astype(np.int64)
    if np.abs(pixels - reference).max(initial=0) > _GREY_TOLERANCE:
        raise InputError(f"{path}: a picture in colour, expected grey values; is it an OCT scan?")
    return np.ascontiguousarray(pixels[..., 0])


# ---- DICOM ---------------------------------------------------------------------------------------------------------
def dicom_series(paths):
    """The DICOM files among `paths` by series: {series UID: files in the order of their slices}."""
    import pydicom

    series = {}
    for path in paths:
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except Exception:  # pydicom raises many kinds; whoever reads the file says what is wrong
            header = {}
        series.setdefault(str(header.get("SeriesInstanceUID", path)), []).append((_place(header), str(path)))
    return {uid: [path for _, path in sorted(files)] for uid, files in series.items()}


def _place(header):
    """What orders the files of a series: the position along the slices' normal, else the number."""
    position, orientation = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    if position is not None and orientation is not None:
        normal = np.cross(np.array(orientation[:3], float), np.array(orientation[3:], float))
        return float(np.dot(normal, np.array(position, float)))
    return float(header.get("InstanceNumber") or 0)


def _read_dicom(paths):
    """A multi-frame file, or a series of files in the order of their slices."""
    import pydicom

    slices, places = [], []
    for path in paths:
        try:
            header = pydicom.dcmread(path)
            frames = header.pixel_array
        except Exception as error:  # pydicom raises many kinds, its decoders others
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"{path}: not a readable DICOM image ({reason[0]})") from error
        if int(header.get("SamplesPerPixel", 1)) > 1:
            frames = np.stack([_grey(frame, path) for frame in (frames if frames.ndim == 4 else frames[np.newaxis])])
        frames = frames.reshape(-1, *frames.shape[-2:])
        if header.get("PhotometricInterpretation") == "MONOCHROME1":
            frames = 2 ** int(header.BitsStored) - 1 - frames
        if slices and slices[0].shape[1:] != frames.shape[1:]:
            raise InputError(f"{path}: another size than the files before it in the same series")
        slices.append(frames)
        places.append(_place(header))
    manufacturer = str(header.get("Manufacturer", "")).lower()
    return Content(
        np.concatenate(slices),
        spacing_mm=_dicom_spacing(header, places),
        vendor=next((vendor for name, vendor in _MANUFACTURERS.items() if name in manufacturer), None),
        laterality={"R": "OD", "L": "OS"}.get(str(_first(header, "ImageLaterality", "Laterality", "FrameLaterality"))),
        scan_date=_iso_date(_first(header, "AcquisitionDateTime", "AcquisitionDate", "ContentDate", "StudyDate")),
        bits=int(header.BitsStored),
    )


def _dicom_spacing(header, places):
    """(x, y, z) in mm: from the header or its functional groups; z also from the slices' positions."""
    pixel = _first(header, "PixelSpacing")
    y, x = (None, None) if pixel is None else (float(value) for value in pixel)
    positions = places
    if len(places) == 1:
        groups = header.get("PerFrameFunctionalGroupsSequence") or []
        vectors = [_first(group, "ImagePositionPatient") for group in groups]
        positions = [] if None in vectors or len(vectors) < 2 else list(np.array(vectors, float))
    if len(positions) > 1:
        steps = np.linalg.norm(np.diff(np.reshape(positions, (len(positions), -1)), axis=0), axis=1)
        if np.median(steps) > 0 and _first(header, "ImagePositionPatient") is not None:
            return x, y, float(np.median(steps))
    z = _first(header, "SpacingBetweenSlices", "SliceThickness")
    return x, y, None if z is None else float(z)


def _first(dataset, *names):
    """The value of the first of the DICOM attributes `names` that is anywhere in `dataset`, else None."""
    for name in names:
        if dataset.get(name) not in (None, ""):
            return dataset.get(name)
    for name in names:
        for element in dataset.iterall():
            if element.keyword == name and element.value not in (None, ""):
                return element.value
    return None


# ---- Vendors' own files --------------------------------------------------------------------------------------------
def _read_vendors_own(path, suffix):
    """Heidelberg's and Topcon's files, through eyepy."""
    try:
        import eyepy.io
    except ImportError as error:
        raise InputError(f"{path}: reading {suffix} files needs the package eyepy; pip install eyepy") from error
    logging.getLogger("eyepy").setLevel(logging.ERROR)  # it warns of layers that are of no concern here
    readers = {
        ".vol": eyepy.io.import_heyex_vol,
        ".e2e": eyepy.io.import_heyex_e2e,
        ".xml": eyepy.io.import_heyex_xml,
        ".fda": eyepy.io.import_topcon_fda,
    }
    try:
        volume = readers[suffix](path)
        voxels = np.asarray(volume.data)
    except ImportError as error:
        raise InputError(f"{path}: {str(error).strip().splitlines()[-1]}") from error
    except Exception as error:  # eyepy's parsers raise whatever a damaged file leads to
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path}: cannot be read as {suffix} ({reason[0]})") from error
    meta = volume.meta
    known_unit = meta.get("scale_unit") == "mm"
    date = meta.get("visit_date") or meta.get("exam_time")
    return Content(
        voxels,
        spacing_mm=tuple(meta.get(f"scale_{axis}") if known_unit else None for axis in "xyz"),
        vendor=VENDORS_OWN[suffix],
        laterality={"OD": "OD", "R": "OD", "OS": "OS", "L": "OS"}.get(str(meta.get("laterality")).strip("\0 ").upper()),
        scan_date=_iso_date(date),
    )


def _iso_date(value):
    """YYYY-MM-DD of a date, or of text that begins with one; None for anything else."""
    match = re.match(r"(\d{4})-?(\d\d)-?(\d\d)", "" if value is None else str(value))
    return "-".join(match.groups()) if match else None


# ---- Grey values ---------------------------------------------------------------------------------------------------
def as_grey(voxels, path, bits=None):
    """(voxels as uint8 or uint16, notes on what was assumed), for what `utils.preprocessing.to_8_bit` makes of them.

    Whole numbers keep their range: up to 255 they are taken for 8 bit, up to 4095 for 12, or for `bits` where the file
    says so. Fractions from 0 to 1 or up to 255 are scaled and rounded to 16 bit; what is not finite becomes 0. Raises
    `InputError` for any other range, and where there is no voxel.
    """
    if voxels.size == 0:
        raise InputError(f"{path}: holds no pixels")
    if voxels.dtype == np.uint8:
        return voxels, []
    if voxels.dtype.kind == "f":
        return _grey_of_fractions(voxels, path)
    if voxels.dtype.kind not in "iu":
        raise InputError(f"{path}: values of type {voxels.dtype}, expected grey values")
    low, high = int(voxels.min()), int(voxels.max())
    if low < 0 or high > 65535:
        raise InputError(f"{path}: values from {low} to {high}, expected 0 to 65535; export it in 8 or 16 bits")
    used = bits or (8 if high <= 255 else 12 if high <= 4095 else 16)
    notes = []
    if bits is None and used < 16:
        notes.append(f"values up to {high} in {voxels.dtype} taken for {used} bits")
    if used == 16 and voxels.dtype == np.uint16:
        return voxels, notes
    voxels = np.stack(list(voxels))
    if used == 16:
        return voxels.astype(np.uint16), notes
    scaled = voxels.astype(np.uint32) * 65535 // (2**used - 1)
    return np.minimum(scaled, 65535).astype(np.uint16), notes


def _grey_of_fractions(voxels, path):
    finite = np.isfinite(voxels)
    notes = []
    if not finite.all():
        notes.append(f"{np.count_nonzero(~finite)} values that are not finite taken for 0")
        voxels = np.where(finite, voxels, 0)
    low, high = float(voxels.min()), float(voxels.max())
    if low < 0 or high > 255:
        raise InputError(
            f"{path}: fractions from {low:g} to {high:g}, whose range is not known; expected 0 to 1, or 0 to 255"
        )
    scale = 65535 if high <= 1 else 257
    notes.append(f"fractions from {low:g} to {high:g} taken for a range of 0 to {65535 // scale}")
    return np.rint(voxels * scale).astype(np.uint16), notes
