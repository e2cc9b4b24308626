"""Freed memory goes back to the system where a run asks for little memory, and nowhere else."""
from types import SimpleNamespace

import pytest
from small import TOPICS, bert_folder, data_file, flags, forked_program

from minillmclf import train
from minillmclf.classify.classifier import Classifier
from minillmclf.cli import machine
from minillmclf.training import give_back

# Holes of 3 MB, then blocks of 4 MB, which fit none of them: 60 * 3 - 30 * 3 + 30 * 4 = 210 MB.
HOLES = """
import sys
import torch
from minillmclf.training.give_back import give_back_freed
def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
def block(megabytes):
    return torch.ones(megabytes * 2**18)
block(16)                                              # frees a large block: glibc keeps those now
before = memory("VmRSS")
with give_back_freed(sys.argv[1] == "wanted"):
    held = [block(3) for _ in range(60)]
    held = held[::2]
    held += [block(4) for _ in range(30)]
    print(memory("VmRSS") - before)
"""
ALL_CALLS = [(-3, 10**6), (-3, 32 * 2**20), (-1, 64 * 2**20)]          # set, then reset


@pytest.mark.skipif(give_back.threshold_setter() is None, reason="not glibc, or set by hand")
def test_holes_go_back_to_the_system():
    taken = {}
    for asked in ("wanted", "left"):
        code, out, error = forked_program("-c", HOLES, asked)
        assert code == 0, error
        taken[asked] = float(out)
    assert 205 < taken["wanted"] < 225, taken
    assert taken["left"] > 260, taken                              # the holes are kept


@pytest.fixture
def calls(monkeypatch):
    """What is asked of mallopt: a list of its arguments."""
    made = []
    monkeypatch.setattr(give_back, "threshold_setter", lambda: lambda *given: made.append(given))
    return made


@pytest.mark.parametrize("asked, expected", [
    ({"method": "qlora"}, ALL_CALLS), ({"gradient_checkpointing": "on"}, ALL_CALLS),
    ({"method": "lora", "gradient_checkpointing": "on"}, ALL_CALLS),
    ({"method": "lora"}, []), ({}, [])])
def test_training_gives_back_where_little_memory_is_asked_for(asked, expected, calls, call,
                                                              tmp_path):
    if asked.get("method") == "qlora":
        pytest.importorskip("bitsandbytes")
    code, _, error = call(train, *flags(
        model=bert_folder(tmp_path / "bert"), data=data_file(tmp_path / "rows.csv", 24), epochs=1,
        baselines="off", out=tmp_path / "out", **asked))
    assert code == 0, error
    assert calls == expected


def test_it_is_reset_behind_an_error_and_left_alone_on_a_gpu(calls, monkeypatch, tmp_path):
    with pytest.raises(ZeroDivisionError), give_back.give_back_freed():
        raise ZeroDivisionError
    assert calls == ALL_CALLS
    calls.clear()
    model = Classifier.from_backbone(bert_folder(tmp_path), sorted(TOPICS))
    monkeypatch.setattr(machine, "device_kind", lambda name: name)
    for device, expected in (("cuda", []), ("mps", []), ("cpu", ALL_CALLS)):
        asked = SimpleNamespace(gradient_checkpointing="on", device=device, precision="fp32")
        with machine.memory_of_run(asked, model, []):
            pass
        assert calls == expected, device


@pytest.mark.parametrize("name", give_back.BY_HAND)
def test_a_threshold_set_by_hand_stays(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    assert give_back.threshold_setter() is None
    with give_back.give_back_freed():
        pass
