"""A comparison: what is combined, what cannot be, what runs again, each number by hand.

Cells are processes; here they are forks of one that has torch (small.forked), but for two tests of
real ones. Models are tiny, so no score here means anything.
"""
import csv
import json
import random
import shutil
import signal
import statistics
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import small

from minillmclf.compare import comparison, configurations, runs, __main__ as compare
from minillmclf.compare.comparison import obstacle
from minillmclf.compare.configurations import make_configurations, labels_of, read_sweep
from minillmclf.cli.parser import run
from minillmclf.errors import InputError, Stopped
from minillmclf.cli.settings import Settings
from minillmclf.compare.runs import Run
from minillmclf.compare.summary import (difference_to_best, interval_over_seeds, read_predictions,
                                        summarise)
from minillmclf.compare.table import csv_of_runs, comparison_markdown
from minillmclf.cli.rows import write_predictions
from minillmclf.training.metrics import METRICS, evaluate
from minillmclf.training.statistics import bootstrap_interval, mcnemar_p, t_interval

QUICK = ["--epochs", "1", "--batch-size", "8"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `bert`, `lm` (with a language-model head) and data.csv. Tests only read it."""
    folder = tmp_path_factory.mktemp("compare")
    small.bert_folder(folder / "bert", layers=1)
    small.bert_folder(folder / "lm", layers=1, lm_head=True)
    small.data_file(folder / "data.csv")
    return folder


@pytest.fixture
def call(capsys):
    """call(*arguments) -> exit code, stdout, stderr of the command."""
    def call(*given):
        with pytest.raises(SystemExit) as end:
            run(lambda: compare.main(list(map(str, given))))
        return end.value.code, *capsys.readouterr()
    return call


@pytest.fixture
def started(monkeypatch):
    """Cells run as forks. -> the list of (module, arguments) that were started"""
    calls = []

    def process(module, *arguments, printed, errors):
        calls.append((module, list(map(str, arguments))))
        code, out, err, _ = small.forked(module.removeprefix("minillmclf."), arguments)
        printed.write_text(out)
        errors.write_text(err)
        return code
    monkeypatch.setattr(runs, "run_module", process)
    return calls


def trainings(started):
    return [arguments for module, arguments in started if module == "minillmclf.train"]


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table_of(out):
    return json.loads((out / "table.json").read_text())


def record(cell):
    return json.loads((cell / "cell.json").read_text())


def files(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns)
            for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- the whole command

def test_compare(place, call, started, tmp_path):
    out, bert = tmp_path / "compare", place / "bert"
    models = ["majority", "bag-of-words", f"{bert}@method=head,lr=1e-2", f"{bert}@weights=random"]
    given = ["--models", *models, "--learning-curve", "2", "all", "--seeds", "2",
             "--data", place / "data.csv", "--out", out, *QUICK]
    code, printed, err = call(*given)
    assert code == 0, err
    runs = {p.parent: json.loads(p.read_text()) for p in (out / "cells").glob("*/run.json")}
    assert len(runs) == 2 * 2 * 2, "two models at two sizes with two seeds"
    rows = read_csv(out / "table.csv")
    assert [(row["model"], row["rows_per_class"], row["seed"]) for row in rows] == [
        (model, size, seed) for size in ("2", "all") for model in models for seed in "01"]
    for row in rows:
        size = 0 if row["rows_per_class"] == "all" else int(row["rows_per_class"])
        wanted = {"rows_per_class": size, "seed": int(row["seed"]),
                  "method": "head" if "method=head" in row["model"] else "full"}
        cell, = [c for c in runs.values() if wanted.items() <= c["settings"].items()]
        name = {"majority": "majority class", "bag-of-words": "bag of words"}.get(row["model"])
        metrics = cell["results"][name] if name else list(cell["results"].values())[-1]
        for key in METRICS:
            assert float(row[key]) == pytest.approx(metrics[key], abs=1e-6), (key, row)
        assert cell["data"]["rows"]["train"] == (3 * size or 30)
        assert cell["settings"]["lr"] == (1e-2 if "lr=1e-2" in row["model"] else Settings().lr)
        if not name:
            assert int(row["trainable"]) == cell["parameters"]["trainable"]
            assert float(row["memory_mb"]) == cell["timing"]["peak_memory_mb"]
            assert (row["ms_per_text"] != "") == (row["seed"] == "0"), (
                "prediction is timed for the first seed")
    found = table_of(out)["rows"]
    labels = ("majority", "bag-of-words", "bert@lr=1e-2, head", "bert@weights=random, full")
    assert [(r["label"], r["size"]) for r in found] == [
        (label, size) for size in (2, "all") for label in labels]
    assert [r["model"] for r in found[:4]] == ["majority", "bag-of-words", "bert@lr=1e-2",
                                               "bert@weights=random"]
    progress = [line for line in printed.splitlines() if line.startswith("[")]
    assert len(progress) == 16 and not [line for line in progress[:8]
                                        if "majority" in line or "bag-of-words" in line], (
        "a baseline in this process before the last cell adds to what later cells are said to "
        "have held")
    spreads = []
    for row, model in zip(found, models * 2):
        a, b = [float(line["accuracy"]) for line in rows
                if (line["rows_per_class"], line["model"]) == (str(row["size"]), model)]
        mean, low, high = t_interval([a, b])
        spreads.append(abs(a - b))
        assert row["accuracy"] == pytest.approx({"mean": mean, "low": max(0, low),
                                                 "high": min(1, high)}, abs=1e-5)
        assert row["seeds"] == 2 and row["scores"] == pytest.approx([a, b], abs=1e-6)
        assert (row["memory_mb"] is None) == (row["model"] in configurations.BASELINES)
        assert row["ms_per_text"] >= 0
    assert max(spreads) > 0, "two seeds that never differ cannot show what an interval is"
    for size in (2, "all"):
        means = {r["label"]: r["accuracy"]["mean"] for r in found if r["size"] == size}
        best, = [r["label"] for r in found if r["best"] and r["size"] == size]
        assert means[best] == max(means.values())
    text = (out / "table.md").read_text()
    assert text.strip() in printed and "2 rows a class" in text and "**best**" in text
    shown = found[2]["accuracy"]
    assert f"{shown['mean']:.3f} [{shown['low']:.3f}, {shown['high']:.3f}]" in text

    before = files(out / "cells")
    tables = [(out / name).read_bytes() for name in ("table.md", "table.csv", "table.json")]
    started.clear()
    assert call(*given)[0] == 0 and not started, (
        "a comparison that is finished should train nothing again")
    assert files(out / "cells") == before
    assert tables == [(out / name).read_bytes() for name in ("table.md", "table.csv", "table.json")]


@pytest.mark.parametrize("words, given", [
    (["--learning-curve 11", "10 train rows"],
     ["--models", "majority", "--learning-curve", "2", "11"]),
    (["nowhere", "no such model"], ["--models", "majority", "nowhere"]),
    (["nowhere", "no such model"], ["--models", "majority", "nowhere@lr=1e-3"]),
    (["'speed'", "bert@speed=3"], ["--models", "bert@speed=3"]),
    (["'out'"], ["--models", "bert@out=elsewhere"]),
    (["'data'"], ["--models", "bert@data=other.csv"]),
    (["lr", "float", "'fast'"], ["--models", "bert@lr=fast"]),
    (["--pool", "middle", "first, mean, max, last"], ["--models", "bert@pool=middle"]),
    (["--pool goes with"], ["--models", "bert@pool=mean,readout=labels"]),
    (["--template goes with"], ["--models", "bert", "--template", "{text} is {label}"]),
    (["--lr", "-1"], ["--models", "bert@lr=-1"]),
    (["--learning-curve", "many"], ["--models", "majority", "--learning-curve", "2", "many"]),
    (["--learning-curve", "0"], ["--models", "majority", "--learning-curve", "0"]),
    (["--seeds", "0"], ["--models", "majority", "--seeds", "0"]),
    (["majority", "twice"], ["--models", "majority", "bert", "majority"]),
    (["--methods", "lora", "twice"], ["--models", "bert", "--methods", "lora", "lora"]),
    (["--methods", "magic", "full, head"], ["--models", "bert", "--methods", "full", "magic"]),
    (["--method", "one of them"], ["--models", "bert", "--methods", "full", "--method", "lora"]),
    (["--learning-curve", "all", "twice"],
     ["--models", "majority", "--learning-curve", "all", "all"]),
    (["--sweep", "lr", "float", "'fast'"], ["--models", "bert", "--sweep", "lr=1e-3,fast"]),
    (["--sweep", "'speed'"], ["--models", "bert", "--sweep", "speed=1,2"]),
    (["--sweep", "lr", "twice"], ["--models", "bert", "--sweep", "lr=1e-3", "lr=1e-4"]),
    (["--sweep", "--methods"], ["--models", "bert", "--sweep", "method=full,head"]),
    (["--sweep rank", "reads it"], ["--models", "bert", "--sweep", "rank=2,4"]),
    (["nothing to compare", "bert, full, labels", "language-model head"],
     ["--models", "bert", "--readouts", "labels"]),
    (["nodata.csv"], ["--models", "majority", "--data", "nodata.csv"]),
    (["--device nonsense", "take cpu"], ["--models", "bert", "--device", "nonsense"]),
])
def test_mistakes_are_named_before_any_work(place, call, started, tmp_path, monkeypatch, words,
                                            given):
    monkeypatch.chdir(place)
    before = files(place)
    code, _, err = call("--data", "data.csv", "--out", tmp_path / "compare", *given)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert not [word for word in words if word not in err], err
    assert not started and files(place) == before and not (tmp_path / "compare").exists()


# ---------------------------------------------------------------- what is combined

def combined(place, *models, methods=("full",), readouts=("head",), sweep=(), **flags):
    return make_configurations([str(place / m) if (place / m.partition("@")[0]).exists() else m
                                for m in models], methods, readouts, read_sweep(sweep), flags)


def test_the_product_and_what_goes_over_it(place):
    found = combined(place, "majority", "bert", "lm@lr=1e-2,method=head", methods=["full", "lora"],
                     lr=1e-4, rank=4)
    assert [(c.settings.method, c.settings.lr, c.settings.rank) for c in found[1:]] == [
        ("full", 1e-4, Settings().rank), ("lora", 1e-4, 4), ("head", 1e-2, Settings().rank)], (
        "a method that has no rank should not be told of one, and a model with a method of its "
        "own is there once")
    assert list(labels_of(found).values()) == ["majority", "bert, full", "bert, lora",
                                               "lm@lr=1e-2, head"]


def test_a_method_may_have_settings_of_its_own(place):
    found = combined(place, "bert", "lm@method=head", "lm@rank=2",
                     methods=["full", "lora@lr=3e-3,rank=16", "lora@rank=4"], lr=1e-4)
    assert [(c.settings.method, c.settings.lr, c.settings.rank, c.row_settings) for c in found] == [
        ("full", 1e-4, 8, ""), ("lora", 3e-3, 16, "lr=0.003,rank=16"), ("lora", 1e-4, 4, "rank=4"),
        ("head", 1e-4, 8, ""),
        ("full", 1e-4, 8, ""), ("lora", 3e-3, 2, "lr=0.003"), ("lora", 1e-4, 2, "")]
    assert list(labels_of(found).values())[:3] == ["bert, full", "bert, lora lr=0.003,rank=16",
                                                   "bert, lora rank=4"]
    assert len({c.group for c in found}) == len(found), (
        "each is a row of its own, not one of a sweep")
    with pytest.raises(InputError, match="--methods full: reads no rank"):
        combined(place, "bert", methods=["full@rank=4"])


def test_flags_reach_only_the_readout_that_reads_them(place):
    head, words = combined(place, "lm", readouts=["head", "labels"], template="{text} is {label}",
                           pool="mean", score_by="token")
    read = [(c.settings.readout, c.settings.template, c.settings.pool, c.settings.score_by)
            for c in (head, words)]
    assert read == [("head", "", "mean", "sum"), ("labels", "{text} is {label}", "family", "token")]
    assert labels_of([words]).popitem()[1] == "lm, full, labels"
    both = combined(place, "lm@pool=max", readouts=["head", "labels"])
    assert [c.settings.pool for c in both] == ["max", "family"], (
        "a model's own pooling is for its head")
    own = combined(place, "bert@pool=max", "lm@readout=labels,template={text} {label}", pool="mean")
    assert [(c.settings.pool, c.settings.template) for c in own] == [
        ("max", ""), ("family", "{text} {label}")]


def test_a_sweep_is_a_product_of_what_each_method_reads(place):
    found = combined(place, "bert", methods=["head", "lora"], sweep=["lr=1e-4,3e-4", "rank=4,8"])
    assert [(c.settings.method, c.row_settings) for c in found] == [
        ("head", "lr=0.0001"), ("head", "lr=0.0003"), ("lora", "lr=0.0001,rank=4"),
        ("lora", "lr=0.0001,rank=8"), ("lora", "lr=0.0003,rank=4"), ("lora", "lr=0.0003,rank=8")]
    fixed, *more = combined(place, "bert@lr=1e-2", "bert", sweep=["lr=1e-4,3e-4"])
    assert (fixed.settings.lr, fixed.row_settings) == (1e-2, "")
    assert [c.settings.lr for c in more] == [1e-4, 3e-4]


def test_models_of_one_name_are_kept_apart(place, tmp_path):
    for name in "ab":
        shutil.copytree(place / "bert", tmp_path / name / "bert")
    found = combined(tmp_path, "a/bert", "b/bert")
    assert len(set(labels_of(found).values())) == 2
    assert all(str(tmp_path) in label for label in labels_of(found).values())
    assert len({runs.folder_of(tmp_path, c, "all", 0) for c in found}) == 2


@pytest.mark.parametrize("model, method, readout, word", [
    ("bert", "full", "labels", "no language-model head"),
    ("lm", "head", "labels", "nothing would learn"),
    ("bert@weights=random", "qlora", "head", "random weights"),
    ("bert@weights=random", "lora", "head", "random weights"),
    ("bert@weights=random", "prefix", "head", "random weights"),
    ("bert@weights=random", "houlsby", "head", "random weights"),
    ("bert@weights=random", "last-1", "head", ""),
    ("bert", "last-2", "head", "1 blocks"),
    ("bert@max_length=2000", "full", "head", "64 positions"),
    ("bert@targets=nowhere", "lora", "head", "no such linear layer"), ("lm", "lora", "labels", ""),
    ("bert", "qlora", "head", ""), ("bert", "prefix", "head", ""), ("bert", "last-1", "head", "")])
def test_what_cannot_be_is_known_without_weights(place, monkeypatch, model, method, readout, word):
    from minillmclf.classify import build
    from minillmclf.cli.rows import load_dataset
    c, = combined(place, model, methods=[method], readouts=[readout], data=str(place / "data.csv"))
    monkeypatch.setattr(build, "load_weights", None)
    found = obstacle(c, load_dataset(c.settings))
    assert (word in found and "\n" not in found) if word else found == "", found


def test_what_cannot_be_stops_nothing(place, call, started, tmp_path):
    """Known before: bert with labels. Known only by the run: a tensor is missing."""
    from safetensors.torch import load_file, save_file
    shutil.copytree(place / "bert", tmp_path / "bad")
    tensors = load_file(tmp_path / "bad" / "model.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, tmp_path / "bad" / "model.safetensors")
    code, printed, err = call("--models", place / "bert", tmp_path / "bad", "majority",
                              "--readouts", "head", "labels", "--seeds", "1",
                              "--data", place / "data.csv", "--out", tmp_path / "out", *QUICK)
    assert code == 0, err
    assert ("bert, full, labels: not possible: this checkpoint has no language-model head"
            in printed.splitlines()[0])
    found = table_of(tmp_path / "out")
    assert [row["label"] for row in found["rows"]] == ["bert, full", "majority"]
    failed, = found["left_out"]
    assert (failed["label"], failed["size"], failed["seed"]) == ("bad, full", "all", 0)
    assert "bad" in failed["reason"]
    text = (tmp_path / "out" / "table.md").read_text()
    assert f"not possible: {failed['reason']}" in text
    assert "bert, full, labels: not possible" in text
    row = next(row for row in read_csv(tmp_path / "out" / "table.csv") if "bad" in row["model"])
    assert row["state"].startswith("not possible: ") and row["accuracy"] == ""
    code, _, err = call("--models", tmp_path / "bad", "--seeds", "1", "--data", place / "data.csv",
                        "--out", tmp_path / "none", *QUICK)
    assert code == 2 and err.startswith("error: nothing could be trained: ") and "bad" in err, err
    assert (tmp_path / "none" / "table.md").exists()


# ---------------------------------------------------------------- cells

def test_a_cell_runs_again_if_what_it_was_made_from_has_changed(place, call, started, tmp_path):
    model, data = tmp_path / "bert", tmp_path / "data.csv"
    shutil.copytree(place / "bert", model)
    shutil.copy(place / "data.csv", data)

    def again(*more):
        started.clear()
        code, _, err = call("--models", model, "majority", "--seeds", "1", "--data", data,
                            "--out", tmp_path / "out", *QUICK, *more)
        assert code == 0, err
        return len(trainings(started))
    assert again() == 1 and again() == 0
    assert again("--lr", "1e-2") == 1 and again("--lr", "1e-2") == 0
    assert again() == 0, "the cell of the first settings should still be there"
    assert again("--device", "cpu") == 0, "where it is computed changes no result"
    small.bert_folder(model, layers=2)
    assert again() == 1 and again() == 0, "another model under the same name"
    small.data_file(data, seed=1)
    code, _, err = call("--models", model, "--data", data, "--out", tmp_path / "out")
    assert code == 2 and f"of other rows than {data} has now" in err, err
    assert again("--overwrite") == 1 and again() == 0, "other rows under the same name"
    cell, = [p for p in (tmp_path / "out" / "cells").glob("bert-*")
             if record(p)["settings"]["lr"] == 3e-4]
    (cell / "predictions.csv").unlink()
    assert again() == 1, "a cell without its predictions is of no use"


def test_a_comparison_of_other_data_or_columns_is_kept(call, tmp_path):
    rows = [(text, label, "xy"[i % 2], f"{text} {i}")
            for i, (text, label) in enumerate(small.texts_of(random.Random(3), 60))]
    for name in ("plain.csv", "other.csv"):
        with open(tmp_path / name, "w", newline="") as file:
            csv.writer(file).writerows([("text", "label", "second", "title"), *rows])
        rows = rows[:40]
    given = ["--seeds", "1", "--out", tmp_path / "out", "--models", "majority"]
    plain = ["--data", tmp_path / "plain.csv"]
    assert call(*given, *plain)[0] == 0
    before = files(tmp_path)
    for more, words in ((["--data", tmp_path / "other.csv"], "other rows than"),
                        ([*plain, "--label-column", "second"], "another label column (label)"),
                        ([*plain, "--text-column", "title"], "other text columns (text)")):
        code, _, err = call(*given, *more)
        assert code == 2 and f"a comparison of {words}" in err and "--overwrite" in err, err
        assert err.count("\n") == 1 and files(tmp_path) == before
    code, printed, err = call(*given, "bag-of-words", *plain, "--learning-curve", "2", "all")
    assert code == 0 and "finished before" in printed, "more of the same data needs no flag: " + err
    assert call(*given, "--overwrite", "--data", tmp_path / "other.csv")[0] == 0
    assert call(*given, "--data", tmp_path / "other.csv")[0] == 0
    (tmp_path / "out" / "settings.json").write_text("{")
    code, _, err = call(*given, *plain)
    assert code == 2 and "settings.json: not valid JSON" in err and "or --overwrite" in err, err


def test_a_class_with_fewer_rows_than_a_size_is_noted(call, tmp_path):
    rows = [(f"{label} {split} {i}", label, split) for label, count in (("a", 9), ("b", 3))
            for split in ("train", "dev", "test") for i in range(count)]
    with open(tmp_path / "data.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "split"), *rows])
    code, printed, err = call("--models", "majority", "--seeds", "1", "--learning-curve", "3", "9",
                              "--data", tmp_path / "data.csv", "--out", tmp_path / "out")
    note = "1 of 2 classes have fewer than 9 train rows and give all of them: 'b' has 3"
    assert code == 0 and printed.startswith(note) and "than 3 train" not in printed, err
    assert note in (tmp_path / "out" / "table.md").read_text()


def test_texts_in_two_splits_are_told_before_training_and_in_the_table(call, tmp_path):
    rows = [(f"{label} {i}", label, split) for label in "ab" for split in ("train", "test")
            for i in range(4)] + [("a new", "a", "dev"), ("b new", "b", "dev"), ("A 0", "a", "dev")]
    with open(tmp_path / "data.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "split"), *rows])
    code, printed, err = call("--models", "majority", "--seeds", "1", "--data",
                              tmp_path / "data.csv", "--out", tmp_path / "out")
    warnings = [f"WARNING: {count} text(s) of {one} stand in {other} too and flatter its scores: "
                f"remove them from {one}" for count, one, other in (
                    (1, "train", "dev"), (8, "train", "test"), (1, "dev", "test"))]
    assert code == 0 and printed.splitlines()[:3] == warnings, err
    table = (tmp_path / "out" / "table.md").read_text()
    assert all(f"\n{line}.\n" in table for line in warnings)


def test_a_file_without_splits_is_split_once_for_all_seeds(place, call, started, tmp_path):
    rows = small.texts_of(random.Random(3), 60)
    with open(tmp_path / "plain.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    code, _, err = call("--models", "bag-of-words", "majority", "--seeds", "3",
                        "--data", tmp_path / "plain.csv", "--out", tmp_path / "out")
    assert code == 0, err
    tested = {tuple(row["text"] for row in read_csv(p))
              for p in (tmp_path / "out" / "cells").glob("*/predictions.csv")}
    assert len(tested) == 1, (
        "every seed should be tested on the same rows, or no difference can be paired")
    assert all(row["best"] or row["difference"] for row in table_of(tmp_path / "out")["rows"])


def test_a_real_process_tells_its_own_memory_and_its_mistake(place, tmp_path):
    printed, errors = tmp_path / "printed", tmp_path / "errors"
    assert runs.run_module("minillmclf.train", "--model", "nowhere", printed=printed,
                           errors=errors) == 2
    assert runs.last_error(errors).startswith("nowhere: no such model folder")
    errors.write_text("Traceback\n  1 step\r 2 steps\nRuntimeError: out of memory\n")
    assert runs.last_error(errors) == "RuntimeError: out of memory"
    errors.write_text("")
    assert runs.last_error(errors)


def test_a_comparison_that_was_stopped_goes_on(place, call, started, tmp_path, monkeypatch):
    forks = runs.run_module

    def stopped(module, *arguments, printed, errors):
        if module == "minillmclf.train" and len(trainings(started)) == 1:      # the second cell
            raise Stopped("stopped; the same command goes on from there")
        return forks(module, *arguments, printed=printed, errors=errors)
    given = ["--models", place / "bert", "--seeds", "2", "--data", place / "data.csv",
             "--out", tmp_path / "out", *QUICK]
    monkeypatch.setattr(runs, "run_module", stopped)
    code, out, err = call(*given)
    assert code == 130 and "same command goes on" in out and "Traceback" not in err
    first, = [p for p in (tmp_path / "out" / "cells").iterdir() if record(p)["state"] == "finished"]
    before = files(first)
    monkeypatch.setattr(runs, "run_module", forks)
    code, out, err = call(*given)
    assert code == 0, err
    assert files(first) == before and len(trainings(started)) == 2, (
        "the finished cell is kept, one more is run")
    assert "--overwrite" not in trainings(started)[-1], (
        "a run that was stopped should go on, not start anew")
    assert "seed 0: dev accuracy" in out and "finished before" in out


def test_a_signal_ends_the_real_process_and_leaves_no_orphan(tmp_path, monkeypatch):
    """The child notes that it was told to stop; sent to this process, as a terminal sends it."""
    script = tmp_path / "waits.py"
    script.write_text(
        "import signal, sys, time, pathlib\n"
        "def told(number, frame):\n"
        "    pathlib.Path(sys.argv[1]).open('a').write('told '); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, told)\npathlib.Path(sys.argv[1]).write_text('')\n"
        "time.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    note = tmp_path / "note"

    def interrupt():
        until = time.monotonic() + 20
        while not note.exists() and time.monotonic() < until:
            time.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    thread = threading.Thread(target=interrupt)
    thread.start()
    begun = time.monotonic()
    with pytest.raises(Stopped, match="same command goes on"):
        runs.run_module("waits", note, printed=tmp_path / "out", errors=tmp_path / "err")
    thread.join()
    assert note.read_text() == "told " and time.monotonic() - begun < 30, (
        "told once, and waited for")


def test_milliseconds_by_a_clock_of_our_own(monkeypatch):
    asked, clock = [], [0.0]
    cost = iter([100.0] + [1.0] * 6 + [2.0] * 7 + [5.0] * 7 + [3.0] * 7)

    def predict(texts):
        asked.append(len(texts))
        clock[0] += next(cost) * len(texts) / 1000
    monkeypatch.setattr(runs.time, "perf_counter", lambda: clock[0])
    assert runs.milliseconds_per_text(predict, ["a text"] * 500) == pytest.approx(3.0), (
        "the median of 2, 5 and 3, not the warm-up")
    assert asked == [32, 32, 32, 32, 32, 32, 8] * 4


# ---------------------------------------------------------------- numbers

def fake_runs(tmp_path, right, dev=None, seeds=2, rows=40, sweep=None, size="all"):
    """Made-up runs: right[name] is the share of right rows. -> runs, labels of their groups"""
    found, rng = [], random.Random(0)
    from minillmclf.text.examples import Example
    examples = [Example((f"text {i}",), "ab"[i % 2], i + 2) for i in range(rows)]
    for number, (name, share) in enumerate(right.items()):
        model = "m" if sweep else name
        c = configurations.Configuration(model, Settings(model=model, lr=0.1 * (number + 1)),
                                         sweep={"lr": number} if sweep else {})
        for seed in range(seeds):
            p = np.array([[0.9, 0.1] if (e.label == "a") == (rng.random() < share) else [0.2, 0.8]
                          for e in examples])
            folder = tmp_path / f"{name}-{seed}"
            write_predictions(folder / "predictions.csv", examples, p, ["a", "b"])
            metrics = evaluate(p, [i % 2 for i in range(rows)], ["a", "b"])
            tuned = {key: (dev or right)[name] for key in METRICS}
            found.append(Run(c, size, seed, folder,
                             {"state": "finished", "split": "test", "test": metrics, "dev": tuned,
                              "trainable": 5, "memory_mb": 100 + seed,
                              "train_seconds": 2.0 + seed, "ms_per_text": None if seed else 0.5}))
    return found, {run.configuration.group: run.configuration.model + ", full" for run in found}


def test_differences_to_the_best_row_are_paired(tmp_path):
    made, labels = fake_runs(tmp_path, {"good": 0.9, "poor": 0.5})
    good, poor = summarise(made, labels, "accuracy")["rows"]
    answers = {run.folder.name: read_predictions(run.folder / "predictions.csv") for run in made}
    gap = np.mean([answers[f"poor-{s}"].right.astype(float) - answers[f"good-{s}"].right
                   for s in (0, 1)], axis=0)
    low, high = bootstrap_interval(lambda rows: gap[rows].mean(), 40)
    assert good["best"] and good["difference"] is None and good["mcnemar"] is None
    assert not poor["best"]
    assert poor["difference"] == pytest.approx({"mean": gap.mean(), "low": low, "high": high})
    assert high < 0
    assert poor["difference"]["mean"] == pytest.approx(
        poor["accuracy"]["mean"] - good["accuracy"]["mean"])
    p = [mcnemar_p(answers[f"poor-{s}"].right, answers[f"good-{s}"].right) for s in (0, 1)]
    assert poor["mcnemar_seeds"] == p and poor["mcnemar"] == statistics.median(p) < 0.05
    assert (good["memory_mb"], good["train_seconds"], good["ms_per_text"], good["trainable"]) == (
        101, 2.5, 0.5, 5)


def test_a_row_names_its_model_without_the_settings_of_its_method(tmp_path):
    made, _ = fake_runs(tmp_path, {"good": 0.9}, seeds=1)
    c = made[0].configuration = replace(made[0].configuration, method_settings="rank=4")
    row, = summarise(made, {c.group: "good, full rank=4"}, "accuracy")["rows"]
    assert (row["model"], row["settings"]) == ("good", "rank=4"), (
        "choose looks the model up by this name")


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_can_be_the_table_s(tmp_path, metric):
    made, labels = fake_runs(tmp_path, {"good": 0.95, "poor": 0.5})
    for row in summarise(made, labels, metric)["rows"]:
        assert row["best"] == (row["model"] == "good"), (
            f"{metric}: less is better in log loss and ECE")
        values = [run.record["test"][metric]
                  for run in made if run.configuration.model == row["model"]]
        assert row["score"]["mean"] == pytest.approx(statistics.mean(values))
        assert row["score"]["low"] >= 0
        if not row["best"]:
            assert (row["difference"]["low"] <= row["difference"]["mean"]
                    <= row["difference"]["high"])
            assert METRICS[metric] * row["difference"]["mean"] < 0


def test_one_seed_has_an_interval_over_test_rows(tmp_path):
    made, labels = fake_runs(tmp_path, {"good": 0.9}, seeds=1)
    row, = summarise(made, labels, "macro_f1")["rows"]
    answers = read_predictions(made[0].folder / "predictions.csv")
    assert row["accuracy"] == interval_over_seeds("accuracy", [made[0].record["test"]["accuracy"]],
                                                  answers)
    low, high = bootstrap_interval(lambda rows: answers.right[rows].mean(), 40)
    assert (row["accuracy"]["low"], row["accuracy"]["high"]) == (low, high)
    assert low < row["accuracy"]["mean"] < high
    assert row["score"]["low"] < row["score"]["mean"] < row["score"]["high"], "macro F1 has one too"
    assert "bootstrap over test rows" in comparison_markdown(summarise(made, labels, "macro_f1"))


def test_other_test_rows_are_not_compared(tmp_path):
    made, _ = fake_runs(tmp_path, {"a": 0.9, "b": 0.5})
    one, other = [{run.seed: read_predictions(run.folder / "predictions.csv") for run in made
                   if run.configuration.model == name} for name in "ab"]
    other[1].rows = other[1].rows[::-1]
    assert difference_to_best("accuracy", one, other) == (None, [])
    assert difference_to_best("accuracy", {0: one[0]}, {1: one[1]}) == (None, [])
    assert len(difference_to_best("accuracy", one, {1: one[1]})[1]) == 1, (
        "a seed that one of them lacks is left out")


def test_answers_that_rounding_made_equal_keep_the_class_that_was_said(tmp_path):
    from minillmclf.text.examples import Example
    examples = [Example(("one\rline", "more"), "b", 2), Example(("two", "more\r"), "a", 3)]
    write_predictions(tmp_path / "p.csv", examples,
                      np.array([[0.4999999, 0.5000001], [1e-9, 1 - 1e-9]]), ["a", "b"])
    found = read_predictions(tmp_path / "p.csv")
    assert found.right.tolist() == [True, False] and found.labels == ["a", "b"]
    assert found.rows == [("2", "b"), ("3", "a")]
    assert found.statistic("accuracy")(np.arange(2)) == 0.5
    assert all(np.isfinite(found.statistic("log_loss")([row])) for row in range(2))


def test_a_sweep_is_decided_on_dev_alone(tmp_path):
    """The candidate best on test is worst on dev: it has to lose, and no file shows its score."""
    made, labels = fake_runs(tmp_path, {"x": 1.0, "y": 0.5}, dev={"x": 0.3, "y": 0.6}, sweep=True)
    summary = summarise(made, labels, "accuracy")
    row, = summary["rows"]
    assert row["settings"] == "lr=1" and row["accuracy"]["mean"] < 0.9
    assert row["dev"] == pytest.approx(0.6)
    assert [(x["settings"], x["chosen"], x["dev"]) for x in summary["sweep"]] == [
        ("lr=0", False, pytest.approx(0.3)), ("lr=1", True, pytest.approx(0.6))]
    assert summarise(made, labels, "log_loss")["rows"][0]["settings"] == "lr=0", (
        "of a loss the smaller is better")
    text, lines = comparison_markdown(summary), csv_of_runs(made, labels, summary).splitlines()
    assert "| 1.000 [" not in text and "chosen on dev rows only" in text
    assert "| lr=1 | 0.600 | 2 | chosen |" in text
    told = [line["accuracy"] for line in csv.DictReader(lines)]
    assert told[:2] == ["", ""] and all(told[2:]), (
        "table.csv shows a test score of a candidate that was not chosen")


def test_the_learning_curve_has_a_column_a_size(tmp_path):
    small_ones, labels = fake_runs(tmp_path / "10", {"good": 0.7, "poor": 0.5}, size=10)
    made = small_ones + fake_runs(tmp_path / "all", {"good": 0.9, "poor": 0.5})[0]
    summary = summarise(made, labels, "accuracy")
    assert [row["size"] for row in summary["rows"]] == [10, 10, "all", "all"]
    lines = comparison_markdown(summary).splitlines()
    assert lines[0] == "| test accuracy | 10 rows a class | all rows a class |"
    assert lines[2].startswith("| good, full | 0.")
    json.dumps(summary, allow_nan=False)


def test_the_times_that_are_told():
    assert [comparison.duration_text(s) for s in (0.4, 59.9, 85, 3600, 7384)] == [
        "0 s", "59 s", "1 min 25 s", "1 h 0 min", "2 h 3 min"]
    with pytest.raises(InputError, match="not a setting"):
        configurations.read_pair("speed=3", "--sweep speed=3")


def test_pictures_stand_beside_the_table_where_matplotlib_is(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from minillmclf.compare import pictures
    rows = [{"model": m, "method": "full", "readout": "head", "label": m, "size": size,
             "accuracy": {"mean": 0.5, "low": 0.4, "high": 0.6},
             "trainable": n, "train_seconds": 1.0 + n, "log_loss": 1.0, "ece": 0.1, "memory_mb": 9,
             "ms_per_text": 1.0, "seeds": 2}
            for m, n in (("a", 5), ("majority", 0)) for size in (10, "all")]
    assert comparison.draw_pictures(rows, tmp_path) == ", cost.svg, curve.svg"
    assert all((tmp_path / name).read_text().lstrip().startswith("<?xml")
               for name in ("cost.svg", "curve.svg"))
    one = tmp_path / "one"
    one.mkdir()
    smaller = [row for row in rows if row["size"] == 10]
    (one / "curve.svg").write_text("of an earlier table")
    assert comparison.draw_pictures(smaller, one) == ", cost.svg", "a curve needs two sizes"
    assert [path.name for path in one.iterdir()] == ["cost.svg"], "the earlier curve has gone"

    def absent(*_):
        raise InputError("matplotlib is not installed")
    monkeypatch.setattr(pictures, "cost_figure", absent)
    assert comparison.draw_pictures(rows, tmp_path) == "; no pictures: matplotlib is not installed"
    assert not [*tmp_path.glob("*.svg")], "pictures of an earlier table lie beside the new one"


UNEVEN = (("train", 48, 1, 0.15), ("dev", 24, 6, 0.5), ("test", 18, 3, 0.1))   # rows, seed, noise


def uneven_data(path):
    """Half of the dev labels are drawn: so the best epoch is not the last, and dev is not test."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label", "split"))
        for split, rows, seed, noise in UNEVEN:
            rng = random.Random(seed)
            for text, label in small.texts_of(rng, rows):
                drawn = rng.random() < noise
                writer.writerow((text, rng.choice(list(small.TOPICS)) if drawn else label, split))
    return path


def test_what_is_compared_on_dev_is_the_best_epoch_s(place, call, started, tmp_path):
    """In the sweep, its choice, both tables and the line of progress: dev of the epoch kept."""
    out, data = tmp_path / "compare", uneven_data(tmp_path / "data.csv")
    code, printed, err = call(
        "--models", "bag-of-words", place / "bert", "--sweep", "lr=6e-3,3e-2", "--seeds", "1",
        "--out", out, "--data", data, "--metric", "log_loss", "--epochs", "8", "--batch-size", "8",
        "--schedule", "constant")
    assert code == 0, err
    dev, last, test = {}, {}, {}
    for path in (out / "cells").glob("*/run.json"):
        kept = json.loads(path.read_text())
        lines = (path.parent / "metrics.jsonl").read_text().splitlines()
        history = [json.loads(line) for line in lines]
        lr = f"lr={kept['settings']['lr']}"
        dev[lr], last[lr] = min(line["log_loss"] for line in history), history[-1]["log_loss"]
        test[lr] = list(kept["results"].values())[-1]["log_loss"]
        assert history[kept["best_epoch"] - 1]["log_loss"] == dev[lr] < last[lr] - 1e-3
        assert abs(dev[lr] - test[lr]) > 1e-3
    found, best = table_of(out), min(dev, key=dev.get)
    swept = {row["settings"]: row["dev"] for row in found["sweep"]}
    assert len(dev) == 2 and swept == pytest.approx(dev)
    assert [row["settings"] for row in found["sweep"] if row["chosen"]] == [best]
    trained, = [row for row in found["rows"] if row["method"]]
    assert trained["dev"] == pytest.approx(dev[best])
    assert trained["score"]["mean"] == pytest.approx(test[best])
    lines = {row["settings"]: row for row in read_csv(out / "table.csv") if row["method"]}
    told = {key: float(row["dev_log_loss"]) for key, row in lines.items()}
    assert told == pytest.approx(dev, abs=1e-6)
    for lr, value in dev.items():
        told, = [line for line in printed.splitlines() if line.startswith("[") and f"{lr}," in line]
        assert f": dev log_loss {value:.3f}, " in told

    from minillmclf.classify.baseline import BagOfWords
    from minillmclf.text.data import load_data
    rows = load_data(data)
    texts = {split: [e.texts for e in getattr(rows, split)] for split in ("train", "dev", "test")}
    truth = {split: [rows.labels.index(e.label) for e in getattr(rows, split)] for split in texts}
    bag = BagOfWords(3).fit(texts["train"], truth["train"], texts["dev"], truth["dev"])
    other = BagOfWords(3).fit(texts["train"], truth["train"], texts["test"], truth["test"])
    assert np.abs(other.predict(texts["test"]) - bag.predict(texts["test"])).max() > 0.01, \
        "test rows would choose the same penalty: this compares nothing"
    plain, = [row for row in found["rows"] if not row["method"]]
    for split, value in (("dev", plain["dev"]), ("test", plain["score"]["mean"])):
        p = bag.predict(texts[split])
        assert value == pytest.approx(-np.log(p[np.arange(len(p)), truth[split]]).mean(), abs=1e-6)
    assert plain["dev_rows"] == trained["dev_rows"] == 24
