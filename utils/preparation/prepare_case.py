"""A case's preprocessed files, and the records that tell a later run that they are finished.

A case is prepared in two stages: "images" (scan and reference), then "roi" (made from these). Each stage writes its
files, then its record.
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files import code_digest, digest, fingerprint, write_json
from utils.labels import FLUIDS
from utils.preparation.outlined import read_reference
from utils.preparation.preprocessing import PREPROCESSING_CODE, preprocess_reference, preprocess_volume, vendor_rule
from utils.preparation.reference_histogram import digest_of
from utils.preparation.roi import ROI_CODE, roi_mask
from utils.volumes.mhd import (
    open_volume,
    read_header,
    read_volume,
    volume_files,
    volume_writer,
    voxel_digest,
    write_volume,
)

# What records that do not say so were made with.
_BEFORE = {"outlined": list(FLUIDS), "not judged": []}


@dataclass(frozen=True)
class PreparedFiles:
    """Where the preprocessed files of a case are, and the records of its two stages."""

    oct: Path
    mask: Path
    roi: Path
    images_record: Path
    roi_record: Path


@dataclass(frozen=True)
class Preparation:
    """What the preprocessed files of a case depend on, in addition to the case."""

    axial_spacing_mm: float
    reference_histogram: np.ndarray | None  # 256 counts that Cirrus and Topcon are matched to


# ---- Images --------------------------------------------------------------------------------------------------------
def preprocess_case(case_and_files, preparation):
    """Write the preprocessed scan and reference (where there is one) of a case, then the record of its images.

    `case_and_files` is a pair (`Case`, `PreparedFiles`).
    """
    case, files = case_and_files
    record = images_record(case, preparation)  # before reading: a file that changes meanwhile makes it out of date
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
    write_volume(files.oct, volume, written_spacing_mm, placement)
    del volume
    if case.reference_path is not None:
        reference = preprocess_reference(read_reference(case), spacing_mm, axial_spacing_mm=axial_spacing_mm)
        write_volume(files.mask, reference, written_spacing_mm, placement)
    write_json(files.images_record, record)


def why_images_unfinished(case, files, preparation):
    """Why the images of `case` are to be prepared, in a few words; None if its files are finished."""
    outputs = (files.oct,) if case.reference_path is None else (files.oct, files.mask)
    return _why_unfinished(files.images_record, images_record(case, preparation), outputs)


def images_record(case, preparation):
    """The record of `case` once its images are prepared: its source files, and the settings that matter."""
    matched = vendor_rule(case.vendor).match_histogram
    return {
        "source files": source_files(case),
        "AXIAL_SPACING_MM": preparation.axial_spacing_mm,
        "matched": matched,
        "reference histogram": digest_of(preparation.reference_histogram) if matched else None,
        "outlined": list(case.outlined),
        "not judged": list(case.not_judged),
        "preprocessing code": code_digest(*PREPROCESSING_CODE),
    }


# ---- Region of interest --------------------------------------------------------------------------------------------
def create_roi_mask(case_and_files):
    """Write the ROI mask of a case, made from its preprocessed images, then its record.

    `case_and_files` is as in `preprocess_case`.
    """
    case, files = case_and_files
    record = roi_record(files)
    volume, spacing_mm = open_volume(files.oct)
    references = [None] * len(volume) if case.reference_path is None else open_volume(files.mask)[0]
    placement = read_header(files.oct).placement
    with volume_writer(files.roi, volume.shape, np.uint8, spacing_mm, placement) as write_slice:
        for slice_, reference in zip(volume, references, strict=True):
            write_slice(roi_mask(slice_, reference))
    write_json(files.roi_record, record)


def why_roi_unfinished(files):
    """Why the ROI mask of a case with prepared images is to be made, in a few words; None if it is finished."""
    return _why_unfinished(files.roi_record, roi_record(files), (files.roi,))


def roi_record(files):
    """The record of a ROI mask: which images it was made from, and by which code."""
    return {"images": digest(files.images_record.read_bytes()), "ROI code": code_digest(*ROI_CODE)}


# ---- Records -------------------------------------------------------------------------------------------------------
def source_files(case):
    """The `fingerprint` of the files of `case`."""
    paths = [path for path in (case.oct_path, case.reference_path, case.other_path) if path is not None]
    return fingerprint([file for path in paths for file in volume_files(path)])


def _why_unfinished(path, expected, outputs):
    """Why files are unfinished: the record at `path` is not as `expected`, or one of `outputs` is damaged; or None."""
    if not path.exists():
        return "not prepared yet"
    record = None
    with contextlib.suppress(ValueError):
        record = json.loads(path.read_text("utf-8"))
    if record is None:
        return "record unreadable"
    changed = [name for name, value in expected.items() if record.get(name, _BEFORE.get(name)) != value]
    if changed:
        return f"{', '.join(changed)} changed"
    try:
        for output in outputs:
            open_volume(output)
    except InputError:
        return "files missing or damaged"
    return None
