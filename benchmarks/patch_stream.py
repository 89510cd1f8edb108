"""How fast patches come: the stream of utils/data_prepare.py against a plain nutsml pipeline (plain_stream.py).

    python -m benchmarks.patch_stream [--cases N] [--slices N] [--seconds S]

Makes and prepares phantoms of all three vendors in a temporary folder. Both streams then deliver batches of 16 in turn.
Prints a Markdown table (best of three rounds), the memory, the time to the first batch, and how long a consumer that
sleeps 10 ms a step waits for data. Needs Linux (/proc).
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import config
from benchmarks.plain_stream import plain_batches, plain_samples, write_tiff_slices
from utils.data_prepare import get_data_iterator
from utils.preparation.prepared import read_csv_data

BATCH_SIZE = 16
ROUNDS = 3
REPEATS = 50  # how often the CSV names each B-scan, so that an epoch is about as long as RETOUCH's
STEP_SECONDS = 0.010  # the consumer's step; 1,600 patches/s
STEPS = 1000
MIB = 2**20


def main():
    parser = argparse.ArgumentParser(usage="python -m benchmarks.patch_stream [options]")
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each measurement of speed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print_table(Path(folder), arguments)


def print_table(folder, arguments):
    rows, csv_path, preprocessed_folder = prepared_phantoms(folder, arguments.cases, arguments.slices)
    write_tiff_slices(set(rows), preprocessed_folder, folder / "tiff")
    seeds = itertools.count()

    def plain():
        return plain_batches(plain_samples(rows, folder / "tiff", next(seeds)), BATCH_SIZE)

    def ours(workers):
        settings = replace(
            config.batch_settings(),
            preprocessed_folder=preprocessed_folder,
            seed=next(seeds),
            batch_size=BATCH_SIZE,
            workers=workers,
        )
        return get_data_iterator(csv_path, settings, training=True, epoch=0)

    memory = PeakMemory()
    started = time.perf_counter()
    next(ours(2))  # starts the worker processes
    first_batch = time.perf_counter() - started

    streams = {"plain nutsml": plain} | {f"ours, WORKERS={n}": lambda n=n: ours(n) for n in (0, 1, 2)}
    speeds, peaks = dict.fromkeys(streams, 0.0), {}
    for _, (name, stream) in itertools.product(range(ROUNDS), streams.items()):
        with memory:
            speeds[name] = max(speeds[name], patches_per_second(stream(), arguments.seconds))
        peaks[name] = max(peaks.get(name, 0), memory.peak)
    print(f"{os.cpu_count()} cores, {len(set(rows))} B-scans of three vendors, batches of {BATCH_SIZE}\n")
    print("| stream | patches/s | times the plain one | peak memory, MiB |\n|---|---|---|---|")
    for name, speed in speeds.items():
        print(f"| {name} | {speed:,.0f} | {speed / speeds['plain nutsml']:.1f} | {peaks[name] / MIB:,.0f} |")
    print(f"\nfirst batch, from a standing start of 2 workers: {first_batch:.2f} s")
    share = waiting_share(ours(2))
    print(
        f"a consumer that sleeps {STEP_SECONDS * 1000:.0f} ms a step waits for data {share:.1%} of {STEPS} steps' time"
    )


def prepared_phantoms(folder, cases, slices):
    """Make and prepare phantoms: (rows, CSV with each row `REPEATS` times, preprocessed folder)."""
    data = ["--output", folder / "data", "--cases", cases, "--slices", slices]
    run("-m", "utils.phantom", *data)
    run("prepare_data.py", "--set", f"DATA_ROOT={folder / 'data'}", "--set", f"OUTPUT_ROOT={folder / 'output'}")
    preprocessed_folder = folder / "output" / "pre_processed"
    header, *lines = (preprocessed_folder / "slice_gt.csv").read_text("utf-8").splitlines()
    csv_path = folder / "repeated.csv"
    csv_path.write_text("\n".join([header, *(lines * REPEATS)]) + "\n", "utf-8")
    return read_csv_data(csv_path), csv_path, preprocessed_folder


def run(*arguments):
    subprocess.run([sys.executable, *map(str, arguments)], check=True, capture_output=True)


def patches_per_second(batches, seconds):
    """Patches a second from the second batch on, for about so many `seconds`."""
    next(batches)
    started, n_patches = time.perf_counter(), 0
    for images, *_ in batches:
        n_patches += len(images if not isinstance(images, list) else images[0])
        if time.perf_counter() - started > seconds:
            break
    return n_patches / (time.perf_counter() - started)


def waiting_share(batches):
    """Share of the time of `STEPS` steps of `STEP_SECONDS` that a consumer spends waiting for its next batch."""
    waited, started = 0.0, time.perf_counter()
    for _ in range(STEPS):
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
        time.sleep(STEP_SECONDS)
    return waited / (time.perf_counter() - started)


class PeakMemory:
    """``with memory:`` the peak, in bytes, of what this process and its children hold beside mapped volumes."""

    def __enter__(self):
        self.peak, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _watch(self):
        while not self._done.wait(0.5):
            processes = [os.getpid(), *children_of(os.getpid())]
            self.peak = max(self.peak, sum(map(proportional_bytes_without_volumes, processes)))


def children_of(process):
    statuses = ((path.parent.name, path.read_text()) for path in Path("/proc").glob("[0-9]*/stat") if path.exists())
    return [int(name) for name, text in statuses if int(text.rpartition(")")[2].split()[1]) == process]


def proportional_bytes_without_volumes(process):
    """Proportional set size of a process without its memory maps of .raw files."""
    total, counted = 0, True
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):  # the line that a mapping begins with
            counted = not line.endswith(".raw")
        elif name == "Pss:" and counted:
            total += int(values[0]) * 1024
    return total


if __name__ == "__main__":
    main()
