"""Grey values of 8 or 16 bits out of whatever a scan's file holds: the same rules, and notes, for every format."""

import numpy as np

from utils.errors import InputError

_GREY_TOLERANCE = 8  # of 255, by which the channels of a grey picture may differ, after JPEG
_FAR_BELOW = 16  # values that use less than one part in so many of the stated range are taken for fewer bits


def grey_channel(pixels, path):
    """`pixels` (..., rows, columns, channels) of a grey picture without the channels; opacity is ignored.

    Raises `InputError` where the channels differ: a picture in colour.
    """
    if pixels.shape[-1] in (2, 4):
        pixels = pixels[..., :-1]
    grey = np.ascontiguousarray(pixels[..., 0])
    tolerance = _GREY_TOLERANCE * (257 if pixels.dtype.itemsize > 1 else 1)
    for channel in range(1, pixels.shape[-1]):
        if np.abs(pixels[..., channel].astype(np.int64) - grey).max(initial=0) > tolerance:
            raise InputError(f"{path}: a picture in colour, expected grey values; is it an OCT scan?")
    return grey


def as_grey(voxels, path, bits=None, inverted=False):
    """(voxels as uint8 or uint16, notes on what was assumed), for what `utils.preparation.preprocessing.to_8_bit` makes
    of them.

    8-bit values stay as they are. Other numbers keep their range: that of `bits`, where the file states them, else 16
    bits; but values far below it, or above it, are taken for the 8, 12 or 16 bits that they need. Fractions of up to 1
    have a range of 0 to 1. What is not finite becomes 0. `inverted` says that 0 is white. Raises `InputError` for any
    other range, and where there is no voxel.
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
    """The bits that values up to `high` are taken for where `stated` are stated."""
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
        voxels = voxels.astype(np.uint16)  # whole numbers: what the same numbers in an integer type become
    if used == 16:
        return voxels.astype(np.uint16)
    return (voxels.astype(np.uint32) * 65535 // (2**used - 1)).astype(np.uint16)
