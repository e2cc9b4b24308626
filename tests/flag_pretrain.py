"""What each flag of pretrain changes in the model that it makes."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flag_world import forwards, ok, refused, replaced, shows, strange
from small import bert_folder


class Made:
    """What pretrain has made."""

    def __init__(self, out, printed):
        self.out, self.printed = out, printed
        self.config = json.loads((out / "config.json").read_text())
        self.log = [json.loads(line) for line in (out / "pretrain.jsonl").open()]
        self.tensors = {name: t.float() for name, t in load_file(out / "model.safetensors").items()}


def made(w, **more):
    """A tiny pretraining, of masked words but for `more`; the same settings once."""
    given = {**w.TINY, "objective": "mlm", "text": w.text, **more}
    key = ("made", *sorted((name, str(value)) for name, value in given.items()))
    if key not in w.kept:
        out = w.new()
        lists = [
            part
            for name in ("text", "pairs")
            if name in given and isinstance(given[name], list)
            for part in ("--" + name, *given.pop(name))
        ]
        w.kept[key] = Made(out, ok("pretrain", *lists, **given, out=out))
    return w.kept[key]


def apart(a, b):
    return max((a.tensors[name] - b.tensors[name]).abs().max().item() for name in a.tensors)


@shows("pretrain", "--objective", "--layers", "--width", "--heads", "--mlp-width", "--vocab-size")
def shapes(w):
    sizes = {
        "mlm": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        "clm": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        "spans": ("d_model", "num_layers", "num_heads", "d_ff"),
    }
    for objective, kind, vocabulary in (
        ("mlm", "bert", 100),
        ("clm", "llama", 310),
        ("spans", "t5", 90),
    ):
        plain = made(w, objective=objective, vocab_size=vocabulary, steps=1)
        assert plain.config["model_type"] == kind and plain.config["vocab_size"] >= vocabulary
        assert [plain.config[name] for name in sizes[objective]] == [32, 1, 2, 24]
    more = made(w, width=48, layers=2, heads=4, mlp_width=20, vocab_size=110, steps=1)
    assert [more.config[name] for name in sizes["mlm"]] == [48, 2, 4, 20] and more.config[
        "vocab_size"
    ] == 110
    assert more.tensors["bert.encoder.layer.1.intermediate.dense.weight"].shape == (20, 48)


@shows("pretrain", "--teacher")
def teachers(w):
    """A student begins with its teacher's blocks: of another teacher it is another one."""
    folders = [bert_folder(w.new(), layers=layers, positions=512, dropout=0.0) for layers in (2, 3)]
    students = [
        made(w, objective="distill", teacher=folder, lr=w.STILL, heads=4) for folder in folders
    ]
    assert apart(*students) > 1e-3 and students[0].log != students[1].log
    refused("pretrain", objective="distill", text=w.text, out=w.new(), says="--teacher", **w.TINY)


@shows("pretrain", "--start", "--head-only")
def started(w):
    """From a checkpoint: at a standing rate its very weights, and its vocabulary; or only its LM
    head learns."""
    start = made(w)
    still = made(w, start=start.out, lr=w.STILL)
    assert apart(start, still) == 0 and (still.out / "tokenizer.json").exists()
    assert (
        len(still.tensors["bert.embeddings.word_embeddings.weight"]) == start.config["vocab_size"]
    )
    for only in (False, True):
        more = made(w, start=start.out, head_only=only)
        moved = {
            name
            for name in start.tensors
            if not torch.equal(start.tensors[name], more.tensors[name])
        }
        assert any(name.startswith("cls.") for name in moved)
        assert any(name.startswith("bert.encoder") for name in moved) != only


@shows("pretrain", "--text", "--pairs", "--vector-weight")
def learned_from(w):
    """The texts themselves, how often they are seen, and answers to prompts."""
    other = w.new(".txt")
    other.write_text("\n".join(w.text.read_text().split("\n")[:80]))
    start = made(w).out
    both = [made(w, start=start, text=[w.text, f"{other}:{weight}"]) for weight in (1, 5)]
    assert "from 2 files" in both[0].printed and apart(*both) > 0 < apart(
        both[0], made(w, start=start)
    )
    pairs = w.new(".jsonl")
    pairs.write_text(
        "".join(json.dumps({"prompt": text, "answer": label}) + "\n" for text, label in w.rows * 3)
    )
    told = made(w, objective="clm", start=w.llama, pairs=pairs, text=None, vocab_size=310)
    assert "126 pairs" in told.printed
    mixed = dict(objective="clm", start=w.llama, pairs=pairs, vocab_size=310, length=32)
    assert apart(made(w, **mixed), made(w, **{**mixed, "text": None})) > 0
    mixed["teacher"] = bert_folder(w.new(), layers=2, positions=512, dropout=0.0)
    weighed = [made(w, **mixed, vector_weight=weight) for weight in (0.1, 10)]
    assert apart(*weighed) > 0


def places(w, **more):
    """How many places each step has, of packed rows."""
    with forwards("Embedding") as seen:
        made(w, objective="clm", vocab_size=310, **more)
    return [int(np.prod(shape)) for shape, _, learning in seen if learning]


@shows("pretrain", "--batch-size", "--length", "--steps")
def packed(w):
    assert places(w, batch_size=3, length=20, steps=2) == [3 * 20] * 2
    assert places(w, batch_size=2, length=20, steps=5) == [2 * 20] * 5
    assert places(w, batch_size=3, length=16, steps=2) == [3 * 16] * 2


@shows("pretrain", "--lr", "--seed")
def drawn(w):
    """At a standing rate the weights are fresh ones, which follow from the seed alone."""
    still = [
        made(w, lr=w.STILL, seed=seed, steps=steps) for seed, steps in ((0, 1), (0, 3), (1, 1))
    ]
    assert apart(still[0], still[1]) == 0 and apart(still[0], still[2]) > 1e-3
    moved = [apart(still[0], made(w, lr=lr, steps=1)) for lr in (1e-3, 1e-2)]
    assert moved[0] == pytest.approx(1e-3, rel=0.05) and moved[1] == pytest.approx(1e-2, rel=0.05)


@shows("pretrain", "--precision")
def rough(w):
    for how, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with forwards("Linear") as seen:
            made(w, precision=how, seed=7, steps=2)
        assert {dtype for _, dtype, learning in seen if learning} == {kind}


@shows("pretrain", "--device")
def elsewhere(w):
    given = dict(objective="mlm", text=w.text, **w.TINY)
    refused("pretrain", **given, out=w.new(), device="cuda:77", says="--device cuda:77")
    assert apart(made(w, device="cpu"), made(w)) == 0


@shows("pretrain", "--save-every")
def saved(w):
    """Four steps: a state after each, after the third and the last, or after the last alone."""
    for every, count in ((1, 4), (3, 2), (50, 1)):
        with replaced("state.safetensors") as seen:
            made(w, save_every=every, seed=8)
        assert len(seen) == count


@shows("pretrain", "--threads")
def threads(w, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    made(w, threads=1, seed=9, steps=1)
    assert seen == [1]
    made(w, threads=None, seed=9, steps=1)
    assert seen == [1]


@shows("pretrain", "--out", "--overwrite")
def made_again(w):
    out = w.new()
    out.mkdir()
    (out / "config.json").write_text("{}")
    given = dict(objective="mlm", text=w.text, out=out, **w.TINY)
    refused("pretrain", **given, says="--overwrite")
    ok("pretrain", **given, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == (
        made(w).out / "model.safetensors"
    ).read_bytes()


@shows("pretrain", "--ignore-config-key")
def unknown_key_made(w, monkeypatch):
    strange(
        w,
        monkeypatch,
        "pretrain",
        lambda folder: dict(objective="mlm", text=w.text, start=folder, out=w.new(), **w.TINY),
        words=True,
    )
