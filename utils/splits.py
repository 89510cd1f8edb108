"""Who trains, who validates, who tests: splits by patient, stratified by vendor."""

import re

import numpy as np

from utils.errors import InputError

PARTS = ("test", "val", "train")  # in the order in which they are drawn


def patient_of(name, pattern):
    """The patient in the case name `name`: first group of the regular expression `pattern`, else its whole match."""
    match = re.search(pattern, name)
    patient = match and (match.group(1) if match.re.groups else match.group(0))
    if patient is None:
        raise InputError(f"case {name}: does not match PATIENT_PATTERN {pattern!r}; change the pattern or the name")
    return patient


def split_patients(cases, *, pattern, test_fraction, validation_fraction, seed, folds=None, fold=0, existing=None):
    """Part ("test", "val" or "train") of each case, as {(vendor, name): part}.

    `cases` are (vendor, name) pairs. `existing` holds the parts that are settled, as {part: cases}: they stay as they
    are, other patients are drawn into the parts not settled yet, and are left out where all three are. Raises
    `InputError` where a name does not match `pattern`, and where `existing` puts a patient in two parts or names a case
    that is not among `cases`.

    All cases of a patient share a part. Patients are shuffled by `seed` within their vendor (those scanned with several
    vendors' devices are strata of their own), so that another vendor's cases change nothing. Of a stratum's patients
    `test_fraction` test, or with `folds` every folds-th one from number `fold` on; `validation_fraction` of the others
    validate. Of three patients or more each part gets at least one, of two one trains and one tests, a single one
    trains. With folds, each patient but a single one tests in exactly one fold.
    """
    existing = existing or {}
    patients = {case: patient_of(case[1], pattern) for case in cases}
    part_of = _settled_parts(patients, existing)
    if all(part in existing for part in PARTS):
        return {case: part for part, settled in existing.items() for case in settled}
    strata = {}
    for (vendor, _), patient in sorted(patients.items()):
        strata.setdefault(patient, set()).add(vendor)
    for stratum in sorted({tuple(sorted(vendors)) for vendors in strata.values()}):
        members = sorted(patient for patient, vendors in strata.items() if tuple(sorted(vendors)) == stratum)
        shuffled = [members[index] for index in np.random.default_rng(seed).permutation(len(members))]
        remaining = [patient for patient in shuffled if patient not in part_of]
        testing, validating = [], []
        if "test" not in existing and len(remaining) > 1:
            count = min(max(1, round(test_fraction * len(remaining))), max(1, len(remaining) - 2))
            testing = remaining[:count] if folds is None else remaining[fold::folds]
        remaining = [patient for patient in remaining if patient not in testing]
        if "val" not in existing and len(remaining) > 1:
            validating = remaining[: min(max(1, round(validation_fraction * len(remaining))), len(remaining) - 1)]
        part_of |= dict.fromkeys(remaining, "train") | dict.fromkeys(validating, "val") | dict.fromkeys(testing, "test")
    return {case: part_of[patient] for case, patient in patients.items()}


def _settled_parts(patients, existing):
    """Part of each patient in an existing split; `patients` are those of all cases at hand."""
    complaints, part_of = [], {}
    for part, settled in existing.items():
        for vendor, name in settled:
            if (vendor, name) not in patients:
                complaints.append(
                    f"{part}_data.csv: {vendor} case {name} is not in the data; add it, or delete the split's CSV files"
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
