"""The scans among the files of one folder, and why the other files are no scans."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from utils.names import as_text, portable, same_name, suffix_of
from utils.volumes.dicom import scans_in_dicom
from utils.volumes.eyes import Told
from utils.volumes.formats import DICOM, is_dicom, scans_in_file
from utils.volumes.heidelberg_xml import listed_pictures
from utils.volumes.mhd import VOLUMES, volume_files
from utils.volumes.not_scans import LeftOut, beside_scans, odd_pictures, pictures_of_others
from utils.volumes.pictures import PICTURES, TIFF, count_pages
from utils.volumes.vendor_files import VENDORS_OWN

_KNOWN_SUFFIXES = (*VOLUMES, *PICTURES, *VENDORS_OWN, *DICOM)


@dataclass(frozen=True)
class ScanFiles:
    """A scan's name and files."""

    name: str  # text without folders
    paths: tuple  # one file, or several with a slice each, as text
    folder_names: tuple  # the scan's name and its folders', nearest first; they may name the vendor
    part: int | None = None  # which of the scans in these files; None if they hold one scan
    told: Told | None = None  # what the user says about it

    @property
    def path(self):
        """The file or, of several, their folder."""
        return self.paths[0] if len(self.paths) == 1 else os.path.dirname(self.paths[0])

    def all_paths(self):
        """`Path`s of all that is read: the files, a MetaImage's data files and the pictures that an .xml lists."""
        paths = []
        for path in map(Path, self.paths):
            paths += volume_files(path)
            if suffix_of(path) == ".xml":
                beside = {other for other in path.parent.iterdir() if suffix_of(other) in PICTURES}
                paths += sorted(listed_pictures(path, beside))
        return paths


def scans_in(folder, names, kind, by_name, each=False):
    """(scans, left out) of the files called `names` in one folder. Data files of volumes are among those left out.

    `kind` is what the folder's name says about its files. With `by_name`, names may rule out a scan. With `each`, a
    picture is a scan by itself; else all pictures of the folder are one.
    """
    left, paths = {}, []
    for path in (folder / name for name in names):
        if path.name[0] == ".":
            left[path] = "a hidden file"
        elif not path.is_file():
            left[path] = "a link that leads nowhere" if path.is_symlink() else "no file"
        elif not os.access(path, os.R_OK):
            left[path] = "it may not be read"
        elif is_result(path):
            left[path] = "labels that test.py wrote"
        elif suffix_of(path) in VOLUMES and _is_reference(path):
            left[path] = "a scan's reference"
        elif same_name(path.name) == "other.mhd" and any(same_name(name) == "oct.mhd" for name in names):
            left[path] = "outlines of a scan's other findings"
        else:
            paths.append(path)
    exports = [path for path in paths if suffix_of(path) == ".xml" and _is_heidelbergs(path)]
    scans, inside, used = [], [], set(exports)  # inside: parts of files that are no scans
    for path in exports:
        in_file, left_in_file = scans_of_file(path, name=folder.name if len(exports) == 1 else None)
        scans, inside = scans + in_file, inside + left_in_file
        used |= listed_pictures(path, [other for other in paths if suffix_of(other) in PICTURES])
    images = [path for path in paths if suffix_of(path) in (*VOLUMES, *PICTURES) and path not in used]
    left |= beside_scans(images, kind, by_name)
    left |= pictures_of_others([path for path in paths if path not in left and path not in used])
    images = [path for path in images if path not in left]
    files = [path for path in images if suffix_of(path) in VOLUMES]
    files += [path for path in paths if suffix_of(path) in VENDORS_OWN and suffix_of(path) != ".xml"]
    pictures = [path for path in images if suffix_of(path) in PICTURES]
    stacks = [path for path in pictures if suffix_of(path) in TIFF and count_pages(path) > 1]
    for path in [*files, *stacks]:
        in_file, left_in_file = scans_of_file(path)
        scans, inside = scans + in_file, inside + left_in_file
    pictures = [path for path in pictures if path not in stacks]
    odd = {} if each else odd_pictures(pictures)
    left, pictures = left | odd, [path for path in pictures if path not in odd]
    if each:
        scans += [scan_files([path]) for path in pictures]
    elif pictures:
        scans.append(scan_files(pictures, name=folder.name if len(pictures) > 1 else None))
    known = {*used, *images, *files, *left}
    dicom = [path for path in paths if path not in known and suffix_of(path) != ".xml" and is_dicom(path)]
    of_dicom, left_of_dicom = scans_of_dicom(dicom)
    scans += of_dicom
    used |= {Path(path) for scan in scans for path in scan.paths}
    left |= {Path(one.path): one.why for one in left_of_dicom}
    used |= {Path(one.path) for one in inside}
    left |= {path: "of no format that is read" for path in paths if path not in used and path not in left}
    return scans, [*inside, *(LeftOut(str(path), why) for path, why in left.items() if path not in used)]


def is_result(path):
    """Whether the file at `path` holds labels that test.py wrote."""
    return suffix_of(path) in (*VOLUMES, *DICOM) and (path.parent / _stem(path) / "scan.json").is_file()


def scans_of_dicom(paths):
    """(scans, left out) of DICOM files of one folder, after which a scan of several of them is called."""
    found, left = scans_in_dicom(paths)
    scans = []
    for number, (files, part) in enumerate(found, 1):
        name = paths[0].parent.name + f"_{number}" * (len(found) > 1)
        scans.append(scan_files(files, name if len(files) > 1 or part is not None else None, part))
    return scans, [LeftOut(str(path), why) for path, why in left]


def scans_of_file(path, name=None):
    """(scans, left out) of a single file, called `name` (see `scan_files`). Several scans are numbered."""
    found, left = scans_in_file(path)
    scans = [scan_files(paths, name, part) for paths, part in found]
    if len(scans) > 1:
        scans = [replace(scan, name=f"{scan.name}_{number}") for number, scan in enumerate(scans, 1)]
    return scans, [LeftOut(str(path), why) for path, why in left]


def scan_files(paths, name=None, part=None):
    """`ScanFiles` of `paths`. `part` tells which of the scans in these files it is.

    The scan is called `name`. With None it gets the first file's name, or its folder's name if the file is oct.mhd.
    """
    first = Path(paths[0])
    folder = first.parent
    if name is None:
        is_case = same_name(first.name) == "oct.mhd"
        suffix = suffix_of(first) if suffix_of(first) in _KNOWN_SUFFIXES else ""  # a DICOM UID has none
        name = folder.name if is_case else first.name[: len(first.name) - len(suffix)]
    name = portable(name)
    above = map(as_text, (folder.name, folder.parent.name, folder.parent.parent.name))
    return ScanFiles(name, tuple(map(str, paths)), (name, *above), part)


def _stem(path):
    return path.name[: len(path.name) - len(suffix_of(path))]


def _is_reference(path):
    return same_name(path.name).startswith("reference.")


def _is_heidelbergs(path):
    """Whether an XML file lists images, as Heidelberg's exports do."""
    with open(path, "rb") as file:
        return b"ImageType" in file.read(1 << 20)
