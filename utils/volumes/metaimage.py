"""MetaImage headers: their fields, and the files that their voxels are in."""

import os
import re
from pathlib import Path

from utils.errors import InputError
from utils.names import file_called

_MOST_BYTES = 1 << 24  # of a header; some programs write lines for each frame
_MOST_FILES = 10_000  # that a header may name
_LAST_LINE = re.compile(rb"^[ \t]*ElementDataFile[ \t]*=[^\n]*\n", re.MULTILINE)
_PATTERN = re.compile(r"[^%]*%0?\d?[di][^%]*")  # of numbered files, as C's printf takes it


def metaimage_head(path):
    """The bytes of a MetaImage up to the end of its header; voxels or names may follow in the same file."""
    try:
        with open(path, "rb") as file:
            head = b""
            while len(head) < _MOST_BYTES and (piece := file.read(max(len(head), 1 << 16))):
                head += piece
                if last := _LAST_LINE.search(head):
                    return head[: last.end()]
            return head
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'cannot be read'}") from error


def metaimage_fields(path):
    """The ``Name = value`` lines of a MetaImage header as a dictionary. File names are as `os.fsdecode` gives them."""
    fields = {}
    for line in metaimage_head(path).split(b"\n"):
        name, separator, value = line.partition(b"=")
        if not separator:
            continue
        fields[os.fsdecode(name).strip()] = os.fsdecode(value).strip()
        if name.strip() == b"ElementDataFile":  # always the last line
            break
    return fields


def is_local(path):
    """Whether the voxels of a MetaImage follow its header in the same file."""
    return metaimage_fields(path).get("ElementDataFile", "LOCAL").upper() == "LOCAL"


def data_files(path):
    """Paths of the files that hold the voxels of the MetaImage at `path`, in order; `path` itself if it holds them.

    A file whose name differs from the header's only in case or encoding is taken. Missing files are among the paths.
    Raises `InputError` if a name leads out of the header's folder, or if the header names no files.
    """
    return [file_called(file.parent, file.name) or file for file in named_files(path)]


def named_files(path):
    """As `data_files`, with the names exactly as in the header."""
    path, named = Path(path), metaimage_fields(path).get("ElementDataFile", "LOCAL")
    if named.upper() == "LOCAL":
        return [path]
    if named.partition(" ")[0] == "LIST":
        with open(path, "rb") as file:
            file.seek(len(metaimage_head(path)))
            names = [os.fsdecode(line).strip() for line in file.read(_MOST_BYTES).split(b"\n") if line.strip()]
    elif "%" in named and not os.path.isfile(path.parent / named):
        names = _numbered(path, named)
    else:
        names = [named]
    if not 1 <= len(names) <= _MOST_FILES:
        raise InputError(f"{path}: names {len(names)} data files; save it as one volume")
    return [_beside(path, name) for name in names]


def _numbered(path, named):
    """The names that a pattern like ``slice%03d.raw 1 49 1`` (first, last, step) means."""
    pattern, *numbers = named.split()
    first, last, step, *_ = [*numbers, "1", "1"][:3] if len(numbers) > 1 else ("", "", "")
    if not (_PATTERN.fullmatch(pattern) and all(re.fullmatch(r"\d{1,5}", number) for number in (first, last, step))):
        raise InputError(f"{path}: its data files {named[:80]!r} are no pattern that is read; save it as one volume")
    return [pattern % number for number in range(int(first), int(last) + 1, max(1, int(step)))]


def _beside(path, name):
    """Path of a header's data file; `InputError` where it is the header itself or leads out of its folder."""
    folder = os.path.abspath(path.parent)
    data_path = os.path.normpath(os.path.join(folder, name))
    # A link in the folder is followed: the folder's owner made it, not the author of the header.
    refused = "\0" in name or not data_path.startswith(os.path.join(folder, ""))
    if refused or (os.path.exists(data_path) and os.path.samefile(data_path, path)):
        raise InputError(
            f"{path}: its data file {name[:80]!r} is not another file in the same folder; put it there and name it "
            "without folders"
        )
    return path.parent / os.path.relpath(data_path, folder)
