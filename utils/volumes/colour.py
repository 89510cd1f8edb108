"""Grey values of pictures in colour: of B-scans that only look so, and of those shown in a colour map."""

import functools

import numpy as np

from utils.errors import InputError

_EQUAL = 8  # of 255, by which the channels of a grey picture may differ, after JPEG
_TINT = 48  # of 255, up to which a difference of channels is a tint; more is a colour
_DRAWING = 0.03  # largest share of a grey picture's pixels that a drawing in colour has
_FEWEST_VALUES = 24  # different values in a B-scan
_SPECKS = 1e-4  # largest share of its pixels in colour with which a picture counts as grey beside grey ones
_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, by ITU-R BT.601, which JPEG follows
_NEAR = 48  # distance in colour space up to which a pixel is of a colour map, after JPEG
_OF_MAP = 0.9  # smallest share of such pixels; a photograph of a fundus has 0.45
_BRIGHT = 96  # brightest channel of a pixel from which it tells a colour
# Colour maps, as colours at equal distances from the darkest grey value to the brightest. Jet is Matlab's. Topcon's is
# taken for the one along the edges of the colour cube, by its look in print; no file was at hand.
_MAPS = {
    "jet": [
        *((0, 0, 128), (0, 0, 255), (0, 128, 255), (0, 255, 255), (128, 255, 128)),
        *((255, 255, 0), (255, 128, 0), (255, 0, 0), (128, 0, 0)),
    ],
    "of Topcon": [(0, 0, 0), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0), (255, 255, 255)],
}


def grey_of(pixels, path):
    """(grey values (..., rows, columns), notes) of `pixels` (..., rows, columns, channels). Opacity is ignored.

    | picture | grey value |
    |---|---|
    | equal channels | the first |
    | a tint, as JPEG leaves it | the luminance |
    | grey with a small drawing in colour | the luminance; of the drawing, white |
    | a colour map of `_MAPS` | the place in it |

    Raises `InputError` for any other picture in colour.
    """
    if pixels.shape[-1] in (2, 4):
        pixels = pixels[..., :-1]
    if pixels.shape[-1] == 1:
        return np.ascontiguousarray(pixels[..., 0]), []
    colours = _as_8_bits(pixels)
    chroma = _chroma(colours)
    if chroma.max(initial=0) <= _EQUAL:
        return np.ascontiguousarray(pixels[..., 0]), []
    is_colour = chroma > _TINT
    if not is_colour.any():
        return _luminance(pixels), ["a picture in colour, taken for grey"]
    if is_colour.mean() <= _DRAWING and _holds_many(colours[~is_colour].max(axis=-1)):
        grey = _luminance(pixels)
        grey[is_colour] = _white(pixels)
        return grey, [f"a drawing in colour ({np.count_nonzero(is_colour)} pixels) on a grey picture, taken for white"]
    name, grey, distances = _in_nearest_map(colours)
    of_map = distances[colours.max(axis=-1) >= _BRIGHT] <= _NEAR
    if np.mean(of_map) >= _OF_MAP and _holds_many(grey):
        return grey, [f"a picture in the colour map {name}, turned back into grey values"]
    raise InputError(
        f"{path}: a picture in colour, expected grey values; if it is an OCT scan, export it in grey, without drawings"
    )


def is_coloured(pixels):
    """Whether `pixels` (rows, columns, 3; uint8) hold more colour than a tint."""
    return bool((_chroma(pixels) > _TINT).mean() > _SPECKS)


def _luminance(pixels):
    grey = np.einsum("...c,c->...", pixels, np.array(_LUMINANCE, np.float32))
    return (grey if pixels.dtype.kind == "f" else np.rint(grey)).astype(pixels.dtype)


def _holds_many(values):
    """Whether there are as many different values as a B-scan has; a mask in colours has few."""
    return np.count_nonzero(np.bincount(values.ravel(), minlength=256)) >= _FEWEST_VALUES


def _white(pixels):
    """The value of white: the type's highest one for 8 and 16 bits, else the highest that there is."""
    return np.iinfo(pixels.dtype).max if pixels.dtype in (np.uint8, np.uint16) else pixels.max(initial=0)


def _as_8_bits(pixels):
    if pixels.dtype == np.uint8:
        return pixels
    scaled = np.nan_to_num(pixels.astype(np.float32)) * (255 / max(float(_white(pixels)), 1e-6))
    return np.clip(scaled, 0, 255).astype(np.uint8)


def _chroma(colours):
    """How far the channels (the last axis, uint8) of each pixel differ."""
    return colours.max(axis=-1) - colours.min(axis=-1)


def _in_nearest_map(colours):
    """(name of the colour map, place in it as uint8, distance from it) of `colours` (..., 3; uint8).

    The map is the one that the colours are nearest to.
    """
    from scipy.spatial import cKDTree

    packed = colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    different, inverse = np.unique(packed, return_inverse=True)
    different = np.stack([different >> 16, different >> 8 & 255, different & 255], axis=-1)
    found = []
    for name in _MAPS:
        distances, places = cKDTree(_map(name)).query(different)
        found.append((name, places.astype(np.uint8)[inverse], distances[inverse]))
    name, grey, distances = min(found, key=lambda one: one[2].mean())
    return name, grey.reshape(colours.shape[:-1]), distances.reshape(colours.shape[:-1])


@functools.cache
def _map(name):
    """The 256 colours of a map, float (256, 3)."""
    known = np.array(_MAPS[name], float)
    places = np.linspace(0, len(known) - 1, 256)
    return np.stack([np.interp(places, np.arange(len(known)), channel) for channel in known.T], axis=-1)
