"""Cases whose readers did not outline every fluid, from files to patches."""

import re

import numpy as np
import pandas as pd
import pytest
from helpers import batch_settings, noise, prepare, read_csv, run_here, write_prepared_case, write_raw_case

from utils.data_prepare import get_iterator_nuts, patch_samples
from utils.errors import InputError
from utils.labels import allowed_tables, unlabelled_value, without_unjudged
from utils.patches.patch_preview import class_balance
from utils.plots import NOT_JUDGED_COLOUR, overlay
from utils.preparation.cases import find_cases, outlined_below
from utils.preparation.checks import read_facts_or_finding
from utils.preparation.outlined import as_judged, read_outlined, write_outlined
from utils.preparation.prepared import SliceRow, outlined_in, read_csv_data, read_outlined_rows
from utils.preparation.roi import roi_mask
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
    said, _ = prepare(root / "data", root / "output", "NOT_JUDGED_OTHER=(1,)", by=run_here)
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
    settings = batch_settings(folder, batch_size=1, drop_healthy=0.0, patch_border=0)
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


def test_the_class_balance_of_what_is_partly_known():
    """Four pixels: background or SRF, IRF, PED, not judged; SRF is unknown."""
    mask = np.array([[128 + 1 + 4, 1], [3, 255]], np.uint8)
    balance = class_balance({"Topcon": [(np.ones((2, 2, 3), np.uint8), mask, 1, 255, 1)]})["Topcon"].to_dict()
    pixels = {name: balance[f"% of pixels {name}"] for name in ("background", "IRF", "SRF", "PED", "not judged")}
    assert pixels == {"background": 25, "IRF": 25, "SRF": 0, "PED": 25, "not judged": 25}
    assert (balance["% with IRF"], balance["% with SRF"]) == (100, 0)


def test_pictures_show_what_was_not_judged():
    grey, labels = np.full((8, 8), 100, np.uint8), np.zeros((8, 8), np.uint8)
    labels[2:4], labels[5:7], labels[7] = 255, 1, IRF_ALONE
    picture = overlay(grey, labels)
    assert (picture[2, 0] == np.rint(0.55 * 100 + 0.45 * NOT_JUDGED_COLOUR)).all()
    assert (picture[[0, 7]] == 100).all()  # background, as far as is known
    assert (picture[6, 0] != 100).any()
