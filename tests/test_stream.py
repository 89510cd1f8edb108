import itertools
import os
import signal
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers import batch_settings, write_prepared_case
from joblib.externals.loky import get_reusable_executor
from nutsflow import Chunk

from benchmarks.plain_stream import plain_samples, write_tiff_slices
from utils.data_prepare import patch_samples
from utils.errors import InputError
from utils.patches.patch_stream import PlanPatches, Prefetch, plan_block
from utils.preparation.prepared import SliceRow

EPOCH = {"training": True, "epoch": 0}


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """(settings, blocks) of 40 slices of 110 x 150 pixels in blocks of 8, every other slice with fluid."""
    folder = tmp_path_factory.mktemp("blocks")
    volume = np.random.default_rng(0).integers(1, 256, (40, 110, 150), dtype=np.uint8)
    mask = np.zeros_like(volume)
    mask[::2, 50:60] = 1
    write_prepared_case(folder, "Topcon", "a", volume, mask)
    rows = [SliceRow("a", "Topcon", "r", z, 0, 0, 0) for z in range(40)]
    settings = batch_settings(folder, shape=(104, 104), drop_healthy=0.5)
    return settings, list(enumerate(rows >> Chunk(8, list)))


# ---- Blocks --------------------------------------------------------------------------------------------------------
def test_a_block_does_not_depend_on_the_ones_before_it(blocks):
    settings, numbered = blocks
    in_order = list(numbered >> PlanPatches(settings, **EPOCH))
    assert [plan_block(block, settings, **EPOCH) for block in reversed(numbered)] == in_order[::-1]
    number, rows = numbered[1]
    assert plan_block((number + 1, rows), settings, **EPOCH) != in_order[1]  # nor do two blocks share random numbers
    assert plan_block((number, rows), settings, training=True, epoch=1) != in_order[1]  # nor do two epochs


def test_patches_of_a_block_are_shuffled(blocks):
    settings, (first, *_) = blocks
    slices = [patch.row.slice for patch in plan_block(first, settings, **EPOCH)]
    assert len(slices) > 50
    assert len(set(slices[:10])) >= 4  # 1 where they come slice by slice


@pytest.mark.parametrize("count", [2, 3])
def test_hosts_share_an_epoch_without_overlap_and_evenly(blocks, count):
    settings, numbered = blocks
    for block in numbered:
        whole = plan_block(block, settings, **EPOCH)
        shards = [plan_block(block, replace(settings, shard=(index, count)), **EPOCH) for index in range(count)]
        assert {len(shard) for shard in shards} == {len(whole) // count}
        together = Counter(itertools.chain(*shards))
        assert together <= Counter(whole)  # as often as there, or left out
        assert together.total() == len(whole) // count * count


def test_patches_of_which_too_much_is_invalid_are_left_out(blocks, tmp_path):
    settings, _ = blocks
    volume = np.full((3, 104, 104), 100, np.uint8)
    volume[1, :, 57:] = 0  # 47/104 invalid, as in a scan that was padded to the size of a patch
    volume[2, :, 47:] = 0  # 57/104
    valid = np.minimum(volume, 1)
    write_prepared_case(tmp_path, "Topcon", "a", volume, valid, valid)
    rows = [SliceRow("a", "Topcon", "r", z, 0, 0, 0) for z in range(3)]
    patches = plan_block((0, rows), replace(settings, preprocessed_folder=tmp_path), training=False, epoch=0)
    assert sorted(patch.row.slice for patch in patches) == [0, 1]


# ---- Processes -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("workers", [1, 2])
def test_processes_plan_the_same_patches_in_the_same_order(blocks, workers):
    settings, numbered = blocks
    expected = list(numbered >> PlanPatches(settings, **EPOCH))
    assert list(numbered >> PlanPatches(replace(settings, workers=workers), **EPOCH)) == expected
    assert all(expected)


def test_blocks_ahead_are_bounded(blocks):
    settings, numbered = blocks
    taken = itertools.count()
    endless = (block for block in itertools.cycle(numbered) if next(taken) >= 0)
    planned = endless >> PlanPatches(replace(settings, workers=1), **EPOCH)
    for _ in range(20):
        next(planned)
    assert next(taken) == 20 + 4


def test_processes_do_not_hear_ctrl_c(blocks):
    settings, numbered = blocks
    list(numbered >> PlanPatches(replace(settings, workers=1), **EPOCH))
    blocked = get_reusable_executor(reuse=True).submit(signal.pthread_sigmask, signal.SIG_BLOCK, []).result()
    assert signal.SIGINT in blocked


def test_an_input_error_in_a_process_arrives_as_itself(blocks):
    settings, _ = blocks
    rows = [SliceRow("a", "Topcon", "r", 40, 0, 0, 0)]
    with pytest.raises(InputError, match=r"Topcon_a\.raw: the CSV asks for slice 40, the volume has slices 0 to 39"):
        list([(0, rows)] >> PlanPatches(replace(settings, workers=1), **EPOCH))


class DeadlyFolder:
    """Using it kills the process that uses it."""

    def __fspath__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_is_an_error_and_the_next_epoch_has_new_ones(blocks):
    settings, numbered = blocks
    with pytest.raises(InputError, match=r"WORKERS = 1: a process was killed.*1 cases.*Topcon_a"):
        list(numbered >> PlanPatches(replace(settings, workers=1, preprocessed_folder=DeadlyFolder()), **EPOCH))
    assert len(list(numbered >> PlanPatches(replace(settings, workers=1), **EPOCH))) == 5


# ---- Prefetching ---------------------------------------------------------------------------------------------------
def test_prefetching_keeps_elements_and_order():
    assert list(range(20) >> Prefetch(3)) == list(range(20))
    assert list([] >> Prefetch(3)) == []


def test_prefetching_works_ahead_of_the_consumer_in_one_thread_and_no_further():
    made, threads, third = [], set(), threading.Event()

    def elements():
        for number in range(10):
            made.append(number)
            threads.add(threading.get_ident())
            if number == 3:
                third.set()
            yield number

    prefetched = elements() >> Prefetch(3)
    assert next(prefetched) == 0
    assert third.wait(10)  # 1, 2 and 3 are made while the consumer has 0
    prefetched.close()
    assert made == [0, 1, 2, 3]
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_an_error_while_prefetching_arrives_as_itself_after_what_came_before():
    def elements():
        yield 1
        raise InputError("file: damaged")

    prefetched = elements() >> Prefetch(3)
    assert next(prefetched) == 1
    with pytest.raises(InputError, match="file: damaged"):
        next(prefetched)


# ---- The same method as a plain pipeline ---------------------------------------------------------------------------
@pytest.mark.slow
def test_patches_are_distributed_as_a_plain_pipelines(tmp_path):
    """Known mistake: an order of the stages that changes what is drawn."""
    rng = np.random.default_rng(0)
    rows = []
    for vendor, slices, grey in (("Cirrus", 6, 60), ("Spectralis", 3, 110), ("Topcon", 4, 160)):
        volume = rng.integers(grey - 40, grey + 40, (slices, 320, 300), dtype=np.uint8)
        masks, rois = np.zeros_like(volume), np.zeros_like(volume)
        rois[:, 90:260, 40:] = 1
        for z in range(slices):
            top, left = rng.integers(100, 220), rng.integers(40, 240)
            masks[z, top : top + 30, left : left + 40] = z % 4
            volume[z, :60, :150] = 0  # invalid
        write_prepared_case(tmp_path, vendor, "a", volume, masks, rois)
        rows += [SliceRow("a", vendor, "r", z, *(int(z % 4 == label) for label in (1, 2, 3))) for z in range(slices)]
    write_tiff_slices(rows, tmp_path, tmp_path / "tiff")
    epochs = range(16)
    plain = [statistics(plain_samples(rows, tmp_path / "tiff", seed)) for seed in epochs]
    settings = batch_settings(tmp_path, seed=1)
    ours = [statistics(patch_samples(rows, settings, training=True, epoch=epoch)) for epoch in epochs]
    assert sum(epoch["patches"] for epoch in plain) > 1000
    for name in plain[0]:
        first, second = (np.array([epoch[name] for epoch in side]) for side in (plain, ours))
        standard_error = np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / len(epochs))
        assert abs(first.mean() - second.mean()) < 3.5 * standard_error, name


def statistics(samples):
    """What an epoch's patches are like, as a dictionary of floats."""
    samples = list(samples)
    images, masks = np.stack([sample[0] for sample in samples]), np.stack([sample[1] for sample in samples])
    valid = images[..., 1] > 0
    return {
        "patches": len(samples),
        **{f"with {label}": np.mean([sample[1 + label] for sample in samples]) for label in (1, 2, 3)},
        **{f"pixels of {label}": np.mean(masks == label) for label in (1, 2, 3)},
        "invalid": 1 - valid.mean(),
        "mean": images[..., 1][valid].mean(),
        "neighbours": np.abs(images[..., 0].astype(int) - images[..., 2])[valid].mean(),
        **{
            f"grey {grey}": np.mean([abs(image[image > 0].mean() - grey) < 20 for image in images])
            for grey in (60, 110)
        },
    }
