"""nnU-Net's own steps on one fold. `benchmarks.beside_nnunet` calls it with the Python that has nnunetv2.

    PYTHON benchmarks/nnunet_steps.py FOLDER plan GPU_MEMORY_GB
    PYTHON benchmarks/nnunet_steps.py FOLDER train CPU_SECONDS
    PYTHON benchmarks/nnunet_steps.py FOLDER predict PICTURES PREDICTED

FOLDER holds the pictures that `benchmarks.beside_nnunet.write_layout` has written. Each step leaves a JSON file last:
FOLDER/planned.json, FOLDER/trained.json, PREDICTED/cost.json. It imports nothing of this collection.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

DATASET = "Dataset001_Fluid"
EPOCHS = 50  # at most; each ends in a lower learning rate, in validation and in a plot
TRAINING_PER_VALIDATION = 5  # iterations: nnU-Net's 250 and 50 an epoch
MEASURED = 3  # iterations before the schedule is chosen
KEPT_BACK = 0.02  # of the seconds, for the last checkpoint and an epoch slower than those before


def main(folder, step, *arguments):
    folder = Path(folder).resolve()
    os.environ |= {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
    os.environ |= {"nnUNet_def_n_proc": "1"}
    {"plan": plan, "train": train, "predict": predict}[step](folder, *arguments)


def plan(folder, gpu_memory):
    """nnU-Net's fingerprint, its plans for so many GB, and its preprocessed pictures of the 2D configuration."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api

    plan_and_preprocess_api.extract_fingerprints([1], num_processes=1, check_dataset_integrity=True)
    plan_and_preprocess_api.plan_experiments([1], gpu_memory_target_in_gb=float(gpu_memory))
    plan_and_preprocess_api.preprocess([1], configurations=("2d",), num_processes=(1,))
    plans = json.loads((folder / "preprocessed" / DATASET / "nnUNetPlans.json").read_text("utf-8"))
    planned = plans["configurations"]["2d"]
    write(folder / "planned.json", {name: planned[name] for name in ("patch_size", "batch_size", "spacing")})


def train(folder, cpu_seconds):
    """Train nnU-Net's 2D configuration with its own trainer, whose schedule ends with `cpu_seconds` of this process.

    A few iterations are measured. Then the number of epochs is fixed, by which the learning rate falls. Before each
    epoch the number of its iterations is chosen anew, by the seconds that all before have taken.
    """
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    os.environ |= {"nnUNet_n_proc_DA": "0"}  # augment in this process
    trainer = get_trainer_from_args("1", "2d", 0, device=torch.device("cpu"))
    start, start_epoch = trainer.on_train_start, trainer.on_train_epoch_start
    budget = (1 - KEPT_BACK) * float(cpu_seconds)
    measured, iterations = {}, []

    def measure_and_choose_epochs():
        start()
        trainer.network.train()
        trainer.train_step(next(trainer.dataloader_train))  # this one also allocates
        measured["s_an_iteration"] = seconds_of(trainer.train_step, trainer.dataloader_train, MEASURED)
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            measured["s_a_validation"] = seconds_of(trainer.validation_step, trainer.dataloader_val, 1)
        measured["pace"] = measured["s_an_iteration"] + measured["s_a_validation"] / TRAINING_PER_VALIDATION
        measured["begun"] = cpu_time()
        trainer.num_epochs = trainer.lr_scheduler.max_steps = epochs_for(budget - cpu_time(), measured["pace"])

    def choose_iterations():
        if iterations:
            measured["pace"] = (cpu_time() - measured["begun"]) / sum(iterations)
        epochs_left = trainer.num_epochs - trainer.current_epoch
        iterations.append(iterations_for(budget - cpu_time(), epochs_left, measured["pace"]))
        trainer.num_iterations_per_epoch = iterations[-1]
        trainer.num_val_iterations_per_epoch = max(1, round(iterations[-1] / TRAINING_PER_VALIDATION))
        start_epoch()

    trainer.on_train_start, trainer.on_train_epoch_start = measure_and_choose_epochs, choose_iterations
    trainer.run_training()
    write(
        folder / "trained.json",
        {
            "steps": 1 + MEASURED + sum(iterations),
            "iterations": iterations,
            "parameters": sum(weights.numel() for weights in trainer.network.parameters()),
            "peak_gib": peak_gib(),
            **measured,
        },
    )


def epochs_for(seconds, pace):
    """How many epochs fit in `seconds` with `pace` seconds an iteration and its share of validation."""
    return max(1, min(EPOCHS, int(seconds / pace / TRAINING_PER_VALIDATION)))


def iterations_for(seconds, epochs, pace):
    """How many iterations the next of `epochs` has, so that all of them end within `seconds`."""
    return max(1, int(seconds / epochs / pace))


def predict(folder, pictures, predicted):
    """Write the class probabilities, float32 (rows, columns, 4), of each picture: PREDICTED/CASE.npy."""
    import numpy as np
    import torch
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(
        str(folder / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__2d"), (0,)
    )
    paths, before = sorted(Path(pictures).glob("*_0000.mha")), cpu_time()
    for path in paths:
        picture, properties = SimpleITKIO().read_images([str(path)])
        _, probabilities = predictor.predict_single_npy_array(picture, properties, save_or_return_probabilities=True)
        np.save(Path(predicted) / f"{path.name.removesuffix('_0000.mha')}.npy", np.moveaxis(probabilities[:, 0], 0, -1))
    cost = {"s_a_b_scan": (cpu_time() - before) / len(paths), "peak_gib": peak_gib()}
    write(Path(predicted) / "cost.json", cost)


def seconds_of(step, batches, count):
    """Mean CPU seconds of `count` calls of `step`, each with the next batch."""
    before = cpu_time()
    for _ in range(count):
        step(next(batches))
    return (cpu_time() - before) / count


def cpu_time():
    """User and system seconds of this process since its start, and of its children that have ended."""
    return time.process_time() + sum(os.times()[2:4])


def peak_gib():
    """The largest memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write(path, content):
    path.write_text(json.dumps(content, indent=2), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
