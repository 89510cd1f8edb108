"""Step 1: raw volumes to preprocessed volumes, ROI masks, the slice CSV and the splits.

Reads DATA_ROOT/RETOUCH-TrainingSet-<Vendor>/<case>/{oct,reference}.mhd (other layouts: see `utils.cases`), writes below
OUTPUT_ROOT: pre_processed/{oct_imgs,oct_masks,roi_masks}/<Vendor>_<case>.mhd, pre_processed/slice_gt.csv,
pre_processed/reference_histogram.csv and {train,val,test}_data.csv. Nothing is written before all cases are checked.

    python prepare_data.py [--set NAME=VALUE ...]
"""

import sys
from pathlib import Path

import joblib
import numpy as np
import pandas
from tqdm import tqdm

import config
from utils.cases import check_cases, find_cases
from utils.custom_nuts import volume_paths
from utils.data_prepare import SliceRow
from utils.errors import InputError, run_script
from utils.files import write_csv
from utils.invalid import find_invalid
from utils.labels import FLUIDS
from utils.mhd import open_volume, read_volume, write_volume
from utils.preprocessing import grey_value_histogram, preprocess_reference, preprocess_volume, to_8_bit
from utils.reference_histogram import read_reference_histogram, write_reference_histogram
from utils.roi import roi_mask
from utils.splits import PARTS, split_patients


def main(argv):
    config.load(argv)
    config.validate()
    cases = find_cases(config.DATA_ROOT)
    check_cases(cases)

    # The split comes first: intensities are matched to a volume that trains.
    split = split_patients(
        [(case.vendor, case.name) for case in cases],
        pattern=config.PATIENT_PATTERN,
        test_fraction=config.TEST_FRACTION,
        validation_fraction=config.VALIDATION_FRACTION,
        seed=config.SEED,
        folds=config.FOLDS,
        fold=config.FOLD,
        existing=read_existing_split(),
    )
    reference_histogram = find_reference_histogram(cases, split)

    folder = config.preprocessed_folder()
    write_reference_histogram(config.reference_histogram_csv(), reference_histogram)
    fluids = preprocess_oct_images(
        cases,
        folder,
        reference_histogram=reference_histogram,
        axial_spacing_mm=config.AXIAL_SPACING_MM,
        minimum_shape=(config.PATCH_SIZE_H, config.PATCH_SIZE_W),
        workers=config.WORKERS,
    )
    create_roi_masks(cases, folder, workers=config.WORKERS)
    slices = create_test_train_set(cases, fluids, split, folder)
    print(summary(slices, split))


def preprocess_oct_images(
    cases, preprocessed_folder, *, reference_histogram, axial_spacing_mm, minimum_shape, workers=0
):
    """Write the preprocessed scan and reference of every case; `workers` processes share the work (0: in-process).

    Returns for each case which fluids each B-scan of the reference holds: a list of bool arrays (slices, fluids).
    """
    return _for_each_case(
        _preprocess_case,
        cases,
        "preprocessing",
        workers,
        preprocessed_folder=preprocessed_folder,
        reference_histogram=reference_histogram,
        axial_spacing_mm=axial_spacing_mm,
        minimum_shape=minimum_shape,
    )


def create_roi_masks(cases, preprocessed_folder, *, workers=0):
    """Write the ROI mask of every preprocessed case."""
    _for_each_case(_create_roi_mask, cases, "ROI masks", workers, preprocessed_folder=preprocessed_folder)


def create_test_train_set(cases, fluids, split, preprocessed_folder):
    """Write slice_gt.csv and the three CSV files of the split; returns the table in slice_gt.csv.

    `fluids` is what `preprocess_oct_images` returns, `split` what `split_patients` does.
    """
    slices = pandas.DataFrame(
        [
            SliceRow(case.name, case.vendor, case.root, index, *held.astype(int))
            for case, of_case in zip(cases, fluids, strict=True)
            for index, held in enumerate(of_case)
        ],
        columns=SliceRow._fields,
    )
    write_csv(Path(preprocessed_folder) / "slice_gt.csv", slices)
    parts = _parts(slices, split)
    for part in PARTS:
        write_csv(config.split_csv(part), slices[parts == part])
    return slices


def read_existing_split():
    """The parts of the split that stand on disk, as {part: (vendor, name) pairs}."""
    existing = {}
    for part in PARTS:
        path = config.split_csv(part)
        if path.exists():
            # As text and nothing missing: pandas would take a case named NA for no name.
            try:
                table = pandas.read_csv(path, dtype=str, keep_default_na=False)
            except ValueError as error:
                raise InputError(f"{path}: not a CSV of cases ({error}); correct or delete it") from error
            lacking = [name for name in ("vendor", "image_name") if name not in table]
            if lacking:
                raise InputError(f"{path}: has no column {', '.join(lacking)}; add it, or delete the file")
            existing[part] = list(dict.fromkeys(zip(table["vendor"], table["image_name"], strict=True)))
    if existing:
        print(f"Split: {', '.join(f'{part}_data.csv' for part in existing)} found and kept; delete to draw anew")
    return existing


def find_reference_histogram(cases, split):
    """What Cirrus and Topcon are matched to (256 counts): of a Spectralis case, else of a file, else None."""
    spectralis = [case for case in cases if case.vendor == "Spectralis"]
    if config.REFERENCE_CASE is not None:
        chosen = [case for case in spectralis if case.name == config.REFERENCE_CASE]
        if not chosen:
            raise InputError(
                f"config.REFERENCE_CASE = {config.REFERENCE_CASE!r}: no Spectralis case below {config.DATA_ROOT} has "
                "this name; name one, or set it to None for the first that trains"
            )
    else:
        chosen = [case for case in spectralis if split.get((case.vendor, case.name)) == "train"]
    if chosen:
        volume = to_8_bit(read_volume(chosen[0].oct_path)[0])
        return grey_value_histogram(volume, find_invalid(volume))
    if config.REFERENCE_HISTOGRAM is not None:
        return read_reference_histogram(config.REFERENCE_HISTOGRAM)
    print(
        "warning: no Spectralis case trains and config.REFERENCE_HISTOGRAM is None: grey values are not matched",
        file=sys.stderr,
    )
    return None


def summary(slices, split):
    """Text: volumes and B-scans per vendor, how many hold each fluid, and the split."""
    columns = [f"is_{fluid}" for fluid in FLUIDS]
    volumes = slices.groupby(["vendor", "image_name"], sort=False)[columns].max()
    table = pandas.DataFrame(
        {
            "volumes": volumes.groupby("vendor").size(),
            "B-scans": slices.groupby("vendor").size(),
            **{f"volumes with {fluid}": volumes.groupby("vendor")[f"is_{fluid}"].sum() for fluid in FLUIDS},
            **{f"B-scans with {fluid}": slices.groupby("vendor")[f"is_{fluid}"].sum() for fluid in FLUIDS},
        }
    )
    parts = list(split.values())
    left_out = len(volumes) - len(parts)
    lines = [table.to_string(), "Volumes: " + ", ".join(f"{parts.count(part)} {part}" for part in reversed(PARTS))]
    if left_out:
        lines.append(f"warning: {left_out} volumes are in no part of the existing split and will not be used")
    return "\n".join(lines)


def _preprocess_case(case, preprocessed_folder, reference_histogram, axial_spacing_mm, minimum_shape):
    oct_path, mask_path, _ = volume_paths(preprocessed_folder, case.vendor, case.name)
    voxels, spacing_mm = read_volume(case.oct_path)
    reference, _ = read_volume(case.reference_path)
    grid = {"axial_spacing_mm": axial_spacing_mm, "minimum_shape": minimum_shape}
    volume = preprocess_volume(voxels, spacing_mm, case.vendor, reference_histogram=reference_histogram, **grid)
    written_spacing_mm = (spacing_mm[0], axial_spacing_mm, spacing_mm[2])
    write_volume(oct_path, volume, written_spacing_mm)
    write_volume(mask_path, preprocess_reference(reference, spacing_mm, **grid), written_spacing_mm)
    return np.stack([(reference == label).any(axis=(1, 2)) for label in FLUIDS.values()], axis=1)


def _create_roi_mask(case, preprocessed_folder):
    oct_path, mask_path, roi_path = volume_paths(preprocessed_folder, case.vendor, case.name)
    volume, spacing_mm = open_volume(oct_path)
    reference, _ = open_volume(mask_path)
    roi = np.stack([roi_mask(*slices) for slices in zip(volume, reference, strict=True)])
    write_volume(roi_path, roi, spacing_mm)


def _for_each_case(function, cases, description, workers, **arguments):
    """``function(case, **arguments)`` of every case, in order, with a progress bar."""
    parallel = joblib.Parallel(n_jobs=max(1, workers), return_as="generator")
    results = parallel(joblib.delayed(function)(case, **arguments) for case in cases)
    return list(tqdm(results, description, total=len(cases), unit="volume"))


def _parts(slices, split):
    """Part of each row of `slices`, None where its case is in no part."""
    return np.array([split.get(case) for case in zip(slices["vendor"], slices["image_name"], strict=True)])


if __name__ == "__main__":
    run_script(main)
