"""Step 4: score the best model on the cases held out in test_data.csv, which no other step reads.

Reads   OUTPUT_ROOT/test_data.csv, OUTPUT_ROOT/pre_processed/, the raw scans and references under DATA_ROOT, and the
        best model of the run (fine-tuned if there is one)
Writes  OUTPUT_ROOT/runs/RUN_NAME/evaluation/: volumes.csv (a row for each case and fluid), summary.csv and
        summary.json (means for each vendor and fluid), report.md, and comparison.png (reader and model side by side)

    python evaluate.py [--set NAME=VALUE ...]

Patches are scored as in training (loss, IoU, F-score). Volumes are scored as the RETOUCH challenge does, on the scan's
own grid: Dice, absolute volume difference (AVD, mm3), and the detection's area under the ROC curve.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

import config
from utils import runs
from utils.data_prepare import read_csv_data
from utils.errors import InputError, run_script
from utils.files import write_csv, write_json, written_whole
from utils.mhd import read_volume
from utils.plots import save_comparison
from utils.preprocessing import to_8_bit
from utils.scores import score_volume, summarise_volumes

COMPARED_CASES = 12  # at most, spread over the vendors, in comparison.png


def main(argv):
    config.load(argv)
    config.validate()
    cases = sorted({(row.vendor, row.image_name, row.root) for row in read_csv_data(config.split_csv("test"))})
    folders = {case: Path(config.DATA_ROOT) / case[2] for case in cases}
    files = [folder / name for folder in folders.values() for name in ("oct.mhd", "reference.mhd")]
    missing = [
        f"{file}: not found; is DATA_ROOT the folder given to prepare_data.py?" for file in files if not file.exists()
    ]
    if missing:
        raise InputError(*missing)
    model_path = runs.best_model_path(config.run_folder("adversarial"), config.run_folder("segmentation"))
    details = runs.read_best(model_path)
    print(f"model: {model_path} ({details['step']}, epoch {details['epoch']})")

    from utils import training

    training.set_up_keras(config.SEED, config.DETERMINISTIC)
    import keras

    model = keras.models.load_model(model_path, compile=False)
    patches = score_patches(model)
    volumes, comparison = score_cases(model, details, folders)
    summary = summarise_volumes(volumes)

    folder = config.run_folder("evaluation")
    write_csv(folder / "volumes.csv", volumes)
    shown = np.unique(np.linspace(0, len(comparison) - 1, COMPARED_CASES).round().astype(int))
    save_comparison(folder / "comparison.png", [comparison[index] for index in shown])
    write_csv(folder / "summary.csv", summary)
    records = summary.astype(object).where(summary.notna(), None).to_dict("records")
    write_json(folder / "summary.json", {"model": model_path.as_posix(), "patches": patches, "volumes": records})
    report = report_text(model_path, details, patches, volumes, summary)
    with written_whole(folder / "report.md") as temporary:
        temporary.write_text(report, "utf-8")
    print(
        f"\n{report}\npictures: {folder / 'comparison.png'}; tables: {folder / 'summary.csv'}, {folder / 'volumes.csv'}"
    )


def score_patches(model):
    """Loss, IoU and F-score on the patches of the held-out cases, as in training's validation."""
    from utils import training

    losses = training.segmentation_losses(config.BATCH_SIZE, config.N_CLASSES, isinstance(model.output, list))
    training.compile_for_scoring(model, losses, config.THRESHOLD)
    settings = {**config.batch_settings(), "train_classes": isinstance(model.output, list)}
    with training.epoch_batches(config.split_csv("test"), training=False, epoch=0, **settings) as batches:
        batches = tqdm(batches, desc="patches", unit="batch", leave=False, mininterval=1.0)
        return training.scores(model.evaluate(iter(batches), verbose=0, return_dict=True))


def score_cases(model, details, folders):
    """Segment and score every held-out case.

    Returns (volumes, comparison): a DataFrame with a row for each case and fluid, and for `save_comparison` each case's
    B-scan with the most fluid in the reference.
    """
    from utils.tiling import PredictionSettings, segment_scan

    settings = dataclasses.replace(PredictionSettings.from_details(details), threshold=config.THRESHOLD)
    rows, comparison = [], []
    for (vendor, name, _), folder in folders.items():
        voxels, spacing_mm = read_volume(folder / "oct.mhd")
        reference, _ = read_volume(folder / "reference.mhd")
        progress = tqdm(total=len(voxels), desc=f"{vendor} {name}", unit="B-scan", leave=False, mininterval=1.0)
        with progress:
            segmentation = segment_scan(model, voxels, spacing_mm, vendor, settings, on_slice=progress.update)
        scores = score_volume(segmentation.labels, reference, spacing_mm)
        for row, presence in zip(scores, segmentation.presence, strict=True):
            rows.append({"vendor": vendor, "case": name, **row, "presence": presence})
        index = int((reference > 0).sum(axis=(1, 2)).argmax())
        title = f"{vendor} {name}, slice {index}"
        grey = to_8_bit(voxels[index : index + 1])[0]
        comparison.append((title, grey, reference[index], segmentation.labels[index]))
        dice = ", ".join(f"{row['fluid']} {row['dice']:.3f}" for row in scores)
        print(f"{vendor} {name}: Dice {dice}", flush=True)
    return pd.DataFrame(rows), comparison


def report_text(model_path, details, patches, volumes, summary):
    """The evaluation as Markdown."""
    cases = volumes.case.nunique()
    on_patches = pd.DataFrame(
        [{name: patches[name] for name in ("loss", "iou_score", "f_score", "f_irf", "f_srf", "f_ped")}]
    )
    return "\n".join(
        [
            f"# Evaluation of {config.RUN_NAME}",
            "",
            f"Model: {model_path.as_posix()}, epoch {details['epoch']} of the {details['step']} step, chosen by "
            f"{details['metric']} = {details['value']:.4f}. Held out: {cases} cases of "
            f"{', '.join(sorted(volumes.vendor.unique()))}.",
            "",
            "## Patches",
            "",
            "IoU and F-score are means over the three fluids, of each batch.",
            "",
            markdown_table(on_patches),
            "",
            "## Volumes, on the scan's own grid",
            "",
            "dice_present: mean over the cases whose reference holds the fluid. dice_all: mean over all cases, where "
            "both empty counts 1 and one empty 0. avd_mm3: mean absolute volume difference over all cases. auc: area "
            "under the ROC curve of the detection.",
            "",
            markdown_table(summary),
            "",
        ]
    )


def markdown_table(table):
    """A DataFrame as a Markdown table, numbers with three decimals and '-' where there is none."""

    def text(value):
        if isinstance(value, float):
            return "-" if np.isnan(value) else f"{value:.3f}"
        return str(value)

    lines = [list(table.columns), ["---"] * len(table.columns)]
    lines += [[text(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    run_script(main)
