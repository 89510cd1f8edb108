"""Which mask belongs to which image, by patterns of file names."""

import os
import re
from pathlib import Path

from utils.errors import InputError
from utils.files import natural_order

ANNOTATOR = "{annotator}"  # in a pattern: the part of a name that says who outlined
_PART = re.compile(r"(\*\*|\*|\{annotator\})")
_REGULAR = {"**": "(.*)", "*": "([^/]*)", ANNOTATOR: "(?P<annotator>[^/]+?)"}


def files_below(source):
    """Paths of the files below `source`, relative to it with "/", in natural order. Hidden ones are left out."""
    source = Path(source)
    if not source.is_dir():
        raise InputError(f"{source}: no such folder")
    found = []
    for folder, below, names in os.walk(source, followlinks=True):
        below[:] = sorted(name for name in below if name[0] != ".")
        found += [(Path(folder) / name).relative_to(source).as_posix() for name in names if name[0] != "."]
    return sorted(found, key=natural_order)


def matching(files, pattern, option):
    """{(key, annotator): file} of the `files` that match `pattern`.

    In a pattern ``*`` matches any part of a name, ``**`` any part of a path. The matched texts are the key, a tuple.
    ``{annotator}`` matches the name of the person who outlined; without it in the pattern the annotator is None. Raises
    `InputError`, which names `option`, if no file matches.
    """
    regular = re.compile("".join(_REGULAR.get(part) or re.escape(part) for part in _PART.split(pattern)))
    found = {}
    for file in files:
        if match := regular.fullmatch(file):
            number = regular.groupindex.get("annotator")
            key = tuple(text for index, text in enumerate(match.groups(), 1) if index != number)
            found[key, match["annotator"] if number else None] = file
    if not found:
        raise InputError(f"{option} {pattern}: no file below the source is like it")
    return found


def stars_in(pattern):
    """How many ``*`` and ``**`` a pattern has."""
    return sum(part in ("*", "**") for part in _PART.split(pattern))


def by_annotator(found, annotator, option):
    """{key: file} of `matching`'s result: the files by `annotator`, or with None by the only annotator of each image.

    Raises `InputError` with a line for each image that several have outlined, and if `annotator` has outlined none.
    """
    by_key = {}
    for (key, who), file in found.items():
        by_key.setdefault(key, {})[who] = file
    everyone = sorted({who for _, who in found if who is not None})
    if annotator is not None and annotator not in everyone:
        there = f"found {', '.join(everyone)}" if everyone else f"mark with {ANNOTATOR} in {option} where names say it"
        raise InputError(f"--annotator {annotator}: nothing by this one; {there}")
    if annotator is not None:
        return {key: of_key[annotator] for key, of_key in by_key.items() if annotator in of_key}
    if complaints := [
        f"{next(iter(of_key.values()))}: outlined by {', '.join(sorted(of_key))}, expected one; choose with --annotator"
        for of_key in by_key.values()
        if len(of_key) > 1
    ]:
        raise InputError(*complaints)
    return {key: file for (key, _), file in found.items()}


def pair(files, images_pattern, mask_patterns, annotator, without_mask):
    """(pairs, without): pairs are (key, image file, [a mask file for each of `mask_patterns`]); see `matching`.

    `without_mask` says how to treat an image that lacks a mask: "refuse", "background" (the mask's file is None) or
    "leave-out" (the image is in no pair). `without` counts such images. Raises `InputError` with a line for each
    refused image and for each mask without an image.
    """
    for pattern in mask_patterns:
        if stars_in(pattern) != stars_in(images_pattern):
            raise InputError(
                f"--masks {pattern}: has {stars_in(pattern)} *, expected {stars_in(images_pattern)} as in --images "
                f"{images_pattern}: what they stand for says which mask belongs to which image"
            )
    if annotator is not None and not any(ANNOTATOR in pattern for pattern in mask_patterns):
        raise InputError(f"--annotator {annotator}: mark with {ANNOTATOR} in --masks where names say who outlined")
    images = {key: file for (key, _), file in matching(files, images_pattern, "--images").items()}
    masks = [
        by_annotator(
            matching(files, pattern, "--masks"), annotator if ANNOTATOR in pattern else None, f"--masks {pattern}"
        )
        for pattern in mask_patterns
    ]
    complaints = [
        f"{file}: a mask without an image like {images_pattern}"
        for of_pattern in masks
        for key, file in of_pattern.items()
        if key not in images
    ]
    pairs, lacking = [], 0
    for key, image in images.items():
        of_image = [of_pattern.get(key) for of_pattern in masks]
        missing = [pattern for pattern, file in zip(mask_patterns, of_image, strict=True) if file is None]
        lacking += bool(missing)
        if missing and without_mask == "refuse":
            complaints.append(
                f"{image}: has no mask like {', '.join(missing)}; add it, or say what that means: --without-mask "
                "background or leave-out"
            )
        elif not missing or without_mask == "background":
            pairs.append((key, image, of_image))
    if complaints:
        raise InputError(*complaints)
    return pairs, lacking
