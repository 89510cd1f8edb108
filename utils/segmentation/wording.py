"""What pages, tables and the console say in words: what the software is for, what a model never saw, remarks."""

import re

from utils.labels import FLUIDS
from utils.networks.exported_model import taught_fluids
from utils.segmentation.confidence import uncalibrated_fluids
from utils.volumes.vendors import VENDORS

RESEARCH = "Research software, not for diagnosis."
_ADVICE = re.compile(r"; [^;]*--[a-z][^;]*")  # of a sentence's parts, those that name an option of the command


def model_note(details, decisions):
    """That this is research, and what the model of these `details` (``best.json``) never saw or was not taught."""
    seen, taught = list(details.get("training_appearance") or ()), taught_fluids(details)
    never = [vendor for vendor in VENDORS if vendor not in seen]
    sentences = [RESEARCH]
    if seen:
        others = f", never of {', '.join(never)} or another device" if never else " and of no other device"
        sentences.append(f"The model has seen scans of {', '.join(seen)}{others}.")
    else:
        sentences.append("Which devices' scans the model has seen is not recorded.")
    if untaught := [fluid for fluid in FLUIDS if fluid not in taught]:
        sentences.append(f"It was not taught {' or '.join(untaught)}, and never finds it.")
    if unknown := [fluid for fluid in uncalibrated_fluids(decisions) if fluid in taught]:
        sentences.append(f"How sure it is of {' and '.join(unknown)} says little: no validation scan held it.")
    return " ".join(sentences)


def without_options(sentence):
    """A remark or error for readers who did not type the command: without advice that names its options."""
    return _ADVICE.sub("", sentence)


def volume_in_words(volume_mm3, area_mm2=None):
    """A fluid's volume, or its area of a single B-scan, with unit; what is there is never 0.000."""
    value, unit = (volume_mm3, "mm³") if area_mm2 is None else (area_mm2, "mm²")
    return f"<0.001 {unit}" if 0 < value < 0.0005 else f"{value:.3f} {unit}"


def how_sure(in_words, confidence, calibrated):
    """How sure the model is of a fluid. Nothing is known of results of earlier versions: None."""
    if not isinstance(in_words, str):
        return ""
    return f"{in_words} ({confidence:.2f}{', not calibrated' if calibrated is False else ''})"


def least_sure(fluid, in_words, confidence):
    """Of which fluid the model is least sure, and how sure: the same words and number on index and page."""
    return f"least sure of {fluid}: {how_sure(in_words, confidence, calibrated=None)}"
