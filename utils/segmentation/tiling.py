"""Overlap-tile prediction: a network's view of whole B-scans, stitched.

The U-Net runs on any size divisible by 8, and its output shifts with its input in steps of 8. So a B-scan cut into
tiles at multiples of 8 gives the same probabilities as the whole B-scan, wherever a tile's own border is far enough:
46 pixels are lost to 'valid' convolutions and 9 more see the zero padding of the two 'same' ones.

Other networks halve the image five times. They shift with their input in steps of 32 alone, and what they see reaches
farther than any context: in tiles 1 to 2 % of the fluid's pixels got another label than in the whole B-scan (3 to 8 %
where tiles begin at multiples of 8). Larger tiles have fewer seams.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from utils.networks.networks import FAR_CONTEXT, as_list
from utils.preparation.prepared import slices_seen

CONTEXT = 56  # pixels of each tile side that are not stitched: 46 + 9, rounded up to the network's step
STEP = 8  # the network's total stride
TILE_PIXELS = 196_608  # at most, of a batch of tiles: what the full network as exported computes in 1.2 GB
_SIZES = 16  # pixels between one tile's size and the next larger: JAX compiles each size anew


def presence_scores(probabilities):
    """Largest probability of each fluid in a B-scan after a 5x5 mean, which a lone pixel cannot carry.

    `probabilities` is float (rows, columns, 4); returns float (3,).
    """
    return np.array([ndimage.uniform_filter(probabilities[..., k], 5, mode="nearest").max() for k in (1, 2, 3)])


def valid_pixels(slice_):
    """Where a preprocessed B-scan is image, not padding."""
    return slice_ > 0


@dataclass(frozen=True)
class Predictor:
    """A network, and what it takes to predict whole B-scans with it.

    `model` maps (B, H, W, 3) to (B, H - 2 m, W - 2 m, channels) for any H, W divisible by `step`, or for the only H, W
    that it takes; its first output is used. As many B-scans are computed at once, in as large tiles, as `tile_pixels`
    allow, which bound the memory.
    """

    model: Any
    slice_mean: float = 128.0
    slice_sd: float = 128.0
    step: int = STEP
    channels: int = 4
    tile_pixels: int = TILE_PIXELS

    def of_volume(self, volume, find_region=valid_pixels, *, slices=None, neighbours=True):
        """Yield the class probabilities, float32 (rows, columns, channels), of B-scans of a preprocessed volume.

        `volume` is uint8 (slices, rows, columns) with 0 = invalid. `find_region` maps a B-scan to the mask of the
        pixels to predict. `slices` are the indices of the B-scans to predict, by default all; `neighbours` says what
        the network sees of each, as `slices_seen`. Nothing else is read, so that `volume` may be a memory map.
        """
        stacks = (
            volume[slices_seen(index, volume.shape[0], neighbours)]
            for index in (range(volume.shape[0]) if slices is None else slices)
        )
        return self.of_stacks((stack, find_region(stack[1])) for stack in stacks)

    def of_stacks(self, stacks):
        """Yield the class probabilities, float32 (rows, columns, channels), of each of `stacks`.

        `stacks` is an iterable of (the slices of a preprocessed volume that the network sees, uint8 (3, rows, columns),
        all of one size; the region to predict, (rows, columns), not 0 there). The rest is background with probability
        1: what lies beyond the region's bounding box is not computed.
        """
        stacks = iter(stacks)
        first = next(stacks, None)
        if first is None:
            return
        only_size = self.model.input_shape[1:3]
        rows, columns = (length + 2 * _context(self.step, only_size) for length in first[1].shape)
        stacks = itertools.chain([first], stacks)
        n_together = max(1, self.tile_pixels // (rows * columns))
        while group := list(itertools.islice(stacks, n_together)):
            images = np.moveaxis(np.stack([stack for stack, _ in group]), 1, -1)
            regions = np.stack([region for _, region in group]) != 0
            stitched = np.zeros((*regions.shape, self.channels), np.float32)
            for tile in plan_tiles(regions.any(axis=0), self.tile_pixels // len(group), self.step, only_size):
                inputs = tile.cut(images).astype(np.float32)
                inputs -= self.slice_mean
                inputs /= self.slice_sd
                tile.paste(as_list(self.model.predict_on_batch(inputs))[0], stitched)
            stitched[~regions] = np.eye(self.channels, dtype=np.float32)[0]
            yield from stitched


@dataclass(frozen=True)
class Tile:
    """A part of B-scans whose core is predicted from it and `context` pixels around."""

    row: int  # where the core begins
    column: int
    rows: int  # the core's size; its end may lie beyond the B-scan
    columns: int
    context: int = CONTEXT

    def cut_core(self, region):
        """The core's part of `region` (rows, columns)."""
        return region[self.row : self.row + self.rows, self.column : self.column + self.columns]

    def cut(self, images):
        """The tile of `images` (B, rows, columns, C), mirrored beyond their border, but below it black.

        There the signal of a whole scan fades out, and padding is what training has shown below small ones.
        """
        n_rows, context = images.shape[1], self.context
        for axis, start, length in ((1, self.row, self.rows), (2, self.column, self.columns)):
            images = images.take(_mirrored(start - context, start + length + context, images.shape[axis]), axis=axis)
        images[:, n_rows - (self.row - context) :] = 0
        return images

    def paste(self, output, stitched):
        """Put the core of the network's `output` (B, H, W, C) for this tile into `stitched` (B, rows, columns, C)."""
        lost = (self.rows + 2 * self.context - output.shape[1]) // 2
        core = stitched[:, self.row : self.row + self.rows, self.column : self.column + self.columns]
        first = self.context - lost
        core[:] = output[:, first : first + core.shape[1], first : first + core.shape[2]]


def _mirrored(start, stop, length):
    """Indices from `start` to `stop` into an axis of `length` pixels, mirrored at its ends."""
    index = np.arange(start, stop) % (2 * length)
    return np.where(index < length, index, 2 * length - 1 - index)


def _context(step, only_size):
    """Pixels around the core of a tile for a network of this `step`; one of `only_size` has no room for more."""
    return CONTEXT if step == STEP or None not in only_size else FAR_CONTEXT


def plan_tiles(region, tile_pixels, step=STEP, only_size=(None, None)):
    """The tiles, all of one size, that cover the bounding box of `region` (rows, columns; bool) with least computing.

    None has more than `tile_pixels` where any size allows that; sizes are multiples of `step`, or `only_size` (rows,
    columns). Tiles without any of the region are left out. Cores begin at multiples of `step`, those of `only_size` at
    multiples of 8.
    """
    if not region.any():
        return []
    context = _context(step, only_size)
    multiple = step if None in only_size else STEP
    (top, height), (left, width) = (_span(region.any(axis=axis), multiple) for axis in (1, 0))
    if None in only_size:
        tile_rows, tile_columns = _cheapest_size(height, width, tile_pixels, max(step, _SIZES), context)
    else:
        tile_rows, tile_columns = only_size
    core_rows, core_columns = tile_rows - 2 * context, tile_columns - 2 * context
    tiles = [
        Tile(row, column, core_rows, core_columns, context)
        for row in range(top, top + height, core_rows)
        for column in range(left, left + width, core_columns)
    ]
    return [tile for tile in tiles if tile.cut_core(region).any()]


def _span(occupied, multiple):
    """Where the true part of `occupied` (bool) begins, rounded down to a `multiple`, and how long it is."""
    (indices,) = occupied.nonzero()
    first = int(indices[0]) // multiple * multiple
    return first, int(indices[-1]) + 1 - first


def _cheapest_size(height, width, tile_pixels, multiple, context):
    """(rows, columns) of the tiles that cover `height` x `width` pixels with the fewest computed in all."""
    candidates = []
    for n_columns in range(1, -(-width // STEP) + 1):
        for n_rows in range(1, -(-height // STEP) + 1):
            size = _tile_size(height, n_rows, multiple, context), _tile_size(width, n_columns, multiple, context)
            pixels = size[0] * size[1]
            candidates.append((max(pixels, tile_pixels), n_rows * n_columns * pixels, size))
            if pixels <= tile_pixels:
                break
        if n_rows == 1:
            break  # more columns would only repeat more of the context
    return min(candidates)[-1]


def _tile_size(length, count, multiple, context):
    """Pixels along an axis of each of `count` tiles that cover `length`, rounded up to a `multiple`."""
    return -(-(-(-length // count) + 2 * context) // multiple) * multiple
