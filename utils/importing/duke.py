"""The Matlab files of Duke's data set of diabetic macular edema (Chiu et al. 2015): B-scans that two readers graded."""

from functools import partial
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.importing.layouts import Found, Item
from utils.importing.pairs import files_below, matching
from utils.volumes.content import Content

_READERS = ("1", "2")


def find_duke(source, options, classes):
    """`Found` of the graded B-scans in Matlab files. Each `Item` is cut to the columns that were graded.

    The only class is "fluid". Raises `InputError` if ``--annotator`` does not choose a reader, or if a file is of
    another kind.
    """
    if options.annotator not in _READERS:
        raise InputError("--annotator: two readers graded each B-scan, expected 1 or 2, of manualFluid1 and -2")
    items, notes = [], []
    for (key, _), file in matching(files_below(source), options.images, "--images").items():
        path = Path(source, file)
        images, fluid, graded = _graded(path, options.annotator)
        for index in np.flatnonzero(graded.any(axis=0)):
            columns = np.flatnonzero(graded[:, index])
            part = slice(columns[0], columns[-1] + 1)
            notes.append(f"{file}: B-scan {index + 1} cut to columns {columns[0] + 1} to {columns[-1] + 1}, as graded")
            items.append(
                Item(
                    f"{'_'.join(key)}_{index + 1:02d}",
                    file.removesuffix(path.suffix),
                    (path,),
                    partial(Content, np.ascontiguousarray(images[:, part, index])[np.newaxis]),
                    partial(_fluid, np.ascontiguousarray(fluid[:, part, index])[np.newaxis]),
                )
            )
    if not items:
        raise InputError(f"{source}: none of the files like {options.images} holds a graded B-scan")
    return Found(items, classes, len(items), notes=(f"{notes[0]}; so are the others",))


def _graded(path, reader):
    """(images (rows, columns, slices), bool fluid of the same shape, bool (columns, slices) where it was graded)."""
    from scipy.io import loadmat

    names = ["images", f"manualFluid{reader}", f"manualLayers{reader}"]
    try:
        content = loadmat(path, variable_names=names)
        images, fluid, layers = (content[name] for name in names)
    except Exception as error:  # scipy raises exceptions of any kind for damaged files
        raise InputError(
            f"{path}: not a Matlab file with {', '.join(names)} ({type(error).__name__}: {error})"
        ) from error
    if images.ndim != 3 or images.shape != fluid.shape or images.shape[1:] != layers.shape[1:]:
        raise InputError(f"{path}: sizes {images.shape}, {fluid.shape} and {layers.shape}, expected those of one scan")
    return images, np.nan_to_num(fluid) > 0, (np.nan_to_num(layers) > 0).any(axis=0)


def _fluid(mask, shape):
    return ({"fluid": mask} if mask.any() else {}), {}
