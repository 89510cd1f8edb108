"""Label volumes of several formats: each lies on the scan that it came from, and is there whole or not at all."""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK
from dicoms import save, save_tomographies, tomography
from helpers import run_here, run_python
from stand_in import bright_scan, export_brightness_onnx

from utils.networks.exported_model import read_best
from utils.segmentation import output
from utils.segmentation.label_files import FORMATS, write_nifti
from utils.segmentation.output import Job, segment_to_files
from utils.segmentation.predict import prediction_digest
from utils.segmentation.results import finished_record, put_in_place
from utils.segmentation.summary import summary_table
from utils.volumes.geometry import NOT_STATED
from utils.volumes.mhd import read_volume, write_volume
from utils.volumes.scans import find_scans, search_scans

SPACING_MM = (0.0117, 0.003872, 0.12)
VOXELS = bright_scan()
SLANTED = (0.8, 0.0, -0.6, 0.6, 0.0, 0.8, 0.0, -1.0, 0.0)  # a direction, row by row


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return export_brightness_onnx(tmp_path_factory.mktemp("model"))


def job_of(model, folder, *formats, **options):
    folder.mkdir(exist_ok=True)
    return Job(str(folder), (str(model),), prediction_digest(read_best(model)), formats=formats, **options)


def segment(path, job):
    """Segment the only scan at `path`; returns its record."""
    (files,) = find_scans([path])
    record, complaints = segment_to_files(files, job)
    assert not complaints
    return record


def names_in(folder):
    """Names of the files and folders in `folder`, sorted."""
    return sorted(path.name for path in folder.iterdir())


def placed(direction=SLANTED, origin_mm=(10, -20, 30)):
    """The scan as an image of SimpleITK with a direction."""
    image = SimpleITK.GetImageFromArray(VOXELS)
    image.SetSpacing(SPACING_MM)
    image.SetDirection(direction)
    image.SetOrigin(origin_mm)
    return image


def assert_same_image(image, other):
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), SimpleITK.GetArrayFromImage(other))
    assert image.GetPixelID() == other.GetPixelID() == SimpleITK.sitkUInt8
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(image, name)(), getattr(other, name)(), rtol=1e-6, atol=1e-6)


def assert_nifti_as_mhd(folder, name):
    """Assert that two programs read the same from both files; returns what nibabel reads."""
    as_mhd = SimpleITK.ReadImage(str(folder / f"{name}.mhd"))
    assert_same_image(SimpleITK.ReadImage(str(folder / f"{name}.nii.gz")), as_mhd)
    nifti = nibabel.load(folder / f"{name}.nii.gz")
    np.testing.assert_array_equal(np.asarray(nifti.dataobj).T, SimpleITK.GetArrayFromImage(as_mhd))
    assert nifti.get_data_dtype() == np.uint8
    assert nifti.header.get_xyzt_units()[0] == "mm"
    for index in ((0, 0, 0), (139, 0, 0), (0, 129, 0), (139, 129, len(VOXELS) - 1)):
        right, front, up = nibabel.affines.apply_affine(nifti.affine, index)
        assert as_mhd.TransformIndexToPhysicalPoint(index) == pytest.approx((-right, -front, up), abs=1e-5)
    return nifti


def test_labels_of_a_slanted_nifti_have_its_affine(model, tmp_path):
    """Its rows, columns and slices run along none of the world's axes, and the slices from left to right."""
    affine = nibabel.affines.from_matvec(
        np.array([[0.8, 0.0, 0.6], [0.6, 0.0, -0.8], [0.0, -1.0, 0.0]]) * SPACING_MM, (5, 6, 7)
    )
    nibabel.save(nibabel.Nifti1Image(VOXELS.T, affine), tmp_path / "scan.nii.gz")
    segment(tmp_path / "scan.nii.gz", job_of(model, tmp_path / "out", "mhd", "nii.gz", vendor="Spectralis"))
    nifti = assert_nifti_as_mhd(tmp_path / "out", "Spectralis_scan")
    source = nibabel.load(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(nifti.affine, source.affine, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(nifti.dataobj) == 1, np.asarray(source.dataobj) == 230)


@pytest.mark.parametrize("direction", [SLANTED, (-1, 0, 0, 0, 1, 0, 0, 0, 1), None])
def test_labels_of_a_placed_mhd_lie_on_it(model, tmp_path, direction):
    """Slanted, mirrored, or without a place."""
    if direction is None:
        write_volume(tmp_path / "scan.mhd", VOXELS, SPACING_MM)
    else:
        SimpleITK.WriteImage(placed(direction), str(tmp_path / "scan.mhd"))
    segment(tmp_path / "scan.mhd", job_of(model, tmp_path / "out", "mhd", "nii.gz", vendor="Spectralis"))
    assert_nifti_as_mhd(tmp_path / "out", "Spectralis_scan")
    labels = SimpleITK.ReadImage(str(tmp_path / "out" / "Spectralis_scan.nii.gz"))
    scan = SimpleITK.ReadImage(str(tmp_path / "scan.mhd"))
    assert_same_image(labels == 1, scan == 230)


def test_labels_of_a_series_stored_backwards_lie_on_it(model, tmp_path):
    """Slice n of the labels is that of the n-th place, and the segmentation refers to the file of that place."""
    save_tomographies(tmp_path / "series", VOXELS, [2, 1, 0])
    job = job_of(model, tmp_path / "out", *FORMATS, spacing_mm=SPACING_MM)
    record = segment(tmp_path / "series", job)
    assert record["labels"] == [f"Spectralis_series{suffix}" for suffix in (".raw", ".mhd", ".nii.gz", ".dcm")]
    assert_nifti_as_mhd(tmp_path / "out", "Spectralis_series")
    labels, _ = read_volume(tmp_path / "out" / "Spectralis_series.nii.gz")
    np.testing.assert_array_equal(labels == 1, VOXELS[::-1] == 230)
    segmentation = pydicom.dcmread(tmp_path / "out" / "Spectralis_series.dcm")
    uids = [pydicom.dcmread(tmp_path / "series" / f"{index}.dcm").SOPInstanceUID for index in range(3)]
    masks = segmentation.pixel_array[:3]  # of IRF
    for group, mask in zip(segmentation.PerFrameFunctionalGroupsSequence[:3], masks, strict=True):
        uid = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        np.testing.assert_array_equal(mask, VOXELS[uids.index(uid)] == 230)
    (algorithm,) = segmentation.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmVersion == read_best(model)["sha256"]


def test_only_the_formats_that_were_asked_for_are_left(model, tmp_path):
    write_volume(tmp_path / "scan.mhd", VOXELS, SPACING_MM)
    folder, name = tmp_path / "out", "Cirrus_scan"
    job = job_of(model, folder, "nii.gz", vendor="Cirrus")
    record = segment(tmp_path / "scan.mhd", job)
    assert names_in(folder) == [name, f"{name}.nii.gz"]
    assert record["labels"] == [f"{name}.nii.gz"]
    assert summary_table(folder)["scan"].tolist() == ["scan"]
    assert segment(tmp_path / "scan.mhd", job) == {**record, "kept": True}
    both = dataclasses.replace(job, formats=("mhd", "nii.gz"))
    assert "kept" not in segment(tmp_path / "scan.mhd", both)
    assert names_in(folder) == [name, f"{name}.mhd", f"{name}.nii.gz", f"{name}.raw"]
    (folder / f"{name}.raw").unlink()
    assert summary_table(folder).empty
    assert "kept" not in segment(tmp_path / "scan.mhd", both)
    segment(tmp_path / "scan.mhd", job)
    assert names_in(folder) == [name, f"{name}.nii.gz"]


def test_a_scan_that_was_segmented_before_there_were_formats_is_in_the_summary(model, tmp_path):
    write_volume(tmp_path / "scan.mhd", VOXELS, SPACING_MM)
    record = segment(tmp_path / "scan.mhd", job_of(model, tmp_path / "out", "mhd", vendor="Cirrus"))
    del record["labels"]
    (tmp_path / "out" / "Cirrus_scan" / "scan.json").write_text(json.dumps(record))
    assert len(summary_table(tmp_path / "out")) == 1
    (tmp_path / "out" / "Cirrus_scan.mhd").unlink()
    assert summary_table(tmp_path / "out").empty


def put(folder, content, *suffixes):
    """Put results in place whose label files and record all hold `content`."""
    temporary, labels = folder / f".unfinished-{content}", [f"scan{suffix}" for suffix in suffixes]
    (temporary / "scan").mkdir(parents=True)
    (temporary / "scan" / "scan.json").write_text(json.dumps({"content": content, "labels": labels}))
    for file in labels:
        (temporary / file).write_text(content)
    put_in_place(temporary, folder, "scan", labels)


def test_whenever_a_process_dies_no_label_file_is_taken_for_that_of_another_run(tmp_path, monkeypatch):
    """Dies before the first change to a folder's entries, before the second, and so on."""

    class Died(BaseException):
        pass

    kept = []
    for changes in itertools.count():
        folder = tmp_path / str(changes)
        put(folder, "first", ".raw", ".mhd", ".nii.gz")
        left = iter(range(changes))

        def or_die(change, left=left):
            def changed(*arguments, **options):
                if next(left, None) is None:
                    raise Died
                return change(*arguments, **options)

            return changed

        with monkeypatch.context() as patched:
            for name in ("replace", "unlink", "remove", "rmdir"):
                patched.setattr(os, name, or_die(getattr(os, name)))
            try:
                put(folder, "second", ".nii.gz", ".dcm")
                break
            except Died:
                pass
        record = finished_record(folder, "scan")
        if record is not None:
            assert {(folder / file).read_text() for file in record["labels"]} == {record["content"]}
            kept.append(changes)
        assert (folder / "scan.raw").exists() or not (folder / "scan.mhd").exists()
    assert kept == [0, 1]  # the first change removes scan.dcm, which is not there
    assert finished_record(folder, "scan")["content"] == "second"
    assert [name for name in names_in(folder) if name[0] != "."] == ["scan", "scan.dcm", "scan.nii.gz"]


def test_what_cannot_be_written_is_said_before_the_scan_is_segmented(model, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "_network", lambda job: pytest.fail("the network was loaded"))
    write_volume(tmp_path / "scan.mhd", VOXELS, SPACING_MM)
    sheared = placed()
    sheared.SetDirection((1, 0.01, 0, 0, 1, 0, 0, 0, 1))
    SimpleITK.WriteImage(sheared, str(tmp_path / "sheared.mhd"))
    for name, wanted, message in (
        ("scan", "dicom-seg", "is no DICOM file, to which a DICOM segmentation could refer; leave dicom-seg out"),
        ("sheared", "nii.gz", "its direction has no right angles"),
    ):
        (files,) = find_scans([tmp_path / f"{name}.mhd"])
        job = job_of(model, tmp_path / "out", "mhd", wanted, vendor="Cirrus")
        record, (complaint,) = segment_to_files(files, job)
        assert record is None
        assert complaint.startswith(f"{tmp_path / name}.mhd: {message}")
        assert names_in(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["write_nifti", "dicom_seg.write_dicom_seg"])
def test_a_place_that_cannot_be_written_to_is_one_line(model, tmp_path, monkeypatch, name):
    save(tomography(VOXELS, [0, 1, 2]), tmp_path / "scan.dcm")
    segment(tmp_path / "scan.dcm", job_of(model, tmp_path / "out", "mhd"))
    before = names_in(tmp_path / "out")

    def refuse(path, *arguments):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(f"utils.segmentation.label_files.{name}", refuse)
    (files,) = find_scans([tmp_path / "scan.dcm"])
    record, (complaint,) = segment_to_files(files, job_of(model, tmp_path / "out", *FORMATS))
    assert record is None
    assert complaint.startswith(f"{tmp_path / 'scan.dcm'}: ")
    assert complaint.endswith(": No space left on device")
    assert names_in(tmp_path / "out") == before


def test_simpleitks_silence_about_a_full_disk_is_no_success(tmp_path):
    """A limit on the size of files stands for the disk."""
    code = (
        "import numpy as np; from utils.errors import run_script;"
        "from utils.segmentation.label_files import write_nifti;"
        "from utils.volumes.geometry import NOT_STATED;"
        "labels = np.random.default_rng(0).integers(0, 4, (50, 100, 100)).astype(np.uint8);"
        "run_script(lambda argv: write_nifti(argv[0], labels, (1, 1, 1), NOT_STATED))"
    )
    limited = ("bash", "-c", "ulimit -f 20; trap '' XFSZ; exec \"$@\"", "bash")
    path = tmp_path / "labels of a scan.nii.gz"
    _, stderr = run_python("-c", code, path, expected=2, before=limited)
    assert stderr.splitlines()[-1] == f"-c: error: {path}: could not be written whole; the disk may be full"
    assert not path.exists()


def test_a_folder_of_any_name_holds_nifti(tmp_path):
    folder = tmp_path / os.fsdecode(b"Fl\xfcssigkeit 100%")
    folder.mkdir()
    write_nifti(folder / "a%b.nii.gz", VOXELS, SPACING_MM, NOT_STATED)
    assert names_in(folder) == ["a%b.nii.gz"]
    np.testing.assert_array_equal(read_volume(folder / "a%b.nii.gz")[0], VOXELS)


def test_labels_are_no_scans(tmp_path):
    """What test.py wrote beside a scan, into a folder that is searched again."""
    write_volume(tmp_path / "Cirrus_a.mhd", VOXELS % 4, SPACING_MM)
    write_nifti(tmp_path / "Cirrus_a.nii.gz", VOXELS % 4, SPACING_MM, NOT_STATED)
    save(tomography(VOXELS, [0, 1, 2]), tmp_path / "Cirrus_a.dcm")
    write_nifti(tmp_path / "b.nii.gz", VOXELS, SPACING_MM, NOT_STATED)
    (tmp_path / "Cirrus_a").mkdir()
    (tmp_path / "Cirrus_a" / "scan.json").write_text("{}")
    scans, left_out = search_scans([tmp_path])
    assert [scan.name for scan in scans] == ["b"]
    why = {Path(one.path).name: one.why for one in left_out}
    assert why == {
        **dict.fromkeys(("Cirrus_a.mhd", "Cirrus_a.nii.gz", "Cirrus_a.dcm"), "labels that test.py wrote"),
        "Cirrus_a": "results of test.py",
    }


def test_formats_on_the_command_line(model, tmp_path):
    """A format that is named twice counts once. The scan that has no DICOM file fails, the other does not."""
    scans, folder = tmp_path / "Spectralis", tmp_path / "out"
    save(tomography(VOXELS, [0, 1, 2]), scans / "dicom.dcm")
    write_volume(scans / "plain.mhd", VOXELS, SPACING_MM)
    command = ("test.py", scans, "--output", folder, "--model", model, "--format")
    _, stderr = run_here(*command, "nii.gz", "dicom-seg", "nii.gz", expected=2)
    lines = [line for line in stderr.splitlines() if line.startswith("test.py: error: ")]
    assert [line.partition(": is no DICOM file")[0] for line in lines] == [f"test.py: error: {scans / 'plain.mhd'}"]
    assert [name for name in names_in(folder) if name.startswith("Spectralis")] == [
        "Spectralis_dicom",
        "Spectralis_dicom.dcm",
        "Spectralis_dicom.nii.gz",
    ]
    assert pd.read_csv(folder / "summary.csv")["scan"].tolist() == ["dicom"]
    assert "Spectralis_dicom/report.html" in (folder / "index.html").read_text()
    _, stderr = run_here(*command, "nifti", expected=2)
    assert "argument --format: invalid choice: 'nifti' (choose from" in stderr
