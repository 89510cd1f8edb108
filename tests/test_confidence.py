"""How sure the network is of a scan: numbers by hand."""

import numpy as np
import pytest

from utils.segmentation.confidence import Certainty, fluid_confidence, in_words, scan_confidence
from utils.segmentation.decisions import Decisions, decisions_of_run
from utils.segmentation.findings import Findings
from utils.volumes.scans import Scan


def certainty_of(*b_scans):
    """Of B-scans of four pixels, each a list of (label, probability of IRF)."""
    certainty = Certainty(len(b_scans))
    for index, pixels in enumerate(b_scans):
        labels = np.array([[label for label, _ in pixels]], np.uint8)
        irf = np.array([probability for _, probability in pixels], np.float32)
        certainty.add(index, labels, np.stack([1 - irf, irf, 0 * irf, 0 * irf], axis=-1)[None])
    return certainty


def test_expected_dice_and_the_b_scan_to_look_at():
    certainty = certainty_of([(1, 0.9), (1, 0.7), (0, 0.1), (0, 0)], [(0, 0), (0, 0.4), (0, 0.4), (0, 0)])
    # 1.6 of 2 labelled pixels are right, of 2.5 expected in all.
    assert certainty.expected_dice(0) == pytest.approx(2 * 1.6 / (2 + 2.5))
    assert certainty.expected_dice(1) is None
    assert certainty.most_doubtful_b_scan() == 1  # 0.8 wrong pixels against 0.4 + 0.1
    row = fluid_confidence(certainty, 0, 0.9, Decisions(0.5))
    assert row["confidence"] == row["expected_dice"] == pytest.approx(0.9 * 3.2 / 4.5)
    assert row["in_words"] == "outline likely"
    assert fluid_confidence(certainty, 1, 0.1, Decisions(0.5))["confidence"] == pytest.approx(0.9)


def test_the_expected_dice_goes_by_the_line_of_the_fluid():
    certainty = certainty_of([(1, 0.8), (1, 0.8), (0, 0)])
    line = Decisions(0.5, dice_offsets=(-1.0, 0.0, 0.0), dice_slopes=(2.0, 1.0, 1.0))
    row = fluid_confidence(certainty, 0, 0.8, line)
    assert certainty.expected_dice(0) == pytest.approx(2 * 1.6 / (2 + 1.6))
    logit = np.log(0.8 * 3.2 / 3.6 / (1 - 0.8 * 3.2 / 3.6))
    assert row["confidence"] == row["expected_dice"] == pytest.approx(1 / (1 + np.exp(1 - 2 * logit)))


@pytest.mark.parametrize(
    ("fluid", "highest_presence", "words"),
    [
        (0, 1.0, "outline likely"),  # the outline is expected to fit by 0.71
        (0, 0.71, "present, likely"),
        (0, 0.5, "presence doubtful"),
        (1, 0.2, "absent, sure"),
        (1, 0.5, "absent, likely"),
        (1, 0.6, "absence doubtful"),
    ],
)
def test_words_say_of_what_it_is_how_sure(fluid, highest_presence, words):
    certainty = certainty_of([(1, 0.9), (1, 0.7), (0, 0.1), (0, 0)], [(0, 0), (0, 0.4), (0, 0.4), (0, 0)])
    assert fluid_confidence(certainty, fluid, highest_presence, Decisions(0.5))["in_words"] == words


def test_the_least_sure_fluid_counts_and_a_warning_makes_a_scan_doubtful():
    """The first was not taught, the second not calibrated."""
    rows = [
        {"fluid": fluid, "confidence": value, "taught": value != 0.1, "calibrated": value != 0.2}
        for fluid, value in (("IRF", 0.1), ("SRF", 0.2), ("PED", 0.6))
    ]
    of_ped = {"confidence": 0.6, "least_sure": "PED", "look_at": 4}
    assert scan_confidence(rows, [], 3) == {**of_ped, "in_words": "likely"}
    assert scan_confidence(rows, ["unlike"], 3) == {**of_ped, "in_words": "doubtful"}
    assert scan_confidence(rows[:2], [], 3)["least_sure"] == "SRF"  # where there is no other
    assert [in_words(value) for value in (1.0, 0.8, 0.79, 0.5, 0.49, 0.0)] == [
        *("sure", "sure", "likely", "likely", "doubtful", "doubtful")
    ]


def test_presence_scores_become_probabilities():
    np.testing.assert_allclose(Decisions(0.5).presence_probability([0.2, 0.5, 0.9]), [0.2, 0.5, 0.9])
    line = Decisions(0.5, presence_offsets=(0.0, -1.0, 0.0), presence_slopes=(1.0, 2.0, 0.5))
    # logit of 0.8 is ln 4; offset -1, slope 2: 1 / (1 + e / 16)
    np.testing.assert_allclose(line.presence_probability([0.8, 0.8, 0.8]), [0.8, 1 / (1 + np.e / 16), 2 / 3])


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("models", [1, 3])
def test_neither_asked_for_thresholds_nor_the_mean_of_equal_models_changes_a_confidence(given, models):
    lines = {"presence_offsets": (0.0, -1.0, 0.0), "presence_slopes": (1.0, 2.0, 0.5)}
    chosen = Decisions(0.5, (0.3, 0.4, 0.5), (0.5, 0.5, 0.0), 0.001, 0.5, **lines)
    details = {"threshold": 0.5, "decisions": chosen.as_details()}
    decisions = decisions_of_run(models * [details], 0.5, given)
    np.testing.assert_allclose(decisions.presence_probability([0.8, 0.8, 0.8]), [0.8, 1 / (1 + np.e / 16), 2 / 3])
    irf = decisions.calibrated(np.array([[0.25, 0.75, 0, 0]], np.float32))[0, 1]
    assert irf == pytest.approx(0.9)  # 9 to 1 are the squares of 3 to 1


def test_the_presence_of_a_stack_is_that_of_its_likeliest_b_scan_and_is_called_so():
    """49 B-scans of 0.31 make a scan that holds the fluid more probably than 0.31."""
    scan = Scan("stack", "", "Spectralis", np.zeros((49, 2, 2), np.uint8), (1.0, 1.0, 1.0), None, None, ())
    findings, nothing = Findings(scan, axial_spacing_mm=1.0), np.zeros((2, 2), np.uint8)
    for index in range(49):
        findings.add(index, nothing, np.eye(4, dtype=np.float32)[nothing], [0.31, 0.2, 0.1])
    irf = findings.fluids((0, 0), Decisions(0.5))[0]
    assert (irf["highest_presence_probability"], irf["confidence"]) == (0.31, pytest.approx(0.69))
    assert "presence_probability" not in irf
