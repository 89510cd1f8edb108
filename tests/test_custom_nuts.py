from collections import namedtuple

import numpy as np
import pytest
import skimage.transform

from utils import custom_nuts
from utils.custom_nuts import (
    ImagePatchesByMaskRetouch_resampled,
    ReadOCT,
    rotate_nearest,
    sample_oct_patch_centers,
    sample_patches_entropy_mask,
)
from utils.errors import InputError
from utils.mhd import write_volume

Row = namedtuple("Row", "image_name vendor slice")
PATCH = (256, 128)


def write_case(folder, volume, mask, roi, vendor="Topcon", name="a"):
    for kind, voxels in (("oct_imgs", volume), ("oct_masks", mask), ("roi_masks", roi)):
        write_volume(folder / kind / f"{vendor}_{name}.mhd", voxels, (0.0117, 0.003872, 0.047))


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
    with pytest.raises(InputError, match=rf"Topcon_a\.mhd: the CSV asks for slice {z}, the volume has slices 0 to 1"):
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


# ---- Rotation ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("angle_degrees", [1.7, 5.0, 9.9])
def test_rotation_agrees_with_scikit_image(angle_degrees):
    image = np.random.default_rng(0).integers(1, 256, (61, 40, 3), dtype=np.uint8)
    expected = skimage.transform.rotate(image, angle_degrees, order=0, preserve_range=True).astype(np.uint8)
    rotated = rotate_nearest(image, angle_degrees)
    assert rotated.dtype == np.uint8
    assert (rotated != expected).mean() < 0.001  # ties are rounded either way
    assert (rotated == 0).any()  # corners that come in from outside


def test_rotation_by_a_right_angle_is_exact_and_counter_clockwise():
    image = np.arange(1, 82, dtype=np.uint8).reshape(9, 9)
    np.testing.assert_array_equal(rotate_nearest(image, 90), np.rot90(image))
    np.testing.assert_array_equal(rotate_nearest(image[:, ::-1], 90), np.rot90(image[:, ::-1]))  # a view, as mirrored


# ---- Centres -------------------------------------------------------------------------------------------------------
def test_centers_are_columns_every_ten_pixels_near_the_middle_of_the_roi():
    roi = np.zeros((300, 308), np.uint8)
    roi[140:160] = 1  # middle row 149
    rng = np.random.default_rng(0)
    seen_columns, seen_rows = set(), set()
    for _ in range(200):
        centers = sample_oct_patch_centers(roi, PATCH, 12, rng)
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
    centers = sample_oct_patch_centers(roi, (32, 16), 99, np.random.default_rng(0))
    assert sorted(centers[:, 1]) == [8, 18, 28, 38, 48, 58, 68, 78, 88]
    assert (np.abs(centers[:, 0] - (40 + centers[:, 1])) <= 10).all()


@pytest.mark.parametrize(("roi_rows", "row"), [(slice(0, 10), 128), (slice(290, 300), 172)])
def test_centers_are_moved_so_that_the_patch_fits(roi_rows, row):
    roi = np.zeros((300, 308), np.uint8)
    roi[roi_rows] = 1
    centers = sample_oct_patch_centers(roi, PATCH, 12, np.random.default_rng(0))
    assert (centers[:, 0] == row).all()


def test_columns_without_roi_are_no_candidates():
    roi = np.zeros((300, 308), np.uint8)
    roi[100:200, 100:130] = 1
    centers = sample_oct_patch_centers(roi, PATCH, 12, np.random.default_rng(0))
    assert sorted(centers[:, 1]) == [104, 114, 124]


@pytest.mark.parametrize(("columns", "expected"), [(128, [64]), (137, [64]), (148, [64, 74, 84])])
def test_narrow_scans_have_fewer_columns(columns, expected):
    centers = sample_oct_patch_centers(np.ones((256, columns), np.uint8), PATCH, 12, np.random.default_rng(0))
    assert sorted(centers.tolist()) == [[128, column] for column in expected]


def test_patches_of_odd_size_fit_as_well():
    rng = np.random.default_rng(0)
    roi = np.ones((40, 33), np.uint8)
    centers = np.concatenate([sample_patches_entropy_mask(roi, (17, 9), 12, rng) for _ in range(50)])
    top_left = centers - (8, 4)
    assert top_left.min(axis=0).tolist() == [0, 0]
    assert (top_left.max(axis=0) <= (40 - 17, 33 - 9)).all()


def test_a_fifth_as_many_again_come_from_anywhere_in_the_roi():
    roi = np.zeros((500, 512), np.uint8)
    roi[140:340, 70:400] = 1  # every pixel can be the centre of a patch
    rng = np.random.default_rng(0)
    anywhere = []
    for _ in range(200):
        centers = sample_patches_entropy_mask(roi, PATCH, 12, rng)
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
        centers = sample_patches_entropy_mask(roi, PATCH, 12, rng)
        assert (centers >= (128, 64)).all()
        assert (centers <= (132, 76)).all()


def test_an_empty_roi_has_no_centers():
    empty = np.zeros((300, 308), np.uint8)
    assert sample_patches_entropy_mask(empty, PATCH, 12, np.random.default_rng(0)).shape == (0, 2)


# ---- Patches -------------------------------------------------------------------------------------------------------
def patches_of(samples, seed=0, **settings):
    return list(samples >> ImagePatchesByMaskRetouch_resampled(PATCH, 12, np.random.default_rng(seed), **settings))


def test_patches_are_what_lies_around_their_centers():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (300, 308, 3), dtype=np.uint8)
    mask = rng.integers(0, 4, (300, 308), dtype=np.uint8)
    roi = np.ones((300, 308), np.uint8)
    centers = sample_patches_entropy_mask(roi, PATCH, 12, np.random.default_rng(0))
    patches = patches_of([(image, mask, roi)])
    assert len(patches) == 14
    for (row, column), (image_patch, mask_patch, *_) in zip(centers, patches, strict=True):
        np.testing.assert_array_equal(image_patch, image[row - 128 : row + 128, column - 64 : column + 64])
        np.testing.assert_array_equal(mask_patch, mask[row - 128 : row + 128, column - 64 : column + 64])
        assert image_patch.base is None  # a view would keep the B-scan in memory
        assert mask_patch.base is None


@pytest.mark.parametrize(
    ("row", "column", "inside"),
    # 42 pixels in from the border of 256 x 128: rows 42 to 213, columns 42 to 85.
    [(42, 42, 1), (213, 85, 1), (41, 64, 0), (214, 64, 0), (128, 41, 0), (128, 86, 0), (0, 0, 0)],
)
@pytest.mark.parametrize("label", [1, 2, 3])
def test_a_patch_holds_a_fluid_that_reaches_inside_its_border(row, column, inside, label):
    mask = np.zeros(PATCH, np.uint8)  # the B-scan has the size of a patch, so the patch is the whole B-scan
    mask[row, column] = label
    ((_, mask_patch, *fluids),) = patches_of([(np.zeros((*PATCH, 3), np.uint8), mask, np.ones(PATCH, np.uint8))])
    np.testing.assert_array_equal(mask_patch, mask)
    assert fluids == [inside * (label == fluid) for fluid in (1, 2, 3)]


def test_border_and_labels_can_be_chosen():
    mask = np.zeros(PATCH, np.uint8)
    mask[0, 127] = 3
    sample = (np.zeros((*PATCH, 3), np.uint8), mask, np.ones(PATCH, np.uint8))
    ((_, _, *fluids),) = patches_of([sample], patch_border=0, fluid_labels=(3, 2, 1))
    assert fluids == [1, 0, 0]
    with pytest.raises(ValueError, match="patch_border must be less than half"):
        patches_of([sample], patch_border=64)


def test_an_empty_roi_yields_no_patches():
    image, empty = np.ones((300, 308, 3), np.uint8), np.zeros((300, 308), np.uint8)
    assert patches_of([(image, empty, empty)]) == []


def test_a_b_scan_smaller_than_a_patch_is_an_error():
    image, mask = np.ones((300, 127, 3), np.uint8), np.ones((300, 127), np.uint8)
    with pytest.raises(InputError, match=r"300 x 127 .* no patch of 256 x 128"):
        patches_of([(image, mask, mask)])
