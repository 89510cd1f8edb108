import numpy as np
import pytest

from utils.errors import InputError
from utils.training.state import newest_state, restore_variables, save_state


class Variable:
    """As much of a Keras variable as saving needs."""

    def __init__(self, value):
        self.assign(value)

    def assign(self, value):
        self.value = np.asarray(value)
        self.shape = self.value.shape

    def __array__(self, dtype=None, copy=None):
        return self.value


def save(folder, epoch, step=0, value=0.0):
    save_state(folder, [Variable(np.full((2, 3), value)), Variable(np.int32(7))], {"epoch": epoch, "step": step})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_comes_back(tmp_path):
    assert newest_state(tmp_path) is None
    variables = [Variable(np.arange(6.0).reshape(2, 3)), Variable(np.int32(7))]
    save_state(tmp_path, variables, {"epoch": 1, "step": 4, "x": [2]})
    progress, arrays = newest_state(tmp_path)
    assert (progress["epoch"], progress["step"], progress["x"]) == (1, 4, [2])
    fresh = [Variable(np.zeros((2, 3))), Variable(np.int32(0))]
    restore_variables(fresh, arrays)
    np.testing.assert_array_equal(fresh[0].value, [[0, 1, 2], [3, 4, 5]])
    assert fresh[1].value == 7


def test_the_two_newest_states_are_kept(tmp_path):
    for epoch, step in ((0, 5), (1, 0), (1, 120)):
        save(tmp_path, epoch, step)
    assert names(tmp_path) == [
        *("last-0001-0000000.json", "last-0001-0000000.npz", "last-0001-0000120.json", "last-0001-0000120.npz")
    ]


@pytest.mark.parametrize("damage", ["truncated", "missing", "json"])
def test_a_damaged_state_falls_back_to_the_one_before_and_says_so(tmp_path, capsys, damage):
    save(tmp_path, 1)
    save(tmp_path, 2)
    arrays = tmp_path / "last-0002-0000000.npz"
    if damage == "missing":
        arrays.unlink()
    else:
        file = arrays if damage == "truncated" else arrays.with_suffix(".json")
        file.write_bytes(file.read_bytes()[:-10])
    progress, path = newest_state(tmp_path)
    assert (progress["epoch"], path.name) == (1, "last-0001-0000000.npz")
    printed = capsys.readouterr().out
    assert "last-0002-0000000.npz: missing or damaged; resuming from last-0001-0000000" in printed
    save(tmp_path, 1, 9)  # the run resumes from there, and the damaged checkpoint is removed
    assert {name[:17] for name in names(tmp_path)} == {"last-0001-0000000", "last-0001-0000009"}


def test_arrays_without_their_json_are_no_state(tmp_path):
    """As a kill between the two leaves them."""
    save(tmp_path, 1)
    (tmp_path / "last-0001-0000007.npz").write_bytes(b"whole or not")
    assert newest_state(tmp_path)[0]["step"] == 0


def test_where_every_state_is_damaged_nothing_begins_anew_unasked(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "last-0001-0000000.npz").write_bytes(b"")
    with pytest.raises(InputError, match=r"last-0001-0000000\.npz: missing or damaged; delete"):
        newest_state(tmp_path)


def test_another_network_is_refused(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(InputError, match="another network"):
        restore_variables([Variable(np.zeros(4)), Variable(np.int32(0))], newest_state(tmp_path)[1])
