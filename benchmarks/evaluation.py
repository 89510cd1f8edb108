"""Scoring one volume of full size: this collection against whole-volume masks and distance maps. Values are compared.

    python benchmarks/evaluation.py [--slices 128] [--rows 1024] [--columns 512] [--blobs 12]

The volume holds ellipsoids of all three fluids, about 1 mm3 of each. The prediction has the same with other sizes; some
are missing. The straightforward way computes every mask on the whole volume, its border by erosion and its distances by
SciPy's Euclidean distance transform, as MedPy does. Each way runs in its own process, to measure its peak memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[1]))

from utils.evaluation.scores import score_volume
from utils.labels import FLUIDS

SPACING_MM = (0.011742, 0.001955, 0.0472)
SEMI_AXES_MM = (0.25, 0.08, 0.3)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--slices", type=int, default=128)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--blobs", type=int, default=12, help="ellipsoids of each fluid")
    parser.add_argument("--measure", choices=("ours", "straightforward"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    results = {}
    for name in ("straightforward", "ours"):
        command = [sys.executable, *sys.argv, "--measure", name]
        results[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    difference = max(
        abs(ours[name] - plain[name])
        for ours, plain in zip(results["ours"]["rows"], results["straightforward"]["rows"], strict=True)
        for name in plain
    )
    print("| way | s a volume | times as fast | peak memory |")
    print("|---|---|---|---|")
    for name, result in results.items():
        ratio = results["straightforward"]["seconds"] / result["seconds"]
        print(f"| {name} | {result['seconds']:.2f} | {ratio:.1f} | {result['peak_gib']:.2f} GiB |")
    print(f"\nlargest difference of a value: {difference:.1e}")


def measure(arguments):
    """Seconds, peak memory in GiB, and the values of one way."""
    reference, labels = volumes((arguments.slices, arguments.rows, arguments.columns), arguments.blobs)
    started = time.perf_counter()
    ours = arguments.measure == "ours"
    rows = (score_volume if ours else straightforward)(labels, reference, SPACING_MM)
    seconds = time.perf_counter() - started
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows = [{name: value for name, value in row.items() if name != "fluid"} for row in rows]
    return {"seconds": seconds, "peak_gib": peak_gib, "rows": rows}


def volumes(shape, blobs):
    """A reference and a prediction, uint8 of `shape`."""
    rng = np.random.default_rng(0)
    reference, labels = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    middle = np.array(shape) / 2
    semi_axes = np.array(SEMI_AXES_MM[::-1]) / SPACING_MM[::-1]
    for code in FLUIDS.values():
        for _ in range(blobs):
            centre = rng.normal(middle, np.array(shape) / 8)
            size = semi_axes * rng.uniform(0.4, 1)
            _draw(reference, centre, size, code)
            if rng.random() < 0.8:
                _draw(labels, centre + rng.normal(0, 2, 3), size * rng.uniform(0.8, 1.2), code)
    return reference, labels


def _draw(volume, centre, size, code):
    low = np.maximum(np.floor(centre - size), 0).astype(int)
    high = np.minimum(np.ceil(centre + size) + 1, volume.shape).astype(int)
    z, y, x = (np.arange(a, b) for a, b in zip(low, high, strict=True))
    grid = np.meshgrid(z, y, x, indexing="ij", sparse=True)
    inside = sum(((axis - c) / s) ** 2 for axis, c, s in zip(grid, centre, size, strict=True)) <= 1
    volume[low[0] : high[0], low[1] : high[1], low[2] : high[2]][inside] = code


def straightforward(labels, reference, spacing_mm):
    """The rows of `score_volume`, of fluids that both volumes hold, by whole-volume operations."""
    rows = []
    for fluid, code in FLUIDS.items():
        predicted, true = labels == code, reference == code
        n_predicted, n_true, overlap = predicted.sum(), true.sum(), (predicted & true).sum()
        there, back = (_distances(*pair, spacing_mm) for pair in ((predicted, true), (true, predicted)))
        lesions, lesions_found = _components(true, predicted)
        lesions_predicted, lesions_true = _components(predicted, true)
        volume_mm3, reference_mm3 = n_predicted * np.prod(spacing_mm), n_true * np.prod(spacing_mm)
        values = {"dice": 2 * overlap / (n_predicted + n_true), "volume_mm3": volume_mm3}
        values |= {"reference_mm3": reference_mm3, "difference_mm3": volume_mm3 - reference_mm3}
        values |= {"avd_mm3": abs(volume_mm3 - reference_mm3)}
        values |= {"precision": overlap / n_predicted, "recall": overlap / n_true}
        values |= {"hd95_mm": np.percentile(np.hstack([there, back]), 95), "assd_mm": (there.mean() + back.mean()) / 2}
        values |= {"lesions": lesions, "lesions_found": lesions_found, "lesions_predicted": lesions_predicted}
        values |= {"lesions_false": lesions_predicted - lesions_true}
        rows.append({"fluid": fluid, **{name: float(value) for name, value in values.items()}})
    return rows


def _distances(mask, other, spacing_mm):
    """Distances of the border of one mask to the other's."""
    border, other_border = (array ^ ndimage.binary_erosion(array) for array in (mask, other))
    return ndimage.distance_transform_edt(~other_border, sampling=spacing_mm[::-1])[border]


def _components(mask, other):
    components, count = ndimage.label(mask, np.ones((3, 3, 3)))
    return count, len(np.unique(components[mask & other]))


if __name__ == "__main__":
    main()
