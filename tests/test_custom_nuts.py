from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import skimage.transform
from helpers import write_prepared_case

from utils import custom_nuts
from utils.custom_nuts import (
    CutPatch,
    ImagePatchesByMaskRetouch_resampled,
    Patch,
    PlanRetouchPatches,
    ReadOCT,
    a_fifth,
    decided_patches,
    drop_patch,
    sample_oct_patch_centers,
    sample_patches_entropy_mask,
    sample_patches_retouch_mask,
)
from utils.errors import InputError
from utils.patches.augmentation import MirrorAndRotate, rotated, rotation_map
from utils.settings.patch_settings import AugmentationSettings, PatchSettings

Row = namedtuple("Row", "image_name vendor slice folder is_IRF is_SRF is_PED", defaults=(None, 0, 0, 0))
PATCH = (256, 128)
PATCHES = PatchSettings(PATCH, 12, 42, 0.75, AugmentationSettings(10.0, False, 0.0, 0.0, 0.0))


def write_case(folder, volume, mask, roi, vendor="Topcon", name="a"):
    write_prepared_case(folder, vendor, name, volume, mask, roi)


def constant_slices(values, rows=4, columns=5):
    """uint8 volume whose slice z is values[z] everywhere."""
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None], (len(values), rows, columns))


# ---- ReadOCT -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("z", "channels"),
    [(0, [10, 10, 20]), (1, [10, 20, 30]), (2, [20, 30, 40]), (3, [30, 40, 40])],
    ids=["first slice repeats", "inner", "inner", "last slice repeats"],
)
def test_neighbouring_slices_become_channels(tmp_path, z, channels):
    write_case(
        tmp_path, constant_slices([10, 20, 30, 40]), constant_slices([0, 1, 2, 3]), constant_slices([1, 0, 1, 0])
    )
    image, mask, roi = ReadOCT(tmp_path)(Row("a", "Topcon", z))
    assert (image.shape, image.dtype) == ((4, 5, 3), np.uint8)
    assert (mask.shape, mask.dtype, roi.shape, roi.dtype) == ((4, 5), np.uint8, (4, 5), np.uint8)
    assert (image == channels).all()
    assert (mask == z).all()
    assert (roi == 1 - z % 2).all()


def test_image_keeps_rows_and_columns(tmp_path):
    volume = np.arange(1, 3 * 4 * 5 + 1, dtype=np.uint8).reshape(3, 4, 5)
    write_case(tmp_path, volume, volume % 4, volume % 2)
    image, mask, roi = ReadOCT(tmp_path)(Row("a", "Topcon", 1))
    for channel in range(3):
        np.testing.assert_array_equal(image[..., channel], volume[channel])
    np.testing.assert_array_equal(mask, volume[1] % 4)
    np.testing.assert_array_equal(roi, volume[1] % 2)


def test_without_neighbours_every_channel_is_the_slice(tmp_path):
    write_case(tmp_path, constant_slices([10, 20, 30]), constant_slices([0, 1, 2]), constant_slices([1, 1, 1]))
    row = Row("a", "Topcon", 1)
    image, mask, _ = ReadOCT(tmp_path, neighbours=False)(row)
    assert (image == 20).all()
    assert (mask == 1).all()
    cut = CutPatch(tmp_path, replace(PATCHES, shape=(4, 4), neighbours=False))
    image, mask, *_ = cut(Patch(row, False, 0.0, 0, 1, 0.0, None, 1, 0, 0))
    assert (image.shape, (image == 20).all(), (mask == 1).all()) == ((4, 4, 3), True, True)


def test_a_volume_of_one_slice_is_its_own_neighbour(tmp_path):
    write_case(tmp_path, constant_slices([7]), constant_slices([0]), constant_slices([1]))
    assert (ReadOCT(tmp_path)(Row("a", "Topcon", 0))[0] == 7).all()


def test_cases_stay_open_up_to_the_limit(tmp_path, monkeypatch):
    for name in "ab":
        write_case(tmp_path, constant_slices([1, 2]), constant_slices([0, 0]), constant_slices([1, 1]), name=name)
    opened = []
    open_volume = custom_nuts.open_volume
    monkeypatch.setattr(custom_nuts, "open_volume", lambda path: opened.append(path.name) or open_volume(path))
    rows = [Row(name, "Topcon", z) for name, z in (("a", 0), ("b", 0), ("a", 1), ("b", 1))]
    list(rows >> ReadOCT(tmp_path, open_cases=2))
    assert len(opened) == 2 * 3
    opened.clear()
    list(rows >> ReadOCT(tmp_path, open_cases=1))
    assert len(opened) == 4 * 3


@pytest.mark.parametrize("z", [-1, 2])
def test_a_slice_outside_the_volume_is_an_error(tmp_path, z):
    write_case(tmp_path, constant_slices([1, 2]), constant_slices([0, 0]), constant_slices([1, 1]))
    with pytest.raises(InputError, match=rf"Topcon_a\.raw: the CSV asks for slice {z}, the volume has slices 0 to 1"):
        ReadOCT(tmp_path)(Row("a", "Topcon", z))


def test_volumes_that_do_not_match_are_all_named(tmp_path):
    volume = constant_slices([1, 2])
    write_case(tmp_path, volume, volume.astype(np.uint16), volume[:, :3])
    with pytest.raises(InputError) as error:
        ReadOCT(tmp_path)(Row("a", "Topcon", 0))
    mask_message, roi_message = error.value.messages
    assert "oct_masks" in mask_message
    assert "uint16" in mask_message
    assert "roi_masks" in roi_message
    assert "(2, 3, 5)" in roi_message


def test_a_label_that_no_class_has_is_an_error(tmp_path):
    write_case(tmp_path, constant_slices([1, 2]), constant_slices([3, 4]), constant_slices([1, 1]))
    read_oct = ReadOCT(tmp_path)
    assert (read_oct(Row("a", "Topcon", 0))[1] == 3).all()
    with pytest.raises(InputError, match=r"oct_masks.Topcon_a\.raw: slice 1 holds the label 4, expected at most 3"):
        read_oct(Row("a", "Topcon", 1))


@pytest.mark.parametrize("kind", ["oct_imgs", "oct_masks", "roi_masks"])
def test_a_file_cut_short_while_it_is_mapped_is_an_error(tmp_path, kind):
    # Without the look at its size, reading it is a bus error that ends the process.
    shape = (2, 300, 512)
    write_case(tmp_path, np.ones(shape, np.uint8), np.ones(shape, np.uint8), np.ones(shape, np.uint8))
    read_oct, cut = ReadOCT(tmp_path), CutPatch(tmp_path, PATCHES)
    patch = Patch(Row("a", "Topcon", 1), False, 0.0, 0, 0, 0.0, None, 0, 0, 0)
    read_oct(patch.row)
    cut(patch)
    raw = tmp_path / kind / "Topcon_a.raw"
    raw.write_bytes(raw.read_bytes()[:300])  # the same file, shorter
    with pytest.raises(InputError, match=rf"{kind}.Topcon_a\.raw: 300 bytes, expected 307200"):
        read_oct(patch.row)
    if kind != "roi_masks":  # which cutting does not read
        with pytest.raises(InputError, match="300 bytes"):
            cut(patch)


# ---- Augmentation --------------------------------------------------------------------------------------------------
def rotate(image, angle_degrees):
    source_map, box = rotation_map(image.shape[:2], angle_degrees)
    return rotated(image[box], source_map)


@pytest.mark.parametrize("angle_degrees", [1.7, 5.0, 9.9])
def test_rotation_agrees_with_scikit_image(angle_degrees):
    image = np.random.default_rng(0).integers(1, 256, (61, 40, 3), dtype=np.uint8)
    expected = skimage.transform.rotate(image, angle_degrees, order=0, preserve_range=True).astype(np.uint8)
    turned = rotate(image, angle_degrees)
    assert turned.dtype == np.uint8
    assert (turned != expected).mean() < 0.001  # ties are rounded either way
    assert (turned == 0).any()  # corners that come in from outside


def test_rotation_by_a_right_angle_is_exact_and_counter_clockwise():
    image = np.arange(1, 82, dtype=np.uint8).reshape(9, 9)
    np.testing.assert_array_equal(rotate(image, 90), np.rot90(image))


def test_a_rotated_window_is_that_part_of_the_whole_rotated_image():
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (90, 70, 3), dtype=np.uint8)
    for _ in range(200):
        angle_degrees = rng.uniform(-10, 10)
        top, left = rng.integers(0, 90 - 30), rng.integers(0, 70 - 20)
        window = (slice(top, top + 30), slice(left, left + 20))
        source_map, box = rotation_map(image.shape[:2], angle_degrees, window)
        np.testing.assert_array_equal(rotated(image[box], source_map), rotate(image, angle_degrees)[window])
        assert all(part.stop - part.start <= size for part, size in zip(box, (30 + 6, 20 + 8), strict=True))


def test_a_b_scan_comes_untouched_mirrored_and_rotated():
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (30, 20, 3), dtype=np.uint8)
    mask, roi = (rng.integers(0, high, (30, 20), dtype=np.uint8) for high in (4, 2))
    counts = {(mirrored, turned): 0 for mirrored in (False, True) for turned in (False, True)}
    samples = [("row", image, mask, roi)] * 1000
    for row, mirrored, angle_degrees, *planes in samples >> MirrorAndRotate(0.5, rng):
        assert row == "row"
        assert 0 <= angle_degrees <= 10
        counts[mirrored, angle_degrees > 0] += 1
        for plane, original in zip(planes, (image[..., 1], mask, roi), strict=True):
            flipped = np.ascontiguousarray(original[:, ::-1]) if mirrored else original
            np.testing.assert_array_equal(plane, rotate(flipped, angle_degrees))
    # Binomial draws; tolerances are four standard deviations.
    assert counts[False, False] == 1000
    assert counts[True, False] == pytest.approx(500, abs=63)
    assert counts[False, True] == pytest.approx(500, abs=63)
    assert counts[True, True] == pytest.approx(250, abs=55)


def test_without_augmentation_b_scans_stay_as_they_are():
    sample = ("row", np.ones((3, 4, 3), np.uint8), np.ones((3, 4), np.uint8), np.ones((3, 4), np.uint8))
    assert [variant[1:3] for variant in [sample] * 50 >> MirrorAndRotate(0.0, np.random.default_rng(0))] == (
        [(False, 0.0)] * 50
    )


# ---- Centres -------------------------------------------------------------------------------------------------------
def patch_centers(roi, patch_shape, rng):
    """Centres (row, column) of a B-scan's patches: 12 along the middle of the ROI, a fifth as many from anywhere."""
    patches = decided_patches(roi, roi, patch_shape, 12, a_fifth, rng, patch_border=0)
    corners = [(rows.start, columns.start) for (rows, columns), _ in patches]
    return np.reshape(corners, (-1, 2)).astype(int) + np.array(patch_shape) // 2


def test_centers_are_labelled_positive_as_nutsmls_are():
    roi = np.full((300, 308), 255, np.uint8)
    centers = sample_oct_patch_centers(roi, PATCH, 3, rnd=np.random.default_rng(0))
    assert (centers.shape, centers[:, 2].tolist()) == ((3, 3), [1, 1, 1])
    as_zero_and_one = sample_oct_patch_centers(roi // 255, PATCH, 3, pos=1, rnd=np.random.default_rng(0))
    np.testing.assert_array_equal(centers, as_zero_and_one)
    outside = sample_oct_patch_centers(roi, PATCH, 3, pos=0, neg=255, rnd=np.random.default_rng(0))
    assert outside.shape == (0, 3)
    assert len(sample_oct_patch_centers(roi, PATCH, 3)) == 3  # a fresh generator


def test_a_roi_of_other_values_is_an_error():
    roi = np.ones((300, 308), np.uint8)
    with pytest.raises(ValueError, match="roimask holds the values 1, expected pos=255 inside and neg=0 outside"):
        sample_oct_patch_centers(roi, PATCH, 12)


def test_centers_are_columns_every_ten_pixels_near_the_middle_of_the_roi():
    roi = np.zeros((300, 308), np.uint8)
    roi[140:160] = 1  # middle row 149
    rng = np.random.default_rng(0)
    seen_columns, seen_rows = set(), set()
    for _ in range(200):
        centers = sample_oct_patch_centers(roi, PATCH, 12, pos=1, rnd=rng)[:, :2]
        assert centers.shape == (12, 2)
        assert len(set(centers[:, 1])) == 12
        seen_rows.update(centers[:, 0].tolist())
        seen_columns.update(centers[:, 1].tolist())
    assert seen_columns == set(range(64, 245, 10))  # 308 - 64 = 244 is the last where 128 columns fit
    assert seen_rows == set(range(139, 160))


def test_a_patchs_row_follows_the_roi_in_its_own_column():
    roi = np.zeros((200, 100), np.uint8)
    for column in range(100):
        roi[30 + column : 51 + column, column] = 1  # middle: row 40 + column
    centers = sample_oct_patch_centers(roi, (32, 16), 99, pos=1, rnd=np.random.default_rng(0))[:, :2]
    assert sorted(centers[:, 1]) == [8, 18, 28, 38, 48, 58, 68, 78, 88]
    assert (np.abs(centers[:, 0] - (40 + centers[:, 1])) <= 10).all()


@pytest.mark.parametrize(("roi_rows", "row"), [(slice(0, 10), 128), (slice(290, 300), 172)])
def test_centers_are_moved_so_that_the_patch_fits(roi_rows, row):
    roi = np.zeros((300, 308), np.uint8)
    roi[roi_rows] = 1
    centers = sample_oct_patch_centers(roi, PATCH, 12, pos=1, rnd=np.random.default_rng(0))[:, :2]
    assert (centers[:, 0] == row).all()


def test_columns_without_roi_are_no_candidates():
    roi = np.zeros((300, 308), np.uint8)
    roi[100:200, 100:130] = 1
    centers = sample_oct_patch_centers(roi, PATCH, 12, pos=1, rnd=np.random.default_rng(0))[:, :2]
    assert sorted(centers[:, 1]) == [104, 114, 124]


@pytest.mark.parametrize(("columns", "expected"), [(128, [64]), (137, [64]), (148, [64, 74, 84])])
def test_narrow_scans_have_fewer_columns(columns, expected):
    roi = np.ones((256, columns), np.uint8)
    centers = sample_oct_patch_centers(roi, PATCH, 12, pos=1, rnd=np.random.default_rng(0))[:, :2]
    assert sorted(centers.tolist()) == [[128, column] for column in expected]


def test_patches_of_odd_size_fit_as_well():
    rng = np.random.default_rng(0)
    roi = np.ones((40, 33), np.uint8)
    centers = np.concatenate([patch_centers(roi, (17, 9), rng) for _ in range(50)])
    top_left = centers - (8, 4)
    assert top_left.min(axis=0).tolist() == [0, 0]
    assert (top_left.max(axis=0) <= (40 - 17, 33 - 9)).all()


def test_a_fifth_as_many_again_come_from_anywhere_in_the_roi():
    roi = np.zeros((500, 512), np.uint8)
    roi[140:340, 70:400] = 1  # every pixel can be the centre of a patch
    rng = np.random.default_rng(0)
    anywhere = []
    for _ in range(200):
        centers = patch_centers(roi, PATCH, rng)
        assert len(centers) == 12 + 2
        assert (np.abs(centers[:12, 0] - 239) <= 10).all()
        anywhere.extend(centers[12:])
    rows, columns = np.array(anywhere).T
    assert roi[rows, columns].all()
    # 400 even draws come close to every side of the ROI.
    assert rows.min() < 145
    assert rows.max() > 334
    assert columns.min() < 76
    assert columns.max() > 393
    assert len(set(columns % 10)) == 10


def test_patches_from_anywhere_are_moved_so_that_they_fit():
    roi = np.ones((260, 140), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(50):
        centers = patch_centers(roi, PATCH, rng)
        assert (centers >= (128, 64)).all()
        assert (centers <= (132, 76)).all()


def test_an_empty_roi_has_no_centers():
    empty = np.zeros((300, 308), np.uint8)
    assert patch_centers(empty, PATCH, np.random.default_rng(0)).shape == (0, 2)


@pytest.mark.parametrize("rows", [256, 257, 300, 496, 1024])
def test_patches_fit_whatever_the_height_and_columns_are_drawn_evenly(rows):
    rng = np.random.default_rng(rows)
    roi = np.zeros((rows, 512), np.uint8)
    first_rows = rng.integers(0, rows, 512)
    for column, first in enumerate(first_rows):
        roi[first : first + 100, column] = 1
    centers = np.concatenate([patch_centers(roi, PATCH, rng) for _ in range(400)])
    assert (centers >= (128, 64)).all()
    assert (centers <= (rows - 128, 512 - 64)).all()
    along_middle = centers.reshape(400, 14, 2)[:, :12, 1]
    columns, counts = np.unique(along_middle, return_counts=True)
    assert columns.tolist() == list(range(64, 449, 10))  # 39 columns, of which 12 are drawn
    # Each is drawn with probability 12/39: 123 of 400, standard deviation 9.2; four of them.
    assert counts.min() > 123 - 37
    assert counts.max() < 123 + 37


# ---- Patches -------------------------------------------------------------------------------------------------------
def plan(image, mask, roi, seed=0, **settings):
    """The patches of a B-scan as it is; `image` may be its middle slice alone."""
    sample = (Row("a", "Topcon", 0), False, 0.0, image if image.ndim == 2 else image[..., 1].copy(), mask, roi)
    rng = np.random.default_rng(seed)
    return list([sample] >> PlanRetouchPatches(replace(PATCHES, **settings), rng))


def test_patches_lie_around_their_centers():
    ones = np.ones((300, 308), np.uint8)
    centers = patch_centers(ones, PATCH, np.random.default_rng(0))
    patches = plan(ones, ones, ones)
    assert len(patches) == 14
    assert [(patch.top + 128, patch.left + 64) for patch in patches] == [tuple(center) for center in centers.tolist()]


@pytest.mark.parametrize(
    ("row", "column", "inside"),
    # 42 pixels in from the border of 256 x 128: rows 42 to 213, columns 42 to 85.
    [(42, 42, 1), (213, 85, 1), (41, 64, 0), (214, 64, 0), (128, 41, 0), (128, 86, 0), (0, 0, 0)],
)
@pytest.mark.parametrize("label", [1, 2, 3])
def test_a_patch_holds_a_fluid_that_reaches_inside_its_border(row, column, inside, label):
    mask = np.zeros(PATCH, np.uint8)  # the B-scan has the size of a patch, so the patch is the whole B-scan
    mask[row, column] = label
    (patch,) = plan(np.ones(PATCH, np.uint8), mask, np.ones(PATCH, np.uint8))
    assert patch[-3:] == tuple(inside * (label == fluid) for fluid in (1, 2, 3))


def test_the_border_can_be_chosen():
    mask = np.zeros(PATCH, np.uint8)
    mask[0, 127] = 3
    ones = np.ones(PATCH, np.uint8)
    (patch,) = plan(ones, mask, ones, patch_border=0)
    assert patch[-3:] == (0, 0, 1)
    with pytest.raises(ValueError, match="patch_border must be less than half"):
        plan(ones, mask, ones, patch_border=64)


def test_the_invalid_share_is_counted_in_the_patch():
    ones = np.ones((256, 512), np.uint8)
    middle_slice = ones.copy()
    middle_slice[:, :100] = 0
    for patch in plan(middle_slice, ones, ones):
        assert patch.invalid_share == pytest.approx(max(100 - patch.left, 0) / 128)


def test_an_empty_roi_yields_no_patches():
    empty = np.zeros((300, 308), np.uint8)
    assert plan(empty + 1, empty, empty) == []


def test_a_b_scan_smaller_than_a_patch_is_an_error():
    ones = np.ones((300, 127), np.uint8)
    with pytest.raises(ValueError, match=r"300 x 127 .* no patch of 256 x 128"):
        plan(ones, ones, ones)
    with pytest.raises(ValueError, match=r"300 x 127 .* no patch of 256 x 128"):
        sample_oct_patch_centers(ones, PATCH, 12, pos=1)


def test_both_ways_to_patches_give_the_same(tmp_path):
    """Cut out at once in a plain nutsml pipeline, and decided on first, as training does."""
    rng = np.random.default_rng(1)
    volume = rng.integers(1, 256, (3, 300, 308), dtype=np.uint8)
    masks = np.zeros_like(volume)
    masks[1, 100:140, 60:200] = 2
    rois = np.zeros_like(volume)
    rois[:, 60:220, 20:280] = 1
    write_case(tmp_path, volume, masks, rois)
    rows = [Row("a", "Topcon", z) for z in range(3)]
    samples = [(row.slice, *sample) for row, sample in zip(rows, rows >> ReadOCT(tmp_path), strict=True)]
    plain = {"pos": 1, "rnd": np.random.default_rng(5), "patch_border": 42}
    cut_at_once = list(samples >> ImagePatchesByMaskRetouch_resampled(1, 2, 3, PATCH, 12, **plain))
    whole = [(row, *sample) for row, sample in zip(rows, rows >> ReadOCT(tmp_path), strict=True)]
    planned = list(
        whole >> MirrorAndRotate(0.0, np.random.default_rng(0)) >> PlanRetouchPatches(PATCHES, np.random.default_rng(5))
    )
    assert len(planned) == len(cut_at_once) == 3 * 14
    for patch, (number, image, mask, *labels) in zip(planned, cut_at_once, strict=True):
        cut_image, cut_mask, *cut_labels = CutPatch(tmp_path, PATCHES)(patch)
        assert number == patch.row.slice
        assert labels == cut_labels
        np.testing.assert_array_equal(image, cut_image)
        np.testing.assert_array_equal(mask, cut_mask)
    assert {tuple(sample[3:]) for sample in cut_at_once} == {(0, 0, 0), (0, 1, 0)}


def test_patches_with_labels_of_one_b_scan():
    """By hand: a B-scan of a patch's size gives one patch by its only column, and as many from anywhere as asked."""
    image = np.arange(256 * 128).reshape(PATCH)
    mask = np.zeros(PATCH, np.uint8)
    mask[100, 60] = 3
    roi = np.full(PATCH, 255, np.uint8)
    patches = list(sample_patches_entropy_mask(image, mask, roi, PATCH, 12, 4, rnd=np.random.default_rng(0)))
    assert len(patches) == 1 + 4
    for image_patch, mask_patch, *labels in patches:
        np.testing.assert_array_equal(image_patch, image)
        np.testing.assert_array_equal(mask_patch, mask)
        assert labels == [0, 0, 1]
    assert sample_patches_retouch_mask is sample_patches_entropy_mask


def test_patches_without_fluid_are_dropped_with_their_probability():
    rng = np.random.default_rng(0)
    dropped = sum(drop_patch(("image", "mask", 0, 0, 0), 0.75, rng) for _ in range(4000))
    assert dropped == pytest.approx(3000, abs=110)  # four standard deviations of a binomial draw
    for fluids in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert not any(drop_patch(("image", "mask", *fluids), 1.0, rng) for _ in range(50))
    assert not drop_patch(("image", "mask", 0, 0, 0), 0.0, rng)
    assert drop_patch(("image", "mask", 0, 0, 0), 1.0, rng)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("angle_degrees", [0.0, 3.3, 10.0])
@pytest.mark.parametrize("z", [0, 1, 2])
def test_a_cut_patch_is_that_part_of_the_whole_turned_b_scan(tmp_path, mirrored, angle_degrees, z):
    rng = np.random.default_rng(1)
    volume = rng.integers(1, 256, (3, 300, 308), dtype=np.uint8)
    masks = rng.integers(0, 4, volume.shape, dtype=np.uint8)
    write_case(tmp_path, volume, masks, masks % 2)
    row = Row("a", "Topcon", z)
    image, mask, _ = ReadOCT(tmp_path)(row)
    if mirrored:
        image, mask = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
    image, mask = rotate(image, angle_degrees), rotate(mask, angle_degrees)
    cut = CutPatch(tmp_path, PATCHES)
    for top, left in [(0, 0), (44, 180), (0, 180), (44, 0), (21, 97)]:
        patch = cut(Patch(row, mirrored, angle_degrees, top, left, 0.0, None, 1, 0, 1))
        np.testing.assert_array_equal(patch[0], image[top : top + 256, left : left + 128])
        np.testing.assert_array_equal(patch[1], mask[top : top + 256, left : left + 128])
        assert patch[2:] == (1, 0, 1)
        assert all(part.flags.owndata for part in patch[:2])  # no view of a file that may be gone
