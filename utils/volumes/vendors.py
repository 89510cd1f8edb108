"""The vendors: how their scans are exported, and which vendor a scan is from."""

import re
from dataclasses import dataclass

from utils.errors import InputError
from utils.volumes.mhd import read_header

_SPACING_TOLERANCE = 0.03  # share by which a scan's spacing may differ from the vendor's


@dataclass(frozen=True)
class VendorFormat:
    """How a vendor's volumes are exported in RETOUCH (measured on the 70 training volumes)."""

    element_type: str  # numpy dtype of oct.raw
    columns: int
    rows: tuple  # every height seen
    slices: int
    spacing_x_mm: tuple  # smallest and largest column spacing seen
    spacing_y_mm: tuple  # row spacing for each height in `rows`
    spacing_z_mm: tuple  # smallest and largest slice spacing seen


VENDORS = {
    "Cirrus": VendorFormat("uint8", 512, (1024,), 128, (0.011742, 0.011742), (0.001955,), (0.0469, 0.0472)),
    "Spectralis": VendorFormat("uint16", 512, (496,), 49, (0.0109, 0.0120), (0.003872,), (0.116, 0.129)),
    "Topcon": VendorFormat("uint8", 512, (885, 650), 128, (0.01172, 0.01172), (0.0026, 0.0035), (0.04688, 0.04688)),
}


# A device of none of them: its grey values are neither matched nor filtered, and it has no usual spacing.
OTHER = "Other"
KNOWN = (*VENDORS, OTHER)
# What tells a device in the name of a file, a folder or a manufacturer. Names are in lower case, with a space for all
# that is no letter.
_DEVICES = {
    "Cirrus": re.compile("cirrus"),
    "Spectralis": re.compile("spectralis"),
    "Topcon": re.compile(r"topcon|\bmaestro|\btriton"),
    OTHER: re.compile(r"\b(?:plex ?elite|nidek|optovue|rtvue|bioptigen|envisu|optopol)|\b(?:canon|xephilio)\b"),
}
_MANUFACTURERS = {"heidelberg": "Spectralis", "zeiss": "Cirrus"}  # of whose devices the usual one is meant
_RESERVED = ("all", "unknown", "na", "nan", "none", "null")  # several vendors together in tables, and none


def vendor_in(names):
    """The vendor in the first of `names` that tells exactly one device; `OTHER` for one of none of `VENDORS`.

    A whole name "Other" tells one as well. None if no name does.
    """
    for name in names:
        held = [OTHER] if name == OTHER else _devices_in(name)
        if len(held) == 1:
            return held[0]
    return None


def vendor_of_device(manufacturer, model):
    """The vendor of a device by its manufacturer's and its own name, as files state them; None if neither is known."""
    if len(held := _devices_in(f"{manufacturer} {model}")) == 1:
        return held[0]
    return next((vendor for name, vendor in _MANUFACTURERS.items() if name in str(manufacturer).lower()), None)


def _devices_in(name):
    words = " ".join(re.findall("[a-z]+", name.lower()))
    return [vendor for vendor, told in _DEVICES.items() if told.search(words)]


def why_no_vendor_name(name):
    """What is wrong with `name` as a vendor's, in a few words; None if nothing is.

    It stands before the first "_" of files' names. So it has letters and digits alone.
    """
    if name in KNOWN:
        return None
    if not re.fullmatch("[A-Za-z][A-Za-z0-9]*", name):
        return "expected letters and digits (a to z, 0 to 9) alone, a letter first"
    if close := [known for known in (*KNOWN, *_RESERVED) if known.lower() == name.lower()]:
        return f"too close to {close[0]}"
    return None


def vendor_by_size(oct_path):
    """The vendor whose exports have the element type, size and spacing of a volume file, else None."""
    try:
        header = read_header(oct_path)
    except InputError:  # the step that reads the voxels reports this fault
        return None
    _, rows, columns = header.shape
    spacing_x_mm, spacing_y_mm, _ = header.spacing_mm
    for vendor, known in VENDORS.items():
        row_spacings_mm = dict(zip(known.rows, known.spacing_y_mm, strict=True))
        if (
            header.element_type == known.element_type
            and columns == known.columns
            and rows in row_spacings_mm
            and abs(spacing_y_mm / row_spacings_mm[rows] - 1) <= _SPACING_TOLERANCE
            and min(known.spacing_x_mm) * (1 - _SPACING_TOLERANCE) <= spacing_x_mm
            and spacing_x_mm <= max(known.spacing_x_mm) * (1 + _SPACING_TOLERANCE)
        ):
            return vendor
    return None


def why_vendor_unknown(header):
    """Why the vendor of a scan with this `VolumeHeader` is unknown, as text for a message."""
    _, rows, columns = header.shape
    spacing_x_mm, spacing_y_mm, _ = header.spacing_mm
    return (
        f"no folder on the way is named after one, and {columns} x {rows} {header.element_type} pixels of "
        f"{spacing_x_mm:g} x {spacing_y_mm:g} mm are no vendor's own"
    )
