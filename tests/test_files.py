import json

import pytest

from utils.errors import InputError, run_script
from utils.files import write_json, written_whole


def test_a_file_appears_only_when_its_block_succeeds(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with written_whole(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.name.endswith("table.csv")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


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
    [(InputError("a: bad", "b: worse"), 2, "error: a: bad\n"), (KeyboardInterrupt(), 130, "interrupted")],
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


def test_a_bug_keeps_its_traceback():
    def main(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_script(main)
