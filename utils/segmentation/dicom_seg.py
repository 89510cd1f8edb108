"""Labels as a DICOM segmentation that refers to the files of the scan.

highdicom takes the frames of a single file in the order in which they are stored. A scan may be a series of files, a
part of a file, or frames in another order. So highdicom gets a stand-in: the header of one file that holds the scan's
frames in their order. Then each reference to it becomes one to the file and frame that the B-scan came from.
"""

import importlib.util
import warnings

import numpy as np

from utils.errors import InputError
from utils.files import written_whole
from utils.labels import FLUIDS
from utils.plots import CLASS_COLOURS
from utils.volumes.dicom import TOMOGRAPHY
from utils.volumes.dicom_frames import directions, of_frame, read_header, sop_class

_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")  # one for all files
_MAY_BE_EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
_MAY_BE_EMPTY += ("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName")
_LEAVE_OUT = "leave dicom-seg out of --format"
_NAME = "retinal-fluid collection"
# SNOMED's "Body fluid" (CID 7151) is the type. Which fluid it is, a modifier says: no code was found in a published
# list that names it, neither in DICOM's context groups (PS3.16, as in pydicom.sr.codedict) nor elsewhere with SNOMED's
# full name. A scheme of one's own begins with 99 (PS3.16, section 8).
_SCHEME = "99RETINALFLUID"
_MEANINGS = {"IRF": "Intraretinal fluid", "SRF": "Subretinal fluid", "PED": "Pigment epithelial detachment"}
_SERIES_AFTER = 1000  # added to the source's series number


def check_installed():
    """Raise `InputError` if highdicom is not installed."""
    if importlib.util.find_spec("highdicom") is None:
        raise InputError("--format dicom-seg: the package highdicom is not installed; pip install highdicom")


def check_source(scan):
    """Raise `InputError` if no DICOM segmentation can refer to the files of a `utils.volumes.scans.Scan`."""
    nothing = np.broadcast_to(np.zeros((), np.uint8), scan.voxels.shape)
    _segmentation(nothing, scan, model_sha256="")


def write_dicom_seg(path, labels, scan, model_sha256):
    """Write `labels`, uint8 (slices, rows, columns) of 0 to 3, of a `utils.volumes.scans.Scan`; the file appears whole.

    There is a frame for each fluid and B-scan, also where the fluid is absent: it says that none was found there.
    Raises `InputError` as `check_source` does.
    """
    segmentation = _segmentation(labels, scan, model_sha256)
    with written_whole(path) as temporary:
        segmentation.save_as(temporary)


def _segmentation(labels, scan, model_sha256):
    """The `highdicom.seg.Segmentation`."""
    from highdicom import UID
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.seg import Segmentation, SegmentationTypeValues

    if scan.frames is None:
        raise InputError(f"{scan.path}: is no DICOM file, to which a DICOM segmentation could refer; {_LEAVE_OUT}")
    headers = {path: read_header(path) for path in dict.fromkeys(frame.path for frame in scan.frames)}
    described = _descriptions(model_sha256, scan.laterality)
    try:
        if lacking := _lacking(scan.frames, headers):
            what = f"lacks {', '.join(lacking)}, which a DICOM segmentation needs"
            raise InputError(f"{scan.path}: {what}; {_LEAVE_OUT}, or export the scan with it")
        source = _stand_in(scan, headers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual values in the source, which are copied
            segmentation = Segmentation(
                source_images=[source],
                pixel_array=labels,
                segmentation_type=SegmentationTypeValues.BINARY,
                segment_descriptions=described,
                series_instance_uid=UID(),
                series_number=int(source.get("SeriesNumber") or 0) + _SERIES_AFTER,
                sop_instance_uid=UID(),
                instance_number=1,
                manufacturer=_NAME,
                manufacturer_model_name="test.py",
                software_versions=model_sha256,
                device_serial_number="none",
                content_label="RETINAL_FLUID",
                content_description="Retinal fluid, segmented automatically",
                series_description="Retinal fluid, segmented automatically",
                coding_schemes=[CodingSchemeIdentificationItem(_SCHEME, name=f"Codes of the {_NAME}")],
                omit_empty_frames=False,
            )
    except InputError:
        raise
    except Exception as error:  # highdicom and pydicom raise many kinds for damaged values and forbidden ones
        raise InputError(f"{scan.path}: no DICOM segmentation can refer to it ({error}); {_LEAVE_OUT}") from error
    _refer_to(scan.frames, headers, segmentation)
    return segmentation


def _lacking(frames, headers):
    """What the files lack that a segmentation needs, in words."""
    lacking = []
    for name in (*_NEEDED, "SOPInstanceUID"):
        values = [str(header.get(name) or "") for header in headers.values()]
        if "" in values:
            lacking.append(name)
        elif name in _NEEDED and len(set(values)) > 1:
            lacking.append(f"one {name} in all of its files")
        elif name not in _NEEDED and len(set(values)) < len(values):
            lacking.append(f"a {name} of its own in each of its files")
    if not all(map(sop_class, headers.values())):
        lacking.append("SOPClassUID")
    if any(frame.position_mm is None for frame in frames):
        lacking.append("ImagePositionPatient")
    if any(frame.orientation is None for frame in frames):
        lacking.append("ImageOrientationPatient")
    elif len(set(directions(frames))) > 1:
        lacking.append("one direction of all B-scans")
    spacings = {_pixel_spacing(frame, headers) for frame in frames}
    if None in spacings:
        lacking.append("PixelSpacing")
    elif len(spacings) > 1:
        lacking.append("one PixelSpacing of all B-scans")
    return lacking


def _pixel_spacing(frame, headers):
    """(row spacing, column spacing) in mm as the file states them, or None."""
    spacing_mm = _told(frame, headers, "PixelSpacing")
    return None if spacing_mm is None else tuple(spacing_mm)


def _told(frame, headers, name):
    header = headers[frame.path]
    return of_frame(header, header.get("PerFrameFunctionalGroupsSequence") or [], frame.index, name)


def _stand_in(scan, headers):
    """The header of a file that holds the scan's frames in their order, with patient and study of the first's file."""
    from pydicom import Dataset

    frames, source = scan.frames, Dataset()
    headers[frames[0].path].decode()
    source.update(headers[frames[0].path])
    source.SpecificCharacterSet = "ISO_IR 192"  # UTF-8; highdicom refuses some of the others
    for name in _MAY_BE_EMPTY:
        if name not in source:
            setattr(source, name, None)
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing = _as_text(_pixel_spacing(frames[0], headers))
    thickness_mm = _told(frames[0], headers, "SliceThickness")
    measures.SliceThickness, *_ = _as_text([thickness_mm or scan.spacing_mm[2]])  # readers want one
    orientation.ImageOrientationPatient = _as_text(frames[0].orientation)
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    of_frames = []
    for frame in frames:
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = _as_text(frame.position_mm)
        group.PlanePositionSequence = [position]
        of_frames.append(group)
    source.SOPClassUID, source.NumberOfFrames = TOMOGRAPHY, len(frames)
    source.SharedFunctionalGroupsSequence, source.PerFrameFunctionalGroupsSequence = [shared], of_frames
    return source


def _as_text(numbers):
    """`numbers` as DICOM's decimal strings, which have at most 16 characters."""
    from pydicom.valuerep import DSfloat

    return [DSfloat(number, auto_format=True) for number in numbers]


def _descriptions(model_sha256, laterality):
    """A `SegmentDescription` for each fluid, numbered by its label; `laterality` is "OD", "OS" or None."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(_NAME, codes.DCM.ArtificialIntelligence, model_sha256)
    retina = CodedConcept.from_code(codes.SCT.Retina)
    if laterality:
        side = {"OD": codes.SCT.Right, "OS": codes.SCT.Left}[laterality]
        retina.AnatomicRegionModifierSequence = [CodedConcept.from_code(side)]

    def body_fluid(fluid):
        kind = CodedConcept.from_code(codes.SCT.BodyFluid)
        kind.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept(fluid, _SCHEME, _MEANINGS[fluid])]
        return kind

    return [
        SegmentDescription(
            segment_number=label,
            segment_label=fluid,
            segmented_property_category=codes.SCT.BodySubstance,
            segmented_property_type=body_fluid(fluid),
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            anatomic_regions=[retina],
            display_color=CIELabColor.from_rgb(*CLASS_COLOURS[label].tolist()),
        )
        for fluid, label in FLUIDS.items()
    ]


def _refer_to(frames, headers, segmentation):
    """Let a segmentation of the stand-in refer to the files and frames themselves."""
    from pydicom import Dataset

    instances = {}
    for path, header in headers.items():
        instances[path] = Dataset()
        instances[path].ReferencedSOPClassUID = sop_class(header)
        instances[path].ReferencedSOPInstanceUID = header.SOPInstanceUID
    segmentation.SourceImageSequence = list(instances.values())
    segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence = list(instances.values())
    groups = segmentation.PerFrameFunctionalGroupsSequence
    references = [group.DerivationImageSequence[0].SourceImageSequence[0] for group in groups]
    numbers = [reference.ReferencedFrameNumber for reference in references]  # first: the fluids' frames share them
    for reference, number in zip(references, numbers, strict=True):
        frame = frames[number - 1]
        reference.update(instances[frame.path])
        reference.ReferencedFrameNumber = frame.index + 1
        if int(headers[frame.path].get("NumberOfFrames") or 1) == 1:
            del reference.ReferencedFrameNumber
