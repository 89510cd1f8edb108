"""The protocol by which models and recipes are judged on real B-scans, in one table.

    python -m benchmarks.real_transfer --folds DIR [DIR ...] --output OUT [--model NAME FILE]...
        [--recipe NAME [RECIPE] [SETTING=VALUE ...]]... [--cpu-seconds 400] [--only FOLD ...] [--no-unlike] [--mirrored]
        [--decide FILE ...] [--untouched]

Each DIR holds single B-scans in RETOUCH layout with outlines of the three fluids. Small drusen and hyperreflective
material in other.mhd are not judged. `real_folds.csv` deals their patients into five folds, and a fifth of them into
none. A recipe is model_training.py with the settings of recipes/RECIPE.py, if named, and those given. It is trained
five times for the same CPU seconds, each time without one fold, which then judges it (`benchmarks.real_training`). With
CHOOSE_DECISIONS a fold's decisions are then chosen on the other folds, those of the models --decide on all. A model is
judged by all folds, which it must not have seen. --only trains and judges some folds alone, to choose what all are
worth. With DATA_ROOT=DIR2 a recipe learns from the cases there, which have the same names and other references. The
same command goes on where it was interrupted.

Prints the table: the columns of `benchmarks.real_measures` over the B-scans of all folds together, by how much pooled
Dice exceeds the first line's, and pooled Dice of the same B-scans made unlike (`benchmarks.real_unlike`); then how far
the expected Dice is true. Writes OUT/NAME.csv, the pixels of every B-scan, and OUT/NAME.worst.png, the worst twelve.
--untouched judges by the patients in no fold instead, a recipe's five networks each by all of them: once a model is
final.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import config
from benchmarks.real_folds import PATIENTS, UNTOUCHED, cases_of_folds, find_real_cases, read_folds
from benchmarks.real_measures import COLUMNS, cells, counts_text, gain_text, pooled_dice, reliability_text
from benchmarks.real_scoring import Judged, save_worst
from benchmarks.real_training import prepare_folds, train_fold
from benchmarks.real_unlike import WAYS
from benchmarks.scripts import run
from utils.errors import InputError, run_script
from utils.files import write_csv
from utils.labels import FLUIDS

FEW = ("SRF", "PED")  # fluids of few untouched patients


def main(argv):
    arguments = parse(argv)
    of_fold = cases_of_folds(find_real_cases(arguments.folds), read_folds())
    untouched = of_fold.pop(UNTOUCHED)
    held_out = arguments.only or list(of_fold)
    if unknown := set(held_out) - set(of_fold):
        raise InputError(f"--only {' '.join(sorted(unknown))}: expected some of the folds {', '.join(of_fold)}")
    ways = [] if arguments.no_unlike else list(WAYS)
    lines, counts, first = [], [], None
    for name, cost, models in contenders(arguments, of_fold, held_out):
        judged = [
            Judged(model, untouched if arguments.untouched else cases, arguments.output / "scores", arguments.mirrored)
            for model, cases in models
        ]
        rows = pd.concat([of_model.scores() for of_model in judged])
        unlike = {way: pd.concat([of_model.scores(way) for of_model in judged]) for way in ways}
        first = rows if first is None else first
        by_fluid = fluid_lines(rows, first, unlike)
        if arguments.untouched:
            for fluid in FEW:  # a ratio of so few patients would say more than is known
                counts.append(f"{fluid}, {name}: {counts_text(rows[rows['fluid'] == fluid])}")
                del by_fluid[fluid]
        else:
            counts += [f"{fluid}, {name}: {reliability_text(rows[rows['fluid'] == fluid])}" for fluid in FLUIDS]
            write_csv(arguments.output / f"{name}.csv", rows)
            save_worst(arguments.output / f"{name}.worst.png", rows, judged)
        lines += [f"| {name} | {cost} | {line} |" for line in by_fluid.values()]
    print(heading(ways), *lines, sep="\n")
    print(*counts, sep="\n")


def parse(argv):
    """The arguments, with --model as (name, path) pairs and --recipe as (name, {setting: text}) pairs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folds", type=Path, nargs="+", required=True, metavar="DIR", help="folders of the cases")
    parser.add_argument("--output", type=Path, required=True, help="folder of trainings, scores and pictures")
    parser.add_argument("--model", nargs=2, action="append", default=[], metavar=("NAME", "FILE"), help="a best.keras")
    parser.add_argument("--recipe", nargs="+", action="append", default=[], metavar=("NAME", "SETTING=VALUE"))
    parser.add_argument("--cpu-seconds", type=float, default=400.0, help="of each fold's training")
    parser.add_argument("--only", nargs="+", metavar="FOLD", help="these folds alone")
    parser.add_argument("--decide", type=Path, nargs="+", default=[], metavar="FILE", help="choose these models', too")
    parser.add_argument("--no-unlike", action="store_true", help="leave the scans made unlike out")
    parser.add_argument("--mirrored", action="store_true", help="average with the mirrored B-scans")
    parser.add_argument("--untouched", action="store_true", help="judge by the patients in no fold instead")
    arguments = parser.parse_args(argv)
    recipes = []
    for name, *settings in arguments.recipe:
        of_file = config.recipe(settings.pop(0)) if settings and "=" not in settings[0] else {}
        if malformed := [setting for setting in settings if "=" not in setting]:
            raise InputError(f"--recipe {name}: {malformed[0]}: expected SETTING=VALUE")
        recipes.append((name, of_file | dict(setting.split("=", 1) for setting in settings)))
    arguments.recipe = recipes
    names = [name for name, _ in (*arguments.model, *recipes)]
    if len(set(names)) < len(names):
        raise InputError(f"--model, --recipe: the names {', '.join(names)} are not all different; rename one")
    return arguments


def contenders(arguments, of_fold, held_out):
    """Yield the name of each model and recipe, what its training took, and [(model file, cases out of its folds)]."""
    for name, model in arguments.model:
        yield name, "–", [(model, [case for fold in held_out for case in of_fold[fold]])]
    for name, settings in arguments.recipe:
        of_folds = prepare_folds(of_fold, held_out, output_of(name, settings, arguments.output), settings)
        trained = {fold: train_fold(name, of_this, arguments.cpu_seconds) for fold, of_this in of_folds.items()}
        if settings.get("CHOOSE_DECISIONS") in (True, "True") and len(held_out) > 1 and set(held_out) == set(of_fold):
            choose_decisions(name, settings, output_of(name, settings, arguments.output), of_fold, arguments.decide)
        seconds, steps = (np.mean([getattr(of, what) for of in trained.values()]) for what in ("cpu_seconds", "steps"))
        models = [(of.model, of_fold[fold]) for fold, of in trained.items()]
        yield name, f"{seconds:.0f}, {steps:.0f} steps", models


def choose_decisions(name, settings, output, of_fold, models):
    """Choose each fold's decisions on the B-scans of the other folds, and those of the files `models` on all."""
    of_all = {"OUTPUT_ROOT": output, "DATA_ROOT": output / "data", "PATIENT_PATTERN": PATIENTS, "RUN_NAME": name}
    of_all |= {"FOLDS": len(of_fold), "VALIDATION_B_SCANS": max(map(len, of_fold.values()))}
    print(run("evaluate.py", "--choose-decisions", *models, **settings | of_all))


def output_of(name, settings, output):
    """The folder of a recipe's data, below `output`: its own where it learns from other references."""
    return output / name if {"DATA_ROOT", "OUTLINED", "NOT_JUDGED_OTHER"} & settings.keys() else output


def heading(ways):
    """The first two lines of the table."""
    names = ["network", "CPU seconds a fold", "fluid", "B-scans with it", *COLUMNS, "Dice, less the first line's"]
    names += [*ways, "mean of these"] if ways else []
    return f"| {' | '.join(names)} |\n{'|---' * len(names)}|"


def fluid_lines(rows, first, unlike):
    """{fluid: its part of a line}: measures of `rows`, gain over the rows `first`, Dice of `unlike`, {way: rows}."""
    lines = {}
    for fluid in FLUIDS:
        of_fluid = rows[rows["fluid"] == fluid]
        texts = [fluid, str((of_fluid["true"] > 0).sum()), *cells(of_fluid)]
        texts.append("–" if rows is first else gain_text(of_fluid, first[first["fluid"] == fluid]))
        dice = [dice_of(of_way[of_way["fluid"] == fluid]) for of_way in unlike.values()]
        texts += [f"{value:.3f}" for value in ([*dice, np.mean(dice)] if dice else [])]
        lines[fluid] = " | ".join(texts)
    return lines


def dice_of(rows):
    """Pooled Dice as a number."""
    return float(pooled_dice(rows, np.ones((1, len(rows)), int))[0])


if __name__ == "__main__":
    run_script(main)
