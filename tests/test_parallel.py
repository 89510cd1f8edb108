import signal

import pytest
from helpers import run_python

from utils.parallel import ctrl_c_blocked, map_unordered


@pytest.mark.parametrize("workers", [0, 2])
def test_every_item_comes_with_its_result(workers):
    assert sorted(map_unordered(abs, [-3, 2, -1], workers=workers)) == [(-3, 3), (-1, 1), (2, 2)]


def test_processes_ignore_ctrl_c_from_their_start_on():
    """While they import libraries they would print tracebacks, one each. In a new process, where the first start."""
    code = """if True:
        import functools, signal
        from utils.parallel import map_unordered
        blocked = functools.partial(signal.pthread_sigmask, signal.SIG_BLOCK)
        assert all(signal.SIGINT in of_worker for _, of_worker in map_unordered(blocked, [(), ()], workers=2))
        assert signal.SIGINT not in blocked(())
    """
    run_python("-c", code)


def test_ctrl_c_for_the_starting_thread_comes_after_the_block(ctrl_c_interrupts):
    reached = []

    def block():
        with ctrl_c_blocked():
            signal.raise_signal(signal.SIGINT)  # for this thread: one for the process may go to another thread's
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached
