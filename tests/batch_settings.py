"""The settings of batches in tests: config.py's defaults, except for what a test changes."""

from dataclasses import fields, replace

import config
from utils.patch_settings import PatchSettings


def batch_settings(preprocessed_folder, **changes):
    """`BatchSettings` whose fields, or whose patches' fields, are `changes`; seed 0, no workers."""
    of_patches = {field.name: changes.pop(field.name) for field in fields(PatchSettings) if field.name in changes}
    settings = config.batch_settings()
    patches = replace(settings.patches, **of_patches)
    return replace(settings, preprocessed_folder=preprocessed_folder, patches=patches, **changes)
