"""What later steps read of what step 1 prepared, and what they refuse."""

import json
import shutil

import numpy as np
import pytest
from helpers import arguments, prepare, run_here, write_raw_case, write_record

import adversarial_training
import config
import evaluate
import model_training
from utils.errors import InputError
from utils.preparation.prepared import (
    SliceRow,
    all_seen,
    check_unseen,
    describe_data,
    patient_digest,
    read_csv_data,
    read_records,
    record_path,
)
from utils.settings.patch_settings import MixedRoot
from utils.training.data import check_matching, describe_mixed, read_training_data
from utils.volumes.mhd import write_volume
from utils.volumes.vendors import VENDORS


@pytest.fixture(scope="module")
def prepared_once(tmp_path_factory):
    """Three cases of each vendor, prepared: a folder with data/ and output/, which no test changes."""
    folder = tmp_path_factory.mktemp("prepared")
    for number, vendor in enumerate(VENDORS):
        for name in ("p1_left", "p2_left", "p3_left"):
            write_raw_case(folder / "data", vendor, name, seed=10 * number + int(name[1]))
    prepare(folder / "data", folder / "output", by=run_here)
    return folder


@pytest.fixture
def prepared(prepared_once, tmp_path, set_config):
    """A copy of `prepared_once`; returns OUTPUT_ROOT, and the settings are those of its preparation."""
    shutil.copytree(prepared_once, tmp_path, dirs_exist_ok=True)
    set_config(DATA_ROOT=str(tmp_path / "data"), OUTPUT_ROOT=str(tmp_path / "output"))
    return tmp_path / "output"


def rows_of(*parts):
    return {part: read_csv_data(config.split_csv(part)) for part in parts}


def test_a_record_says_how_each_case_was_prepared(prepared):
    rows = rows_of("train", "val")
    settings = config.preparation_settings()
    settings.pop("patient_pattern")
    records = read_records([*rows["train"], *rows["val"]], **settings)
    assert len(records) == 6
    assert {record["AXIAL_SPACING_MM"] for record in records.values()} == {0.003872}
    assert len({record["voxels"] for record in records.values()}) == 6
    matched = {vendor for (vendor, _), record in records.items() if record["reference histogram"]}
    assert matched == {"Cirrus", "Topcon"}


@pytest.mark.parametrize("script", [model_training, adversarial_training])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("AXIAL_SPACING_MM=0.002", r"prepared with AXIAL_SPACING_MM = 0.003872, config has 0.002; set it back"),
        ("MATCH_INTENSITIES=False", r"to histogram \w+, expected None, as MATCH_INTENSITIES = False"),
    ],
)
def test_training_refuses_what_was_prepared_otherwise(prepared, script, setting, message):
    """Trained at another spacing, best.json would state what the network never saw."""
    with pytest.raises(InputError, match=message):
        script.main(["--set", setting])


def test_training_refuses_another_histogram_and_cases_without_a_record(prepared):
    path = config.reference_histogram_csv()
    path.write_text("grey_value,count\n77,5\n")
    with pytest.raises(
        InputError, match=r"Cirrus_p._left\.images\.json: grey values were matched to histogram \w+, expected \w+, "
    ):
        model_training.main([])
    for record in (prepared / "pre_processed" / "finished").glob("Topcon_*"):
        record.unlink()
    with pytest.raises(InputError, match=r"no record of how Topcon p._left was prepared; run prepare_data\.py again"):
        model_training.main([])


def test_descriptions_name_nobody_and_follow_voxels_and_patients(prepared):
    rows = rows_of("train", "val")
    described = describe_data(rows, **config.preparation_settings())
    assert "left" not in json.dumps(described)
    assert len(described["train"]["cases"]) == len(described["val"]["cases"]) == 3
    assert not set(described["train"]["cases"]) & set(described["val"]["cases"])
    settings = {**config.preparation_settings(), "patient_pattern": "^(p.)_"}
    patients = {row.image_name[:2] for row in rows["train"]}
    assert describe_data(rows, **settings)["train"]["patients"] == sorted(map(patient_digest, patients))
    seen = all_seen(described)
    assert seen["cases"] == sorted({*described["train"]["cases"], *described["val"]["cases"]})


def test_a_case_that_trained_is_named_under_any_name(prepared, tmp_path, prepare_here):
    settings = config.preparation_settings()
    seen = all_seen(describe_data(rows_of("train"), **settings))
    check_unseen("test_data.csv", rows_of("test")["test"], seen, **settings)
    case = rows_of("train")["train"][0]
    # The same voxels under another name, and a new scan of a patient who trained.
    again = tmp_path / "data" / case.root
    new = tmp_path / "new" / f"RETOUCH-TrainingSet-{case.vendor}" / "renamed"
    new.mkdir(parents=True)
    for file in again.iterdir():
        (new / file.name).write_bytes(file.read_bytes())
    write_raw_case(tmp_path / "new", case.vendor, case.image_name, seed=98)
    prepare_here(tmp_path / "new", tmp_path / "new_output", "MATCH_INTENSITIES=False")
    rows = read_csv_data(config.preprocessed_folder() / "slice_gt.csv")
    with pytest.raises(InputError) as caught:
        check_unseen("test_data.csv", rows, seen, **config.preparation_settings())
    renamed, patient = sorted(caught.value.messages, key=lambda message: "patient" in message)
    assert renamed.startswith(f"test_data.csv: {case.vendor} renamed was used to train this network")
    assert patient.startswith(f"test_data.csv: another case of the patient of {case.vendor} {case.image_name} was used")


def test_the_digest_of_voxels_follows_type_shape_and_values(tmp_path, prepare_here):
    """Equal bytes in another shape are another scan."""
    digests = []
    for number, shape in enumerate([(2, 300, 140), (2, 140, 300)]):
        voxels = np.random.default_rng(0).integers(1, 256, 2 * 300 * 140).astype(np.uint8).reshape(shape)
        folder = tmp_path / f"data{number}" / "Topcon" / "a"
        write_volume(folder / "oct.mhd", voxels, (0.0117, 0.003872, 0.05))
        write_volume(folder / "reference.mhd", np.zeros(shape, np.uint8), (0.0117, 0.003872, 0.05))
        prepare_here(tmp_path / f"data{number}", tmp_path / f"output{number}")
        record = tmp_path / f"output{number}" / "pre_processed" / "finished" / "Topcon_a.images.json"
        digests.append(json.loads(record.read_text())["voxels"])
    assert digests[0] != digests[1]


@pytest.mark.parametrize("roi", [None, '{"images": "of before"}'])
def test_a_case_whose_roi_mask_is_not_of_its_images_is_unfinished(tmp_path, roi):
    """Step 1 was killed, or still runs: the CSVs are those of before."""
    write_record(tmp_path, "Topcon", "a")
    rows, folder = [SliceRow("a", "Topcon", "a", 0, 0, 0, 0)], tmp_path / "pre_processed"
    assert len(read_records(rows, folder, 0.003872, None)) == 1
    path = record_path(folder, "Topcon", "a", "roi")
    path.unlink()
    if roi:
        path.write_text(roi)
    with pytest.raises(InputError, match=r"the ROI mask of Topcon a is not of it; run prepare_data\.py again"):
        read_records(rows, folder, 0.003872, None)


def test_step_1_says_what_the_split_lacks(tmp_path, prepare_here, capsys):
    for number, vendor in enumerate(VENDORS):
        for name in "ab":
            write_raw_case(tmp_path / "data", vendor, name, seed=10 * number + ord(name))
    prepare_here(tmp_path / "data", tmp_path / "output")
    printed = capsys.readouterr().out
    assert "Split: 3 train, 0 val, 3 test volumes" in printed
    assert "warning: val_data.csv is empty, and model_training.py needs it; add patients" in printed
    with pytest.raises(InputError, match=r"val_data\.csv: lists no B-scan, .* add patients"):
        model_training.main([])


def test_step_1_says_which_fluid_cannot_be_judged(tmp_path, prepare_here, capsys):
    for name in "abc":
        write_raw_case(tmp_path / "data", "Topcon", name, seed=ord(name))
    prepare_here(tmp_path / "data", tmp_path / "output")
    printed = capsys.readouterr().out.partition("Split")[2]
    assert printed.count("warning") == printed.count("every case in test_data.csv holds IRF and SRF and PED") == 1
    validating = read_csv_data(config.split_csv("val"))[0].root
    reference = np.zeros((2, 300, 140), np.uint8)
    reference[0, 140:150, 20:60] = 1
    write_volume(tmp_path / "data" / validating / "reference.mhd", reference, (0.0117, 0.0026, 0.05))
    prepare_here(tmp_path / "data", tmp_path / "output")
    assert "no case in val_data.csv holds SRF or PED, so that model_training.py cannot judge" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "pattern", "warns"),
    [
        (["p1__a", "p1__b", "p1__c", "p2__a"], "^(.*)$", True),
        (["p1__a", "p1__b", "p2__a", "p3__a"], "^(.+?)__", False),
        (["p1__a", "p2__a", "p3__a", "d"], "^(.*)$", False),
    ],
)
def test_step_1_says_how_imported_patients_stay_on_one_side(tmp_path, prepare_here, capsys, names, pattern, warns):
    for number, name in enumerate(names):
        write_raw_case(tmp_path / "data", "Spectralis", name, seed=number)
    prepare_here(tmp_path / "data", tmp_path / "output", f"PATIENT_PATTERN={pattern}")
    warnings = [line for line in capsys.readouterr().out.splitlines() if "patient__picture" in line]
    assert len(warnings) == warns
    assert all("1 patients, such as p1" in line and line.endswith("set PATIENT_PATTERN=^(.+?)__") for line in warnings)


def test_a_test_case_is_no_reference_for_grey_values(tmp_path, prepare_here):
    for number, name in enumerate("abc"):
        write_raw_case(tmp_path / "data", "Spectralis", name, seed=number)
    prepare_here(tmp_path / "data", tmp_path / "output")
    name = read_csv_data(config.split_csv("test"))[0].image_name
    with pytest.raises(InputError, match=f"REFERENCE_CASE = '{name}': is a test case"):
        prepare_here(tmp_path / "data", tmp_path / "output", f"REFERENCE_CASE={name}")


def test_what_is_mixed_in_is_recorded_and_holds_nobody_of_the_validation(prepared, tmp_path, prepare_here):
    own, others = (config.DATA_ROOT, config.OUTPUT_ROOT), tmp_path / "others" / "output"
    rows, described = rows_of("train", "val"), describe_data(rows_of("train", "val"), **config.preparation_settings())
    for number in range(4):
        write_raw_case(tmp_path / "others" / "data", "Spectralis", f"q{number}", seed=70 + number)
    prepare_here(tmp_path / "others" / "data", others)
    config.load(arguments(*own, f"MIXED_ROOTS={{'{others}': 0.5}}", "MONITOR=val_loss"))
    config.validate()
    data = read_training_data(**config.training_data_settings(), start=None)
    mixed = [row for row in data.rows["train"] if row.folder == others / "pre_processed"]
    assert {row.image_name[0] for row in mixed} == {"q"}
    assert data.rows == {"train": rows["train"] + mixed, "val": rows["val"]}
    assert {name: data.description[name] for name in described} == described
    assert len(data.description["mixed 1"]["cases"]) == len({row.image_name for row in mixed})
    config.load(arguments(*own, "PATIENT_PATTERN=^(p.)_"))  # names of another kind
    patients = read_training_data(**config.training_data_settings(), start=None).description["mixed 1"]["patients"]
    assert patients == sorted({patient_digest(row.image_name) for row in mixed})
    config.load(arguments(*own, f"MIXED_ROOTS={{'{own[1]}': 0.5}}", "PATIENT_PATTERN=^(p)"))
    with pytest.raises(InputError, match=r"another case of the patient of .* was used in training"):
        read_training_data(**config.training_data_settings(), start=None)


def test_the_pattern_finds_the_patients_of_a_mixed_data_set_case_by_case(tmp_path, capsys):
    names = ["p1_left", "p1_right", "p2_left", "phantom"]
    for name in names:
        write_record(tmp_path, "Topcon", name)
    root = MixedRoot(tmp_path / "train_data.csv", tmp_path / "pre_processed", 0.5)
    rows = [SliceRow(name, "Topcon", name, 0, 0, 0, 0) for name in names]
    preparation = {"preprocessed_folder": "elsewhere", "axial_spacing_mm": 0.003872, "reference_histogram_csv": None}
    described = describe_mixed(root, rows, {**preparation, "patient_pattern": "^(p.)_"})
    assert described["patients"] == sorted(map(patient_digest, ["p1", "p2", "phantom"]))
    note = "train_data.csv: 1 of 4 case names do not match PATIENT_PATTERN '^(p.)_', such as phantom; each"
    assert note in capsys.readouterr().out
    describe_mixed(root, rows[:3], {**preparation, "patient_pattern": "^(p.)_"})
    assert capsys.readouterr().out == ""


def test_training_refuses_a_patient_on_both_sides_as_evaluation_would(prepared):
    """The split was drawn by another PATIENT_PATTERN than training's."""
    config.load(["--set", "PATIENT_PATTERN=^(p)"])
    with pytest.raises(InputError, match=r"val_data\.csv: another case of the patient of .* was used in training"):
        read_training_data(**config.training_data_settings(), start=None)


@pytest.mark.parametrize(
    ("vendors", "done", "given", "message"),
    [
        (["Cirrus", "Spectralis"], None, None, r"MATCH_INTENSITIES = True: the volumes were prepared with False"),
        (["Cirrus", "Spectralis"], 5, 6, None),  # the training case's histogram counts
        (["Cirrus"], None, None, None),  # there was nothing to match to
        (["Cirrus"], None, 6, r"REFERENCE_HISTOGRAM = '.*': is of 6 voxels, the volumes were prepared with None"),
        (["Cirrus"], 5, 6, r"REFERENCE_HISTOGRAM = '.*': is of 6 voxels, the volumes were prepared with one of 5 vox"),
        (["Cirrus"], 5, 5, None),
        (["Cirrus"], 5, None, None),
        (["Spectralis"], None, 6, None),  # needs no matching
    ],
)
def test_training_refuses_other_grey_values_than_its_settings_ask_for(tmp_path, vendors, done, given, message):
    paths = [tmp_path / "done.csv", tmp_path / "given.csv"]
    for path, count in zip(paths, (done, given), strict=True):
        if count:
            path.write_text(f"grey_value,count\n77,{count}\n")
    rows = {"train": [SliceRow("a", vendor, "a", 0, 0, 0, 0) for vendor in vendors], "val": []}
    settings = (rows, paths[0], str(paths[1]) if given else None)
    check_matching(rows, None, settings[2])  # MATCH_INTENSITIES = False: the records are compared
    if message is None:
        check_matching(*settings)
    else:
        with pytest.raises(InputError, match=message):
            check_matching(*settings)


@pytest.mark.parametrize("prepared_with", [True, False])
@pytest.mark.parametrize("trained_with", [True, False])
def test_spectralis_alone_needs_no_matching_and_is_evaluated_as_it_was_trained(
    tmp_path, prepare_here, prepared_with, trained_with
):
    for number in range(4):
        write_raw_case(tmp_path / "data", "Spectralis", f"s{number}", seed=number)
    prepare_here(tmp_path / "data", tmp_path / "output", f"MATCH_INTENSITIES={prepared_with}")
    config.load(["--set", f"MATCH_INTENSITIES={trained_with}"])
    data = read_training_data(**config.training_data_settings(), start=None)
    evaluate.check_model("best.keras", model_training.model_details(data), is_own=True)


@pytest.mark.parametrize(("start", "asked_for"), [("None", "ENCODER_WEIGHTS"), ("box.keras", r"train_data\.csv")])
def test_a_starting_model_needs_no_weights_of_an_encoder(tmp_path, set_config, start, asked_for):
    set_config()
    settings = ("MODEL=Unet/efficientnetlite0", "PATCH_SIZE_W=160", f"ENCODER_WEIGHTS={tmp_path / 'gone.pth'}")
    with pytest.raises(InputError, match=asked_for):
        model_training.main(arguments(tmp_path, tmp_path / "output", *settings, f"INIT_WEIGHTS={start}"))
