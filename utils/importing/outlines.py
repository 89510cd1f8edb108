"""Outlines as masks: COCO's polygons and run lengths, YOLO's polygons.

Coordinates start at the upper left corner of the first pixel, whose centre is at (0.5, 0.5). A pixel belongs to a
polygon if its centre lies in it.
"""

import json
from pathlib import Path

import numpy as np
from skimage.draw import polygon

from utils.errors import InputError

_BEYOND = 1.0  # pixels that a point may lie outside of the image, by rounding


def polygon_mask(points, shape, path):
    """Bool mask of `shape` (rows, columns) of a polygon (n, 2) of x, y in pixels.

    Raises `InputError`, which names `path`, for fewer than three points and for one outside of the image.
    """
    rows, columns = shape
    if len(points) < 3:
        raise InputError(f"{path}: an outline of {len(points)} points, expected at least 3")
    outside = (points < -_BEYOND) | (points > np.array([columns, rows]) + _BEYOND) | ~np.isfinite(points)
    if outside.any():
        x, y = points[outside.any(axis=1)][0]
        raise InputError(
            f"{path}: an outline has a point at {x:g}, {y:g}, outside of the image's {columns} x {rows} pixels; was "
            "the image resized or cropped after it was outlined?"
        )
    mask = np.zeros(shape, bool)
    mask[polygon(points[:, 1] - 0.5, points[:, 0] - 0.5, shape)] = True
    return mask


def run_lengths_mask(run_lengths, shape, path):
    """Bool mask of `shape` (rows, columns) of COCO's run lengths: a list, or the text that pycocotools writes.

    They count pixels down each column in turn, outside and inside alternately. Raises `InputError` if their size
    differs.
    """
    counts = run_lengths["counts"]
    counts = _unpacked(counts) if isinstance(counts, str) else list(map(int, counts))
    if tuple(run_lengths["size"]) != tuple(shape) or sum(counts) != shape[0] * shape[1] or min(counts) < 0:
        raise InputError(
            f"{path}: run lengths of {sum(counts)} pixels in a size of {run_lengths['size']}, expected {list(shape)}"
        )
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(shape[::-1]).T


def _unpacked(text):
    """Run lengths of COCO's text. A character holds five bits; its sixth bit says that more follow.

    From the fourth run length on, the text has the difference to the last but one.
    """
    counts, value, shift = [], 0, 0
    for character in text:
        code = ord(character) - 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value, shift = 0, 0
    return counts


def yolo_masks(path, names, shape):
    """{class: bool mask (1, rows, columns)} of a text file of YOLO's, for an image of that `shape`.

    Each line is a class, then x, y of each point as shares of width and height. `names` is {class number as text:
    class}, or None: numbers are classes. Raises `InputError`, which names the line, for other content, also for boxes.
    """
    slices, rows, columns = shape
    if slices > 1:
        raise InputError(f"{path}: outlines of one picture, expected an image of one B-scan, found {slices}")
    masks = {}
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file ({error}), expected outlines as YOLO has them") from error
    for number, line in enumerate(lines, 1):
        if not (fields := line.split()):
            continue
        where = f"{path}: line {number}"
        if len(fields) == 5:
            raise InputError(f"{where}: a box, expected an outline; export it for segmentation, not for detection")
        try:
            name, points = str(int(fields[0])), np.array(fields[1:], float).reshape(-1, 2)
        except ValueError:
            raise InputError(f"{where}: expected a class number and x and y of each point") from None
        if names is not None and name not in names:
            raise InputError(f"{where}: class {name}, expected one that data.yaml names: {', '.join(names)}")
        name = name if names is None else names[name]
        mask = polygon_mask(points * [columns, rows], (rows, columns), where)
        masks[name] = masks.get(name, False) | mask[np.newaxis]
    return masks


def read_coco(path):
    """List of (image entry, its annotations) of a COCO file; each annotation gets its class as ``name``.

    Raises `InputError` if the file is of another kind, or if an annotation has an unknown image or class.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
        names = {category["id"]: category["name"] for category in content["categories"]}
        annotations = {image["id"]: [] for image in content["images"]}
        if len(annotations) < len(content["images"]):
            raise InputError(f"{path}: two images have one id, expected a different id for each")
        for annotation in content["annotations"]:
            for key, known in (("image_id", annotations), ("category_id", names)):
                if annotation[key] not in known:
                    raise InputError(
                        f"{path}: annotation {annotation['id']} has {key} {annotation[key]}, which is none"
                    )
            annotations[annotation["image_id"]].append({**annotation, "name": names[annotation["category_id"]]})
        return [
            ({key: image[key] for key in ("file_name", "width", "height")}, annotations[image["id"]])
            for image in content["images"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a COCO file ({type(error).__name__}: {error})") from error


def coco_masks(path, image, annotations, shape):
    """{class: bool mask (1, rows, columns)} of an image's entry and annotations, as `read_coco` gives them.

    Raises `InputError` if the image has another size than the file states, and for boxes without an outline.
    """
    slices, rows, columns = shape
    where = f"{path}: {image['file_name']}"
    if (image["width"], image["height"], 1) != (columns, rows, slices):
        raise InputError(
            f"{where}: outlined at {image['width']} x {image['height']} pixels, expected {columns} x {rows} as the "
            "image has; was it resized or cropped afterwards?"
        )
    masks = {}
    for annotation in annotations:
        mask = np.zeros((rows, columns), bool)
        if not (outline := annotation.get("segmentation")):
            raise InputError(f"{where}: annotation {annotation['id']} is a box, expected an outline")
        try:
            if isinstance(outline, dict):
                mask |= run_lengths_mask(outline, (rows, columns), where)
            else:
                for part in outline:
                    mask |= polygon_mask(np.array(part, float).reshape(-1, 2), (rows, columns), where)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{where}: annotation {annotation['id']} is no outline ({error})") from error
        masks[annotation["name"]] = masks.get(annotation["name"], False) | mask[np.newaxis]
    return masks
