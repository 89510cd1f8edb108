"""What an import has understood, as a table to look at before anything is written."""

from collections import Counter, defaultdict
from dataclasses import dataclass

from utils.labels import FLUIDS
from utils.preparation.checks import notes_text
from utils.preparation.splits import IMPORTED_PATTERN

PATIENT_PATTERN = IMPORTED_PATTERN  # of the cases' names, for config.PATIENT_PATTERN


@dataclass(frozen=True)
class Understood:
    """What was read about a case, without its voxels."""

    shape: tuple  # (slices, rows, columns)
    element_type: str
    spacing_mm: tuple  # (x, y, z)
    pixels: dict  # {class: number}
    warnings: dict  # {what may be wrong, as the rest of a sentence: how many pixels, outlines or pages}
    notes: list  # assumptions, a sentence each


def overview_text(found, understood, outlined, options):
    """The `Found` and what was read of it, {case's root: `Understood`}, as text.

    It has values, a row for each class, notes and warnings. `outlined` are names of fluids, `options` those of the
    command line.
    """
    cases = list(understood.values())
    sizes = sorted({case.shape[::-1] for case in cases})
    types, spacings = Counter(case.element_type for case in cases), sorted({case.spacing_mm for case in cases})
    patients = defaultdict(list)
    for root, case in understood.items():
        patients[_name_of(root).partition("__")[0]].append(case)
    first = _name_of(next(iter(understood)))
    vendors = ", ".join(dict.fromkeys(root.partition("/")[0] for root in understood))
    said = "as said" if options.vendor else "as test.py took it"
    several = f", to {_by(sizes[-1])}" * (len(sizes) > 1)
    without = f"; {found.without_mask} images have none: {options.without_mask}" * bool(found.without_mask)
    stated = "as said" if options.spacing_mm else "as the files state" if options.vendor else said
    more_spacings = f" and {len(spacings) - 1} more" * (len(spacings) > 1)
    rows = [
        ("layout", f"{options.layout} in {options.source}"),
        ("images", f"{len(found.items)} of {_by(sizes[0])}{several} pixels; {', '.join(types)}"),
        ("masks", f"{found.n_masks} files{without}"),
        ("pairs", f"{len(cases)}, a case each: {sum(case.shape[0] for case in cases)} B-scans"),
        ("vendor", f"{vendors}, {said}"),
        ("spacing", f"{_by(spacings[0])} mm{more_spacings}, {stated}"),
        ("patients", f"{len(patients)}; {first.partition('__')[0]} in {found.items[0].path_text}"),
        ("pattern", f"PATIENT_PATTERN = r{PATIENT_PATTERN!r}"),
    ]
    lines = [f"{name:10}{value}" for name, value in rows]
    width = max(map(len, [*found.classes.targets, "class"]))
    lines += ["", f"{'class':{width}}  becomes     images  pixels"]
    for name, target in found.classes.targets.items():
        counts = [case.pixels[name] for case in cases if name in case.pixels]
        lines.append(f"{name:{width}}  {target:10}  {len(counts):6}  {sum(counts)}")
    if unknown := [fluid for fluid in FLUIDS if fluid not in outlined]:
        lines.append(f"not outlined: {', '.join(unknown)}; unknown there, not absent")
    held = {target for name, target in found.classes.targets.items() if any(name in case.pixels for case in cases)}
    if options.outlined is None and (nowhere := [fluid for fluid in outlined if fluid not in held]):
        lines.append(
            f"warning: {' and '.join(nowhere)} is nowhere, and counts as looked for and absent; if nobody outlined it, "
            "say with --outlined what was"
        )
    lines += [f"note: {note}" for note in found.notes]
    of_cases = {_name_of(root): case.notes for root, case in understood.items()}
    lines += filter(None, [notes_text(of_cases)])
    doubts = defaultdict(dict)
    for root, case in understood.items():
        for what, number in case.warnings.items():
            doubts[what][_name_of(root)] = number
    for what, numbers in doubts.items():
        total, first = sum(numbers.values()), next(iter(numbers))
        lines.append(f"warning: {total} {what}; in {len(numbers)} cases, {first} first")
    return "\n".join(lines)


def _name_of(root):
    """The name of a case, without its vendor."""
    return root.partition("/")[2]


def _by(numbers):
    return " x ".join(f"{number:g}" for number in numbers)
