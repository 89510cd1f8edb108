"""Running the collection's scripts from a benchmark."""

import subprocess
import sys
import time

from utils.tasks import overrides


def run(script, *arguments, **settings):
    """Run a script ("model_training.py" or "-m utils.phantom") with settings. Returns what it printed.

    Exits with the script's output if it fails.
    """
    command = [sys.executable, *script.split(), *map(str, arguments), *overrides(settings)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{command}\n{result.stdout}\n{result.stderr}")
    return result.stdout


def run_measured(*command):
    """(seconds, peak memory in bytes) of a Python command in a process of its own."""
    program = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    started = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", program, sys.executable, *map(str, command)], capture_output=True, text=True, check=True
    )
    return time.perf_counter() - started, int(result.stdout) * 1024


def prepare(folder, cases, slices, **settings):
    """Synthetic volumes in ``folder/data``, prepared into ``folder/output``; returns the `settings` with both roots."""
    settings |= {"DATA_ROOT": folder / "data", "OUTPUT_ROOT": folder / "output"}
    run("-m utils.phantom", "--output", folder / "data", "--cases", cases, "--slices", slices, "--seed", 0)
    run("prepare_data.py", **settings)
    return settings
