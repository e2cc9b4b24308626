"""What each flag of grade changes: which exercises are graded, with which cases, and whose code."""

import atexit
import functools
import json
import shutil
import sys
from xml.etree import ElementTree

import pytest
from flag_world import call, ok, refused, shows
from small import ROOT

sys.path.insert(0, str(ROOT))
from lessons.conftest import KeptWorkers  # noqa: E402
from lessons.exercises import make  # noqa: E402
from lessons.grader import grading, output  # noqa: E402


@functools.cache
def workers():
    """Workers of all commands here, so that torch is loaded once for them."""
    kept = KeptWorkers()
    atexit.register(kept.end)
    return kept


def grade(*given, **settings):
    """The command -> Printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grading, "Workers", workers)
        return call("grade", *given, **settings)


def points(w, *given, **settings):
    """{exercise: points}, by the command's JSON."""
    path = w.folder / "grades.json"
    printed = grade(*given, json=path, overwrite=True, **settings)
    assert printed.code in (0, 1), printed.err
    told = json.loads(path.read_text(encoding="utf-8"))
    assert printed.code == (told["points"] < told["of"])
    return {each["id"]: each["points"] for each in told["exercises"]}


def submission(w):
    """A copy of the package in which the function of exercise 2.4 forgets the root."""
    file = w.folder / "student" / "minillmclf" / "models" / "layers.py"
    if not file.exists():
        file.parent.mkdir(parents=True)
        shutil.copyfile(ROOT / "minillmclf" / "models" / "layers.py", file)
        text = file.read_text(encoding="utf-8")
        assert "torch.rsqrt(" in text
        file.write_text(text.replace("torch.rsqrt(", "torch.reciprocal("), encoding="utf-8")
    return w.folder / "student"


@shows("grade", "exercise", "--json", "--junit", "--overwrite")
def graded(w):
    path = w.folder / "grades.xml"
    assert points(w, "2.4", junit=path) == {"2.4": 2}
    assert [each.get("name")[:3] for each in ElementTree.parse(path).getroot()] == ["2.4"]
    refused("grade", "2.4", junit=path, says=f"--junit {path}: is there already")
    assert points(w, "2.4", junit=path) == {"2.4": 2}
    refused("grade", "9.9", says="no such lesson or exercise")


@shows("grade", "--overlay", "--reference")
def overlaid(w):
    assert points(w, "2.4", overlay=submission(w), reference=ROOT) == {"2.4": 1}
    refused("grade", "2.4", overlay=submission(w), says="go together")
    refused("grade", "2.4", overlay=submission(w), reference=w.folder, says="no lessons/exercises/")


@shows("grade", "--seed", "--fixtures")
def hidden(w):
    make.make(["02"], "3", w.folder / "hidden")
    ways = [dict(fixtures=w.folder / "hidden"), dict(seed="3"), dict(seed="4")]
    said = [grade("2.4", overlay=submission(w), reference=ROOT, **way).out for way in ways]
    assert said[0] == said[1] != said[2]
    refused("grade", "2.4", fixtures=w.folder, says="is not there")


@shows("grade", "--hint")
def hinted(w, monkeypatch):
    kept = []
    monkeypatch.setattr(output, "remember", lambda root, record: kept.append(record["hints"]))
    first, second = (ok("grade", "2.1", hint=number) for number in (1, 2))
    assert first.startswith("2.1, hint 1 of ") and first != second
    assert 1 in kept[0]["2.1"] and 2 in kept[1]["2.1"]
    refused("grade", "2.1", hint=99, says="has hints 1 to")


@shows("grade", "--ignore-config-key")
def keys(w):
    """No config.json is read: the flag is taken, and changes nothing."""
    assert ok("grade", "2.1", hint=1, ignore_config_key="strange") == ok("grade", "2.1", hint=1)
