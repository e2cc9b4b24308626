"""Maths that several architectures share: packed rows, masks, attention, RMSNorm, activations.

Shapes use one alphabet everywhere: B batch rows, T places in a row, S places that may be looked at, N real tokens of
the whole batch, H heads, K heads of keys and values, d width of a head, D width of the model, C classes, V vocabulary.

`Rows` is the one place where padding lives. A model packs its (B, T) input at the door into (N, D); norms, linears and
MLPs then see real tokens only, so padding can neither leak into a result nor cost time. Attention alone needs rows: it
spreads q, k, v out to (B, H, T, d) and packs its result again.

A classifier often reads one token of a text, the first or the last, or the few tokens of an answer at its end. Then all that
follows the last attention is needed at these alone: the last block works on `FewEach`, whose queries are few a row and whose
keys are still all tokens.

Attention: Vaswani et al. 2017, "Attention Is All You Need", section 3.2. Heads that share keys and values: Ainslie et
al. 2023 (GQA). RMSNorm: Zhang and Sennrich 2019.
"""
import math
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InputError

ACTIVATIONS = {                                    # names as config.json spells them
    "gelu": F.gelu,                                # exact, with erf
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


class Rows:
    """Knows which of the (B, T) places hold tokens, and moves tensors between (B, T, ...) and (N, ...).

    mask: (B, T), 1 or True where a token is; padding may stand on either side. A row without any token is an error.
    """

    read = None                 # what of a row is read behind the last block: "first", "last", its last `read` tokens; None: all

    def __init__(self, mask):
        self.mask = mask.bool()                                   # (B, T)
        self.lengths = self.mask.sum(1)                           # (B,)
        refuse_empty(self.mask)
        self.full = bool(self.mask.all())
        self.places = self.mask.flatten().nonzero().squeeze(1)    # (N,) where in the flat batch each real token stands
        self.grid = (self.mask.cumsum(1) - 1).clamp(min=0)        # (B, T) 0, 1, 2 ... along the tokens of each row
        self.positions = self.grid.flatten()[self.places]         # (N,)
        # True where a key may be seen. A padded query still sees its row's real keys, so no softmax is ever empty.
        self.key_mask = None if self.full else self.mask[:, None, None, :]  # (B, 1, 1, T)
        self.key_real, self.key_grid = self.mask, self.grid       # (B, S), (B, S) of what attention may look at
        self.alike = self.full                                    # one mask fits all rows
        self.causal_masks = {}

    def pack(self, x):
        """(B, T, ...) -> (N, ...), the real tokens laid end to end."""
        x = x.flatten(0, 1)
        return x if self.full else x.index_select(0, self.places)

    def spread(self, x):
        """(N, ...) -> (B, T, ...), zeros where there is no token."""
        if not self.full:
            x = x.new_zeros(self.mask.numel(), *x.shape[1:]).index_copy(0, self.places, x)
        return x.unflatten(0, self.mask.shape)

    def last(self, x):
        """(N, ...) -> (B, ...), each row's last token."""
        return x[self.lengths.cumsum(0) - 1]

    def behind(self):
        """(B, T, S): how many tokens before the query a key stands; below 0 if after it. B is 1 if all rows are alike."""
        rows = slice(0, 1) if self.alike else slice(None)
        return self.grid[rows, :, None] - self.key_grid[rows, None, :]

    def causal(self, window=math.inf):
        """(B, 1, T, S), True where a query may look: at itself and at the window - 1 tokens before it, never ahead.

        A padded query has the position of a real neighbour and sees what that one sees, so no softmax is ever empty.
        """
        if window not in self.causal_masks:
            behind = self.behind()
            seen = (behind >= 0) & (behind < window) & self.key_real[:len(behind), None, :]
            self.causal_masks[window] = self.limit(seen.unsqueeze(1))
        return self.causal_masks[window]

    def limit(self, seen):
        """A causal mask (B, 1, T, S), with what these rows forbid besides: here nothing (tree.py has more)."""
        return seen

    @cached_property
    def from_first(self):
        """Does every text begin at the first place, with padding behind it alone?"""
        return self.full or bool((self.mask[:, 1:] <= self.mask[:, :-1]).all())

    def plain(self, window):
        """Is the causal mask a mere triangle? Where every text begins at the first place, what no query may see stands behind
        it, padding too; attention then needs no mask, and computes half as much."""
        return window >= self.mask.shape[1] and self.from_first

    def recall(self, k, v):
        """All keys and values that this layer's queries look at, (B, K, S, d) each: here, those of the rows themselves.

        A cache (cache.py) adds those of earlier calls.
        """
        return k, v

    def through(self, layers):
        """Each block and the rows that it works on: these, but the last block on `FewEach` if only few tokens are read."""
        for number, layer in enumerate(layers, 1):
            yield layer, FewEach(self) if self.read and number == len(layers) else self

    def asking(self, x):
        """(N, ...) -> the tokens that ask and go on to the next block: here all."""
        return x

    @property
    def whole(self):
        """The rows that hold the keys and values: here the same."""
        return self

    def read_from(self, x):
        """What the last block gives -> (B, T, ...), or (B, n, ...) if n tokens a row are read."""
        return self.spread(x) if self.read is None else x.unflatten(0, (len(self.mask), -1))


class FewEach(Rows):
    """Rows of which n tokens each go on: queries are (B, n), keys and values still those of the whole rows, (B, S).

    whole: Rows that say in `read` which tokens these are. Of a row with fewer than n tokens the first stands in for those
    that it has not. Exact, since a block mixes tokens in its attention alone.
    """

    whole = None

    def __init__(self, whole):
        count = 1 if whole.read in ("first", "last") else whole.read
        super().__init__(whole.mask.new_ones(len(whole.mask), count))                         # no padding
        ends = whole.lengths.cumsum(0).unsqueeze(1)                                           # (B, 1) in the packed rows
        starts, back = ends - whole.lengths.unsqueeze(1), torch.arange(count, 0, -1, device=ends.device)
        chosen = starts if whole.read == "first" else (ends - back).maximum(starts)           # (B, n)
        self.chosen = chosen.flatten()                                                        # (B * n,) of the N tokens
        self.positions = whole.positions[self.chosen]                                         # (B * n,)
        self.grid = self.positions.unflatten(0, chosen.shape)                                 # (B, n)
        self.whole, self.alike = whole, whole.alike
        self.key_mask, self.key_real, self.key_grid = whole.key_mask, whole.key_real, whole.key_grid

    def asking(self, x):
        """(N, ...) -> (B * n, ...)."""
        return x.index_select(0, self.chosen)

    def limit(self, seen):
        return self.whole.limit(seen)

    def plain(self, window):
        return False                                        # its queries are not the first of the rows

    def recall(self, k, v):
        return self.whole.recall(k, v)


def refuse_empty(mask):
    """InputError if a row of the mask (B, T) holds no token: every later answer about it would be made up."""
    empty = (mask.sum(1) == 0).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"batch row {empty[0]} holds no token ({len(empty)} such of {len(mask)}): give it a text")


def split_heads(x, rows, heads):
    """(N, H*d) packed -> (B, H, T, d)."""
    return rows.spread(x).unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x, rows):
    """(B, H, T, d) -> (N, H*d) packed."""
    return rows.pack(x.transpose(1, 2).flatten(2))


def attention(q, k, v, rows, heads, dropout):
    """softmax(q k^T / sqrt(d)) v, each token over the real tokens of its own row.

    q, k, v: (N, H*d) packed, q of the tokens that ask. dropout: probability on the attention weights, 0.0 outside training.
    -> (N, H*d).
    """
    q, (k, v) = split_heads(q, rows, heads), (split_heads(x, rows.whole, heads) for x in (k, v))      # (B, H, T, d)
    k, v = rows.recall(k, v)                                                          # (B, H, S, d)
    return merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=rows.key_mask, dropout_p=dropout), rows)


def attention_by_hand(q, k, v, rows, heads):
    """What `attention` computes, a step a line (no dropout). Slower; a test holds the two equal."""
    q, k, v = (split_heads(x, rows, heads) for x in (q, k, v))                        # (B, H, T, d)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])                         # (B, H, T, T)
    scores = scores.masked_fill(~rows.mask[:, None, None, :], float("-inf"))
    return merge_heads(scores.softmax(-1) @ v, rows)                                  # (N, H*d)


def heads_of(q, k, v, rows):
    """Packed heads (N, H or K, d) -> q (B, H, T, d), and all k and v that it looks at, (B, K, S, d) each."""
    q, k, v = (at.spread(x).transpose(1, 2) for at, x in ((rows, q), (rows.whole, k), (rows.whole, v)))
    return q, *rows.recall(k, v)


def causal_attention(q, k, v, rows, window=math.inf, dropout=0.0, scale=None):
    """As `attention`, but a token sees only itself and the window - 1 tokens before it.

    q: (N, H, d), k and v: (N, K, d) packed, q of the tokens that ask; with K < H, each H/K query heads in turn share a head
    of keys and values. scale: what q k^T is multiplied with, default 1 / sqrt(d). -> (N, H*d).
    """
    q, k, v = heads_of(q, k, v, rows)                                                 # (B, H, T, d), (B, K, S, d)
    plain = rows.plain(window)
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=None if plain else rows.causal(window), is_causal=plain,
                                          dropout_p=dropout, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return merge_heads(seen, rows)


def causal_attention_by_hand(q, k, v, rows, window=math.inf, scale=None):
    """What `causal_attention` computes, a step a line (no dropout). Slower; a test holds the two equal."""
    q, k, v = (rows.spread(x).transpose(1, 2) for x in (q, k, v))                     # (B, H or K, T, d)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))     # (B, H, T, d)
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)    # (B, H, T, T)
    scores = scores.masked_fill(~rows.causal(window), float("-inf"))
    return merge_heads(scores.softmax(-1) @ v, rows)                                  # (N, H*d)


def root_mean_square_norm(x, eps):
    """x / sqrt(mean(x^2) + eps) over the last dimension, in fp32 at least, in the dtype of x."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm times a learned weight: a layer norm that neither centres nor shifts."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return self.weight * root_mean_square_norm(x, self.eps)
