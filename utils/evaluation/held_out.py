"""Segment and score held-out cases. Each label volume has a record with its detection scores beside it."""

import numpy as np
import pandas as pd

from utils.errors import InputError
from utils.evaluation import detection
from utils.evaluation.pairs import read_reference_labels, score_pairs
from utils.files import code_digest, fingerprint, read_json, write_json
from utils.labels import FLUIDS, NOT_JUDGED, without_unjudged
from utils.progress import progress_bar
from utils.segmentation.predict import NotFinite, prediction_digest, segmented_slices
from utils.segmentation.tiling import presence_scores
from utils.volumes.mhd import read_header, read_volume, volume_files, write_volume


def segment_and_score(network, pairs, decisions, workers):
    """Segment the scans of `pairs` by a `LoadedNetwork`, with `Decisions`, and score their label volumes.

    Returns (volumes, reliability, complaints). `volumes` is a DataFrame with a row for each case and fluid, and the
    columns of `utils.evaluation.pairs.score_pairs` and `segment_case`; `reliability` is the `reliability_table` of all
    voxels. `complaints` has a line for each case that failed. The other cases are scored all the same.
    """
    records, by_probability, segmented, complaints = [], 0, [], []
    for pair in pairs:
        try:
            record = segment_case(network, pair, decisions)
            records += record["rows"]
            by_probability = by_probability + np.array(record["by probability"])
            segmented.append(pair)
        except NotFinite as error:
            complaints.append(f"{pair.oct_path}: {error}")
        except InputError as error:
            complaints += error.messages
    volumes, of_scoring = score_pairs(segmented, workers)
    if not volumes.empty:
        volumes = volumes.merge(pd.DataFrame(records), on=["vendor", "case", "fluid"])
    reliability = detection.reliability_table(by_probability) if segmented else None
    return volumes, reliability, complaints + of_scoring


def segment_case(network, pair, decisions):
    """Segment one case and write its label volume, then a record of its detection scores beside it.

    Returns the record: "rows" (vendor, case, fluid, average_precision and the scores of `utils.evaluation.detection`;
    of the fluids that the reader outlined) and "by probability" (`VoxelPrecision.by_probability`). Voxels that nobody
    judged count nowhere. A case that an interrupted evaluation has finished with the same model, decisions, files and
    code is not segmented again.
    """
    record_path = pair.prediction_path.with_suffix(".json")
    paths = [path for path in (pair.oct_path, pair.reference_path, pair.other_path) if path is not None]
    files = [file for path in paths for file in volume_files(path)]
    made_from = {
        "prediction": prediction_digest(network.details),
        "scores": code_digest("utils.evaluation.detection", __name__),
        "decisions": repr(decisions),
        "files": fingerprint(files),
        "judged": [list(pair.outlined), list(pair.not_judged)],
    }
    if record_path.exists() and pair.prediction_path.exists():
        record = read_json(record_path)
        if record["made_from"] == made_from and all(file.exists() for file in volume_files(pair.prediction_path)):
            return _with_nan(record)
    record_path.unlink(missing_ok=True)
    voxels, spacing_mm = read_volume(pair.oct_path)
    reference = read_reference_labels(pair)
    precision, presence = detection.VoxelPrecision(), np.zeros(len(FLUIDS))
    labels = np.empty(voxels.shape, np.uint8)
    slices = segmented_slices(network, voxels, spacing_mm, pair.vendor, decisions=decisions)
    with progress_bar(
        description=f"{pair.vendor} {pair.name}", total=len(voxels), unit="B-scan", leave=False
    ) as progress:
        for index, (of_slice, probabilities, scores) in enumerate(slices):
            labels[index] = of_slice
            _, probabilities, scores, labelled = where_judged(of_slice, probabilities, scores, reference[index])
            precision.add(probabilities, labelled, reference[index] != NOT_JUDGED)
            presence = np.maximum(presence, scores)
            progress.update()
    judged, _ = without_unjudged(labels, reference)
    volumes_mm3 = np.bincount(judged.ravel(), minlength=4)[1:] * float(np.prod(spacing_mm))
    columns = zip(FLUIDS, precision.values(), presence.tolist(), volumes_mm3.tolist(), strict=True)
    names = ("fluid", "average_precision", *detection.SCORES)
    rows = [{"vendor": pair.vendor, "case": pair.name, **dict(zip(names, values, strict=True))} for values in columns]
    rows = [row for row in rows if row["fluid"] in pair.outlined]
    write_volume(pair.prediction_path, labels, spacing_mm, read_header(pair.oct_path).placement)
    rows = [{name: None if value != value else value for name, value in row.items()} for row in rows]  # JSON has no nan
    is_outlined = np.array([fluid in pair.outlined for fluid in FLUIDS])
    by_probability = precision.by_probability() * is_outlined[:, np.newaxis, np.newaxis]
    record = {"made_from": made_from, "rows": rows, "by probability": by_probability.tolist()}
    write_json(record_path, record)
    return _with_nan(record)


def where_judged(labels, probabilities, presence, reference):
    """A B-scan's labels, probabilities, `presence_scores` and reference, without what nobody judged in the reference.

    There the labels become 0, and background certain. Nothing changes where everything was judged.
    """
    unjudged = reference == NOT_JUDGED
    if unjudged.any():
        probabilities = probabilities.copy()
        probabilities[unjudged] = np.eye(probabilities.shape[-1])[0]
        presence = presence_scores(probabilities)
    labels, reference = without_unjudged(labels, reference)
    return labels, probabilities, presence, reference


def _with_nan(record):
    rows = [{name: np.nan if value is None else value for name, value in row.items()} for row in record["rows"]]
    return {**record, "rows": rows}
