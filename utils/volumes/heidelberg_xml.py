"""Heidelberg's XML exports: an .xml that lists the pictures beside it, as HEYEX 1 and later versions write it.

HEYEX 1 states the eye of each image, later versions that of a series. A series is a scan, or one of each eye.
"""

import datetime
import math
import os
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from utils.errors import InputError
from utils.names import same_name, suffix_of
from utils.volumes.content import Content, Fundus
from utils.volumes.pictures import PICTURES, read_picture

_MOST_NAMED = 5  # of the pictures in a message
_ALIKE = 0.02  # share by which the scales of one scan's B-scans may differ
_PARALLEL = math.cos(math.radians(5))  # of two B-scans' directions
_CIRCLE = 3.0  # B-scan's length to its line's; a circle's line is its radius, which makes 6.28
_UNEVEN = 0.05  # share of the mean distance by which one may differ where B-scans count as evenly spaced


@dataclass(frozen=True)
class _Series:
    """A scan as the .xml lists it."""

    b_scans: list  # elements <Image>, in order
    localizer: Element | None
    kind: str  # of the series, in lower case
    eye: str | None  # "OD" or "OS"
    date: str | None
    stated: int | None  # number of images of the whole series
    listed: int


def scans_in_xml(path):
    """(parts, left_out) of an export, as `utils.volumes.vendor_files.scans_in_vendors_own` gives them."""
    try:
        listed = _all_series(path)
    except InputError:  # its reader reports what is wrong
        return [None], []
    reasons = [_why_no_volume(series) for series in listed]
    parts = [number for number, reason in enumerate(reasons) if reason is None]
    left_out = [(f"{path}, series {number + 1}", reason) for number, reason in enumerate(reasons) if reason]
    return parts or ([] if left_out else [None]), left_out


def listed_pictures(path, pictures):
    """Those of `pictures`, paths beside the export `path`, that it lists, whatever their suffixes are now.

    Of an export that cannot be read, those whose names it holds.
    """
    try:
        listed = {same_name(_stem(_file_name(address.text))) for address in _parsed(path).iter("ExamURL")}
    except InputError:
        text = path.read_bytes().lower()
        return {picture for picture in pictures if os.fsencode(picture.name).lower() in text}
    return {picture for picture in pictures if same_name(_stem(picture.name)) in listed}


def read_xml(path, part=None):
    """`Content` of the scan number `part`, from 0, of an export; None takes the first.

    Raises `InputError` if the file is damaged, lists no B-scan, or if pictures are missing or of other sizes than it
    states.
    """
    listed = _all_series(path)
    if not 0 <= (part or 0) < len(listed):
        raise InputError(f"{path}: lists no B-scan, expected a HEYEX export with images of the type OCT")
    series = listed[part or 0]
    pictures = _pictures_of(path, series.b_scans)
    pages, notes = [], []
    for picture, image in zip(pictures, series.b_scans, strict=True):
        page, of_page = _read_page(picture)
        stated = _number(image, f"{_CONTEXT}/Width"), _number(image, f"{_CONTEXT}/Height")
        if None not in stated and page.shape[::-1] != stated:
            size, expected = ("{:g} x {:g}".format(*one) for one in (page.shape[::-1], stated))
            raise InputError(f"{picture}: {size} pixels, expected {expected} by {path.name}; export it again")
        if pages and (page.shape, page.dtype) != (pages[0].shape, pages[0].dtype):
            raise InputError(f"{picture}: another size than the first B-scan of {path.name}, expected one size")
        pages.append(page)
        notes += of_page
    if series.stated is not None and series.stated > series.listed:
        notes.append(f"the export states {series.stated} images and lists {series.listed}")
    lines = [_line(image) for image in series.b_scans]
    z_mm, places = _distances(lines)
    x_mm, y_mm = (_scale(path, series.b_scans, axis) for axis in "XY")
    return Content(
        np.stack(pages),
        spacing_mm=(x_mm, y_mm, z_mm),
        vendor="Spectralis",
        laterality=series.eye,
        scan_date=series.date,
        notes=list(dict.fromkeys(notes)),
        z_mm=places,
        fundus=_fundus(path, series.localizer, lines),
    )


# ---- The list ------------------------------------------------------------------------------------------------------
_CONTEXT = "OphthalmicAcquisitionContext"


def _parsed(path):
    """The root element of an .xml. Entities, of which a few lines can make gigabytes, are refused."""
    content = path.read_bytes()
    for read in (lambda: content, lambda: content.decode("utf-8", "replace")):  # names may be in another encoding
        builder, parser = TreeBuilder(), expat.ParserCreate()
        parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
        parser.CharacterDataHandler, parser.EntityDeclHandler = builder.data, _refuse_entity
        try:
            parser.Parse(read(), True)
            return builder.close()
        except (expat.ExpatError, ValueError, LookupError) as error:
            reason = str(error)
    raise InputError(f"{path}: cannot be read as .xml ({reason}); export it again")


def _refuse_entity(*declaration):
    raise ValueError("it declares entities, which no export does")


def _all_series(path):
    """Every `_Series` with a B-scan, in the file's order."""
    root = _parsed(path)
    studies = list(root.iter("Study")) or [root]
    found = []
    for study in studies:
        date = _date(study.find("StudyDate/Date"))
        for series in study.iter("Series"):
            images = series.findall("Image")
            eyes = [_eye(image) or _eye(series) for image in images]
            for eye in dict.fromkeys(eyes):
                of_eye = [image for image, its in zip(images, eyes, strict=True) if its == eye]
                kinds = [(image.findtext("ImageType/Type") or "").strip().upper() for image in of_eye]
                b_scans = [image for image, kind in zip(of_eye, kinds, strict=True) if kind == "OCT"]
                localizer = next((one for one, kind in zip(of_eye, kinds, strict=True) if kind == "LOCALIZER"), None)
                of_series = date or _date(series.find(".//ExamDate/Date"))
                kind, stated = (series.findtext("Type") or "").strip().lower(), _number(series, "NumImages")
                if b_scans:
                    count = None if stated is None else int(stated)
                    found.append(_Series(b_scans, localizer, kind, eye, of_series, count, len(images)))
    return found


def _why_no_volume(series):
    """Why the B-scans are no volume; None if they are parallel."""
    lines = [line for line in map(_line, series.b_scans) if line]
    directions = [_direction(line) for line in lines]
    if "circ" in series.kind or any(map(_is_circle, series.b_scans)):
        return "a circular B-scan, expected parallel B-scans"
    crossing = [one for one in directions[1:] if abs(np.dot(one, directions[0])) < _PARALLEL]
    if crossing or "radial" in series.kind or "star" in series.kind:
        return "a radial scan, expected parallel B-scans"
    return None


def _is_circle(image):
    """Whether a B-scan is too long for its line: HEYEX gives a circle's centre and a point on it as start and end."""
    line, columns, x_mm = _line(image), _number(image, f"{_CONTEXT}/Width"), _number(image, f"{_CONTEXT}/ScaleX")
    if not line or not columns or not x_mm:
        return False
    return columns * x_mm > _CIRCLE * math.dist(line[:2], line[2:]) > 0


def _eye(element):
    return {"R": "OD", "OD": "OD", "L": "OS", "OS": "OS"}.get((element.findtext("Laterality") or "").strip().upper())


def _date(element):
    """YYYY-MM-DD of an element with Year, Month and Day."""
    if element is None:
        return None
    year, month, day = (_number(element, part) or 0 for part in ("Year", "Month", "Day"))
    try:
        return datetime.date(int(year), int(month), int(day)).isoformat()
    except (ValueError, OverflowError):
        return None


def _number(element, path):
    """The number that a sub-element holds; None without one."""
    try:
        value = float((element.findtext(path) or "").strip().replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# ---- Where B-scans lie ---------------------------------------------------------------------------------------------
def _line(image):
    """(x, y, x, y) in mm of a B-scan's start and end on the fundus; None without them."""
    ends = [_number(image, f"{_CONTEXT}/{end}/Coord/{axis}") for end in ("Start", "End") for axis in "XY"]
    return None if None in ends or ends[:2] == ends[2:] else tuple(ends)


def _direction(line):
    """Unit vector from start to end."""
    along = np.subtract(line[2:], line[:2])
    return along / np.linalg.norm(along)


def _distances(lines):
    """(mean distance between neighbouring B-scans, their places or None if they are evenly spaced), in mm."""
    if len(lines) < 2 or None in lines:
        return None, None
    x, y = _direction(lines[0])
    places = np.array([((line[0] + line[2]) * -y + (line[1] + line[3]) * x) / 2 for line in lines])
    steps = np.diff(places)
    mean = float(np.abs(steps).mean())
    if not 0 < mean < np.inf:
        return None, None
    in_order = (steps > 0).all() or (steps < 0).all()
    even = np.abs(np.abs(steps) - mean).max() <= _UNEVEN * mean
    return mean, None if even or not in_order else np.abs(places - places[0])


def _scale(path, images, axis):
    """ScaleX or ScaleY in mm; None if it is not stated. Raises `InputError` where it differs between the B-scans."""
    values = [_number(image, f"{_CONTEXT}/Scale{axis}") for image in images]
    if None in values:
        return None
    if max(values) - min(values) > _ALIKE * abs(max(values)):
        raise InputError(f"{path}: B-scans with Scale{axis} from {min(values):g} to {max(values):g} mm, expected one")
    return float(np.median(values))


# ---- The pictures --------------------------------------------------------------------------------------------------
def _pictures_of(path, images):
    """Paths of the images' pictures, beside the .xml, wherever they lay when it was written.

    A picture may have been converted: its suffix may differ. Raises `InputError`, which names those that are missing.
    """
    there, stems = {}, {}
    for file in sorted(path.parent.iterdir()):
        if suffix_of(file) in PICTURES:
            there[same_name(file.name)] = file
            stems[same_name(_stem(file.name))] = file
    found, missing = [], []
    for image in images:
        name = _file_name(image.findtext("ImageData/ExamURL"))
        picture = there.get(same_name(name)) or stems.get(same_name(_stem(name)))
        found.append(picture)
        if picture is None:
            missing.append(name or "one without a name")
    if missing:
        names = ", ".join(missing[:_MOST_NAMED]) + f" and {len(missing) - _MOST_NAMED} more" * (
            len(missing) > _MOST_NAMED
        )
        raise InputError(f"{path}: lists {len(images)} B-scans, and {names} not beside it; copy or export them again")
    return found


def _file_name(address):
    """File name in the address at which a picture lay when it was exported."""
    return urllib.parse.unquote((address or "").strip().replace("\\", "/").rpartition("/")[2])


def _stem(name):
    return name[: len(name) - len(Path(name).suffix)]


def _read_page(path):
    """(grey values (rows, columns), notes) of a picture of one page."""
    pages, inverted, notes = read_picture(path)
    if len(pages) != 1 or inverted:
        raise InputError(f"{path}: {len(pages)} pages or white as 0, expected one B-scan; export it again")
    return pages[0], notes


def _fundus(path, localizer, lines):
    """The `Fundus` of a scan; None where its picture is missing or cannot be read, since it is not needed."""
    if localizer is None:
        return None
    try:
        (picture,) = _pictures_of(path, [localizer])
        image, _ = _read_page(picture)
    except InputError:
        return None
    x_mm, y_mm = (_number(localizer, f"{_CONTEXT}/Scale{axis}") for axis in "XY")
    if not x_mm or not y_mm:
        return Fundus(image, (None,) * len(lines))
    scales = np.array([x_mm, y_mm, x_mm, y_mm])
    return Fundus(image, tuple(line and tuple((np.array(line) / scales).tolist()) for line in lines))
