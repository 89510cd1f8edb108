"""Step 3: fine-tune the best U-Net against a discriminator that learns to tell its masks from a reader's.

Reads   OUTPUT_ROOT/{train_data,val_data}.csv, OUTPUT_ROOT/pre_processed/ and the best model of the segmentation step
Writes  OUTPUT_ROOT/runs/RUN_NAME/adversarial/: best.keras and best.json, log.csv, progress.png, tensorboard/,
        config.json, versions.json, and last.json with the state that the same command continues from

    python adversarial_training.py [--set NAME=VALUE ...]

The starting model is epoch 0: where no epoch beats it on the validation patches, it is the best one.
"""

import time

import numpy as np
from tqdm import tqdm

import config
from utils import runs
from utils.data_prepare import read_csv_data
from utils.errors import InputError, run_script
from utils.plots import save_progress

MONITOR = "val_f_score"  # mean F-score of the three fluids on validation patches; the higher the better
PANELS = {"segmentation loss": ["loss"], "F-score, mean of the fluids": ["f_score"]}
PANELS |= {"discriminator": ["d_loss", "d_accuracy_real", "d_accuracy_generated"], "adversarial": ["adversarial_loss"]}


def main(argv):
    config.load(argv)
    config.validate()
    for part in ("train", "val"):
        read_csv_data(config.split_csv(part))
    start = runs.best_model_path(config.run_folder("segmentation"))
    start_details = runs.read_best(start)
    folder = config.run_folder("adversarial")
    runs.start_run(folder, {**config.values(), "STARTING_MODEL": start_details["sha256"]})
    progress = runs.saved_progress(folder)
    epochs = config.ADVERSARIAL_EPOCH or config.EPOCH
    if progress and (progress["epoch"] >= epochs or progress["stopped"]):
        print(f"{folder}: finished after {progress['epoch']} epochs; best model in {folder / 'best.keras'}")
        return
    fine_tune(folder, start, progress, epochs)


def fine_tune(folder, start, progress, epochs):
    """Fine-tune the exported model `start`, from where `progress` (the content of last.json, or None) left off."""
    from utils import training

    training.set_up_keras(config.SEED, config.DETERMINISTIC)
    import keras

    from model import create_discriminator, create_unet_model
    from utils.adversarial import AdversarialStep

    unet = create_unet_model(**config.unet_settings())
    starting_weights = keras.models.load_model(start, compile=False).get_weights()
    if [weight.shape for weight in starting_weights] != [weight.shape for weight in unet.weights]:
        raise InputError(f"{start}: is another network than BASE_FILTERS = {config.BASE_FILTERS} makes")
    unet.set_weights(starting_weights)
    height, width = unet.output_shape[0][1:3] if config.TRAIN_CLASSES else unet.output_shape[1:3]
    discriminator = create_discriminator(
        (height, width, 3), config.N_CLASSES, config.BASE_FILTERS, config.SEED, config.DTYPE_POLICY
    )
    losses = training.segmentation_losses(config.BATCH_SIZE, config.N_CLASSES, config.TRAIN_CLASSES)
    training.compile_for_scoring(unet, losses, config.THRESHOLD)
    step = AdversarialStep(
        unet,
        discriminator,
        keras.optimizers.Adam(config.ADAM_LR, beta_1=config.ADAM_BETA_1, name="generator_adam"),
        keras.optimizers.Adam(config.D_ADAM_LR, beta_1=config.D_ADAM_BETA_1, name="discriminator_adam"),
        losses,
        config.ADVERSARIAL_WEIGHT,
        real_label=config.D_REAL_LABEL,
    )
    print(f"{folder}: discriminator of {discriminator.count_params():,} parameters, weight {config.ADVERSARIAL_WEIGHT}")
    patch_settings = {"preprocessed_folder": config.preprocessed_folder(), **config.patch_settings()}

    def validate(epoch):
        with training.epoch_batches(config.split_csv("val"), training=False, epoch=epoch, **patch_settings) as batches:
            logs = unet.evaluate(batches, verbose=0, return_dict=True)
        return {f"val_{name}": value for name, value in training.scores(logs).items()}

    def export(best):
        details = {**best, "step": "adversarial", **config.prediction_settings(), "config": config.values()}
        histogram_csv = config.reference_histogram_csv()
        training.export_inference_model(folder, unet, config.unet_settings(), details, histogram_csv)

    if progress:
        runs.restore_state(folder, step.variables)
        print(f"continuing after epoch {progress['epoch']} of {epochs}")
    else:
        before = validate(0)[MONITOR]
        progress = {"epoch": 0, "stopped": False, "history": []}
        progress["best"] = {"epoch": 0, "metric": MONITOR, "value": before}
        export(progress["best"])
        print(f"epoch 0, the model of the segmentation step: {MONITOR} {before:.4f}")

    event_log = runs.EventLog(folder)
    for epoch in range(progress["epoch"] + 1, epochs + 1):
        started = time.perf_counter()
        with training.epoch_batches(
            config.split_csv("train"), training=True, epoch=epoch, steps=config.STEPS_PER_EPOCH, **patch_settings
        ) as batches:
            logs = train_epoch(step, batches, f"epoch {epoch}/{epochs}")
        row = {"epoch": epoch, **logs, **validate(epoch), "seconds": round(time.perf_counter() - started, 2)}
        progress["history"].append(row)
        progress["epoch"] = epoch
        if row[MONITOR] > progress["best"]["value"]:
            progress["best"] = {"epoch": epoch, "metric": MONITOR, "value": row[MONITOR]}
            export(progress["best"])
        progress["stopped"] = discriminator_gave_up(progress["history"], config.D_STOP_ACCURACY)
        runs.keep_epoch_weights(folder, unet, epoch, config.KEEP_EPOCHS)
        runs.save_state(folder, step.variables, progress)
        runs.write_log(folder, progress["history"])
        save_progress(folder / "progress.png", progress["history"], PANELS)
        event_log.write(epoch, {name: value for name, value in row.items() if name != "epoch"})
        report(row, progress["best"])
        if progress["stopped"]:
            print(
                f"stopped: the discriminator no longer tells the masks apart (D_STOP_ACCURACY {config.D_STOP_ACCURACY})"
            )
            break
    event_log.close()
    best = progress["best"]
    print(f"best: epoch {best['epoch']}, {best['metric']} {best['value']:.4f}, {folder / 'best.keras'}")
    print(f"curves: {folder / 'progress.png'}; next: python evaluate.py")


def train_epoch(step, batches, title):
    """Run `step` on every batch; the mean of each of its values over the epoch."""
    totals, bar = {}, tqdm(batches, desc=title, unit="step", leave=False, mininterval=1.0)
    for count, (images, targets) in enumerate(bar, start=1):
        for name, value in step(images, targets).items():
            totals[name] = totals.get(name, 0.0) + value
        bar.set_postfix(loss=f"{totals['loss'] / count:.3f}", d=f"{totals['d_loss'] / count:.3f}", refresh=False)
    return {name: total / count for name, total in totals.items()}


def discriminator_gave_up(history, stop_accuracy):
    """Whether the discriminator, having told the masks apart in some epoch, no longer did in the last."""
    accuracies = [np.mean([row["d_accuracy_real"], row["d_accuracy_generated"]]) for row in history]
    return bool(max(accuracies) > stop_accuracy >= accuracies[-1])


def report(row, best):
    """One line for an epoch that has ended."""
    print(
        f"epoch {row['epoch']}: loss {row['loss']:.4f}, adversarial {row['adversarial_loss']:.3f}, "
        f"D loss {row['d_loss']:.3f}, D right on real/generated {row['d_accuracy_real']:.2f}/"
        f"{row['d_accuracy_generated']:.2f}, {MONITOR} {row[MONITOR]:.4f}, {row['seconds']:.0f} s"
        + "  *best"
        * (best["epoch"] == row["epoch"]),
        flush=True,
    )


if __name__ == "__main__":
    run_script(main)
