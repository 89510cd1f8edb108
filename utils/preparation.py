"""A case's preprocessed files, and the record by which a later run knows that they are finished."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.custom_nuts import volume_paths
from utils.errors import InputError
from utils.files import code_digest, digest, write_json
from utils.mhd import open_volume, read_header, read_volume, volume_files, write_volume
from utils.preprocessing import (
    PREPROCESSING_CODE,
    VENDOR_RULES,
    preprocess_reference,
    preprocess_volume,
    resampled_rows,
)
from utils.roi import roi_mask


@dataclass(frozen=True)
class Preparation:
    """What the preprocessed files of a case depend on besides the case."""

    axial_spacing_mm: float
    minimum_shape: tuple  # (rows, columns) that smaller B-scans are padded to
    reference_histogram: np.ndarray | None  # 256 counts that Cirrus and Topcon are matched to


def prepare_case(case, preprocessed_folder, preparation):
    """Write the preprocessed scan, reference (where there is one) and ROI mask of `case`, then its record."""
    oct_path, mask_path, roi_path = volume_paths(preprocessed_folder, case.vendor, case.name)
    record = expected_record(case, preparation)  # before reading: a file changed meanwhile is not taken for this one
    grid = {"axial_spacing_mm": preparation.axial_spacing_mm, "minimum_shape": preparation.minimum_shape}
    voxels, spacing_mm = read_volume(case.oct_path)
    histogram = preparation.reference_histogram
    volume = preprocess_volume(voxels, spacing_mm, case.vendor, reference_histogram=histogram, **grid)
    del voxels
    written_spacing_mm = (spacing_mm[0], preparation.axial_spacing_mm, spacing_mm[2])
    write_volume(oct_path, volume, written_spacing_mm)
    if case.reference_path is None:
        rois = [roi_mask(slice_) for slice_ in volume]
    else:
        reference = preprocess_reference(read_volume(case.reference_path)[0], spacing_mm, **grid)
        write_volume(mask_path, reference, written_spacing_mm)
        rois = [roi_mask(*slices) for slices in zip(volume, reference, strict=True)]
    write_volume(roi_path, np.stack(rois), written_spacing_mm)
    write_json(record_path(preprocessed_folder, case), record)


def why_unfinished(case, preprocessed_folder, preparation):
    """What is to be done about `case`, in a few words; None where its files are what `prepare_case` would write."""
    path = record_path(preprocessed_folder, case)
    if not path.exists():
        return "not prepared yet"
    try:
        record = json.loads(path.read_text("utf-8"))
    except ValueError:
        return "record unreadable"
    expected = expected_record(case, preparation)
    changed = [name for name, value in expected.items() if record.get(name) != value]
    if changed:
        return f"{', '.join(changed)} changed"
    try:
        for output in _outputs(case, preprocessed_folder):
            open_volume(output)
    except InputError:
        return "files missing or damaged"
    return None


def expected_record(case, preparation):
    """What the record of `case` says once it is prepared: its source files, and the settings that matter to it."""
    matched = VENDOR_RULES[case.vendor].match_histogram and preparation.reference_histogram is not None
    return {
        "source files": source_files(case),
        "AXIAL_SPACING_MM": preparation.axial_spacing_mm,
        "size": _prepared_size(case, preparation),
        "reference histogram": digest(preparation.reference_histogram.tobytes()) if matched else None,
        "preprocessing code": code_digest(*PREPROCESSING_CODE),
    }


def source_files(case):
    """Name, size in bytes and modification time in ns of each file of `case`: [[name, bytes, ns], ...]."""
    paths = [path for path in (case.oct_path, case.reference_path) if path is not None]
    files = [(file, file.stat()) for path in paths for file in volume_files(path)]
    return [[file.name, status.st_size, status.st_mtime_ns] for file, status in files]


def forget(case, preprocessed_folder):
    """Remove the record of `case`, which is about to be prepared: its files may come to be of two kinds."""
    record_path(preprocessed_folder, case).unlink(missing_ok=True)


def record_path(preprocessed_folder, case):
    """Where the record of `case` is; it exists only while the case's preprocessed files are whole."""
    return Path(preprocessed_folder) / "finished" / f"{case.vendor}_{case.name}.json"


def _prepared_size(case, preparation):
    """[rows, columns] of the preprocessed B-scans: PATCH_SIZE_H and PATCH_SIZE_W matter only where they are larger."""
    header = read_header(case.oct_path)
    rows = resampled_rows(header.shape[1], header.spacing_mm[1], preparation.axial_spacing_mm)
    return [max(lengths) for lengths in zip((rows, header.shape[2]), preparation.minimum_shape, strict=True)]


def _outputs(case, preprocessed_folder):
    oct_path, mask_path, roi_path = volume_paths(preprocessed_folder, case.vendor, case.name)
    return (oct_path, roi_path) if case.reference_path is None else (oct_path, mask_path, roi_path)
