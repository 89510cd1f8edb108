"""The frames of DICOM files: which belong to one scan, and in which order.

The headers tell. A frame's value comes from its own functional groups, the shared ones, or the file's header.
"""

from dataclasses import dataclass

import numpy as np

from utils.files import natural_order

# Attributes that distinguish volumes if several frames share a value. Some devices give every B-scan its own value.
_OF_A_VOLUME = ("FrameOfReferenceUID", "StackID", "AcquisitionUID", "AcquisitionNumber", "FrameAcquisitionNumber")
_SAME_DIRECTION = 0.02  # largest difference between the direction cosines of parallel B-scans
_SAME_PLACE_MM = 1e-4
_EVEN = 0.2  # share by which the steps between B-scans may differ from their median
_MOST_FRAMES = 100_000  # of a file; more is a damaged header


@dataclass(frozen=True)
class Frame:
    path: str
    index: int  # in its file
    kind: tuple  # frames of different kinds are different scans: file or concatenation, size
    eye: str | None
    of_a_volume: tuple  # the values of `_OF_A_VOLUME`
    position_mm: tuple | None  # (x, y, z)
    location_mm: float | None  # along the volume; used if positions are missing
    orientation: tuple | None  # of rows and columns, six numbers
    number: tuple  # orders the frames if positions do not


# ---- Which belong together -----------------------------------------------------------------------------------------
def read_header(path):
    """The data set without its pixels; None if it cannot be read."""
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        sop_class(header)  # pydicom converts values, and finds damaged ones, when they are asked for
        for name in ("Modality", "SeriesInstanceUID", "SOPInstanceUID", "InstanceNumber", "SamplesPerPixel"):
            header.get(name)
        return header
    except Exception:  # pydicom raises many kinds; the file's reader reports what is wrong
        return None


def sop_class(header):
    """The UID of a file's kind; "" if none is stated."""
    return str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", ""))


def grouped(files):
    """(groups, copies) of the files {path: header} of a series.

    `groups` has a list of frames for each scan, in the order of the files. `copies` is {path of a copy: path of the
    original}.
    """
    copies = _copies(files)
    frames = [frame for path in files if path not in copies for frame in _frames(path, files[path])]
    groups = _split(frames, [frame.kind for frame in frames])
    groups = [part for group in groups for part in _split_known(group, [frame.eye for frame in group])]
    for index in range(len(_OF_A_VOLUME)):
        groups = [part for group in groups for part in _split_repeated(group, [f.of_a_volume[index] for f in group])]
    groups = [part for group in groups for part in _split_repeated(group, directions(group))]
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
    """Whether two files with one UID hold the same pixels. Some programs give one UID to all files of an export."""
    import pydicom

    try:
        one, two = pydicom.dcmread(path), pydicom.dcmread(other)
        if one.file_meta.TransferSyntaxUID != two.file_meta.TransferSyntaxUID:
            return one.get("InstanceNumber") == two.get("InstanceNumber")
        return one.get("PixelData") == two.get("PixelData")
    except Exception:  # as in `read_header`
        return False


def _frames(path, header):
    try:
        return _frames_of(path, header)
    except Exception:  # values that pydicom cannot convert, impossible numbers, or no header
        return [Frame(path, 0, (path,), None, (None,) * len(_OF_A_VOLUME), None, None, None, (0, 0))]


def _frames_of(path, header):
    count = int(header.get("NumberOfFrames") or 1)
    groups = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    if count > _MOST_FRAMES:
        raise ValueError(f"{count} frames")
    file = None if count == 1 else str(header.get("ConcatenationUID") or path)
    frames = []
    for index in range(count):

        def value(name, index=index):
            return of_frame(header, groups, index, name)

        location = value("SliceLocation")
        eye = value("FrameLaterality") or value("ImageLaterality") or value("Laterality")
        number = value("InStackPositionNumber") if count > 1 else value("InstanceNumber")
        frames.append(
            Frame(
                path,
                index,
                (file, str(header.get("Rows")), str(header.get("Columns"))),  # as text: damaged ones are lists
                None if eye is None else str(eye),
                tuple(None if (told := value(name)) is None else str(told) for name in _OF_A_VOLUME),
                numbers_of(value("ImagePositionPatient"), 3),
                None if location is None else float(location),
                numbers_of(value("ImageOrientationPatient"), 6),
                (int(header.get("InConcatenationNumber") or 0), int(number or index)),
            )
        )
    return frames


def of_frame(header, groups, index, name):
    """A frame's value of an attribute, from its functional groups, the shared ones or the header; else None."""
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for dataset in (*groups[index : index + 1], *shared[:1]):
        found = first_value(dataset, name)
        if found is not None:
            return found
    found = header.get(name)
    return None if found in (None, "") else found


def numbers_of(values, count):
    """`values` as floats; None if they are not `count` finite numbers."""
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
    """The frames grouped by value. One group if all known values are equal."""
    return _split(frames, values) if len(set(values) - {None}) > 1 else [frames]


def _split_repeated(frames, values):
    """As `_split_known`, but also one group if no two frames share a value."""
    groups = _split_known(frames, values)
    return groups if len(groups) < len(frames) else [frames]


def directions(frames):
    """For each frame the number of its direction. B-scans of one volume are parallel."""
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
    """The frames grouped by pass if a volume was scanned several times: each place occurs equally often."""
    frames = sorted(frames, key=_by_number)
    places_mm = [frame.position_mm or frame.location_mm for frame in frames]
    if None in places_mm:
        return [frames]
    seen, passes = {}, []
    for place_mm in places_mm:
        place = tuple(np.rint(np.atleast_1d(place_mm) / _SAME_PLACE_MM))
        passes.append(seen.get(place, 0))
        seen[place] = passes[-1] + 1
    all_as_often = len(set(seen.values())) == 1 and len(seen) > 1
    return _split(frames, passes) if all_as_often else [frames]


def _by_number(frame):
    return frame.number, natural_order(frame.path), frame.index


# ---- In which order ------------------------------------------------------------------------------------------------
def ordered(frames):
    """(frames in the order of their places, slice spacing in mm or None, notes).

    Frames of one file that are stored in exactly the opposite order stay so: the volume then has that direction.
    """
    along_mm = _along(frames)
    if along_mm is None:
        frames = sorted(frames, key=_by_number)
        return frames, None, _missing_numbers(frames)
    order = sorted(range(len(frames)), key=lambda index: (along_mm[index], *_by_number(frames[index])))
    notes = []
    stored = [frames[index].index for index in order]
    if len({frame.path for frame in frames}) == 1 and stored != sorted(stored):
        if stored == sorted(stored, reverse=True):
            order.reverse()
        else:
            notes.append("frames are stored in another order than their positions, which the B-scans follow")
    steps_mm = np.diff(np.sort(along_mm))
    shared = np.count_nonzero(steps_mm <= _SAME_PLACE_MM)
    if shared:
        notes.append(f"{shared} B-scans lie at the same place as another")
    steps_mm = steps_mm[steps_mm > _SAME_PLACE_MM]
    spacing_mm = float(np.median(steps_mm)) if steps_mm.size else None
    if spacing_mm and np.abs(steps_mm / spacing_mm - 1).max() > _EVEN:
        missing = int(np.rint(steps_mm / spacing_mm - 1).clip(0).sum())
        notes.append(
            f"B-scans lie {steps_mm.min():g} to {steps_mm.max():g} mm apart; measurements take this into account, and "
            f"label files state {spacing_mm:g} mm for all"
            + (f"; {missing} seem to be missing in between" if missing else "")
        )
    return [frames[index] for index in order], spacing_mm, notes


def places(frames):
    """How far each of the ordered `frames` lies from the first, in mm, float (frames,); None if it is not known."""
    along_mm = _along(frames)
    return None if along_mm is None else np.abs(along_mm - along_mm[0])


def _along(frames):
    """Where the frames lie along the volume, in mm; None if their positions do not tell."""
    if len(frames) < 2 or len(set(directions(frames))) > 1:
        return None
    if any(frame.position_mm is None for frame in frames):
        locations_mm = [frame.location_mm for frame in frames]
        return None if None in locations_mm or np.ptp(locations_mm) <= _SAME_PLACE_MM else np.array(locations_mm)
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
    """A note if numbers are missing among those of a series' files."""
    numbers = [frame.number[1] for frame in frames]
    steps = np.diff(numbers)
    if len({frame.path for frame in frames}) < 3 or min(steps) < 1 or max(steps) == min(steps):
        return []
    after = numbers[int(np.argmax(steps))]
    return [f"the files' numbers have a gap after {after}; B-scans seem to be missing"]
