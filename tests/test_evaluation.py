import re

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK

from utils.errors import InputError
from utils.evaluation.pairs import (
    fullest_b_scan,
    match_pairs,
    pairs_of_split,
    read_labels,
    score_pairs,
    typical_cases,
)
from utils.files import write_csv, write_json
from utils.preparation.prepared import SliceRow, record_path
from utils.volumes.mhd import write_volume

SPACING_MM = (0.01, 0.02, 0.1)
SHAPE = (2, 6, 5)


@pytest.fixture
def labels():
    volume = np.zeros(SHAPE, np.uint8)
    volume[0, 1:4, 1:3] = 1
    return volume


def write(path, labels, spacing_mm=SPACING_MM):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(labels)
    image.SetSpacing(spacing_mm)
    SimpleITK.WriteImage(image, str(path))


def test_layouts_of_predictions_and_references(tmp_path, labels):
    """Challenge folders against test.py's layout, and files named like the case in three formats."""
    for folder, name in (("Train-Cirrus", "A"), ("Train-Topcon", "A"), ("Train-Topcon", "B_1")):
        write(tmp_path / "reference" / folder / name / "reference.mhd", labels)
    write(tmp_path / "reference" / "Train-Cirrus" / "A" / "oct.mhd", labels)
    write_volume(tmp_path / "predictions" / "Cirrus_A.mhd", labels, SPACING_MM)
    write(tmp_path / "predictions" / "Topcon_A.mha", labels)
    write(tmp_path / "predictions" / "B_1.nii.gz", labels)
    pairs, complaints = match_pairs(tmp_path / "predictions", tmp_path / "reference")
    assert complaints == []
    assert [(pair.vendor, pair.name, pair.prediction_path.name) for pair in pairs] == [
        ("Cirrus", "A", "Cirrus_A.mhd"),
        ("Topcon", "A", "Topcon_A.mha"),
        ("Topcon", "B_1", "B_1.nii.gz"),
    ]
    assert pairs[0].oct_path.name == "oct.mhd"
    assert pairs[1].oct_path is None
    volumes, complaints = score_pairs(pairs, workers=0)
    assert complaints == []
    assert volumes[volumes.fluid == "IRF"].dice.tolist() == [1, 1, 1]
    assert volumes.reference_mm3[0] == pytest.approx(6 * np.prod(SPACING_MM), rel=1e-6)
    assert len(match_pairs(tmp_path / "predictions", tmp_path / "predictions")[0]) == 3


def test_references_in_linked_folders_are_found(tmp_path, labels):
    """Two vendors' cases of one name, in an archive that does not name them."""
    for number, vendor in enumerate(("Cirrus", "Topcon")):
        write(tmp_path / "archive" / str(number) / "reference.mhd", labels)
        (tmp_path / "reference" / vendor).mkdir(parents=True)
        (tmp_path / "reference" / vendor / "A").symlink_to(tmp_path / "archive" / str(number))
        write_volume(tmp_path / "predictions" / f"{vendor}_A.mhd", labels, SPACING_MM)
    pairs, complaints = match_pairs(tmp_path / "predictions", tmp_path / "reference")
    assert (len(pairs), complaints) == (2, [])


def test_names_whatever_their_case(tmp_path, labels):
    folder = tmp_path / "Train-Cirrus" / "A"
    for name in ("reference.mhd", "oct.mhd"):
        write(folder / name, labels)
        (folder / name).rename(folder / name.upper())
    write(tmp_path / "predictions" / "Cirrus_A.nii.gz", labels)
    (tmp_path / "predictions" / "Cirrus_A.nii.gz").rename(tmp_path / "predictions" / "Cirrus_A.NII.GZ")
    pairs, complaints = match_pairs(tmp_path / "predictions", tmp_path / "Train-Cirrus")
    assert complaints == []
    assert [(pair.name, pair.reference_path.name, pair.oct_path.name) for pair in pairs] == [
        ("A", "REFERENCE.MHD", "OCT.MHD")
    ]
    assert score_pairs(pairs, workers=0)[0].dice[0] == 1
    write_csv(tmp_path / "test_data.csv", pd.DataFrame([SliceRow("A", "Cirrus", "A", 0, 1, 0, 0)]))
    write_json(record_path(tmp_path, "Cirrus", "A", "images"), {})
    (pair,) = pairs_of_split(tmp_path / "test_data.csv", tmp_path / "Train-Cirrus", tmp_path, tmp_path / "predictions")
    assert (pair.reference_path, pair.oct_path) == (pairs[0].reference_path, pairs[0].oct_path)


def test_labels_that_were_written_in_several_formats_count_once(tmp_path, labels):
    write(tmp_path / "reference" / "Cirrus_A.mhd", labels)
    for suffix in (".mhd", ".nii.gz"):
        write(tmp_path / "predictions" / f"Cirrus_A{suffix}", labels)
    (tmp_path / "predictions" / "Cirrus_A").mkdir()
    (tmp_path / "predictions" / "Cirrus_A" / "scan.json").write_text("{}")
    ((pair,), complaints) = match_pairs(tmp_path / "predictions", tmp_path / "reference")
    assert complaints == []
    assert pair.prediction_path.name == "Cirrus_A.mhd"


def test_what_has_no_or_several_partners_is_named(tmp_path, labels):
    for name in ("A", "B", "C"):
        write(tmp_path / "reference" / f"Cirrus_{name}.mhd", labels)
    for file in ("Cirrus_A.mhd", "A.nii.gz", "C.mha", "Cirrus_D.mhd"):
        write(tmp_path / "predictions" / file, labels)
    pairs, complaints = match_pairs(tmp_path / "predictions", tmp_path / "reference")
    assert [pair.name for pair in pairs] == ["C"]
    assert len(complaints) == 3
    assert "Cirrus A: several predictions" in complaints[0]
    assert "Cirrus B: no prediction" in complaints[1]
    assert "Cirrus_D.mhd: no reference" in complaints[2]
    with pytest.raises(InputError, match="no such folder"):
        match_pairs(tmp_path / "nowhere", tmp_path / "reference")


def test_pairs_that_cannot_be_scored_are_named_and_cost_no_other(tmp_path, labels):
    unknown, halves = labels.copy(), labels.astype(np.float32)
    unknown[0, 0, 0], halves[0, 0, 0] = 255, 0.5
    wrong = {"size": (labels[:, :-1], SPACING_MM), "spacing": (labels, (0.01, 0.02, 0.2))}
    wrong |= {"label": (unknown, SPACING_MM), "half": (halves, SPACING_MM)}
    for name, (volume, spacing_mm) in {**wrong, "right": (labels.astype(np.int16), SPACING_MM)}.items():
        write(tmp_path / "reference" / f"Cirrus_{name}.mhd", labels)
        write(tmp_path / "predictions" / f"Cirrus_{name}.mhd", volume, spacing_mm)
    (tmp_path / "predictions" / "Cirrus_size.raw").write_bytes(labels[:, :-1].tobytes())
    pairs, _ = match_pairs(tmp_path / "predictions", tmp_path / "reference")
    volumes, complaints = score_pairs(pairs, workers=2)
    assert volumes.case.unique().tolist() == ["right"]
    assert len(complaints) == 4
    text = "\n".join(complaints)
    assert re.search(r"Cirrus_size.mhd has 5 x 5 x 2 voxels, expected 5 x 6 x 2 voxels as in \S*/Cirrus_size", text)
    assert "has a spacing of 0.01 x 0.02 x 0.2 mm, expected 0.01 x 0.02 x 0.1 mm as in" in text
    assert "values from 0 to 255, expected labels 0 to 3" in text
    assert "not whole numbers" in text


def test_typical_cases_are_those_with_the_fluid_in_order_of_dice(tmp_path, labels):
    for name, cut in (("a", 1), ("b", 3), ("c", 2), ("d", 0)):  # rows that are missed; d holds no fluid
        reference = labels if name != "d" else np.zeros(SHAPE, np.uint8)
        predicted = reference.copy()
        predicted[0, :cut] = 0
        write(tmp_path / "reference" / "Cirrus" / name / "reference.mhd", reference)
        write(tmp_path / "reference" / "Cirrus" / name / "oct.mhd", np.full(SHAPE, 9, np.uint8))
        write(tmp_path / "predictions" / f"Cirrus_{name}.mhd", predicted)
    pairs, _ = match_pairs(tmp_path / "predictions", tmp_path / "reference")
    volumes, _ = score_pairs(pairs, workers=0)
    overlays = typical_cases(volumes, pairs)
    assert [(row["fluid"], row["rank"], row["title"]) for row in overlays] == [
        ("IRF", "best", "Cirrus a, slice 0"),
        ("IRF", "median", "Cirrus c, slice 0"),
        ("IRF", "worst", "Cirrus b, slice 0"),
    ]
    np.testing.assert_array_equal(overlays[0]["reference"], labels[0])
    assert read_labels(pairs[1].prediction_path)[0].sum() == overlays[2]["labels"].sum()


# ---- Where they lie -------------------------------------------------------------------------------------------------
def image_of(labels, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1), origin_mm=(0, 0, 0)):
    image = SimpleITK.GetImageFromArray(labels)
    image.SetSpacing(SPACING_MM)
    image.SetDirection(direction)
    image.SetOrigin(origin_mm)
    return image


def score(tmp_path, prediction, reference, scan=None):
    """(Dice of IRF or None, complaints) of one case; the three are SimpleITK's images."""
    files = {"predictions/Cirrus_A.mha": prediction, "reference/Cirrus/A/reference.mha": reference}
    for name, image in (files | ({"reference/Cirrus/A/oct.mha": scan} if scan else {})).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(image, str(tmp_path / name))
    pairs, _ = match_pairs(tmp_path / "predictions", tmp_path / "reference")
    volumes, complaints = score_pairs(pairs, workers=0)
    return (None if volumes.empty else volumes.dice[0]), complaints, pairs


@pytest.mark.parametrize("rotation", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (0.6, 0, 0.8, 0, 1, 0, -0.8, 0, 0.6)])
def test_volumes_equal_in_the_world_have_dice_1_however_they_are_stored(tmp_path, labels, rotation, capsys):
    """SimpleITK's Flip and PermuteAxes keep each voxel in its place."""
    reference = image_of(labels, rotation, (10, 20, 30))
    assert score(tmp_path / "same", reference, reference)[:2] == (1, [])
    assert capsys.readouterr().out == ""
    assert score(tmp_path / "flipped", SimpleITK.Flip(reference, (False, True, True)), reference)[:2] == (1, [])
    assert "note: Cirrus A: prediction: stored in another order by its direction" in capsys.readouterr().out
    assert score(tmp_path / "permuted", SimpleITK.PermuteAxes(reference, (2, 0, 1)), reference)[:2] == (1, [])


def test_pictures_are_in_the_order_of_the_scan(tmp_path, labels):
    scan = image_of(np.arange(60, dtype=np.uint8).reshape(SHAPE), origin_mm=(10, 20, 30))
    reference = image_of(labels, origin_mm=(10, 20, 30))
    upside_down = SimpleITK.Flip(reference, (False, True, True))
    dice, _, (pair,) = score(tmp_path, SimpleITK.Flip(reference, (True, False, False)), upside_down, scan)
    assert dice == 1
    title, grey, reference_slice, predicted_slice = fullest_b_scan(pair, [1])
    assert title == "Cirrus A, slice 0"
    np.testing.assert_array_equal(grey, np.arange(30).reshape(6, 5))
    np.testing.assert_array_equal(reference_slice, labels[0])
    np.testing.assert_array_equal(predicted_slice, labels[0])


def test_volumes_that_lie_elsewhere_are_refused_in_one_line(tmp_path, labels):
    reference = image_of(labels, origin_mm=(10, 20, 30))
    elsewhere = {
        "a_row_below": image_of(labels, origin_mm=(10, 20.02, 30)),
        "turned": image_of(labels, (0.6, 0, 0.8, 0, 1, 0, -0.8, 0, 0.6), (10, 20, 30)),
        "mirrored_about_its_first_row": image_of(labels, (1, 0, 0, 0, -1, 0, 0, 0, 1), (10, 20, 30)),
    }
    for name, prediction in elsewhere.items():
        dice, (complaint,), _ = score(tmp_path / name, prediction, reference)
        assert dice is None
        assert complaint.count("\n") == 0
        assert "Cirrus_A.mha has direction" in complaint
        assert "reference.mha; resample it" in complaint


def test_a_prediction_without_direction_and_origin_is_taken_in_the_order_of_its_voxels(tmp_path, labels, capsys):
    """A tool that keeps voxels and spacing alone; nibabel's plain affine counts to the right and the front."""
    placed = image_of(labels, (1, 0, 0, 0, 0, 1, 0, -1, 0), (10, 20, 30))
    assert score(tmp_path / "plain", image_of(labels), placed)[:2] == (1, [])
    assert "note: Cirrus A: prediction: states no direction and origin" in capsys.readouterr().out
    assert score(tmp_path / "elsewhere", placed, image_of(labels))[0] is None  # this one says that it lies elsewhere
    write(tmp_path / "nibabel" / "reference" / "Cirrus_A.mhd", labels)
    plain = nibabel.Nifti1Image(labels.transpose(2, 1, 0), np.diag([*SPACING_MM, 1]))
    (tmp_path / "nibabel" / "predictions").mkdir()
    nibabel.save(plain, tmp_path / "nibabel" / "predictions" / "Cirrus_A.nii.gz")
    pairs, _ = match_pairs(tmp_path / "nibabel" / "predictions", tmp_path / "nibabel" / "reference")
    assert score_pairs(pairs, workers=0)[0].dice[0] == 1
    mirrored = image_of(labels, (1, 0, 0, 0, -1, 0, 0, 0, 1), (10, 20, 30))  # is the prediction, too?
    assert score(tmp_path / "mirrored", image_of(labels), mirrored)[0] is None
