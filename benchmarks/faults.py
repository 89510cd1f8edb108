"""Disturb the five scripts in every way that is known to happen, and compare their results with undisturbed runs.

    python -m benchmarks.faults [--script S] [--fault F] [--kills 20] [--times 3] [--seed 0] [--folder DIR]

Makes a small synthetic set in a temporary folder and runs the scripts on it with a narrow network, undisturbed. Then it
runs each script from the same start, disturbed. After every disturbance

- no file under a final name may be incomplete;
- a script that failed must have given the reason in its last line, without a traceback;
- the same command must run to the end with the undisturbed results.

Exit code 0 if all that holds. Full disks and read-only folders are small file systems in memory, which only root may
mount. libfaketime sets the clock back. Faults that this machine cannot produce are left out, with a line.
"""

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.disturbances import (
    ARGUMENTS,
    FAKETIME,
    FAULTS,
    GO_ON,
    HANGS,
    ROOMY,
    TOO_LONG_SECONDS,
    Trial,
    end,
    wait_for_end,
)
from benchmarks.scripts import run
from benchmarks.states import difference, incomplete
from utils.errors import run_script


# ---- What must hold after each ---------------------------------------------------------------------------------------
def complaint(trial, returncode):
    """What is wrong with the way in which a script has failed, as text, or None."""
    if returncode == HANGS:
        return f"does not end within {TOO_LONG_SECONDS} s"
    printed = trial.printed
    last = printed.rpartition("\n")[2]
    if returncode in (-signal.SIGINT, -signal.SIGTERM) and "run_script" not in printed:
        return None  # Python was still importing and ended by itself
    if "Traceback" in printed:
        return f"a traceback:\n{printed[-2000:]}"
    if not last.startswith((f"{trial.script}: ", "stopped after")):
        return f"exit code {returncode} with the last line {last!r}"
    return None


def survived(fault, trial, begin, times):
    """Disturb a trial's script `times` times. Prints a line for each. Returns (exit codes, complaints)."""
    codes, complaints = Counter(), []
    begin()
    for number in range(times):
        trial.progress = number / times
        try:
            returncode = FAULTS[fault](trial)
        finally:
            end(trial.process)  # where we are ended ourselves
        codes[returncode] += 1
        found = [f"incomplete: {line}" for line in incomplete(trial.folder)]
        if returncode not in (0, -signal.SIGKILL) and (wrong := complaint(trial, returncode)):
            found.append(wrong)
        said = trial.printed.rpartition("\n")[2][:100] if returncode > 0 else ""
        print(f"{trial.script}, {fault} {number + 1}: exit code {returncode} {said}", flush=True)
        if returncode == 0 or fault not in GO_ON or number == times - 1 or found:
            code = wait_for_end(trial.start())
            wrong = f"then fails: {trial.printed[-2000:]}" if code else difference(trial.folder, trial.undisturbed)
            found += [wrong] if wrong else []
            begin()
        for line in found:
            print(f"  {line}", flush=True)
        complaints += found
    return codes, complaints


# ---- Running it ------------------------------------------------------------------------------------------------------
def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--script", choices=ARGUMENTS, action="append", help="default: all")
    parser.add_argument("--fault", choices=FAULTS, action="append", help="default: all")
    parser.add_argument("--kills", type=int, default=20, help="of each script")
    parser.add_argument("--times", type=int, default=3, help="that each other fault befalls each script")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keeps the undisturbed runs, for further calls")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes and theirs ignore it
    with tempfile.TemporaryDirectory() as folder:
        return try_faults(arguments, (arguments.folder or Path(folder)).absolute())


def try_faults(arguments, root):
    """Run the scripts undisturbed, then with every fault; returns the exit code."""
    scripts, faults = arguments.script or list(ARGUMENTS), arguments.fault or list(FAULTS)
    if not (root / "data").exists():
        run("-m utils.phantom", "--output", root / "data", "--cases", 12, "--slices", 2, "--seed", 4)
    trials = undisturbed(root, scripts, random.Random(arguments.seed))
    complaints, results = [], []
    with disturbed_folder(root, {"disk-full", "read-only"} & set(faults)) as (folder, may_mount):
        for fault in faults:
            if (fault in ("disk-full", "read-only") and not may_mount) or (fault == "clock" and not FAKETIME):
                print(f"{fault}: left out, needs {'libfaketime' if fault == 'clock' else 'root, to mount'}")
                continue
            for before, trial in trials:
                trial.folder = folder
                times = arguments.kills if fault == "kill" else arguments.times

                def begin(before=before, trial=trial):
                    for path in trial.folder.iterdir():
                        shutil.rmtree(path)
                    shutil.copytree(before, trial.folder, dirs_exist_ok=True)

                codes, found = survived(fault, trial, begin, times)
                complaints += found
                results.append(f"| {fault} | {trial.script} | {times} | {dict(codes)} | {len(found)} |")
    print("\n| fault | script | times | exit codes | complaints |\n|---|---|---|---|---|", *results, sep="\n")
    print(f"{len(complaints)} complaints" if complaints else "all survived: same results as undisturbed")
    return int(bool(complaints))


def undisturbed(root, scripts, rng):
    """Run the scripts up to the last of `scripts`: a list of (folder before, `Trial`) for each of `scripts`."""
    trials, before = [], root / "before"
    before.mkdir(exist_ok=True)
    for script in list(ARGUMENTS)[: max(map(list(ARGUMENTS).index, scripts)) + 1]:
        after = root / f"after {script}"
        trial = Trial(script, after, 0.0, after, 0.0, rng)
        duration = after.with_suffix(".seconds")
        if not duration.exists():
            shutil.copytree(before, after, dirs_exist_ok=True)
            before_it = resource.getrusage(resource.RUSAGE_CHILDREN)
            if wait_for_end(trial.start()):
                sys.exit(f"{script} fails undisturbed:\n{trial.printed}")
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            duration.write_text(f"{usage.ru_utime + usage.ru_stime - before_it.ru_utime - before_it.ru_stime:.1f}")
        trial.seconds = float(duration.read_text())
        print(f"{script}: {trial.seconds} CPU s undisturbed", flush=True)
        if script in scripts:
            trials.append((before, trial))
        before = after
    return trials


@contextlib.contextmanager
def disturbed_folder(root, wants_mount):
    """(an empty folder in `root`, whether it is a file system in memory): so if `wants_mount` and that is allowed."""
    with tempfile.TemporaryDirectory(prefix="disturbed-", dir=root) as folder:
        command = ["mount", "-t", "tmpfs", "-o", ROOMY, "tmpfs", folder]
        mounts = wants_mount and os.geteuid() == 0 and not subprocess.run(command, stderr=subprocess.DEVNULL).returncode
        try:
            yield Path(folder), mounts
        finally:
            if mounts:
                subprocess.run(["umount", "--lazy", folder], check=True)  # a script that is ended with us may be in it


if __name__ == "__main__":
    run_script(main)  # SIGTERM, too, unmounts what is mounted
