"""Nuts that turn a row of the slice CSV into patches of its B-scan.

A sample is a tuple: (image, mask, roi) for a B-scan, (image, mask, is_IRF, is_SRF, is_PED) for a patch. There are two
ways from one to the other, which give the same patches. `ImagePatchesByMaskRetouch_resampled` cuts out every patch of a
B-scan, as nutsml's own nuts do: use it in a pipeline of your own. `PlanRetouchPatches` only decides which patches there
are (`Patch`); `CutPatch` later cuts out those that are kept. Training takes the second way, which is far faster.

A function that draws at random takes its generator as `rnd`, a `numpy.random.Generator`.
"""

import functools
import os
from collections import namedtuple

import cv2
import numpy as np
from nutsflow import NutFunction, nut_processor

from utils.errors import InputError
from utils.labels import CLASS_NAMES, FLUIDS, NOT_JUDGED, unlabelled_value
from utils.patches.augmentation import draw_scale, resized, rotated, rotation_map, with_other_grey_values
from utils.preparation.prepared import VOLUME_KINDS, outlined_in, slices_seen, volume_paths
from utils.volumes.mhd import open_volume

COLUMN_STEP = 10  # pixels between columns that patches are centred on
ROW_JITTER = 10  # pixels, largest distance of a patch's centre from the middle of the ROI, up or down
ANYWHERE_SHARE = 0.2  # patches from anywhere in the ROI, as a share of those along its middle

# A patch that is not cut out yet: the B-scan, whether it is mirrored and then by how much rotated, the patch's first
# row and column in what that gives, the share of its pixels that are invalid, the seed of further variations (None:
# there are none), and its labels.
Patch = namedtuple("Patch", "row mirrored angle_degrees top left invalid_share seed is_IRF is_SRF is_PED")


# ---- Rows to B-scans -----------------------------------------------------------------------------------------------
class ReadOCT(NutFunction):
    """rows >> ReadOCT(preprocessed_folder): rows of the slice CSV to samples (image, mask, roi).

    image is uint8 (rows, columns, 3), the slices of `slices_seen`; mask is uint8 (rows, columns), labels 0..3, or as
    `utils.labels` says where the class is not known; roi is uint8 (rows, columns), 0 or 1. B-scans smaller than
    `minimum_shape` (rows, columns) are padded at the bottom and the right with 0: invalid, background, outside of the
    ROI. Volumes are memory-mapped, so that a row costs a few slices and not three volumes; the `open_cases` cases used
    last stay mapped. Raises InputError where a volume is missing or damaged, volumes do not match one another, lack the
    slice, or a mask holds other labels.
    """

    def __init__(self, preprocessed_folder, minimum_shape=(1, 1), neighbours=True, open_cases=64):
        super().__init__()
        self.preprocessed_folder, self.minimum_shape = preprocessed_folder, minimum_shape
        self.neighbours = neighbours
        self._open_case = functools.lru_cache(open_cases)(_open_case)

    def __call__(self, row):
        volume, masks, rois = self._open_case(*_case_of(row, self.preprocessed_folder))
        if not 0 <= row.slice < len(volume):
            raise InputError(
                f"{volume.filename}: the CSV asks for slice {row.slice}, the volume has slices 0 to {len(volume) - 1}; "
                "run prepare_data.py again"
            )
        # Copies: a sample that waits in a buffer must not depend on the file.
        mask, roi = (np.array(plane) for plane in (_mask_slice(masks, row.slice), *_slices(rois, [row.slice])))
        others = mask[(mask >= len(CLASS_NAMES)) & (mask != NOT_JUDGED)]
        if others.size:
            raise InputError(
                f"{masks.filename}: slice {row.slice} holds the label {others.max()}, expected at most "
                f"{len(CLASS_NAMES) - 1}; run prepare_data.py again"
            )
        seen = slices_seen(row.slice, len(volume), self.neighbours)
        planes = (*_slices(volume, seen), mask, roi)
        *image, mask, roi = (padded(plane, self.minimum_shape) for plane in planes)
        return cv2.merge(image), _with_what_is_allowed(mask, row), roi


def _case_of(row, preprocessed_folder):
    """Arguments of `_open_case` for the case of a `SliceRow`."""
    return row.folder or preprocessed_folder, row.vendor, row.image_name, bool(outlined_in(row))


def _open_case(preprocessed_folder, vendor, image_name, is_outlined):
    """Memory maps (slices, rows, columns; uint8) of a case's volumes; InputError where one is not as expected.

    Where nothing was outlined the mask is an array of zeros.
    """
    paths = volume_paths(preprocessed_folder, vendor, image_name)
    if not is_outlined:
        volume, roi = _open_all([paths[0], paths[2]])
        return volume, np.broadcast_to(np.uint8(0), volume.shape), roi
    return _open_all(paths)


def _open_all(paths):
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


def padded(plane, minimum_shape):
    """`plane` (rows, columns), padded with 0 at the bottom and the right to at least `minimum_shape`."""
    missing = np.maximum(np.subtract(minimum_shape, plane.shape), 0)
    return np.pad(plane, [(0, rows) for rows in missing]) if missing.any() else plane


def _mask_slice(masks, index):
    """Slice of a mask volume of `_open_case`; the zeros of an unlabelled one have no file."""
    return _slices(masks, [index])[0] if isinstance(masks, np.memmap) else masks[index]


def _with_what_is_allowed(mask, row):
    """`mask` (uint8) of the B-scan of `row`, with what a pixel can be where nothing is labelled and not every fluid
    was outlined."""
    value = unlabelled_value(outlined_in(row))
    return np.where(mask == 0, np.uint8(value), mask) if value else mask


def _slices(volume, indices):
    """Slices of a memory map, after a look at its file: to read beyond the end of one would kill the process."""
    try:
        found = os.stat(volume.filename).st_size
    except OSError as error:
        raise InputError(f"{volume.filename}: {error.strerror}; run prepare_data.py again") from error
    if found < volume.nbytes:
        raise InputError(f"{volume.filename}: {found} bytes, expected {volume.nbytes}; run prepare_data.py again")
    return [volume[index] for index in indices]


# ---- Patch centres -------------------------------------------------------------------------------------------------
def sample_oct_patch_centers(roimask, pshape, npos, pos=255, neg=0, rnd=None):
    """Centres of up to `npos` patches along the middle of the region of interest (ROI).

    `roimask` (rows, columns) is `pos` inside of the ROI and `neg` outside; `pshape` is the patch's (rows, columns);
    `rnd` a `numpy.random.Generator`, None for a fresh one. Returns int (n, 3) of (row, column, label), as nutsml's
    samplers do; the label of these positive centres is 1. A patch covers rows row - pshape[0] // 2 onwards, columns
    alike.

    Candidates are the columns every `COLUMN_STEP` pixels from the first where a whole patch fits to the last, if they
    cross the ROI. They are drawn without replacement, so that narrow scans give fewer. A patch's row is the middle of
    the ROI in its column, jittered by up to `ROW_JITTER`, then moved so that the patch fits. Raises `ValueError` where
    `roimask` holds other values or is smaller than a patch.
    """
    inside = _inside(roimask, pos, neg)
    _check_holds_patch(inside.shape, pshape)
    centers = _centers_along_middle(inside, pshape, npos, _generator(rnd))
    return np.column_stack([centers, np.ones(len(centers), int)])


def a_fifth(npos):
    """How many patches come from anywhere in the ROI beside `npos` along its middle."""
    return round(ANYWHERE_SHARE * npos)


def _generator(rnd):
    return np.random.default_rng() if rnd is None else rnd


def _inside(roimask, pos, neg):
    """Where `roimask` is `pos`, as uint8 0 or 1; `ValueError` where it is neither `pos` nor `neg`."""
    inside = (roimask == pos).view(np.uint8)
    if cv2.countNonZero(inside) + np.count_nonzero(roimask == neg) != roimask.size:
        found = ", ".join(map(str, np.unique(roimask)[:4]))
        raise ValueError(f"roimask holds the values {found}, expected pos={pos} inside and neg={neg} outside")
    return inside


def _check_holds_patch(shape, pshape):
    if shape[0] < pshape[0] or shape[1] < pshape[1]:
        raise ValueError(
            f"a B-scan of {shape[0]} x {shape[1]} pixels (rows x columns) holds no patch of {pshape[0]} x {pshape[1]}"
        )


def _centers_along_middle(inside, pshape, npos, rng):
    rows, columns = inside.shape
    patch_columns = pshape[1]
    candidates = np.arange(patch_columns // 2, columns - patch_columns + patch_columns // 2 + 1, COLUMN_STEP)
    crossings = inside[:, candidates] != 0
    candidates, crossings = candidates[crossings.any(axis=0)], crossings[:, crossings.any(axis=0)]
    first = crossings.argmax(axis=0)
    last = rows - 1 - crossings[::-1].argmax(axis=0)
    drawn = rng.permutation(len(candidates))[:npos]
    jitter = rng.integers(-ROW_JITTER, ROW_JITTER, size=len(drawn), endpoint=True)
    middle_rows = (first + last)[drawn] // 2 + jitter
    return _moved_to_fit(np.stack([middle_rows, candidates[drawn]], axis=1), inside.shape, pshape)


def _centers_anywhere(inside, pshape, nneg, rng):
    """Centres drawn evenly from the ROI's pixels, then moved so that the patch fits; none for an empty ROI."""
    # The n-th pixel of the ROI by the rows' totals: listing every pixel takes a hundred times as long.
    up_to_row = np.cumsum(cv2.reduce(inside, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S))
    ranks = rng.integers(up_to_row[-1], size=nneg) if up_to_row[-1] else []
    centers = np.empty((len(ranks), 2), int)
    for index, rank in enumerate(ranks):
        row = np.searchsorted(up_to_row, rank, side="right")
        centers[index] = row, np.flatnonzero(inside[row])[rank - up_to_row[row]]  # counted from the row's end
    return _moved_to_fit(centers, inside.shape, pshape)


def _moved_to_fit(centers, image_shape, pshape):
    half = np.array(pshape) // 2
    return np.clip(centers, half, np.array(image_shape) - pshape + half)


# ---- Patches -------------------------------------------------------------------------------------------------------
def decided_patches(mask, inside, pshape, npos, nneg, rng, patch_border):
    """Yield (window, labels) of each patch of a B-scan: slices of rows and columns, and [is_IRF, is_SRF, is_PED].

    `mask` (rows, columns) holds labels, `inside` (uint8) is 1 in the ROI. `npos` patches lie along the ROI's middle,
    then come `nneg` from anywhere in it; `nneg` is a number, or a function of how many lie along the middle. is_* are
    those of `labels_inside`, `patch_border` pixels in: the network's output lacks the border. Raises `ValueError` where
    the B-scan is smaller than a patch, or the border leaves nothing.
    """
    patch_rows, patch_columns = pshape
    _check_holds_patch(mask.shape, pshape)
    if 2 * patch_border >= min(pshape):
        raise ValueError(f"patch_border must be less than half of {pshape}, got {patch_border}")
    along_middle = _centers_along_middle(inside, pshape, npos, rng)
    nneg = nneg(len(along_middle)) if callable(nneg) else nneg
    anywhere = _centers_anywhere(inside, pshape, nneg, rng)
    for row, column in np.concatenate([along_middle, anywhere]).tolist():
        top, left = row - patch_rows // 2, column - patch_columns // 2
        window = (slice(top, top + patch_rows), slice(left, left + patch_columns))
        yield window, labels_inside(mask[window], patch_border)


def labels_inside(mask, patch_border):
    """[is_IRF, is_SRF, is_PED] of a patch's `mask` (rows, columns), as far as it lies `patch_border` pixels inside.

    1 where it holds the fluid, else 255 where some pixel may be that fluid (`utils.labels`), else 0.
    """
    inner = mask[patch_border : mask.shape[0] - patch_border, patch_border : mask.shape[1] - patch_border]
    held = [int((inner == label).any()) for label in FLUIDS.values()]
    if inner.max() < 128:
        return held
    possible = np.bitwise_or.reduce(inner[inner >= 128])
    return [
        is_held or NOT_JUDGED * int(possible >> label & 1) for is_held, label in zip(held, FLUIDS.values(), strict=True)
    ]


def sample_patches_entropy_mask(image, mask, roimask, pshape, npos, nneg, pos=255, neg=0, rnd=None, patch_border=0):
    """Yield (image patch, mask patch, is_IRF, is_SRF, is_PED) of a B-scan.

    `image` is (rows, columns[, channels]), `mask` (rows, columns) with labels 0 to 3. `npos` patches are centred by
    `sample_oct_patch_centers`, whose arguments `roimask`, `pshape`, `pos`, `neg` and `rnd` are; `nneg` more come from
    anywhere in the region of interest, where the local entropy is high. The other arguments, and what is raised, are
    those of `decided_patches`. Patches are views of the arrays, not copies.
    """
    inside, rng = _inside(roimask, pos, neg), _generator(rnd)
    for window, labels in decided_patches(mask, inside, pshape, npos, nneg, rng, patch_border):
        yield image[window], mask[window], *labels


sample_patches_retouch_mask = sample_patches_entropy_mask  # the name by which the original's nut calls it


@nut_processor
def ImagePatchesByMaskRetouch_resampled(
    samples, imagecol, maskcol, roicol, pshape, npos, nneg=a_fifth, pos=255, neg=0, rnd=None, **settings
):
    """samples >> ImagePatchesByMaskRetouch_resampled(imagecol, maskcol, roicol, pshape, npos): B-scans to patches.

    For nutsml pipelines: `imagecol`, `maskcol` and `roicol` are the columns of a sample that hold the image, its mask
    and its ROI. Each sample becomes one sample a patch, in which patches stand for the image and the mask, the ROI is
    gone, and is_IRF, is_SRF and is_PED come last. The other arguments are those of `sample_patches_retouch_mask`.
    """
    rng = _generator(rnd)
    for sample in samples:
        image, mask, roimask = (sample[column] for column in (imagecol, maskcol, roicol))
        patches = sample_patches_retouch_mask(image, mask, roimask, pshape, npos, nneg, pos, neg, rng, **settings)
        for image_patch, mask_patch, *labels in patches:
            replaced = list(sample)
            replaced[imagecol], replaced[maskcol] = image_patch, mask_patch
            del replaced[roicol]
            yield (*replaced, *labels)


@nut_processor
def PlanRetouchPatches(samples, settings, rnd):
    """samples >> PlanRetouchPatches(settings, rnd): the same patches, decided on and not cut out.

    Takes what `MirrorAndRotate` yields, with an ROI of 0 and 1, and `PatchSettings`; yields a
    `Patch` for each that `ImagePatchesByMaskRetouch_resampled` cuts out with the same generator `rnd`.
    """
    n_pixels = settings.shape[0] * settings.shape[1]
    for row, mirrored, angle_degrees, middle_slice, mask, roi in samples:
        decided = decided_patches(mask, roi, settings.shape, settings.per_slice, a_fifth, rnd, settings.patch_border)
        for window, labels in decided:
            invalid_share = 1 - cv2.countNonZero(middle_slice[window]) / n_pixels
            top, left = (along.start for along in window)
            yield Patch(row, mirrored, angle_degrees, top, left, invalid_share, None, *labels)


def drop_patch(sample, probability, rng):
    """Whether to drop a patch sample, whose last three values are is_IRF, is_SRF, is_PED: where none is 1, with
    `probability`."""
    return 1 not in sample[-3:] and rng.random() < probability


class CutPatch(NutFunction):
    """patches >> CutPatch(preprocessed_folder, settings): `Patch` to (image, mask, is_IRF, is_SRF, is_PED).

    `settings` are `PatchSettings`. image is uint8 (rows, columns, 3) of the patch's size, the
    slices of `slices_seen`; mask is uint8 (rows, columns), with values as there. Reads, mirrors and rotates no more
    of the B-scan than the patch, and the margin around it that a rotation turns in. B-scans smaller than a patch are
    padded as in `ReadOCT`, and errors are those of `ReadOCT`. A patch with a seed is scaled and changed in its grey
    values by it.
    """

    def __init__(self, preprocessed_folder, settings, open_cases=64):
        super().__init__()
        self.preprocessed_folder, self.settings = preprocessed_folder, settings
        self._open_case = functools.lru_cache(open_cases)(_open_case)

    def __call__(self, patch):
        row, shape = patch.row, self.settings.shape
        volume, masks, _ = self._open_case(*_case_of(row, self.preprocessed_folder))
        rows, columns = np.maximum(volume.shape[1:], shape).tolist()
        box = tuple(slice(first, first + size) for first, size in zip((patch.top, patch.left), shape, strict=True))
        rng = None if patch.seed is None else np.random.default_rng(patch.seed)
        if rng is not None:
            scale = draw_scale(rng, self.settings.augmentation)
            box = tuple(map(_scaled, box, scale, (rows, columns)))
        if patch.angle_degrees:
            source_map, box = rotation_map((rows, columns), patch.angle_degrees, box)
        if patch.mirrored:  # columns are counted from the other end
            box = (box[0], slice(columns - box[1].stop, columns - box[1].start))
        seen = slices_seen(row.slice, len(volume), self.settings.neighbours)
        planes = (*_slices(volume, seen), _mask_slice(masks, row.slice))
        *image, mask = (np.array(padded(plane, shape)[box]) for plane in planes)
        image = cv2.merge(image)
        if patch.mirrored:
            image, mask = cv2.flip(image, 1), cv2.flip(mask, 1)
        if patch.angle_degrees:
            image, mask = rotated(image, source_map), rotated(mask, source_map)
        labels = [patch.is_IRF, patch.is_SRF, patch.is_PED]
        is_resized = mask.shape != tuple(shape)
        if is_resized:
            image, mask = resized(image, mask, shape)
        mask = _with_what_is_allowed(mask, row)  # after all that turns or pads in something
        if is_resized:
            labels = labels_inside(mask, self.settings.patch_border)
        if rng is not None:
            image = with_other_grey_values(image, rng, self.settings.augmentation.grey)
        return image, mask, *labels


def _scaled(along, factor, length):
    """The slice `along`, of `factor` times its size about the same middle, moved and cut so that `length` holds it."""
    size = min(max(1, round((along.stop - along.start) * factor)), length)
    first = (along.start + along.stop - size) // 2
    first = min(max(first, 0), length - size)
    return slice(first, first + size)
