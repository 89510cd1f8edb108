"""Label volumes that were corrected in test.py's output become cases, wherever and however they were saved."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import SimpleITK
from dicoms import save_tomographies
from helpers import PROJECT, prepare, run_here, run_python
from PIL import Image
from stand_in import export_brightness_model

from utils.errors import InputError
from utils.files import sha256
from utils.labels import FLUIDS
from utils.networks.exported_model import read_best
from utils.plots import CLASS_COLOURS
from utils.preparation.outlined import read_outlined
from utils.preparation.prepared import all_seen, check_unseen, describe_data, read_csv_data
from utils.segmentation.output import Job, segment_to_files
from utils.segmentation.predict import prediction_digest
from utils.tools.import_cases import main
from utils.volumes.geometry import Placement
from utils.volumes.mhd import read_header, read_volume, write_volume
from utils.volumes.scans import find_scans, read_scan

SPACING_MM = (0.0117, 0.003872, 0.12)
SLANTED = Placement((0.8, 0.0, -0.6, 0.6, 0.0, 0.8, 0.0, -1.0, 0.0), (10.0, -20.0, 30.0), True)
SCANS = ("anna", "bert", "carl", "dora")
BLOCK, ADDED = np.s_[:, 55:65, 30:70], np.s_[1, 70:76, 80:95]  # what the model calls IRF; what a reader adds as SRF


def eye(seed):
    """A scan (3, 130, 140; uint16, as Spectralis has it): a bright band between dark ones with a block of IRF."""
    rng = np.random.default_rng(seed)
    voxels = rng.integers(20, 60, (3, 130, 140))
    voxels[:, 40:90] = rng.integers(110, 150, (3, 50, 140))
    voxels[BLOCK] = 230
    return (voxels * 257).astype(np.uint16)


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    """A folder with four scans in "scans" and what test.py makes of them in "out"."""
    folder = tmp_path_factory.mktemp("segmented")
    model = export_brightness_model(folder)
    (folder / "out").mkdir()
    job = Job(str(folder / "out"), (str(model),), prediction_digest(read_best(model)), vendor="Spectralis")
    for seed, name in enumerate(SCANS):
        write_volume(folder / "scans" / f"{name}.mhd", eye(seed), SPACING_MM, SLANTED)
        (files,) = find_scans([folder / "scans" / f"{name}.mhd"])
        _, complaints = segment_to_files(files, job)
        assert not complaints
    return folder


@pytest.fixture
def out(segmented, tmp_path):
    """A copy of test.py's output; the scans stay where they are."""
    shutil.copytree(segmented / "out", tmp_path / "out")
    return tmp_path / "out"


def run_import(out, *options):
    """Import from `out` into "data" beside it; the latter."""
    data = out.parent / "data"
    main(["corrected", str(out), "--output", str(data), *map(str, options)])
    return data


def refusal(out, *options):
    """The lines of the refusal, after which nothing is there."""
    with pytest.raises(InputError) as caught:
        run_import(out, *options)
    assert not (out.parent / "data").exists()
    assert all("\n" not in message for message in caught.value.messages)
    return list(caught.value.messages)


def corrected_labels():
    """What the model outlines and what the reader adds and takes away."""
    labels = np.zeros((3, 130, 140), np.uint8)
    labels[BLOCK] = 1
    labels[0] = 0
    labels[ADDED] = 2
    return labels


def image_of(labels, out, name="anna"):
    """Labels as an image of SimpleITK that lies where test.py's label volume does."""
    image = SimpleITK.GetImageFromArray(labels)
    image.CopyInformation(SimpleITK.ReadImage(str(out / f"Spectralis_{name}.mhd")))
    return image


def save(image, path):
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def as_slicer_saves(labels, out, segments, name="anna"):
    """A ``.seg.nrrd`` image: {label there: (label here, name)}, cropped to its segments, with 3D Slicer's keys."""
    numbered = np.zeros_like(labels)
    for number, (label, _) in segments.items():
        numbered[labels == label] = number
    image = image_of(numbered, out, name)
    places = np.argwhere(numbered)
    low, high = places.min(axis=0)[::-1].tolist(), places.max(axis=0)[::-1].tolist()
    part = image[tuple(slice(start, end + 1) for start, end in zip(low, high, strict=True))]
    for index, (number, (_, segment)) in enumerate(segments.items()):
        keys = {"ID": f"Segment_{index + 1}", "Name": segment, "LabelValue": str(number), "Layer": "0"}
        for key, value in keys.items():
            part.SetMetaData(f"Segment{index}_{key}", value)
    part.SetMetaData("Segmentation_ReferenceImageExtentOffset", " ".join(map(str, low)))
    part.SetMetaData("Segmentation_ContainedRepresentationNames", "Binary labelmap|")
    return part


def assert_imported(data, labels, name="anna"):
    folder = data / "Spectralis" / f"{name}__{name}"
    reference, spacing_mm = read_volume(folder / "reference.mhd")
    np.testing.assert_array_equal(reference, labels)
    assert reference.dtype == np.uint8
    assert spacing_mm == pytest.approx(SPACING_MM)
    voxels, _ = read_volume(folder / "oct.mhd")
    np.testing.assert_array_equal(voxels, eye(SCANS.index(name)))
    for kind in ("oct", "reference"):
        np.testing.assert_allclose(read_header(folder / f"{kind}.mhd").placement.matrix, SLANTED.matrix, atol=1e-9)
    return folder


# ---- What readers save ---------------------------------------------------------------------------------------------
def test_a_volume_corrected_in_place_is_imported_and_the_others_are_left_out(out, segmented, capsys):
    save(image_of(corrected_labels(), out), out / "Spectralis_anna.mhd")  # leaves .zraw beside the old .raw
    os.utime(out / "Spectralis_anna.mhd", (1_700_000_000, 1_700_000_000))
    data = run_import(out)
    assert [path.name for path in data.glob("*/*")] == ["anna__anna"]
    folder = assert_imported(data, corrected_labels())
    printed = capsys.readouterr().out
    assert "note: 3 scans are left out, Spectralis_bert first: their labels are as test.py wrote them" in printed
    assert "vendor    Spectralis, as test.py took it" in printed
    record = json.loads((folder / "correction.json").read_text())
    assert record["scan"] == str(segmented / "scans" / "anna.mhd")
    assert record["model_sha256"] == sha256(segmented / "best.keras")
    assert record["saved"] == "2023-11-14T22:13:20+00:00"
    assert record["changes"]["b_scans"] == [0, 1]
    assert record["changes"]["IRF"] == {"voxels_before": 1200, "voxels_after": 800, "added": 0, "removed": 400}
    assert record["changes"]["SRF"] == {"voxels_before": 0, "voxels_after": 90, "added": 90, "removed": 0}
    assert record["files"]["anna.raw"] == sha256(segmented / "scans" / "anna.raw")
    (one,) = json.loads((data / "provenance.json").read_text())["imports"]
    assert one["cases"] == {"Spectralis/anna__anna": record["files"]}
    assert list(record["files"]) == ["anna.mhd", "anna.raw", "Spectralis_anna.zraw", "Spectralis_anna.mhd"]


@pytest.mark.parametrize("kind", ["int16", "float32", "uint64"])
@pytest.mark.parametrize("name", ["Spectralis_anna.nii.gz", "Spectralis_anna_corrected.mha", "Spectralis_anna/a.nrrd"])
def test_other_formats_and_types_beside_the_volume(out, kind, name):
    image = image_of(corrected_labels().astype(kind), out)
    save(image, out / name)
    assert_imported(run_import(out), corrected_labels())


def test_a_volume_that_was_saved_in_another_order_is_put_right(out, capsys):
    save(SimpleITK.PermuteAxes(SimpleITK.Flip(image_of(corrected_labels(), out), (True, False, True)), (2, 0, 1)),
         out / "Spectralis_anna.nrrd")  # fmt: skip
    assert_imported(run_import(out), corrected_labels())
    assert "Spectralis_anna.nrrd: stored in another order by its direction" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("segments", "options"),
    [
        ({5: (1, "IRF"), 1: (2, "srf")}, []),
        ({1: (1, "Segment_1"), 2: (2, "Segment_2")}, []),
        ({2: (1, "Segment_2"), 1: (2, "blue")}, ["--labels", "IRF=Segment_2", "SRF=blue"]),
    ],
)
def test_a_cropped_segmentation_of_3d_slicer_is_put_in_place(out, segments, options, capsys):
    part = as_slicer_saves(corrected_labels(), out, segments)
    assert part.GetSize() == (65, 21, 2)
    save(part, out / "Spectralis_anna.seg.nrrd")
    assert_imported(run_import(out, *options), corrected_labels())
    by_number = "segment 'Segment_1' is taken for IRF by its number" in capsys.readouterr().out
    assert by_number == (segments[1][1] == "Segment_1")


def test_an_empty_segmentation_of_3d_slicer_takes_all_fluid_away(out):
    image = SimpleITK.GetImageFromArray(np.zeros((1, 1, 1), np.uint8))
    for key in ("Segment0_Name", "Segmentation_ContainedRepresentationNames"):
        image.SetMetaData(key, "IRF")
    save(image, out / "Spectralis_anna.seg.nrrd")
    assert_imported(run_import(out), np.zeros((3, 130, 140), np.uint8))


def test_an_export_that_renumbered_the_labels_is_warned_of(out, capsys):
    labels = corrected_labels()
    labels[labels == 1] = 3
    save(image_of(labels, out), out / "Spectralis_anna.nii.gz")
    assert_imported(run_import(out), labels)
    expected = f"note: {out / 'Spectralis_anna.nii.gz'}: PED lies mostly where IRF was before"
    printed = capsys.readouterr().out
    assert printed.count(expected) == printed.count("lies mostly") == 1


def test_numbers_of_another_scheme_are_stated(out):
    numbers = np.array([0, 3, 7], np.uint8)[corrected_labels()]
    save(image_of(numbers, out), out / "Spectralis_anna.nii.gz")
    assert refusal(out) == [
        f"{out / 'Spectralis_anna.nii.gz'}: holds label 7, expected 0 to 3 (IRF, SRF, PED), or segments of these "
        "names; rename it, or say what it is: --labels IRF=7, or IGNORE=7 where nobody judged it"
    ]
    assert_imported(run_import(out, "--labels", "IRF=3", "SRF=7"), corrected_labels())


@pytest.mark.parametrize("fluids", [[], ["IRF", "SRF"]])
def test_what_a_reader_left_unjudged_is_stated(out, fluids, capsys):
    labels = corrected_labels()
    labels[2] = 255
    save(image_of(labels, out), out / "Spectralis_anna.nii.gz")
    part = as_slicer_saves(labels, out, {1: (1, "IRF"), 2: (2, "SRF"), 3: (255, "unclear")}, "bert")
    save(part, out / "Spectralis_bert.seg.nrrd")
    stated = ["--labels", "IGNORE=255", "IGNORE=unclear"] + (["--outlined", *fluids] if fluids else [])
    data = run_import(out, *stated)
    for name in SCANS[:2]:
        assert_imported(data, labels, name)
    roots = [f"Spectralis/{name}__{name}" for name in SCANS[:2]]
    assert read_outlined(data) == dict.fromkeys(roots, tuple(fluids or FLUIDS))
    assert ("not outlined: PED; unknown there, not absent" in capsys.readouterr().out) == bool(fluids)


def test_a_volume_saved_again_without_a_change_counts_as_unchanged(out):
    for name in SCANS:
        labels, _ = read_volume(out / f"Spectralis_{name}.mhd")
        save(SimpleITK.Flip(image_of(labels.astype(np.float32), out, name), (True, True, False)),
             out / f"Spectralis_{name}.nii.gz")  # fmt: skip
    nothing, left_out = refusal(out)
    assert nothing == f"{out}: holds no corrected label volume"
    assert left_out.startswith("4 scans are left out, Spectralis_anna first: their labels are as test.py wrote them")
    data = run_import(out, "--all")
    assert len(list(data.glob("*/*/oct.mhd"))) == 4
    assert json.loads((data / "Spectralis" / "bert__bert" / "correction.json").read_text())["corrected"] is False


def test_outputs_of_before_are_judged_by_their_masks(out, capsys):
    for name in SCANS:
        path = out / f"Spectralis_{name}" / "scan.json"
        record = json.loads(path.read_text())
        del record["labels_digest"]
        path.write_text(json.dumps(record))
    (out / "Spectralis_dora" / "mask_001.png").unlink()
    save(image_of(corrected_labels(), out), out / "Spectralis_anna.mhd")
    data = run_import(out)
    assert [path.name for path in data.glob("*/*")] == ["anna__anna"]
    assert "1 scans are left out, Spectralis_dora first: nothing tells what test.py wrote" in capsys.readouterr().out


def test_masks_that_were_changed_are_not_taken_for_what_was_written(out):
    for path in (out / "Spectralis_anna").glob("mask_*.png"):
        shutil.copy(out / "Spectralis_anna" / "overlay_000.png", path)
    assert refusal(out)[0] == f"{out}: holds no corrected label volume"
    save(image_of(corrected_labels(), out), out / "Spectralis_anna.mhd")
    record = json.loads((run_import(out) / "Spectralis" / "anna__anna" / "correction.json").read_text())
    assert record["changes"] is None


def test_a_folder_of_pictures_and_an_output_without_label_volumes(segmented, tmp_path, capsys):
    (tmp_path / "Spectralis" / "eva").mkdir(parents=True)
    for index, b_scan in enumerate(eye(7) // 257):
        Image.fromarray(b_scan.astype(np.uint8)).save(tmp_path / "Spectralis" / "eva" / f"{index}.png")
    out = tmp_path / "out"
    out.mkdir()
    model = segmented / "best.keras"
    (files,) = find_scans([tmp_path / "Spectralis"])
    segment_to_files(files, Job(str(out), (str(model),), prediction_digest(read_best(model))))
    labels, spacing_mm = read_volume(out / "Spectralis_eva.mhd")
    for suffix in (".mhd", ".raw"):
        (out / f"Spectralis_eva{suffix}").unlink()
    assert "1 scans are left out, Spectralis_eva first: they have no label volume" in refusal(out)[1]
    labels[ADDED] = 2
    write_volume(out / "Spectralis_eva_mine.mhd", labels, spacing_mm)
    folder = run_import(out, "--patient-pattern", "/([^/]+)$") / "Spectralis" / "eva__eva"
    np.testing.assert_array_equal(read_volume(folder / "reference.mhd")[0], labels)
    np.testing.assert_array_equal(read_volume(folder / "oct.mhd")[0], eye(7) // 257)


def test_a_dicom_series_in_another_order_of_its_files(segmented, tmp_path):
    save_tomographies(tmp_path / "eva", eye(7) // 257, [2, 1, 0])
    out = tmp_path / "out"
    out.mkdir()
    (files,) = find_scans([tmp_path / "eva"])
    model = segmented / "best.keras"
    job = Job(str(out), (str(model),), prediction_digest(read_best(model)), vendor="Spectralis")
    segment_to_files(files, job)
    labels = read_volume(out / "Spectralis_eva.mhd")[0]
    labels[0, 70:76, 80:95] = 2
    save(image_of(labels, out, "eva"), out / "Spectralis_eva.nii.gz")
    folder = run_import(out) / "Spectralis" / "eva__eva"
    np.testing.assert_array_equal(read_volume(folder / "reference.mhd")[0], labels)
    np.testing.assert_array_equal(read_volume(folder / "oct.mhd")[0], read_scan(files, "Spectralis").voxels)
    headers = [read_header(path).placement for path in (folder / "oct.mhd", out / "Spectralis_eva.mhd")]
    assert headers[0] == headers[1]
    assert headers[0].stated


def test_the_lists_of_labels_for_both_programs():
    """Their formats are as both programs' own files have them; neither program was run."""
    lines = {path.name: path.read_text().splitlines() for path in (PROJECT / "docs" / "labels").iterdir()}
    assert lines["slicer.ctbl"][0].startswith("# Color table file")
    rows = {name: [line.split() for line in of_file if line[0] != "#"] for name, of_file in lines.items()}
    assert [(int(row[0]), row[1], *map(int, row[2:])) for row in rows["slicer.ctbl"][1:]] == [
        (label, fluid, *CLASS_COLOURS[label].tolist(), 255) for fluid, label in FLUIDS.items()
    ]
    assert [(int(row[0]), *map(int, row[1:7]), row[7]) for row in rows["itk_snap.txt"][1:]] == [
        (label, *CLASS_COLOURS[label].tolist(), 1, 1, 1, f'"{fluid}"') for fluid, label in FLUIDS.items()
    ]


# ---- Refused -------------------------------------------------------------------------------------------------------
def half_a_voxel_away(image):
    image.SetOrigin(image.TransformContinuousIndexToPhysicalPoint((0.5, 0.0, 0.0)))
    return image


def with_spacing(image):
    image.SetSpacing((0.0117, 0.003872, 0.13))
    return image


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda image: image + 3, "holds label 4, expected 0 to 3"),
        (lambda image: SimpleITK.Cast(image, SimpleITK.sitkFloat32) * 0.5, "values that are not whole numbers"),
        (lambda image: SimpleITK.Expand(image, (1, 1, 2)), "has 140 x 130 x 6 voxels, expected 140 x 130 x 3 voxels"),
        (half_a_voxel_away, "has direction "),
        (lambda image: half_a_voxel_away(image)[10:90], "has 80 x 130 x 3 voxels, expected 140 x 130 x 3 voxels"),
        (with_spacing, "has a spacing of 0.0117 x 0.003872 x 0.13 mm, expected 0.0117 x 0.003872 x 0.12 mm"),
        (lambda image: SimpleITK.Compose(image, image), "several values per pixel, expected one grey value"),
    ],
)
def test_label_volumes_that_do_not_fit_their_scan(out, change, expected):
    save(image_of(corrected_labels(), out, "bert"), out / "Spectralis_bert.mhd")  # a good one beside it
    save(change(image_of(corrected_labels(), out)), out / "Spectralis_anna.nrrd")
    (line,) = refusal(out)
    assert line.startswith(str(out / "Spectralis_anna.nrrd"))
    assert expected in line


def test_a_cropped_volume_that_states_no_place_is_refused(segmented, tmp_path):
    write_volume(tmp_path / "plain" / "eva.mhd", eye(7), SPACING_MM)
    model = segmented / "best.keras"
    out = tmp_path / "out"
    out.mkdir()
    (files,) = find_scans([tmp_path / "plain" / "eva.mhd"])
    segment_to_files(files, Job(str(out), (str(model),), prediction_digest(read_best(model)), vendor="Spectralis"))
    write_volume(out / "Spectralis_eva_cropped.mhd", corrected_labels()[:, 40:100], SPACING_MM)
    (line,) = refusal(out)
    assert "has 140 x 60 x 3 voxels, expected 140 x 130 x 3 voxels" in line


def test_segments_that_overlap_or_say_nothing_are_refused(out):
    path = out / "Spectralis_anna.seg.nrrd"
    part = as_slicer_saves(corrected_labels(), out, {1: (1, "IRF"), 2: (2, "cyst")})
    save(part, path)
    assert refusal(out) == [
        f"{path}: holds segment 'cyst' of value 2, expected 0 to 3 (IRF, SRF, PED), or segments of these names; "
        "rename it, or say what it is: --labels IRF=cyst, or IGNORE=cyst where nobody judged it"
    ]
    part.SetMetaData("Segment1_Layer", "1")
    save(part, path)
    assert refusal(out) == [
        f"{path}: its segments overlap, expected one label a voxel; remove the overlap and save again"
    ]


def test_two_different_corrections_of_a_scan_are_refused(out):
    save(image_of(corrected_labels(), out), out / "Spectralis_anna.nii.gz")
    save(image_of(np.minimum(corrected_labels(), 1), out), out / "Spectralis_anna" / "again.nii.gz")
    (line,) = refusal(out)
    assert "Spectralis_anna.nii.gz, " in line
    assert "again.nii.gz: their labels differ, and from what test.py wrote, expected one correction" in line
    save(image_of(corrected_labels(), out), out / "Spectralis_anna" / "again.nii.gz")
    assert_imported(run_import(out), corrected_labels())


def test_a_volume_of_no_scan_is_named(out, capsys):
    save(image_of(corrected_labels(), out), out / "Spectralis_anna.mhd")
    save(image_of(corrected_labels(), out), out / "Spectralis_annabel.nii.gz")
    run_import(out)
    assert f"note: {out / 'Spectralis_annabel.nii.gz'}: is left out: named after none" in capsys.readouterr().out


def test_a_volume_belongs_to_the_scan_of_the_longest_name(out):
    (out / "Spectralis_bert").rename(out / "Spectralis_anna_2")
    save(image_of(corrected_labels(), out, "bert"), out / "Spectralis_anna_2_mine.nrrd")
    data = run_import(out)
    assert [path.name for path in data.glob("*/*")] == ["bert__bert"]
    assert_imported(data, corrected_labels(), "bert")


def test_scans_that_moved_or_changed(out, segmented):
    scans = segmented / "scans"
    path = out / "Spectralis_anna" / "scan.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "path": "/old/place/anna.mhd"}))
    save(image_of(corrected_labels(), out), out / "Spectralis_anna.mhd")
    assert refusal(out) == [
        "/old/place/anna.mhd: the scan is not there any more; say where scans lie now: --moved OLD NEW (folders)"
    ]
    assert len(refusal(out, "--moved", "/old/pla", scans)) == 1
    assert_imported(run_import(out, "--moved", "/old/place", scans), corrected_labels())
    shutil.rmtree(out.parent / "data")
    write_volume(out.parent / "scans" / "anna.mhd", eye(0)[:2], SPACING_MM)
    (line,) = refusal(out, "--moved", "/old/place", out.parent / "scans")
    expected = "is not the scan that was segmented: other files or sizes; segment it again"
    assert line == f"{out.parent / 'scans' / 'anna.mhd'}: {expected}"


def test_folders_that_test_py_did_not_write(tmp_path):
    assert refusal(tmp_path / "none") == [f"{tmp_path / 'none'}: no such folder"]
    (tmp_path / "out").mkdir()
    assert "holds no <scan>/scan.json, expected a folder that test.py wrote" in refusal(tmp_path / "out")[0]
    (tmp_path / "out" / "a").mkdir()
    (tmp_path / "out" / "a" / "scan.json").write_text('{"path": 3}')
    assert "scan.json: lacks the scan's path or facts" in refusal(tmp_path / "out")[0]
    assert refusal(tmp_path / "out", "--vendor", "Cirrus") == ["--vendor: corrected has no use for it"]


def test_test_py_does_not_write_over_a_correction(out, segmented):
    model = segmented / "best.keras"
    job = Job(str(out), (str(model),), prediction_digest(read_best(model)), vendor="Spectralis")
    (files,) = find_scans([segmented / "scans" / "anna.mhd"])
    other = dataclasses.replace(job, mirrored=True)
    save(image_of(corrected_labels(), out), out / "Spectralis_anna.mhd")
    record, complaints = segment_to_files(files, other)
    assert record is None
    assert complaints == (
        f"{out / 'Spectralis_anna.mhd'}: was corrected since the scan was segmented; use another --output",
    )
    np.testing.assert_array_equal(read_volume(out / "Spectralis_anna.mhd")[0], corrected_labels())
    save(image_of(np.uint8(eye(0) == 230 * 257), out), out / "Spectralis_anna.mhd")  # as it was
    save(image_of(corrected_labels(), out), out / "Spectralis_anna" / "Segmentation.nrrd")  # the folder is replaced
    (complaint,) = segment_to_files(files, other)[1]
    assert complaint.startswith(f"{out / 'Spectralis_anna' / 'Segmentation.nrrd'}: was corrected since")
    corrected = image_of(corrected_labels(), out)
    (out / "Spectralis_anna.mhd").rename(out / "before.mhd")  # out of the import's way
    assert segment_to_files(files, job)[1] == (complaint,)
    (out / "Spectralis_anna" / "Segmentation.nrrd").unlink()
    save(corrected, out / "Spectralis_anna.mhd")  # with a .zraw
    (out / "Spectralis_anna.raw").unlink()
    assert "Spectralis_anna.mhd: was corrected since" in segment_to_files(files, job)[1][0]
    (out / "Spectralis_anna.mhd").unlink()
    assert segment_to_files(files, other)[1] == []


# ---- Used ----------------------------------------------------------------------------------------------------------
def test_corrected_cases_are_prepared_and_known_to_be_seen(segmented, out, tmp_path):
    """From the command line; a case that a network has seen is told from its scan or, by the same name, its patient."""
    for name in SCANS[:3]:
        save(image_of(corrected_labels(), out, name), out / f"Spectralis_{name}.nii.gz")
    data = tmp_path / "data"
    stdout, _ = run_python("-m", "utils.tools.import_cases", "corrected", out, "--output", data)
    assert "3 cases written" in stdout
    again, _ = run_python("-m", "utils.tools.import_cases", "corrected", out, "--output", data)
    assert "0 cases written" in again
    roots = {"corrected": tmp_path / "output", "original": tmp_path / "before"}
    prepare(data, roots["corrected"], "PATIENT_PATTERN=^(.+?)__", by=run_here)
    for seed, name in enumerate(SCANS[:3]):  # as the network had them; of bert another scan, of carl another name
        folder = tmp_path / "raw" / "Spectralis" / {"carl": "42"}.get(name, name)
        write_volume(folder / "oct.mhd", eye(9 if name == "bert" else seed), SPACING_MM, SLANTED)
        write_volume(folder / "reference.mhd", corrected_labels(), SPACING_MM, SLANTED)
    prepare(tmp_path / "raw", roots["original"], by=run_here)
    settings = {
        name: {"preprocessed_folder": root / "pre_processed", "axial_spacing_mm": 0.003872}
        for name, root in roots.items()
    }
    for of_root in settings.values():
        of_root["reference_histogram_csv"] = None  # nothing was matched
    rows = {name: read_csv_data(root / "pre_processed" / "slice_gt.csv") for name, root in roots.items()}
    seen = all_seen(describe_data({"train": rows["original"]}, r"^(.*)$", **settings["original"]))
    with pytest.raises(InputError) as caught:
        check_unseen("val_data.csv", rows["corrected"], seen, "^(.+?)__", **settings["corrected"])
    anna, bert, carl = caught.value.messages
    assert "Spectralis anna__anna was used to train this network" in anna
    assert "another case of the patient of Spectralis bert__bert was used in training" in bert
    assert "Spectralis carl__carl was used to train this network" in carl


@pytest.mark.slow
def test_a_network_goes_on_from_corrected_scans(tmp_path):
    """The commands of docs/correct.md on phantoms, with one step; then a network that has seen the held-out cases."""
    run_python("-m", "utils.phantom", "--output", tmp_path / "phantoms", "--cases", 12, "--slices", 1, "--seed", 3)
    cases = sorted((tmp_path / "phantoms").glob("*Spectralis/*"))
    out, data, output = (tmp_path / name for name in ("out", "data", "data-output"))
    run_python("test.py", *cases, "--output", out, "--model", "weights/oct_fluid.keras", "--format", "nii.gz")
    for case in cases:
        labels = SimpleITK.ReadImage(str(case / "reference.mhd"))
        save(labels, out / f"Spectralis_{case.name}.nii.gz")
    run_python("-m", "utils.tools.import_cases", "corrected", out, "--output", data)
    few = ["--recipe", data / "recipe.py", "--set", "EPOCH=1", "--set", "STEPS_PER_EPOCH=1"]
    printed, _ = run_python("-m", "utils.tasks", "adapt", *few)
    assert "warning: 1 patients are held out. With fewer than 6" in printed
    assert "patients train, 1 steps: about 0 minutes on two cores" in printed
    own, box = (output / "runs" / "adapted" / name / "summary.csv" for name in ("evaluation", "evaluation_box"))
    dice = [
        pd.read_csv(path).set_index(["vendor", "fluid", "measure"])["mean"]["all", "mean", "dice_all"]
        for path in (own, box)
    ]
    assert f"your model {dice[0]:.3f}, the model in the box {dice[1]:.3f}: yours is " in printed
    assert printed.rstrip().endswith("--model box" if dice[0] <= dice[1] else "best.keras")
    best = output / "runs" / "adapted" / "segmentation" / "best.keras"
    seen, before = (all_seen(read_best(path)["data"]) for path in (best, "weights/oct_fluid.keras"))
    for kind in ("cases", "patients"):
        assert set(before[kind]) < set(seen[kind])
        assert len(seen[kind]) == len(before[kind]) + len(cases) - 1  # one is held out
    again = [
        "--recipe",
        "strong",
        "--recipe",
        "adapt",
        *few,
        "--set",
        f"INIT_WEIGHTS={best}",
        "--set",
        "RUN_NAME=again",
    ]
    _, stderr = run_python("model_training.py", *again, expected=2)
    assert "was used to train this network, expected a case that was not" in stderr
    run_python("test.py", cases[0], "--output", tmp_path / "again", "--model", best)
    assert (tmp_path / "again" / f"Spectralis_{cases[0].name}.mhd").is_file()
