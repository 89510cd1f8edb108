"""Pixels of an exported scan that are not image: black or white padding, circular crops, what was drawn into it."""

from dataclasses import dataclass

import cv2
import numpy as np

from utils.preparation.disk_morphology import dilate_with_disk, erode_with_disk
from utils.preparation.drawn import drawn_pixels

_WHITE_TOLERANCE = 10  # grey values below the maximum that still count as white: JPEG blurs padding


@dataclass(frozen=True)
class _PaddingRule:
    """How padding of one colour differs from tissue and noise: it is large and without gaps.

    Measured on real Spectralis B-scans: the largest disk of saturated tissue has a radius of 3 pixels, the largest of
    black noise 2; wedges beside tilted scans have 4 to 80 and run along 40 to 500 pixels of the border.
    """

    seed_radius: int  # pixels; a disk this large is padding
    edge_radius: int  # pixels; padding reaches as far as disks this large stay connected to a seed
    run: int  # pixels; a run this long in the outermost row or column is padding too, in strips too thin for a disk
    run_share: float  # the smallest share of that row or column that such a run takes


# White: saturated tissue is thicker, in pixels, where rows are finer than in Spectralis. Black: vitreous may be mostly
# exact zeros, so that smaller disks and runs are black by chance.
_WHITE = _PaddingRule(seed_radius=6, edge_radius=2, run=32, run_share=0.0)
_BLACK = _PaddingRule(seed_radius=9, edge_radius=4, run=32, run_share=0.5)
_FRINGE_PIXELS = 4  # how far blur reaches beyond white padding
_CIRCLE_TOLERANCE = 0.04  # share of the padding that may disagree with a circle


def find_invalid(voxels):
    """Mask (slices, rows, columns; bool) of padding and drawings in `voxels` (slices, rows, columns; uint8).

    Padding touches the image border. It is black (exactly 0) or white (within 10 of the volume's maximum), in regions
    too large and too even to be tissue or noise. Outside a circular crop that all slices share, everything is padding.
    Drawings are `drawn_pixels`.
    """
    if voxels.dtype != np.uint8 or voxels.ndim != 3:
        raise ValueError(f"expected a uint8 array (slices, rows, columns), got {voxels.dtype} {voxels.shape}")
    return np.stack(list(InvalidPixels(voxels, int(voxels.max()))))


class InvalidPixels:
    """The masks of `find_invalid`, slice by slice, stored in one bit a pixel.

    `slices` is an iterable of uint8 (rows, columns), `maximum` their largest value. Iterating yields bool (rows,
    columns).
    """

    def __init__(self, slices, maximum):
        self._packed, in_all = [], None
        for slice_ in slices:
            padding = _padding_regions(slice_ == 0, _BLACK) | _white_padding(slice_, maximum)
            self._shape = padding.shape
            self._packed.append(np.packbits(padding | drawn_pixels(slice_, padding)))
            in_all = padding if in_all is None else in_all & padding
        radius = find_circular_crop_radius(in_all)
        self._outside = None if radius is None else _distance_to_centre(self._shape) >= radius

    def __iter__(self):
        for packed in self._packed:
            invalid = np.unpackbits(packed, count=self._shape[0] * self._shape[1]).view(bool).reshape(self._shape)
            yield invalid if self._outside is None else invalid | self._outside


def find_circular_crop_radius(padding):
    """Radius in pixels of the circle around the image centre outside which all is padding; None without such a circle.

    `padding` (rows, columns; bool) is true for padding. The radius is the one that the fewest pixels contradict. It
    counts as a circular crop if these pixels are at most 4 % of the padding and all four corners are cut.
    """
    corners = padding[[0, 0, -1, -1], [0, -1, 0, -1]]
    if not corners.all() or padding.all():
        return None
    distance = _distance_to_centre(padding.shape).astype(np.int64)
    length = distance.max() + 1
    padding_at = np.bincount(distance[padding], minlength=length)
    image_at = np.bincount(distance[~padding], minlength=length)
    # For each radius: padding nearer than it, plus image at it or farther.
    disagreeing = np.cumsum(padding_at) - padding_at + np.cumsum(image_at[::-1])[::-1]
    radius = int(disagreeing.argmin())
    if radius == 0 or disagreeing[radius] > _CIRCLE_TOLERANCE * padding.sum():
        return None
    return radius


def _white_padding(slice_, maximum):
    threshold = max(maximum - _WHITE_TOLERANCE, maximum // 2 + 1)  # the latter for scans that are nearly black
    white = _padding_regions(slice_ >= threshold, _WHITE)
    if white.any():
        white = _grow_within(white, slice_ > maximum // 2, _FRINGE_PIXELS)
    return white


def _padding_regions(candidates, rule):
    """The part of `candidates` (rows, columns; bool) that is padding by `rule`. Outside the image all is true."""
    seeds = np.zeros(candidates.shape, bool)
    for line, marked in zip(_outermost(candidates), _outermost(seeds), strict=True):
        marked |= _long_runs(line, max(rule.run, rule.run_share * len(line)))
    if not seeds.any() and not _disk_at_border(candidates, rule.edge_radius):
        return seeds
    seeds |= erode_with_disk(candidates, rule.seed_radius)
    if not seeds.any():
        return seeds
    opened = dilate_with_disk(erode_with_disk(candidates, rule.edge_radius), rule.edge_radius)
    count, labels = cv2.connectedComponents((seeds | opened).astype(np.uint8), connectivity=8)
    has_seed, at_border = np.zeros((2, count), bool)
    has_seed[labels[seeds]] = True
    for line in _outermost(labels):
        at_border[line] = True
    regions = (has_seed & at_border)[labels]
    # Disks do not cover a region's corners. Of a thin strip, so far only the outermost pixels are found.
    return _grow_within(regions, candidates, rule.edge_radius)


def _disk_at_border(candidates, radius):
    """Whether a disk of `candidates` may touch the border. Most scans have no padding: this saves the further steps."""
    depth = 2 * radius + 1
    strips = candidates[:depth], candidates[-depth:], candidates[:, :depth].T, candidates[:, -depth:].T
    return any(erode_with_disk(strip, radius).any() for strip in strips)


def _grow_within(regions, allowed, steps):
    """`regions` (bool), grown within `allowed` (bool) by `steps` steps to one of 8 neighbours."""
    grown, allowed = regions.astype(np.uint8), (regions | allowed).astype(np.uint8)
    for _ in range(steps):
        grown = cv2.dilate(grown, np.ones((3, 3), np.uint8)) & allowed
    return grown.astype(bool)


def _outermost(image):
    """The first and last row and the first and last column, as views."""
    return image[0], image[-1], image[:, 0], image[:, -1]


def _long_runs(line, length):
    """Mask of the true runs in `line` (bool) of at least `length`."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], line.astype(np.int8), [0]))))
    marked = np.zeros(len(line), bool)
    for start, stop in edges.reshape(-1, 2):
        marked[start:stop] = stop - start >= length
    return marked


def _distance_to_centre(shape):
    rows, columns = (np.arange(length) - (length - 1) / 2 for length in shape)
    return np.hypot(rows[:, None], columns)
