"""Real B-scans segmented and their pixels counted, as exported or made unlike; what has been counted is kept."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.real_folds import PATIENTS, kind_of_eye
from benchmarks.real_unlike import BScan, make_unlike
from utils.errors import InputError
from utils.evaluation.held_out import where_judged
from utils.files import code_digest, digest, write_csv
from utils.labels import FLUIDS, NOT_JUDGED
from utils.networks.exported_model import read_best
from utils.plots import save_comparison
from utils.preparation.outlined import read_reference
from utils.preparation.prepare_case import source_files
from utils.preparation.prepared import all_seen, patient_digest
from utils.preparation.preprocessing import to_8_bit
from utils.preparation.splits import patient_of
from utils.segmentation.confidence import Certainty, fluid_confidence
from utils.segmentation.predict import load_network, prediction_digest, segmented_slices
from utils.volumes.mhd import read_volume

WORST = 12
CODE = ("benchmarks.real_folds", "benchmarks.real_scoring", "benchmarks.real_unlike", "utils.phantom.retouch_like")


class Judged:
    """A model and the cases that it is judged by, none of which it has seen.

    Scores are kept in the folder `kept`. Raises `InputError` where a case's patient is among those that the model has
    been trained on, or has chosen its epoch by.
    """

    def __init__(self, model, cases, kept, mirrored=False):
        self.model, self.cases, self.kept, self.mirrored = Path(model), cases, Path(kept), mirrored
        self.details, self._network = read_best(model), None
        seen = set(all_seen(self.details.get("data", {}))["patients"])
        known = {patient_digest(patient_of(case.name, PATIENTS)) for case in cases} & seen
        if known:
            raise InputError(f"{model}: has been trained on {len(known)} of the patients that it is to be judged by")

    def scores(self, way=None):
        """The rows of `count_pixels` of all cases; of B-scans made unlike in this `way`, unless it is None."""
        what = [prediction_digest(self.details), code_digest(*CODE), self.mirrored, way]
        what += [[case.name, source_files(case)] for case in self.cases]
        path = self.kept / f"{digest(json.dumps(what).encode())}.csv"
        if not path.exists():
            bar = tqdm(self.cases, desc=f"{self.model.parent}, {way or 'as exported'}", leave=False)
            rows = [row for case in bar for row in count_pixels(case, *self._labelled(case, way))]
            write_csv(path, pd.DataFrame(rows))
        return pd.read_csv(path, keep_default_na=False, na_values={"expected_dice": ""})

    def _labelled(self, case, way=None):
        """The `BScan` of a case, the network's labels (rows, columns), its `presence_scores` and `expected_dice`."""
        b_scan, stack, index = read_b_scan(case)
        if way is not None:
            b_scan = make_unlike(b_scan, case.name, way)
            stack, index = b_scan.grey[np.newaxis], 0
        self._network = self._network or load_network(self.model, mirrored=self.mirrored)
        segmented = segmented_slices(self._network, stack, b_scan.spacing_mm, b_scan.vendor)
        labels, probabilities, presence = next(itertools.islice(segmented, index, None))
        labels, _, presence, reference = where_judged(labels, probabilities, presence, b_scan.reference)
        expected = expected_dice(labels, probabilities, presence, self._network.decisions)
        return replace(b_scan, reference=reference), labels, presence, expected

    def pictures(self, names):
        """What `save_comparison` draws of the cases that have one of these `names`, as {name: a tuple}."""
        pictures = {}
        for case in (case for case in self.cases if case.name in names):
            b_scan, labels, _, _ = self._labelled(case)
            pictures[case.name] = case.name, b_scan.grey, b_scan.reference, labels
        return pictures


def read_b_scan(case):
    """(the `BScan` of a case; the stack that it lies in, uint8 (slices, rows, columns); its index there).

    Raises `InputError` where several B-scans of the case were judged.
    """
    voxels, spacing_mm = read_volume(case.oct_path)
    reference = read_reference(case)
    judged = np.flatnonzero((reference != NOT_JUDGED).any(axis=(1, 2)))
    if len(judged) != 1 or reference.shape != voxels.shape:
        raise InputError(
            f"{case.folder}: scan {voxels.shape}, reference {reference.shape}, {len(judged)} judged, not 1"
        )
    (index,) = judged
    stack = np.stack([to_8_bit(slice_) for slice_ in voxels])
    return BScan(stack[index], reference[index], spacing_mm, case.vendor), stack, index


def expected_dice(labels, probabilities, presence, decisions):
    """The Dice to expect of the labels of each fluid in a B-scan, as test.py says it; None without labels."""
    certainty, present = Certainty(1), decisions.presence_probability(presence)
    certainty.add(0, labels, probabilities)
    of_fluids = [fluid_confidence(certainty, index, present[index], decisions) for index in range(len(FLUIDS))]
    return [of_fluid["expected_dice"] for of_fluid in of_fluids]


def count_pixels(case, b_scan, labels, presence, expected):
    """Yield a row for each fluid, as `benchmarks.real_measures` takes them."""
    names = {"b_scan": case.name, "patient": patient_of(case.name, PATIENTS), "eye": kind_of_eye(case.name)}
    for (fluid, label), score, dice in zip(FLUIDS.items(), presence, expected, strict=True):
        predicted, true = labels == label, b_scan.reference == label
        counts = {"true": true.sum(), "predicted": predicted.sum(), "overlap": (predicted & true).sum()}
        yield {**names, "fluid": fluid, "score": score, "expected_dice": dice, **counts}


def save_worst(path, rows, judged):
    """Draw the B-scans with most pixels of outlined fluids labelled wrongly; `judged` are the `Judged` of `rows`."""
    wrong = rows.assign(wrong=rows["true"] + rows["predicted"] - 2 * rows["overlap"]).groupby("b_scan")["wrong"].sum()
    names = wrong.sort_values(ascending=False, kind="stable").index[:WORST]
    pictures = {name: picture for of_model in judged for name, picture in of_model.pictures(set(names)).items()}
    save_comparison(path, [pictures[name] for name in names])
