"""Rows of a prompt and two answers: their classes, and what happens if the answers change places.

    (prompt, a, b) -> "a"      (prompt, b, a) -> "b"      one judgement; a model may say "a" to both

People prefer what they see first, and so do models (Zheng et al. 2023, arXiv:2306.05685, "position
bias"). `position_bias` tells how much. Two remedies: to train on each row once more with a
and b exchanged, and to average the probabilities of both orders. Texts are exchanged before they
become ids, so all this works for heads and label texts. Here too: the baseline "longer answer".
"""
from collections import Counter
from dataclasses import replace

import numpy as np
import torch

from ..errors import InputError

SIDE_NAMES = (("a", "b", "tie"), ("model_a", "model_b", "tie"), ("A", "B", "tie"))


def side_numbers(labels):
    """["b", "a", "tie"] -> [1, 0, 2], the class numbers of a, b, tie. InputError for others."""
    names = next((names for names in SIDE_NAMES if sorted(names) == sorted(labels)), None)
    if names is None:
        known = ", or ".join(" ".join(names) for names in SIDE_NAMES)
        raise InputError(f"classes {', '.join(map(repr, labels)):.80}: a preference has three, "
                         f"{known}: rename the labels of the data")
    return [list(labels).index(name) for name in names]


def is_preference(data):
    """Does a Dataset have rows (prompt, a, b) and the classes a, b and tie?"""
    return len(data.columns) == 3 and any(set(names) == set(data.labels) for names in SIDE_NAMES)


def check_texts(texts):
    """InputError unless a row has a prompt and two answers."""
    if len(texts) != 3:
        raise InputError("a preference needs three texts, a prompt and two answers, not "
                         f"{len(texts)}: name their columns with --text-column, in this order")


def swap_texts(texts):
    """(prompt, a, b) -> (prompt, b, a)."""
    check_texts(texts)
    prompt, a, b = texts
    return prompt, b, a


def swap_label(label):
    """"model_a" -> "model_b", "model_b" -> "model_a", "tie" -> "tie"."""
    names = next((names for names in SIDE_NAMES if label in names), None)
    if names is None:
        raise InputError(f"label {label!r} is no side of a preference: "
                         + ", ".join(sum(SIDE_NAMES, ())[:6]))
    a, b, tie = names
    return {a: b, b: a, tie: tie}[label]


def swap_columns(columns, labels):
    """Logits or probabilities (N, 3) -> (N, 3) with the columns of a and b exchanged, so that those
    of swapped rows can be compared with those of the rows themselves."""
    a, b, tie = side_numbers(labels)
    source = [0, 0, 0]
    source[a], source[b], source[tie] = b, a, tie
    return columns[:, source]


def add_swapped(examples):
    """Examples -> these, then each once more with a and b exchanged in texts and label."""
    return [*examples, *(replace(e, texts=swap_texts(e.texts), label=swap_label(e.label))
                         for e in examples)]


def average_orders(logits, labels):
    """Logits (2B, 3), of B rows and then of the same rows swapped -> the log of the mean of both
    probabilities (B, 3): p(a) is the mean of p(a) and, for the swapped row, p(b)."""
    first, second = logits.log_softmax(-1).chunk(2)                                 # (B, 3) each
    return torch.logaddexp(first, swap_columns(second, labels)).log_softmax(-1)


def compare_orders(probabilities, swapped):
    """How much the answers depend on the order of the texts -> {"answers_changed": share of rows,
    "mean_difference": mean |p - q|}. Probabilities (N, 3): p, and q after `swap_columns`."""
    p = np.asarray(probabilities, dtype=np.float64)
    q = np.asarray(swapped, dtype=np.float64)
    return {"answers_changed": float((p.argmax(1) != q.argmax(1)).mean()),
            "mean_difference": float(np.abs(p - q).mean())}


def position_bias(model, texts, logits):
    """`compare_orders` of a classifier on N rows of three texts. logits: a function, rows of
    `encode` -> (N, 3); each row is read in one order, whatever the model does otherwise."""
    p, q = (logits(model.encode(rows, training=True)[0]).softmax(-1)
            for rows in (texts, [swap_texts(row) for row in texts]))
    return compare_orders(p, swap_columns(q, model.labels))


def longer_answer(train, texts, labels):
    """A baseline: the longer answer wins, as often as in train -> probabilities (N, 3).

    train: Examples; texts: N rows of three. Lengths are in characters. For answers of equal length,
    a and b are equally probable. Each count begins at 1, so that no probability is 0.
    """
    counts = Counter(map(length_outcome, train))
    won, lost, tied = (counts[name] + 1 for name in ("longer", "shorter", "tie"))
    equal_won, equal_tied = counts["equal"] + 2, counts["equal tie"] + 1    # won by a or b: 1 + 1
    equal_tie = equal_tied / (equal_won + equal_tied)                       # p(tie)
    side = (1 - equal_tie) / 2                                              # p(a), p(b)
    order, out = side_numbers(labels), np.empty((len(texts), 3))
    for row, (_, a, b) in enumerate(texts):
        if len(a) == len(b):
            out[row, order] = side, side, equal_tie
        else:
            sides = [won, lost] if len(a) > len(b) else [lost, won]
            out[row, order] = np.array([*sides, tied]) / (won + lost + tied)
    return out


def length_outcome(example):
    """Which answer won: "longer", "shorter" or "tie"; for answers of the same length "equal" (one
    won) or "equal tie"."""
    check_texts(example.texts)
    _, a, b = map(len, example.texts)
    if a == b:
        return "equal tie" if example.label == "tie" else "equal"
    if example.label == "tie":
        return "tie"
    a_won = example.label.casefold().removeprefix("model_") == "a"
    return "longer" if (a > b) == a_won else "shorter"
