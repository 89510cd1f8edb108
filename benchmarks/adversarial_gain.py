"""Does adversarial fine-tuning help? Synthetic volumes with few annotated cases, several seeds, paired comparison.

    python -m benchmarks.adversarial_gain gain.jsonl [--seeds 5] [--cases 24] [--annotated 1] [--slices 8]
        [--epochs 30] [--further-epochs 10] [--further-rate 2e-4] [--steps 50] [--scored-epochs 1]
        [--varied] [--plain] [--outlined-vendor VENDOR] [--recipe NAME] [--set NAME=VALUE ...]
        [--tune NAME=VALUE ...] [VARIANT ...]

For every seed:

1. Generate cases. `--annotated` of each vendor are trained on, half are held out (TEST_FRACTION). With `--plain` the
   other training cases stay as scans without outlines. With `--outlined-vendor` only this vendor's cases have outlines
   and validate, and only the others' judge.
2. Train a U-Net for `--epochs`.
3. Continue with adversarial_training.py for `--further-epochs` after the discriminator's warm-up: as the control, with
   ADVERSARIAL_WEIGHT=0, and as each VARIANT, settings such as "ADVERSARIAL_WEIGHT=0.2,D_ADAM_LR=1e-3" (none:
   config.py's). `--set` is for all trainings, `--tune` for all of this step, the control's among them; `--recipe`
   gives what these leave open.
4. Segment the held-out cases on their own grid with the weights of the last `--scored-epochs` epochs (several, because
   epochs differ) and of the best epoch.

Appends a JSON line for each case, fluid, variant and seed to the file. Lines that the file already holds are not
computed again, so an interrupted benchmark resumes. Prints a table for each variant: seeds' means, and their paired
difference from the control with its 95 % interval (bootstrap over seeds, and over the cases of each).
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import config
from benchmarks.scripts import prepare, run, settings_of

CONTROL = "ADVERSARIAL_WEIGHT=0,D_BASE_FILTERS=1"
DRAWS = 2000  # of the bootstrap
MEASURES = ("dice", "avd_mm3", "lesions_false", "hd95_mm", "assd_mm")  # of utils.evaluation.scores.score_volume
KEY = ["seed", "variant", "weights", "epoch", "case", "fluid"]  # the epoch counted from the last one


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, help="file of JSON lines to append to")
    parser.add_argument("variants", nargs="*", default=[""], metavar="VARIANT")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--annotated", type=int, default=1, help="cases a vendor that are trained on")
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--further-epochs", type=int, default=10)
    parser.add_argument("--further-rate", type=float, default=2e-4, help="ADAM_LR of the further epochs")
    parser.add_argument("--steps", type=int, default=50, help="steps an epoch")
    parser.add_argument("--scored-epochs", type=int, default=1)
    parser.add_argument("--varied", action="store_true", help="phantoms of wide range, all of one vendor")
    parser.add_argument("--plain", action="store_true", help="keep the other training cases without outlines")
    parser.add_argument("--outlined-vendor", metavar="VENDOR", help="the only one whose cases have outlines")
    parser.add_argument("--recipe", metavar="NAME")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings")
    parser.add_argument("--tune", action="append", default=[], metavar="NAME=VALUE", help="of every fine-tuning")
    arguments = parser.parse_args()
    settings = {"BASE_FILTERS": 16, "BATCH_SIZE": 8, "STEPS_PER_EPOCH": arguments.steps, "TEST_FRACTION": 0.5}
    settings |= {"EPOCH": arguments.epochs, "KEEP_EPOCHS": arguments.scored_epochs}
    settings |= {"ADAM_LR": 1e-3, "VALIDATION_B_SCANS": 24, "WORKERS": 1}
    settings |= (config.recipe(arguments.recipe) if arguments.recipe else {}) | {"STEPS_PER_EPOCH": arguments.steps}
    settings |= {"EPOCH": arguments.epochs, **settings_of(arguments.settings)}
    for seed in range(arguments.seeds):
        done = {row["variant"] for row in read_results(arguments.results) if row["seed"] == seed}
        left = [variant for variant in (CONTROL, *arguments.variants) if variant not in done]
        if left:
            with tempfile.TemporaryDirectory() as folder:
                one_seed(Path(folder), seed, left, arguments, settings)
    print_tables(pd.DataFrame(read_results(arguments.results)))


def read_results(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ---- One seed ------------------------------------------------------------------------------------------------------
def one_seed(folder, seed, variants, arguments, settings):
    """Train and score the `variants` of one seed, in `folder`, and append the results variant by variant."""
    settings = prepare(folder, arguments.cases, arguments.slices, seed, arguments.varied, **settings, SEED=seed)
    output = settings["OUTPUT_ROOT"]
    keep_annotated(output / "train_data.csv", arguments.annotated, arguments.outlined_vendor)
    if arguments.outlined_vendor:
        keep_annotated(output / "val_data.csv", None, arguments.outlined_vendor)
    if arguments.plain:
        remove_outlines(settings)
    runs = output / "runs"
    run("model_training.py", **settings | {"RUN_NAME": "start"})
    for number, variant in enumerate(variants):
        name = f"variant{number}"
        shutil.copytree(runs / "start", runs / name)
        fine_tuning = {**settings, "ADAM_LR": arguments.further_rate, "RUN_NAME": name, **settings_of(arguments.tune)}
        fine_tuning |= settings_of(variant.split(","))
        warm_up_steps = int(fine_tuning.get("D_WARM_UP_STEPS", config.D_WARM_UP_STEPS))
        warm_up_epochs = -(-warm_up_steps // arguments.steps)
        run(
            "adversarial_training.py", **{**fine_tuning, "ADVERSARIAL_EPOCH": arguments.further_epochs + warm_up_epochs}
        )
        rows = score(runs / name / "adversarial", settings, arguments.outlined_vendor)
        with arguments.results.open("a") as file:
            file.writelines(json.dumps({"seed": seed, "variant": variant, **row}) + "\n" for row in rows)
        print(f"seed {seed}: scored {variant or 'the defaults'}", flush=True)


def keep_annotated(csv_path, cases_per_vendor, vendor):
    """Leave the first cases of each vendor, or of one `vendor`, in a CSV, as if the others had not been annotated.

    `cases_per_vendor` None leaves all of them.
    """
    table = pd.read_csv(csv_path, dtype=str, keep_default_na=False)
    kept = table.drop_duplicates(["vendor", "image_name"])
    kept = kept[kept.vendor.eq(vendor)] if vendor else kept
    kept = kept.groupby("vendor").head(len(kept) if cases_per_vendor is None else cases_per_vendor)
    table[table.image_name.isin(kept.image_name)].to_csv(csv_path, index=False)


def remove_outlines(settings):
    """Remove the references of the cases in no part of the split, and prepare these again."""
    output = settings["OUTPUT_ROOT"]
    names = ("pre_processed/slice_gt.csv", "train_data.csv", "val_data.csv", "test_data.csv")
    roots, *parts = (set(pd.read_csv(output / name, dtype=str, keep_default_na=False).root) for name in names)
    for root in roots.difference(*parts):
        for path in (settings["DATA_ROOT"] / root).glob("reference.*"):
            path.unlink()
    run("prepare_data.py", "--unlabelled", "--skip-bad", **settings)


def score(folder, settings, outlined_vendor=None):
    """A dictionary for each held-out case and fluid, by the last and by the best weights of a run's `folder`.

    Cases of the `outlined_vendor` do not count.
    """
    import keras

    from utils.evaluation.scores import score_volume
    from utils.preparation.prepared import read_csv_data
    from utils.segmentation.predict import load_network, segment_scan
    from utils.volumes.mhd import read_volume

    networks = {("best", 0): load_network(folder / "best.keras")}
    exported = keras.models.load_model(folder / "best.keras", compile=False)
    for age, path in enumerate(sorted((folder / "epochs").glob("*.weights.h5"), reverse=True)):
        exported.load_weights(path)
        networks["last", age] = load_network(folder / "best.keras")
        networks["last", age].model.set_weights(exported.get_weights())
    cases = sorted(
        {
            (row.vendor, row.image_name, row.root)
            for row in read_csv_data(folder.parents[2] / "test_data.csv")
            if row.vendor != outlined_vendor
        }
    )
    rows = []
    for vendor, name, root in cases:
        voxels, spacing_mm = read_volume(settings["DATA_ROOT"] / root / "oct.mhd")
        reference, _ = read_volume(settings["DATA_ROOT"] / root / "reference.mhd")
        for (weights, epoch), network in networks.items():
            labels = segment_scan(network, voxels, spacing_mm, vendor).labels
            for row in score_volume(labels, reference, spacing_mm):
                values = {measure: None if np.isnan(row[measure]) else row[measure] for measure in MEASURES}
                rows.append(
                    {"weights": weights, "epoch": epoch, "case": f"{vendor} {name}", "fluid": row["fluid"], **values}
                )
    keras.utils.clear_session()
    return rows


# ---- Over the seeds ------------------------------------------------------------------------------------------------
def print_tables(results):
    """Print every variant's comparison with the control as Markdown."""
    results = results.set_index(KEY)[list(MEASURES)].astype(float)
    for variant in results.index.unique("variant").drop(CONTROL):
        for weights in ("last", "best"):
            sides = [results.xs((name, weights), level=("variant", "weights")) for name in (CONTROL, variant)]
            print(f"\n{variant or 'defaults'}, {weights} weights")
            print("| measure | fluid | control | adversarial | difference | 95 % interval | relative |")
            print("|---|---|---|---|---|---|---|")
            for measure in MEASURES:
                for row in compare(*(side[measure] for side in sides)):
                    print(f"| {measure} | {' | '.join(row)} |")


def compare(control, variant):
    """Rows (fluid, means of both, difference, its interval, relative difference), as text, of one measure.

    `control` and `variant` are indexed by seed, case and fluid; cases in which either has no value do not count.
    """
    pairs = pd.DataFrame({"control": control, "variant": variant}).dropna().reset_index()
    mean = pairs.assign(fluid="mean")
    for fluid, of_fluid in pd.concat([pairs, mean]).groupby("fluid", sort=False):
        before, after = of_fluid.groupby("seed")[["control", "variant"]].mean().mean()
        low, high = interval([of_seed for _, of_seed in of_fluid.groupby("seed")])
        relative = f"{after / before - 1:+.0%}" if before else "-"
        yield fluid, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}", f"{low:+.4f} to {high:+.4f}", relative


def interval(of_seeds):
    """95 % interval of the mean difference over seeds, from a table for each seed; both seeds and cases are drawn."""
    rng, means = np.random.default_rng(0), []
    of_cases = [(table.variant - table.control).groupby(table.case).mean().to_numpy() for table in of_seeds]
    for _ in range(DRAWS):
        drawn = rng.integers(len(of_cases), size=len(of_cases))
        means.append(np.mean([rng.choice(of_cases[index], len(of_cases[index])).mean() for index in drawn]))
    return np.percentile(means, [2.5, 97.5])


if __name__ == "__main__":
    main()
