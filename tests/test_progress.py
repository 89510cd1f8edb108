"""`utils.progress`: a bar in a terminal, and few lines in a file."""

import io
import sys

import pytest

from utils.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "drawn"), [(Terminal(), 7), (io.StringIO(), 4)])
def test_a_bar_is_drawn_at_each_step_in_a_terminal_and_each_minute_in_a_file(monkeypatch, stream, drawn):
    monkeypatch.setattr(sys, "stderr", stream)
    bar, now = progress_bar(description="cases", total=6, leave=False), 0.0
    bar._time = lambda: now
    bar.start_t = bar.last_print_t = now
    for _ in range(6):
        now += 30
        bar.update()
    bar.close()
    assert stream.getvalue().count("cases") == drawn  # the empty bar, too
