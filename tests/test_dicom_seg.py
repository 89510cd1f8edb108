"""Labels as DICOM segmentations: written with highdicom, read with it and by hand."""

import shutil
import sys

import highdicom
import numpy as np
import pydicom
import pytest
from dicoms import NORMAL, SLANTED, SPACING_MM, place_mm, save, save_tomographies, tomography

from utils.errors import InputError
from utils.plots import CLASS_COLOURS
from utils.segmentation.dicom_seg import check_source, write_dicom_seg
from utils.segmentation.label_files import check_installed
from utils.volumes.mhd import write_volume
from utils.volumes.scans import find_scans, read_scan

SHA256 = "0123456789abcdef" * 4
FRAMES = np.random.default_rng(0).integers(0, 256, (5, 7, 9)).astype(np.uint8)  # 63 pixels, no whole bytes
LABELS = np.random.default_rng(1).integers(0, 4, FRAMES.shape).astype(np.uint8)


def of_values(voxels):
    """Labels that depend on the voxels alone, so that it shows where each B-scan went."""
    return (voxels % 4).astype(np.uint8)


def scan_of(path):
    (files,) = find_scans([path])
    return read_scan(files)


def written(scan, folder, labels=None):
    """The segmentation of a scan, as pydicom reads it."""
    path = folder / "seg.dcm"
    write_dicom_seg(path, of_values(scan.voxels) if labels is None else labels, scan, SHA256)
    return pydicom.dcmread(path)


def by_hand(segmentation):
    """{(SOPInstanceUID, frame number or None): labels (rows, columns)}; unpacked without highdicom or pydicom."""
    shape = (int(segmentation.NumberOfFrames), segmentation.Rows, segmentation.Columns)
    bits = np.unpackbits(np.frombuffer(segmentation.PixelData, np.uint8), bitorder="little")
    masks = bits[: np.prod(shape)].reshape(shape)
    labels = {}
    for group, mask in zip(segmentation.PerFrameFunctionalGroupsSequence, masks, strict=True):
        (derivation,) = group.DerivationImageSequence
        (source,) = derivation.SourceImageSequence
        key = source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber")
        of_source = labels.setdefault(key, np.zeros(shape[1:], np.uint8))
        assert not of_source[mask > 0].any()
        of_source[mask > 0] = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return labels


def test_each_b_scan_of_a_file_gets_its_labels(tmp_path):
    """The frames are stored in any order; the scan has them in that of their places."""
    data = tomography(FRAMES, [3, 0, 4, 1, 2])
    save(data, tmp_path / "scan.dcm")
    scan = scan_of(tmp_path / "scan.dcm")
    assert [frame.index for frame in scan.frames] == [1, 3, 4, 0, 2]
    labels = by_hand(written(scan, tmp_path))
    assert set(labels) == {(data.SOPInstanceUID, number) for number in range(1, 6)}
    for index, frame in enumerate(FRAMES):
        np.testing.assert_array_equal(labels[data.SOPInstanceUID, index + 1], of_values(frame))
    segmentation = highdicom.seg.segread(tmp_path / "seg.dcm")
    pixels = segmentation.get_pixels_by_source_frame(data.SOPInstanceUID, range(1, 6), combine_segments=True)
    np.testing.assert_array_equal(pixels, of_values(FRAMES))


def test_each_file_of_a_series_gets_its_labels(tmp_path):
    """The files are numbered against their places, and one is there twice."""
    folder = tmp_path / "series"
    save_tomographies(folder, FRAMES, [4, 3, 2, 1, 0])
    shutil.copy(folder / "2.dcm", folder / "2 copy.dcm")
    scan = scan_of(folder)
    np.testing.assert_array_equal(scan.voxels, FRAMES[::-1])
    labels = by_hand(written(scan, tmp_path))
    uids = [pydicom.dcmread(folder / f"{index}.dcm").SOPInstanceUID for index in range(5)]
    assert set(labels) == {(uid, None) for uid in uids}
    for uid, frame in zip(uids, FRAMES, strict=True):
        np.testing.assert_array_equal(labels[uid, None], of_values(frame))
    segmentation = highdicom.seg.segread(tmp_path / "seg.dcm")
    pixels = segmentation.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(pixels, of_values(FRAMES))
    (series,) = segmentation.ReferencedSeriesSequence
    assert [one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence] == uids[::-1]


def test_each_of_two_scans_in_a_file_has_a_segmentation_of_its_frames(tmp_path):
    data = tomography(FRAMES[:4], [0, 1, 0, 1])
    for group, eye in zip(data.PerFrameFunctionalGroupsSequence, "LLRR", strict=True):
        group.FrameLaterality = eye
    save(data, tmp_path / "eyes.dcm")
    for files, numbers, side in zip(find_scans([tmp_path]), ((1, 2), (3, 4)), ("Left", "Right"), strict=True):
        segmentation = written(read_scan(files), tmp_path)
        labels = by_hand(segmentation)
        assert set(labels) == {(data.SOPInstanceUID, number) for number in numbers}
        for number in numbers:
            np.testing.assert_array_equal(labels[data.SOPInstanceUID, number], of_values(FRAMES[number - 1]))
        (region,) = segmentation.SegmentSequence[0].AnatomicRegionSequence
        assert region.AnatomicRegionModifierSequence[0].CodeMeaning == side
        (tmp_path / "seg.dcm").unlink()


@pytest.mark.parametrize("slices", [1, 5])
def test_no_fluid_is_a_segmentation_too(tmp_path, slices):
    data = tomography(FRAMES[:slices], range(slices))
    save(data, tmp_path / "scan.dcm")
    segmentation = written(scan_of(tmp_path / "scan.dcm"), tmp_path, np.zeros_like(LABELS[:slices]))
    assert [segment.SegmentLabel for segment in segmentation.SegmentSequence] == ["IRF", "SRF", "PED"]
    labels = by_hand(segmentation)
    assert len(labels) == slices
    assert not np.any(list(labels.values()))
    assert not highdicom.seg.segread(tmp_path / "seg.dcm").get_volume().array.any()


def test_a_segmentation_lies_where_the_scan_does(tmp_path):
    save(tomography(FRAMES, [4, 3, 2, 1, 0]), tmp_path / "scan.dcm")
    segmentation = written(scan_of(tmp_path / "scan.dcm"), tmp_path)
    (shared,) = segmentation.SharedFunctionalGroupsSequence
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == list(SLANTED)
    assert shared.PixelMeasuresSequence[0].PixelSpacing == [SPACING_MM[1], SPACING_MM[0]]
    assert shared.PixelMeasuresSequence[0].SpacingBetweenSlices == pytest.approx(0.12)
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        number = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        assert group.PlanePositionSequence[0].ImagePositionPatient == place_mm(5 - number)
    assert segmentation.FrameOfReferenceUID == "1.2.3.3"
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    along = volume.direction @ [1, 0, 0]
    assert abs(along @ NORMAL) == pytest.approx(1)


def test_numbers_fit_into_their_16_characters(tmp_path):
    """Not all programs heed that, and then their numbers are longer than a segmentation's may be."""
    data = tomography(FRAMES, range(5))
    for number, group in enumerate(data.PerFrameFunctionalGroupsSequence):
        group.PlanePositionSequence[0].ImagePositionPatient = [0.1 + 0.2, 1e-17 / 3, number / 7]
    data.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient = [
        1,
        0,
        0,
        0,
        -1,
        1 / 3e9,
    ]
    save(data, tmp_path / "scan.dcm")
    segmentation = written(scan_of(tmp_path / "scan.dcm"), tmp_path)
    (shared,) = segmentation.SharedFunctionalGroupsSequence
    numbers = [*shared.PlaneOrientationSequence[0].ImageOrientationPatient]
    numbers += shared.PixelMeasuresSequence[0].PixelSpacing
    for number, group in enumerate(segmentation.PerFrameFunctionalGroupsSequence[:5]):
        numbers += (position := group.PlanePositionSequence[0].ImagePositionPatient)
        assert position == pytest.approx([0.3, 0, number / 7])
    assert max(len(str(number)) for number in numbers) <= 16


def test_a_segmentation_says_what_it_is_and_whose(tmp_path):
    save(tomography(FRAMES, range(5)), tmp_path / "scan.dcm")
    segmentation = written(scan_of(tmp_path / "scan.dcm"), tmp_path)
    assert segmentation.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4"
    assert (segmentation.Modality, segmentation.SegmentationType) == ("SEG", "BINARY")
    assert (segmentation.PatientID, segmentation.PatientName) == ("P7", "Doe^Jane")
    assert (segmentation.StudyInstanceUID, segmentation.AccessionNumber) == ("1.2.3.1", "A1")
    assert segmentation.SeriesInstanceUID != "1.2.3.2"
    assert segmentation.SeriesNumber == 1007
    meanings = ["Intraretinal fluid", "Subretinal fluid", "Pigment epithelial detachment"]
    for segment, name, meaning, colour in zip(
        segmentation.SegmentSequence, ("IRF", "SRF", "PED"), meanings, CLASS_COLOURS[1:], strict=True
    ):
        (kind,) = segment.SegmentedPropertyTypeCodeSequence
        assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("32457005", "SCT", "Body fluid")
        (which,) = kind.SegmentedPropertyTypeModifierCodeSequence
        assert (which.CodeValue, which.CodingSchemeDesignator, which.CodeMeaning) == (name, "99RETINALFLUID", meaning)
        (category,) = segment.SegmentedPropertyCategoryCodeSequence
        assert (category.CodeValue, category.CodingSchemeDesignator) == ("91720002", "SCT")
        (region,) = segment.AnatomicRegionSequence
        assert (region.CodeValue, region.CodingSchemeDesignator) == ("5665001", "SCT")
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("retinal-fluid collection", SHA256)
        lab = highdicom.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue)
        np.testing.assert_allclose(lab.to_rgb(), colour, atol=1)


def test_patient_and_study_may_be_unknown(tmp_path):
    """As in files without names; the standard then wants empty values."""
    data = tomography(FRAMES, range(5))
    names = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
    for name in names:
        delattr(data, name)
    save(data, tmp_path / "scan.dcm")
    segmentation = written(scan_of(tmp_path / "scan.dcm"), tmp_path)
    assert all(name in segmentation and not segmentation[name].value for name in names)


@pytest.mark.parametrize(
    "name", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "SOPClassUID"]
)
def test_what_a_file_lacks_is_said(tmp_path, name):
    data = tomography(FRAMES, range(5))
    delattr(data, name)
    if name == "SOPClassUID":
        data.file_meta.MediaStorageSOPClassUID = ""
    data.preamble = bytes(128)
    data.save_as(tmp_path / "scan.dcm")
    with pytest.raises(InputError) as caught:
        check_source(scan_of(tmp_path / "scan.dcm"))
    (message,) = caught.value.messages
    assert message.startswith(f"{tmp_path / 'scan.dcm'}: lacks {name}, which a DICOM segmentation needs; leave")


def test_what_the_frames_lack_is_said_together(tmp_path):
    data = tomography(FRAMES, range(5))
    del data.PerFrameFunctionalGroupsSequence, data.SharedFunctionalGroupsSequence
    save(data, tmp_path / "scan.dcm")
    with pytest.raises(InputError, match="lacks ImagePositionPatient, ImageOrientationPatient, PixelSpacing, which"):
        check_source(scan_of(tmp_path / "scan.dcm"))


@pytest.mark.parametrize(
    ("name", "of_file", "message"),
    [
        ("FrameOfReferenceUID", "1.2.3.{}", "one FrameOfReferenceUID in all of its files"),
        ("SOPInstanceUID", "1.2.3", "a SOPInstanceUID of its own in each of its files"),
    ],
)
def test_files_that_cannot_be_told_apart_or_put_together_are_refused(tmp_path, name, of_file, message):
    """Some devices give every B-scan its own frame of reference, some programs give all files one UID."""
    save_tomographies(tmp_path / "series", FRAMES, range(5))
    check_source(scan_of(tmp_path / "series"))
    for number, path in enumerate((tmp_path / "series").iterdir()):
        data = pydicom.dcmread(path)
        setattr(data, name, of_file.format(number))
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        save(data, path)
    with pytest.raises(InputError, match=f"lacks {message}, which a DICOM segmentation needs"):
        check_source(scan_of(tmp_path / "series"))


@pytest.mark.parametrize(
    ("characters", "name"),
    [
        ("ISO_IR 100", "M\u00fcller^J\u00f6rg"),
        ("ISO_IR 192", "M\u00fcller^J\u00f6rg"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce=\u3084\u307e\u3060^\u305f\u308d\u3046"),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], "\uff94\uff8f\uff80\uff9e^\uff80\uff9b\uff73=\u5c71\u7530^\u592a\u90ce"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=\u6d2a^\u5409\u6d1e=\ud64d^\uae38\ub3d9"),
        ("GB18030", "Wang^XiaoDong=\u738b^\u5c0f\u4e1c"),
        (None, "Doe^Jane"),
    ],
)
def test_names_keep_their_letters(tmp_path, characters, name):
    data = tomography(FRAMES, range(5), PatientName=name)
    if characters:
        data.SpecificCharacterSet = characters
    save(data, tmp_path / "scan.dcm")
    segmentation = written(scan_of(tmp_path / "scan.dcm"), tmp_path)
    assert segmentation.PatientName == name
    segmentation.decode()


def test_what_the_standard_forbids_is_said(tmp_path):
    save(tomography(FRAMES, [0, 1, 1, 2, 3]), tmp_path / "scan.dcm")
    with pytest.raises(InputError, match=r"no DICOM segmentation can refer to it .*duplicates.*; leave dicom-seg out"):
        check_source(scan_of(tmp_path / "scan.dcm"))


@pytest.mark.parametrize(
    ("value", "damaged", "said"), [(b"0.123456", b"0.12x456", "0.12x456"), (b"19500131", b"1950x131", "x1")]
)
def test_damaged_values_that_the_reader_does_not_need_are_said(tmp_path, value, damaged, said):
    """The thickness of a slice, and a date of birth."""
    data = tomography(FRAMES, range(5))
    data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = 0.123456
    save(data, tmp_path / "scan.dcm")
    content = (tmp_path / "scan.dcm").read_bytes()
    assert content.count(value) == 1
    (tmp_path / "scan.dcm").write_bytes(content.replace(value, damaged))
    with pytest.raises(InputError, match=f"no DICOM segmentation can refer to it .*'{said}'.*; leave"):
        check_source(scan_of(tmp_path / "scan.dcm"))


def test_other_files_are_refused(tmp_path):
    write_volume(tmp_path / "Spectralis.mhd", FRAMES, SPACING_MM)
    with pytest.raises(InputError) as caught:
        check_source(scan_of(tmp_path / "Spectralis.mhd"))
    assert str(caught.value) == (
        f"{tmp_path / 'Spectralis.mhd'}: is no DICOM file, to which a DICOM segmentation could refer; "
        "leave dicom-seg out of --format"
    )


def test_highdicom_is_not_needed_for_other_formats(monkeypatch):
    check_installed(["dicom-seg"])
    monkeypatch.setitem(sys.modules, "highdicom", None)
    check_installed(["mhd", "nii.gz"])
    with pytest.raises(InputError, match="highdicom is not installed; pip install highdicom"):
        check_installed(["dicom-seg"])
