"""The epochs of a training run: continued where they stopped, recorded, and interrupted without loss."""

import contextlib
import math
import shlex
import signal
import sys
import time

import numpy as np

from utils.errors import InputError
from utils.networks.exported_model import is_whole, read_best
from utils.plots import save_progress
from utils.progress import progress_bar
from utils.training import run_folder
from utils.training.state import restore_variables, save_state

PROJECTED_AFTER = 20  # steps, after which the console says how long the run will take
LONG_HOURS = 12  # a run that takes longer is told what would shorten it
SHORTER = (
    "fewer with a lower EPOCH, STEPS_PER_EPOCH or (the paper's network) BASE_FILTERS, or DTYPE_POLICY=mixed_bfloat16"
)
CALMER = "lower ADAM_LR or GRADIENT_CLIP (against a discriminator also D_ADAM_LR or ADVERSARIAL_WEIGHT)"


class Interrupted(Exception):
    """The run was asked to stop and has come to a point at which nothing is lost."""


def epoch_score(history, monitor, window):
    """What the last epoch of `history` (one dictionary an epoch) counts in the choice of the best: higher is better.

    The lower of its own value of `monitor` and the mean over the last `window` epochs: a lucky epoch counts for no more
    than its neighbourhood, an unlucky one for what it is. A monitored loss counts negatively.
    """
    sign = -1 if monitor.endswith("loss") else 1
    values = [sign * row[monitor] for row in history[-window:]]
    return float(min(values[-1], np.mean(values)))


def why_finished(progress, epochs, patience):
    """In words why a run needs no further epoch, or None. `progress` is a state's; `patience` in epochs, or None."""
    if progress["epoch"] >= epochs:
        return f"{progress['epoch']} epochs of {epochs}"
    if patience and progress["best"] and progress["epoch"] - progress["best"]["epoch"] >= patience:
        return f"no better epoch in the last {patience}"
    return None


class TrainingRun:
    """How far a run has come, what it has reached, and where that is kept.

    An epoch is `begin_epoch`, `after_step` after every step, `end_epoch`, all within ``with run.interruptible():``.

    `folder` is the step's, `network` the exported form of what is trained, `variables` all that training changes, and
    `state` that of `newest_state` to go on from, or None. `rules` are `TrainingRules`, `panels` those of
    `save_progress`. ``export(best)`` writes the network as the best one. With `records` False nothing is written or
    printed: another host does that.
    """

    def __init__(self, folder, network, variables, state, rules, *, panels, export, records=True):
        self.folder, self.network, self.variables = folder, network, variables
        self.rules, self.panels, self.export, self.records = rules, panels, export, records
        self.progress = {"epoch": 0, "step": 0, "means": {}, "seconds": 0.0}
        self.progress |= {"best": None, "history": []}
        if state:
            self.progress, arrays = state
            restore_variables(variables, arrays)
            if records:
                print(f"continuing after {self._reached()}")
        self._adopt_exported_best()
        self._events = run_folder.EventLog(folder) if records else None
        self._bar = self._signal = None
        self._steps, self._saved = 0, time.monotonic()

    def _adopt_exported_best(self):
        """Keep a better model that was exported after the state that the run goes on from.

        Where an export was cut off or is damaged, and `restore_best` is not called, the next epoch is the best one.
        """
        self._lost = None
        if is_whole(self.folder / "best.keras"):
            details = read_best(self.folder / "best.keras")
            if details["metric"] == self.rules.monitor and self._is_better(details["score"]):
                self.progress["best"] = {name: details[name] for name in ("epoch", "metric", "value", "score")}
        else:
            self._lost, self.progress["best"] = self.progress["best"], None

    def restore_best(self, copy):
        """Export the best epoch anew where its file is damaged or gone.

        Where its weights are kept no longer, the last epoch takes its place: ``copy()`` gives the network the weights
        that the run goes on from. Within an epoch these have no score; then the next epoch is the best one.
        """
        if self._lost is None:
            return
        weights = self.folder / "epochs" / f"{self._lost['epoch']:04d}.weights.h5"
        if weights.exists():
            self.network.load_weights(weights)
            self.progress["best"] = self._lost
        elif not self.progress["step"]:
            copy()
            score = epoch_score(self.progress["history"], self.rules.monitor, self.rules.window)
            self.progress["best"] = self._last_epoch(score)
        if self.records:
            best, was = self.progress["best"], self._lost["epoch"]
            if best:
                self.export(best)
                self.save()
            now = f"epoch {best['epoch']} is exported" if best else "the next epoch will be exported"
            print(f"{self.folder / 'best.keras'}: damaged or missing, it was of epoch {was}; {now}")

    def _last_epoch(self, score):
        """The last epoch of the log, as ``best.json`` describes it."""
        row, monitor = self.progress["history"][-1], self.rules.monitor
        return {"epoch": row["epoch"], "metric": monitor, "value": row[monitor], "score": score}

    def _is_better(self, score):
        return self.progress["best"] is None or score > self.progress["best"]["score"]

    def _reached(self):
        """In words how far the run has come."""
        step = self.progress["step"]
        return f"epoch {self.progress['epoch']} of {self.rules.epochs}" + f" and {step} steps" * bool(step)

    # ---- Within an epoch -------------------------------------------------------------------------------------------
    def begin_epoch(self, expected_steps=None):
        """Begin the next epoch, or go on with it: (its number, its first step that is left, counted from 0).

        `expected_steps`, if known, is how many the first epoch has; later ones have about as many as the one before.
        """
        epoch, step = self.progress["epoch"] + 1, self.progress["step"]
        if self.progress["history"]:
            expected_steps = self.progress["history"][-1].get("steps", expected_steps)
        self._earlier = {name: self.progress[name] for name in ("step", "means", "seconds")}
        self._started = self._last_step = time.monotonic()
        self._bar = progress_bar(
            description=f"epoch {epoch}/{self.rules.epochs}",
            unit="step",
            initial=step,
            total=expected_steps,
            leave=False,
            disable=not self.records,
        )
        return epoch, step

    def after_step(self, means, synchronise=None):
        """Note that a step has been taken; `means` are the losses' and metrics' since `begin_epoch`.

        Saves the state now and then. Raises `Interrupted` where the run was asked to stop, and `InputError` where
        training has diverged. `synchronise()`, if given, is called before `variables` are read.
        """
        self._check_finite(means)
        self._steps, self._means, self._last_step = self._steps + 1, means, time.monotonic()
        if self._steps == 1:
            self._compiled = self._last_step
        if self._steps == PROJECTED_AFTER:
            self._project()
        self._bar.set_postfix(loss=f"{means['loss']:.3f}", refresh=False)
        self._bar.update()
        due = self._last_step - self._saved > 60 * self.rules.save_minutes
        if synchronise and (due or self._signal):
            synchronise()
        if due:
            self.save()
        self.stop_if_asked()

    def _project(self):
        """Say once how long the run will take and, where that is long, what would shorten it."""
        if self.progress["epoch"] or not self._bar.total:
            return
        step_seconds = (self._last_step - self._compiled) / (PROJECTED_AFTER - 1)
        epochs = self.rules.epochs
        hours = step_seconds * self._bar.total * epochs / 3600
        self._bar.write(
            f"{step_seconds:.2f} s a step, about {self._bar.total} steps an epoch: {hours:.1f} h for {epochs} epochs, "
            "validation apart" + (f"; {SHORTER}" if hours > LONG_HOURS else "")
        )

    def _note_steps(self):
        """Bring `progress` up to the last step."""
        if self._steps:
            before, means = self._earlier["step"], self._earlier["means"]
            step = before + self._steps
            self.progress["step"] = step
            self.progress["seconds"] = self._earlier["seconds"] + self._last_step - self._started
            self.progress["means"] = {
                name: (before * means.get(name, 0.0) + self._steps * value) / step
                for name, value in self._means.items()
            }

    def _check_finite(self, measures, variables=()):
        """Raise `InputError` where a value of `measures`, a dictionary, or of the `variables` is NaN or infinite.

        Nothing of the epoch is kept then: what is on disk is from before.
        """
        known = {name: value for name, value in measures.items() if value is not None}
        found = [f"{name} is {value}" for name, value in known.items() if not math.isfinite(value)]
        if not all(np.isfinite(np.asarray(variable)).all() for variable in variables):
            found.append("weights or the optimizer's moments are not finite")
        if found:
            raise InputError(
                f"{self.folder}: training has diverged in epoch {self.progress['epoch'] + 1}, {', '.join(found)}; "
                f"{CALMER}, and delete this folder or choose another RUN_NAME; the same command tries again from the "
                "last checkpoint"
            )

    def save(self):
        """Save the state, up to the last step. Raises `InputError` where it is not finite."""
        if self.records:
            self._check_finite({}, self.variables)
            self._note_steps()
            save_state(self.folder, self.variables, self.progress)
            self._saved = time.monotonic()

    # ---- The end of an epoch ---------------------------------------------------------------------------------------
    def end_epoch(self, validation, patches_a_step, optimizer):
        """Record the epoch whose steps are taken, with its `validation` values; returns its row of the log.

        A step is one of `optimizer` and has so many patches.
        """
        self._note_steps()
        self._bar.close()
        steps, seconds = self.progress["step"], self.progress["seconds"]
        row = {"epoch": self.progress["epoch"] + 1, **self.progress["means"], **validation, "steps": steps}
        row["learning_rate"] = float(np.asarray(optimizer.learning_rate))
        row["seconds"] = round(self._earlier["seconds"] + time.monotonic() - self._started, 2)
        row["patches_per_s"] = round(steps * patches_a_step / seconds, 2)
        self.record(row)
        return row

    def record(self, row):
        """Add an epoch's `row` to the log, choose the best epoch anew, draw the curves and save the state.

        Raises `InputError` where training has diverged.
        """
        progress, monitor = self.progress, self.rules.monitor
        self._check_finite(row, self.variables)
        self._steps = 0
        progress["history"].append(row)
        progress |= {"epoch": row["epoch"], "step": 0, "means": {}, "seconds": 0.0}
        score = epoch_score(progress["history"], monitor, self.rules.window)
        if self._is_better(score):
            progress["best"] = self._last_epoch(score)
            if self.records:
                self.export(progress["best"])
        if self.records:
            run_folder.keep_epoch_weights(self.folder, self.network, row["epoch"], self.rules.keep_epochs)
            run_folder.write_log(self.folder, progress["history"])
            save_progress(self.folder / "progress.png", progress["history"], self.panels)
            self._events.write(row["epoch"], {name: value for name, value in row.items() if value is not None})
            self.save()

    def finish(self, reason):
        """Say that the run has ended, for what `reason`, and with what result."""
        best = self.progress["best"]
        print(f"finished, {reason}; best: epoch {best['epoch']}, {best['metric']} {best['value']:.4f}")
        print(f"best model: {self.folder / 'best.keras'}")
        print(f"curves: {self.folder / 'progress.png'}")

    def seconds_left(self):
        """Seconds that the epochs left will take at the pace of the last one."""
        return (self.rules.epochs - self.progress["epoch"]) * self.progress["history"][-1]["seconds"]

    # ---- Being interrupted -----------------------------------------------------------------------------------------
    def stop_if_asked(self):
        """Raise `Interrupted` where the run was asked to stop."""
        if self._signal:
            raise Interrupted

    @contextlib.contextmanager
    def interruptible(self):
        """Ctrl-C and SIGTERM end the block at the next step, with the state saved and the command that continues.

        A second Ctrl-C ends it at once; the run then goes on from the state before.
        """

        def note(signal_number, frame):
            self._signal = signal_number
            signal.signal(signal.SIGINT, before[signal.SIGINT])

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            try:
                yield
            finally:
                if self._bar is not None:
                    self._bar.close()
        except Interrupted:
            self.save()
            if self.records:
                command = shlex.join(["python", *sys.argv])
                print(f"stopped after {self._reached()}, all saved; to continue: {command}", flush=True)
            sys.exit(128 + self._signal)
        finally:
            if self._events is not None:
                self._events.close()
            for number, handler in before.items():
                signal.signal(number, handler)
