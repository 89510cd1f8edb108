"""Step 3: fine-tune the best U-Net against a discriminator that learns to tell its masks from a reader's.

Reads   OUTPUT_ROOT/{train_data,val_data}.csv, OUTPUT_ROOT/pre_processed/ and the best model of the segmentation step
Writes  OUTPUT_ROOT/runs/RUN_NAME/adversarial/: the same files as model_training.py in segmentation/

    python adversarial_training.py [--set NAME=VALUE ...]

The starting model is epoch 0: where no epoch beats it on the validation B-scans, it is the best one.
"""

import itertools

import numpy as np

import config
from utils.errors import InputError, run_script
from utils.exported_model import check_input, export_best, read_best, set_weights
from utils.keras_setup import failures_named, set_up_keras
from utils.networks import as_list, create_inference_network, create_network
from utils.plots import save_comparison
from utils.preparation.reference_histogram import read_histogram_if_any
from utils.prepared import describe_data, read_csv_data
from utils.training import run_folder
from utils.training.discriminator_state import converged, discriminator_state
from utils.training.epoch import (
    adam,
    compile_for_scoring,
    epoch_batches,
    estimate_steps,
    score_epoch,
    segmentation_losses,
)
from utils.training.run import TrainingRun, why_finished
from utils.training.state import newest_state
from utils.training.validation import check_monitor, choose_b_scans

PANELS = {"segmentation loss": ["loss"], "Dice on whole B-scans": ["dice", "dice_irf", "dice_srf", "dice_ped"]}
PANELS |= {"losses against each other": ["adversarial_loss", "d_loss"]}
PANELS |= {"discriminator, in training": ["d_accuracy_real", "d_accuracy_generated", "d_updates"]}
PANELS |= {"discriminator, held out": ["d_held_out_real", "d_held_out_generated"]}
HELD_OUT_BATCHES = 32  # at most, of the validation patches, on whose masks the discriminator is tried
SHOWN_PATCHES = 6


def main(argv):
    config.load(argv)
    config.validate()
    if config.DEVICES * config.HOSTS > 1:
        raise InputError("config.DEVICES, config.HOSTS: must both be 1, adversarial training runs on one device")
    rows = {part: read_csv_data(config.split_csv(part)) for part in ("train", "val")}
    b_scans = choose_b_scans(rows["val"], config.VALIDATION_B_SCANS, config.SEED)
    check_monitor(config.MONITOR, b_scans, config.split_csv("val"))
    data = describe_data(rows, **config.preparation_settings())
    start = config.run_folder("segmentation") / "best.keras"
    start_details = read_best(start)
    histogram = {"reference_histogram": read_histogram_if_any(config.matched_histogram_csv())}
    remedy = "set it back, or train another RUN_NAME"
    check_input(start, start_details, config.prediction_settings() | histogram, remedy)
    run_folder.check_same_data(start, start_details.get("data"), data)
    data |= {part: seen for part, seen in start_details.get("data", {}).items() if part not in data}
    folder = config.run_folder("adversarial")
    with run_folder.only_writer(folder):
        run_folder.start_run(folder, {**config.values(), "STARTING_MODEL": start_details["sha256"]}, data)
        state = newest_state(folder)
        if state and (reason := why_ended(state[0])):
            print(f"{folder}: finished, {reason}; best model in {folder / 'best.keras'}")
        else:
            fine_tune(folder, start, start_details, b_scans, data, state)


def why_ended(progress):
    """In words why no further epoch is needed, or None."""
    if converged(progress["history"], config.D_PATIENCE):
        return f"the discriminator has not told held-out masks apart for {config.D_PATIENCE} epochs"
    return why_finished(progress, config.ADVERSARIAL_EPOCH or config.EPOCH, patience=None)


def fine_tune(folder, start, start_details, b_scans, data, state):
    """Fine-tune the exported model `start` (and its details) from `state` (that of `newest_state`, or None) on.

    Every epoch is scored on `b_scans` among others; `data` is of `describe_data`, for ``best.json``.
    """
    set_up_keras(config.SEED, config.DETERMINISTIC)
    from model import create_discriminator
    from utils.training.adversarial import AdversarialStep, discriminator_policy

    losses = segmentation_losses(config.BATCH_SIZE, config.N_CLASSES, config.TRAIN_CLASSES)
    unet = create_network(**config.network_settings())
    compile_for_scoring(unet, losses, config.THRESHOLD)
    inference = create_inference_network(**config.network_settings())
    compile_for_scoring(inference, losses, config.THRESHOLD)
    set_weights([unet, inference], start)
    images, mask = held_out_patches()
    before = labels_of_patches(inference, images)
    height, width = unet.output_shape[0][1:3] if config.TRAIN_CLASSES else unet.output_shape[1:3]
    d_dtype_policy = discriminator_policy(config.DTYPE_POLICY)
    discriminator = create_discriminator(
        (height, width, 3),
        config.N_CLASSES,
        config.D_BASE_FILTERS or config.BASE_FILTERS,
        config.SEED,
        d_dtype_policy,
        config.D_POOLING,
    )
    step = AdversarialStep(
        unet,
        discriminator,
        adam(config.ADAM_LR, config.ADAM_BETA_1, config.DTYPE_POLICY, "generator_adam"),
        adam(config.D_ADAM_LR, config.D_ADAM_BETA_1, d_dtype_policy, "discriminator_adam"),
        losses,
        config.ADVERSARIAL_WEIGHT,
        real_label=config.D_REAL_LABEL,
        warm_up_steps=config.D_WARM_UP_STEPS,
        ramp_steps=config.ADVERSARIAL_RAMP_STEPS,
        adversarial_limit=config.ADVERSARIAL_LIMIT,
        d_ready_accuracy=config.D_READY_ACCURACY,
        d_ahead_accuracy=config.D_AHEAD_ACCURACY,
    )
    print(run_folder.settings_text(config.values()))
    print(f"{folder}: discriminator of {discriminator.count_params():,} parameters, weight {config.ADVERSARIAL_WEIGHT}")

    def export(best):
        details = {**best, "step": "adversarial", **config.prediction_settings(), "config": config.values()}
        details |= {"data": data, "made_from": start_details["sha256"]}
        details |= {"training_appearance": start_details.get("training_appearance")}
        details |= {"reference_histogram": start_details["reference_histogram"]}
        export_best(folder, inference, details)

    def validate(epoch):
        inference.set_weights(unet.get_weights())
        after, labels = labels_of_patches(inference, images), mask.argmax(axis=-1).astype(np.uint8)
        draw_verdicts(folder / "verdicts" / f"{epoch:04d}.png", step.verdict, images, labels, before, after)
        with validation_batches() as batches:
            held_out = step.held_out_accuracy(itertools.islice(batches, HELD_OUT_BATCHES))
        return held_out | score_epoch(
            inference,
            config.split_csv("val"),
            b_scans,
            folder / "previews" / f"{epoch:04d}.png",
            config.batch_settings(),
            train_classes=config.TRAIN_CLASSES,
            network=config.MODEL,
            threshold=config.THRESHOLD,
            stop_if_asked=run.stop_if_asked,
        )

    rules = config.training_rules(config.ADVERSARIAL_EPOCH or config.EPOCH)
    run = TrainingRun(
        folder, inference, step.generator_optimizer, step.variables, state, rules, panels=PANELS, export=export
    )
    expected_steps = config.STEPS_PER_EPOCH or estimate_steps(config.split_csv("train"), config.batch_settings())
    with run.interruptible(), failures_named():
        if not run.progress["history"]:
            run.record({"epoch": 0, **validate(0)})
            best = run.progress["best"]
            print(f"epoch 0, the model of the segmentation step: {best['metric']} {best['value']:.4f}")
        while not (reason := why_ended(run.progress)):
            epoch, first_step = run.begin_epoch(expected_steps)
            with epoch_batches(
                config.split_csv("train"),
                config.training_batch_settings(),
                training=True,
                epoch=epoch,
                train_classes=config.TRAIN_CLASSES,
                steps=config.STEPS_PER_EPOCH,
                first_step=first_step,
            ) as batches:
                step.begin_means()
                for batch in batches:
                    step(*batch)
                    run.after_step(step.means())
            report(run.end_epoch(validate(epoch), config.BATCH_SIZE), run.progress["best"], run.seconds_left())
            if warning := discriminator_state(run.progress["history"]):
                print(f"warning: {warning}", flush=True)
    best = run.progress["best"]
    print(f"finished, {reason}; best: epoch {best['epoch']}, {best['metric']} {best['value']:.4f}")
    print(f"best model: {folder / 'best.keras'}")
    print(f"curves: {folder / 'progress.png'}; next: python evaluate.py")


def validation_batches():
    """The context of the validation patches' batches, always the same."""
    return epoch_batches(
        config.split_csv("val"), config.batch_settings(), training=False, epoch=0, train_classes=config.TRAIN_CLASSES
    )


def held_out_patches():
    """(images, one-hot mask) of some validation patches, always the same."""
    with validation_batches() as batches:
        images, targets = next(batches)
    mask = targets[0] if config.TRAIN_CLASSES else targets
    return images[:SHOWN_PATCHES], mask[:SHOWN_PATCHES]


def labels_of_patches(network, images):
    """Labels, uint8 (B, h, w), of the likeliest class of each pixel."""
    return as_list(network.predict_on_batch(images))[0].argmax(axis=-1).astype(np.uint8)


def draw_verdicts(path, verdict, images, reference, before, after):
    """Draw patches with the reader's mask, the U-Net's before and after, and what the discriminator makes of them."""
    top, left = ((large - small) // 2 for large, small in zip(images.shape[1:3], after.shape[1:3], strict=True))
    window = np.s_[:, top : top + after.shape[1], left : left + after.shape[2]]
    grey = np.rint(images[window][..., 1] * config.SLICE_SD + config.SLICE_MEAN).astype(np.uint8)
    sources = (reference[window], before, after)
    one_hot = [np.eye(config.N_CLASSES, dtype=np.float32)[labels] for labels in sources]
    verdicts = np.transpose([verdict(images, masks) for masks in one_hot])
    titles = [
        "a reader's mask? " + ", ".join(f"{probability:.2f}" for probability in of_patch) for of_patch in verdicts
    ]
    save_comparison(path, list(zip(titles, grey, *sources, strict=True)), names=("reader", "before", "after"))


def report(row, best, seconds_left):
    """One line for an epoch that has ended."""
    starred = "  *best" if best["epoch"] == row["epoch"] else ""
    print(
        f"epoch {row['epoch']}: loss {row['loss']:.4f}, adversarial {row['adversarial_loss']:.3f}, "
        f"D loss {row['d_loss']:.3f}, D right on real/generated {row['d_accuracy_real']:.2f}/"
        f"{row['d_accuracy_generated']:.2f}, {best['metric']} {row[best['metric']]:.4f}, {row['seconds']:.0f} s, "
        f"{seconds_left / 60:.0f} min left{starred}",
        flush=True,
    )


if __name__ == "__main__":
    run_script(main)
