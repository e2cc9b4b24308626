"""Which rows and which epoch does a printed number come from, and is it that number?

The run of this file is such that a mix-up shows: the best epoch is not the last, the labels of dev
are half noise, train, dev and test have different numbers of rows and of each class, and the seed
is 1. Numbers are computed once more by scikit-learn, or by a loop, from what the saved model says.
"""

import contextlib
import csv
import html
import io
import json
import random
import re
import statistics
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import small
import torch

from minillmclf import evaluate, train
from minillmclf.folds import __main__ as folds
from minillmclf.predict import __main__ as predict
from minillmclf.report import __main__ as report
from minillmclf.classify.classifier import Classifier
from minillmclf.classify.multilabel import MultiLabel

LABELS = list(small.TOPICS)
SPLITS = {
    "train": (60, 1, 0.15),
    "dev": (24, 2, 0.5),
    "test": (20, 3, 0.1),
}  # rows, seed, share of drawn labels


def ece(p, truth, bins=15):
    """The expected calibration error by a loop over rows."""
    filled = {}
    for row, label in zip(p, truth):
        filled.setdefault(min(int(row.max() * bins), bins - 1), []).append(
            (row.max(), row.argmax() == label)
        )
    return sum(
        abs(sum(c for c, _ in found) - sum(r for _, r in found)) for found in filled.values()
    ) / len(truth)


def measured(p, truth):
    """What scikit-learn says of probabilities (N, C) -> {name: number}; f1: of each class."""
    sk = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    answers = p.argmax(1)
    return {
        "accuracy": sk.accuracy_score(truth, answers),
        "macro_f1": sk.f1_score(truth, answers, average="macro", zero_division=0),
        "log_loss": sk.log_loss(truth, p.astype(np.float64), labels=range(p.shape[1])),
        "ece": ece(p.astype(np.float64), truth),
        "f1": sk.f1_score(truth, answers, average=None, labels=range(p.shape[1]), zero_division=0),
    }


SHOWN = ("accuracy", "macro_f1", "log_loss", "ece")


def assert_printed(line, expected, names=SHOWN):
    """The last numbers of a line are these, to the last digit but one half."""
    found = [float(word) for word in line.split()[-len(names) :]]
    assert found == pytest.approx([expected[name] for name in names], abs=6e-4), (
        f"{line!r} should say {expected}"
    )


def line_of(out, start):
    found = [line for line in out.splitlines() if line.startswith(start)]
    assert len(found) == 1, f"{len(found)} lines begin with {start!r} in {out}"
    return found[0]


def printed(main, *given):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(list(map(str, given))) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that chose its epoch by log loss.

    .folder, .given (the arguments), .out (what train printed), .record, .history, .model, .rows;
    .texts and .truth by split.
    """
    folder = tmp_path_factory.mktemp("numbers")
    small.bert_folder(folder / "bert")
    rows = []
    for split, (count, seed, noise) in SPLITS.items():
        rng, kept = random.Random(seed), Counter()
        for text, label in small.texts_of(rng, count):
            label = rng.choice(LABELS) if rng.random() < noise else label
            kept[label] += 1
            if split != "train" or label != LABELS[0] or kept[label] % 2:  # one class is rarer
                rows.append((text, label, split))
    with open(folder / "data.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label", "split"), *rows])
    given = small.flags(
        model=folder / "bert",
        data=folder / "data.csv",
        out=folder / "run",
        epochs=8,
        lr="6e-3",
        batch_size=8,
        seed=1,
        metric="log_loss",
        schedule="constant",
    )
    out = printed(train.main, *given)
    record = json.loads((folder / "run" / "run.json").read_text())
    history = [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    texts = {split: [row[0] for row in rows if row[2] == split] for split in SPLITS}
    truth = {
        split: np.array([LABELS.index(row[1]) for row in rows if row[2] == split])
        for split in SPLITS
    }
    return SimpleNamespace(
        folder=folder,
        given=given,
        out=out,
        record=record,
        history=history,
        texts=texts,
        truth=truth,
        model=Classifier.load(folder / "run"),
        rows=rows,
    )


@pytest.fixture(scope="module")
def said(made):
    """What the saved model is worth on the rows of each split -> {split: metrics}."""
    return {
        split: measured(made.model.predict(texts), made.truth[split])
        for split, texts in made.texts.items()
    }


# ---------------------------------------------------------------- train


def test_the_run_can_tell_a_mix_up(made, said):
    losses = [line["log_loss"] for line in made.history]
    assert (
        1 < losses.index(min(losses)) + 1 < len(losses) == 8 and max(losses) > min(losses) + 0.05
    ), losses
    assert len({round(said[split][name], 3) for split in SPLITS for name in SHOWN}) == 12, (
        "two numbers are alike"
    )
    assert len({len(texts) for texts in made.texts.values()}) == 3


def test_the_final_table_is_of_the_test_rows_by_the_best_epoch(made, said):
    best = min(made.history, key=lambda line: line["log_loss"])["epoch"]
    assert made.record["best_epoch"] == best and f"\nbest epoch {best}; " in made.out
    assert_printed(line_of(made.out, "bert, full "), said["test"])
    assert line_of(made.out, "test (20 rows) ")
    lines = made.out.splitlines()
    place = lines.index("F1 of each class, bert, full:")
    assert [line.split() for line in lines[place + 1 : place + 4]] == [
        [label, f"{f1:.3f}"] for label, f1 in zip(LABELS, said["test"]["f1"])
    ]
    own = made.record["results"]["bert, full"]
    assert [own[name] for name in SHOWN] == pytest.approx(
        [said["test"][name] for name in SHOWN], abs=1e-5
    )
    with open(made.folder / "run" / "predictions.csv", encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["text"] for row in written] == made.texts["test"]
    assert np.allclose(
        [[float(row[f"p_{name}"]) for name in LABELS] for row in written],
        made.model.predict(made.texts["test"]),
        atol=1e-5,
    )


def test_the_baselines_of_the_table_learn_from_train_and_are_judged_on_test(made):
    shares = np.bincount(made.truth["train"], minlength=3) / len(made.truth["train"])
    assert_printed(
        line_of(made.out, "majority class "), measured(np.tile(shares, (20, 1)), made.truth["test"])
    )
    from minillmclf.classify.baseline import BagOfWords

    texts = {split: [(text,) for text in made.texts[split]] for split in SPLITS}
    bag = BagOfWords(3).fit(
        texts["train"], made.truth["train"].tolist(), texts["dev"], made.truth["dev"].tolist()
    )
    assert_printed(
        line_of(made.out, "bag of words "), measured(bag.predict(texts["test"]), made.truth["test"])
    )


def test_the_bag_of_words_chooses_its_penalty_on_dev(made, tmp_path):
    from minillmclf.classify.baseline import BagOfWords

    rows, splits = {}, {"train": (48, 1, 0.15), "dev": (24, 6, 0.5), "test": (18, 3, 0.1)}
    for split, (count, seed, noise) in splits.items():
        rng = random.Random(seed)
        rows[split] = [
            ((text,), LABELS.index(rng.choice(LABELS) if rng.random() < noise else label))
            for text, label in small.texts_of(rng, count)
        ]
    with open(tmp_path / "data.csv", "w", encoding="utf-8", newline="") as file:
        lines = [(*text, LABELS[c], split) for split in splits for text, c in rows[split]]
        csv.writer(file).writerows([("text", "label", "split"), *lines])
    given = small.flags(model=made.folder / "bert", data=tmp_path / "data.csv", epochs=1)
    out = printed(train.main, *given, "--method", "head", "--out", tmp_path / "run")

    def fitted_on(split):
        train_rows, chosen = (list(map(list, zip(*rows[name]))) for name in ("train", split))
        texts, truth = map(list, zip(*rows["test"]))
        return measured(BagOfWords(3).fit(*train_rows, *chosen).predict(texts), np.array(truth))

    assert_printed(line_of(out, "bag of words "), fitted_on("dev"))
    assert abs(fitted_on("dev")["log_loss"] - fitted_on("test")["log_loss"]) > 0.01


def test_the_line_of_an_epoch_is_of_that_epoch(made, said):
    lines = [line for line in made.out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == len(made.history) == 8
    for number, (line, kept) in enumerate(zip(lines, made.history), 1):
        assert kept["epoch"] == number and kept["step"] == number * -(
            -len(made.texts["train"]) // 8
        )
        words = line.replace("  dev ", "  ").split()
        assert words[:2] == ["epoch", str(number)] and words[4] == f"{kept['train_loss']:.3f}"
        assert words[5:7] == ["log_loss", f"{kept['train_log_loss']:.3f}"]
        assert dict(zip(words[7::2], words[8::2])) == {name: f"{kept[name]:.3f}" for name in SHOWN}
    best = made.history[made.record["best_epoch"] - 1]
    assert [best[name] for name in SHOWN] == pytest.approx(
        [said["dev"][name] for name in SHOWN], abs=1e-5
    )
    assert best["train_log_loss"] == pytest.approx(said["train"]["log_loss"], abs=1e-5), (
        "of all 50 or so rows of train"
    )


def test_the_costs_of_a_run_are_those_on_record(made):
    timing, parameters = made.record["timing"], made.record["parameters"]
    assert (
        f"{parameters['trainable']:,} of {parameters['total']:,} parameters trained; "
        f"{timing['train_seconds']} s, "
        f"{timing['seconds_per_step'] * 1000:.0f} ms a step, "
        f"{timing['examples_per_second']:.0f} examples a second, peak "
        f"memory {timing['peak_memory_mb']} MB"
    ) in made.out
    assert (
        parameters["total"]
        == parameters["trainable"]
        == sum(p.numel() for p in made.model.parameters())
    )
    steps = 8 * -(-len(made.texts["train"]) // 8)
    assert timing["seconds_per_step"] * steps == pytest.approx(
        timing["train_seconds"], abs=0.06 + 1e-4 * steps
    )
    if timing["train_seconds"] >= 1:
        rows = timing["examples_per_second"] * timing["train_seconds"]
        assert rows == pytest.approx(8 * len(made.texts["train"]), rel=0.06)


def test_a_finished_run_shows_its_table_again(made):
    again = printed(train.main, *made.given)
    for start in (
        "bert, full ",
        "majority class ",
        "bag of words ",
        "best epoch ",
        "test (20 rows)",
    ):
        assert line_of(again, start) == line_of(made.out, start)


def test_the_tables_of_the_data_doctor_count_rows_of_their_split(made):
    rows = [line.split() for line in made.out.splitlines()]
    counts = {split: Counter(made.truth[split].tolist()) for split in SPLITS}
    assert next(row for row in rows if row[:1] == ["all"])[1:4] == [
        str(len(made.texts[split])) for split in SPLITS
    ]
    for number, label in enumerate(LABELS):
        row = next(row for row in rows if row[:1] == [label] and len(row) == 5)
        share = counts["train"][number] / len(made.texts["train"])
        assert row[1:] == [*(str(counts[split][number]) for split in SPLITS), f"{share:.1%}"]
    lengths = {
        split: sorted(len(made.model.tokenizer.ids(text)) + 2 for text in texts)
        for split, texts in made.texts.items()
    }
    found = next(row for row in rows if row[:2] == ["tokens,", "max"])
    assert found[2:] == [str(max(lengths[split])) for split in SPLITS]


# ---------------------------------------------------------------- evaluate, predict


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("where", ["of the run", "a file"])
def test_evaluate_judges_the_rows_that_it_names(split, where, made, said, tmp_path):
    sk = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    data = ["--data", made.folder / "data.csv"] if where == "a file" else []
    out = printed(
        evaluate.main,
        "--model",
        made.folder / "run",
        "--split",
        split,
        *data,
        "--batch-size",
        7,
        "--out",
        tmp_path / "e.json",
    )
    assert_printed(line_of(out, "run "), said[split])
    assert f", {split} ({len(made.texts[split])} rows) " in out.splitlines()[0]
    found = json.loads((tmp_path / "e.json").read_text())
    assert [found[name] for name in SHOWN] == pytest.approx(
        [said[split][name] for name in SHOWN], abs=1e-5
    )
    assert found["rows"] == len(made.texts[split])
    for label, f1 in zip(LABELS, said[split]["f1"]):
        assert line_of(out, f"  {label} ").split() == [label, f"{f1:.3f}"]
    matrix = sk.confusion_matrix(
        made.truth[split], made.model.predict(made.texts[split]).argmax(1), labels=range(3)
    )
    expected = {
        (LABELS[t], LABELS[a]): matrix[t, a]
        for t in range(3)
        for a in range(3)
        if t != a and matrix[t, a]
    }
    listed = re.findall(r"^ +(\d+) x (\w+) taken for (\w+)$", out, re.M)
    assert all(expected[t, a] == int(n) for n, t, a in listed)
    assert [int(n) for n, *_ in listed] == sorted(expected.values(), reverse=True)[:5]
    assert f"0 of {len(made.texts[split])} texts cut to 64 tokens." in out


def test_texts_that_are_cut_are_counted_by_the_model_s_own_length(made, tmp_path):
    short, long = "a rose", " ".join(["tree"] * 70)
    with open(tmp_path / "d.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [("text", "label"), (short, "garden"), (long, "garden"), (long + " seed", "weather")]
        )
    out = printed(evaluate.main, "--model", made.folder / "run", "--data", tmp_path / "d.csv")
    assert "\n2 of 3 texts cut to 64 tokens." in out


def test_what_predict_answers_is_what_was_judged(made, said):
    texts = made.texts["dev"][:5]
    lines = [
        json.loads(line)
        for line in printed(predict.main, "--model", made.folder / "run", *texts).splitlines()
    ]
    p = made.model.predict(texts)
    assert [line["label"] for line in lines] == [LABELS[row.argmax()] for row in p]
    assert np.allclose(
        [[line["probabilities"][name] for name in LABELS] for line in lines], p, atol=2e-6
    )


# ---------------------------------------------------------------- report


def cells_of(page):
    """The tables of a page, each a list of rows of cells as text."""
    rows = []
    for row in re.findall(r"<tr.*?</tr>", page, re.S):
        rows.append(
            [
                html.unescape(re.sub("<[^>]*>", "", cell))
                for cell in re.findall(r"<t[dh].*?</t[dh]>", row, re.S)
            ]
        )
    return rows


def test_the_page_of_a_run_has_the_numbers_of_its_test_rows_and_its_best_epoch(
    made, said, tmp_path
):
    printed(report.main, "--run", made.folder / "run", "--out", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    rows = cells_of(page)
    assert [
        "bert, full",
        *(f"{made.record['results']['bert, full'][name]:.3f}" for name in SHOWN),
    ] in rows
    best = made.history[made.record["best_epoch"] - 1]
    assert ["epochs", f"8; best on dev: epoch {best['epoch']}, by log loss"] in rows
    (bold,) = re.findall(r"<tr class=own><td[^>]*>(\d+)</td>", page)
    assert int(bold) == best["epoch"]
    assert [
        str(best["epoch"]),
        *(f"{best[name]:.3f}" for name in ("train_loss", "log_loss", "accuracy")),
    ] in rows
    p = made.model.predict(made.texts["test"])
    answers, truth = p.argmax(1), made.truth["test"]
    assert f"The model is right in {said['test']['accuracy']:.1%} of the rows" in page
    assert f"a probability of {p.max(1).mean():.1%} on average" in page
    assert f"of {(answers != truth).sum()} in all" in page
    for number, label in enumerate(LABELS):
        row = next(row for row in rows if row[:2] == [label, str((truth == number).sum())])
        assert row[-1] == f"{said['test']['f1'][number]:.3f}"
    assert f"train {len(made.texts['train'])}, dev 24, test 20 rows, 3 classes" in page


# ---------------------------------------------------------------- folds


@pytest.fixture(scope="module")
def shared_out(made):
    """Three folds over the rows of train, of unequal sizes, and what the command printed."""
    with open(made.folder / "all.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [
                ("id", "text", "label"),
                *(
                    (900 - i, text, label)
                    for i, (text, label, split) in enumerate(made.rows)
                    if split == "train"
                ),
            ]
        )
    out = made.folder / "folds"
    told = printed(
        folds.main,
        *small.flags(
            model=made.folder / "bert",
            data=made.folder / "all.csv",
            out=out,
            folds=3,
            epochs=2,
            lr="6e-3",
            batch_size=8,
            seed=1,
            baselines="off",
        ),
    )
    with open(out / "oof.csv", encoding="utf-8", newline="") as file:
        return told, list(csv.DictReader(file)), out


def test_the_table_of_folds_is_of_rows_that_no_model_of_theirs_has_seen(shared_out):
    told, rows, out = shared_out
    p = np.array([[float(row[f"p_{name}"]) for name in LABELS] for row in rows])
    truth, fold = (
        np.array([LABELS.index(row["label"]) for row in rows]),
        np.array([int(row["fold"]) for row in rows]),
    )
    each = []
    for number in (1, 2, 3):
        here = fold == number
        each.append(measured(p[here], truth[here]))
        assert_printed(line_of(told, f"fold {number} ({here.sum()} rows)"), each[-1])
    spread = {name: statistics.stdev(one[name] for one in each) for name in SHOWN}
    assert_printed(line_of(told, "sd over the folds"), spread)
    whole = measured(p, truth)
    assert_printed(line_of(told, f"all {len(rows)} rows"), whole)
    record = json.loads((out / "folds.json").read_text())
    assert record["mean"] == pytest.approx(
        {name: statistics.mean(one[name] for one in each) for name in SHOWN}, abs=1e-5
    )
    assert record["sd"] == pytest.approx(spread, abs=1e-5)
    assert_printed(line_of(told, "all, calibrated"), record["calibrated"])
    found = re.search(
        r"temperature ([\d.]+) \(fitted to all rows\); log loss ([\d.]+) before, ([\d.]+) after",
        told,
    )
    assert float(found[2]) == pytest.approx(whole["log_loss"], abs=6e-5)
    assert float(found[3]) == pytest.approx(record["calibrated"]["log_loss"], abs=6e-5)
    helps = record["calibrated"]["log_loss"] < whole["log_loss"]
    assert (
        told.rstrip().splitlines()[-3].endswith("; applied") == helps
        and (record["temperature"] != 1.0) == helps
    )


def test_each_fold_chose_its_epoch_on_dev_rows_of_its_own(shared_out):
    _, rows, out = shared_out
    for number in (1, 2, 3):
        record = json.loads((out / f"fold-{number}" / "run.json").read_text())
        held = [row for row in rows if int(row["fold"]) == number]
        assert record["split"] == "test" and record["data"]["rows"]["test"] == len(held)
        assert sum(record["data"]["rows"].values()) == len(rows)
        model = Classifier.load(out / f"fold-{number}")
        with open(out.parent / "all.csv", encoding="utf-8", newline="") as file:
            text = {row["id"]: row["text"] for row in csv.DictReader(file)}
        p = model.predict([text[row["id"]] for row in held])
        assert np.allclose(
            p, [[float(row[f"p_{name}"]) for name in LABELS] for row in held], atol=1e-6
        )


# ---------------------------------------------------------------- several labels a text


def test_the_numbers_of_several_labels_are_those_of_scikit_learn(tmp_path):
    sk = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    model = Classifier.from_backbone(small.bert_folder(tmp_path / "bert"), LABELS)
    texts = [text for text, _ in small.texts_of(random.Random(4), 30)]
    with torch.no_grad():
        model.head.out.weight.normal_(0, 1.0, generator=torch.Generator().manual_seed(1))
        model.head.out.bias -= model.compute_logits(model.encode(texts)[0]).mean(0)
    thresholds = [0.4, 0.5, 0.6]
    model.task = MultiLabel(LABELS, thresholds)
    model.save(tmp_path / "model")
    p = Classifier.load(tmp_path / "model").predict(texts).astype(np.float64)
    rng = np.random.default_rng(0)
    truth = rng.random((30, 3)) < np.clip(p + 0.1, 0, 1)
    cells = ["|".join(name for name, yes in zip(LABELS, row) if yes) for row in truth]
    with open(tmp_path / "d.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, cells)])
    out = printed(
        evaluate.main,
        "--model",
        tmp_path / "model",
        "--data",
        tmp_path / "d.csv",
        "--out",
        tmp_path / "e.json",
    )
    half, own = p >= 0.5, p >= np.array(thresholds)
    assert (half != own).any() and own.any(0).all()
    expected = []
    for score in (
        lambda a: sk.accuracy_score(truth, a),
        lambda a: sk.f1_score(truth, a, average="micro"),
        lambda a: sk.f1_score(truth, a, average="macro", zero_division=0),
    ):
        expected += [score(half), score(own)]
    loss = np.mean([sk.log_loss(truth[:, c], p[:, c], labels=[0, 1]) for c in range(3)])
    line = [float(word) for word in line_of(out, "model ").split()[1:]]
    assert line[:7] == pytest.approx([*expected, loss], abs=6e-4)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        truth, own, average=None, zero_division=0
    )
    for c, label in enumerate(LABELS):
        found = [float(word) for word in line_of(out, f"  {label} ").split()[1:]]
        assert found == pytest.approx([thresholds[c], precision[c], recall[c], f1[c]], abs=6e-4)
    assert "0 of 30 texts cut to 64 tokens." in out
