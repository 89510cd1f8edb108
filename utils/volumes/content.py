"""What the readers of all formats return."""

import datetime
import re
from dataclasses import dataclass, field

import numpy as np

from utils.volumes.geometry import NOT_STATED, Placement

ANONYMISED = "anonymised"


@dataclass(frozen=True)
class Fundus:
    """A picture of the fundus, and where the B-scans lie on it."""

    image: np.ndarray  # (rows, columns), uint8 or uint16
    lines: tuple  # (column, row, column, row) of each B-scan's start and end in pixels; None for one that has none
    order_assumed: bool = False  # whether the lines hold only if the first B-scan is the uppermost


@dataclass
class Content:
    """What a scan's files hold."""

    voxels: np.ndarray  # (slices, rows, columns), of any type
    spacing_mm: tuple = (None, None, None)  # (x, y, z); None for values that the file does not state
    vendor: str | None = None
    laterality: str | None = None  # "OD" (right) or "OS" (left)
    scan_date: str | None = None  # YYYY-MM-DD
    patient: str | None = None  # the patient's identifier
    person: str | None = None  # differs between patients of one identifier; `ANONYMISED` if that may hide several
    bits: int | None = None  # number of bits in use, if the file says so
    inverted: bool = False  # whether 0 is white
    notes: list = field(default_factory=list)
    placement: Placement = NOT_STATED
    z_mm: np.ndarray | None = None  # place of each slice along the volume; None: at equal distances
    frames: tuple | None = None  # the `utils.volumes.dicom_frames.Frame` of each slice; None if it is not DICOM
    fundus: Fundus | None = None

    def __post_init__(self):
        # A spacing's sign is a direction. Only its size is a distance.
        self.spacing_mm = tuple(value if value is None else abs(value) for value in self.spacing_mm)


def iso_date(value):
    """YYYY-MM-DD of a date, or of text that begins with one; None for anything else, and where no calendar has it."""
    match = re.match(r"(\d{4})-?(\d\d)-?(\d\d)", "" if value is None else str(value))
    try:
        return datetime.date(*map(int, match.groups())).isoformat() if match else None
    except ValueError:
        return None
