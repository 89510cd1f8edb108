"""evaluate.py in this process, with a network that tells IRF by brightness in the place of a trained one."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers import batch_settings, write_prepared_case, write_record, write_slice_csv
from stand_in import bright_scan, export_brightness_model

import config
import evaluate
from utils.errors import InputError
from utils.evaluation import held_out
from utils.evaluation.held_out import segment_case
from utils.evaluation.pairs import Pair, pairs_of_split
from utils.evaluation.statistics import COLUMNS
from utils.files import write_json
from utils.networks.exported_model import read_best
from utils.preparation.prepared import SliceRow, patient_digest
from utils.segmentation import predict
from utils.segmentation.decisions import Decisions
from utils.segmentation.predict import load_network
from utils.training.choosing import choose_decisions, predict_for_decisions
from utils.volumes.mhd import write_volume

SPACING_MM = (0.0117, 0.003872, 0.12)
# Columns of the bright block in each case's scan: those without the fluid have some of it, which is a false alarm.
TEST = {"a_OD": (30, 70), "a_OS": (30, 60), "b_OD": (30, 90), "c_OD": (30, 40)}
VALIDATION = {"d_OD": (30, 80), "e_OD": (30, 50), "f_OD": (30, 44)}
WITHOUT_FLUID = ("c_OD", "f_OD")
PATTERN = r"^(\w+)_O[DS]$"


@pytest.fixture
def settings(set_config, monkeypatch):
    """`set_config`, for evaluations without patches, which need preprocessed volumes."""
    monkeypatch.setattr(evaluate, "score_patches", lambda network: {})
    return set_config


def write_cases(data_root, output_root):
    """Raw cases and the CSVs of the held-out and of the validation cases."""
    for part, cases in (("test", TEST), ("val", VALIDATION)):
        rows = []
        for name, (first, last) in cases.items():
            voxels, reference = bright_scan(2), np.zeros((2, 130, 140), np.uint8)
            voxels[voxels == 230] = 150
            voxels[:, 40:60, first:last] = 230
            if name not in WITHOUT_FLUID:
                reference[:, 40:60, first:last] = 1
            write_volume(data_root / "Spectralis" / name / "oct.mhd", voxels, SPACING_MM)
            write_volume(data_root / "Spectralis" / name / "reference.mhd", reference, SPACING_MM)
            rows += [SliceRow(name, "Spectralis", f"Spectralis/{name}", index, 1, 0, 0) for index in range(2)]
            write_record(output_root, "Spectralis", name)
        write_slice_csv(output_root / f"{part}_data.csv", rows)


@pytest.fixture
def evaluated(settings, tmp_path):
    """Returns (folder of the evaluation, function that evaluates)."""
    output = tmp_path / "output"
    write_cases(tmp_path / "data", output)
    export_brightness_model(output / "runs" / "unet" / "segmentation", metric="val_dice", value=0.5)

    def run():
        settings(DATA_ROOT=str(tmp_path / "data"), OUTPUT_ROOT=str(output), PATIENT_PATTERN=PATTERN)
        evaluate.main([])

    return output / "runs" / "unet" / "evaluation", run


@pytest.mark.parametrize(
    ("part", "seen", "message"),
    [
        (
            "train",
            {"cases": ["b_OD"], "patients": []},
            r"test_data\.csv: Spectralis b_OD was used to train this network",
        ),
        ("val", {"cases": ["b_OD"], "patients": []}, r"test_data\.csv: Spectralis b_OD was used to train this network"),
        ("earlier", {"cases": [], "patients": ["c"]}, r"test_data\.csv: another case of the patient of Spectralis c_"),
        ("train", {"cases": ["e_OD"], "patients": []}, r"val_data\.csv: Spectralis e_OD was used to train this"),
        ("val", {"cases": ["e_OD"], "patients": []}, None),  # its best epoch was chosen on them
    ],
)
def test_cases_that_trained_the_model_do_not_judge_it(evaluated, part, seen, message):
    folder, run = evaluated
    path = folder.parent / "segmentation" / "best.json"
    details = json.loads(path.read_text())
    details["data"] = {part: {**seen, "patients": [patient_digest(patient) for patient in seen["patients"]]}}
    write_json(path, details)
    if message is None:
        run()
    else:
        with pytest.raises(InputError, match=message):
            run()


def test_a_fine_tuned_model_of_before_has_seen_what_the_one_before_it_has(evaluated):
    """Fine-tuning dropped the mixed data sets."""
    folder, run = evaluated
    path = folder.parent / "segmentation" / "best.json"
    details = json.loads(path.read_text()) | {"data": {"mixed 1": {"cases": ["b_OD"], "patients": []}}}
    write_json(path, details)
    own = {"data": {}, "made_from": details["sha256"]}
    export_brightness_model(folder.parent / "adversarial", metric="val_dice", value=0.5, **own)
    with pytest.raises(InputError, match=r"test_data\.csv: Spectralis b_OD was used to train this network"):
        run()


def test_a_model_of_another_histogram_is_refused(evaluated):
    folder, run = evaluated
    path = folder.parent / "segmentation" / "best.json"
    write_json(path, {**json.loads(path.read_text()), "reference_histogram": [1] * 256})
    with pytest.raises(InputError, match=r"matched to a reference histogram of 256 voxels, .* ask for no"):
        run()


def test_thresholds_come_from_the_validation_cases_and_intervals_are_over_patients(evaluated, capsys):
    folder, run = evaluated
    run()
    volumes, validation = (pd.read_csv(folder / name) for name in ("volumes.csv", "validation.csv"))
    assert set(volumes.case) == set(TEST)
    assert set(validation.case) == set(VALIDATION)
    for table in (volumes, validation):
        assert set(table.threshold_score) == {"score_volume"}  # no less sure of false alarms
        # Of the validation cases, 14 columns are a false alarm and 20 are fluid; of the held-out ones, 10 and 30.
        (threshold,) = table.threshold[table.fluid == "IRF"].unique()
        assert threshold == pytest.approx(17 * 20 * 2 * np.prod(SPACING_MM))
    assert volumes.set_index("case").patient.to_dict() == {"a_OD": "a", "a_OS": "a", "b_OD": "b", "c_OD": "c"}
    summary = pd.read_csv(folder / "summary.csv")
    assert set(summary.patients) == {3}
    assert "4 cases of 3 patients" in (folder / "report.html").read_text()
    assert "there is no fine-tuned one" in capsys.readouterr().out


def test_what_is_done_is_done_again_for_another_model_and_other_code(tmp_path, monkeypatch):
    """The second model knows no fluid: its labels are others."""
    write_cases(tmp_path / "data", tmp_path / "output")
    output = tmp_path / "output"
    (pair, *_) = pairs_of_split(
        output / "test_data.csv", tmp_path / "data", output / "pre_processed", tmp_path / "predictions"
    )
    network = load_network(export_brightness_model(tmp_path / "model"))
    rows = segment_case(network, pair, Decisions(0.5))["rows"]
    record = pair.prediction_path.with_suffix(".json")

    def is_kept(network, threshold=0.5):
        record.write_text(json.dumps({**json.loads(record.read_text()), "rows": [{"kept": True}]}))
        return segment_case(network, pair, Decisions(threshold))["rows"] == [{"kept": True}]

    assert rows[0]["score_volume"] > 0
    assert is_kept(network)
    assert not is_kept(network, threshold=0.5 + 1e-9)  # rounding for a report would hide the difference
    assert not is_kept(network)
    pair.prediction_path.with_suffix(".raw").unlink()
    assert not is_kept(network)
    exported = export_brightness_model(tmp_path / "other_model", bias=-1000)
    other = load_network(exported)
    assert other.details["sha256"] != network.details["sha256"]
    assert segment_case(other, pair, Decisions(0.5))["rows"][0]["score_volume"] == 0
    assert is_kept(other)
    exported.with_suffix(".json").write_text(json.dumps({**other.details, "slice_mean": 120.0}))
    assert not is_kept(load_network(exported))
    assert not is_kept(network)
    for module in (held_out, predict):
        with monkeypatch.context() as changed:
            changed.setattr(module, "code_digest", lambda *names: "of other code")
            assert not is_kept(network)
        assert not is_kept(network)


def write_volumes(path, cases, **scores):
    """A volumes.csv of cases that hold IRF or not, {name: bool}, by their scores."""
    rows = pd.DataFrame({"vendor": "Cirrus", "case": list(cases), "fluid": "IRF", **dict.fromkeys(COLUMNS, 0.0)})
    rows = rows.assign(reference_mm3=np.array(list(cases.values()), float), **scores)
    others = [rows.assign(fluid=fluid, reference_mm3=0.0, threshold=np.nan) for fluid in ("SRF", "PED")]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat([rows, *others]).to_csv(path, index=False)


def test_folds_that_chose_several_scores_are_pooled_without_mixing_them(settings, tmp_path, monkeypatch):
    """Each fold's score parts its cases. The other fold's, held against the same threshold, would call all or none."""
    held_out = {"fold_0": "ab", "fold_1": "cd"}
    monkeypatch.setattr(
        evaluate,
        "pairs_of_split",
        lambda path, *_: [Pair("Cirrus", name, None, None) for name in held_out[path.parent.name]],
    )
    settings(OUTPUT_ROOT=str(tmp_path), PATIENT_PATTERN=r"^\w", FOLDS=2)
    evaluations = [tmp_path / f"fold_{fold}" / "runs" / "unet" / "evaluation" for fold in (0, 1)]
    first = {"score_probability": [0.9, 0.2], "score_volume": [0.3, 0.2]}
    first |= {"threshold": 0.55, "threshold_score": "score_probability"}
    second = {"score_probability": [0.4, 0.5], "score_volume": [5.0, 2.0]}
    second |= {"threshold": 3.5, "threshold_score": "score_volume"}
    for folder, names, scores in zip(evaluations, ("ab", "cd"), (first, second), strict=True):
        write_volumes(folder / "volumes.csv", dict(zip(names, (True, False), strict=True)), **scores)
        write_volumes(folder / "validation.csv", dict(zip("ef", (True, False), strict=True)), **scores)
    evaluate.main(["--all-folds"])
    pooled = tmp_path / "runs" / "unet" / "evaluation"
    row = pd.read_csv(pooled / "detection.csv").set_index(["vendor", "fluid"]).loc[("all", "IRF")]
    assert (row.sensitivity, row.specificity) == (1, 1)
    # The AUCs within the folds' validation cases: of the probability 1 and 0, of the volume 1 and 1.
    assert (row.score, row.threshold_score) == ("score_volume", "score_probability, score_volume")
    assert row.auc == 0.75  # pooled: 0.3 and 5 against 0.2 and 2
    report = (pooled / "report.md").read_text()
    assert "fold 0: largest probability of the fluid after a 5 x 5 mean; fold 1: predicted volume" in report
    path = evaluations[1] / "volumes.csv"
    held_out["fold_1"] = "cde"
    with pytest.raises(InputError, match=r"fold_1.*volumes\.csv: lacks Cirrus e, a held-out case"):
        evaluate.main(["--all-folds"])
    held_out["fold_1"] = "c"  # drawn anew since
    with pytest.raises(InputError, match=r"fold_1.*volumes\.csv: holds Cirrus d, no held-out cases of the fold; run"):
        evaluate.main(["--all-folds"])
    pd.read_csv(path).drop(columns="threshold_score").to_csv(path, index=False)
    with pytest.raises(InputError, match=r"fold_1.*volumes\.csv: lacks the columns threshold_score"):
        evaluate.main(["--all-folds"])


def test_decisions_of_a_fold_are_chosen_on_the_other_folds(settings, tmp_path, capsys):
    """A model trained on all cases gets those of all. What a fold holds out differs in how much of it is fluid."""
    given = {"OUTPUT_ROOT": str(tmp_path), "PATIENT_PATTERN": r"^(\w)", "FOLDS": 3, "MODEL": "Unet/resnet18"}
    given |= {"DETERMINISTIC": True}
    settings(**given)
    predicted, models = [], []
    earlier = Decisions(0.5, (0.5, 0.2, 0.3), (0.5, 0.4, 0.3))  # the first model's; no B-scan holds SRF or PED
    for fold, name in enumerate("abc"):
        root = tmp_path / f"fold_{fold}"
        volume = np.random.default_rng(fold).integers(140, 190, (2, 120, 136)).astype(np.uint8)
        masks = np.zeros_like(volume)
        masks[:, 50:70, 40:80] = 1
        volume[masks > 0] = 250
        masks[:, :, : 45 + 10 * fold] = 0  # some of what the model calls fluid is none
        write_prepared_case(root / "pre_processed", "Spectralis", name, volume, masks)
        write_record(root, "Spectralis", name)
        rows = [SliceRow(name, "Spectralis", "r", index, 1, 0, 0) for index in range(2)]
        write_slice_csv(root / "test_data.csv", rows)
        data = {"test": {"cases": [], "patients": [patient_digest("another")]}}
        known = {"data": data} | ({"decisions": earlier.as_details()} if fold == 0 else {})
        models.append(export_brightness_model(root / "runs" / "unet" / "segmentation", bias=-110 - fold, **known))
        predicted.append(predict_for_decisions(models[-1], rows, batch_settings(root / "pre_processed"), config.MODEL))
    of_all = export_brightness_model(tmp_path / "of_all")
    evaluate.main(["--choose-decisions", str(of_all)])
    decisions = [Decisions.from_details(read_best(path)) for path in (*models, of_all)]
    first, second, third = predicted
    kept = [second + third, first + third, first + second, first + second + third]
    starting = [earlier, None, None, None]
    assert decisions == [
        choose_decisions(*of_model) for of_model in zip(kept, 4 * [Decisions(0.5)], starting, strict=True)
    ]
    assert decisions[0].fluid_thresholds[1:] == (0.2, 0.3)
    assert len({repr(one) for one in decisions}) == 4
    assert "of_all/best.keras: decisions on 6 held-out B-scans: IRF 0." in capsys.readouterr().out
    for changed, message in (
        ({"NEIGHBOURS": False}, "its neighbours is True, config.NEIGHBOURS is False; set it to what the model"),
        ({"MODEL": "Unet/resnet34"}, "best.keras: is a Unet/resnet18, config.MODEL is Unet/resnet34"),
    ):
        settings(**given | changed)
        with pytest.raises(InputError, match=message):
            evaluate.main(["--choose-decisions"])
    settings(**given)
    with pytest.raises(InputError, match=r"nowhere\.keras"):
        evaluate.main(["--choose-decisions", str(tmp_path / "nowhere.keras")])
    assert [Decisions.from_details(read_best(path)) for path in (*models, of_all)] == decisions
    details = read_best(models[1])
    write_json(models[1].with_suffix(".json"), {**details, "data": {"train": {"cases": ["b"], "patients": []}}})
    with pytest.raises(InputError, match=r"fold_1.*Spectralis b was used to train this network"):
        evaluate.main(["--choose-decisions"])
    settings(FOLDS=None)
    with pytest.raises(InputError, match=r"--choose-decisions: config\.FOLDS is None"):
        evaluate.main(["--choose-decisions"])


def test_names_that_do_not_tell_the_patient_are_listed(settings, tmp_path):
    for method in ("first", "second"):
        write_volumes(tmp_path / method / "volumes.csv", {"a_OS": True, "b_OD": True, "c_OD": False})
    settings(PATIENT_PATTERN=r"(\w+)_OS")
    for option in ("--compare", "--rank"):
        with pytest.raises(InputError) as caught:
            evaluate.main([option, str(tmp_path / "first"), str(tmp_path / "second")])
        assert len(caught.value.messages) == 2
        assert caught.value.messages[0].startswith("case b_OD: does not match PATIENT_PATTERN")
