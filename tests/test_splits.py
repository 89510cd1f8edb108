"""Splits: nobody on two sides, every side gets someone, an existing split wins."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from utils.errors import InputError
from utils.preparation.splits import patient_of, split_patients
from utils.settings.rules import SplitRules

RULES = SplitRules("^(.*)$", test_fraction=0.25, validation_fraction=0.2, seed=0)


def some_cases(vendor, count):
    return [(vendor, f"{vendor[0]}{number:03}") for number in range(count)]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, {"train": 1}),
        (2, {"train": 1, "test": 1}),
        (3, {"train": 1, "val": 1, "test": 1}),
        (8, {"test": 2, "val": 1, "train": 5}),
        (24, {"test": 6, "val": 4, "train": 14}),  # 24 / 4 = 6; 18 / 5 = 3.6
    ],
)
def test_numbers_of_each_part(count, expected):
    assert Counter(split_patients(some_cases("Cirrus", count), RULES).values()) == expected


def test_every_part_gets_one_however_large_the_fractions():
    rules = replace(RULES, test_fraction=0.99, validation_fraction=0.99)
    assert Counter(split_patients(some_cases("Cirrus", 5), rules).values()) == {"test": 3, "val": 1, "train": 1}


@pytest.mark.parametrize("seed", range(10))
def test_a_part_holds_the_whole_number_of_patients_that_is_nearest_to_its_share_of_a_fluid(seed):
    """Three of eight patients have IRF, of whom 0.75 belong among the two that test."""
    cases = some_cases("Cirrus", 8)
    split = split_patients(cases, replace(RULES, seed=seed), fluids={case: {"IRF"} for case in cases[:3]})
    assert [split[case] for case in cases[:3]].count("test") == 1


def test_no_patient_is_in_two_parts():
    cases = [("Spectralis", f"DME-{patient}-{visit}") for patient in range(12) for visit in range(4)]
    split = split_patients(cases, replace(RULES, pattern=r"^[A-Z]+-(\d+)"))
    parts_of = {}
    for (_, name), part in split.items():
        parts_of.setdefault(name.split("-")[1], set()).add(part)
    assert len(parts_of) == 12
    assert all(len(parts) == 1 for parts in parts_of.values())
    assert Counter(split.values()) == {"test": 12, "val": 8, "train": 28}


def test_a_patient_of_two_vendors_is_in_one_part():
    cases = [(vendor, f"P{number}") for vendor in ("Cirrus", "Topcon") for number in range(6)]
    split = split_patients(cases, RULES)
    assert all(split["Cirrus", f"P{number}"] == split["Topcon", f"P{number}"] for number in range(6))


def test_vendors_are_split_apart_from_each_other():
    cirrus, topcon = some_cases("Cirrus", 8), some_cases("Topcon", 12)
    both = split_patients(topcon + cirrus, RULES)
    assert both == split_patients(cirrus, RULES) | split_patients(topcon, RULES)
    assert Counter(both[case] for case in topcon)["test"] == 3


def test_seed_decides_and_order_of_cases_does_not():
    cases = some_cases("Cirrus", 20)
    assert split_patients(cases, RULES) == split_patients(cases[::-1], RULES)
    assert split_patients(cases, RULES) != split_patients(cases, replace(RULES, seed=1))


def test_each_patient_tests_in_exactly_one_fold():
    cases = some_cases("Cirrus", 7) + some_cases("Topcon", 2)
    folds = [split_patients(cases, replace(RULES, folds=3, fold=fold)) for fold in range(3)]
    assert all(sum(split[case] == "test" for split in folds) == 1 for case in cases)
    assert all({"train", "val"} <= set(split.values()) for split in folds)


def test_a_single_patient_trains_in_every_fold():
    for fold in range(2):
        assert split_patients([("Topcon", "T1")], replace(RULES, folds=2, fold=fold)) == {("Topcon", "T1"): "train"}


def test_patient_is_the_first_group_else_the_match():
    assert patient_of("DME-123-4", r"^[A-Z]+-(\d+)") == "123"
    assert patient_of("DME-123-4", r"\d+") == "123"
    with pytest.raises(InputError, match="case x: does not match PATIENT_PATTERN"):
        patient_of("x", r"\d+")


def test_existing_split_wins():
    cases = some_cases("Cirrus", 4)
    existing = {"test": cases[:1], "val": cases[1:2], "train": cases[2:3]}
    expected = {cases[0]: "test", cases[1]: "val", cases[2]: "train"}  # the fourth is left out
    assert split_patients(cases, RULES, existing=existing) == expected


def test_missing_parts_are_drawn_as_if_all_were():
    """What a script leaves that is killed between the three files."""
    cases = some_cases("Cirrus", 20)
    whole = split_patients(cases, RULES)
    for settled in (["test"], ["test", "val"]):
        existing = {part: [case for case in cases if whole[case] == part] for part in settled}
        assert split_patients(cases, RULES, existing=existing) == whole


def test_existing_split_with_faults_names_all_of_them():
    cases = [("Cirrus", "A-1"), ("Cirrus", "A-2")]
    existing = {"test": [cases[0]], "val": [("Cirrus", "gone")], "train": [cases[1]]}
    with pytest.raises(InputError) as raised:
        split_patients(cases, replace(RULES, pattern="^[A-Z]|gone"), existing=existing)
    missing, on_two_sides = raised.value.messages
    assert "val_data.csv: Cirrus case gone is not in the data" in missing
    assert "case A-2 is of patient A, who is in test_data.csv too" in on_two_sides


@pytest.mark.parametrize("seed", range(5))
def test_fluids_are_spread_over_the_parts(seed):
    """Cirrus' counts in RETOUCH: of 24 volumes 18 hold IRF, 12 SRF, 12 PED; 6 test, so 4.5, 3 and 3 of them."""
    cases = some_cases("Cirrus", 24)
    rng = np.random.default_rng(seed)
    holders = {name: rng.permutation(24)[:count] for name, count in (("IRF", 18), ("SRF", 12), ("PED", 12))}
    fluids = {case: [name for name in holders if index in holders[name]] for index, case in enumerate(cases)}
    split = split_patients(cases, replace(RULES, seed=seed), fluids=fluids)
    for name, expected in (("IRF", 4.5), ("SRF", 3), ("PED", 3)):
        assert abs(sum(name in fluids[case] for case in cases if split[case] == "test") - expected) < 1
    for fold in range(5):
        testing = [
            c
            for c, part in split_patients(cases, replace(RULES, folds=5, fold=fold), fluids=fluids).items()
            if part == "test"
        ]
        for name, count in (("IRF", 18), ("SRF", 12), ("PED", 12)):
            assert abs(sum(name in fluids[case] for case in testing) - count * len(testing) / 24) < 1.01


def test_typed_in_training_part_alone_is_refused():
    cases = some_cases("Cirrus", 4)
    with pytest.raises(InputError, match=r"train_data\.csv: found without test_data\.csv and val_data\.csv"):
        split_patients(cases, RULES, existing={"train": cases[:2]})
