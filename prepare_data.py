"""Step 1: raw volumes to preprocessed volumes, ROI masks, the slice CSV and the splits.

    python prepare_data.py [--skip-bad] [--unlabelled] [--vendor-folders] [--set NAME=VALUE ...]

Reads   DATA_ROOT/RETOUCH-TrainingSet-<Vendor>/<case>/{oct,reference}.mhd (other layouts: see `utils.preparation.cases`)
        DATA_ROOT/outlined.csv, if there is one: which fluids were outlined in which cases
Writes  OUTPUT_ROOT/pre_processed/{oct_imgs,oct_masks,roi_masks}/<Vendor>_<case>.mhd
        OUTPUT_ROOT/pre_processed/{slice_gt,reference_histogram,summary}.csv and overview.png
        OUTPUT_ROOT/{train,val,test}_data.csv

The script writes nothing before all cases are checked. A second run prepares only the cases that are unfinished or that
a changed setting concerns.
"""

import argparse
import contextlib
import functools
import json
import shutil
import sys
from collections import Counter
from dataclasses import asdict, astuple
from pathlib import Path

import numpy as np
import pandas

import config
from utils.errors import InputError, run_script
from utils.files import locked, remove_unfinished, write_csv, write_json
from utils.labels import FLUIDS, in_order
from utils.names import as_text
from utils.parallel import map_unordered
from utils.preparation.cases import find_cases, volumes_of_no_case
from utils.preparation.checks import (
    CaseFacts,
    Finding,
    check_facts,
    check_headers,
    findings_table,
    notes_text,
    read_facts_or_finding,
    summary_text,
    vendor_summary,
)
from utils.preparation.invalid import find_invalid
from utils.preparation.overview import save_overview
from utils.preparation.prepare_case import (
    Preparation,
    PreparedFiles,
    create_roi_mask,
    preprocess_case,
    source_files,
    why_images_unfinished,
    why_roi_unfinished,
)
from utils.preparation.prepared import COLUMNS, record_path, volume_paths
from utils.preparation.preprocessing import grey_value_histogram, resampled_rows, to_8_bit
from utils.preparation.reference_histogram import read_reference_histogram, write_reference_histogram
from utils.preparation.splits import PARTS, not_outlined_text, split_patients, split_text
from utils.progress import progress_bar
from utils.volumes.mhd import read_volume

LEFT_OUT_LINES = 12  # printed, of volume files that are part of no case


def main(argv):
    parser = argparse.ArgumentParser(description="Step 1: check and preprocess the raw volumes, draw the split.")
    parser.add_argument("--skip-bad", action="store_true", help="leave out the cases that cannot be used")
    parser.add_argument("--unlabelled", action="store_true", help="take cases without reference into slice_gt.csv too")
    parser.add_argument(
        "--vendor-folders", action="store_true", help="a folder of another name than the three vendors' is a vendor too"
    )
    arguments = config.load(argv, parser)
    config.validate()
    folder = config.preprocessed_folder()
    with contextlib.ExitStack() as lock:
        if Path(config.OUTPUT_ROOT).exists():  # a second process fails at once, not after the checks
            lock.enter_context(locked(config.OUTPUT_ROOT))
        cases = find_cases(config.DATA_ROOT, config.OUTLINED, config.NOT_JUDGED_OTHER, arguments.vendor_folders)
        facts, findings = check_cases(cases, need_reference=not arguments.unlabelled)
        report_left_out(volumes_of_no_case(config.DATA_ROOT))
        if findings:
            report_findings(findings, arguments.skip_bad)
        if not facts:
            raise InputError(f"{config.DATA_ROOT}: no usable case is left, expected one; fix the cases listed above")
        # The split comes first: intensities are matched to a volume that trains.
        existing = read_existing_split()
        split = create_split(facts, existing)
        reference_histogram = find_reference_histogram(facts, split)

        lock.enter_context(locked(config.OUTPUT_ROOT))  # only now, so that nothing is written before the checks pass
        if any(config.split_csv(part).exists() for part in PARTS if part not in existing):
            raise InputError(f"{config.OUTPUT_ROOT}: another process has drawn a split there meanwhile; start again")
        remove_unfinished(config.OUTPUT_ROOT, below=False)  # other steps may be writing below it
        remove_unfinished(folder)
        summary = save_checks(facts, findings)
        write_reference_histogram(config.reference_histogram_csv(), reference_histogram)
        n_done = preprocess_oct_images(facts, reference_histogram) + create_roi_masks(facts)
        create_test_train_set(facts, split)
        if n_done or not (folder / "overview.png").exists():
            files = {case: prepared_files(case) for case in facts}
            save_overview(folder / "overview.png", facts, files, reference_histogram)
    if warning := too_small(facts):
        print(f"warning: {warning}")
    if config.NOT_JUDGED_OTHER and not any(any(of_case.not_judged or ()) for of_case in facts.values()):
        labels = ", ".join(map(str, config.NOT_JUDGED_OTHER))
        print(f"warning: NOT_JUDGED_OTHER changes nothing: no other.mhd holds {labels} where its reference is 0")
    if notes := notes_text({case.root: of_case.notes for case, of_case in facts.items()}):
        print(notes)
    fluids = {(case.vendor, case.name): fluids_held(of_case) for case, of_case in labelled(facts).items()}
    outlined = in_order({fluid for of_case in labelled(facts).values() for fluid in of_case.outlined})
    print(f"\n{summary_text(summary)}\n\n{split_text(split, fluids, outlined, config.PATIENT_PATTERN)}")
    if missing := not_outlined_text({case: of_case.outlined for case, of_case in labelled(facts).items()}, split):
        print(f"\n{missing}")
    print(f"look at {folder / 'overview.png'}\nnext: {config.command('model_training.py')}")


def check_cases(cases, need_reference=True):
    """Check every case; `WORKERS` processes read the voxels of those whose files have changed since the last check.

    Returns {case: `CaseFacts`} of the cases that can be used, and a list of `Finding` about the others.
    """
    findings = check_headers(cases, need_reference)
    offenders = {finding.case for finding in findings}
    known = read_known_facts()
    sound = [case for case in cases if case not in offenders]
    facts = {case: known[key] for case in sound if (key := facts_key(case)) in known}
    to_read = [case for case in sound if case not in facts]
    for case, result in _with_progress("checking", read_facts_or_finding, to_read):
        if isinstance(result, Finding):
            findings.append(result)
        else:
            facts[case] = result
    facts = {case: facts[case] for case in sound if case in facts}  # in the order of the cases, not of reading
    findings += check_facts(facts)
    offenders = {finding.case for finding in findings}
    return {case: of_case for case, of_case in facts.items() if case not in offenders}, findings


def report_left_out(paths):
    """Name the volume files that are part of no case."""
    for path in paths[:LEFT_OUT_LINES]:
        print(f"left out: {path}: called neither oct.mhd nor reference.mhd", file=sys.stderr)
    if len(paths) > LEFT_OUT_LINES:
        print(f"left out: {len(paths) - LEFT_OUT_LINES} more", file=sys.stderr)


def report_findings(findings, skip_bad):
    """Show what is wrong; raise `InputError` unless these cases are to be skipped."""
    print(findings_table(findings, shutil.get_terminal_size((120, 24)).columns), file=sys.stderr)
    offenders = len({finding.case for finding in findings})
    if not skip_bad:
        raise InputError(
            f"{offenders} {'case' if offenders == 1 else 'cases'} below {config.DATA_ROOT} cannot be used, see the "
            "table above; fix them, or leave them out with --skip-bad"
        )
    print(f"warning: leaves out {offenders} bad cases, listed in skipped.csv", file=sys.stderr)


def create_split(facts, existing):
    """Part of each labelled case, as {(vendor, name): part}. Parts in `existing` ({part: cases}) stay as they are."""
    of_labelled = labelled(facts)
    if not of_labelled:
        raise InputError(
            f"{config.DATA_ROOT}: no case has a reference.mhd that outlines anything, expected several to train"
        )
    return split_patients(
        [(case.vendor, case.name) for case in of_labelled],
        config.split_rules(),
        fluids={(case.vendor, case.name): fluids_held(of_case) for case, of_case in of_labelled.items()},
        existing=existing,
    )


def labelled(facts):
    """Those of `facts` ({case: `CaseFacts`}) in whose case a reader has outlined some fluid."""
    return {case: of_case for case, of_case in facts.items() if of_case.outlined and np.any(of_case.label_counts)}


def fluids_held(facts):
    """Names of the fluids in a labelled case with these `CaseFacts`."""
    voxels = np.sum(facts.label_counts, axis=0)
    return [fluid for fluid, label in FLUIDS.items() if voxels[label] > 0]


def preprocess_oct_images(facts, reference_histogram):
    """Preprocess the scans and reference masks of the cases in `facts` ({case: `CaseFacts`}) and write slice_gt.csv.

    Grey values of Cirrus and Topcon are matched to `reference_histogram` (256 counts, or None) and median-filtered,
    rows resampled; `utils.preparation.preprocessing` holds the rules. The CSV has a row for each B-scan: image_name,
    vendor, root, slice, is_IRF, is_SRF, is_PED. Only cases that are not finished are done, by `WORKERS` processes.
    Returns how many.
    """
    preparation = Preparation(config.AXIAL_SPACING_MM, reference_histogram)
    reasons = {case: why_images_unfinished(case, prepared_files(case), preparation) for case in facts}
    preprocess = functools.partial(preprocess_case, preparation=preparation)
    done = do_unfinished("images", preprocess, reasons, facts)
    write_csv(config.preprocessed_folder() / "slice_gt.csv", slice_table(facts))
    return done


def create_roi_masks(facts):
    """Write the ROI mask of each preprocessed case in `facts` (see `utils.preparation.roi`).

    As in `preprocess_oct_images`, only unfinished cases are done. Returns how many.
    """
    reasons = {case: why_roi_unfinished(prepared_files(case)) for case in facts}
    return do_unfinished("roi", create_roi_mask, reasons, facts)


def prepared_files(case):
    """The `PreparedFiles` of `case`."""
    of_case = (config.preprocessed_folder(), case.vendor, case.name)
    oct_path, mask_path, roi_path = volume_paths(*of_case)
    records = (record_path(*of_case, stage) for stage in ("images", "roi"))
    return PreparedFiles(oct_path, mask_path, roi_path, *records)


def do_unfinished(stage, function, reasons, facts):
    """Call `function` with (case, `PreparedFiles`) for each unfinished case, and print the reasons.

    `reasons` is {case: why it is unfinished, or None}. `stage` names the record that `function` writes: "images" or
    "roi". Returns the number of unfinished cases.
    """
    unfinished = {case: prepared_files(case) for case, reason in reasons.items() if reason is not None}
    print(f"{stage}: {len(reasons) - len(unfinished)} of {len(reasons)} cases are done already")
    for reason, count in Counter(reasons[case] for case in unfinished).items():
        print(f"  {count} to do: {reason}")
    for files in unfinished.values():  # no record before the files are whole: a killed run may leave old and new ones
        {"images": files.images_record, "roi": files.roi_record}[stage].unlink(missing_ok=True)
    b_scans = {pair: facts[pair[0]].shape[0] for pair in unfinished.items()}
    for _ in _with_progress(stage, function, list(b_scans), b_scans):
        pass
    return len(unfinished)


def create_test_train_set(facts, split):
    """Write one CSV for each part of `split` ({(vendor, name): part}) with that part's rows of slice_gt.csv."""
    slices = slice_table(facts)
    parts = np.array([split.get(key) for key in zip(slices["vendor"], slices["image_name"], strict=True)])
    for part in PARTS:
        write_csv(config.split_csv(part), slices[parts == part])


def slice_table(facts):
    """A DataFrame with the `COLUMNS` of the slice CSV and a row for each B-scan.

    is_* is "" where the fluid was not outlined, or no voxel of the B-scan was judged.
    """
    rows = []
    for case, of_case in facts.items():
        known = {fluid: label for fluid, label in FLUIDS.items() if fluid in of_case.outlined}
        held = [
            [int(counts[known[fluid]] > 0) if fluid in known and any(counts) else "" for fluid in FLUIDS]
            for counts in of_case.label_counts or of_case.shape[0] * [[]]
        ]
        rows += [(case.name, case.vendor, case.root, index, *labels) for index, labels in enumerate(held)]
    return pandas.DataFrame(rows, columns=COLUMNS)


def too_small(facts):
    """In words which of the cases in `facts` ({case: `CaseFacts`}) are too small to give any patch, or None."""
    patches = config.batch_settings().patches
    sizes = {}
    for case, of_case in facts.items():
        _, rows, columns = of_case.shape
        sizes[case.root] = resampled_rows(rows, of_case.spacing_mm[1], config.AXIAL_SPACING_MM), columns
    small = {root: size for root, size in sizes.items() if not patches.can_be_kept(*size)}
    if not small:
        return None
    root, size = next(iter(small.items()))
    found, patch = (f"{rows} x {columns}" for rows, columns in (size, patches.shape))
    return (
        f"{len(small)} of {len(sizes)} cases give no patch, as {root}: its B-scans of {found} pixels (rows x columns) "
        f"fill less than {1 - patches.max_invalid:.0%} of a patch of {patch}; lower PATCH_SIZE_H or PATCH_SIZE_W "
        "before training"
    )


def save_checks(facts, findings):
    """Write what the checks found: checked.json for the next run, summary.csv and skipped.csv. Returns the summary."""
    folder = config.preprocessed_folder()
    write_json(folder / "checked.json", {facts_key(case): asdict(of_case) for case, of_case in facts.items()})
    summary = vendor_summary(list(facts), facts)
    write_csv(folder / "summary.csv", summary)
    if findings:
        rows = [tuple(map(as_text, (finding.case.root, *astuple(finding)[1:]))) for finding in findings]
        write_csv(folder / "skipped.csv", pandas.DataFrame(rows, columns=["case", "found", "expected", "what to do"]))
    else:
        (folder / "skipped.csv").unlink(missing_ok=True)
    return summary


def read_known_facts():
    """The facts of the last check that passed, by `facts_key`; empty where there was no such check."""
    path = config.preprocessed_folder() / "checked.json"
    if not path.exists():
        return {}
    try:
        return {key: CaseFacts(**facts) for key, facts in json.loads(path.read_text("utf-8")).items()}
    except (ValueError, TypeError, AttributeError):
        print(f"warning: {path} is damaged or of another version; checking all cases anew", file=sys.stderr)
        return {}


def facts_key(case):
    """Text that changes when a file of `case` changes, or what it tells, and differs between cases."""
    told = [case.outlined, case.is_stated, case.not_judged]
    return json.dumps([case.vendor, case.root, source_files(case), *told])


def read_existing_split():
    """The parts of the split that exist on disk, as {part: list of (vendor, name)}."""
    existing = {}
    for part in PARTS:
        path = config.split_csv(part)
        if path.exists():
            # Every cell as text: pandas would read a case named NA as a missing value.
            try:
                table = pandas.read_csv(path, dtype=str, keep_default_na=False)
            except ValueError as error:
                raise InputError(f"{path}: not a CSV of cases ({error}); correct or delete it") from error
            lacking = [name for name in ("vendor", "image_name") if name not in table]
            if lacking:
                raise InputError(f"{path}: has no column {', '.join(lacking)}; add it, or delete the file")
            existing[part] = list(dict.fromkeys(zip(table["vendor"], table["image_name"], strict=True)))
    if existing:
        print(f"Split: {', '.join(f'{part}_data.csv' for part in existing)} found and kept; delete to draw anew")
    return existing


def find_reference_histogram(facts, split):
    """The histogram (256 counts) to match Cirrus and Topcon to: a Spectralis case's, else a file's, else None."""
    spectralis = [case for case in facts if case.vendor == "Spectralis"]
    if not config.MATCH_INTENSITIES:
        return None
    if config.REFERENCE_CASE is not None:
        chosen = [case for case in spectralis if case.name == config.REFERENCE_CASE]
        if not chosen:
            raise InputError(
                f"config.REFERENCE_CASE = {config.REFERENCE_CASE!r}: no Spectralis case below {config.DATA_ROOT} has "
                "this name; name one, or set it to None for the first that trains"
            )
        if split.get((chosen[0].vendor, chosen[0].name)) == "test":
            raise InputError(
                f"config.REFERENCE_CASE = {config.REFERENCE_CASE!r}: is a test case, expected a training case; name "
                "one that trains, or set it to None for the first that does"
            )
    else:
        chosen = [case for case in spectralis if split.get((case.vendor, case.name)) == "train"]
    if chosen:
        volume = to_8_bit(read_volume(chosen[0].oct_path)[0])
        return grey_value_histogram(volume, find_invalid(volume))
    if config.REFERENCE_HISTOGRAM is not None:
        return read_reference_histogram(config.REFERENCE_HISTOGRAM)
    print(
        "warning: no Spectralis case trains and config.REFERENCE_HISTOGRAM is None: grey values are not matched",
        file=sys.stderr,
    )
    return None


def _with_progress(description, function, cases, b_scans=None):
    """Yield (case, function(case)) as they finish. A bar counts cases, or B-scans with `b_scans` ({case: number})."""
    b_scans = b_scans or dict.fromkeys(cases, 1)
    results = map_unordered(function, cases, workers=config.WORKERS, dask_scheduler=config.DASK_SCHEDULER)
    unit = "case" if set(b_scans.values()) == {1} else "B-scan"
    with progress_bar(description=description, total=sum(b_scans.values()), unit=f" {unit}", disable=not cases) as bar:
        for done, (case, result) in enumerate(results, 1):
            yield case, result
            bar.set_postfix_str(f"case {done}/{len(cases)}", refresh=False)
            bar.update(b_scans[case])


if __name__ == "__main__":
    run_script(main)
