"""The intensity distribution that Cirrus and Topcon volumes are matched to, as a file."""

from pathlib import Path

import numpy as np
import pandas

from utils.errors import InputError
from utils.files import digest, write_csv


def read_reference_histogram(path):
    """The 256 counts in a CSV of columns grey_value, count."""
    try:
        table = pandas.read_csv(path)
        histogram = np.zeros(256, np.int64)
        histogram[table["grey_value"].to_numpy()] = table["count"].to_numpy()
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"{path}: not a CSV of grey_value (0-255) and count ({error}); set REFERENCE_HISTOGRAM"
        ) from error
    if histogram.min() < 0 or histogram.sum() == 0:
        raise InputError(f"{path}: counts are negative or all 0, expected how often each grey value occurs")
    return histogram


def read_histogram_if_any(path):
    """The 256 counts in such a file as a list, for JSON. None if there is no file: then nothing was matched."""
    return read_reference_histogram(path).tolist() if path is not None and Path(path).exists() else None


def write_reference_histogram(path, histogram):
    """Write `histogram` (256 counts) to `path`. None removes the file of an earlier run, which is out of date."""
    if histogram is None:
        Path(path).unlink(missing_ok=True)
    else:
        write_csv(path, pandas.DataFrame({"grey_value": np.arange(256), "count": histogram}))


def digest_of(histogram):
    """Digest (text) of a `histogram` (256 counts); None for None."""
    return None if histogram is None else digest(np.asarray(histogram, np.int64).tobytes())
