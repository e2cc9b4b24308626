"""Patterns from files and flags: the same answers as Python's `re`, and an end of its own to each
that has none."""
import re
import time

import pytest
import regex

from minillmclf.text import patterns
from minillmclf.errors import InputError
from minillmclf.text.patterns import Clock, compile_pattern

PATHS = ["model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj",
         "bert.encoder.layer.1.attention.self.query", "h.0", ""]
ENDLESS = r"(?:(\w|[a-z]|.)(\w|[a-z]|.))+\d!*$"


@pytest.mark.parametrize("pattern", [".*", r".*\.q_proj", r"model\.layers\.(0|1\d)\..*",
                                     r".*(query|down_proj)", r"h\.\d+", "", r"(.*\.)?(mlp.\w+)",
                                     r".*layers\.([0-9]|1[01])\.(?!mlp).*proj$", r"(?i)MODEL.*",
                                     r"[^.]+\.[^.]+", r"(?P<n>\w)\.(?P=n)"])
def test_a_pattern_for_names_means_what_it_means_to_re(pattern):
    ours = compile_pattern(pattern, "targets", clock=Clock())
    assert [bool(ours.fullmatch(path)) for path in PATHS] == [bool(re.fullmatch(pattern, path))
                                                              for path in PATHS]


def test_searching_and_replacing_give_what_the_module_gives():
    ours = compile_pattern(r"^\p{L}+", "tokenizer.json", regex.MULTILINE)
    assert [match.span() for match in ours.finditer("ab 1\nçd")] == [(0, 2), (5, 7)]
    assert ours.sub(lambda match: "\\1", "ab\n1") == "\\1\n1"


@pytest.mark.parametrize("call", ["fullmatch", "finditer"])
def test_a_search_without_end_is_ended(call, monkeypatch):
    monkeypatch.setattr(patterns, "MAX_SECONDS", 0.05)
    started = time.process_time()
    with pytest.raises(InputError, match=r"^here: the pattern '.*' takes more than a second on 'x+ "
                       r"\.\.\. x+': write one"):
        getattr(compile_pattern(ENDLESS, "here"), call)("x" * 120)
    assert time.process_time() - started < 1


def test_patterns_that_share_a_clock_share_its_time():
    assert Clock().seconds == patterns.MAX_SECONDS == 1.0
    clock, started = Clock(0.1), time.process_time()
    for _ in range(20):
        with pytest.raises(InputError, match="more than a second"):
            compile_pattern(ENDLESS, "here", clock=clock).fullmatch("x" * 120)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("pattern", ["(", "*", "[z-a]", "(" * 5000, "(a{65535}){65535}",
                                     "a{99999999999}", "a" * 2_000_000, "(?P<n>a", "\\", 3])
@pytest.mark.parametrize("clock", [None, Clock()])
def test_what_is_no_pattern_is_said_in_one_short_line_and_at_once(pattern, clock):
    started = time.process_time()
    with pytest.raises(InputError, match="^the file: .* is not a regular expression: ") as error:
        compile_pattern(pattern, "the file", clock=clock)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250
    assert time.process_time() - started < 1


def test_only_re_decides_what_is_a_pattern_for_names():
    compile_pattern(r"\p{L}+", "tokenizer.json")
    with pytest.raises(InputError, match=r"targets: '\\\\p\{L\}\+' is not a regular expression: "
                       r"bad escape"):
        compile_pattern(r"\p{L}+", "targets", clock=Clock())
