"""The vendors: how their scans are exported, and which vendor a scan is from."""

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


def vendor_in(names):
    """The vendor in the first of `names` that contains exactly one vendor's name; None if no name does."""
    for name in names:
        held = [vendor for vendor in VENDORS if vendor.lower() in name.lower()]
        if len(held) == 1:
            return held[0]
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
