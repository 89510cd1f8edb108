"""Overlap-tile prediction: a network's view of whole B-scans, stitched, and brought back onto the scan's own grid.

The U-Net runs on any size divisible by 8, and its output shifts with its input in steps of 8. So a B-scan cut into
tiles at multiples of 8 gives the same probabilities as the whole B-scan, wherever a tile's own border is far enough:
46 pixels are lost to 'valid' convolutions and 9 more see the zero padding of the two 'same' ones.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.errors import InputError
from utils.networks import tile_step
from utils.preprocessing import preprocess_volume, resampled_rows, resampling_matrix
from utils.roi import roi_mask

CONTEXT = 56  # pixels of each tile side that are not stitched: 46 + 9, rounded up to the network's step
STEP = 8  # the network's total stride
BACKGROUND = (1, 0, 0, 0)  # class probabilities
LARGEST_TILE = (512, 384)  # rows, columns of a tile: 1.2 GB for the full network's widest layer and its input


@dataclass(frozen=True)
class PredictionSettings:
    """What turns a scan into the network's input and its output into labels; stored in ``best.json``."""

    network: str  # as `config.MODEL`
    axial_spacing_mm: float
    slice_mean: float
    slice_sd: float
    threshold: float
    reference_histogram: list | None  # counts of the 256 grey values that Cirrus and Topcon are matched to

    @classmethod
    def from_details(cls, details):
        """The settings in the content of ``best.json``; `InputError` where one is missing."""
        missing = [name for name in cls.__dataclass_fields__ if name not in details]
        if missing:
            raise InputError(f"best.json: lacks {', '.join(missing)}; train the model with this version's scripts")
        return cls(**{name: details[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Segmentation:
    """A segmented scan."""

    labels: np.ndarray  # uint8 (slices, rows, columns) on the scan's own grid: 0 background, 1 IRF, 2 SRF, 3 PED
    presence: np.ndarray  # float (3,): how sure the model is that IRF, SRF, PED is anywhere in the scan
    head_presence: np.ndarray | None  # float (3,): largest output of its presence heads, if it has them


def segment_scan(model, voxels, spacing_mm, vendor, settings, *, on_slice=None):
    """Segment one scan: preprocessed as in training, predicted within its region of interest, on its own grid.

    `model` is an exported network, `voxels` (slices, rows, columns) the scan as read from its file, `spacing_mm`
    (x, y, z), `settings` a `PredictionSettings`; ``on_slice(index, probabilities)``, if given, is called
    after every B-scan with its probabilities, float32 (rows, columns, 4).
    Returns a `Segmentation`.
    """
    _, rows, columns = voxels.shape
    volume = preprocess_volume(
        voxels,
        spacing_mm,
        vendor,
        axial_spacing_mm=settings.axial_spacing_mm,
        reference_histogram=settings.reference_histogram,
    )
    scan_rows = resampled_rows(rows, spacing_mm[1], settings.axial_spacing_mm)
    to_scan_rows = resampling_matrix(scan_rows, rows)
    labels = np.zeros(voxels.shape, np.uint8)
    presence, head_presence = np.zeros(3), [] if isinstance(model.output, list) else None
    # Only in the region of interest: training's patches have shown the network nothing else.
    probabilities_of_slices = predict_probabilities(
        model,
        volume,
        settings.slice_mean,
        settings.slice_sd,
        find_region=roi_mask,
        step=tile_step(settings.network),
        head_outputs=head_presence,
    )
    for index, probabilities in enumerate(probabilities_of_slices):
        probabilities = probabilities[:scan_rows, :columns]  # without the padding of small scans
        presence = np.maximum(presence, presence_scores(probabilities))
        on_scan_rows = np.einsum("nr,rck->nck", to_scan_rows, probabilities, optimize=True)
        labels[index] = labels_from_probabilities(on_scan_rows, settings.threshold)
        if on_slice:
            on_slice(index, on_scan_rows)
    if head_presence is not None:
        head_presence = np.max([np.zeros(3), *head_presence], axis=0)
    return Segmentation(labels, presence, head_presence)


def labels_from_probabilities(probabilities, threshold):
    """Likeliest class of each pixel, background where even that is less probable than `threshold`.

    `probabilities` is float (rows, columns, classes); returns uint8 (rows, columns).
    """
    labels = probabilities.argmax(axis=-1).astype(np.uint8)
    labels[probabilities.max(axis=-1) < threshold] = 0
    return labels


def presence_scores(probabilities):
    """Largest probability of each fluid in a B-scan after a 5x5 mean, which a lone pixel cannot carry.

    `probabilities` is float (rows, columns, 4); returns float (3,).
    """
    return np.array([ndimage.uniform_filter(probabilities[..., k], 5, mode="nearest").max() for k in (1, 2, 3)])


def valid_pixels(slice_):
    """Where a preprocessed B-scan is image, not padding."""
    return slice_ > 0


def predict_probabilities(
    model,
    volume,
    slice_mean,
    slice_sd,
    *,
    find_region=valid_pixels,
    slices=None,
    largest_tile=LARGEST_TILE,
    step=STEP,
    head_outputs=None,
):
    """Class probabilities of B-scans of a preprocessed volume.

    `model` maps (B, H, W, 3) to (B, H - 2 m, W - 2 m, 4) for any H, W divisible by `step`, or for the only H, W that it
    takes (its first output is used); `volume` is uint8 (slices, rows, columns) with 0 = invalid, `largest_tile` limits
    the memory. `find_region` maps a B-scan to the mask of the pixels to predict; the others are background with
    probability 1, and tiles without any are not computed. `slices` are the indices of the B-scans to predict, by
    default all; only they and their neighbours are read, so that `volume` may be a memory map. Yields float32 (rows,
    columns, 4) for each, in that order. Of a model with further outputs, each tile's are appended to the list
    `head_outputs`, if given, as float (3,).
    """
    n_slices, rows, columns = volume.shape
    only_rows, only_columns = model.input_shape[1:3]
    row_starts, tile_rows = tile_starts(rows, only_rows or largest_tile[0], only_rows or step)
    column_starts, tile_columns = tile_starts(columns, only_columns or largest_tile[1], only_columns or step)
    core_rows, core_columns = tile_rows - 2 * CONTEXT, tile_columns - 2 * CONTEXT
    padding = [
        (CONTEXT, row_starts[-1] + core_rows + CONTEXT - rows),
        (CONTEXT, column_starts[-1] + core_columns + CONTEXT - columns),
        (0, 0),
    ]
    for index in range(n_slices) if slices is None else slices:
        neighbours = volume[[max(index - 1, 0), index, min(index + 1, n_slices - 1)]]
        image = (np.moveaxis(neighbours, 0, -1).astype(np.float32) - slice_mean) / slice_sd
        image = np.pad(image, padding, mode="symmetric")
        region = find_region(neighbours[1]) != 0
        stitched = np.empty((row_starts[-1] + core_rows, column_starts[-1] + core_columns, 4), np.float32)
        for row in row_starts:
            for column in column_starts:
                if not region[row : row + core_rows, column : column + core_columns].any():
                    continue
                tile = image[row : row + tile_rows, column : column + tile_columns]
                outputs = model.predict_on_batch(tile[np.newaxis])
                output, *heads = [of_batch[0] for of_batch in (outputs if isinstance(outputs, list) else [outputs])]
                if head_outputs is not None:
                    head_outputs.append(np.ravel(heads))
                start = CONTEXT - (tile_rows - output.shape[0]) // 2  # of the core, within the output
                core = output[start : start + core_rows, start : start + core_columns]
                stitched[row : row + core_rows, column : column + core_columns] = core
        probabilities = stitched[:rows, :columns]
        probabilities[~region] = BACKGROUND
        yield probabilities


def tile_starts(length, largest_tile, step=STEP):
    """Where the stitched cores of equal tiles begin along an axis of `length` pixels, and the tiles' size.

    As few tiles as `largest_tile` allows, each as small as that number and `step` allow. Returns (starts, tile size),
    the latter a multiple of `step`; with a step of 8 the former are, too.
    """
    largest_core = largest_tile // step * step - 2 * CONTEXT
    if largest_core < STEP:
        raise ValueError(f"largest_tile must be at least {2 * CONTEXT + STEP} pixels, got {largest_tile}")
    count = -(-length // largest_core)
    tile = -(-(-(-length // count) + 2 * CONTEXT) // step) * step
    return list(range(0, length, tile - 2 * CONTEXT)), tile
