"""Where volumes lie: SimpleITK and nibabel say where a voxel is, SimpleITK's Flip and PermuteAxes reorder axes."""

import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK

from utils.errors import InputError
from utils.volumes.geometry import NOT_STATED, Placement, Reordering, find_reordering, placement_of_planes
from utils.volumes.mhd import (
    VolumeHeader,
    read_header,
    read_volume,
    read_volume_onto,
    reordering_onto,
    volume_writer,
    write_volume,
)

SPACING_MM = (0.5, 0.25, 2.0)
VOXELS = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
OBLIQUE = (0.36, 0.48, -0.8, -0.8, 0.6, 0.0, 0.48, 0.64, 0.6)  # orthonormal, no two entries of a column alike
ORIGIN_MM = (10.0, -20.0, 30.5)


def image_of(voxels=VOXELS, direction=OBLIQUE, origin_mm=ORIGIN_MM, spacing_mm=SPACING_MM):
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing(spacing_mm)
    image.SetDirection(direction)
    image.SetOrigin(origin_mm)
    return image


def written(folder, name, image):
    folder.mkdir(exist_ok=True)
    SimpleITK.WriteImage(image, str(folder / name))
    return folder / name


# ---- Files ----------------------------------------------------------------------------------------------------------
def test_written_direction_and_origin_are_what_simpleitk_reads(tmp_path):
    write_volume(tmp_path / "a.mhd", VOXELS, SPACING_MM, Placement(OBLIQUE, ORIGIN_MM))
    image = SimpleITK.ReadImage(str(tmp_path / "a.mhd"))
    # The origin, and from there 4 columns, 3 rows and 2 slices along the matrix's columns.
    by_hand = np.array(ORIGIN_MM) + 4 * 0.5 * np.array([0.36, -0.8, 0.48])
    by_hand = by_hand + 3 * 0.25 * np.array([0.48, 0.6, 0.64]) + 2 * 2.0 * np.array([-0.8, 0.0, 0.6])
    assert image.TransformIndexToPhysicalPoint((4, 3, 2)) == pytest.approx(by_hand)
    assert image.TransformIndexToPhysicalPoint((0, 0, 0)) == pytest.approx(ORIGIN_MM)


def test_by_default_the_first_voxel_is_at_0_and_nothing_is_turned(tmp_path):
    with volume_writer(tmp_path / "a.mhd", VOXELS.shape, VOXELS.dtype, SPACING_MM) as write_slice:
        for slice_ in VOXELS:
            write_slice(slice_)
    text = (tmp_path / "a.mhd").read_text()
    assert "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n" in text
    assert read_header(tmp_path / "a.mhd").placement == NOT_STATED


@pytest.mark.parametrize("name", ["a.mhd", "a.mha", "a.nii", "a.nii.gz", "a.nrrd"])
def test_read_direction_and_origin_are_those_of_simpleitk(tmp_path, name):
    placement = read_header(written(tmp_path, name, image_of())).placement
    assert placement.direction == pytest.approx(OBLIQUE, abs=1e-6)
    assert placement.origin_mm == pytest.approx(ORIGIN_MM, abs=1e-5)
    assert placement.stated


def test_a_nifti_of_nibabel_lies_where_nibabel_has_it(tmp_path):
    """NIfTI counts to the right and the front, ITK to the left and the back."""
    affine = np.eye(4)
    affine[:3] = np.column_stack([np.reshape(OBLIQUE, (3, 3)) * SPACING_MM, ORIGIN_MM])
    nibabel.save(nibabel.Nifti1Image(VOXELS.transpose(2, 1, 0), affine), tmp_path / "a.nii.gz")
    header = read_header(tmp_path / "a.nii.gz")
    write_volume(tmp_path / "labels.mhd", VOXELS, header.spacing_mm, header.placement)
    labels = SimpleITK.ReadImage(str(tmp_path / "labels.mhd"))
    for index in itertools.product((0, 4), (0, 3), (0, 2)):
        right, front, up = nibabel.affines.apply_affine(nibabel.load(tmp_path / "a.nii.gz").affine, index)
        assert labels.TransformIndexToPhysicalPoint(index) == pytest.approx((-right, -front, up), abs=1e-5)


def test_what_programs_write_that_know_of_no_place_is_not_stated(tmp_path):
    for affine in (np.diag([0.5, 0.25, 2, 1]), np.diag([-0.5, -0.25, 2, 1])):
        nibabel.save(nibabel.Nifti1Image(VOXELS.transpose(2, 1, 0), affine), tmp_path / "a.nii.gz")
        assert not read_header(tmp_path / "a.nii.gz").placement.stated
    turned = image_of(direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1), origin_mm=(0, 0, 0))
    assert read_header(written(tmp_path, "turned.mha", turned)).placement.stated
    write_volume(tmp_path / "zeros.mhd", VOXELS, SPACING_MM)
    text = (tmp_path / "zeros.mhd").read_text()
    (tmp_path / "zeros.mhd").write_text(text.replace("1 0 0 0 1 0 0 0 1", "0 0 0 0 0 0 0 0 0"))
    assert read_header(tmp_path / "zeros.mhd").placement == NOT_STATED
    with pytest.raises(InputError, match=r"zeros\.mhd: .*the axes of its direction are not three"):
        read_volume(tmp_path / "zeros.mhd")
    flat = SimpleITK.Image([5, 4], SimpleITK.sitkUInt8)
    flat.SetOrigin((1, 2))
    flat.SetDirection((0, 1, -1, 0))
    placement = read_header(written(tmp_path, "flat.mha", flat)).placement
    assert (placement.direction, placement.origin_mm) == ((0, 1, 0, -1, 0, 0, 0, 0, 1), (1, 2, 0))


# ---- Reordering -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("direction", [OBLIQUE, (1, 0, 0, 0, 1, 0, 0, 0, 1)])
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_every_order_of_axes_is_put_right(tmp_path, axes, direction):
    original = image_of(direction=direction)
    onto = written(tmp_path, "onto.mha", original)
    permuted = SimpleITK.PermuteAxes(original, axes)
    for mirrored in itertools.product((False, True), repeat=3):
        path = written(tmp_path, "other.mha", SimpleITK.Flip(permuted, mirrored))
        np.testing.assert_array_equal(read_volume_onto(path, onto), VOXELS)
        is_the_same = axes == (0, 1, 2) and not any(mirrored)
        assert (reordering_onto(path, onto).note is None) == is_the_same


def test_what_was_done_is_said():
    straight = VolumeHeader((3, 4, 5), SPACING_MM, "uint8")
    mirrored = Placement((1, 0, 0, 0, -1, 0, 0, 0, 1), (0, 0.75, 0), stated=True)
    reordering = find_reordering(VolumeHeader((3, 4, 5), SPACING_MM, "uint8", mirrored), straight)
    assert reordering == Reordering(mirrored=(False, True, False), note=reordering.note)
    assert reordering.note == "stored in another order by its direction; put right: y mirrored"


def moved(image, *voxels):
    """`image` moved by so many of its own voxels along x, y, z."""
    return image_of(direction=image.GetDirection(), origin_mm=image.TransformContinuousIndexToPhysicalPoint(voxels))


def test_less_than_half_a_voxel_is_rounding_and_more_is_elsewhere(tmp_path):
    onto = written(tmp_path, "onto.mha", image_of())
    for axis in range(3):
        near, far = np.eye(3)[axis] * 0.45, np.eye(3)[axis] * 0.55
        np.testing.assert_array_equal(
            read_volume_onto(written(tmp_path, "near.mha", moved(image_of(), *near)), onto), VOXELS
        )
        with pytest.raises(InputError, match=r"far\.mha has direction .* expected .* as in .*onto\.mha; resample"):
            read_volume_onto(written(tmp_path, "far.mha", moved(image_of(), *far)), onto)
    tilted = np.reshape(OBLIQUE, (3, 3)) @ [[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]
    with pytest.raises(InputError, match="has direction"):
        read_volume_onto(written(tmp_path, "tilted.mha", image_of(direction=tilted.ravel())), onto)


def test_other_size_and_spacing_are_told_as_such(tmp_path):
    onto = written(tmp_path, "onto.mha", image_of())
    with pytest.raises(InputError, match="has 5 x 3 x 3 voxels, expected 5 x 4 x 3 voxels as in"):
        read_volume_onto(written(tmp_path, "a.mha", image_of(VOXELS[:, :3])), onto)
    with pytest.raises(InputError, match=r"spacing of 0\.5 x 0\.25 x 2\.1 mm, expected 0\.5 x 0\.25 x 2 mm as in"):
        read_volume_onto(written(tmp_path, "a.mha", image_of(spacing_mm=(0.5, 0.25, 2.1))), onto)


@pytest.mark.filterwarnings("error")
def test_a_spacing_of_zero_is_no_other_place():
    """The checks of spacings say what is wrong with it."""
    header = VolumeHeader((3, 4, 5), (0.5, 0.0, 2.0), "uint8", Placement(OBLIQUE, ORIGIN_MM, stated=True))
    assert find_reordering(header, header) == Reordering()


@pytest.mark.parametrize(
    ("direction", "voxels", "is_taken"),
    [
        ((1, 0, 0, 0, 1, 0, 0, 0, 1), VOXELS, True),  # moved alone
        ((0.6, -0.8, 0, 0.8, 0.6, 0, 0, 0, 1), VOXELS, True),  # x is nearest to y and y to x: another size
        ((0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1), VOXELS, True),  # tilted
        ((1, 0, 0, 0, 0, 1, 0, -1, 0), VOXELS, True),  # rows run down, slices back, as in a scan
        ((1, 0, 0, 0, 0, 1, 0, -1, 0), VOXELS.reshape(4, 3, 5)[:3], False),  # the same with as many rows as slices
        ((1, 0, 0, 0, -1, 0, 0, 0, 1), VOXELS, False),  # upside down
        ((-1, 0, 0, 0, -1, 0, 0, 0, 1), VOXELS, False),
        ((1, 0, 0, 0, 1, 0, 0, 0, -1), VOXELS[:1], True),  # a single slice cannot be backwards
    ],
)
@pytest.mark.parametrize("origin_mm", [ORIGIN_MM, (0.0, 0.9, 0.0)])
def test_a_missing_placement_is_filled_in_where_nothing_speaks_against_it(
    tmp_path, direction, voxels, is_taken, origin_mm
):
    placed = written(tmp_path, "placed.mha", image_of(voxels, direction, origin_mm))
    write_volume(tmp_path / "plain.mhd", voxels, SPACING_MM)
    if is_taken:
        np.testing.assert_array_equal(read_volume_onto(tmp_path / "plain.mhd", placed), voxels)
        assert "states no direction and origin" in reordering_onto(tmp_path / "plain.mhd", placed).note
    else:
        with pytest.raises(InputError, match="if their voxels are in the same order"):
            read_volume_onto(tmp_path / "plain.mhd", placed)
    with pytest.raises(InputError, match="if their voxels are in the same order"):  # it says that it lies elsewhere
        read_volume_onto(placed, tmp_path / "plain.mhd")


# ---- Placements -----------------------------------------------------------------------------------------------------
def test_after_resampling_the_first_rows_upper_edge_stays():
    """Half a row of 0.25 mm above the first centre, then half a row of 0.1 mm below that edge, along y."""
    placement = Placement(OBLIQUE, ORIGIN_MM, stated=True).with_row_spacing(0.25, 0.1)
    along_y = np.array([0.48, 0.6, 0.64])
    assert placement.origin_mm == pytest.approx(np.array(ORIGIN_MM) - 0.125 * along_y + 0.05 * along_y)
    assert placement.direction == OBLIQUE


def test_planes_of_dicom():
    """Columns to the left, rows down; z, along the normal, to the front or the back, as the slices follow."""
    orientation = [1, 0, 0, 0, 0, -1]
    back = [(orientation, [1, 2 + n, 3]) for n in range(3)]
    assert placement_of_planes(back) == Placement((1, 0, 0, 0, 0, 1, 0, -1, 0), (1, 2, 3), True, (0, 1, 2))
    assert placement_of_planes(back[::-1]) == Placement((1, 0, 0, 0, 0, -1, 0, -1, 0), (1, 4, 3), True, (0, 1, 2))
    assert placement_of_planes([(orientation, None)]).origin_mm == (0, 0, 0)
    assert placement_of_planes([(None, [1, 2, 3])]) == NOT_STATED
    assert placement_of_planes([([0] * 6, [1, 2, 3])]) == NOT_STATED
