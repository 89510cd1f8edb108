"""Decisions after the network, chosen on validation B-scans once its best weights are known."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import optimize

from utils.files import write_json
from utils.labels import FLUIDS, NOT_JUDGED, allowed_tables, unlabelled_value
from utils.networks.exported_model import read_best, taught_fluids
from utils.networks.keras_setup import set_up_keras
from utils.networks.networks import tile_step
from utils.preparation.prepared import outlined_in
from utils.preparation.roi import prediction_region
from utils.segmentation.confidence import Certainty
from utils.segmentation.decisions import Decisions, logits_of
from utils.segmentation.possible import only_possible, possible_places
from utils.segmentation.surfaces import retinal_surfaces
from utils.segmentation.tiling import Predictor, presence_scores
from utils.training.validation import predicted_b_scans

# 1 and 10 % more or less than the one before, from 0.38 to 4.2; those that change least come first.
TEMPERATURES = sorted((10.0 ** (np.arange(-10, 16) / 24)).tolist(), key=lambda value: abs(np.log(value)))
THRESHOLDS = (*np.arange(0.05, 0.951, 0.05).round(2).tolist(), 0.97, 0.98, 0.99)
PRESENT_FROM = (0.5, 0.4, 0.3, 0.2, 0.1, 0.0)  # probability of presence from which on a fluid counts
PRIOR_SPREAD = (1.0, 0.3)  # of offset and slope around 0 and 1: a handful of B-scans moves them little
SMALLEST_LESIONS_MM2 = (0.0, 0.0005, 0.001, 0.002, 0.004)  # 11 to 90 pixels of a Spectralis B-scan
EQUAL_DICE = 0.005  # Dice values that differ by less count as equal: the validation B-scans are few
LOST = 0.005  # share of a fluid's outlines that may lie where it cannot be
SAMPLED_EVERY = 3  # rows and columns whose pixels choose the temperature


@dataclass(frozen=True)
class Predicted:
    """A validation B-scan and what the network says of it."""

    probabilities: np.ndarray  # float (rows, columns, 4)
    reference: np.ndarray  # uint8 (rows, columns), labels 0 to 3, and `NOT_JUDGED`
    pixel_mm2: float  # area of a pixel
    outlined: tuple = tuple(FLUIDS)  # names of the fluids that were outlined
    possible: np.ndarray | None = None  # where each can be, as of `possible_places`; None: not known
    seen: np.ndarray | bool = True  # bool (rows, columns), where the network has looked; or everywhere

    def of_judged(self):
        """The same, background for certain where nobody judged, so that these pixels count nowhere."""
        unjudged = self.reference == NOT_JUDGED
        if not unjudged.any():
            return self
        probabilities, reference = self.probabilities.copy(), np.where(unjudged, np.uint8(0), self.reference)
        probabilities[unjudged] = np.eye(probabilities.shape[-1])[0]
        return replace(self, probabilities=probabilities, reference=reference, seen=self.seen & ~unjudged)

    def where_possible(self):
        """The same, fluid only where it can be. Where none can be, nothing is left to say."""
        seen = self.seen & self.possible.any(axis=-1)
        return replace(self, probabilities=only_possible(self.probabilities, self.possible), seen=seen)

    def cropped(self, least):
        """The same without the rows and columns in which nothing is outlined and no fluid is as probable as `least`."""
        matters = (self.reference > 0) | (self.probabilities[..., 1:].max(axis=-1) >= least)
        window = tuple(
            slice(*(np.flatnonzero(along)[[0, -1]] + (0, 1))) if along.any() else slice(1)  # OpenCV needs a pixel
            for along in (matters.any(axis=1), matters.any(axis=0))
        )
        return replace(self, probabilities=self.probabilities[window], reference=self.reference[window], possible=None)


def choose_decisions(b_scans, start, earlier=None):
    """The `Decisions` that suit `b_scans`, a list of `Predicted`; `start` are those to begin with.

    One after the other: whether fluid counts only where it can be, which is so if nearly all outlines lie there; the
    temperature by cross-entropy; each fluid's threshold by Dice over all B-scans together; what makes a probability of
    a presence score, by logistic regression; from which probability of presence on a fluid counts, and the smallest
    lesion, both by the mean Dice of the B-scans, which is 1 where rightly nothing is found, as far as the Dice of all
    together does not fall; what makes an expected Dice, by the same regression on the B-scans' Dice. Of equal values
    that is taken which changes least. A fluid counts in the B-scans in which it was outlined. One that none of these
    holds keeps what it has in `earlier`, the `Decisions` of the model that training started from, else its start.
    """
    b_scans = [one.of_judged() for one in b_scans]
    chosen = replace(start, only_possible=_lie_where_they_can(b_scans))
    if chosen.only_possible:
        b_scans = [one.where_possible() for one in b_scans]
    chosen = replace(chosen, temperature=_temperature(b_scans))
    thresholds = chosen.fluid_thresholds or 3 * (chosen.threshold or 0.5,)  # 0 takes the likeliest class: no threshold
    presences, cropped = [], []
    for calibrated in (replace(one, probabilities=chosen.calibrated(one.probabilities)) for one in b_scans):
        presences.append(presence_scores(calibrated.probabilities))
        cropped.append(calibrated.cropped(min(*thresholds, *THRESHOLDS)))
    outlined = np.array([[fluid in one.outlined for fluid in FLUIDS] for one in b_scans])
    holds = np.array([[(one.reference == label).any() for label in FLUIDS.values()] for one in b_scans])
    held = np.flatnonzero(holds.any(axis=0))
    if not held.size:
        return earlier or chosen

    def dice_of(decisions):
        """Dice of each fluid over all B-scans together, and the mean of the B-scans' Dice: float (2, fluids)."""
        counts = np.array([_counts(one, decisions, presence) for one, presence in zip(cropped, presences, strict=True)])
        overlap, sizes = counts[..., 0] * outlined, counts[..., 1] * outlined
        of_b_scans = np.where(sizes > 0, 2 * overlap / np.maximum(sizes, 1), 1.0)
        mean = (of_b_scans * outlined).sum(axis=0) / np.maximum(outlined.sum(axis=0), 1)
        return np.stack([2 * overlap.sum(axis=0) / np.maximum(sizes.sum(axis=0), 1), mean])

    chosen = replace(chosen, fluid_thresholds=thresholds)
    for index in held:
        own = chosen.fluid_thresholds[index]
        nearest_first = sorted({own, *THRESHOLDS}, key=lambda value, own=own: abs(value - own))
        candidates = [_with(chosen, "fluid_thresholds", index, value) for value in nearest_first]
        together = [dice_of(candidate)[0, index] for candidate in candidates]
        chosen = _first_of_the_best(candidates, together)
    chosen = replace(
        chosen, present_from=(0.0, 0.0, 0.0), presence_offsets=(0.0, 0.0, 0.0), presence_slopes=(1.0, 1.0, 1.0)
    )
    for index in held:
        known = outlined[:, index]
        offset, slope = _line(np.array(presences)[known, index], holds[known, index])
        chosen = _with(chosen, "presence_offsets", index, offset)
        chosen = _with(chosen, "presence_slopes", index, slope)
        candidates = [_with(chosen, "present_from", index, value) for value in PRESENT_FROM]
        chosen = _best_that_loses_nothing(candidates, [dice_of(one)[:, index] for one in candidates], without=-1)
    for index in sorted({*range(len(FLUIDS))} - {*held}):
        for name in ("fluid_thresholds", "present_from", "presence_offsets", "presence_slopes"):
            if earlier and getattr(earlier, name):
                chosen = _with(chosen, name, index, getattr(earlier, name)[index])
    candidates = [replace(chosen, smallest_lesion_mm2=value) for value in SMALLEST_LESIONS_MM2]
    values = [dice_of(one)[:, held].mean(axis=1) for one in candidates]
    chosen = _best_that_loses_nothing(candidates, values, without=0)
    return _with_dice_lines(chosen, b_scans, presences, held, earlier)


def _with_dice_lines(chosen, b_scans, presences, held, earlier):
    """`chosen` with what makes an expected Dice of the labels of the fluids `held`; the others' are those of `earlier`.

    The arguments are as in `choose_decisions`; `presences` are the B-scans' `presence_scores`.
    """
    said, true = [[], [], []], [[], [], []]
    for one, presence in zip(b_scans, presences, strict=True):
        probabilities = chosen.calibrated(one.probabilities)
        labels = chosen.labels(probabilities, presence, one.pixel_mm2)
        certainty = Certainty(1)
        certainty.add(0, labels, probabilities)
        present = chosen.presence_probability(presence)
        for index, (fluid, label) in enumerate(FLUIDS.items()):
            dice = certainty.expected_dice(index)
            if dice is not None and fluid in one.outlined:
                found, is_fluid = labels == label, one.reference == label
                said[index].append(present[index] * dice)
                true[index].append(2 * np.count_nonzero(found & is_fluid) / (found.sum() + is_fluid.sum()))
    chosen = replace(chosen, dice_offsets=(0.0, 0.0, 0.0), dice_slopes=(1.0, 1.0, 1.0))
    for index in range(len(FLUIDS)):
        line = _line(np.array(said[index]), np.array(true[index])) if index in held else None
        if line is None and earlier and earlier.dice_offsets:
            line = earlier.dice_offsets[index], earlier.dice_slopes[index]
        if line is not None:
            chosen = _with(_with(chosen, "dice_offsets", index, line[0]), "dice_slopes", index, line[1])
    return chosen


def _lie_where_they_can(b_scans):
    """Whether of each fluid at most the share `LOST` of what `b_scans` outline lies where it cannot be."""
    if any(one.possible is None for one in b_scans):
        return False
    outlined, lost = np.zeros((2, len(FLUIDS)))
    for one in b_scans:
        for index, label in enumerate(FLUIDS.values()):
            is_fluid = one.reference == label
            outlined[index] += np.count_nonzero(is_fluid)
            lost[index] += np.count_nonzero(is_fluid & ~one.possible[..., index])
    return bool((lost <= LOST * outlined).all())


def _with(decisions, name, index, value):
    """`decisions` with another value at `index` of a triple."""
    triple = list(getattr(decisions, name))
    triple[index] = value
    return replace(decisions, **{name: tuple(triple)})


def _line(values, truth):
    """(offset, slope): by which the logits of `values` tell best the `truth`, 0 to 1 each.

    That is logistic regression with normal priors, whose spreads are `PRIOR_SPREAD`, around the value as it is.
    """
    logits, spread = logits_of(values), np.array(PRIOR_SPREAD)

    def loss(line):
        fitted = line[0] + line[1] * logits
        of_prior = 0.5 * np.sum(((line - (0, 1)) / spread) ** 2)
        return np.logaddexp(0, fitted).sum() - fitted @ truth + of_prior

    bounds = [(None, None), (0.1, None)]  # a higher value never means less
    return optimize.minimize(loss, (0.0, 1.0), bounds=bounds).x.tolist()


def _first_of_the_best(candidates, values):
    best = max(values)
    return next(candidate for candidate, value in zip(candidates, values, strict=True) if value >= best - EQUAL_DICE)


def _best_that_loses_nothing(candidates, values, without):
    """The first of the best by mean Dice, among those with no less Dice of all together than the one that removes none.

    `values` are (Dice of all together, mean Dice), `without` the index of that one.
    """
    kept = [
        (candidate, mean)
        for candidate, (together, mean) in zip(candidates, values, strict=True)
        if together >= values[without][0]
    ]
    return _first_of_the_best(*zip(*kept, strict=True))


def _counts(b_scan, decisions, presence):
    """(overlap, sum of both sizes) of each fluid in pixels, int (fluids, 2)."""
    labels = decisions.labels(b_scan.probabilities, presence, b_scan.pixel_mm2)
    found = [(labels == label, b_scan.reference == label) for label in FLUIDS.values()]
    return [(np.count_nonzero(a & b), np.count_nonzero(a) + np.count_nonzero(b)) for a, b in found]


def _temperature(b_scans):
    """That of `TEMPERATURES` under which the reference is likeliest, among pixels that the network has seen."""
    probabilities, values = [], []
    for one in b_scans:
        window = (slice(None, None, SAMPLED_EVERY),) * 2
        seen = np.broadcast_to(one.seen, one.reference.shape)[window]
        reference = one.reference[window][seen]
        probabilities.append(one.probabilities[window][seen])
        values.append(np.where(reference == 0, unlabelled_value(one.outlined), reference))
    labels = np.concatenate(values)
    if not labels.size:
        return 1.0
    allowed = np.stack([table[labels] for table in allowed_tables()], axis=-1)
    logarithms = np.log(np.clip(np.concatenate(probabilities).astype(np.float64), 1e-7, 1))
    losses = []
    for temperature in TEMPERATURES:
        powers = np.exp(logarithms / temperature)
        losses.append(np.mean(np.log(powers.sum(axis=1)) - np.log((powers * allowed).sum(axis=1))))
    return TEMPERATURES[np.argmin(losses)]


def predict_for_decisions(model_path, rows, settings, network):
    """A list of `Predicted`: what the exported model at `model_path`, a ``.keras`` file, says of the B-scans `rows`.

    `rows` are `SliceRow`s, `settings` the run's `BatchSettings`, `network` is `config.MODEL`.
    """
    import keras

    model = keras.models.load_model(model_path, compile=False)
    predictor = Predictor(model, settings.slice_mean, settings.slice_sd, tile_step(network))
    predicted = predicted_b_scans(predictor, rows, settings, taught_fluids(read_best(model_path)))
    return [
        Predicted(
            probabilities,
            reference,
            spacing_mm[0] * spacing_mm[1],
            outlined_in(row),
            possible_places(retinal_surfaces(grey, spacing_mm[:2]), len(grey), spacing_mm[1]),
            prediction_region(grey) != 0,
        )
        for row, grey, reference, probabilities, spacing_mm in predicted
    ]


def decisions_of_model(details):
    """The `Decisions` in a model's ``best.json``; None without any."""
    return Decisions.from_details(details) if "decisions" in details else None


def write_decisions(model_path, decisions):
    """Put `decisions` in place of those in the ``best.json`` of the exported model at `model_path`."""
    details = {**read_best(model_path), "decisions": decisions.as_details()}
    write_json(Path(model_path).with_suffix(".json"), details)


def add_decisions(model_path, rows, settings, network, start, starting_details=None):
    """Choose the decisions of an exported model on validation B-scans, and add them to its ``best.json``.

    The first arguments are those of `predict_for_decisions`; `start` are the `Decisions` to begin with,
    `starting_details` the ``best.json`` of the model that training started from, if any. Nothing happens where
    ``best.json`` has decisions already. Prints them.
    """
    if "decisions" in read_best(model_path):
        return
    set_up_keras(settings.seed, deterministic=True)
    b_scans = predict_for_decisions(model_path, rows, settings, network)
    earlier = decisions_of_model(starting_details or {})
    chosen = choose_decisions(b_scans, start, earlier)
    write_decisions(model_path, chosen)
    print(f"decisions on {len(b_scans)} validation B-scans: {chosen.in_words()}")
    if unknown := [fluid for fluid in FLUIDS if not any(fluid in one.outlined for one in b_scans)]:
        kept = "those of the starting model" if earlier else "the defaults"
        print(f"note: no validation case outlines {' or '.join(unknown)}; the decisions on it are {kept}")
