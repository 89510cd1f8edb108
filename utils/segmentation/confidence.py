"""How far a segmentation can be trusted, by the network's own calibrated probabilities."""

import numpy as np

from utils.labels import FLUIDS

WORDS = ((0.8, "sure"), (0.5, "likely"), (0.0, "doubtful"))  # from which confidence on
# The same of a fluid: of its absence, or of what is less sure, its presence or its outline.
_OF_FLUID = {
    "absence": {"sure": "absent, sure", "likely": "absent, likely", "doubtful": "absence doubtful"},
    "presence": {"sure": "present, sure", "likely": "present, likely", "doubtful": "presence doubtful"},
    "outline": {"sure": "present, sure", "likely": "outline likely", "doubtful": "outline doubtful"},
}


class Certainty:
    """Collects how sure the network is of the pixels of a scan's B-scans."""

    def __init__(self, slices):
        self.pixels = np.zeros(len(FLUIDS))  # that are labelled
        self.expected = np.zeros(len(FLUIDS))  # sum of the fluid's probability over all pixels
        self.right = np.zeros(len(FLUIDS))  # sum of it over the labelled ones
        self._wrong = np.zeros(slices)  # pixels of each B-scan that are expected to have a wrong label

    def add(self, index, labels, probabilities):
        """Add the B-scan `index`: labels, uint8 (rows, columns), and probabilities, float (rows, columns, 4 or
        more)."""
        for fluid, label in enumerate(FLUIDS.values()):
            of_fluid, labelled = probabilities[..., label], labels == label
            pixels, expected = np.count_nonzero(labelled), float(of_fluid.sum(dtype=float))
            right = float(of_fluid.sum(where=labelled, dtype=float))
            self.pixels[fluid] += pixels
            self.expected[fluid] += expected
            self.right[fluid] += right
            self._wrong[index] += (pixels - right) + (expected - right)

    def expected_dice(self, fluid):
        """The Dice that the probabilities let expect of the labels of a fluid, if it is there, 0 to 1; None without
        labels."""
        if not self.pixels[fluid]:
            return None
        return float(2 * self.right[fluid] / (self.pixels[fluid] + self.expected[fluid]))

    def most_doubtful_b_scan(self):
        """The index of the B-scan that is expected to have most wrong pixels."""
        return int(self._wrong.argmax())


def fluid_confidence(certainty, fluid, highest_presence, decisions):
    """How sure the network is of what it says of a `fluid` (0: IRF, 1: SRF, 2: PED), as a dictionary.

    | key | value |
    |---|---|
    | ``highest_presence_probability`` | `highest_presence`: of the scan's B-scans, that one holds the fluid |
    | ``expected_dice`` | of the labels, by `Decisions.expected_dice` of `decisions`; None without labels |
    | ``confidence`` | the expected Dice; where nothing is labelled, that this B-scan lacks the fluid |
    | ``in_words`` | that in words: how sure, of what |

    A scan of several B-scans holds the fluid at least as probably as any of them. How much more so depends on how alike
    they are, and the B-scans that calibrate the probability, each by itself, cannot say that.
    """
    dice = certainty.expected_dice(fluid)
    of_what = "absence" if dice is None else "outline" if dice <= highest_presence else "presence"
    if dice is not None:
        dice = decisions.expected_dice(fluid, highest_presence * dice)
    confidence = 1 - highest_presence if dice is None else dice
    return {
        "highest_presence_probability": highest_presence,
        "expected_dice": dice,
        "confidence": confidence,
        "in_words": _OF_FLUID[of_what][in_words(confidence)],
    }


def uncalibrated_fluids(decisions):
    """Names of the fluids of which the network's own probability of presence was kept where that of others was
    calibrated: no validation B-scan held them. How sure it is of these says little."""
    offsets, slopes = decisions.presence_offsets, decisions.presence_slopes
    if offsets is None or slopes is None:
        return []
    return [fluid for fluid, line in zip(FLUIDS, zip(offsets, slopes, strict=True), strict=True) if line == (0, 1)]


def scan_confidence(fluids, warnings, b_scan):
    """How sure the network is of a scan: as sure as of the fluid that it is least sure of. Their rows are `fluids`.

    Fluids that it was not taught do not count, nor those whose confidence is not ``calibrated``, if another's is. Where
    `warnings` say that the scan is unlike those of training, it is doubtful whatever the number says. Returns a
    dictionary: ``confidence`` and ``least_sure``, the fluid that has it; ``in_words``, one of `WORDS`; and ``look_at``,
    the number of the B-scan to look at first, counted from 1; `b_scan` is its index, counted from 0.
    """
    taught = [row for row in fluids if row["taught"]]
    least = min([row for row in taught if row["calibrated"]] or taught, key=lambda row: row["confidence"])
    return {
        "confidence": least["confidence"],
        "least_sure": least["fluid"],
        "in_words": "doubtful" if warnings else in_words(least["confidence"]),
        "look_at": b_scan + 1,
    }


def in_words(confidence):
    """`WORDS` for a confidence, 0 to 1."""
    return next(word for least, word in WORDS if confidence >= least)
