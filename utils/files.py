"""Files that appear whole or not at all."""

import contextlib
import json
import os
import tempfile
from pathlib import Path


@contextlib.contextmanager
def written_whole(path):
    """Yield a temporary path beside `path`, renamed to `path` when the block succeeds and removed when it fails.

    The temporary name ends like `path`, because many writers choose their format by it. Missing parent folders are
    created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".unfinished-", suffix=f"-{path.name}", dir=path.parent)
    os.close(handle)
    os.chmod(temporary, 0o666 & ~_umask())
    try:
        yield Path(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def write_json(path, content):
    """Write `content` as indented JSON (UTF-8, no NaN) that appears whole."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def write_csv(path, table):
    """Write a pandas DataFrame as CSV without its index; the file appears whole."""
    with written_whole(path) as temporary:
        table.to_csv(temporary, index=False)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
