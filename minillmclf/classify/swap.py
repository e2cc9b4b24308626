"""A prompt and two answers: what happens where the answers change places?

    (prompt, a, b) -> "a"        (prompt, b, a) -> "b"          the same judgement; a model may well answer "a" to both

People prefer what they see first, and so do models (Zheng et al. 2023, arXiv:2306.05685, "position bias"). Against it:
training rows with a and b exchanged, label and all, and the mean of the answers to both orders. How much of it there is:
`inconsistency`. Texts are exchanged before they become ids, so this serves heads (preference.py) and label texts
(labels.py) alike. Not here: the readouts.
"""
from dataclasses import replace

import numpy as np
import torch

from ..errors import InputError

NAMES = (("a", "b", "tie"), ("model_a", "model_b", "tie"), ("A", "B", "tie"))


def order_of(labels):
    """Which class numbers are a, b and tie? ["a", "b", "tie"] -> [0, 1, 2]. InputError for names that do not tell."""
    names = next((names for names in NAMES if set(names) == set(labels)), None)
    if names is None or len(labels) != 3:
        raise InputError(f"classes {', '.join(map(repr, labels)):.80}: a preference has three, " +
                         ", or ".join(" ".join(names) for names in NAMES) + ": rename the labels of the data")
    return [list(labels).index(name) for name in names]


def is_preference(data):
    """Are the rows of a Dataset (prompt, a, b), and its classes a, b and tie?"""
    return len(data.columns) == 3 and any(set(names) == set(data.labels) for names in NAMES)


def check_texts(texts):
    """InputError unless a row has a prompt and two answers."""
    if len(texts) != 3:
        raise InputError(f"a preference needs three texts, a prompt and two answers, not {len(texts)}: name their columns "
                         "with --text-column, in this order")


def swapped(texts):
    """(prompt, a, b) -> (prompt, b, a)."""
    check_texts(texts)
    prompt, a, b = texts
    return prompt, b, a


def swapped_label(label):
    """"model_a" -> "model_b" and back; a tie stays one."""
    order = next((names for names in NAMES if label in names), None)
    if order is None:
        raise InputError(f"label {label!r} is no side of a preference: " + ", ".join(sum(NAMES, ())[:6]))
    a, b, tie = order
    return {a: b, b: a, tie: tie}[label]


def exchanged(columns, labels):
    """Scores or probabilities (N, 3) of swapped rows -> of the rows as they were: the columns of a and b change places."""
    a, b, tie = order_of(labels)
    turn = [0, 0, 0]
    turn[a], turn[b], turn[tie] = b, a, tie
    return columns[:, turn]


def with_swapped(examples):
    """Training rows -> these, and each once more with a and b exchanged in texts and label. Never for dev or test rows."""
    return [*examples, *(replace(e, texts=swapped(e.texts), label=swapped_label(e.label)) for e in examples)]


def averaged(scores, labels):
    """Scores (2B, 3) of rows and behind them of the same rows swapped -> log of the mean probability (B, 3).

    p(a) = (p(a | a, b) + p(b | b, a)) / 2: which answer stands first plays no part any more.
    """
    first, second = scores.log_softmax(-1).chunk(2)                           # (B, 3) each
    return torch.logaddexp(first, exchanged(second, labels)).log_softmax(-1)


def swap_inconsistency(probabilities, swapped):
    """How much do the answers depend on which text stands first? -> {"answers_changed": share of the rows,
    "mean_difference": mean |p - p'|}. probabilities, swapped: (N, 3); swapped: of swapped rows, `exchanged` back."""
    p, q = np.asarray(probabilities, dtype=np.float64), np.asarray(swapped, dtype=np.float64)
    return {"answers_changed": float((p.argmax(1) != q.argmax(1)).mean()), "mean_difference": float(np.abs(p - q).mean())}


def inconsistency(model, texts, scores):
    """`swap_inconsistency` of a classifier on rows of three texts, before any averaging. scores: encoded rows -> (N, 3)."""
    rows = (texts, [swapped(row) for row in texts])
    p, q = (scores(model.encode(each, once=True)[0]).softmax(-1) for each in rows)
    return swap_inconsistency(p, exchanged(q, model.labels))


def swap_line(found, swap):
    """What `swap_inconsistency` found, for people. swap: the setting; where it averages, what is told is before that."""
    return (f"a and b exchanged: {found['answers_changed']:.1%} of the answers change, probabilities by "
            f"{found['mean_difference']:.3f} on average" + " (before averaging)" * (swap in ("predict", "both")))
