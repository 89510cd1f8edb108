"""Whose eye a scan shows, and when it was taken, as the user says it: for scans whose files do not."""

import os
from dataclasses import dataclass, replace

import pandas as pd

from utils.errors import InputError
from utils.names import as_text, same_name
from utils.volumes.content import iso_date

EYES = {"OD": "OD", "R": "OD", "RIGHT": "OD", "OS": "OS", "L": "OS", "LEFT": "OS"}


@dataclass(frozen=True)
class Told:
    """What the user says about a scan; None for what is not said."""

    patient: str | None = None
    eye: str | None = None  # "OD" (right) or "OS" (left)
    date: str | None = None  # YYYY-MM-DD


def with_eyes(scans, said):
    """The `scans`, a list of `ScanFiles`, with what `said` tells of them.

    `said` is an eye, for all of them, or the path of a CSV with the columns ``scan`` and ``eye``, and maybe ``patient``
    and ``date``. ``scan`` is the scan's name or path; rows of other scans are passed over. Raises `InputError` with a
    line for each fault of the table.
    """
    if eye := EYES.get(said.upper()):
        return [replace(scan, told=Told(eye=eye)) for scan in scans]
    rows = _read(said)
    return [replace(scan, told=_row_of(scan, rows)) for scan in scans]


def contradictions(told, content):
    """A sentence each where eye and date are `told` otherwise than the scan's file, of this `Content`, says."""
    said = {"eye": (told.eye, content.laterality), "date": (told.date, content.scan_date)}
    return [
        f"the {what} is {new} as said; its file says {old}"
        for what, (new, old) in said.items()
        if new and old and new != old
    ]


def _row_of(scan, rows):
    names = [same_name(scan.name), same_name(as_text(scan.path))]
    return next((rows[name] for name in names if name in rows), None)


def _read(path):
    """{scan: `Told`} of a table; a scan is there as it is written, and as a path from the root."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except FileNotFoundError:
        expected = "OD, OS or a CSV with the columns scan and eye"
        raise InputError(f"--eye {path}: is no eye and no file; expected {expected}") from None
    except (ValueError, UnicodeDecodeError, IsADirectoryError) as error:
        raise InputError(f"--eye {path}: cannot be read as CSV ({str(error).strip()})") from error
    if missing := {"scan", "eye"} - set(table.columns):
        has = ", ".join(table.columns)
        raise InputError(f"--eye {path}: lacks the column(s) {', '.join(sorted(missing))}; it has {has}")
    rows, paths, complaints = {}, {}, []
    for number, row in enumerate(table.to_dict("records"), 2):
        if not row["scan"]:
            complaints.append(f"--eye {path}, line {number}: names no scan")
            continue
        name, told = same_name(row["scan"]), _told(row)
        if row["eye"] and not told.eye:
            complaints.append(f"--eye {path}, line {number}: the eye is {row['eye']!r}, expected OD or OS")
        if row.get("date") and not told.date:
            complaints.append(f"--eye {path}, line {number}: the date is {row['date']!r}, expected YYYY-MM-DD")
        if rows.setdefault(name, told) != told:
            complaints.append(f"--eye {path}, line {number}: {row['scan']} is there before, with other values")
        paths[same_name(os.path.abspath(row["scan"]))] = told
    if complaints:
        raise InputError(*complaints)
    return paths | rows


def _told(row):
    return Told(row.get("patient") or None, EYES.get(row["eye"].upper()), iso_date(row.get("date")))
