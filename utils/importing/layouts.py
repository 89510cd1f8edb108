"""The layouts in which other people's images and masks come, each as a list of `Item`."""

import json
import posixpath
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from utils.errors import InputError
from utils.importing.class_table import ClassTable, is_target
from utils.importing.mask_files import check_tolerance, classes_in, full_value, read_mask
from utils.importing.outlines import coco_masks, read_coco, yolo_masks
from utils.importing.pairs import by_annotator, files_below, matching, pair
from utils.importing.yolo_names import by_name, find_names
from utils.names import suffix_of
from utils.volumes.colour import grey_of
from utils.volumes.content import Content
from utils.volumes.formats import read_content
from utils.volumes.pictures import PICTURES


@dataclass(frozen=True)
class Item:
    """An image with its outlines. They are not read yet."""

    name: str  # of the case, without the patient
    path_text: str  # the image's path below the source without its suffix; it names the patient
    files: tuple  # paths of all its files, the image's first
    read_image: Callable  # () -> Content
    read_masks: Callable  # (shape) -> ({class: bool mask (slices, rows, columns)}, warnings as of ClassTable.labels)
    vendor: str | None = None  # None: the command line says it
    spacing_mm: tuple | None = None  # (x, y, z); None: the command line or the image's file says it
    record: dict | None = None  # for a file of its own beside the case


@dataclass(frozen=True)
class Found:
    """The content of a data set in one of the layouts."""

    items: list
    classes: ClassTable
    n_masks: int  # files of masks or outlines
    without_mask: int = 0  # images that have none
    notes: tuple = ()


def find_masks(source, options, classes):
    """`Found` of images and mask files: one of numbers or colours an image, or with TARGET=PATTERN one a fluid."""
    by_target = dict(text.split("=", 1) for text in options.masks if is_target(text.partition("=")[0]))
    if by_target and (len(by_target) < len(options.masks) or classes.targets):
        raise InputError("--masks TARGET=PATTERN: expected of every mask, once a target, and then no --labels")
    if not by_target and (len(options.masks) > 1 or not classes.targets):
        raise InputError("--masks: expected TARGET=PATTERN for each fluid, or one PATTERN and --labels")
    if not by_target:
        check_tolerance(classes.values(), options.tolerance)
    files = files_below(source)
    patterns = list(by_target.values()) or options.masks
    pairs, lacking = pair(files, options.images, patterns, options.annotator, options.without_mask)
    targets, values = list(by_target), None if by_target else classes.values()
    items = []
    for key, image, masks in pairs:
        paths = [mask and Path(source, mask) for mask in masks]
        if by_target:
            read_masks = partial(_masks_of_targets, Path(source, image), targets, paths, options.tolerance)
        else:
            read_masks = partial(_masks_of_values, Path(source, image), values, paths[0], options.tolerance)
        items.append(_item(source, image, key, paths, read_masks))
    classes = ClassTable({target: target for target in targets}) if by_target else classes
    return Found(items, classes, sum(len(item.files) - 1 for item in items), lacking)


def find_beside(source, options, classes):
    """`Found` of pictures whose left half is the image and whose right half the mask, in colours."""
    if any(len(value) != 3 for value in classes.values().values()):
        raise InputError(f"--labels: found numbers {', '.join(classes.targets)}, expected colours, as in 255,0,0")
    check_tolerance(classes.values(), options.tolerance)
    items = []
    for (key, _), file in matching(files_below(source), options.images, "--images").items():
        read_masks = partial(_right_half, Path(source, file), classes.values(), options.tolerance)
        items.append(_item(source, file, key, [], read_masks, partial(_left_half, Path(source, file))))
    return Found(items, classes, len(items))


def find_yolo(source, options, classes):
    """`Found` of pictures with a text file of YOLO's each. The nearest data.yaml names its classes."""
    if len(options.masks) != 1:
        raise InputError(f"--masks: found {len(options.masks)} patterns, expected one, of the text files")
    files = files_below(source)
    pairs, lacking = pair(files, options.images, options.masks, options.annotator, options.without_mask)
    texts = [text for _, _, (text,) in pairs if text]
    nearest, names = find_names(source, files, texts)
    items = []
    for key, image, (text,) in pairs:
        path, named_in = text and Path(source, text), nearest.get(text)
        read_masks = partial(_outlined, yolo_masks, path, names.get(named_in))
        items.append(_item(source, image, key, [named_in and Path(source, named_in), path], read_masks))
    notes = [
        f"{file} names the classes {', '.join(f'{number} {name}' for number, name in of_file.items())}"
        for file, of_file in names.items()
    ]
    return Found(items, by_name(classes, nearest, names), len(texts), lacking, tuple(notes))


def find_coco(source, options, classes):
    """`Found` of COCO files. The images that they list lie beside each file or in the folder ``--images``."""
    if len(options.masks) != 1:
        raise InputError(f"--masks: found {len(options.masks)} patterns, expected one, of COCO's JSON files")
    files = files_below(source)
    there, option = set(files), f"--masks {options.masks[0]}"
    chosen = by_annotator(matching(files, options.masks[0], "--masks"), options.annotator, option).values()
    items, complaints, listed_in = [], [], {}
    for file in chosen:
        folder = PurePosixPath(file).parent if options.images is None else PurePosixPath(options.images)
        try:
            listed = read_coco(Path(source, file))
        except InputError as error:
            complaints += error.messages
            continue
        for image, annotations in listed:
            relative = _listed_as(folder, image["file_name"], there)
            if relative not in there:
                complaints.append(
                    f"{Path(source, file)}: lists {image['file_name']}, expected it as {relative} below {source}; say "
                    "with --images in which folder the pictures lie"
                )
            elif relative in listed_in:
                complaints.append(
                    f"{Path(source, relative)}: outlined twice, in {listed_in[relative]} and {file}; name one with "
                    "--masks, or mark with {annotator} in it where names say who outlined, and choose with --annotator"
                )
            listed_in.setdefault(relative, file)
            read_masks = partial(_outlined, coco_masks, Path(source, file), image, annotations)
            name = [PurePosixPath(relative).with_suffix("").as_posix()]
            items.append(_item(source, relative, name, [Path(source, file)], read_masks))
    if complaints:
        raise InputError(*complaints)
    folders = {PurePosixPath(file).parent for file in listed_in}
    others = [
        file
        for file in files
        if suffix_of(file) in PICTURES and PurePosixPath(file).parent in folders and file not in listed_in
    ]
    notes = [f"{len(others)} pictures beside those listed are left out, {others[0]} first"] if others else []
    return Found(items, classes, len(chosen), notes=tuple(notes))


def _listed_as(folder, name, there):
    """The path below the source of a picture that a COCO file in `folder` calls `name`.

    Backslashes are Windows' separators, unless that very file is `there`.
    """
    paths = [posixpath.normpath(folder / text) for text in (name, name.replace("\\", "/"))]
    return paths[0] if paths[0] in there else paths[1]


def find_nnunet(source, options, classes):
    """`Found` of nnU-Net's imagesTr, labelsTr and dataset.json, which names the classes."""
    path = Path(source, "dataset.json")
    try:
        description = json.loads(path.read_text("utf-8"))
        channels = description.get("channel_names", description.get("modality"))
        if regions := [name for name, label in description["labels"].items() if isinstance(label, list)]:
            raise InputError(
                f"{path}: labels {', '.join(regions)} are regions of several numbers, expected one number a class; "
                "name each number that the masks hold instead, and leave the regions out"
            )
        names = {int(name): label for name, label in description["labels"].items() if name.isdigit()}  # of version 1
        names = names or {label: name for name, label in description["labels"].items()}
        ending = description.get("file_ending", ".nii.gz")
        if len(channels) != 1 or not all(isinstance(label, int) for label in names):
            raise InputError(f"{path}: {len(channels)} channels and labels {names}, expected one channel and numbers")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not nnU-Net's description ({type(error).__name__}: {error})") from error
    values = {name: (label,) for label, name in names.items() if label != 0}
    patterns = f"imagesTr/*_0000{ending}", [f"labelsTr/*{ending}"]
    pairs, lacking = pair(files_below(source), *patterns, None, options.without_mask)
    items = []
    for key, image, (label,) in pairs:
        label = label and Path(source, label)
        read_masks = partial(_masks_of_values, Path(source, image), values, label, 0)
        items.append(_item(source, image, key, [label], read_masks, path_text=key[0]))
    return Found(items, classes, sum(len(item.files) - 1 for item in items), lacking)


def _item(source, image, key, mask_paths, read_masks, read_image=None, path_text=None):
    """An `Item` of the file `image` below the `source`."""
    path = Path(source, image)
    stem = image[: len(image) - len(suffix_of(image))]
    return Item(
        "_".join(part for part in key if part) or PurePosixPath(stem).name,
        path_text or stem,
        (path, *(mask for mask in mask_paths if mask)),
        read_image or partial(read_content, [str(path)]),
        read_masks,
    )


def _checked(values, shape, path):
    """Mask values (slices, rows, columns, ...) of the size that the image has."""
    if values.shape[:3] != tuple(shape):
        sizes = [" x ".join(map(str, size[::-1])) for size in (values.shape[:3], shape)]
        raise InputError(f"{path}: a mask of {sizes[0]} pixels, expected {sizes[1]} as the image has")
    return values


def _masks_of_values(image_path, values, path, tolerance, shape):
    if path is None:
        return {}, {}
    n_channels = len(next(iter(values.values())))
    read, warnings = read_mask(path, image_path, n_channels)
    masks, of_classes = classes_in(_checked(read, shape, path), values, tolerance, path)
    return masks, {**warnings, **of_classes}


def _masks_of_targets(image_path, targets, paths, tolerance, shape):
    masks, warnings = {}, Counter()
    for target, path in zip(targets, paths, strict=True):
        if path is not None:
            values, of_path = read_mask(path, image_path, 1)
            classes = {target: (full_value(_checked(values, shape, path)),)}
            of_target, of_classes = classes_in(values, classes, tolerance, path)
            masks |= of_target
            warnings.update({**of_path, **of_classes})
    return masks, warnings


def _outlined(read, *arguments):
    """What `read` returns for its arguments. The last argument is the image's shape."""
    *of_file, shape = arguments
    return ({}, {}) if of_file[0] is None else read(*of_file, shape)


def _left_half(path):
    """`Content` of the left half of a picture."""
    colours = read_mask(path, path, 3)[0].astype(np.uint8)
    grey, notes = grey_of(colours[:, :, : colours.shape[2] // 2], path)
    return Content(grey, notes=notes)


def _right_half(path, values, tolerance, shape):
    colours, _ = read_mask(path, path, 3)
    return classes_in(_checked(colours[:, :, shape[2] :], shape, path), values, tolerance, path)
