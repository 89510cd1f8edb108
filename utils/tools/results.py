"""A run's results as the README's table, with the network, steps, hardware and minutes.

    python -m utils.tools.results RUN [--picture FILE]     e.g. demo/output/runs/demo

RUN is OUTPUT_ROOT/runs/RUN_NAME, after evaluate.py. The command prints Markdown: a list of network, hardware, steps and
minutes, then a table of Dice with a row for each vendor. --picture draws the first held-out case of each vendor.
"""

import argparse
from pathlib import Path

import pandas as pd

from utils.errors import InputError, run_script
from utils.evaluation.pairs import fullest_b_scan, pairs_of_split
from utils.evaluation.report import markdown_table
from utils.files import read_json
from utils.html import number
from utils.labels import FLUIDS
from utils.networks.networks import OUR_NETWORK
from utils.plots import save_comparison

STEPS = {"segmentation": "training", "adversarial": "fine-tuning"}


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m utils.tools.results", description="A run's results as Markdown.")
    parser.add_argument("run", type=Path, metavar="RUN", help="OUTPUT_ROOT/runs/RUN_NAME")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw a held-out case of each vendor there")
    arguments = parser.parse_args(argv)
    evaluation = arguments.run / "evaluation"
    dice = dice_table(pd.DataFrame(read_json(evaluation / "summary.json")["volumes"]))
    print(f"{effort(arguments.run)}\n\n{markdown_table(dice)}")
    if arguments.picture:
        save_picture(arguments.picture, arguments.run)


def save_picture(path, run):
    """Draw the B-scan with most fluid of each vendor's first held-out case, as the reader and the run outlined it."""
    data_root = read_json(run / "segmentation" / "config.json")["DATA_ROOT"]
    pairs = pairs_of_split(
        run.parents[1] / "test_data.csv",
        data_root,
        run.parents[1] / "pre_processed",
        run / "evaluation" / "predictions",
    )
    first = {pair.vendor: pair for pair in reversed(pairs)}
    rows = [fullest_b_scan(first[vendor], list(FLUIDS.values())) for vendor in sorted(first)]
    save_comparison(path, rows)


def effort(run):
    """A Markdown list: the network, its batches, the hardware, and the epochs and minutes of each step."""
    parts = []
    for step, name in STEPS.items():
        folder = run / step
        if not folder.exists():
            continue
        settings, log = read_json(folder / "config.json"), pd.read_csv(folder / "log.csv")
        if not parts:
            versions = read_json(folder / "versions.json")
            ours = settings["MODEL"] == OUR_NETWORK
            network = f"{settings['BASE_FILTERS']} filters" if ours else settings["MODEL"]
            parts += [network, f"batches of {settings['BATCH_SIZE']} patches"]
            parts += [f"{versions['processor_cores']} CPU cores ({versions['platform']})"]
        epochs = f"{int((log.epoch > 0).sum())} epochs of {settings['STEPS_PER_EPOCH'] or 'all'} steps"
        parts.append(f"{name} {epochs}: {log.seconds.sum() / 60:.1f} minutes")
    if not parts:
        raise InputError(f"{run}: holds no {' or '.join(STEPS)}; name a folder OUTPUT_ROOT/runs/RUN_NAME")
    return "\n".join(f"- {part}" for part in parts)


def dice_table(summary):
    """Dice of the cases that hold the fluid, with their number in brackets, as text; a row for each vendor.

    `summary` is the table of `utils.evaluation.statistics.summarise_volumes`.
    """
    present = summary[summary.measure == "dice_present"].set_index(["vendor", "fluid"])
    rows = []
    for vendor in summary.vendor.unique():
        of_vendor = present.loc[vendor]
        row = {"held-out cases": f"{vendor}, {int(of_vendor.cases.max())}"}
        for fluid in FLUIDS:
            row[fluid] = f"{number(float(of_vendor['mean'][fluid]))} ({int(of_vendor.n[fluid])})"
        rows.append({**row, "mean": number(float(of_vendor["mean"]["mean"]))})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run_script(main)
