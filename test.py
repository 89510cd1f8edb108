"""Step 5: segment scans.

    python test.py INPUT... --output DIR [--model FILE] [--vendor V] [--spacing-mm X Y Z] [--fovea COLUMN B_SCAN]
                   [--each] [--eye EYE] [--mirrored] [--probabilities]
                   [--format FORMAT ...] [--set NAME=VALUE ...]

Each INPUT is a file, a folder or a pattern. Formats:

- MetaImage, NIfTI, DICOM, TIFF
- PNG or JPEG B-scans (a folder of them is a scan; with --each, every picture is one)
- Heidelberg's .xml, Topcon's .fda and .fds; Heidelberg's .vol and .e2e with the package eyepy

The model is the run's best: the fine-tuned one if it was made from the current segmentation model, else the latter.
Where nothing was trained it is the model in the box, weights/oct_fluid.keras, or oct_fluid.onnx if Keras is not
installed. An ONNX model (utils.tools.export_onnx) needs the packages of requirements-segment.txt alone.
Vendor and spacing come from the files and their folders' names, unless given. Assumptions are printed and recorded.
Patient, eye and date come from DICOM files, or with --eye from the command line or a table.

Writes  DIR/<Vendor>_<case>.mhd   labels on the scan's own grid, uint8: 0 background, 1 IRF, 2 SRF, 3 PED
                                  (--format: .mhd, .nii.gz or a DICOM segmentation, or several of them)
        DIR/<Vendor>_<case>/      report.html (a page to look at), mask_NNN.png and overlay_NNN.png for each B-scan,
                                  measurements.csv, thickness.png and thickness_<fluid>_um.tif, and volumes of
                                  probabilities (--probabilities) and uncertainty (--mirrored)
        DIR/index.html                    the work list: all scans in DIR, those to look at first on top
        DIR/summary.csv, DIR/columns.csv  the same as a table, and what its columns mean
        DIR/follow_up.csv, DIR/follow_up/ volumes by date, and a page, of each eye that was scanned on several days
        DIR/left_out.csv                  files of the inputs that are no scans, such as masks and reports, and why
        DIR/failed.csv                    scans of this run that failed, and why; index.html names them, too

A scan that fails does not stop the others. The same command again segments only the scans that are unfinished. The exit
code is 2 if a scan failed, else 0. In Python: `utils.segmentation.predict.segment_volume`.
"""

import argparse
import difflib
import functools
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from tqdm import tqdm

import config
from utils.errors import InputError, run_script
from utils.files import locked, remove_unfinished, write_csv
from utils.labels import FLUIDS
from utils.names import as_text
from utils.networks.exported_model import BOX_MODEL, PredictionSettings, find_best_model, read_best
from utils.parallel import map_unordered
from utils.progress import progress_bar
from utils.segmentation.columns import write_columns, write_results
from utils.segmentation.decisions import Decisions, decisions_of_run
from utils.segmentation.follow_up import FOLLOW_UP_COLUMNS, write_follow_up
from utils.segmentation.index import write_index
from utils.segmentation.label_files import FORMATS, check_installed
from utils.segmentation.output import Job, segment_to_files
from utils.segmentation.predict import prediction_digest
from utils.segmentation.results import output_name
from utils.segmentation.summary import mixed_models, summary_table
from utils.segmentation.wording import model_note
from utils.volumes.eyes import with_eyes
from utils.volumes.scan_names import told_apart
from utils.volumes.scans import search_scans
from utils.volumes.spacing import check_spacing
from utils.volumes.vendors import KNOWN

LEFT_OUT_LINES = 12  # printed; left_out.csv has all


def main(argv):
    parser = argparse.ArgumentParser(description="Segment retinal fluid in OCT scans.")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="a scan, a folder of scans, or a pattern")
    parser.add_argument("--output", required=True, metavar="DIR", help="where label volumes, pictures and pages go")
    parser.add_argument(
        "--model",
        metavar="FILE",
        nargs="+",
        help="a best.keras with its best.json, or a .onnx; several are averaged; box: the one in weights/; "
        "default: the run's, else the box",
    )
    parser.add_argument(
        "--vendor",
        metavar="V",
        help=f"of scans whose files and folders do not say it: {', '.join(KNOWN)}, or one that the model has seen",
    )
    parser.add_argument("--spacing-mm", nargs=3, type=float, metavar=("X", "Y", "Z"), help="instead of the file's")
    parser.add_argument(
        "--fovea", nargs=2, type=float, metavar=("COLUMN", "B_SCAN"), help="from 0; default: found, else the centre"
    )
    parser.add_argument("--each", action="store_true", help="every picture of a folder is a scan; default: all are one")
    parser.add_argument(
        "--eye", metavar="EYE", help="OD, OS, or a CSV with the columns scan, eye, and maybe patient and date"
    )
    parser.add_argument("--mirrored", action="store_true", help="average with the prediction of the mirrored scan")
    parser.add_argument("--probabilities", action="store_true", help="write them, too (uint8, 255 is certain)")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["mhd"], help="of the labels; default: mhd")
    arguments = config.load(argv, parser)
    config.validate()
    if arguments.spacing_mm:
        check_spacing("--spacing-mm", arguments.spacing_mm)
    check_installed(arguments.format)
    scans, left_out = search_scans(arguments.inputs, leave_out=arguments.output, each=arguments.each)
    scans = told_apart(scans, arguments.vendor)
    if arguments.eye:
        scans = with_eyes(scans, arguments.eye)
        print(f"--eye {arguments.eye} tells of {sum(scan.told is not None for scan in scans)} of {len(scans)} scans")
    if arguments.fovea and len(scans) > 1:
        raise InputError(f"--fovea: {len(scans)} scans found, and each has its own; name one scan")
    found = None
    box = BOX_MODEL if find_spec("keras") else BOX_MODEL.with_suffix(".onnx")
    if arguments.model:
        models, why = [box if model == "box" else model for model in arguments.model], "named with --model"
    elif found := find_best_model(config.run_folder("adversarial"), config.run_folder("segmentation")):
        models, why = [found[0]], found[1]
    else:
        print(f"no model in {config.run_folder('segmentation')}: this is weights/{box.name}")
        models, why = [box], "nothing was trained"
    details = {path: read_best(path) for path in models}
    for path, of_model in details.items():
        PredictionSettings.from_details(of_model)
        print(f"model: {path} ({of_model['step']}, epoch {of_model['epoch']}): {why}; {len(scans)} scans")
    for note in dict.fromkeys(model_note(of_model, Decisions.from_details(of_model)) for of_model in details.values()):
        print(f"note: {note}")
    check_vendor(arguments.vendor, details)
    # The run's own model follows config; another's best.json says what it needs.
    asked = config.decision_settings()
    decisions = decisions_of_run([details[path] for path in models], **asked) if found or asked["given"] else None
    job = Job(
        output=os.path.abspath(arguments.output),
        model_paths=tuple(map(os.path.abspath, models)),
        prediction=prediction_digest(*details.values()),
        decisions=decisions,
        vendor=arguments.vendor,
        spacing_mm=arguments.spacing_mm and tuple(arguments.spacing_mm),
        fovea=arguments.fovea and tuple(arguments.fovea),
        dtype_policy=config.DTYPE_POLICY,
        memory_gb=config.PREDICTION_GB,
        mirrored=arguments.mirrored,
        probabilities=arguments.probabilities,
        formats=tuple(name for name in FORMATS if name in arguments.format),
        deterministic=config.DETERMINISTIC,
        minutes=config.SCAN_MINUTES,
        ends_when_stuck=config.DASK_SCHEDULER is not None,
        threads=max(1, os.cpu_count() // config.WORKERS) if config.WORKERS > 1 and not config.DASK_SCHEDULER else None,
    )
    output = Path(arguments.output)
    with locked(output):
        remove_unfinished(output)
        report_left_out(left_out, output)
        failures = segment_all(scans, job)
        report_failures(failures, output)
        write_summary(output, failures)
    if failures:  # what is wrong with the model is wrong for every scan
        raise InputError(*dict.fromkeys(why for _, complaints in failures for why in complaints))


def check_vendor(vendor, details):
    """Raise `InputError` for a `vendor` that is neither known nor one that the models, {path: best.json}, have seen."""
    trained = {name for of_model in details.values() for name in of_model.get("training_appearance") or ()}
    if vendor is not None and vendor not in (allowed := [*KNOWN, *sorted(trained - {*KNOWN})]):
        close = difflib.get_close_matches(vendor.capitalize(), allowed, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"--vendor {vendor}: expected one of {', '.join(allowed)}{meant}")


def report_left_out(left_out, output):
    """Write the files that are no scans into left_out.csv, and print the first of them, the reasons in turn."""
    table = pd.DataFrame([(as_text(one.path), one.why) for one in left_out], columns=["path", "why"])
    if table.empty:
        (output / "left_out.csv").unlink(missing_ok=True)
        return
    write_csv(output / "left_out.csv", table)
    in_turn = table.assign(turn=table.groupby("why").cumcount()).sort_values("turn", kind="stable")
    for row in in_turn[:LEFT_OUT_LINES].itertuples():
        print(f"left out: {row.path}: {row.why}")
    if len(table) > LEFT_OUT_LINES:
        print(f"left out: {len(table) - LEFT_OUT_LINES} more, listed in {output / 'left_out.csv'}")


def report_failures(failures, output):
    """Write the scans that failed, [(`ScanFiles`, complaints)], into failed.csv; no file where none did."""
    rows = [(files.name, as_text(files.path), as_text(why)) for files, complaints in failures for why in complaints]
    if rows:
        write_csv(output / "failed.csv", pd.DataFrame(rows, columns=["scan", "path", "why"]))
    else:
        (output / "failed.csv").unlink(missing_ok=True)


def segment_all(scans, job):
    """Segment the scans and print a line for each; returns [(`ScanFiles`, complaints)] of those that failed."""
    failures = []
    with progress_bar(total=len(scans), unit="scan", leave=False, disable=len(scans) == 1 or None) as progress:
        in_process = config.WORKERS < 2 and config.DASK_SCHEDULER is None
        segment = functools.partial(segment_to_files, job=job, on_slice=b_scan_progress if in_process else None)
        for files, (record, complaints) in map_unordered(
            segment, scans, workers=config.WORKERS, dask_scheduler=config.DASK_SCHEDULER, lost=_lost
        ):
            if record is None:
                failures.append((files, complaints))
                line = f"{files.name}: failed"
            else:
                facts = record["facts"]
                taught = [fluid for fluid in record["fluids"] if fluid.get("taught", True)]
                size, unit = ("volume_mm3", "mm3") if facts["b_scans"] > 1 else ("area_mm2", "mm2")
                sizes = ", ".join(f"{fluid['fluid']} {fluid[size]:.3f}" for fluid in taught)
                took = "done before" if record.get("kept") else f"{record['seconds']:.0f} s"
                line = f"{output_name(facts['vendor'], facts['scan'])}: {sizes} {unit}, {took}"
                line += "".join(f"\n  note: {note}" for note in record["notes"])
                line += "".join(f"\n  warning: {warning}" for warning in record["warnings"])
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
            progress.update()
    return failures


def _lost(files):
    """The result of a scan with which every worker of the cluster died that tried it."""
    return None, (f"{files.path}: the workers died or were stuck with it; segment it alone to see why",)


def b_scan_progress(number, of):
    """Show on the terminal which B-scan is being segmented."""
    if sys.stderr.isatty():
        print(
            f"\r  B-scan {number} of {of} ",
            end="" if number < of else "\r" + " " * 30 + "\r",
            file=sys.stderr,
            flush=True,
        )


def write_summary(output, failures=()):
    """Write and print the results of every scan in the folder `output`; `failures` as in `report_failures`."""
    table = summary_table(output)
    # A page is shown to others, and names of folders may be those of patients.
    failed = [
        (files.name, as_text(why).replace(f"{os.path.dirname(as_text(files.path))}{os.sep}", ""))
        for files, complaints in failures
        for why in complaints
    ]
    if table.empty:
        if failed:
            write_index(output, table, failed=failed)
        return
    followed, mixed_patients = write_follow_up(output, table)
    warnings = list(filter(None, [mixed_models(table), mixed_patients]))
    results = table.drop(columns="person")
    write_results(output / "summary.csv", results)
    write_columns(output / "columns.csv", [*results, *FOLLOW_UP_COLUMNS])
    write_index(output, table, warnings, followed, failed)
    sizes = [f"{fluid}_{unit}" for fluid in FLUIDS for unit in ("mm3", "mm2")]
    sizes = results[["scan", "vendor", *sizes]].dropna(axis="columns", how="all")
    print(sizes.to_string(index=False, float_format="%.3f", na_rep="-"))
    for warning in warnings:
        print(f"warning: {warning}")
    if followed:
        print(f"{len(followed)} eyes over time: {output / 'follow_up.csv'}, pages in {output / 'follow_up'}")
    print(f"{len(table)} scans: {output / 'index.html'}, summary.csv and the label volumes beside it")


if __name__ == "__main__":
    run_script(main)
