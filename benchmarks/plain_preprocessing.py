"""Data preparation by the obvious library calls, written for clarity: the baseline of `prepare.py`.

Independent of this collection's code. Two things are given: the mask of invalid pixels, for which there is no library
call, and which vendors are matched and filtered. All images are (rows, columns), all volumes (slices, rows, columns).
"""

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage import exposure, morphology
from skimage.filters import rank


def to_8_bit(voxels):
    """uint16 volume to uint8; uint8 as it is."""
    return voxels if voxels.dtype == np.uint8 else np.rint(voxels / 65535 * 255).astype(np.uint8)


def matched(volume, invalid, reference_values):
    """Valid voxels of `volume` matched to `reference_values` (uint8, any shape); invalid ones 0."""
    result = np.zeros_like(volume)
    result[~invalid] = np.rint(exposure.match_histograms(volume[~invalid], reference_values.ravel()))
    return result


def filtered(volume):
    """Median over three slices (not of the first and the last), then 3 x 3 in each slice."""
    over_slices = ndimage.median_filter(volume, size=(3, 1, 1))
    over_slices[[0, -1]] = volume[[0, -1]]
    return ndimage.median_filter(over_slices, size=(1, 3, 3), mode="nearest")


def resampled(volume, invalid, rows_out):
    """Rows resampled linearly and anti-aliased from valid voxels alone; 0 where most of a pixel is invalid."""
    result = np.zeros((len(volume), rows_out, volume.shape[2]), np.uint8)
    for slice_, left_out, target in zip(volume, invalid, result, strict=True):
        grey_values = _resize(np.where(left_out, 0, slice_).astype(np.float32), rows_out, Image.Resampling.BILINEAR)
        coverage = _resize((~left_out).astype(np.float32), rows_out, Image.Resampling.BILINEAR)
        valid = coverage > 0.5 - 1e-6
        target[valid] = np.clip(np.rint(grey_values[valid] / coverage[valid]), 1, 255)
    return result


def resampled_reference(reference, rows_out):
    """Labels at the nearest row."""
    return np.stack([_resize(slice_, rows_out, Image.Resampling.NEAREST) for slice_ in reference])


def closing(mask, radius):
    """Closing with a disk, outside being background, by the call that says so."""
    extended = np.pad(mask, radius)
    return ndimage.binary_closing(extended, morphology.disk(radius))[radius:-radius, radius:-radius]


def isotropic_closing(mask, radius):
    """The same by scikit-image's distance transforms: the best library call, for who knows of it."""
    margin = radius + 1
    return morphology.isotropic_closing(np.pad(mask, margin), radius)[margin:-margin, margin:-margin]


def roi(slice_, reference_slice, close=closing):
    """Region of interest of a preprocessed B-scan, closed by `close`."""
    bright = np.rint(np.maximum(0, slice_ / 128 - 1) * 255).astype(np.uint8)
    entropy = rank.entropy(bright, morphology.disk(15))
    mask = (entropy / max(entropy.max(), 1e-12) > 0.01) | (reference_slice > 0)
    mask = close(mask, 55)
    for column in mask.T:
        rows = np.flatnonzero(column)
        if len(rows):
            column[rows[0] : rows[-1] + 1] = True
    return (mask & (slice_ > 0)).astype(np.uint8)


def _resize(image, rows_out, method):
    return np.asarray(Image.fromarray(image).resize((image.shape[1], rows_out), method))
