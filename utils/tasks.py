"""Tasks of several commands, each as one Python command. They need Python 3.11 or 3.12.

    python -m utils.tasks demo       environment, synthetic data, the five scripts in order
    python -m utils.tasks weights --real DIR [DIR ...]
                                     train weights/oct_fluid.keras anew, on real and synthetic scans
    python -m utils.tasks test       environment, what tests need, code style, types, the quick tests
    python -m utils.tasks reproduce [OPTION ...] [--recipe NAME] [--set NAME=VALUE ...]
                                     the paper's experiment: all folds, then one table of all held-out cases
    python -m utils.tasks adapt [OPTION ...] [--recipe FILE] [--set NAME=VALUE ...]
                                     the model in the box, trained on with your own cases, and compared with it

The first three need no installed packages: they create `.venv` in the project's folder, and install into it if the
requirement files have changed. The others run with the Python that calls them, which needs those of requirements.txt.
Their paths are relative to the current folder. OPTION is prepare_data.py's: --vendor-folders, --skip-bad, --unlabelled.
"""

import argparse
import csv
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))  # called as FOLDER/utils/tasks.py, Python would look beside this file

from utils.settings.settings import add_options, options_of  # noqa: E402

ENVIRONMENT = Path(".venv")
DEMO = Path("demo")

# The demo's settings: a narrow network for a few minutes, on volumes of few slices. The defaults are config.py's.
DEMO_SETTINGS = {
    "DATA_ROOT": DEMO / "data",
    "OUTPUT_ROOT": DEMO / "output",
    "RUN_NAME": "demo",
    "WORKERS": 2,
    "BASE_FILTERS": 16,
    "ADAM_LR": 1e-3,
    "EPOCH": 7,
    "ADVERSARIAL_EPOCH": 1,
    "STEPS_PER_EPOCH": 50,
    "VALIDATION_B_SCANS": 12,
}
# A trained network needs a smaller learning rate than a new one. The discriminator is new: it is narrow, to learn in
# few steps, and for most of them it learns alone.
FINE_TUNING_SETTINGS = {**DEMO_SETTINGS, "ADAM_LR": 1e-4, "ADVERSARIAL_EPOCH": 2, "STEPS_PER_EPOCH": 50}
FINE_TUNING_SETTINGS |= {"D_ADAM_LR": 1e-3, "D_BASE_FILTERS": 8, "D_WARM_UP_STEPS": 60, "ADVERSARIAL_RAMP_STEPS": 5}
DEMO_CASES, DEMO_SLICES = 32, 6

# The model in the box: recipes/strong.py on real and on synthetic scans.
BOX = Path("weights")
BOX_BUILD = BOX / "build"
BOX_PHANTOMS, BOX_SEED = 600, 11
PHANTOM_SETTINGS = {
    "DATA_ROOT": BOX_BUILD / "phantoms",
    "OUTPUT_ROOT": BOX_BUILD / "phantoms_output",
    "MATCH_INTENSITIES": False,  # a single phantom's grey values are no reference
    "TEST_FRACTION": 0.02,
    "VALIDATION_FRACTION": 0.04,
}
BOX_AND_FOLDS = {
    "MIXED_ROOTS": {(BOX_BUILD / "phantoms_output").as_posix(): 0.4},
    "NOT_JUDGED_OTHER": (1, 2),
    "MONITOR": "epoch",  # the last: so few B-scans validate that their scores choose by chance
}
BOX_SETTINGS = {
    **BOX_AND_FOLDS,
    "OUTPUT_ROOT": BOX_BUILD / "real" / "fold_untouched",
    "PATIENT_PATTERN": r"^[A-Z]+-(\d+)",
    "RUN_NAME": "box",
    "CHOOSE_DECISIONS": False,  # the folds' held-out B-scans choose them
}
FOLD_SETTINGS = {**BOX_AND_FOLDS, "VALIDATION_B_SCANS": 40}
FOLD_CPU_SECONDS = 6000  # more than their steps need

# Options of prepare_data.py that `reproduce` and `adapt` pass on.
OF_PREPARATION = ("--vendor-folders", "--skip-bad", "--unlabelled")

NOT_ALL = (0, 2)  # exit codes of evaluate.py and test.py: all cases done, or all but some

# `adapt`: what a step of recipes/strong.py takes on two cores, and how few patients can show no difference at 5 %.
SECONDS_A_STEP, LEAST_PATIENTS = 1.0, 6


def main():
    parser = argparse.ArgumentParser(prog="python -m utils.tasks")
    tasks = parser.add_subparsers(dest="task", required=True)
    tasks.add_parser("demo", help="environment, synthetic data, the five scripts in order")
    tasks.add_parser("test", help="environment, code style, types, the quick tests")
    weights = tasks.add_parser("weights", help="train weights/oct_fluid.keras anew, on real and synthetic scans")
    weights.add_argument("--real", nargs="+", type=Path, metavar="DIR", required=True, help="folders of real scans")
    of_settings = {
        "adapt": (adapt, "train the model in the box on with your own cases, and compare both"),
        "reproduce": (reproduce, "the paper's experiment: all folds, then one table of all held-out cases"),
    }
    for name, (function, text) in of_settings.items():
        add_options(task := tasks.add_parser(name, help=text, description=text))
        for option in OF_PREPARATION:
            task.add_argument(
                option, action="append_const", const=option, dest="passed_on", help="as prepare_data.py's"
            )
        task.set_defaults(function=function)
    arguments = parser.parse_args()
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        sys.exit(f"Python 3.11 or 3.12 is needed, this is {sys.version.split()[0]}")
    if arguments.task in of_settings:
        arguments.function(sys.executable, options_of(arguments), arguments.passed_on or [])
        return
    real = [folder.resolve() for folder in getattr(arguments, "real", ())]
    os.chdir(PROJECT)
    if arguments.task == "demo":
        demo(environment("requirements.txt"))
    elif arguments.task == "weights":
        box_model(environment("requirements.txt", "requirements-test.txt"), real)
    else:
        test(environment("requirements.txt", "requirements-test.txt"))


def environment(*requirement_files):
    """The environment's Python, after installing the requirement files into it if they have changed."""
    python = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"making {ENVIRONMENT}", flush=True)
        venv.create(ENVIRONMENT, with_pip=True)
    for file in requirement_files:
        stamp = ENVIRONMENT / f"{file}.installed"
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        if not stamp.exists() or stamp.read_text() != digest:
            run(python, "-m", "pip", "install", "--disable-pip-version-check", "--requirement", file)
            stamp.write_text(digest)
    return python


def run(*command, allowed=(0,)):
    """Print and run a command. Returns its exit code; exits with it unless it is an `allowed` one."""
    command = [str(part) for part in command]
    print(f"\n$ {' '.join(command)}", flush=True)
    code = subprocess.run(command).returncode
    if code not in allowed:
        sys.exit(code)
    return code


def overrides(settings):
    """Settings as arguments of a script."""
    return [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]


def demo(python):
    """Synthetic data and the five scripts in order."""
    started = time.monotonic()
    data, output = DEMO_SETTINGS["DATA_ROOT"], DEMO_SETTINGS["OUTPUT_ROOT"]
    sizes = ("--cases", DEMO_CASES, "--slices", DEMO_SLICES, "--seed", 0)
    run(python, "-m", "utils.phantom", "--output", data, *sizes)
    run(python, "prepare_data.py", *overrides(DEMO_SETTINGS))
    run(python, "model_training.py", *overrides(DEMO_SETTINGS))
    run(python, "adversarial_training.py", *overrides(FINE_TUNING_SETTINGS))
    run(python, "evaluate.py", *overrides(DEMO_SETTINGS))
    held_out = held_out_scans(output, data)
    run(python, "test.py", *held_out, "--output", DEMO / "segmented", *overrides(DEMO_SETTINGS))
    # For comparison: one of them by the model in the box.
    run(
        python,
        "test.py",
        held_out[0],
        "--model",
        BOX / "oct_fluid.keras",
        "--output",
        DEMO / "segmented_by_model_in_the_box",
    )
    evaluation = output / "runs" / DEMO_SETTINGS["RUN_NAME"] / "evaluation"
    run(python, "-m", "utils.tools.results", evaluation.parent)
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. Look at")
    print(f"  {evaluation / 'comparison.png'}   reader and model, one B-scan of each held-out case")
    print(f"  {evaluation.parent / 'segmentation' / 'progress.png'}   training curves")
    print(f"  {DEMO / 'segmented' / 'index.html'}   the held-out scans: a page, label volume and pictures of each")
    print(f"  {DEMO / 'segmented_by_model_in_the_box' / 'index.html'}   one of them by {BOX / 'oct_fluid.keras'}")
    print(f"  {evaluation / 'report.html'}   Dice, volume difference and AUC per vendor and fluid; every case")


def held_out_scans(output_root, data_root):
    """Folders of the held-out cases of a split."""
    with open(Path(output_root) / "test_data.csv", encoding="utf-8", newline="") as file:
        return sorted({Path(data_root) / row["root"] for row in csv.DictReader(file)})


def reproduce(python, settings, of_preparation):
    """The five scripts for each fold in order, then the held-out cases of all folds in one report.

    `settings` are the scripts' own ``--recipe`` and ``--set`` arguments, `of_preparation` further ones of step 1. By
    default FOLDS is 5 and the weights of every epoch are kept (recipes/reproduce.py). Every fold has an OUTPUT_ROOT of
    its own, because preparation depends on which cases train. The same command resumes an interrupted
    run. A held-out case that cannot be scored or segmented does not stop the others; the exit code is then 2.
    """
    settings = ["--recipe", "reproduce", *settings]
    roots, data_root, run_name, choose_decisions = values_of(
        python,
        settings,
        "[str(config.fold_root(fold)) for fold in range(config.FOLDS or 0)], config.DATA_ROOT, config.RUN_NAME, "
        "config.CHOOSE_DECISIONS",
    )
    if not roots:
        print("reproduce: error: config.FOLDS = None, expected a number", file=sys.stderr)
        sys.exit(2)
    of_folds = [
        (Path(root), [*settings, "--set", f"FOLD={fold}", "--set", f"OUTPUT_ROOT={root}"])
        for fold, root in enumerate(roots)
    ]
    for _, of_fold in of_folds:
        run(python, PROJECT / "prepare_data.py", *of_preparation, *of_fold)
        for script in ("model_training.py", "adversarial_training.py"):
            run(python, PROJECT / script, *of_fold)
    if choose_decisions:
        run(python, PROJECT / "evaluate.py", "--choose-decisions", *settings)
    codes = []
    for root, of_fold in of_folds:
        codes.append(evaluate(python, *of_fold, into=root / "runs" / run_name / "evaluation"))
        output = ("--output", root / "runs" / run_name / "segmented")
        scans = held_out_scans(root, data_root)
        codes.append(run(python, PROJECT / "test.py", *scans, *output, *of_fold, allowed=NOT_ALL))
    codes.append(run(python, PROJECT / "evaluate.py", "--all-folds", *settings, allowed=NOT_ALL))
    if any(codes):
        sys.exit(2)


def evaluate(python, *options, into):
    """Run evaluate.py; exit if it fails before it writes the table in the folder `into`. Returns its exit code."""
    table = into / "volumes.csv"
    before = table.stat().st_mtime_ns if table.exists() else None
    code = run(python, PROJECT / "evaluate.py", *options, allowed=NOT_ALL)
    if code and (not table.exists() or table.stat().st_mtime_ns == before):
        sys.exit(code)
    return code


def adapt(python, settings, of_preparation):
    """Prepare cases, train the model in the box on with them, and compare both on the held-out ones.

    The arguments are as in `reproduce`; recipes/strong.py and recipes/adapt.py come first. The same command resumes an
    interrupted run. A case that cannot be scored does not stop the others, as in `reproduce`.
    """
    settings = ["--recipe", "strong", "--recipe", "adapt", *settings]
    run(python, PROJECT / "prepare_data.py", *of_preparation, *settings)
    patients, steps, folder = values_of(
        python,
        settings,
        "{part: len({patient_of(row['image_name'], config.PATIENT_PATTERN) for row in csv.DictReader(open("
        "config.split_csv(part), encoding='utf-8', newline=''))}) for part in ('train', 'test')}, "
        "config.EPOCH * config.STEPS_PER_EPOCH, str(config.run_folder('evaluation'))",
    )
    if patients["test"] < LEAST_PATIENTS:
        print(
            f"warning: {patients['test']} patients are held out. With fewer than {LEAST_PATIENTS} no difference is "
            "beyond chance, however large (signed-rank test): take the comparison for a hint"
        )
    minutes = steps * SECONDS_A_STEP / 60
    print(f"{patients['train']} patients train, {steps} steps: about {minutes:.0f} minutes on two cores", flush=True)
    run(python, PROJECT / "model_training.py", *settings)
    own, box = Path(folder), Path(f"{folder}_box")
    codes = [
        evaluate(python, *settings, into=own),
        evaluate(python, "--model", "box", "--output", box, *settings, into=box),
    ]
    run(python, PROJECT / "evaluate.py", "--compare", own, box, *settings)
    own_dice, box_dice = mean_dice(own), mean_dice(box)
    own_model = own.parent / "segmentation" / "best.keras"
    better, model = ("yours is better", own_model) if own_dice > box_dice else ("yours is not better", "box")
    print(
        f"\nMean Dice of the held-out cases: your model {own_dice:.3f}, the model in the box {box_dice:.3f}: {better}."
    )
    print(f"Segment with python test.py SCANS --output segmented --model {shlex.quote(str(model))}")
    if any(codes):
        sys.exit(2)


def mean_dice(evaluation):
    """The Dice of all cases in the folder of an evaluation, mean of the fluids that were outlined."""
    with open(evaluation / "summary.csv", encoding="utf-8", newline="") as file:
        of_all = [row for row in csv.DictReader(file) if (row["vendor"], row["fluid"]) == ("all", "mean")]
    return next(float(row["mean"]) for row in of_all if row["measure"] == "dice_all")


def values_of(python, settings, expressions):
    """What Python `expressions` give where config.py has `settings`, ``--recipe`` and ``--set`` arguments."""
    show = (
        "import csv, json, sys, config\nfrom utils.errors import run_script\n"
        "from utils.preparation.splits import patient_of\n"
        "def show(argv):\n    config.load(argv)\n    config.validate()\n"
        f"    print(json.dumps([{expressions}]))\nsys.argv[0] = 'config.py'\nrun_script(show)"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    shown = subprocess.run([python, "-c", show, *settings], env=environment, stdout=subprocess.PIPE, text=True)
    if shown.returncode:
        sys.exit(shown.returncode)
    return json.loads(shown.stdout)


def box_model(python, real):
    """Train the model in the box on the real scans in the folders `real` and on varied phantoms.

    Its decisions are those of the five folds of the protocol, which are trained likewise.
    """
    phantoms, folds = PHANTOM_SETTINGS["DATA_ROOT"], BOX_BUILD / "folds"
    run(python, "-m", "utils.phantom", "--varied", "--output", phantoms, "--cases", BOX_PHANTOMS, "--seed", BOX_SEED)
    run(python, "prepare_data.py", "--skip-bad", *overrides(PHANTOM_SETTINGS))
    run(python, "-m", "benchmarks.real_training", *real, "--output", BOX_BUILD / "real")
    run(python, "model_training.py", "--recipe", "strong", *overrides(BOX_SETTINGS))
    trained = BOX_SETTINGS["OUTPUT_ROOT"] / "runs" / BOX_SETTINGS["RUN_NAME"] / "segmentation" / "best.keras"
    protocol = ("--folds", *real, "--output", folds, "--no-unlike", "--cpu-seconds", FOLD_CPU_SECONDS)
    recipe = ("recipe", "strong", *(f"{name}={value}" for name, value in FOLD_SETTINGS.items()))
    run(python, "-m", "benchmarks.real_transfer", *protocol, "--recipe", *recipe, "--decide", trained)
    copy_compressed(trained, BOX / "oct_fluid.keras")
    run(python, "-m", "utils.tools.export_onnx", BOX / "oct_fluid.keras")
    print(f"{BOX / 'oct_fluid.keras'} is written; {BOX_BUILD} may go")


def copy_compressed(model, target):
    """Copy an exported model's two files; the weights are the same to the bit, in fewer bytes."""
    with zipfile.ZipFile(model) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as copy:
        for name in source.namelist():
            copy.writestr(zipfile.ZipInfo(name), source.read(name), zipfile.ZIP_DEFLATED)
    details = json.loads(model.with_suffix(".json").read_text("utf-8"))
    details["sha256"] = hashlib.sha256(target.read_bytes()).hexdigest()
    target.with_suffix(".json").write_text(json.dumps(details, indent=2) + "\n", "utf-8")


def test(python):
    """Code style, types and the quick tests."""
    run(python, "-m", "ruff", "check", ".")
    run(python, "-m", "ruff", "format", "--check", ".")
    run(python, "-m", "mypy")
    # A file's tests share what they have trained; tests/conftest.py says which file comes first.
    run(python, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")


if __name__ == "__main__":
    main()
