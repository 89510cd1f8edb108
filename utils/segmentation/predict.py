"""A scan segmented: preprocessed as in training, predicted within its region of interest, back on its own grid."""

import collections
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import InputError
from utils.files import code_digest, digest
from utils.networks.exported_model import PredictionSettings, read_best
from utils.networks.networks import LITE_UNET, OUR_NETWORK, as_list, create_network, tile_step
from utils.networks.onnx_model import OnnxNetwork, is_onnx
from utils.parallel import ahead
from utils.preparation.ancestry import inherit
from utils.preparation.preprocessing import (
    PREPROCESSING_CODE,
    invalid_pixels,
    preprocessed_slices,
    resampled_rows,
    resampling_matrix,
    with_neighbours,
)
from utils.preparation.roi import ROI_CODE, prediction_region
from utils.segmentation.decisions import Decisions, of_taught_fluids
from utils.segmentation.possible import only_possible, possible_places
from utils.segmentation.surfaces import retinal_surfaces
from utils.segmentation.tiling import TILE_PIXELS, Predictor, presence_scores
from utils.volumes.spacing import check_spacing

MEMORY_GB = 0.8  # of intermediate results, by default
# Of a tile, for each of `BASE_FILTERS` in our network, and whatever their number; measured on TensorFlow.
_BYTES_PER_PIXEL = {"float32": (22, 520), "mixed_bfloat16": (12, 420), "mixed_float16": (12, 420)}
_LITE_BYTES_PER_PIXEL = 800  # of `LITE_UNET`, under any policy; 640 were measured on TensorFlow
_NOT_FINITE = "the network's output is NaN or infinite"
_FINITE = "take another model, or DTYPE_POLICY=float32 where it is another"


class NotFinite(InputError):
    """A network yields NaN or infinity for a scan, which the message does not name."""


@dataclass(frozen=True)
class Segmentation:
    """A segmented scan."""

    labels: np.ndarray  # uint8 (slices, rows, columns) on the scan's own grid: 0 background, 1 IRF, 2 SRF, 3 PED
    presence: np.ndarray  # float (3,): how sure the model is that IRF, SRF, PED is anywhere in the scan


# ---- Networks ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LoadedNetwork:
    """A network that is ready to predict, and what it needs to know about scans."""

    model: Any  # what `utils.segmentation.tiling.Predictor` takes
    settings: PredictionSettings
    tile_pixels: int  # at most, of a batch of tiles
    details: dict  # content of best.json
    decisions: Decisions  # those in best.json

    @property
    def has_heads(self):
        """Whether it also tells, for each tile, which fluids are present."""
        return len(as_list(self.model.output)) > 1

    @property
    def channels(self):
        """Of its first output: the four classes and, of an `Ensemble`, the disagreement."""
        return 5 if isinstance(self.model, Ensemble) else 4

    @property
    def predictor(self):
        """The `Predictor` of its class probabilities."""
        settings = self.settings
        return Predictor(
            self.model,
            settings.slice_mean,
            settings.slice_sd,
            tile_step(settings.network),
            self.channels,
            self.tile_pixels,
        )


def load_network(*paths, dtype_policy="float32", memory_gb=MEMORY_GB, mirrored=False, threads=None):
    """The `LoadedNetwork` in the files at `paths`: ``best.keras``, with ``best.json`` beside it, or ``best.onnx``.

    `dtype_policy` is the precision that it computes in: "float32", "mixed_bfloat16" or "mixed_float16". `memory_gb`
    bounds the intermediate results, from which follows how large tiles are. With several paths, or `mirrored`, it is an
    `Ensemble`. `threads` are those of an ONNX model (Keras is told when it is set up); None:
    one for each core. Raises `InputError` where the files are no model of four classes, several take other images or
    are other networks than the first, or an ONNX model is asked for another precision than float32.
    """
    loaded = [_load(Path(path), dtype_policy, memory_gb, threads) for path in paths]
    first = loaded[0]
    for path, other in zip(paths, loaded, strict=True):
        kind, expected = ((replace(one.settings, threshold=0, taught=()), one.has_heads) for one in (other, first))
        if kind != expected:
            raise InputError(f"{path}: is another network than {paths[0]}, or takes other images; leave one out")
        if other.settings.taught != first.settings.taught:
            taught = [", ".join(one.settings.taught) for one in (other, first)]
            raise InputError(f"{path}: was taught {taught[0]}, {paths[0]} {taught[1]}; leave one out")
    if len(loaded) == 1 and not mirrored:
        return first
    model = Ensemble([one.model for one in loaded], mirrored)
    if len(loaded) == 1:
        return replace(first, model=model)
    digests = [one.details["sha256"] for one in loaded]
    details = first.details | {"sha256": digest(" ".join(digests).encode()), "step": f"mean of {len(loaded)} models'"}
    details = inherit(details, [one.details for one in loaded[1:]])
    return replace(first, model=model, details=details, decisions=Decisions.mean([one.decisions for one in loaded]))


def _load(path, dtype_policy, memory_gb, threads):
    """The `LoadedNetwork` in one file."""
    details = read_best(path)
    settings, decisions = PredictionSettings.from_details(details), Decisions.from_details(details)
    if is_onnx(path):
        if dtype_policy != "float32":
            raise InputError(f"{path}: an ONNX model computes in float32; say --set DTYPE_POLICY=float32")
        model = OnnxNetwork(path, threads)
        _check_channels(path, model)
        base_filters = details.get("config", {}).get("BASE_FILTERS", 64)
        tile_pixels = _tile_pixels(settings.network, memory_gb, base_filters)  # onnxruntime takes no more than Keras
        return LoadedNetwork(model, settings, tile_pixels, details, decisions)
    import keras

    try:
        exported = keras.models.load_model(path, compile=False)
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a Keras model ({str(error).strip().splitlines()[0]})") from error
    _check_channels(path, exported)
    model, base_filters = exported, exported.get_weights()[0].shape[-1]
    if settings.network == OUR_NETWORK or dtype_policy != "float32":
        model = create_network(  # the same weights, in another precision, with the cheaper form of the output layer
            settings.network,
            input_shape=exported.input_shape[1:],
            base_filters=base_filters,
            padding=details.get("config", {}).get("PADDING", "valid"),
            train_classes=len(as_list(exported.output)) > 1,
            n_classes=4,
            regularizer_weight=details.get("config", {}).get("REGULARIZER_WEIGHT", 0.0),
            dtype_policy=dtype_policy,
            seed=0,
        )
        _set_weights(model, exported, path)
    tile_pixels = _tile_pixels(settings.network, memory_gb, base_filters, dtype_policy)
    return LoadedNetwork(model, settings, tile_pixels, details, decisions)


def _tile_pixels(network, memory_gb, base_filters, dtype_policy="float32"):
    """How many pixels a batch of tiles may have. `base_filters` are our network's; others ignore them."""
    if network == LITE_UNET:
        return int(memory_gb * 1e9 / _LITE_BYTES_PER_PIXEL)
    if network != OUR_NETWORK:
        return int(TILE_PIXELS * memory_gb / MEMORY_GB)
    per_filter, fixed = _BYTES_PER_PIXEL[dtype_policy]
    return int(memory_gb * 1e9 / (per_filter * base_filters + fixed))


def _check_channels(path, model):
    slices, classes = model.input_shape[-1], as_list(model.output)[0].shape[-1]
    if (slices, classes) != (3, 4):
        raise InputError(
            f"{path}: takes {slices} slices and tells {classes} classes; expected 3 slices and 4 classes: background, "
            "IRF, SRF, PED"
        )


def _set_weights(model, exported, path):
    try:
        model.set_weights(exported.get_weights())
    except ValueError as error:
        raise InputError(f"{path}: its weights are not those of the network that {path.stem}.json names") from error


class Ensemble:
    """Several predictions of one network, or of several: their mean, and how far they disagree.

    Of a batch (B, H, W, 3) the first output is (B, h, w, 5): the mean of the class probabilities, then the
    disagreement: the mean over the predictions of half the sum of absolute differences from the mean probabilities, 0
    where all agree, below 1. Further outputs are the means of the plain predictions'.

    Each of the `models` gives a plain prediction, with `mirrored` also that of the image mirrored laterally.
    """

    def __init__(self, models, mirrored):
        self.input_shape, self.output = models[0].input_shape, models[0].output
        self._models, self._mirrored = models, mirrored

    def predict_on_batch(self, images):
        """Outputs for `images`, float32 (B, H, W, 3), as numpy arrays."""
        plain = [as_list(model.predict_on_batch(images)) for model in self._models]
        predictions = [outputs[0] for outputs in plain]
        if self._mirrored:
            mirrored = np.ascontiguousarray(images[:, :, ::-1])
            predictions += [as_list(model.predict_on_batch(mirrored))[0][:, :, ::-1] for model in self._models]
        mean = sum(predictions) / len(predictions)
        disagreement = sum(np.abs(prediction - mean).sum(axis=-1) for prediction in predictions) / 2 / len(predictions)
        further = [sum(outputs) / len(outputs) for outputs in zip(*(outputs[1:] for outputs in plain), strict=True)]
        return [np.concatenate([mean, disagreement[..., np.newaxis]], axis=-1), *further]


def prediction_digest(*details):
    """Changes with what a prediction depends on besides the scan: each model's two files and the code.

    `details` are contents of ``best.json``, which holds the SHA-256 of ``best.keras``. Returns text.
    """
    of_networks = ("model", "utils.networks.networks", "utils.networks.onnx_model")
    of_segmentation = [f"utils.segmentation.{name}" for name in ("tiling", "decisions", "surfaces", "possible")]
    code = code_digest(*PREPROCESSING_CODE, *ROI_CODE, *of_networks, *of_segmentation, __name__)
    return digest(json.dumps([*details, code], sort_keys=True).encode())


# ---- Scans ---------------------------------------------------------------------------------------------------------
def segment_volume(volume, spacing_mm, vendor, model_path, **options):
    """Labels and class probabilities of a scan, in one call.

    `volume` is uint8 or uint16 (slices, rows, columns) as exported, `spacing_mm` (x, y, z), `vendor` one of
    `utils.volumes.mhd.VENDORS`, `model_path` a ``best.keras`` with its ``best.json``, or a ``best.onnx``; `options` are
    those of `load_network`. Returns labels, uint8 (slices, rows, columns) with 0 background, 1 IRF, 2 SRF, 3 PED, and
    probabilities, float32 (slices, rows, columns, 4), both on the scan's own grid. Raises `InputError` where the model,
    the spacing or the grey values cannot be used.
    """
    check_spacing("spacing_mm", spacing_mm)
    probabilities = np.empty((*volume.shape, 4), np.float32)

    def keep(index, of_slice):
        probabilities[index] = of_slice[..., :4]

    segmentation = segment_scan(load_network(model_path, **options), volume, spacing_mm, vendor, on_slice=keep)
    return segmentation.labels, probabilities


def segment_scan(network, voxels, spacing_mm, vendor, *, decisions=None, on_slice=None):
    """The `Segmentation` of one scan by a `LoadedNetwork`.

    `voxels` (slices, rows, columns) are as read from the scan's file, `spacing_mm` is (x, y, z), `decisions` replace
    the network's own; ``on_slice(index, probabilities)``, if given, is called after every B-scan with its
    probabilities, float32 (rows, columns, 4), of an `Ensemble` (rows, columns, 5). Raises `NotFinite`.
    """
    labels = np.zeros(voxels.shape, np.uint8)
    presence, segmented = np.zeros(3), segmented_slices(network, voxels, spacing_mm, vendor, decisions=decisions)
    for index, (of_slice, probabilities, scores) in enumerate(segmented):
        labels[index] = of_slice
        presence = np.maximum(presence, scores)
        if on_slice:
            on_slice(index, probabilities)
    return Segmentation(labels, presence)


def segmented_slices(
    network,
    voxels,
    spacing_mm,
    vendor,
    *,
    decisions=None,
    on_preprocessed=None,
    on_impossible=None,
):
    """Yield, for each B-scan of a scan, labels and probabilities on its own grid, and its `presence_scores`.

    Arguments are as in `segment_scan`. ``on_preprocessed(slice, region, surfaces)``, if given, is called with each
    preprocessed B-scan and its region of interest, both uint8 (rows, columns), and its `Surfaces`;
    ``on_impossible(labels)`` with the labels that the next B-scan would have without `Decisions.only_possible`, if
    there is that. The next B-scan is prepared while one is predicted, and no more than a few are held. The scan's
    padding is background with probability 1. Raises `NotFinite`.
    """
    settings, decisions = network.settings, decisions or network.decisions
    rows, pixel_mm2 = voxels.shape[1], spacing_mm[0] * spacing_mm[1]
    to_scan_rows = resampling_matrix(resampled_rows(rows, spacing_mm[1], settings.axial_spacing_mm), rows)
    invalid = invalid_pixels(voxels)
    slices = preprocessed_slices(
        voxels,
        spacing_mm,
        vendor,
        axial_spacing_mm=settings.axial_spacing_mm,
        reference_histogram=settings.reference_histogram,
        invalid=invalid,
    )

    possible = collections.deque()  # places of the B-scans that are prepared and not predicted yet

    def stacks():
        for before, slice_, after in with_neighbours(slices):
            # Only where training's patches are drawn from; a dim scan is brightened to find that region.
            region = prediction_region(slice_)
            if on_preprocessed or decisions.only_possible:
                surfaces = retinal_surfaces(slice_, (spacing_mm[0], settings.axial_spacing_mm))
            if decisions.only_possible:
                possible.append(possible_places(surfaces, len(slice_), settings.axial_spacing_mm))
            if on_preprocessed:
                on_preprocessed(slice_, region, surfaces)
            seen = (before, slice_, after) if settings.neighbours else 3 * (slice_,)
            yield np.stack([slice_ if near is None else near for near in seen]), region

    predicted = network.predictor.of_stacks(ahead(stacks(), 1))
    of_taught = (of_taught_fluids(probabilities, settings.taught) for probabilities in predicted)

    def labelled(probabilities, padding, decisions):
        calibrated = decisions.calibrated(probabilities)
        on_scan_rows = np.tensordot(to_scan_rows, calibrated, axes=1)
        on_scan_rows[padding] = np.eye(network.channels)[0]  # once more: interpolation reached into it
        presence = presence_scores(calibrated)
        return decisions.labels(on_scan_rows[..., :4], presence, pixel_mm2), on_scan_rows, presence

    for index, (probabilities, padding) in enumerate(zip(of_taught, invalid, strict=True)):
        if not np.isfinite(probabilities).all():
            raise NotFinite(f"{_NOT_FINITE} in B-scan {index}; {_FINITE}")
        if decisions.only_possible:
            if on_impossible:
                on_impossible(labelled(probabilities, padding, replace(decisions, only_possible=False))[0])
            probabilities = only_possible(probabilities, possible.popleft())
        yield labelled(probabilities, padding, decisions)
