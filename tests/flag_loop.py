"""What each flag of train changes in the loop: the losses by hand, the batches, the epoch that is
kept."""

import copy
import functools
import hashlib
import json
import math
import sys
import types
from collections import Counter

import pytest
import torch
from minillmclf import Classifier, load_tokenizer

from flag_world import (
    LABELS,
    forwards,
    ok,
    read_csv,
    refused,
    replaced,
    rows_at_once,
    same,
    shows,
    strange,
    switched,
)

shows = functools.partial(shows, "train")
near = functools.partial(pytest.approx, rel=2e-5, abs=1e-6)


def differ(a, b):
    """Losses that differ, by more than rounding."""
    return max(abs(x - y) for x, y in zip(a, b)) > 1e-4


# ---------------------------------------------------------------- the loop, once more by hand


def rows_by_hand(w, data):
    """The train rows of a file as the model gets them -> ids, mask (B, T), classes (B,)."""
    rows = [row for row in read_csv(data) if row["split"] == "train"]
    tokenizer = load_tokenizer(w.bert)
    ids = [tokenizer.encode(row["text"]) for row in rows]
    ids = [each[0] if isinstance(each, tuple) else each for each in ids]
    wide = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=int) for row in ids], True)
    return wide, mask, torch.tensor([LABELS.index(row["label"]) for row in rows])


@functools.cache                       # the flags share what they are compared with
def losses_by_hand(
    w,
    data,
    steps=5,
    lr=1e-3,
    weight_decay=0.01,
    warmup=0.1,
    schedule="linear",
    clip=1.0,
    label_smoothing=0.0,
    class_weights="none",
    focal_gamma=0.0,
    layer_decay=1.0,
):
    """Full fine-tuning in float64 with all rows in each step -> the loss of each step. Formulas
    only."""
    ids, mask, truth = rows_by_hand(w, data)
    model = Classifier.from_backbone(w.bert, LABELS, seed=0).double()
    named = {name: p for name, p in model.named_parameters()}
    blocks = len(model.backbone.layers)
    first = {name: torch.zeros_like(p) for name, p in named.items()}
    second, found = copy.deepcopy(first), []
    counts = torch.bincount(truth, minlength=3).double()
    weigh = (len(truth) / (3 * counts) if class_weights == "balanced" else torch.ones(3).double())[
        truth
    ]
    rising = round(warmup * steps)
    for step in range(steps):
        logp = model.head(model.backbone(ids, mask), mask).log_softmax(1)
        own = logp.gather(1, truth[:, None])[:, 0]
        each = (
            -((1 - label_smoothing) * own + label_smoothing * logp.mean(1))
            * (1 - own.exp()) ** focal_gamma
        )
        loss = (weigh * each).sum() / weigh.sum()
        model.zero_grad()
        loss.backward()
        found.append(loss.item())
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in named.values()))
        scale = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        done = (step - rising) / max(1, steps - rising)
        factor = (
            (step + 1) / (rising + 1)
            if step < rising
            else {
                "linear": 1 - done,
                "cosine": 0.5 * (1 + math.cos(math.pi * done)),
                "constant": 1.0,
            }[schedule]
        )
        for name, p in named.items():
            block = name.split("layers.")[1].split(".")[0] if "layers." in name else None
            depth = int(block) + 1 if block else 0 if "embedding" in name else blocks + 1
            rate = lr * factor * layer_decay ** (blocks + 1 - depth)
            gradient = p.grad * scale
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            m, v = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
            with torch.no_grad():
                p.mul_(1 - rate * (weight_decay if p.dim() > 1 else 0.0))
                p.sub_(rate * m / (v.sqrt() + 1e-8))
    return found


BY_HAND = {
    "--lr": [dict(lr=3e-3)],
    "--weight-decay": [dict(weight_decay=0.0), dict(weight_decay=20.0)],
    "--warmup": [dict(warmup=0.0), dict(warmup=0.6)],
    "--schedule": [dict(schedule="cosine"), dict(schedule="constant")],
    "--clip": [dict(clip=0.0), dict(clip=1e-7)],
    "--label-smoothing": [dict(label_smoothing=0.3)],
    "--class-weights": [dict(class_weights="balanced")],
    "--focal-gamma": [dict(focal_gamma=2.0), dict(focal_gamma=0.5)],
    "--layer-decay": [dict(layer_decay=0.2)],
}


@shows(*BY_HAND)
def by_hand(w, flag):
    """Each epoch is one step with all rows, so its loss tells the weights after the steps before
    it."""
    usual = dict(lr=1e-2 if flag == "--clip" else 2e-3, weight_decay=1.0, warmup=0.2)
    plain = losses_by_hand(w, w.skew, **usual)
    for case in BY_HAND[flag]:
        found = w.train(data=w.skew, epochs=5, batch_size=100, **usual | case)
        expected = losses_by_hand(w, w.skew, **usual | case)
        assert differ(expected, plain), f"{case} would not be seen"
        assert found.losses == pytest.approx(expected, rel=1e-4), case


@shows("--class-weights of several labels")
def weights_of_several_labels(w):
    """A class counts (rows without it / rows with it) times where a row has it."""
    plain, weighed = (
        w.train(data=w.many, multi_label="on", class_weights=how, epochs=1, batch_size=100)
        for how in ("none", "balanced")
    )
    assert differ(plain.losses, weighed.losses)


# ---------------------------------------------------------------- the loop


@shows("--epochs")
def epochs(w):
    assert [len(w.train(epochs=count).history) for count in (1, 2)] == [1, 2]


@shows("--min-steps")
def min_steps(w):
    """24 rows in batches of 8 are 3 steps an epoch: 10 steps take 4 epochs."""
    assert [line["step"] for line in w.train(min_steps=10).history] == [3, 6, 9, 12]


@shows("--batch-size")
def batch_size(w):
    assert [w.train(batch_size=size).history[0]["step"] for size in (8, 5, 24)] == [3, 5, 1]


@shows("--batch-tokens")
def batch_tokens(w):
    """Texts of 8 tokens each, 41 places: five rows."""
    path = w.cut("eights", lambda words: words[:6])
    assert sorted(rows_at_once(w, data=path, batch_size=8, batch_tokens=41)) == [4, 5, 5, 5, 5]
    assert w.train(data=path, batch_tokens=41).history[0]["step"] == 5


@shows("--micro-batch-size")
def micro_batch_size(w):
    """At most so many rows at a time, and the same gradient: also with weighed classes."""
    asked = dict(data=w.skew, class_weights="balanced")
    assert w.train(**asked, micro_batch_size=3).losses == near(w.train(**asked).losses)
    assert rows_at_once(w, batch_size=8, micro_batch_size=3, **asked) == [3, 3, 2] * 3


@shows("--gradient-accumulation")
def gradient_accumulation(w):
    """So many micro-batches of each step; the same run as with that many rows at a time."""
    asked = dict(data=w.skew, batch_size=8)
    assert rows_at_once(w, gradient_accumulation=3, **asked) == [3, 3, 2] * 3
    assert same(w.train(gradient_accumulation=3, **asked), w.train(micro_batch_size=3, **asked))


@shows("--sampling")
def sampling(w, monkeypatch):
    """balanced: of 24 rows drawn, 8 of each class, though the file has 12, 6 and 6."""
    real, seen = torch.nn.functional.cross_entropy, []

    def keep(scores, labels, **more):
        seen.extend(labels.tolist())
        return real(scores, labels, **more)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", keep)
    for how, counts in (("none", [6, 6, 12]), ("balanced", [8, 8, 8])):
        seen.clear()
        ok("train", model=w.bert, data=w.skew, epochs=1, out=w.new(), sampling=how, baselines="off")
        assert sorted(Counter(seen).values()) == counts


@shows("--optimizer")
def optimizer(w, monkeypatch):
    """The foreign ones are asked for by name, and their steps are what the run is."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    refused(
        "train", model=w.bert, data=w.data, out=w.new(), optimizer="adamw8bit", says="bitsandbytes"
    )
    for kind, name in (("adamw8bit", "AdamW8bit"), ("paged-adamw", "PagedAdamW")):
        steps = []

        class Stub(torch.optim.AdamW):
            def step(self, *given, **more):
                steps.append(1)
                return super().step(*given, **more)

        package = types.ModuleType("bitsandbytes")
        package.optim = types.SimpleNamespace(**{name: Stub})
        monkeypatch.setitem(sys.modules, "bitsandbytes", package)
        ok(
            "train",
            model=w.bert,
            data=w.data,
            epochs=1,
            batch_size=8,
            out=w.new(),
            optimizer=kind,
            baselines="off",
        )
        assert len(steps) == 3


@shows("--gradient-checkpointing")
def checkpointing(w):
    """The same numbers, with dropout too; the blocks are computed a second time."""
    counts, runs = [], []
    for how in ("off", "on"):
        with forwards("LayerNorm") as seen:
            runs.append(w.train(model=w.dropping, gradient_checkpointing=how, lr=1e-2))
        counts.append(len([1 for _, _, learning in seen if learning]))
    steps = 2 * 3
    assert counts[0] == steps * 5 and counts[1] >= steps * 7, (
        "a norm in each of two blocks once more, at least"
    )
    assert same(*runs)


@shows("--precision")
def precision(w):
    """The matrices of a step are multiplied in what it says, and the losses are near."""
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for how, kind in kinds.items():
        with forwards("Linear") as seen:
            ok(
                "train",
                model=w.bert,
                data=w.data,
                epochs=1,
                batch_size=8,
                out=w.new(),
                precision=how,
                baselines="off",
            )
        assert {dtype for _, dtype, learning in seen if learning} == {kind}
        assert {dtype for _, dtype, learning in seen if not learning} == {torch.float32}
    plain, *others = (w.train(precision=how).losses for how in kinds)
    for rough, most in zip(others, (0.05, 0.01)):
        assert plain != rough and plain == pytest.approx(rough, rel=most)


@shows("--metric")
def metric(w):
    """The best epoch is the first with the best value on dev; its weights are those that are
    saved."""
    chosen = {}
    for name, sign in (("accuracy", -1), ("macro_f1", -1), ("log_loss", 1), ("ece", 1)):
        run = w.train(metric=name, lr=1e-2, epochs=6, batch_size=4, seed=1)
        best = min(run.history, key=lambda line: (sign * line[name], line["log_loss"]))
        chosen[name] = run.record["best_epoch"]
        assert chosen[name] == best["epoch"] and f"best epoch {chosen[name]};" in run.out
        told = w.new(".json")
        ok("evaluate", model=run.folder, split="dev", out=told)
        line = run.history[chosen[name] - 1]
        assert json.loads(told.read_text())["log_loss"] == pytest.approx(line["log_loss"], rel=1e-5)
    assert len(set(chosen.values())) >= 3 and max(chosen.values()) < 6, chosen
    for name in ("exact_match", "micro_f1"):
        assert f"train_{name}" in w.train(data=w.many, multi_label="on", metric=name).history[0]


@shows("--patience")
def patience(w):
    """Nothing gets better where no weight moves: the first epoch and so many more."""
    for count in (1, 3):
        assert len(w.train(epochs=6, patience=count, lr=w.STILL).history) == 1 + count
    assert len(w.train(epochs=6, lr=w.STILL).history) == 6


@shows("--eval-batch-size")
def eval_batch_size(w):
    """At most so many rows at a time where nothing is learned; the same numbers."""
    assert max(rows_at_once(w, learning=False, eval_batch_size=4)) == 4
    assert max(rows_at_once(w, learning=False)) == 24
    a, b = (w.train(eval_batch_size=size, lr=2e-3) for size in (4, 64))
    assert (a.probabilities - b.probabilities).abs().max() < 1e-5 and a.losses == near(b.losses)


@shows("--save-every")
def save_every(w):
    """Six steps: a state after each, after every second, or none, and at the end; the same run."""
    runs = []
    for every, count in ((1, 7), (2, 4), (100, 1)):
        with replaced("state.safetensors") as seen:
            runs.append(w.train(save_every=every, lr=3e-3))
        assert len(seen) == count
    assert same(*runs[:2]) and same(*runs[1:])


@shows("--baselines")
def baselines(w):
    assert "bag of words" in w.train(baselines="on").out and "bag of words" not in w.train().out


@shows("--seed")
def seed(w):
    """The fresh head, the order of rows, dropout, and a split made here."""
    runs = [w.train(seed=seed, lr=w.STILL, epochs=1) for seed in (0, 1)]
    for seed, run in enumerate(runs):
        model = Classifier.from_backbone(w.bert, LABELS, seed=seed)
        assert torch.equal(run.tensors["classifier.weight"], model.head.out.weight)
    assert not torch.equal(
        runs[0].tensors["classifier.weight"], runs[1].tensors["classifier.weight"]
    )
    still = [
        w.train(seed=seed, lr=w.STILL, model=w.dropping, epochs=1, batch_size=100).losses
        for seed in (0, 1)
    ]
    assert still[0] != still[1]
    assert orders_of(w, 0) == orders_of(w, 0) != orders_of(w, 1)
    tests = [
        {row["text"] for row in w.train(data=w.unsplit, seed=seed, epochs=1).rows}
        for seed in (0, 1)
    ]
    assert tests == [split_by_hand(w, seed)["test"] for seed in (0, 1)] and tests[0] != tests[1]


def orders_of(w, seed):
    """The lengths of the texts of each step, in places of the embeddings."""
    with forwards("Embedding") as seen:
        ok(
            "train",
            model=w.bert,
            data=w.data,
            epochs=2,
            batch_size=4,
            out=w.new(),
            seed=seed,
            baselines="off",
        )
    return [shape for shape, _, learning in seen if learning]


def split_by_hand(w, seed):
    """Of each class the texts in the order of sha256([seed, text]): the first tenth is dev, the
    next is test."""
    found = {"dev": set(), "test": set(), "train": set()}
    for label in LABELS:
        texts = [row["text"] for row in read_csv(w.unsplit) if row["label"] == label]
        texts.sort(
            key=lambda text: hashlib.sha256(json.dumps([seed, text.casefold()]).encode()).digest()
        )
        tenth = max(1, round(len(texts) / 10))
        found["dev"] |= set(texts[:tenth])
        found["test"] |= set(texts[tenth : 2 * tenth])
        found["train"] |= set(texts[2 * tenth :])
    return found


@shows("--device")
def device(w):
    refused(
        "train", model=w.bert, data=w.data, out=w.new(), device="cuda:77", says="--device cuda:77"
    )
    assert same(w.train(device="cpu"), w.train())


@shows("--deterministic")
def deterministic(w):
    """Each product is computed while torch's switch is on; on a CPU all stays as it was."""
    for how in ("off", "on"):
        with switched() as seen:
            run = w.train(deterministic=how, seed=11)
        assert seen == [how == "on"] * len(seen) and seen
    assert same(run, w.train(deterministic="off", seed=11))
    assert not torch.are_deterministic_algorithms_enabled()


@shows("--parallel")
def parallel(w):
    """One process has nothing to share out."""
    refused("train", model=w.bert, data=w.data, out=w.new(), parallel="fsdp", says="fsdp")
    assert same(w.train(parallel="ddp"), w.train())


@shows("--ignore-config-key")
def ignore_config_key(w, monkeypatch):
    strange(
        w,
        monkeypatch,
        "train",
        lambda folder: dict(model=folder, data=w.data, out=w.new(), epochs=1),
    )
