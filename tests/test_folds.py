"""Folds: each row is held out once, nothing of it is learned by the model that judges it, and the
submission is what it says.

The splits by hypothesis; then the command, on tiny data and a model of random weights (no score
means anything).
"""
import collections
import csv
import json
import random
import shutil
import statistics
import subprocess
import sys

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillmclf import evaluate
from minillmclf.folds import cross_validation, measuring, __main__ as folds
from minillmclf.classify.calibrate import fit_temperature
from minillmclf.classify.classifier import Classifier
from minillmclf.cli import training_run
from minillmclf.cli.parser import run
from minillmclf.errors import InputError
from minillmclf.cli.settings import Settings, read_settings
from minillmclf.folds.arena import WINNERS, read_arena
from minillmclf.folds.reading import read_source
from minillmclf.folds.split import choose_dev_rows, grouped_folds, assign_folds, stratified_folds
from minillmclf.folds.stacking import read_member
from minillmclf.folds.submission import SubmissionForm, check_submission, submission_text
from minillmclf.text.examples import Example

QUICK = small.flags(epochs=2, batch_size=8, lr=3e-3, folds=3)
LABELS = list(small.TOPICS)
FAST = settings(max_examples=60, deadline=None)


# ---------------------------------------------------------------- the splits

@st.composite
def labelled(draw):
    """k, labels with k or more of each class, seed."""
    k = draw(st.integers(2, 6))
    counts = draw(st.lists(st.integers(k, 3 * k), min_size=1, max_size=4))
    labels = [name for name, count in zip("dbca", counts) for _ in range(count)]
    return k, draw(st.permutations(labels)), draw(st.integers(0, 99))


@FAST
@given(labelled())
def test_stratified_bounds(case):
    k, labels, seed = case
    found = stratified_folds(labels, k, seed)
    assert len(found) == len(labels) and set(found) == set(range(k)), (
        "each row should be in one of k folds, none of them empty")
    for label in set(labels):
        counts = [sum(f == fold and name == label for f, name in zip(found, labels))
                  for fold in range(k)]
        assert max(counts) - min(counts) <= 1, f"class {label} has {counts} rows in the folds"
    sizes = [found.count(fold) for fold in range(k)]
    assert max(sizes) - min(sizes) <= 1, f"the folds have {sizes} rows"
    assert stratified_folds(labels, k, seed) == found, "the same seed should give the same folds"


@FAST
@given(labelled(), st.randoms(use_true_random=False))
def test_order_of_rows_is_irrelevant(case, rng):
    k, labels, seed = case
    keys, order = [f"row {i}" for i in range(len(labels))], list(range(len(labels)))
    groups = [f"group {i // 2}" for i in range(len(labels))]
    rng.shuffle(order)

    def moved(values):
        return [values[i] for i in order]
    found = stratified_folds(labels, k, seed, keys)
    assert stratified_folds(moved(labels), k, seed, moved(keys)) == moved(found)
    try:
        found = grouped_folds(labels, groups, k, seed)
    except InputError:
        return
    assert grouped_folds(moved(labels), moved(groups), k, seed) == moved(found)


def test_seeds_differ():
    labels, keys = ["a", "b"] * 20, [str(i) for i in range(40)]
    assert len({tuple(stratified_folds(labels, 4, seed, keys)) for seed in range(5)}) == 5
    assert len({tuple(grouped_folds(labels, keys, 4, seed)) for seed in range(5)}) == 5


@st.composite
def in_groups(draw):
    """k, labels, groups, seed: each class in two groups or more."""
    k = draw(st.integers(2, 5))
    rows = draw(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3 * k)), min_size=2 * k,
                         max_size=60))
    rows += [(label, -1 - side) for label in {label for label, _ in rows} for side in range(k)]
    labels, groups = zip(*draw(st.permutations(rows)))
    return k, list(labels), [f"g{group}" for group in groups], draw(st.integers(0, 99))


@FAST
@given(in_groups())
def test_groups_are_never_split(case):
    k, labels, groups, seed = case
    found = grouped_folds(labels, groups, k, seed)
    assert len(found) == len(labels) and set(found) == set(range(k)), (
        "no fold should be empty where there are k groups or more")
    where = collections.defaultdict(set)
    for group, fold in zip(groups, found):
        where[group].add(fold)
    assert all(len(held) == 1 for held in where.values()), (
        f"a group stands in several folds: {dict(where)}")
    largest = max(collections.Counter(groups).values())
    sizes = [found.count(fold) for fold in range(k)]
    assert max(sizes) - min(sizes) <= 2 * largest, (
        f"sizes {sizes}, though no group has more than {largest} rows")


def test_groups_of_a_class_are_spread():
    """60 groups of 1 to 4 rows, 10 of a rare class: each fold gets its share of rows and of it."""
    rng = random.Random(0)
    rows = [("rare" if g < 10 else "often", f"g{g}") for g in range(60)
            for _ in range(rng.randint(1, 4))]
    labels, groups = zip(*rows)
    found = grouped_folds(labels, groups, 5, 0)
    sizes = [found.count(fold) for fold in range(5)]
    rare = [sum(f == fold and label == "rare" for f, label in zip(found, labels))
            for fold in range(5)]
    assert max(sizes) - min(sizes) <= 2 and max(rare) - min(rare) <= 2, (sizes, rare)


@FAST
@given(in_groups())
def test_dev_rows_keep_groups_whole(case):
    _, labels, groups, seed = case
    examples = [Example(("text",), label, row) for row, label in enumerate(labels)]
    dev = choose_dev_rows(range(len(labels)), examples, groups, seed)
    for group in set(groups):
        rows = {i for i, g in enumerate(groups) if g == group}
        assert rows <= dev or not rows & dev, f"group {group} stands in dev and in train"
    assert {labels[i] for i in range(len(labels)) if i not in dev} == set(labels), (
        "a class has gone from train")


def test_one_row_a_group_is_stratified():
    labels, keys = ["a", "b"] * 9, [str(i) for i in range(18)]
    assert assign_folds(labels, keys, 3, 0) == stratified_folds(labels, 3, 0, keys)
    assert assign_folds(labels, keys[:9] * 2, 3, 0) == grouped_folds(labels, keys[:9] * 2, 3, 0)


@pytest.mark.parametrize("call, words", [
    (lambda: stratified_folds(["a"] * 9 + ["b"] * 2, 3, 0), ["'b'", "2 rows", "3 folds"]),
    (lambda: stratified_folds(["a", "b"] * 9, 1, 0), ["1 folds", "at least 2"]),
    (lambda: stratified_folds(["a"], 2, 0), ["1 rows", "2 folds"]),
    (lambda: grouped_folds(["a", "b"] * 9, ["x", "y"] * 9, 3, 0), ["2 groups", "3 folds"]),
    (lambda: grouped_folds(["a", "b", "c", "c"], ["x", "y", "z", "z"], 2, 0),
     ["class 'a'", "one group"]),
    (lambda: grouped_folds(["a", "a", "b", "b"], ["x", "y", "y", "y"], 2, 0),
     ["class 'b'", "one group"])])
def test_splits_refuse(call, words):
    with pytest.raises(InputError) as error:
        call()
    assert not [word for word in words if word not in str(error.value)], error.value


# ---------------------------------------------------------------- the command

def write(path, header, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the model bert, train.csv (36 rows, ids from 100), test.csv (12 rows),
    sample.csv, and `out`, made of them."""
    folder = tmp_path_factory.mktemp("folds")
    small.bert_folder(folder / "bert", lm_head=True)
    rows = small.texts_of(random.Random(0), 48)
    write(folder / "train.csv", ("id", "text", "label"),
          [(100 + i, *row) for i, row in enumerate(rows[:36])])
    write(folder / "test.csv", ("id", "text"), [(i, text) for i, (text, _) in enumerate(rows[36:])])
    write(folder / "sample.csv", ("id", "weather", "garden", "kitchen"),
          [(i, 0.3, 0.3, 0.4) for i in reversed(range(12))])
    assert folds.main(arguments(folder, folder / "out")) == 0
    return folder


@pytest.fixture
def call(capsys):
    """call(*arguments) -> exit code, stdout, stderr of the command."""
    def call(*given):
        with pytest.raises(SystemExit) as end:
            run(lambda: folds.main(list(map(str, given))))
        return end.value.code, *capsys.readouterr()
    return call


def arguments(place, out, *more):
    return [str(a) for a in ("--model", place / "bert", "--data", place / "train.csv",
                             "--test", place / "test.csv", "--sample", place / "sample.csv",
                             "--out", out, *QUICK, *more)]


def files(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns)
            for path in folder.rglob("*") if path.is_file()}


def answers(folder):
    """What the command has come to, without the clock."""
    return {name: (folder / name).read_bytes() for name in ("oof.csv", "submission.csv")}


def test_oof_has_each_row_once_as_its_own_fold_predicts(place):
    source, found = read(place / "train.csv"), read(place / "out" / "oof.csv")
    assert [(r["id"], r["label"]) for r in found] == [(r["id"], r["label"]) for r in source], (
        "each row once, in the file's order")
    assert [int(r["line"]) for r in found] == list(range(2, 38))
    assert collections.Counter((r["fold"], r["label"]) for r in found) == {
        (f, name): 4 for f in "123" for name in LABELS}
    for fold in "123":
        model = Classifier.load(place / "out" / f"fold-{fold}")
        rows = [(s["text"], r) for s, r in zip(source, found) if r["fold"] == fold]
        expected = model.predict([text for text, _ in rows])
        given = np.array([[float(r[f"p_{name}"]) for name in LABELS] for _, r in rows])
        assert np.abs(given - expected).max() < 1e-6, (
            f"fold {fold}: oof.csv and the saved model differ")
        assert [r["predicted"] for _, r in rows] == [LABELS[i] for i in expected.argmax(1)]


def test_metrics_and_temperature_by_hand(place):
    found = read(place / "out" / "oof.csv")
    record = json.loads((place / "out" / "folds.json").read_text())
    own = np.log([[float(r[f"p_{name}"]) for name in LABELS] for r in found])  # (36, 3)
    truth = np.array([LABELS.index(r["label"]) for r in found])
    fold = np.array([int(r["fold"]) for r in found])

    def loss(logp, rows):
        return -logp[rows, truth[rows]].mean()
    every = np.arange(36)
    accuracies = [float((own.argmax(1) == truth)[fold == f].mean()) for f in (1, 2, 3)]
    assert record["all"]["log_loss"] == pytest.approx(loss(own, every), abs=1e-5)
    assert [m["accuracy"] for m in record["folds"]] == pytest.approx(accuracies)
    assert record["sd"]["accuracy"] == pytest.approx(statistics.stdev(accuracies))
    assert record["mean"]["accuracy"] == pytest.approx(statistics.mean(accuracies))
    assert record["fitted_temperature"] == pytest.approx(
        fit_temperature(torch.tensor(own), truth.tolist()).temperature, rel=1e-3)
    honest = own.copy()
    for f in (1, 2, 3):  # the temperature of fold f knows nothing of its rows
        t = fit_temperature(torch.tensor(own[fold != f]), truth[fold != f].tolist()).temperature
        honest[fold == f] = torch.tensor(own[fold == f] / t).log_softmax(1).numpy()
    assert record["calibrated"]["log_loss"] == pytest.approx(loss(honest, every), abs=1e-3)
    greedy = torch.tensor(own / record["fitted_temperature"]).log_softmax(1).numpy()
    assert loss(greedy, every) < record["calibrated"]["log_loss"], (
        "a temperature fitted to the very rows should flatter")


def test_a_fold_is_judged_on_its_held_out_rows(place, tmp_path):
    record = json.loads((place / "out" / "folds.json").read_text())
    shutil.copy(place / "train.csv", tmp_path / "copy.csv")
    for fold, expected in enumerate(record["folds"], 1):
        given = ["--model", str(place / "out" / f"fold-{fold}"), "--out", str(tmp_path / "found")]
        for data in ([], ["--data", str(tmp_path / "copy.csv")]):
            evaluate.main([*given, *data, "--overwrite"])
            found = json.loads((tmp_path / "found").read_text())
            assert found["rows"] == 12 and "held-out rows of fold" in found["data"]
            assert found["accuracy"] == expected["accuracy"]
            assert found["log_loss"] == pytest.approx(expected["log_loss"], abs=1e-6)
        with pytest.raises(InputError, match="fold . of 3 .* held-out rows.* leave out --split"):
            evaluate.main([*given, *data, "--overwrite", "--split", "train"])
        for data in ([], data):
            with pytest.raises(InputError, match="by --quoting auto, .*: leave --quoting out"):
                evaluate.main([*given, *data, "--overwrite", "--quoting", "none"])


def test_cross_fitting_leaves_the_held_out_fold_alone():
    """Labels of fold 0 changed: its own temperature stays, that of the others moves."""
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(60, 3, generator=rng, dtype=torch.float64) * 3
    which = [i % 3 for i in range(60)]
    truth = scores.argmax(1).tolist()
    truth[1::5] = [(t + 1) % 3 for t in truth[1::5]]
    other = [(t + 1) % 3 if fold == 0 else t for t, fold in zip(truth, which)]
    before, after = (measuring.cross_fitted_logits(scores, labels, which)
                     for labels in (truth, other))
    changed = [not torch.equal(a, b) for a, b in zip(before, after)]
    assert changed == [fold != 0 for fold in which], (
        "a fold's temperature should depend on all other folds, and not on its own rows")


def mean_of(out, texts, t):
    """The mean over three folds of probabilities ** (1 / t), made to sum to one. -> (N, C)"""
    powers = [Classifier.load(out / f"fold-{fold}").predict(texts).astype(float) ** (1 / t)
              for fold in "123"]
    return sum(p / p.sum(1, keepdims=True) for p in powers) / 3


def test_submission_is_the_mean_over_folds_by_hand(place):
    test, sample, found = (read(place / name)
                           for name in ("test.csv", "sample.csv", "out/submission.csv"))
    assert list(found[0]) == list(sample[0]), "the columns should be the sample's"
    assert [r["id"] for r in found] == [r["id"] for r in sample], (
        "the rows should stand in the order of the sample")
    t = json.loads((place / "out" / "folds.json").read_text())["temperature"]
    expected = {r["id"]: p
                for r, p in zip(test, mean_of(place / "out", [r["text"] for r in test], t))}
    for row in found:
        given = np.array([float(row[name]) for name in LABELS])
        assert np.abs(given - expected[row["id"]]).max() < 1e-5, (
            f"row {row['id']}: {given}, not {expected[row['id']]}")


def test_dev_is_never_held_out(place):
    for fold in "123":
        record = json.loads((place / "out" / f"fold-{fold}" / "run.json").read_text())
        assert record["data"]["rows"] == {"train": 21, "dev": 3, "test": 12}
        assert record["split"] == "test"
        held = {r["line"] for r in read(place / "out" / f"fold-{fold}" / "predictions.csv")}
        assert held == {r["line"] for r in read(place / "out" / "oof.csv") if r["fold"] == fold}


def test_finished_folds_stay(place, call, monkeypatch):
    before = files(place / "out")
    monkeypatch.setattr(training_run, "train_run",
                        lambda *_, **__: pytest.fail("a finished fold was trained again"))
    monkeypatch.setattr(Classifier, "load",
                        lambda *_: pytest.fail("a model was asked again for what it has said"))
    code, out, err = call(*arguments(place, place / "out"))
    assert code == 0 and out.count("finished already") == 3, err
    assert {p: b for p, (b, _) in files(place / "out").items()} == {
        p: b for p, (b, _) in before.items()}


def test_other_test_rows_are_asked_anew(place, call, tmp_path, monkeypatch):
    shutil.copytree(place / "out", tmp_path / "out")
    write(tmp_path / "new.csv", ("text",), [("rose soil",), ("storm",)])
    monkeypatch.setattr(training_run, "train_run",
                        lambda *_, **__: pytest.fail("other test rows are no reason to train"))
    given = [*arguments(place, tmp_path / "out")[:-len(QUICK)], *QUICK,
             "--test", tmp_path / "new.csv", "--sample", ""]
    refused(call, ["submission.csv: answers other rows", "move it"], tmp_path, *given)
    (tmp_path / "out" / "submission.csv").rename(tmp_path / "first.csv")
    code, out, err = call(*given)
    assert code == 0, err
    rows = read(tmp_path / "out" / "submission.csv")
    assert list(rows[0]) == ["id", "p_garden", "p_kitchen", "p_weather"]
    assert [r["id"] for r in rows] == ["2", "3"]
    t = json.loads((tmp_path / "out" / "folds.json").read_text())["temperature"]
    expected = mean_of(tmp_path / "out", ["rose soil", "storm"], t)
    found = [[float(r[f"p_{name}"]) for name in LABELS] for r in rows]
    assert found == [pytest.approx(row, abs=1e-5) for row in expected], (
        "answers to the earlier rows were taken for these")
    assert (tmp_path / "out" / "oof.csv").read_bytes() == (place / "out" / "oof.csv").read_bytes()


def test_as_many_other_test_rows_are_asked_anew_too(place, call, tmp_path):
    shutil.copytree(place / "out", tmp_path / "out")
    texts = [text for text, _ in small.texts_of(random.Random(9), 12)]
    write(tmp_path / "new.csv", ("id", "text"), list(enumerate(texts)))
    given = [*arguments(place, tmp_path / "out"), "--test", tmp_path / "new.csv"]
    refused(call, ["submission.csv: answers other rows", "--overwrite"], tmp_path, *given)
    (tmp_path / "out" / "submission.csv").unlink()
    code, _, err = call(*given)
    assert code == 0, err
    write(tmp_path / "s.csv", ("id", "kitchen", "garden", "weather"),
          [(i, 0.3, 0.3, 0.4) for i in range(12)])
    refused(call, ["submission.csv: answers"], tmp_path, *given, "--sample", tmp_path / "s.csv")
    rows = {row["id"]: row for row in read(tmp_path / "out" / "submission.csv")}
    t = json.loads((tmp_path / "out" / "folds.json").read_text())["temperature"]
    expected = mean_of(tmp_path / "out", texts, t)
    found = [[float(rows[str(i)][name]) for name in LABELS] for i in range(12)]
    assert np.abs(np.array(found) - np.array(expected)).max() < 1e-5, "the earlier answers stayed"


def test_a_temperature_that_harms_is_not_applied():
    """Two folds that are wrong in opposite ways: what suits one harms the other."""
    sure = torch.tensor([[9.0, 0.0]] * 8)
    scores, targets = torch.cat([sure, sure]).double(), [0] * 8 + [0, 1] * 4
    found = measuring.evaluate_folds(scores, targets, [0] * 8 + [1] * 8, ["a", "b"])
    assert found["calibrated"]["log_loss"] > found["all"]["log_loss"], (
        "the case should be one where it harms")
    fitted = fit_temperature(scores, targets)
    assert fitted.temperature != 1
    assert measuring.submission_calibration(fitted, found, "auto").temperature == 1
    assert ("NOT applied: it does not lower"
            in measuring.report_lines(found, [0] * 8 + [1] * 8, fitted.temperature, 1.0)[-1])
    better = found | {"calibrated": {"log_loss": found["all"]["log_loss"] - 0.1}}
    assert measuring.submission_calibration(fitted, better, "auto") == fitted
    assert measuring.submission_calibration(fitted, better, "off").temperature == 1


def test_temperature_off_is_the_plain_mean(place, call, tmp_path, monkeypatch):
    shutil.copytree(place / "out", tmp_path / "out")
    code, out, err = call(*arguments(place, tmp_path / "out", "--temperature", "off"))
    assert code == 0 and "NOT applied" in out, err
    test, found = read(place / "test.csv"), read(tmp_path / "out" / "submission.csv")
    expected = {r["id"]: p
                for r, p in zip(test, mean_of(place / "out", [r["text"] for r in test], 1.0))}
    for row in found:
        assert [float(row[name]) for name in LABELS] == pytest.approx(
            expected[row["id"]].tolist(), abs=1e-5)
    assert json.loads((tmp_path / "out" / "folds.json").read_text())["temperature"] == 1


def test_ctrl_c_goes_on(place, tmp_path):
    """Ctrl-C in the second fold; the command given again ends with the same bytes."""
    given = arguments(place, tmp_path / "out")
    code, out, err, _ = small.forked("folds.__main__", given, interrupt=[8])
    assert code == 130 and "fold-2" in out and "goes on from there" in out, err
    assert not (tmp_path / "out" / "oof.csv").exists()
    code, out, err, _ = small.forked("folds.__main__", given)
    assert code == 0 and out.count("finished already") == 1, err
    assert answers(tmp_path / "out") == answers(place / "out")


def test_other_folds_in_the_same_folder_are_refused(place, call, tmp_path):
    shutil.copy(place / "train.csv", tmp_path / "other.csv")
    before = files(place / "out")
    for more, differ in (
            (("--seed", 1), "seed, division into folds"), (("--lr", "1e-3"), "lr"),
            (("--folds", 4), "division into folds (fold 1 of 3 before, fold 1 of 4 now)"),
            (("--group", "label,text"), "division into folds"),
            (("--data", tmp_path / "other.csv"), "data, sha256 of the data")):
        code, _, err = call(*arguments(place, place / "out", *more))
        assert code == 2 and err.count("\n") == 1, (more, err)
        assert f"fold-1: holds a run with another {differ}: choose another" in err, (more, err)
    assert files(place / "out") == before


def test_a_wrong_fold_is_found_before_another_is_trained(place, call, tmp_path):
    shutil.copytree(place / "out", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "fold-1")
    path = tmp_path / "out" / "fold-2" / "run.json"
    path.write_text(path.read_text().replace('"lr": 0.003', '"lr": 0.5'))
    refused(call, ["fold-2: holds a run with another lr"],
            tmp_path, *arguments(place, tmp_path / "out"))


def test_overwrite_asks_the_new_models(place, call, tmp_path):
    shutil.copytree(place / "out", tmp_path / "out")
    code, _, err = call(*arguments(place, tmp_path / "out", "--overwrite", "--lr", "1e-2",
                                   "--epochs", 1))
    assert code == 0, err
    assert answers(tmp_path / "out") != answers(place / "out")
    row, source = (read(path)[0] for path in (tmp_path / "out" / "oof.csv", place / "train.csv"))
    own = Classifier.load(tmp_path / "out" / f"fold-{row['fold']}").predict([source["text"]])[0]
    assert [float(row[f"p_{name}"]) for name in LABELS] == pytest.approx(own.tolist(), abs=1e-6)


# ---------------------------------------------------------------- leakage

class Memory:
    """In the place of a model: it knows by heart the label of each group it has learned."""

    def __init__(self, monkeypatch, key):
        self.key, self.known = key, {}
        monkeypatch.setattr(cross_validation, "train_fold", self.train)
        monkeypatch.setattr(cross_validation, "fold_logits", self.ask)

    def train(self, s, data, folder, overwrite, say):
        self.labels = data.labels
        self.known[folder] = {self.key(e.texts): e.label for e in [*data.train, *data.dev]}
        shared = {self.key(e.texts) for e in data.dev} & {self.key(e.texts) for e in data.train}
        assert not shared, f"dev and train share {shared}"

    def ask(self, s, folder, name, examples):
        rows = [[4.0 if label == self.known[folder].get(self.key(e.texts)) else 0.0
                 for label in self.labels] for e in examples]
        return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("group", ["", "topic"])
@pytest.mark.parametrize("leaking", [False, True])
def test_memory_is_worth_nothing(place, call, tmp_path, monkeypatch, group, leaking):
    """A memory of texts (of topics) has the log loss of a guess, unless groups are torn apart: then
    it is seen to score."""
    rng = random.Random(0)
    rows = [(f"topic{i // 3} text {i}" if group else f"text {i // 3}", f"Topic{i // 3}",
             "ab"[i // 3 % 2]) for i in range(90)]
    rng.shuffle(rows)
    rows = [(text.upper() if rng.random() < 0.5 else text, *rest) for text, *rest in rows]
    data = write(tmp_path / "data.csv", ("text", "topic", "label"), rows)
    Memory(monkeypatch,
           lambda texts: texts[0].casefold().split()[0] if group else texts[0].casefold())
    if leaking:
        monkeypatch.setattr(cross_validation, "assign_folds",
                            lambda labels, groups, k, seed: stratified_folds(labels, k, seed))
        monkeypatch.setattr(cross_validation, "fold_dataset", leaky_dataset)
    code, out, err = call("--model", place / "bert", "--data", data,
                          "--out", tmp_path / "out", *QUICK, "--group", group)
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "folds.json").read_text())
    if leaking:
        assert found["all"]["accuracy"] > 0.8, (
            "torn groups should show: else this test could not fail")
    else:
        assert found["all"]["log_loss"] == pytest.approx(np.log(2)) and found["temperature"] == 1.0


def test_texts_in_several_folds_are_told_before_training(place, call, tmp_path, monkeypatch):
    """The data doctor prints what it finds in fold 1 alone."""
    rows = [(f"text {i}", f"author {i}", "ab"[i % 2]) for i in range(24)]
    again = [(text, f"new author {i}", "a") for i, text in enumerate(
        ("Oh no", "oh  NO", "OH no", "oh no"))]
    Memory(monkeypatch, lambda texts: texts[0])
    for made, group, told in ((rows, "author", 0), (rows + again, "", 0),
                              (rows + again, "author", 1)):
        out = tmp_path / f"out{len(made)}{group}"
        code, said, err = call("--model", place / "bert", "--out", out, *QUICK, "--group", group,
                               "--data", write(tmp_path / "data.csv", ("text", "author", "label"),
                                               made))
        assert code == 0 and said.count("WARNING") == told, err
        before = said.partition("[fold 1")[0]
        assert ("WARNING: 1 text(s) stand in several folds, and flatter" in before) == bool(told)


def leaky_dataset(s, source, which, fold, labels):
    from minillmclf.text.data import Dataset
    train_rows = [e for e, f in zip(source.examples, which) if f != fold]
    held = [e for e, f in zip(source.examples, which) if f == fold]
    return Dataset("x", train_rows, [], held, labels, ("text",), {"sha256": {}})


# ---------------------------------------------------------------- the submission

FORM = SubmissionForm(["id", "p_b", "p_a"], [None, 1, 0], ["x", "y"])
GOOD = "id,p_b,p_a\nx,0.25,0.75\ny,1.0,0\n"
BAD = {
    "columns swapped": (GOOD.replace("p_b,p_a", "p_a,p_b"), ["columns", "p_a, p_b"]),
    "a column missing": ("id,p_b\nx,1\ny,1\n", ["columns"]),
    "a row missing": (GOOD[:GOOD.index("y,")], ["1 rows", "2"]),
    "a row more": (GOOD + "z,1,0\n", ["3 rows", "2"]),
    "rows swapped": ("id,p_b,p_a\ny,1.0,0\nx,0.25,0.75\n", ["line 2", "'y'", "'x'"]),
    "a field missing": (GOOD.replace("y,1.0,0", "y,1.0"), ["line 3", "2 fields", "3"]),
    "no number": (GOOD.replace("0.25", "much"), ["line 2", "'much'"]),
    "nan": (GOOD.replace("0.25", "nan"), ["line 2", "finite"]),
    "infinite": (GOOD.replace("1.0,0", "inf,0"), ["line 3", "finite"]),
    "below 0": (GOOD.replace("1.0,0", "1.1,-0.1"), ["line 3", "-0.1"]),
    "sum": (GOOD.replace("0.75", "0.750002"), ["line 2", "1.00000200"]),
}


def test_a_good_submission_passes():
    check_submission(GOOD, FORM, "s.csv")
    check_submission(GOOD.replace("0.75", "0.7500005"), FORM, "s.csv")
    probabilities = np.array([[0.0, 1.0], [0.75, 0.25]])
    expected = "id,p_b,p_a\nx,0.2500000000,0.7500000000\ny,1.0000000000,0.0000000000\n"
    assert submission_text(FORM, ["y", "x"], probabilities) == expected, (
        "rows should be found by their id")


@pytest.mark.parametrize("text, words", BAD.values(), ids=BAD)
def test_bad_submissions(text, words):
    with pytest.raises(InputError) as error:
        check_submission(text, FORM, "s.csv")
    line = str(error.value)
    assert line.startswith("s.csv") and "\n" not in line and all(w in line for w in words), line


def test_nothing_is_written_over_by_a_bad_submission(place, call, tmp_path, monkeypatch):
    before = files(place / "out")
    monkeypatch.setattr(cross_validation, "mean_probabilities",
                        lambda scores, calibration: np.full((12, 3), np.nan))
    code, _, err = call(*arguments(place, place / "out"))
    assert code == 2 and "submission.csv, line 2" in err and "finite" in err
    assert err.count("\n") == 1
    assert files(place / "out") == before


def refused(call, words, folder, *given):
    before = files(folder)
    code, out, err = call(*given)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, (out[-300:], err)
    assert not [word for word in words if word not in err], f"should name {words}: {err}"
    assert files(folder) == before and "[fold" not in out, (
        "a mistake in the files should be found before anything is trained")


def test_the_command_refuses(place, call, tmp_path):
    out, bad = tmp_path / "out", tmp_path / "bad.csv"

    def given(*more):
        return arguments(place, out, *more)
    ids = [(i, 0.3, 0.3, 0.4) for i in range(12)]
    write(bad, ("id", "weather", "garden", "flower"), ids)
    refused(call, ["bad.csv", "flower", "garden, kitchen, weather"],
            tmp_path, *given("--sample", bad))
    write(bad, ("id", "weather", "garden"), [row[:3] for row in ids])
    refused(call, ["bad.csv", "3 classes"], tmp_path, *given("--sample", bad))
    write(bad, ("id", "0", "1", "2"), ids)            # numbers of classes are not their names
    refused(call, ["bad.csv", "garden, kitchen, weather"], tmp_path, *given("--sample", bad))
    write(bad, ("id", *LABELS), [*ids[:10], (77, 1, 0, 0)])
    refused(call, ["bad.csv", "1 of 11 ids", "2 of its 12", "'77'"],
            tmp_path, *given("--sample", bad))
    write(bad, ("id", *LABELS), [*ids, ids[0]])
    refused(call, ["bad.csv", "line 14", "'0'"], tmp_path, *given("--sample", bad))
    write(bad, ("text",), [("rose",)])
    refused(call, ["bad.csv", "'id'", "sample.csv"], tmp_path, *given("--test", bad))
    write(bad, ("id", "text"), [(0, "rose"), (1, " ")])
    refused(call, ["bad.csv", "line 3", "empty"], tmp_path, *given("--test", bad))
    write(bad, ("id", "text"), [(i, "rose" if i != 5 else "\x02") for i in range(12)])
    refused(call, ["line 7", "holds no token"], tmp_path, *given("--test", bad))
    refused(call, ["1 folds"], tmp_path, *given("--folds", 1))
    refused(call, ["'garden'", "12 rows", "13 folds"], tmp_path, *given("--folds", 13))
    refused(call, ["--group", "'author'"], tmp_path, *given("--group", "author"))
    refused(call, ["3 groups", "4 folds"], tmp_path, *given("--group", "label", "--folds", 4))
    refused(call, ["'garden'", "one group"], tmp_path, *given("--group", "label"))
    refused(call, ["nowhere.csv"], tmp_path, *given("--data", "nowhere.csv"))
    refused(call, ["no such model"], tmp_path, *given("--model", "nowhere"))
    refused(call, ["--sample goes with --test"], tmp_path, "--sample", bad,
            "--data", place / "train.csv", "--out", out)
    write(bad, ("text", "author", "label"), [("rose", "x", "a"), ("tree", " ", "b")])
    refused(call, ["bad.csv", "line 3", "author"],
            tmp_path, *given("--data", bad, "--group", "author"))
    write(bad, ("text", "label"), [("rose", "a"), ("tree", "a")])
    refused(call, ["bad.csv", "1 classes"], tmp_path, *given("--data", bad))
    write(bad, ("text", "split", "label"), [("rose", "test", "a"), ("tree", "test", "b")])
    refused(call, ["bad.csv", "0 rows"], tmp_path, *given("--data", bad))


def test_rows_marked_test_are_left_out(place, tmp_path, capsys):
    path = write(tmp_path / "d.csv", ("text", "label", "split"),
                 [("a", "x", "train"), ("b", "y", "Test"), ("c", "y", "dev")])
    source = read_source(path, read_settings({}))
    assert source.ids == ["2", "4"] and [e.texts for e in source.examples] == [("a",), ("c",)]
    assert len(source.groups) == 2
    assert "1 of 3 rows" in capsys.readouterr().out
    assert read_source(path, read_settings({}), labelled=False).ids == ["2", "3", "4"]


# ---------------------------------------------------------------- battles

@pytest.fixture(scope="module")
def arena(place, tmp_path_factory):
    """Files of the competition: 27 battles over 9 prompts, 4 to answer, a sample. -> folder"""
    folder = tmp_path_factory.mktemp("arena")
    words = [" ".join(random.Random(i).choices(small.FILLERS, k=3)) for i in range(99)]
    rows = [
        (1000 + i, "m", "n", json.dumps([words[i // 3]]), json.dumps([words[i], None][:1 + i % 2]),
         json.dumps([words[-i]]), *(int(i % 3 == side) for side in range(3))) for i in range(27)]
    write(folder / "train.csv",
          ("id", "model_a", "model_b", "prompt", "response_a", "response_b", *WINNERS), rows)
    test = [(i, '["the rose"]', json.dumps(["a \ud83d tree"]), "[null]") for i in range(4)]
    write(folder / "test.csv", ("id", "prompt", "response_a", "response_b"), test)
    write(folder / "sample_submission.csv", ("id", *WINNERS),
          [(i, 1 / 3, 1 / 3, 1 / 3) for i in range(4)])
    return folder


def battles(place, arena, out, *more):
    return ["--model", place / "bert", "--data", arena / "train.csv", "--test", arena / "test.csv",
            "--sample", arena / "sample_submission.csv", "--group", "prompt", "--out", out, *QUICK,
            "--epochs", 1, *more]


@pytest.mark.parametrize("readout", ["head", "labels"])
def test_arena_from_end_to_end(place, arena, call, tmp_path, readout):
    texts = '{"a": "rose", "b": "soup", "tie": "rain"}'
    more = () if readout == "head" else ("--readout", "labels", "--label-texts", texts)
    code, out, err = call(*battles(place, arena, tmp_path / "out", *more))
    assert code == 0, err
    found = read(tmp_path / "out" / "submission.csv")
    assert list(found[0]) == ["id", *WINNERS] and [r["id"] for r in found] == list("0123")
    ids, tests = read_arena(arena / "train.csv")[1], read_arena(arena / "test.csv", False)[0]
    member = read_member(tmp_path / "out", ids, [e.texts for e in tests], ["tie", "b", "a"])
    assert member.test.shape == (4, 3), "also where the model reads the prompt with an answer"
    groups = collections.defaultdict(set)
    for row, source in zip(read(tmp_path / "out" / "oof.csv"), read(arena / "train.csv")):
        assert row["id"] == source["id"]
        assert source[WINNERS[["a", "b", "tie"].index(row["label"])]] == "1"
        groups[source["prompt"]].add(row["fold"])
    assert len(groups) == 9 and all(len(held) == 1 for held in groups.values()), (
        "a prompt stands in two folds")
    test = read_source(arena / "test.csv", read_settings({"readout": readout}),
                       labelled=False).examples[0].texts
    assert test == (("the rose\n\na \ufffd tree", "(empty)") if readout == "head"
                    else ("the rose", "a \ufffd tree", "(empty)"))
    expected = mean_of(tmp_path / "out", [test],
                       json.loads((tmp_path / "out" / "folds.json").read_text())["temperature"])[0]
    assert ([float(found[0][name]) for name in WINNERS]
            == pytest.approx(expected.tolist(), abs=1e-5)), (
        "winner_model_a should hold the probability of class a, and so on")


def test_without_a_sample_a_submission_has_the_columns_of_the_data(place, arena, call, tmp_path):
    code, out, err = call("--model", place / "bert", "--data", arena / "train.csv",
                          "--test", arena / "test.csv", "--group", "prompt",
                          "--out", tmp_path / "out", *QUICK, "--epochs", 1)
    assert code == 0, err
    found = read(tmp_path / "out" / "submission.csv")
    assert list(found[0]) == ["id", *WINNERS] and [r["id"] for r in found] == list("0123")


def test_battles_and_texts_do_not_mix(place, arena, call, tmp_path):
    refused(call, ["test.csv"],
            tmp_path, *battles(place, arena, tmp_path / "out", "--test", place / "test.csv"))
    refused(call, ["a head reads one text or two"], tmp_path, *battles(
        place, arena, tmp_path / "out", "--text-column", "prompt,response_a,response_b",
        "--label-column", "winner_tie"))


def test_help_is_quick():
    program = """
import sys
from minillmclf.folds import __main__ as folds
try:
    folds.parse(["--help"])
except SystemExit:
    print("slow:", sorted({"torch", "numpy", "safetensors"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], env=small.environment(), text=True,
                          capture_output=True)
    assert "slow: []" in done.stdout, done.stdout[-200:] + done.stderr
    for flag in ("--folds", "--group", "--test", "--sample", "--overwrite", "--config", "--lr"):
        assert f"  {flag} " in done.stdout, f"--help does not explain {flag}"


@pytest.mark.parametrize("header, columns", [
    ("premise,hypothesis,label", ("premise", "hypothesis")), ("text,label", ("text",)),
    ("text_a,text_b,label", ("text_a", "text_b"))])
def test_columns_are_those_that_all_commands_take(header, columns, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(header + "\n" + ",".join("x" * len(header.split(","))) + "\n", encoding="utf-8")
    source = read_source(path, Settings(data=str(path)))
    assert source.columns == columns and len(source.examples[0].texts) == len(columns)
