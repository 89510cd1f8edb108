"""Names of results, no two the same."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from utils.names import as_text, portable, same_name, suffix_of
from utils.volumes.vendors import vendor_in


def told_apart(scans, vendor=None):
    """The `scans` (a list of `ScanFiles`), renamed so that no two of a vendor share a name, in upper or lower case.

    Scans that share a name get the name of the nearest folder that differs as a prefix; in one folder their suffix;
    else a number. `vendor` is the vendor of all scans; None means the one in each scan's files' and folders' names.
    """
    for way in (_with_folder, _with_folder, _with_folder, _with_suffix, _with_number):
        groups = defaultdict(list)
        for index, scan in enumerate(scans):
            groups[vendor or vendor_in(scan.folder_names), same_name(scan.name)].append(index)
        for group in groups.values():
            if len(group) > 1:
                for index, name in zip(group, way([scans[index] for index in group]), strict=True):
                    scans = [*scans[:index], replace(scans[index], name=name), *scans[index + 1 :]]
    return scans


def _with_folder(scans):
    folders = [[as_text(part) for part in reversed(Path(scan.paths[0]).parent.parts)] for scan in scans]
    for level in zip(*folders, strict=False):
        if len(set(level)) > 1:
            return [portable(f"{part}_{scan.name}") for part, scan in zip(level, scans, strict=True)]
    return [scan.name for scan in scans]


def _with_suffix(scans):
    return [f"{scan.name}{suffix_of(scan.paths[0]).replace('.', '_')}" for scan in scans]


def _with_number(scans):
    return [f"{scan.name}_{number}" for number, scan in enumerate(scans, 1)]
