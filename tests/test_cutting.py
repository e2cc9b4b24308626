"""Is what was asked for kept of a long text, and do windows see every token of it?"""
import pytest
from hypothesis import given, strategies as st

from minillmclf.errors import InputError
from minillmclf.text.cutting import (TRUNCATION_SIDES, cut_longest, truncate, truncate_all,
                                     window_spans)

BY_HAND = {"head": [0, 1, 2, 3, 4], "tail": [5, 6, 7, 8, 9], "head+tail": [0, 1, 2, 8, 9],
           "middle": [2, 3, 4, 5, 6]}
parts = st.lists(st.lists(st.integers(0, 9), max_size=30), min_size=1, max_size=2)


@pytest.mark.parametrize("keep", TRUNCATION_SIDES)
def test_what_is_kept_of_ten_tokens(keep):
    assert truncate(list(range(10)), 5, keep) == BY_HAND[keep]
    assert truncate([1, 2, 3], 3, keep) == truncate([1, 2, 3], 7, keep) == [1, 2, 3], (
        "a text that fits was touched")
    assert truncate([1, 2, 3], 0, keep) == []


@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from(TRUNCATION_SIDES))
def test_as_many_as_asked_for_stay_in_their_order(length, count, keep):
    kept = truncate(list(range(length)), count, keep)
    assert len(kept) == min(length, count), "another number of tokens than the budget"
    assert kept == sorted(set(kept)), "tokens changed places or were doubled"
    gaps = [(a, b) for a, b in zip([-1, *kept], [*kept, length]) if b - a > 1]
    assert len(gaps) <= (2 if keep == "middle" else 1), (
        f"taken out at more places than {keep} has: {gaps}")


@given(st.integers(1, 30), st.integers(0, 30))
def test_middle_and_both_ends_are_fair(count, extra):
    ids = list(range(count + extra))
    middle, ends = truncate(ids, count, "middle"), truncate(ids, count, "head+tail")
    assert abs(middle[0] - (ids[-1] - middle[-1])) <= 1, "the middle is not in the middle"
    assert ends == ids[:count - count // 2] + ids[len(ids) - count // 2:], (
        "not half of the budget from each end")


@given(parts, st.integers(0, 70), st.sampled_from(TRUNCATION_SIDES))
def test_fit_says_how_many_and_keep_says_which(parts, budget, keep):
    kept, cut = truncate_all(parts, budget, keep)
    fitted, as_before = cut_longest(parts, budget)
    assert (list(map(len, kept)), cut) == (list(map(len, fitted)), as_before), (
        "the budget of a pair is shared otherwise")
    assert keep != "head" or kept == fitted, "the default is no longer what it was"


def test_windows_by_hand():
    assert window_spans(10, 4, 1) == [(0, 4), (3, 7), (6, 10)]
    assert window_spans(9, 4, 1) == [(0, 4), (3, 7), (5, 9)], (
        "the last window does not end with the text, or is not full")
    assert window_spans(8, 4, 0) == [(0, 4), (4, 8)]
    assert window_spans(4, 4, 3) == [(0, 4)] and window_spans(3, 4, 0) == [(0, 3)], (
        "a text that fits is one window")


@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_every_token_stands_in_a_window_and_neighbours_overlap(length, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    found = window_spans(length, size, overlap)
    assert {place for start, end in found for place in range(start, end)} == set(range(length)), (
        "tokens without a window")
    assert length <= size or all(end - start == size for start, end in found), (
        "a window is not full")
    shared = [a[1] - b[0] for a, b in zip(found, found[1:])]
    assert all(count == overlap for count in shared[:-1]), (
        "neighbours share another number of tokens")
    assert all(overlap <= count < size for count in shared), (
        "the last two share too few, or are the same")
    assert len(found) == 1 or found[-2][1] < length, (
        "a window too many: the one before it ends with the text already")


def test_what_makes_no_sense_is_refused():
    for overlap in (-1, 4, 9):
        with pytest.raises(InputError, match="should lie from 0 to 3"):
            window_spans(10, 4, overlap)
    with pytest.raises(InputError, match="keep 'ends' is not known; known: head, tail"):
        truncate_all([[1, 2]], 1, "ends")
