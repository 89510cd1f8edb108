"""Files that are written whole or not at all, locks on folders, and digests that show what changed."""

import ast
import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import filelock

from utils.errors import InputError, what_failed
from utils.names import as_text

UNFINISHED = ".unfinished-"  # how the names of files begin that are still being written


@contextlib.contextmanager
def written_whole(path):
    """Yield a temporary path beside `path`, renamed to `path` when the block succeeds and removed when it fails.

    The temporary name ends like `path`, because many writers choose their format by it. Missing parent folders are
    created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=UNFINISHED, suffix=f"-{path.name}", dir=path.parent)
    os.close(handle)
    os.chmod(temporary, 0o666 & ~_umask())
    try:
        yield Path(temporary)
        os.replace(temporary, path)
    except OSError as error:  # a full disk does not say which file it was
        error.filename = error.filename or str(path)
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def natural_order(path):
    """Sort key that puts ``b2`` before ``b10``."""
    parts = re.split("([0-9]+)", str(path))
    return [int(part) if index % 2 else part.lower() for index, part in enumerate(parts)]


def remove_unfinished(folder, below=True):
    """Remove the unfinished files that killed processes left in `folder` and, if `below`, in the folders below it.

    No other process may be writing there.
    """
    find = Path(folder).rglob if below else Path(folder).glob
    for path in list(find(f"{UNFINISHED}*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # its folder may have been removed above


@contextlib.contextmanager
def locked(folder):
    """Hold the lock of `folder` during the block, so that no other process that takes this lock writes there.

    Raises `InputError` at once if another process holds it, or if there are no locks on the folder's drive. The
    operating system releases the lock when its process ends, even a killed one. A process may take the lock again while
    it holds it.
    """
    path = Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(f"{folder}: another process is writing there; wait for it, or name another folder") from error
    except OSError as error:
        if error.filename:  # the file cannot be made or opened
            raise
        raise InputError(
            f"{path}: cannot be locked ({what_failed(error)}), expected a drive with file locks; name a folder on a "
            "local disk, or have locks enabled on this network drive"
        ) from error
    try:
        yield
    finally:
        lock.release()


def write_json(path, content):
    """Write `content` as indented JSON (UTF-8, no NaN); the file appears whole."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def write_csv(path, table):
    """Write a pandas DataFrame as CSV without its index; the file appears whole."""
    with written_whole(path) as temporary:
        table.to_csv(temporary, index=False)


def read_json(path):
    """Content of a JSON file. Raises `InputError` if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found; run the step that writes it first") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); delete it and run the step that writes it") from None


def sha256(path):
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(paths):
    """[[name, bytes, modification time in ns], ...] of those of `paths` that exist: it changes when a file does."""
    found = [(path, path.stat()) for path in paths if path.exists()]
    return [[as_text(path.name), status.st_size, status.st_mtime_ns] for path, status in found]


def digest(content):
    """Sixteen hexadecimal digits that change with `content` (bytes)."""
    return hashlib.sha256(content).hexdigest()[:16]


@functools.cache
def code_digest(*names):
    """A `digest` of the statements in the modules `names`, which are not imported.

    If it changed, the modules may compute other results than before. Comments, docstrings and imports do not count.
    """
    trees = [ast.parse(Path(find_spec(name).origin).read_bytes()) for name in names]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [statement for statement in body if not _says_nothing(statement)]
    return digest("".join(map(ast.dump, trees)).encode())


def _says_nothing(statement):
    """Whether a statement is an import or text that stands alone, such as a docstring."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.Import | ast.ImportFrom)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
