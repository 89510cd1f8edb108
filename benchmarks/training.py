"""The training step of several variants: seconds, GFLOP/s compared with a single convolution's best rate, and memory.

    [KERAS_BACKEND=jax] python -m benchmarks.training [--base-filters 64] [--batch 8] [--steps 6] [VARIANT ...]
    python -m benchmarks.training --epoch [--base-filters 16] [--batch 16]

A variant is POLICY/OUTPUT/COMPILER: a dtype policy, "plain" or "rearranged" (model.ConvolutionOfScales), "ops" or "xla"
(always xla on JAX). Each runs in a process of its own, several times in turn; the best time counts. The floating-point
operations of a step are three times those of the forward pass's convolutions (the result, the gradient of its input
and that of its weights), without the gradient of the image. A fourth part, "deterministic", asks for reproducible
kernels. Prints a Markdown table.

With --epoch: the share of an epoch of model_training.py that is spent outside of the compiled step (patches, Keras,
progress bar, saving), without the validation, and the Dice of both dtype policies after equal training.
"""

import argparse
import csv
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.scripts import prepare, run
from utils.networks.keras_setup import set_up_keras
from utils.settings.rules import OptimizerSettings
from utils.training.epoch import compile_for_scoring, fit_epoch, segmentation_losses
from utils.training.optimizer import create_optimizer

VARIANTS = ("float32/plain/ops", "float32/rearranged/ops", "float32/rearranged/xla", "mixed_bfloat16/rearranged/ops")
ROUNDS = 2
# (rows, columns, channels) of the convolutions whose rate is measured: those that take most of the network's time.
LONE_CONVOLUTIONS = ((250, 122, 64), (121, 57, 128), (56, 24, 256), (24, 12, 512))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("variants", nargs="*", default=VARIANTS, metavar="VARIANT")
    parser.add_argument("--base-filters", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--epoch", action="store_true")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.base_filters, arguments.batch, arguments.steps)))
        return
    if arguments.epoch:
        measure_epochs(arguments)
        return
    results = {}
    for _ in range(ROUNDS):
        for variant in arguments.variants:
            result = in_process_of_its_own(variant, arguments)
            before = results.setdefault(variant, result)
            results[variant] = {name: max(value, before[name]) for name, value in result.items()}
    first = results[arguments.variants[0]]["patches_per_s"]
    print("| variant | s a step | patches/s | ratio | GFLOP/s | lone convolution's | share | peak memory |")
    print("|---|---|---|---|---|---|---|---|")
    for variant, result in results.items():
        speed, rate, best = (result[name] for name in ("patches_per_s", "gflop_per_s", "best_gflop_per_s"))
        shown = [variant, f"{arguments.batch / speed:.2f}", f"{speed:.2f}", f"{speed / first:.2f}", f"{rate:.0f}"]
        shown += [f"{best:.0f}", f"{rate / best:.0%}", f"{result['peak_gib']:.2f} GiB"]
        print(f"| {' | '.join(shown)} |")


def in_process_of_its_own(variant, arguments):
    """What `measure` returns."""
    options = ("--measure", variant, "--base-filters", arguments.base_filters)
    return json.loads(run("-m benchmarks.training", *options, "--batch", arguments.batch, "--steps", arguments.steps))


def measure_epochs(arguments):
    """Print what --epoch asks for."""
    print("| policy | patches/s of the step alone | in an epoch | outside | Dice on whole B-scans |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        settings = prepare(Path(folder), cases=16, slices=8, WORKERS=1, EPOCH=5, STEPS_PER_EPOCH=50, ADAM_LR=1e-3)
        settings |= {"BASE_FILTERS": arguments.base_filters, "BATCH_SIZE": arguments.batch}
        for policy in ("float32", "mixed_bfloat16"):
            variant = f"{policy}/rearranged/ops/deterministic"
            alone = in_process_of_its_own(variant, arguments)["patches_per_s"]
            run("model_training.py", **settings, RUN_NAME=policy, DTYPE_POLICY=policy)
            alone = max(alone, in_process_of_its_own(variant, arguments)["patches_per_s"])
            with open(settings["OUTPUT_ROOT"] / "runs" / policy / "segmentation" / "log.csv", newline="") as file:
                epochs = list(csv.DictReader(file))
            in_epoch = max(float(row["patches_per_s"]) for row in epochs[1:])  # the first compiles
            dice = float(epochs[-1]["val_dice"])
            print(f"| {policy} | {alone:.1f} | {in_epoch:.1f} | {1 - in_epoch / alone:.1%} | {dice:.3f} |", flush=True)


def measure(variant, base_filters, batch, steps):
    """Rates (higher is better) and memory of one variant, as a dictionary."""
    policy, output, compiler, *deterministic = variant.split("/")
    set_up_keras(0, deterministic=bool(deterministic))
    import keras

    from model import create_unet_model

    unet = create_unet_model(
        (256, 128, 3), base_filters=base_filters, seed=0, dtype_policy=policy, rearranged_output=output == "rearranged"
    )
    optimizer = create_optimizer(OptimizerSettings(2e-4, 0.5), policy)
    losses = segmentation_losses(batch, 4, False)
    jit_compile = True if keras.backend.backend() == "jax" else compiler == "xla"
    compile_for_scoring(unet, losses, 0.5, optimizer=optimizer, jit_compile=jit_compile)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, 256, 128, 3)).astype(np.float32)
    masks = np.eye(4, dtype=np.uint8)[rng.integers(0, 4, (batch, 256, 128))]
    ends = []
    fit_epoch(
        unet, ((images, masks) for _ in range(steps + 1)), lambda means, synchronise: ends.append(time.perf_counter())
    )
    seconds = np.diff(ends).min()
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "patches_per_s": batch / seconds,
        "gflop_per_s": batch * flop_of_step(unet) / seconds / 1e9,
        "best_gflop_per_s": best_rate(policy.removeprefix("mixed_"), batch, base_filters) / 1e9,
        "peak_gib": peak_gib,
    }


def flop_of_step(unet):
    """Floating-point operations of a training step with one patch."""
    total = 0
    for layer in unet.layers:
        kind = type(layer).__name__
        if kind == "ConvolutionOfScales":
            multiplications = sum(int(np.prod(tensor.shape[1:])) for tensor in layer.input) * 9 * layer.n_classes
        elif kind in ("Conv2D", "Conv2DTranspose"):
            pixels = layer.output.shape[1:3] if kind == "Conv2D" else layer.input.shape[1:3]
            multiplications = int(np.prod(pixels)) * int(np.prod(layer.kernel.shape))
        else:
            continue
        passes = 2 if layer.name == "image_convolution" else 3
        total += 2 * passes * multiplications
    return total


def best_rate(dtype, batch, base_filters):
    """Floating-point operations a second of the fastest lone 3x3 convolution, forward, compiled by the backend."""
    import keras
    from keras import ops

    rates = []
    for rows, columns, channels in LONE_CONVOLUTIONS:
        channels = channels * base_filters // 64
        image = ops.ones((batch, rows, columns, channels), dtype)
        kernel = ops.ones((3, 3, channels, channels), dtype)
        if keras.backend.backend() == "jax":
            import jax

            convolve = jax.jit(ops.conv)
        else:
            import tensorflow

            convolve = tensorflow.function(ops.conv)
        seconds = []
        for _ in range(6):
            started = time.perf_counter()
            float(ops.cast(convolve(image, kernel)[0, 0, 0, 0], "float32"))  # waits for the result
            seconds.append(time.perf_counter() - started)
        flop = 2 * batch * (rows - 2) * (columns - 2) * 9 * channels**2
        rates.append(flop / min(seconds))
    return max(rates)


if __name__ == "__main__":
    main()
