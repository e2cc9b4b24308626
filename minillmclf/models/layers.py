"""Maths that several architectures share: packed rows, attention, activations.

Shapes use one alphabet everywhere: B batch rows, T places in a row, N real tokens of the whole batch, H heads,
d width of a head, D width of the model, C classes, V vocabulary.

`Rows` is the one place where padding lives. A model packs its (B, T) input at the door into (N, D); norms, linears and
MLPs then see real tokens only, so padding can neither leak into a result nor cost time. Attention alone needs rows: it
spreads q, k, v out to (B, H, T, d) and packs its result again.

Attention: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.
"""
import math

import torch.nn.functional as F

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

    mask: (B, T), 1 or True where a token is; padding may stand on either side. A row without any token is an error:
    every later answer about it would be made up.
    """

    def __init__(self, mask):
        self.mask = mask.bool()                                   # (B, T)
        self.lengths = self.mask.sum(1)                           # (B,)
        empty = (self.lengths == 0).nonzero().flatten().tolist()
        if empty:
            raise InputError(f"batch row {empty[0]} holds no token ({len(empty)} such of {len(mask)}): give it a text")
        self.full = bool(self.mask.all())
        self.places = self.mask.flatten().nonzero().squeeze(1)    # (N,) where in the flat batch each real token stands
        self.positions = (self.mask.cumsum(1) - 1).flatten()[self.places]   # (N,) 0, 1, 2 ... within each row
        # True where a key may be seen. A padded query still sees its row's real keys, so no softmax is ever empty.
        self.key_mask = None if self.full else self.mask[:, None, None, :]  # (B, 1, 1, T)

    def pack(self, x):
        """(B, T, ...) -> (N, ...), the real tokens laid end to end."""
        x = x.flatten(0, 1)
        return x if self.full else x.index_select(0, self.places)

    def spread(self, x):
        """(N, ...) -> (B, T, ...), zeros where there is no token."""
        if not self.full:
            x = x.new_zeros(self.mask.numel(), *x.shape[1:]).index_copy(0, self.places, x)
        return x.unflatten(0, self.mask.shape)


def split_heads(x, rows, heads):
    """(N, H*d) packed -> (B, H, T, d)."""
    return rows.spread(x).unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x, rows):
    """(B, H, T, d) -> (N, H*d) packed."""
    return rows.pack(x.transpose(1, 2).flatten(2))


def attention(q, k, v, rows, heads, dropout):
    """softmax(q k^T / sqrt(d)) v, each token over the real tokens of its own row.

    q, k, v: (N, H*d) packed. dropout: probability on the attention weights, 0.0 outside training. -> (N, H*d).
    """
    q, k, v = (split_heads(x, rows, heads) for x in (q, k, v))                        # (B, H, T, d)
    return merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=rows.key_mask, dropout_p=dropout), rows)


def attention_by_hand(q, k, v, rows, heads):
    """What `attention` computes, a step a line (no dropout). Slower; a test holds the two equal."""
    q, k, v = (split_heads(x, rows, heads) for x in (q, k, v))                        # (B, H, T, d)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])                         # (B, H, T, T)
    scores = scores.masked_fill(~rows.mask[:, None, None, :], float("-inf"))
    return merge_heads(scores.softmax(-1) @ v, rows)                                  # (N, H*d)
