"""What Windows does otherwise, as far as another system can show it. Nothing here says that the scripts run there."""

from pathlib import Path

import numpy as np
import pytest
from helpers import run_python, write_raw_case

from utils.names import portable
from utils.preparation.cases import find_cases
from utils.preparation.checks import check_headers
from utils.segmentation.label_files import write_nifti
from utils.volumes.geometry import NOT_STATED
from utils.volumes.mhd import read_volume, write_volume
from utils.volumes.scan_names import told_apart
from utils.volumes.scans import find_scans

SPACING_MM = (0.0117, 0.003872, 0.12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scan 1.2", "scan 1.2"),
        ('a<b>c:d"e|f?g*h', "a_b_c_d_e_f_g_h"),
        ("100%\\x", "100__x"),
        ("dots.. ", "dots"),
        ("...", "_"),
        ("Größe", "Größe"),
    ],
)
def test_names_that_every_system_takes(name, expected):
    assert portable(name) == expected


def test_results_of_scans_get_such_names_and_are_told_apart(tmp_path):
    for folder, name in (("one", "a:b"), ("two", "A_b"), ("two", "c.")):
        write_volume(tmp_path / folder / f"{name}.mhd", np.arange(24, dtype=np.uint8).reshape(2, 3, 4), SPACING_MM)
    assert sorted(scan.name for scan in told_apart(find_scans([tmp_path]), "Cirrus")) == ["c", "one_a_b", "two_A_b"]


def test_cases_whose_names_differ_in_case_alone_are_refused(tmp_path):
    """Their prepared volumes would be one file where names are not told apart by case."""
    for vendor, name in (("Cirrus", "train1"), ("Cirrus", "TRAIN2"), ("Topcon", "Train1")):
        write_raw_case(tmp_path / "a", vendor, name)
    assert check_headers(find_cases(tmp_path)) == []
    write_raw_case(tmp_path / "b", "Cirrus", "Train1")
    found = {finding.case.name: finding.found for finding in check_headers(find_cases(tmp_path))}
    assert found == {
        "train1": "b/RETOUCH-TrainingSet-Cirrus/Train1 is a Cirrus case of this name too",
        "Train1": "a/RETOUCH-TrainingSet-Cirrus/train1 is a Cirrus case of this name too",
    }


def test_nifti_files_need_no_links(tmp_path, monkeypatch):
    """Windows lets few users make links."""

    def refuse(*_, **__):
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 4
    write_nifti(tmp_path / "ärzte.nii.gz", labels, SPACING_MM, NOT_STATED)
    np.testing.assert_array_equal(read_volume(tmp_path / "ärzte.nii.gz")[0], labels)


def test_workers_that_are_spawned_without_signal_masks():
    """Nothing is inherited from the main process but what is sent."""
    code = """if True:
        import signal
        for name in ("pthread_sigmask", "SIGKILL", "SIGHUP"):
            delattr(signal, name)
        from joblib.externals.loky.backend.context import set_start_method
        set_start_method("spawn")
        from utils.parallel import map_unordered
        from utils.volumes.vendors import vendor_in
        items = [("Cirrus",), ("x", "topcon"), ()]
        found = dict(map_unordered(vendor_in, items, workers=2))
        assert found == {("Cirrus",): "Cirrus", ("x", "topcon"): "Topcon", (): None}, found
    """
    run_python("-c", code)


@pytest.mark.slow
def test_preparation_with_spawned_workers(tmp_path):
    """The same files as in one process, from a script that the workers do not run again."""
    for seed, name in enumerate(("a", "b", "c")):
        write_raw_case(tmp_path / "data", "Spectralis", name, seed)
    start = "import runpy, sys; from joblib.externals.loky.backend.context import set_start_method; "
    start += "set_start_method('spawn'); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    for workers in (0, 2):
        settings = [f"DATA_ROOT={tmp_path / 'data'}", f"OUTPUT_ROOT={tmp_path / str(workers)}", f"WORKERS={workers}"]
        flags = [part for setting in settings for part in ("--set", setting)]
        run_python("-c", start, "prepare_data.py", *flags)
    files = sorted((tmp_path / "0" / "pre_processed").rglob("*.raw"))
    assert len(files) == 9
    for path in files:
        assert path.read_bytes() == (tmp_path / "2" / path.relative_to(tmp_path / "0")).read_bytes()
