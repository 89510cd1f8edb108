"""From class probabilities to labels: what is decided after the network, on validation cases alone."""

from dataclasses import asdict, dataclass, fields

import cv2
import numpy as np
from scipy import special

from utils.labels import FLUIDS


@dataclass(frozen=True)
class Decisions:
    """How a B-scan's probabilities become labels. Where only `threshold` is given, as in the paper.

    Triples are of IRF, SRF and PED.
    """

    threshold: float  # a pixel whose likeliest class is less probable is background
    fluid_thresholds: tuple | None = None  # instead: each fluid's probability from which on it counts
    presence_thresholds: tuple | None = None  # a B-scan with a lower presence score holds none of the fluid
    smallest_lesion_mm2: float = 0.0  # of a connected body of a fluid in a B-scan
    temperature: float = 1.0  # divides the logarithms of the probabilities, before all else
    presence_offsets: tuple | None = None  # with the slopes, what makes a probability of a presence score
    presence_slopes: tuple | None = None

    @classmethod
    def from_details(cls, details):
        """Those in the content of ``best.json``."""
        values = {"fluid_thresholds": details.get("fluid_thresholds"), **details.get("decisions", {})}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(threshold=details["threshold"], **values)

    @classmethod
    def mean(cls, several):
        """Those in the middle of `several`; triples are None where one's are."""

        def of(name):
            values = [getattr(one, name) for one in several]
            return None if None in values else np.mean(values, axis=0).tolist()

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
        """The probability that a scan holds each fluid, float (3,), by its `presence_scores`, float (3,).

        It is the logistic function of offset + slope x logit of the score; without offsets and slopes, the score.
        """
        if self.presence_offsets is None:
            return np.asarray(presence, float)
        return special.expit(self.presence_offsets + np.multiply(self.presence_slopes, presence_logits(presence)))

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
        if self.presence_thresholds is not None:
            absent = np.asarray(presence) < self.presence_thresholds
            labels[np.r_[False, absent][labels]] = 0
        if self.smallest_lesion_mm2:
            remove_small_lesions(labels, self.smallest_lesion_mm2 / pixel_mm2)
        return labels

    def in_words(self):
        """For reports: what differs from the paper's threshold is named."""
        if self == Decisions(self.threshold):
            return f"{self.threshold:g}"
        parts = [f"{self.threshold:g}"] if self.fluid_thresholds is None else []
        for name, values in (("", self.fluid_thresholds), (" present from", self.presence_thresholds)):
            if values is not None:
                parts += [f"{fluid}{name} {value:.2f}" for fluid, value in zip(FLUIDS, values, strict=True)]
        parts += [f"lesions from {self.smallest_lesion_mm2:g} mm2"] if self.smallest_lesion_mm2 else []
        parts += [f"temperature {self.temperature:.2f}"] if self.temperature != 1.0 else []
        return ", ".join(parts)


def presence_logits(presence):
    """Logits of presence scores, float of any shape; of 0.001 below it, and of 0.999 above it."""
    return special.logit(np.clip(presence, 0.001, 0.999))


def decisions_of_run(details, threshold, fluid_thresholds, given):
    """The `Decisions` for the run's own model, whose ``best.json`` holds `details`.

    Those chosen in training, if there are any, unless `given` says that the user now asks for these thresholds.
    """
    if "decisions" in details and not given:
        return Decisions.from_details(details)
    return Decisions(threshold, fluid_thresholds)


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
