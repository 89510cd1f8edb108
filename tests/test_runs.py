import numpy as np
import pytest

from utils.errors import InputError
from utils.files import read_json
from utils.training import run_folder

PART = {"cases": ["1", "2"], "patients": ["p"], "rows": "r"}
DATA = {"preparation": {"AXIAL_SPACING_MM": [0.004]}, "train": PART, "val": {**PART, "cases": ["3"]}}
MIXED = {"cases": ["4", "5"], "patients": ["q"], "rows": "r", "preparation": {"AXIAL_SPACING_MM": [0.004]}}
DATA |= {"mixed 1": MIXED, "earlier": {"cases": ["6", "7"], "patients": ["s"]}}


def begin(folder, *arguments, **options):
    """A run that has come to a checkpoint."""
    run_folder.start_run(folder, *arguments, **options)
    (folder / "last-0000-0000001.json").touch()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"train": {**PART, "cases": ["2", "4", "5"]}},
            "train_data.csv has 2 cases that it did not have, and lacks 1",
        ),
        ({"val": {**DATA["val"], "cases": []}}, "val_data.csv has 0 cases that it did not have, and lacks 1"),
        ({"train": {**PART, "rows": "s"}}, "train_data.csv lists other B-scans, or other patients"),
        ({"preparation": {"AXIAL_SPACING_MM": [0.002]}}, "prepared in another way"),
        ({"mixed 1": {**MIXED, "cases": ["4", "8"]}}, "data set 1 of MIXED_ROOTS has 1 cases that it did not have"),
        ({"mixed 1": {**MIXED, "rows": "s"}}, "data set 1 of MIXED_ROOTS lists other B-scans"),
        ({"mixed 1": {**MIXED, "preparation": {}}}, "data set 1 of MIXED_ROOTS has been prepared in another way"),
        ({"earlier": {"cases": ["6"], "patients": ["s"]}}, "the model that training starts from has not seen all"),
        ({"earlier": {"cases": ["6", "7"], "patients": []}}, "the model that training starts from has not seen all"),
    ],
)
def test_a_run_does_not_go_on_with_other_data(tmp_path, changed, message):
    begin(tmp_path, {}, DATA)
    run_folder.start_run(tmp_path, {}, DATA)
    with pytest.raises(InputError, match=message):
        run_folder.start_run(tmp_path, {}, {**DATA, **changed})
    run_folder.start_run(tmp_path, {}, DATA)  # what was begun with stays


@pytest.mark.parametrize(
    "before",
    [
        {name: part for name, part in DATA.items() if not name.startswith(("mixed", "earlier"))},
        # Patients of a mixed data set were its cases where one name missed the pattern, and its preparation not noted.
        {**DATA, "mixed 1": {"cases": ["4", "5"], "patients": ["4", "5"], "rows": "r"}},
        {**DATA, "earlier": {"cases": ["5", "6"], "patients": ["s"]}},  # what both models saw was noted twice
    ],
)
def test_a_run_that_noted_less_goes_on_and_notes_all(tmp_path, before):
    begin(tmp_path, {"SEED": 1}, before)
    run_folder.start_run(tmp_path, {"SEED": 1, "STARTING_MODEL": "a"}, DATA)
    assert read_json(tmp_path / "data.json") == DATA
    with pytest.raises(InputError, match=r"model that training starts from was 'a', is now 'b'\n.* delete "):
        run_folder.start_run(tmp_path, {"SEED": 1, "STARTING_MODEL": "b"}, DATA)


STRONG = {"ROTATION_DEGREES": 15.0, "ROTATE_BOTH_WAYS": True, "GREY_AUGMENTATION": 0.3}
STRONG |= {"SCALE_AUGMENTATION": 0.5, "SCALE_RANGE": 0.25}


@pytest.mark.parametrize(
    ("stored", "settings", "complaint"),
    [
        ({"CROSS_ENTROPY": "plain", "OPTIMIZER": "adamw"}, {"LOSS": "plain"}, None),
        ({"CROSS_ENTROPY": "plain"}, {"LOSS": "balanced"}, "LOSS was 'plain', is now 'balanced'"),
        (STRONG, {"AUGMENTATION": "strong"}, None),
        ({**STRONG, "SCALE_RANGE": 0.1}, {"AUGMENTATION": "strong"}, r"AUGMENTATION was '.*scale_range=0.1\)', is now"),
        ({"D_POOLING": "max"}, {}, None),
        ({"D_POOLING": "average"}, {}, "D_POOLING was 'average', which is gone: the maximum is pooled"),
    ],
)
def test_a_run_with_settings_of_an_earlier_version_goes_on_or_says_why_not(tmp_path, stored, settings, complaint):
    begin(tmp_path, stored, DATA)
    if complaint is None:
        run_folder.start_run(tmp_path, settings, DATA)
        assert read_json(tmp_path / "config.json") == settings
        return
    with pytest.raises(InputError, match=complaint):
        run_folder.start_run(tmp_path, settings, DATA)
    run_folder.start_run(tmp_path, settings, DATA, irrelevant=["D_POOLING", "LOSS", "AUGMENTATION"])


def test_a_run_of_before_goes_on_with_a_note(tmp_path, capsys):
    begin(tmp_path, {}, DATA)
    (tmp_path / "data.json").unlink()
    run_folder.start_run(tmp_path, {}, DATA)
    assert "does not say which cases were used" in capsys.readouterr().out
    assert read_json(tmp_path / "data.json") == DATA


def test_a_starting_model_that_lacks_a_part_is_refused():
    """Its best.json was edited."""
    of_part = {"cases": ["a"], "patients": ["p"], "rows": "r"}
    today = {"preparation": {"AXIAL_SPACING_MM": [1]}, "train": of_part, "val": of_part}
    for lacking, expected in (("val", "val_data.csv has 1 cases"), ("preparation", "prepared in another way")):
        before = {name: part for name, part in today.items() if name != lacking}
        with pytest.raises(InputError, match=expected):
            run_folder.check_same_data("best.json", before, today, run_folder.OWN_PARTS)


def test_a_changed_setting_stops_a_run_and_is_named(tmp_path):
    settings = {"SEED": 1, "ADAM_LR": 0.1, "EPOCH": 3, "WORKERS": 0, "D_ADAM_LR": 0.1}
    run_folder.start_run(tmp_path, {**settings, "SEED": 3}, DATA)
    begin(tmp_path, settings, DATA)  # what has no checkpoint starts anew
    with pytest.raises(InputError) as caught:
        run_folder.start_run(tmp_path, {**settings, "SEED": 2, "ADAM_LR": 0.2}, DATA, irrelevant=["D_ADAM_LR"])
    text = "\n".join(caught.value.messages)
    assert "SEED was 1, is now 2" in text
    assert "ADAM_LR was 0.1, is now 0.2" in text
    assert read_json(tmp_path / "config.json") == settings
    run_folder.start_run(
        tmp_path, {**settings, "EPOCH": 9, "WORKERS": 2, "D_ADAM_LR": 0.5}, DATA, irrelevant=["D_ADAM_LR"]
    )
    newer = {"defaults": {"NEW": (1,), "SEED": 7}, "irrelevant": ["D_ADAM_LR"]}
    run_folder.start_run(
        tmp_path, {**settings, "EPOCH": 9, "NEW": (1,)}, DATA, **newer
    )  # what the run did not know was at this
    assert read_json(tmp_path / "config.json")["EPOCH"] == 9
    assert read_json(tmp_path / "versions.json")["numpy"] == np.__version__


@pytest.mark.parametrize("schedule", [None, "cosine"])
def test_a_schedule_that_ends_with_the_last_epoch_leaves_their_number(tmp_path, schedule):
    settings = {"EPOCH": 3, "ADVERSARIAL_EPOCH": 3, "LR_SCHEDULE": schedule}
    begin(tmp_path, settings, DATA)
    longer = {**settings, "EPOCH": 9, "ADVERSARIAL_EPOCH": 9}
    if schedule is None:
        run_folder.start_run(tmp_path, longer, DATA)
        return
    with pytest.raises(InputError, match="EPOCH was 3, is now 9"):
        run_folder.start_run(tmp_path, longer, DATA)


def test_the_weights_of_the_last_epochs_are_kept(tmp_path):
    class Model:
        def save_weights(self, path, overwrite):
            assert path.name.endswith(".weights.h5")
            path.write_text("weights")

    for epoch in (1, 2, 3):
        run_folder.keep_epoch_weights(tmp_path, Model(), epoch, keep=2)
    assert [path.name for path in sorted(tmp_path.glob("epochs/*"))] == ["0002.weights.h5", "0003.weights.h5"]
    run_folder.keep_epoch_weights(tmp_path, Model(), 4, keep=0)
    run_folder.keep_epoch_weights(tmp_path, Model(), 5, keep=None)
    assert len(list(tmp_path.glob("epochs/*"))) == 3


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "last.json").write_text('{"epoch": ')
    with pytest.raises(InputError, match=r"last\.json: not valid JSON"):
        read_json(tmp_path / "last.json")


def test_log_and_events(tmp_path):
    run_folder.write_log(tmp_path, [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    assert (tmp_path / "log.csv").read_text().splitlines() == ["epoch,loss", "1,0.5", "2,0.25"]
    event_log = run_folder.EventLog(tmp_path)
    event_log.write(2, {"loss": 0.25})
    event_log.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(2, 0.25)]
