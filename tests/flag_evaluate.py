"""What each flag of evaluate changes in the metrics that it writes."""

import functools
import json
import random
import shutil

import numpy as np
import pytest
from minillmclf import Classifier

from flag_loop import split_by_hand
from flag_train import by_label_texts
from flag_world import LABELS, forwards, ok, read_csv, refused, shows, strange

near = functools.partial(pytest.approx, rel=1e-4, abs=1e-6)


def rows_of(path, split=None, text="text", label="label"):
    """[(text, label)] of a file, of one split or of all."""
    return [(row[text], row[label]) for row in read_csv(path) if split in (None, row.get("split"))]


def log_loss(probabilities, labels, known=LABELS):
    """The mean of -log p(true class)."""
    return -np.log(
        [p[known.index(label)] for p, label in zip(np.asarray(probabilities), labels)]
    ).mean()


def loss_by_hand(folder, rows, base=None):
    """The log loss of a saved classifier on [(text or texts, label)]."""
    model = Classifier.load(folder, base)
    texts, labels = zip(*rows)
    return log_loss(model.predict(list(texts)), labels, model.labels)


def told(w, command="evaluate", **given):
    """What the command writes to --out, JSON."""
    out = w.new(".json")
    ok(command, out=out, **given)
    return json.loads(out.read_text())


def quoted(w):
    """`data` as a file whose cells have quotes."""
    path = w.folder / "quoted.csv"
    lines = [f'"{text}",{label},{split}' for (text, label), split in zip(w.rows, w.SPLITS)]
    path.write_text("\n".join(["text,label,split", *lines]) + "\n")
    return path


def based(w):
    """A run with LoRA on a base of its own, and where that base lies now."""
    if "based" not in w.kept:
        there, now = w.new(), w.new()
        shutil.copytree(w.bert, there)
        run = w.train(model=there, method="lora", lr=1e-2)
        there.rename(now)
        w.kept["based"] = run, now
    return w.kept["based"]


def preferring(w):
    """A run that compares two answers, and its test rows."""
    rows = [
        ((r["prompt"], r["response_a"], r["response_b"]), r["label"])
        for r in read_csv(w.three)
        if r["split"] == "test"
    ]
    return w.train(data=w.three, preference="head", lr=1e-2), rows


def both_orders(folder, texts):
    """The mean of the probabilities of (x, a, b), and of (x, b, a) with a and b exchanged."""
    model = Classifier.load(folder)
    turned = model.predict([(x, b, a) for x, a, b in texts])[:, [1, 0, 2]]
    return (model.predict(texts) + turned) / 2


def rows_at_once(command, *given, **asked):
    """How many rows go through the last layer of the head at a time."""
    with forwards("Linear", out=3) as seen:
        ok(command, *given, **asked)
    return [shape[0] for shape, _, _ in seen]


# ---------------------------------------------------------------- evaluate


@shows("evaluate", "--model", "--data", "--split")
def rows_judged(w):
    """Without --data the rows of the run; of data with splits those of --split."""
    for run, splits in ((w.train(), ["test"]), (w.train(lr=1e-2), ["train", "dev", "test"])):
        for split in splits:
            found = told(w, model=run.folder, split=split)
            assert found["log_loss"] == near(loss_by_hand(run.folder, rows_of(w.data, split)))
            found = told(w, model=run.folder, data=w.other, split=split)
            assert found["log_loss"] == near(loss_by_hand(run.folder, rows_of(w.other, split)))
        assert told(w, model=run.folder) == told(w, model=run.folder, split="test")


@shows("evaluate", "the seed of the run")
def split_of_the_run(w):
    """A split that was made for the run, by its seed: not one of its train rows is judged on."""
    for seed in (0, 1):
        run = w.train(data=w.unsplit, seed=seed, lr=1e-2, few_rows="off")
        label = dict(rows_of(w.unsplit))
        for split in ("dev", "test", "train"):
            texts = sorted(split_by_hand(w, seed)[split])
            found = told(w, model=run.folder, split=split)
            assert found["rows"] == len(texts)
            assert found["log_loss"] == near(
                loss_by_hand(run.folder, [(text, label[text]) for text in texts])
            )
        assert {row["text"] for row in run.rows} == split_by_hand(w, seed)["test"]


@shows("evaluate", "--text-column", "--label-column")
def columns_judged(w):
    run = w.train(lr=1e-2)
    rows = rows_of(w.renamed, "test", "said", "kind")
    found = told(w, model=run.folder, data=w.renamed, text_column="said", label_column="kind")
    assert found["log_loss"] == near(loss_by_hand(run.folder, rows))
    other = rows_of(w.renamed, "test", "text", "kind")
    found = told(w, model=run.folder, data=w.renamed, label_column="kind")
    assert found["log_loss"] == near(loss_by_hand(run.folder, other))
    own = w.train(data=w.renamed, text_column="said", label_column="kind")
    assert told(w, model=own.folder, data=w.renamed)["log_loss"] == near(
        loss_by_hand(own.folder, rows)
    )


@shows("evaluate", "--quoting")
def quoting_judged(w):
    run, rows = w.train(lr=1e-2), rows_of(w.data, "test")
    for how, mark in (("none", '"'), ("double", "")):
        found = told(w, model=run.folder, data=quoted(w), quoting=how)
        marked = [(mark + text + mark, label) for text, label in rows]
        assert found["log_loss"] == near(loss_by_hand(run.folder, marked)), how
    raw = w.train(data=quoted(w), quoting="none")
    marked = [(f'"{text}"', label) for text, label in rows]
    assert told(w, model=raw.folder)["log_loss"] == near(loss_by_hand(raw.folder, marked))


@shows("evaluate", "--batch-size")
def batch_judged(w):
    run, asked = w.train(lr=1e-2), {"command": "evaluate", "model": w.train(lr=1e-2).folder}
    assert sorted(rows_at_once(**asked, batch_size=4)) == [1, 4, 4] and rows_at_once(**asked) == [9]
    assert told(w, model=run.folder, batch_size=4)["log_loss"] == near(
        told(w, model=run.folder)["log_loss"]
    )


@shows("evaluate", "--base")
def base_judged(w):
    run, now = based(w)
    refused("evaluate", model=run.folder, says="base")
    found = told(w, model=run.folder, base=now)
    assert found["log_loss"] == near(
        log_loss(run.probabilities, [row["label"] for row in run.rows])
    )


@shows("evaluate", "--swap")
def swap_judged(w):
    run, rows = preferring(w)
    labels = [label for _, label in rows]
    model = Classifier.load(run.folder)
    plain = model.predict([texts for texts, _ in rows])
    for how, p in (
        ("none", plain),
        ("predict", both_orders(run.folder, [texts for texts, _ in rows])),
    ):
        found = told(w, model=run.folder, swap=how)
        assert found["log_loss"] == near(log_loss(p, labels, model.labels)), how
    twice = w.train(data=w.three, preference="head", lr=1e-2, swap="predict")
    p = Classifier.load(twice.folder)
    p.task.swap = "none"
    p = p.predict([texts for texts, _ in rows])
    assert told(w, model=twice.folder, swap="none")["log_loss"] == near(
        log_loss(p, labels, model.labels)
    )
    assert np.abs(p - twice.probabilities.numpy()).max() > 1e-4


def written(w, command, content, **given):
    """--out is written, another time only with --overwrite; content(text) of what stands in it
    then."""
    out = w.new(".json")
    ok(command, out=out, **given)
    assert content(out.read_text())
    out.write_text("mine")
    refused(command, out=out, says="--overwrite", **given)
    assert out.read_text() == "mine"
    ok(command, out=out, overwrite=True, **given)
    assert content(out.read_text())


@shows("evaluate", "--out", "--overwrite")
def written_metrics(w):
    run = w.train()
    own = list(run.record["results"].values())[-1]
    written(
        w,
        "evaluate",
        lambda text: json.loads(text)["log_loss"] == near(own["log_loss"]),
        model=run.folder,
    )


ASKED = dict(
    method="prompt",
    template="{text} was {label}",
    label_texts=json.dumps({"garden": "rose", "kitchen": "soup", "weather": "rain"}),
)
OTHER = json.dumps({"garden": "tree", "kitchen": "old", "weather": "new"})


def asked_by_hand(w, rows, write, texts):
    """The log loss of label texts in the place of [MASK]."""

    class Asked:
        pass

    Asked.rows = [{"text": text} for text, _ in rows]
    p = by_label_texts(w, Asked, write, texts)
    return log_loss(p, [label for _, label in rows])


@shows("evaluate", "--method", "--template", "--label-texts", "--instruction")
def prompted(w):
    """A masked language model, asked by hand."""
    refused("evaluate", model=w.words, data=w.data, says="no classification head")
    rows, usual = rows_of(w.data, "test"), ("rose", "soup", "rain")
    cases = [
        ({}, "{} was [MASK]", usual),
        (dict(template="the {label}, {text}"), "the [MASK], {}", usual),
        (dict(label_texts=OTHER), "{} was [MASK]", ("tree", "old", "new")),
        (dict(instruction="very big"), "very big\n\n{} was [MASK]", usual),
    ]
    seen = []
    for more, prompt, texts in cases:
        found = told(w, model=w.words, data=w.data, **ASKED | more)["results"]["as it is"]
        seen.append(found["log_loss"])
        assert seen[-1] == near(asked_by_hand(w, rows, prompt.format, texts)), more
    assert len({round(loss, 4) for loss in seen}) == 4


def prompted_loss(w, **more):
    return told(w, model=w.llama, data=w.data, method="prompt", **more)["results"]["as it is"][
        "log_loss"
    ]


@shows("evaluate", "--end", "--max-length")
def ended(w):
    """An end token is one token more; a prompt of fewer tokens has less of the text."""
    assert prompted_loss(w, end="auto") == prompted_loss(w, end="none")
    assert abs(prompted_loss(w, end="eos") - prompted_loss(w, end="none")) > 1e-4
    cut = {
        length: told(w, model=w.words, data=w.long, **ASKED, max_length=length)["settings"][
            "max_length"
        ]
        for length in (10, 20)
    }
    assert cut == {10: 10, 20: 20}
    losses = [
        told(w, model=w.words, data=w.long, **ASKED, **more)["results"]["as it is"]["log_loss"]
        for more in (dict(max_length=10), dict(max_length=20), {})
    ]
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 1e-4
    assert "9 of 9 rows cut to 10 tokens" in ok(
        "evaluate", model=w.words, data=w.long, **ASKED, max_length=10
    )


@shows("evaluate", "--device")
def prompted_on(w):
    refused(
        "evaluate", model=w.words, data=w.data, device="cuda:77", says="--device cuda:77", **ASKED
    )
    assert told(w, model=w.words, data=w.data, device="cpu", **ASKED) == told(
        w, model=w.words, data=w.data, **ASKED
    )


def shots_in(out):
    """The finished examples in the prompt that is printed, [(text, label)]; the last is the row
    itself."""
    prompt = out.split("shots, ")[0].rsplit("\n\n", 1)[0]
    blocks = [block.split("\n") for block in prompt.split("\n\n") if block.startswith("Text: ")]
    return [(lines[0].removeprefix("Text: "), lines[1].removeprefix("Label: ")) for lines in blocks]


@shows("evaluate", "--shots", "--neighbours")
def shots(w):
    """Shots are rows of train, even over the classes; neighbours are those that are near, other
    ones for each row."""
    train = rows_of(w.data, "train")
    plain = ok("evaluate", model=w.llama, data=w.data, method="prompt")
    assert len(shots_in(plain)) == 1 and "\n0 shots" in plain
    out = ok("evaluate", model=w.llama, data=w.data, method="prompt", shots=3)
    *found, _ = shots_in(out)
    assert (
        len(found) == 3
        and set(found) <= set(train)
        and {label for _, label in found} == set(LABELS)
    )
    near_ones = ok(
        "evaluate", model=w.llama, data=w.data, method="prompt", shots=3, neighbours=w.bert
    )
    assert "each row's nearest" in near_ones and "PMI" not in near_ones
    losses = [
        prompted_loss(w, **more) for more in ({}, dict(shots=3), dict(shots=3, neighbours=w.bert))
    ]
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 1e-5


@shows("evaluate", "--rows", "--seed")
def rows_drawn(w):
    """So many rows, drawn by the seed; with as many shots as drawn by it."""
    found = [told(w, model=w.words, data=w.data, rows=4, seed=seed, **ASKED) for seed in (0, 1)]
    assert [each["rows"] for each in found] == [4, 4]
    for seed, each in enumerate(found):
        rows = random.Random(f"judged:{seed}").sample(rows_of(w.data, "test"), 4)
        by_hand = asked_by_hand(w, rows, "{} was [MASK]".format, ("rose", "soup", "rain"))
        assert each["results"]["as it is"]["log_loss"] == near(by_hand)
    drawn = [
        shots_in(ok("evaluate", model=w.llama, data=w.data, method="prompt", shots=3, seed=seed))[
            :3
        ]
        for seed in (0, 1)
    ]
    assert set(drawn[0]) != set(drawn[1])
    label = dict(rows_of(w.unsplit))
    for seed in (0, 1):
        rows = [(text, label[text]) for text in split_by_hand(w, seed)["test"]]
        loss = told(w, model=w.words, data=w.unsplit, seed=seed, **ASKED)["results"]["as it is"][
            "log_loss"
        ]
        assert loss == near(
            asked_by_hand(w, rows, "{} was [MASK]".format, ("rose", "soup", "rain"))
        )


@shows("evaluate", "--beams", "--variance")
def decoded(w):
    asked = dict(model=w.llama, data=w.data, method="prompt", rows=3)
    for beams in (1, 2):
        assert f"decoding with {beams} beam{'s' * (beams > 1)} misses" in ok(
            "evaluate", **asked, beams=beams
        )
    assert "decoding" not in ok("evaluate", **asked)
    prompts = told(w, **asked, variance=True)["prompts"]
    assert len({each["template"] for each in prompts}) == len(prompts) == 5
    assert len(told(w, **asked, variance=True, shots=2)["prompts"]) == 25


@shows("evaluate", "--ignore-config-key")
def unknown_key_judged(w, monkeypatch):
    strange(
        w,
        monkeypatch,
        "evaluate",
        lambda folder: dict(model=folder, data=w.data, **ASKED),
        words=True,
    )


@shows("evaluate", "--precision")
def judged_in_bf16(w):
    run = w.train(lr=1e-2)
    plain, rough = (told(w, model=run.folder, precision=how) for how in ("fp32", "bf16"))
    assert (plain["dtype"], rough["dtype"]) == ("fp32", "bf16")
    assert 0 < abs(plain["log_loss"] - rough["log_loss"]) < 0.05
    refused("evaluate", model=run.folder, device="cuda:77", says="--device cuda:77")
    assert told(w, model=run.folder, precision="auto")["dtype"] in ("fp32", "bf16")
