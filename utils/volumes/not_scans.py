"""Files next to scans that are no scans: masks, labels, fundus images, reports, thumbnails, second channels."""

import functools
import itertools
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.names import as_text, same_name, suffix_of
from utils.volumes.colour import is_coloured
from utils.volumes.formats import DICOM, PICTURES, VENDORS_OWN, VOLUMES
from utils.volumes.mhd import open_voxels, read_volume

_LABELS = (
    "mask masks maske masken label labels labelmap labelstr labelsts seg segs segm segmentation segmentations annot "
    "annotation annotations gt groundtruth reference references outline outlines contour contours prediction "
    "predictions pred probability probabilities uncertainty"
)
_KINDS = {  # what a file is, by a word in its name or its folder's
    "labels or a mask by its name": _LABELS,
    "a drawing over a scan by its name": "overlay overlays heatmap",
    "an image of the fundus by its name": "fundus slo cslo enface localizer localiser infrared faf",
    "a report by its name": "report reports screenshot screenshots thickness",
    "a smaller copy by its name": "thumb thumbs thumbnail thumbnails preview previews icon logo",
    "angiography by its name": "octa angio angiography",
}
_WORDS = {word: kind for kind, words in _KINDS.items() for word in words.split()}
_LONG_WORD = 5  # letters; a word of this length or more also counts at the end of another, as in octmasks
_CHANNEL = re.compile(r"(?<![a-z])(?:ch|chan|channel)[ _-]?(\d+)(?!\d)", re.IGNORECASE)
_MOST_CHANNELS = 4  # of a scan; more are numbered cases
_MOST_LABELS = 8  # values in a mask or label volume; a scan has dozens
_FEWEST_ALIKE = 3  # pictures of one size; fewer do not show which size the B-scans have
_ODD_SHARE = 0.1  # largest share of the pictures that may have another size


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is no part of a scan."""

    path: str
    why: str


def beside_scans(paths, in_folder=None, by_name=True):
    """{path: why} of the image files (pictures and volumes) of one folder that are no scans.

    With `by_name`, words and channel numbers in the names tell. The content always tells: a file that holds only a few
    values, and is named after a file with more, holds labels. `in_folder` is the `kind_of_folder` of the folder's name.
    """
    left = {}
    if by_name:
        kinds = {path: in_folder or kind_by_name(_stem(path)) for path in paths}
        left = {path: kind for path, kind in kinds.items() if kind}
        left |= _second_channels([path for path in paths if path not in left])
    return left | labels_of_others([path for path in paths if path not in left])


def kind_by_name(name):
    """What a file is by a word in its `name` (a text of `_KINDS`); None if no word tells."""
    parts = _words_in(name)
    for part in [*parts, *(first + second for first, second in itertools.pairwise(parts))]:
        for word, kind in _WORDS.items():
            if part == word or (len(word) >= _LONG_WORD and part.endswith(word)):
                return kind
    return None


def kind_of_folder(name):
    """What a folder's files are by its whole `name` or its last word (a text of `_KINDS`); None if neither tells."""
    parts = _words_in(name)
    return _WORDS.get("".join(parts)) or (_WORDS.get(parts[-1]) if parts else None)


def _words_in(name):
    """The words of a name in lower case, split where there is no letter and before capitals."""
    parts = re.findall(r"[^\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", as_text(name)))
    return [part.lower() for part in parts]


def with_scan_beside(paths):
    """{path: kind} of the image files `paths` that are named after another of them, plus a word of `_KINDS`.

    Example: b1_mask.png, if b1.png is there.
    """
    kinds, before = {path: kind_by_name(_stem(path)) for path in paths}, _named_before(paths)
    return {path: kind for path, kind in kinds.items() if kind and any(kinds[other] is None for other in before[path])}


def labels_of_others(paths):
    """{path: why} of the image files `paths` that hold only a few values and are named after a file with more.

    Such a name continues the other's, or has the same numbers. Examples for b1.png: b1_drusen.png and a1.png.
    """
    holds_few, with_numbers = functools.cache(holds_few_values), defaultdict(set)
    numbers = {path: tuple(re.findall(r"\d+", same_name(_stem(path)))) for path in paths}
    for path, of_path in numbers.items():
        with_numbers[of_path].add(path)
    left = {}
    for path, others in _named_before(paths).items():
        others = others | (with_numbers[numbers[path]] if numbers[path] else set()) - {path}
        if others and holds_few(path) and not all(map(holds_few, others)):
            left[path] = f"labels or a mask: it holds at most {_MOST_LABELS} values"
    return left


def holds_few_values(path):
    """Whether a picture or volume has no more different values than labels have. False if it cannot be read."""
    from PIL import Image, ImageSequence

    try:
        if suffix_of(path) in PICTURES:
            with Image.open(path) as image:
                slices = [np.asarray(page) for page in ImageSequence.Iterator(image)]
        else:
            slices, _ = (open_voxels(path) if suffix_of(path) == ".mhd" else None) or read_volume(path)
        values = set()
        for slice_ in slices:
            values |= set(np.unique(slice_).tolist())
            if len(values) > _MOST_LABELS:
                return False
    except InputError:
        return False
    except Exception:  # Pillow's parsers raise exceptions of any kind for damaged files
        return False  # its reader reports what is wrong
    return True


def pictures_of_others(paths):
    """{path: why} of the pictures that have the name of a scan in another format. Example: scan.jpg with scan.vol."""
    scans = {same_name(_stem(path)): path for path in paths if suffix_of(path) in (*VOLUMES, *VENDORS_OWN, *DICOM)}
    return {
        path: f"a picture of {as_text(scans[same_name(_stem(path))].name)} by its name"
        for path in paths
        if suffix_of(path) in PICTURES and same_name(_stem(path)) in scans
    }


def _second_channels(paths):
    """{path: why} of files that are further channels of another. Example: scan_ch2.tif, with scan_ch1.tif."""
    of_scan = defaultdict(list)
    for path in paths:
        stem = as_text(_stem(path))
        channel = _CHANNEL.search(stem)
        name = re.sub(r"[\W_]+", "", _CHANNEL.sub("", stem, count=1)).casefold()
        if name:
            of_scan[name, suffix_of(path)].append((int(channel[1]) if channel else -1, path))
    left = {}
    for channels in of_scan.values():
        numbers = [number for number, _ in channels]
        if 1 < len(channels) <= _MOST_CHANNELS and len(set(numbers)) == len(numbers):
            first, *others = sorted(channels)
            left |= {path: f"another channel of {as_text(first[1].name)}" for _, path in others}
    return left


def odd_pictures(paths):
    """{path: why} of the pictures that differ from the B-scans beside them, such as a photograph or a fundus image.

    Such pictures are

    - in colour, with names of another pattern than those in grey;
    - or few and of another size, with names of another pattern, or the first or the last.
    """
    facts = {path: _size_and_colour(path) for path in paths}
    pattern = {path: re.sub(r"\d+", "#", same_name(_stem(path))) for path in paths}
    grey = {pattern[path] for path in paths if facts[path] and not facts[path][1]}
    left = {}
    if grey:
        coloured = [path for path in paths if facts[path] and facts[path][1] and pattern[path] not in grey]
        left = dict.fromkeys(coloured, "a picture in colour, and others beside it are grey; --each takes it by itself")
    rest = [path for path in paths if path not in left]
    sizes = Counter(facts[path][0] for path in rest if facts[path])
    if len(sizes) < 2:
        return left
    (usual, count), *_ = sizes.most_common()
    odd = [path for path in rest if facts[path] and facts[path][0] != usual]
    named = {pattern[path] for path in rest if path not in odd}
    if count >= _FEWEST_ALIKE and len(odd) <= max(2, _ODD_SHARE * len(rest)):
        for path in odd:
            if pattern[path] not in named or path in (rest[0], rest[-1]):
                columns, rows = facts[path][0]
                left[path] = f"{columns} x {rows} pixels, and the {count} others have {usual[0]} x {usual[1]}"
    return left


def _size_and_colour(path):
    """((columns, rows), whether it is in colour) of a picture; None if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;"):
                return image.size, False
            pixels = np.asarray(image.convert("RGB"))
    except Exception:  # as above
        return None
    return image.size, is_coloured(pixels)


def _named_before(paths):
    """{path: set of the others with its name, or with the beginning of its name}: b1.png for b1_drusen.png."""
    stems, of_stem = {path: same_name(_stem(path)) for path in paths}, defaultdict(set)
    for path, stem in stems.items():
        of_stem[stem].add(path)
    ends = {path: [len(stem), *(end.start() for end in re.finditer(r"[\W_]", stem))] for path, stem in stems.items()}
    return {path: {one for end in ends[path] for one in of_stem.get(stems[path][:end], ())} - {path} for path in paths}


def _stem(path):
    name = Path(path).name
    return name[: len(name) - len(suffix_of(path))]
