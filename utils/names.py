"""File names as text: names of any bytes, and names that differ only in case."""

import os
import re
import unicodedata
from pathlib import Path


def as_text(name):
    """A file's name or path as one line of text.

    Its bytes are read as UTF-8, or as Latin-1 if they are not UTF-8. Control characters become "_".
    """
    stored = os.fsencode(name)
    try:
        text = stored.decode("utf-8")
    except UnicodeDecodeError:
        text = stored.decode("latin-1")
    return "".join("_" if unicodedata.category(character) == "Cc" else character for character in text)


def is_utf8(name):
    """Whether a file's name or path is stored as UTF-8, as libraries written in C++ want it."""
    return os.fsencode(name) == str(name).encode("utf-8", "replace")


def portable(name):
    """`name` as text that every system and program takes for a part of a file's name.

    Windows refuses some characters, and a dot or space at the end. Some programs take % for a pattern.
    """
    return re.sub(r'[<>:"|?*%\\/]', "_", as_text(name)).rstrip(". ") or "_"


def same_name(name):
    """A form of `name` that is equal for names that differ only in case or in how Unicode stores their letters."""
    return unicodedata.normalize("NFC", as_text(name)).casefold()


def file_called(folder, name):
    """Path of the file `name` in `folder`; failing that, of the first file with the `same_name`; else None."""
    path = os.path.join(folder, name)
    if os.path.isfile(path):  # False for names that no file can have
        return Path(path)
    try:
        others = sorted(os.listdir(os.path.dirname(path) or "."))
    except (OSError, ValueError):
        return None
    wanted = same_name(os.path.basename(path))
    paths = [os.path.join(os.path.dirname(path), other) for other in others if same_name(other) == wanted]
    return next((Path(path) for path in paths if os.path.isfile(path)), None)


def suffix_of(path):
    """A file's suffix in lower case, ".nii.gz" as one."""
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else os.path.splitext(name)[1]
