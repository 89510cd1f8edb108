import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from utils.errors import InputError
from utils.files import sha256
from utils.settings.rules import TrainingRules
from utils.training.run import TrainingRun, epoch_score, why_finished
from utils.training.state import newest_state

RULES = TrainingRules(epochs=5, monitor="val_dice", window=3, patience=None, keep_epochs=0, save_minutes=60.0)


class Variable:
    """As much of a Keras variable as a run needs."""

    def __init__(self, value):
        self.assign(value)

    def assign(self, value):
        self.value = np.asarray(value, np.float32)
        self.shape = self.value.shape

    def __array__(self, dtype=None, copy=None):
        return self.value

    def __float__(self):
        return float(self.value)

    def __truediv__(self, other):
        return self.value / other


def start(folder, state=None, exported=None, **rules):
    """A run without a network. `exported`, if given, gets what is exported as the best."""
    learning_rate = Variable(0.5)
    return TrainingRun(
        folder,
        None,
        [learning_rate, Variable(0.0)],
        state,
        replace(RULES, **rules),
        panels={"loss": ["loss"]},
        export=(exported if exported is not None else []).append,
    )


def take_epoch(run, dice, losses=(1.0, 3.0)):
    """Steps with these losses, then a validation with this Dice; returns the epoch's row."""
    run.begin_epoch(len(losses))
    for count in range(1, len(losses) + 1):
        run.after_step({"loss": float(np.mean(losses[:count]))})
    return end_epoch(run, dice)


def end_epoch(run, dice):
    return run.end_epoch({"val_dice": dice}, 4, SimpleNamespace(learning_rate=run.variables[0]))


# ---- Choosing ------------------------------------------------------------------------------------------------------
def test_an_epochs_score_is_its_own_value_or_its_neighbourhoods_whichever_is_lower():
    history = [{"val_dice": value, "val_loss": 1 - value} for value in (0.2, 0.4, 0.9)]
    assert epoch_score(history, "val_dice", 3) == pytest.approx(0.5)  # lucky: (0.2 + 0.4 + 0.9) / 3
    assert epoch_score(history, "val_dice", 1) == pytest.approx(0.9)
    assert epoch_score(history[:2], "val_dice", 3) == pytest.approx(0.3)
    assert epoch_score(history[::-1], "val_dice", 3) == pytest.approx(0.2)  # unlucky
    assert epoch_score(history, "val_loss", 1) == pytest.approx(-0.1)
    assert epoch_score(history, "val_loss", 2) == pytest.approx(-0.35)


def test_a_run_ends_after_its_epochs_or_its_patience():
    assert why_finished({"epoch": 4, "best": {"epoch": 1}}, 5, None) is None
    assert why_finished({"epoch": 5, "best": {"epoch": 5}}, 5, None) == "5 epochs of 5"
    assert why_finished({"epoch": 3, "best": {"epoch": 1}}, 5, 3) is None
    assert why_finished({"epoch": 4, "best": {"epoch": 1}}, 5, 3) == "no better epoch in the last 3"
    assert why_finished({"epoch": 0, "best": None}, 5, 3) is None


def test_a_better_epoch_is_exported_and_a_worse_one_is_not(tmp_path):
    exported = []
    run = start(tmp_path, exported=exported, window=1)
    for dice in (0.3, 0.2, 0.6):
        take_epoch(run, dice)
    assert [(best["epoch"], best["value"]) for best in exported] == [(1, 0.3), (3, 0.6)]


def test_the_last_epoch_can_be_the_best_whatever_its_dice(tmp_path):
    exported = []
    run = start(tmp_path, exported=exported, monitor="epoch", window=3)
    for dice in (0.6, 0.9, 0.2, 0.1):
        take_epoch(run, dice)
    assert [best["epoch"] for best in exported] == [1, 2, 3, 4]


def test_an_exported_model_better_than_the_state_says_is_never_overwritten_by_a_worse(tmp_path):
    """As after a state that was damaged, or a kill between the export and the state."""
    take_epoch(start(tmp_path, window=1), 0.4)
    state = newest_state(tmp_path)
    (tmp_path / "best.keras").write_text("network")
    details = {"epoch": 2, "metric": "val_dice", "value": 0.7, "score": 0.7}
    details["sha256"] = sha256(tmp_path / "best.keras")
    (tmp_path / "best.json").write_text(json.dumps(details))
    exported = []
    run = start(tmp_path, state, exported, window=1)
    take_epoch(run, 0.6)
    assert exported == []
    take_epoch(run, 0.8)
    assert [best["value"] for best in exported] == [0.8]


@pytest.mark.parametrize(
    ("kept", "steps", "restored"),
    [
        (["0001", "0002"], 0, {"epoch": 1, "value": 0.7, "score": 0.7}),
        (["0001", "0002"], 1, {"epoch": 1, "value": 0.7, "score": 0.7}),
        (["0002"], 0, {"epoch": 2, "value": 0.5, "score": 0.5}),
        ([], 0, {"epoch": 2, "value": 0.5, "score": 0.5}),
        ([], 1, None),  # in the middle of the third epoch
    ],
)
@pytest.mark.parametrize("damage", ["cut short", "removed"])
def test_a_damaged_best_model_is_exported_anew(tmp_path, capsys, kept, steps, restored, damage):
    run = start(tmp_path, window=1)
    take_epoch(run, 0.7)
    take_epoch(run, 0.5)
    if steps:
        run.begin_epoch(2)
        run.after_step({"loss": 1.0})
        run.save()
    (tmp_path / "epochs").mkdir()
    for name in kept:
        (tmp_path / "epochs" / f"{name}.weights.h5").touch()
    if damage == "cut short":
        (tmp_path / "best.keras").write_text("net")
        (tmp_path / "best.json").write_text(json.dumps({"epoch": 1, "score": 0.7, "sha256": "of the whole file"}))
    exported, loaded = [], []
    run = start(tmp_path, newest_state(tmp_path), exported, window=1)
    run.network = SimpleNamespace(load_weights=lambda path: loaded.append(path.name))
    run.restore_best(copy=lambda: loaded.append("copied"))
    assert loaded == ([] if not restored else ["0001.weights.h5"] if "0001" in kept else ["copied"])
    assert exported == ([restored | {"metric": "val_dice"}] if restored else [])
    assert newest_state(tmp_path)[0]["best"]["epoch"] == (restored["epoch"] if restored else 1)
    now = f"epoch {restored['epoch']} is" if restored else "the next epoch will be"
    assert f"best.keras: damaged or missing, it was of epoch 1; {now} exported" in capsys.readouterr().out
    run.network = None
    take_epoch(run, 0.6)
    assert exported[-1]["value"] == (0.7 if "0001" in kept else 0.6)


def test_an_epoch_whose_export_was_cut_off_is_exported_when_it_is_done_again(tmp_path):
    take_epoch(start(tmp_path, window=1), 0.7)  # its export writes nothing here: no best.json
    exported = []
    take_epoch(start(tmp_path, newest_state(tmp_path), exported, window=1), 0.6)
    assert [(best["epoch"], best["value"]) for best in exported] == [(2, 0.6)]


# ---- Diverging -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("poison", "losses", "dice", "found"),
    [
        (None, (1.0, np.nan), 0.9, "loss is nan"),
        (None, (1.0, np.inf), 0.9, "loss is inf"),
        (None, (1.0,), np.nan, "val_dice is nan"),
        (np.nan, (1.0,), 0.9, "weights or the optimizer's moments are not finite"),
        (np.inf, (1.0,), 0.9, "weights or the optimizer's moments are not finite"),
    ],
)
def test_an_epoch_that_is_not_finite_is_refused_and_the_run_goes_on_from_the_one_before(
    tmp_path, poison, losses, dice, found
):
    exported = []
    run = start(tmp_path, exported=exported, window=1)
    take_epoch(run, 0.4)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    if poison is not None:
        run.variables[1].assign(poison)
    with pytest.raises(InputError, match=f"training has diverged in epoch 2.*{found}.*lower ADAM_LR or GRADIENT_CLIP"):
        take_epoch(run, dice, losses)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    run = start(tmp_path, newest_state(tmp_path), exported, window=1)
    assert take_epoch(run, 0.5)["epoch"] == 2
    assert [best["value"] for best in exported] == [0.4, 0.5]


@pytest.mark.parametrize("asked", ["due", "interrupted"])
@pytest.mark.parametrize(("loss", "moment"), [(np.nan, 0.0), (1.0, np.nan)])
def test_no_state_that_is_not_finite_is_saved_within_an_epoch(tmp_path, loss, moment, asked):
    run = start(tmp_path, save_minutes=1e-9 if asked == "due" else 60)
    take_epoch(run, 0.4)
    run.variables[1].assign(moment)

    def steps():
        with run.interruptible():
            run.begin_epoch()
            if asked == "interrupted":
                os.kill(os.getpid(), signal.SIGTERM)
            run.after_step({"loss": loss})

    with pytest.raises(InputError, match="training has diverged in epoch 2"):
        steps()
    progress, _ = newest_state(tmp_path)
    assert (progress["epoch"], progress["step"]) == (1, 0)


# ---- Recording -----------------------------------------------------------------------------------------------------
def test_an_epochs_row(tmp_path):
    row = take_epoch(start(tmp_path), 0.4, losses=(1.0, 3.0, 5.0))
    log = pd.read_csv(tmp_path / "log.csv")
    assert (log.epoch[0], log.loss[0], log.val_dice[0], log.steps[0], log.learning_rate[0]) == (1, 3.0, 0.4, 3, 0.5)
    assert row["patches_per_s"] > 0
    assert (tmp_path / "progress.png").exists()


def test_an_epoch_in_two_parts_has_the_means_of_both(tmp_path):
    run = start(tmp_path)
    assert run.begin_epoch() == (1, 0)
    for mean in (1.0, 2.0, 3.0):  # losses 1, 3, 5
        run.after_step({"loss": mean})
    run.save()
    run = start(tmp_path, newest_state(tmp_path))
    assert run.begin_epoch() == (1, 3)
    for mean in (7.0, 8.0):  # losses 7, 9
        run.after_step({"loss": mean})
    row = end_epoch(run, 0.1)
    assert (row["loss"], row["steps"]) == (5.0, 5)


def test_a_state_within_an_epoch_is_saved_when_it_is_due(tmp_path):
    run = start(tmp_path, save_minutes=1e-9)
    run.begin_epoch()
    synchronised = []
    run.after_step({"loss": 1.0}, lambda: synchronised.append(len(list(tmp_path.glob("last-*")))))
    assert synchronised == [0]  # before the variables are read
    assert newest_state(tmp_path)[0]["step"] == 1


def test_after_twenty_steps_the_hours_are_projected_and_what_would_shorten_them(tmp_path, capsys, monkeypatch):
    seconds = iter(range(0, 10**9, 60))
    monkeypatch.setattr("utils.training.run.time.monotonic", lambda: next(seconds))
    run = start(tmp_path, epochs=100)
    run.begin_epoch(expected_steps=30)
    for _ in range(20):
        run.after_step({"loss": 1.0})
    printed = capsys.readouterr().out
    assert "60.00 s a step, about 30 steps an epoch: 50.0 h for 100 epochs" in printed
    assert "lower EPOCH" in printed


# ---- Being interrupted ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_saves_and_says_how_to_continue(tmp_path, capsys, monkeypatch, number, code):
    monkeypatch.setattr("sys.argv", ["model_training.py", "--set", "RUN_NAME=a b"])
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run = start(tmp_path)

    def interrupted():
        with run.interruptible():
            run.begin_epoch()
            run.after_step({"loss": 1.0})
            os.kill(os.getpid(), number)
            run.after_step({"loss": 2.0})
            pytest.fail("the run went on")

    with pytest.raises(SystemExit) as ended:
        interrupted()
    assert ended.value.code == code
    assert newest_state(tmp_path)[0]["step"] == 2
    printed = capsys.readouterr().out
    assert "stopped after epoch 0 of 5 and 2 steps, all saved" in printed
    assert "python model_training.py --set 'RUN_NAME=a b'" in printed
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_a_second_ctrl_c_ends_at_once(ctrl_c_interrupts, tmp_path):
    def interrupted_twice():
        with start(tmp_path).interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()


def test_a_host_that_does_not_record_writes_nothing(tmp_path):
    learning_rate = Variable(0.5)
    run = TrainingRun(
        *(tmp_path, None, [learning_rate], None, RULES),
        panels={},
        export=pytest.fail,
        records=False,
    )
    take_epoch(run, 0.5)
    assert list(tmp_path.iterdir()) == []
