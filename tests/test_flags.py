"""Every flag of every command changes something that can be observed at the far end: numbers,
tensors, files, words.

The flags are taken from the commands' own parsers, so one that is new has no entry here until
somebody says what it
changes. The entries are in flag_*.py, by command; flag_world.py has
what they share.
"""

import inspect

import pytest

import flag_ask  # noqa: F401
import flag_choose  # noqa: F401
import flag_compare  # noqa: F401
import flag_evaluate  # noqa: F401
import flag_folds  # noqa: F401
import flag_grade  # noqa: F401
import flag_loop  # noqa: F401
import flag_pretrain  # noqa: F401
import flag_train  # noqa: F401
from flag_world import CHECKS, World, call, commands, flags_of, ok


@pytest.fixture(scope="module")
def w(tmp_path_factory):
    return World(tmp_path_factory.mktemp("flags"))


EVERYWHERE = {"--help", "--version"}  # of all commands: below


@pytest.mark.parametrize("command", commands())
def test_each_flag_has_an_entry(command):
    missing = [
        names[-1]
        for names in flags_of(command)
        if not any((command, name) in CHECKS or name in EVERYWHERE for name in names)
    ]
    assert not missing, f"{', '.join(missing)} of {command} has no entry: add what it changes"


@pytest.mark.parametrize("command", commands())
def test_help_and_version(command):
    version = __import__("minillmclf").__version__
    assert ok(command, "--version") == f"minillmclf {version}\n"
    told = ok(command, "--help")
    for names in flags_of(command):
        assert any(name in told for name in names), f"{names} is not in --help"
    assert call(command, "--no-such-flag").code == 2


@pytest.mark.parametrize("command, flag", list(CHECKS), ids=lambda name: name)
def test_a_flag_changes_what_it_says(command, flag, w, monkeypatch):
    check = CHECKS[command, flag]
    known = {"w": w, "flag": flag, "monkeypatch": monkeypatch}
    given = {name: known[name] for name in inspect.signature(check).parameters}
    w.once(
        (check, given.get("flag")), lambda: check(**given)
    )  # of several flags it may be one check
