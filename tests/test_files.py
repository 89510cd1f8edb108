import errno
import json
import os
import signal
import time

import pytest

from utils.errors import InputError, run_script, what_failed
from utils.files import UNFINISHED, code_digest, fingerprint, locked, remove_unfinished, write_json, written_whole


def test_a_file_appears_only_when_its_block_succeeds(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with written_whole(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.name.endswith("table.csv")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_put_in_place_by_renaming_it(tmp_path):
    """A copy would be seen half written, by who opens it then and by who has the file before open."""
    path = tmp_path / "table.csv"
    path.write_text("before")
    with open(path) as reader:
        with written_whole(path) as temporary:
            temporary.write_text("after")
            written = temporary.stat().st_ino
        assert path.stat().st_ino == written
        assert reader.read() == "before"
    assert path.read_text() == "after"


def test_the_code_digest_changes_with_any_of_the_modules(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "one_module.py").write_text("raise RuntimeError  # not imported")
    (tmp_path / "another_module.py").write_text("VALUE = 1")
    of_today = code_digest.__wrapped__  # code does not change within a process
    before = of_today("one_module", "another_module")
    assert of_today("one_module", "another_module") == before
    (tmp_path / "another_module.py").write_text('"""What it is for."""\nimport one_module\nVALUE = 1  # a number\n')
    assert of_today("one_module", "another_module") == before  # the same statements
    (tmp_path / "another_module.py").write_text("VALUE = 2")
    assert of_today("one_module", "another_module") != before


def test_fingerprints_of_files_of_any_name_fit_into_json(tmp_path):
    names = ("scan.mhd", os.fsdecode(b"M\xfcller.mhd"))  # the second is Latin-1
    for size, name in enumerate(names, 1):
        (tmp_path / name).write_bytes(bytes(size))
    prints = fingerprint([*(tmp_path / name for name in names), tmp_path / "not there"])
    assert [(name, size) for name, size, _ in prints] == [("scan.mhd", 1), ("M\u00fcller.mhd", 2)]
    write_json(tmp_path / "record.json", prints)
    assert json.loads((tmp_path / "record.json").read_text("utf-8")) == prints
    before = prints[0]
    os.utime(tmp_path / "scan.mhd", ns=(1, 1))
    assert fingerprint([tmp_path / "scan.mhd"]) != [before]


def test_a_failure_leaves_the_file_before(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("before")

    def write_half():
        with written_whole(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_json_refuses_nan_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "a.json", {"Auflösung": 1})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"Auflösung": 1}


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("a: bad", "b: worse"), 2, "error: a: bad\n"),
        (MemoryError("Unable to allocate 55.3 MiB"), 2, "error: out of memory (Unable to allocate 55.3 MiB); lower"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_script_reports_what_the_user_can_mend_without_a_traceback(error, code, text, capsys):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as caught:
        run_script(main)
    assert caught.value.code == code
    stderr = capsys.readouterr().err
    assert text in stderr
    assert "Traceback" not in stderr


def test_sigterm_ends_a_script_with_a_line_and_what_it_was_writing_is_cleared_away(tmp_path, capsys):
    def main(argv):
        with written_whole(tmp_path / "table.csv"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)  # the handler runs at the latest here

    with pytest.raises(SystemExit) as caught:
        run_script(main)
    assert caught.value.code == 143
    assert capsys.readouterr().err.endswith(": terminated\n")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_that_a_library_makes_another_error_of_is_still_ctrl_c(ctrl_c_interrupts, capsys):
    """TensorFlow's does so while it compiles a function."""

    def main(argv):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt as error:
            raise RuntimeError("KeyboardInterrupt: \n\nAt:\n") from error

    with pytest.raises(SystemExit) as caught:
        run_script(main)
    assert caught.value.code == 130
    assert capsys.readouterr().err.endswith(": interrupted\n")


def test_a_full_disk_is_reported_with_the_file_that_did_not_fit(tmp_path):
    def write():
        with written_whole(tmp_path / "table.csv"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space") as caught:
        write()
    assert what_failed(caught.value) == f"{tmp_path / 'table.csv'}: No space left on device"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_drive_without_locks_is_named_with_what_to_do(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(InputError) as caught, locked(tmp_path):
        pass
    (message,) = caught.value.messages
    assert message.startswith(f"{tmp_path / '.lock'}: cannot be locked ({os.strerror(number)}), ")
    assert "name a folder on a local disk" in message


def test_what_killed_processes_left_is_removed_with_or_without_the_folders_below(tmp_path):
    left, below = tmp_path / f"{UNFINISHED}a-table.csv", tmp_path / "runs" / f"{UNFINISHED}b-log.csv"
    below.parent.mkdir()
    for path in (left, below):
        path.write_text("half")
    remove_unfinished(tmp_path, below=False)
    assert (left.exists(), below.exists()) == (False, True)
    remove_unfinished(tmp_path)
    assert not below.exists()


def test_a_bug_keeps_its_traceback():
    def main(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_script(main)
