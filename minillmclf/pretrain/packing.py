"""The batches of pretraining: items drawn at random, or documents packed into rows.

    the old rose EOS a storm EOS soup EOS   ->   BOS the old rose EOS a   BOS storm EOS soup EOS

Packed rows need no padding: the documents, each ended by EOS, are joined in a new order in every
epoch and cut wherever a row is full (Raffel et al. 2019, 3.1.3). `batch(step)` depends only on the
seed and the step, so a run can be stopped and continued at any step.
"""
import itertools
import random

import torch

from ..errors import InputError


class Draws:
    """Batches of `size` items, each drawn as often as its weight says. items: [(item, weight)]."""

    def __init__(self, items, size, seed):
        self.items, self.size, self.seed = [item for item, _ in items], size, seed
        self.cumulative = list(itertools.accumulate(weight for _, weight in items))

    def batch(self, step):
        """-> list of `size` items."""
        draw = random.Random(f"{self.seed}:{step}")
        return draw.choices(self.items, cum_weights=self.cumulative, k=self.size)


class PackedRows:
    """Batches of `size` rows of `length` tokens.

    documents: (list of ids, weight) of each; begin: the id that each row begins with, or None.
    """

    def __init__(self, documents, size, length, seed, eos_id, begin=None):
        self.documents = [(torch.tensor([*ids, eos_id], dtype=torch.int32), weight)
                          for ids, weight in documents]
        self.size, self.length, self.seed, self.begin = size, length, seed, begin
        self.number, self.first, self.rows = -1, 0, ()       # the epoch, its first step, its rows

    def epoch(self, number):
        """The rows of an epoch (N, length). A document of weight 2.5 is in it two or three times,
        drawn at random."""
        draw = random.Random(f"{self.seed}:epoch {number}")
        chosen = []
        for ids, weight in self.documents:
            chosen += [ids] * int(weight + draw.random())
        draw.shuffle(chosen)
        tokens = torch.cat([torch.empty(0, dtype=torch.int32), *chosen]).long()
        own = self.length - (self.begin is not None)
        rows = tokens[:len(tokens) // own * own].view(-1, own)               # the rest is left out
        if self.begin is None:
            return rows
        return torch.cat([torch.full_like(rows[:, :1], self.begin), rows], dim=1)

    def batch(self, step):
        """-> (size, length) ids. Steps may be asked for in rising order only."""
        while step >= self.first + len(self.rows) // self.size:
            self.first += len(self.rows) // self.size
            self.number += 1
            self.rows = self.epoch(self.number)
            if len(self.rows) < self.size:
                raise InputError(f"the texts fill only {len(self.rows)} rows of {self.length} "
                                 f"tokens in an epoch, a batch has {self.size}: set --batch-size "
                                 "or --length lower, or give more text")
        start = (step - self.first) * self.size
        return self.rows[start:start + self.size]


def fitting(pairs, tokenizer, length):
    """The pairs that have at most `length` tokens with BOS and EOS -> list of ((prompt ids, answer
    ids), weight)."""
    kept = []
    for (prompt, answer), weight in pairs:
        ids = tokenizer.ids(prompt), tokenizer.ids(answer)
        if len(ids[0]) + len(ids[1]) + 2 <= length:
            kept.append((ids, weight))
    return kept
