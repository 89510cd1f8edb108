"""Step 3: fine-tune the best U-Net against a discriminator that learns to tell its masks from a reader's.

With UNLABELLED_SHARE it learns from scans without outlines instead, which the average of its own weights labels.

Reads   OUTPUT_ROOT/{train_data,val_data}.csv, OUTPUT_ROOT/pre_processed/ and the best model of the segmentation step;
        with UNLABELLED_SHARE the rows of pre_processed/slice_gt.csv that have no labels
Writes  OUTPUT_ROOT/runs/RUN_NAME/adversarial/: the same files as model_training.py in segmentation/

    python adversarial_training.py [--set NAME=VALUE ...]

The starting model is epoch 0: where no epoch beats it on the validation B-scans, it is the best one.
"""

import contextlib
import functools
import itertools
from dataclasses import replace

import numpy as np

import config
from utils.data_prepare import get_iterator_nuts
from utils.errors import InputError, run_script
from utils.networks.exported_model import check_input, export_epoch, is_whole, set_weights
from utils.networks.keras_setup import failures_named, set_up_keras
from utils.networks.networks import as_list, create_inference_network, create_network
from utils.plots import save_comparison
from utils.preparation.reference_histogram import read_histogram_if_any
from utils.segmentation.appearance import training_appearance
from utils.segmentation.decisions import Decisions
from utils.settings.patch_settings import blind_to_labels
from utils.settings.rules import OptimizerSettings
from utils.training import run_folder
from utils.training.balance import converged, out_of_balance
from utils.training.choosing import add_decisions
from utils.training.data import read_training_data, with_unlabelled
from utils.training.epoch import compile_for_scoring, epoch_batches, estimate_steps, score_epoch, segmentation_losses
from utils.training.optimizer import copy_weights, create_optimizer
from utils.training.run import TrainingRun, why_finished
from utils.training.state import newest_state

PANELS = {
    "losses of the U-Net": ["loss", "self_training_loss"],
    "Dice on whole B-scans": ["dice", "dice_irf", "dice_srf", "dice_ped"],
    "losses against each other": ["adversarial_loss", "d_loss"],
    "discriminator, in training": ["d_accuracy_real", "d_accuracy_generated", "d_updates"],
    "discriminator, held out": ["d_held_out_real", "d_held_out_generated"],
}
HELD_OUT_BATCHES = 32  # at most, of the validation patches, on whose masks the discriminator is tried
SHOWN_PATCHES = 6


def main(argv):
    config.load(argv)
    config.validate()
    if config.HOST > 0:
        raise InputError(f"config.HOST = {config.HOST}: adversarial training runs on host 0 alone")
    for name in ("DEVICES", "HOSTS"):
        if (count := getattr(config, name)) > 1:
            print(f"note: adversarial training runs on one device of one host, not on {name} = {count}")
    start = config.run_folder("segmentation") / "best.keras"
    data = read_training_data(**config.training_data_settings(), start=start)
    check_start(data)
    for note in data.notes_on_outlines():
        print(f"note: {note}")
    if config.UNLABELLED_SHARE:
        data = with_unlabelled(
            data,
            config.preprocessed_folder() / "slice_gt.csv",
            {part: config.split_csv(part) for part in ("val", "test")},
            config.preparation_settings(),
        )
    folder = config.run_folder("adversarial")
    with run_folder.only_writer(folder):
        known = {"irrelevant": ["DEVICES", "HOSTS", "COORDINATOR"], "defaults": config.defaults()}
        run_folder.start_run(folder, config.values() | data.settings, data.description, **known)
        state = newest_state(folder)
        reason = state and why_ended(state[0])
        if reason and is_whole(folder / "best.keras"):
            print(f"{folder}: finished, {reason}; best model in {folder / 'best.keras'}")
        else:
            fine_tune(folder, data, state)
        if config.CHOOSE_DECISIONS:
            start, earlier = Decisions(config.THRESHOLD), data.start.details
            add_decisions(folder / "best.keras", data.b_scans, config.batch_settings(), config.MODEL, start, earlier)
    print(f"next: {config.command('evaluate.py')}")


def check_start(data):
    """Raise `InputError` where the model that `data` start from takes other images, or was trained on another split."""
    path, details = data.start.path, data.start.details
    histogram = {"reference_histogram": read_histogram_if_any(config.matched_histogram_csv())}
    remedy = "set it back, or train another RUN_NAME"
    check_input(path, details, config.prediction_settings() | histogram, remedy)
    run_folder.check_same_data(path, details.get("data"), data.description, run_folder.OWN_PARTS)


def why_ended(progress):
    """In words why no further epoch is needed, or None."""
    if converged(progress["history"], config.D_PATIENCE):
        return f"the discriminator has not told held-out masks apart for {config.D_PATIENCE} epochs"
    return why_finished(progress, adversarial_epochs(), patience=None)


def adversarial_epochs():
    """How many epochs fine-tuning has."""
    return config.ADVERSARIAL_EPOCH or config.EPOCH


def fine_tune(folder, data, state):
    """Fine-tune the model that the `TrainingData` start from, from `state` (that of `newest_state`, or None) on."""
    set_up_keras(config.SEED, config.DETERMINISTIC)
    step, inference = create_step(data)
    print(f"settings: {config.called_with()}; all of them: {folder / 'config.json'}")
    print(f"starts from {'its own checkpoint' if state else data.start.path}")
    if data.unlabelled:
        print(f"{folder}: the averaged network teaches of scans without outlines; there is no discriminator")
    else:
        n_parameters = step.discriminator.count_params()
        print(f"{folder}: discriminator of {n_parameters:,} parameters, weight {config.ADVERSARIAL_WEIGHT}")
    shown = None if data.unlabelled else held_out_patches(inference)
    run = TrainingRun(
        folder,
        inference,
        step.variables,
        state,
        config.training_rules(adversarial_epochs()),
        panels=PANELS,
        export=functools.partial(export_epoch, folder, inference, model_details(data)),
    )
    run.restore_best(functools.partial(copy_weights, step.generator, step.generator_optimizer, inference))
    expected_steps = config.STEPS_PER_EPOCH or estimate_steps(config.split_csv("train"), patches_for_both())
    with run.interruptible(), failures_named():
        if not run.progress["history"]:
            run.record({"epoch": 0, **score(run, step, 0, data, shown)})
            best = run.progress["best"]
            print(f"epoch 0, the model of the segmentation step: {best['metric']} {best['value']:.4f}")
        while not (reason := why_ended(run.progress)):
            epoch, first_step = run.begin_epoch(expected_steps)
            with training_batches(epoch, first_step, data.unlabelled) as batches:
                step.begin_means()
                for batch in batches:
                    step(*batch)
                    run.after_step(step.means())
            row = run.end_epoch(score(run, step, epoch, data, shown), config.BATCH_SIZE, step.generator_optimizer)
            report(row, run.progress["best"], run.seconds_left())
            warning = out_of_balance(run.progress["history"], config.D_WARM_UP_STEPS)
            if warning and config.ADVERSARIAL_WEIGHT:
                print(f"warning: {warning}", flush=True)
    run.finish(reason)


def create_step(data):
    """(`AdversarialStep`, or `TeacherStep` with scans without outlines; the U-Net's exported form).

    The networks have the weights of the model that `data` start from.
    """
    losses = segmentation_losses(config.BATCH_SIZE, config.N_CLASSES, config.TRAIN_CLASSES, config.LOSS)
    settings = config.network_settings() | {"encoder_weights": None}  # it gets a trained model's
    unet, inference = create_network(**settings), create_inference_network(**settings)
    for network in (unet, inference):
        compile_for_scoring(network, losses, config.THRESHOLD, data.scored)
    set_weights([unet, inference], data.start.path)
    optimizer = create_optimizer(config.optimizer_settings(adversarial_epochs()), config.DTYPE_POLICY, "generator_adam")
    if data.unlabelled:
        from utils.training.teacher import Teacher, TeacherStep

        teacher = Teacher(create_network(**settings), config.SEED, data.taught)
        weight, ramp_steps = config.SELF_TRAINING_WEIGHT, config.ADVERSARIAL_RAMP_STEPS
        return TeacherStep(unet, optimizer, losses, teacher, weight, ramp_steps), inference
    from model import create_discriminator
    from utils.training.adversarial import AdversarialStep, discriminator_policy

    d_dtype_policy = discriminator_policy(config.DTYPE_POLICY)
    discriminator = create_discriminator(
        (*as_list(unet.output)[0].shape[1:3], 3),
        config.N_CLASSES,
        config.D_BASE_FILTERS or config.BASE_FILTERS,
        config.SEED,
        d_dtype_policy,
    )
    of_discriminator = OptimizerSettings(config.D_ADAM_LR, config.D_ADAM_BETA_1)
    d_optimizer = create_optimizer(of_discriminator, d_dtype_policy, "discriminator_adam")
    rules = config.adversarial_rules()
    return AdversarialStep(unet, discriminator, optimizer, d_optimizer, losses, rules), inference


def patches_for_both():
    """`BatchSettings` by which both networks' patches are drawn: with unlabelled scans, never by labels."""
    settings = config.batch_settings()
    return blind_to_labels(settings) if config.UNLABELLED_SHARE else settings


@contextlib.contextmanager
def training_batches(epoch, first_step, unlabelled):
    """The context of an epoch's batches from `first_step` on, (images, targets) as `epoch_batches` yields them.

    With rows of scans without outlines, `unlabelled`, these are followed by as many images of theirs as
    UNLABELLED_SHARE says.
    """
    settings = patches_for_both()
    with epoch_batches(
        config.split_csv("train"),
        settings,
        training=True,
        epoch=epoch,
        steps=config.STEPS_PER_EPOCH,
        first_step=first_step,
    ) as batches:
        if not unlabelled:
            yield batches
            return
        settings = replace(settings, batch_size=config.unlabelled_batch_size(), mixed=())
        others = get_iterator_nuts(
            unlabelled, settings, training=True, epoch=epoch, first_batch=first_step, repeated=True
        )
        yield ((*batch, images) for batch, (images, _) in zip(batches, others, strict=False))


def model_details(data):
    """What ``best.json`` says besides the epoch; of the training images, what the starting model's says.

    Scans without outlines are training images, too.
    """
    start = data.start.details
    appearance = start.get("training_appearance")
    if data.unlabelled:
        appearance = training_appearance([*data.rows["train"], *data.unlabelled], config.preprocessed_folder())
    details = {"step": "adversarial", **config.prediction_settings(), "config": config.values()}
    details |= data.record
    details |= {"training_appearance": appearance}
    return details | {"reference_histogram": start["reference_histogram"]}


def score(run, step, epoch, data, shown):
    """An epoch's scores for the log, held out, and its previews; of the discriminator, too, if patches are `shown`."""
    inference = run.network
    copy_weights(step.generator, step.generator_optimizer, inference)
    held_out = try_discriminator(run, step, epoch, shown) if shown else {}
    preview = run.folder / "previews" / f"{epoch:04d}.png"
    return held_out | score_epoch(inference, data, config.scoring_rules(), preview, run.stop_if_asked)


def try_discriminator(run, step, epoch, shown):
    """The discriminator's held-out accuracy, for the log; draws its verdicts on the patches `shown`."""
    images, mask, before = shown
    after = labels_of_patches(run.network, images, mask)
    reference = mask.argmax(axis=-1).astype(np.uint8)
    draw_verdicts(run.folder / "verdicts" / f"{epoch:04d}.png", step.verdict, images, reference, before, after)
    with validation_batches() as batches:
        return step.held_out_accuracy(itertools.islice(batches, HELD_OUT_BATCHES))


def validation_batches():
    """The context of the validation patches' batches, always the same."""
    return epoch_batches(config.split_csv("val"), patches_for_both(), training=False, epoch=0)


def held_out_patches(inference):
    """(images, readers' masks, labels by the starting model) of some validation patches, always the same."""
    with validation_batches() as batches:
        images, targets = next(batches)
    mask = targets[0] if config.TRAIN_CLASSES else targets
    images, mask = images[:SHOWN_PATCHES], mask[:SHOWN_PATCHES]
    return images, mask, labels_of_patches(inference, images, mask)


def labels_of_patches(network, images, mask):
    """Labels, uint8 (B, h, w), of the likeliest class of each pixel, merged as the losses do by the readers' `mask`."""
    from utils.base import crop_and_cast

    _, merged = crop_and_cast(mask, as_list(network.predict_on_batch(images))[0])
    return np.asarray(merged).argmax(axis=-1).astype(np.uint8)


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
    parts = [f"epoch {row['epoch']}: loss {row['loss']:.4f}"]
    if "self_training_loss" in row:
        share = row["self_training_share"]
        parts.append(f"self-training {row['self_training_loss']:.4f} on {share:.0%} of the pixels")
    elif config.ADVERSARIAL_WEIGHT:
        right = f"{row['d_accuracy_real']:.2f}/{row['d_accuracy_generated']:.2f}"
        parts.append(f"adversarial {row['adversarial_loss']:.3f}")
        parts.append(f"D loss {row['d_loss']:.3f}, D right on real/generated {right}")
    parts.append(f"{best['metric']} {row[best['metric']]:.4f}, {row['seconds']:.0f} s")
    starred = "  *best" if best["epoch"] == row["epoch"] else ""
    print(", ".join(parts) + f", {seconds_left / 60:.0f} min left{starred}", flush=True)


if __name__ == "__main__":
    run_script(main)
