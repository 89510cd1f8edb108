"""Which class of other people's data becomes which label of this project, as the command line states it."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from utils.errors import InputError
from utils.labels import FLUIDS, NOT_JUDGED

BACKGROUND = "BACKGROUND"  # target of a class that becomes no label
IGNORE = "IGNORE"  # target of a class that says that nobody judged what is there
_REFERENCE = {BACKGROUND: 0, **FLUIDS, IGNORE: NOT_JUDGED}  # labels of reference.mhd; other targets are of other.mhd
_OTHER = re.compile(r"OTHER([1-9]\d?\d?)")  # a label of other.mhd
_VALUE = re.compile(r"\d+(,\d+,\d+)?")  # a number, or a colour as red,green,blue


@dataclass(frozen=True)
class ClassTable:
    """{class: target}, in the order stated; a target is IRF, SRF, PED, OTHER1 to OTHER255, BACKGROUND or IGNORE."""

    targets: dict

    def labels(self, masks, shape, path):
        """(reference, other, warnings): uint8 (slices, rows, columns); the second is None if it would be empty.

        `masks` is {class: bool array of `shape`}. If classes overlap, the one stated first gets the pixel, also if it
        becomes background. `warnings` counts such pixels, {what they are: number}. Raises `InputError`, which names
        `path`, for a class not in the table.
        """
        if unknown := [f"{name!r}" for name in masks if name not in self.targets]:
            raise InputError(
                f"{path}: holds class {', '.join(unknown)}, which --labels does not state, expected one of "
                f"{', '.join(map(repr, self.targets))}; add it: IRF=, SRF=, PED=, OTHER1=, {BACKGROUND}= or {IGNORE}="
            )
        names = [name for name in self.targets if name in masks]
        owners = {volume: np.zeros(shape, np.uint16) for volume in ("reference", "other")}  # places in `names`, from 1
        warnings = Counter()
        for place, name in enumerate(names, 1):
            target = self.targets[name]
            for volume in owners if target == BACKGROUND else [volume_of(target)]:
                taken = np.bincount(owners[volume][masks[name]], minlength=place)
                for first, pixels in zip(names, taken[1:].tolist(), strict=False):
                    if pixels and self.targets[first] != target:
                        warnings[f"pixels of class {name!r} count for {first!r}, which is stated first"] += pixels
                owners[volume][masks[name] & (owners[volume] == 0)] = place
        labels = np.array([0, *(label_of(self.targets[name]) for name in names)], np.uint8)
        reference, other = (labels[owner] for owner in owners.values())
        return reference, other if other.any() else None, warnings

    def values(self):
        """{class: (number,) or (red, green, blue)}. All classes must be values of one kind.

        Raises `InputError` for any other class.
        """
        values = {}
        for name in self.targets:
            if not _VALUE.fullmatch(name):
                raise InputError(f"--labels {self.targets[name]}={name}: expected a number or a colour, as in 255,0,0")
            values[name] = tuple(map(int, name.split(",")))
        if len({len(value) for value in values.values()}) > 1:
            raise InputError(f"--labels: {', '.join(values)} are numbers and colours, expected either")
        return values


def parse_classes(texts):
    """`ClassTable` of texts TARGET=CLASS. Raises `InputError` with a line for each that is not understood."""
    targets, complaints = {}, []
    for text in texts:
        target, separator, name = text.partition("=")
        if not separator or not name or not is_target(target):
            complaints.append(
                f"--labels {text}: expected TARGET=CLASS with {', '.join(FLUIDS)}, OTHER1 to OTHER255, {BACKGROUND} "
                f"or {IGNORE} as TARGET"
            )
        elif targets.setdefault(name, target) != target:
            complaints.append(f"--labels {text}: {name} is stated as {targets[name]} too, expected one target")
    if complaints:
        raise InputError(*complaints)
    return ClassTable(targets)


def is_target(text):
    """Whether `text` is a target: IRF, SRF, PED, OTHER1 to OTHER255, BACKGROUND or IGNORE."""
    return text in _REFERENCE or ((found := _OTHER.fullmatch(text)) is not None and int(found[1]) < 256)


def volume_of(target):
    """ "reference" or "other": the volume that holds a target (not BACKGROUND)."""
    return "reference" if target in _REFERENCE else "other"


def label_of(target):
    """The label of a target in its volume; of BACKGROUND, 0."""
    return _REFERENCE[target] if target in _REFERENCE else int(_OTHER.fullmatch(target)[1])
