"""Shots: even over the classes, one seed for which, one for the order, nearest last, cut alike."""
from collections import Counter

import numpy as np
import pytest
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from minillmclf.errors import InputError
from minillmclf.text.examples import Example
from minillmclf.text.prompt import Prompt, Template
from minillmclf.classify.label_text.shots import choose_shots, nearest_shots, shorten_shots

LABELS = ["a", "b", "c"]


def rows(*sizes):
    """Examples of classes a, b, c, ... of these sizes."""
    labels = [label for label, size in zip("abcdefgh", sizes) for _ in range(size)]
    return [Example((f"{label}{row}",), label, row) for row, label in enumerate(labels, start=2)]


# ------------------------------------------------------------------------------------------- a draw

@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=2, max_size=6), st.integers(0, 60), st.integers(0, 9),
       st.integers(0, 9))
def test_shots_are_as_even_over_the_classes_as_their_rows_allow(sizes, number, seed, order):
    examples, labels = rows(*sizes), list("abcdefgh"[:len(sizes)])
    number = min(number, len(examples))
    chosen = choose_shots(examples, labels, number, seed, order)
    assert len(chosen) == number and len(set(chosen)) == number and set(chosen) <= set(examples), (
        "a row came twice")
    found = Counter(example.label for example in chosen)
    for label, size in zip(labels, sizes):
        if found[label] < size:
            assert found[label] >= max(found.values(), default=0) - 1, (
                f"{label} has rows left, others more: {found}")


def test_a_draw_that_is_not_even_would_be_seen():
    found = Counter(example.label for example in choose_shots(rows(97, 2, 1), LABELS, 3, seed=0))
    assert found == {"a": 1, "b": 1, "c": 1}, (
        "the first rows, or a draw over all, would be mostly a")
    assert Counter(example.label for example in rows(97, 2, 1)[:3]) == {"a": 3}


def test_the_seed_draws_the_rows_and_the_classes_that_get_one_more():
    examples = rows(30, 30, 30)
    draws = [choose_shots(examples, LABELS, 4, seed) for seed in range(30)]
    assert draws == [choose_shots(examples, LABELS, 4, seed) for seed in range(30)], (
        "the same seed draws other rows")
    assert len({frozenset(draw) for draw in draws}) > 25, "the seed has no effect on the rows"
    most = {Counter(example.label for example in draw).most_common(1)[0][0] for draw in draws}
    assert most == set(LABELS), "the same class gets one more with every seed"
    last = {draw[-1].label for draw in draws}
    assert last == set(LABELS), (
        "the same class comes last with every seed: a model leans towards it")


def test_order_changes_the_order_and_nothing_else():
    examples = rows(30, 30, 30)
    orders = [choose_shots(examples, LABELS, 8, seed=1, order=order) for order in range(10)]
    assert len({frozenset(shots) for shots in orders}) == 1, "another order draws other rows"
    assert len(set(map(tuple, orders))) > 8, "order has no effect"
    assert choose_shots(examples, LABELS, 8, seed=1) == orders[0]
    labels = "".join(example.label for example in orders[0])
    assert labels not in ("abcabcab", "aaabbbcc"), "shots come class by class"


def test_more_shots_are_the_same_ones_and_some_more():
    examples = rows(30, 30, 30)
    for number in range(1, 12):
        fewer, more = (set(choose_shots(examples, LABELS, n, 3)) for n in (number, number + 1))
        assert fewer < more


def test_shots_that_cannot_be_had_are_refused_with_numbers():
    assert choose_shots([], LABELS, 0, seed=0) == []
    assert sorted(choose_shots(rows(2, 1, 1), LABELS, 4, 0), key=lambda e: e.row) == rows(2, 1, 1)
    refused(lambda: choose_shots(rows(2, 1, 1), LABELS, 5, 0), 5, 4)
    refused(lambda: choose_shots(rows(2, 1, 1), LABELS, -1, 0), -1)
    refused(lambda: choose_shots(rows(5, 5), LABELS, 2, 0), "'c'", "0 of 10 rows")


# -------------------------------------------------------------------------------------- the nearest

def test_the_nearest_comes_last_and_length_plays_no_part():
    vectors = np.array([[1, 0], [100, 100], [0, 3], [-1, 0], [1, .1]])
    examples = rows(5)
    found = nearest_shots(vectors, np.array([2., 0]), examples, 3)
    assert found == [examples[1], examples[4], examples[0]], "nearest last, by cosine"
    by_product = [examples[i] for i in np.argsort(vectors @ np.array([2., 0]))[-3:]]
    assert found != by_product, "a product without lengths would choose the long one"
    assert nearest_shots(vectors, np.array([2., 0]), examples, 0) == []
    assert nearest_shots(vectors, np.array([2., 0]), examples, 5)[0] == examples[3]


@pytest.mark.filterwarnings("error")
def test_a_vector_of_zeros_is_neither_near_nor_nan():
    examples, vectors = rows(3), np.array([[-1., 0], [0, 0], [1, 0]], dtype=np.float32)
    assert nearest_shots(vectors, np.array([1., 0]), examples, 3) == examples, (
        "cosine 0 lies between -1 and 1")
    assert nearest_shots(vectors, np.zeros(2), examples, 2) == [examples[1], examples[0]], (
        "of equals the earlier first")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 20), st.integers(1, 5))
def test_the_chosen_are_those_of_highest_cosine(seed, size, width):
    draw = np.random.default_rng(seed)
    vectors, query, examples = draw.normal(size=(size, width)), draw.normal(size=width), rows(size)
    cosine = {e: v @ query / (v @ v) ** .5 / (query @ query) ** .5
              for e, v in zip(examples, vectors)}
    found = nearest_shots(vectors, query, examples, (size + 1) // 2)
    values = [cosine[example] for example in found]
    assert all(x <= y + 1e-12 for x, y in zip(values, values[1:])), (
        f"not from far to near: {values}")
    assert all(cosine[e] <= values[0] + 1e-12 for e in examples if e not in found), (
        "a nearer one was left out")


def test_vectors_that_do_not_suit_are_refused():
    refused(lambda: nearest_shots(np.ones((3, 2)), np.ones(2), rows(3), 4), 4, 3)
    refused(lambda: nearest_shots(np.ones((3, 2)), np.ones(2), rows(3), -1), -1)
    refused(lambda: nearest_shots(np.array([[1, np.nan]]), np.ones(2), rows(1), 1), "not finite")


# ---------------------------------------------------------------------------------- one cap for all

def prompt_of(*texts, template="Say: {text}\nA: {label}", instruction="Judge."):
    return Prompt(Template(template), instruction, [((text,), "yes") for text in texts])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text("ab ", max_size=40), max_size=4), st.integers(0, 200))
def test_shortened_shots_fit_and_are_cut_no_more_than_they_must(texts, budget):
    prompt = prompt_of(*texts)

    def capped(cap):
        return prompt_of(*(text if len(text) <= cap else text[:cap].rstrip() for text in texts))
    size = len(prompt.render([""]))
    try:
        shorter, cut = shorten_shots(prompt, len, budget)
    except InputError:
        assert len(capped(1).render([""])) > budget, "refused, though one character of each fits"
        return
    assert len(shorter.render([""])) <= budget, "what is shortened does not fit"
    assert (cut > 0) == (size > budget)
    assert cut == sum(a != b for a, b in zip(prompt.shots, shorter.shots))
    best = max(cap for cap in range(1, 41) if len(capped(cap).render([""])) <= budget)
    assert shorter.shots == capped(best).shots, f"the cap should be {best}"


def test_short_shots_instruction_and_labels_stay_as_they_are():
    prompt = prompt_of("short", "z" * 300, "y" * 200)
    shorter, cut = shorten_shots(prompt, len, 150)
    assert cut == 2 and shorter.shots[0] == prompt.shots[0], (
        "a short shot was cut while a longer one is left")
    assert [label for _, label in shorter.shots] == ["yes"] * 3 and shorter.instruction == "Judge."
    assert shorter.template is prompt.template
    assert len(shorter.shots[1][0][0]) == len(shorter.shots[2][0][0]), "the cap is not one for all"
    assert prompt.shots[1] == (("z" * 300,), "yes"), "the prompt that was given has changed"
    same, cut = shorten_shots(prompt, len, 1000)
    assert same is prompt and cut == 0


def test_several_fields_share_the_cap():
    prompt = Prompt(Template("{a}/{b}: {label}", ("a", "b")), "",
                    [(("aaaa", "b" * 50), "no"), (("a", "b"), "no")])
    shorter, cut = shorten_shots(prompt, len, 32)
    (a, b), _ = shorter.shots[0]
    assert cut == 1 and a == "aaaa" and len(b) < 50 and len(shorter.render(["", ""])) == 32


def test_shots_that_do_not_fit_at_one_character_are_refused_with_numbers():
    prompt = prompt_of("zzzz", "yyyy")
    least = len(prompt_of("z", "y").render([""]))
    assert shorten_shots(prompt, len, least)[1] == 2
    fixed = len(prompt_of("", "").render([""]))
    refused(lambda: shorten_shots(prompt, len, least - 1), fixed, least - 1, "2 shots",
            "fewer shots")
    refused(lambda: shorten_shots(prompt_of(), len, 3), "0 shots", "shorter instruction")
    refused(lambda: shorten_shots(prompt_of("z"), len, 3), "1 shots")
