"""From lists of token ids to tensors: which rows share a batch, and how they are padded.

Rows of similar length share a batch, so there is little padding. Each epoch has new batches: rows
are shuffled, then sorted by length inside large chunks, and the batches are shuffled again.
A row is a pair of lists, (ids, types): token ids and token types.
"""
import random
from dataclasses import dataclass

import torch

from ..errors import InputError
from .transfer import move_record


def token_positions(mask):
    """mask: (B, T) -> (B, T) int64: 0, 1, 2, ... along the tokens of a row, which padding does not
    count. Padding has the position of the token before it, or 0."""
    return (mask.cumsum(1) - 1).clamp(min=0)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a padded batch (B, T) stand. A layout is computed once for all layers,
    and on the CPU: a program that reads a number from a GPU waits until the GPU has finished.

    mask: (B, T) bool, True where a token is; lengths: (B,), tokens of each row; indices: (N,),
    index of each token in the flattened batch; position_ids: (B, T), `token_positions`.
    right_padded: padding stands after the tokens only; longest: tokens of the longest row;
    token_types: the highest token type + 1, None if it is not known.
    """
    mask: torch.Tensor
    lengths: torch.Tensor
    indices: torch.Tensor
    position_ids: torch.Tensor
    no_padding: bool
    right_padded: bool
    longest: int
    token_types: int | None = None

    @classmethod
    def from_mask(cls, mask, types=None):
        """mask, types: (B, T) -> Layout, on their device. InputError for a row without a token."""
        device, mask = mask.device, mask.bool().cpu()
        lengths = mask.sum(1)
        if not lengths.all():
            empty = (lengths == 0).nonzero().flatten().tolist()
            raise InputError(f"batch row {empty[0]} holds no token ({len(empty)} such of "
                             f"{len(mask)}): give it a text")
        return cls(mask=mask, lengths=lengths, indices=mask.flatten().nonzero().squeeze(1),
                   position_ids=token_positions(mask), no_padding=bool(mask.all()),
                   right_padded=bool((mask[:, 1:] <= mask[:, :-1]).all()),
                   longest=int(lengths.max()),
                   token_types=None if types is None else int(types.max()) + 1).to(device)

    def to(self, device):
        return move_record(self, device)


@dataclass
class Batch:
    """ids, mask, types: (B, T) int64, mask 1 where a token is; labels: (B,) class numbers or None;
    rows: B row numbers in the data; layout: Layout of the mask, or None."""
    ids: torch.Tensor
    mask: torch.Tensor
    types: torch.Tensor
    labels: torch.Tensor | None
    rows: list[int]
    layout: Layout | None = None

    def to(self, device):
        return move_record(self, device, "layout")


def row_size(row):
    """Number of tokens of a row."""
    return len(row[0])


def collate(encoded, rows, pad_id=0, labels=None):
    """Some rows of the data -> Batch, padded on the right.

    encoded: all rows; rows: B row numbers; labels: class numbers of all rows. Only the mask says
    what is padding, so pad_id may be any id; None means 0.
    """
    chosen = [encoded[row] for row in rows]
    ids = torch.full((len(rows), max(map(row_size, chosen))), pad_id or 0)   # (B, T)
    types, mask = torch.zeros_like(ids), torch.zeros_like(ids)               # (B, T)
    for i, (row_ids, row_types) in enumerate(chosen):
        ids[i, :len(row_ids)] = torch.tensor(row_ids)
        types[i, :len(row_types)] = torch.tensor(row_types)
        mask[i, :len(row_ids)] = 1
    targets = None if labels is None else torch.tensor([labels[row] for row in rows])    # (B,)
    return Batch(ids, mask, types, targets, list(rows), Layout.from_mask(mask, types))


def make_batches(lengths, size, seed=None, tokens=None, chunk=50):
    """Group the rows by length -> batches, lists of row numbers.

    lengths: tokens of each row. size: the most rows in a batch. tokens: the most tokens in a batch,
    with padding, or None; a longer row is a batch of its own. seed: None sorts all rows by length,
    for evaluation; otherwise rows are shuffled, then sorted inside chunks of chunk * size rows.
    """
    if size < 1:
        raise InputError(f"batch size {size}: should be 1 or more")
    order = list(range(len(lengths)))
    if seed is None:
        order.sort(key=lambda row: lengths[row])
        return cut_batches(order, lengths, size, tokens)
    shuffle = random.Random(seed).shuffle
    shuffle(order)
    chunked = []
    for start in range(0, len(order), size * chunk):
        chunked += sorted(order[start:start + size * chunk], key=lambda row: lengths[row])
    batches = cut_batches(chunked, lengths, size, tokens)
    shuffle(batches)
    return batches


def cut_batches(order, lengths, size, tokens):
    """Cut a list of row numbers into batches; arguments as in `make_batches`."""
    batches, current, longest = [], [], 0
    for row in order:
        longest = max(longest, lengths[row])
        too_large = tokens and longest * (len(current) + 1) > tokens
        if current and (len(current) == size or too_large):
            batches.append(current)
            current, longest = [], lengths[row]
        current.append(row)
    return batches + [current] if current else batches
