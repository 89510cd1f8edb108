import signal

import pytest


@pytest.fixture
def ctrl_c_is_heard():
    """As in a terminal; a shell's background processes start deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
