"""Thin rims of a class between two others, which resizing with interpolation leaves in masks.

An example: 0 is background, 1 IRF, 2 SRF. At the edge of SRF, interpolation makes 1 of 0 and 2: a rim of IRF.
"""

import functools
from collections import Counter

import numpy as np

_WIDEST = 3  # pixels of a rim
_LEAST_SHARE = 0.2  # of the contacts of two classes, that have a rim between them; where masks were drawn, few have
_FEWEST = 8  # such contacts in an image


def rim_warnings(indices, names, values, tolerance):
    """{what may be wrong: number of pixels}, an entry for each class that has thin rims.

    `indices` (slices, rows, columns) are each pixel's class, places in `names` and `values`; the name None is no class.
    A value is a tuple of numbers. What is within `tolerance` of a value was taken for its class.
    """
    between = _between(tuple(values), tolerance)
    if not between.any():
        return {}
    found = Counter()
    for page in indices:
        present = np.flatnonzero(np.bincount(page.ravel()))
        if between[np.ix_(present, present, present)].any():
            found.update(names[index] for index in page[_rims(page, between)].tolist())
    return {
        f"pixels of class {name!r} are a thin rim between two others, as resizing with interpolation makes it; export "
        "the masks at their own size, or resize them by nearest neighbour": number
        for name, number in found.items()
        if name is not None
    }


@functools.cache
def _between(values, tolerance):
    """Bool (classes, classes, classes): whether some weighted mean of the first two values is taken for the third."""
    values = np.array(values, float)
    between = np.zeros((len(values),) * 3, bool)
    weights = np.linspace(0, 1, 257)[:, np.newaxis]
    for first in range(len(values)):
        for second in range(len(values)):
            means = values[first] * (1 - weights) + values[second] * weights
            distances = np.abs(means[:, np.newaxis] - values).max(axis=-1)
            taken = distances.argmin(axis=1)[distances.min(axis=1) <= tolerance + 0.5]  # rounding adds up to 0.5
            between[first, second, taken] = True
            between[first, second, [first, second]] = False
    return between


def _rims(page, between):
    """Bool (rows, columns): pixels of `page` in a rim, where rims are common between the classes that they part."""
    n_classes = len(between)
    rims, apart, touching = [], np.zeros((n_classes, n_classes), int), np.zeros((n_classes, n_classes), int)
    for turned in (False, True):
        lines = page.T if turned else page
        touching += _pairs(lines[:-1], lines[1:], n_classes)
        for width in range(1, _WIDEST + 1):
            first, last = lines[: -width - 1], lines[width + 1 :]
            inner = [lines[step : len(lines) - width - 1 + step] for step in range(1, width + 1)]
            is_rim = np.logical_and.reduce([between[first, last, one] for one in inner])
            rows, columns = np.nonzero(is_rim)
            ends = first[rows, columns], last[rows, columns]
            apart += _pairs(*ends, n_classes)
            rims += [(turned, rows + step, columns, ends) for step in range(1, width + 1)]
    common = (apart >= _FEWEST) & (apart >= _LEAST_SHARE * (apart + touching))
    mask = np.zeros(page.shape, bool)
    for turned, rows, columns, ends in rims:
        chosen = common[ends]
        (mask.T if turned else mask)[rows[chosen], columns[chosen]] = True
    return mask


def _pairs(first, last, n_classes):
    """How often classes are opposite each other (classes, classes), in whatever order."""
    counts = np.bincount((first * n_classes + last).ravel(), minlength=n_classes**2).reshape(n_classes, n_classes)
    return counts + counts.T
