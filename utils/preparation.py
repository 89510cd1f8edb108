"""A case's preprocessed files, and the records by which a later run knows that they are finished.

A case is prepared in two stages, "images" (scan and reference) and "roi" (made from these). Each has a record, which is
written after its files.
"""

import contextlib
import json
from dataclasses import dataclass

import numpy as np

from utils.errors import InputError
from utils.files import code_digest, digest, fingerprint, write_json
from utils.mhd import (
    open_volume,
    read_header,
    read_volume,
    read_volume_onto,
    volume_files,
    volume_writer,
    voxel_digest,
    write_volume,
)
from utils.prepared import record_path, volume_paths
from utils.preprocessing import PREPROCESSING_CODE, VENDOR_RULES, preprocess_reference, preprocess_volume
from utils.reference_histogram import digest_of
from utils.roi import ROI_CODE, roi_mask


@dataclass(frozen=True)
class Preparation:
    """What the preprocessed files of a case depend on besides the case."""

    axial_spacing_mm: float
    reference_histogram: np.ndarray | None  # 256 counts that Cirrus and Topcon are matched to


# ---- Images --------------------------------------------------------------------------------------------------------
def preprocess_case(case, preprocessed_folder, preparation):
    """Write the preprocessed scan and reference (where there is one) of `case`, then the record of its images."""
    oct_path, mask_path, _ = volume_paths(preprocessed_folder, case.vendor, case.name)
    record = images_record(case, preparation)  # before reading: a file changed meanwhile is not taken for this one
    axial_spacing_mm = preparation.axial_spacing_mm
    voxels, spacing_mm = read_volume(case.oct_path)
    record["voxels"] = voxel_digest(voxels)
    volume = preprocess_volume(
        voxels,
        spacing_mm,
        case.vendor,
        axial_spacing_mm=axial_spacing_mm,
        reference_histogram=preparation.reference_histogram,
    )
    del voxels
    written_spacing_mm = (spacing_mm[0], axial_spacing_mm, spacing_mm[2])
    placement = read_header(case.oct_path).placement.with_row_spacing(spacing_mm[1], axial_spacing_mm)
    write_volume(oct_path, volume, written_spacing_mm, placement)
    del volume
    if case.reference_path is not None:
        reference = read_volume_onto(case.reference_path, case.oct_path)
        reference = preprocess_reference(reference, spacing_mm, axial_spacing_mm=axial_spacing_mm)
        write_volume(mask_path, reference, written_spacing_mm, placement)
    write_json(record_path(preprocessed_folder, case.vendor, case.name, "images"), record)


def why_images_unfinished(case, preprocessed_folder, preparation):
    """What is to be done about the images of `case`, in a few words; None where its files are as they should be."""
    oct_path, mask_path, _ = volume_paths(preprocessed_folder, case.vendor, case.name)
    outputs = (oct_path,) if case.reference_path is None else (oct_path, mask_path)
    return _why_unfinished(case, preprocessed_folder, "images", images_record(case, preparation), outputs)


def images_record(case, preparation):
    """What the record of `case` says once its images are prepared: its source files, and the settings that matter."""
    matched = VENDOR_RULES[case.vendor].match_histogram
    return {
        "source files": source_files(case),
        "AXIAL_SPACING_MM": preparation.axial_spacing_mm,
        "matched": matched,
        "reference histogram": digest_of(preparation.reference_histogram) if matched else None,
        "preprocessing code": code_digest(*PREPROCESSING_CODE),
    }


# ---- Region of interest --------------------------------------------------------------------------------------------
def create_roi_mask(case, preprocessed_folder):
    """Write the ROI mask of `case`, made from its preprocessed images, then its record."""
    oct_path, mask_path, roi_path = volume_paths(preprocessed_folder, case.vendor, case.name)
    record = roi_record(case, preprocessed_folder)
    volume, spacing_mm = open_volume(oct_path)
    references = [None] * len(volume) if case.reference_path is None else open_volume(mask_path)[0]
    placement = read_header(oct_path).placement
    with volume_writer(roi_path, volume.shape, np.uint8, spacing_mm, placement) as write_slice:
        for slice_, reference in zip(volume, references, strict=True):
            write_slice(roi_mask(slice_, reference))
    write_json(record_path(preprocessed_folder, case.vendor, case.name, "roi"), record)


def why_roi_unfinished(case, preprocessed_folder):
    """What is to be done about the ROI mask of `case`, whose images are prepared; None where it is as it should be."""
    roi_path = volume_paths(preprocessed_folder, case.vendor, case.name)[-1]
    return _why_unfinished(case, preprocessed_folder, "roi", roi_record(case, preprocessed_folder), (roi_path,))


def roi_record(case, preprocessed_folder):
    """What the record of the ROI mask of `case` says: which images it was made from, and by which code."""
    images = record_path(preprocessed_folder, case.vendor, case.name, "images").read_bytes()
    return {"images": digest(images), "ROI code": code_digest(*ROI_CODE)}


# ---- Records -------------------------------------------------------------------------------------------------------
def forget(case, preprocessed_folder, stage):
    """Remove the record of a `stage` of `case` that is about to be done: its files may come to be of two kinds."""
    record_path(preprocessed_folder, case.vendor, case.name, stage).unlink(missing_ok=True)


def source_files(case):
    """The `fingerprint` of the files of `case`."""
    paths = [path for path in (case.oct_path, case.reference_path) if path is not None]
    return fingerprint([file for path in paths for file in volume_files(path)])


def _why_unfinished(case, preprocessed_folder, stage, expected, outputs):
    path = record_path(preprocessed_folder, case.vendor, case.name, stage)
    if not path.exists():
        return "not prepared yet"
    record = None
    with contextlib.suppress(ValueError):
        record = json.loads(path.read_text("utf-8"))
    if record is None:
        return "record unreadable"
    changed = [name for name, value in expected.items() if record.get(name) != value]
    if changed:
        return f"{', '.join(changed)} changed"
    try:
        for output in outputs:
            open_volume(output)
    except InputError:
        return "files missing or damaged"
    return None
