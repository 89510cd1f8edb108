import signal

import pytest
from helpers import arguments

import config
import prepare_data


def pytest_collection_modifyitems(items):
    """The file that takes longest comes first: begun last, it would keep one of two processes busy alone."""
    items.sort(key=lambda item: item.path.name != "test_scripts.py")


@pytest.fixture
def ctrl_c_interrupts():
    """Ctrl-C as in a terminal. Shells start background processes so that they ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def set_config():
    """Function that gives config.py's values, and in the test those of its arguments: ``set_config(SEED=1)``.

    All values are restored after the test, also those that `config.load` changed.
    """
    before = config.values()

    def change(**values):
        vars(config).update({**before, **values})

    yield change
    vars(config).update(before)


@pytest.fixture
def prepare_here(set_config):
    """Function that runs prepare_data.py in this process, each time from config.py's own values on."""

    def run(*settings, flags=()):
        set_config()
        prepare_data.main(arguments(*settings, flags=flags))

    return run
