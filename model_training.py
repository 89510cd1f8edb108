"""Step 2: train the segmentation U-Net on the preprocessed volumes.

Reads   OUTPUT_ROOT/{train_data,val_data}.csv and OUTPUT_ROOT/pre_processed/ (written by prepare_data.py)
Writes  OUTPUT_ROOT/runs/RUN_NAME/segmentation/: best.keras and best.json, log.csv, progress.png, previews/,
        tensorboard/, epochs/, config.json, versions.json, and last-*, the state that the same command continues from

    python model_training.py [--set NAME=VALUE ...]

The loop, from the settings in config.py to the exported model:

    data = read_training_data(...)                         rows of the CSVs, the B-scans that epochs are scored on
    unet, optimizer, inference = ...                       what is trained, and its exported form
    run = TrainingRun(..., state, rules)                   a new run, or one continued from its checkpoint
    while not why_finished(run.progress, ...):
        epoch, first_step = run.begin_epoch()
        with epoch_batches(..., epoch, first_step) as batches:
            fit_epoch(unet, batches, run.after_step)       a checkpoint every SAVE_MINUTES
        run.end_epoch(score_epoch(inference, ...))         log, curves, best.keras where it is better
    run.finish(reason)
"""

import functools

import config
from utils.errors import run_script
from utils.labels import FLUIDS
from utils.networks.exported_model import check_input, export_epoch, is_whole, set_weights, taught_fluids
from utils.networks.keras_setup import failures_named, set_up_keras
from utils.networks.networks import check_encoder_weights, create_inference_network, create_network
from utils.preparation.ancestry import doubts
from utils.preparation.prepared import all_seen, check_unseen
from utils.preparation.reference_histogram import read_histogram_if_any
from utils.segmentation.appearance import training_appearance
from utils.segmentation.decisions import Decisions
from utils.settings.settings import RETIRED
from utils.training import run_folder
from utils.training.choosing import add_decisions
from utils.training.data import read_training_data
from utils.training.devices import Sharing
from utils.training.epoch import (
    compile_for_scoring,
    epoch_batches,
    estimate_steps,
    fit_epoch,
    score_epoch,
    segmentation_losses,
)
from utils.training.optimizer import copy_weights, create_optimizer
from utils.training.run import TrainingRun, why_finished
from utils.training.state import newest_state

PANELS = {"loss": ["loss"], "Dice on whole B-scans": ["dice", "dice_irf", "dice_srf", "dice_ped"]}
PANELS |= {"IoU and F-score on patches, mean of the fluids": ["iou_score", "f_score"]}
PANELS |= {"F-score on patches": ["f_irf", "f_srf", "f_ped"]}


def main(argv):
    config.load(argv)
    config.validate()
    folder = config.run_folder("segmentation")
    if not config.INIT_WEIGHTS and not (folder / "config.json").exists():  # a run that goes on needs none
        check_encoder_weights(config.MODEL, config.ENCODER_WEIGHTS)
    data = read_training_data(**config.training_data_settings(), start=config.starting_model())
    if data.start:
        check_start(data)
    for note in data.notes_on_outlines():
        print(f"note: {note}")
    sharing = Sharing(config.DEVICES, config.HOSTS, config.HOST, config.COORDINATOR)
    with run_folder.only_writer(folder, sharing.is_writer):
        of_next_step = ("ADVERSARIAL_", "D_", "SELF_TRAINING", "UNLABELLED_SHARE")
        may_change = [name for name in (*config.values(), *RETIRED) if name.startswith(of_next_step)]
        if run_folder.backend_name() == "jax":  # on TensorFlow each device has its own Dice loss
            may_change.append("DEVICES")
        settings = config.values() | data.settings
        known = {"irrelevant": may_change, "defaults": config.defaults()}
        run_folder.start_run(folder, settings, data.description, writes=sharing.is_writer, **known)
        state = newest_state(folder)
        reason = state and why_finished(state[0], config.EPOCH, config.PATIENCE)
        if reason and is_whole(folder / "best.keras"):
            print(f"{folder}: finished, {reason}; best model in {folder / 'best.keras'}")
        else:
            train(folder, data, sharing, state)
        if config.CHOOSE_DECISIONS and sharing.is_writer:
            start = Decisions(config.THRESHOLD)
            earlier = data.start and data.start.details
            add_decisions(folder / "best.keras", data.b_scans, config.batch_settings(), config.MODEL, start, earlier)
    if sharing.is_writer:
        print(f"next: {config.command('adversarial_training.py')}\nor:   {config.command('evaluate.py')}")


def check_start(data):
    """Raise `InputError` where the model that `data` start from takes other images, or has seen validation cases.

    It must not even have chosen its epoch by them.
    """
    path, details = data.start.path, data.start.details
    remedy = "set it to the model's, prepare the data again, or start from another model"
    check_input(path, details, config.prediction_settings(), remedy)
    for doubt in doubts(path, details, config.PATIENT_PATTERN):
        print(f"note: {doubt}")
    seen = all_seen(details.get("data", {}))
    check_unseen(config.split_csv("val"), data.rows["val"], seen, **config.preparation_settings())


def train(folder, data, sharing, state):
    """Train on the `TrainingData` from `state` (that of `newest_state`, or None) on; `sharing` says who takes part."""
    set_up_keras(config.SEED, config.DETERMINISTIC)
    shared = sharing.start()
    losses = segmentation_losses(config.BATCH_SIZE, config.N_CLASSES, config.TRAIN_CLASSES, config.LOSS)
    # A model, or a checkpoint, replaces what an encoder would start from.
    network = config.network_settings() | ({"encoder_weights": None} if data.start or state else {})
    with shared():
        unet = create_network(**network)
        optimizer = create_optimizer(config.optimizer_settings(config.EPOCH), config.DTYPE_POLICY)
        compile_for_scoring(unet, losses, config.THRESHOLD, data.scored, optimizer=optimizer)
        optimizer.build(unet.trainable_variables)
        if data.start and not state:
            set_weights([unet], data.start.path)
    inference = create_inference_network(**network | {"encoder_weights": None})
    compile_for_scoring(inference, losses, config.THRESHOLD, data.scored)
    print(f"settings: {config.called_with()}; all of them: {folder / 'config.json'}")
    print(f"starts from {starts_from(data, state)}")
    print(f"{folder}: {unet.count_params():,} parameters, {config.DTYPE_POLICY}, batches of {config.BATCH_SIZE}")

    run = TrainingRun(
        folder,
        inference,
        [*unet.non_trainable_variables, *unet.trainable_variables, *optimizer.variables],
        state,
        config.training_rules(config.EPOCH),
        panels=PANELS,
        export=functools.partial(export_epoch, folder, inference, model_details(data)),
        records=sharing.is_writer,
    )
    run.restore_best(functools.partial(copy_weights, unet, optimizer, inference))
    batches_of_host = sharing.part_of_batches(config.batch_settings())
    if data.watched and not state:
        copy_weights(unet, optimizer, inference)
        dice = dice_text(score_epoch(inference, data, config.scoring_rules(), None, run.stop_if_asked))
        print(f"starting model: val Dice IRF/SRF/PED {dice}", flush=True)
    expected_steps = config.STEPS_PER_EPOCH or estimate_steps(config.split_csv("train"), config.batch_settings())
    with run.interruptible(), failures_named():
        while not (reason := why_finished(run.progress, config.EPOCH, config.PATIENCE)):
            epoch, first_step = run.begin_epoch(expected_steps)
            with (
                epoch_batches(
                    config.split_csv("train"),
                    batches_of_host,
                    training=True,
                    epoch=epoch,
                    steps=config.STEPS_PER_EPOCH,
                    first_step=first_step,
                ) as batches,
                shared(),
            ):
                fit_epoch(unet, batches, run.after_step)
            copy_weights(unet, optimizer, inference)
            preview = folder / "previews" / f"{epoch:04d}.png" if run.records else None
            validation = score_epoch(inference, data, config.scoring_rules(), preview, run.stop_if_asked)
            row = run.end_epoch(sharing.agreed(validation), config.BATCH_SIZE, optimizer)
            report(row, run.progress["best"], run.seconds_left())
    run.finish(reason)


def starts_from(data, state):
    """In words what a training has for its first weights; the arguments are those of `train`."""
    if state:
        return "its own checkpoint"
    if data.start:
        return f"{data.start.path}, taught {', '.join(taught_fluids(data.start.details))}"
    return "random weights" + f", an encoder of {config.ENCODER_WEIGHTS}" * bool(config.ENCODER_WEIGHTS)


def model_details(data):
    """What ``best.json`` says besides the epoch: what a prediction needs, and what the network has seen."""
    details = {"step": "segmentation", **config.prediction_settings(), "config": config.values()}
    details |= data.record
    details |= {"training_appearance": training_appearance(data.rows["train"], config.preprocessed_folder())}
    return details | {"reference_histogram": read_histogram_if_any(config.matched_histogram_csv())}


def report(row, best, seconds_left):
    """One line for an epoch that has ended."""
    starred = "  *best" if best["epoch"] == row["epoch"] else ""
    print(
        f"epoch {row['epoch']}: loss {row['loss']:.4f}, val_loss {row['val_loss']:.4f}, "
        f"val Dice IRF/SRF/PED {dice_text(row)}, {row['seconds']:.0f} s, {seconds_left / 60:.0f} min left{starred}",
        flush=True,
    )


def dice_text(scores):
    """The validation Dice of the fluids with two decimals, or "-" where no B-scan that outlines one holds it."""
    dice = [scores[f"val_dice_{fluid.lower()}"] for fluid in FLUIDS]
    return "/".join("-" if value is None else f"{value:.2f}" for value in dice)


if __name__ == "__main__":
    run_script(main)
