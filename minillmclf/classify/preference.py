"""Preference: of two answers to a prompt, which is the better one, a or b, or is it a tie?

    (prompt, a, b)  ->  log p(a), log p(b), log p(tie)                 (B, 3), in the order of the classifier's labels

PreferenceHead   one text with all three, and the head of the family on it. It compares word with word, and it may learn
                 that what stands first wins (swap.py).
BradleyTerry     each answer alone with the prompt -> a score r of how good it is; the two scores are compared (Bradley and
                 Terry 1952; ties: Davidson 1970, "On Extending the Bradley-Terry Model to Accommodate Ties"). It cannot
                 prefer a place. A model of rewards in RLHF is this without ties (Ouyang et al. 2022).

A third way needs nothing new: label texts behind a template with three fields (labels.py). Here too: the baseline that the
longer answer wins. Not here: how three texts become a row (text/parts.py), rows of two sequences (text/batch.py), the
exchange of a and b (swap.py), files (folds/arena.py).
"""
from collections import Counter

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..text import parts
from ..text.batch import join
from .head import Head, build_head
from .swap import check_texts, order_of

KINDS, SWAPS = ("none", "head", "bradley-terry"), ("none", "train", "predict", "both")


class AroundHead(Head):
    """A readout that has a head of the family in it, `score`. In a file, that head's tensors keep their usual names."""

    def __init__(self, score):
        super().__init__()
        self.score, self.how = score, score.how
        self.NAMES = {file: ours.replace("head.", "head.score.", 1) for file, ours in score.NAMES.items()}

    def forward(self, hidden, mask):
        """(B, T, D) -> what the inner head gives."""
        return self.score(hidden, mask)

    def lay_out(self, tokenizer, texts, max_length):
        """(prompt, a, b) -> a row as text/batch.py has it, was anything cut?"""
        row, cut = self.laid_out(tokenizer, texts, max_length)
        return row, any(cut)

    def cuts(self, tokenizer, texts, max_length):
        """How many tokens of the prompt, of a and of b `lay_out` leaves out -> list of three."""
        return self.laid_out(tokenizer, texts, max_length)[1]


class PreferenceHead(AroundHead):
    """All three texts in one, with markers -> the family's own head, of three classes. In transformers it is an ordinary
    classifier, of texts that are laid out in this way."""

    def __init__(self, score):
        super().__init__(score)
        if hasattr(score, "ARCHITECTURE"):
            self.ARCHITECTURE = score.ARCHITECTURE

    def laid_out(self, tokenizer, texts, max_length):
        check_texts(texts)
        return parts.lay_out(tokenizer, texts, parts.TWO_ANSWERS, max_length, self.keep)

    def length(self, tokenizer, texts):
        """Tokens of a row before anything is cut."""
        return parts.size(tokenizer, texts, parts.TWO_ANSWERS)


def davidson(r_a, r_b, log_nu):
    """Scores (B,) of two answers, log nu () -> log p(a), log p(b), log p(tie), (B, 3).

    With worths w = exp(r):  p(a) = w_a / Z,  p(b) = w_b / Z,  p(tie) = nu sqrt(w_a w_b) / Z,  which add up to one. Divided
    by sqrt(w_a w_b) this is a softmax of (d / 2, -d / 2, log nu) with d = r_a - r_b. For nu -> 0 ties vanish, and what is
    left is Bradley and Terry's sigmoid(d). Each step gives the same bits if a and b change places.
    """
    half = (r_a - r_b) / 2                                                    # (B,)
    tie = log_nu.expand_as(half)
    log_z = torch.logaddexp(torch.logaddexp(half, -half), tie)
    return torch.stack([half - log_z, -half - log_z, tie - log_z], 1)         # (B, 3)


class Tie(nn.Module):
    """log nu, learned: how readily two answers are called equal. It begins at 0: for d = 0, p = 1/3 each."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))


class BradleyTerry(AroundHead):
    """Each answer alone with its prompt -> the family's head, with one output -> Davidson's three probabilities.

    The row of a batch holds both sequences, (prompt, a) and (prompt, b), one behind the other (text/batch.py).
    Classifier.inputs takes them apart: before a learned prompt is put in front, so that both get it; what `read` sees is a
    plain batch of 2B rows, first all a, then all b.
    """

    ARCHITECTURE = "MinillmclfBradleyTerry"
    SEQUENCES = 2

    def __init__(self, score, order):
        super().__init__(score)
        score.out.bias = None                                                 # it would cancel out in r_a - r_b
        self.tie, self.order = Tie(), order
        self.NAMES |= {"minillmclf_tie": "head.tie"}

    def laid_out(self, tokenizer, texts, max_length):
        """Two sequences, each of at most max_length tokens. A prompt counts as cut by the longer of its two cuts."""
        check_texts(texts)
        (first, (cut, a)), (second, (cut_too, b)) = (
            parts.lay_out(tokenizer, (texts[0], answer), parts.ONE_ANSWER, max_length, self.keep) for answer in texts[1:])
        return join(first, second), [max(cut, cut_too), a, b]

    def length(self, tokenizer, texts):
        """Tokens of the longer sequence."""
        return max(parts.size(tokenizer, (texts[0], answer), parts.ONE_ANSWER) for answer in texts[1:])

    def read(self, backbone, ids, mask, types=None, layout=None):
        """ids, mask, types: (2B, T) -> log-probabilities of the classes (B, 3), in their order."""
        r = self(*self.states(backbone, ids, mask, types)).squeeze(1).float() # (2B,)
        found = davidson(*r.chunk(2), self.tie.bias)                          # (B, 3) a, b, tie
        return found[:, np.argsort(self.order).tolist()]


def build_preference(kind, model_type, backbone, labels, how):
    """kind: of KINDS, "none" for a plain head; the rest as for head.build_head."""
    if kind == "bradley-terry":
        return BradleyTerry(build_head(model_type, backbone, 1, how), order_of(labels))
    head = build_head(model_type, backbone, len(labels), how)
    return head if kind == "none" else PreferenceHead(head)


def read_preference(asked, labels, readout):
    """{"kind": of KINDS, "swap": of SWAPS}, each of which may be absent, as an argument or in a file -> the same in full,
    or {} where nothing is asked. readout: {} for a head. Raises InputError for what does not go together."""
    if not isinstance(asked or {}, dict) or set(asked or {}) - {"kind", "swap"}:
        raise InputError(f"preference should be an object with kind and swap, is {asked!r:.60}")
    kind, swap = ((asked or {}).get(key) or "none" for key in ("kind", "swap"))
    if kind not in KINDS or swap not in SWAPS:
        raise InputError(f"preference {kind!r}, swap {swap!r}: known are {', '.join(KINDS)}, and {', '.join(SWAPS)}")
    if (kind, swap) == ("none", "none"):
        return {}
    if readout and kind != "none":
        raise InputError(f"--preference {kind} goes with --readout head; label texts need only a template with three fields")
    if readout and len(readout["fields"]) != 3:
        raise InputError(f"--swap {swap} exchanges the second and the third text of a row, and these have "
                         f"{', '.join(readout['fields'])}: name a prompt and two answers with --text-column")
    if kind == "bradley-terry" and swap != "none":
        raise InputError(f"--swap {swap} changes nothing beside --preference bradley-terry, which reads each answer alone")
    if not readout and kind == "none":
        raise InputError(f"--swap {swap} needs two answers to exchange: set --preference head, or --readout labels")
    order_of(labels)
    return {"kind": kind, "swap": swap}


def use_swap(model, swap):
    """From now on a saved classifier averages over both orders ("predict"), or not ("none"); None leaves it as it is."""
    if swap is not None:
        model.preference = read_preference({**model.preference, "swap": swap}, model.labels, model.readout)


def cut_parts(model, texts):
    """Of how many rows the prompt, a and b are shortened to max_length -> {"prompt": ..., "a": ..., "b": ..., "of": rows}."""
    head, tokenizer, most = model.head, model.tokenizer, model.max_length
    if model.readout:                                                          # label texts are cut in characters
        cuts = [[len(text) - len(short) for text, short in zip(row, head.fitted(tokenizer, row, most)[0])] for row in texts]
    else:
        cuts = [head.cuts(tokenizer, row, most) for row in texts]
    return {name: sum(cut[part] > 0 for cut in cuts) for part, name in enumerate(("prompt", "a", "b"))} | {"of": len(texts)}


def cut_line(counts):
    """What `cut_parts` has counted, for people."""
    return "shortened: the prompt in {prompt} of {of} rows, a in {a}, b in {b}".format(**counts)


# ------------------------------------------------------------------------------------------------ what has to be beaten

def longer_answer(train, examples, labels):
    """"The longer answer wins": how often it did in train, it did not, or there was a tie -> probabilities (N, 3).

    Lengths in characters. Answers of one length share what is no tie. Each count begins at one, so that none is zero.
    """
    counts = Counter(outcome(e) for e in train)
    won, lost, tied = (counts[name] + 1 for name in ("longer", "shorter", "tie"))
    total, equal, out = won + lost + tied, (counts["equal"] + 2, counts["equal tie"] + 1), np.empty((len(examples), 3))
    order = order_of(labels)
    for row, example in enumerate(examples):
        _, a, b = map(len, example.texts)
        if a == b:
            tie = equal[1] / sum(equal)
            out[row, order] = (1 - tie) / 2, (1 - tie) / 2, tie
        else:
            out[row, order] = np.array([won, lost, tied] if a > b else [lost, won, tied]) / total
    return out


def outcome(example):
    """What a labelled row says of lengths: "longer", "shorter" or "tie"; "equal" or "equal tie" where both are one."""
    check_texts(example.texts)
    _, a, b = map(len, example.texts)
    if a == b:
        return "equal tie" if example.label == "tie" else "equal"
    if example.label == "tie":
        return "tie"
    return "longer" if (a > b) == (example.label.casefold().removeprefix("model_") == "a") else "shorter"
