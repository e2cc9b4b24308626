"""From lists of token ids to tensors: which rows go together, and how they are padded.

Rows of like length share a batch (little padding), yet every epoch sees another mixture: rows are shuffled, sorted
within large chunks only, and the batches are shuffled again. A row is (ids, types), two lists.
"""
import random
from dataclasses import dataclass

import torch

from ..errors import InputError


@dataclass
class Batch:
    """ids, mask, types: (B, T) int64, mask 1 where a token is; labels: (B,) class numbers or None;
    rows: the numbers of its rows in the data they came from."""
    ids: torch.Tensor
    mask: torch.Tensor
    types: torch.Tensor
    labels: torch.Tensor | None
    rows: list[int]

    def to(self, device):
        """The same batch on another device."""
        labels = None if self.labels is None else self.labels.to(device)
        return Batch(self.ids.to(device), self.mask.to(device), self.types.to(device), labels, self.rows)


def row_size(row):
    """Places that a row takes in a batch, where nothing pads it."""
    return len(row[0])


def collate(encoded, rows, pad_id=0, labels=None):
    """encoded: (ids, types) for each row of the data; rows: which of them -> Batch, padded on the right.

    pad_id may be any id, since padding is known by the mask alone.
    """
    chosen = [encoded[row] for row in rows]
    width = max(map(row_size, chosen))
    ids = torch.full((len(rows), width), pad_id or 0)                        # (B, T)
    types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for place, (tokens, kinds) in enumerate(chosen):
        ids[place, :len(tokens)] = torch.tensor(tokens)
        types[place, :len(kinds)] = torch.tensor(kinds)
        mask[place, :len(tokens)] = 1
    picked = None if labels is None else torch.tensor([labels[row] for row in rows])
    return Batch(ids, mask, types, picked, list(rows))


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
