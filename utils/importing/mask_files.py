"""Masks in files: 0 and 255, numbered or coloured classes, as pictures or as volumes."""

import numpy as np

from utils.errors import InputError
from utils.importing.rims import rim_warnings
from utils.names import suffix_of
from utils.volumes.formats import read_content
from utils.volumes.mhd import VOLUMES, VolumeHeader, read_header, read_volume, reordering_onto_grid
from utils.volumes.pictures import PICTURES, shown_pages

_MOST_LISTED = 3  # of unknown values
_LARGEST = 65535  # of a mask's values
_BY_OPACITY = "pages are of one colour throughout; their opacity is taken for the mask"


def read_mask(path, image_path, n_channels):
    """(values, warnings) of a mask: its numbers, or with three channels its colours.

    Values are (slices, rows, columns, `n_channels`; int64). If the mask is a volume, and the image says where it lies,
    the mask is brought onto the image's grid. Transparent pixels of pictures count as black. Of a picture whose colour
    says nothing, the numbers are its opacity; `warnings` counts such pages, {what they are: number}. Raises
    `InputError` if the file cannot be read, is of another kind or place, or holds other than whole numbers.
    """
    if suffix_of(path) in VOLUMES:
        grid = _grid(image_path)
        reordering = grid and reordering_onto_grid(path, grid, image_path)
        values = reordering.apply(read_volume(path)[0]) if reordering else read_volume(path)[0]
        if n_channels == 3:
            raise InputError(f"{path}: a volume holds numbers, expected colours; state numbers in --labels")
        return _whole_numbers(values[..., np.newaxis], path), {}
    if suffix_of(path) not in PICTURES:
        raise InputError(f"{path}: expected a mask as {', '.join((*PICTURES, *VOLUMES))}")
    try:
        opacities, pages = 0, []
        for page, _ in shown_pages(path):
            opacity = _opacity_mask(page, path, n_channels)
            opacities += opacity is not None
            pages.append(_page_values(page, path, n_channels) if opacity is None else opacity)
        values = np.stack(pages)
    except InputError:
        raise
    except Exception as error:  # Pillow raises exceptions of any kind for damaged files
        raise InputError(f"{path}: not a readable picture ({error})") from error
    return _whole_numbers(values, path), ({_BY_OPACITY: opacities} if opacities else {})


def _grid(image_path):
    """The `VolumeHeader` of an image that is a volume, or DICOM and says where it lies; else None."""
    if suffix_of(image_path) in VOLUMES:
        return read_header(image_path)
    if suffix_of(image_path) in PICTURES:
        return None
    content = read_content([str(image_path)])
    if not content.placement.stated or None in content.spacing_mm:
        return None
    return VolumeHeader(content.voxels.shape, content.spacing_mm, content.voxels.dtype.name, content.placement)


def classes_in(values, classes, tolerance, path):
    """({class: bool mask}, warnings) of `values` (..., channels).

    `classes` is {class: tuple of its value}. 0 in every channel is background unless a class has that value. A value
    may differ from a class's by up to `tolerance` in each channel; `warnings` counts such pixels, and those of thin
    rims, {what they are: number}. Raises `InputError`, which names `path`, for other values.
    """
    n_channels = values.shape[-1]
    background = {} if (0,) * n_channels in classes.values() else {None: (0,) * n_channels}
    known = {**background, **classes}
    packed = values @ (1 << 16) ** np.arange(n_channels)
    found, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    found = found[:, np.newaxis] >> 16 * np.arange(n_channels) & _LARGEST
    distances = np.abs(found[:, np.newaxis] - np.array(list(known.values()))).max(axis=-1)
    nearest, distance = distances.argmin(axis=1), distances.min(axis=1)
    if (odd := np.flatnonzero(distance > tolerance)).size:
        odd = odd[np.argsort(-counts[odd], kind="stable")]
        listed = ", ".join(f"{_as_text(found[index])} ({counts[index]} pixels)" for index in odd[:_MOST_LISTED])
        more = f" and {odd.size - _MOST_LISTED} more values" * (odd.size > _MOST_LISTED)
        raise InputError(
            f"{path}: holds {listed}{more}, expected {', '.join(map(_as_text, known.values()))}; add what is missing "
            "to --labels (IGNORE= where nobody judged it), or say with --tolerance how far a value may be from a "
            "stated one"
        )
    indices = nearest[inverse].reshape(values.shape[:-1])
    masks = {name: indices == index for index, name in enumerate(known) if name is not None}
    inexact = int(counts[distance > 0].sum())
    warnings = {"pixels of values that are not stated are taken for the nearest class": inexact} if inexact else {}
    warnings |= rim_warnings(indices, list(known), list(known.values()), tolerance)
    return {name: mask for name, mask in masks.items() if mask.any()}, warnings


def check_tolerance(classes, tolerance):
    """Raise `InputError` if a value can be within `tolerance` of two classes. Arguments as in `classes_in`."""
    values = [*classes.values(), (0,) * len(next(iter(classes.values())))]
    values = np.array(sorted(set(values)))
    distances = np.abs(values[:, np.newaxis] - values).max(axis=-1)
    closest = distances[~np.eye(len(values), dtype=bool)].min(initial=_LARGEST)
    if 2 * tolerance >= closest:
        raise InputError(
            f"--tolerance {tolerance}: two of the stated values and 0 are only {closest} apart, expected less than half"
        )


def full_value(values):
    """The value that means "inside" in a mask of 0 and one other value: 1, 255 or 65535."""
    largest = values.max(initial=0)
    return 1 if largest <= 1 else 255 if largest <= 255 else _LARGEST


def _opacity_mask(page, path, n_channels):
    """The opacity (rows, columns, 1) of a page of Pillow's if that holds the mask; else None.

    The colour is then black throughout; or for numbers it is another one throughout, and there is more than opaque and
    transparent. Raises `InputError` if colours are expected and the page is black.
    """
    if page.mode not in ("LA", "PA", "RGBA") and not (page.mode == "P" and "transparency" in page.info):
        return None
    pixels = np.asarray(page.convert("RGBA"))
    colours, opacity = pixels[..., :3], pixels[..., 3:]
    if (colours != colours[0, 0]).any() or (opacity == opacity[0, 0]).all():
        return None
    is_black = not colours.any()
    if is_black and n_channels == 3:
        raise InputError(
            f"{path}: black, with a mask in its opacity, expected colours; state numbers: --labels IRF=255"
        )
    return opacity if n_channels == 1 and (is_black or not np.isin(opacity, (0, 255)).all()) else None


def _page_values(page, path, n_channels):
    """A page of Pillow's as (rows, columns, `n_channels`)."""
    if n_channels == 3:
        pixels = np.array(page.convert("RGBA"))
        pixels[pixels[..., 3] == 0] = 0
        return pixels[..., :3]
    pixels = np.asarray(page)
    if page.mode == "P" and _zero_is_white(page):
        raise InputError(
            f"{path}: its palette shows 0 as white and the rest as black, so that 0 may be the fluid; state its "
            "colours: --labels IRF=255,255,255"
        )
    if "transparency" in page.info and pixels.ndim == 2:  # of single numbers of a palette, or of grey
        pixels = np.where(np.asarray(page.convert("RGBA"))[..., 3] == 0, 0, pixels)
    if pixels.ndim == 3:
        if pixels.shape[-1] in (2, 4):
            pixels = np.where(pixels[..., -1:] == 0, 0, pixels[..., :-1])
        if (pixels != pixels[..., :1]).any():
            raise InputError(f"{path}: a mask in colour, expected numbers; state its colours: --labels IRF=255,0,0 ...")
        return pixels[..., :1]
    return pixels[..., np.newaxis]


def _zero_is_white(page):
    """Whether a page of mode "P" has pixels of number 0, all shown as white, and others, all shown as black."""
    is_zero, shown = np.asarray(page) == 0, np.asarray(page.convert("RGB"))
    return is_zero.any() and not is_zero.all() and (shown == np.where(is_zero, 255, 0)[..., np.newaxis]).all()


def _whole_numbers(values, path):
    if values.size == 0:
        raise InputError(f"{path}: holds no pixels")
    whole = values.astype(np.int64)
    if (whole != values).any() or whole.min() < 0 or whole.max() > _LARGEST:
        raise InputError(f"{path}: values from {values.min():g} to {values.max():g}, expected whole numbers from 0 on")
    return whole


def _as_text(value):
    return ",".join(map(str, value))
