"""Speed and memory of segmenting scans, compared with patches one by one, and the agreement of both.

    python -m benchmarks.segmentation MODEL [--b-scans 4] [--filters 64]

MODEL is a narrow trained network (a ``best.keras`` of model_training.py, as the demo trains one). It is widened to the
full width without changing what it computes: every channel is repeated, every weight divided by the number of repeats.
So the full network's cost is measured with meaningful labels.

The straightforward way takes patches of 256 x 128 pixels over the whole B-scan, one `model.predict` each. Of the
164 x 36 outputs it uses 160 x 32 (shifts by multiples of 8 do not change the network's output). Both ways read,
preprocess, segment and return to the scan's grid. Prints a table for a Spectralis and a Cirrus phantom, then the peak
memory of test.py by the number of B-scans.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.scripts import run_measured
from utils.labels import FLUIDS
from utils.networks.exported_model import export_best, read_best
from utils.phantom.retouch_like import generate_phantom
from utils.preparation.preprocessing import preprocess_volume, resampled_rows, resampling_matrix
from utils.preparation.roi import prediction_region
from utils.segmentation.decisions import labels_from_probabilities
from utils.volumes.mhd import volume_writer

PATCH, USED, LOST = (256, 128), (160, 32), 46  # pixels: a patch, what of its output is used, what it loses a side
THRESHOLD = 0.5
MEMORY_OF = ((64, 8), (16, 128), (16, 512))  # (filters, B-scans) of a Cirrus-like scan


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--b-scans", type=int, default=4)
    parser.add_argument("--filters", type=int, default=64)
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with tempfile.TemporaryDirectory() as folder:
        wide = widened(arguments.model, Path(folder) / "wide", arguments.filters)
        print("| scan | way | s a B-scan | B-scans/s | faster | agreement |\n|---|---|---|---|---|---|", flush=True)
        for vendor, rows in (("Spectralis", 496), ("Cirrus", 1024)):
            compare(vendor, rows, arguments.b_scans, wide)
        print("\n| filters | B-scans | scan (MiB) | peak (GiB) |\n|---|---|---|---|")
        for filters, b_scans in MEMORY_OF:
            model = (
                wide if filters == arguments.filters else widened(arguments.model, Path(folder) / str(filters), filters)
            )
            scan = Path(folder) / f"Cirrus_{b_scans}.mhd"
            write_scan(scan, b_scans)
            peak = peak_of_test(model, scan, Path(folder) / f"output_{filters}_{b_scans}")
            print(f"| {filters} | {b_scans} | {b_scans // 2} | {peak:.2f} |", flush=True)


# ---- The network ---------------------------------------------------------------------------------------------------
def widened(path, folder, filters):
    """The exported network at `path` with `filters` in its first level, computing the same; returns its best.keras."""
    import keras

    from utils.networks.networks import create_inference_network

    narrow, details = keras.models.load_model(path, compile=False), read_best(path)
    repeats = filters // narrow.get_weights()[0].shape[-1]
    network = create_inference_network(
        "tennakoon", input_shape=(*PATCH, 3), base_filters=filters, regularizer_weight=0.0, n_classes=4, seed=0
    )
    for layer, wide in zip(narrow.layers, network.layers, strict=True):
        wide.set_weights([_repeated(layer, weight, repeats) for weight in layer.get_weights()])
    export_best(folder, network, details)
    return folder / "best.keras"


def _repeated(layer, weight, repeats):
    """A layer's weight with every channel repeated, except those of the image and of the classes."""
    if weight.ndim == 1:
        return weight if layer.name == "segmentation_logits" else np.repeat(weight, repeats)
    outputs, inputs = (2, 3) if layer.name.endswith("_upsampled") else (3, 2)  # transposed: (h, w, outputs, inputs)
    if layer.name != "image_convolution":
        weight = np.repeat(weight, repeats, axis=inputs) / repeats
    return weight if layer.name == "segmentation_logits" else np.repeat(weight, repeats, axis=outputs)


# ---- Speed ---------------------------------------------------------------------------------------------------------
def compare(vendor, rows, b_scans, model_path):
    """Print a row for the straightforward way, for ours in float32, and in bfloat16."""
    import keras

    from utils.segmentation.predict import load_network, segment_scan

    voxels, _, spacing_mm = generate_phantom(vendor, rows, slices=b_scans, seed=3)
    histogram = read_best(model_path)["reference_histogram"]
    settings = {"axial_spacing_mm": 0.003872, "reference_histogram": histogram}
    plain_model = keras.models.load_model(model_path, compile=False)
    plain_model.predict(np.zeros((1, *PATCH, 3)), verbose=0)
    started = time.perf_counter()
    volume = preprocess_volume(voxels, spacing_mm, vendor, **settings)
    plain = np.stack([one_by_one(plain_model, volume, index) for index in range(b_scans)])
    back = resampling_matrix(resampled_rows(rows, spacing_mm[1], 0.003872), rows)
    for probabilities in plain:
        labels_from_probabilities(np.tensordot(back, probabilities, axes=1), THRESHOLD)
    seconds = {"patches one by one": time.perf_counter() - started}
    networks = {"ours, float32": load_network(model_path)}
    networks["ours, bfloat16"] = load_network(model_path, dtype_policy="mixed_bfloat16")
    labels = {}
    for name, network in networks.items():
        segment_scan(network, voxels[:1], spacing_mm, vendor)  # oneDNN prepares its kernels
        started = time.perf_counter()
        labels[name] = segment_scan(network, voxels, spacing_mm, vendor).labels
        seconds[name] = time.perf_counter() - started
    agreements = ["", agreement(networks["ours, float32"], volume, plain), dice_text(*labels.values())]
    for (name, taken), text in zip(seconds.items(), agreements, strict=True):
        faster = seconds["patches one by one"] / taken
        print(
            f"| {vendor} | {name} | {taken / b_scans:.2f} | {b_scans / taken:.2f} | {faster:.1f} | {text} |", flush=True
        )


def one_by_one(model, volume, index):
    """Class probabilities (rows, columns, 4) of a B-scan, from patches predicted one by one."""
    stack = volume[[max(index - 1, 0), index, min(index + 1, len(volume) - 1)]]
    image = (np.moveaxis(stack, 0, -1).astype(np.float32) - 128) / 128
    rows, columns = image.shape[:2]
    n_rows, n_columns = -(-rows // USED[0]), -(-columns // USED[1])
    # As many pixels before as ours has, so that both see the network's grid of 8 pixels at the same places.
    after = (n_rows * USED[0] + 2 * PATCH[0] - rows, n_columns * USED[1] + 2 * PATCH[1] - columns)
    image = np.pad(image, ((48, after[0]), (48, after[1]), (0, 0)), mode="symmetric")
    stitched = np.empty((n_rows * USED[0], n_columns * USED[1], 4), np.float32)
    for row in range(0, len(stitched), USED[0]):
        for column in range(0, stitched.shape[1], USED[1]):
            patch = image[row : row + PATCH[0], column : column + PATCH[1]]
            output = model.predict(patch[np.newaxis], verbose=0)[0]
            first = 48 - LOST
            used = output[first : first + USED[0], first : first + USED[1]]
            stitched[row : row + USED[0], column : column + USED[1]] = used
    return stitched[:rows, :columns]


def agreement(network, volume, plain):
    """In words how many pixels of the retina get the same label, and how near to a tie those are that do not."""
    ours = network.predictor.of_volume(volume, prediction_region)
    same, n_pixels, widest = 0, 0, 0.0
    for slice_, of_ours, of_plain in zip(volume, ours, plain, strict=True):
        retina = prediction_region(slice_) > 0
        of_ours, of_plain = of_ours[retina], of_plain[retina]
        differ = labels_from_probabilities(of_ours[None], THRESHOLD) != labels_from_probabilities(
            of_plain[None], THRESHOLD
        )
        same, n_pixels = same + np.count_nonzero(~differ), n_pixels + differ.size
        if differ.any():
            widest = max(widest, float(np.abs(of_ours - of_plain)[differ[0]].max()))
    return f"{same / n_pixels:.4%} of labels in the retina; others differ by at most {widest:.1e} in probability"


def dice_text(first, second):
    """Dice of each fluid between two label volumes."""
    dice = [
        2
        * np.count_nonzero((first == label) & (second == label))
        / max(1, np.count_nonzero(first == label) + np.count_nonzero(second == label))
        for label in FLUIDS.values()
    ]
    return "Dice with float32 " + "/".join(f"{value:.4f}" for value in dice)


# ---- Memory --------------------------------------------------------------------------------------------------------
def write_scan(path, b_scans):
    """Write a Cirrus-like scan of 1024 x 512 pixels, whose B-scans repeat those of a phantom."""
    voxels, _, spacing_mm = generate_phantom("Cirrus", 1024, slices=8, seed=5)
    with volume_writer(path, (b_scans, *voxels.shape[1:]), voxels.dtype, spacing_mm) as write_slice:
        for index in range(b_scans):
            write_slice(voxels[index % 8])


def peak_of_test(model, scan, output):
    """Peak memory in GiB of test.py on one scan."""
    _, peak = run_measured("test.py", scan, "--output", output, "--model", model)
    return peak / 2**30


if __name__ == "__main__":
    main()
