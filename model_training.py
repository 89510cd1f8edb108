"""Step 2: train the segmentation U-Net on the preprocessed volumes.

Reads   OUTPUT_ROOT/{train_data,val_data}.csv and OUTPUT_ROOT/pre_processed/ (written by prepare_data.py)
Writes  OUTPUT_ROOT/runs/RUN_NAME/segmentation/: best.keras and best.json, log.csv, progress.png, previews/,
        tensorboard/, epochs/, config.json, versions.json, and last-*, the state that the same command continues from

    python model_training.py [--set NAME=VALUE ...]
"""

import config
from utils.errors import run_script
from utils.exported_model import check_input, export_best, read_best, set_weights
from utils.keras_setup import failures_named, set_up_keras
from utils.networks import create_inference_network, create_network
from utils.preparation.reference_histogram import read_histogram_if_any
from utils.prepared import all_seen, check_unseen, describe_data, read_csv_data
from utils.segmentation.appearance import training_appearance
from utils.training import run_folder
from utils.training.devices import agreed, sharing
from utils.training.epoch import (
    adam,
    compile_for_scoring,
    epoch_batches,
    estimate_steps,
    fit_epoch,
    score_epoch,
    segmentation_losses,
)
from utils.training.run import TrainingRun, why_finished
from utils.training.state import newest_state
from utils.training.validation import check_monitor, choose_b_scans

PANELS = {"loss": ["loss"], "Dice on whole B-scans": ["dice", "dice_irf", "dice_srf", "dice_ped"]}
PANELS |= {"IoU and F-score on patches, mean of the fluids": ["iou_score", "f_score"]}
PANELS |= {"F-score on patches": ["f_irf", "f_srf", "f_ped"]}


def main(argv):
    config.load(argv)
    config.validate()
    rows = {part: read_csv_data(config.split_csv(part)) for part in ("train", "val")}
    b_scans = choose_b_scans(rows["val"], config.VALIDATION_B_SCANS, config.SEED)
    check_monitor(config.MONITOR, b_scans, config.split_csv("val"))
    data = describe_data(rows, **config.preparation_settings())
    if config.INIT_WEIGHTS:
        data["earlier"] = check_starting_weights(rows["val"])
    folder = config.run_folder("segmentation")
    with run_folder.only_writer(folder, config.HOST == 0):
        may_change = [name for name in config.values() if name.startswith(("ADVERSARIAL_", "D_"))]  # of the next step
        if run_folder.backend_name() == "jax":  # on TensorFlow each device has its own Dice loss
            may_change.append("DEVICES")
        run_folder.start_run(folder, config.values(), data, may_change, writes=config.HOST == 0)
        state = newest_state(folder)
        if state and (reason := why_finished(state[0], config.EPOCH, config.PATIENCE)):
            print(f"{folder}: finished, {reason}; best model in {folder / 'best.keras'}")
        else:
            train(folder, rows["train"], b_scans, data, state)


def check_starting_weights(validation_rows):
    """What the model INIT_WEIGHTS has seen: a part as of `describe_data`.

    Raises `InputError` where it takes other images than the settings say, or has been trained on validation cases.
    """
    details = read_best(config.INIT_WEIGHTS)
    remedy = "set it to the model's, prepare the data again, or start from another model"
    check_input(config.INIT_WEIGHTS, details, config.prediction_settings(), remedy)
    if "data" not in details:
        print(f"note: {config.INIT_WEIGHTS} does not say which cases it was trained on")
    seen = all_seen(details.get("data", {}))
    check_unseen(config.split_csv("val"), validation_rows, seen, **config.preparation_settings())
    return seen


def train(folder, training_rows, b_scans, data, state):
    """Train from `state` (that of `newest_state`, or None) on, and score every epoch on `b_scans` among others.

    `data` is of `describe_data`, for ``best.json``.
    """
    set_up_keras(config.SEED, config.DETERMINISTIC)
    shared = sharing(config.DEVICES, config.HOSTS, config.HOST, config.COORDINATOR)
    losses = segmentation_losses(config.BATCH_SIZE, config.N_CLASSES, config.TRAIN_CLASSES)
    with shared():
        unet = create_network(**config.network_settings())
        optimizer = adam(config.ADAM_LR, config.ADAM_BETA_1, config.DTYPE_POLICY)
        compile_for_scoring(unet, losses, config.THRESHOLD, optimizer=optimizer)
        optimizer.build(unet.trainable_variables)
        if config.INIT_WEIGHTS and not state:
            set_weights([unet], config.INIT_WEIGHTS)
    inference = create_inference_network(**config.network_settings())
    compile_for_scoring(inference, losses, config.THRESHOLD)
    variables = [*unet.non_trainable_variables, *unet.trainable_variables, *optimizer.variables]
    print(run_folder.settings_text(config.values()))
    print(f"{folder}: {unet.count_params():,} parameters, {config.DTYPE_POLICY}, batches of {config.BATCH_SIZE}")

    appearance = training_appearance(training_rows, config.preprocessed_folder())

    def export(best):
        details = {**best, "step": "segmentation", **config.prediction_settings(), "config": config.values()}
        details |= {"data": data, "training_appearance": appearance}
        details["reference_histogram"] = read_histogram_if_any(config.reference_histogram_csv())
        export_best(folder, inference, details)

    rules = config.training_rules(config.EPOCH)
    run = TrainingRun(
        folder, inference, optimizer, variables, state, rules, panels=PANELS, export=export, records=config.HOST == 0
    )
    expected_steps = config.STEPS_PER_EPOCH or estimate_steps(config.split_csv("train"), config.batch_settings())
    with run.interruptible(), failures_named():
        while not (reason := why_finished(run.progress, config.EPOCH, config.PATIENCE)):
            epoch, first_step = run.begin_epoch(expected_steps)
            with (
                epoch_batches(
                    config.split_csv("train"),
                    config.training_batch_settings(),
                    training=True,
                    epoch=epoch,
                    train_classes=config.TRAIN_CLASSES,
                    steps=config.STEPS_PER_EPOCH,
                    first_step=first_step,
                ) as batches,
                shared(),
            ):
                fit_epoch(unet, batches, run.after_step)
            inference.set_weights(unet.get_weights())
            validation = score_epoch(
                inference,
                config.split_csv("val"),
                b_scans,
                folder / "previews" / f"{epoch:04d}.png" if run.records else None,
                config.batch_settings(),
                train_classes=config.TRAIN_CLASSES,
                network=config.MODEL,
                threshold=config.THRESHOLD,
                stop_if_asked=run.stop_if_asked,
            )
            validation = agreed(validation, config.HOSTS)
            report(run.end_epoch(validation, config.BATCH_SIZE), run.progress["best"], run.seconds_left())
    best = run.progress["best"]
    print(f"finished, {reason}; best: epoch {best['epoch']}, {best['metric']} {best['value']:.4f}")
    print(f"best model: {folder / 'best.keras'}")
    print(f"curves: {folder / 'progress.png'}; next: python adversarial_training.py")


def report(row, best, seconds_left):
    """One line for an epoch that has ended."""
    starred = "  *best" if best["epoch"] == row["epoch"] else ""
    fluids = "/".join(fluid_text(row[f"val_dice_{fluid}"]) for fluid in ("irf", "srf", "ped"))
    print(
        f"epoch {row['epoch']}: loss {row['loss']:.4f}, val_loss {row['val_loss']:.4f}, val Dice IRF/SRF/PED {fluids}, "
        f"{row['seconds']:.0f} s, {seconds_left / 60:.0f} min left{starred}",
        flush=True,
    )


def fluid_text(dice):
    """A Dice with two decimals, or "-" where no validation B-scan holds the fluid."""
    return "-" if dice is None else f"{dice:.2f}"


if __name__ == "__main__":
    run_script(main)
