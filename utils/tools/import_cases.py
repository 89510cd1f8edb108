"""Other people's images and outlines as cases in RETOUCH's layout, which prepare_data.py reads.

    python -m utils.tools.import_cases masks SOURCE --images 'images/*.png' --masks 'masks/*.png' \\
        --labels IRF=255,0,0 SRF=0,255,0 --vendor Spectralis --spacing-mm 0.0115 0.00387 0.12 \\
        --patient-pattern '(\\d+)_' --output data

reads the folder SOURCE and writes below ``--output``

- ``<Vendor>/<patient>__<name>/{oct,reference}.{mhd,raw}``, with ``other.mhd`` for classes stated as OTHER1 to OTHER255
- ``provenance.json``, the record of where each case comes from
- ``outlined.csv``: which fluids were outlined in each case
- ``recipe.py``: the settings with which the scripts read these cases, for ``--recipe``

    python -m utils.tools.import_cases corrected SEGMENTED --output data

reads a folder that test.py wrote and takes the scans whose label volumes were corrected since (docs/correct.md). Each
case gets a ``correction.json`` too.

The command first reads and checks everything and prints a table of what it understood. ``--dry-run`` ends there.
docs/data.md describes the layouts and has the command for each public data set.
"""

import argparse
import datetime
import functools
import re
import shlex
from pathlib import Path

import numpy as np

from utils.errors import InputError, run_script
from utils.files import locked, remove_unfinished, sha256
from utils.importing.class_table import parse_classes
from utils.importing.corrected import find_corrected
from utils.importing.duke import find_duke
from utils.importing.layouts import find_beside, find_coco, find_masks, find_nnunet, find_yolo
from utils.importing.overview import PATIENT_PATTERN, Understood, overview_text
from utils.importing.written_cases import owned_cases, record_import, record_outlined, write_case, write_recipe
from utils.labels import FLUIDS, in_order
from utils.names import as_text, same_name, suffix_of
from utils.progress import progress_bar
from utils.volumes.grey_values import as_grey
from utils.volumes.pictures import PICTURES
from utils.volumes.spacing import believed_spacing_mm, check_spacing, scale_doubt
from utils.volumes.vendors import KNOWN, why_no_vendor_name

_SAID = {"vendor", "patient_pattern"}  # what other people's files do not tell
# Layout -> (what finds its items, options that it needs, options that it may have).
_LAYOUTS = {
    "masks": (find_masks, _SAID | {"images", "masks"}, {"labels", "annotator", "tolerance", "without_mask"}),
    "beside": (find_beside, _SAID | {"images", "labels"}, {"tolerance"}),
    "coco": (find_coco, _SAID | {"masks", "labels"}, {"images", "annotator"}),
    "yolo": (find_yolo, _SAID | {"images", "masks", "labels"}, {"annotator", "without_mask"}),
    "nnunet": (find_nnunet, _SAID | {"labels"}, {"without_mask"}),
    "duke": (find_duke, _SAID | {"images", "labels", "annotator"}, set()),
    "corrected": (find_corrected, set(), {"patient_pattern", "labels", "all", "moved"}),
}
_CHECKED = ("vendor", "spacing_mm", "patient_pattern", "images", "masks", "labels", "annotator", "tolerance")
_CHECKED += ("without_mask", "all", "moved")
_WHOLE_NAME = "^(.+?)(?:__|$)"  # the patient in a scan's name, where no pattern is given; cases are <patient>__<name>
_DEFAULTS = {"labels": [], "tolerance": 0, "without_mask": "refuse"}
_EACH = "each"  # in place of a pattern: every image is of another patient
_LONE_MM = 0.12  # z of B-scans by themselves, which have no next one
# An option as it may look, for who has left it out.
_EXAMPLES = {
    "vendor": "Spectralis",
    "patient_pattern": r"'(\d+)_'",
    "images": "'images/*.png'",
    "masks": "'masks/*.png'",
    "labels": "IRF=255",
    "annotator": "1",
    "spacing_mm": "0.0115 0.00387",
}


def main(argv):
    options = _parse(argv)
    find, _, _ = _LAYOUTS[options.layout]
    found = find(options.source, options, parse_classes(options.labels))
    outlined = in_order(found.classes.targets.values() if options.outlined is None else options.outlined)
    cases = _named(found.items, options)
    understood = _read_all(found, cases, options)
    print(overview_text(found, understood, outlined, options))
    if options.dry_run:
        print("Nothing is written: --dry-run")
        return
    output = Path(options.output)
    with locked(output):
        remove_unfinished(output)
        files = _source_files(cases, options.source)
        there = owned_cases(output, options.settings, files)
        record_outlined(output, outlined, cases, there)
        record_import(output, options.settings, files, _circumstances(argv, options))
        missing = [root for root in cases if root not in there]
        for root in progress_bar(missing, "Writing", unit=" case", disable=not missing):
            _write(output / root, cases[root], found.classes, options, files[root])
        recipe = write_recipe(output, PATIENT_PATTERN)
    print(f"{len(missing)} cases written to {output}, {len(there)} were there")
    own = ["--vendor-folders"] * any(root.partition("/")[0] not in KNOWN for root in cases)
    print(f"next: {shlex.join(['python', 'prepare_data.py', *own, '--recipe', str(recipe)])}")


# ---- What was asked for --------------------------------------------------------------------------------------------
def _parse(argv):
    """The options. All checks that need no file are done."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.tools.import_cases", description="Turn images and outlines into cases; see docs/data.md."
    )
    parser.add_argument("layout", choices=_LAYOUTS, help="how images and outlines are stored")
    parser.add_argument("source", metavar="SOURCE", help="folder of the data set; patterns are relative to it")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the cases: a DATA_ROOT")
    parser.add_argument("--vendor", help=f"whose device made the scans: {', '.join(KNOWN)}, or a name of your own")
    parser.add_argument(
        "--spacing-mm", nargs="+", type=float, metavar="MM", help="column, row and slice spacing; B-scans have no third"
    )
    parser.add_argument(
        "--patient-pattern",
        metavar="REGEX",
        help="its first group is the patient in an image's path below SOURCE, without suffix; each: an image a patient",
    )
    parser.add_argument("--images", metavar="PATTERN", help="images: * any part of a name, ** any part of a path")
    parser.add_argument("--masks", nargs="+", metavar="[TARGET=]PATTERN", help="masks, or files of outlines")
    parser.add_argument("--labels", nargs="+", metavar="TARGET=CLASS", help="what each class of the masks becomes")
    parser.add_argument(
        "--outlined", nargs="+", choices=FLUIDS, help="fluids that were outlined wherever they are (those of --labels)"
    )
    parser.add_argument("--annotator", metavar="NAME", help="whose outlines, where several readers made some")
    parser.add_argument("--tolerance", type=int, metavar="N", help="how far a mask's value may be from a stated one")
    parser.add_argument(
        "--without-mask",
        choices=("refuse", "background", "leave-out"),
        help="what becomes of an image without one: an error (default), no fluid, or no case",
    )
    parser.add_argument("--all", action="store_const", const=True, help="also label volumes that were not corrected")
    parser.add_argument("--moved", nargs=2, metavar=("OLD", "NEW"), help="folder of scans then and now")
    parser.add_argument("--licence", metavar="TEXT", help="kept in provenance.json")
    parser.add_argument("--dry-run", action="store_true", help="print the table and write nothing")
    options = parser.parse_args(argv)
    _, needed, allowed = _LAYOUTS[options.layout]
    allowed = allowed | ({"spacing_mm"} if "vendor" in needed else set())
    given = {name for name in _CHECKED if getattr(options, name) is not None}
    if suffix_of(options.images or "") in PICTURES:
        needed = needed | {"spacing_mm"}  # which pictures do not state
    complaints = [f"{_flag(name)}: {options.layout} needs it" for name in sorted(needed - given)]
    if complaints:
        words = (f"{_flag(name)} {_EXAMPLES[name]}" for name in _EXAMPLES if name in needed)
        complaints.append(f"for example: {options.layout} {options.source} {' '.join(words)} --output {options.output}")
    complaints += [f"{_flag(name)}: {options.layout} has no use for it" for name in sorted(given - needed - allowed)]
    if options.spacing_mm is not None:
        try:
            if len(options.spacing_mm) not in (2, 3):
                raise InputError(f"--spacing-mm: {len(options.spacing_mm)} values, expected X Y, or X Y Z of volumes")
            check_spacing("--spacing-mm", [*options.spacing_mm, _LONE_MM][:3])
        except InputError as error:
            complaints += error.messages
    if options.vendor is not None and (why := why_no_vendor_name(options.vendor)):
        complaints.append(f"--vendor {options.vendor}: {why}; known are {', '.join(KNOWN)}")
    try:
        if options.patient_pattern != _EACH and re.compile(options.patient_pattern or _WHOLE_NAME).groups < 1:
            complaints.append(f"--patient-pattern {options.patient_pattern}: expected a group, as in '(\\d+)_'")
    except re.error as error:
        complaints.append(f"--patient-pattern {options.patient_pattern}: no regular expression ({error})")
    if complaints:
        raise InputError(*complaints)
    for name, default in _DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    options.settings = {
        name: value
        for name, value in vars(options).items()
        if name not in ("source", "output", "dry_run", "licence", "moved") and value is not None
    }
    return options


def _flag(name):
    return f"--{name.replace('_', '-')}"


def _named(items, options):
    """{case's root, <Vendor>/<patient>__<name>: item}.

    Raises `InputError` if a path does not name the patient, or if two names are the same.
    """
    cases, complaints, texts, taken = {}, [], {}, {}
    pattern = options.patient_pattern or _WHOLE_NAME
    for item in items:
        match = re.search("(.+)", item.name) if pattern == _EACH else re.search(pattern, item.path_text)
        if not (match and match[1]):
            complaints.append(f"{item.files[0]}: --patient-pattern {pattern} finds no patient in it")
            continue
        patient = _in_names(match[1])
        if "__" in patient or texts.setdefault(patient, match[1]) != match[1]:
            complaints.append(f"{item.files[0]}: patient {match[1]} cannot be told from others in a case's name")
            continue
        name = f"{patient}__{_in_names(item.name)}"
        root = f"{item.vendor or options.vendor}/{name}"
        other = taken.setdefault(same_name(root), item)
        if other is not item:
            complaints.append(f"{item.files[0]}: would be case {name}, as {other.files[0]} is; name one differently")
        cases[root] = item
    if not items:
        complaints.append(f"{options.source}: holds no image that could be a case")
    if complaints:
        raise InputError(*complaints)
    return cases


def _in_names(text):
    """`text` as part of a folder's name: letters, digits, dot, hyphen and underscore."""
    return re.sub(r"[^\w.-]+", "-", as_text(text).replace("/", "_")).strip(".-") or "-"


# ---- Reading -------------------------------------------------------------------------------------------------------
def _read(item, classes, options):
    """(voxels, reference, other, spacing in mm, placement, facts for the table) of an item."""
    path = item.files[0]
    content = item.read_image()
    voxels, notes = as_grey(content.voxels, path, content.bits, content.inverted)
    notes = [*content.notes, *notes]
    spacing_mm = options.spacing_mm or item.spacing_mm or _stated_spacing_mm(content, path)
    if len(spacing_mm) == 2:
        if voxels.shape[0] > 1:
            raise InputError(f"{path}: holds {voxels.shape[0]} B-scans; say their distance, too: --spacing-mm X Y Z")
        spacing_mm = (*spacing_mm, _LONE_MM)
    try:
        masks, warnings = item.read_masks(voxels.shape)
    except InputError as error:  # the notes may explain it: a fundus image that was cut off changes the size
        raise InputError(*(f"{message}{_in_brackets(notes)}" for message in error.messages)) from error
    if suffix_of(path) in PICTURES and (doubt := scale_doubt(spacing_mm, item.vendor or options.vendor, voxels.shape)):
        notes.append(doubt)
    reference, other, of_classes = classes.labels(masks, voxels.shape, item.files[-1])
    pixels = {name: int(np.count_nonzero(mask)) for name, mask in masks.items()}
    return voxels, reference, other, spacing_mm, content.placement, (pixels, {**warnings, **of_classes}, notes)


def _in_brackets(notes):
    return f" ({'; '.join(notes)})" if notes else ""


def _stated_spacing_mm(content, path):
    """The spacing that a file states. Raises `InputError` if it states none, or one that no scan has."""
    x, y, z = believed_spacing_mm(content.spacing_mm, content.voxels.shape)
    if content.voxels.shape[0] == 1:
        z = z or content.spacing_mm[2]  # a single slice needs no distance to the next
    if None in (x, y, z):
        stated = "none" if None in content.spacing_mm else " x ".join(f"{mm:g}" for mm in content.spacing_mm) + " mm"
        raise InputError(f"{path}: states {stated} as spacing, expected a scan's; say it: --spacing-mm X Y Z")
    return x, y, z


def _read_all(found, cases, options):
    """{case's root: `Understood`}. Raises `InputError` with a line for each item that cannot be a case."""
    understood, complaints = {}, []
    for root, item in progress_bar(cases.items(), "Reading", unit=" image"):
        try:
            voxels, _, _, spacing_mm, _, facts = _read(item, found.classes, options)
        except InputError as error:
            complaints += error.messages
            continue
        understood[root] = Understood(voxels.shape, voxels.dtype.name, tuple(spacing_mm), *facts)
    if complaints:
        raise InputError(*complaints)
    return understood


def _write(folder, item, classes, options, files):
    voxels, reference, other, spacing_mm, placement, _ = _read(item, classes, options)
    volumes = {"oct": voxels, "reference": reference} | ({} if other is None else {"other": other})
    record = item.record and {**item.record, "files": files}
    write_case(folder, volumes, spacing_mm, placement, record)


# ---- The record ----------------------------------------------------------------------------------------------------
def _source_files(cases, source):
    """{case's root: {source file: SHA-256}}; of files elsewhere, the name alone, since scans move."""
    digest = functools.cache(sha256)  # many images may share a file of outlines

    def name_of(path):
        return as_text(path.relative_to(source).as_posix() if path.is_relative_to(source) else path.name)

    return {root: {name_of(path): digest(path) for path in item.files} for root, item in cases.items()}


def _circumstances(argv, options):
    return {
        "source": as_text(Path(options.source).absolute()),
        "command": as_text(shlex.join(["python", "-m", "utils.tools.import_cases", *argv])),
        "date": datetime.date.today().isoformat(),
        "licence": options.licence,
    }


if __name__ == "__main__":
    run_script(main)
