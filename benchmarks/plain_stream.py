"""A patch stream as nutsml's documentation suggests it: the baseline of benchmarks/patch_stream.py.

The tests use it as an independent implementation of the method. Whole B-scans are TIFF files. Every image is mirrored
and rotated as a whole (scikit-image). All patches are cut out; those without fluid are dropped at the end.
"""

import random
from pathlib import Path

import numpy as np
import skimage.io
from nutsflow import CountValues, FilterFalse, Map, MapCol, Shuffle, nut_processor
from nutsml import AugmentImage, BuildBatch, ReadImage, Stratify

from utils.custom_nuts import ReadOCT

KINDS = ("image", "mask", "roi")


def write_tiff_slices(rows, preprocessed_folder, tiff_folder):
    """Write image (three slices as channels), mask and ROI of each of `rows` as TIFF files."""
    for row, planes in zip(rows, rows >> ReadOCT(preprocessed_folder), strict=True):
        for kind, plane in zip(KINDS, planes, strict=True):
            path = _tiff_path(tiff_folder, kind, row)
            path.parent.mkdir(parents=True, exist_ok=True)
            skimage.io.imsave(path, plane, check_contrast=False)


def plain_samples(rows, tiff_folder, seed, patch_shape=(256, 128), patches_per_slice=12, drop_healthy=0.75):
    """Iterator over an epoch's samples (image, mask, is_IRF, is_SRF, is_PED) as `get_iterator_nuts` describes them."""
    rand, rng = random.Random(seed), np.random.default_rng(seed)
    augment = AugmentImage((0, 1, 2), rand).by("identical", 1.0).by("fliplr", 0.5)
    rotate = AugmentImage((0, 1, 2), rand).by("identical", 1.0).by("rotate", 0.5, [0, 10])
    return (
        rows
        >> Stratify(1, rows >> CountValues(1), rand)
        >> Shuffle(len(rows), rand)
        >> Map(lambda row: tuple(str(_tiff_path(tiff_folder, kind, row)) for kind in KINDS))
        >> ReadImage((0, 1, 2))
        >> augment
        >> rotate
        >> CutAllPatches(patch_shape, patches_per_slice, rng)
        >> FilterFalse(lambda sample: (sample[0][..., 1] == 0).mean() > 0.5)
        >> FilterFalse(lambda sample: not any(sample[2:]) and rng.random() < drop_healthy)
        >> Shuffle(256, rand)
    )


def plain_batches(samples, batch_size):
    """Batches of `plain_samples`' samples as nutsml's BuildBatch makes them."""
    build_batch = BuildBatch(batch_size, prefetch=1).input(0, "image", "float32").output(1, "one_hot", "uint8", 4)
    for column in (2, 3, 4):
        build_batch.output(column, "vector", "uint8")
    return samples >> MapCol(0, lambda image: (image - 128.0) / 128.0) >> build_batch


@nut_processor
def CutAllPatches(samples, patch_shape, n_patches, rng):
    """(image, mask, roi) to (image, mask, is_IRF, is_SRF, is_PED) of every patch."""
    half = np.array(patch_shape) // 2
    for image, mask, roi in samples:
        columns = [c for c in range(half[1], mask.shape[1] - half[1] + 1, 10) if roi[:, c].any()]
        columns = rng.permutation(columns)[:n_patches].astype(int)
        middles = [np.flatnonzero(roi[:, column])[[0, -1]].sum() // 2 for column in columns]
        centers = [(row + rng.integers(-10, 11), column) for row, column in zip(middles, columns, strict=True)]
        inside = np.argwhere(roi)
        centers += [tuple(inside[rng.integers(len(inside))]) for _ in range(round(0.2 * len(centers)))]
        for center in centers:
            top, left = np.clip(center, half, np.array(mask.shape) - half) - half
            patch = np.s_[top : top + patch_shape[0], left : left + patch_shape[1]]
            held = mask[patch][42:-42, 42:-42]
            yield image[patch], mask[patch], *(int((held == fluid).any()) for fluid in (1, 2, 3))


def _tiff_path(tiff_folder, kind, row):
    return Path(tiff_folder) / kind / f"{row.vendor}_{row.image_name}_{row.slice}.tif"
