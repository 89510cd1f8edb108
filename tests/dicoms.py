"""DICOM data sets, as small as they may be."""

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset

SPACING_MM = (0.0117, 0.003872, 0.12)


def dicom(frames, bits=8, **attributes):
    """A DICOM data set with these frames (n, rows, columns), or one (rows, columns), and further attributes."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.5.4"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.Manufacturer, data.ImageLaterality, data.StudyDate = "Heidelberg Engineering", "L", "20260131"
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated = 8 if bits == 8 else 16
    data.BitsStored, data.HighBit = bits, bits - 1
    data.Rows, data.Columns = frames.shape[-2:]
    if frames.ndim == 3:
        data.NumberOfFrames = len(frames)
        measures, shared = Dataset(), Dataset()
        measures.PixelSpacing, measures.SliceThickness = [SPACING_MM[1], SPACING_MM[0]], SPACING_MM[2]
        shared.PixelMeasuresSequence = pydicom.Sequence([measures])
        data.SharedFunctionalGroupsSequence = pydicom.Sequence([shared])
    data.PixelData = frames.astype(np.uint8 if bits == 8 else "<u2").tobytes()
    for name, value in attributes.items():
        setattr(data, name, value)
    return data


def save(data, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def save_series(folder, frames, names=None, **of_each):
    """Write a file for each of `frames`; `of_each` holds a list of values, one a file, for each attribute."""
    for index, frame in enumerate(frames):
        data = dicom(frame, SeriesInstanceUID="1.2.3", PixelSpacing=[SPACING_MM[1], SPACING_MM[0]])
        for name, values in of_each.items():
            if values[index] is not None:
                setattr(data, name, values[index])
        save(data, folder / (names[index] if names else f"{index}.dcm"))


def groups_of_frames(*values):
    """A sequence of functional groups; `values` are a {attribute: value} for each frame."""
    groups = []
    for of_frame in values:
        held, group = Dataset(), Dataset()
        for name, value in of_frame.items():
            setattr(held, name, value)
        group.PlanePositionSequence = pydicom.Sequence([held])  # which sequence holds it makes no difference here
        groups.append(group)
    return pydicom.Sequence(groups)


# ---- Complete ones, to which a segmentation can refer -------------------------------------------------------------
SLANTED = (0.8, 0.6, 0.0, 0.0, 0.0, -1.0)  # orientation of rows and columns; the B-scans follow each other along NORMAL
NORMAL = (-0.6, 0.8, 0.0)
OF_A_PATIENT = {
    "StudyInstanceUID": "1.2.3.1",
    "SeriesInstanceUID": "1.2.3.2",
    "FrameOfReferenceUID": "1.2.3.3",
    "SeriesNumber": 7,
    "PatientID": "P7",
    "PatientName": "Doe^Jane",
    "PatientSex": "F",
    "PatientBirthDate": "19500131",
    "StudyID": "S1",
    "StudyTime": "101500",
    "AccessionNumber": "A1",
    "Modality": "OPT",
}


def place_mm(number):
    """ImagePositionPatient of B-scan `number` of a volume: multiples of 0.12 mm along its normal."""
    return [round(10.5 + 0.12 * number * NORMAL[0], 6), round(-3.25 + 0.12 * number * NORMAL[1], 6), 4.125]


def item(**attributes):
    """A sequence of one data set with these attributes."""
    data = Dataset()
    for name, value in attributes.items():
        setattr(data, name, value)
    return pydicom.Sequence([data])


def tomography(frames, numbers, **attributes):
    """A complete multi-frame Ophthalmic Tomography; `numbers` are the frames' places, see `place_mm`."""
    data = dicom(frames, **{**OF_A_PATIENT, **attributes})
    data.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence = item(ImageOrientationPatient=list(SLANTED))
    data.PerFrameFunctionalGroupsSequence = pydicom.Sequence()
    for number in numbers:
        position = item(ImagePositionPatient=place_mm(number))
        data.PerFrameFunctionalGroupsSequence.extend(item(PlanePositionSequence=position))
    return data


def save_tomographies(folder, frames, numbers, names=None):
    """Write a complete series with a file for each of `frames`, at the places `numbers`."""
    of_each = {name: [value] * len(frames) for name, value in OF_A_PATIENT.items()}
    of_each["ImageOrientationPatient"] = [list(SLANTED)] * len(frames)
    of_each["ImagePositionPatient"] = [place_mm(number) for number in numbers]
    save_series(folder, frames, names, InstanceNumber=list(range(1, len(frames) + 1)), **of_each)
