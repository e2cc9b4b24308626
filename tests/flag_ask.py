"""What each flag of predict, merge, inspect, labels, choose and report changes in what they print
and write."""

import csv
import functools
import io
import json
import shutil

import numpy as np
import pytest
from minillmclf import Classifier

from flag_evaluate import (
    OTHER,
    based,
    both_orders,
    preferring,
    quoted,
    rows_at_once,
    rows_of,
    written,
)
from flag_world import LABELS, forwards, ok, read_csv, refused, shows, strange, write_csv
from small import bert_folder

near = functools.partial(pytest.approx, rel=1e-4, abs=1e-6)


# ---------------------------------------------------------------- predict


def answers(*texts, **given):
    return [json.loads(line) for line in ok("predict", *texts, **given).splitlines()]


def probabilities(found, name="probabilities"):
    return np.array([list(each[name].values()) for each in found])


@shows("predict", "text", "--model")
def predicted(w):
    for run in (w.train(lr=1e-2), w.train(lr=1e-2, seed=1)):
        found = answers("rose tree", "old rain", model=run.folder)
        p = Classifier.load(run.folder).predict(["rose tree", "old rain"])
        assert [each["text"] for each in found] == ["rose tree", "old rain"]
        assert np.abs(probabilities(found) - p).max() < 1e-6
        assert [each["label"] for each in found] == [LABELS[best] for best in p.argmax(1)]


@shows("predict", "--base")
def predicted_on_a_base(w):
    run, now = based(w)
    text = run.rows[0]["text"]
    refused("predict", text, model=run.folder, says="base")
    assert probabilities(answers(text, model=run.folder, base=now))[0] == near(
        run.probabilities[0].tolist()
    )


@shows("predict", "--pair")
def predicted_pair(w):
    run = w.train(data=w.pairs, lr=1e-2)
    found = answers("rose tree", model=run.folder, pair="old rain")
    assert (found[0]["text_a"], found[0]["text_b"]) == ("rose tree", "old rain")
    p = Classifier.load(run.folder).predict([("rose tree", "old rain"), ("old rain", "rose tree")])
    assert probabilities(found)[0] == near(p[0]) and np.abs(p[0] - p[1]).max() > 1e-3


@shows("predict", "--data", "--text-column")
def predicted_rows(w):
    run = w.train(lr=1e-2)
    for asked, column in (
        (dict(data=w.data), "text"),
        (dict(data=w.renamed, text_column="said"), "said"),
        (dict(data=w.renamed), "text"),
    ):
        texts = [row[column] for row in read_csv(asked["data"])]
        p = Classifier.load(run.folder).predict(texts)
        assert np.abs(probabilities(answers(model=run.folder, **asked)) - p).max() < 1e-6, asked


@shows("predict", "--swap")
def predicted_both_ways(w):
    run, rows = preferring(w)
    path = write_csv(
        w.new(".csv"),
        [dict(zip(("prompt", "response_a", "response_b"), texts)) for texts, _ in rows],
    )
    texts = [texts for texts, _ in rows]
    plain = Classifier.load(run.folder).predict(texts)
    for how, p in (("none", plain), ("predict", both_orders(run.folder, texts))):
        assert (
            np.abs(probabilities(answers(model=run.folder, data=path, swap=how)) - p).max() < 1e-6
        )
    assert np.abs(plain - both_orders(run.folder, texts)).max() > 1e-4


@shows("predict", "--out", "--overwrite")
def predicted_into(w):
    run = w.train()
    written(
        w,
        "predict",
        lambda text: (
            [json.loads(line)["text"] for line in text.splitlines()]
            == [text for text, _ in rows_of(w.data)]
        ),
        model=run.folder,
        data=w.data,
    )


@shows("predict", "--show-cut")
def shown_cut(w):
    run = w.train(data=w.long, max_length=30, epochs=1)
    found = answers(model=run.folder, data=w.long, show_cut=True)
    assert [each["cut"] for each in found] == [
        len(text.split()) > 28 for text, _ in rows_of(w.long)
    ]
    assert {each["cut"] for each in found} == {True, False}
    assert "cut" not in answers(model=run.folder, data=w.long)[0]


@shows("predict", "--format")
def formatted(w):
    run = w.train()
    lines = answers(model=run.folder, data=w.data, format="jsonl")
    table = list(
        csv.DictReader(io.StringIO(ok("predict", model=run.folder, data=w.data, format="csv")))
    )
    assert [row["predicted"] for row in table] == [each["predicted"] for each in lines]
    assert [float(row["p_garden"]) for row in table] == [
        each["probabilities"]["garden"] for each in lines
    ]


@shows("predict", "--batch-size")
def predicted_at_once(w):
    asked = {"command": "predict", "model": w.train().folder, "data": w.other}
    assert max(rows_at_once(**asked, batch_size=5)) == 5 and rows_at_once(**asked) == [42]


@shows("predict", "--quoting")
def predicted_quotes(w):
    run = w.train()
    for how, mark in (("none", '"'), ("double", "")):
        assert [
            each["text"] for each in answers(model=run.folder, data=quoted(w), quoting=how)
        ] == [mark + text + mark for text, _ in w.rows]


@shows("predict", "--ignore-config-key")
def unknown_key_predicted(w, monkeypatch):
    strange(
        w, monkeypatch, "predict", lambda folder: dict(model=folder), before=["rose"], run=w.train()
    )


# ---------------------------------------------------------------- merge


@shows("merge", "--model", "--out", "--overwrite")
def merged(w):
    """What was learned beside the base is in one plain folder, with the same answers."""
    for asked in (dict(method="lora"), dict(method="dora")):
        run, out = w.train(lr=1e-2, **asked), w.new()
        said = ok("merge", model=run.folder, out=out)
        assert "0 rows change their class" in said and f"saved in {out}" in said
        assert not (out / "adapter").exists()
        p = Classifier.load(out).predict([row["text"] for row in run.rows])
        assert np.abs(p - run.probabilities.numpy()).max() < 1e-5
    refused("merge", model=run.folder, out=out, says="--overwrite")
    other = w.train(lr=1e-2, method="lora", seed=1)
    ok("merge", model=other.folder, out=out, overwrite=True)
    p = Classifier.load(out).predict([row["text"] for row in other.rows])
    assert np.abs(p - other.probabilities.numpy()).max() < 1e-5


@shows("merge", "--base")
def merged_bases(w):
    """full: the matrices are stored as numbers; 4bit: packed, and rounded once more. Or the place
    of the base."""
    run, kinds = w.train(method="qlora", lr=1e-2), {}
    refused("merge", model=run.folder, out=w.new(), says="--base full")
    for kind in ("full", "4bit"):
        out = w.new()
        ok("merge", model=run.folder, out=out, base=kind)
        kinds[kind] = json.loads((out / "config.json").read_text()).get("quantization_config")
    assert kinds["full"] is None and kinds["4bit"]
    run, now = based(w)
    refused("merge", model=run.folder, out=w.new(), says="base")
    ok("merge", model=run.folder, out=w.new(), base=now)


@shows("merge", "--device")
def merged_on(w):
    run, out = w.train(method="lora", lr=1e-2), w.new()
    refused("merge", model=run.folder, out=out, device="cuda:77", says="--device cuda:77")
    assert not out.exists()
    ok("merge", model=run.folder, out=out, device="cpu")


@shows("merge", "--data", "--split", "--text-column", "--label-column", "--quoting")
def merged_rows(w):
    """Whose answers are compared: their number, and their texts on the way through the
    tokenizer."""
    run = w.train(method="lora", lr=1e-2)

    def rows(**more):
        said = ok("merge", model=run.folder, out=w.new(), **more)
        return said.split(": on ")[0], int(said.split(": on ")[1].split()[0])

    assert rows() == (f"{w.data}, test", 9) and rows(split="train") == (f"{w.data}, train", 24)
    assert rows(data=w.other, split="dev") == (f"{w.other}, dev", 9)
    refused(
        "merge",
        model=run.folder,
        out=w.new(),
        data=w.renamed,
        text_column="no",
        says="no column 'no'",
    )
    refused(
        "merge",
        model=run.folder,
        out=w.new(),
        data=w.renamed,
        label_column="no",
        says="no column 'no'",
    )
    counts = {}
    for name, more in {
        "said": dict(data=w.renamed, text_column="said"),
        "text": dict(data=w.renamed),
        "none": dict(data=quoted(w), quoting="none"),
        "double": dict(data=quoted(w), quoting="double"),
    }.items():
        with forwards("Embedding") as seen:
            rows(split="dev", **more)
        counts[name] = sorted(shape for shape, _, _ in seen)
    assert counts["said"] != counts["text"] and counts["none"] != counts["double"] == counts["said"]


@shows("merge", "--batch-size")
def merged_at_once(w):
    run = w.train(method="lora", lr=1e-2)
    assert sorted(rows_at_once("merge", model=run.folder, out=w.new(), batch_size=4)) == [
        1,
        1,
        4,
        4,
        4,
        4,
    ]


@shows("merge", "--ignore-config-key")
def unknown_key_merged(w, monkeypatch):
    """An adapter remembers which key of its base was left out; where that is lost, the flag says it
    again."""
    monkeypatch.setenv("MINILLMCLF_IGNORE_CONFIG_KEYS", "")
    base, out = w.new(), w.new()
    shutil.copytree(w.bert, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"strange_key": 1}))
    ok(
        "train",
        model=base,
        data=w.data,
        method="lora",
        epochs=1,
        out=out,
        ignore_config_key="strange_key",
    )
    monkeypatch.setenv("MINILLMCLF_IGNORE_CONFIG_KEYS", "")
    ok("merge", model=out, out=w.new())
    for path in (out / "tuned.json", out / "adapter" / "minillmclf.json"):
        kept = json.loads(path.read_text())
        forget(kept)
        path.write_text(json.dumps(kept))
    refused("merge", model=out, out=w.new(), says="strange_key")
    ok("merge", model=out, out=w.new(), ignore_config_key="strange_key")


def forget(record):
    """Take the names of keys that were left out from a record, however deep they lie."""
    record.pop("ignored", None)
    for value in record.values():
        if isinstance(value, dict):
            forget(value)


# ---------------------------------------------------------------- inspect


@shows("inspect", "model", "--layers")
def inspected(w):
    wide = bert_folder(w.new(), layers=3, dropout=0.0)
    few, many = ok("inspect", w.bert), ok("inspect", wide)
    assert "2 layers" in few and "3 layers" in many
    assert few.count("layers.{}.q_proj.weight") == 1 and "layers.0.q_proj" not in few
    lines = ok("inspect", wide, layers=True)
    assert [f"layers.{n}.q_proj.weight" in lines for n in range(4)] == [True, True, True, False]


@shows("inspect", "--method", "--dtype", "--batch-size", "--max-length")
def estimated(w):
    """The step that is estimated; it takes more with more rows, with longer texts and by a larger
    method."""

    def step(**more):
        out = ok("inspect", w.bert, **more)
        amount = out.split("as it is")[-1].split("\n")[0].split()
        factor = {"B": 1, "kB": 1e3, "MB": 1e6}[amount[1]]
        return out.split("a step of ")[1].split(", and its")[0], float(amount[0]) * factor

    said, usual = step()
    assert said == "--method full --batch-size 32, all texts of 64 tokens"
    for more, words, fewer in (
        (dict(method="head"), "--method head --batch-size 32, all texts of 64 tokens", True),
        (
            dict(method="head", dtype="bf16"),
            "--method head --dtype bf16 --batch-size 32, all texts of 64 tokens",
            True,
        ),
        (dict(batch_size=4), "--method full --batch-size 4, all texts of 64 tokens", True),
        (dict(max_length=16), "--method full --batch-size 32, all texts of 16 tokens", True),
        (dict(batch_size=64), "--method full --batch-size 64, all texts of 64 tokens", False),
    ):
        said, amount = step(**more)
        assert said == words and (amount < usual) == fewer and amount != usual
    assert step(method="lora", dtype="bf16")[1] < step(method="lora")[1]
    assert "--dtype bf16" in ok("inspect", w.bert, method="lora")


@shows("inspect", "--ignore-config-key")
def unknown_key_inspected(w, monkeypatch):
    folders = []
    strange(w, monkeypatch, "inspect", lambda folder: folders.append(folder) or {}, first=True)


# ---------------------------------------------------------------- labels


def examined(w, **given):
    given = dict(model=w.llama, labels=None) | given
    names = given.pop("labels") or ()
    return told_labels(w, names, **given)


def told_labels(w, names, **given):
    out = w.new(".json")
    ok("labels", *(("--labels", *names) if names else ()), out=out, **given)
    return json.loads(out.read_text())


@shows("labels", "--model", "--labels", "--data", "--label-column", "--text-column")
def label_tokens(w):
    pieces = {
        name: examined(w, model=getattr(w, name), labels=["rose", "soup"])
        for name in ("llama", "words")
    }
    lengths = {
        name: [len(text["ids"]) for text in found["texts"]] for name, found in pieces.items()
    }
    assert lengths["words"] == [1, 1] and min(lengths["llama"]) > 1
    assert [text["label"] for text in examined(w, data=w.data)["texts"]] == LABELS
    assert [
        text["label"] for text in examined(w, data=w.renamed, label_column="kind")["texts"]
    ] == LABELS
    assert [text["label"] for text in examined(w, data=w.renamed)["texts"]] == ["even", "odd"]
    named = ok(
        "labels",
        model=w.llama,
        data=w.renamed,
        text_column="said",
        label_column="kind",
        template="{said}? {label}",
    )
    assert "3 label texts" in named
    refused(
        "labels",
        model=w.llama,
        data=w.renamed,
        label_column="kind",
        template="{said}? {label}",
        says="said",
    )


@shows("labels", "--quoting")
def label_quotes(w):
    path = w.new(".csv")
    path.write_text(
        "text,label,split\n"
        + "".join(f'{text},"{label}",{split}\n' for (text, label), split in zip(w.rows, w.SPLITS))
    )
    for how, mark in (("none", '"'), ("double", "")):
        assert [text["label"] for text in examined(w, data=path, quoting=how)["texts"]] == [
            mark + name + mark for name in LABELS
        ]


@shows("labels", "--label-texts", "--template", "--instruction", "--end", "--score-by")
def label_places(w):
    texts = examined(w, data=w.data, label_texts=OTHER)["texts"]
    assert [text["text"].strip() for text in texts] == ["tree", "old", "new"]
    tokens = [
        examined(w, data=w.data, **more)["prompt"]["tokens"]
        for more in (
            {},
            dict(template="Text: {text}\nLabel: {label}"),
            dict(template="{text}: {label}"),
            dict(instruction="Read!"),
        )
    ]
    assert tokens[0] == tokens[1] and tokens[2] < tokens[0] < tokens[3]
    plain, ended = (examined(w, data=w.data, end=how)["texts"] for how in ("none", "eos"))
    assert [len(b["ids"]) - len(a["ids"]) for a, b in zip(plain, ended)] == [1, 1, 1]
    assert "no end token" in ok("labels", model=w.llama, data=w.data, end="none")
    said = {
        way: ok("labels", "--labels", "old", "kitchen", model=w.llama, score_by=way)
        for way in ("sum", "token", "char", "byte")
    }
    assert (
        len(set(said.values())) >= 2
        and "compared by sum" in said["sum"]
        and "compared by sum" not in said["char"]
    )


@shows("labels", "--out", "--overwrite")
def label_report(w):
    written(
        w, "labels", lambda text: len(json.loads(text)["texts"]) == 3, model=w.llama, data=w.data
    )


@shows("labels", "--ignore-config-key")
def label_keys(w):
    """Only the kind of the model is read of its config.json: the flag is taken, and changes
    nothing."""
    given = ("labels", "--labels", "rose", "soup")
    assert ok(*given, model=w.words) == ok(*given, model=w.words, ignore_config_key="strange_key")


@shows("predict", "--device", "--precision")
def predicted_on(w):
    run = w.train(lr=1e-2)
    asked = dict(model=run.folder, data=w.data)
    refused("predict", device="cuda:77", says="--device cuda:77", **asked)
    plain, rough = (probabilities(answers(precision=how, **asked)) for how in ("fp32", "bf16"))
    assert (probabilities(answers(device="cpu", **asked)) == plain).all()
    assert 0 < np.abs(np.asarray(rough) - plain).max() < 0.05
    chosen = np.asarray(probabilities(answers(precision="auto", **asked)))
    assert (chosen == plain).all() or (chosen == rough).all()
