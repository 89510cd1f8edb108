"""What is decided after the network: labels by hand, and choices on B-scans made for one answer."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers import batch_settings, write_prepared_case
from stand_in import export_brightness_model

from utils.networks.exported_model import read_best
from utils.preparation.prepared import SliceRow
from utils.segmentation.decisions import Decisions, decisions_of_run
from utils.segmentation.tiling import presence_scores
from utils.training.choosing import Predicted, add_decisions, choose_decisions

PIXEL_MM2 = 0.0001
NOTHING = (0, 0, 0)


def pixels(*rows):
    """Probabilities (1, n, 4) of pixels, from those of IRF, SRF and PED."""
    fluids = np.array(rows, np.float32)
    return np.concatenate([1 - fluids.sum(axis=1, keepdims=True), fluids], axis=1)[np.newaxis]


# ---- Labels --------------------------------------------------------------------------------------------------------
def test_the_fluid_that_exceeds_its_own_threshold_by_the_largest_factor_counts():
    decisions = Decisions(0.5, (0.4, 0.1, 0.2))
    found = pixels((0.39, 0.09, 0.19), (0.4, 0, 0), (0.5, 0.2, 0.1), (0.3, 0.05, 0.3), (0.45, 0.1, 0.4))
    assert decisions.labels(found, NOTHING, PIXEL_MM2).tolist() == [[0, 1, 2, 3, 3]]
    assert Decisions(0.5).labels(found, NOTHING, PIXEL_MM2).tolist() == [[0, 0, 1, 0, 0]]
    assert Decisions(0.5, (0.5, 0.5, 0.5)).labels(pixels((0.5, 0, 0)), NOTHING, PIXEL_MM2).tolist() == [[1]]


def test_fluids_of_too_little_presence_are_left_out():
    decisions = Decisions(0.5, present_from=(0.9, 0.0, 0.9))
    found = pixels((0.8, 0, 0), (0, 0.8, 0), (0, 0, 0.8))
    assert decisions.labels(found, (0.9, 0, 0.8), PIXEL_MM2).tolist() == [[1, 2, 0]]


def test_small_lesions_are_left_out_by_their_area():
    found = np.zeros((6, 8, 4), np.float32)
    found[..., 0] = 1
    found[0, 0], found[1, 1], found[2, 2] = 3 * [[0, 1, 0, 0]]  # three pixels that touch at their corners
    found[2, 3] = [0, 0, 1, 0]  # another fluid beside them
    found[4:, 4:8] = [0, 0, 1, 0]
    for area_mm2, kept in ((3.0, {1: 3, 2: 8}), (3.1, {2: 8}), (8.5, {})):
        labels = Decisions(0.5, smallest_lesion_mm2=area_mm2 * PIXEL_MM2).labels(found, NOTHING, PIXEL_MM2)
        assert {label: (labels == label).sum() for label in (1, 2) if (labels == label).any()} == kept


def test_temperature_by_hand():
    found = pixels((0.2, 0.3, 0.1))
    squared = np.array([0.4, 0.2, 0.3, 0.1]) ** 2
    np.testing.assert_allclose(Decisions(0.5, temperature=0.5).calibrated(found)[0, 0], squared / squared.sum(), 1e-6)
    assert Decisions(0.5).calibrated(found) is found
    with_disagreement = np.concatenate([found, np.full((1, 1, 1), 0.7, np.float32)], axis=-1)
    assert Decisions(0.5, temperature=2.0).calibrated(with_disagreement)[0, 0, 4] == np.float32(0.7)


# ---- Where they come from -------------------------------------------------------------------------------------------
def test_decisions_travel_in_best_json_and_give_way_to_what_is_asked_for():
    decisions = Decisions(0.5, (0.3, 0.4, 0.5), (0.1, 0.2, 0.3), 0.001, 1.5)
    details = json.loads(json.dumps({"threshold": 0.5, "decisions": decisions.as_details()}))
    assert Decisions.from_details(details) == decisions
    assert Decisions.from_details({"threshold": 0.4}) == Decisions(0.4)
    given = {"threshold": 0.4, "fluid_thresholds": [0.1, 0.2, 0.3]}  # in config.py, when the model was trained
    assert Decisions.from_details(given) == Decisions(0.4, (0.1, 0.2, 0.3))
    assert Decisions.from_details({**details, **given}).fluid_thresholds == (0.3, 0.4, 0.5)
    assert decisions_of_run([details], 0.7, given=False) == decisions
    assert decisions_of_run([{"threshold": 0.4}], 0.7, given=False) == Decisions(0.7)
    assert decisions_of_run([{"threshold": 0.4}], 0.7, given=True) == Decisions(0.7)


def test_thresholds_that_are_asked_for_lift_what_takes_labels_away_and_keep_the_probabilities():
    line = {"presence_offsets": (-1.0, 0.0, 0.5), "presence_slopes": (0.8, 1.0, 1.2)}
    one = Decisions(0.5, (0.3, 0.4, 0.5), (0.5, 0.0, 0.5), 0.001, 1.5, **line)
    other = replace(one, temperature=2.5, presence_offsets=(0.0, 0.0, 0.5))
    models = [{"threshold": 0.5, "decisions": decisions.as_details()} for decisions in (one, other)]
    asked = decisions_of_run(models[:1], 0.7, given=True)
    assert asked == Decisions(0.7, temperature=1.5, **line)
    asked = decisions_of_run(models, 0.7, given=True)
    assert asked == Decisions(0.7, None, None, 0.0, 2.0, (-0.5, 0.0, 0.5), line["presence_slopes"])


def test_files_of_before_hold_the_presence_score_instead_of_its_probability():
    line = {"presence_offsets": [-2.0, 1.0, 0.0], "presence_slopes": [0.5, 2.0, 1.0]}
    scores = [1 / (1 + np.exp(-4.0)), 1 / (1 + np.exp(0.5)), 0.0]  # logits 4, -0.5 and none
    details = {"threshold": 0.5, "decisions": {"presence_thresholds": scores, **line}}
    assert Decisions.from_details(details).present_from == pytest.approx((0.5, 0.5, 0.0))
    details["decisions"] = {"presence_thresholds": [0.9, 0.2, 0.0]}  # from still before: by the score itself
    assert Decisions.from_details(details).present_from == pytest.approx((0.9, 0.2, 0.0))


def test_fluid_counts_only_where_it_can_be_if_all_models_say_so():
    only, anywhere = Decisions(0.5, only_possible=True), Decisions(0.5)
    assert Decisions.mean([only, only]).only_possible is True
    assert Decisions.mean([only, anywhere]).only_possible is False
    details = {"threshold": 0.5, "decisions": only.as_details()}
    assert Decisions.from_details(details) == only
    assert not Decisions.from_details({"threshold": 0.5, "decisions": {}}).only_possible
    assert not decisions_of_run([details], 0.5, given=True).only_possible
    assert only.in_words() == "0.5, only where fluid can be"
    ped_over_srf = np.concatenate([pixels((0, 0, 0.9)), pixels((0, 0.9, 0)), pixels((0, 0, 0.9))])
    assert only.labels(ped_over_srf, NOTHING, PIXEL_MM2)[:, 0].tolist() == [0, 2, 3]
    assert anywhere.labels(ped_over_srf, NOTHING, PIXEL_MM2)[:, 0].tolist() == [3, 2, 3]


def test_they_are_told_in_words():
    assert Decisions(0.5).in_words() == "0.5"
    assert Decisions(0.5, (0.3, 0.4, 0.55), None, 0.001, 1.5).in_words() == (
        "IRF 0.30, SRF 0.40, PED 0.55, lesions from 0.001 mm2, temperature 1.50"
    )
    assert Decisions(0.5, None, (0.5, 0, 0)).in_words() == (
        "0.5, IRF present from 50%, SRF present from 0%, PED present from 0%"
    )


def test_the_mean_of_several():
    several = [Decisions(0.5, (0.2, 0.4, 0.6), None, 0.0, 1.0), Decisions(0.5, (0.4, 0.6, 0.6), (1, 1, 1), 0.002, 2.0)]
    mean = Decisions.mean(several)
    assert mean.fluid_thresholds == pytest.approx((0.3, 0.5, 0.6))
    assert replace(mean, fluid_thresholds=None) == Decisions(0.5, None, None, 0.001, 1.5)


def test_a_fluid_counts_from_the_same_probability_of_presence_in_the_mean():
    """By the mean of the lines, offset -0.75 and slope 1, a score with logit 0.75 is as likely as not."""
    several = [
        Decisions(0.5, present_from=(0.5, 0.5, 0.0), presence_offsets=3 * (offset,), presence_slopes=3 * (slope,))
        for offset, slope in ((-2.0, 0.5), (0.5, 1.5))
    ]
    several[1] = replace(several[1], present_from=(0.5, 0.0, 0.0))  # its validation B-scans hold no SRF
    mean, found = Decisions.mean(several), pixels((0.8, 0, 0), (0, 0.8, 0), (0, 0, 0.8))
    for logit, labels in ((-3.0, [0, 2, 3]), (0.74, [0, 2, 3]), (0.76, [1, 2, 3])):
        score = 1 / (1 + np.exp(-logit))
        assert mean.presence_probability(3 * [score])[0] == pytest.approx(1 / (1 + np.exp(0.75 - logit)))
        assert mean.labels(found, 3 * [score], PIXEL_MM2).tolist() == [labels]


def test_a_network_that_is_always_certain_does_not_pass_the_gate_by_its_certainty():
    certain = Decisions(0.5, present_from=3 * (0.5,), presence_offsets=(-1, 1, 0), presence_slopes=3 * (0.1,))
    assert certain.presence_probability(3 * [1.0])[0] < 0.5
    assert certain.labels(pixels((1.0, 0, 0), (0, 1.0, 0)), 3 * [1.0], PIXEL_MM2).tolist() == [[0, 2]]


# ---- Chosen --------------------------------------------------------------------------------------------------------
def b_scan(bodies, shape=(60, 80)):
    """A B-scan with bodies of (fluid, probability, is in the reference, size in pixels along rows and columns).

    Beside them the network has not looked.
    """
    probabilities = np.zeros((*shape, 4), np.float32)
    probabilities[..., 0] = 1.0
    reference, left = np.zeros(shape, np.uint8), 2
    for fluid, probability, true, size in bodies:
        window = slice(10, 10 + size), slice(left, left + size)
        probabilities[window] = 0
        probabilities[(*window, fluid)], probabilities[(*window, 0)] = probability, 1 - probability
        reference[window] = fluid * true
        left += size + 4
    return Predicted(probabilities, reference, PIXEL_MM2, seen=probabilities[..., 0] < 1)


@pytest.mark.parametrize(("outside", "counts_there"), [(1, False), (2, True)])
def test_fluid_counts_only_where_it_can_be_if_nearly_all_outlines_lie_there(outside, counts_there):
    """Of 400 outlined pixels 1 or 2 may not be there: 0.25 or 0.5 %, and 3 would be 0.75 %."""
    one = b_scan([(1, 0.9, True, 20), (1, 0.9, False, 12)])
    possible = np.ones((*one.reference.shape, 3), bool)
    possible[:, 24:] = False  # from between both bodies on
    places = np.argwhere(one.reference == 1)
    for row, column in places[: 1 + outside]:
        possible[row, column, 0] = False
    chosen = choose_decisions([replace(one, possible=possible)] * 2, Decisions(0.5))
    assert chosen.only_possible is not counts_there
    assert not choose_decisions([one] * 2, Decisions(0.5)).only_possible


def test_each_fluid_gets_the_threshold_that_parts_true_from_false():
    scans = [b_scan([(1, 0.32, True, 14), (1, 0.22, False, 14), (2, 0.8, True, 14), (2, 0.62, False, 14)])] * 2
    chosen = choose_decisions(scans, Decisions(0.5))
    start = replace(chosen, fluid_thresholds=(0.5, 0.5, 0.5), present_from=None, smallest_lesion_mm2=0.0)
    labels = [
        decisions.labels(decisions.calibrated(scans[0].probabilities), NOTHING, PIXEL_MM2)
        for decisions in (start, replace(start, fluid_thresholds=chosen.fluid_thresholds))
    ]
    assert not np.array_equal(labels[0], scans[0].reference)
    np.testing.assert_array_equal(labels[1], scans[0].reference)
    assert chosen.fluid_thresholds[2] == 0.5  # no B-scan holds PED


def test_a_threshold_stays_where_none_is_better():
    chosen = choose_decisions([b_scan([(1, 0.9, True, 20)])], Decisions(0.5, (0.42, 0.5, 0.5)))
    assert chosen.fluid_thresholds == (0.42, 0.5, 0.5)


def test_a_healthy_eye_comes_back_empty():
    """Its false lesions are as probable as much of the fluid, but nowhere is any surer."""
    ill = b_scan([(1, 0.6, True, 20), (1, 0.95, True, 12)])
    healthy = b_scan([(1, 0.7, False, 8)])
    chosen = choose_decisions([ill] * 12 + [healthy] * 12, Decisions(0.5))
    assert chosen.present_from == (0.5, 0.0, 0.0)
    for scan, score in ((ill, 0.95), (healthy, 0.7)):
        probabilities = chosen.calibrated(scan.probabilities)
        presence = (chosen.calibrated(np.array([1 - score, score, 0, 0], np.float32))[1], 0, 0)
        np.testing.assert_array_equal(chosen.labels(probabilities, presence, PIXEL_MM2), scan.reference)


def test_a_gate_never_costs_the_fluid_that_few_b_scans_hold():
    """One of thirteen holds it, and all look alike: that one does is unlikely, and yet most of its pixels are right."""
    scans = [b_scan([(1, 0.8, True, 20)]), *[b_scan([(1, 0.8, False, 5)])] * 12]
    chosen = choose_decisions(scans, Decisions(0.5))
    probabilities = chosen.calibrated(scans[0].probabilities)
    presence = presence_scores(probabilities)
    assert chosen.present_from[0] <= chosen.presence_probability(presence)[0] < 0.5
    np.testing.assert_array_equal(chosen.labels(probabilities, presence, PIXEL_MM2), scans[0].reference)


def test_the_presence_line_is_where_likelihood_and_priors_balance():
    """Normal priors: of the offset around 0 with a spread of 1, of the slope around 1 with a spread of 0.3."""
    bodies = [(0.55, True), (0.8, True), (0.9, True), (0.6, False), (0.3, False), (0.85, False)]
    scans = [b_scan([(1, probability, true, 12)]) for probability, true in bodies]
    chosen = choose_decisions(scans, Decisions(0.5))
    presences = np.array([presence_scores(chosen.calibrated(scan.probabilities)) for scan in scans])
    surplus = np.array([chosen.presence_probability(presence)[0] for presence in presences])
    surplus -= [true for _, true in bodies]
    logits = np.log(presences[:, 0] / (1 - presences[:, 0]))
    assert surplus.sum() == pytest.approx(-chosen.presence_offsets[0] / 1.0**2, abs=1e-3)
    assert surplus @ logits == pytest.approx((1 - chosen.presence_slopes[0]) / 0.3**2, abs=1e-3)


def test_the_expected_dice_counts_what_is_called_fluid_and_is_none():
    """Three of five bodies that look alike are outlined: the line says about 0.6 of each.

    The regression's equations hold: the surplus is what the priors take.
    """
    scans = [b_scan([(1, probability, true, 12)]) for probability in (0.75, 0.9) for true in (1, 1, 1, 0, 0)]
    chosen = choose_decisions(scans, Decisions(0.5))
    said = []
    for scan in scans:
        probabilities = chosen.calibrated(scan.probabilities)
        fluid = probabilities[..., 1].max()
        presence = chosen.presence_probability(presence_scores(probabilities))[0]
        said.append(presence * fluid / (0.5 + 0.5 * fluid))  # 2 p n / (n + p n) of n labelled pixels
    logits = np.log(said) - np.log1p(-np.array(said))
    surplus = [chosen.expected_dice(0, value) for value in said] - np.tile([1.0, 1, 1, 0, 0], 2)
    assert surplus.sum() == pytest.approx(-chosen.dice_offsets[0], abs=1e-3)
    assert surplus @ logits == pytest.approx((1 - chosen.dice_slopes[0]) / 0.3**2, abs=1e-3)
    assert (chosen.dice_offsets[1:], chosen.dice_slopes[1:]) == ((0, 0), (1, 1))


@pytest.mark.parametrize(("true_ones", "smallest_mm2"), [(7, 0.002), (8, 0.0), (10, 0.0)])
def test_a_smallest_lesion_never_loses_dice(true_ones, smallest_mm2):
    """Without bodies of 4 x 4 pixels, three B-scans lose false ones, and one loses true ones.

    The mean Dice of the B-scans rises in every case; that of all together by 0.007, -0.005 and -0.03.
    """
    false = b_scan([(1, 0.9, True, 5), *[(1, 0.9, False, 4)] * 3])
    true = b_scan([(1, 0.9, True, 24), *[(1, 0.9, True, 4)] * true_ones], shape=(60, 120))
    assert choose_decisions([false] * 3 + [true], Decisions(0.5)).smallest_lesion_mm2 == smallest_mm2


def test_a_b_scan_of_which_nothing_is_said_is_right_where_nothing_is_outlined():
    scans = [b_scan([(1, 0.9, True, 20), (1, 0.9, False, 4)]), b_scan([])]
    assert choose_decisions(scans, Decisions(0.5)).smallest_lesion_mm2 == 0.002


def test_small_false_lesions_set_the_smallest_lesion():
    chosen = choose_decisions([b_scan([(1, 0.9, True, 20), (1, 0.9, False, 4), (1, 0.9, False, 4)])], Decisions(0.5))
    assert chosen.smallest_lesion_mm2 == 0.002  # 16 pixels of the larger one are 0.0016 mm2


def test_the_temperature_is_that_of_the_frequencies():
    """Seven of ten pixels that are called fluid with 0.9 are: the temperature makes that 0.7."""
    reference = np.zeros((30, 30), np.uint8)
    reference.ravel()[np.random.default_rng(0).permutation(900)[:630]] = 1
    probabilities = np.zeros((30, 30, 4), np.float32)
    probabilities[..., 0], probabilities[..., 1] = 0.1, 0.9
    chosen = choose_decisions([Predicted(probabilities, reference, PIXEL_MM2)], Decisions(0.5))
    sampled = reference[::3, ::3].mean()
    assert chosen.calibrated(probabilities)[0, 0, 1] == pytest.approx(sampled, abs=0.04)


def test_probabilities_that_are_frequencies_stay_whatever_lies_outside_of_the_region_of_interest():
    """On the left, nine of ten pixels that are called fluid with 0.9 are. The right was not predicted."""
    reference = np.zeros((10, 20), np.uint8)
    reference[:, 1:10], reference[:2, 10:] = 1, 1
    probabilities = np.zeros((10, 20, 4), np.float32)
    probabilities[:, :10, 1], probabilities[:, :10, 0], probabilities[:, 10:, 0] = 0.9, 0.1, 1
    enlarged = [np.repeat(np.repeat(pixels, 3, axis=0), 3, axis=1) for pixels in (probabilities, reference)]
    on_the_left = np.arange(60) < 30
    one = Predicted(*enlarged, PIXEL_MM2, seen=np.tile(on_the_left, (30, 1)))
    assert choose_decisions([one], Decisions(0.5)).temperature == 1.0
    certain = choose_decisions([replace(one, seen=True)], Decisions(0.5))
    assert certain.temperature > 2  # a tenth is missed for certain, not outside of the region


def test_b_scans_without_fluid_choose_no_thresholds():
    chosen = choose_decisions([b_scan([(1, 0.9, False, 5)])], Decisions(0.5))
    assert replace(chosen, temperature=1.0) == Decisions(0.5)


def test_thresholds_are_chosen_although_the_run_asks_for_none():
    """THRESHOLD = 0 takes the likeliest class."""
    scans = [b_scan([(1, 0.8, True, 14), (1, 0.3, False, 14)])] * 2
    assert choose_decisions(scans, Decisions(0.0)).fluid_thresholds == (0.5, 0.5, 0.5)


def test_what_nobody_outlined_or_judged_chooses_nothing():
    """False SRF in a B-scan of which IRF alone was outlined, and false IRF where nobody judged."""
    scans = [b_scan([(1, 0.32, True, 14), (1, 0.22, False, 14), (2, 0.8, True, 14), (2, 0.62, False, 14)])] * 2
    unjudged = b_scan([(1, 0.9, True, 14), (1, 0.99, False, 14)])
    reference = unjudged.reference.copy()
    reference[:, 20:] = 255  # the false one
    unjudged = replace(unjudged, reference=reference)
    irf_alone = replace(b_scan([(1, 0.9, True, 14), (2, 0.95, False, 20)]), outlined=("IRF",))
    judged = [b_scan([(1, 0.9, True, 14)])] * 2
    chosen, expected = (choose_decisions(scans + others, Decisions(0.5)) for others in ([unjudged, irf_alone], judged))
    assert chosen.fluid_thresholds == expected.fluid_thresholds
    assert chosen.smallest_lesion_mm2 == expected.smallest_lesion_mm2


def test_the_temperature_takes_background_and_what_was_not_outlined_for_one():
    """Of 0.9 for IRF seven of ten are right; how background and SRF share the rest hardly makes a difference."""
    reference = np.zeros((30, 30), np.uint8)
    reference.ravel()[np.random.default_rng(0).permutation(900)[:630]] = 1
    probabilities = np.zeros((30, 30, 4), np.float32)
    probabilities[..., 1], probabilities[..., 0], probabilities[..., 2] = 0.9, 1e-7, 0.1
    known = Predicted(probabilities[..., [2, 1, 0, 3]], reference, PIXEL_MM2)
    unknown = Predicted(probabilities, reference, PIXEL_MM2, outlined=("IRF", "PED"))
    temperatures = [choose_decisions([one], Decisions(0.5)).temperature for one in (known, unknown)]
    assert temperatures[1] == pytest.approx(temperatures[0], rel=0.11)  # the next on the grid, for rounding


def test_a_fluid_that_no_b_scan_holds_keeps_the_starting_models_decisions():
    earlier = Decisions(0.5, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5), 0.002, 1.5, (1.0, 2.0, 3.0), (0.7, 0.8, 0.9))
    scans = [replace(b_scan([(1, 0.9, True, 20), (3, 0.9, False, 20)]), outlined=("IRF",))]
    chosen = choose_decisions(scans, Decisions(0.5), earlier)
    assert chosen.fluid_thresholds == (0.5, 0.2, 0.3)
    assert (chosen.presence_offsets[1:], chosen.presence_slopes[1:]) == ((2.0, 3.0), (0.8, 0.9))
    assert chosen.present_from == (0.5, 0.5, 0.5)
    assert choose_decisions(scans, Decisions(0.5)).present_from == (0.5, 0.0, 0.0)
    assert choose_decisions([b_scan([(1, 0.9, False, 20)])], Decisions(0.5), earlier) == earlier


def test_a_models_decisions_are_chosen_once(tmp_path, capsys):
    rng = np.random.default_rng(0)
    volume, masks = rng.integers(40, 90, (2, 120, 136)).astype(np.uint8), np.zeros((2, 120, 136), np.uint8)
    volume[:, 30:100] = rng.integers(140, 240, (2, 70, 136))
    masks[:, 50:70, 40:80] = 1
    volume[masks > 0] = 250
    write_prepared_case(tmp_path, "Topcon", "a", volume, masks)
    model = export_brightness_model(tmp_path / "model")
    rows = [SliceRow("a", "Topcon", "r", z, 1, 0, 0) for z in (0, 1)]
    arguments = model, rows, batch_settings(tmp_path), "tennakoon"
    add_decisions(*arguments, Decisions(0.5))
    assert capsys.readouterr().out.startswith("decisions on 2 validation B-scans: ")
    details = read_best(model)
    assert Decisions.from_details(details).fluid_thresholds is not None
    add_decisions(*arguments, Decisions(0.1))
    assert (capsys.readouterr().out, read_best(model)) == ("", details)
