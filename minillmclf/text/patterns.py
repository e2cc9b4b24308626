"""Regular expressions that come from a file or a flag, with a time limit.

For a pattern that is wrong, or that runs almost for ever ("(a|aa)+$"), there is an InputError.
"""
import math
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass

import regex

from ..errors import InputError
from ..files import short

# of one search; a good pattern takes less than 1e-6 seconds per character
MAX_SECONDS, SECONDS_PER_CHARACTER = 1.0, 1e-5
MAX_STEPS = 10**6  # length of a pattern times the product of its repeat counts


@dataclass
class Clock:
    """The time that is left for all searches of several patterns together."""

    seconds: float = MAX_SECONDS

    @contextmanager
    def running(self):
        started = time.process_time()
        try:
            yield max(0.001, self.seconds)
        finally:
            self.seconds -= time.process_time() - started


class Pattern:
    """A compiled pattern with methods named as in `re`, which raise InputError when time is up."""

    def __init__(self, source, where, compiled, clock=None):
        self.source, self.where, self.compiled, self.clock = source, where, compiled, clock

    def fullmatch(self, text):
        return self._limited(lambda timeout: self.compiled.fullmatch(text, timeout=timeout), text)

    def finditer(self, text):
        """All matches, as a list."""
        return self._limited(lambda timeout: list(self.compiled.finditer(text, timeout=timeout)),
                             text)

    def sub(self, new, text):
        return self._limited(lambda timeout: self.compiled.sub(new, text, timeout=timeout), text)

    def _limited(self, search, text):
        clock = self.clock or Clock(MAX_SECONDS + SECONDS_PER_CHARACTER * len(text))
        try:
            with clock.running() as timeout:
                return search(timeout)
        except (TimeoutError, MemoryError):
            raise InputError(f"{self.where}: the pattern {short(self.source)} takes more than a "
                             f"second on {short(text)}: write one that has no repeats in "
                             "repeats") from None


def compile_pattern(source, where, flags=0, clock=None):
    """The Pattern of a regular expression in the syntax of the `regex` module, or InputError.

    where: the place of the pattern, for errors. flags: regex.MULTILINE and others. clock: a Clock
    that several patterns for layer names share; as PEFT reads these, they must be valid in Python's
    `re` too.
    """
    try:
        repeats = math.prod(max(1, int(count)) for count in re.findall(r"\{(\d{1,9})\b", source))
        if len(source) * repeats > MAX_STEPS:
            raise ValueError(f"{len(source)} characters and {repeats} repeats are too many")
        with (clock or Clock()).running():
            if clock is not None:
                re.compile(source, flags)
            return Pattern(source, where, regex.compile(source, flags), clock)
    except (re.error, regex.error, ValueError, TypeError, OverflowError, RecursionError,
            MemoryError) as error:
        raise InputError(f"{where}: {short(source)} is not a regular expression: "
                         f"{short(str(error))[1:-1]}") from None
