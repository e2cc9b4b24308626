"""From lists of token ids to tensors: which rows share a batch, and how they are padded.

Rows of similar length share a batch, so there is little padding. Every epoch still mixes the rows
anew: they are shuffled, sorted by length within large chunks only, and the batches are shuffled.
A row is (ids, types), two lists.
"""
import random
from dataclasses import dataclass, replace

import torch

from ..errors import InputError


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a padded batch (B, T) stand.

    It is worked out once, on the CPU: to read a number from a GPU, the CPU must wait for it.

    mask: (B, T) bool; lengths: (B,) tokens of each row; places: (N,) where each token stands in the
    flattened batch; position_ids: (B, T), 0, 1, 2, ... along the tokens of each row. full: there is
    no padding; right_padded: no padding stands before a token; longest: tokens of the longest row;
    token_types: how many types the batch uses, None if it is not known.
    """
    mask: torch.Tensor
    lengths: torch.Tensor
    places: torch.Tensor
    position_ids: torch.Tensor
    full: bool
    right_padded: bool
    longest: int
    token_types: int | None = None

    @classmethod
    def of(cls, mask, types=None):
        """The layout of a mask (B, T), on its device. InputError for a row without a token."""
        device, mask = mask.device, mask.bool().cpu()
        lengths = mask.sum(1)
        if not lengths.all():
            empty = (lengths == 0).nonzero().flatten().tolist()
            raise InputError(f"batch row {empty[0]} holds no token ({len(empty)} such of "
                             f"{len(mask)}): give it a text")
        return cls(mask=mask, lengths=lengths, places=mask.flatten().nonzero().squeeze(1),
                   position_ids=(mask.cumsum(1) - 1).clamp(min=0), full=bool(mask.all()),
                   right_padded=bool((mask[:, 1:] <= mask[:, :-1]).all()),
                   longest=int(lengths.max()),
                   token_types=None if types is None else int(types.max()) + 1).to(device)

    def to(self, device):
        """The same layout on another device."""
        return replace(self, mask=self.mask.to(device), lengths=self.lengths.to(device),
                       places=self.places.to(device), position_ids=self.position_ids.to(device))


@dataclass
class Batch:
    """ids, mask, types: (B, T) int64, mask 1 where a token is; labels: (B,) class numbers or None;
    rows: which row of the data each one is; layout: of the mask, None if it is not known."""
    ids: torch.Tensor
    mask: torch.Tensor
    types: torch.Tensor
    labels: torch.Tensor | None
    rows: list[int]
    layout: Layout | None = None

    def to(self, device):
        """The same batch on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items()
                 if isinstance(value, (torch.Tensor, Layout))}
        return replace(self, **moved)


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
    return Batch(ids, mask, types, picked, list(rows), Layout.of(mask, types))


def make_batches(lengths, size, seed=None, tokens=None, chunk=50):
    """Rows grouped by length -> list of lists of row numbers.

    lengths: tokens of each row. size: most rows of a batch. tokens: most padded tokens of a batch
    (rows x longest row), None for any; a single longer row is a batch of its own. seed: None sorts
    all rows by length, for evaluation; otherwise rows are shuffled, sorted within chunks of `chunk`
    batches, and the batches are shuffled.
    """
    if size < 1:
        raise InputError(f"batch size {size}: should be 1 or more")
    order = list(range(len(lengths)))
    if seed is None:
        order.sort(key=lambda row: lengths[row])
        return cut(order, lengths, size, tokens)
    shuffle = random.Random(seed).shuffle
    shuffle(order)
    chunked = []
    for start in range(0, len(order), size * chunk):
        chunked += sorted(order[start:start + size * chunk], key=lambda row: lengths[row])
    batches = cut(chunked, lengths, size, tokens)
    shuffle(batches)
    return batches


def cut(order, lengths, size, tokens):
    """Rows in order -> batches of at most `size` rows and, if given, `tokens` padded tokens."""
    batches, current, longest = [], [], 0
    for row in order:
        longest = max(longest, lengths[row])
        too_large = tokens and longest * (len(current) + 1) > tokens
        if current and (len(current) == size or too_large):
            batches.append(current)
            current, longest = [], lengths[row]
        current.append(row)
    return batches + [current] if current else batches
