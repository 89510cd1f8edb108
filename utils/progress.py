"""How far a long loop has come, on stderr."""

import sys

from tqdm import tqdm

IN_A_FILE = 60.0  # seconds between two drawings: there each of them stays


def progress_bar(iterable=None, description=None, **options):
    """A bar of tqdm, with its `options`: drawn each second in a terminal, each minute in a file."""
    seconds = 1.0 if sys.stderr.isatty() else IN_A_FILE
    return tqdm(iterable, description, mininterval=seconds, maxinterval=10 * seconds, **options)
