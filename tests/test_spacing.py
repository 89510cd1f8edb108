"""Which spacings are believed, and volumes whose axes are swapped."""

import nibabel
import numpy as np
import pytest

from utils.errors import InputError
from utils.preparation.cases import find_cases
from utils.preparation.checks import check_headers
from utils.volumes.mhd import write_volume
from utils.volumes.scans import find_scans, read_scan
from utils.volumes.spacing import believed_spacing_mm, check_spacing, has_swapped_axes, spacing_to_use

SHAPE = (49, 496, 512)
SPECTRALIS_MM = (0.0115, 0.003872, 0.12)


@pytest.mark.parametrize(
    ("stated", "shape", "believed"),
    [
        (SPECTRALIS_MM, SHAPE, SPECTRALIS_MM),
        ((1.0, 1.0, 1.0), SHAPE, (None, None, None)),  # a default
        ((0.0115, 0.003872, 1.0), (1, 496, 512), (0.0115, 0.003872, None)),  # of a flat image, which has no third
        ((0.0115, 0.003872, 1.0), SHAPE, (0.0115, 0.003872, 1.0)),  # line scans
        ((0.26, 0.26, 1.0), SHAPE, (None, None, None)),  # of a screen
        ((None, None, 1.0), SHAPE, (None, None, None)),
        ((None, None, 0.12), SHAPE, (None, None, 0.12)),
        ((11.5, 3.872, 120.0), SHAPE, (None, None, None)),  # micrometres
        ((0.12, 0.003872, 0.0115), SHAPE, (None, None, None)),  # in another order
        ((0.1, 0.003872, 0.12), SHAPE, (None, 0.003872, 0.12)),
        ((float("nan"), -0.003872, float("inf")), SHAPE, (None, None, None)),
    ],
)
def test_what_is_believed(stated, shape, believed):
    assert believed_spacing_mm(stated, shape) == believed
    spacing_mm, notes = spacing_to_use(stated, "Spectralis", shape)
    usual = (0.01145, 0.003872, 0.1225)
    assert spacing_mm == pytest.approx([other if mm is None else mm for mm, other in zip(believed, usual, strict=True)])
    assumed = (believed if shape[0] > 1 else believed[:2]).count(None)  # a single B-scan has no distance to others
    assert [note.count(" mm") for note in notes] == [assumed] * (assumed > 0)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ((11.5, 3.872, 120.0), "divide micrometres by 1000"),
        ((0.12, 0.003872, 0.0115), "give it in the order x, y, z"),
        ((1, 0, 1), "give the device's own"),
        ((0.0115, float("nan"), 0.12), "give the device's own"),
        ((0.0115, None, 0.12), "give the device's own"),
    ],
)
def test_a_spacing_that_no_scan_has_is_refused_with_what_it_may_be(given, remedy):
    check_spacing("spacing_mm", SPECTRALIS_MM)
    with pytest.raises(InputError) as caught:
        check_spacing("spacing_mm", given)
    (line,) = caught.value.messages
    assert line.startswith(f"spacing_mm {' '.join(map(str, given))}: expected x 0.0005 to 0.045, y ")
    assert line.endswith(f" mm; {remedy}" + ": between columns, rows, B-scans" * ("order" in remedy))


def test_checks_and_reading_believe_the_same(tmp_path):
    """The header that prepare_data.py refuses is not believed by test.py, and the other way round."""
    for number, spacing_mm in enumerate([SPECTRALIS_MM, (1, 1, 1), (0.06, 0.0039, 0.12), (0.0115, 0.02, 0.12)]):
        folder = tmp_path / "Spectralis" / f"{number}"
        write_volume(folder / "oct.mhd", np.ones((2, 5, 9), np.uint8), spacing_mm)
        (case,) = [case for case in find_cases(tmp_path) if case.name == f"{number}"]
        scan = read_scan(find_scans([folder])[0])
        assert bool(check_headers([case], need_reference=False)) == bool(scan.notes) == (number > 0)


@pytest.mark.parametrize(
    ("axes", "with_spacing"),
    [
        ((2, 1, 0), True),
        ((2, 0, 1), True),
        ((0, 2, 1), True),
        ((1, 0, 2), True),
        ((2, 1, 0), False),
        ((0, 2, 1), False),
    ],
)
@pytest.mark.parametrize("slices", [3, 49])
def test_swapped_axes_are_refused(tmp_path, axes, with_spacing, slices):
    """`axes` are where a NIfTI's first, second and third come from: columns 0, rows 1, slices 2."""
    right = np.zeros((512, 496, slices), np.uint8)
    spacing_mm = [SPECTRALIS_MM[axis] for axis in axes] if with_spacing else [1, 1, 1]
    nibabel.save(nibabel.Nifti1Image(right.transpose(axes), np.diag([*spacing_mm, 1])), tmp_path / "scan.nii.gz")
    (files,) = find_scans([tmp_path / "scan.nii.gz"])
    with pytest.raises(InputError, match="its axes are swapped") as raised:
        read_scan(files, "Spectralis")
    assert " x ".join(str((512, 496, slices)[axis]) for axis in axes) in str(raised.value)
    assert read_scan(files, "Spectralis", SPECTRALIS_MM).spacing_mm == SPECTRALIS_MM  # who says so knows


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [
        (SHAPE, SPECTRALIS_MM),
        (SHAPE, (0.12, 0.003872, 0.0115)),  # the spacing alone is in another order
        (SHAPE, (0.003872, 0.0115, 0.12)),
        ((128, 885, 512), (0.0026, 0.01172, 0.047)),  # as DICOM has rows before columns
        (SHAPE, (1.0, 1.0, 1.0)),
        ((128, 1024, 512), (1.0, 1.0, 1.0)),
        ((512, 1024, 512), (1.0, 1.0, 1.0)),  # a dense cube
        ((128, 512, 1024), (1.0, 1.0, 1.0)),  # half the rows, twice the columns
        ((3, 20, 30), (None, None, None)),
    ],
)
def test_axes_in_order(shape, spacing_mm):
    assert not has_swapped_axes(shape, spacing_mm)


def test_swapped_topcon():
    assert has_swapped_axes((128, 512, 885), (0.0026, 0.01172, 0.047))
    assert has_swapped_axes((512, 885, 128), (0.047, 0.0026, 0.01172))
