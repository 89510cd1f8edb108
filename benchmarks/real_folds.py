"""Who is trained on and who judges: five folds of the patients of real scans, and those who lie in none.

    python -m benchmarks.real_folds DIR [DIR ...]     draws them anew and writes benchmarks/real_folds.csv

The CSV is committed, so that all networks are judged by the same patients. It holds digests of patients, never names.
Folds are alike in the shares of patients with IRF, much IRF and SRF, of healthy and drusen eyes, and of patients
without outlines, whose scans only a recipe that learns from unlabelled ones may use.
"""

import argparse
import itertools
from pathlib import Path

import pandas as pd

from utils.errors import InputError, run_script
from utils.labels import FLUIDS
from utils.preparation.cases import find_cases
from utils.preparation.prepared import patient_digest
from utils.preparation.splits import patient_of, split_patients
from utils.settings.rules import SplitRules
from utils.volumes.mhd import read_volume

FOLDS_CSV = Path(__file__).with_name("real_folds.csv")
PATIENTS = r"^[A-Z]+-(\d+)"  # the patient in a case's name, as PATIENT_PATTERN
N_FOLDS = 5
UNTOUCHED = "untouched"  # a fifth of the patients, whose scans are looked at only once a model is final
UNTOUCHED_SRF = 2  # patients with SRF among them, at least
NOT_JUDGED = (1, 2)  # in other.mhd: drusen that are too small for a PED, and hyperreflective material
MUCH_IRF = 5000  # pixels in all scans of a patient


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="+", help="folder of cases in RETOUCH layout")
    folds = draw_folds(patients_with(find_real_cases(parser.parse_args(argv).data)))
    table = pd.DataFrame({"patient": map(patient_digest, folds), "fold": folds.values()})
    table.sort_values("patient").to_csv(FOLDS_CSV, index=False)
    print(f"{FOLDS_CSV}: {len(table)} patients, {table['fold'].value_counts().sort_index().to_dict()}")


def find_real_cases(folders):
    """The `Case`s below `folders`; of cases of one name, the first that has a reference, else the first."""
    cases = {}
    found = (find_cases(folder, not_judged=NOT_JUDGED) for folder in folders)
    for case in itertools.chain.from_iterable(found):
        known = cases.setdefault(case.name, case)
        if known.reference_path is None and case.reference_path is not None:
            cases[case.name] = case
    return list(cases.values())


def kind_of_eye(name):
    """ "healthy", "drusen" or "other", by the diagnosis that a case's name begins with."""
    return {"NORMAL": "healthy", "DRUSEN": "drusen"}.get(name.partition("-")[0], "other")


def patients_with(cases):
    """What the folds are to share out, as {patient: set of names}: fluids, kinds of eyes, scans without outlines."""
    held, irf_pixels = {}, {}
    for case in cases:
        patient = patient_of(case.name, PATIENTS)
        of_patient = held.setdefault(patient, set())
        of_patient.add(kind_of_eye(case.name))
        if case.reference_path is None:
            of_patient.add("no outlines")
            continue
        reference, _ = read_volume(case.reference_path)
        of_patient.update(fluid for fluid, label in FLUIDS.items() if (reference == label).any())
        irf_pixels[patient] = irf_pixels.get(patient, 0) + (reference == FLUIDS["IRF"]).sum()
        if irf_pixels[patient] > MUCH_IRF:
            of_patient.add("much IRF")
    return held


def draw_folds(held):
    """{patient: "0" to "4" or `UNTOUCHED`} of the patients in `held`, {patient: names of what the scans hold}.

    A fifth is untouched. Raises `InputError` where fewer than `UNTOUCHED_SRF` of these have SRF.
    """
    untouched = _drawn(held, held, test_fraction=0.2)
    if sum("SRF" in held[patient] for patient in untouched) < UNTOUCHED_SRF:
        raise InputError(
            f"a fifth of the patients holds fewer than {UNTOUCHED_SRF} with SRF; add scans of such patients"
        )
    folds = dict.fromkeys(untouched, UNTOUCHED)
    others = [patient for patient in held if patient not in folds]
    for fold in range(N_FOLDS):
        folds |= dict.fromkeys(_drawn(others, held, folds=N_FOLDS, fold=fold), str(fold))
    return folds


def some_patients(patients, held, share):
    """A `share` of `patients`, with their share of what these hold, as `held` of `patients_with` says."""
    return _drawn(patients, held, test_fraction=share)


def _drawn(patients, held, test_fraction=0.2, folds=None, fold=0):
    """The `patients` whom `split_patients` makes test."""
    parts = split_patients(
        [("", patient) for patient in patients],
        SplitRules(r"^(.*)$", test_fraction, validation_fraction=0.2, seed=0, folds=folds, fold=fold),
        fluids={("", patient): held[patient] for patient in patients},
    )
    return [patient for (_, patient), part in parts.items() if part == "test"]


def read_folds(path=FOLDS_CSV):
    """The committed folds, as {digest of a patient: "0" to "4" or `UNTOUCHED`}."""
    table = pd.read_csv(path, dtype=str)
    return dict(zip(table["patient"], table["fold"], strict=True))


def cases_of_folds(cases, folds):
    """`cases` that have a reference, as {fold: list of them}; `folds` are those of `read_folds`.

    Raises `InputError` naming each case whose patient is in no fold.
    """
    of_fold, complaints = {fold: [] for fold in sorted(set(folds.values()))}, []
    for case in cases:
        fold = folds.get(patient_digest(patient_of(case.name, PATIENTS)))
        if fold is None:
            complaints.append(f"{case.folder}: its patient is not in {FOLDS_CSV.name}; leave the case out")
        elif case.reference_path is not None:
            of_fold[fold].append(case)
    if complaints:
        raise InputError(*complaints)
    return of_fold


if __name__ == "__main__":
    run_script(main)
