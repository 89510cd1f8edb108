"""Step 4: score the best model on the cases held out in test_data.csv, which no model learns from.

Reads   OUTPUT_ROOT/test_data.csv and val_data.csv, OUTPUT_ROOT/pre_processed/
        DATA_ROOT: the raw scans and references
        the run's best model: the fine-tuned one if it was made from the current segmentation model, else the latter;
        with --model another, which must not have seen the held-out cases ("box": the one in weights/)
Writes  OUTPUT_ROOT/runs/RUN_NAME/evaluation/, of another model evaluation_<its file's name>/ or --output
          volumes.csv           a row for each case and fluid
          summary.csv, detection.csv, reliability.csv, summary.json, report.html, report.md, comparison.png
          predictions/          label volumes of the held-out cases
          validation/           label volumes of the validation cases, which detection's thresholds are chosen on

    python evaluate.py [--model FILE] [--set NAME=VALUE ...]
    python evaluate.py --all-folds                                        the held-out cases of all FOLDS together
    python evaluate.py --choose-decisions [FILE ...]                      decisions of FOLDS, by held-out cases
    python evaluate.py --predictions DIR --reference DIR --output DIR     label volumes of any origin
    python evaluate.py --compare A B [--output DIR]                       paired differences A - B of two evaluations
    python evaluate.py --rank A B C ... [--output DIR]                    the challenge's ranking

A and B are folders of evaluations, or their volumes.csv.

- Patches are scored as in training: loss, IoU, F-score.
- Volumes are scored on the scan's own grid as in the RETOUCH challenge (Dice, absolute volume difference in mm3, the
  detection's area under the ROC curve), and by voxels, surfaces and lesions.
- Intervals and tests are over patients. PATIENT_PATTERN finds the patient in a case's name.
- A case that cannot be scored does not stop the others. The exit code is 2 if there was one, else 0.
- The same command resumes an interrupted evaluation.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import config
from utils.errors import InputError, run_script
from utils.evaluation import detection
from utils.evaluation.held_out import segment_and_score
from utils.evaluation.pairs import fullest_b_scan, match_pairs, pairs_of_split, score_pairs, typical_cases
from utils.evaluation.report import Evaluation, markdown_table, write_report
from utils.evaluation.statistics import (
    check_once,
    compare_volumes,
    rank_methods,
    read_volumes,
    summarise_volumes,
    with_patients,
)
from utils.files import write_csv, write_json
from utils.html import number
from utils.labels import FLUIDS
from utils.networks.exported_model import BOX_MODEL, best_model, check_input, read_best
from utils.networks.keras_setup import set_up_keras
from utils.plots import save_comparison
from utils.preparation.ancestry import doubts, inherit
from utils.preparation.prepared import all_seen, check_unseen, fluids_outlined, read_csv_data, read_outlined_rows
from utils.preparation.reference_histogram import read_histogram_if_any
from utils.progress import progress_bar
from utils.segmentation.decisions import Decisions, decisions_of_run
from utils.segmentation.predict import load_network
from utils.training import run_folder
from utils.training.choosing import choose_decisions, decisions_of_model, predict_for_decisions, write_decisions
from utils.training.epoch import compile_for_scoring, epoch_batches, keras_batches, scores, segmentation_losses
from utils.training.validation import choose_b_scans

COMPARED_CASES = 12  # at most, spread over the vendors, in comparison.png
SHOWN_MEASURES = ("dice_present", "dice_all", "avd_mm3", "hd95_mm")  # of a comparison, on the console


def main(argv):
    parser = argparse.ArgumentParser(description="Score label volumes against a reader's.")
    parser.add_argument("--model", metavar="FILE", help="score this one instead of the run's; box: the one in weights/")
    parser.add_argument("--all-folds", action="store_true", help="pool the evaluations of all folds")
    parser.add_argument(
        "--choose-decisions",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="choose the decisions of each fold's model on the other folds' held-out B-scans; those of models trained "
        "on all cases, FILE, on all",
    )
    parser.add_argument("--predictions", type=Path, metavar="DIR", help="label volumes to score, with --reference")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="the reader's label volumes")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), type=Path, help="two evaluations on the same cases")
    parser.add_argument("--rank", nargs="+", metavar="EVALUATION", type=Path, help="evaluations on the same cases")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where tables and report go")
    arguments = config.load(argv, parser)
    config.validate()
    modes = ("model", "all_folds", "choose_decisions", "predictions", "compare", "rank")
    chosen = [name for name in modes if getattr(arguments, name) not in (None, False)]
    if len(chosen) > 1:
        raise InputError(f"--{' and --'.join(chosen).replace('_', '-')}: choose one")
    if (arguments.predictions is None) != (arguments.reference is None):
        raise InputError("--predictions and --reference: give both folders, or neither")
    if arguments.predictions:
        evaluate_predictions(arguments.predictions, arguments.reference, arguments.output)
    elif arguments.compare:
        compare(*arguments.compare, arguments.output)
    elif arguments.rank:
        rank(arguments.rank, arguments.output)
    elif arguments.all_folds:
        pool_folds()
    elif arguments.choose_decisions is not None:
        choose_decisions_by_folds(arguments.choose_decisions)
    else:
        evaluate_model(BOX_MODEL if arguments.model == "box" else arguments.model, arguments.output)


# ---- The run's model on the held-out cases --------------------------------------------------------------------------
def evaluate_model(given, output):
    """Segment and score the held-out cases, and the validation cases that detection's thresholds are chosen on.

    The model is the run's, or the file `given`, which is not scored on patches: these are this run's. Results go to the
    folder `output`, or the run's.
    """
    folder = Path(output or config.run_folder(f"evaluation_{Path(given).stem}" if given else "evaluation"))
    parts = {
        part: pairs_of_split(config.split_csv(part), config.DATA_ROOT, config.preprocessed_folder(), folder / name)
        for part, name in (("test", "predictions"), ("val", "validation"))
    }
    missing = [path for pairs in parts.values() for pair in pairs for path in (pair.oct_path, pair.reference_path)]
    missing = [path for path in missing if not path.exists()]
    if missing:
        raise InputError(*(f"{path}: not found; is DATA_ROOT the folder given to prepare_data.py?" for path in missing))
    if given:
        model_path, why = Path(given), "named with --model"
    else:
        model_path, why = best_model(config.run_folder("adversarial"), config.run_folder("segmentation"))
    details = read_best(model_path)
    check_model(model_path, details, is_own=not given)
    print(f"model: {model_path} ({details['step']}, epoch {details['epoch']}): {why}")

    set_up_keras(config.SEED, config.DETERMINISTIC)
    network = load_network(model_path, memory_gb=config.PREDICTION_GB)
    asked = config.decision_settings()
    decisions = decisions_of_run([details], **asked) if asked["given"] or not given else network.decisions
    with run_folder.only_writer(folder):
        patches = {} if given else score_patches(network)
        tables, reliability, failed = {}, {}, []
        for part, pairs in parts.items():
            tables[part], reliability[part], complaints = segment_and_score(network, pairs, decisions, config.WORKERS)
            failed += complaints
        empty = [f"{config.split_csv(part)}: none of its cases could be scored" for part in parts if tables[part].empty]
        if empty:
            raise InputError(*failed, *empty)
        score, aucs = detection.choose_score([tables["val"]])
        tables = {part: detection.with_thresholds(table, tables["val"], score) for part, table in tables.items()}
        write_csv(folder / "validation.csv", tables["val"])
        facts = {
            "model": f"{model_path.as_posix()}, SHA-256 {details['sha256'][:12]}…: {why}",
            "chosen": f"epoch {details['epoch']} of the {details['step']} step, {details['metric']} "
            f"{details['value']:.4f} on validation cases",
            "probability threshold": decisions.in_words(),
        }
        if untaught := [fluid for fluid in FLUIDS if fluid not in network.settings.taught]:
            facts["not taught, never predicted"] = ", ".join(untaught)
        notes = [
            f"Detection's score: {detection.SCORES[score]}; best on the validation cases "
            f"(mean AUC there: {_tried(aucs)}).",
            "Detection's thresholds: largest sensitivity + specificity on the validation cases.",
        ]
        write_csv(folder / "reliability.csv", reliability["test"])
        report(
            *(folder, tables["test"], parts["test"], score),
            title=f"Evaluation of {config.RUN_NAME}",
            facts=facts,
            notes=notes,
            failed=failed,
            patches=patches,
            reliability=reliability["test"],
        )
    arguments = [parts["test"][0].oct_path.parent, "--output", "segmented", *(["--model", given] if given else [])]
    print(f"next: {config.command('test.py', *arguments)}")


def check_model(model_path, details, is_own):
    """Raise `InputError` if the model expects differently prepared images, or was trained on cases that judge it.

    The model must not have used a test case in any way. Validation cases may have chosen its best epoch, because only
    detection's thresholds are chosen on them. A model that is not the run's own takes images as its best.json says.
    """
    if is_own:
        histogram = {"reference_histogram": read_histogram_if_any(config.matched_histogram_csv())}
        remedy = "set it back, or evaluate label volumes with --predictions"
        check_input(model_path, details, config.prediction_settings() | histogram, remedy)
        start = config.run_folder("segmentation") / "best.keras"
        if start.with_suffix(".json").exists():  # step 3 of earlier versions dropped what this one had seen
            details = inherit(details, [read_best(start)])
    for doubt in doubts(model_path, details, config.PATIENT_PATTERN):
        print(f"note: {doubt}")
    data = details.get("data", {})
    trained = {part: described for part, described in data.items() if part != "val"}
    for part, seen in (("test", data), ("val", trained)):
        path = config.split_csv(part)
        check_unseen(path, read_csv_data(path), all_seen(seen), **config.preparation_settings())


def score_patches(network):
    """Loss, IoU and F-score on the patches of the held-out cases, as in training's validation.

    IoU and F-score are those of the fluids that these cases outline and the network was taught.
    """
    losses = segmentation_losses(config.BATCH_SIZE, config.N_CLASSES, network.has_heads, config.LOSS)
    outlined = fluids_outlined(read_outlined_rows(config.split_csv("test")))
    scored = [fluid for fluid in outlined if fluid in network.settings.taught]
    compile_for_scoring(network.model, losses, config.THRESHOLD, scored)
    with epoch_batches(
        config.split_csv("test"),
        replace(config.batch_settings(), train_classes=network.has_heads),
        training=False,
        epoch=0,
    ) as batches:
        batches = progress_bar(batches, "patches", unit="batch", leave=False)
        return scores(network.model.evaluate(keras_batches(iter(batches)), verbose=0, return_dict=True))


# ---- Label volumes of any origin ------------------------------------------------------------------------------------
def evaluate_predictions(predictions, references, output):
    """Score the label volumes in one folder against those in another."""
    if output is None:
        raise InputError("--output: name the folder for the tables and the report")
    pairs, failed = match_pairs(predictions, references)
    with_patients(pd.DataFrame({"case": [pair.name for pair in pairs]}), config.PATIENT_PATTERN)  # names may not match
    volumes, complaints = score_pairs(pairs, config.WORKERS)
    failed += complaints
    if volumes.empty:
        raise InputError(*failed)
    score, notes = "score_volume", ["Detection: a fluid counts as detected where any of its volume is predicted."]
    volumes = volumes.assign(average_precision=np.nan, threshold=0.0, threshold_score=score)
    volumes[score] = volumes.volume_mm3
    facts = {"predictions": str(predictions), "reference": str(references)}
    report(output, volumes, pairs, score, title="Evaluation", facts=facts, notes=notes, failed=failed)


# ---- All folds ------------------------------------------------------------------------------------------------------
def pool_folds():
    """Report the held-out cases of all folds together. Each fold must have been evaluated on its own before.

    Each case keeps the detection score and threshold that its fold chose on the fold's validation cases. The pooled ROC
    curve needs one score for all folds.
    """
    if config.FOLDS is None:
        raise InputError("--all-folds: config.FOLDS is None; set it to the number of folds")
    volumes, validations, pairs, failed = [], [], [], []
    for fold in range(config.FOLDS):
        root = config.fold_root(fold)
        folder = root / "runs" / config.RUN_NAME / "evaluation"
        for tables, path in ((volumes, folder / "volumes.csv"), (validations, folder / "validation.csv")):
            tables.append(read_volumes(path))
            detection.check_thresholds(path, tables[-1])
        of_fold = pairs_of_split(
            root / "test_data.csv", config.DATA_ROOT, root / "pre_processed", folder / "predictions"
        )
        failed += not_scored(folder / "volumes.csv", volumes[-1], of_fold)
        pairs += of_fold
    score, aucs = detection.choose_score(validations)
    own = [", ".join(detection.SCORES[name] for name in table.threshold_score.unique()) for table in volumes]
    notes = [
        f"Detection's AUC: {detection.SCORES[score]}; best on the validation cases (AUC there, of each fold by itself, "
        f"then the folds' mean: {_tried(aucs)}). A fold's validation cases are other folds' held-out cases, so that "
        "this choice, among so few, has seen them by other models. The folds' scores are pooled as they are.",
        "Detection's sensitivity and specificity: each case by the score and threshold that its fold chose on its own "
        f"validation cases: {'; '.join(f'fold {fold}: {name}' for fold, name in enumerate(own))}.",
    ]
    pooled = pd.concat(volumes, ignore_index=True)
    check_once(f"{config.OUTPUT_ROOT}: all folds' held-out cases", pooled)
    facts = {"folds": f"{config.FOLDS}, each case scored by the model that has not seen it", "run": config.RUN_NAME}
    told = {"title": f"Evaluation of {config.RUN_NAME}", "facts": facts, "notes": notes, "failed": failed}
    report(config.run_folder("evaluation"), pooled, pairs, score, **told)


def choose_decisions_by_folds(further):
    """Choose decisions on what the folds' models say of their held-out B-scans, and write them into best.json.

    Those of a fold's model are chosen on the other folds' B-scans, so that its own still judge it. Those of the models
    `further`, which were trained on all cases in the same way, are chosen on all. Up to VALIDATION_B_SCANS count of
    each fold. A fluid that none of them holds keeps what the model has.
    """
    if config.FOLDS is None:
        raise InputError("--choose-decisions: config.FOLDS is None; set it to the number of folds")
    models, of_folds = [], []
    for fold in range(config.FOLDS):
        root = config.fold_root(fold)
        run, csv_path, prepared = root / "runs" / config.RUN_NAME, root / "test_data.csv", root / "pre_processed"
        model_path, _ = best_model(run / "adversarial", run / "segmentation")
        rows = read_outlined_rows(csv_path)
        seen = all_seen(read_best(model_path).get("data", {}))
        check_unseen(csv_path, rows, seen, **config.preparation_settings(prepared))
        models.append(model_path)
        rows = choose_b_scans(rows, config.VALIDATION_B_SCANS, config.SEED)
        of_folds.append((model_path, rows, replace(config.batch_settings(), preprocessed_folder=prepared)))
    for model_path in (*models, *further):
        details = read_best(model_path)
        check_input(model_path, details, config.prediction_settings(), "set it to what the model was trained with")
        if details["network"] != config.MODEL:
            raise InputError(f"{model_path}: is a {details['network']}, config.MODEL is {config.MODEL}")
    set_up_keras(config.SEED, deterministic=True)
    predicted = [predict_for_decisions(*of_fold, config.MODEL) for of_fold in of_folds]
    start = Decisions(config.THRESHOLD)
    for fold, model_path in [*enumerate(models), *((None, path) for path in further)]:
        b_scans = [one for other, of_fold in enumerate(predicted) if other != fold for one in of_fold]
        chosen = choose_decisions(b_scans, start, decisions_of_model(read_best(model_path)))
        write_decisions(model_path, chosen)
        print(f"{model_path}: decisions on {len(b_scans)} held-out B-scans: {chosen.in_words()}")
    print("next: python evaluate.py for each fold, then --all-folds")


def not_scored(path, volumes, pairs):
    """A line for each of `pairs`, a fold's held-out cases, that its table of `volumes` at `path` lacks.

    Raises `InputError` where the table has other cases: the split was drawn anew since.
    """
    scored, held_out = _cases(volumes), {(pair.vendor, pair.name) for pair in pairs}
    if others := [" ".join(case) for case in sorted(scored - held_out)]:
        raise InputError(
            f"{path}: holds {', '.join(others)}, no held-out cases of the fold; run evaluate.py for it again"
        )
    return [f"{path}: lacks {vendor} {name}, a held-out case" for vendor, name in sorted(held_out - scored)]


# ---- Evaluations against each other ---------------------------------------------------------------------------------
def compare(first, second, output):
    """Print (and write) the paired differences of two evaluations, first minus second."""
    table = compare_volumes(_read_with_patients(first), _read_with_patients(second), config.SEED)
    shown = table[(table.vendor == "all") & table.measure.isin(SHOWN_MEASURES)].drop(columns="vendor")
    print(f"A: {first}\nB: {second}")
    print("a_minus_b: mean difference A - B. Where A is better, it is above 0 for Dice and below 0 for AVD and HD95.")
    print("low, high: its 95 % bootstrap interval, over patients")
    print(f"p: Wilcoxon signed-rank test of patients' mean differences\n\n{markdown_table(shown)}")
    if output:
        write_csv(output / "comparison.csv", table)
        print(f"\nby vendor, further measures: {output / 'comparison.csv'}")


def rank(folders, output):
    """Print (and write) the challenge's ranking of several evaluations."""
    tables = {str(folder): _read_with_patients(folder) for folder in folders}
    if len(tables) < 2:
        raise InputError("--rank: name at least two evaluations")
    ranks, order = rank_methods(tables)
    mean_ranks = order.rename_axis("method").reset_index(name="mean rank")
    print(f"{markdown_table(ranks)}\n\n{markdown_table(mean_ranks)}")
    if output:
        write_csv(output / "ranks.csv", ranks)


def _read_with_patients(path):
    return with_patients(read_volumes(path), config.PATIENT_PATTERN)


# ---- Tables and report ----------------------------------------------------------------------------------------------
def report(folder, volumes, pairs, score, *, title, facts, notes, failed, **content):
    """Write all tables, pictures and both reports into `folder` and print the summary.

    `volumes` has a row for each case and fluid, with detection's scores, thresholds and the names of the scores that
    these belong to; `pairs` are the cases. `score` names the score of the ROC curves. The other arguments are those of
    an `Evaluation`. Raises `InputError` with the messages in `failed`.
    """
    volumes = with_patients(volumes, config.PATIENT_PATTERN)
    notes = [*notes, *one_sided(volumes)]
    summary = summarise_volumes(volumes, config.SEED)
    detected = detection.detection_table(volumes, score, config.SEED)
    curves = {}
    for vendor, fluid in zip(detected.vendor, detected.fluid, strict=True):
        cases = volumes[(volumes.fluid == fluid) & ((volumes.vendor == vendor) | (vendor == "all"))]
        curve = detection.roc_curve(cases.reference_mm3 > 0, cases[score]) if len(cases) else None
        if curve:
            curves[vendor, fluid] = curve
    patients = f"{volumes.patient.nunique()}, by PATIENT_PATTERN {config.PATIENT_PATTERN!r}"
    facts = {**facts, "patients": patients, "versions": run_folder.versions_text()}
    write_csv(folder / "volumes.csv", volumes)
    write_csv(folder / "summary.csv", summary)
    write_csv(folder / "detection.csv", detected)
    with_scan = [pair for pair in pairs if pair.oct_path and (pair.vendor, pair.name) in _cases(volumes)]
    if with_scan:
        shown = np.unique(np.linspace(0, len(with_scan) - 1, COMPARED_CASES).round().astype(int))
        rows = [fullest_b_scan(with_scan[index], list(FLUIDS.values())) for index in shown]
        save_comparison(folder / "comparison.png", rows)
    overlays = typical_cases(volumes, pairs)
    content |= {"summary": summary, "detection": detected, "curves": curves, "overlays": overlays}
    evaluation = Evaluation(title, facts, volumes, notes=notes, failed=failed, **content)
    write_report(folder, evaluation)
    tables = {"volumes": summary, "detection": detected}
    records = {
        name: table.astype(object).where(table.notna(), None).to_dict("records") for name, table in tables.items()
    }
    told = {"facts": facts, "patches": evaluation.patches, **records, "notes": notes, "failed": failed}
    write_json(folder / "summary.json", {**told, "settings": config.values(), "versions": run_folder.versions()})
    print((folder / "report.md").read_text("utf-8").partition("\n## By vendor")[0])
    print(f"\nreport: {folder / 'report.html'}")
    if failed:
        raise InputError(*failed)


def one_sided(volumes):
    """A sentence for each fluid that no case of the table holds, or every case, so that its detection has no AUC."""
    for fluid, cases in volumes.groupby("fluid", sort=False):
        held = cases.reference_mm3 > 0
        if held.all() or not held.any():
            which = "every" if held.all() else "no"
            yield f"{fluid} is in {which} case, so that this evaluation cannot say how well its absence is told."


def _tried(aucs):
    return "; ".join(f"{detection.SCORES[name]}, {number(auc)}" for name, auc in aucs.items())


def _cases(volumes):
    return set(zip(volumes.vendor, volumes.case, strict=True))


if __name__ == "__main__":
    run_script(main)
