"""Checks of raw cases before anything is computed, and a summary of what a data set holds.

1. `check_headers` checks headers and file sizes.
2. `read_facts` reads the voxels of each case with a good header once. Several processes may share this.
3. `check_facts` checks what the voxels say.

All faults are collected; no check stops at the first.
"""

import itertools
import os
import textwrap
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pandas

from utils.errors import InputError
from utils.labels import CLASS_NAMES, FLUIDS, NOT_JUDGED
from utils.names import as_text, same_name
from utils.preparation.cases import Case
from utils.preparation.outlined import read_reference
from utils.preparation.preprocessing import to_8_bit
from utils.volumes.file_checks import check_data_file
from utils.volumes.mhd import read_header, read_volume, reordering_onto, voxel_digest
from utils.volumes.spacing import PLAUSIBLE_SPACING_MM, believed_spacing_mm, has_swapped_axes, is_plausible
from utils.volumes.vendors import KNOWN, why_no_vendor_name, why_vendor_unknown

_GREY_TYPES = ("uint8", "uint16")
_DARK_BITS = 12  # 16-bit voxels that need no more than this stay below 16 of 255
_BRIGHT_MEDIAN = 150  # of 255; real scans were seen to stay below 100, and exceed 155 once inverted
_WHITE_PADDING = 245  # of 255; from here up to white a voxel may be padding
_LARGEST_FLUID_SHARE = 0.5  # of a B-scan; real ones cropped closely to the retina were seen to reach 0.18
_MOST_LISTED = 8  # of odd labels


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a case."""

    case: Case
    found: str
    expected: str
    remedy: str  # what to do


@dataclass(frozen=True)
class CaseFacts:
    """What one pass over a case's voxels tells: lists, numbers and text alone, so that JSON stores it unchanged."""

    shape: list  # [slices, rows, columns]
    spacing_mm: list  # [x, y, z]
    element_type: str  # of the scan: "uint8" or "uint16"
    voxel_hash: str  # the same for scans of equal type, shape and voxels
    minimum: int  # grey value as stored
    maximum: int
    grey_counts: list  # how often each of the 256 grey values occurs, of the scan as 8 bit
    label_counts: list | None  # of each slice, the number of voxels with each label 0-3; None without reference
    not_judged: list | None  # of each slice, the number of voxels that nobody judged; None without reference
    outlined: list  # names of the fluids that its reader outlined
    other_labels: list  # up to 8 values of the reference that are no label, as text
    notes: list  # what was assumed or corrected, a sentence each


def check_headers(cases, need_reference=True):
    """A list of `Finding`: faults in the headers and file sizes of `cases`. Reads no voxels."""
    names = {case: (same_name(case.vendor), same_name(case.name)) for case in cases if case.vendor is not None}
    findings = [
        Finding(case, f"{others} is a {case.vendor} case of this name too", "a name once a vendor", "rename the folder")
        for case, others in _sharing(names)
    ]
    return findings + [finding for case in cases for finding in _header_findings(case, need_reference)]


def read_facts(case):
    """`CaseFacts` of `case`, whose headers must have passed. Raises `InputError` if a file cannot be read."""
    voxels, spacing_mm = read_volume(case.oct_path)
    grey_counts = sum(np.bincount(to_8_bit(slice_).ravel(), minlength=256) for slice_ in voxels)
    facts = {
        "shape": list(voxels.shape),
        "spacing_mm": list(spacing_mm),
        "element_type": voxels.dtype.name,
        "voxel_hash": voxel_digest(voxels),
        "minimum": int(voxels.min()),
        "maximum": int(voxels.max()),
        "grey_counts": grey_counts.tolist(),
    }
    del voxels  # one volume at a time in memory
    if case.reference_path is None:
        return CaseFacts(**facts, label_counts=None, not_judged=None, outlined=[], other_labels=[], notes=[])
    reference = read_reference(case)
    label_counts, not_judged, others = zip(*(_count_labels(slice_) for slice_ in reference), strict=True)
    other_labels = [f"{value:g}" for value in np.unique(np.concatenate(others))[:_MOST_LISTED]]
    return CaseFacts(
        **facts,
        label_counts=list(label_counts),
        not_judged=list(not_judged),
        outlined=list(case.outlined),
        other_labels=other_labels,
        notes=[*_notes_on_place(case), *_notes_on_judgement(not_judged, label_counts)],
    )


def _notes_on_place(case):
    """What was assumed of where labels lie, of each label volume of `case`."""
    paths = [path for path in (case.reference_path, case.other_path) if path is not None]
    notes = [(path.name.lower(), reordering_onto(path, case.oct_path).note) for path in paths]
    return [f"{name}: {note}" for name, note in notes if note is not None]


def _notes_on_judgement(not_judged, label_counts):
    """A note where nobody judged some voxels, or a whole slice."""
    if not any(not_judged):
        return []
    whole = sum(count > 0 and not sum(counts) for count, counts in zip(not_judged, label_counts, strict=True))
    slices = f"; {whole} slices count as not outlined, since nothing in them was" if whole else ""
    return [f"some voxels are not judged: no loss and no score counts them{slices}"]


def read_facts_or_finding(case):
    """`CaseFacts` of `case`, or a `Finding` if its files cannot be read. Worker processes call this."""
    try:
        return read_facts(case)
    except InputError as error:
        return _as_finding(case, error)


def check_facts(facts):
    """A list of `Finding`: faults in the voxels. `facts` is {case: `CaseFacts`}."""
    # Empty scans are all alike. They are reported as empty, not as copies of each other.
    hashes = {case: of_case.voxel_hash for case, of_case in facts.items() if of_case.minimum < of_case.maximum}
    findings = [
        Finding(case, f"oct.mhd holds the same voxels as that of {others}", "each scan once", "keep one of them")
        for case, others in _sharing(hashes)
    ]
    return findings + [finding for case, of_case in facts.items() for finding in _voxel_findings(case, of_case)]


def findings_table(findings, width=120):
    """Text with a row for each finding, sorted by case, in columns wrapped to `width` characters."""
    header = ("case", "found", "expected", "what to do")
    rows = [(f.case.root, f.found, f.expected, f.remedy) for f in sorted(findings, key=lambda f: f.case.root)]
    case_width = max(len(row[0]) for row in [header, *rows])  # not wrapped, so that it can be searched and copied
    others_width = max(20, (width - case_width - 6) // 3)
    widths = [case_width, others_width, others_width, others_width]
    lines = [_wrapped(row, widths) for row in [header, ["-" * column for column in widths], *rows]]
    return "\n".join(itertools.chain.from_iterable(lines))


def vendor_summary(cases, facts):
    """What the data set holds: a DataFrame with a row for each vendor and one for all of `cases`.

    Percentages are of the volumes, and of their B-scans, in which the fluid was outlined; median and maximum mm3 of a
    fluid are over the volumes that hold it (NaN where none does). Grey values are those of the scans as 8 bit, padding
    included: the least one that at least 1, 50, 99 % of the voxels do not exceed.
    """
    vendors = sorted({case.vendor for case in cases})
    groups = {vendor: [facts[case] for case in cases if case.vendor == vendor] for vendor in vendors}
    groups["all"] = [facts[case] for case in cases]
    return pandas.DataFrame([{"vendor": name, **_summary(of_cases)} for name, of_cases in groups.items()])


def notes_text(notes):
    """`notes` ({name: list of sentences}) as text: a line for each sentence, with the first name and how many more."""
    names = defaultdict(list)
    for name, of_name in notes.items():
        for note in of_name:
            names[note].append(name)
    return "\n".join(f"note: {_and_more(of_note)}: {note}" for note, of_note in names.items())


def summary_text(summary):
    """`vendor_summary`'s table for the eye: a column for each vendor."""
    return summary.set_index("vendor").astype(object).T.rename_axis(columns=None).to_string(na_rep="-")


def _header_findings(case, need_reference):
    if as_text(case.root) != case.root:
        yield Finding(case, "the folder's name is no line of UTF-8", "a name that tables can hold", "rename the folder")
    headers = {}
    for path in (case.oct_path, case.reference_path, case.other_path):
        if path is not None:
            try:
                headers[path] = read_header(path)
                check_data_file(path, headers[path], decompress=False)
            except InputError as error:
                yield _as_finding(case, error)
    if case.reference_path is None and need_reference:
        remedy = "add it, or accept cases without labels: --unlabelled"
        yield Finding(case, "reference.mhd is missing", "a reference beside oct.mhd", remedy)
    scan = headers.get(case.oct_path)
    if scan is not None:
        yield from _scan_findings(case, scan)
    if scan is not None and min(scan.shape) > 0:
        for path in (case.reference_path, case.other_path):
            try:
                if path in headers:
                    reordering_onto(path, case.oct_path)
            except InputError as error:
                yield _as_finding(case, error)


def _scan_findings(case, header):
    if case.vendor is None:
        found, expected = f"vendor unknown: {why_vendor_unknown(header)}", f"{', '.join(KNOWN)} in a folder's name"
        remedy = "put it into a folder named after its vendor; --vendor-folders takes any name"
        yield Finding(case, found, expected, remedy)
    elif why := why_no_vendor_name(case.vendor):
        expected = why.removeprefix("expected ")
        yield Finding(case, f"the folder {case.vendor} as a vendor's name", expected, "rename the folder")
    if header.element_type not in _GREY_TYPES:
        remedy = "convert the grey values to the whole range of one of these"
        yield Finding(case, f"oct.mhd holds {header.element_type}", " or ".join(_GREY_TYPES), remedy)
    if min(header.shape) < 1:
        yield Finding(case, f"oct.mhd has {header.size_text}", "at least one slice", "export the scan again")
    x_mm, y_mm, z_mm = believed_spacing_mm(header.spacing_mm, header.shape)
    has_next = header.shape[0] > 1  # a slice alone needs no distance to the next
    if x_mm is None or y_mm is None or (z_mm is None and has_next):
        expected = ", ".join(f"{axis} {low:g} to {high:g}" for axis, (low, high) in PLAUSIBLE_SPACING_MM.items())
        found = f"oct.mhd has a spacing of {header.spacing_text}"
        yield Finding(case, found, f"{expected} mm", _spacing_remedy(header))


def _voxel_findings(case, facts):
    if facts.minimum == facts.maximum:
        yield Finding(case, f"every voxel of oct.mhd is {facts.minimum}", "an image", "export the scan again")
    elif facts.element_type == "uint16" and (bits := facts.maximum.bit_length()) <= _DARK_BITS:
        found = f"oct.mhd is 16-bit, and its largest grey value {facts.maximum} fits into {bits} bits"
        remedy = f"multiply the grey values by {65535 // (2**bits - 1)}" if bits > 8 else "save it as uint8"
        yield Finding(case, found, "grey values from 0 to 65535; it would turn black", remedy)
    elif _median_of_tissue(facts.grey_counts) > _BRIGHT_MEDIAN:
        found, remedy = f"most of oct.mhd is brighter than {_BRIGHT_MEDIAN} of 255", "black on white? invert it"
        yield Finding(case, found, "bright tissue before a dark background", remedy)
    if facts.other_labels:
        labels = [*_labels_present(facts.label_counts), *facts.other_labels]
        labels.sort(key=lambda label: (label == "nan", float(label)))  # NaN last, which nothing is above or below
        expected = ", ".join(f"{label} {name}" for label, name in enumerate(CLASS_NAMES))
        found = f"reference.mhd holds {', '.join(labels)}" + ", ..." * (len(facts.other_labels) == _MOST_LISTED)
        yield Finding(case, found, expected, "replace the labels by these")
    elif filled := _b_scans_filled(facts):
        more = f" (and {len(filled) - 1} more)" * (len(filled) > 1)
        found = f"fluid fills more than half of slice {filled[0]}{more}"
        yield Finding(case, found, "fluid outlined, all else 0", "correct the reference: fluid and background swapped?")


def _as_finding(case, error):
    """The `Finding` that an `InputError` about a file of `case` tells: found, expected ...; what to do."""
    message = " / ".join(error.messages).replace(f"{case.folder}{os.sep}", "")
    found, _, remedy = message.partition("; ")
    found, _, expected = found.partition(", expected ")
    return Finding(case, found, expected or "a whole file", remedy or "copy or export the case again")


def _sharing(keys):
    """Yield (case, others) for each case of `keys` ({case: key}) that shares its key: the first, and how many more."""
    groups = defaultdict(list)
    for case, key in keys.items():
        groups[key].append(case)
    for case, key in keys.items():
        others = [other.root for other in groups[key] if other != case]
        if others:
            yield case, _and_more(others)


def _and_more(names):
    return names[0] + f" (and {len(names) - 1} more)" * (len(names) > 1)


def _spacing_remedy(header):
    """What to do about a spacing that is not plausible, by the mistake that explains it."""
    if has_swapped_axes(header.shape, header.spacing_mm):
        return "axes swapped? save it as columns, rows, slices"
    if set(header.spacing_mm) == {1.0}:  # what programs write that know of no spacing
        return "a default: put the device's own into ElementSpacing"
    if any(is_plausible(order) for order in itertools.permutations(header.spacing_mm)):
        return "axes swapped? ElementSpacing is between columns, rows, slices"
    if is_plausible([value / 1000 for value in header.spacing_mm]):
        return "micrometres? divide ElementSpacing by 1000"
    return "put the device's own into ElementSpacing"


def _count_labels(slice_):
    """Of a reference slice of any numeric type: counts of the labels 0-3 (a list), of `NOT_JUDGED` (int), and its other
    values (an array)."""
    with np.errstate(invalid="ignore"):  # casting NaN gives some number; NaN differs from any number
        labels = slice_.astype(np.uint8, copy=False)
    counts = np.bincount(labels.ravel(), minlength=256)
    others = slice_[:0, 0]
    if counts[len(CLASS_NAMES) : NOT_JUDGED].any() or (labels is not slice_ and (labels != slice_).any()):
        is_known = (labels == slice_) & ((labels < len(CLASS_NAMES)) | (labels == NOT_JUDGED))
        counts, others = np.bincount(labels[is_known], minlength=256), np.unique(slice_[~is_known])
    return counts[: len(CLASS_NAMES)].tolist(), int(counts[NOT_JUDGED]), others


def _labels_present(label_counts):
    return [str(label) for label in np.flatnonzero(np.sum(label_counts, axis=0))]


def _b_scans_filled(facts):
    """Slices in which more voxels are fluid than `_LARGEST_FLUID_SHARE` allows."""
    if facts.label_counts is None:
        return []
    most = _LARGEST_FLUID_SHARE * facts.shape[1] * facts.shape[2]
    return [n for n, counts in enumerate(facts.label_counts) if sum(counts[1:]) > most]


def _median_of_tissue(grey_counts):
    """Median grey value (of 255) of the voxels that cannot be black or white padding; 0 where there are none."""
    counts = np.array(grey_counts)
    counts[0] = 0
    counts[_WHITE_PADDING:] = 0
    return _grey_percentile(counts, 50)


def _grey_percentile(grey_counts, percent):
    """The smallest grey value that at least `percent` % of the voxels do not exceed."""
    cumulative = np.cumsum(grey_counts)
    return int(np.searchsorted(cumulative, cumulative[-1] * percent / 100))


def _summary(of_cases):
    """One row of `vendor_summary`, of a list of `CaseFacts`."""
    grey_counts = np.sum([facts.grey_counts for facts in of_cases], axis=0)
    row = {"volumes": len(of_cases), "b_scans": sum(facts.shape[0] for facts in of_cases)}
    fluid_mm3 = {}
    for fluid, label in FLUIDS.items():
        outlined = [facts for facts in of_cases if fluid in facts.outlined]
        voxels = [np.sum(facts.label_counts, axis=0)[label] for facts in outlined]
        row[f"volumes_with_{fluid}_percent"] = _percent(np.array(voxels) > 0)
        fluid_mm3[fluid] = [n * np.prod(facts.spacing_mm) for n, facts in zip(voxels, outlined, strict=True) if n]
    for fluid, label in FLUIDS.items():
        judged = [
            counts for facts in of_cases if fluid in facts.outlined for counts in facts.label_counts if any(counts)
        ]
        row[f"b_scans_with_{fluid}_percent"] = _percent([counts[label] > 0 for counts in judged])
    for name, statistic in (("median", np.median), ("maximum", np.max)):
        for fluid, present in fluid_mm3.items():
            row[f"{fluid}_{name}_mm3"] = round(float(statistic(present)), 4) if present else np.nan
    return row | {f"grey_value_percentile_{p}": _grey_percentile(grey_counts, p) for p in (1, 50, 99)}


def _percent(are_true):
    return round(100 * float(np.mean(are_true)), 1) if len(are_true) else np.nan


def _wrapped(cells, widths):
    """The lines of one table row, each cell wrapped to its column's width."""
    columns = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, widths, strict=True)]
    for parts in itertools.zip_longest(*columns, fillvalue=""):
        yield "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
