"""Pictures: PNG, JPEG, BMP and TIFF, of one page or many. Their spacing cannot be trusted and is not read."""

import logging
import re
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.ndimage import uniform_filter1d

from utils.errors import InputError
from utils.volumes.colour import grey_of
from utils.volumes.content import Content

TIFF = (".tif", ".tiff")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", *TIFF)
_LARGEST_RATIO = 2000  # of the pixels' bytes to the file's; with more, the header is wrong
_MOST_NAMED = 5  # of the odd pictures in a message
_LEAST_ROWS = 256  # of a screen export
_BAND = 6  # columns on each side of an edge that are compared
_ORIENTATION = 0x0112  # EXIF's tag, and TIFF's
_PLAIN = ("L", "LA", "RGB", "RGBA", "I", "F")  # Pillow's modes that are kept; others become RGB


def read_pictures(paths):
    """`Content` of pictures that hold one or more B-scans each, in order.

    They are turned as viewers show them. A fundus image at the left of the B-scans is cut off. Raises `InputError`,
    which names the file, if one is damaged, in colour, or of another size than those before it.
    """
    stacks, inverted, notes = [], set(), []
    for path in paths:
        of_path, is_inverted, of_path_notes = read_picture(path)
        stacks.append(of_path)
        inverted.add(is_inverted)
        notes += of_path_notes
    _check_sizes(paths, stacks)
    if len(inverted) > 1:
        raise InputError(f"{paths[0]}: some pictures of this scan store white as 0, others black; take them by --each")
    voxels = stacks[0] if len(stacks) == 1 else np.concatenate(stacks)
    columns = fundus_columns(voxels)
    if columns:
        notes.append(f"a fundus image in the left {columns} of {voxels.shape[2]} columns is cut off")
        voxels = voxels[..., columns:]
    return Content(voxels, inverted=inverted.pop(), notes=list(dict.fromkeys(notes)))


def _check_sizes(paths, stacks):
    """Raise `InputError`, which names the odd ones, if pictures (their stacks) are not of one size and type."""
    kinds = [f"{stack.shape[2]} x {stack.shape[1]} {stack.dtype}" for stack in stacks]
    (usual, count), *others = Counter(kinds).most_common()
    if others:
        odd = [f"{Path(path).name} ({kind})" for path, kind in zip(paths, kinds, strict=True) if kind != usual]
        more = f" and {len(odd) - _MOST_NAMED} more" * (len(odd) > _MOST_NAMED)
        raise InputError(
            f"{Path(paths[0]).parent}: {count} pictures of {usual} pixels, and {', '.join(odd[:_MOST_NAMED])}{more}; "
            "expected B-scans of one size: name them alone, or take each by itself (--each)"
        )


def _check_alike(path, first, other):
    """Raise `InputError` if two stacks (slices, rows, columns) cannot be parts of one scan."""
    if first.shape[1:] != other.shape[1:] or first.dtype != other.dtype:
        sizes = " and ".join(f"{one.shape[2]} x {one.shape[1]} {one.dtype}" for one in (first, other))
        raise InputError(f"{path}: {sizes} pixels in one file, expected pages of one size")


def read_picture(path):
    """(B-scans (slices, rows, columns), whether 0 is white, notes), turned as viewers show them.

    Raises `InputError`, which names the file, if it is damaged or in colour.
    """
    try:
        return _read_any(path)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # the parsers raise exceptions of any kind for damaged files
        raise InputError(f"{path}: not a readable picture ({error})") from error


def _read_any(path):
    if str(path).lower().endswith(TIFF):
        return _read_tiff(path)
    if _is_png_of_16_bit_channels(path):
        import cv2

        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise OSError("the image is damaged")
        _, orientation = next(shown_pages(path))
        pixels = pixels if pixels.ndim == 3 else pixels[..., np.newaxis]
        if pixels.shape[-1] > 2:
            pixels[..., :3] = pixels[..., 2::-1]  # OpenCV begins with blue
        grey, notes = grey_of(pixels, path)
        return _upright(grey, orientation)[np.newaxis], False, [*notes, *_turn_notes(orientation)]
    pages, notes = [], []
    for page, orientation in shown_pages(path):
        grey, of_page = _grey_page(page, path)
        pages.append(grey)
        notes += of_page + _turn_notes(orientation)
    return np.stack(pages), False, notes


def shown_pages(path):
    """Each page of a picture as (Pillow's image, turned or mirrored as viewers show it; its orientation before).

    Raises `InputError` where Pillow cannot, and what Pillow raises for damaged files.
    """
    from PIL import Image, ImageOps, ImageSequence

    with Image.open(path) as image:
        for page in ImageSequence.Iterator(image):
            orientation = _orientation(page.getexif())
            _check_turn(page, path)
            yield (page if orientation == 1 else ImageOps.exif_transpose(page)), orientation


def _orientation(tags):
    """The orientation, 1 to 8, in EXIF's or TIFF's tags, {number: value}; 1 if there is none, or no valid one."""
    return value if (value := tags.get(_ORIENTATION)) in range(1, 9) else 1


def _turn_notes(orientation):
    return [] if orientation == 1 else ["turned or mirrored as its orientation in EXIF or TIFF says"]


def _check_turn(page, path):
    """Raise `InputError` for a page in which Pillow mixes rows and columns: a sideways TIFF of plain pixels."""
    if page.info.get("compression") == "raw" and _orientation(page.getexif()) > 4:
        raise InputError(f"{path}: lies on its side by TIFF's orientation, expected it upright; save it again as PNG")


def _upright(pixels, orientation):
    """`pixels` (..., rows, columns) as viewers show them; `orientation` is EXIF's, from 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, -2, -1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[..., ::-1, :]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[..., ::-1]
    return np.ascontiguousarray(pixels)


def _is_png_of_16_bit_channels(path):
    """Whether a file is a PNG with several channels of 16 bits. Pillow would reduce them to 8 bits."""
    with open(path, "rb") as file:
        head = file.read(26)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:25] == b"\x10" and head[25:26] in (b"\2", b"\4", b"\6")


def _grey_page(page, path):
    """(grey values (rows, columns), notes) of a page of Pillow's. Raises `InputError` if it is in colour."""
    if page.mode not in _PLAIN and not page.mode.startswith("I;16"):
        page = page.convert("RGB")  # from a palette, or another colour space
    pixels = np.asarray(page)
    return (pixels, []) if pixels.ndim == 2 else grey_of(pixels, path)


# ---- TIFF ----------------------------------------------------------------------------------------------------------
def count_pages(path):
    """The number of B-scans in a TIFF file. 1 if it is damaged; its reader then reports why."""
    import tifffile

    _silence_tifffile()
    try:
        with tifffile.TiffFile(path) as tiff:
            return sum(int(np.prod(_stack_shape(series))) for series in _scan_series(tiff))
    except Exception:  # tifffile raises exceptions of any kind for damaged files
        return 1


def _silence_tifffile():
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its warnings are checked or raised here


def _scan_series(tiff):
    """The file's series, without smaller copies of its pages."""
    len(tiff.pages)  # ends a list of pages that leads back to an earlier page, where tifffile would never end
    return [series for series in tiff.series if not series.keyframe.is_reduced] or list(tiff.series)


def _stack_shape(series):
    """The lengths of the axes other than rows, columns and samples."""
    return tuple(length for length, axis in zip(series.shape, series.axes, strict=True) if axis not in "YXS")


def _read_tiff(path):
    import tifffile

    _silence_tifffile()
    with tifffile.TiffFile(path) as tiff:
        found, stacks, inverted, notes = _scan_series(tiff), [], set(), []
        _check_complete(tiff, path)
        if len(found) < len(tiff.series):
            notes.append("smaller copies of the pages are left out")
        for series in found:
            if series.nbytes > _LARGEST_RATIO * tiff.filehandle.size:
                raise InputError(f"{path}: {series.shape} pixels stated in a file of {tiff.filehandle.size} bytes")
            pixels, is_inverted, of_colours = _series_pixels(series, path)
            notes += of_colours + _turn_notes(_series_orientation(series))
            pixels, of_channels = _first_channel(pixels, series)
            stacks.append(pixels)
            _check_alike(path, stacks[0], pixels)
            inverted.add(is_inverted)
            notes += of_channels
    if len(inverted) > 1:
        raise InputError(f"{path}: some pages store white as 0, others black; expected pages of one kind")
    if not stacks:
        raise InputError(f"{path}: holds no picture")
    return stacks[0] if len(stacks) == 1 else np.concatenate(stacks), inverted.pop(), notes


def _check_complete(tiff, path):
    """Raise `InputError` if ImageJ's description states more images than there are: the file was cut off."""
    stated = int((tiff.imagej_metadata or {}).get("images", 1))
    if stated > (held := sum(int(np.prod(_stack_shape(series))) for series in tiff.series)):
        raise InputError(f"{path}: {stated} images stated, {held} found; copy or export it again")


def _series_pixels(series, path):
    """(pixels (..., rows, columns), whether 0 is white, notes) of a series."""
    from tifffile import PHOTOMETRIC

    page, axes, notes = series.keyframe, series.axes, []
    if page.photometric in (PHOTOMETRIC.YCBCR, PHOTOMETRIC.CIELAB):
        return _pillow_pixels(series, path)
    try:
        pixels = series.asarray()
    except (KeyError, ValueError) as error:
        if "imagecodecs" not in str(error):
            raise
        return _pillow_pixels(series, path)
    if "S" in axes:
        pixels = np.moveaxis(pixels, axes.index("S"), -1)
    if page.photometric == PHOTOMETRIC.PALETTE:
        pixels, notes = grey_of((np.moveaxis(page.colormap[:, pixels], 0, -1) >> 8).astype(np.uint8), path)
    elif page.photometric == PHOTOMETRIC.SEPARATED and pixels.shape[-1] >= 4:
        white = np.iinfo(pixels.dtype).max
        ink = white - pixels[..., :4].astype(np.uint32)
        pixels, notes = grey_of((ink[..., :3] * ink[..., 3:] // white).astype(pixels.dtype), path)
    elif "S" in axes:
        pixels, notes = grey_of(pixels, path)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    return _upright(pixels, _series_orientation(series)), page.photometric == PHOTOMETRIC.MINISWHITE, notes


def _series_orientation(series):
    return _orientation({_ORIENTATION: series.keyframe.tags.valueof(_ORIENTATION)})


def _pillow_pixels(series, path):
    """As `_series_pixels`, by Pillow: for compressions and colours that tifffile cannot decode. A page is a B-scan.

    Pillow turns TIFF's pages itself.
    """
    from PIL import Image
    from tifffile import PHOTOMETRIC

    pages, notes, compression = [], [], series.keyframe.compression.name
    try:
        with Image.open(path) as image:
            for page in series.pages:
                image.seek(page.index)
                _check_turn(image, path)
                grey, of_page = _grey_page(image, path)
                pages.append(grey)
                notes += of_page
        if len(pages) != np.prod(_stack_shape(series)):
            raise OSError("several B-scans on a page")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error}); for {compression} compression, pip install imagecodecs may help"
        ) from error
    inverted = series.keyframe.photometric == PHOTOMETRIC.MINISWHITE and pages[0].dtype != np.uint8
    return np.stack(pages).reshape(*_stack_shape(series), *pages[0].shape), inverted, notes


def _first_channel(pixels, series):
    """(pixels (slices, rows, columns), notes). Of several channels the first is taken."""
    axes = re.sub("[YXS]", "", series.axes)
    lengths = dict(zip(axes, pixels.shape, strict=False))
    notes = []
    if lengths.get("C", 1) > 1 and len(axes) > 1:
        notes.append(f"the first of {lengths['C']} channels is taken, the others are left out")
        pixels = np.take(pixels, 0, axes.index("C"))
    return pixels.reshape(-1, *pixels.shape[-2:]), notes


# ---- Screen exports ------------------------------------------------------------------------------------------------
def fundus_columns(voxels):
    """Number of columns at the left of B-scans (slices, rows, columns) that hold a fundus image; 0 without one.

    Heidelberg's screen exports show a square fundus image at the left of the B-scan. A straight edge from the first row
    to the last separates the two. The fundus image is about equally bright in all rows; a B-scan is not. In 277 real
    B-scans without a fundus image no edge exceeded 23 grey values.
    """
    slices, rows, columns = voxels.shape
    if rows < _LEAST_ROWS or columns < 1.6 * rows or voxels.dtype.kind not in "iu":
        return 0
    image = np.mean([voxels[index] for index in range(0, slices, max(1, slices // 8))], axis=0, dtype=np.float32)
    image = uniform_filter1d(image * (255 / max(image.max(), 1)), rows // 31, axis=0)
    bands = uniform_filter1d(image, _BAND, axis=1)  # a band's middle is its fourth column
    edges = np.abs(bands[:, _BAND:] - bands[:, :-_BAND]).mean(axis=0)  # between columns index + 2 and index + 3
    candidates = np.arange(int(0.75 * rows), int(min(1.35 * rows, columns - 0.6 * rows)) + 1)
    of_candidates = edges[candidates - _BAND // 2]
    edge = candidates[of_candidates.argmax()]
    darker, brighter = np.percentile(image[:, :edge].mean(axis=1), (25, 90))
    is_edge = of_candidates.max() > max(25, 2.5 * np.median(edges))
    return int(edge) if is_edge and darker > 0.6 * brighter else 0
