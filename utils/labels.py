"""The labels of RETOUCH's reference masks, and what a mask says of a pixel whose class is not known.

A mask holds a class's label where a reader gave it. Elsewhere it may say which classes a pixel can be: 128 plus a bit
for each (1 background, 2 IRF, 4 SRF, 8 PED). `NOT_JUDGED` has all bits.
"""

import numpy as np

CLASS_NAMES = ["background", "IRF", "SRF", "PED"]  # by label: intraretinal, subretinal fluid, pigment epithelial det.
FLUIDS = {"IRF": 1, "SRF": 2, "PED": 3}
EVERY_CLASS = 0b1111  # the bits of all classes
NOT_JUDGED = 255  # in a reference: nobody said what is there


def in_order(fluids):
    """The names of `fluids` as a tuple, in the order of the labels."""
    return tuple(fluid for fluid in FLUIDS if fluid in fluids)


def unlabelled_value(outlined):
    """What a mask holds where nothing is labelled and only the fluids with the names `outlined` were looked for.

    That is 0, background, if all fluids were, else 128 plus the bits of background and of the other fluids.
    """
    others = [label for fluid, label in FLUIDS.items() if fluid not in outlined]
    return 128 + 1 + sum(1 << label for label in others) if others else 0


def allowed_tables():
    """For each class a table, uint8 (256,), of whether a mask's value allows it: 0 or 1."""
    values = np.arange(256)
    return [
        np.where(values < 128, values == label, values >> label & 1).astype(np.uint8)
        for label in range(len(CLASS_NAMES))
    ]


def without_unjudged(labels, reference):
    """`labels` and `reference`, both uint8 of one shape, with 0 in both where the reference is `NOT_JUDGED`.

    Every measure of the two takes them so. Returns the arrays themselves where everything was judged.
    """
    unjudged = reference == NOT_JUDGED
    if not unjudged.any():
        return labels, reference
    return np.where(unjudged, 0, labels).astype(np.uint8), np.where(unjudged, 0, reference).astype(np.uint8)
