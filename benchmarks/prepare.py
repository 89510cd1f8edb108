"""Data preparation against the obvious library calls, on one core: agreement, seconds per B-scan, whole challenge set.

    python -m benchmarks.prepare [--slices 12] [--plain-slices 1] [--workers 2] [--folder .]

Both sides run in this process on the same synthetic volumes, one after the other, stage by stage. Each runs three times
and the best time counts; the plain ROI runs once, because it takes seconds a B-scan. Prints Markdown tables: see
benchmarks/README.md.
"""

import argparse
import hashlib
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from benchmarks import plain_preprocessing as plain
from utils.phantom.retouch_like import generate_phantom
from utils.preparation import preprocessing as ours
from utils.preparation.invalid import find_invalid
from utils.preparation.roi import roi_mask
from utils.volumes.mhd import read_volume, write_volume
from utils.volumes.vendors import VENDORS

AXIAL_SPACING_MM = 0.003872
REPEATS = 3
STAGES = ("8 bit", "invalid pixels", "matching", "medians", "resampling", "reference", "ROI")
ISOTROPIC = "ROI, isotropic closing"  # the plain side's with the best library call
# RETOUCH's training set: 6,936 B-scans. Which two Topcon volumes have 64 slices is not published;
# they are taken for ones with 650 rows.
B_SCANS = {
    ("Cirrus", 1024): 24 * 128,
    ("Spectralis", 496): 24 * 49,
    ("Topcon", 885): 12 * 128,
    ("Topcon", 650): 9 * 128,
}
VARIANTS = {"clean": {}, "white wedges, circular crop": {"padded_wedges": True, "circular_crop": True}}


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--slices", type=int, default=12, help="of each volume on our side (default 12, at least 3)")
    arguments.add_argument("--plain-slices", type=int, default=1, help="B-scans whose ROI the plain side finds")
    arguments.add_argument("--workers", type=int, default=2, help="cores of the projection")
    arguments.add_argument("--folder", default=".", help="on the disk to measure (0.6 GB is written and removed)")
    arguments = arguments.parse_args()
    cv2.setNumThreads(1)  # nothing else that is called here uses threads, BLAS among it

    spectralis, _, _ = generate_phantom("Spectralis", 496, slices=4, seed=1)
    spectralis = ours.to_8_bit(spectralis)
    timings, agreements = {}, {}
    for vendor, rows in tqdm(B_SCANS, "vendors", leave=False):
        for variant, padding in VARIANTS.items():
            scan = generate_phantom(vendor, rows, slices=max(3, arguments.slices), seed=2, **padding)
            timings[vendor, rows, variant], agreements[vendor, rows, variant] = compare(
                vendor, *scan, spectralis, arguments.plain_slices
            )
    print_agreement(agreements)
    print_timings(timings)
    disk = disk_rates(arguments.folder)
    print_projection(timings, disk, arguments.workers)
    seconds, peak_bytes = whole_cirrus_volume(arguments.folder)
    print(
        f"\nA whole Cirrus volume (128 B-scans) in one worker: {seconds:.1f} s, "
        f"peak memory {peak_bytes / 2**30:.2f} GiB"
    )


def compare(vendor, voxels, reference, spacing_mm, spectralis, plain_slices):
    """Seconds per B-scan {stage: (plain, ours)}, and how far the results are apart.

    The latter is (largest difference in grey values of the matched and filtered volume, of the resampled one, rows with
    a label that differs, ROI pixels that differ).
    """
    rule = ours.VENDOR_RULES[vendor]
    histogram = (
        ours.grey_value_histogram(spectralis, np.zeros(spectralis.shape, bool)) if rule.match_histogram else None
    )
    rows, count = voxels.shape[1], len(voxels)
    rows_out = ours.resampled_rows(rows, spacing_mm[1], AXIAL_SPACING_MM)
    grid = {"axial_spacing_mm": AXIAL_SPACING_MM}
    seconds = {}

    def stage(name, plain_call, our_call, plain_count=count, plain_repeats=REPEATS):
        times, results = ([], []), [None, None]
        for repeat in range(REPEATS):  # in turn, so that a busy machine slows both
            for side, call in enumerate((plain_call, our_call)):
                if call is not None and (side or repeat < plain_repeats):
                    start = time.perf_counter()
                    results[side] = call()
                    times[side].append(time.perf_counter() - start)
        plain_seconds = min(times[0]) / plain_count if plain_call else np.nan
        seconds[name] = plain_seconds, min(times[1]) / count
        return results

    find_invalid(ours.to_8_bit(voxels[:1]))  # numba compiles, or reads its cache
    roi_mask(ours.preprocess_volume(voxels[:1], spacing_mm, vendor, **grid)[0])
    plain_volume, volume = stage("8 bit", lambda: plain.to_8_bit(voxels), lambda: ours.to_8_bit(voxels))
    np.testing.assert_array_equal(plain_volume, volume)
    _, invalid = stage("invalid pixels", None, lambda: find_invalid(volume))
    plain_volume, volume = stage(
        "matching",
        (lambda: plain.matched(plain_volume, invalid, spectralis)) if rule.match_histogram else None,
        lambda: matched(volume, invalid, histogram),
    )
    if plain_volume is None:
        plain_volume = volume
    matched_difference = largest_difference(plain_volume, volume)
    if rule.pixel_median:
        plain_volume, volume = stage(
            "medians", lambda: plain.filtered(plain_volume), lambda: np.stack(list(ours.filtered_slices(volume, rule)))
        )
    filtered_difference = max(matched_difference, largest_difference(plain_volume, volume))
    band = ours.band(ours.resampling_matrix(rows, rows_out))
    resampled = np.empty((count, rows_out, volume.shape[2]), np.uint8)

    def resample():
        for slice_, left_out, target in zip(volume, invalid, resampled, strict=True):
            ours.resample_valid(slice_, left_out, *band, target)

    plain_resampled, _ = stage("resampling", lambda: plain.resampled(plain_volume, invalid, rows_out), resample)
    plain_labels, labels = stage(
        "reference",
        lambda: plain.resampled_reference(reference, rows_out),
        lambda: ours.preprocess_reference(reference, spacing_mm, **grid),
    )
    examined = np.linspace(0, count - 1, plain_slices + 2).astype(int)[1:-1]
    plain_roi, roi = stage(
        "ROI",
        lambda: [plain.roi(resampled[index], labels[index]) for index in examined],
        lambda: [roi_mask(slice_, label) for slice_, label in zip(resampled, labels, strict=True)],
        plain_count=plain_slices,
        plain_repeats=1,
    )
    start = time.perf_counter()
    isotropic_roi = [plain.roi(resampled[index], labels[index], plain.isotropic_closing) for index in examined]
    seconds[ISOTROPIC] = (time.perf_counter() - start) / plain_slices, seconds["ROI"][1]
    np.testing.assert_array_equal(isotropic_roi, plain_roi)
    whole = ours.preprocess_volume(voxels, spacing_mm, vendor, reference_histogram=histogram, **grid)
    np.testing.assert_array_equal(whole, resampled)  # the stages measured are all that is done
    roi_pixels = sum((mask != roi[index]).sum() for mask, index in zip(plain_roi, examined, strict=True))
    label_rows = np.flatnonzero((plain_labels != labels).any(axis=(0, 2)))
    return seconds, (
        filtered_difference,
        largest_difference(plain_resampled, resampled),
        ", ".join(f"row {row}" for row in label_rows) or "none",
        roi_pixels,
    )


def matched(volume, invalid, histogram):
    """`volume` (uint8) matched to `histogram` (None: as it is), 0 where `invalid`, slice by slice."""
    table = np.arange(256, dtype=np.uint8)
    if histogram is not None:
        table = ours.histogram_matching_table(ours.grey_value_histogram(volume, invalid), histogram)
    return np.stack([ours.matched_slice(*slices, table) for slices in zip(volume, invalid, strict=True)])


def largest_difference(first, second):
    return int(np.abs(first.astype(np.int16) - second).max())


def disk_rates(folder):
    """Bytes per second {read, write, SHA-256} with files of the size of a Cirrus volume; reading not from the cache."""
    voxels = np.random.default_rng(0).integers(0, 256, (128, 1024, 512), np.uint8)
    times = {"read": [], "write": [], "SHA-256": []}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for repeat in range(5):
            path = Path(temporary) / f"{repeat}.mhd"
            times["write"].append(timed(lambda path=path: (write_volume(path, voxels, (1, 1, 1)), os.sync())))
            with open(path.with_suffix(".raw"), "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            times["read"].append(timed(lambda path=path: read_volume(path)))
            times["SHA-256"].append(timed(lambda: hashlib.sha256(voxels)))
    return {name: voxels.nbytes / np.median(seconds) for name, seconds in times.items()}


def timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def whole_cirrus_volume(folder):
    """Seconds and peak memory in bytes of one worker that prepares a Cirrus volume of 128 slices, from file to file."""
    voxels, reference, spacing_mm = generate_phantom("Cirrus", 1024, slices=8, seed=3)
    spectralis = ours.to_8_bit(generate_phantom("Spectralis", 496, slices=1, seed=1)[0])
    histogram = ours.grey_value_histogram(spectralis, np.zeros(spectralis.shape, bool))
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        write_volume(Path(temporary) / "oct.mhd", np.tile(voxels, (16, 1, 1)), spacing_mm)
        write_volume(Path(temporary) / "reference.mhd", np.tile(reference, (16, 1, 1)), spacing_mm)
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a fresh process: the peak is its own
            return pool.apply(_prepare_files, (temporary, histogram))


def _prepare_files(folder, histogram):
    folder, grid = Path(folder), {"axial_spacing_mm": AXIAL_SPACING_MM}
    cv2.setNumThreads(1)

    def prepare():
        voxels, spacing_mm = read_volume(folder / "oct.mhd")
        reference, _ = read_volume(folder / "reference.mhd")
        volume = ours.preprocess_volume(voxels, spacing_mm, "Cirrus", reference_histogram=histogram, **grid)
        labels = ours.preprocess_reference(reference, spacing_mm, **grid)
        roi = np.stack([roi_mask(slice_, label) for slice_, label in zip(volume, labels, strict=True)])
        for name, result in (("volume", volume), ("labels", labels), ("roi", roi)):
            write_volume(folder / f"{name}.mhd", result, spacing_mm)

    seconds = timed(prepare)
    # Not getrusage's: that includes what the parent used when it started this process.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return seconds, int(status["VmHWM"].split()[0]) * 1024


def print_agreement(agreements):
    print(
        "\n| volume | grey values apart: matched, filtered | resampled | labels that differ | ROI pixels that differ |"
    )
    print("|---|---|---|---|---|")
    for (vendor, rows, variant), differences in agreements.items():
        print(f"| {vendor} {rows}, {variant} | {' | '.join(str(value) for value in differences)} |")


def print_timings(timings):
    print("\nMilliseconds per B-scan, plain / ours, one core\n")
    stages = [*STAGES, ISOTROPIC]
    print(f"| volume | {' | '.join(stages)} | all | ratio | ratio, isotropic closing |")
    print("|" + "---|" * (len(stages) + 4))
    for (vendor, rows, variant), seconds in timings.items():
        plain_total, our_total = totals(seconds)
        isotropic_total = plain_total - seconds["ROI"][0] + seconds[ISOTROPIC][0]
        cells = [_cell(seconds.get(stage)) for stage in stages] + [_cell((plain_total, our_total))]
        ratios = f"{plain_total / our_total:.0f} | {isotropic_total / our_total:.0f}"
        print(f"| {vendor} {rows}, {variant} | {' | '.join(cells)} | {ratios} |")


def totals(seconds):
    """Seconds per B-scan over all stages (plain, ours); what the plain side is given costs it nothing."""
    return np.nansum([seconds[stage] for stage in STAGES if stage in seconds], axis=0)


def _cell(seconds):
    if seconds is None:
        return "–"
    return " / ".join("–" if np.isnan(value) else f"{1e3 * value:.2f}" for value in seconds)


def print_projection(timings, rates, workers):
    """The whole training set: arithmetic on every core, the one disk, hashes on every core."""
    arithmetic_s = sum(B_SCANS[vendor, rows] * totals(timings[vendor, rows, "clean"])[1] for vendor, rows in B_SCANS)
    read_bytes = written_bytes = 0
    for (vendor, rows), count in B_SCANS.items():
        scanner = VENDORS[vendor]
        pixels = count * scanner.columns
        rows_out = ours.resampled_rows(rows, scanner.spacing_y_mm[scanner.rows.index(rows)], AXIAL_SPACING_MM)
        read_bytes += pixels * rows * (np.dtype(scanner.element_type).itemsize + 1)  # with the reference
        written_bytes += pixels * rows_out * 3
    hash_s = (read_bytes + written_bytes) / rates["SHA-256"]
    disk_s = read_bytes / rates["read"] + written_bytes / rates["write"]
    print(f"\nRETOUCH training set, {sum(B_SCANS.values())} B-scans, {workers} cores (projected)\n")
    print("| part | amount | rate | seconds |")
    print("|---|---|---|---|")
    print(f"| arithmetic | {arithmetic_s:.0f} core seconds | {workers} cores | {arithmetic_s / workers:.0f} |")
    print(
        f"| SHA-256 of all files, read and written | {(read_bytes + written_bytes) / 1e9:.1f} GB "
        f"| {rates['SHA-256'] / 1e9:.2f} GB/s a core | {hash_s / workers:.0f} |"
    )
    print(
        f"| reading | {read_bytes / 1e9:.1f} GB | {rates['read'] / 1e9:.2f} GB/s | {read_bytes / rates['read']:.0f} |"
    )
    print(
        f"| writing | {written_bytes / 1e9:.1f} GB | {rates['write'] / 1e9:.2f} GB/s "
        f"| {written_bytes / rates['write']:.0f} |"
    )
    compute_s = (arithmetic_s + hash_s) / workers
    bound = "arithmetic" if compute_s > disk_s else "the disk"
    print(f"| in sequence | | | **{compute_s + disk_s:.0f}** |")
    print(f"\nBound by {bound}: {compute_s:.0f} s of arithmetic and hashes, {disk_s:.0f} s of disk.")


if __name__ == "__main__":
    main()
