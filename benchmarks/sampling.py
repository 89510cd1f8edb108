"""Time and memory of a script and its processes while it works through many items, on Linux."""

import contextlib
import itertools
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil

SECONDS_BETWEEN_SAMPLES = 1.0


def run_sampled(script, *arguments):
    """Run a script to its end. Returns its exit code, its errors, and samples.

    Samples are rows of (time, MiB, CPU seconds until then), one each second.
    """
    samples = []
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, script, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):  # one has ended meanwhile
                samples.append((time.time(), *used_by(process.pid)))
            time.sleep(SECONDS_BETWEEN_SAMPLES)
        errors.seek(0)
        return process.returncode, errors.read(), np.array(samples)


def used_by(pid):
    """Memory in MiB and CPU seconds of a process and its children.

    Pages that several processes share count once. The seconds of children that have ended count, too.
    """
    pss = seconds = 0
    for process in (parent := psutil.Process(pid), *parent.children(recursive=True)):
        pss += process.memory_full_info().pss
        seconds += sum(process.cpu_times()[:4])  # its own and those of its ended children, user and system
    return pss / 2**20, seconds


def stretches_of(kinds, samples):
    """{kind: rows of (items done before, seconds, CPU seconds, peak MiB)}, from one item's end to the next item's.

    `kinds` maps the file that is written at an item's end to its kind. The first item has no row, because its time
    includes the script's start. The peak is NaN if an item was too short for a sample.
    """
    ends = sorted((path.stat().st_mtime, str(kind), kind) for path, kind in kinds.items())
    stretches = {}
    for done, ((start, *_), (end, _, kind)) in enumerate(itertools.pairwise(ends), 1):
        cpu_seconds = np.diff(np.interp([start, end], samples[:, 0], samples[:, 2]))[0]
        during = samples[(samples[:, 0] >= start) & (samples[:, 0] <= end), 1]
        row = done, end - start, cpu_seconds, max(during, default=np.nan)
        stretches.setdefault(kind, []).append(row)
    return {kind: np.array(rows) for kind, rows in stretches.items()}


def print_stretches(stretches):
    """Time and memory of each kind's first and last quarter, of all items by tenths, and their slopes."""
    print("\n| kind | items | s an item | CPU s an item | peak MiB |\n|---|---|---|---|---|")
    for kind, rows in stretches.items():
        quarter = max(1, len(rows) // 4)
        ends = [_summary(rows[part]) for part in (slice(quarter), slice(-quarter, None))]
        cells = [
            f"{first:.{digits}f} / {last:.{digits}f}" for first, last, digits in zip(*ends, (2, 2, 0), strict=True)
        ]
        name = kind if isinstance(kind, str) else " x ".join(map(str, kind))
        print(f"| {name} | {len(rows)} | {' | '.join(cells)} |")
    rows = np.concatenate(list(stretches.values()))
    tenths = [_summary(tenth) for tenth in np.array_split(rows[rows[:, 0].argsort()], min(10, len(rows)))]
    print("\nEach: of the first quarter / of the last. All items, by tenths:\n")
    print(f"CPU s an item: {' '.join(f'{cpu_seconds:.2f}' for _, cpu_seconds, _ in tenths)}")
    print(f"peak MiB: {' '.join(f'{peak:.0f}' for *_, peak in tenths)}")
    # A common slope of all kinds, each about its own mean.
    within = np.concatenate([rows - np.nanmean(rows, axis=0) for rows in stretches.values()])
    within = within[np.isfinite(within).all(axis=1)]
    seconds, cpu_seconds, peak = 100 * (within[:, 0] @ within[:, 1:]) / (within[:, 0] @ within[:, 0])
    print(f"\nfor every 100 items: {seconds:+.2f} s and {cpu_seconds:+.2f} CPU s an item, {peak:+.1f} MiB")


def _summary(rows):
    """Mean seconds, mean CPU seconds and peak MiB of some items."""
    return *rows[:, 1:3].mean(axis=0), max(rows[np.isfinite(rows[:, 3]), 3], default=np.nan)
