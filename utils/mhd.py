"""OCT volumes and reference masks in and out: MetaImage files, vendors and what their scans look like."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files import written_whole


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

_ELEMENT_TYPES = {"uint8": "MET_UCHAR", "uint16": "MET_USHORT", "float32": "MET_FLOAT"}


def write_volume(path, voxels, spacing_mm):
    """Write `voxels` (slices, rows, columns; uint8, uint16 or float32) as uncompressed MetaImage.

    `path` ends in ``.mhd``; the voxels go into the ``.raw`` beside it, which is complete before the header appears.
    `spacing_mm` is (x, y, z) = (column, row, slice) spacing in mm.
    """
    path = Path(path)
    voxels = np.ascontiguousarray(voxels)
    if voxels.ndim != 3 or voxels.dtype.name not in _ELEMENT_TYPES:
        raise ValueError(f"expected a 3-D array of {', '.join(_ELEMENT_TYPES)}, got {voxels.ndim}-D {voxels.dtype}")
    slices, rows, columns = voxels.shape
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nCenterOfRotation = 0 0 0\n"
        f"ElementSpacing = {' '.join(f'{value:.10g}' for value in spacing_mm)}\n"
        f"DimSize = {columns} {rows} {slices}\n"
        f"ElementType = {_ELEMENT_TYPES[voxels.dtype.name]}\n"
        f"ElementDataFile = {path.with_suffix('.raw').name}\n"
    )
    with written_whole(path.with_suffix(".raw")) as temporary:
        voxels.astype(voxels.dtype.newbyteorder("<"), copy=False).tofile(temporary)
    with written_whole(path) as temporary:
        temporary.write_text(header, "utf-8")


