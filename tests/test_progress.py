"""How far a loop is: plain lines where standard error is no terminal, a bar where it is one."""
import io
import sys

import pytest

from minillmclf.cli import progress
from minillmclf.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that one sets: clock.now = seconds."""
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_line_every_ten_seconds_at_most_with_the_speed_of_this_process(clock, monkeypatch):
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with Progress() as show:
        for step in range(1001, 1101):                     # from step 1001 on, 4 steps a second
            clock.now += 0.25
            show(step, 2000, loss=f"{step / 1000:.3f}", tokens_s="77")
        show.clear()
    assert stderr.getvalue().splitlines() == [
        "step 1,040 of 2,000  loss 1.040  tokens_s 77  4 steps a second",
        "step 1,080 of 2,000  loss 1.080  tokens_s 77  4 steps a second"]
    assert (show.steps_before, show.last_step) == (1000, 1100)


def test_a_short_run_and_a_quiet_one_leave_no_line(clock, monkeypatch):
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    for quiet, seconds in ((False, 0.09), (True, 60)):
        with Progress(quiet) as show:
            for step in range(1, 101):
                clock.now += seconds
                show(step, 100, loss="1.000")
    assert stderr.getvalue() == ""
    with Progress() as show:
        pass
    assert (show.steps_before, show.last_step) == (0, 0)


def test_on_a_terminal_a_bar_that_begins_where_the_run_goes_on(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(mininterval=0, leave=False) as show:
        for step in range(6, 11):
            show(step, 10, loss="0.500")
            show.clear()
    drawn = terminal.getvalue()
    assert "10/10" in drawn and "loss=0.500" in drawn and "step 6" not in drawn
    with Progress(True) as show:
        show(1, 10)
    assert terminal.getvalue() == drawn
