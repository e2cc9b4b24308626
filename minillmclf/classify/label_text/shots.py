"""Which examples a prompt shows ("shots"), in which order, and how much of each.

A model leans towards the class that it sees most often and last (Zhao et al. 2021,
arXiv:2102.09690): so the draw is balanced, and the order has a seed of its own to measure its
effect. Also here: the examples nearest to a row (Liu et al. 2022, arXiv:2101.06804).
"""
import random

import numpy as np

from ...errors import InputError
from ...text.prompt import Prompt, shorten_texts


def choose_shots(examples, labels, number, seed, order=0):
    """Draw `number` Examples by `seed`, without replacement, balanced over `labels` as far as their
    rows allow.

    The seed also draws which classes get one more where `number` does not divide. A larger `number`
    keeps the examples of a smaller one. `order` seeds a shuffle. InputError if `number` is below 0
    or above the number of rows, or a class has none.
    """
    if number == 0:
        return []
    draw, rows = random.Random(f"shots:{seed}"), {}
    for label in labels:
        rows[label] = [example for example in examples if example.label == label]
        draw.shuffle(rows[label])
        if not rows[label]:
            raise InputError(f"class {label!r} has 0 of {len(examples)} rows: add rows of it, or "
                             "ask for 0 shots")
    check_number(number, sum(map(len, rows.values())))
    turns, chosen = draw.sample(list(labels), len(labels)), []
    while len(chosen) < number:                            # one of each class with rows left
        for label in turns:
            if rows[label] and len(chosen) < number:
                chosen.append(rows[label].pop())
    random.Random(f"order:{seed}:{order}").shuffle(chosen)
    return chosen


def nearest_shots(vectors, query, examples, number):
    """The `number` Examples of highest cosine with the query, the nearest last: next to the row.

    vectors: (N, D), one for each of N examples; query: (D,). A vector of zeros has cosine 0; of
    equally near ones the earlier counts as nearer. InputError if `number` is below 0 or above N, or
    a vector is not finite.
    """
    vectors, query = np.asarray(vectors, dtype=np.float64), np.asarray(query, dtype=np.float64)
    if not (np.isfinite(vectors).all() and np.isfinite(query).all()):
        raise InputError("a vector of a text is not finite: the model that gave it overflows, use "
                         "another or float32")
    check_number(number, len(examples))
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)                       # (N,)
    cosines = vectors @ query / np.where(lengths > 0, lengths, 1.0)                         # (N,)
    nearest = np.argsort(-cosines, kind="stable")[:number]
    return [examples[i] for i in nearest[::-1]]


def check_number(number, rows):
    if not 0 <= number <= rows:
        raise InputError(f"{number} shots asked for, {rows} rows to choose from: ask for 0 to "
                         f"{rows}")


def shorten_shots(prompt, count, budget):
    """Cut the texts of a Prompt's shots -> (Prompt, how many shots were cut).

    budget: tokens of the prompt with an empty row; count: a function, str -> number of tokens.
    """
    fields = len(prompt.template.fields)

    def with_texts(texts):
        shots = [(texts[fields * i:fields * (i + 1)], label_text)
                 for i, (_, label_text) in enumerate(prompt.shots)]
        return Prompt(prompt.template, prompt.instruction, shots)

    def size(texts):
        return with_texts(texts).num_tokens([""] * fields, count)
    texts = tuple(text for shot, _ in prompt.shots for text in shot)
    kept = shorten_texts(texts, size, budget, f"the texts of its {len(prompt.shots)} shots")
    if kept == texts:
        return prompt, 0
    shorter = with_texts(kept)
    return shorter, sum(old != new for old, new in zip(prompt.shots, shorter.shots))
