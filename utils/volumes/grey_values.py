"""Grey values of 8 or 16 bits from a scan's values, by the same rules for every format."""

import numpy as np

from utils.errors import InputError

_FAR_BELOW = 16  # values that use less than 1/16 of the stated range are taken for fewer bits


def as_grey(voxels, path, bits=None, inverted=False):
    """(voxels as uint8 or uint16, notes on assumptions). `utils.preparation.preprocessing.to_8_bit` takes the voxels.

    | values | range that becomes black to white |
    |---|---|
    | 8-bit | unchanged |
    | other whole numbers | 0 to 2 ** `bits` - 1; `bits` is 16 if the file states none |
    | far below that range, or above it | of the 8, 12 or 16 bits that they need |
    | fractions of at most 1 | 0 to 1 |

    Values that are not finite become 0. With `inverted`, 0 is white. Raises `InputError` for any other range, and if
    there is no voxel.
    """
    if voxels.size == 0:
        raise InputError(f"{path}: holds no pixels")
    if voxels.dtype.kind not in "iuf":
        raise InputError(f"{path}: values of type {voxels.dtype}, expected grey values")
    if voxels.dtype == np.uint8:
        return (255 - voxels if inverted else voxels), []
    notes = []
    if voxels.dtype.kind == "f":
        finite = np.isfinite(voxels)
        if not finite.all():
            notes.append(f"{np.count_nonzero(~finite)} values that are not finite taken for 0")
            voxels = np.where(finite, voxels, 0)
    low, high = voxels.min(), voxels.max()
    if low < 0 or high > 65535:
        raise InputError(f"{path}: values from {low:g} to {high:g}, expected 0 to 65535; export it in 8 or 16 bits")
    if voxels.dtype.kind == "f" and high <= 1:
        grey = np.rint(voxels * 65535).astype(np.uint16)
        notes.append(f"fractions from {low:g} to {high:g} taken for a range of 0 to 1")
    else:
        used = _bits_used(high, min(bits or 16, 16))
        if used != (bits or 16) or voxels.dtype.kind == "f":
            notes.append(f"values up to {high:g} in {voxels.dtype} taken for {used} bits")
        grey = _to_16_bits(voxels, used)
    return (65535 - grey if inverted else grey), notes


def _bits_used(high, stated):
    """The number of bits to assume for values up to `high` if the file states `stated` bits."""
    needed = 8 if high <= 255 else 12 if high <= 4095 else 16
    if high >= 2**stated or (2**needed - 1) * _FAR_BELOW < 2**stated:
        return needed
    return stated


def _to_16_bits(voxels, used):
    if used == 16 and voxels.dtype == np.uint16:
        return voxels
    voxels = np.stack(list(voxels))
    if voxels.dtype.kind == "f":
        if (voxels != np.rint(voxels)).any():
            return np.rint(voxels * (65535 / (2**used - 1))).astype(np.uint16)
        voxels = voxels.astype(np.uint16)  # whole numbers are converted like those of an integer type
    if used == 16:
        return voxels.astype(np.uint16)
    return (voxels.astype(np.uint32) * 65535 // (2**used - 1)).astype(np.uint16)
