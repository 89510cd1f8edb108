"""Cases whose readers did not outline every fluid, from files to patches and label volumes that are scored."""

import re

import numpy as np
import pandas as pd
import pytest
from helpers import arguments, batch_settings, noise, prepare, read_csv, run_python, write_prepared_case, write_raw_case
from stand_in import bright_scan, export_brightness_model

import adversarial_training
import config
from utils.ancestry import inherit
from utils.data_prepare import get_iterator_nuts, patch_samples
from utils.errors import InputError
from utils.evaluation.held_out import segment_and_score
from utils.evaluation.pairs import Pair, match_pairs, read_reference_labels, score_pairs
from utils.evaluation.report import measures
from utils.evaluation.statistics import summarise_volumes, with_patients
from utils.exported_model import read_best
from utils.labels import FLUIDS, allowed_tables, unlabelled_value, without_unjudged
from utils.preparation.cases import find_cases, outlined_below
from utils.preparation.checks import read_facts_or_finding
from utils.preparation.outlined import as_judged, read_outlined, write_outlined
from utils.preparation.roi import roi_mask
from utils.prepared import SliceRow, outlined_in, read_csv_data, read_outlined_rows
from utils.segmentation.decisions import Decisions, of_taught_fluids
from utils.segmentation.predict import load_network
from utils.training.data import TrainingData, fluids_outlined
from utils.training.validation import FluidDice, choose_b_scans
from utils.volumes.mhd import open_volume, read_volume, write_volume

SPACING_MM = (0.0117, 0.003872, 0.12)
IRF_ALONE = 128 + 1 + 4 + 8  # background, SRF or PED


# ---- What values say -----------------------------------------------------------------------------------------------
def test_values_and_the_classes_that_they_allow():
    assert unlabelled_value(("IRF", "SRF", "PED")) == 0
    assert unlabelled_value(("IRF",)) == IRF_ALONE
    assert unlabelled_value(()) & 15 == 15
    values = [0, 1, 2, 3, IRF_ALONE, 255]
    allowed = [[table[value] for table in allowed_tables()] for value in values]
    assert allowed == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1]]


def test_what_was_not_judged_is_0_on_both_sides():
    labels, reference = np.array([1, 2, 3, 0], np.uint8), np.array([1, 255, 255, 255], np.uint8)
    assert [array.tolist() for array in without_unjudged(labels, reference)] == [[1, 0, 0, 0], [1, 0, 0, 0]]
    assert without_unjudged(labels, labels)[0] is labels


def test_a_reference_by_what_was_outlined_and_what_is_unsure():
    reference, other = np.array([0, 1, 2, 3, 0, 2]), np.array([1, 1, 0, 2, 2, 3])
    assert as_judged(reference, ("IRF", "SRF", "PED")).tolist() == [0, 1, 2, 3, 0, 2]
    assert as_judged(reference, ("IRF", "PED")).tolist() == [0, 1, 0, 3, 0, 0]
    assert as_judged(reference, ("IRF", "PED"), other, (1, 3)).tolist() == [255, 1, 0, 3, 0, 255]
    assert as_judged(reference.astype(np.int8), ("IRF",), other, (1,)).tolist() == [255, 1, 0, 0, 0, 0]


# ---- outlined.csv --------------------------------------------------------------------------------------------------
def test_outlined_csv_is_merged_by_root(tmp_path):
    write_outlined(tmp_path, {"Topcon/a": ("IRF",), "Topcon/b": ()})
    write_outlined(tmp_path, {"Topcon/b": ("SRF", "PED"), "Cirrus": ("IRF", "SRF")})
    text = (tmp_path / "outlined.csv").read_text()
    assert text == "root,outlined\nCirrus,IRF SRF\nTopcon/a,IRF\nTopcon/b,SRF PED\n"
    assert read_outlined(tmp_path) == {"Cirrus": ("IRF", "SRF"), "Topcon/a": ("IRF",), "Topcon/b": ("SRF", "PED")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,fluids\na,IRF\n", "its columns are case,fluids, expected root,outlined"),
        ("root,outlined\na,IRF\nb,irf\n", "line 3 names irf, expected some of IRF SRF PED"),
        ("root,outlined\na,IRF,SRF\n", "line 2 has 3 values, expected 2"),
        ("root,outlined\na,IRF\na/,SRF\n", "line 3 names a a second time"),
    ],
)
def test_an_outlined_csv_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "outlined.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_outlined(tmp_path)


def test_the_nearest_root_counts(tmp_path, capsys):
    for name in ("a", "b"):
        write_raw_case(tmp_path, "Topcon", name)
    write_raw_case(tmp_path, "Cirrus", "c")
    of_topcon = "RETOUCH-TrainingSet-Topcon"
    write_outlined(tmp_path, {of_topcon: ("SRF",), f"{of_topcon}/b": ("IRF", "PED")})
    cases = {case.name: case for case in find_cases(tmp_path, outlined=("SRF", "IRF"))}
    assert {name: case.outlined for name, case in cases.items()} == {
        "a": ("SRF",),
        "b": ("IRF", "PED"),
        "c": ("IRF", "SRF"),
    }
    assert [cases[name].is_stated for name in "abc"] == [True, True, False]
    write_outlined(tmp_path, {f"{of_topcon}/d": ("SRF",)})
    find_cases(tmp_path)
    assert "outlined.csv names RETOUCH-TrainingSet-Topcon/d, where no case is" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"outlined.csv: says what was outlined in .*Topcon; name .* instead"):
        find_cases(tmp_path / of_topcon)
    (tmp_path / "outlined.csv").rename(tmp_path / of_topcon / "outlined.csv")  # roots are relative to the table
    write_outlined(tmp_path / of_topcon, {"a": ("IRF",)})
    assert {case.name: case.outlined for case in find_cases(tmp_path)}["a"] == ("IRF",)


def test_a_table_above_is_not_passed_over(tmp_path):
    """Whether it names the folder, one above it or a case in it, and however far above it lies."""
    write_raw_case(tmp_path / "far", "Topcon", "a")
    for root in (".", "far", "far/RETOUCH-TrainingSet-Topcon/a"):
        (tmp_path / "outlined.csv").write_text(f"root,outlined\n{root},IRF\n")
        with pytest.raises(InputError, match=r"outlined.csv: says what was outlined in .*Topcon; name .* instead"):
            outlined_below(tmp_path / "far" / "RETOUCH-TrainingSet-Topcon")
    write_outlined(tmp_path / "far" / "RETOUCH-TrainingSet-Topcon", {"a": ("SRF",)})  # as the message says
    assert outlined_below(tmp_path / "far" / "RETOUCH-TrainingSet-Topcon") == {"a": ("SRF",)}
    (tmp_path / "outlined.csv").write_text("root,outlined\nanother,IRF\n")
    assert outlined_below(tmp_path / "far") == {"RETOUCH-TrainingSet-Topcon/a": ("SRF",)}


def test_a_root_as_windows_writes_it(tmp_path):
    (tmp_path / "outlined.csv").write_bytes("\ufeffroot,outlined\r\nTopcon\\a ,IRF\r\nTopcon\\b\\,\r\n".encode())
    assert read_outlined(tmp_path) == {"Topcon/a": ("IRF",), "Topcon/b": ()}


# ---- Step 1 --------------------------------------------------------------------------------------------------------
def test_255_alone_is_a_mask_of_one_class_unless_something_says_otherwise(tmp_path):
    folder = write_raw_case(tmp_path, "Topcon", "a")
    reference, spacing_mm = read_volume(folder / "reference.mhd")
    write_volume(folder / "reference.mhd", np.where(reference == 1, 255, 0).astype(np.uint8), spacing_mm)

    def remedy(not_judged=()):
        (case,) = find_cases(tmp_path, not_judged=not_judged)
        return getattr(read_facts_or_finding(case), "remedy", None)

    expected = (
        "a mask of one class: replace 255 by that class's label; if 255 is what nobody judged, name the case in "
        "outlined.csv"
    )
    assert remedy() == expected
    write_volume(folder / "other.mhd", np.where(reference == 2, 1, 0).astype(np.uint8), spacing_mm)
    assert remedy(not_judged=(1,)) == expected  # what other.mhd makes of 0 says nothing about the file's 255
    write_outlined(tmp_path, {".": ("IRF", "SRF", "PED")})
    assert remedy() is None


def test_the_region_of_interest_does_not_take_in_what_was_not_judged():
    dark, reference = np.full((120, 120), 40, np.uint8), np.zeros((120, 120), np.uint8)
    reference[50:70, 50:70] = 255
    assert not roi_mask(dark, reference).any()
    reference[60, 60] = 3
    assert roi_mask(dark, reference).any()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Six cases, prepared as a user does: in "a" to "c" IRF alone is outlined, "d" is partly judged; (root, said)."""
    root = tmp_path_factory.mktemp("outlined")
    for seed, name in enumerate("abcdef"):
        folder = write_raw_case(root / "data", "Topcon", name, seed)
    write_outlined(root / "data", {f"RETOUCH-TrainingSet-Topcon/{name}": ("IRF",) for name in "abc"})
    folder = root / "data" / "RETOUCH-TrainingSet-Topcon" / "d"
    reference, spacing_mm = read_volume(folder / "reference.mhd")
    other = np.ones_like(reference)  # all of slice 0, in slice 1 what is no fluid
    reference[0] = 0
    other[1, :, :100] = 2
    write_volume(folder / "reference.mhd", reference, spacing_mm)
    write_volume(folder / "other.mhd", other, spacing_mm)
    said, _ = prepare(root / "data", root / "output", "NOT_JUDGED_OTHER=(1,)")
    return root, said


def test_step_1_says_what_is_unknown(prepared):
    root, said = prepared
    table = read_csv(root / "output" / "pre_processed" / "slice_gt.csv").set_index(["image_name", "slice"])
    names = ["is_IRF", "is_SRF", "is_PED"]
    held = {key: "".join(str(value) or "-" for value in row[names]) for key, row in table.iterrows()}
    assert {held["a", 0], held["b", 0], held["c", 0]} == {"1--"}
    assert {held["a", 1], held["b", 1], held["c", 1]} == {"0--"}
    assert (held["d", 0], held["d", 1], held["e", 0], held["e", 1]) == ("---", "011", "100", "011")
    assert "a fluid is unknown in the others, not absent" in said
    counted = [re.findall(r"(\w+) (\d+)", line) for line in said.splitlines() if " of " in line and "PED " in line]
    irf, srf = (sum(int(dict(of_part)[fluid]) for of_part in counted) for fluid in ("IRF", "SRF"))
    assert (irf, srf) == (6, 3)
    assert "some voxels are not judged" in said
    assert "1 slices count as not outlined" in said
    masks, _ = open_volume(root / "output" / "pre_processed" / "oct_masks" / "Topcon_d.mhd")
    assert np.unique(masks[0]).tolist() == [255]
    assert np.unique(masks[1][:, 101:]).tolist() == [255]
    assert np.unique(masks[1][:, :99]).tolist() == [0, 2, 3]
    masks, _ = open_volume(root / "output" / "pre_processed" / "oct_masks" / "Topcon_a.mhd")
    assert np.unique(masks).tolist() == [0, 1]


def test_what_outlined_csv_and_other_mhd_say_is_followed_when_it_changes(prepared, prepare_here, capsys):
    root, _ = prepared
    state = root / "data" / "outlined.csv"
    before = state.read_text()
    state.write_text(before.replace("Topcon/a,IRF", "Topcon/a,IRF SRF"))
    prepare_here(root / "data", root / "output", "NOT_JUDGED_OTHER=(1, 2)")
    said = capsys.readouterr().out
    assert "1 to do: outlined changed" in said
    assert "1 to do: not judged changed" in said
    state.write_text(before)
    prepare_here(root / "data", root / "output", "NOT_JUDGED_OTHER=[1]")
    assert "images: 4 of 6" in capsys.readouterr().out
    prepare_here(root / "data", root / "output", "NOT_JUDGED_OTHER=(1,)")
    assert "images: 6 of 6" in capsys.readouterr().out


def test_what_changes_nothing_or_leaves_nothing_is_said(tmp_path, prepare_here, capsys):
    for seed, name in enumerate("abc"):
        write_raw_case(tmp_path / "data", "Topcon", name, seed)
    prepare_here(tmp_path / "data", tmp_path / "output", "NOT_JUDGED_OTHER=(4,)")
    assert "warning: NOT_JUDGED_OTHER changes nothing: no other.mhd holds 4 where" in capsys.readouterr().out
    write_outlined(tmp_path / "data", {"RETOUCH-TrainingSet-Topcon/a": ()})
    with pytest.raises(InputError, match=r"_data.csv: Topcon case a is not in the data, or nothing is outlined in it"):
        prepare_here(tmp_path / "data", tmp_path / "output")
    write_outlined(tmp_path / "data", {"RETOUCH-TrainingSet-Topcon/a": (), "RETOUCH-TrainingSet-Topcon": ()})
    with pytest.raises(InputError, match=r"no case has a reference.mhd that outlines anything"):
        prepare_here(tmp_path / "data", tmp_path / "output")


def test_rows_without_any_outline_neither_train_nor_judge(tmp_path):
    path = tmp_path / "train_data.csv"
    rows = [("a", "Topcon", "a", 0, 1, "", 0), ("a", "Topcon", "a", 1, "", "", "")]
    pd.DataFrame(rows, columns=SliceRow._fields[:7]).to_csv(path, index=False)
    read = read_csv_data(path)
    assert [(row.is_IRF, row.is_SRF, row.is_PED) for row in read] == [(1, None, 0), (None, None, None)]
    assert [outlined_in(row) for row in read] == [("IRF", "PED"), ()]
    assert read_outlined_rows(path) == read[:1]
    pd.DataFrame(rows[1:], columns=SliceRow._fields[:7]).to_csv(path, index=False)
    with pytest.raises(InputError, match="no fluid was outlined in any of its B-scans"):
        read_outlined_rows(path)


# ---- Patches -------------------------------------------------------------------------------------------------------
@pytest.fixture
def prepared_case(tmp_path):
    """A B-scan smaller than a patch, with IRF at the left, PED at the right and a patch that was not judged."""
    mask = np.zeros((1, 200, 100), np.uint8)
    mask[0, 90:110, 10:20], mask[0, 90:110, 60:70], mask[0, 150:160, 40:60] = 1, 3, 255
    write_prepared_case(tmp_path, "Topcon", "a", noise((1, 200, 100)), mask)
    return tmp_path, mask[0]


def test_a_batch_allows_what_the_reader_did_not_rule_out(prepared_case):
    folder, mask = prepared_case
    row = SliceRow("a", "Topcon", "a", 0, 1, None, 1)  # SRF was not outlined
    settings = batch_settings(folder, batch_size=1, drop_healthy=0.0, border=0)
    batches = list(get_iterator_nuts([row], settings, training=False, epoch=0))
    _, (allowed, *labels) = batches[0]
    assert [label.item() for label in labels] == [1, 255, 1 if (mask == 3).any() else 0]
    padded = np.pad(mask, ((0, 56), (0, 28)))
    expected = np.stack([padded % 255 == 0, padded % 254 == 1, np.isin(padded, (0, 255)), padded % 252 == 3], axis=-1)
    np.testing.assert_array_equal(allowed[0], expected)  # background may be SRF, in the padding too


@pytest.mark.parametrize(
    ("kind", "expected"), [((1, 0, 1), {(1, 0, 1)}), ((1, None, 1), {(1, 255, 1)}), ((None, 0, None), {(255, 0, 255)})]
)
def test_labels_of_a_patch_are_unknown_where_nobody_looked(tmp_path, kind, expected):
    mask = np.zeros((1, 256, 128), np.uint8)
    if kind[0]:
        mask[0, 100:120, 50:60], mask[0, 100:120, 70:80] = 1, 3
    write_prepared_case(tmp_path, "Topcon", "a", noise((1, 256, 128)), mask)
    settings = batch_settings(tmp_path, drop_healthy=0.0)
    samples = patch_samples([SliceRow("a", "Topcon", "a", 0, *kind)], settings, training=True, epoch=0)
    assert {tuple(sample[2:]) for sample in samples} == expected


def test_no_patch_is_kept_for_what_is_unknown(tmp_path):
    write_prepared_case(tmp_path, "Topcon", "a", noise((1, 256, 128)))
    row, settings = SliceRow("a", "Topcon", "a", 0, 0, None, 0), batch_settings(tmp_path, drop_healthy=0.999999)
    assert list(patch_samples([row], settings, training=True, epoch=0)) == []


def test_a_rotated_patch_is_as_unknown_where_it_was_turned_in(tmp_path):
    write_prepared_case(tmp_path, "Topcon", "a", noise((1, 256, 128)))
    row, settings = SliceRow("a", "Topcon", "a", 0, 0, None, None), batch_settings(tmp_path, drop_healthy=0.0)
    masks = [mask for epoch in range(6) for _, mask, *_ in patch_samples([row], settings, training=True, epoch=epoch)]
    images = [image for epoch in range(6) for image, *_ in patch_samples([row], settings, training=True, epoch=epoch)]
    assert any((image == 0).any() for image in images)  # some were turned
    assert {value for mask in masks for value in np.unique(mask)} == {IRF_ALONE}


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
    model = export_brightness_model(tmp_path / "model", taught=["SRF", "PED"])
    write_volume(tmp_path / "Spectralis.mhd", bright_scan(1), SPACING_MM)
    said, _ = run_python("test.py", tmp_path / "Spectralis.mhd", "--output", tmp_path / "out", "--model", model)
    assert "Spectralis_Spectralis: SRF 0.000, PED 0.000 mm3" in said
    assert "note: IRF was not taught: the model never finds it" in said
    assert not read_volume(tmp_path / "out" / "Spectralis_Spectralis.mhd")[0].any()
    (row,) = pd.read_csv(tmp_path / "out" / "summary.csv").to_dict("records")
    assert np.isnan(row["IRF_mm3"])
    assert row["SRF_mm3"] == 0
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


def test_a_discriminator_refuses_scans_without_outlines_beside_partly_outlined_ones(monkeypatch):
    partly = rows_that_outline((1, 0, 0), (1, None, 0))
    monkeypatch.setattr(config, "ADVERSARIAL_WEIGHT", 0.1)
    with pytest.raises(InputError, match=r"UNLABELLED_SHARE = 0: Topcon a outlines IRF, PED alone, expected all"):
        adversarial_training.check_masks_are_alike(partly)
    adversarial_training.check_masks_are_alike(partly[:1])
    monkeypatch.setattr(config, "ADVERSARIAL_WEIGHT", 0.0)
    adversarial_training.check_masks_are_alike(partly)  # the teacher stays


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
    assert set(pd.read_csv(run / "evaluation" / "volumes.csv").fluid) == {"IRF"}
    assert all(read_volume(path)[0].max() <= 1 for path in (run / "evaluation" / "predictions").glob("*.mhd"))
