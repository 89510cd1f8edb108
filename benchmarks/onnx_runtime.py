"""test.py with a model's ONNX form beside its Keras form: start-up, seconds a B-scan, memory, agreement.

    python -m benchmarks.onnx_runtime [--model weights/oct_fluid.keras] [--b-scans 25] [--rounds 3]

The model is exported first. Each round segments a Spectralis-like phantom of one B-scan and one of more, in both forms
in turn, each in a process of its own. The shortest time of the rounds counts. What test.py takes for the single B-scan
is start-up; the difference of both scans gives the seconds of a further B-scan.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.scripts import run_measured
from utils.phantom.retouch_like import generate_phantom
from utils.volumes.mhd import read_volume, write_volume


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("weights", "oct_fluid.keras"))
    parser.add_argument("--b-scans", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        exported = folder / "model.onnx"
        command = [sys.executable, "-m", "utils.tools.export_onnx", arguments.model, "--output", exported]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        voxels, _, spacing_mm = generate_phantom("Spectralis", 496, slices=arguments.b_scans, seed=3)
        write_volume(folder / "all.mhd", voxels, spacing_mm)
        write_volume(folder / "one.mhd", voxels[:1], spacing_mm)
        forms = {"Keras on TensorFlow": arguments.model, "ONNX": exported}
        seconds, peaks = {}, {}
        for number in range(arguments.rounds):
            for name, model in forms.items():
                for scan in ("one", "all"):
                    output = folder / f"{number} {name}"
                    options = ("--output", output, "--model", model, "--vendor", "Spectralis")
                    taken, peak = run_measured("test.py", folder / f"{scan}.mhd", *options)
                    seconds[name, scan] = min(taken, seconds.get((name, scan), taken))
                    peaks[name] = max(peak, peaks.get(name, 0))
        labels = [read_volume(folder / f"0 {name}" / "Spectralis_all.mhd")[0] for name in forms]
    print("| form | one B-scan, with start-up (s) | a further B-scan (s) | peak memory (GB) |\n|---|---|---|---|")
    for name in forms:
        further = (seconds[name, "all"] - seconds[name, "one"]) / (arguments.b_scans - 1)
        print(f"| {name} | {seconds[name, 'one']:.1f} | {further:.3f} | {peaks[name] / 1e9:.2f} |")
    print(f"{np.count_nonzero(labels[0] != labels[1])} of {np.count_nonzero(labels[0])} fluid pixels differ")


if __name__ == "__main__":
    main()
