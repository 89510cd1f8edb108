"""What partly outlined cases judge and teach: scores, and models that were not taught every fluid."""

import numpy as np
import pandas as pd
import pytest
from helpers import arguments, run_python, write_raw_case
from stand_in import bright_scan, export_brightness_model, export_brightness_onnx

from utils.errors import InputError
from utils.evaluation.held_out import segment_and_score
from utils.evaluation.pairs import Pair, match_pairs, read_reference_labels, score_pairs
from utils.evaluation.report import measures
from utils.evaluation.statistics import summarise_volumes, with_patients
from utils.labels import FLUIDS
from utils.networks.exported_model import read_best
from utils.preparation.ancestry import inherit
from utils.preparation.outlined import write_outlined
from utils.preparation.prepared import SliceRow, fluids_outlined
from utils.segmentation.decisions import Decisions, of_taught_fluids
from utils.segmentation.predict import load_network
from utils.training.data import TrainingData
from utils.training.validation import FluidDice, choose_b_scans
from utils.volumes.mhd import read_volume, write_volume

SPACING_MM = (0.0117, 0.003872, 0.12)


# ---- Scores --------------------------------------------------------------------------------------------------------
def test_dice_of_validation_counts_a_fluid_where_it_was_outlined():
    dice, labels = FluidDice(), np.array([[1, 1, 2, 3]], np.uint8)
    dice.add(np.array([[1, 0, 0, 255]], np.uint8), labels, ("IRF",))
    dice.add(np.array([[2, 2, 2, 3]], np.uint8), labels, ("SRF", "PED"))
    assert dice.values() == {
        "dice": pytest.approx((2 / 3 + 2 / 4 + 1) / 3),
        "dice_irf": pytest.approx(2 / 3),
        "dice_srf": pytest.approx(2 / 4),
        "dice_ped": 1.0,
    }


def test_a_b_scan_without_any_of_its_outlined_fluids_is_of_no_kind():
    rows = [SliceRow("a", "Topcon", "a", index, *held) for index, held in enumerate([(0, None, None), (None, 1, 0)])]
    assert {row.slice for row in choose_b_scans(rows, 2, seed=0)} == {0, 1}


def write(path, labels):
    write_volume(path, np.array(labels, np.uint8)[np.newaxis], SPACING_MM)


def test_label_volumes_are_scored_where_a_reader_judged(tmp_path):
    for name in ("P1", "P2"):
        write(tmp_path / "reference" / f"Topcon_{name}.mhd", [[1, 1, 0, 255], [2, 0, 0, 0]])
        write(tmp_path / "predictions" / f"Topcon_{name}.mhd", [[1, 0, 3, 1], [0, 0, 0, 0]])
    write_outlined(tmp_path / "reference", {"Topcon_P1": ("IRF",)})
    pairs, complaints = match_pairs(tmp_path / "predictions", tmp_path / "reference")
    assert complaints == []
    volumes, _ = score_pairs(pairs, workers=0)
    dice = {(row.case, row.fluid): row.dice for row in volumes.itertuples()}
    assert dice == {("P1", "IRF"): 2 / 3, ("P2", "IRF"): 2 / 3, ("P2", "SRF"): 0, ("P2", "PED"): 0}


def test_references_follow_the_tables_that_step_1_follows(tmp_path, capsys):
    """One in the vendor's folder, as importing a vendor at a time leaves it; a root without a reference is named."""
    write(tmp_path / "reference" / "Topcon" / "P1" / "reference.mhd", [[1, 0]])
    write(tmp_path / "predictions" / "Topcon_P1.mhd", [[1, 2]])
    write_outlined(tmp_path / "reference" / "Topcon", {"P1": ("IRF",), "P2": ("SRF",)})
    ((pair,), _) = match_pairs(tmp_path / "predictions", tmp_path / "reference")
    assert pair.outlined == ("IRF",)
    assert "outlined.csv names Topcon/P2, where no case is" in capsys.readouterr().err
    write_outlined(tmp_path, {"reference": ("IRF",)})
    with pytest.raises(InputError, match="says what was outlined in"):
        match_pairs(tmp_path / "predictions", tmp_path / "reference")


def test_a_reference_of_0_and_255_needs_a_word(tmp_path):
    write(tmp_path / "reference.mhd", [[0, 255]])
    pair = Pair("Topcon", "a", tmp_path / "prediction.mhd", tmp_path / "reference.mhd")
    with pytest.raises(InputError, match="a mask of one class: replace 255"):
        read_reference_labels(pair)
    stated = Pair("Topcon", "a", pair.prediction_path, pair.reference_path, may_be_unjudged=True)
    assert read_reference_labels(stated).tolist() == [[[0, 255]]]
    write(tmp_path / "reference.mhd", [[0, 7]])
    with pytest.raises(InputError, match="expected labels 0 to 3"):
        read_reference_labels(stated)


# ---- What a model was not taught -----------------------------------------------------------------------------------
def test_the_probability_of_what_was_not_taught_is_backgrounds():
    found = np.array([[0.2, 0.3, 0.4, 0.1, 0.7]], np.float32)  # the last is no class
    np.testing.assert_allclose(of_taught_fluids(found, ("SRF",)), [[0.6, 0, 0.4, 0, 0.7]])
    assert of_taught_fluids(found, tuple(FLUIDS)) is found


def test_a_fluid_that_was_not_taught_is_never_found_and_everything_says_so(tmp_path):
    """The stand-in calls bright pixels IRF, which it was not taught."""
    model = export_brightness_onnx(tmp_path / "model", taught=["SRF", "PED"])
    write_volume(tmp_path / "Spectralis.mhd", bright_scan(1), SPACING_MM)
    said, _ = run_python("test.py", tmp_path / "Spectralis.mhd", "--output", tmp_path / "out", "--model", model)
    assert "Spectralis_Spectralis: SRF 0.000, PED 0.000 mm2" in said
    assert "It was not taught IRF, and never finds it." in said
    assert not read_volume(tmp_path / "out" / "Spectralis_Spectralis.mhd")[0].any()
    (row,) = pd.read_csv(tmp_path / "out" / "summary.csv").to_dict("records")
    assert np.isnan([row["IRF_mm2"], row["SRF_mm3"]]).all()
    assert row["SRF_mm2"] == 0
    assert row["least_sure"] != "IRF"
    assert "It was not taught IRF, and never finds it." in row["note"]
    for page in ("index.html", "Spectralis_Spectralis/report.html"):
        assert "not taught" in (tmp_path / "out" / page).read_text()
    of_all = export_brightness_model(tmp_path / "all")
    with pytest.raises(InputError, match=r"was taught IRF, SRF, PED, .* SRF, PED; leave one out"):
        load_network(model, of_all)


def test_held_out_scores_leave_out_what_was_not_judged_or_outlined(tmp_path):
    """Half of the bright block is labelled, the other half was not judged; nobody outlined SRF."""
    scan = bright_scan()
    reference = np.where(scan == 230, 1, 0).astype(np.uint8)
    reference[:, :, 50:] *= 255
    reference[0] = 255
    for name, volume in (("oct", scan), ("reference", reference)):
        write_volume(tmp_path / f"{name}.mhd", volume, SPACING_MM)
    paths = [tmp_path / name for name in ("out/Spectralis_A.mhd", "reference.mhd", "oct.mhd")]
    pair = Pair("Spectralis", "A", *paths, outlined=("IRF", "PED"))
    network = load_network(export_brightness_model(tmp_path / "model"))
    table, reliability, complaints = segment_and_score(network, [pair], Decisions(0.5), workers=0)
    assert complaints == []
    assert table.fluid.tolist() == ["IRF", "PED"]
    irf = table.set_index("fluid").loc["IRF"]
    assert (irf.dice, irf.average_precision) == (1, pytest.approx(1))
    assert irf.score_volume == irf.reference_mm3 == pytest.approx((reference == 1).sum() * np.prod(SPACING_MM))
    voxels = reliability.groupby("fluid").voxels.sum()
    assert voxels.to_dict() == {"IRF": (reference < 255).sum(), "SRF": 0, "PED": (reference < 255).sum()}
    summary = summarise_volumes(with_patients(table, "(.*)"), seed=0)
    assert measures(summary, ["all"], {"dice_all": "Dice"})["cases with it"].tolist() == [
        *("1 of 1", "not outlined", "0 of 1", "")
    ]
    means = summary[(summary.vendor == "all") & (summary.measure == "dice_all")].set_index("fluid")["mean"]
    assert means["mean"] == pytest.approx((means["IRF"] + means["PED"]) / 2)  # an SRF of 1 that nobody outlined is none


def rows_that_outline(*held):
    return [SliceRow("a", "Topcon", "a", index, *of_row) for index, of_row in enumerate(held)]


@pytest.mark.parametrize(
    ("start", "validation", "notes"),
    [
        (None, (1, 0, 0), ["no training case outlines PED: it is not taught, and never predicted"]),
        (
            {"taught": ["IRF", "PED"]},
            (1, 0, 0),
            ["no training case outlines PED, which the starting model was taught; validation says at each epoch what"],
        ),
        (
            {},  # of before: was taught all
            (1, None, None),
            ["no training case outlines PED, which the starting model was taught; no validation case says"],
        ),
    ],
)
def test_training_says_what_no_case_outlines(start, validation, notes):
    rows = {"train": rows_that_outline((1, None, None), (None, 0, None))}
    record = {"data": {}, "taught": list(fluids_outlined(rows["train"]))}
    record = record if start is None else inherit(record, [start])
    data = TrainingData(rows, rows_that_outline(validation), record, start)
    assert data.taught == (("IRF", "SRF") if start is None else ("IRF", "SRF", "PED"))
    found = list(data.notes_on_outlines())
    assert len(found) == len(notes)
    assert all(note.startswith(expected) for note, expected in zip(found, notes, strict=True))


@pytest.mark.slow
@pytest.mark.ci
def test_scripts_with_cysts_alone_outlined(tmp_path):
    """From files to the report; the discriminator's step included."""
    for seed, name in enumerate("abcdef"):
        write_raw_case(tmp_path / "data", "Topcon", name, seed)
    settings = ["OUTLINED=('IRF',)", "BASE_FILTERS=2", "BATCH_SIZE=4", "STEPS_PER_EPOCH=2", "EPOCH=1", "WORKERS=0"]
    settings += ["TRAIN_CLASSES=True", "CHOOSE_DECISIONS=True", "D_WARM_UP_STEPS=1", "ADVERSARIAL_RAMP_STEPS=0"]
    given = arguments(tmp_path / "data", tmp_path / "output", *settings)
    assert "IRF 3, SRF 0, PED 0 of 3" in run_python("prepare_data.py", *given)[0]
    assert "note: no training case outlines SRF or PED: it is not taught" in run_python("model_training.py", *given)[0]
    run_python("adversarial_training.py", *given)
    said, _ = run_python("evaluate.py", *given)
    run = tmp_path / "output" / "runs" / "unet"
    for step in ("segmentation", "adversarial"):
        assert read_best(run / step / "best.keras")["taught"] == ["IRF"]
    assert said.count("not outlined") == 2
    log = pd.read_csv(run / "segmentation" / "log.csv")
    assert (log.val_loss > log.val_segmentation_loss).all()  # the heads' losses count
    measured = set(log.columns)
    assert {"val_f_irf", "val_iou_score"} < measured
    assert not {"val_f_srf", "val_f_ped"} & measured  # they would be 1
    assert set(pd.read_csv(run / "evaluation" / "volumes.csv").fluid) == {"IRF"}
    assert all(read_volume(path)[0].max() <= 1 for path in (run / "evaluation" / "predictions").glob("*.mhd"))
