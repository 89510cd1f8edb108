"""Networks side by side: parameters, seconds per B-scan, and Dice after equal training on synthetic volumes.

    python -m benchmarks.networks [NETWORK ...] [--steps 200] [--batch 8] [--base-filters 16] [--cases 16]

NETWORK is a value of config.MODEL. All see the same patches in the same order. Their size, 288 x 192 pixels, suits
every architecture. Dice is that of the validation B-scans after the last epoch. Prints a Markdown table.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

from benchmarks.scripts import prepare, run
from utils.networks.networks import tile_step
from utils.phantom.retouch_like import generate_phantom
from utils.preparation.preprocessing import preprocess_volume
from utils.segmentation.tiling import Predictor

NETWORKS = ("tennakoon", "Unet/resnet34", "Linknet/resnet34", "FPN/efficientnetb0", "PSPNet/resnet34")
EPOCHS = 4
B_SCANS = 4  # timed, of 496 x 512 pixels, after one that is not
DICE = ("val_dice", "val_dice_irf", "val_dice_srf", "val_dice_ped")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--base-filters", type=int, default=16)
    parser.add_argument("--cases", type=int, default=16)
    arguments = parser.parse_args()
    print("| network | parameters | s/B-scan | training patches/s | Dice | IRF | SRF | PED |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        settings = prepare(Path(folder), arguments.cases, slices=6, PATCH_SIZE_H=288, PATCH_SIZE_W=192)
        settings |= {"BASE_FILTERS": arguments.base_filters, "BATCH_SIZE": arguments.batch, "ADAM_LR": 1e-3}
        settings |= {"EPOCH": EPOCHS, "STEPS_PER_EPOCH": arguments.steps // EPOCHS, "WORKERS": 1}
        for name in arguments.networks:
            settings |= {"MODEL": name, "RUN_NAME": name.replace("/", "-")}
            run("model_training.py", **settings)
            trained = settings["OUTPUT_ROOT"] / "runs" / settings["RUN_NAME"] / "segmentation"
            with open(trained / "log.csv", newline="") as file:
                *_, last = csv.DictReader(file)
            parameters, seconds = measure(trained / "best.keras", name)
            dice = " | ".join(f"{float(last[column] or 'nan'):.3f}" for column in DICE)
            speed = float(last["patches_per_s"])
            print(f"| {name} | {parameters:,} | {seconds:.2f} | {speed:.1f} | {dice} |", flush=True)


def measure(path, name):
    """(number of parameters, seconds per B-scan) of an exported network."""
    import keras

    model = keras.models.load_model(path, compile=False)
    voxels, _, spacing_mm = generate_phantom("Spectralis", 496, slices=B_SCANS + 1, seed=0)
    volume = preprocess_volume(voxels, spacing_mm, "Spectralis", axial_spacing_mm=0.003872)
    predictions = Predictor(model, step=tile_step(name)).of_volume(volume)
    next(predictions)
    started = time.perf_counter()
    for _ in predictions:
        pass
    return model.count_params(), (time.perf_counter() - started) / B_SCANS


if __name__ == "__main__":
    main()
