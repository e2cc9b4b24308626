"""Long texts: which of their tokens are kept, and where windows over them lie.

`cut_longest` decides how many tokens each text of a row keeps; `truncate` decides which. BERT's
authors kept the head; Sun et al. 2019 (arXiv:1905.05583) found head and tail together better on
film reviews. All token ids are without special tokens, and no token marks a gap.
Not here: what a model does with the windows (classify/windows.py).
"""
from ..errors import InputError
from ..files import short

TRUNCATION_SIDES = ("head", "tail", "head+tail", "middle")


def text_ids(tokenizer, texts):
    """The texts of a row -> the ids of each. InputError for a row without a token."""
    parts = [tokenizer.ids(text) for text in texts]
    if not any(parts):
        raise InputError(f"the text {short(texts[0])} holds no token, only characters that the "
                         "tokenizer drops: remove it")
    return parts


def check_side(keep):
    """-> keep, if it is one of TRUNCATION_SIDES; else InputError."""
    if keep not in TRUNCATION_SIDES:
        raise InputError(f"keep {short(keep)} is not known; known: {', '.join(TRUNCATION_SIDES)}")
    return keep


def truncate(ids, count, keep):
    """At most `count` of the ids, in their order.

    keep: one of TRUNCATION_SIDES. "head+tail" keeps half at each end, and one more at the head if
    count is odd: truncate([1, 2, 3, 4, 5], 3, "head+tail") -> [1, 2, 5].
    """
    check_side(keep)
    extra = max(0, len(ids) - count)                               # tokens to drop
    if keep == "middle":
        return ids[extra // 2:len(ids) - (extra - extra // 2)]
    head = {"head": count, "tail": 0, "head+tail": (count + 1) // 2}[keep]
    return ids[:head] + ids[head + extra:]


def cut_longest(parts, budget):
    """Cut lists of ids at their ends, the longest first, to at most `budget` tokens together.

    -> (parts, how many tokens were cut). Only the longest part is cut, so none vanishes; of equal
    parts the one that was shorter first, as in the `tokenizers` library ("longest_first").
    """
    lengths, left = [len(part) for part in parts], max(0, budget)
    cut = max(0, sum(lengths) - budget)
    shortest_first = sorted(range(len(parts)), key=lengths.__getitem__)
    for done, i in enumerate(shortest_first):
        lengths[i] = min(lengths[i], left // (len(parts) - done))        # equal share of the rest
        left -= lengths[i]
    return [part[:length] for part, length in zip(parts, lengths)], cut


def truncate_all(parts, budget, keep="head"):
    """Lists of ids -> (lists with at most `budget` ids together, number of ids cut)."""
    shorter, cut = cut_longest(parts, budget)
    return [truncate(part, len(head), keep) for part, head in zip(parts, shorter)], cut


def window_spans(length, size, overlap):
    """Windows of `size` tokens over `length` tokens -> [(start, end), ...]; a shorter text is one.

    Neighbours share `overlap` tokens. The last window ends with the text and may share more:
    spans(10, 4, 1) -> [(0, 4), (3, 7), (6, 10)], spans(9, 4, 1) -> [(0, 4), (3, 7), (5, 9)].
    """
    if not 0 <= overlap < size:
        raise InputError(f"overlap {overlap}: should lie from 0 to {size - 1}, for a window holds "
                         f"{size} tokens of a text: choose such an --overlap")
    if length <= size:
        return [(0, length)]
    starts = [*range(0, length - size, size - overlap), length - size]
    return [(start, start + size) for start in starts]
