import contextlib
import hashlib
import itertools
import random
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import batch_settings, write_prepared_case

from utils import data_prepare
from utils.data_prepare import (
    build_batch_train,
    draw_b_scans,
    get_data_iterator,
    get_iterator_nuts,
    mixed_rows,
    patch_samples,
)
from utils.errors import InputError
from utils.preparation.prepared import SliceRow, read_csv_data
from utils.settings.patch_settings import MixedRoot

HEADER = "image_name,vendor,root,slice,is_IRF,is_SRF,is_PED"
PATCH = (256, 128)  # B-scans of this size hold exactly one patch, which is the B-scan


def samples_of(csv_path, preprocessed_folder, *, training, epoch, **changes):
    """The patch samples of an epoch before they are put into batches."""
    settings = batch_settings(preprocessed_folder, **changes)
    return patch_samples(read_csv_data(csv_path), settings, training=training, epoch=epoch)


def batches_of(csv_path, preprocessed_folder, *, training, epoch, first_batch=0, **changes):
    """The batches of an epoch."""
    settings = batch_settings(preprocessed_folder, **changes)
    return get_data_iterator(csv_path, settings, training=training, epoch=epoch, first_batch=first_batch)


def write_slices_csv(path, cases):
    """CSV of all slices of `cases`, tuples (vendor, name, number of slices)."""
    lines = [f"{name},{vendor},{vendor}/{name},{z},0,0,0" for vendor, name, slices in cases for z in range(slices)]
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


def numbered_slices(first, count, shape=PATCH):
    """uint8 volume whose slice z is first + z everywhere."""
    return np.broadcast_to(np.arange(first, first + count, dtype=np.uint8)[:, None, None], (count, *shape))


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    """Twelve slices of patch size; slice z is 101 + z everywhere, and slices 0 to 5 hold fluid in their centre."""
    folder = tmp_path_factory.mktemp("small_set")
    mask = np.zeros((12, *PATCH), np.uint8)
    mask[0:2, 100:150, 60:70] = 1
    mask[2:4, 100:150, 60:70] = 2
    mask[4:6, 100:150, 60:70] = 3
    write_prepared_case(folder, "Topcon", "NA", numbered_slices(101, 12), mask)
    return write_slices_csv(folder / "slices.csv", [("Topcon", "NA", 12)]), folder


@pytest.fixture(scope="module")
def wide_set(tmp_path_factory):
    """Sixty slices, z filled with 1 + z, that hold 12 + 2 patches each."""
    folder = tmp_path_factory.mktemp("wide_set")
    write_prepared_case(folder, "Topcon", "a", numbered_slices(1, 60, (256, 308)))
    return write_slices_csv(folder / "slices.csv", [("Topcon", "a", 60)]), folder


def slice_number(image):
    """Grey value of the slice that a patch of `numbered_slices` comes from: its middle channel, rotated or not."""
    return int(image[128, 64, 1])


def same_samples(first, second):
    return len(first) == len(second) and all(
        all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))
        for left, right in zip(first, second, strict=True)
    )


# ---- CSV -----------------------------------------------------------------------------------------------------------
def test_csv_rows_are_read_as_written(tmp_path):
    path = tmp_path / "slices.csv"
    path.write_text(
        f"{HEADER},note\nNA,Topcon,data/NA,7,0,1,0,\n007,Cirrus,null,0,1,0,1,x\nBücher,Cirrus,,1,0,0,0,\n\n"
    )
    assert [tuple(row) for row in read_csv_data(path)] == [
        ("NA", "Topcon", "data/NA", 7, 0, 1, 0, None),
        ("007", "Cirrus", "null", 0, 1, 0, 1, None),
        ("Bücher", "Cirrus", "", 1, 0, 0, 0, None),
    ]


def test_csv_columns_are_found_by_name(tmp_path):
    path = tmp_path / "slices.csv"
    path.write_text("\ufeffslice,is_PED,is_SRF,is_IRF,root,vendor,image_name\n5,1,0,0,r,Cirrus,a\n", encoding="utf-8")
    (row,) = read_csv_data(path)
    assert (row.image_name, row.vendor, row.slice, row.is_IRF, row.is_PED) == ("a", "Cirrus", 5, 0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a CSV table"),
        (HEADER + "\n", "lists no B-scan, expected at least one"),
        (HEADER + "\na,Cirrus,r,0,0,0,0\nb,Cirrus,r,0,0,0,0,1,2\n", "not a CSV table"),
        (HEADER + "\na,Cirrus,r,0,0,0,0,\nb,Cirrus,r,0,0,0,0,\n", "more values than the header has names"),
        (HEADER + '\n"a,Cirrus,r,0,0,0,0\nb,Cirrus,r,0,0,0,0\nc",Cirrus,r,0,0,0,0\n', "read 1 rows of 3"),
        ("image_name,vendor,slice,is_IRF,is_PED\na,Cirrus,0,0,0\n", "lacks the column root, is_SRF"),
        (HEADER + "\na,Cirrus,r,0,0,0,0\n,Cirrus,r,1,0,0,0\n", "row 2: image_name is empty"),
        (HEADER + "\n../../a,Cirrus,r,0,0,0,0\n", "row 1: image_name is '../../a'"),
        (HEADER + "\na,/etc/Cirrus,r,0,0,0,0\n", "row 1: vendor is '/etc/Cirrus'"),
        (HEADER + "\na,Cirrus,r/../..,0,0,0,0\n", "row 1: root is 'r/../..'"),
        (HEADER + "\na,Cirrus,/etc,0,0,0,0\n", "row 1: root is '/etc'"),
        (HEADER + "\na,Cirrus,r,,0,0,0\n", "row 1: slice is ''"),
        (HEADER + "\na,Cirrus,r,-1,0,0,0\n", "row 1: slice is '-1'"),
        (HEADER + "\na,Cirrus,r,0,0,2,0\n", "row 1: is_SRF is '2', expected 0, 1 or nothing"),
        (HEADER + "\na,Cirrus,r,0,0\n", "row 1 has 5 values, expected 7"),
    ],
)
def test_a_csv_that_loses_rows_or_values_is_an_error(tmp_path, text, message):
    path = tmp_path / "slices.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_csv_data(path)
    assert all(str(path) in line for line in error.value.messages)


def test_all_offending_rows_are_reported_up_to_a_limit(tmp_path):
    path = tmp_path / "slices.csv"
    path.write_text(HEADER + "\n" + "a,Cirrus,r,x,0,0,0\n" * 13)
    with pytest.raises(InputError) as error:
        read_csv_data(path)
    assert len(error.value.messages) == 11
    assert error.value.messages[-1] == "and 3 more"


def test_a_missing_csv_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.csv: no such file"):
        read_csv_data(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match=r"expected a \.csv"):
        read_csv_data(tmp_path / "slices.pkl")


# ---- Samples -------------------------------------------------------------------------------------------------------
def test_validation_holds_every_slice_of_a_single_vendor_once_and_untouched(small_set):
    samples = list(samples_of(*small_set, training=False, seed=0, epoch=0, drop_healthy=0.0))
    assert sorted(slice_number(image) for image, *_ in samples) == list(range(101, 113))
    for image, mask, *fluids in samples:
        number = slice_number(image)
        channels = [max(number - 1, 101), number, min(number + 1, 112)]
        assert (image == channels).all()
        label = (number - 101) // 2 + 1 if number < 107 else 0
        assert mask.max() == label
        assert fluids == [int(label == fluid) for fluid in (1, 2, 3)]


def test_patches_without_fluid_are_dropped_in_the_pipeline(small_set):
    for training in (False, True):
        samples = list(samples_of(*small_set, training=training, seed=0, epoch=0, drop_healthy=1.0))
        assert {slice_number(image) for image, *_ in samples} == set(range(101, 107))


def test_a_patch_may_be_invalid_by_half_and_no_more(tmp_path):
    volume = np.full((2, *PATCH), 100, np.uint8)
    volume[0, :128] = volume[1, :129] = 0
    write_prepared_case(tmp_path, "Topcon", "a", volume, np.ones_like(volume))
    csv = write_slices_csv(tmp_path / "slices.csv", [("Topcon", "a", 2)])
    ((image, *_),) = samples_of(csv, tmp_path, training=False, epoch=0)
    np.testing.assert_array_equal(image[..., 1], volume[0])


def test_a_slice_gives_two_and_a_quarter_images_whose_masks_follow(tmp_path):
    # A left-right asymmetric mask, and an image that is a function of it, so that every patch tells how it was made.
    mask = np.zeros((1, *PATCH), np.uint8)
    mask[0, 60:200, 10:50] = 1
    mask[0, 90:110, 70:120] = 2
    volume = 50 + 50 * mask
    write_prepared_case(tmp_path, "Topcon", "a", volume, mask)
    csv_path = tmp_path / "slices.csv"
    csv_path.write_text("\n".join([HEADER] + ["a,Topcon,r,0,0,0,0"] * 400))  # the same slice 400 times
    kinds = {"untouched": 0, "mirrored": 0, "rotated": 0}
    for image, mask_patch, *_ in samples_of(csv_path, tmp_path, training=True, seed=0, epoch=0, drop_healthy=0.0):
        valid = image[..., 1] > 0
        np.testing.assert_array_equal(image[valid], np.repeat(50 + 50 * mask_patch[valid][:, None], 3, axis=1))
        assert not mask_patch[~valid].any()
        if np.array_equal(mask_patch, mask[0]):
            kinds["untouched"] += 1
        elif np.array_equal(mask_patch, mask[0, :, ::-1]):
            kinds["mirrored"] += 1
        else:
            assert (~valid).any()
            assert valid.mean() > 0.9  # 10 degrees at most
            kinds["rotated"] += 1
    # A slice stands for 1 untouched, 0.5 mirrored and 0.75 rotated images (variance 0.9375 of the sum, 0.4375 of the
    # rotated); tolerances are four standard deviations over 400 slices. Rotated by less than 0.2 degrees, an image of
    # this size stays as it is.
    assert sum(kinds.values()) == pytest.approx(2.25 * 400, abs=77)
    assert 400 <= kinds["untouched"] <= 400 + 15
    assert kinds["mirrored"] == pytest.approx(200, abs=40)
    assert kinds["rotated"] == pytest.approx(300, abs=53)


def test_the_roi_is_mirrored_and_rotated_with_the_image(tmp_path):
    roi = np.zeros((1, 256, 400), np.uint8)
    roi[0, 20:40, 300:320] = 1  # far from the centre: a rotation by 10 degrees moves it by 24 pixels
    write_prepared_case(tmp_path, "Topcon", "a", 100 + 100 * roi, roi=roi)
    csv_path = write_slices_csv(tmp_path / "slices.csv", [("Topcon", "a", 1)])
    samples = [
        sample
        for epoch in range(40)
        for sample in samples_of(csv_path, tmp_path, training=True, seed=0, epoch=epoch, drop_healthy=0.0)
    ]
    assert len(samples) > 100
    assert all((image[:, 64] == 200).any() for image, *_ in samples)  # a patch's middle column crosses the ROI


def test_vendors_are_drawn_as_often_as_the_rarest(tmp_path):
    cases = [("Cirrus", "a", 20), ("Spectralis", "b", 60), ("Topcon", "c", 100)]
    first_values = {"Cirrus": 1, "Spectralis": 51, "Topcon": 121}
    for vendor, name, slices in cases:
        write_prepared_case(tmp_path, vendor, name, numbered_slices(first_values[vendor], slices))
    csv_path = write_slices_csv(tmp_path / "slices.csv", cases)

    def drawn(**settings):
        samples = samples_of(csv_path, tmp_path, drop_healthy=0.0, **settings)
        return {slice_number(image) for image, *_ in samples}

    epochs = [drawn(training=True, seed=0, epoch=epoch) for epoch in range(3)]
    for numbers in [*epochs, drawn(training=False, seed=0, epoch=0)]:
        assert {number for number in numbers if number < 51} == set(range(1, 21))  # all of the rarest
        # 20 expected of each; four standard deviations of a binomial draw: 14.6 and 16.
        assert 20 - 14 <= sum(51 <= number < 121 for number in numbers) <= 20 + 14
        assert 20 - 16 <= sum(number >= 121 for number in numbers) <= 20 + 16
    assert epochs[0] != epochs[1] != epochs[2]  # drawn anew
    assert epochs[0] == drawn(training=True, seed=0, epoch=0)


def test_patches_of_a_slice_are_spread_over_the_epoch(wide_set):
    samples = list(samples_of(*wide_set, training=False, seed=0, epoch=0, drop_healthy=0.0))
    numbers = [slice_number(image) for image, *_ in samples]
    assert len(numbers) == 60 * 14
    assert len(set(numbers[:16])) >= 8  # 2 if patches were not shuffled
    assert max(numbers[:64]) > 40  # about 23 if only the buffer's patches were shuffled, and not the slices before


# ---- Randomness ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["small_set", "wide_set"])
def test_seed_and_epoch_alone_determine_the_samples(name, request):
    def samples(seed, epoch):
        patches = samples_of(*request.getfixturevalue(name), training=True, seed=seed, epoch=epoch)
        return list(itertools.islice(patches, 50))

    first = samples(3, 5)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state that must not matter
    state = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert same_samples(first, samples(3, 5))
    assert not same_samples(first, samples(3, 6))
    assert not same_samples(first, samples(4, 5))
    assert state == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


def test_validation_is_the_same_at_every_epoch(small_set):
    first, later, other_seed = (
        list(samples_of(*small_set, training=False, seed=seed, epoch=epoch)) for seed, epoch in ((3, 0), (3, 7), (4, 0))
    )
    assert same_samples(first, later)
    assert not same_samples(first, other_seed)


def test_three_epochs_of_batches_are_the_same_for_any_number_of_workers(wide_set):
    def digests(workers):
        for epoch in range(3):
            digest = hashlib.sha256()
            settings = {"training": True, "seed": 3, "epoch": epoch, "batch_size": 3, "workers": workers}
            for image, targets in batches_of(*wide_set, **settings):
                for array in (image, *targets):
                    digest.update(array.tobytes())
            yield digest.hexdigest()

    in_process, one, two = (list(digests(workers)) for workers in (0, 1, 2))
    assert in_process == one == two
    assert len(set(in_process)) == 3


# ---- Several draws, several data sets ------------------------------------------------------------------------------
def test_an_epoch_of_fixed_length_draws_the_b_scans_again(small_set):
    csv_path, folder = small_set
    settings = batch_settings(folder, batch_size=3)
    once = list(get_data_iterator(csv_path, settings, training=True, epoch=0))

    def repeated(first, last):
        batches = get_data_iterator(csv_path, settings, training=True, epoch=0, first_batch=first, repeated=True)
        with contextlib.closing(batches):
            return [image for image, _ in itertools.islice(batches, last - first)]

    length = 4 * len(once)
    images = repeated(0, length)
    assert all(np.array_equal(image, known) for image, (known, _) in zip(images, once, strict=False))
    later = [sorted(map(slice_number, 128 * images[number] + 128)) for number in range(len(once), length)]
    assert len({tuple(numbers) for numbers in later}) > len(once) // 2  # the draws differ
    for first in (len(once) - 1, len(once) + 2):  # where an interrupted epoch goes on
        assert all(map(np.array_equal, repeated(first, length), images[first:]))


def test_b_scans_that_give_no_patch_are_not_drawn_for_ever(small_set, tmp_path):
    csv_path, folder = small_set
    header, *lines = csv_path.read_text().splitlines()
    without_fluid = tmp_path / "without_fluid.csv"
    without_fluid.write_text("\n".join([header, *lines[6:]]))
    settings = batch_settings(folder, drop_healthy=1.0)
    with pytest.raises(InputError, match=r"6 B-scans of .* gave 0 patches"):
        list(get_data_iterator(without_fluid, settings, training=True, epoch=0, repeated=True))


def test_a_draw_without_a_patch_does_not_end_an_epoch_of_fixed_length(small_set, monkeypatch):
    csv_path, folder = small_set
    rows, settings = read_csv_data(csv_path), batch_settings(folder)
    monkeypatch.setattr(
        data_prepare, "draw_b_scans", lambda rows, mixed, seed, epoch, draw, oversampling: [] if draw == 1 else rows
    )
    of_one_draw = len(list(patch_samples(rows, settings, training=True, epoch=0)))
    samples = patch_samples(rows, settings, training=True, epoch=0, repeated=True)
    assert len(list(itertools.islice(samples, of_one_draw + 1))) == of_one_draw + 1


@pytest.fixture
def mixed_set(tmp_path):
    """A root with the small set's case name and other grey values, 5 slices from 201 on."""
    write_prepared_case(tmp_path, "Topcon", "NA", numbered_slices(201, 5))
    return MixedRoot(write_slices_csv(tmp_path / "others.csv", [("Topcon", "NA", 5)]), tmp_path, 0.4)


@pytest.mark.parametrize("draw", [0, 3])
def test_other_data_sets_give_their_share_of_the_b_scans(small_set, mixed_set, draw):
    rows, others = read_csv_data(small_set[0]), mixed_rows(mixed_set)
    drawn = draw_b_scans(rows, [(others, 0.4), (others[:1], 0.2)], seed=0, epoch=1, draw=draw)
    assert len(drawn) == 30  # 12 are 40 %
    counts = Counter(row.slice for row in drawn if row.folder)
    assert sum(counts.values()) == 18
    assert min(counts[index] for index in range(1, 5)) == 2  # 12 of 5, drawn in whole rounds
    assert [row.folder is None for row in drawn] != sorted(row.folder is None for row in drawn)
    assert drawn == draw_b_scans(rows, [(others, 0.4), (others[:1], 0.2)], seed=0, epoch=1, draw=draw)


def test_rare_fluids_are_drawn_more_often_as_is_asked_for():
    kinds = [(0, 0, 0)] * 64 + [(1, 0, 0)] * 36 + [(1, 1, 0)] * 4
    rows = [SliceRow("a", "Topcon", "r", z, *labels) for z, labels in enumerate(kinds)]
    others = [row._replace(vendor="Cirrus") for row in rows] * 2

    def counts(oversampling, rows=rows):
        drawn = draw_b_scans(rows, [], 0, 0, 0, oversampling)
        assert drawn != sorted(drawn, key=lambda row: row.slice)
        return Counter((row.is_IRF, row.is_SRF) for row in drawn if row.vendor == "Topcon")

    assert counts(0.0) == {(0, 0): 64, (1, 0): 36, (1, 1): 4}
    assert counts(0.5) == {(0, 0): 52, (1, 0): 39, (1, 1): 13}  # as 8 : 6 : 2
    assert counts(1.0) == {(0, 0): 35, (1, 0): 35, (1, 1): 34}
    assert counts(0.5, rows + others) == counts(0.5)  # every vendor by itself
    assert min(Counter(row.slice for row in draw_b_scans(rows, [], 0, 0, 0, 1.0))[z] for z in range(100, 104)) == 8


def test_patches_of_other_data_sets_come_from_their_own_folders_in_training_alone(small_set, mixed_set):
    for training in (True, False):
        samples = samples_of(*small_set, training=training, epoch=0, seed=0, mixed=(mixed_set,), drop_healthy=0.0)
        numbers = [slice_number(image) for image, *_ in samples]
        assert any(100 < number < 113 for number in numbers)
        assert any(200 < number < 206 for number in numbers) == training


def test_other_data_sets_must_be_whole(small_set, mixed_set):
    settings = batch_settings(small_set[1], mixed=(replace(mixed_set, preprocessed_folder=Path("elsewhere")),))
    with pytest.raises(InputError, match=r"elsewhere/oct_imgs/Topcon_NA.mhd: no such file"):
        get_data_iterator(small_set[0], settings, training=True, epoch=0)


# ---- Batches -------------------------------------------------------------------------------------------------------
def test_batches_hold_the_normalised_samples(small_set):
    samples = list(samples_of(*small_set, training=True, seed=0, epoch=0))
    batches = list(batches_of(*small_set, training=True, seed=0, epoch=0, batch_size=3))
    assert len(batches) == len(samples) // 3
    for number, (images, targets) in enumerate(batches):
        masks, *fluids = targets
        assert isinstance(targets, tuple)
        assert (images.shape, images.dtype) == ((3, 256, 128, 3), np.float32)
        assert (masks.shape, masks.dtype) == ((3, 256, 128, 4), np.uint8)
        assert [(fluid.shape, fluid.dtype) for fluid in fluids] == [((3, 1), np.uint8)] * 3
        for index in range(3):
            image, mask, *is_fluid = samples[3 * number + index]
            np.testing.assert_array_equal(images[index], (image.astype(float) - 128) / 128)  # exact in float32
            np.testing.assert_array_equal(masks[index], np.stack([mask == label for label in range(4)], axis=-1))
            assert [fluid[index, 0] for fluid in fluids] == is_fluid
    assert any(fluid.any() for _, (_, *fluids) in batches for fluid in fluids)


def test_a_users_own_pipeline_gets_the_same_batches(small_set):
    """get_iterator_nuts on the rows, and build_batch_train in a pipeline: what get_data_iterator does with a CSV."""
    csv_path, folder = small_set
    rows, settings = read_csv_data(csv_path), batch_settings(folder, batch_size=3)
    expected = list(get_data_iterator(csv_path, settings, training=True, epoch=0))
    from_rows = list(get_iterator_nuts(rows, settings, training=True, epoch=0))
    built = list(patch_samples(rows, settings, training=True, epoch=0) >> build_batch_train(3, 128.0, 128.0))
    assert len(from_rows) == len(expected) > 2
    for (image, targets), (rows_image, rows_targets), ((built_image,), built_targets) in zip(
        expected, from_rows, built, strict=False
    ):
        arrays = (image, *targets), (rows_image, *rows_targets), (built_image, *built_targets)
        for array, from_rows_array, built_array in zip(*arrays, strict=True):
            np.testing.assert_array_equal(from_rows_array, array)
            np.testing.assert_array_equal(built_array, array)


def test_b_scans_smaller_than_a_patch_are_padded_with_invalid_pixels(tmp_path):
    volume = np.full((1, 200, 100), 90, np.uint8)
    mask = np.zeros_like(volume)
    mask[0, 60:100, 45:55] = 2
    write_prepared_case(tmp_path, "Topcon", "a", volume, mask)
    csv_path = write_slices_csv(tmp_path / "slices.csv", [("Topcon", "a", 1)])
    ((image, patch_mask, *fluids),) = samples_of(csv_path, tmp_path, training=False, seed=0, epoch=0, drop_healthy=0.0)
    np.testing.assert_array_equal(image[:200, :100], 90)
    np.testing.assert_array_equal(patch_mask[:200, :100], mask[0])
    assert not image[200:].any()
    assert not image[:, 100:].any()
    assert not patch_mask[:, 100:].any()
    assert fluids == [0, 1, 0]


def test_mean_and_standard_deviation_are_used(small_set):
    (batch,) = batches_of(
        *small_set, training=False, seed=0, epoch=0, batch_size=12, slice_mean=100, slice_sd=10, drop_healthy=0.0
    )
    assert sorted(batch[0][:, 0, 0, 1]) == pytest.approx([(value - 100) / 10 for value in range(101, 113)])


def test_what_is_left_over_is_dropped_in_training_and_kept_in_validation(small_set):
    settings = {"seed": 0, "epoch": 0, "batch_size": 5, "drop_healthy": 0.0}
    validation = [len(images) for images, _ in batches_of(*small_set, training=False, **settings)]
    assert validation == [5, 5, 2]
    total = len(list(samples_of(*small_set, training=True, seed=0, epoch=0, drop_healthy=0.0)))
    training = [len(images) for images, _ in batches_of(*small_set, training=True, **settings)]
    assert total % 5  # else this seed tests nothing
    assert training == [5] * (total // 5)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_epoch_goes_on_at_any_batch(wide_set, workers):
    settings = {"training": True, "seed": 3, "epoch": 1, "batch_size": 3, "workers": workers}
    whole = list(batches_of(*wide_set, **settings))
    for first_batch in (1, len(whole) - 1, len(whole)):
        left = list(batches_of(*wide_set, first_batch=first_batch, **settings))
        assert len(left) == len(whole) - first_batch
        for (image, targets), (expected_image, expected_targets) in zip(left, whole[first_batch:], strict=True):
            np.testing.assert_array_equal(image, expected_image)
            for target, expected in zip(targets, expected_targets, strict=True):
                np.testing.assert_array_equal(target, expected)


# ---- Errors --------------------------------------------------------------------------------------------------------
def test_missing_volumes_are_named_before_the_first_batch(tmp_path):
    write_prepared_case(tmp_path, "Topcon", "a", numbered_slices(1, 2))
    (tmp_path / "roi_masks" / "Topcon_a.mhd").unlink()
    csv_path = write_slices_csv(tmp_path / "slices.csv", [("Topcon", "a", 2), ("Cirrus", "b", 1)])
    with pytest.raises(InputError) as error:
        batches_of(csv_path, tmp_path, training=True, seed=0, epoch=0, batch_size=2)
    assert [line.split(":")[0].removeprefix(f"{tmp_path}/") for line in error.value.messages] == [
        "roi_masks/Topcon_a.mhd",
        "oct_imgs/Cirrus_b.mhd",
        "oct_masks/Cirrus_b.mhd",
        "roi_masks/Cirrus_b.mhd",
    ]


def test_an_error_while_reading_reaches_the_consumer(tmp_path):
    write_prepared_case(tmp_path, "Topcon", "a", numbered_slices(1, 2))
    csv_path = write_slices_csv(tmp_path / "slices.csv", [("Topcon", "a", 3)])
    threads = threading.active_count()
    batches = batches_of(csv_path, tmp_path, training=True, seed=0, epoch=0, batch_size=2)
    assert threading.active_count() == threads  # with nutsflow's prefetching thread, the next line never returned
    with pytest.raises(InputError, match="asks for slice 2"):
        list(batches)


def test_an_epoch_without_a_batch_is_an_error(tmp_path):
    volume = numbered_slices(1, 2)
    write_prepared_case(tmp_path, "Topcon", "a", volume, roi=np.zeros(volume.shape, np.uint8))
    csv_path = write_slices_csv(tmp_path / "slices.csv", [("Topcon", "a", 2)])
    for training, smallest in ((True, 16), (False, 1)):
        batches = batches_of(csv_path, tmp_path, training=training, seed=0, epoch=0, batch_size=16)
        with pytest.raises(InputError, match=f"gave 0 patches of .* at least {smallest} .* as there are of Topcon"):
            next(batches)


@pytest.mark.parametrize(("rows", "is_enough"), [(100, False), (128, True)])
def test_pictures_that_fill_less_than_half_of_a_patch_are_said_to_be_too_small(tmp_path, rows, is_enough):
    write_prepared_case(tmp_path, "Topcon", "a", np.full((1, rows, 180), 200, np.uint8))
    csv_path = write_slices_csv(tmp_path / "slices.csv", [("Topcon", "a", 1)])
    batches = batches_of(csv_path, tmp_path, training=False, epoch=0, drop_healthy=0, shape=(256, 128))
    if is_enough:
        assert next(batches)[0].shape[1:] == (256, 128, 3)
    else:
        with pytest.raises(InputError, match=r"at most 100 x 180 .* 0 patches of 256 x 128, .* lower PATCH_SIZE_H"):
            next(batches)
