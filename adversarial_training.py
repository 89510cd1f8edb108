"""Step 3: fine-tune the best U-Net against a discriminator that learns to tell its masks from a reader's.

Reads   OUTPUT_ROOT/{train_data,val_data}.csv, OUTPUT_ROOT/pre_processed/ and the best model of the segmentation step
Writes  OUTPUT_ROOT/runs/RUN_NAME/adversarial/: the same files as model_training.py in segmentation/

    python adversarial_training.py [--set NAME=VALUE ...]

The starting model is epoch 0: where no epoch beats it on the validation B-scans, it is the best one.
"""

import numpy as np

import config
from utils import runs
from utils.checkpoints import newest_state
from utils.data_prepare import read_csv_data
from utils.epochs import TrainingRun, why_finished
from utils.errors import InputError, run_script
from utils.networks import create_inference_network, create_network
from utils.validation import check_monitor, choose_b_scans

PANELS = {"segmentation loss": ["loss"], "Dice on whole B-scans": ["dice", "dice_irf", "dice_srf", "dice_ped"]}
PANELS |= {"discriminator": ["d_loss", "d_accuracy_real", "d_accuracy_generated"], "adversarial": ["adversarial_loss"]}


def main(argv):
    config.load(argv)
    config.validate()
    if config.DEVICES * config.HOSTS > 1:
        raise InputError("config.DEVICES, config.HOSTS: must both be 1, adversarial training runs on one device")
    read_csv_data(config.split_csv("train"))
    b_scans = choose_b_scans(read_csv_data(config.split_csv("val")), config.VALIDATION_B_SCANS, config.SEED)
    check_monitor(config.MONITOR, b_scans, config.split_csv("val"))
    start = runs.best_model_path(config.run_folder("segmentation"))
    start_details = runs.read_best(start)
    folder = config.run_folder("adversarial")
    with runs.only_writer(folder):
        runs.start_run(folder, {**config.values(), "STARTING_MODEL": start_details["sha256"]})
        state = newest_state(folder)
        if state and (reason := why_ended(state[0])):
            print(f"{folder}: finished, {reason}; best model in {folder / 'best.keras'}")
        else:
            fine_tune(folder, start, b_scans, state)


def why_ended(progress):
    """In words why no further epoch is needed, or None."""
    if discriminator_gave_up(progress["history"], config.D_STOP_ACCURACY):
        return f"the discriminator no longer tells the masks apart (D_STOP_ACCURACY {config.D_STOP_ACCURACY})"
    return why_finished(progress, config.ADVERSARIAL_EPOCH or config.EPOCH, patience=None)


def discriminator_gave_up(history, stop_accuracy):
    """Whether the discriminator, having told the masks apart in some epoch, no longer did in the last."""
    accuracies = [np.mean([row["d_accuracy_real"], row["d_accuracy_generated"]]) for row in history if row["epoch"]]
    return bool(accuracies and max(accuracies) > stop_accuracy >= accuracies[-1])


def fine_tune(folder, start, b_scans, state):
    """Fine-tune the exported model `start` from `state` (that of `newest_state`, or None) on."""
    from utils import training

    training.set_up_keras(config.SEED, config.DETERMINISTIC)
    import keras

    from model import create_discriminator
    from utils.adversarial import AdversarialStep

    losses = training.segmentation_losses(config.BATCH_SIZE, config.N_CLASSES, config.TRAIN_CLASSES)
    unet = create_network(**config.network_settings())
    inference = create_inference_network(**config.network_settings())
    training.compile_for_scoring(inference, losses, config.THRESHOLD)
    starting_weights = keras.models.load_model(start, compile=False).get_weights()
    if [weight.shape for weight in starting_weights] != [weight.shape for weight in unet.weights]:
        raise InputError(f"{start}: is another network than {config.MODEL} with BASE_FILTERS = {config.BASE_FILTERS}")
    unet.set_weights(starting_weights)
    height, width = unet.output_shape[0][1:3] if config.TRAIN_CLASSES else unet.output_shape[1:3]
    discriminator = create_discriminator(
        (height, width, 3), config.N_CLASSES, config.BASE_FILTERS, config.SEED, config.DTYPE_POLICY
    )
    step = AdversarialStep(
        unet,
        discriminator,
        training.adam(config.ADAM_LR, config.ADAM_BETA_1, config.DTYPE_POLICY, "generator_adam"),
        training.adam(config.D_ADAM_LR, config.D_ADAM_BETA_1, config.DTYPE_POLICY, "discriminator_adam"),
        losses,
        config.ADVERSARIAL_WEIGHT,
        real_label=config.D_REAL_LABEL,
    )
    print(f"{folder}: discriminator of {discriminator.count_params():,} parameters, weight {config.ADVERSARIAL_WEIGHT}")

    def export(best):
        details = {**best, "step": "adversarial", **config.prediction_settings(), "config": config.values()}
        training.export_best(folder, inference, details, config.reference_histogram_csv())

    def validate(epoch):
        inference.set_weights(unet.get_weights())
        return training.validate(
            inference,
            config.split_csv("val"),
            b_scans,
            folder / "previews" / f"{epoch:04d}.png",
            network=config.MODEL,
            threshold=config.THRESHOLD,
            stop_if_asked=run.stop_if_asked,
            **config.batch_settings(),
        )

    rules = config.training_rules(config.ADVERSARIAL_EPOCH or config.EPOCH)
    run = TrainingRun(
        folder, inference, step.generator_optimizer, step.variables, state, rules, panels=PANELS, export=export
    )
    expected_steps = config.STEPS_PER_EPOCH or training.expected_steps(
        config.split_csv("train"), config.preprocessed_folder(), config.BATCH_SIZE, **config.patch_settings()
    )
    with run.interruptible(), training.failures_named():
        if not run.progress["history"]:
            run.record({"epoch": 0, **validate(0)})
            best = run.progress["best"]
            print(f"epoch 0, the model of the segmentation step: {best['metric']} {best['value']:.4f}")
        while not (reason := why_ended(run.progress)):
            epoch, first_step = run.begin_epoch(expected_steps)
            with training.epoch_batches(
                config.split_csv("train"), epoch=epoch, first_step=first_step, **config.training_batch_settings()
            ) as batches:
                totals = {}
                for count, (images, targets) in enumerate(batches, start=1):
                    for name, value in step(images, targets).items():
                        totals[name] = totals.get(name, 0.0) + value
                    run.after_step({name: total / count for name, total in totals.items()})
            report(run.end_epoch(validate(epoch), config.BATCH_SIZE), run.progress["best"], run.seconds_left())
    best = run.progress["best"]
    print(f"finished, {reason}; best: epoch {best['epoch']}, {best['metric']} {best['value']:.4f}")
    print(f"best model: {folder / 'best.keras'}")
    print(f"curves: {folder / 'progress.png'}; next: python evaluate.py")


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
