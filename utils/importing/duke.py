"""The Matlab files of Duke's data set of diabetic macular edema (Chiu et al. 2015). Two readers graded some B-scans."""

from functools import partial
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.importing.class_table import IGNORE, ClassTable
from utils.importing.layouts import Found, Item
from utils.importing.pairs import files_below, matching
from utils.volumes.content import Content

_READERS = ("1", "2")
_NOT_GRADED = "not graded"  # the class of B-scans and columns that the reader left out


def find_duke(source, options, classes):
    """`Found` of the volumes in Matlab files. B-scans and columns that were not graded are to be ignored.

    The only class to state is "fluid". Raises `InputError` if ``--annotator`` does not choose a reader. Reading an
    `Item` raises it if its file is of another kind, or if this reader graded nothing in it.
    """
    if options.annotator not in _READERS:
        raise InputError("--annotator: two readers graded each B-scan, expected 1 or 2, of manualFluid1 and -2")
    items = []
    for (key, _), file in matching(files_below(source), options.images, "--images").items():
        path = Path(source, file)
        read_image, read_masks = partial(_read_image, path), partial(_read_masks, path, options.annotator)
        items.append(Item("_".join(key) or path.stem, file.removesuffix(path.suffix), (path,), read_image, read_masks))
    return Found(items, ClassTable({**classes.targets, _NOT_GRADED: IGNORE}), len(items))


def _read_image(path):
    (images,) = _variables(path, "images")
    if images.ndim != 3:
        raise InputError(f"{path}: images of size {images.shape}, expected rows, columns and B-scans")
    return Content(np.moveaxis(images, -1, 0))


def _read_masks(path, reader, shape):
    fluid, layers = (
        np.moveaxis(np.nan_to_num(array), -1, 0) > 0
        for array in _variables(path, f"manualFluid{reader}", f"manualLayers{reader}")
    )
    graded = layers.any(axis=1, keepdims=True)  # in a column that was graded, every layer has its row
    if fluid.shape != shape or graded.shape != (shape[0], 1, shape[2]):
        raise InputError(f"{path}: sizes {shape}, {fluid.shape} and {layers.shape}, expected those of one scan")
    if not graded.any():
        raise InputError(f"{path}: reader {reader} graded no B-scan, expected some; leave it out of --images")
    masks = {"fluid": fluid, _NOT_GRADED: ~(graded | fluid)}
    return {name: mask for name, mask in masks.items() if mask.any()}, {}


def _variables(path, *names):
    """Arrays of these names in a Matlab file. Raises `InputError` if it cannot be read or lacks one."""
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=names)
        return [content[name] for name in names]
    except Exception as error:  # scipy raises exceptions of any kind for damaged files
        raise InputError(
            f"{path}: not a Matlab file with {', '.join(names)} ({type(error).__name__}: {error})"
        ) from error
