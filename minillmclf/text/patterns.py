"""Regular expressions that a file or a flag brings. They may be wrong, and some run for ever: each
has a time limit here."""
import math
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass

import regex

from ..errors import InputError
from ..files import short

# of one search; sane patterns take less than 1e-6 a character
MOST_SECONDS, SECONDS_A_CHARACTER = 1.0, 1e-5
MOST_STEPS = 10**6  # a pattern's length times the repeats in it, which are written out


@dataclass
class Clock:
    """The time that several patterns have together, all their searches included."""
    seconds: float = MOST_SECONDS

    @contextmanager
    def running(self):
        started = time.process_time()
        try:
            yield max(0.001, self.seconds)
        finally:
            self.seconds -= time.process_time() - started


class Pattern:
    """A compiled pattern, with the calls of `re`. Each raises InputError where its time is up."""

    def __init__(self, source, where, compiled, clock=None):
        self.source, self.where, self.compiled, self.clock = source, where, compiled, clock

    def fullmatch(self, text):
        return self._bounded(self.compiled.fullmatch, text)

    def match(self, text):
        return self._bounded(self.compiled.match, text)

    def search(self, text):
        return self._bounded(self.compiled.search, text)

    def finditer(self, text):
        """All matches, as a list."""
        def find(text, timeout):
            return list(self.compiled.finditer(text, timeout=timeout))
        return self._bounded(find, text)

    def sub(self, new, text):
        return self._bounded(lambda text, timeout: self.compiled.sub(new, text, timeout=timeout),
                             text)

    def _bounded(self, call, text):
        try:
            alone = Clock(MOST_SECONDS + SECONDS_A_CHARACTER * len(text))
            with (self.clock or alone).running() as left:
                return call(text, timeout=left)
        except (TimeoutError, MemoryError):
            raise InputError(f"{self.where}: the pattern {short(self.source)} takes more than a "
                             f"second on {short(text)}: write one that has no repeats in "
                             f"repeats") from None


def compile_pattern(source, where, flags=0, clock=None):
    """The pattern of a regular expression in the syntax of the `regex` module, or InputError.

    where: what errors call the place that it stands in. flags: regex.MULTILINE and others.
    clock: a Clock, for patterns that share its time. They are those for names of layers, so they
    must be patterns of Python's `re` too, as for PEFT.
    """
    try:
        repeats = math.prod(max(1, int(count)) for count in re.findall(r"\{(\d{1,9})\b", source))
        if len(source) * repeats > MOST_STEPS:
            raise ValueError(f"{len(source)} characters and {repeats} repeats are too many")
        if clock is None:
            return Pattern(source, where, regex.compile(source, flags))
        with clock.running():
            re.compile(source, flags)
            return Pattern(source, where, regex.compile(source, flags), clock)
    except (re.error, regex.error, ValueError, TypeError, OverflowError, RecursionError,
            MemoryError) as error:
        raise InputError(f"{where}: {short(source)} is not a regular expression: "
                         f"{short(str(error))[1:-1]}") from None
