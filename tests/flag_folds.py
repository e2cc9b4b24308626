"""What each flag of folds, compare changes.

folds and compare hand the settings of train on. So a bundle of settings is given to them and to
train: the weights are
the same bit for bit, and so are the batches on the way there. That each setting changes train is
shown in flag_train.py.
"""

import contextlib
import csv
import functools
import hashlib
import json
import sys

import numpy as np
import pytest
from minillmclf import Classifier
from safetensors.torch import load_file

from flag_world import (
    LABELS,
    Run,
    forwards,
    ok,
    read_csv,
    refused,
    replaced,
    same,
    shows,
    strange,
    switched,
    write_csv,
)
from small import bert_folder

near = functools.partial(pytest.approx, rel=1e-4, abs=1e-6)
WORDS = json.dumps({"garden": "old tree", "kitchen": "soup", "weather": "very big"})


# ---------------------------------------------------------------- bundles of settings

BUNDLES = {
    "loop": dict(
        data="skew",
        min_steps=22,
        batch_size=5,
        lr=2e-3,
        weight_decay=1.0,
        warmup=0.3,
        schedule="cosine",
        clip=0.01,
        label_smoothing=0.1,
        class_weights="balanced",
        layer_decay=0.5,
        metric="ece",
        patience=2,
        eval_batch_size=4,
        save_every=2,
        micro_batch_size=3,
        gradient_checkpointing="on",
        baselines="off",
        rows_per_class=7,
        seed=1,
    ),
    "head": dict(
        data="long",
        pool="mean",
        max_length=12,
        truncation_side="left",
        gradient_accumulation=2,
        batch_tokens=60,
        focal_gamma=1.5,
        sampling="balanced",
        weights="random",
        precision="bf16",
        deterministic="on",
    ),
    "lora": dict(
        data="data",
        dtype="bf16",
        epochs=3,
        method="lora",
        rank=3,
        alpha=7.0,
        adapter_dropout=0.3,
        use_rslora="on",
        targets="q_proj",
        bias="all",
        lr=1e-2,
    ),
    "windows": dict(
        data="long",
        method="qlora",
        quantise="fp4",
        windows="mean",
        max_length=20,
        overlap=5,
        max_windows=1,
        max_document=33,
        lr=1e-2,
    ),
    "columns": dict(
        data="marked",
        method="pfeiffer",
        adapter_size=5,
        text_column="said",
        label_column="kind",
        quoting="none",
        lr=1e-2,
    ),
    "probe": dict(data="data", head_init="probe", head_lr=5e-3),
    "prefix": dict(data="data", method="prefix", virtual_tokens=3, projection="on", lr=1e-2),
    "words": dict(
        data="data",
        model="llama",
        readout="labels",
        template="{text}. the {label}",
        label_texts=WORDS,
        instruction="read",
        end="eos",
        score_by="token",
        objective="completion",
    ),
    "answers": dict(data="three", preference="head", swap="both", lr=1e-2),
}
BUNDLED = {
    "--" + name.replace("_", "-"): bundle
    for bundle, settings in BUNDLES.items()
    for name in settings
}


def bundle_of(w, name):
    """The settings of a bundle, with paths -> dict."""
    given = dict(model="bert", epochs=2, batch_size=8, lr=1e-3) | BUNDLES[name]
    return given | {key: getattr(w, given[key]) for key in ("model", "data")}


@contextlib.contextmanager
def way():
    """with way() as found: ... -> what the steps were: the rows and places of all norms, the most
    rows of an
    evaluation, the states that were saved, and whether torch's deterministic algorithms were on."""
    found = {}
    with (
        forwards("LayerNorm") as norms,
        forwards("Linear", out=3) as rows,
        replaced("state.safetensors") as saved,
        switched() as deterministic,
    ):
        yield found
    found["deterministic"] = set(deterministic)
    found["steps"] = [shape for shape, _, learning in norms if learning]
    found["asked"] = max((shape[0] for shape, _, learning in rows if not learning), default=0)
    found["saved"] = saved


def by_train(w, name, key="", **more):
    """A bundle in train -> Run, the way there."""
    if ("bundle", name, key) not in w.kept:
        out = w.new()
        with way() as found:
            printed = ok("train", **bundle_of(w, name) | more, out=out)
        w.kept["bundle", name, key] = Run(out, printed), found
    return w.kept["bundle", name, key]


# ---------------------------------------------------------------- folds


def digest(*parts):
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def folds_by_hand(rows, texts, label, k, seed):
    """Which rows are held out in which fold, and which are dev rows of the first: class by class in
    the order of
    sha256(seed, text), dealt in turn; of the rest, a tenth of each class in another such order."""
    keys = [json.dumps([" ".join(row[name].casefold().split()) for name in texts]) for row in rows]
    order = sorted(range(len(rows)), key=lambda n: (rows[n][label], digest(seed, keys[n])))
    fold = {n: place % k for place, n in enumerate(order)}
    dev = set()
    for name in {row[label] for row in rows}:
        own = [n for n in range(len(rows)) if fold[n] and rows[n][label] == name]
        own.sort(key=lambda n: digest(f"{seed}:0", " ".join(keys[n].casefold().split())))
        dev |= set(own[: max(1, round(len(own) / 10))])
    return [fold[n] for n in range(len(rows))], dev


def first_fold(w, data, texts, label, k, seed):
    """A file with the rows of the first fold, so that train can have them."""
    raw = dict(quoting=csv.QUOTE_NONE, quotechar=None) if data == w.marked else {}
    rows = read_csv(data, **raw)
    kept = [row for row in rows if row.get("split") != "test"]
    fold, dev = folds_by_hand(kept, texts, label, k, seed)
    for n, row in enumerate(kept):
        row["split"] = "test" if fold[n] == 0 else "dev" if n in dev else "train"
    return write_csv(w.new(".csv"), kept, **raw)


FOLDED = [flag for flag in BUNDLED if flag not in ("--model", "--data")]


@shows("folds", *FOLDED)
def folded(w, flag):
    w.once(("folds", BUNDLED[flag]), lambda: folded_bundle(w, BUNDLED[flag]))


def folded_bundle(w, name):
    given, out = bundle_of(w, name), w.new()
    texts = (
        ["prompt", "response_a", "response_b"]
        if name == "answers"
        else [given.get("text_column", "text")]
    )
    if name == "answers":  # an arena's file has its own names of labels
        given |= dict(text_column=",".join(texts), label_column="label")
    label = given.get("label_column", "label")
    data = first_fold(w, given["data"], texts, label, 2, given.get("seed", 0))
    alone, steps = by_train(
        w,
        name,
        "fold",
        data=data,
        **({key: given[key] for key in ("text_column", "label_column") if key in given}),
    )
    with way() as found:
        ok("folds", **given, folds=2, out=out)
    first = Run(out / "fold-1")
    assert same(first, alone)
    assert [line["log_loss"] for line in first.history] == [
        line["log_loss"] for line in alone.history
    ]
    assert list(first.record["results"]) == list(alone.record["results"])
    assert first.record["best_epoch"] == alone.record["best_epoch"]
    assert [row["p_" + alone.record["data"]["labels"][0]] for row in first.rows] == [
        row["p_" + alone.record["data"]["labels"][0]] for row in alone.rows
    ]
    assert (
        found["steps"][: len(steps["steps"])] == steps["steps"] and found["asked"] >= steps["asked"]
    )
    assert found["deterministic"] == steps["deterministic"] == {"deterministic" in given}
    assert len([path for path in found["saved"] if path.parent.name == "fold-1"]) == len(
        steps["saved"]
    )


QUICK = dict(epochs=1, batch_size=8, lr=1e-2, baselines="off", folds=2)


def folds(w, **more):
    """The folder of folds, made once for the same settings."""
    given = dict(model=w.bert, data=w.unsplit) | QUICK | more
    key = ("folds", *sorted((name, str(value)) for name, value in given.items()))
    if key not in w.kept:
        w.kept[key] = w.new()
        ok("folds", **given, out=w.kept[key])
    return w.kept[key]


@shows("folds", "--model", "--data", "--out", "--folds", "the seed of the run")
def held_out(w, monkeypatch):
    """Each row is judged once, by the model of its fold, which has not seen it; folds follow from
    the seed."""
    wide, rows = bert_folder(w.new(), width=48, dropout=0.0), read_csv(w.unsplit)
    for asked, k, seed in ((dict(model=wide), 2, 0), (dict(seed=1), 2, 1), (dict(folds=3), 3, 0)):
        out = folds(w, **asked)
        expected, _ = folds_by_hand(rows, ["text"], "label", k, seed)
        oof = read_csv(out / "oof.csv")
        assert [int(row["fold"]) - 1 for row in oof] == expected
        for fold in range(k):
            held = [n for n in range(len(rows)) if expected[n] == fold]
            p = Classifier.load(out / f"fold-{fold + 1}").predict([rows[n]["text"] for n in held])
            told = np.array([[float(oof[n][f"p_{name}"]) for name in LABELS] for n in held])
            assert np.abs(p - told).max() < 1e-5
    assert (
        load_file(folds(w, model=wide) / "fold-1" / "model.safetensors")["classifier.weight"].shape[
            1
        ]
        == 48
    )
    monkeypatch.chdir(w.folder)
    ok("folds", model=w.bert, data=w.other, method="head", **QUICK)
    assert len(read_csv(w.folder / "runs" / "bert-other-head-0-folds-2" / "oof.csv")) == 24 + 9


@shows("folds", "--group")
def grouped(w):
    rows = read_csv(w.unsplit)
    for n, row in enumerate(rows):
        row["writer"] = f"writer {n % 7}"
    path = write_csv(w.new(".csv"), rows)
    for asked, together in ((dict(group="writer"), True), ({}, False)):
        found = {}
        for row, told in zip(rows, read_csv(folds(w, data=path, **asked) / "oof.csv")):
            found.setdefault(row["writer"], set()).add(told["fold"])
        assert (max(map(len, found.values())) == 1) == together


@shows("folds", "--test", "--sample", "--temperature")
def submitted(w):
    """The mean of the folds' probabilities for the rows of --test, in the columns and the order of
    --sample."""
    rows = [{"id": f"r{n}", "text": text} for n, (text, _) in enumerate(w.rows[:9])]
    test, order = write_csv(w.new(".csv"), rows), [3, 0, 8, 1, 2, 4, 5, 6, 7]
    sample = write_csv(
        w.new(".csv"), [{"id": f"r{n}", "weather": 0, "garden": 0, "kitchen": 0} for n in order]
    )
    asked = dict(test=test, sample=sample, epochs=4, seed=3)
    out = {how: folds(w, **asked, temperature=how) for how in ("off", "auto")}
    parts = [
        Classifier.load(out["off"] / f"fold-{n}").predict([row["text"] for row in rows])
        for n in (1, 2)
    ]
    mean, told = sum(parts) / 2, read_csv(out["off"] / "submission.csv")
    assert list(told[0]) == ["id", "weather", "garden", "kitchen"] and [
        row["id"] for row in told
    ] == [f"r{n}" for n in order]
    for row, n in zip(told, order):
        assert [float(row[name]) for name in LABELS] == near(mean[n].tolist())
    records = {how: json.loads((folder / "folds.json").read_text()) for how, folder in out.items()}
    helps = records["auto"]["calibrated"]["log_loss"] < records["auto"]["all"]["log_loss"]
    assert helps, "these folds should profit from a temperature, or nothing is seen"
    assert (
        records["off"]["temperature"] == 1
        and records["auto"]["temperature"] == records["off"]["fitted_temperature"] != 1
    )
    sharper = read_csv(out["auto"] / "submission.csv")
    t = records["auto"]["temperature"]
    logits = [np.log(p) / t for p in parts]
    mean = sum(np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in logits) / 2
    for row, n in zip(sharper, order):
        assert [float(row[name]) for name in LABELS] == near(mean[n].tolist())
    plain = read_csv(folds(w, test=test) / "submission.csv")
    assert list(plain[0]) == ["id", *(f"p_{name}" for name in LABELS)] and [
        row["id"] for row in plain
    ] == [row["id"] for row in rows]
    assert not (folds(w) / "submission.csv").exists()


@shows("folds", "--config", "--overwrite")
def folds_again(w):
    """The settings of a run.json, with flags over them; another time only with --overwrite."""
    first, out = folds(w, seed=1), w.new()
    ok("folds", config=first / "fold-1" / "run.json", folds=2, out=out)
    for name in ("oof.csv", "fold-2/model.safetensors"):
        assert (out / name).read_bytes() == (first / name).read_bytes()
    refused(
        "folds", config=first / "fold-1" / "run.json", folds=2, out=out, seed=0, says="--overwrite"
    )
    ok("folds", config=first / "fold-1" / "run.json", folds=2, out=out, seed=0, overwrite=True)
    assert (out / "oof.csv").read_bytes() == (folds(w) / "oof.csv").read_bytes()


@shows("folds", "--multi-label", "--device", "--parallel", "--optimizer")
def folds_refused(w, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for flags, says in (
        (dict(multi_label="on"), "--multi-label"),
        (dict(device="cuda:77"), "--device cuda:77"),
        (dict(parallel="fsdp"), "fsdp"),
        (dict(optimizer="paged-adamw"), "bitsandbytes"),
    ):
        refused("folds", model=w.bert, data=w.unsplit, out=w.new(), folds=2, says=says, **flags)


@shows("folds", "--ignore-config-key")
def unknown_key_folded(w, monkeypatch):
    strange(
        w,
        monkeypatch,
        "folds",
        lambda folder: dict(model=folder, data=w.unsplit, out=w.new()) | QUICK,
    )
