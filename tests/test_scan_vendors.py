"""Heidelberg's .e2e files with several series, each of which is stood in for: such files cannot be made here."""

from types import SimpleNamespace

import numpy as np
import pytest

from utils.errors import InputError
from utils.volumes.scans import read_scan, search_scans

eyepy_io = pytest.importorskip("eyepy.io")
LateralityEnum = pytest.importorskip("eyepy.io.he.e2e_format").LateralityEnum


class Volume:
    def __init__(self, grey):
        self.data = np.full((2, 20, 30), grey, np.uint8)
        self.meta = {"scale_unit": "px", "laterality": LateralityEnum.OD}
        self.localizer = SimpleNamespace(meta={}, data=np.zeros((4, 4), np.uint8))  # without a picture


class Series:
    def __init__(self, id, pattern, grey):
        self.id, self.pattern, self.grey = id, pattern, grey

    def get_bscan_meta(self):
        return [] if self.pattern is None else [{"scan_pattern": self.pattern}]

    def get_volume(self):
        if self.grey is None:
            raise ValueError("damaged")
        return Volume(self.grey)


def reader_of(*series):
    class Reader:
        def __init__(self, path):
            self.series = series

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        @property
        def volume(self):
            return self.series[0].get_volume()

    return Reader


def find(path, monkeypatch, *series):
    path.write_bytes(b"a stand-in")
    monkeypatch.setattr(eyepy_io, "HeE2eReader", reader_of(*series), raising=False)
    scans, left_out = search_scans([path])
    return scans, [(one.path, one.why) for one in left_out]


def test_every_volume_of_a_file_is_a_scan(tmp_path, monkeypatch):
    series = (Series(7, 3, 10), Series(8, None, 0), Series(9, 2, 0), Series(10, 3, 20), Series(11, 4, None))
    scans, left_out = find(tmp_path / "a.e2e", monkeypatch, *series)
    assert [scan.name for scan in scans] == ["a_1", "a_2", "a_3"]
    assert [read_scan(scan, spacing_mm=(1, 1, 1)).voxels.max() for scan in scans[:2]] == [10, 20]
    with pytest.raises(InputError, match=r"a\.e2e: cannot be read as \.e2e, series 5 of the file \(damaged\)"):
        read_scan(scans[2])
    ((path, reason),) = left_out
    assert path.endswith("a.e2e, series 3")
    assert reason == "a circular B-scan, expected parallel B-scans"


def test_a_file_with_one_volume_keeps_its_name(tmp_path, monkeypatch):
    (scan,), left_out = find(tmp_path / "a.e2e", monkeypatch, Series(6, None, 0), Series(7, 1, 30))
    assert (scan.name, left_out) == ("a", [])
    read = read_scan(scan, spacing_mm=(1, 1, 1))
    assert (read.voxels.max(), read.laterality) == (30, "OD")
