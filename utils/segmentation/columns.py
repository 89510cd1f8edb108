"""The columns of summary.csv and follow_up.csv: unit, decimals and meaning of each."""

import re

import pandas as pd

from utils.files import write_csv
from utils.labels import FLUIDS

_FLUID, _FIELD = rf"({'|'.join(FLUIDS)})", r"((?:inner|outer)_\w+|centre)"
# (name, as a regular expression; unit; decimals, None for text; meaning, in which \1, \2 stand for the name's parts)
_COLUMNS = (
    ("scan", "", None, "name of the scan, after its file or folder"),
    ("vendor", "", None, "device"),
    ("patient", "", None, "identifier of the patient"),
    ("laterality", "", None, "eye: OD right, OS left"),
    ("scan_date", "", None, "day of the scan, YYYY-MM-DD"),
    ("b_scans", "", 0, "number of B-scans"),
    (f"{_FLUID}_mm3", "mm3", 4, r"volume of \1 in the whole scan; empty where it was not taught, or of one B-scan"),
    (f"{_FLUID}_mm2", "mm2", 4, r"area of \1, of a scan of one B-scan"),
    (f"{_FLUID}_presence", "", 3, r"score of \1's presence in the likeliest B-scan, 0 to 1, not calibrated"),
    (f"{_FLUID}_confidence", "", 3, r"how sure the model is of what it says of \1, 0 to 1"),
    (f"{_FLUID}_in_words", "", None, r"how sure the model is of \1, and of what: absence, presence or outline"),
    (f"{_FLUID}_calibrated", "", None, r"whether a validation scan held \1; if none did, the confidence says little"),
    (f"{_FLUID}_{_FIELD}_mm3", "mm3", 4, r"volume of \1 in the ETDRS subfield \2"),
    (f"{_FIELD}_covered", "", 3, r"share of the ETDRS subfield \1 that the scan shows, 0 to 1"),
    ("confidence", "", 3, "of the fluid that the model is least sure of"),
    ("least_sure", "", None, "that fluid"),
    ("in_words", "", None, "sure, likely or doubtful; doubtful too where a warning says that the scan is unusual"),
    ("look_at", "", 0, "B-scan to look at first, counted from 1"),
    ("circles_around", "", None, "centre of the ETDRS subfields; column and B-scan are counted from 1"),
    ("model", "", None, "training step and epoch of the model"),
    ("model_sha256", "", None, "checksum of the model's file"),
    ("threshold", "", None, "how probabilities became labels"),
    ("seconds", "s", 1, "time that the scan took"),
    ("warnings", "", None, "why the scan is doubtful, whatever the confidence says"),
    ("notes", "", None, "what was assumed"),
    ("note", "", None, "what the software is not for; what the model never saw or was not taught"),
    ("compared", "", None, "ETDRS subfields that all scans of the eye show; volumes are compared there"),
    (f"{_FLUID}_compared_mm3", "mm3", 4, r"volume of \1 in the subfields that are compared"),
    (f"{_FLUID}_change_mm3", "mm3", 4, r"change of that volume of \1 since the visit before"),
    (f"{_FLUID}_change_percent", "%", 0, r"the same, of the volume of \1 at the visit before; empty where that was 0"),
)


def _described(name):
    """(unit, decimals, meaning) of a column."""
    for pattern, unit, decimals, meaning in _COLUMNS:
        if match := re.fullmatch(pattern, name):
            return unit, decimals, match.expand(meaning).replace("_", " ")
    raise KeyError(name)


def write_results(path, table):
    """Write a DataFrame of these columns as CSV, its numbers with the decimals that mean something."""
    rounded = table.copy()
    for name in table.columns:
        _, decimals, _ = _described(name)
        if decimals is not None:
            numbers = pd.to_numeric(table[name]).round(decimals)
            rounded[name] = numbers.astype("Int64") if decimals == 0 else numbers
    write_csv(path, rounded)


def write_columns(path, names):
    """Write a CSV with the unit and the meaning of each of the columns `names`, in their order."""
    rows = [(name, *_described(name)[::2]) for name in dict.fromkeys(names)]
    write_csv(path, pd.DataFrame(rows, columns=["column", "unit", "meaning"]))
