"""Which examples are shown in a prompt ("shots"), in which order, and how much of each.

Here: a draw by seed that is even over the classes, for a model leans towards the class that it sees most and last (Zhao
et al. 2021, arXiv:2102.09690), the order being a seed of its own, so that its effect can be measured; the examples
nearest to a row (Liu et al. 2022, arXiv:2101.06804); one cap for long ones. Not here: the template (prompt.py), and
where the vectors of texts come from.
"""
import random

import numpy as np

from ...errors import InputError
from ...text.prompt import Prompt, cut, largest


def choose_shots(examples, labels, number, seed, order=0):
    """`number` Examples in all, drawn by `seed` without replacement, as evenly over `labels` as their rows allow.

    The seed draws too which classes come first where `number` does not divide. A larger `number` adds to the same set.
    `order` shuffles only what has been drawn: same seed, other order -> the same examples in another order.
    Raises InputError if `number` is below 0 or above the rows there are, or a class has none.
    """
    if number == 0:
        return []
    draw, rows = random.Random(f"shots:{seed}"), {}
    for label in labels:
        rows[label] = [example for example in examples if example.label == label]
        draw.shuffle(rows[label])
        if not rows[label]:
            raise InputError(f"class {label!r} has 0 of {len(examples)} rows: add rows of it, or ask for 0 shots")
    _check_number(number, sum(map(len, rows.values())))
    turns, chosen = draw.sample(list(labels), len(labels)), []
    while len(chosen) < number:                                    # one of each class that has any left, over and over
        for label in turns:
            if rows[label] and len(chosen) < number:
                chosen.append(rows[label].pop())
    random.Random(f"order:{seed}:{order}").shuffle(chosen)
    return chosen


def nearest_shots(vectors, query, examples, number):
    """The `number` Examples whose vectors have the highest cosine with the query, the nearest last: beside the row.

    vectors: (N, D), one for each of the N examples; query: (D,). A vector of zeros has cosine 0 with all; of equal ones
    the earlier is the nearer. Raises InputError if `number` is below 0 or above N, or a vector is not finite.
    """
    vectors, query = np.asarray(vectors, dtype=np.float64), np.asarray(query, dtype=np.float64)
    if vectors.shape != (len(examples), *query.shape):
        raise InputError(f"vectors {vectors.shape} and a query {query.shape} for {len(examples)} examples: give one "
                         "vector for each, all of one length")
    if not (np.isfinite(vectors).all() and np.isfinite(query).all()):
        raise InputError("a vector of a text is not finite: the model that gave it overflows, use another or float32")
    _check_number(number, len(examples))
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)                       # (N,)
    cosines = vectors @ query / np.where(lengths > 0, lengths, 1.0)                         # (N,)
    nearest = np.argsort(-cosines, kind="stable")[:number]
    return [examples[i] for i in nearest[::-1]]


def _check_number(number, rows):
    if not 0 <= number <= rows:
        raise InputError(f"{number} shots asked for, {rows} rows to choose from: ask for 0 to {rows}")


def shorten_shots(prompt, count, budget):
    """A Prompt whose shots leave the row its place: it fits into `budget` tokens with the row's own texts empty.

    -> (Prompt, how many shots were cut). One cap of characters for all texts of all shots, the largest that fits.
    count: a function, str -> number of tokens. Raises InputError if not even 1 character of each fits.
    """
    empty = [""] * len(prompt.template.fields)

    def capped(cap):
        return Prompt(prompt.template, prompt.instruction, [(cut(texts, cap), label) for texts, label in prompt.shots])
    if prompt.size(empty, count) <= budget:
        return prompt, 0
    longest = max((len(text) for texts, _ in prompt.shots for text in texts), default=0)
    cap = largest(lambda length: capped(length).size(empty, count) <= budget, longest)
    if not cap:
        raise InputError(f"the prompt takes {capped(1).size(empty, count)} tokens with 1 character of each text of its "
                         f"{len(prompt.shots)} shots and without the row, {budget} are allowed: use fewer shots, a "
                         "shorter instruction, or a model that takes longer texts")
    shorter = capped(cap)
    return shorter, sum(old != new for old, new in zip(prompt.shots, shorter.shots))
