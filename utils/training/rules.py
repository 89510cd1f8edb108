"""The rules that a training run follows: what config.py decides about them, handed on as a whole."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingRules:
    """How long a run goes on, which epoch is its best, and what it keeps."""

    epochs: int
    monitor: str  # column of the log that chooses the best epoch
    window: int  # epochs that it is averaged over
    patience: int | None  # epochs without a better one after which the run ends; None: it goes on
    slow_down_after: int | None  # epochs without a better one after which the learning rate is halved; None: never
    keep_epochs: int | None  # how many epochs' weights stay on disk; None: all
    save_minutes: float  # between two checkpoints within an epoch
