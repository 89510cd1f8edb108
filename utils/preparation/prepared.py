"""What step 1 writes: preprocessed volumes, the slice CSV and its splits, and records of how each case was prepared."""

import csv
import functools
import hashlib
import json
import re
from collections import namedtuple
from pathlib import Path, PurePath

from utils.errors import InputError
from utils.files import digest
from utils.labels import FLUIDS, in_order
from utils.preparation.splits import find_patient, patient_of

VOLUME_KINDS = ("oct_imgs", "oct_masks", "roi_masks")  # folders below the preprocessed one, in a sample's order
MESSAGES = 10  # complaints printed in full; the rest are only counted

COLUMNS = ("image_name", "vendor", "root", "slice", "is_IRF", "is_SRF", "is_PED")  # of the slice CSV, in order
# A row of it, with the folder of its preprocessed volumes where that is not the run's own. is_* are None for a fluid
# that was not outlined.
SliceRow = namedtuple("SliceRow", (*COLUMNS, "folder"), defaults=(None,))


def volume_paths(preprocessed_folder, vendor, image_name):
    """Paths of a case's preprocessed volumes, in the order of `VOLUME_KINDS`."""
    return tuple(Path(preprocessed_folder) / kind / f"{vendor}_{image_name}.mhd" for kind in VOLUME_KINDS)


def outlined_in(row):
    """Names of the fluids that were outlined in the B-scan of a `SliceRow`, whether it holds them or not."""
    return tuple(fluid for fluid in FLUIDS if getattr(row, f"is_{fluid}") is not None)


def fluids_outlined(rows):
    """Names of the fluids that were outlined in some of `rows`, `SliceRow`s."""
    return in_order({fluid for row in rows for fluid in outlined_in(row)})


def slices_seen(index, length, neighbours):
    """The three slices of a volume of `length` that the network sees of slice `index`: z-1, z, z+1, where the first and
    the last slice stand in for the neighbour that they lack. Without `neighbours` slice z three times."""
    return [max(index - 1, 0), index, min(index + 1, length - 1)] if neighbours else [index] * 3


# ---- The slice CSV and its splits ----------------------------------------------------------------------------------
def read_csv_data(path):
    """Rows of a slice CSV (slice_gt.csv or a split of it) as a list of `SliceRow`, in the file's order.

    slice is int, is_* are 0, 1 or None, the rest str exactly as written: a case may be called NA or 007. Further
    columns are ignored. Raises InputError if the file or a column is missing, a value is unusable, a row was lost in
    reading, or the file has no rows.
    """
    rows = _text_rows(path)
    if not rows:
        raise InputError(
            f"{path}: lists no B-scan, expected at least one; "
            "add patients to the data set, or move rows there from another part's CSV"
        )
    _raise_all(f"{path}: row {number}: {fault}" for number, row in enumerate(rows, 1) if (fault := _fault(row)))
    return [_with_values(row) for row in rows]


def read_outlined_rows(path):
    """The rows of `read_csv_data` in whose B-scan some fluid was outlined: those that networks learn from and that
    judge them. Raises InputError if there is none."""
    rows = [row for row in read_csv_data(path) if outlined_in(row)]
    if not rows:
        raise InputError(f"{path}: no fluid was outlined in any of its B-scans, expected some; see OUTLINED")
    return rows


def read_unlabelled_rows(slice_csv, held_out_csvs, patient_pattern):
    """The rows without labels in slice_gt.csv that may train, as a list of `SliceRow`.

    These are scans that prepare_data.py --unlabelled took, of patients who are in none of `held_out_csvs`. Raises
    InputError if there is none, and as `read_csv_data`.
    """
    held_out = {patient_of(row.image_name, patient_pattern) for path in held_out_csvs for row in _text_rows(path)}
    unlabelled = [row for row in _text_rows(slice_csv) if not any(row[4:7])]
    rows = [row for row in unlabelled if patient_of(row.image_name, patient_pattern) not in held_out]
    if not rows:
        found = f"{len(unlabelled)} B-scans without labels" + ", all of validation and test patients" * bool(unlabelled)
        raise InputError(
            f"{slice_csv}: holds {found}, expected some with UNLABELLED_SHARE above 0; "
            "run prepare_data.py --unlabelled on a DATA_ROOT with scans without a reference, or set it to 0"
        )
    _raise_all(f"{slice_csv}: {row.image_name}: {fault}" for row in rows if (fault := _fault(row)))
    return [_with_values(row) for row in rows]


def _text_rows(path):
    """The rows of a slice CSV as `SliceRow`s of text."""
    # Imported here because it takes a second: the processes that choose patches read no CSV.
    import pandas as pd
    from nutsml import ReadPandas

    path = Path(path)
    if path.suffix.lower() != ".csv":
        raise ValueError(f"expected a .csv file, got {path}")  # ReadPandas would unpickle anything else
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = [line for line in file if line.strip()]
        expected_rows, lengths = len(lines) - 1, list(map(len, csv.reader(lines)))
        # Every cell as text and none as missing: pandas reads NA as missing and 007 as 7 otherwise.
        reader = ReadPandas(str(path), colnames=list(COLUMNS), dropnan=False, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; run prepare_data.py first") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a CSV table in UTF-8 ({reason}); run prepare_data.py again") from error
    if not isinstance(reader.dataframe.index, pd.RangeIndex):  # pandas took the first column for row names
        raise InputError(f"{path}: rows have more values than the header has names; run prepare_data.py again")
    missing = [name for name in COLUMNS if name not in reader.dataframe.columns]
    if missing:
        raise InputError(
            f"{path}: lacks the column {', '.join(missing)}; found {', '.join(map(str, reader.dataframe.columns))}"
        )
    rows = list(reader)
    if len(rows) != expected_rows:
        raise InputError(
            f"{path}: read {len(rows)} rows of {expected_rows}, expected all; "
            "look for stray quotes and line breaks, or run prepare_data.py again"
        )
    # An empty value has a meaning, so that a row cut short must not look like one.
    _raise_all(
        f"{path}: row {number} has {length} values, expected {lengths[0]}; run prepare_data.py again"
        for number, length in enumerate(lengths)
        if length < lengths[0]
    )
    return [SliceRow._make((*row, None)) for row in rows]


def _with_values(row):
    """The `SliceRow` that a row of text is."""
    held = {f"is_{fluid}": getattr(row, f"is_{fluid}") for fluid in FLUIDS}
    held = {name: int(text) if text else None for name, text in held.items()}
    return row._replace(slice=int(row.slice), **held)


def _fault(row):
    """What is wrong with a row of text, or None."""
    for name in ("image_name", "vendor"):
        if not getattr(row, name):
            return f"{name} is empty"
        if not re.fullmatch(r"[^/\\\0]*", getattr(row, name)):
            return f"{name} is {getattr(row, name)!r}, expected a name without folders"
    if PurePath(row.root).is_absolute() or ".." in PurePath(row.root).parts:
        return f"root is {row.root!r}, expected a folder below DATA_ROOT"
    if not str(row.slice).isdecimal():
        return f"slice is {row.slice!r}, expected 0, 1, 2, ..."
    for name in ("is_IRF", "is_SRF", "is_PED"):
        if getattr(row, name) not in ("0", "1", ""):
            return f"{name} is {getattr(row, name)!r}, expected 0, 1 or nothing"
    return None


def check_volumes_exist(rows, preprocessed_folder):
    """Raise InputError naming the preprocessed volumes that `rows` ask for and that are not there."""
    cases = dict.fromkeys((row.vendor, row.image_name, bool(outlined_in(row))) for row in rows)
    paths = (
        path
        for *case, is_outlined in cases
        for kind, path in zip(VOLUME_KINDS, volume_paths(preprocessed_folder, *case), strict=True)
        if is_outlined or kind != "oct_masks"
    )
    _raise_all(f"{path}: no such file; run prepare_data.py" for path in paths if not path.is_file())


def _raise_all(messages):
    messages = list(messages)
    if len(messages) > MESSAGES:
        messages[MESSAGES:] = [f"and {len(messages) - MESSAGES} more"]
    if messages:
        raise InputError(*messages)


# ---- How each case was prepared ------------------------------------------------------------------------------------
def record_path(preprocessed_folder, vendor, name, stage):
    """Path of the record of a case's `stage` ("images" or "roi"). It exists only while the stage's files are whole."""
    return Path(preprocessed_folder) / "finished" / f"{vendor}_{name}.{stage}.json"


def read_records(rows, preprocessed_folder, axial_spacing_mm, reference_histogram_csv):
    """The "images" records of the cases in `rows`, as {(vendor, image_name): record}.

    Raises InputError with a line for each case that step 1 has not finished, or has prepared with other settings: rows
    of another height than `axial_spacing_mm`, or grey values matched to another histogram than the one in
    `reference_histogram_csv` (None, or no such file: grey values are not matched).
    """
    from utils.preparation.reference_histogram import digest_of, read_histogram_if_any  # here, as in `read_csv_data`

    histogram_digest = digest_of(read_histogram_if_any(reference_histogram_csv))
    records, complaints = {}, []
    for vendor, name in dict.fromkeys((row.vendor, row.image_name) for row in rows):
        path = record_path(preprocessed_folder, vendor, name, "images")
        try:
            record = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            complaints.append(f"{path}: no record of how {vendor} {name} was prepared; run prepare_data.py again")
            continue
        records[vendor, name] = record
        if not _roi_is_of(record_path(preprocessed_folder, vendor, name, "roi"), path):
            complaints.append(f"{path}: the ROI mask of {vendor} {name} is not of it; run prepare_data.py again")
        if record["AXIAL_SPACING_MM"] != axial_spacing_mm:
            complaints.append(
                f"{path}: prepared with AXIAL_SPACING_MM = {record['AXIAL_SPACING_MM']:g}, config has "
                f"{axial_spacing_mm:g}; set it back, or run prepare_data.py again"
            )
        if record["matched"] and record["reference histogram"] != histogram_digest:
            complaints.append(
                f"{path}: grey values were matched to histogram {record['reference histogram']}, expected "
                f"{histogram_digest}, as MATCH_INTENSITIES = {reference_histogram_csv is not None} and "
                "reference_histogram.csv say; set MATCH_INTENSITIES back, or run prepare_data.py again"
            )
    _raise_all(complaints)
    return records


def _roi_is_of(roi_record, images_record):
    """Whether a case's ROI mask was made from its images of today: not so while step 1 runs, or after its kill."""
    try:
        return json.loads(roi_record.read_text("utf-8"))["images"] == digest(images_record.read_bytes())
    except (OSError, ValueError, KeyError):
        return False


# ---- What a network has seen ---------------------------------------------------------------------------------------
def describe_data(parts, patient_pattern, strict=True, **preparation):
    """For ``best.json``: digests of the cases and patients that a network has seen. Names are not stored.

    `parts` is {part: list of `SliceRow`}. `preparation` are the other arguments of `read_records`. A case whose name
    does not match `patient_pattern` is an `InputError` if `strict`, else a patient of its own. Returns:

    | key | value |
    |---|---|
    | each part | {"cases": digests of the scans' voxels, "patients": of the patients, "rows": of the part's rows} |
    | "preparation" | {name: its values in the records}, for what the preprocessed volumes depend on |
    """
    records = read_records([row for rows in parts.values() for row in rows], **preparation)
    names = ("AXIAL_SPACING_MM", "reference histogram", "preprocessing code")
    described = {
        "preparation": {name: sorted({record[name] for record in records.values()} - {None}) for name in names}
    }
    if not_judged := sorted({tuple(record.get("not judged", ())) for record in records.values()} - {()}):
        described["preparation"]["not judged"] = list(map(list, not_judged))
    for part, rows in parts.items():
        cases = dict.fromkeys((row.vendor, row.image_name) for row in rows)
        patients = {
            name if not strict and find_patient(name, patient_pattern) is None else patient_of(name, patient_pattern)
            for _, name in cases
        }
        text = repr([tuple(row[: len(COLUMNS)]) for row in rows])
        described[part] = {
            "cases": sorted({records[case]["voxels"] for case in cases}),
            "patients": sorted(map(patient_digest, patients)),
            "rows": hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest(),
        }
    return described


def all_seen(described):
    """The cases and patients of all parts in `describe_data`'s result: {"cases": digests, "patients": digests}."""
    parts = [part for name, part in described.items() if name != "preparation"]
    return {kind: sorted({digest for part in parts for digest in part[kind]}) for kind in ("cases", "patients")}


def check_unseen(csv_path, rows, seen, patient_pattern, **preparation):
    """Raise InputError naming the cases in `rows` whose scan or patient is in `seen`.

    `rows` were read from `csv_path`. `seen` is a part of `describe_data`'s result. The other arguments are as there.
    """
    complaints = []
    for (vendor, name), record in read_records(rows, **preparation).items():
        if record["voxels"] in seen["cases"]:
            complaints.append(
                f"{csv_path}: {vendor} {name} was used to train this network, expected a case that was not"
            )
        elif patient_digest(patient_of(name, patient_pattern)) in seen["patients"]:
            complaints.append(
                f"{csv_path}: another case of the patient of {vendor} {name} was used in training, by PATIENT_PATTERN "
                f"{patient_pattern!r}; draw the split anew by it, or leave the case out"
            )
    _raise_all(complaints)


@functools.cache
def patient_digest(patient):
    """Digest of a patient's name. It is slow to compute, so that guessing names takes long."""
    return hashlib.pbkdf2_hmac("sha256", patient.encode("utf-8", "surrogateescape"), b"retinal-fluid", 20_000, 8).hex()
