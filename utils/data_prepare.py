"""nutsml pipelines from the slice CSV to batches for Keras.

One iterator is one epoch. Only (seed, epoch) determine what it yields. No global random state is read or changed.

    python -m utils.data_prepare --preview [--set NAME=VALUE ...]

draws patches of train_data.csv into OUTPUT_ROOT/patches.png, as training gets them, and prints the class balance.
"""

import argparse
import itertools
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from nutsflow import Chunk, CountValues, Drop, Flatten, Shuffle, nut_processor
from nutsml import BuildBatch, Stratify

from utils.custom_nuts import CutPatch
from utils.errors import InputError, run_script
from utils.labels import FLUIDS, allowed_tables
from utils.patches.patch_stream import B_SCANS_PER_BLOCK, SHUFFLE_B_SCANS, STRATIFY, PlanPatches, Prefetch
from utils.preparation.prepared import SliceRow, check_volumes_exist, read_outlined_rows, volume_paths
from utils.volumes.mhd import open_volume

BATCHES_AHEAD = 4  # batches prepared ahead of the training step; one of 16 patches takes 8 MB


def patch_samples(rows, settings, *, training, epoch, first_patch=0, repeated=False):
    """Iterator over one epoch's patch samples (image, mask, is_IRF, is_SRF, is_PED) of `rows`, a list of `SliceRow`.

    `settings` are `BatchSettings`. image is uint8 (rows, columns, 3) of the patch's size, slices
    z-1, z, z+1. mask is uint8 (rows, columns), labels 0..3, or as `utils.labels` says where the class is not known.
    is_* are 0, 1, or 255 where that is not known.

    - Each epoch draws B-scans anew: all of the rarest vendor's and, in expectation, as many of every other's.
    - In training a B-scan gives 2.25 images on average: itself, with probability 0.5 its mirror image, and with 0.5 a
      rotated copy of each.
    - Validation (`training` False) is the same at every epoch, and nothing is augmented. Vendors and patches without
      fluid are thinned out as in training, so that both see the same mixture of patches.
    - The first `first_patch` samples are left out. That costs only the time to decide on them.
    - In training, the data sets in ``settings.mixed`` give their shares of the B-scans, and ``settings.oversampling``
      draws those that hold a rare fluid more often.
    - `repeated` draws B-scans again and again, without end, unless the first draw gives no patch at all.
    """
    epoch = epoch if training else 0
    mixed = [(mixed_rows(root), root.share) for root in settings.mixed] if training else []
    plan = PlanPatches(settings, training=training, epoch=epoch)
    numbers = itertools.count()  # of the epoch's blocks

    def planned():
        has_patches = False
        for draw in itertools.count():
            b_scans = draw_b_scans(rows, mixed, settings.seed, epoch, draw, settings.oversampling * training)
            blocks = b_scans >> Chunk(B_SCANS_PER_BLOCK, list)
            patches = zip(numbers, blocks, strict=False) >> plan >> Flatten()
            first = next(patches, None)
            if first is not None:
                has_patches = True
                yield from itertools.chain([first], patches)
            if not (repeated and has_patches):
                return

    return planned() >> Drop(first_patch) >> CutPatch(settings.preprocessed_folder, settings.patches)


def draw_b_scans(rows, mixed, seed, epoch, draw, oversampling=0.0):
    """A list of the B-scans in the epoch's `draw`, counted from 0: `rows`, and `mixed`, (rows, share) of other sets."""
    b_scans = _stratified(rows, _stream(seed, epoch, STRATIFY, draw), oversampling)
    n_own, own_share = len(b_scans), 1 - sum(share for _, share in mixed)
    for number, (others, share) in enumerate(mixed):
        rand = _stream(seed, epoch, STRATIFY, draw, 1 + number)
        b_scans += itertools.islice(_rounds(others, rand, oversampling), round(n_own * share / own_share))
    return list(b_scans >> Shuffle(max(len(b_scans), len(rows)), _stream(seed, epoch, SHUFFLE_B_SCANS, draw)))


def _rounds(rows, rand, oversampling):
    """Draws of `rows` one after the other, without end."""
    while True:
        yield from _shuffled(_stratified(rows, rand, oversampling), rand)


def _stratified(rows, rand, oversampling):
    """In expectation as many of every vendor's `rows` as the rarest has, all of its own among them.

    `oversampling` instead draws a vendor's as often as n ** (1 - oversampling) for each kind of B-scan, of which there
    are n: at 0 as they are, at 1 each kind equally often. A kind is the rarest fluid that a B-scan holds, or none.
    """
    vendor = SliceRow._fields.index("vendor")
    drawn = list(rows >> Stratify(vendor, rows >> CountValues(vendor), rand=rand))
    if not oversampling:
        return drawn
    counts = Counter(row.vendor for row in drawn)
    return [
        row
        for name in sorted(counts)
        for row in _oversampled([row for row in rows if row.vendor == name], counts[name], rand, oversampling)
    ]


def _oversampled(rows, count, rand, oversampling):
    """`count` of one vendor's `rows`, as `_stratified` says."""
    frequency = Counter(fluid for row in rows for fluid in FLUIDS if getattr(row, f"is_{fluid}"))
    by_kind = {}
    for row in rows:
        held = [fluid for fluid in FLUIDS if getattr(row, f"is_{fluid}")]
        by_kind.setdefault(min(held, key=frequency.get, default="none"), []).append(row)
    weights = np.array([len(by_kind[kind]) for kind in sorted(by_kind)]) ** (1 - oversampling)
    ends = np.rint(count * np.cumsum(weights) / weights.sum()).astype(int)
    for kind, number in zip(sorted(by_kind), np.diff(ends, prepend=0), strict=True):
        whole, rest = divmod(int(number), len(by_kind[kind]))
        yield from whole * by_kind[kind] + _shuffled(by_kind[kind], rand)[:rest]


def _shuffled(rows, rand):
    return rand.sample(rows, len(rows))


def get_iterator_nuts(rows, settings, *, training, epoch, first_batch=0, repeated=False):
    """Iterator over one epoch's batches (image, (mask, is_IRF, is_SRF, is_PED)), prepared `BATCHES_AHEAD`.

    Reads the scans, masks and ROI masks of `rows` (a list of `SliceRow`) from their folders. Samples and arguments are
    those of `patch_samples`, a batch's arrays those of `build_batch_train`. Samples left over at the end are dropped in
    training and make a smaller batch in validation. An interrupted epoch resumes at `first_batch`, counted from 0.
    Raises InputError if a volume is damaged, and at the end of an epoch without a batch.
    """
    batch_size = settings.batch_size
    samples = patch_samples(
        rows, settings, training=training, epoch=epoch, first_patch=first_batch * batch_size, repeated=repeated
    )
    build_batch = build_batch_train(batch_size, settings.slice_mean, settings.slice_sd, settings.n_classes)
    keras_batches = _KerasBatches(rows, settings, batch_size if training else 1, first_batch)
    return samples >> build_batch >> keras_batches >> Prefetch(BATCHES_AHEAD)


def get_data_iterator(csv_path, settings, *, training, epoch, first_batch=0, repeated=False):
    """Iterator over one epoch's batches (image, (mask, is_IRF, is_SRF, is_PED)) of the slices in a CSV.

    They are stratified by vendor, shuffled, augmented (in training), cut into patches, filtered by invalid pixels and
    by fluid, and normalised. The other arguments are those of
    `get_iterator_nuts`. Raises InputError at once if the CSV is unusable or volumes are missing, then as
    `get_iterator_nuts`.
    """
    rows = read_outlined_rows(csv_path)
    check_volumes_exist(rows, settings.preprocessed_folder)
    return get_iterator_nuts(rows, settings, training=training, epoch=epoch, first_batch=first_batch, repeated=repeated)


def mixed_rows(root):
    """The training rows (`SliceRow`) of a `utils.settings.patch_settings.MixedRoot`, which name its folder.

    Raises InputError if its CSV is unusable or volumes are missing.
    """
    rows = [row._replace(folder=root.preprocessed_folder) for row in read_outlined_rows(root.csv_path)]
    check_volumes_exist(rows, root.preprocessed_folder)
    return rows


def build_batch_train(batch_size, slice_mean, slice_sd, n_classes=4):
    """nutsml's `BuildBatch` for samples (image, mask, is_IRF, is_SRF, is_PED), which yields [[image], [mask, ...]].

    | of a sample | in a batch |
    |---|---|
    | image, uint8 (rows, columns, 3) | float32 (B, rows, columns, 3): (grey value - slice_mean) / slice_sd |
    | mask, uint8 (rows, columns) | uint8 (B, rows, columns, n_classes): 1 for each class that a pixel may be, else 0 |
    | is_* | uint8 (B, 1) |
    """
    normalised = (np.arange(256, dtype=np.float32) - np.float32(slice_mean)) / np.float32(slice_sd)
    build_batch = BuildBatch(batch_size, prefetch=0)
    # nutsml's own builders take 10 times as long. This stage alone is not shared by workers, so its time counts.
    build_batch.builder = {**build_batch.builder, "grey_values": look_up_grey_values, "labels": one_hot_labels}
    build_batch.input(0, "grey_values", normalised).output(1, "labels", n_classes)
    for column in (2, 3, 4):
        build_batch.output(column, "vector", "uint8")
    return build_batch


def look_up_grey_values(images, values):
    """`values` (256,) of the grey values in `images`, a sequence of n uint8 arrays (...): an array (n, ...)."""
    batch = np.stack(images)
    return cv2.LUT(batch.reshape(len(batch), -1), values).reshape(batch.shape)


def one_hot_labels(masks, n_classes):
    """One-hot encoding, uint8 (n, rows, columns, n_classes), of a sequence of n masks (rows, columns).

    Where a mask says what a pixel can be (`utils.labels`), the channel of each such class is 1.
    """
    batch = np.concatenate(masks)
    allowed = cv2.merge([cv2.LUT(batch, table) for table in allowed_tables()[:n_classes]])
    return allowed.reshape(len(masks), *masks[0].shape, n_classes)


@nut_processor
def _KerasBatches(batches, rows, settings, smallest, n_before):
    """BuildBatch's [[image], [mask, ...]] as (image, (mask, ...)), without batches below the `smallest` size.

    `n_before` batches of the epoch came before. Raises `InputError` if the epoch of `rows` has no batch at all.
    """
    n_patches, n_batches = 0, n_before
    for (image,), targets in batches:
        n_patches += len(image)
        if len(image) >= smallest:
            n_batches += 1
            yield image, tuple(targets)
    if not n_batches:
        raise InputError(_too_few(rows, settings, n_patches, smallest))


def _too_few(rows, settings, n_patches, smallest):
    """What to say of an epoch of `rows` that gave `n_patches`, fewer than the `smallest` batch."""
    cases = {(row.folder or settings.preprocessed_folder, row.vendor, row.image_name) for row in rows}
    sizes = {open_volume(volume_paths(*case)[0])[0].shape[1:] for case in cases}
    largest, patch = (" x ".join(map(str, size)) for size in (max(sizes, key=math.prod), settings.patches.shape))
    if any(settings.patches.can_be_kept(*size) for size in sizes):
        rarest, count = min(Counter(row.vendor for row in rows).items(), key=lambda pair: pair[1])
        remedy = (
            f"an epoch draws as many of every vendor as there are of {rarest}, {count}: add some or leave it out, set "
            "STEPS_PER_EPOCH or a smaller BATCH_SIZE, and see that the ROI masks are not empty"
        )
    else:
        remedy = "they fill too little of a patch; lower PATCH_SIZE_H or PATCH_SIZE_W"
    return (
        f"{settings.preprocessed_folder}: {len(rows)} B-scans of at most {largest} pixels (rows x columns) gave "
        f"{n_patches} patches of {patch}, expected at least {smallest} for a batch; {remedy}"
    )


def _stream(seed, epoch, stage, draw, *root):
    """Random generator of one stage of a draw, independent of others; `root` is the number of a mixed data set."""
    later = (draw, *root) if draw or root else ()
    return random.Random(int(np.random.SeedSequence([seed, epoch, stage, *later]).generate_state(1, np.uint64)[0]))


def main(argv):
    import config  # only here: the functions above take what they need as arguments
    from utils.patches.patch_preview import PATCHES_A_VENDOR, class_balance, save_patch_sheet

    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description="Draw patches and print the class balance.")
    parser.add_argument("--preview", action="store_true", required=True)
    config.load(argv, parser)
    config.validate()
    rows = read_outlined_rows(config.split_csv("train"))
    check_volumes_exist(rows, config.preprocessed_folder())
    patches = {}
    for vendor in sorted({row.vendor for row in rows}):
        of_vendor = [row for row in rows if row.vendor == vendor]
        epoch = patch_samples(of_vendor, replace(config.batch_settings(), mixed=()), training=True, epoch=0)
        patches[vendor] = list(itertools.islice(epoch, PATCHES_A_VENDOR))
    path = Path(config.OUTPUT_ROOT) / "patches.png"
    save_patch_sheet(path, patches)
    print(f"{class_balance(patches).to_string()}\npatches: {path}")


if __name__ == "__main__":
    run_script(main)
