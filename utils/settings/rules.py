"""The rules that a split and a training run follow: what config.py decides about them, handed on as a whole."""

from dataclasses import dataclass
from pathlib import Path

from utils.settings.patch_settings import BatchSettings


@dataclass(frozen=True)
class SplitRules:
    """How patients are drawn into the parts of a split."""

    pattern: str  # regular expression that finds the patient in a case's name
    test_fraction: float  # of the patients
    validation_fraction: float  # of the others
    seed: int
    folds: int | None = None  # of cross-validation; None: one split by `test_fraction`
    fold: int = 0  # which of them tests


@dataclass(frozen=True)
class TrainingRules:
    """How long a run goes on, which epoch is its best, and what it keeps."""

    epochs: int
    monitor: str  # column of the log that chooses the best epoch
    patience: int | None  # epochs without a better one after which the run ends; None: it goes on
    keep_epochs: int | None  # how many epochs' weights stay on disk; None: all
    save_minutes: float  # between two checkpoints within an epoch
    window: int = 3  # epochs that the monitored column is averaged over, against noise


@dataclass(frozen=True)
class ScoringRules:
    """What the epochs of a run are scored on, and how."""

    csv_path: Path  # of the validation cases
    batches: BatchSettings  # which of their patches are drawn
    network: str  # config.MODEL
    threshold: float  # a pixel whose likeliest class is less probable is background


@dataclass(frozen=True)
class OptimizerSettings:
    """How a network's weights are updated."""

    learning_rate: float
    beta_1: float
    weight_decay: float = 0.0  # decoupled, as a share of the learning rate a step
    clip_norm: float | None = None  # largest norm of the gradient over all weights; None: no limit
    cosine_steps: int | None = None  # over which the learning rate falls to 0; None: it stays
    warm_up_steps: int = 0  # of these, over which it first rises from 0
    ema_momentum: float | None = None  # of the running average of the weights; None: there is none


@dataclass(frozen=True)
class AdversarialRules:
    """What the U-Net and the discriminator learn from each other, and what keeps them in balance."""

    weight: float  # of the adversarial loss beside the segmentation losses
    real_label: float = 0.9  # the discriminator's target for a reader's mask; below 1 it stays less confident
    warm_up_steps: int = 0  # in which the discriminator learns alone
    ramp_steps: int = 0  # over which the weight then rises from 0
    limit: float | None = None  # of the adversarial gradient norm, as a share of the other losses'; None: no cap
    ready_accuracy: float = 0.55  # below it the discriminator has no effect on the U-Net: it would teach noise
    ahead_accuracy: float = 0.9  # above it the discriminator does not learn: one that always wins teaches nothing
