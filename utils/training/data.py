"""What both training scripts learn from and judge epochs by, read and checked before Keras is imported."""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

from utils.data_prepare import mixed_rows
from utils.errors import InputError
from utils.labels import FLUIDS, in_order
from utils.networks.exported_model import read_best, taught_fluids
from utils.preparation.ancestry import inherit
from utils.preparation.prepared import (
    all_seen,
    check_unseen,
    check_volumes_exist,
    describe_data,
    fluids_outlined,
    read_outlined_rows,
    read_unlabelled_rows,
)
from utils.preparation.preprocessing import VENDOR_RULES
from utils.preparation.reference_histogram import read_histogram_if_any
from utils.preparation.splits import find_patient
from utils.training.validation import check_monitor, choose_b_scans


@dataclass(frozen=True)
class StartingModel:
    """An exported model whose weights training starts from."""

    path: Path
    details: dict  # content of its ``best.json``


@dataclass(frozen=True)
class TrainingData:
    """What a network learns from and is judged by, the model that it starts from included."""

    rows: dict  # "train" and "val": a list of `SliceRow`; "train" holds those of mixed data sets as well
    b_scans: list  # of validation cases, which every epoch is scored on
    record: dict  # for ``best.json``: "data" (as `describe_data`), "taught", and "made_from" with a `start`
    start: StartingModel | None  # None: training starts from random weights, or an encoder's
    unlabelled: tuple = ()  # `SliceRow`s of scans without outlines

    @property
    def description(self):
        """What has been seen: `describe_data`'s parts, with "mixed N" and "earlier"."""
        return self.record["data"]

    @property
    def taught(self):
        """Names of the fluids that a training case outlines, or one of a model that training starts from."""
        return taught_fluids(self.record)

    @property
    def scored(self):
        """Names of the fluids that validation cases outline, and that the network is taught."""
        return in_order(set(self.taught) & set(fluids_outlined(self.rows["val"])))

    @property
    def at_risk(self):
        """Names of the fluids that the starting model was taught and no training case outlines."""
        outlined = fluids_outlined(self.rows["train"])
        return tuple(fluid for fluid in self.taught if fluid not in outlined)

    @property
    def watched(self):
        """Those `at_risk` that validation cases outline, so that each epoch's scores say what remains of them."""
        judged = fluids_outlined(self.b_scans)
        return tuple(fluid for fluid in self.at_risk if fluid in judged)

    def notes_on_outlines(self):
        """A sentence for each thing that no training case outlines."""
        if unknown := [fluid for fluid in FLUIDS if fluid not in self.taught]:
            yield f"no training case outlines {' or '.join(unknown)}: it is not taught, and never predicted"
        for fluids, checked in (
            (self.watched, "validation says at each epoch what remains of it"),
            (
                [fluid for fluid in self.at_risk if fluid not in self.watched],
                "no validation case says what remains of it",
            ),
        ):
            if fluids:
                names = " or ".join(fluids)
                yield f"no training case outlines {names}, which the starting model was taught; {checked}"

    @property
    def settings(self):
        """What a run's settings are to say of the data, beside config.py's."""
        return {"STARTING_MODEL": self.start.details["sha256"]} if self.start else {}


def read_training_data(csv_paths, mixed, n_b_scans, seed, monitor, preparation, reference_histogram, start):
    """The `TrainingData` in `csv_paths`, {"train": path, "val": path}, and `mixed`, `MixedRoot`s.

    `n_b_scans`, `seed` and `monitor` choose the B-scans that epochs are scored on; `preparation` are the arguments of
    `describe_data`; `reference_histogram` is `config.REFERENCE_HISTOGRAM`; `start` is the path of the exported model
    whose weights training starts from, or None. Raises `InputError` where a CSV or the model is unusable, cases were
    not prepared as these say, no B-scan holds what is monitored, it is not taught, or anything that trains, or has
    trained `start`, has cases or patients of the validation.
    """
    rows = {part: read_outlined_rows(path) for part, path in csv_paths.items()}
    b_scans = choose_b_scans(rows["val"], n_b_scans, seed)
    check_matching(rows, preparation["reference_histogram_csv"], reference_histogram)
    description = describe_data(rows, **preparation)
    for number, root in enumerate(mixed, 1):
        others = mixed_rows(root)
        with _remedy(f"{root.csv_path}, of MIXED_ROOTS: prepare both data sets with MATCH_INTENSITIES=False"):
            described = description[f"mixed {number}"] = describe_mixed(root, others, preparation)
        with _remedy(f"{root.csv_path}, of MIXED_ROOTS: rename its cases if these are other patients"):
            check_unseen(csv_paths["val"], rows["val"], described, **preparation)
        rows["train"] = rows["train"] + others
    record = {"data": description, "taught": list(fluids_outlined(rows["train"]))}
    if start:
        start = StartingModel(Path(start), read_best(start))
        record = inherit(record, [start.details]) | {"made_from": start.details["sha256"]}
    check_monitor(monitor, b_scans, csv_paths["val"], taught_fluids(record))
    trained = {name: part for name, part in record["data"].items() if name != "val"}
    check_unseen(csv_paths["val"], rows["val"], all_seen(trained), **preparation)
    return TrainingData(rows, b_scans, record, start or None)


@contextlib.contextmanager
def _remedy(line):
    """Add a `line` to the `InputError`s of the block."""
    try:
        yield
    except InputError as error:
        raise InputError(*error.messages, line) from error


def check_matching(rows, reference_histogram_csv, given):
    """Raise `InputError` where step 1 has not matched grey values as it would by today's settings.

    `rows` are those of the split; `reference_histogram_csv` is the file that step 1 has left, None where grey values
    are not to be matched; `given` is `config.REFERENCE_HISTOGRAM`, which counts where no Spectralis case trains. Cases
    that need no matching contradict nothing. That each case was matched to the file is for `describe_data` to see.
    """
    matched = {vendor for vendor, rule in VENDOR_RULES.items() if rule.match_histogram}
    if reference_histogram_csv is None or matched.isdisjoint(row.vendor for part in rows.values() for row in part):
        return
    done, wanted = read_histogram_if_any(reference_histogram_csv), read_histogram_if_any(given)
    remedy = "set it back, or run prepare_data.py again"
    if any(row.vendor == "Spectralis" for row in rows["train"]):
        if done is None:
            raise InputError(f"config.MATCH_INTENSITIES = True: the volumes were prepared with False; {remedy}")
    elif wanted and wanted != done:
        found = f"one of {sum(done):,} voxels" if done else "None"
        raise InputError(
            f"config.REFERENCE_HISTOGRAM = {given!r}: is of {sum(wanted):,} voxels, the volumes were prepared with "
            f"{found}; {remedy}"
        )


def describe_mixed(root, rows, preparation):
    """The part of the description for the `rows` of a `MixedRoot`: as of `describe_data`, and how it was prepared.

    Its names may be of another kind: a case whose name does not match the patients' pattern is a patient of its own.
    """
    described = describe_data(
        {"train": rows},
        **preparation | {"preprocessed_folder": root.preprocessed_folder},
        strict=False,
    )
    pattern, names = preparation["patient_pattern"], {row.image_name for row in rows}
    if unmatched := sorted(name for name in names if find_patient(name, pattern) is None):
        print(
            f"note: {root.csv_path}: {len(unmatched)} of {len(names)} case names do not match PATIENT_PATTERN "
            f"{pattern!r}, such as {unmatched[0]}; each of these counts as a patient of its own"
        )
    return described["train"] | {"preparation": described["preparation"]}


def with_unlabelled(data, slice_csv, csv_paths, preparation):
    """`data` (`TrainingData`) with the scans without outlines in `slice_csv`, whose description then holds them.

    `csv_paths` is {"val": path, "test": path}, whose patients are left out. Arguments and errors are otherwise those of
    `read_unlabelled_rows` and `read_training_data`; a copy of a validation scan is an error, too.
    """
    rows = read_unlabelled_rows(slice_csv, csv_paths.values(), preparation["patient_pattern"])
    check_volumes_exist(rows, preparation["preprocessed_folder"])
    described = describe_data({"unlabelled": rows}, **preparation)["unlabelled"]
    check_unseen(csv_paths["val"], data.rows["val"], described, **preparation)
    record = data.record | {"data": data.description | {"unlabelled": described}}
    return replace(data, unlabelled=rows, record=record)
