"""What both training scripts learn from and judge epochs by, read and checked before Keras is imported."""

from dataclasses import dataclass

from utils.prepared import describe_data, read_csv_data
from utils.training.validation import check_monitor, choose_b_scans


@dataclass(frozen=True)
class TrainingData:
    """The training and validation cases."""

    rows: dict  # "train" and "val": a list of `SliceRow`
    b_scans: list  # of validation cases, which every epoch is scored on
    description: dict  # of `describe_data`, for ``best.json``


def read_training_data(csv_paths, n_b_scans, seed, monitor, preparation):
    """The `TrainingData` in `csv_paths`, {"train": path, "val": path}.

    `n_b_scans`, `seed` and `monitor` choose the B-scans that epochs are scored on; `preparation` are the arguments of
    `describe_data`. Raises `InputError` where a CSV is unusable, cases were not prepared as these say, or no B-scan
    holds what is monitored.
    """
    rows = {part: read_csv_data(path) for part, path in csv_paths.items()}
    b_scans = choose_b_scans(rows["val"], n_b_scans, seed)
    check_monitor(monitor, b_scans, csv_paths["val"])
    return TrainingData(rows, b_scans, describe_data(rows, **preparation))
