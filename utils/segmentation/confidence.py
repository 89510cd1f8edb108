"""How far a segmentation can be trusted, by the network's own calibrated probabilities."""

import numpy as np

from utils.labels import FLUIDS

WORDS = ((0.8, "sure"), (0.5, "likely"), (0.0, "doubtful"))  # from which confidence on


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
    | ``in_words`` | that as one of `WORDS` |

    A scan of several B-scans holds the fluid at least as probably as any of them. How much more so depends on how alike
    they are, and the B-scans that calibrate the probability, each by itself, cannot say that.
    """
    dice = certainty.expected_dice(fluid)
    if dice is not None:
        dice = decisions.expected_dice(fluid, highest_presence * dice)
    confidence = 1 - highest_presence if dice is None else dice
    return {
        "highest_presence_probability": highest_presence,
        "expected_dice": dice,
        "confidence": confidence,
        "in_words": in_words(confidence),
    }


def scan_confidence(fluids, warnings, b_scan):
    """How sure the network is of a scan: of the fluid that it is least sure of, of those that it was taught. Their rows
    are `fluids`.

    That is halved where `warnings` say that the scan is unlike those of training, whose probabilities were calibrated.
    Returns a dictionary: ``confidence``, ``in_words`` and ``look_at``, the number of the B-scan to look at first,
    counted from 1; `b_scan` is its index, counted from 0.
    """
    confidence = min(row["confidence"] for row in fluids if row["taught"]) * (0.5 if warnings else 1)
    return {"confidence": confidence, "in_words": in_words(confidence), "look_at": b_scan + 1}


def in_words(confidence):
    """`WORDS` for a confidence, 0 to 1."""
    return next(word for least, word in WORDS if confidence >= least)
