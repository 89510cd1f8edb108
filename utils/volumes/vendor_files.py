"""Heidelberg's and Topcon's own files, through eyepy."""

import logging

import numpy as np

from utils.errors import InputError
from utils.volumes.content import Content, iso_date

VENDORS_OWN = {".vol": "Spectralis", ".e2e": "Spectralis", ".xml": "Spectralis", ".fda": "Topcon"}
_NO_VOLUMES = {2: "a circular B-scan", 5: "a radial scan"}  # scan patterns that are no volumes to eyepy


def scans_in_e2e(path):
    """(parts, left_out) of an .e2e file.

    `parts` are the numbers, from 0, of the series that hold a volume. If the file cannot be searched it is [None]; the
    reader then reports why. `left_out` lists (path and series, reason) for the other series with B-scans.
    """
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
    return parts or [None], left_out


def _pattern(series):
    """The scan pattern of an .e2e file's series; None if it holds no B-scans."""
    b_scans = series.get_bscan_meta()
    return b_scans[0]["scan_pattern"] if b_scans else None


def read_vendors_own(path, suffix, part=None):
    """`Content` of a vendor's file. `part` is the number of an .e2e file's series; None takes the first volume.

    Raises `InputError` if the file is damaged or eyepy is not installed.
    """
    try:
        import eyepy.io
    except ImportError as error:
        raise InputError(f"{path}: reading {suffix} files needs the package eyepy; pip install eyepy") from error
    logging.getLogger("eyepy").setLevel(logging.ERROR)  # it warns about layers, which are not used here
    readers = {
        ".vol": eyepy.io.import_heyex_vol,
        ".e2e": eyepy.io.import_heyex_e2e,
        ".xml": eyepy.io.import_heyex_xml,
        ".fda": eyepy.io.import_topcon_fda,
    }
    try:
        if part is None:
            volume = readers[suffix](path)
        else:
            with eyepy.io.HeE2eReader(path) as reader:
                volume = reader.series[part].get_volume()
        voxels = np.asarray(volume.data)
    except ImportError as error:
        raise InputError(f"{path}: {str(error).strip().splitlines()[-1]}") from error
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
        laterality={"OD": "OD", "R": "OD", "OS": "OS", "L": "OS"}.get(str(meta.get("laterality")).strip("\0 ").upper()),
        scan_date=iso_date(date),
    )
