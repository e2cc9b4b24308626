"""For pytest in a release: tests that need an unwritten function are skipped, with the reason.

The function may be called in the test's own process, or in one that the test starts: then the words
of its error stand in what that process has printed. The release's conftest.py takes these hooks.
"""
import re
import subprocess
from collections import Counter

import pytest

__all__ = ["pytest_make_collect_report", "pytest_runtest_makereport", "pytest_runtest_protocol",
           "pytest_terminal_summary"]
WORDS = re.compile(r"Exercise (\d+\.\d+): see lessons/")
REASON = "exercise {} is not started"
WAITS = re.compile(r"exercise \d+\.\d+ is not started$")
STUDENTS = "test_exercises.py"        # these fail: they are what is to be done
HEARD = []                            # exercises that processes of the running test have named


def exercise_of(error, seen=()):
    """The exercise whose unwritten function has led to an exception, or None."""
    if error is None or error in seen:
        return None
    found = WORDS.search(str(error)) if isinstance(error, NotImplementedError) else None
    if found:
        return found[1]
    inner = [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]
    return next(filter(None, (exercise_of(each, (*seen, error)) for each in inner)), None)


def listen():
    """What processes print is looked through, where a test reads it."""
    plain = subprocess.Popen.communicate

    def communicate(self, *given, **more):
        printed = plain(self, *given, **more)
        for text in printed:
            text = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
            HEARD.extend(WORDS.findall(text))
        return printed
    subprocess.Popen.communicate = communicate


listen()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    HEARD.clear()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure that an unwritten function has caused becomes a skip."""
    report = (yield).get_result()
    if not report.failed or call.excinfo is None or item.path.name == STUDENTS:
        return
    printed = WORDS.findall(report.longreprtext + "".join(text for _, text in report.sections))
    found = exercise_of(call.excinfo.value) or next(iter([*printed, *HEARD]), None)
    if found:
        skip(report, item.location, found)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """The same for a file of tests that calls the function while it is imported."""
    report = (yield).get_result()
    found = WORDS.search(str(report.longrepr)) if report.failed else None
    if found:
        skip(report, (collector.nodeid, 0, ""), found[1])


def skip(report, location, exercise):
    report.outcome = "skipped"
    report.longrepr = (str(location[0]), (location[1] or 0) + 1,
                       f"Skipped: {REASON.format(exercise)}")


def pytest_terminal_summary(terminalreporter):
    """How many tests wait for which exercise."""
    reasons = [WAITS.search(report.longrepr[2])
               for report in terminalreporter.stats.get("skipped", ())
               if isinstance(report.longrepr, tuple)]
    for reason, count in sorted(Counter(found[0] for found in reasons if found).items()):
        terminalreporter.write_line(f"{count} tests wait: {reason}")
