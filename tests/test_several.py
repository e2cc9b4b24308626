"""Several labels a row: is the loss transformers' own, are thresholds the best there are, and does
a set of labels survive reading, training, saving and answering?

The end-to-end set is made here, of the bundled tickets: two messages of different classes joined
into one text.
"""
import contextlib
import csv
import io
import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import refused
from hypothesis import given, settings, strategies as st
from live import imported, loaded, may_refuse
from small import TOPICS, bert_folder, flags

from minillmclf import Classifier, labels, load_data, merge, train
from minillmclf.compare import __main__ as compare
from minillmclf.folds import __main__ as folds
from minillmclf.predict import __main__ as predict
from minillmclf.report import __main__ as report
from minillmclf import evaluate as evaluate_command
from minillmclf.classify import multilabel as several
from minillmclf.classify.baseline import OneVersusRest, rows_of as rows_of_matrix
from minillmclf.cli.settings import Settings, read_settings
from minillmclf.text import doctor
from minillmclf.text.batch import collate
from minillmclf.text.cells import label_set, split_label, natural_order
from minillmclf.text.data import hold_out
from minillmclf.text.examples import Example, read_examples
from minillmclf.training.loop import take_step
from minillmclf.training.plan import Split
from minillmclf.training.metrics import evaluate
from minillmclf.training.multilabel import BinaryCrossEntropy, evaluate_multilabel, positive_weights
from minillmclf.training.optim import build_optimizer

LABELS = ["garden", "kitchen", "weather"]
TEXTS = ["the rose", "soup and salt with bread in the rain", "a storm",
         "it was quite a very old tree near my new kitchen soil"]
SETS = ["garden", "kitchen|weather", "", "garden|kitchen|weather"]


def csv_file(path, rows, header=("text", "label", "split")):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


# ---------------------------------------------------------------- reading

@pytest.mark.parametrize("value, made", [
    ("b | a", "a|b"), ("b", "b"), ("", ""), ("  ", ""), ([], ""), (["b", " a "], "a|b"),
    ("10|9|x", "9|10|x"), ([2, 1.0], "1|2"), (3, "3")])
def test_a_cell_names_a_set(value, made):
    assert label_set(value, "here") == made
    assert split_label(made) == (made.split("|") if made else [])
    assert label_set(made, "here") == made, "what is written is read as the same set"


@pytest.mark.parametrize("value, said", [
    ("a||b", "empty name"), ("|a", "empty name"), ("a| ", "empty name"), ("a|b|a", "'a' twice"),
    (["a", "a "], "'a' twice"), (["a|b"], "bar"), (None, "null"), ([None], "null"),
    ([""], "label"), ({"a": 1}, "must hold a label"), ("a|nan", "nan")])
def test_what_is_no_set_of_labels(value, said):
    refused(lambda: label_set(value, "f.csv, line 3: column 'label'"),
            "f.csv, line 3: column 'label'", said)


@settings(max_examples=100, deadline=None)
@given(st.sets(st.sampled_from(["a", "B", "c c", "10", "2", "-1.5", "ü"])), st.randoms())
def test_order_and_spaces_in_a_cell_play_no_part(names, rng):
    listed = sorted(names)
    rng.shuffle(listed)
    made = label_set(" | ".join(listed), "here")
    assert made == label_set(listed, "here") and split_label(made) == natural_order(names)


def test_files_are_read_with_sets_and_without(tmp_path):
    rows = [("x one", "b|a", "train"), ("x two", "b", "train"), ("x three", "", "train"),
            ("x four", "a", "dev")]
    path = csv_file(tmp_path / "data.csv", rows)
    data = load_data(path, multi_label=True)
    assert (data.labels, data.multi_label) == (["a", "b"], True)
    assert [e.label for e in data.train + data.dev] == ["a|b", "b", "", "a"]
    lines = [json.dumps({"text": text, "label": label.split("|") if label else [], "split": split})
             for text, label, split in rows]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    assert [e.label for e in read_examples(tmp_path / "data.jsonl", multi_label=True)] == [
        "a|b", "b", "", "a"]
    refused(lambda: load_data(path), "line 4", "must hold a label")


def test_faults_are_named_with_their_line(tmp_path):
    def load(*rows):
        return lambda: load_data(
            csv_file(tmp_path / "f.csv", [("x", "a", "train"), ("y", "b", "train"), *rows]),
            multi_label=True)
    refused(load(("z", "a|b|a", "dev")), "f.csv, line 4: column 'label'", "'a' twice", "once")
    refused(load(("z", "a||b", "dev")), "f.csv, line 4: column 'label'", "empty name", "'a||b'")
    refused(load(("z", "a|c", "dev")), "f.csv, line 4", "dev has the label 'c'",
            "train has not (only 'a', 'b')")
    refused(load(("z", "a", "dev"), ("w", "d|b", "test")), "f.csv, line 5",
            "test has the label 'd'")
    path = csv_file(tmp_path / "none.csv", [("x", "", "train"), ("y", "", "dev")])
    refused(lambda: load_data(path, multi_label=True), "no train row has a label")
    path = csv_file(tmp_path / "one.csv", [("x", "a", "train"), ("y", "", "dev")])
    refused(lambda: load_data(path, multi_label=True), "one class only ('a')")


def test_with_one_label_a_row_a_bar_is_part_of_a_name(tmp_path):
    path = csv_file(tmp_path / "f.csv",
                    [("x", "b|a", "train"), ("y", "a|b", "train"), ("z", "a|b", "dev")])
    data = load_data(path)
    assert data.labels == ["a|b", "b|a"] and not data.multi_label


def test_rows_are_held_out_by_their_rarest_label():
    sets = (["a"] * 40 + ["a|b"] * 40 + ["b"] * 20 + [""] * 20 + ["a|c"] * 10 + ["b|c"] * 10
            + ["a|b|c"] * 10)
    rows = [Example((f"text {i}",), label, i) for i, label in enumerate(sets)]
    parts = hold_out(rows, ("dev", "test"), 0, multi_label=True)
    assert sorted(e.row for part in parts.values() for e in part) == list(range(150))
    for split in ("dev", "test"):
        assert sum("c" in split_label(e.label) for e in parts[split]) == 3, (
            "a tenth of the 30 rows with the rarest label")
        assert sum(e.label == "" for e in parts[split]) == 2 and len(parts[split]) == 15
    shuffled = rows[:]
    random.Random(0).shuffle(shuffled)
    again = hold_out(shuffled, ("dev", "test"), 0, multi_label=True)
    assert {e.row for e in again["dev"]} == {e.row for e in parts["dev"]}, (
        "the order of rows decides")


# ---------------------------------------------------------------- the data doctor

def test_the_doctor_counts_each_label(tmp_path):
    pairs = [("a|b", "train")] * 6 + [("a", "train")] * 3 + [("", "train")]
    pairs += [("b", "dev"), ("a|b", "dev"), ("", "test"), ("a", "test")]
    rows = [(f"text {i}", label, split) for i, (label, split) in enumerate(pairs)]
    report = doctor.examine_data(load_data(csv_file(tmp_path / "f.csv", rows), multi_label=True))
    assert report.classes == {"a": {"train": 9, "dev": 1, "test": 1, "share": 0.9},
                              "b": {"train": 6, "dev": 2, "test": 0, "share": 0.6}}
    assert (report.cardinality == {"train": 1.5, "dev": 1.5, "test": 0.5}
            and report.unlabelled == {"train": 1, "dev": 0, "test": 1})
    shown = "\n".join(report.lines())
    assert "without a label" in shown and "labels a row, mean" in shown and "1.50" in shown
    assert not any("no train row seems to have two" in line for line in report.warnings)
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()


def test_the_doctor_asks_whether_the_bar_is_missing(tmp_path):
    rows = [("x", "a,b", "train"), ("y", "a", "train"), ("z", "", "train"), ("w", "a", "dev")]
    report = doctor.examine_data(load_data(csv_file(tmp_path / "f.csv", rows), multi_label=True))
    assert any("no train row seems to have two labels" in line for line in report.warnings)


# ---------------------------------------------------------------- thresholds and metrics

def f1_of(answered, true):
    tp = sum(a and t for a, t in zip(answered, true))
    return 2 * tp / (sum(answered) + sum(true)) if tp else 0.0


numbers = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1),
                    st.floats(0, 1, width=32))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(numbers, st.booleans()), min_size=1, max_size=12))
def test_no_threshold_is_better(rows):
    p, true = [p for p, _ in rows], [t for _, t in rows]
    found = several.best_threshold(np.array(p), np.array(true, dtype=float))
    if not any(true):
        assert found == 0.5, "a class without positives keeps 0.5"
        return
    points = sorted({0.0, *p})
    tried = [0.0, 1.0, 0.5, 2.0, *p, *((a + b) / 2 for a, b in zip(points, points[1:]))]
    best = max(f1_of([x >= t for x in p], true) for t in tried)
    assert f1_of([x >= found for x in p], true) == best, f"{found} is not the best threshold"
    own = sorted(set(p))
    middles = [(a + b) / 2 for a, b in zip([0.0, *own], own)]
    usable = [m for m in middles if m not in own and f1_of([x >= m for x in p], true) == best]
    assert all(abs(found - 0.5) <= abs(m - 0.5) + 1e-12 for m in usable), (
        "of equal ones it should be the nearest to 0.5")


def test_thresholds_by_hand():
    assert several.best_threshold([0.9, 0.2, 0.1], [1, 1, 0]) == pytest.approx(0.15)
    assert several.best_threshold([0.9, 0.3, 0.1], [1, 0, 0]) == pytest.approx(0.6)
    assert several.best_threshold([0.4, 0.4, 0.4], [1, 0, 0]) == pytest.approx(0.2), (
        "equal rows are answered together")
    for truth in ([1, 0, 0, 1], [0, 1, 0, 1]):
        assert several.best_threshold([0.6, 0.6, 0.3, 0.2], truth) == pytest.approx(0.1), (
            "no threshold parts equal rows")
    for low in (0.3, np.nextafter(0.3, 1), 0.7, np.nextafter(0.7, 1)):
        high = np.nextafter(low, 1)
        assert low < several.best_threshold([low, high], [0, 1]) <= high, (
            "between neighbours of float64 there is no number")
    close = np.float32([0.3, np.nextafter(np.float32(0.3), np.float32(1))])
    found = several.best_threshold(close, [0, 1])
    assert several.MultiLabel(["a"], [found]).answers(close[:, None]) == ["", "a"], (
        "rounded to float32 it falls on a row")
    assert (several.fit_thresholds([[0.9, 0.1], [0.2, 0.3], [0.1, 0.2]], [[1, 0], [1, 0], [0, 0]])
            == [pytest.approx(0.15), 0.5])


def test_metrics_by_hand():
    p = np.array([[0.9, 0.2, 0.6], [0.4, 0.7, 0.1], [0.3, 0.1, 0.2]])
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]])
    found = evaluate_multilabel(p, truth, "abc")
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert (found["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
            and found["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3))
    assert (found["precision"] == {"a": 1, "b": 1, "c": 0}
            and found["recall"] == {"a": 0.5, "b": 1, "c": 0})
    own = [0.9, 0.8, 0.4, 0.4, 0.7, 0.9, 0.7, 0.9, 0.8]
    assert found["log_loss"] == pytest.approx(-np.log(own).mean())
    assert evaluate_multilabel(p, truth, "abc", [0.35, 0.5, 0.65])["exact_match"] == 1
    both = several.MultiLabel("abc", [0.35, 0.5, 0.65]).evaluate(p, truth)
    assert both["micro_f1"] == 1 and both["at_half"]["micro_f1"] == pytest.approx(2 / 3)


def test_two_classes_that_exclude_one_another_are_one_decision():
    """One of two labels a row, probabilities that add up to one: micro F1 is the plain accuracy."""
    rng = np.random.default_rng(1)
    first = rng.random(100)
    p, truth = np.stack([first, 1 - first], 1), rng.integers(0, 2, 100)
    assert evaluate_multilabel(p, np.eye(2)[truth], "ab")["micro_f1"] == pytest.approx(
        evaluate(p, truth, "ab")["accuracy"])


# ---------------------------------------------------------------- baselines

def test_one_regression_for_each_class():
    texts = ["rain wind", "soup salt", "rain soup", "wind salt", "old today"] * 4
    truth = [[1, 0], [0, 1], [1, 1], [1, 1], [0, 0]] * 4
    truth = [[float(x) for x in row] for row in truth]
    bag = OneVersusRest(2).fit(texts, truth, texts, truth)
    assert ((bag.predict(texts) >= 0.5) == np.array(truth)).all()
    alone = OneVersusRest(1).fit(texts, [row[:1] for row in truth], texts,
                                 [row[:1] for row in truth])
    x, y = bag.features(texts), torch.tensor(truth)
    rows, terms = rows_of_matrix(x), rows_of_matrix(x.t())
    both = bag.fit_weights(rows, terms, y, 1e-3)
    one = alone.fit_weights(rows, terms, y[:, :1], 1e-3)
    assert (torch.allclose(both[0][:, :1], one[0], atol=2e-2)
            and torch.allclose(both[1][:1], one[1], atol=2e-2)), (
        "another class takes part in the regression of the first")
    frequencies = several.MultiLabel(["a", "b"]).predict_frequencies(truth, 2)
    assert frequencies.tolist() == [[0.6, 0.6]] * 2


# ---------------------------------------------------------------- the loss

def tiny(folder, **more):
    """A tiny BERT with a head for LABELS, several a text; no dropout, so that gradients compare."""
    model = Classifier.from_backbone(bert_folder(folder, **{"dropout": 0.0, **more}), LABELS,
                                     multi_label=True)
    with torch.no_grad():
        model.head.out.weight.mul_(20)                                       # scores far from 0
    return model


def rows_of(model):
    examples = [Example((text,), label, line)
                for line, (text, label) in enumerate(zip(TEXTS, SETS), 2)]
    return Split(model.encode(TEXTS)[0], model.task.targets(examples))


def test_transformers_has_the_same_scores_and_the_same_loss(tmp_path):
    transformers = imported("transformers")
    model = tiny(tmp_path / "base")
    model.save(tmp_path / "saved")
    theirs = loaded(transformers.AutoModelForSequenceClassification.from_pretrained,
                    tmp_path / "saved").eval()
    assert theirs.config.problem_type == "multi_label_classification", (
        "it would be guessed, perhaps wrongly")
    rows = rows_of(model)
    batch = collate(rows.encoded, range(4), labels=rows.targets)
    assert batch.mask.sum(1).unique().numel() > 2, "rows of one length need no padding"
    objective = BinaryCrossEntropy()
    with torch.no_grad(), may_refuse():
        found = theirs(batch.ids, batch.mask, token_type_ids=batch.types, labels=batch.labels)
        ours = objective(model, batch) / objective.divisor(batch.labels)
        scores = model(batch)
    assert torch.allclose(scores, found.logits, atol=1e-5)
    assert ours.item() == pytest.approx(found.loss.item(), rel=1e-5)
    means = [F.binary_cross_entropy_with_logits(scores[part], batch.labels[part])
             for part in (slice(0, 3), slice(3, 4))]
    wrong = {"cross-entropy over the classes": F.cross_entropy(scores, batch.labels),
             "summed over classes": objective(model, batch) / len(batch.labels),
             "cross-entropy of the first label": F.cross_entropy(scores, batch.labels.argmax(1)),
             "the mean of the means of two batches": sum(means) / 2}
    for name, loss in wrong.items():
        assert abs(loss.item() - found.loss.item()) > 1e-3, (
            f"{name} cannot be told from the right loss here")


def test_a_folder_of_transformers_answers_with_sets(tmp_path):
    transformers = imported("transformers")
    made = bert_folder(tmp_path / "base")
    torch.manual_seed(0)
    with may_refuse():
        config = transformers.AutoConfig.from_pretrained(
            made, problem_type="multi_label_classification", num_labels=3,
            id2label=dict(enumerate(LABELS)), label2id={l: i for i, l in enumerate(LABELS)})
        theirs = transformers.BertForSequenceClassification(config).eval()
        theirs.save_pretrained(tmp_path / "theirs")
    for file in made.glob("*okeniz*"):
        (tmp_path / "theirs" / file.name).write_bytes(file.read_bytes())
    model = Classifier.load(tmp_path / "theirs")
    assert model.task.MULTI_LABEL and model.task.thresholds == [0.5] * 3 and model.labels == LABELS
    batch = collate(model.encode(TEXTS)[0], range(4))
    with torch.no_grad(), may_refuse():
        logits = theirs(batch.ids, batch.mask, token_type_ids=batch.types).logits
    expected = logits.sigmoid().numpy()
    found = model.predict(TEXTS)
    assert np.allclose(found, expected, atol=1e-5) and not np.allclose(found.sum(1), 1, atol=1e-2)
    assert model.answers(found) == [
        "|".join(n for n, p in zip(LABELS, row) if p >= 0.5) for row in found]


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 3.0]])
def test_pieces_of_a_batch_add_up_to_its_gradient(tmp_path, weights):
    weights = None if weights is None else torch.tensor(weights)
    s = Settings(multi_label="on", metric="log_loss", clip=0.0, lr=1e-9)
    found = {}
    for size in (0, 1, 2, 3):
        model = tiny(tmp_path / str(size)).train()
        rows = rows_of(model)
        step = take_step(model, build_optimizer(model, s.lr, 0.0), rows, [0, 1, 2, 3],
                         Settings(**{**vars(s), "micro_batch_size": size}),
                         BinaryCrossEntropy(weights))
        found[size] = step, {
            n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model = tiny(tmp_path / "whole")
    batch = collate(rows_of(model).encoded, range(4), labels=rows_of(model).targets)
    expected = F.binary_cross_entropy_with_logits(model(batch), batch.labels, pos_weight=weights)
    expected.backward()
    for size, (loss, gradients) in found.items():
        assert loss == pytest.approx(expected.item(), rel=1e-5), (
            f"in pieces of {size} rows it is another loss")
        for name, parameter in model.named_parameters():
            assert torch.allclose(gradients[name], parameter.grad, atol=1e-6), (
                f"pieces of {size} rows: {name} has another gradient")


def test_balanced_weights_make_both_answers_weigh_alike():
    truth = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    weights = positive_weights(truth, ["a", "b"])
    assert weights.tolist() == pytest.approx([3, 1 / 3])
    y = torch.tensor(truth)
    losses = F.binary_cross_entropy_with_logits(
        torch.zeros(4, 2), y, pos_weight=weights, reduction="none")
    assert (losses * y).sum(0).tolist() == pytest.approx((losses * (1 - y)).sum(0).tolist())
    refused(lambda: positive_weights([[1.0, 1.0], [1.0, 0.0]], ["a", "b"]),
            "--class-weights balanced", "2 of 2", "'a'")


# ---------------------------------------------------------------- saving

def test_thresholds_survive_saving(tmp_path):
    model = tiny(tmp_path / "base")
    before = model.predict(TEXTS)
    chosen = [float(np.sort(column)[2]) for column in before.T]  # each class is answered twice
    model.task = several.MultiLabel(LABELS, chosen)
    model.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["problem_type"] == "multi_label_classification"
            and config["minillmclf"]["thresholds"] == chosen)
    again = Classifier.load(tmp_path / "saved")
    assert again.task.thresholds == chosen and np.array_equal(again.predict(TEXTS), before)
    assert (again.answers(before) == model.answers(before)
            != several.MultiLabel(LABELS).answers(before))
    assert sum(answer.split("|").count(LABELS[0]) for answer in again.answers(before)) == 2


def test_one_label_a_text_is_saved_as_before(tmp_path):
    model = Classifier.from_backbone(bert_folder(tmp_path / "base"), LABELS)
    model.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["problem_type"] == "single_label_classification"
            and "thresholds" not in config["minillmclf"])
    again = Classifier.load(tmp_path / "saved")
    p = again.predict(TEXTS)
    assert (not again.task.MULTI_LABEL and np.allclose(p.sum(1), 1, atol=1e-6)
            and again.answers(p) == [LABELS[i] for i in p.argmax(1)])


@pytest.mark.parametrize("change, said", [
    ({"problem_type": "single_label_classification"},
     "thresholds, which go with problem_type multi_label_classification"),
    ({"thresholds": [0.5, 0.5]}, "should be 3 numbers from 0 to 1"),
    ({"thresholds": [0.5, 0.5, "x"]}, "should be 3 numbers"),
    ({"thresholds": [0.5, 0.5, 1.5]}, "should be 3 numbers"),
    ({"thresholds": [0.5, 0.5, float("nan")]}, "NaN is no JSON number"),
    ({"thresholds": 0.5}, "should be 3 numbers"),
    ({"id2label": {"0": "a|b", "1": "b", "2": "c"}}, "'a|b' has a bar")])
def test_faulty_files_are_refused(tmp_path, change, said):
    tiny(tmp_path / "base").save(tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    config = json.loads(path.read_text())
    config["minillmclf"] |= {key: value for key, value in change.items() if key == "thresholds"}
    path.write_text(
        json.dumps(config | {key: value for key, value in change.items() if key != "thresholds"}))
    refused(lambda: Classifier.load(tmp_path / "saved"), path, said)


def test_sure_scores_are_no_ones(tmp_path):
    """In float32 the sigmoid of 20 is 1, and its log loss that of a limit, 34.5."""
    model = tiny(tmp_path / "base")
    p = model.probabilities(torch.tensor([[20.0, -20.0, 20.0]]))
    assert evaluate_multilabel(p, [[0, 0, 1]], LABELS)["log_loss"] == pytest.approx(
        20 / 3, rel=1e-6)


def test_what_does_not_go_with_several_classes(tmp_path):
    model = tiny(tmp_path / "base")
    refused(lambda: model.task.set_calibration({"bias": [0.0] * 3, "temperature": 2.0}),
            "calibration", "threshold")
    refused(lambda: Classifier.from_backbone(tmp_path / "base", ["a", "b", "tie"], multi_label=True,
                                             preference={"kind": "head"}),
            "several classes a text", "preference")
    model.save(tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    config = json.loads(path.read_text())
    config["minillmclf"]["calibration"] = {"bias": [0.0] * 3, "temperature": 2.0}
    path.write_text(json.dumps(config))
    refused(lambda: Classifier.load(tmp_path / "saved"), path, "calibration", "threshold")


# ---------------------------------------------------------------- from end to end

def joined(examples, rows, seed):
    """Tickets, two of different classes a text; every fourth alone, every tenth without a label."""
    rng, made = random.Random(seed), []
    while len(made) < rows:
        chosen = rng.sample(examples, 1 if len(made) % 4 == 3 else 2)
        if len({e.label for e in chosen}) == len(chosen):
            label = "" if len(made) % 10 == 9 else "|".join(e.label for e in chosen)
            made.append((" ".join(e.texts[0] for e in chosen), label))
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run folder, data file, what train printed): mini-bert, one epoch on a few joined tickets."""
    folder, tickets = tmp_path_factory.mktemp("several"), load_data("tickets")
    rows = [(*row, split) for split, count in (("train", 48), ("dev", 30), ("test", 20))
            for row in joined(getattr(tickets, split), count, split)]
    data = csv_file(folder / "joined.csv", rows)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        train.main(flags(data=data, multi_label="on", epochs=1, batch_size=16, out=folder / "run"))
    return folder / "run", data, out.getvalue()


def test_a_run_from_end_to_end(trained):
    run, path, out = trained
    record, data = json.loads((run / "run.json").read_text()), load_data(path, multi_label=True)
    assert (record["settings"]["metric"] == "log_loss"
            and record["data"]["labels"] == load_data("tickets").labels)
    names = list(record["results"])
    assert names == ["class frequencies", "bag of words", "mini-bert, full"]
    for line in (*names, "exact match", "at 0.5", "fitted", "threshold", "without a label"):
        assert line in out, f"{line!r} is not in what train prints"
    model = Classifier.load(run)
    parts = {split: getattr(data, split) for split in ("dev", "test")}
    texts = {split: [e.texts for e in rows] for split, rows in parts.items()}
    targets = several.MultiLabel(data.labels).targets
    truth = {split: targets(rows) for split, rows in parts.items()}
    fitted = several.fit_thresholds(model.predict(texts["dev"]), truth["dev"])
    assert model.task.thresholds == pytest.approx(fitted, abs=1e-6), (
        "the thresholds are not those of the dev rows")
    assert model.task.thresholds != pytest.approx(
        several.fit_thresholds(model.predict(texts["test"]), truth["test"]), abs=1e-3)
    p, own = model.predict(texts["test"]), record["results"]["mini-bert, full"]
    assert (
        own["micro_f1"]
        == evaluate_multilabel(p, truth["test"], data.labels, model.task.thresholds)["micro_f1"])
    assert (own["at_half"]["micro_f1"]
            == evaluate_multilabel(p, truth["test"], data.labels)["micro_f1"])
    with open(run / "predictions.csv", encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert ([row["predicted"] for row in written] == model.answers(p)
            and any("|" in row["predicted"] for row in written))
    assert [row["label"] for row in written] == [e.label for e in data.test]
    assert np.allclose([[float(row[f"p_{name}"]) for name in data.labels] for row in written], p,
                       atol=1e-6)


def test_a_saved_run_predicts_and_is_judged_the_same(trained, tmp_path, capsys):
    run, path, _ = trained
    model, data = Classifier.load(run), load_data(path, multi_label=True)
    p = model.predict([e.texts for e in data.train + data.dev + data.test])
    assert predict.main(flags(model=run, data=path, out=tmp_path / "answers.csv")) == 0, (
        "rows without a label are in the file")
    with open(tmp_path / "answers.csv", encoding="utf-8", newline="") as file:
        assert [row["predicted"] for row in csv.DictReader(file)] == model.answers(p)
    capsys.readouterr()
    predict.main(["--model", str(run), data.test[0].texts[0]])
    line = json.loads(capsys.readouterr().out)
    assert (line["label"] == model.answers(model.predict([data.test[0].texts]))[0]
            and list(line["probabilities"]) == data.labels)
    evaluate_command.main(flags(model=run, out=tmp_path / "out.json"))
    assert "at 0.5" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    record = json.loads((run / "run.json").read_text())
    own = record["results"]["mini-bert, full"]
    assert {key: found[key] for key in own} == own
    foreign = csv_file(tmp_path / "foreign.csv", [("a text", "refund|lost")], ("text", "label"))
    refused(lambda: evaluate_command.main(flags(model=run, data=foreign)), foreign, "line 2",
            "'lost'", "refund")


def test_only_the_run_s_own_dev_rows_are_said_to_have_fitted_the_thresholds(trained, tmp_path,
                                                                             capsys):
    run, data, _ = trained
    same, other = tmp_path / "same.csv", tmp_path / "other.csv"
    same.write_bytes(data.read_bytes())
    other.write_bytes(data.read_bytes() + b"my parcel is late,,test\n")
    dev = ["--split", "dev"]
    for more, said in ([], False), (dev, True), ([*dev, "--data", str(data)], True), \
            ([*dev, "--data", str(same)], True), ([*dev, "--data", str(other)], False):
        assert evaluate_command.main(["--model", str(run), *more]) == 0
        assert ("are fitted to these same rows" in capsys.readouterr().out) == said, more


def test_an_adapter_keeps_its_thresholds_also_when_merged(tmp_path):
    base = bert_folder(tmp_path / "base", dropout=0.0)
    rng = random.Random(0)
    rows = [(" ".join(rng.choice(TOPICS[name]) for name in names) + f" my {number}",
             "|".join(names), split) for split, count in (("train", 24), ("dev", 12), ("test", 12))
            for number in range(count) for names in [rng.sample(LABELS, rng.choice([1, 2]))]]
    data = csv_file(tmp_path / "f.csv", rows)
    train.main(flags(
        model=base, data=data, multi_label="on", method="lora", epochs=1, out=tmp_path / "run"))
    texts = [text for text, *_ in rows]
    model = Classifier.load(tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "tuned.json").read_text())["thresholds"]
    assert model.task.MULTI_LABEL and model.task.thresholds == kept
    merge.main(flags(model=tmp_path / "run", out=tmp_path / "merged"))
    plain = Classifier.load(tmp_path / "merged")
    assert (plain.task.thresholds == kept
            and np.allclose(plain.predict(texts), model.predict(texts), atol=1e-5))
    alone = Classifier.load(tmp_path / "run" / "adapter")
    assert (alone.task.thresholds == kept
            and np.array_equal(alone.predict(texts), model.predict(texts)))


# ---------------------------------------------------------------- refusals

@pytest.mark.parametrize("more, said", [
    ({"readout": "labels"}, "--readout labels"), ({"focal_gamma": 2.0}, "--focal-gamma 2.0"),
    ({"label_smoothing": 0.1}, "--label-smoothing 0.1"),
    ({"sampling": "balanced"}, "--sampling balanced"),
    ({"rows_per_class": 5}, "--rows-per-class 5"),
    ({"readout": "labels", "objective": "completion"}, "--readout labels"),
    ({"metric": "accuracy"}, "--metric accuracy"), ({"preference": "head"}, "--preference head")])
def test_settings_of_one_label_are_refused(more, said):
    refused(lambda: read_settings({"multi_label": "on", **more}), said, "one label a row")


def test_settings_of_several_labels():
    assert (read_settings({"multi_label": "on"}).metric == "log_loss"
            and read_settings({}).metric == "accuracy")
    assert read_settings({"multi_label": "on", "metric": "micro_f1",
                          "class_weights": "balanced"}).metric == "micro_f1"
    refused(lambda: read_settings({"metric": "micro_f1"}), "--metric micro_f1", "--multi-label")


def test_commands_of_one_label_refuse_it(trained, capsys):
    run, path, _ = trained
    on = flags(multi_label="on", data=path)
    refused(lambda: folds.main(on), "folds is for one label a row", "--multi-label")
    refused(lambda: compare.main(["--models", "mini-bert", *on]), "compare is for one label a row",
            "--multi-label")
    refused(lambda: compare.main(["--models", "mini-bert@multi_label=on"]), "multi_label",
            "not a setting of a model")
    refused(lambda: compare.main(["--models", "mini-bert", "--sweep", "multi_label=on,off"]),
            "multi_label")
    refused(lambda: report.main(flags(run=run)), run, "one label a row")
    with pytest.raises(SystemExit) as ended:
        labels.main(["--model", "mini-bert", *on])
    assert ended.value.code == 2 and "unknown flag --multi-label" in capsys.readouterr().err
