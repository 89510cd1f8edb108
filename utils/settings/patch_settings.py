"""The settings in config.py that decide which patches are drawn and how they become batches."""

from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class AugmentationSettings:
    """How training's B-scans and patches are varied; validation's never are."""

    rotation_degrees: float = 10.0  # largest rotation of a B-scan
    rotate_both_ways: bool = False  # else counter-clockwise only
    grey: float = 0.0  # probability of each change of a patch's grey values
    scale: float = 0.0  # probability that a patch is stretched or shrunk
    scale_range: float = 0.25  # by up to this share, rows and columns each


def augmentations():
    """{name: `AugmentationSettings`}: the paper's, and one for scans that no network has seen.

    The parts of the latter were measured together.
    """
    strong = AugmentationSettings(rotation_degrees=15.0, rotate_both_ways=True, grey=0.3, scale=0.5)
    return {"paper": AugmentationSettings(), "strong": strong}


@dataclass(frozen=True)
class PatchSettings:
    """Which patches of a B-scan there are, and which are kept."""

    shape: tuple  # (rows, columns) in pixels
    per_slice: int  # at most, along the middle of the ROI; a fifth as many again come from anywhere in it
    patch_border: int  # pixels in from the patch's sides, beyond which fluid does not count for its labels
    drop_healthy: float  # share of the patches without fluid that is dropped
    augmentation: AugmentationSettings
    neighbours: bool = True  # whether its channels are slices z-1, z, z+1, else z alone
    max_invalid: float = 0.5  # largest invalid share of a patch: beyond half, it would teach padding most of all

    def can_be_kept(self, rows, columns):
        """Whether a patch of a B-scan of so many pixels can be kept, by the padding that it needs."""
        height, width = self.shape
        return min(rows, height) * min(columns, width) >= (1 - self.max_invalid) * height * width


@dataclass(frozen=True)
class MixedRoot:
    """Another prepared data set that training draws from as well."""

    csv_path: Path  # of its training slices
    preprocessed_folder: Path
    share: float  # of the B-scans that training draws


@dataclass(frozen=True)
class BatchSettings:
    """How the patches of an epoch become batches. Together with a CSV, `training` and the epoch it determines them."""

    preprocessed_folder: Path  # of the volumes, see `utils.preparation.prepared`
    patches: PatchSettings
    seed: int
    batch_size: int
    slice_mean: float  # grey value that becomes 0 in the network's input
    slice_sd: float  # grey values that become 1
    n_classes: int = 4  # of the one-hot masks
    train_classes: bool = False  # whether the network also learns which fluids are in a patch
    workers: int = 0  # processes that decide on patches ahead; 0: this one does, when asked. Batches are the same
    mixed: tuple = ()  # of `MixedRoot`s
    oversampling: float = 0.0  # of B-scans that hold a rare fluid: 0 none, 1 until every kind is equally frequent
    shard: tuple = (0, 1)  # (index, count): of several hosts' parts of the epoch, which have no patch in common


def blind_to_labels(settings):
    """`BatchSettings` by which no B-scan and no patch is chosen by its labels, as scans without labels need it."""
    return replace(settings, oversampling=0.0, patches=replace(settings.patches, drop_healthy=0.0))
