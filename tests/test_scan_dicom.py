"""What is one scan among DICOM files, in which order, and as which grey values; pydicom is the judge."""

import os
import shutil

import numpy as np
import pydicom
import pytest
from dicoms import SPACING_MM, dicom, groups_of_frames, save, save_series
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.fileset import FileSet
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_windowing, convert_color_space, get_decoder

from utils.errors import InputError
from utils.volumes.scans import find_scans, read_scan, search_scans

VOXELS = np.random.default_rng(3).integers(0, 256, (6, 20, 30)).astype(np.uint8)
ACROSS, DOWN = [1, 0, 0, 0, 1, 0], [0, 0, 1, 0, 1, 0]
Z = SPACING_MM[2]


def read(path, left_out=None):
    scans, left = search_scans([path])
    if left_out is not None:
        left_out += [(one.path, one.why) for one in left]
    return [read_scan(files) for files in scans]


def positions(*places):
    return [[0, 0, place * Z] for place in places]


# ---- What is one scan ----------------------------------------------------------------------------------------------
def test_copies_of_an_instance_count_once_and_are_named(tmp_path):
    save_series(tmp_path, VOXELS[:3], ImagePositionPatient=positions(0, 1, 2))
    for index in range(3):
        shutil.copy(tmp_path / f"{index}.dcm", tmp_path / f"{index} (1).dcm")
    shutil.copy(tmp_path / "2.dcm", tmp_path / os.fsdecode(b"3 \xfc.dcm"))  # Latin-1
    (scan,) = read(tmp_path)
    assert all(note.isprintable() for note in scan.notes)
    np.testing.assert_array_equal(scan.voxels, VOXELS[:3])
    assert scan.spacing_mm[2] == pytest.approx(Z)
    assert "0 (1).dcm, 1 (1).dcm, 2 (1).dcm" in scan.notes[0]


def test_a_header_of_several_values_does_not_stop_the_search(tmp_path):
    for name, eye in (("odd", ["R", "L"]), ("even", "R")):
        (tmp_path / name).mkdir()
        save_series(tmp_path / name, VOXELS[:3], ImageLaterality=3 * [eye], ImagePositionPatient=positions(0, 1, 2))
    assert {scan.laterality for scan in read(tmp_path)} == {"OD", None}


def test_one_uid_for_all_slices_makes_no_copies_of_them(tmp_path):
    save_series(tmp_path, VOXELS[:3], SOPInstanceUID=["1.2.9"] * 3, InstanceNumber=[3, 2, 1])
    (scan,) = read(tmp_path)
    np.testing.assert_array_equal(scan.voxels, VOXELS[2::-1])


@pytest.mark.parametrize(
    "of_each",
    [
        {"ImageLaterality": ["R", "L"] * 3},
        {"FrameOfReferenceUID": ["1.5", "1.6"] * 3},
        {"AcquisitionNumber": [1, 2] * 3},
        {"StackID": ["1", "2"] * 3},
        {"ImageOrientationPatient": [ACROSS, DOWN] * 3},
        {"ImagePositionPatient": positions(0, 0, 1, 1, 2, 2)},
    ],
)
def test_different_volumes_in_one_series_are_different_scans(tmp_path, of_each):
    save_series(tmp_path, VOXELS, InstanceNumber=range(1, 7), **of_each)
    one, two = read(tmp_path)
    np.testing.assert_array_equal(one.voxels, VOXELS[::2])
    np.testing.assert_array_equal(two.voxels, VOXELS[1::2])
    assert one.name != two.name
    if "ImageLaterality" in of_each:
        assert (one.laterality, two.laterality) == ("OD", "OS")


def test_b_scans_of_another_size_are_another_scan(tmp_path):
    save_series(tmp_path, [*VOXELS[:2], *VOXELS[2:4, :10]])
    assert [scan.voxels.shape for scan in read(tmp_path)] == [(2, 20, 30), (2, 10, 30)]


def test_an_eye_that_some_files_do_not_state_does_not_split_a_volume(tmp_path):
    save_series(tmp_path, VOXELS[:3], ImageLaterality=["", "R", "R"])
    (scan,) = read(tmp_path)
    assert (len(scan.voxels), scan.laterality) == (3, "OD")


def test_an_acquisition_for_every_b_scan_does_not_split_a_volume(tmp_path):
    save_series(tmp_path, VOXELS[:3], AcquisitionNumber=[1, 2, 3], FrameOfReferenceUID=["1.5", "1.6", "1.7"])
    (scan,) = read(tmp_path)
    np.testing.assert_array_equal(scan.voxels, VOXELS[:3])


def test_a_radial_scan_stays_one_and_says_so(tmp_path):
    angles = np.arange(6) * np.pi / 6
    directions = [[np.cos(angle), 0, np.sin(angle), 0, 1, 0] for angle in angles]
    save_series(tmp_path, VOXELS, ImageOrientationPatient=directions, InstanceNumber=range(6, 0, -1))
    (scan,) = read(tmp_path)
    np.testing.assert_array_equal(scan.voxels, VOXELS[::-1])
    assert "different directions" in scan.notes[0]


@pytest.mark.parametrize(
    "of_frame",
    [
        [{"FrameLaterality": eye} for eye in "RLRLRL"],
        [{"StackID": stack, "InStackPositionNumber": 1 + index // 2} for index, stack in enumerate("121212")],
        [{"ImagePositionPatient": place} for place in positions(0, 0, 1, 1, 2, 2)],
    ],
)
def test_volumes_in_one_file_are_different_scans(tmp_path, of_frame):
    save(dicom(VOXELS, PerFrameFunctionalGroupsSequence=groups_of_frames(*of_frame)), tmp_path / "both.dcm")
    for path in (tmp_path, tmp_path / "both.dcm"):
        one, two = read(path)
        np.testing.assert_array_equal(one.voxels, VOXELS[::2])
        np.testing.assert_array_equal(two.voxels, VOXELS[1::2])
        assert one.name != two.name


def test_files_of_several_frames_are_scans_of_their_own_unless_they_are_parts_of_one(tmp_path):
    for index in range(2):
        data = dicom(VOXELS[index * 3 : index * 3 + 3], SeriesInstanceUID="1.2.3")
        save(data, tmp_path / "two" / f"{index}.dcm")
        data.ConcatenationUID, data.InConcatenationNumber = "1.2.4", 2 - index
        save(data, tmp_path / "parts" / f"{index}.dcm")
    assert [len(scan.voxels) for scan in read(tmp_path / "two")] == [3, 3]
    (scan,) = read(tmp_path / "parts")
    np.testing.assert_array_equal(scan.voxels, VOXELS[[3, 4, 5, 0, 1, 2]])


# ---- Order and spacing ---------------------------------------------------------------------------------------------
def test_frames_follow_their_positions(tmp_path):
    order = [0, 2, 4, 1, 3]
    groups = groups_of_frames(*({"ImagePositionPatient": place} for place in positions(*order)))
    save(dicom(VOXELS[order], PerFrameFunctionalGroupsSequence=groups), tmp_path / "a.dcm")
    (scan,) = read(tmp_path)
    np.testing.assert_array_equal(scan.voxels, VOXELS[:5])
    assert scan.spacing_mm == pytest.approx(SPACING_MM)
    assert "stored in another order" in scan.notes[0]


def test_the_place_along_the_volume_is_a_position(tmp_path):
    save_series(tmp_path, VOXELS[:3], InstanceNumber=[1, 2, 3], SliceLocation=[2 * Z, 0, Z])
    (scan,) = read(tmp_path)
    np.testing.assert_array_equal(scan.voxels, VOXELS[[1, 2, 0]])
    assert scan.spacing_mm == pytest.approx(SPACING_MM)


def test_frames_in_the_opposite_order_stay_as_they_are_stored(tmp_path):
    groups = groups_of_frames(*({"ImagePositionPatient": place} for place in positions(3, 2, 1, 0)))
    save(dicom(VOXELS[:4], PerFrameFunctionalGroupsSequence=groups), tmp_path / "a.dcm")
    (scan,) = read(tmp_path)
    np.testing.assert_array_equal(scan.voxels, VOXELS[:4])
    assert (scan.spacing_mm, scan.notes) == (pytest.approx(SPACING_MM), ())


@pytest.mark.parametrize(
    ("names", "of_each"),
    [
        (["c.dcm", "a.dcm", "b.dcm"], {"InstanceNumber": [1, 2, 3]}),
        (["b2.dcm", "b10.dcm", "b11.dcm"], {}),
        (["b2.dcm", "b10.dcm", "b11.dcm"], {"InstanceNumber": [1, 1, 1]}),
        (["c.dcm", "a.dcm", "b.dcm"], {"ImagePositionPatient": [[0, 0, 1]] * 3, "InstanceNumber": [1, 2, 3]}),
    ],
)
def test_without_positions_numbers_tell_the_order_then_names(tmp_path, names, of_each):
    thickness = {"SliceThickness": [Z] * 3}
    save_series(tmp_path, VOXELS[:3], names, **of_each, **thickness)
    (scan,) = read(tmp_path)
    np.testing.assert_array_equal(scan.voxels, VOXELS[:3])
    assert scan.spacing_mm == pytest.approx(SPACING_MM)
    assert scan.notes == ()


def test_gaps_and_uneven_steps_are_noted(tmp_path):
    save_series(tmp_path / "gap", VOXELS[:5], ImagePositionPatient=positions(0, 1, 2, 4, 5))
    save_series(tmp_path / "uneven", VOXELS[:5], ImagePositionPatient=positions(0, 1, 2, 3.4, 4.4))
    save_series(tmp_path / "numbers", VOXELS[:3], InstanceNumber=[1, 2, 4], SpacingBetweenSlices=[Z] * 3)
    for name, note in (("gap", "1 seem to be missing"), ("uneven", "0.12 to 0.168 mm"), ("numbers", "a gap after 2")):
        (scan,) = read(tmp_path / name)
        assert note in scan.notes[0]
        assert scan.spacing_mm[2] == pytest.approx(Z)


def test_the_sign_of_a_spacing_is_a_direction(tmp_path):
    save_series(tmp_path, VOXELS[:2], SpacingBetweenSlices=[-Z] * 2)
    (scan,) = read(tmp_path)
    assert (scan.spacing_mm, scan.notes) == (pytest.approx(SPACING_MM), ())


# ---- What is no scan, and what is damaged --------------------------------------------------------------------------
def document(sop_class):
    data = dicom(VOXELS[0])
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = sop_class
    for name in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel"):
        delattr(data, name)
    return data


def test_documents_and_photographs_beside_a_scan_are_left_out(tmp_path):
    save_series(tmp_path, VOXELS[:3], ImagePositionPatient=positions(0, 1, 2))
    save(document("1.2.840.10008.5.1.4.1.1.88.11"), tmp_path / "report.dcm")
    save(document("1.2.840.10008.5.1.4.1.1.104.1"), tmp_path / "letter.dcm")
    photograph = dicom(VOXELS[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.5.1", Modality="OPT")
    save(photograph, tmp_path / "slo.dcm")
    capture = dicom(VOXELS[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT")
    save(capture, tmp_path / "screen.dcm")
    left_out = []
    (scan,) = read(tmp_path, left_out)
    np.testing.assert_array_equal(scan.voxels, VOXELS[:3])
    reasons = {path.rsplit("/", 1)[-1]: reason for path, reason in left_out}
    assert sorted(reasons) == ["letter.dcm", "report.dcm", "screen.dcm", "slo.dcm"]
    assert "Encapsulated PDF" in reasons["letter.dcm"]
    with pytest.raises(InputError, match=r"report\.dcm: a DICOM file of the kind Basic Text SR"):
        find_scans([tmp_path / "report.dcm"])


def test_a_cd_is_read_and_its_directory_left_out(tmp_path):
    files = FileSet()
    for index in range(3):
        patient = {"PatientID": "x", "PatientName": "x", "StudyTime": "010101", "StudyID": "1", "Modality": "OPT"}
        data = dicom(VOXELS[index], **patient, SeriesNumber=1, InstanceNumber=index + 1, StudyInstanceUID="1.2.4")
        data.SeriesInstanceUID = "1.2.3"
        files.add(data)
    files.write(tmp_path / "cd")
    left_out = []
    (scan,) = read(tmp_path / "cd", left_out)
    np.testing.assert_array_equal(scan.voxels, VOXELS[:3])
    ((path, reason),) = left_out
    assert path.endswith("DICOMDIR")
    assert "no pixels" in reason


def test_the_damaged_file_of_a_series_is_named(tmp_path):
    save_series(tmp_path, VOXELS[:3], ImagePositionPatient=positions(0, 1, 2))
    (tmp_path / "1.dcm").write_bytes((tmp_path / "1.dcm").read_bytes()[:-100])
    with pytest.raises(InputError, match=r"1\.dcm: not a readable DICOM image"):
        read(tmp_path)


def test_a_damaged_value_in_a_header_is_one_line(tmp_path):
    data = dicom(VOXELS[0], SpacingBetweenSlices="0.12")
    save(data, tmp_path / "a.dcm")
    content = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(content.replace(b"0.12", b"much"))
    with pytest.raises(InputError, match=r"a\.dcm: not a readable DICOM image"):
        read(tmp_path)


@pytest.mark.skipif(get_decoder(pydicom.uid.JPEGLSLossless).is_available, reason="a JPEG-LS decoder is installed")
def test_a_missing_decoder_is_named_with_its_package(tmp_path):
    data = dicom(VOXELS[0])
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    data.PixelData = encapsulate([b"\xff\xd8\xff\xf7" + bytes(20)])
    data["PixelData"].is_undefined_length = True
    save(data, tmp_path / "a.dcm")
    with pytest.raises(InputError, match=r"a\.dcm: .*JPEG-LS.*pip install pylibjpeg pylibjpeg-libjpeg$"):
        read(tmp_path)


def test_a_decoder_that_is_not_up_to_the_pixels_is_told_from_a_damaged_file(tmp_path):
    data = dicom(VOXELS[0], bits=12)
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGExtended12Bit
    data.PixelData = encapsulate([b"\xff\xd8\xff\xc1" + bytes(20)])
    data["PixelData"].is_undefined_length = True
    save(data, tmp_path / "a.dcm")
    with pytest.raises(InputError, match=r"a\.dcm: .*JPEG Extended.*pip install pylibjpeg pylibjpeg-libjpeg$"):
        read(tmp_path)


# ---- Grey values ---------------------------------------------------------------------------------------------------
def test_stated_bits_that_are_not_used_are_noted(tmp_path):
    save(dicom(VOXELS, bits=16), tmp_path / "eight" / "a.dcm")
    save(dicom(VOXELS.astype(np.uint16) * 16, bits=16), tmp_path / "twelve" / "a.dcm")
    save(dicom(VOXELS.astype(np.uint16) * 4, bits=10), tmp_path / "ten" / "a.dcm")
    for name, expected, note in (
        ("eight", VOXELS.astype(np.uint16) * 257, "values up to 255 in uint16 taken for 8 bits"),
        ("twelve", VOXELS.astype(np.uint32) * 16 * 65535 // 4095, "values up to 4080 in uint16 taken for 12 bits"),
        ("ten", VOXELS.astype(np.uint32) * 4 * 65535 // 1023, None),
    ):
        (scan,) = read(tmp_path / name)
        np.testing.assert_array_equal(scan.voxels, expected.astype(np.uint16))
        assert (note in scan.notes) if note else scan.notes == ()


def rescaled(slope, intercept=None):
    given = {"RescaleSlope": slope} | ({} if intercept is None else {"RescaleIntercept": intercept})
    return [(given, {}), ({}, given)]  # in the header, or in the functional groups


@pytest.mark.parametrize(("header", "group"), [*rescaled(257, 0), *rescaled(-256, 65280), *rescaled(257)])
def test_rescaling_is_applied(tmp_path, header, group):
    data = dicom(VOXELS, bits=16, **header)
    if group:
        data.PerFrameFunctionalGroupsSequence = groups_of_frames(*[group] * len(VOXELS))
    save(data, tmp_path / "a.dcm")
    (scan,) = read(tmp_path)
    judge = Dataset()
    judge.RescaleIntercept = 0
    for name, value in (header | group).items():
        setattr(judge, name, value)
    np.testing.assert_array_equal(scan.voxels, apply_modality_lut(VOXELS.astype(np.uint16), judge))
    assert "rescaled" in scan.notes[0]


def test_a_window_limits_the_grey_values_and_an_absurd_one_does_not(tmp_path):
    data = dicom(VOXELS, WindowCenter=128, WindowWidth=101)
    save(data, tmp_path / "narrow" / "a.dcm")
    (scan,) = read(tmp_path / "narrow")
    assert np.abs(scan.voxels / 257 - apply_windowing(VOXELS, data)).max() <= 0.5
    assert "window" in scan.notes[0]
    save(dicom(VOXELS, WindowCenter=128, WindowWidth=256), tmp_path / "whole" / "a.dcm")
    (scan,) = read(tmp_path / "whole")
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    assert scan.notes == ()
    bright = 1000 + VOXELS.astype(np.uint16) * 200
    save(dicom(bright, bits=16, WindowCenter=128, WindowWidth=256), tmp_path / "absurd" / "a.dcm")
    (scan,) = read(tmp_path / "absurd")
    np.testing.assert_array_equal(scan.voxels, bright)
    assert "not applied" in scan.notes[0]


def test_values_in_the_upper_bits(tmp_path):
    twelve = VOXELS.astype(np.uint16) * 16
    data = dicom(twelve << 4, bits=16, BitsStored=12)  # HighBit stays 15
    save(data, tmp_path / "a.dcm")
    (scan,) = read(tmp_path)
    np.testing.assert_array_equal(scan.voxels, twelve.astype(np.uint32) * 65535 // 4095)


@pytest.mark.parametrize("bits", [8, 16])
def test_white_is_zero_in_the_range_that_the_values_have(tmp_path, bits):
    save(dicom(255 - VOXELS, bits=bits, PhotometricInterpretation="MONOCHROME1"), tmp_path / "a.dcm")
    (scan,) = read(tmp_path)
    np.testing.assert_array_equal(scan.voxels, VOXELS if bits == 8 else VOXELS.astype(np.uint16) * 257)


def test_palette_and_luminance(tmp_path):
    data = dicom(VOXELS, PhotometricInterpretation="PALETTE COLOR")
    table = (255 - np.arange(256)).astype("<u2") * 257
    for colour in ("Red", "Green", "Blue"):
        setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(data, f"{colour}PaletteColorLookupTableData", table.tobytes())
    save(data, tmp_path / "palette" / "a.dcm")
    (scan,) = read(tmp_path / "palette")
    np.testing.assert_array_equal(scan.voxels, apply_color_lut(VOXELS, data)[..., 0])
    for name in ("YBR_FULL", "RGB"):
        rgb = np.repeat(VOXELS[..., np.newaxis], 3, axis=-1)
        data = dicom(VOXELS, PhotometricInterpretation=name, SamplesPerPixel=3, PlanarConfiguration=0)
        data.PixelData = (rgb if name == "RGB" else convert_color_space(rgb, "RGB", name)).tobytes()
        save(data, tmp_path / name / "a.dcm")
        (scan,) = read(tmp_path / name)
        np.testing.assert_allclose(scan.voxels, VOXELS, atol=1)


def test_uneven_places_and_the_patient_are_told(tmp_path):
    """Volumes of fluid take the places into account (tests/test_etdrs.py)."""
    frames = np.full((4, 10, 12), 100, np.uint8)
    along_mm = [0.0, 0.1, 0.4, 0.5]
    places = [[0, 0, place] for place in along_mm]
    orientation = [[1, 0, 0, 0, 1, 0]] * 4
    save_series(
        tmp_path / "series",
        frames,
        ImagePositionPatient=places,
        ImageOrientationPatient=orientation,
        PatientID=["P7"] * 4,
    )
    (files,) = find_scans([tmp_path / "series"])
    scan = read_scan(files)
    np.testing.assert_allclose(scan.z_mm, along_mm)
    assert scan.patient == "P7"
    assert any("0.1 to 0.3 mm apart" in note for note in scan.notes)
    assert read_scan(files, spacing_mm=(0.01, 0.004, 0.1)).z_mm is None  # the user says that they are even
