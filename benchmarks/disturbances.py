"""The disturbances of `benchmarks.faults`."""

import contextlib
import glob
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil

from benchmarks.states import files_below
from utils.tasks import overrides

PROJECT = Path(__file__).parents[1]
SETTINGS = {"DATA_ROOT": "../data", "OUTPUT_ROOT": "output", "BASE_FILTERS": 2, "BATCH_SIZE": 4, "STEPS_PER_EPOCH": 12}
SETTINGS |= {"EPOCH": 3, "ADVERSARIAL_EPOCH": 3, "VALIDATION_B_SCANS": 3, "SAVE_MINUTES": 0.005}
SETTINGS |= {"D_WARM_UP_STEPS": 6, "ADVERSARIAL_RAMP_STEPS": 12}
ARGUMENTS = {
    "prepare_data.py": [],
    "model_training.py": [],
    "adversarial_training.py": [],
    "evaluate.py": [],
    "test.py": ["../data", "--output", "segmented"],
}
WORKERS = 2
CLOCK_SET_BACK = "-30d"
ROOMY = "size=1g"  # of a file system in memory with enough space
TOO_LONG_SECONDS = 1200  # a script takes 20 s on an idle machine
HANGS = 124  # exit code of a script that took longer
FAKETIME = next(iter(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")), None)


@dataclass
class Trial:
    """A script to disturb, in a folder in which the scripts before it have run."""

    script: str
    folder: Path  # holds output/ and segmented/; the raw data are beside it
    seconds: float  # CPU seconds of an undisturbed run; unlike the clock's, they do not depend on the machine's load
    undisturbed: Path  # such a folder, after an undisturbed run
    progress: float  # share of the trials that are done
    rng: random.Random
    process: subprocess.Popen | None = None  # the last that was started

    def start(self, workers=0, **environment):
        """Start the script; what it prints goes to a file beside the folder."""
        settings = overrides({**SETTINGS, "WORKERS": workers})
        with open(self._printed, "wb") as printed:
            self.process = subprocess.Popen(
                [sys.executable, PROJECT / self.script, *ARGUMENTS[self.script], *settings],
                cwd=self.folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                stdout=printed,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        return self.process

    def moment(self, share=1.0):
        """A random moment in the first `share` of the undisturbed run, in CPU seconds."""
        return self.rng.uniform(0, share * self.seconds)

    @property
    def printed(self):
        """What the script printed last."""
        return self._printed.read_text("utf-8", "replace").replace("\r", "\n").rstrip()

    @property
    def _printed(self):
        return self.folder.with_name(f"{self.folder.name}.printed.txt")


def wait(process, seconds):
    """Wait until a script and its children have used `seconds` of CPU time. Returns whether the script still runs."""
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            script = psutil.Process(process.pid)
            times = [each.cpu_times() for each in (script, *script.children(recursive=True))]
            if sum(of_process.user + of_process.system for of_process in times) >= seconds:
                return True
        time.sleep(0.1)  # looking for children reads the whole table of processes
    return False


def wait_for_end(process):
    """The exit code of a script. One that does not end is killed; its exit code is `HANGS`."""
    try:
        return process.wait(TOO_LONG_SECONDS)
    except subprocess.TimeoutExpired:
        return HANGS
    finally:
        end(process)


def end(process):
    """SIGKILL for a script that still runs, and its children."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# ---- The faults: each disturbs a trial's script, waits for its end and returns its exit code -----------------------
def kill(trial):
    """SIGKILL for the script and its worker processes."""
    return _signalled(trial, signal.SIGKILL, os.killpg)


def terminate(trial):
    """SIGTERM for the script."""
    return _signalled(trial, signal.SIGTERM, os.kill)


def interrupt(trial):
    """Ctrl-C: SIGINT for the script and its worker processes."""
    return _signalled(trial, signal.SIGINT, os.killpg)


def _signalled(trial, number, send):
    process = trial.start(trial.rng.choice((0, WORKERS)))
    if wait(process, trial.moment()):
        send(process.pid, number)
    return wait_for_end(process)


def kill_worker(trial):
    """SIGKILL for all worker processes from a random moment on, as the kernel does when memory runs out."""
    process = trial.start(WORKERS)
    wait(process, trial.moment(0.5))
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                if "popen_loky" in " ".join(child.cmdline()):
                    child.kill()
        time.sleep(0.05)
    return process.returncode


def fill_disk(trial):
    """A disk that becomes full after a part of the script's files."""
    block = 4096
    sizes = [
        sum(-(-path.stat().st_size // block) for path in files_below(folder).values())
        for folder in (trial.folder, trial.undisturbed)
    ]
    room = sizes[0] + 16 + int((sizes[1] - sizes[0]) * (trial.progress + trial.rng.random() * 0.3))
    with _remounted(trial.folder, f"size={room * block}"):
        return wait_for_end(trial.start())


def forbid_writing(trial):
    """A file system that is read-only."""
    with _remounted(trial.folder, "ro"):
        return wait_for_end(trial.start())


@contextlib.contextmanager
def _remounted(folder, option):
    """Change the file system in memory at `folder` for the length of the block."""
    subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", f"remount,rw,{ROOMY}", folder], check=True)


def set_clock_back(trial):
    """A clock that goes back 30 days within the run; SIGKILL some time after, and the next run with that clock."""
    clock = trial.folder.with_name(f"{trial.folder.name}.clock.txt")
    clock.write_text("+0")
    environment = {"LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    environment |= {"DONT_FAKE_MONOTONIC": "1"}
    process = trial.start(**environment)
    moments = sorted((trial.moment(), trial.moment()))
    wait(process, moments[0])
    clock.write_text(CLOCK_SET_BACK)
    if wait(process, moments[1]):
        os.killpg(process.pid, signal.SIGKILL)
    wait_for_end(process)
    return wait_for_end(trial.start(**environment))


def take_away(trial):
    """A volume's voxels that are gone from a random moment on, and back for the next run."""
    output = trial.folder / "output"
    if trial.script in ("model_training.py", "adversarial_training.py"):
        row = pd.read_csv(output / "train_data.csv", dtype=str).iloc[-1]
        path = output / "pre_processed" / "oct_imgs" / f"{row.vendor}_{row.image_name}.raw"
    elif trial.script == "evaluate.py":
        row = pd.read_csv(output / "test_data.csv", dtype=str).iloc[-1]
        path = trial.folder.with_name("data") / row.root / "oct.raw"
    else:
        path = max(trial.folder.with_name("data").rglob("oct.raw"))
    process = trial.start()
    wait(process, trial.moment())
    path.rename(path.with_suffix(".gone"))
    try:
        return wait_for_end(process)
    finally:
        path.with_suffix(".gone").rename(path)


FAULTS = {
    "kill": kill,
    "terminate": terminate,
    "interrupt": interrupt,
    "worker": kill_worker,
    "disk-full": fill_disk,
    "read-only": forbid_writing,
    "clock": set_clock_back,
    "vanishing-file": take_away,
}
GO_ON = ("kill", "terminate", "interrupt")  # the next disturbance is of the run that this one left unfinished
