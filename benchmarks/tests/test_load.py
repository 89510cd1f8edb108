"""The judges of `benchmarks.load`, and small forms of what it measures."""

import os

import numpy as np
import pytest
from helpers import run_python

from benchmarks.sampling import print_stretches, stretches_of


def test_time_and_memory_of_each_item_and_how_they_rise(tmp_path, capsys):
    for number, end in enumerate((10, 12, 14, 17, 20)):
        (tmp_path / str(number)).touch()
        os.utime(tmp_path / str(number), (end, end))
    samples = np.array([(time, 100 + 5 * time, time / 2) for time in range(30)])
    stretches = stretches_of(dict.fromkeys(tmp_path.iterdir(), "scan"), samples)
    expected = [(1, 2, 1, 160), (2, 2, 1, 170), (3, 3, 1.5, 185), (4, 3, 1.5, 200)]
    np.testing.assert_allclose(stretches["scan"], expected)
    print_stretches(stretches)
    printed = capsys.readouterr().out
    assert "| scan | 4 | 2.00 / 3.00 | 1.00 / 1.50 | 160 / 200 |" in printed
    # Least squares: numbers -1.5, -0.5, 0.5, 1.5 about their mean (sum of squares 5) with each column.
    assert "for every 100 items: +40.00 s and +20.00 CPU s an item, +1350.0 MiB" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("users",), "test.py, the same twice: exit codes [0, 2]"),
        (("segment", "--scans", 100), "98 of 100 segmented"),
        (("prepare", "--slices", 1, "--workers", 2), "for every 100 items"),
    ],
)
def test_the_benchmark_of_load_finds_nothing_wrong(tmp_path, arguments, says):
    assert says in run_python("-m", "benchmarks.load", *arguments, "--folder", tmp_path)[0]
