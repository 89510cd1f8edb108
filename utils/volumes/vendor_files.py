"""Heidelberg's and Topcon's own files. Heidelberg's .vol and .e2e are read by eyepy."""

import logging
import struct

import numpy as np

from utils.errors import InputError
from utils.volumes.content import Content, Fundus, iso_date
from utils.volumes.heidelberg_xml import read_xml, scans_in_xml
from utils.volumes.topcon import read_topcon, scans_in_topcon

VENDORS_OWN = {".vol": "Spectralis", ".e2e": "Spectralis", ".xml": "Spectralis", ".fda": "Topcon", ".fds": "Topcon"}
_NO_VOLUMES = {2: "a circular B-scan", 5: "a radial scan"}  # scan patterns that are no volumes to eyepy
_EYES = {"OD": "OD", "R": "OD", "82": "OD", "OS": "OS", "L": "OS", "76": "OS"}  # eyepy gives letters as their numbers
_VOL_PATTERN = 96  # where a .vol states its scan pattern, as an int32


def scans_in_vendors_own(path, suffix):
    """(parts, left_out) of a vendor's file.

    `parts` are the numbers, from 0, of the series that hold a volume; [None] where the file is one scan, and where it
    cannot be searched: the reader then reports why. `left_out` lists (path and series, reason) for those whose B-scans
    are no volume.
    """
    if suffix == ".xml":
        return scans_in_xml(path)
    if suffix in (".fda", ".fds"):
        return scans_in_topcon(path)
    return _scans_in_vol(path) if suffix == ".vol" else _scans_in_e2e(path)


def _scans_in_vol(path):
    with open(path, "rb") as file:
        head = file.read(_VOL_PATTERN + 4)
    pattern = struct.unpack_from("<i", head, _VOL_PATTERN)[0] if len(head) == _VOL_PATTERN + 4 else None
    if head[:3] == b"HSF" and pattern in _NO_VOLUMES:
        return [], [(str(path), f"{_NO_VOLUMES[pattern]}, expected parallel B-scans")]
    return [None], []


def _scans_in_e2e(path):
    try:
        from eyepy.io import HeE2eReader

        with HeE2eReader(path) as reader:
            patterns = [_pattern(series) for series in reader.series]
    except Exception:  # a damaged file, or eyepy is missing: the reader reports it
        return [None], []
    parts = [number for number, pattern in enumerate(patterns) if pattern is not None and pattern not in _NO_VOLUMES]
    left_out = [
        (f"{path}, series {number + 1}", f"{_NO_VOLUMES[pattern]}, expected parallel B-scans")
        for number, pattern in enumerate(patterns)
        if pattern in _NO_VOLUMES
    ]
    return parts or ([] if left_out else [None]), left_out


def _pattern(series):
    """The scan pattern of an .e2e file's series; None if it holds no B-scans."""
    b_scans = series.get_bscan_meta()
    return b_scans[0]["scan_pattern"] if b_scans else None


def read_vendors_own(path, suffix, part=None):
    """`Content` of a vendor's file. `part` is the number of a series in it; None takes the first volume.

    Raises `InputError` if the file is damaged, or if it needs eyepy and that is not installed.
    """
    if suffix == ".xml":
        return read_xml(path, part)
    return read_topcon(path) if suffix in (".fda", ".fds") else _read_by_eyepy(path, suffix, part)


def _read_by_eyepy(path, suffix, part):
    try:
        import eyepy.io
    except ImportError as error:
        raise InputError(f"{path}: reading {suffix} files needs the package eyepy; pip install eyepy") from error
    logging.getLogger("eyepy").setLevel(logging.ERROR)  # it warns about layers, which are not used here
    try:
        if part is not None:
            with eyepy.io.HeE2eReader(path) as reader:
                volume = reader.series[part].get_volume()
        elif suffix == ".vol":
            volume = eyepy.io.import_heyex_vol(path)
        else:
            with eyepy.io.HeE2eReader(path) as reader:
                if all(_pattern(series) is None for series in reader.series):
                    raise InputError(f"{path}: holds no series of B-scans that is whole; export it again, or as .vol")
                volume = reader.volume
        voxels, fundus = np.asarray(volume.data), fundus_of(volume)
    except InputError:
        raise
    except Exception as error:  # eyepy's parsers raise exceptions of any kind for damaged files
        reason = str(error).strip().splitlines() or [type(error).__name__]
        of = "" if part is None else f", series {part + 1} of the file"
        raise InputError(f"{path}: cannot be read as {suffix}{of} ({reason[0]})") from error
    meta = volume.meta
    known_unit = meta.get("scale_unit") == "mm"
    date = meta.get("visit_date") or meta.get("exam_time")
    return Content(
        voxels,
        spacing_mm=tuple(meta.get(f"scale_{axis}") if known_unit else None for axis in "xyz"),
        vendor=VENDORS_OWN[suffix],
        laterality=_EYES.get(str(meta.get("laterality")).strip("\0 ").upper()),
        scan_date=iso_date(date),
        fundus=fundus,
    )


def fundus_of(volume):
    """The `Fundus` of a volume by eyepy; None where it is no picture of the device's but a projection of the B-scans.

    The B-scans' places are in mm from its corner, or in degrees from its centre.
    """
    meta, picture = volume.localizer.meta, np.asarray(volume.localizer.data)
    if not meta.get("modality") or picture.dtype != np.uint8:
        return None
    scale = np.array([meta["scale_x"], meta["scale_y"]])
    centre = np.array(picture.shape[::-1]) * scale / 2
    origins = {"mm": np.zeros(2), "°": -centre}
    unit, b_scans = meta["scale_unit"], volume.meta.get("bscan_meta") or ()
    if unit not in origins or any(b_scan["pos_unit"] != unit for b_scan in b_scans) or len(b_scans) != len(volume.data):
        return Fundus(picture, (None,) * len(volume.data))
    ends = ([(np.array(b_scan[end]) - origins[unit]) / scale for end in ("start_pos", "end_pos")] for b_scan in b_scans)
    return Fundus(picture, tuple(tuple(np.concatenate(pair).tolist()) for pair in ends))
