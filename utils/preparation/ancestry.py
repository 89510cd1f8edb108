"""What a model takes over from the models that it came from: what an ancestor has seen or was taught, so has it."""

from utils.labels import in_order
from utils.networks.exported_model import taught_fluids
from utils.preparation.prepared import all_seen


def inherit(details, ancestors):
    """`details` of a model with what its `ancestors` hand on, all as in ``best.json``. Nothing is handed on elsewhere.

    In the model's "data" (of `describe_data`) the part "earlier" holds the cases and patients of every
    part of the ancestors' that the model's own does not repeat. It says ``"complete": False`` where an ancestor does
    not say what it has seen. "taught" holds the fluids that the model or an ancestor was taught.
    """
    taught = in_order({fluid for one in (details, *ancestors) for fluid in taught_fluids(one)})
    own = details.get("data", {})
    parts = [
        part
        for ancestor in ancestors
        for name, part in ancestor.get("data", {}).items()
        if name != "preparation" and part != own.get(name)
    ]
    complete = all(says_what_it_saw(one) for one in (details, *ancestors))
    if parts or not complete:
        parts += [own["earlier"]] if "earlier" in own else []
        earlier = all_seen(dict(enumerate(parts)))
        own = {**own, "earlier": earlier if complete else {**earlier, "complete": False}}
    return {**details, "data": own, "taught": list(taught)}


def says_what_it_saw(details):
    """Whether the `details` of a model say what it and all of its ancestors have seen."""
    data = details.get("data", {})
    earlier = data.get("earlier")
    # Earlier versions left empty lists of an ancestor that did not say it.
    says_earlier = earlier is None or earlier.get("complete", bool(earlier["cases"]))
    return bool(data.keys() - {"preparation"}) and says_earlier


def doubts(path, details, patient_pattern):
    """A sentence each for what the `details` of the model at `path` leave open of the cases that it has seen."""
    if not says_what_it_saw(details):
        yield f"{path} does not say which cases it, or a model that it came from, was trained on"
    pattern = details.get("config", {}).get("PATIENT_PATTERN", patient_pattern)
    if pattern != patient_pattern:
        yield (
            f"{path} tells patients by PATIENT_PATTERN {pattern!r}, not {patient_pattern!r}: scans seen by it are "
            "found here, other scans of the same patients are not"
        )
