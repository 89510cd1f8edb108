"""Nuts that turn a row of the slice CSV into patches of its B-scan.

Samples are tuples: (image, mask, roi) for a whole B-scan, (image, mask, is_IRF, is_SRF, is_PED) for a patch. Whatever
draws at random is handed its generator.
"""

import functools
from pathlib import Path

import cv2
import numpy as np
from nutsflow import NutFunction, nut_processor

from utils.errors import InputError
from utils.mhd import open_volume

VOLUME_KINDS = ("oct_imgs", "oct_masks", "roi_masks")  # folders below the preprocessed one, in a sample's order
COLUMN_STEP = 10  # pixels between columns that patches are centred on
ROW_JITTER = 10  # pixels, largest distance of a patch's centre from the middle of the ROI, up or down
ANYWHERE_SHARE = 0.2  # patches from anywhere in the ROI, as a share of those along its middle


def volume_paths(preprocessed_folder, vendor, image_name):
    """Paths of a case's preprocessed volumes, in the order of `VOLUME_KINDS`."""
    return tuple(Path(preprocessed_folder) / kind / f"{vendor}_{image_name}.mhd" for kind in VOLUME_KINDS)


class ReadOCT(NutFunction):
    """rows >> ReadOCT(preprocessed_folder): rows of the slice CSV to samples (image, mask, roi).

    image is uint8 (rows, columns, 3), slices z-1, z, z+1, where the first and the last slice of a volume stand in for
    the neighbour that they lack; mask is uint8 (rows, columns), labels 0..3; roi is uint8 (rows, columns), 0 or 1.
    Volumes are memory-mapped, so that a row costs a few slices and not three volumes; the `open_cases` cases used last
    stay mapped. Raises InputError where volumes do not match one another or lack the slice.
    """

    def __init__(self, preprocessed_folder, open_cases=64):
        super().__init__()
        self.preprocessed_folder = preprocessed_folder
        self._open_case = functools.lru_cache(open_cases)(_open_case)

    def __call__(self, row):
        paths = volume_paths(self.preprocessed_folder, row.vendor, row.image_name)
        volume, masks, rois = self._open_case(paths)
        last = len(volume) - 1
        if not 0 <= row.slice <= last:
            raise InputError(
                f"{paths[0]}: the CSV asks for slice {row.slice}, the volume has slices 0 to {last}; "
                "run prepare_data.py again"
            )
        channels = [volume[min(max(row.slice + offset, 0), last)] for offset in (-1, 0, 1)]
        # Copies: a sample that waits in a buffer must not depend on the file.
        return cv2.merge(channels), np.array(masks[row.slice]), np.array(rois[row.slice])


def _open_case(paths):
    volumes = [open_volume(path)[0] for path in paths]
    expected = volumes[0].shape
    offenders = [
        f"{path}: found {volume.dtype} {volume.shape}, expected uint8 {expected} as {paths[0].name} in "
        f"{VOLUME_KINDS[0]}; run prepare_data.py again"
        for path, volume in zip(paths, volumes, strict=True)
        if volume.shape != expected or volume.dtype != np.uint8
    ]
    if offenders:
        raise InputError(*offenders)
    return volumes


def rotate_nearest(image, angle_degrees):
    """Image (rows, columns[, channels]) turned counter-clockwise about its centre, same shape and dtype.

    Nearest neighbour, so that labels stay labels and 0 stays invalid; what comes in from outside is 0. Equals
    nutsml's 'rotate' (scikit-image, order 0) but for ties, at a hundredth of its time.
    """
    rows, columns = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), angle_degrees, 1.0)
    return cv2.warpAffine(np.ascontiguousarray(image), matrix, (columns, rows), flags=cv2.INTER_NEAREST)


def sample_oct_patch_centers(roi, patch_shape, n_patches, rng):
    """Centres of up to `n_patches` patches along the middle of the ROI.

    roi: (rows, columns), non-zero inside; patch_shape: (rows, columns); rng: numpy Generator. Returns int (n, 2) of
    (row, column), where a patch covers rows row - patch_rows // 2 onwards, columns alike. Candidates are the columns
    every `COLUMN_STEP` pixels from the first where a whole patch fits to the last, if they cross the ROI; they are
    drawn without replacement, so that narrow scans give fewer. A patch's row is the middle of the ROI in its column,
    jittered by up to `ROW_JITTER`, then moved so that the patch fits.
    """
    rows, columns = roi.shape
    patch_columns = patch_shape[1]
    candidates = np.arange(patch_columns // 2, columns - patch_columns + patch_columns // 2 + 1, COLUMN_STEP)
    crossings = roi[:, candidates] != 0
    candidates, crossings = candidates[crossings.any(axis=0)], crossings[:, crossings.any(axis=0)]
    first = crossings.argmax(axis=0)
    last = rows - 1 - crossings[::-1].argmax(axis=0)
    drawn = rng.permutation(len(candidates))[:n_patches]
    jitter = rng.integers(-ROW_JITTER, ROW_JITTER, size=len(drawn), endpoint=True)
    middle_rows = (first + last)[drawn] // 2 + jitter
    return _moved_to_fit(np.stack([middle_rows, candidates[drawn]], axis=1), roi.shape, patch_shape)


def sample_patches_entropy_mask(roi, patch_shape, n_patches, rng):
    """As `sample_oct_patch_centers`, followed by a fifth as many again from anywhere in the ROI.

    Those are drawn evenly from the ROI's pixels (the ROI is where the local entropy is high), then moved so that the
    patch fits. An empty ROI gives no centres.
    """
    along_middle = sample_oct_patch_centers(roi, patch_shape, n_patches, rng)
    n_anywhere = round(ANYWHERE_SHARE * len(along_middle))
    inside = np.flatnonzero(roi)
    anywhere = np.stack(np.unravel_index(rng.choice(inside, n_anywhere), roi.shape), axis=1)
    return np.concatenate([along_middle, _moved_to_fit(anywhere, roi.shape, patch_shape)])


def _moved_to_fit(centers, image_shape, patch_shape):
    half = np.array(patch_shape) // 2
    return np.clip(centers, half, np.array(image_shape) - patch_shape + half)


@nut_processor
def ImagePatchesByMaskRetouch_resampled(samples, patch_shape, n_patches, rng, patch_border=42, fluid_labels=(1, 2, 3)):
    """samples >> ImagePatchesByMaskRetouch_resampled(patch_shape, n_patches, rng): B-scans to patches.

    Takes (image, mask, roi) and yields (image, mask, is_IRF, is_SRF, is_PED): image uint8 (*patch_shape, 3) and mask
    uint8 patch_shape, centred where `sample_patches_entropy_mask` says. is_* are 1 where the mask, `patch_border`
    pixels in from its sides, holds that fluid (`fluid_labels`), else 0: the network's output lacks the border.
    Raises InputError for a B-scan that is smaller than a patch.
    """
    patch_rows, patch_columns = patch_shape
    if 2 * patch_border >= min(patch_shape):
        raise ValueError(f"patch_border must be less than half of {patch_shape}, got {patch_border}")
    inside = (slice(patch_border, patch_rows - patch_border), slice(patch_border, patch_columns - patch_border))
    for image, mask, roi in samples:
        if mask.shape[0] < patch_rows or mask.shape[1] < patch_columns:
            raise InputError(
                f"a preprocessed B-scan of {mask.shape[0]} x {mask.shape[1]} pixels (rows x columns) holds no patch of "
                f"{patch_rows} x {patch_columns}; run prepare_data.py again, which pads to the patch size"
            )
        for row, column in sample_patches_entropy_mask(roi, patch_shape, n_patches, rng):
            top, left = row - patch_rows // 2, column - patch_columns // 2
            patch = (slice(top, top + patch_rows), slice(left, left + patch_columns))
            # Copies: a view in a shuffle buffer would keep the whole B-scan in memory.
            image_patch, mask_patch = image[patch].copy(), mask[patch].copy()
            yield image_patch, mask_patch, *(int((mask_patch[inside] == label).any()) for label in fluid_labels)
