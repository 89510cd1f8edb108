"""The grey values of a DICOM file's frames, as a viewer shows them."""

import re
from dataclasses import dataclass

import numpy as np

from utils.errors import InputError
from utils.volumes.colour import grey_of
from utils.volumes.dicom_frames import of_frame, read_header

_MOST_CUT = 0.95  # a window that leaves out more than this share of the pixels is not applied


@dataclass
class File:
    header: object
    pixels: dict  # {frame index: (rows, columns)}
    bits: int | None  # None: the range has to be guessed
    notes: list


def read_file(path, indices):
    """A `File` with the frames `indices`, their grey values as a viewer shows them (MONOCHROME1 is not inverted)."""
    import pydicom
    from pydicom.pixels import apply_color_lut

    try:
        header = pydicom.dcmread(path)
        shift = _unused_low_bits(header)
        pixels = header.pixel_array
        bits = int(header.BitsStored) - shift
        pixels = pixels >> shift if shift else pixels
        colour = int(header.get("SamplesPerPixel", 1)) > 1
        if header.PhotometricInterpretation == "PALETTE COLOR":
            pixels, colour = apply_color_lut(pixels, header), True
            bits = pixels.dtype.itemsize * 8
        frames = pixels if pixels.ndim == 3 + colour else pixels[np.newaxis]
        if len(frames) <= max(indices):
            raise ValueError(f"{max(indices) + 1} frames stated, {len(frames)} found")
        frames = [frames[index] for index in indices]
        if colour:
            frames, of_frames = zip(*(grey_of(frame, path) for frame in frames), strict=True)
            notes = list(dict.fromkeys(note for of_frame in of_frames for note in of_frame))
        else:
            frames, bits, notes = _as_shown(frames, [_display(header, index) for index in indices], bits)
        return File(header, dict(zip(indices, frames, strict=True)), bits, notes)
    except InputError:
        raise
    except Exception as error:  # pydicom raises many kinds, its decoders others
        raise InputError(f"{path}: {_why_unreadable(path, error)}") from error


def _unused_low_bits(header):
    """Number of unused low bits. If there are any, `header` is changed to state all bits up to the highest."""
    shift = int(header.get("HighBit", header.BitsStored - 1)) + 1 - int(header.BitsStored)
    if shift <= 0 or header.file_meta.TransferSyntaxUID.is_compressed:
        return 0
    header.BitsStored = int(header.HighBit) + 1
    return shift


def _display(header, index):
    """A data set with the attributes that pydicom needs to rescale a frame's values and to apply its window."""
    from pydicom.dataset import Dataset

    groups = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    display = Dataset()
    for name in ("BitsStored", "PixelRepresentation", "PhotometricInterpretation"):
        setattr(display, name, header.get(name))
    names = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction")
    for name in names:
        value = of_frame(header, groups, index, name)
        if value is not None:
            setattr(display, name, value)
    if "RescaleSlope" in display and "RescaleIntercept" not in display:
        display.RescaleIntercept = 0
    return display


def _as_shown(frames, displays, bits):
    """(frames, bits, notes): rescaled and limited to the window of their `_display`. bits is None if unknown then."""
    from pydicom.pixels import apply_modality_lut

    notes = []
    rescaled = [apply_modality_lut(frame, display) for frame, display in zip(frames, displays, strict=True)]
    if not all(np.array_equal(one, other) for one, other in zip(rescaled, frames, strict=True)):
        frames, bits = [frame.astype(np.float32) for frame in rescaled], None
        notes.append("grey values are rescaled as the file says")
    if all("WindowCenter" in display and "WindowWidth" in display for display in displays) and (
        bits is None or not all(_shows_all(display, bits) for display in displays)
    ):
        shares = [_windowed(frame, display) for frame, display in zip(frames, displays, strict=True)]
        if np.mean([np.mean((share <= 0) | (share >= 1)) for share in shares]) > _MOST_CUT:
            notes.append("the file's window shows next to nothing and is not applied")
        else:
            frames, bits = [np.rint(share * 65535).astype(np.uint16) for share in shares], None
            notes.append("grey values are limited to the window that the file states")
    return frames, bits, notes


def _windowed(pixels, display):
    """`pixels` as shares of the window, 0 to 1."""
    from pydicom.pixels import apply_windowing

    low, high = apply_windowing(np.array([-np.inf, np.inf]), display)
    return (apply_windowing(pixels, display) - low) / (high - low)


def _shows_all(display, bits):
    """Whether the window covers the whole range of unsigned values of `bits` bits."""
    if bits > 16:
        return False  # of billions of values; no device has so many
    values = np.arange(2**bits)
    return np.array_equal(np.rint(_windowed(values, display) * values[-1]), values)


def _why_unreadable(path, error):
    """What is wrong with a file, in one line. If a decoder is missing, it says which package to install."""
    from pydicom.pixels import get_decoder

    header = read_header(path)
    try:
        syntax = header.file_meta.TransferSyntaxUID
        decoder = get_decoder(syntax)
    except Exception:  # no header, or a kind of pixels that pydicom does not know
        decoder = None
    lacks_decoder = decoder is not None and isinstance(error, RuntimeError) and decoder.missing_dependencies
    if lacks_decoder and (not decoder.is_available or "not support" in str(error)):
        needs = [needed.split(" requires ")[-1] for needed in decoder.missing_dependencies if "gdcm" not in needed]
        packages = re.findall(r"py[\w-]+", needs[0]) if needs else ["gdcm"]
        return f"its pixels are stored as {syntax.name}, which needs a decoder; pip install {' '.join(packages)}"
    reason = "; ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__
    return f"not a readable DICOM image ({reason})"
