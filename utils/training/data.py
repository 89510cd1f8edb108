"""What both training scripts learn from and judge epochs by, read and checked before Keras is imported."""

import re
from dataclasses import dataclass, replace

from utils.data_prepare import mixed_rows
from utils.prepared import check_unseen, check_volumes_exist, describe_data, read_csv_data, read_unlabelled_rows
from utils.training.validation import check_monitor, choose_b_scans


@dataclass(frozen=True)
class TrainingData:
    """The training and validation cases."""

    rows: dict  # "train" and "val": a list of `SliceRow`; "train" holds those of mixed data sets as well
    b_scans: list  # of validation cases, which every epoch is scored on
    description: dict  # of `describe_data`, for ``best.json``
    unlabelled: tuple = ()  # `SliceRow`s of scans without outlines


def read_training_data(csv_paths, mixed, n_b_scans, seed, monitor, preparation):
    """The `TrainingData` in `csv_paths`, {"train": path, "val": path}, and `mixed`, `MixedRoot`s.

    `n_b_scans`, `seed` and `monitor` choose the B-scans that epochs are scored on; `preparation` are the arguments of
    `describe_data`. Raises `InputError` where a CSV is unusable, cases were not prepared as these say, no B-scan holds
    what is monitored, or a mixed data set has cases or patients of the validation.
    """
    rows = {part: read_csv_data(path) for part, path in csv_paths.items()}
    b_scans = choose_b_scans(rows["val"], n_b_scans, seed)
    check_monitor(monitor, b_scans, csv_paths["val"])
    description = describe_data(rows, **preparation)
    for number, root in enumerate(mixed, 1):
        others = mixed_rows(root)
        of_root = preparation | {"preprocessed_folder": root.preprocessed_folder}
        if not all(re.search(preparation["patient_pattern"], row.image_name) for row in others):
            of_root["patient_pattern"] = r"^(.*)$"  # names of another kind: each case is a patient of its own
        description[f"mixed {number}"] = describe_data({"train": others}, **of_root)["train"]
        check_unseen(csv_paths["val"], rows["val"], description[f"mixed {number}"], **preparation)
        rows["train"] = rows["train"] + others
    return TrainingData(rows, b_scans, description)


def with_unlabelled(data, slice_csv, csv_paths, preparation):
    """`data` (`TrainingData`) with the scans without outlines in `slice_csv`, whose description then holds them.

    `csv_paths` is {"val": path, "test": path}, whose patients are left out. Arguments and errors are otherwise those of
    `read_unlabelled_rows` and `read_training_data`; a copy of a validation scan is an error, too.
    """
    rows = read_unlabelled_rows(slice_csv, csv_paths.values(), preparation["patient_pattern"])
    check_volumes_exist(rows, preparation["preprocessed_folder"])
    described = describe_data({"unlabelled": rows}, **preparation)["unlabelled"]
    check_unseen(csv_paths["val"], data.rows["val"], described, **preparation)
    return replace(data, unlabelled=rows, description=data.description | {"unlabelled": described})
