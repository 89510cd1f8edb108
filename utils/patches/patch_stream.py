"""Patches ahead of the training step: processes decide where they lie, block by block; a thread cuts them out.

A block is some consecutive B-scans of the epoch. Its patches are shuffled among themselves. Its random numbers follow
from (seed, epoch, number of the block), so that it does not matter which process decides on it, or when. The process
returns only where the patches lie: 100 bytes each instead of 100,000 for the pixels. Cutting the patches out of the
memory-mapped volumes is faster than receiving their pixels.
"""

import functools
import itertools
from collections import deque

import cv2
import numpy as np
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError
from nutsflow import FilterFalse, Map, nut_processor

from utils.custom_nuts import PlanRetouchPatches, ReadOCT, drop_patch
from utils.errors import InputError
from utils.parallel import ahead, ctrl_c_blocked

# Worker processes import this module. It imports neither TensorFlow nor nutsml, because each takes a second to load.
from utils.patches.augmentation import MirrorAndRotate

B_SCANS_PER_BLOCK = 16  # some 150 patches; a batch of 16 patches then comes from about 10 B-scans
BLOCKS_AHEAD = 4  # blocks for each worker that are decided ahead
IDLE_SECONDS = 60  # idle worker processes end after this time, also those of a killed script
CASES_NAMED = 5  # cases named in the message when a process was killed; the first are the likeliest cause
AUGMENTATION = 0.5  # probability of a mirrored, and of a rotated copy of a B-scan in training

# The random streams of an epoch. Their numbers decide what (seed, epoch) yield: append new ones, never reorder.
STRATIFY, SHUFFLE_B_SCANS, PATCHES = range(3)


def plan_block(block, settings, *, training, epoch):
    """The patches to keep of `block`, a pair (number in the epoch, rows of the slice CSV): a list of `Patch`, shuffled.

    `settings` are `BatchSettings`. All hosts' shards are equally long, so a block may lose up to
    (number of hosts - 1) patches.
    """
    number, rows = block
    patches, augmentation = settings.patches, settings.patches.augmentation
    angles_degrees = (-augmentation.rotation_degrees * augmentation.rotate_both_ways, augmentation.rotation_degrees)
    rng = np.random.default_rng([settings.seed, epoch, PATCHES, number])
    # Created for each block, so that a missing file is noticed.
    read_oct = ReadOCT(settings.preprocessed_folder, patches.shape, patches.neighbours)
    kept = list(
        rows
        >> Map(lambda row: (row, *read_oct(row)))
        >> MirrorAndRotate(AUGMENTATION if training else 0.0, rng, angles_degrees)
        >> PlanRetouchPatches(patches, rng)
        >> FilterFalse(lambda patch: patch.invalid_share > patches.max_invalid)
        >> FilterFalse(lambda patch: drop_patch(patch, patches.drop_healthy, rng))
    )
    if training and (augmentation.grey or augmentation.scale):
        kept = [
            patch._replace(seed=int(seed))
            for patch, seed in zip(kept, rng.integers(2**63, size=len(kept)), strict=True)
        ]
    index, count = settings.shard
    order = rng.permutation(len(kept))[: len(kept) // count * count]
    return [kept[position] for position in order[index::count]]


@nut_processor
def PlanPatches(blocks, settings, *, training, epoch):
    """blocks >> PlanPatches(settings, training=..., epoch=...): each block to its `plan_block`, in the same order.

    ``settings.workers`` processes work ahead, `BLOCKS_AHEAD` blocks each. With 0 this process does the work when asked.
    The processes start once and stay for the next epoch. Raises what `plan_block` raises, and InputError at once if a
    process dies.
    """
    workers, plan = settings.workers, functools.partial(plan_block, settings=settings, training=training, epoch=epoch)
    if workers == 0:
        yield from map(plan, blocks)
        return
    with ctrl_c_blocked():  # processes may start here, and when blocks are submitted
        executor = get_reusable_executor(workers, timeout=IDLE_SECONDS, initializer=_set_up_worker)
    blocks, ahead = iter(blocks), deque()

    def submit(n_blocks):
        for block in itertools.islice(blocks, n_blocks):
            with ctrl_c_blocked():
                ahead.append((block, executor.submit(plan, block)))

    try:
        submit(BLOCKS_AHEAD * workers)
        while ahead:
            patches = ahead[0][1].result()
            ahead.popleft()
            submit(1)
            yield patches
    except TerminatedWorkerError as error:
        cases = dict.fromkeys(f"{row.vendor}_{row.image_name}" for (_, rows), _ in ahead for row in rows)
        named = ", ".join(itertools.islice(cases, CASES_NAMED))
        raise InputError(
            f"WORKERS = {workers}: a process was killed, probably out of memory, while {len(cases)} cases were being "
            f"read ({named}, ...); run the same command again, with fewer WORKERS if it recurs"
        ) from error
    finally:
        for _, future in ahead:
            future.cancel()


def _set_up_worker():
    cv2.setNumThreads(1)  # each core has a process already


@nut_processor
def Prefetch(iterable, n_ahead):
    """iterable >> Prefetch(n_ahead): the same elements, by `utils.parallel.ahead`.

    (After an exception, nutsflow's nut of this name leaves the consumer waiting for ever.)
    """
    yield from ahead(iterable, n_ahead)
