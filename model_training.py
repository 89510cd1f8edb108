"""Step 2: train the segmentation U-Net on the preprocessed volumes.

Reads   OUTPUT_ROOT/{train_data,val_data}.csv and OUTPUT_ROOT/pre_processed/ (written by prepare_data.py)
Writes  OUTPUT_ROOT/runs/RUN_NAME/segmentation/: best.keras and best.json, log.csv, progress.png, tensorboard/,
        config.json, versions.json, and last.json with the state that the same command continues from

    python model_training.py [--set NAME=VALUE ...]
"""

import time

import config
from utils import runs
from utils.data_prepare import read_csv_data
from utils.errors import run_script
from utils.plots import save_progress

# Settings of the next step, which may change without altering this one.
IRRELEVANT = ("ADVERSARIAL_WEIGHT", "D_ADAM_LR", "D_ADAM_BETA_1", "D_REAL_LABEL", "D_STOP_ACCURACY")
MONITOR = "val_f_score"  # mean F-score of the three fluids on validation patches; the higher the better
PANELS = {"loss": ["loss"], "IoU and F-score, mean of the fluids": ["iou_score", "f_score"]}
PANELS |= {"F-score": ["f_irf", "f_srf", "f_ped"]}


def main(argv):
    config.load(argv)
    config.validate()
    for part in ("train", "val"):
        read_csv_data(config.split_csv(part))
    folder = config.run_folder("segmentation")
    runs.start_run(folder, config.values(), IRRELEVANT)
    progress = runs.saved_progress(folder)
    if progress and progress["epoch"] >= config.EPOCH:
        print(
            f"{folder}: finished, {progress['epoch']} epochs of {config.EPOCH}; best model in {folder / 'best.keras'}"
        )
        return
    train(folder, progress)


def train(folder, progress):
    """Train from where `progress` (the content of last.json, or None) left off, up to config.EPOCH."""
    from utils import training

    training.set_up_keras(config.SEED, config.DETERMINISTIC)
    import keras

    from model import create_unet_model

    unet = create_unet_model(**config.unet_settings())
    optimizer = keras.optimizers.Adam(config.ADAM_LR, beta_1=config.ADAM_BETA_1)
    losses = training.segmentation_losses(config.BATCH_SIZE, config.N_CLASSES, config.TRAIN_CLASSES)
    training.compile_for_scoring(unet, losses, config.THRESHOLD, optimizer=optimizer)
    optimizer.build(unet.trainable_variables)
    variables = [*unet.non_trainable_variables, *unet.trainable_variables, *optimizer.variables]
    print(f"{folder}: {unet.count_params():,} parameters, {config.DTYPE_POLICY}, batches of {config.BATCH_SIZE}")
    if progress:
        runs.restore_state(folder, variables)
        print(f"continuing after epoch {progress['epoch']} of {config.EPOCH}")
    else:
        progress = {"epoch": 0, "best": None, "history": []}

    patch_settings = {"preprocessed_folder": config.preprocessed_folder(), **config.patch_settings()}
    event_log = runs.EventLog(folder)
    for epoch in range(progress["epoch"] + 1, config.EPOCH + 1):
        started = time.perf_counter()
        callbacks = [training.epoch_progress(epoch, config.EPOCH)]
        with training.epoch_batches(
            config.split_csv("train"), training=True, epoch=epoch, steps=config.STEPS_PER_EPOCH, **patch_settings
        ) as batches:
            logs = unet.fit(batches, shuffle=False, callbacks=callbacks, verbose=0).history
        logs = training.scores({name: values[-1] for name, values in logs.items()})
        with training.epoch_batches(config.split_csv("val"), training=False, epoch=epoch, **patch_settings) as batches:
            validation = training.scores(unet.evaluate(batches, verbose=0, return_dict=True))
        seconds = time.perf_counter() - started
        row = {"epoch": epoch, **logs, **{f"val_{name}": value for name, value in validation.items()}}
        row |= {"learning_rate": float(optimizer.learning_rate), "seconds": round(seconds, 2)}
        progress["history"].append(row)
        progress["epoch"] = epoch

        best = progress["best"]
        if best is None or row[MONITOR] > best["value"]:
            progress["best"] = {"epoch": epoch, "metric": MONITOR, "value": row[MONITOR]}
            details = {**progress["best"], "step": "segmentation", **config.prediction_settings()}
            details["config"] = config.values()
            histogram_csv = config.reference_histogram_csv()
            training.export_inference_model(folder, unet, config.unet_settings(), details, histogram_csv)
        runs.keep_epoch_weights(folder, unet, epoch, config.KEEP_EPOCHS)
        runs.save_state(folder, variables, progress)
        runs.write_log(folder, progress["history"])
        save_progress(folder / "progress.png", progress["history"], PANELS)
        event_log.write(epoch, {name: value for name, value in row.items() if name != "epoch"})
        report(row, progress["best"], seconds * (config.EPOCH - epoch))
    event_log.close()
    best = progress["best"]
    print(f"best: epoch {best['epoch']}, {best['metric']} {best['value']:.4f}, {folder / 'best.keras'}")
    print(f"curves: {folder / 'progress.png'}; next: python adversarial_training.py")


def report(row, best, seconds_left):
    """One line for an epoch that has ended."""
    starred = "  *best" if best["epoch"] == row["epoch"] else ""
    fluids = "/".join(f"{row[f'val_f_{fluid}']:.2f}" for fluid in ("irf", "srf", "ped"))
    print(
        f"epoch {row['epoch']}: loss {row['loss']:.4f}, val_loss {row['val_loss']:.4f}, val F-score IRF/SRF/PED "
        f"{fluids}, {row['seconds']:.0f} s, {seconds_left / 60:.0f} min left{starred}",
        flush=True,
    )


if __name__ == "__main__":
    run_script(main)
