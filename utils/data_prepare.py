"""nutsml pipelines from the slice CSV to batches for Keras.

One iterator is one epoch. (seed, epoch) alone determine what it yields; no global random state is read or changed.

    python -m utils.data_prepare --preview [--set NAME=VALUE ...]

draws patches of train_data.csv, as training gets them, into OUTPUT_ROOT/patches.png and prints the class balance.
"""

import argparse
import itertools
import random
import re
from pathlib import Path, PurePath

import cv2
import numpy as np
import pandas as pd
from nutsflow import Chunk, CountValues, Drop, Flatten, Shuffle, nut_processor
from nutsml import BuildBatch, ReadPandas, Stratify

from utils.custom_nuts import CutPatch, SliceRow, volume_paths
from utils.errors import InputError, run_script
from utils.stream import B_SCANS_PER_BLOCK, SHUFFLE_B_SCANS, STRATIFY, PlanPatches, Prefetch

MAX_INVALID = 0.5  # share of a patch that may be invalid: beyond half, padding would be most of what it teaches
BATCHES_AHEAD = 4  # batches that wait for the training step: 8 MB each of 16 patches
MESSAGES = 10  # offenders named before the rest are only counted


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
        if not re.fullmatch(r"[^/\\\0]*", getattr(row, name)):
            return f"{name} is {getattr(row, name)!r}, expected a name without folders"
    if PurePath(row.root).is_absolute() or ".." in PurePath(row.root).parts:
        return f"root is {row.root!r}, expected a folder below DATA_ROOT"
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


def get_iterator_nuts(csv_path, preprocessed_folder, *, training, seed, epoch, **settings):
    """Iterator over one epoch's patch samples (image, mask, is_IRF, is_SRF, is_PED), shuffled.

    Reads the CSV and leaves the rest to `patch_samples`, which takes `settings`. Raises InputError at once where the
    CSV is unusable or volumes are missing, and later where one is damaged.
    """
    rows = read_csv_data(csv_path)
    check_volumes_exist(rows, preprocessed_folder)
    return patch_samples(rows, preprocessed_folder, training=training, seed=seed, epoch=epoch, **settings)


def patch_samples(
    rows,
    preprocessed_folder,
    *,
    training,
    seed,
    epoch,
    workers=0,
    shard=(0, 1),
    first_patch=0,
    patch_shape=(256, 128),
    patches_per_slice=12,
    patch_border=42,
    drop_healthy=0.75,
    max_invalid=MAX_INVALID,
    fluid_labels=(1, 2, 3),
):
    """Iterator over one epoch's patch samples of `rows` (a list of `SliceRow`).

    image is uint8 (*patch_shape, 3), slices z-1, z, z+1; mask is uint8 patch_shape, labels 0..3; is_* are 0 or 1.
    `fluid_labels` are IRF's, SRF's and PED's label in the masks. Each epoch draws B-scans anew: all of the rarest
    vendor's and, in expectation, as many of every other's. In training a B-scan stands for 2.25 images on average:
    itself, with probability 0.5 its mirror image, and with 0.5 a rotated copy of each. Validation (`training` False)
    is the same at every epoch, whatever its number, and nothing is augmented; but vendors and patches without fluid
    are thinned out as in training, so that its figures are about the same mixture of patches.
    `workers` processes prepare patches ahead (0: this one does, when asked), which leaves the sequence as it is. Hosts
    that share an epoch each take another index of `shard` (index, count): equally many samples, none in common.
    `first_patch` samples at the beginning are left out, which costs no more than deciding on them.
    """
    epoch = epoch if training else 0
    vendor = SliceRow._fields.index("vendor")
    b_scans = (
        rows
        >> Stratify(vendor, rows >> CountValues(vendor), rand=_stream(seed, epoch, STRATIFY))
        >> Shuffle(len(rows), _stream(seed, epoch, SHUFFLE_B_SCANS))
    )
    plan_patches = PlanPatches(
        workers,
        preprocessed_folder=preprocessed_folder,
        training=training,
        seed=seed,
        epoch=epoch,
        shard=shard,
        patch_shape=patch_shape,
        patches_per_slice=patches_per_slice,
        patch_border=patch_border,
        drop_healthy=drop_healthy,
        max_invalid=max_invalid,
        fluid_labels=fluid_labels,
    )
    blocks = enumerate(b_scans >> Chunk(B_SCANS_PER_BLOCK, list))
    return blocks >> plan_patches >> Flatten() >> Drop(first_patch) >> CutPatch(preprocessed_folder, patch_shape)


def get_data_iterator(
    csv_path,
    preprocessed_folder,
    *,
    training,
    seed,
    epoch,
    batch_size,
    first_batch=0,
    slice_mean=128.0,
    slice_sd=128.0,
    n_classes=4,
    **patch_settings,
):
    """Iterator over one epoch's batches (image, (mask, is_IRF, is_SRF, is_PED)), prepared `BATCHES_AHEAD`.

    The samples are those of `get_iterator_nuts`, which takes `patch_settings`. image is float32 (B, *patch_shape, 3),
    (grey value - slice_mean) / slice_sd; mask is uint8 (B, *patch_shape, n_classes), one-hot; is_* are uint8 (B, 1). B
    is `batch_size`; samples left over at the end are dropped in training and make a smaller batch in validation. An
    interrupted epoch goes on at `first_batch`, counted from 0. Raises InputError as `get_iterator_nuts`, and at the end
    of an epoch that had no batch.
    """
    patch_settings["first_patch"] = first_batch * batch_size
    samples = get_iterator_nuts(
        csv_path, preprocessed_folder, training=training, seed=seed, epoch=epoch, **patch_settings
    )
    normalised = (np.arange(256, dtype=np.float32) - np.float32(slice_mean)) / np.float32(slice_sd)
    build_batch = BuildBatch(batch_size, prefetch=0)
    # nutsml's own builders take 10 times as long, which adds up: this is the one stage that workers do not share.
    build_batch.builder = {**build_batch.builder, "grey_values": look_up_grey_values, "labels": one_hot_labels}
    build_batch.input(0, "grey_values", normalised).output(1, "labels", n_classes)
    for column in (2, 3, 4):
        build_batch.output(column, "vector", "uint8")
    keras_batches = _KerasBatches(csv_path, batch_size if training else 1, first_batch)
    return samples >> build_batch >> keras_batches >> Prefetch(BATCHES_AHEAD)


def look_up_grey_values(images, values):
    """`values` (256,) of the grey values in `images`, a sequence of n uint8 arrays (...): an array (n, ...)."""
    batch = np.stack(images)
    return cv2.LUT(batch.reshape(len(batch), -1), values).reshape(batch.shape)


def one_hot_labels(masks, n_classes):
    """One-hot encoding, uint8 (n, rows, columns, n_classes), of a sequence of n masks (rows, columns)."""
    batch = np.concatenate(masks)
    one_hot = cv2.merge([(batch == label).view(np.uint8) for label in range(n_classes)])
    return one_hot.reshape(len(masks), *masks[0].shape, n_classes)


@nut_processor
def _KerasBatches(batches, csv_path, smallest, n_before):
    """BuildBatch's [[image], [mask, ...]] as (image, (mask, ...)), without batches below the `smallest` size.

    Raises `InputError` where there is none and none of the epoch's came before, of which there were `n_before`.
    """
    n_patches, n_batches = 0, n_before
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


def _stream(seed, epoch, stage):
    """Random generator of one stage, independent of the others' and of other epochs'."""
    return random.Random(int(np.random.SeedSequence([seed, epoch, stage]).generate_state(1, np.uint64)[0]))


def main(argv):
    import config  # here alone: the functions above take what they need as arguments
    from utils.preview import PATCHES_A_VENDOR, class_balance, save_patch_sheet

    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description="Draw patches and print the class balance.")
    parser.add_argument("--preview", action="store_true", required=True)
    config.load(argv, parser)
    config.validate()
    folder, rows = config.preprocessed_folder(), read_csv_data(config.split_csv("train"))
    check_volumes_exist(rows, folder)
    patches = {}
    for vendor in sorted({row.vendor for row in rows}):
        of_vendor = [row for row in rows if row.vendor == vendor]
        epoch = patch_samples(of_vendor, folder, training=True, epoch=0, **config.patch_settings())
        patches[vendor] = list(itertools.islice(epoch, PATCHES_A_VENDOR))
    path = Path(config.OUTPUT_ROOT) / "patches.png"
    save_patch_sheet(path, patches)
    print(f"{class_balance(patches).to_string()}\npatches: {path}")


if __name__ == "__main__":
    run_script(main)
