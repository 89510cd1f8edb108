"""Nuts that turn a row of the slice CSV into patches of its B-scan.

First it is decided which patches there are, from the B-scan's mask, ROI and valid pixels; then those that are kept are
cut out. A sample is a tuple: (image, mask, roi) for a B-scan, (image, mask, is_IRF, is_SRF, is_PED) for a patch, and a
`Patch` for one that is decided on and not cut out. Whatever draws at random is handed its generator.
"""

import functools
import os
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
from nutsflow import NutFunction, nut_processor

from utils.errors import InputError
from utils.labels import CLASS_NAMES
from utils.mhd import open_volume

VOLUME_KINDS = ("oct_imgs", "oct_masks", "roi_masks")  # folders below the preprocessed one, in a sample's order
ROTATION_DEGREES = (0, 10)  # smallest and largest rotation of an augmented B-scan, counter-clockwise
COLUMN_STEP = 10  # pixels between columns that patches are centred on
ROW_JITTER = 10  # pixels, largest distance of a patch's centre from the middle of the ROI, up or down
ANYWHERE_SHARE = 0.2  # patches from anywhere in the ROI, as a share of those along its middle

SliceRow = namedtuple("SliceRow", "image_name vendor root slice is_IRF is_SRF is_PED")  # the CSV's columns, in order

# A patch that is not cut out yet: the B-scan, whether it is mirrored and then by how much rotated, the patch's first
# row and column in what that gives, the share of its pixels that are invalid, and its labels.
Patch = namedtuple("Patch", "row mirrored angle_degrees top left invalid_share is_IRF is_SRF is_PED")


def volume_paths(preprocessed_folder, vendor, image_name):
    """Paths of a case's preprocessed volumes, in the order of `VOLUME_KINDS`."""
    return tuple(Path(preprocessed_folder) / kind / f"{vendor}_{image_name}.mhd" for kind in VOLUME_KINDS)


# ---- Rows to B-scans -----------------------------------------------------------------------------------------------
class ReadOCT(NutFunction):
    """rows >> ReadOCT(preprocessed_folder): rows of the slice CSV to samples (image, mask, roi).

    image is uint8 (rows, columns, 3), slices z-1, z, z+1, where the first and the last slice of a volume stand in for
    the neighbour that they lack; mask is uint8 (rows, columns), labels 0..3; roi is uint8 (rows, columns), 0 or 1.
    Volumes are memory-mapped, so that a row costs a few slices and not three volumes; the `open_cases` cases used last
    stay mapped. Raises InputError where a volume is missing or damaged, volumes do not match one another, lack the
    slice, or a mask holds other labels.
    """

    def __init__(self, preprocessed_folder, open_cases=64):
        super().__init__()
        self.preprocessed_folder = preprocessed_folder
        self._open_case = functools.lru_cache(open_cases)(_open_case)

    def __call__(self, row):
        volume, masks, rois = self._open_case(self.preprocessed_folder, row.vendor, row.image_name)
        if not 0 <= row.slice < len(volume):
            raise InputError(
                f"{volume.filename}: the CSV asks for slice {row.slice}, the volume has slices 0 to {len(volume) - 1}; "
                "run prepare_data.py again"
            )
        # Copies: a sample that waits in a buffer must not depend on the file.
        (mask,), (roi,) = (np.array(_slices(volume, [row.slice])) for volume in (masks, rois))
        if mask.max() >= len(CLASS_NAMES):
            raise InputError(
                f"{masks.filename}: slice {row.slice} holds the label {mask.max()}, expected at most "
                f"{len(CLASS_NAMES) - 1}; run prepare_data.py again"
            )
        return cv2.merge(_neighbours(volume, row.slice)), mask, roi


def _open_case(preprocessed_folder, vendor, image_name):
    """Memory maps (slices, rows, columns; uint8) of a case's volumes; InputError where one is not as expected."""
    paths = volume_paths(preprocessed_folder, vendor, image_name)
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


def _neighbours(volume, index):
    """Slices z-1, z, z+1, where the first and the last stand in for those that are not there."""
    return _slices(volume, [max(index - 1, 0), index, min(index + 1, len(volume) - 1)])


def _slices(volume, indices):
    """Slices of a memory map, after a look at its file: to read beyond the end of one would kill the process."""
    try:
        found = os.stat(volume.filename).st_size
    except OSError as error:
        raise InputError(f"{volume.filename}: {error.strerror}; run prepare_data.py again") from error
    if found < volume.nbytes:
        raise InputError(f"{volume.filename}: {found} bytes, expected {volume.nbytes}; run prepare_data.py again")
    return [volume[index] for index in indices]


# ---- Augmentation --------------------------------------------------------------------------------------------------
@nut_processor
def MirrorAndRotate(samples, probability, rng):
    """samples >> MirrorAndRotate(probability, rng): B-scans as they are, mirrored, rotated.

    Takes (row, image, mask, roi) and yields (row, mirrored, angle_degrees, middle_slice, mask, roi), where the last
    three, uint8 (rows, columns), are turned as the first three say; the neighbouring slices are of no use for deciding
    on patches. A B-scan comes untouched and, with `probability`, mirrored as well; each of these as it is and, with
    `probability`, rotated as well, by an angle drawn evenly from `ROTATION_DEGREES`. With 0.5 these are 2.25 a B-scan,
    as nutsml's AugmentImage gives with 'identical' and 'fliplr', then 'identical' and 'rotate'.
    """
    for row, image, mask, roi in samples:
        planes = (cv2.extractChannel(image, 1), mask, roi)
        variants = [(False, planes)]
        if rng.random() < probability:
            variants.append((True, tuple(cv2.flip(plane, 1) for plane in planes)))
        for mirrored, planes in variants:
            yield row, mirrored, 0.0, *planes
            if rng.random() < probability:
                angle_degrees = rng.uniform(*ROTATION_DEGREES)
                source_map, box = rotation_map(mask.shape, angle_degrees)
                yield row, mirrored, angle_degrees, *(rotated(plane[box], source_map) for plane in planes)


def rotation_map(shape, angle_degrees, window=(slice(None), slice(None))):
    """Where each pixel in a `window` of a B-scan of `shape` comes from when it is turned about its centre.

    `shape` is (rows, columns), `window` slices of both; counter-clockwise. Returns (source_map, box): `box`, slices of
    both, holds every pixel that the window needs; source_map, int16 (rows, columns, 2), has for each pixel of the
    window column and row of the nearest one in the box, or beyond where there is none. Coordinates are sums of integers
    (65536ths of a pixel), so that a window shows exactly what it would of the whole rotated B-scan.
    """
    cosine, sine = np.cos(np.deg2rad(angle_degrees)), np.sin(np.deg2rad(angle_degrees))
    middle_row, middle_column = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    rows, columns = np.arange(shape[0])[window[0]] - middle_row, np.arange(shape[1])[window[1]] - middle_column
    source_map, box = np.empty((len(rows), len(columns), 2), np.int32), [None, None]
    for axis, along_rows, along_columns in (
        (0, cosine * rows + middle_row + 0.5, sine * columns),
        (1, -sine * rows + middle_column + 0.5, cosine * columns),
    ):
        along_rows, along_columns = (np.rint(part * 65536).astype(np.int32) for part in (along_rows, along_columns))
        first = max((along_rows.min() + along_columns.min()) >> 16, 0)
        last = min((along_rows.max() + along_columns.max()) >> 16, shape[axis] - 1)
        np.add.outer(along_rows - (first << 16), along_columns, out=source_map[..., 1 - axis])
        box[axis] = slice(first, last + 1)
    source_map >>= 16
    return source_map.astype(np.int16), tuple(box)


def rotated(plane, source_map):
    """The pixels of `plane` (rows, columns[, channels]) that `source_map` (n, m, 2) names: (n, m[, channels]).

    Nearest neighbour, so that labels stay labels and 0 stays invalid; what comes from outside the plane is 0.
    """
    return cv2.remap(plane, source_map, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


# ---- Patch centres -------------------------------------------------------------------------------------------------
def sample_oct_patch_centers(roi, patch_shape, n_patches, rng):
    """Centres of up to `n_patches` patches along the middle of the ROI.

    roi: uint8 (rows, columns), 1 inside; patch_shape: (rows, columns); rng: numpy Generator. Returns int (n, 2) of
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
    # The n-th pixel of the ROI by the rows' totals: listing every pixel takes a hundred times as long.
    up_to_row = np.cumsum(cv2.reduce(roi, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S))
    ranks = rng.integers(up_to_row[-1], size=round(ANYWHERE_SHARE * len(along_middle))) if up_to_row[-1] else []
    anywhere = np.empty((len(ranks), 2), int)
    for index, rank in enumerate(ranks):
        row = np.searchsorted(up_to_row, rank, side="right")
        anywhere[index] = row, np.flatnonzero(roi[row])[rank - up_to_row[row]]  # counted from the row's end
    return np.concatenate([along_middle, _moved_to_fit(anywhere, roi.shape, patch_shape)])


def _moved_to_fit(centers, image_shape, patch_shape):
    half = np.array(patch_shape) // 2
    return np.clip(centers, half, np.array(image_shape) - patch_shape + half)


# ---- Patches -------------------------------------------------------------------------------------------------------
@nut_processor
def ImagePatchesByMaskRetouch_resampled(samples, patch_shape, n_patches, rng, patch_border=42, fluid_labels=(1, 2, 3)):
    """samples >> ImagePatchesByMaskRetouch_resampled(patch_shape, n_patches, rng): B-scans to patches not yet cut out.

    Takes what `MirrorAndRotate` yields; yields a `Patch` for each centre of `sample_patches_entropy_mask`. is_* are 1
    where the mask, `patch_border` pixels in from the patch's sides, holds that fluid (`fluid_labels`), else 0: the
    network's output lacks the border. Raises InputError for a B-scan that is smaller than a patch.
    """
    patch_rows, patch_columns = patch_shape
    if 2 * patch_border >= min(patch_shape):
        raise ValueError(f"patch_border must be less than half of {patch_shape}, got {patch_border}")
    for row, mirrored, angle_degrees, middle_slice, mask, roi in samples:
        if mask.shape[0] < patch_rows or mask.shape[1] < patch_columns:
            raise InputError(
                f"{row.vendor}_{row.image_name}.mhd: a preprocessed B-scan of {mask.shape[0]} x {mask.shape[1]} pixels "
                f"(rows x columns) holds no patch of {patch_rows} x {patch_columns}; run prepare_data.py again, which "
                "pads to the patch size"
            )
        for center_row, center_column in sample_patches_entropy_mask(roi, patch_shape, n_patches, rng).tolist():
            top, left = center_row - patch_rows // 2, center_column - patch_columns // 2
            window = (slice(top, top + patch_rows), slice(left, left + patch_columns))
            inside = mask[window][patch_border : patch_rows - patch_border, patch_border : patch_columns - patch_border]
            fluids = [int((inside == label).any()) for label in fluid_labels]
            invalid_share = 1 - cv2.countNonZero(middle_slice[window]) / (patch_rows * patch_columns)
            yield Patch(row, mirrored, angle_degrees, top, left, invalid_share, *fluids)


def drop_patch(sample, probability, rng):
    """Whether to drop a patch sample, whose last three values are is_IRF, is_SRF, is_PED: without fluid, with
    `probability`."""
    return not any(sample[-3:]) and rng.random() < probability


class CutPatch(NutFunction):
    """patches >> CutPatch(preprocessed_folder, patch_shape): `Patch` to (image, mask, is_IRF, is_SRF, is_PED).

    image is uint8 (*patch_shape, 3), slices z-1, z, z+1 as in `ReadOCT`; mask is uint8 patch_shape. Reads, mirrors and
    rotates no more of the B-scan than the patch, and the margin around it that a rotation turns in. Errors as in
    `ReadOCT`.
    """

    def __init__(self, preprocessed_folder, patch_shape, open_cases=64):
        super().__init__()
        self.preprocessed_folder, self.patch_shape = preprocessed_folder, patch_shape
        self._open_case = functools.lru_cache(open_cases)(_open_case)

    def __call__(self, patch):
        row = patch.row
        volume, masks, _ = self._open_case(self.preprocessed_folder, row.vendor, row.image_name)
        box = tuple(
            slice(first, first + size) for first, size in zip((patch.top, patch.left), self.patch_shape, strict=True)
        )
        if patch.angle_degrees:
            source_map, box = rotation_map(volume.shape[1:], patch.angle_degrees, box)
        if patch.mirrored:  # columns are counted from the other end
            last = volume.shape[2]
            box = (box[0], slice(last - box[1].stop, last - box[1].start))
        image = cv2.merge([plane[box] for plane in _neighbours(volume, row.slice)])
        mask = np.array(_slices(masks, [row.slice])[0][box])
        if patch.mirrored:
            image, mask = cv2.flip(image, 1), cv2.flip(mask, 1)
        if patch.angle_degrees:
            image, mask = rotated(image, source_map), rotated(mask, source_map)
        return image, mask, patch.is_IRF, patch.is_SRF, patch.is_PED
