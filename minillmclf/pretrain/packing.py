"""What a step of pretraining reads: sentences or pairs drawn at random, or documents packed into rows of one length.

    the old rose EOS a storm EOS soup and bread today EOS   ->   BOS the old rose EOS a   BOS storm EOS soup and bread ...

Packing wastes no place on padding: documents stand one after the other, each ended by EOS, in another order every epoch,
and are cut wherever a row is full (Raffel et al. 2019, 3.1.3). `batch(step)` depends on the seed and the step alone, so
a run can be stopped and go on anywhere.
"""
import itertools
import random

import torch

from ..errors import InputError


class Draws:
    """Batches of `size` items, each drawn as often as its weight says. An item may be anything."""

    def __init__(self, items, weights, size, seed):
        self.items, self.size, self.seed = items, size, seed
        self.cumulative = list(itertools.accumulate(weights))

    def batch(self, step):
        """-> list of `size` items."""
        return random.Random(f"{self.seed}:{step}").choices(self.items, cum_weights=self.cumulative, k=self.size)


class SideBySide:
    """Of two Draws of the same size, an item of the first with one of the second."""

    def __init__(self, first, second):
        self.first, self.second = first, second

    def batch(self, step):
        """-> list of tuples."""
        return list(zip(self.first.batch(step), self.second.batch(step)))


class PackedRows:
    """Batches of `size` rows of `length` tokens. documents: lists of ids; begin: an id to begin each row with, or None."""

    def __init__(self, documents, weights, size, length, seed, eos_id, begin=None):
        self.documents = [torch.tensor([*ids, eos_id], dtype=torch.int32) for ids in documents]
        self.weights, self.size, self.length, self.seed, self.begin = weights, size, length, seed, begin
        self.number, self.first, self.rows = -1, 0, torch.empty(0, length)      # epoch, its first step, its rows

    def epoch(self, number):
        """The rows of one epoch, (N, length): a document of weight 2.5 stands there twice, every other epoch thrice."""
        draw = random.Random(f"{self.seed}:epoch {number}")
        chosen = [ids for ids, weight in zip(self.documents, self.weights) for _ in range(int(weight + draw.random()))]
        draw.shuffle(chosen)
        tokens, own = torch.cat([self.documents[0][:0], *chosen]).long(), self.length - (self.begin is not None)
        rows = tokens[:len(tokens) // own * own].view(-1, own)                  # what fills no row is left
        return rows if self.begin is None else torch.cat([torch.full_like(rows[:, :1], self.begin), rows], dim=1)

    def batch(self, step):
        """-> (size, length) ids. Steps may be asked for in rising order only."""
        while step >= self.first + len(self.rows) // self.size:
            self.first += len(self.rows) // self.size
            self.number += 1
            self.rows = self.epoch(self.number)
            if len(self.rows) < self.size:
                raise InputError(f"the texts fill only {len(self.rows)} rows of {self.length} tokens in an epoch, a batch "
                                 f"has {self.size}: set --batch-size or --length lower, or give more text")
        start = (step - self.first) * self.size
        return self.rows[start:start + self.size]


def fitting(pairs, weights, tokenizer, length):
    """The ids of those (prompt, answer) that, with BOS and EOS, are not longer than `length`, and their weights."""
    encoded = [(tokenizer.ids(prompt), tokenizer.ids(answer)) for prompt, answer in pairs]
    short = [place for place, (prompt, answer) in enumerate(encoded) if len(prompt) + len(answer) + 2 <= length]
    return [encoded[place] for place in short], [weights[place] for place in short]
