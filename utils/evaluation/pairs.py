"""Pairs of predicted and reference label volumes: how to find them, which cannot be scored, and their scores."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from utils.errors import InputError
from utils.evaluation.scores import score_volume
from utils.files import read_json
from utils.labels import FLUIDS, NOT_JUDGED, in_order, without_unjudged
from utils.names import as_text, file_called, same_name, suffix_of
from utils.parallel import map_unordered
from utils.preparation.cases import folders_below, outlined_below, warn_of_unused
from utils.preparation.checks import notes_text
from utils.preparation.outlined import as_judged, check_one_class, root_stated
from utils.preparation.prepared import read_outlined_rows, record_path
from utils.preparation.preprocessing import to_8_bit
from utils.volumes.mhd import read_header, read_volume, read_volume_onto, reordering_onto
from utils.volumes.vendors import KNOWN, VENDORS, vendor_in

SUFFIXES = (".mhd", ".mha", ".nii.gz", ".nii")
_CASE_FILES = ("reference.mhd", "oct.mhd")
_REFERENCES = tuple(f"reference{suffix}" for suffix in SUFFIXES)
_RANKS = {"best": 1.0, "median": 0.5, "worst": 0.0}  # place among the cases sorted by Dice


@dataclass(frozen=True)
class Pair:
    """A case's predicted label volume, the reader's and, if there is one, the scan."""

    vendor: str
    name: str
    prediction_path: Path
    reference_path: Path
    oct_path: Path | None = None
    outlined: tuple = tuple(FLUIDS)  # names of the fluids that the reader outlined
    may_be_unjudged: bool = False  # whether 255 means that nobody judged, even where it is the only label
    other_path: Path | None = None  # other findings, some of which are not judged
    not_judged: tuple = ()  # labels there of what may be fluid or not


def pairs_of_split(csv_path, data_root, preprocessed_folder, predictions):
    """A `Pair` for each case of a split's CSV, sorted. `predictions` is the folder of their label volumes.

    Records in the `preprocessed_folder` say which fluids were outlined and what was not judged.
    """
    pairs = []
    for vendor, name, root in sorted({(row.vendor, row.image_name, row.root) for row in read_outlined_rows(csv_path)}):
        folder, prediction = Path(data_root) / root, predictions / f"{vendor}_{name}.mhd"
        record = read_json(record_path(preprocessed_folder, vendor, name, "images"))
        judged = {"outlined": in_order(record.get("outlined", FLUIDS)), "may_be_unjudged": True}
        if not_judged := tuple(record.get("not judged", ())):
            judged |= {"other_path": _in_case(folder, "other.mhd"), "not_judged": not_judged}
        pairs.append(Pair(vendor, name, prediction, *(_in_case(folder, file) for file in _CASE_FILES), **judged))
    return pairs


def _in_case(folder, name):
    """Path of a case's file, in upper or lower case. If there is none, the path where it is expected."""
    return file_called(folder, name) or folder / name


def match_pairs(predictions, references):
    """(pairs, complaints) of the label volumes in two folders. Each volume without exactly one partner is a complaint.

    In `predictions` each case has a volume named after it, with or without "<Vendor>_" before, as test.py writes it.
    In `references` it has such a volume too, or a folder of its name that holds the reference (and oct). That folder
    lies at any depth below one named after the vendor. ``outlined.csv`` there, or in a folder below, names the fluids
    that were outlined, by the case's folder, or by its volume's path without suffix, relative to the table.
    """
    complaints, pairs, taken, used = [], [], set(), set()
    predicted, stated = _named_volumes(predictions), outlined_below(references)
    cases = _reference_cases(references)
    for (vendor, name), paths in sorted(cases.items()):
        if len(paths) > 1:
            complaints.append(f"{vendor} {name}: several references: {', '.join(map(str, paths))}; keep one")
        of_name = [
            (key, path)
            for key, of_key in predicted.items()
            if key[1] == name and (key[0] == vendor or _may_be_one(key[0], vendor))
            for path in of_key
        ]
        taken |= {key for key, _ in of_name}
        if len(of_name) > 1:
            found = ", ".join(str(path) for _, path in of_name)
            complaints.append(f"{vendor} {name}: several predictions: {found}; keep one")
        if not of_name:
            complaints.append(f"{vendor} {name}: no prediction, expected {predictions}/[{vendor}_]{name}.mhd")
        is_named = same_name(paths[0].name).startswith("reference.")
        folder = paths[0].parent if is_named else paths[0].with_name(paths[0].name[: -len(suffix_of(paths[0]))])
        root = root_stated(folder.relative_to(references).as_posix(), stated)
        used.add(root)
        if len(paths) == len(of_name) == 1:
            scan = file_called(paths[0].parent, f"oct{suffix_of(paths[0])}") if is_named else None
            judged = {"outlined": stated.get(root, tuple(FLUIDS)), "may_be_unjudged": root is not None}
            (predicted_vendor, _), prediction = of_name[0]
            told = vendor if vendor in VENDORS or predicted_vendor == "unknown" else predicted_vendor
            pairs.append(Pair(told, name, prediction, paths[0], scan, **judged))
    warn_of_unused(references, stated, used)
    for key in sorted(predicted.keys() - taken):
        complaints.append(f"{predicted[key][0]}: no reference for this case in {references}")
    return pairs, complaints


def _named_volumes(folder):
    """{(vendor or "unknown", case): paths} of the volumes in a folder, by their names.

    If test.py wrote a scan's labels in several formats, the first of them counts.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder")
    volumes = {}
    for path in sorted(Path(folder).iterdir()):
        if suffix_of(path) not in SUFFIXES:
            continue
        stem = as_text(path.name[: -len(suffix_of(path))])
        vendor, separator, name = stem.partition("_")
        if not separator or vendor not in {*KNOWN, _vendor_recorded(Path(folder) / stem / "scan.json")}:
            vendor, name = "unknown", stem
        if (vendor, name) in volumes and (Path(folder) / stem / "scan.json").is_file():
            continue
        volumes.setdefault((vendor, name), []).append(path)
    if not volumes:
        raise InputError(f"{folder}: holds no label volume, expected one of {', '.join(SUFFIXES)} for each case")
    return volumes


def _may_be_one(vendor, other):
    """Whether two names may mean one vendor: "unknown" any, and `OTHER` one that has no name of its own there."""
    return "unknown" in (vendor, other) or not {vendor, other} & VENDORS.keys()


def _vendor_recorded(path):
    """The vendor in a ``scan.json`` that test.py wrote; None without one."""
    try:
        return read_json(path)["facts"]["vendor"]
    except (InputError, KeyError, TypeError):
        return None


def _reference_cases(folder):
    """{(vendor or "unknown", case): reference paths} of a folder."""
    in_folders = [at / name for at, names in folders_below(folder) for name in names if same_name(name) in _REFERENCES]
    if not in_folders:
        return _named_volumes(folder)
    cases = {}
    for path in sorted(in_folders):
        vendor = vendor_in([part.name for part in path.absolute().parents]) or "unknown"
        cases.setdefault((vendor, as_text(path.parent.name)), []).append(path)
    return cases


def score_pairs(pairs, workers):
    """Score all pairs, one volume at a time in each of `workers` processes. Prints which volumes were reordered.

    Returns (volumes, complaints): a sorted DataFrame with vendor, case and the columns of
    `utils.evaluation.scores.score_volume`, a row for each fluid that the reader outlined, and a line for each pair that
    cannot be scored. What nobody judged counts as 0 on both sides.
    """
    rows, complaints, notes = [], [], {}
    for pair, (scores, of_pair, on_pair) in map_unordered(_score_pair, pairs, workers=workers):
        rows += [{"vendor": pair.vendor, "case": pair.name, **row} for row in scores]
        complaints += of_pair
        notes[f"{pair.vendor} {pair.name}"] = on_pair
    if notes_on_all := notes_text(dict(sorted(notes.items()))):
        print(notes_on_all)
    volumes = pd.DataFrame(rows)
    if rows:
        volumes = volumes.sort_values(["vendor", "case"], kind="stable", ignore_index=True)
    return volumes, sorted(complaints)


def _score_pair(pair):
    """(rows of scores, complaints, notes) of one pair. Both are put onto the scan's grid, or without a scan onto the
    reference's.
    """
    grid = pair.oct_path or pair.reference_path
    files = {"prediction": pair.prediction_path, "reference": pair.reference_path}
    try:
        notes = {what: reordering_onto(path, grid).note for what, path in files.items()}
        labels, reference = without_unjudged(read_labels(pair.prediction_path, grid), read_reference_labels(pair))
        scores = score_volume(labels, reference, read_header(grid).spacing_mm)
    except InputError as error:
        return [], list(error.messages), []
    scores = [row for row in scores if row["fluid"] in pair.outlined]
    return scores, [], [f"{what}: {note}" for what, note in notes.items() if note is not None]


def read_reference_labels(pair):
    """The reader's labels of a `Pair`, uint8 (slices, rows, columns) on its scan's grid: 0 to 3, and `NOT_JUDGED`.

    Raises `InputError` as `read_labels`, and as `check_one_class` where nothing says that nobody judged.
    """
    grid = pair.oct_path or pair.reference_path
    reference = read_labels(pair.reference_path, grid, is_reference=True)
    if not pair.may_be_unjudged:
        check_one_class(pair.reference_path, reference)
    other = None if pair.other_path is None else read_volume_onto(pair.other_path, grid)
    return as_judged(reference, pair.outlined, other, pair.not_judged)


def read_labels(path, onto=None, is_reference=False):
    """A label volume as uint8 (slices, rows, columns), in the order of the volume at `onto` if given.

    Raises `InputError` if it holds other values than 0, 1, 2 and 3 (a reference: than these and 255), or lies elsewhere
    than `onto`.
    """
    voxels = read_volume(path)[0] if onto is None else read_volume_onto(path, onto)
    known = voxels[voxels != NOT_JUDGED] if is_reference else voxels
    low, high = (known.min(), known.max()) if known.size else (0, 0)
    labels = voxels.astype(np.uint8) if low >= 0 and high <= len(FLUIDS) else None
    if labels is None or (voxels.dtype.kind == "f" and (labels != voxels).any()):
        values = f"from {low:g} to {high:g}" if labels is None else "that are not whole numbers"
        raise InputError(f"{path}: values {values}, expected labels 0 to {len(FLUIDS)}: background, IRF, SRF, PED")
    return labels


def typical_cases(volumes, pairs):
    """For the report's pictures: the best, median and worst case by Dice among the cases that hold a fluid.

    Returns a list of dictionaries, the `overlays` of an `utils.evaluation.report.Evaluation`. Cases without a
    scan are left out.
    """
    by_case = {(pair.vendor, pair.name): pair for pair in pairs}
    overlays = []
    for fluid, code in FLUIDS.items():
        present = volumes[(volumes.fluid == fluid) & (volumes.reference_mm3 > 0)].sort_values("dice", kind="stable")
        for rank, place in _RANKS.items():
            if not len(present) or (rank != "best" and len(present) < 3):
                continue
            row = present.iloc[int(place * (len(present) - 1))]
            pair = by_case[row.vendor, row.case]
            if pair.oct_path is not None:
                title, *arrays = fullest_b_scan(pair, [code])
                named = dict(zip(("grey", "reference", "labels"), arrays, strict=True))
                overlays.append({"fluid": fluid, "rank": rank, "title": title, "dice": row.dice, **named})
    return overlays


def fullest_b_scan(pair, codes):
    """(title, grey, reference, labels) of the pair's B-scan with most reference pixels of the labels `codes`.

    The arrays are uint8 (rows, columns).
    """
    labels, reference = read_labels(pair.prediction_path, pair.oct_path), read_reference_labels(pair)
    index = int(np.isin(reference, codes).sum(axis=(1, 2)).argmax())
    voxels, _ = read_volume(pair.oct_path)
    grey = to_8_bit(voxels[index : index + 1])[0]
    return f"{pair.vendor} {pair.name}, slice {index}", grey, reference[index], labels[index]
