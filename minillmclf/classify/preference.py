"""Preference: of two answers to a prompt, which is better, a or b, or is it a tie?

    (prompt, a, b)  ->  log p(a), log p(b), log p(tie)      (B, 3), in the order of the labels

PreferenceHead   one text with all three, and the family's head on it. It compares word with word,
                 and may learn that what stands first wins (swap.py).
BradleyTerry     each answer alone with the prompt -> its worth r; the two are compared (Bradley and
                 Terry 1952; ties: Davidson 1970, "On Extending the Bradley-Terry Model to
                 Accommodate Ties"). It cannot prefer a place. A reward model of RLHF is this
                 without ties (Ouyang et al. 2022).

Label texts in a template with three fields are a third way. `Preference` is the task. A row that
the backbone reads as two sequences is a `Pair`; a batch of them holds all first sequences, then all
second ones. How three texts become one sequence is in text/parts.py.
"""
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..files import short
from ..text import parts
from ..text.batch import collate, row_size
from .head import Head, build_head
from .swap import averaged, check_texts, inconsistency, order_of, swapped, with_swapped
from .task import SingleLabel

KINDS, SWAPS = ("none", "head", "bradley-terry"), ("none", "train", "predict", "both")


class Pair(NamedTuple):
    """A row of two sequences, (ids, types) each, that the backbone reads one by one."""
    first: tuple
    second: tuple


# ------------------------------------------------------------------------------------- the heads

class AroundHead(Head):
    """A readout around a head of the family, `score`, whose tensors keep their names in files."""

    most_texts = 3

    def __init__(self, score):
        super().__init__()
        self.score, self.how, self.pooling = score, score.how, score.pooling
        self.NAMES = {file: path.replace("head.", "head.score.", 1)
                      for file, path in score.NAMES.items()}

    def forward(self, hidden, mask):
        """(B, T, D) -> what the inner head gives."""
        return self.score(hidden, mask)

    def lay_out(self, tokenizer, texts, max_length):
        """(prompt, a, b) -> a row, was anything cut? `laid_out` gives a row and the tokens that are
        cut of each text."""
        row, cut = self.laid_out(tokenizer, texts, max_length)
        return row, any(cut)


class PreferenceHead(AroundHead):
    """All three texts in one, with markers -> the family's own head, of three classes. In
    transformers it is an ordinary classifier of texts laid out in this way."""

    def __init__(self, score):
        super().__init__(score)
        self.ARCHITECTURE = score.ARCHITECTURE

    def laid_out(self, tokenizer, texts, max_length):
        check_texts(texts)
        return parts.lay_out(tokenizer, texts, parts.TWO_ANSWERS, max_length, self.keep)

    def length(self, tokenizer, texts):
        return parts.size(tokenizer, texts, parts.TWO_ANSWERS)


def davidson(r_a, r_b, log_nu):
    """Worths (B,) of two answers, log nu () -> log p(a), log p(b), log p(tie), (B, 3).

    With w = exp(r):  p(a) = w_a / Z,  p(b) = w_b / Z,  p(tie) = nu sqrt(w_a w_b) / Z,  sum 1.
    Divided by sqrt(w_a w_b) this is a softmax of (d / 2, -d / 2, log nu) with d = r_a - r_b. For
    nu -> 0 it becomes Bradley and Terry's sigmoid(d). Exchanging a and b gives the same bits.
    """
    half = (r_a - r_b) / 2                                                          # (B,)
    tie = log_nu.expand_as(half)
    log_z = torch.logaddexp(torch.logaddexp(half, -half), tie)
    return torch.stack([half - log_z, -half - log_z, tie - log_z], 1)               # (B, 3)


class Tie(nn.Module):
    """log nu, learned: how readily two answers are called equal. It starts at 0: p = 1/3 each."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))


class BradleyTerry(AroundHead):
    """Each answer alone with its prompt -> the family's head, one output -> Davidson's formula.
    Its rows are `Pair`s, (prompt, a) and (prompt, b)."""

    ARCHITECTURE = "MinillmclfBradleyTerry"
    LAST = (".out", ".tie")
    SEQUENCES = 2                       # that a row has

    def __init__(self, score, order):
        super().__init__(score)
        score.out.bias = None                                   # it would cancel out in r_a - r_b
        self.tie, self.order = Tie(), order
        self.NAMES["minillmclf_tie"] = "head.tie"

    def laid_out(self, tokenizer, texts, max_length):
        """Two sequences, each of at most max_length tokens; the prompt's cut is the longer one."""
        check_texts(texts)
        prompt, *answers = texts
        rows = [parts.lay_out(tokenizer, (prompt, answer), parts.ONE_ANSWER, max_length, self.keep)
                for answer in answers]
        (first, (cut, cut_a)), (second, (cut_too, cut_b)) = rows
        return Pair(first, second), [max(cut, cut_too), cut_a, cut_b]

    def length(self, tokenizer, texts):
        """Tokens of the longer sequence."""
        return max(parts.size(tokenizer, (texts[0], answer), parts.ONE_ANSWER)
                   for answer in texts[1:])

    def read(self, backbone, ids, mask, types=None, layout=None):
        """ids, mask, types: (2B, T), first all (prompt, a) -> log-probabilities (B, 3)."""
        r = self(*self.states(backbone, ids, mask, types, layout)).squeeze(1).float()   # (2B,)
        found = davidson(*r.chunk(2), self.tie.bias)                            # (B, 3) a, b, tie
        return found[:, np.argsort(self.order).tolist()]


# ------------------------------------------------------------------------------------- the task

class Preference(SingleLabel):
    """The classes a, b and tie of rows (prompt, a, b). kind: of KINDS, "none" with label texts;
    swap: of SWAPS, whether training and prediction see both orders."""

    TEXTS, EXAMPLE = 3, "--data new.csv"                # three texts come from a file

    def __init__(self, labels, kind="none", swap="none"):
        super().__init__(labels)
        self.kind, self.swap, self.order = kind, swap, order_of(labels)

    @classmethod
    def check_columns(cls, columns, readout):
        if len(columns) != 3:
            raise InputError(f"--text-column {','.join(columns)}: --preference and --swap need "
                             "three, a prompt and two answers")

    def head(self, model_type, backbone, how):
        if self.kind == "bradley-terry":
            return BradleyTerry(build_head(model_type, backbone, 1, how), self.order)
        return PreferenceHead(build_head(model_type, backbone, 3, how))

    def lay_out(self, head, tokenizer, texts, max_length, training=False):
        row, cut = head.lay_out(tokenizer, texts, max_length)
        if training or self.swap not in ("predict", "both"):
            return row, cut
        second, cut_too = head.lay_out(tokenizer, swapped(texts), max_length)
        return Pair(row, second), cut or cut_too

    def sequences(self, row):
        return list(row) if isinstance(row, Pair) else [row]

    def row_size(self, row):
        """Both sequences are padded to the longer one."""
        sequences = self.sequences(row)
        return len(sequences) * max(map(row_size, sequences))

    def collate(self, encoded, rows, pad_id=0, labels=None):
        """Pairs -> a Batch with ids, mask, types (2B, T): the first sequence of all B rows, then
        the second."""
        chosen = [self.sequences(encoded[row]) for row in rows]
        counts = {len(sequences) for sequences in chosen}
        if len(counts) > 1:
            raise InputError("rows of 1 and of 2 sequences do not go into one batch: encode all of "
                             "them in the same way")
        together = [sequence for place in range(*counts) for sequence in (s[place] for s in chosen)]
        batch = collate(together, range(len(together)), pad_id)
        if labels is not None:
            batch.labels = torch.tensor([labels[row] for row in rows])
        batch.rows = list(rows)
        return batch

    def training_rows(self, examples):
        return with_swapped(examples) if self.swap in ("train", "both") else examples

    def merge(self, logits, rows):
        """(2B, 3) of rows in both orders -> the mean (B, 3)."""
        return logits if len(logits) == rows else averaged(logits, self.labels)

    def check_rows(self, model, texts):
        counts = cut_parts(model, texts)
        return {"cut": counts}, [cut_line(counts)]

    def check_answers(self, model, texts, logits):
        return {"swap": inconsistency(model, texts, logits)}

    def answer_lines(self, record):
        if "swap" not in record:                            # of an earlier version
            return []
        note = " (before averaging)" if self.swap in ("predict", "both") else ""
        found = record["swap"]
        return [f"a and b exchanged: {found['answers_changed']:.1%} of the answers change, "
                f"probabilities by {found['mean_difference']:.3f} on average{note}"]

    def settings(self):
        return super().settings() | {"preference": {"kind": self.kind, "swap": self.swap}}


def preference_task(asked, labels, described):
    """{"kind": of KINDS, "swap": of SWAPS}, each of which may be absent, or None -> Preference, or
    None where nothing is asked for. described: the readout's, {} for a head. InputError for what
    does not go together."""
    if not isinstance(asked or {}, dict) or set(asked or {}) - {"kind", "swap"}:
        raise InputError(f"preference should be an object with kind and swap, is {short(asked)}")
    kind, swap = ((asked or {}).get(key) or "none" for key in ("kind", "swap"))
    if kind not in KINDS or swap not in SWAPS:
        raise InputError(f"preference {short(kind)}, swap {short(swap)}: known are "
                         f"{', '.join(KINDS)}, and {', '.join(SWAPS)}")
    if (kind, swap) == ("none", "none"):
        return None
    fields = described.get("fields", ())
    refused = [
        (described and kind != "none", f"--preference {kind} goes with --readout head; label texts "
         "need only a template with three fields"),
        (described and len(fields) != 3, f"--swap {swap} exchanges the second and the third text "
         f"of a row, and these have {', '.join(fields)}: name a prompt and two answers with "
         "--text-column"),
        (kind == "bradley-terry" and swap != "none", f"--swap {swap} changes nothing beside "
         "--preference bradley-terry, which reads each answer alone"),
        (not described and kind == "none", f"--swap {swap} needs two answers to exchange: set "
         "--preference head, or --readout labels")]
    for holds, message in refused:
        if holds:
            raise InputError(message)
    return Preference(labels, kind, swap)


def use_swap(model, swap):
    """From now on a saved classifier averages over both orders ("predict") or not ("none"); None
    leaves it as it is."""
    if swap is None:
        return
    before = model.task
    asked = {"kind": getattr(before, "kind", "none"), "swap": swap}
    task = preference_task(asked, model.labels, model.head.described)
    if task is None and isinstance(before, Preference):
        task = SingleLabel(model.labels)
    if task is not None:
        task.calibration, model.task = before.calibration, task


def cut_parts(model, texts):
    """In how many rows the prompt, a and b are cut -> {"prompt": n, "a": n, "b": n, "of": rows}."""
    head, counts = model.head, Counter(prompt=0, a=0, b=0)
    for row in texts:
        if head.described:                                  # label texts are cut in characters
            fitted = head.fitted(model.tokenizer, row, model.max_length)[0]
            cuts = [len(text) - len(kept) for text, kept in zip(row, fitted)]
        else:
            cuts = head.laid_out(model.tokenizer, row, model.max_length)[1]
        counts.update({name: tokens > 0 for name, tokens in zip(counts, cuts)})
    return {**counts, "of": len(texts)}


def cut_line(counts):
    """What `cut_parts` has counted, as a line."""
    return "shortened: the prompt in {prompt} of {of} rows, a in {a}, b in {b}".format(**counts)
