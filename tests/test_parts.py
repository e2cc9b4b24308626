"""Several texts in a row: no text vanishes, no marker is cut, each part keeps its share."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import PIECES

from minillmclf.errors import InputError
from minillmclf.text import parts
from minillmclf.text.cutting import TRUNCATION_SIDES
from minillmclf.text.tokenizers.tokenizer import WordPiece

TOKENIZER = WordPiece.from_vocab(PIECES)
MARKS = [TOKENIZER.ids(marker) for marker in parts.TWO_ANSWERS]
FIXED = 2 + sum(map(len, MARKS))


def row_of(texts, max_length, keep="head"):
    (ids, types), cut = parts.join_parts(TOKENIZER, texts, parts.TWO_ANSWERS, max_length, keep)
    assert set(types) == {0} and len(ids) == len(types), "a marked text is one text, of one type"
    return ids, cut


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), min_size=3, max_size=3).filter(any),
       st.integers(FIXED + 3, FIXED + 80), st.sampled_from(TRUNCATION_SIDES))
def test_no_part_vanishes_and_every_marker_stands_whole(sizes, max_length, keep):
    words = ("rose", "soup", "rain")
    ids, cut = row_of([" ".join([word] * size) for word, size in zip(words, sizes)],
                      max_length, keep)
    expected = [TOKENIZER.cls_id]
    for mark, word, size, gone in zip(MARKS, words, sizes, cut):
        assert 0 <= gone <= size and (size == 0 or gone < size), (
            f"of {size} tokens {gone} were cut: a part vanished")
        expected += mark + TOKENIZER.ids(word) * (size - gone)
    assert ids == expected + [TOKENIZER.sep_id], (
        "a marker is not whole, or what is counted as cut is not what is missing")
    assert len(ids) <= max_length, "the row is longer than its budget"
    assert not any(cut) or len(ids) == max_length, "something was cut although there was room"
    kept = [size - gone for size, gone in zip(sizes, cut)]
    shortest_cut = min((k for k, gone in zip(kept, cut) if gone), default=99)
    assert all(k <= shortest_cut + 1 for k in kept), (
        f"{kept} of {sizes}: a part was cut while a longer one was left")


def test_which_end_of_a_long_answer_is_kept_is_said_by_keep():
    for keep, last in (("head+tail", "storm"), ("tail", "storm"), ("head", "the")):
        ids, cut = row_of(["rose", "the " * 50 + "storm", "soup"], FIXED + 12, keep)
        assert cut == [0, 41, 0] and ids[-3 - len(MARKS[2])] == TOKENIZER.ids(last)[0], keep


def test_what_does_not_fit_or_holds_nothing_is_told():
    with pytest.raises(InputError, match=rf"3 texts with their markers take {FIXED + 3} tokens .* "
                       rf"{FIXED + 2} are allowed"):
        row_of(["rose", "soup", "rain"], FIXED + 2)
    assert row_of(["rose", "", "rain"], FIXED + 2)[1] == [0, 0, 0], "an empty answer is an answer"
    with pytest.raises(InputError, match="holds no token"):
        row_of(["\u200b", "", ""], 60)


def test_size_is_what_is_laid_out_when_nothing_is_cut():
    texts = ["the rose was near", "soup", "rain and wind"]
    assert parts.joined_size(TOKENIZER, texts, parts.TWO_ANSWERS) == len(row_of(texts, 500)[0])
