"""From lists of token ids to tensors: which rows go together, and how they are padded.

Rows of like length share a batch (little padding), yet every epoch sees another mixture: rows are shuffled, sorted
within large chunks only, and the batches are shuffled again.

A row is (ids, types); or (ids, types, starts) where it holds several sequences that a model reads apart, as two answers to
compare: they stand behind one another, and `starts` says where each but the first begins. So a row of the data stays a row
of a batch, with one label, however many texts the body reads for it; `Batch.apart` makes rows of the sequences.
"""
import random
from dataclasses import dataclass

import torch

from ..errors import InputError


@dataclass
class Batch:
    """ids, mask, types: (B, T) int64, mask 1 where a token is; labels: (B,) class numbers or None; rows: where each
    row stands in the data it came from; starts: (B, S - 1), where in its row each sequence but the first begins, counted in
    tokens from the row's first one; None where each row is one sequence."""
    ids: torch.Tensor
    mask: torch.Tensor
    types: torch.Tensor
    labels: torch.Tensor | None
    rows: list[int]
    starts: torch.Tensor | None = None

    def to(self, device):
        """The same batch on another device."""
        labels, starts = (None if x is None else x.to(device) for x in (self.labels, self.starts))
        return Batch(self.ids.to(device), self.mask.to(device), self.types.to(device), labels, self.rows, starts)

    def apart(self):
        """ids, mask, types of the sequences (S * B, T'): the first of all rows, then the second of all rows, and so on.

        Padded on the right. Where each row is one sequence they are the batch's own, with their padding.
        """
        if self.starts is None:
            return self.ids, self.mask, self.types
        place = self.mask.cumsum(1) - 1                                          # (B, T), 0 at a row's first token
        number = (place.unsqueeze(2) >= self.starts.unsqueeze(1)).sum(2)         # (B, T), which sequence a token is of
        chosen = torch.cat([self.mask.bool() & (number == s) for s in range(1 + self.starts.shape[1])])       # (S * B, T)
        order = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :int(chosen.sum(1).max())]       # (S * B, T')
        mask, times = chosen.gather(1, order), (len(chosen) // len(self.ids), 1)
        ids, types = (x.repeat(times).gather(1, order).where(mask, 0) for x in (self.ids, self.types))
        return ids, mask.to(self.mask.dtype), types


def join(*sequences):
    """Sequences (ids, types) -> one row (ids, types, starts) that holds them all."""
    ids, types, starts = [], [], []
    for more, kinds in sequences:
        starts.append(len(ids))
        ids, types = ids + more, types + kinds
    return ids, types, starts[1:]


def edges(row):
    """Where the sequences of a row begin and end -> [(start, end), ...]."""
    ids, _, *starts = row
    between = [0, *(starts[0] if starts else []), len(ids)]
    return list(zip(between, between[1:]))


def sequences(row):
    """What `join` has joined -> [(ids, types), ...]; a row (ids, types) is one sequence."""
    ids, types, *_ = row
    return [(ids[start:end], types[start:end]) for start, end in edges(row)]


def places(row):
    """How many places a row takes where nothing pads it but its own sequences: each is as long as the longest."""
    lengths = [end - start for start, end in edges(row)]
    return len(lengths) * max(lengths)


def collate(encoded, rows, pad_id=0, labels=None):
    """encoded: for each row of the data (ids, types) or (ids, types, starts); rows: which of them -> Batch, padded on the
    right.

    pad_id may be any id, since padding is known by the mask alone. All rows of a batch hold equally many sequences.
    """
    chosen = [encoded[row] for row in rows]
    width = max(len(ids) for ids, *_ in chosen)
    ids = torch.full((len(rows), width), pad_id or 0)                        # (B, T)
    types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for place, (tokens, kinds, *_) in enumerate(chosen):
        ids[place, :len(tokens)] = torch.tensor(tokens)
        types[place, :len(kinds)] = torch.tensor(kinds)
        mask[place, :len(tokens)] = 1
    starts = [list(row[2]) if len(row) > 2 else [] for row in chosen]
    if len({len(each) for each in starts}) > 1:
        raise InputError(f"rows of {min(map(len, starts)) + 1} and of {max(map(len, starts)) + 1} sequences do not go into one "
                         "batch: encode all of them in the same way")
    picked = None if labels is None else torch.tensor([labels[row] for row in rows])
    return Batch(ids, mask, types, picked, list(rows), torch.tensor(starts) if starts[0] else None)


def make_batches(lengths, size, seed=None, tokens=None, chunk=50):
    """Rows grouped by length -> list of lists of row numbers.

    lengths: tokens of each row. size: rows in a batch at most. tokens: if given, also at most so many places in a
    padded batch (rows x longest; a single longer row is a batch of its own). seed: None sorts all rows by length, for
    evaluation; else rows are shuffled and sorted within chunks of `chunk` batches only, and batches are shuffled.
    """
    if size < 1:
        raise InputError(f"batch size {size}: should be 1 or more")
    order = list(range(len(lengths)))
    if seed is None:
        return cut(sorted(order, key=lambda row: (lengths[row], row)), lengths, size, tokens)
    shuffle = random.Random(seed).shuffle
    shuffle(order)
    span = size * chunk
    order = [row for start in range(0, len(order), span)
             for row in sorted(order[start:start + span], key=lambda row: lengths[row])]
    batches = cut(order, lengths, size, tokens)
    shuffle(batches)
    return batches


def cut(order, lengths, size, tokens):
    """Cut a list of rows into batches of at most `size` rows and, if given, `tokens` padded places."""
    batches, current, longest = [], [], 0
    for row in order:
        longest_then = max(longest, lengths[row])
        if current and (len(current) == size or (tokens and longest_then * (len(current) + 1) > tokens)):
            batches.append(current)
            current, longest_then = [], lengths[row]
        current.append(row)
        longest = longest_then
    return batches + [current] if current else batches
