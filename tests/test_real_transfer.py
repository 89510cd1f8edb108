"""The judges of `benchmarks.real_transfer`: numbers by hand, and small phantoms in the layout of the real scans."""

import json
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from benchmarks import real_training, real_transfer
from benchmarks.real_folds import (
    FOLDS_CSV,
    UNTOUCHED,
    cases_of_folds,
    draw_folds,
    find_real_cases,
    kind_of_eye,
    patients_with,
)
from benchmarks.real_measures import COLUMNS, counts_text, gain_text, reliability_text
from benchmarks.real_scoring import Judged, count_pixels, read_b_scan, save_worst
from benchmarks.real_training import split_of, train_until, write_split
from benchmarks.real_unlike import WAYS, BScan, make_unlike
from utils.errors import InputError
from utils.labels import FLUIDS
from utils.preparation.cases import find_cases
from utils.preparation.prepared import patient_digest
from utils.volumes.mhd import write_volume

SPACING_MM = (0.0117, 0.00387, 0.12)


def write_case(folder, name, irf=0, srf=0, rows=130, referenced=True):
    """A single B-scan: a bright band between dark ones; `irf` and `srf` are columns of outlined fluid, dark."""
    rng = np.random.default_rng(list(name.encode()))
    grey = rng.integers(20, 60, (1, rows, 200))
    grey[:, 38:92] = rng.integers(150, 220, (1, 54, 200))
    reference = np.zeros(grey.shape, np.uint8)
    reference[0, 40:60, 20 : 20 + irf] = 1
    reference[0, 80:90, 20 : 20 + srf] = 2
    grey[reference > 0] = 40
    case = folder / "Spectralis" / name
    write_volume(case / "oct.mhd", (grey * 257).astype(np.uint16), SPACING_MM)
    if referenced:
        write_volume(case / "reference.mhd", reference, SPACING_MM)


# ---- Folds ----------------------------------------------------------------------------------------------------------
def test_the_committed_folds_name_nobody_and_are_of_equal_size():
    table = pd.read_csv(FOLDS_CSV, dtype=str)
    assert list(table) == ["patient", "fold"]
    assert table["patient"].str.fullmatch("[0-9a-f]{16}").all()
    assert table["patient"].is_unique
    assert table["fold"].value_counts().to_dict() == {"0": 22, "1": 22, "2": 21, "3": 21, "4": 21, UNTOUCHED: 27}


def test_folds_share_out_the_patients_and_leave_two_with_srf_untouched():
    held = {f"{number}": {"other", "SRF"} if number < 8 else {"drusen"} for number in range(50)}
    folds = draw_folds(held)
    assert folds.keys() == held.keys()
    assert folds == draw_folds(dict(reversed(held.items())))
    assert Counter(folds.values()) == {UNTOUCHED: 10, "0": 8, "1": 8, "2": 8, "3": 8, "4": 8}
    with_srf = Counter(fold for patient, fold in folds.items() if "SRF" in held[patient])
    assert with_srf[UNTOUCHED] == 2
    assert sorted(with_srf[f"{fold}"] for fold in range(5)) == [1, 1, 1, 1, 2]
    with pytest.raises(InputError, match="fewer than 2 with SRF"):
        draw_folds({"1": {"SRF"}, "2": set()})


def test_one_case_a_name_with_its_reference_and_what_its_patient_holds(tmp_path):
    write_case(tmp_path / "whole", "CNV-7-1", referenced=False)
    write_case(tmp_path / "whole", "NORMAL-8-1")
    write_case(tmp_path / "crops", "CNV-7-1", irf=100)
    write_case(tmp_path / "crops", "CNV-7-2", srf=3)
    write_case(tmp_path / "crops", "CNV-7-3", irf=160)
    cases = find_real_cases([tmp_path / "whole", tmp_path / "crops"])
    assert [case.name for case in cases] == ["CNV-7-1", "NORMAL-8-1", "CNV-7-2", "CNV-7-3"]
    assert all(case.reference_path for case in cases)
    # 2,000 and 3,200 pixels of IRF make 5,200.
    assert patients_with(cases) == {"7": {"other", "IRF", "SRF", "much IRF"}, "8": {"healthy"}}
    assert [kind_of_eye(name) for name in ("NORMAL-1-1", "DRUSEN-1-1", "DME-1-1")] == ["healthy", "drusen", "other"]


def test_a_patient_without_fold_is_refused(tmp_path):
    for name in ("CNV-1-1", "DME-2-1", "DME-3-1"):
        write_case(tmp_path, name, referenced=name != "DME-2-1")
    cases = find_cases(tmp_path)
    folds = {patient_digest(patient): fold for patient, fold in (("1", "0"), ("2", "0"), ("3", UNTOUCHED))}
    of_fold = cases_of_folds(cases, folds)
    assert {fold: [case.name for case in of] for fold, of in of_fold.items()} == {
        "0": ["CNV-1-1"],
        UNTOUCHED: ["DME-3-1"],
    }
    del folds[patient_digest("3")]
    with pytest.raises(InputError, match=r"DME-3-1: its patient is not in real_folds.csv"):
        cases_of_folds(cases, folds)


def test_the_epoch_is_chosen_by_other_patients_of_the_training_folds(tmp_path):
    for number in range(12):
        write_case(tmp_path, f"DME-{number}-1", irf=10)
        write_case(tmp_path, f"DME-{number}-2", irf=10)
    cases = find_cases(tmp_path)
    of_fold = {"0": [case for case in cases if case.name.startswith(("DME-0-", "DME-1-"))]}
    of_fold["1"] = [case for case in cases if case not in of_fold["0"]]
    parts = split_of("0", of_fold, patients_with(cases))
    assert parts["test"] == of_fold["0"]
    patients = {part: {case.name.split("-")[1] for case in of_part} for part, of_part in parts.items()}
    assert len(patients["val"]) == 2  # a fifth of ten
    assert patients["train"] | patients["val"] == {f"{number}" for number in range(2, 12)}
    assert not patients["train"] & patients["val"]
    write_split(tmp_path / "out", parts)
    write_split(tmp_path / "out", parts)
    with pytest.raises(InputError, match=r"test_data.csv: is of other folds"):
        write_split(tmp_path / "out", {"test": of_fold["1"]})


# ---- Measures -------------------------------------------------------------------------------------------------------
def table():
    """Three B-scans of an ill patient, one of a healthy and one of a drusen eye."""
    rows = [("1", "other", 0.9, 100, 50, 25), ("1", "other", 0.4, 20, 0, 0), ("1", "other", 0.2, 0, 6, 0)]
    rows += [("2", "healthy", 0.1, 0, 0, 0), ("3", "drusen", 0.5, 0, 44, 0)]
    return pd.DataFrame(rows, columns=["patient", "eye", "score", "true", "predicted", "overlap"])


def test_measures_by_hand():
    values = {name: measure(table())[0] for name, (measure, _) in COLUMNS.items()}
    assert values == {
        "pooled Dice": pytest.approx(2 * 25 / (120 + 100)),
        "precision": pytest.approx(25 / 100),
        "recall": pytest.approx(25 / 120),
        "Dice a B-scan": pytest.approx((2 * 25 / 150 + 0) / 2),
        "precision a B-scan": pytest.approx(25 / 50),
        "recall a B-scan": pytest.approx((25 / 100 + 0) / 2),
        "AUC": pytest.approx(5 / 6),  # 0.4 loses against 0.5, all other pairs are won
        "false pixels, healthy": 0,
        "false pixels, drusen": 44,
        "false pixels, other": pytest.approx((25 + 0 + 6) / 3),
    }


def test_intervals_are_over_patients():
    same = pd.concat([table().assign(patient=name) for name in "abc"])
    for name, (measure, _) in COLUMNS.items():
        value, low, high = measure(same)
        assert (low, high) == pytest.approx((value, value)), name  # the same for every draw of patients
    # Of two patients, one perfect and one missed, a quarter of the samples holds the one or the other alone.
    rows = pd.DataFrame({"patient": ["a", "b"], "true": [10, 10], "predicted": [10, 0], "overlap": [10, 0]})
    value, low, high = COLUMNS["pooled Dice"][0](rows)
    assert (value, low, high) == pytest.approx((2 / 3, 0, 1))


def test_gains_are_paired():
    rows = pd.concat([table().assign(patient=name, b_scan=f"{name}{number}") for number, name in enumerate("abc")])
    rows["b_scan"] += rows.groupby("b_scan").cumcount().astype(str)
    none = rows.assign(overlap=0).iloc[::-1]
    assert gain_text(rows, none) == "+0.227 (+0.227 to +0.227)"
    for several, others in ((pd.concat([rows, rows]), none), (rows, pd.concat([none, none]))):
        assert gain_text(several, others) == "+0.227 (+0.227 to +0.227)"


def test_counts_of_few_patients():
    assert counts_text(table()) == (
        "found in 1 of 2 B-scans that hold it, predicted in 2 of 3 that do not; "
        "pixels: 120 outlined, 100 predicted, 25 both"
    )


def test_expected_and_true_dice_by_thirds_of_how_sure():
    rows = pd.DataFrame({"expected_dice": [0.9, np.nan, 0.2, 0.7], "true": [10, 5, 0, 30], "predicted": [10, 0, 5, 10]})
    rows["overlap"] = [9, 0, 0, 10]
    text = "expected / true Dice of 3 B-scans, by thirds: 0.20 / 0.00, 0.70 / 0.50, 0.90 / 0.90"
    assert reliability_text(rows) == text


def test_ped_over_irf_is_a_miss(tmp_path):
    write_case(tmp_path, "DME-5-1", irf=3)  # 3 columns of 20 rows
    (case,) = find_cases(tmp_path)
    b_scan, stack, index = read_b_scan(case)
    assert (stack.shape, index) == ((1, 130, 200), 0)
    labels = np.zeros(b_scan.grey.shape, np.uint8)
    labels[40:60, 20:22], labels[40:60, 22], labels[0, :7] = 1, 3, 1
    irf, srf, ped = count_pixels(case, b_scan, labels, np.array([0.9, 0.1, 0.3]), [0.7, None, 0.2])
    assert irf == {
        **{"b_scan": "DME-5-1", "patient": "5", "eye": "other", "fluid": "IRF", "score": 0.9, "expected_dice": 0.7},
        **{"true": 60, "predicted": 47, "overlap": 40},
    }
    assert (srf["predicted"], ped["true"], ped["predicted"]) == (0, 0, 20)


# ---- Scans made unlike ----------------------------------------------------------------------------------------------
@pytest.fixture
def b_scan():
    grey = np.full((60, 100), 100, np.uint8)
    grey[:, :40] = 180
    grey[-12:, -40:] = 255  # padding
    reference = np.zeros(grey.shape, np.uint8)
    reference[10:30, 50:80] = 1
    return BScan(grey, reference, SPACING_MM, "Spectralis")


@pytest.mark.parametrize("way", WAYS)
def test_scans_are_made_unlike_always_in_the_same_way(b_scan, way):
    unlike, again, other = (make_unlike(b_scan, name, way) for name in ("DME-1-1", "DME-1-1", "DME-1-7"))
    np.testing.assert_array_equal(unlike.grey, again.grey)
    assert unlike.grey.dtype == unlike.reference.dtype == np.uint8
    assert unlike.grey.shape == unlike.reference.shape
    assert unlike.grey.shape != b_scan.grey.shape or not np.array_equal(unlike.grey, b_scan.grey)
    assert (way in ("blur", "resampled", "gamma")) or not np.array_equal(unlike.grey, other.grey)
    if way not in ("resampled", "cropped"):
        np.testing.assert_array_equal(unlike.reference, b_scan.reference)
        assert (unlike.grey[-10:, -38:] == 255).all()  # padding stays what it is


def test_how_unlike_they_are(b_scan):
    noisy = make_unlike(b_scan, "DME-1-1", "noise").grey[:40, :40].astype(float)
    assert noisy.std() == pytest.approx(np.hypot(0.25 * 180, 12), rel=0.15)  # less what is clipped at 254
    gamma = make_unlike(b_scan, "DME-1-1", "gamma").grey[0, 0]
    assert gamma in (round(255 * (180 / 255) ** 0.6), round(255 * (180 / 255) ** 1.6))
    blurred = make_unlike(b_scan, "DME-1-1", "blur").grey
    assert (blurred[:40, :30] == 180).all()
    assert blurred[0, 39] == pytest.approx(100 + 80 * 0.63, abs=1.5)  # half a pixel from the edge: Phi(0.5 / 1.5)
    resampled = make_unlike(b_scan, "DME-1-1", "resampled")
    assert resampled.grey.shape == (42, 60)
    assert resampled.spacing_mm == pytest.approx((0.0117 / 0.6, 0.00387 / 0.7, 0.12))
    assert (resampled.reference == 1).sum() == pytest.approx(600 * 0.42, rel=0.03)
    cropped = make_unlike(b_scan, "DME-1-1", "cropped")
    assert cropped.grey.shape == (48, 60)
    assert cropped.spacing_mm == SPACING_MM
    assert make_unlike(b_scan, "DME-1-1", "as Topcon").vendor == "Topcon"


# ---- Training for equal seconds -------------------------------------------------------------------------------------
def test_a_training_is_stopped_once_its_seconds_are_spent(tmp_path):
    spent = {"cpu_seconds": 3.0, "finished": None}
    path = tmp_path / "cpu_seconds.json"
    code = train_until(spent, path, 3.6, [sys.executable, "-c", "while True: pass"])
    assert code == -15
    assert 3.6 <= spent["cpu_seconds"] < 5.0
    assert json.loads(path.read_text()) == spent
    assert spent["finished"] is None


def test_a_training_that_ends_counts_with_its_children(tmp_path):
    busy = "import time\nwhile time.process_time() < 0.4: pass"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    spent = {"cpu_seconds": 0.0, "finished": None}
    assert train_until(spent, tmp_path / "cpu_seconds.json", 60, [sys.executable, "-c", child]) == 0
    assert spent["finished"] == ["-c", child]
    assert 0.4 <= spent["cpu_seconds"] < 2


def test_the_box_learns_from_all_folds_and_never_from_the_untouched(tmp_path, monkeypatch):
    folds = {}
    for number in range(14):
        write_case(tmp_path / "real", f"DME-{number}-1", irf=40)
        folds[patient_digest(str(number))] = UNTOUCHED if number < 3 else str(number % 2)
    monkeypatch.setattr(real_training, "read_folds", lambda: folds)
    real_training.main([str(tmp_path / "real"), "--output", str(tmp_path / "out")])
    parts = {
        part: set(pd.read_csv(tmp_path / "out" / "fold_untouched" / f"{part}_data.csv")["image_name"])
        for part in ("train", "val", "test")
    }
    assert parts["test"] == {"DME-0-1", "DME-1-1", "DME-2-1"}
    assert len(parts["val"]) == 1  # a tenth of eleven
    assert len(parts["train"]) == 10


# ---- All of it ------------------------------------------------------------------------------------------------------
RECIPE = ["tiny", "BASE_FILTERS=2", "BATCH_SIZE=2", "STEPS_PER_EPOCH=2", "EPOCH=1", "VALIDATION_B_SCANS=2"]


@pytest.mark.slow
def test_a_recipe_is_trained_judged_and_not_trained_again(tmp_path, monkeypatch, capsys):
    data, output, folds = tmp_path / "real", tmp_path / "out", {}
    for number in range(12):
        name = f"{('DME', 'CNV', 'NORMAL')[number % 3]}-{number}-1"
        write_case(data, name, irf=80 * (number % 3 < 2), srf=40 * (number % 3 < 2))
        folds[patient_digest(str(number))] = UNTOUCHED if number > 8 else str(number // 3 % 2)
    monkeypatch.setattr(real_transfer, "read_folds", lambda: folds)
    command = ["--folds", str(data), "--output", str(output), "--recipe", *RECIPE]
    real_transfer.main(command)
    printed = capsys.readouterr().out
    header, _, *lines = printed.strip().splitlines()
    assert header.endswith("first line's | noise | blur | gamma | resampled | cropped | as Topcon | mean of these |")
    assert [line.split(" | ")[:1] + line.split(" | ")[2:4] for line in lines[:3]] == [
        ["| tiny", "IRF", "6"],
        ["| tiny", "SRF", "6"],
        ["| tiny", "PED", "0"],
    ]
    assert [line.partition("expected / true Dice of ")[0] for line in lines[3:]] == [
        f"{fluid}, tiny: " for fluid in FLUIDS
    ]
    rows = pd.read_csv(output / "tiny.csv")
    assert len(rows) == 9 * 3
    assert set(rows["b_scan"]) == {path.name for path in (data / "Spectralis").iterdir()} - {
        "DME-9-1",
        "CNV-10-1",
        "NORMAL-11-1",
    }
    assert (output / "tiny.worst.png").exists()

    def trained_again(*_):
        raise AssertionError

    monkeypatch.setattr(real_training, "train_until", trained_again)
    real_transfer.main(command)
    assert capsys.readouterr().out == printed
    real_transfer.main([*command, "--no-unlike", "--only", "0"])
    irf = capsys.readouterr().out.strip().splitlines()[2]
    assert irf.split(" | ")[3] == "4"  # of cases 0 to 2 and 6 to 8, a third are healthy
    with pytest.raises(InputError, match="--only 9: expected some of the folds 0, 1"):
        real_transfer.main([*command, "--only", "9"])
    real_transfer.main([*command, "--untouched", "--no-unlike"])
    assert [line[:20] for line in capsys.readouterr().out.strip().splitlines()[-2:]] == [
        "SRF, tiny: found in ",
        "PED, tiny: found in ",
    ]

    # A model is judged only by patients whom it has not seen.
    model = output / "fold_0" / "runs" / "tiny" / "segmentation" / "best.keras"
    of_fold = cases_of_folds(find_real_cases([data]), folds)
    with pytest.raises(InputError, match="has been trained on 3 of the patients"):
        Judged(model, of_fold["1"], output / "scores")
    judged = Judged(model, of_fold["0"], output / "scores")
    save_worst(output / "worst.png", judged.scores(), [judged])


def test_what_is_wrong_with_the_arguments_is_said(tmp_path):
    common = ["--folds", "real", "--output", str(tmp_path)]
    with pytest.raises(InputError, match="--recipe a: EPOCH: expected SETTING=VALUE"):
        real_transfer.main([*common, "--recipe", "a", "strong", "EPOCH"])
    with pytest.raises(InputError, match=r"no such file .*EPOCH\.py"):
        real_transfer.main([*common, "--recipe", "a", "EPOCH"])
    with pytest.raises(InputError, match="names a, a are not all different"):
        real_transfer.main([*common, "--recipe", "a", "--model", "a", "best.keras"])
