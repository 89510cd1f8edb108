"""Who trains, who validates, who tests: splits by patient, stratified by vendor and by the fluids that cases hold."""

import re

import numpy as np

from utils.errors import InputError
from utils.labels import FLUIDS, in_order

PARTS = ("test", "val", "train")  # in the order in which they are drawn
IMPORTED_PATTERN = "^(.+?)__"  # finds the patient in names of the cases that `utils.tools.import_cases` writes


def patient_of(name, pattern):
    """The patient in the case name `name`: first group of the regular expression `pattern`, else its whole match."""
    patient = find_patient(name, pattern)
    if patient is None:
        raise InputError(f"case {name}: does not match PATIENT_PATTERN {pattern!r}; change the pattern or the name")
    return patient


def find_patient(name, pattern):
    """As `patient_of`, but None where `name` does not match `pattern`."""
    match = re.search(pattern, name)
    return match and (match.group(1) if match.re.groups else match.group(0))


def split_patients(cases, rules, *, fluids=None, existing=None):
    """Part ("test", "val" or "train") of each case, as {(vendor, name): part}, drawn by `SplitRules`.

    `cases` are (vendor, name) pairs. `fluids` is {case: names of the fluids it holds}; a case missing there holds none.
    `existing` is {part: cases} of the parts that are fixed already. They stay as they are. Other patients are drawn
    into the remaining parts, or left out if all three are fixed. Raises `InputError` where

    - a name does not match the pattern;
    - `existing` puts a patient in two parts, or names a case that is not among `cases`;
    - `existing` fixes "train" without "test" and "val": patients train who neither test nor validate.

    All cases of a patient share a part. The seed shuffles the patients of each vendor separately, so that another
    vendor's cases change nothing; patients with scans of several vendors form strata of their own. Within a stratum:

    - The test fraction of the patients test. With folds, the patients of one of so many parts test.
    - The validation fraction of the others validate; the rest train.
    - Each part holds its share of the patients with each fluid, as nearly as `_divided` can.
    - Of three patients or more, each part gets at least one. Of two, one trains and one tests. A single one trains.
    - With folds, each patient tests in exactly one fold; a stratum's only patient never tests.
    """
    existing, fluids = existing or {}, fluids or {}
    patients = {case: patient_of(case[1], rules.pattern) for case in cases}
    part_of = _settled_parts(patients, existing)
    if all(part in existing for part in PARTS):
        return {case: part for part, settled in existing.items() for case in settled}
    if "train" in existing:
        missing = " and ".join(f"{part}_data.csv" for part in PARTS if part not in existing)
        raise InputError(
            f"train_data.csv: found without {missing}, expected all three or no train_data.csv; "
            "add what is missing, or delete train_data.csv: all patients who neither test nor validate then train"
        )
    strata, held = {}, {}
    for case, patient in sorted(patients.items()):
        strata.setdefault(patient, set()).add(case[0])
        held.setdefault(patient, set()).update(fluids.get(case, ()))
    for stratum in sorted({tuple(sorted(vendors)) for vendors in strata.values()}):
        members = sorted(patient for patient, vendors in strata.items() if tuple(sorted(vendors)) == stratum)
        shuffled = [members[index] for index in np.random.default_rng(rules.seed).permutation(len(members))]
        remaining = [patient for patient in shuffled if patient not in part_of]
        testing, validating = [], []
        if "test" not in existing and len(remaining) > 1:
            if rules.folds is None:
                count = min(max(1, round(rules.test_fraction * len(remaining))), max(1, len(remaining) - 2))
                testing = _divided(remaining, held, [count, len(remaining) - count])[0]
            else:
                sizes = [len(remaining[index :: rules.folds]) for index in range(rules.folds)]
                testing = _divided(remaining, held, sizes)[rules.fold]
        remaining = [patient for patient in remaining if patient not in testing]
        if "val" not in existing and len(remaining) > 1:
            count = min(max(1, round(rules.validation_fraction * len(remaining))), len(remaining) - 1)
            validating = _divided(remaining, held, [count, len(remaining) - count])[0]
        part_of |= dict.fromkeys(remaining, "train") | dict.fromkeys(validating, "val") | dict.fromkeys(testing, "test")
    return {case: part_of[patient] for case, patient in patients.items()}


def _divided(patients, held, sizes):
    """`patients` in lists of these `sizes`, each with its share of every fluid; `held` is {patient: fluids}.

    There are too many combinations of fluids to make each a stratum. Instead, starting from the given order, the two
    patients whose exchange most reduces the parts' excess of fluids change places, until no exchange reduces it. The
    excess is the number of patients beyond the share, squared and summed over parts and fluids. With three fluids each
    part ends less than one patient from its share.
    """
    names = sorted({name for patient in patients for name in held[patient]})
    holds = np.array([[name in held[patient] for name in names] for patient in patients], np.float64)
    part = np.repeat(np.arange(len(sizes)), sizes)
    while True:
        excess = np.stack([holds[part == p].sum(axis=0) - size * holds.mean(axis=0) for p, size in enumerate(sizes)])
        # One patient represents all patients of a part that hold the same fluids.
        _, candidates = np.unique(np.column_stack([part, holds]), axis=0, return_index=True)
        differences = holds[candidates, np.newaxis] - holds[candidates]
        excess_differences = excess[part[candidates], np.newaxis] - excess[part[candidates]]
        # Half of what exchanging a and b adds to the sum: excess - difference in a's part, excess + difference in b's.
        change = (differences * (differences - excess_differences)).sum(axis=-1)
        a, b = candidates[list(np.unravel_index(change.argmin(), change.shape))]
        if change.min() > -1e-6:
            return [[patients[index] for index in np.flatnonzero(part == p)] for p in range(len(sizes))]
        part[[a, b]] = part[[b, a]]


def _settled_parts(patients, existing):
    """{patient: part} of an existing split. `patients` is {case: patient} of all cases in the data."""
    complaints, part_of = [], {}
    for part, settled in existing.items():
        for vendor, name in settled:
            if (vendor, name) not in patients:
                complaints.append(
                    f"{part}_data.csv: {vendor} case {name} is not in the data, or nothing is outlined in it; "
                    "correct or remove its rows, add the case, or delete the split's CSV files"
                )
                continue
            patient = patients[vendor, name]
            if part_of.setdefault(patient, part) != part:
                complaints.append(
                    f"{part}_data.csv: case {name} is of patient {patient}, who is in {part_of[patient]}_data.csv too; "
                    "keep each patient in one part"
                )
    if complaints:
        raise InputError(*complaints)
    return part_of


def not_outlined_text(outlined, split):
    """A table of how many cases of each part and vendor outline each fluid; None where all cases outline all.

    `outlined` is {`Case`: names of the fluids that its reader outlined}, `split` is {(vendor, name): part}.
    """
    if all(len(fluids) == len(FLUIDS) for fluids in outlined.values()):
        return None
    lines = ["Outlined in how many cases; a fluid is unknown in the others, not absent:"]
    for part in reversed(PARTS):
        for vendor in sorted({case.vendor for case in outlined}):
            of_part = [
                fluids
                for case, fluids in outlined.items()
                if case.vendor == vendor and split.get((case.vendor, case.name)) == part
            ]
            counts = ", ".join(f"{fluid} {sum(fluid in fluids for fluids in of_part)}" for fluid in FLUIDS)
            lines += [f"  {part}, {vendor}: {counts} of {len(of_part)}"] if of_part else []
    return "\n".join(lines)


def split_text(split, fluids, outlined, pattern):
    """The split in a line, and a warning line for each thing that it lacks.

    `split` is {(vendor, name): part}, by patients as `pattern` finds them. `fluids` is {(vendor, name): names of
    fluids} that all labelled cases hold, also those that are in no part; `outlined` are the names of fluids that some
    case outlines.
    """
    parts = list(split.values())
    lines = ["Split: " + ", ".join(f"{parts.count(part)} {part}" for part in reversed(PARTS)) + " volumes"]
    if left_out := len(fluids) - len(parts):
        lines.append(f"warning: {left_out} volumes are in no part of the existing split and will not be used")
    if divided := _patients_in_several_parts(split, pattern):
        lines.append(
            f"warning: {len(divided)} patients, such as {divided[0]}, are in several parts of the split, if cases are "
            "called patient__picture, as the importer calls them; delete the split's CSV files, and in all steps set "
            f"PATIENT_PATTERN={IMPORTED_PATTERN}"
        )
    held = {part: {name for case, of in split.items() if of == part for name in fluids[case]} for part in PARTS}
    everywhere = set.union(*held.values())
    for part, needed_by in (("train", "model_training.py"), ("val", "model_training.py"), ("test", "evaluate.py")):
        if part not in parts:
            lines.append(
                f"warning: {part}_data.csv is empty, and {needed_by} needs it; add patients (of three of a vendor each "
                "part gets one), or move a patient's rows there from another part's CSV"
            )
        elif missing := [fluid for fluid in FLUIDS if fluid in everywhere - held[part]]:
            lines.append(
                f"warning: no case in {part}_data.csv holds {' or '.join(missing)}, so that {needed_by} cannot "
                f"{'learn' if part == 'train' else 'judge'} it; move a patient's rows there from another part's CSV"
            )
    if nowhere := [fluid for fluid in outlined if fluid not in set().union(*fluids.values())]:
        lines.append(
            f"warning: no case holds {' or '.join(nowhere)}, which counts as looked for and absent: a network learns "
            "never to find it; if nobody outlined it, say so with OUTLINED"
        )
    tested = [set(fluids[case]) for case, part in split.items() if part == "test"]
    if constant := in_order(set.intersection(*tested)) if tested else []:
        lines.append(
            f"warning: every case in test_data.csv holds {' and '.join(constant)}, so that evaluate.py cannot say how "
            "well cases without it are told apart; add some"
        )
    return "\n".join(lines)


def _patients_in_several_parts(split, pattern):
    """Patients by `IMPORTED_PATTERN` who are in several parts, where `pattern` takes whole names for patients."""
    parts_of = {}
    for (_, name), part in split.items():
        patient = find_patient(name, IMPORTED_PATTERN)
        if patient is not None and patient_of(name, pattern) == name:
            parts_of.setdefault(patient, set()).add(part)
    return sorted(patient for patient, parts in parts_of.items() if len(parts) > 1)
