"""What is kept of a text that is too long, and where windows over it lie: arithmetic on lists of token ids.

`fit` (prompt.py) decides how many tokens each part of a row keeps; `keep_end` decides which. BERT's authors kept the head.
Sun et al. 2019 (arXiv:1905.05583) found head and tail together better on film reviews: the verdict stands at the ends.
Nothing is put where tokens were taken out, and special tokens are no part of these lists: they come later, by the layout.
Not here: what a model makes of the windows (classify/windows.py).
"""
from ..errors import InputError
from ..files import short
from .prompt import fit

KEEPS = ("head", "tail", "head+tail", "middle")


def check_keep(keep):
    """InputError for a word that is none of KEEPS. -> keep"""
    if keep not in KEEPS:
        raise InputError(f"keep {short(keep)} is not known; known: {', '.join(KEEPS)}")
    return keep


def keep_end(ids, count, keep):
    """`count` of the ids, in their order; all, if there are no more. keep_end([1, 2, 3, 4, 5], 3, "head+tail") -> [1, 2, 5].

    keep: the head; the tail; head+tail, half of each (the head has the odd one); or the middle. InputError for another word.
    """
    check_keep(keep)
    extra = max(0, len(ids) - count)                                # so many go, as one stretch but for the middle
    if keep == "middle":
        return ids[extra // 2:extra // 2 + min(count, len(ids))]
    start = {"head": count, "tail": 0, "head+tail": (count + 1) // 2}[keep]
    return ids[:start] + ids[start + extra:]


def cut_to(parts, budget, keep="head"):
    """Lists of ids of one text or two -> (the same with at most `budget` tokens together, how many were cut)."""
    fitted, cut = fit(parts, budget)
    return [keep_end(part, len(short), keep) for part, short in zip(parts, fitted)], cut


def spans(length, size, overlap):
    """Windows over `length` tokens -> [(start, end), ...]; each has `size` tokens, unless all fit into one.

    Neighbours share `overlap` tokens. The last window ends with the text and is full too, so it may share more with the
    one before: spans(10, 4, 1) -> [(0, 4), (3, 7), (6, 10)], spans(9, 4, 1) -> [(0, 4), (3, 7), (5, 9)].
    """
    if not 0 <= overlap < size:
        raise InputError(f"overlap {overlap}: should lie from 0 to {size - 1}, for a window holds {size} tokens of a text: "
                         f"choose such an --overlap")
    if length <= size:
        return [(0, length)]
    starts = [*range(0, length - size, size - overlap), length - size]
    return [(start, start + size) for start in starts]
