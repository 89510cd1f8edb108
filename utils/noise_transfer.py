"""Patches with the noise and the grey values of another scanner, after SVDNA (Koch et al., MICCAI 2022).

The largest singular components of an image are its anatomy, the others its noise. A patch keeps its own anatomy and
takes the noise of a patch of the other scanner, then that one's distribution of grey values.
"""

import functools
from pathlib import Path

import cv2
import numpy as np
from threadpoolctl import ThreadpoolController

from utils.errors import InputError
from utils.preparation.preprocessing import histogram_matching_table
from utils.volumes.mhd import open_volume

RANKS = (20, 50)  # smallest and largest number of components that are anatomy
MAX_INVALID = 0.05  # a patch with a larger share of invalid pixels says little about noise


class OtherScans:
    """Random patches of the preprocessed volumes in `folders` (`utils.prepared`); they need no labels.

    Raises `InputError` where a folder has none.
    """

    def __init__(self, folders, open_cases=64):
        self._paths = []
        for folder in folders:
            found = sorted(Path(folder, "oct_imgs").glob("*.mhd"))
            if not found:
                raise InputError(f"{folder}/oct_imgs: no volume to take noise from; run prepare_data.py for it")
            self._paths += found
        self._open = functools.lru_cache(open_cases)(open_volume)

    def patch(self, shape, rng):
        """uint8 of `shape` (rows, columns) from a random place of a random B-scan; None where most of it is invalid.

        A B-scan that is smaller than that is mirrored.
        """
        volume, _ = self._open(self._paths[rng.integers(len(self._paths))])
        slice_ = volume[rng.integers(len(volume))]
        missing = np.maximum(np.subtract(shape, slice_.shape), 0)
        slice_ = np.pad(slice_, [(0, length) for length in missing], mode="symmetric")
        top, left = (rng.integers(have - want + 1) for have, want in zip(slice_.shape, shape, strict=True))
        patch = np.ascontiguousarray(slice_[top : top + shape[0], left : left + shape[1]])
        return patch if 1 - cv2.countNonZero(patch) / patch.size <= MAX_INVALID else None


def with_noise_of(image, other, rank):
    """`image` (uint8; rows, columns, channels) with the noise and grey values of `other` (uint8; rows, columns).

    `rank` is the number of singular components that are anatomy. 0 is invalid and stays so; all else is 1 to 255.
    """
    noise = _filled(other) - _anatomy(_filled(other), rank)
    histogram, result = _histogram(other), np.empty_like(image)
    for channel in range(image.shape[2]):
        plane = np.ascontiguousarray(image[..., channel])
        if channel and (plane == image[..., channel - 1]).all():  # a single B-scan is its own neighbour
            result[..., channel] = result[..., channel - 1]
            continue
        noisy = np.clip(np.rint(_anatomy(_filled(plane), rank) + noise), 1, 255).astype(np.uint8)
        noisy[plane == 0] = 0
        table = histogram_matching_table(_histogram(noisy), histogram)
        table[0] = 0
        result[..., channel] = cv2.LUT(noisy, table)
    return result


def _filled(plane):
    """`plane` as float32, with the mean of its valid pixels where it is invalid."""
    valid = plane > 0
    return np.where(valid, plane, cv2.mean(plane, valid.view(np.uint8))[0]).astype(np.float32)


def _anatomy(plane, rank):
    """The `rank` largest singular components of `plane` together, by the eigenvectors of its columns' products."""
    with _libraries().limit(limits=1):  # the training step uses all cores; several threads wait for each other
        _, vectors = np.linalg.eigh(plane.T @ plane)  # from the smallest eigenvalue to the largest
        largest = vectors[:, -rank:]
        return plane @ largest @ largest.T


@functools.cache
def _libraries():
    """What decides how many threads linear algebra takes."""
    return ThreadpoolController()


def _histogram(plane):
    """256 counts of the valid pixels."""
    counts = np.bincount(plane.ravel(), minlength=256)
    counts[0] = 0
    return counts
