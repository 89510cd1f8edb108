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
