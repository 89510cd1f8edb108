import os
import signal

import pytest

from utils.parallel import ctrl_c_waits, map_unordered


def blocked_signals(_):
    return os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize("workers", [0, 2])
def test_every_item_comes_with_its_result(workers):
    assert sorted(map_unordered(abs, [-3, 2, -1], workers=workers)) == [(-3, 3), (-1, 1), (2, 2)]


def test_processes_do_not_hear_ctrl_c_from_their_start_on():
    """While they import libraries they would print tracebacks, one each."""
    for _, (process, blocked) in map_unordered(blocked_signals, range(4), workers=2):
        assert process != os.getpid()
        assert signal.SIGINT in blocked
    assert signal.SIGINT not in blocked_signals(None)[1]


def test_ctrl_c_comes_after_the_block(ctrl_c_is_heard):
    reached = []

    def block():
        with ctrl_c_waits():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached
