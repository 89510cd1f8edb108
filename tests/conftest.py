import signal

import pytest
from raw_cases import arguments

import config
import prepare_data


@pytest.fixture
def ctrl_c_is_heard():
    """As in a terminal; a shell's background processes start deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def prepare_here(monkeypatch):
    """Run the script in this process, after which the settings are as before."""
    defaults = config.values()

    def run(*settings, flags=()):
        for name, value in defaults.items():
            monkeypatch.setattr(config, name, value)
        prepare_data.main(arguments(*settings, flags=flags))

    return run
