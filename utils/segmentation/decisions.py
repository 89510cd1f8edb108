"""From class probabilities to labels: what is decided after the network, on validation cases alone."""

from dataclasses import asdict, dataclass, fields, replace

import cv2
import numpy as np
from scipy import special

from utils.labels import FLUIDS
from utils.segmentation.possible import remove_ped_above_srf


@dataclass(frozen=True)
class Decisions:
    """How a B-scan's probabilities become labels. Where only `threshold` is given, as in the paper.

    Triples are of IRF, SRF and PED.
    """

    threshold: float  # a pixel whose likeliest class is less probable is background
    fluid_thresholds: tuple | None = None  # instead: each fluid's probability from which on it counts
    present_from: tuple | None = None  # a B-scan of a lower `presence_probability` holds none of the fluid
    smallest_lesion_mm2: float = 0.0  # of a connected body of a fluid in a B-scan
    temperature: float = 1.0  # divides the logarithms of the probabilities, before all else
    presence_offsets: tuple | None = None  # with the slopes, what makes a probability of a presence score
    presence_slopes: tuple | None = None
    dice_offsets: tuple | None = None  # with the slopes, what makes an expected Dice of what the probabilities say
    dice_slopes: tuple | None = None
    only_possible: bool = False  # whether fluid counts only where it can be, see `utils.segmentation.possible`

    @classmethod
    def from_details(cls, details):
        """Those in the content of ``best.json``.

        Files of before hold, in place of `present_from`, the presence score that has this probability.
        """
        values = {"fluid_thresholds": details.get("fluid_thresholds"), **details.get("decisions", {})}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        scores = values.pop("presence_thresholds", None)
        decisions = cls(threshold=details["threshold"], **values)
        if scores is None:
            return decisions
        return replace(decisions, present_from=tuple(decisions._probability_of_logits(special.logit(scores)).tolist()))

    @classmethod
    def mean(cls, several):
        """Those in the middle of `several`; triples are None where one's are.

        Of `present_from` it is the lowest: the models agree on it, but that one may have none for a fluid (0). Fluid
        counts only where it can be if it does for all.
        """

        def of(name):
            values = [getattr(one, name) for one in several]
            if name == "only_possible":
                return all(values)
            middle = np.min if name == "present_from" else np.mean
            return None if None in values else middle(values, axis=0).tolist()

        middle = {field.name: of(field.name) for field in fields(cls)}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in middle.items()})

    def as_details(self):
        """For ``best.json``: all that `from_details` takes besides the threshold."""
        values = asdict(self)
        del values["threshold"]
        return values

    def calibrated(self, probabilities):
        """`probabilities`, float (..., classes), with the temperature applied; another `Ensemble` channel is kept."""
        if self.temperature == 1.0:
            return probabilities
        classes = len(FLUIDS) + 1
        powers = np.power(probabilities[..., :classes], np.float32(1 / self.temperature))
        powers /= powers.sum(axis=-1, keepdims=True)
        return np.concatenate([powers, probabilities[..., classes:]], axis=-1)

    def presence_probability(self, presence):
        """The probability that a B-scan holds each fluid, float (3,), by its `presence_scores`, float (3,).

        It is the logistic function of offset + slope x logit of the score; without offsets and slopes, the score.
        """
        if self.presence_offsets is None:
            return np.asarray(presence, float)
        return self._probability_of_logits(logits_of(presence))

    def expected_dice(self, fluid, said):
        """The Dice to expect of the labels of a `fluid` (0: IRF, 1: SRF, 2: PED), 0 to 1, where a false one counts 0.

        `said` is what the probabilities say: the probability of presence times the expected Dice of labels that are
        rightly there. The result is the logistic function of offset + slope x logit of it; without offsets and slopes,
        itself.
        """
        if self.dice_offsets is None:
            return float(said)
        return float(special.expit(self.dice_offsets[fluid] + self.dice_slopes[fluid] * logits_of(said)))

    def _probability_of_logits(self, logits):
        offsets, slopes = self.presence_offsets or 3 * (0.0,), self.presence_slopes or 3 * (1.0,)
        return special.expit(np.multiply(slopes, logits) + offsets)

    def labels(self, probabilities, presence, pixel_mm2):
        """Labels of a B-scan, uint8 (rows, columns): 0 background, 1 IRF, 2 SRF, 3 PED.

        `probabilities` is float (rows, columns, 4), `presence` the B-scan's `presence_scores`, `pixel_mm2` a pixel's
        area. Where several fluids reach their thresholds, the one that exceeds its own by the largest factor counts.
        """
        if self.fluid_thresholds is None:
            labels = labels_from_probabilities(probabilities, self.threshold)
        else:
            factors = probabilities[..., 1:] / np.asarray(self.fluid_thresholds, probabilities.dtype)
            labels = (factors.argmax(axis=-1) + 1).astype(np.uint8)
            labels[factors.max(axis=-1) < 1] = 0
        if self.present_from is not None:
            absent = self.presence_probability(presence) < self.present_from
            labels[np.r_[False, absent][labels]] = 0
        if self.only_possible:
            remove_ped_above_srf(labels)
        if self.smallest_lesion_mm2:
            remove_small_lesions(labels, self.smallest_lesion_mm2 / pixel_mm2)
        return labels

    def in_words(self):
        """For reports: what differs from the paper's threshold is named."""
        if self == Decisions(self.threshold):
            return f"{self.threshold:g}"
        parts = [f"{self.threshold:g}"] if self.fluid_thresholds is None else []
        for form, values in (("{} {:.2f}", self.fluid_thresholds), ("{} present from {:.0%}", self.present_from)):
            if values is not None:
                parts += [form.format(fluid, value) for fluid, value in zip(FLUIDS, values, strict=True)]
        parts += [f"lesions from {self.smallest_lesion_mm2:g} mm2"] if self.smallest_lesion_mm2 else []
        parts += ["only where fluid can be"] if self.only_possible else []
        parts += [f"temperature {self.temperature:.2f}"] if self.temperature != 1.0 else []
        return ", ".join(parts)


def logits_of(probabilities):
    """Logits of probabilities, float of any shape; of 0.001 below it, and of 0.999 above it."""
    return special.logit(np.clip(probabilities, 0.001, 0.999))


def decisions_of_run(models, threshold, given):
    """The `Decisions` for the average of `models`, contents of ``best.json``.

    Those chosen in training, if there are any. Where `given` says that the user now asks for this threshold, it
    replaces all that takes labels away; what makes the probabilities stays.
    """
    asked = Decisions(threshold)
    if not any("decisions" in details for details in models):
        return asked
    chosen = Decisions.mean([Decisions.from_details(details) for details in models])
    if not given:
        return chosen
    of_probabilities = ("temperature", "presence_offsets", "presence_slopes", "dice_offsets", "dice_slopes")
    return replace(asked, **{name: getattr(chosen, name) for name in of_probabilities})


def of_taught_fluids(probabilities, taught):
    """`probabilities`, float (..., channels), in which fluids that are not among `taught` (names) count as background.

    Nobody has outlined those for the network, so that what it calls them means nothing. Channels beyond the classes are
    kept. Returns the array itself where every fluid was taught.
    """
    untaught = [label for fluid, label in FLUIDS.items() if fluid not in taught]
    if not untaught:
        return probabilities
    probabilities = np.array(probabilities)
    probabilities[..., 0] += probabilities[..., untaught].sum(axis=-1)
    probabilities[..., untaught] = 0
    return probabilities


def labels_from_probabilities(probabilities, threshold):
    """Likeliest class of each pixel, background where even that is less probable than `threshold`.

    `probabilities` is float (rows, columns, classes); returns uint8 (rows, columns).
    """
    labels = probabilities.argmax(axis=-1).astype(np.uint8)
    labels[probabilities.max(axis=-1) < threshold] = 0
    return labels


def remove_small_lesions(labels, smallest):
    """Set connected bodies of one fluid with fewer than `smallest` pixels to 0, in `labels` (uint8; rows, columns)."""
    for label in FLUIDS.values():
        _, bodies, statistics, _ = cv2.connectedComponentsWithStats((labels == label).view(np.uint8), connectivity=8)
        small = statistics[:, cv2.CC_STAT_AREA] < smallest
        small[0] = False  # what is not this fluid
        labels[small[bodies]] = 0
