"""A model's scores on real B-scans that it was not trained on. Two thirds of the patients may be used for tuning.

    python -m benchmarks.real_transfer MODEL DIR [--part visible|untouched|all] [--worst worst.png]

DIR holds cases in RETOUCH layout with outlines of IRF and SRF. PED is not outlined there: pixels that the model calls
PED are left out of the scores of IRF and SRF, and counted. The checksum of a patient's name decides the part, so that
the untouched third is the same for everybody. Intervals are 95 % bootstrap intervals over patients.
"""

import argparse
import re
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from utils.evaluation.detection import area_under_roc
from utils.evaluation.statistics import interval
from utils.labels import FLUIDS
from utils.plots import save_comparison
from utils.preparation.cases import find_cases
from utils.preparation.preprocessing import to_8_bit
from utils.volumes.mhd import read_volume

OUTLINED = ("IRF", "SRF")
PATIENTS = r"^[A-Z]+-(\d+)"  # the patient in a case's name, as PATIENT_PATTERN
WORST = 12
N_RESAMPLES = 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="best.keras, with its best.json beside it")
    parser.add_argument("data", type=Path, help="folder of the cases")
    parser.add_argument("--part", choices=("visible", "untouched", "all"), default="visible")
    parser.add_argument("--worst", type=Path, help="write a picture of the worst twelve B-scans")
    parser.add_argument("--csv", type=Path, help="write a row for each B-scan and fluid")
    parser.add_argument("--patients", default=PATIENTS, help="the patient in a case's name, as PATIENT_PATTERN")
    parser.add_argument("--mirrored", action="store_true", help="average with the mirrored B-scans")
    arguments = parser.parse_args()

    from utils.keras_setup import set_up_keras
    from utils.segmentation.predict import load_network

    set_up_keras(0, deterministic=False)
    network = load_network(arguments.model, mirrored=arguments.mirrored)
    rows, pictures, started = [], {}, time.monotonic()
    for case in find_cases(arguments.data):
        patient = re.match(arguments.patients, case.name).group(1)
        if arguments.part in (part_of(patient), "all"):
            of_case = list(score_case(network, case, patient))
            pictures |= {row["b_scan"]: row.pop("picture") for row in of_case if "picture" in row}
            rows += of_case
    table = pd.DataFrame(rows)
    if arguments.csv:
        table.to_csv(arguments.csv, index=False)
    n_b_scans, n_patients = table["b_scan"].nunique(), table["patient"].nunique()
    print(f"{arguments.model}, {arguments.part}: {n_b_scans} B-scans of {n_patients} patients, ", end="")
    print(f"{(time.monotonic() - started) / n_b_scans:.2f} s each\n")
    print("| fluid | B-scans with it | pooled Dice | Dice, mean of those | AUC | false pixels without any fluid |")
    print("|---|---|---|---|---|---|")
    for fluid in OUTLINED:
        of_fluid = table[table["fluid"] == fluid]
        cells = [with_interval(measure, of_fluid) for measure in (pooled_dice, mean_dice, auc, false_pixels)]
        print(f"| {fluid} | {(of_fluid['true'] > 0).sum()} | {' | '.join(cells)} |")
    ped = table[table["fluid"] == "PED"]
    print(
        f"\nPED, not outlined: {ped['predicted'].mean():.0f} pixels a B-scan, in {(ped['predicted'] > 0).sum()} B-scans"
    )
    if arguments.worst:
        wrong = table[table["fluid"].isin(OUTLINED)].groupby("b_scan")[["predicted", "true", "overlap"]].sum()
        wrong = (wrong["predicted"] + wrong["true"] - 2 * wrong["overlap"]).sort_values(ascending=False)
        save_comparison(arguments.worst, [pictures[name] for name in wrong.index[:WORST]])


def part_of(patient):
    """The part that a patient belongs to: "untouched" for a third of them, else "visible"."""
    return "untouched" if zlib.crc32(patient.encode()) % 3 == 0 else "visible"


def score_case(network, case, patient):
    """Yield a row for each B-scan of a case and fluid; the first of a B-scan holds its "picture"."""
    from utils.segmentation.predict import segmented_slices
    from utils.segmentation.tiling import labels_from_probabilities

    voxels, spacing_mm = read_volume(case.oct_path)
    reference, _ = read_volume(case.reference_path)
    slices = segmented_slices(network, voxels, spacing_mm, case.vendor)
    for index, (probabilities, presence) in enumerate(slices):
        labels = labels_from_probabilities(probabilities, network.settings.threshold)
        b_scan = f"{case.name} {index}"
        known = labels != FLUIDS["PED"]
        for (fluid, code), score in zip(FLUIDS.items(), presence, strict=True):
            counted = known if fluid in OUTLINED else np.ones_like(known)
            predicted, true = (labels == code) & counted, (reference[index] == code) & counted
            row = {"b_scan": b_scan, "patient": patient, "fluid": fluid, "score": score}
            row |= {"predicted": predicted.sum(), "true": true.sum(), "overlap": (predicted & true).sum()}
            row["without_fluid"] = not reference[index].any()
            if code == 1:
                row["picture"] = (b_scan, to_8_bit(voxels[index]), reference[index], labels)
            yield row


# ---- Measures of a fluid's rows -------------------------------------------------------------------------------------
def pooled_dice(rows):
    total = rows["predicted"].sum() + rows["true"].sum()
    return 2 * rows["overlap"].sum() / total if total else np.nan


def mean_dice(rows):
    present = rows[rows["true"] > 0]
    return (2 * present["overlap"] / (present["predicted"] + present["true"])).mean()


def auc(rows):
    present = rows["true"] > 0
    return area_under_roc(rows.loc[present, "score"], rows.loc[~present, "score"])


def false_pixels(rows):
    """A B-scan that holds neither fluid."""
    return rows.loc[rows["without_fluid"], "predicted"].mean()


def with_interval(measure, rows):
    """Value and 95 % interval, resampling patients, as text."""
    rng = np.random.default_rng(0)
    by_patient = [group for _, group in rows.groupby("patient")]
    values = []
    for _ in range(N_RESAMPLES):
        drawn = rng.integers(len(by_patient), size=len(by_patient))
        values.append(measure(pd.concat([by_patient[index] for index in drawn])))
    low, high = interval(np.array(values)[~np.isnan(values)])
    digits = 0 if measure is false_pixels else 3
    return f"{measure(rows):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
