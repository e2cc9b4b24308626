"""Metrics against hand-computed cases, and the baselines that a model has to beat."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillmclf.classify.baseline import BagOfWords, class_frequencies, terms_of, rows_of
from minillmclf.classify.task import SingleLabel
from minillmclf.text.examples import Example
from minillmclf.training.metrics import METRICS, calibration_error, class_f1, evaluate

# Six rows, three classes. Answers: 0 0 1 1 2 0; true: 0 1 1 1 2 2.
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.2, 0.6, 0.2],
                          [0.1, 0.1, 0.8], [0.9, 0.05, 0.05]])
TRUTH = [0, 1, 1, 1, 2, 2]


def test_a_case_by_hand():
    found = evaluate(PROBABILITIES, TRUTH, ["a", "b", "c"])
    # 2 TP / (2 TP + FP + FN)
    f1 = [2 * 1 / (2 * 1 + 2 + 0), 2 * 2 / (2 * 2 + 0 + 1), 2 * 1 / (2 * 1 + 0 + 1)]
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["macro_f1"] == pytest.approx(sum(f1) / 3)
    assert found["f1"] == pytest.approx(dict(zip("abc", f1)), abs=1e-6)
    assert found["log_loss"] == pytest.approx(
        -sum(math.log(p) for p in (0.7, 0.4, 0.8, 0.6, 0.8, 0.05)) / 6)
    # bins of 1/15: 0.5 | 0.6 | 0.7 | 0.8 0.8 | 0.9, right: no | yes | yes | yes yes | no
    assert found["ece"] == pytest.approx((0.5 + 0.4 + 0.3 + (2 - 1.6) + 0.9) / 6)
    assert set(METRICS) <= set(found)


def test_closed_forms():
    sure, even = np.eye(4)[[0, 1, 2, 3, 3]], np.full((5, 4), 0.25)
    best = evaluate(sure, [0, 1, 2, 3, 3], "abcd")
    assert (best["accuracy"], best["macro_f1"], best["log_loss"], best["ece"]) == (1, 1, 0, 0)
    assert evaluate(even, [0, 1, 2, 3, 3], "abcd")["log_loss"] == pytest.approx(math.log(4))
    worst = evaluate(sure, [1, 2, 3, 0, 0], "abcd")
    assert worst["accuracy"] == worst["macro_f1"] == 0 and worst["ece"] == 1
    assert worst["log_loss"] == pytest.approx(-math.log(1e-15)), (
        "a probability of 0 for the truth should be clipped")


def test_one_class_answered_for_all_looks_good_in_accuracy_only():
    truth = [0] * 95 + [1] * 5
    found = evaluate(class_frequencies(truth, 100, 2), truth, ["most", "few"])
    assert found["accuracy"] == 0.95
    assert found["macro_f1"] == pytest.approx(2 * 95 / (2 * 95 + 5) / 2)


def test_a_class_that_never_occurs_has_f1_0():
    nothing = np.zeros(3, dtype=bool)
    assert class_f1(nothing, nothing) == 0 and class_f1(~nothing, nothing) == 0
    assert class_f1(~nothing, ~nothing) == 1


def test_calibration_error_by_hand():
    confidence, right = np.array([0.55, 0.55, 0.95, 0.95]), np.array([True, False, True, True])
    assert calibration_error(confidence, right, bins=10) == pytest.approx(
        (abs(1.1 - 1) + abs(1.9 - 2)) / 4)
    assert calibration_error(confidence, right, bins=1) == pytest.approx(abs(3.0 - 3)), (
        "one bin: errors cancel")
    assert calibration_error(np.array([1.0]), np.array([True])) == 0, (
        "confidence 1 belongs to the last bin")
    always_09 = np.full(1000, 0.9)
    assert calibration_error(always_09, np.arange(1000) < 900) == pytest.approx(0, abs=1e-9)
    assert calibration_error(always_09, np.arange(1000) < 600) == pytest.approx(0.3)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5),
       st.lists(st.tuples(st.integers(0, 99), st.integers(0, 4)), min_size=1, max_size=40))
def test_against_loops(classes, drawn):
    truth = [label % classes for _, label in drawn]
    p = np.array([np.random.default_rng(seed).dirichlet(np.ones(classes)) for seed, _ in drawn])
    found = evaluate(p, truth, [str(c) for c in range(classes)])
    answers = [max(range(classes), key=row.__getitem__) for row in p]
    f1 = []
    for c in range(classes):
        tp = sum(a == t == c for a, t in zip(answers, truth))
        precision, recall = tp / max(1, answers.count(c)), tp / max(1, truth.count(c))
        f1.append(2 * precision * recall / (precision + recall) if tp else 0.0)
    gap = 0.0
    for b in range(15):
        inside = [i for i, row in enumerate(p)
                  if b / 15 <= max(row) < (b + 1) / 15 or b == 14 and max(row) == 1]
        if inside:
            accuracy = sum(answers[i] == truth[i] for i in inside) / len(inside)
            confidence = sum(max(p[i]) for i in inside) / len(inside)
            gap += len(inside) / len(p) * abs(accuracy - confidence)
    assert found["accuracy"] == pytest.approx(
        sum(a == t for a, t in zip(answers, truth)) / len(truth))
    occur = set(answers) | set(truth)
    assert found["macro_f1"] == pytest.approx(sum(f1[c] for c in occur) / len(occur))
    assert found["ece"] == pytest.approx(gap, abs=1e-9)


def test_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="the other side of this comparison")
    rng = np.random.default_rng(0)
    p, truth = rng.dirichlet(np.ones(4), 300), rng.integers(0, 4, 300)
    found = evaluate(p, truth, "abcd")
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, p.argmax(1)))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(truth, p.argmax(1), average="macro"))
    assert found["log_loss"] == pytest.approx(metrics.log_loss(truth, p))


# ---- baselines

def test_majority_gives_the_frequencies_of_train():
    p = class_frequencies([0, 0, 2, 0], rows=3, classes=4)
    assert p.tolist() == [[0.75, 0, 0.25, 0]] * 3


def test_terms_are_words_and_neighbours():
    words = ["0:the", "0:cat", "0:sat", "0:cat"]
    neighbours = ["0:the 0:cat", "0:cat 0:sat", "0:sat 0:cat"]
    assert terms_of("The CAT sat, a cat!") == words + neighbours, "lower case, two letters or more"
    assert terms_of("") == [] and terms_of(("", "x y")) == []


def test_the_two_texts_of_a_pair_are_kept_apart():
    assert terms_of(("cat sat",)) == terms_of("cat sat")
    assert not set(terms_of(("cat sat", "dog"))) & set(terms_of(("dog", "cat sat")))
    assert "0:sat 1:dog" not in terms_of(("cat sat", "dog")), "no neighbours across the border"
    # Which text comes first is all that tells the classes apart.
    pairs = [(a, b) for a in ("red hat", "blue hat") for b in ("old ship", "new ship")]
    texts, labels = pairs + [(b, a) for a, b in pairs], [0] * 4 + [1] * 4
    bag = BagOfWords(2).fit(texts, labels, texts, labels)
    assert bag.predict(texts).argmax(1).tolist() == labels


def separable(rows, seed):
    rng = np.random.default_rng(seed)
    words = [["rain", "storm", "wind"], ["soup", "bread", "salt"]]
    fillers = ["very", "old", "today", "again"]
    labels = rng.choice(2, rows, p=[0.7, 0.3]).tolist()
    return [" ".join([*rng.choice(fillers, 3), rng.choice(words[label])])
            for label in labels], labels


def test_the_bag_separates_what_words_separate_and_beats_the_majority():
    texts, labels = separable(80, 0)
    dev, test = separable(30, 1), separable(60, 2)
    bag = BagOfWords(2).fit(texts, labels, *dev)
    found = evaluate(bag.predict(test[0]), test[1], "ab")
    most = evaluate(class_frequencies(labels, 60, 2), test[1], "ab")
    assert found["accuracy"] == 1 > most["accuracy"] and found["log_loss"] < most["log_loss"]
    p = bag.predict(["nothing known here", "storm"])
    assert p.sum(1).tolist() == pytest.approx([1, 1]) and p[1, 0] > 0.9
    again = BagOfWords(2).fit(texts, labels, *dev)
    assert np.array_equal(bag.predict(test[0]), again.predict(test[0])), (
        "the same data gives other weights")


def test_features_are_tf_idf_rows_of_length_one():
    texts = ["cat cat dog", "dog", "bird"]
    bag = BagOfWords(2).fit(texts, [0, 1, 1], texts, [0, 1, 1])
    x = bag.features(texts).to_dense()
    idf = {n: 1 + math.log(4 / (1 + n)) for n in (1, 2)}  # 3 texts; how many hold the term
    expected = {"0:cat": (1 + math.log(2)) * idf[1], "0:dog": idf[2], "0:cat 0:cat": idf[1],
                "0:cat 0:dog": idf[1]}
    length = math.sqrt(sum(v * v for v in expected.values()))
    row = {term: x[0, column].item() for term, column in bag.index.items() if x[0, column]}
    assert row == pytest.approx({term: v / length for term, v in expected.items()}, rel=1e-5)
    assert x.norm(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert bag.features(["unknown"]).to_dense().abs().sum() == 0


@pytest.mark.parametrize("strength", BagOfWords.PENALTIES)
def test_the_gradient_at_the_optimum_is_next_to_nothing(strength):
    texts, labels = separable(60, 3)
    bag = BagOfWords(2).fit(texts, labels, texts, labels)
    x, y = bag.features(texts).to_dense(), torch.tensor(labels)
    sparse = bag.features(texts)
    w, b = bag.fit_weights(rows_of(sparse), rows_of(sparse.t()), y, strength)
    p, target = torch.softmax(x @ w + b, dim=1), torch.eye(2)[y]
    gradient = torch.cat([
        (x.T @ (p - target) / len(y) + 2 * strength * w).flatten(), (p - target).mean(0)])
    at_start = torch.cat([(x.T @ (0.5 - target) / len(y)).flatten(), (0.5 - target).mean(0)])
    left, first = gradient.abs().max(), at_start.abs().max()
    assert left < 1e-3 * first, (
        f"L-BFGS stopped early: gradient {left:.2g}, {first:.2g} at the start")


def test_macro_f1_is_over_the_classes_that_occur():
    """Four classes, of which the rows have two, and a third is answered once: 2 / 3, 1 and 0, and
    the fourth says nothing."""
    p = np.eye(4)[[0, 2, 1, 1]]
    found = evaluate(p, [0, 0, 1, 1], ["a", "b", "c", "d"])
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["f1"] == pytest.approx({"a": 2 / 3, "b": 1, "c": 0, "d": 0}, abs=1e-6)
    right = evaluate(np.eye(4)[[0, 1]], [0, 1], ["a", "b", "c", "d"])
    assert right["macro_f1"] == 1, (
        "a subset of the classes that is answered without a mistake is perfect")


def test_the_table_names_classes_without_rows():
    rows = [Example(("text",), label, line) for line, label in enumerate("aba", 2)]
    lines = SingleLabel(["a", "b", "c"]).metric_lines(
        {"model": evaluate(np.eye(3)[[0, 1, 1]], [0, 1, 0], ["a", "b", "c"])}, "test", rows)
    assert lines[0].startswith("test (3 rows)")
    assert [line for line in lines if "no rows" in line] == ["  c  0.000  (no rows of it here)"]


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_of_a_subset_is_that_of_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics", reason="the other side of this comparison")
    rng = np.random.default_rng(seed)
    p, truth = rng.dirichlet(np.ones(9), 6), rng.integers(0, 9, 6)
    assert evaluate(p, truth, "abcdefghi")["macro_f1"] == pytest.approx(
        metrics.f1_score(truth, p.argmax(1), average="macro"))
