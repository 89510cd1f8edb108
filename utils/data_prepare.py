"""nutsml pipelines from the slice CSV to batches for Keras.

One iterator is one epoch. (seed, epoch) alone determine what it yields; no global random state is read or changed.
"""

import random
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
from nutsflow import CountValues, FilterFalse, MapCol, Shuffle, nut_processor
from nutsml import AugmentImage, BuildBatch, ReadPandas, Stratify, TransformImage

from utils.custom_nuts import ImagePatchesByMaskRetouch_resampled, ReadOCT, rotate_nearest, volume_paths
from utils.errors import InputError

SliceRow = namedtuple("SliceRow", "image_name vendor root slice is_IRF is_SRF is_PED")  # the CSV's columns, in order
ROTATION_DEGREES = [0, 10]  # smallest and largest rotation of an augmented B-scan
SHUFFLED_PATCHES = 256  # patches in the shuffle buffer: about 16 B-scans', 33 MB
MESSAGES = 10  # offenders named before the rest are only counted

# What each random stream of an epoch is for. The numbers belong to what (seed, epoch) stand for: append, never reorder.
STRATIFY, SHUFFLE_SLICES, MIRROR, ROTATE, SAMPLE_PATCHES, DROP, SHUFFLE_PATCHES = range(7)


def read_csv_data(path):
    """Rows of a slice CSV (slice_gt.csv or a split of it) as a list of `SliceRow`, in the file's order.

    slice and is_* are int, the rest str exactly as written: a case may be called NA or 007. Further columns are
    ignored. Raises InputError where the file or a column is missing, a value is unusable, a row was lost in reading, or
    there is none.
    """
    path = Path(path)
    if path.suffix.lower() != ".csv":
        raise ValueError(f"expected a .csv file, got {path}")  # ReadPandas would unpickle anything else
    try:
        with open(path, encoding="utf-8") as file:
            expected_rows = sum(bool(line.strip()) for line in file) - 1
        # Every cell as text and none as missing: pandas reads NA as missing and 007 as 7 otherwise.
        reader = ReadPandas(str(path), colnames=list(SliceRow._fields), dropnan=False, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; run prepare_data.py first") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a CSV table in UTF-8 ({reason}); run prepare_data.py again") from error
    if not isinstance(reader.dataframe.index, pd.RangeIndex):  # pandas made the first column a table of row names
        raise InputError(f"{path}: rows have more values than the header has names; run prepare_data.py again")
    missing = [name for name in SliceRow._fields if name not in reader.dataframe.columns]
    if missing:
        raise InputError(
            f"{path}: lacks the column {', '.join(missing)}; found {', '.join(map(str, reader.dataframe.columns))}"
        )
    rows = list(reader)
    if len(rows) != expected_rows or not rows:
        raise InputError(
            f"{path}: read {len(rows)} rows of {expected_rows}, expected all and at least one; "
            "look for stray quotes and line breaks, or run prepare_data.py again"
        )
    _raise_all(f"{path}: row {number}: {fault}" for number, row in enumerate(rows, 1) if (fault := _fault(row)))
    return [SliceRow(*row[:3], *map(int, row[3:])) for row in rows]


def _fault(row):
    """What is wrong with a row of text, or None."""
    for name in ("image_name", "vendor"):
        if not getattr(row, name):
            return f"{name} is empty"
    if not str(row.slice).isdecimal():
        return f"slice is {row.slice!r}, expected 0, 1, 2, ..."
    for name in ("is_IRF", "is_SRF", "is_PED"):
        if getattr(row, name) not in ("0", "1"):
            return f"{name} is {getattr(row, name)!r}, expected 0 or 1"
    return None


def check_volumes_exist(rows, preprocessed_folder):
    """Raise InputError naming the preprocessed volumes that `rows` ask for and that are not there."""
    cases = dict.fromkeys((row.vendor, row.image_name) for row in rows)
    paths = (path for case in cases for path in volume_paths(preprocessed_folder, *case))
    _raise_all(f"{path}: no such file; run prepare_data.py" for path in paths if not path.is_file())


def _raise_all(messages):
    messages = list(messages)
    if len(messages) > MESSAGES:
        messages[MESSAGES:] = [f"and {len(messages) - MESSAGES} more"]
    if messages:
        raise InputError(*messages)


def drop_patch(sample, probability, rng):
    """Whether to drop a patch sample (image, mask, is_IRF, is_SRF, is_PED): without fluid, with `probability`."""
    return not any(sample[2:]) and rng.random() < probability


def get_iterator_nuts(
    csv_path,
    preprocessed_folder,
    *,
    training,
    seed,
    epoch,
    patch_shape=(256, 128),
    patches_per_slice=12,
    patch_border=42,
    drop_healthy=0.75,
    fluid_labels=(1, 2, 3),
):
    """Iterator over one epoch's patch samples (image, mask, is_IRF, is_SRF, is_PED), shuffled.

    image is uint8 (*patch_shape, 3), slices z-1, z, z+1; mask is uint8 patch_shape, labels 0..3; is_* are 0 or 1.
    `fluid_labels` are IRF's, SRF's and PED's label in the masks. Each epoch draws B-scans anew: all of the rarest
    vendor's and, in expectation, as many of every other's. In training a B-scan stands for 2.25 images on average:
    itself, with probability 0.5 its mirror image, and with 0.5 a rotated copy of each. Validation (`training` False)
    is the same at every epoch, whatever its number, and nothing is augmented; but vendors and patches without fluid
    are thinned out as in training, so that its figures are about the same mixture of patches.
    Raises InputError at once where the CSV is unusable or volumes are missing.
    """
    rows = read_csv_data(csv_path)
    check_volumes_exist(rows, preprocessed_folder)
    epoch = epoch if training else 0
    vendor = SliceRow._fields.index("vendor")
    b_scans = (
        rows
        >> Stratify(vendor, rows >> CountValues(vendor), rand=_stream(seed, epoch, STRATIFY))
        >> Shuffle(len(rows), _stream(seed, epoch, SHUFFLE_SLICES))
        >> ReadOCT(preprocessed_folder)
    )
    if training:
        mirror, rotate = _augmentations(_stream(seed, epoch, MIRROR), _stream(seed, epoch, ROTATE))
        b_scans = b_scans >> mirror >> rotate
    patch_rng = np.random.default_rng([seed, epoch, SAMPLE_PATCHES])
    drop_rng = _stream(seed, epoch, DROP)
    return (
        b_scans
        >> ImagePatchesByMaskRetouch_resampled(
            patch_shape, patches_per_slice, patch_rng, patch_border=patch_border, fluid_labels=fluid_labels
        )
        >> FilterFalse(lambda sample: drop_patch(sample, drop_healthy, drop_rng))
        >> Shuffle(SHUFFLED_PATCHES, _stream(seed, epoch, SHUFFLE_PATCHES))
    )


def get_data_iterator(
    csv_path,
    preprocessed_folder,
    *,
    training,
    seed,
    epoch,
    batch_size,
    slice_mean=128.0,
    slice_sd=128.0,
    n_classes=4,
    **patch_settings,
):
    """Iterator over one epoch's batches (image, (mask, is_IRF, is_SRF, is_PED)).

    The samples are those of `get_iterator_nuts`, which takes `patch_settings`. image is float32 (B, *patch_shape, 3),
    (grey value - slice_mean) / slice_sd; mask is uint8 (B, *patch_shape, n_classes), one-hot; is_* are uint8 (B, 1). B
    is `batch_size`; samples left over at the end are dropped in training and make a smaller batch in validation. Raises
    InputError as `get_iterator_nuts`, and at the end of an epoch that had no batch.
    """
    samples = get_iterator_nuts(
        csv_path, preprocessed_folder, training=training, seed=seed, epoch=epoch, **patch_settings
    )
    # No prefetching here: an error in nutsflow's prefetching thread leaves the consumer waiting for ever. And 'tensor'
    # rather than 'image', which takes a detour through float64 and eight times as long.
    build_batch = (
        BuildBatch(batch_size, prefetch=0)
        .input(0, "tensor", "float32")
        .output(1, "one_hot", "uint8", n_classes)
        .output(2, "vector", "uint8")
        .output(3, "vector", "uint8")
        .output(4, "vector", "uint8")
    )
    return (
        samples
        >> MapCol(0, lambda image: (image.astype(np.float32) - np.float32(slice_mean)) / np.float32(slice_sd))
        >> build_batch
        >> _KerasBatches(csv_path, smallest=batch_size if training else 1)
    )


@nut_processor
def _KerasBatches(batches, csv_path, smallest):
    """BuildBatch's [[image], [mask, ...]] as (image, (mask, ...)), without batches below the `smallest` size."""
    n_patches = n_batches = 0
    for (image,), targets in batches:
        n_patches += len(image)
        if len(image) >= smallest:
            n_batches += 1
            yield image, tuple(targets)
    if not n_batches:
        raise InputError(
            f"{csv_path}: its B-scans gave {n_patches} patches, expected at least {smallest} for a batch; "
            "use more cases or a smaller BATCH_SIZE, and see that their ROI masks are not empty"
        )


def _augmentations(mirror_rand, rotate_rand):
    """Nuts that yield (image, mask, roi) samples untouched, and with probability 0.5 mirrored or rotated as well."""
    TransformImage.register("rotate_nearest", rotate_nearest)
    mirror = AugmentImage((0, 1, 2), mirror_rand).by("identical", 1.0).by("fliplr", 0.5)
    rotate = AugmentImage((0, 1, 2), rotate_rand).by("identical", 1.0).by("rotate_nearest", 0.5, ROTATION_DEGREES)
    return mirror, rotate


def _stream(seed, epoch, stage):
    """Random generator of one stage, independent of the others' and of other epochs'."""
    return random.Random(int(np.random.SeedSequence([seed, epoch, stage]).generate_state(1, np.uint64)[0]))
