"""Preference: of two answers to a prompt, which is better, a or b, or is it a tie?

    (prompt, a, b)  ->  log p(a), log p(b), log p(tie)      (B, 3), in the order of the labels

PreferenceHead   All three texts are one sequence, which the family's head reads. It compares word
                 with word, but may learn that the first answer wins (swap.py).
BradleyTerry     Each answer is read alone with the prompt and gets a score r; the scores are
                 compared (Bradley and Terry 1952; ties: Davidson 1970, "On Extending the
                 Bradley-Terry Model to Accommodate Ties"). The order of the answers cannot matter.
                 Without ties it is a reward model of RLHF (Ouyang et al. 2022).

A third way is label texts in a template with three fields. `Preference` is the task. A row that
the backbone reads as two sequences is a `Pair`; a batch of pairs has all first sequences, then all
second ones. text/parts.py makes one sequence of several texts.
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
from .family_heads import build_head
from .head import Head
from .swap import add_swapped, average_orders, check_texts, position_bias, side_numbers, swap_texts
from .task import SingleLabel

KINDS, SWAPS = ("none", "head", "bradley-terry"), ("none", "train", "predict", "both")


class Pair(NamedTuple):
    """A row of two sequences, each (ids, types), that the backbone reads separately."""
    first: tuple
    second: tuple


# ------------------------------------------------------------------------------------- the heads

class HeadWrapper(Head):
    """A head around another, `score`, whose tensors keep their names in files."""

    max_texts = 3

    def __init__(self, score):
        super().__init__()
        self.score, self.pooling, self.pool_option = score, score.pooling, score.pool_option
        self.NAMES = {file: path.replace("head.", "head.score.", 1)
                      for file, path in score.NAMES.items()}

    def forward(self, hidden, mask):
        """hidden (B, T, D), mask (B, T) -> the logits of the inner head, (B, its classes)."""
        return self.score(hidden, mask)

    def encode_row(self, tokenizer, texts, max_length):
        """(prompt, a, b) -> a row, was it cut? A subclass has encode_with_cuts, which returns the
        row and how many tokens of each text were cut."""
        row, cut = self.encode_with_cuts(tokenizer, texts, max_length)
        return row, any(cut)


class PreferenceHead(HeadWrapper):
    """All three texts in one sequence, with markers between -> a head of the family, three classes.
    For transformers it is an ordinary classifier of such sequences."""

    def __init__(self, score):
        super().__init__(score)
        self.ARCHITECTURE = score.ARCHITECTURE

    def encode_with_cuts(self, tokenizer, texts, max_length):
        check_texts(texts)
        return parts.join_parts(tokenizer, texts, parts.TWO_ANSWERS, max_length, self.keep)

    def count_tokens(self, tokenizer, texts):
        return parts.joined_size(tokenizer, texts, parts.TWO_ANSWERS)


def davidson(r_a, r_b, log_nu):
    """Scores r_a, r_b (B,), log nu (1,) -> log p(a), log p(b), log p(tie), (B, 3).

    With w = exp(r):  p(a) = w_a / Z,  p(b) = w_b / Z,  p(tie) = nu sqrt(w_a w_b) / Z,  sum 1.
    That is the softmax of (d / 2, -d / 2, log nu) with d = r_a - r_b. For nu -> 0, p(a) becomes
    Bradley and Terry's sigmoid(d). If a and b are exchanged, so are their results, bit for bit.
    """
    half = (r_a - r_b) / 2                                                          # (B,)
    tie = log_nu.expand_as(half)
    log_z = torch.logaddexp(torch.logaddexp(half, -half), tie)
    return torch.stack([half - log_z, -half - log_z, tie - log_z], 1)               # (B, 3)


class Tie(nn.Module):
    """log nu, learned: the larger, the more ties. It starts at 0: 1/3 for each class if d = 0."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))


class BradleyTerry(HeadWrapper):
    """Each answer with the prompt -> a head of the family with one output r -> `davidson`. Its rows
    are `Pair`s: (prompt, a) and (prompt, b)."""

    ARCHITECTURE = "MinillmclfBradleyTerry"
    CLASS_LAYERS = (".out", ".tie")
    SEQUENCES_PER_ROW = 2

    def __init__(self, score, order):
        super().__init__(score)
        score.out.bias = None                                   # it would cancel out in r_a - r_b
        self.tie, self.order = Tie(), order
        self.NAMES["minillmclf_tie"] = "head.tie"

    def encode_with_cuts(self, tokenizer, texts, max_length):
        """Both sequences have at most max_length tokens. The prompt may be cut more in one."""
        check_texts(texts)
        prompt, *answers = texts
        markers, keep = parts.ONE_ANSWER, self.keep
        pair = [parts.join_parts(tokenizer, (prompt, answer), markers, max_length, keep)
                for answer in answers]
        (first, (prompt_1, cut_a)), (second, (prompt_2, cut_b)) = pair
        return Pair(first, second), [max(prompt_1, prompt_2), cut_a, cut_b]

    def count_tokens(self, tokenizer, texts):
        """Tokens of the longer sequence."""
        return max(parts.joined_size(tokenizer, (texts[0], answer), parts.ONE_ANSWER)
                   for answer in texts[1:])

    def read(self, backbone, ids, mask, types=None, layout=None):
        """ids, mask, types: (2B, T), first all (prompt, a) -> log-probabilities (B, 3)."""
        states, mask = self.states_to_pool(backbone, ids, mask, types, layout)
        r = self(states, mask).squeeze(1).float()                                       # (2B,)
        a_b_tie = davidson(*r.chunk(2), self.tie.bias)                                  # (B, 3)
        # `order` has the class numbers of a, b, tie; its argsort says which of them each class is.
        return a_b_tie[:, np.argsort(self.order).tolist()]


# ------------------------------------------------------------------------------------- the task

class Preference(SingleLabel):
    """Rows (prompt, a, b), classes a, b and tie. kind: of KINDS, "none" for label texts; swap: of
    SWAPS, says where both orders of the answers are used: in training, in prediction."""

    MAX_TEXTS, PREDICT_EXAMPLE = 3, "--data new.csv"    # predict takes three texts from a file only

    def __init__(self, labels, kind="none", swap="none"):
        super().__init__(labels)
        self.kind, self.swap, self.order = kind, swap, side_numbers(labels)

    @classmethod
    def check_columns(cls, columns, readout):
        if len(columns) != 3:
            raise InputError(f"--text-column {','.join(columns)}: --preference and --swap need "
                             "three, a prompt and two answers")

    def build_head(self, model_type, backbone, how):
        if self.kind == "bradley-terry":
            return BradleyTerry(build_head(model_type, backbone, 1, how), self.order)
        return PreferenceHead(build_head(model_type, backbone, 3, how))

    def encode_row(self, head, tokenizer, texts, max_length, training=False):
        row, cut = head.encode_row(tokenizer, texts, max_length)
        if training or self.swap not in ("predict", "both"):
            return row, cut
        second, second_cut = head.encode_row(tokenizer, swap_texts(texts), max_length)
        return Pair(row, second), cut or second_cut

    def sequences(self, row):
        return list(row) if isinstance(row, Pair) else [row]

    def row_size(self, row):
        """Both sequences of a row are padded to the longer one."""
        sequences = self.sequences(row)
        return len(sequences) * max(map(row_size, sequences))

    def collate(self, encoded, rows, pad_id=0, labels=None):
        """As text.batch.collate. For pairs, ids, mask and types are (2B, T): all first sequences,
        then all second ones."""
        chosen = [self.sequences(encoded[row]) for row in rows]
        if len({len(sequences) for sequences in chosen}) > 1:
            raise InputError("rows of 1 and of 2 sequences do not go into one batch: encode all of "
                             "them in the same way")
        sequences = [sequence for nth in zip(*chosen) for sequence in nth]
        batch = collate(sequences, range(len(sequences)), pad_id)
        if labels is not None:
            batch.labels = torch.tensor([labels[row] for row in rows])
        batch.rows = list(rows)
        return batch

    def training_examples(self, examples):
        return add_swapped(examples) if self.swap in ("train", "both") else examples

    def merge_sequences(self, logits, rows):
        """Logits (2B, 3) of rows in both orders -> their mean (B, 3); (B, 3) stays as it is."""
        return logits if len(logits) == rows else average_orders(logits, self.labels)

    def check_rows(self, model, texts):
        counts = count_cuts(model, texts)
        return {"cut": counts}, [describe_cuts(counts)]

    def check_answers(self, model, texts, logits):
        return {"swap": position_bias(model, texts, logits)}

    def answer_lines(self, record):
        if "swap" not in record:                            # of an earlier version
            return []
        note = " (before averaging)" if self.swap in ("predict", "both") else ""
        swap = record["swap"]
        return [f"a and b exchanged: {swap['answers_changed']:.1%} of the answers change, "
                f"probabilities by {swap['mean_difference']:.3f} on average{note}"]

    def settings(self):
        return super().settings() | {"preference": {"kind": self.kind, "swap": self.swap}}


def preference_task(asked, labels, label_options):
    """asked: the option preference, {"kind": of KINDS, "swap": of SWAPS}; "none" if missing ->
    Preference, or None if both are "none". label_options: {} for a head. InputError for options
    that do not go together."""
    asked = asked or {}
    if not isinstance(asked, dict) or set(asked) - {"kind", "swap"}:
        raise InputError(f"preference should be an object with kind and swap, is {short(asked)}")
    kind, swap = (asked.get(key) or "none" for key in ("kind", "swap"))
    if kind not in KINDS or swap not in SWAPS:
        raise InputError(f"preference {short(kind)}, swap {short(swap)}: known are "
                         f"{', '.join(KINDS)}, and {', '.join(SWAPS)}")
    if (kind, swap) == ("none", "none"):
        return None
    fields = label_options.get("fields", ())
    conflicts = [
        (label_options and kind != "none", f"--preference {kind} goes with --readout head; label "
         "texts need only a template with three fields"),
        (label_options and len(fields) != 3, f"--swap {swap} exchanges the second and the third "
         f"text of a row, and these have {', '.join(fields)}: name a prompt and two answers with "
         "--text-column"),
        (kind == "bradley-terry" and swap != "none", f"--swap {swap} changes nothing beside "
         "--preference bradley-terry, which reads each answer alone"),
        (not label_options and kind == "none", f"--swap {swap} needs two answers to exchange: set "
         "--preference head, or --readout labels")]
    for holds, message in conflicts:
        if holds:
            raise InputError(message)
    return Preference(labels, kind, swap)


def set_swap(model, swap):
    """Let a saved classifier average over both orders ("predict") or not ("none"); None: as is."""
    if swap is None:
        return
    before = model.task
    asked = {"kind": getattr(before, "kind", "none"), "swap": swap}
    task = preference_task(asked, model.labels, model.head.label_options)
    if task is None and isinstance(before, Preference):
        task = SingleLabel(model.labels)
    if task is not None:
        task.calibration, model.task = before.calibration, task


def count_cuts(model, texts):
    """Rows of three texts -> {"prompt": n, "a": n, "b": n, "of": rows}; n rows have it cut."""
    head, counts = model.head, Counter(prompt=0, a=0, b=0)
    for row in texts:
        if head.label_options:                              # label texts are cut in characters
            shorter = head.fit_texts(model.tokenizer, row, model.max_length)[0]
            cuts = [len(text) - len(kept) for text, kept in zip(row, shorter)]
        else:
            cuts = head.encode_with_cuts(model.tokenizer, row, model.max_length)[1]
        counts.update({name: cut > 0 for name, cut in zip(counts, cuts)})
    return {**counts, "of": len(texts)}


def describe_cuts(counts):
    """The result of `count_cuts` -> a line to print."""
    return "shortened: the prompt in {prompt} of {of} rows, a in {a}, b in {b}".format(**counts)
