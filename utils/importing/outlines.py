"""Outlines as masks: COCO's polygons and run lengths, YOLO's polygons.

Coordinates start at the upper left corner of the first pixel, whose centre is at (0.5, 0.5). A pixel belongs to a
polygon if its centre lies in it.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from skimage.draw import polygon

from utils.errors import InputError

_BEYOND = 1.0  # pixels that a point may lie outside of the image, by rounding
_BOX_SHARE = 0.999  # of its bounding box that an outline fills if it is a box; the rest is rounding
_BOXES = "outlines are axis-parallel rectangles, that is boxes: all in them counts; outline what lies in them"
_WITHIN = (
    "outlines lie within others of their class and are filled; if they are holes, give them a class of their own and "
    "state it first, as BACKGROUND"
)
_EMPTY = "outlines hold no pixel's centre and are lost"


def polygon_mask(points, shape, path):
    """Bool mask of `shape` (rows, columns) of a polygon (n, 2) of x, y in pixels.

    Raises `InputError`, which names `path`, for fewer than three points and for one outside of the image.
    """
    rows, columns = shape
    if len(points) < 3:
        raise InputError(f"{path}: an outline of {len(points)} points, expected at least 3; draw it again or remove it")
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
    """({class: bool mask (1, rows, columns)}, warnings) of a text file of YOLO's, for an image of that `shape`.

    Each line is a class, then x, y of each point as shares of width and height. `names` is {class number as text:
    class}, or None: numbers are classes. Raises `InputError` with a line for each line of other content, also boxes.
    """
    slices, rows, columns = shape
    if slices > 1:
        raise InputError(f"{path}: outlines of one picture, expected an image of one B-scan, found {slices}")
    outlines, complaints = [], []
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file ({error}), expected outlines as YOLO has them") from error
    for number, line in enumerate(lines, 1):
        try:
            if fields := line.split():
                outlines.append(_yolo_outline(fields, names, (rows, columns), f"{path}: line {number}"))
        except InputError as error:
            complaints += error.messages
    if complaints:
        raise InputError(*complaints)
    return _merged(outlines)


def _yolo_outline(fields, names, shape, where):
    """(class, mask, whether it is a box) of a line's fields."""
    if len(fields) == 5:
        raise InputError(f"{where}: a box, expected an outline; export it for segmentation, not for detection")
    try:
        name, points = str(int(fields[0])), np.array(fields[1:], float).reshape(-1, 2)
    except ValueError:
        raise InputError(f"{where}: expected a class number and x and y of each point") from None
    if names is not None and name not in names:
        raise InputError(f"{where}: class {name}, expected one that data.yaml names: {', '.join(names)}")
    points = points * shape[::-1]
    return name if names is None else names[name], polygon_mask(points, shape, where), _is_box(points)


def read_coco(path):
    """List of (image entry, its annotations) of a COCO file; each annotation gets its class as ``name``.

    Raises `InputError` if the file is of another kind, and with a line for each unknown image or class of annotations.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
        names = {category["id"]: category["name"] for category in content["categories"]}
        if len(names) < len(content["categories"]):
            raise InputError(f"{path}: two categories have one id, expected a different id for each")
        annotations = {image["id"]: [] for image in content["images"]}
        if len(annotations) < len(content["images"]):
            raise InputError(f"{path}: two images have one id, expected a different id for each")
        complaints = []
        for annotation in content["annotations"]:
            unknown = [
                f"{path}: annotation {annotation.get('id')} has {key} {annotation[key]}, which is none"
                for key, known in (("image_id", annotations), ("category_id", names))
                if annotation[key] not in known
            ]
            complaints += unknown
            if not unknown:
                annotations[annotation["image_id"]].append({**annotation, "name": names[annotation["category_id"]]})
        if complaints:
            raise InputError(*complaints)
        return [
            ({key: image[key] for key in ("file_name", "width", "height")}, annotations[image["id"]])
            for image in content["images"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a COCO file ({type(error).__name__}: {error})") from error


def coco_masks(path, image, annotations, shape):
    """({class: bool mask (1, rows, columns)}, warnings) of an image's entry and annotations, as of `read_coco`.

    Raises `InputError` if the image has another size than the file states, and with a line for each annotation whose
    outline cannot be drawn, also for boxes.
    """
    slices, rows, columns = shape
    where = f"{path}: {image['file_name']}"
    if (image["width"], image["height"], 1) != (columns, rows, slices):
        raise InputError(
            f"{where}: outlined at {image['width']} x {image['height']} pixels, expected {columns} x {rows} as the "
            "image has; was it resized or cropped afterwards?"
        )
    outlines, complaints = [], []
    for annotation in annotations:
        try:
            outlines += _coco_outlines(annotation, (rows, columns), f"{where}: annotation {annotation.get('id')}")
        except InputError as error:
            complaints += error.messages
    if complaints:
        raise InputError(*complaints)
    return _merged(outlines)


def _coco_outlines(annotation, shape, where):
    """List of (class, mask, whether it is a box) of an annotation's parts."""
    if not (segmentation := annotation.get("segmentation")):
        raise InputError(f"{where}: a box, expected an outline")
    try:
        if isinstance(segmentation, dict):
            return [(annotation["name"], run_lengths_mask(segmentation, shape, where), False)]
        parts = [np.array(part, float).reshape(-1, 2) for part in segmentation]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where}: no outline ({error})") from error
    return [(annotation["name"], polygon_mask(points, shape, where), _is_box(points)) for points in parts]


# ---- Masks of several outlines -------------------------------------------------------------------------------------
def _is_box(points):
    """Whether a polygon is an axis-parallel rectangle, however many points it has."""
    x, y = points.T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    return bool(area >= _BOX_SHARE * np.ptp(x) * np.ptp(y) > 0)


def _merged(outlines):
    """({class: bool mask (1, rows, columns)}, warnings) of (class, mask, whether it is a box); a class has all of its.

    `warnings` counts outlines that may be wrong, {what they are: number}.
    """
    masks, warnings = {}, Counter()
    for name, mask, is_box in sorted(outlines, key=lambda outline: -np.count_nonzero(outline[1])):  # the outer first
        of_class = masks.setdefault(name, np.zeros((1, *mask.shape), bool))
        empty = not mask.any()
        seen = {_EMPTY: empty, _WITHIN: not empty and of_class[0][mask].all(), _BOXES: is_box}
        warnings.update(what for what, is_so in seen.items() if is_so)
        of_class[0] |= mask
    return masks, warnings
