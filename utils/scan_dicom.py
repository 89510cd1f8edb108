"""DICOM: which scans its files hold, and what is in them.

A scan is a list of frames, of one file or of several. Which frames belong together, and in which order, is told by what
the headers say of each.
"""

import re
from dataclasses import dataclass

import numpy as np

from utils.errors import InputError
from utils.files import natural_order
from utils.grey_values import grey_channel
from utils.scan_content import Content, iso_date

_MANUFACTURERS = {"heidelberg": "Spectralis", "zeiss": "Cirrus", "topcon": "Topcon"}
_TOMOGRAPHY = "1.2.840.10008.5.1.4.1.1.77.1.5.4"
_PHOTOGRAPHY = ("1.2.840.10008.5.1.4.1.1.77.1.5.1", "1.2.840.10008.5.1.4.1.1.77.1.5.2")  # 8 and 16 bits
_NO_B_SCANS = (  # images of other things, by their class
    "1.2.840.10008.5.1.4.1.1.66.4",  # segmentation
    "1.2.840.10008.5.1.4.1.1.77.1.5.5",  # wide field photography
    "1.2.840.10008.5.1.4.1.1.77.1.5.6",
    "1.2.840.10008.5.1.4.1.1.77.1.5.7",  # en face
    "1.2.840.10008.5.1.4.1.1.77.1.5.8",  # analysis of a volume's B-scans
    "1.2.840.10008.5.1.4.1.1.81.1",  # thickness map
)
# Attributes of a frame that tell volumes apart where several frames share a value; some devices count every B-scan.
_OF_A_VOLUME = ("FrameOfReferenceUID", "StackID", "AcquisitionUID", "AcquisitionNumber", "FrameAcquisitionNumber")
_SAME_DIRECTION = 0.02  # largest difference between the direction cosines of parallel B-scans
_SAME_PLACE_MM = 1e-4
_EVEN = 0.2  # share by which the steps between B-scans may differ from their median
_MOST_CUT = 0.95  # share of pixels outside of a window that is still believed
_MOST_FRAMES = 100_000  # of a file; more is a damaged header


@dataclass(frozen=True)
class _Frame:
    path: str
    index: int  # in its file
    kind: tuple  # what always tells scans apart: file or concatenation, size
    eye: str | None
    of_a_volume: tuple  # the values of `_OF_A_VOLUME`
    position_mm: tuple | None  # (x, y, z)
    orientation: tuple | None  # of rows and columns, six numbers
    number: tuple  # that orders the frames where positions do not


# ---- Which scans there are -----------------------------------------------------------------------------------------
def scans_in_dicom(paths):
    """(scans, left_out): the scans that DICOM files of one folder hold.

    `scans` lists (paths, part): the files that hold the scan, copies among them, and which of the scans in these files
    it is, from 0, or None where they hold no other. `left_out` lists (path, reason). A damaged file is a scan of its
    own: who reads it is told what is wrong.
    """
    headers = {str(path): _header(path) for path in paths}
    left_out = [(path, reason) for path, header in headers.items() if (reason := _why_not_a_scan(header))]
    if any(_is_tomography(header) for header in headers.values()):
        left_out += [
            (path, "an ophthalmic photograph beside tomographies")
            for path, header in headers.items()
            if _is_photograph(header)
        ]
    series = {}
    for path, header in headers.items():
        if path not in {path for path, _ in left_out}:
            series.setdefault(_series(header, path), {})[path] = header
    scans = []
    for files in series.values():
        groups, copies = _grouped(files)
        for group in groups:
            of_group = list(dict.fromkeys(frame.path for frame in group))
            if any(frame.path in of_group for other in groups if other is not group for frame in other):
                scans.append((list(files), groups.index(group)))
            else:
                scans.append((of_group + [copy for copy, original in copies.items() if original in of_group], None))
    return scans, left_out


def _header(path):
    """The data set without its pixels; None where it cannot be read."""
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        _sop_class(header)  # values are converted, and found to be damaged, where they are asked for
        for name in ("Modality", "SeriesInstanceUID", "SOPInstanceUID", "InstanceNumber"):
            header.get(name)
        return header
    except Exception:  # pydicom raises many kinds; whoever reads the file says what is wrong
        return None


def _sop_class(header):
    return str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", ""))


def _why_not_a_scan(header):
    """The reason why a file is no scan; None for what may be one, a damaged image too."""
    from pydicom.uid import UID

    sop_class = "" if header is None else _sop_class(header)
    if not sop_class:
        return None
    name = UID(sop_class).name.removesuffix(" Storage")
    if sop_class in _NO_B_SCANS:
        return f"a DICOM file of the kind {name}, which holds no B-scans"
    if "Rows" not in header and "Image Storage" not in UID(sop_class).name:
        return f"a DICOM file of the kind {name}, which holds no pixels"
    return None


def _is_tomography(header):
    if header is None or _sop_class(header) in _PHOTOGRAPHY:
        return False
    return _sop_class(header) == _TOMOGRAPHY or header.get("Modality") == "OPT"


def _is_photograph(header):
    if header is None or _sop_class(header) == _TOMOGRAPHY:
        return False
    return _sop_class(header) in _PHOTOGRAPHY or header.get("Modality") == "OP"


def _series(header, path):
    return path if header is None else str(header.get("SeriesInstanceUID", path))


def _grouped(files):
    """(groups, copies) of the files {path: header} of a series: a list of frames for each scan, in order of the first
    file's name, and {path of a copy: path of what it is a copy of}."""
    copies = _copies(files)
    frames = [frame for path in files if path not in copies for frame in _frames(path, files[path])]
    groups = _split(frames, [frame.kind for frame in frames])
    groups = [part for group in groups for part in _split_known(group, [frame.eye for frame in group])]
    for index in range(len(_OF_A_VOLUME)):
        groups = [part for group in groups for part in _split_repeated(group, [f.of_a_volume[index] for f in group])]
    groups = [part for group in groups for part in _split_repeated(group, _directions(group))]
    return [part for group in groups for part in _split_passes(group)], copies


def _copies(files):
    first, copies = {}, {}
    for path in sorted(files, key=lambda path: (len(path), path)):  # the copy is the one with the longer name
        uid = None if files[path] is None else files[path].get("SOPInstanceUID")
        original = first.setdefault(str(uid or path), path)
        if original != path and _same_pixels(original, path):
            copies[path] = original
    return copies


def _same_pixels(path, other):
    """Whether two files of one instance hold the same; some programs give one UID to all that they export."""
    import pydicom

    try:
        one, two = pydicom.dcmread(path), pydicom.dcmread(other)
        if one.file_meta.TransferSyntaxUID != two.file_meta.TransferSyntaxUID:
            return one.get("InstanceNumber") == two.get("InstanceNumber")
        return one.get("PixelData") == two.get("PixelData")
    except Exception:  # as in `_header`
        return False


def _frames(path, header):
    try:
        return _frames_of(path, header)
    except Exception:  # values that pydicom cannot convert, or of a number that cannot be, or no header
        return [_Frame(path, 0, (path,), None, (None,) * len(_OF_A_VOLUME), None, None, (0, 0))]


def _frames_of(path, header):
    count = int(header.get("NumberOfFrames") or 1)
    groups = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    if count > _MOST_FRAMES:
        raise ValueError(f"{count} frames")
    file = None if count == 1 else str(header.get("ConcatenationUID") or path)
    frames = []
    for index in range(count):

        def value(name, index=index):
            return _of_frame(header, groups, index, name)

        eye = value("FrameLaterality") or value("ImageLaterality") or value("Laterality")
        number = value("InStackPositionNumber") if count > 1 else value("InstanceNumber")
        frames.append(
            _Frame(
                path,
                index,
                (file, header.get("Rows"), header.get("Columns")),
                eye,
                tuple(None if (told := value(name)) is None else str(told) for name in _OF_A_VOLUME),
                _position_mm(value("ImagePositionPatient"), value("SliceLocation")),
                _numbers(value("ImageOrientationPatient"), 6),
                (int(header.get("InConcatenationNumber") or 0), int(number or index)),
            )
        )
    return frames


def _of_frame(header, groups, index, name):
    """The value of an attribute for a frame: from its functional groups, the shared ones, or the header; else None."""
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for dataset in (*groups[index : index + 1], *shared[:1]):
        found = first_value(dataset, name)
        if found is not None:
            return found
    return header.get(name) or None


def _position_mm(position, location):
    """A frame's position, or where only its place along the volume is stated, one on a line; None without either."""
    return _numbers(position, 3) or (None if location is None else (0.0, 0.0, float(location)))


def _numbers(values, count):
    if values is None or len(values) != count or not np.isfinite(np.array(values, float)).all():
        return None
    return tuple(float(value) for value in values)


def first_value(dataset, *names):
    """The value of the first of the DICOM attributes `names` that is anywhere in `dataset`, else None."""
    for name in names:
        if dataset.get(name) not in (None, ""):
            return dataset.get(name)
    for name in names:
        for element in dataset.iterall():
            if element.keyword == name and element.value not in (None, ""):
                return element.value
    return None


def _split(frames, values):
    groups = {}
    for frame, value in zip(frames, values, strict=True):
        groups.setdefault(value, []).append(frame)
    return list(groups.values())


def _split_known(frames, values):
    """The frames by value, or all together where those that have one have the same."""
    return _split(frames, values) if len(set(values) - {None}) > 1 else [frames]


def _split_repeated(frames, values):
    """As `_split_known`, and all together where no two share a value."""
    groups = _split_known(frames, values)
    return groups if len(groups) < len(frames) else [frames]


def _directions(frames):
    """For each frame the number of its direction: B-scans of one volume are parallel."""
    known, numbers = [], []
    for frame in frames:
        number = next((n for n, other in enumerate(known) if _parallel(frame.orientation, other)), len(known))
        if number == len(known):
            known.append(frame.orientation)
        numbers.append(number)
    return numbers


def _parallel(orientation, other):
    if orientation is None or other is None:
        return orientation is other
    return np.abs(np.subtract(orientation, other)).max() < _SAME_DIRECTION


def _split_passes(frames):
    """The frames by pass, where a volume was scanned several times: each place occurs as often."""
    frames = sorted(frames, key=_by_number)
    if any(frame.position_mm is None for frame in frames):
        return [frames]
    seen, passes = {}, []
    for frame in frames:
        place = tuple(np.rint(np.divide(frame.position_mm, _SAME_PLACE_MM)).astype(np.int64))
        passes.append(seen.get(place, 0))
        seen[place] = passes[-1] + 1
    all_as_often = len(set(seen.values())) == 1 and len(seen) > 1
    return _split(frames, passes) if all_as_often else [frames]


def _by_number(frame):
    return frame.number, natural_order(frame.path), frame.index


# ---- In which order ------------------------------------------------------------------------------------------------
def _ordered(frames):
    """(frames in the order of their places, slice spacing in mm or None, notes)."""
    along_mm = _along(frames)
    if along_mm is None:
        frames = sorted(frames, key=_by_number)
        return frames, None, _missing_numbers(frames)
    order = sorted(range(len(frames)), key=lambda index: (along_mm[index], *_by_number(frames[index])))
    notes = []
    stored = [frames[index].index for index in order]
    if len({frame.path for frame in frames}) == 1 and stored not in (sorted(stored), sorted(stored)[::-1]):
        notes.append("frames are stored in another order than their positions, which the B-scans follow")
    steps_mm = np.diff(np.sort(along_mm))
    shared = np.count_nonzero(steps_mm <= _SAME_PLACE_MM)
    if shared:
        notes.append(f"{shared} B-scans lie at the same place as another")
    steps_mm = steps_mm[steps_mm > _SAME_PLACE_MM]
    spacing_mm = float(np.median(steps_mm))
    if np.abs(steps_mm / spacing_mm - 1).max() > _EVEN:
        missing = int(np.rint(steps_mm / spacing_mm - 1).clip(0).sum())
        notes.append(
            f"B-scans lie {steps_mm.min():g} to {steps_mm.max():g} mm apart, {spacing_mm:g} mm taken for all"
            + (f"; {missing} seem to be missing in between" if missing else "")
        )
    return [frames[index] for index in order], spacing_mm, notes


def _along(frames):
    """Where the frames lie along the volume, in mm; None where their positions do not tell."""
    if len(frames) < 2 or any(frame.position_mm is None for frame in frames) or len(set(_directions(frames))) > 1:
        return None
    positions_mm = np.array([frame.position_mm for frame in frames])
    if frames[0].orientation is not None:
        along_mm = positions_mm @ np.cross(frames[0].orientation[:3], frames[0].orientation[3:])
        if np.ptp(along_mm) > _SAME_PLACE_MM:
            return along_mm
    offsets_mm = positions_mm - positions_mm[0]
    farthest = offsets_mm[np.linalg.norm(offsets_mm, axis=1).argmax()]
    length_mm = np.linalg.norm(farthest)
    if length_mm <= _SAME_PLACE_MM:
        return None
    along_mm = offsets_mm @ (farthest / length_mm)
    return along_mm if farthest[np.abs(farthest).argmax()] > 0 else -along_mm


def _missing_numbers(frames):
    """A note where the numbers of a series' files leave some out."""
    numbers = [frame.number[1] for frame in frames]
    steps = np.diff(numbers)
    if len({frame.path for frame in frames}) < 3 or min(steps) < 1 or max(steps) == min(steps):
        return []
    after = numbers[int(np.argmax(steps))]
    return [f"the files' numbers have a gap after {after}; B-scans seem to be missing"]


# ---- What they hold ------------------------------------------------------------------------------------------------
def read_dicom(paths, part=None):
    """`Content` of one of the scans in DICOM files, as `scans_in_dicom` lists them.

    Raises `InputError`, which names the file, for one that is damaged or in colour, or needs a decoder that is not
    installed.
    """
    files = {str(path): _header(path) for path in paths}
    groups, copies = _grouped(files)
    frames, spacing_z_mm, notes = _ordered(groups[part or 0])
    if copies:
        names = ", ".join(re.split(r"[/\\]", path)[-1] for path in sorted(copies))
        notes.append(f"copies of files of this scan are left out: {names}")
    if frames[0].orientation and len(frames) > 1 and len(set(_directions(frames))) > 1:
        notes.append("the B-scans have different directions; volumes are those of parallel ones")
    by_path = {}
    for path in dict.fromkeys(frame.path for frame in frames):
        by_path[path] = _read_file(path, [frame.index for frame in frames if frame.path == path])
    header = by_path[frames[-1].path].header
    notes += dict.fromkeys(note for file in by_path.values() for note in file.notes)
    bits = {file.bits for file in by_path.values()}
    y, x = _numbers(first_value(header, "PixelSpacing"), 2) or (None, None)
    z = spacing_z_mm or first_value(header, "SpacingBetweenSlices", "SliceThickness")
    manufacturer = str(header.get("Manufacturer", "")).lower()
    eye = next((frame.eye for frame in frames if frame.eye), None) or first_value(
        header, "ImageLaterality", "Laterality", "FrameLaterality"
    )
    return Content(
        np.stack([by_path[frame.path].pixels.pop(frame.index) for frame in frames]),
        spacing_mm=(x, y, None if z is None else float(z)),
        vendor=next((vendor for name, vendor in _MANUFACTURERS.items() if name in manufacturer), None),
        laterality={"R": "OD", "L": "OS"}.get(str(eye)),
        scan_date=iso_date(first_value(header, "AcquisitionDateTime", "AcquisitionDate", "ContentDate", "StudyDate")),
        bits=bits.pop() if len(bits) == 1 else None,
        inverted=header.get("PhotometricInterpretation") == "MONOCHROME1",
        notes=notes,
    )


@dataclass
class _File:
    header: object
    pixels: dict  # {frame index: (rows, columns)}
    bits: int | None  # None where the range has to be guessed
    notes: list


def _read_file(path, indices):
    """The grey values of the frames `indices` of a file, as a viewer shows them but for MONOCHROME1."""
    import pydicom
    from pydicom.pixels import apply_color_lut

    try:
        header = pydicom.dcmread(path)
        shift = _unused_low_bits(header)
        pixels = header.pixel_array
        bits = int(header.BitsStored) - shift
        pixels = pixels >> shift if shift else pixels
        colour = int(header.get("SamplesPerPixel", 1)) > 1
        if header.PhotometricInterpretation == "PALETTE COLOR":
            pixels, colour = apply_color_lut(pixels, header), True
            bits = pixels.dtype.itemsize * 8
        frames = pixels if pixels.ndim == 3 + colour else pixels[np.newaxis]
        if len(frames) <= max(indices):
            raise ValueError(f"{max(indices) + 1} frames stated, {len(frames)} found")
        frames = [frames[index] for index in indices]
        if colour:
            notes = []
            frames = [grey_channel(frame, path) for frame in frames]
        else:
            frames, bits, notes = _as_shown(frames, [_display(header, index) for index in indices], bits)
        return _File(header, dict(zip(indices, frames, strict=True)), bits, notes)
    except InputError:
        raise
    except Exception as error:  # pydicom raises many kinds, its decoders others
        raise InputError(f"{path}: {_why_unreadable(path, error)}") from error


def _unused_low_bits(header):
    """How far the values lie above the lowest bit; then `header` states all bits up to the highest."""
    shift = int(header.get("HighBit", header.BitsStored - 1)) + 1 - int(header.BitsStored)
    if shift <= 0 or header.file_meta.TransferSyntaxUID.is_compressed:
        return 0
    header.BitsStored = int(header.HighBit) + 1
    return shift


def _display(header, index):
    """A data set that says how a frame's values are shown: what pydicom needs for rescaling and window."""
    from pydicom.dataset import Dataset

    groups = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    display = Dataset()
    for name in ("BitsStored", "PixelRepresentation", "PhotometricInterpretation"):
        setattr(display, name, header.get(name))
    names = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction")
    for name in names:
        value = _of_frame(header, groups, index, name)
        if value is not None:
            setattr(display, name, value)
    if "RescaleSlope" in display and "RescaleIntercept" not in display:
        display.RescaleIntercept = 0
    return display


def _as_shown(frames, displays, bits):
    """(frames, bits, notes): rescaled, and limited to the window, as their `_display` says; no bits where they have to
    be guessed."""
    from pydicom.pixels import apply_modality_lut

    notes = []
    rescaled = [apply_modality_lut(frame, display) for frame, display in zip(frames, displays, strict=True)]
    if not all(np.array_equal(one, other) for one, other in zip(rescaled, frames, strict=True)):
        frames, bits = [frame.astype(np.float32) for frame in rescaled], None
        notes.append("grey values are rescaled as the file says")
    if all("WindowCenter" in display and "WindowWidth" in display for display in displays) and (
        bits is None or not all(_shows_all(display, bits) for display in displays)
    ):
        shares = [_windowed(frame, display) for frame, display in zip(frames, displays, strict=True)]
        if np.mean([np.mean((share <= 0) | (share >= 1)) for share in shares]) > _MOST_CUT:
            notes.append("the file's window shows next to nothing and is not applied")
        else:
            frames, bits = [np.rint(share * 65535).astype(np.uint16) for share in shares], None
            notes.append("grey values are limited to the window that the file states")
    return frames, bits, notes


def _windowed(pixels, display):
    """`pixels` as shares of the window, 0 to 1."""
    from pydicom.pixels import apply_windowing

    low, high = apply_windowing(np.array([-np.inf, np.inf]), display)
    return (apply_windowing(pixels, display) - low) / (high - low)


def _shows_all(display, bits):
    """Whether the window of unsigned values of so many bits is their range."""
    values = np.arange(2**bits)
    return np.array_equal(np.rint(_windowed(values, display) * values[-1]), values)


def _why_unreadable(path, error):
    """What is wrong with a file, in a line; where a decoder is missing, which package to install."""
    from pydicom.pixels import get_decoder

    header = _header(path)
    try:
        syntax = header.file_meta.TransferSyntaxUID
        decoder = get_decoder(syntax)
    except Exception:  # no header, or a kind of pixels that pydicom does not know
        decoder = None
    lacks_decoder = decoder is not None and isinstance(error, RuntimeError) and decoder.missing_dependencies
    if lacks_decoder and (not decoder.is_available or "not support" in str(error)):
        needs = [needed.split(" requires ")[-1] for needed in decoder.missing_dependencies if "gdcm" not in needed]
        packages = re.findall(r"py[\w-]+", needs[0]) if needs else ["gdcm"]
        return f"its pixels are stored as {syntax.name}, which needs a decoder; pip install {' '.join(packages)}"
    reason = "; ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__
    return f"not a readable DICOM image ({reason})"
