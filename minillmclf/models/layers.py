"""Maths that several architectures share: padding, masks, attention, RMSNorm, activations.

Shapes use one alphabet everywhere: B rows of a batch, T tokens of a padded row, S keys of a padded
row (usually T), N real tokens of the whole batch, M of them that are queries (usually all N), H
heads, K heads of keys and values, d width of a head, D width of the model, C classes, V vocabulary.

Padding is handled in one class, `Rows`. A model first removes it: token ids (B, T) become vectors
(N, D). Norms, linear layers and MLPs see real tokens only, so padding can neither leak into a
result nor cost time. Attention alone needs rows: it pads queries, keys and values to (B, H, T, d),
and removes the padding from its result again.

Attention: Vaswani et al. 2017, "Attention Is All You Need", section 3.2. Heads that share keys and
values: Ainslie et al. 2023 (GQA). RMSNorm: Zhang and Sennrich 2019.
"""
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ..text.batch import Layout
from .half_attention import dot_product_attention

ACTIVATIONS = {                                    # by their names in config.json
    "gelu": F.gelu,                                # exact, with erf
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


class Rows:
    """Where the real tokens of a padded batch stand, and which keys each query may attend to.

    mask: (B, T), 1 where a token is, with padding on either side. layout: the text.batch.Layout of
    the mask, if it is known. InputError for a row without a token.

    lengths: (B,), tokens of each row; positions: (N,), of the tokens in their rows, all < longest.
    Queries have position_ids (B, T). Keys have key_position_ids (B, S); key_mask (B, S) says which
    of them are tokens. Here all tokens are both; subclasses have fewer queries or more keys.
    """

    def __init__(self, mask, layout=None):
        layout = Layout.from_mask(mask) if layout is None else layout
        self.layout, self.mask, self.no_padding = layout, layout.mask, layout.no_padding
        self.lengths, self.longest = layout.lengths, layout.longest
        self.position_ids = layout.position_ids
        self.positions = self.unpad(self.position_ids)                          # (N,)
        self.key_mask, self.key_position_ids = self.mask, self.position_ids
        self.uniform = self.no_padding   # are all rows alike, so that one (1, T, S) mask fits all?
        self.causal_masks = {}           # window -> mask, the same in each layer

    def unpad(self, x):
        """(B, T, ...) -> (N, ...), the real tokens of all rows end to end."""
        x = x.flatten(0, 1)
        return x if self.no_padding else x.index_select(0, self.layout.indices)

    def pad(self, x):
        """(N, ...) -> (B, T, ...), zeros where there is no token."""
        if not self.no_padding:
            x = x.new_zeros(self.mask.numel(), *x.shape[1:]).index_copy(0, self.layout.indices, x)
        return x.unflatten(0, self.mask.shape)

    def final_tokens(self, x):
        """(N, ...) -> (B, ...), the last token of each row."""
        return x[self.lengths.cumsum(0) - 1]

    def queries(self, x):
        """(N, ...) -> (M, ...), the tokens that are queries: here all of them, M = N."""
        return x

    def pad_heads(self, x):
        """Vectors of the queries, or of all tokens: (N, H, d) -> (B, H, T, d)."""
        return self.pad(x).transpose(1, 2)

    def merge_heads(self, x):
        """(B, H, T, d) -> (N, H*d)."""
        return self.unpad(x.transpose(1, 2).flatten(2))

    def keys_values(self, k, v):
        """k, v: (N, K, d) -> the keys and values that attention reads, (B, K, S, d) each."""
        return self.pad_heads(k), self.pad_heads(v)

    def distance(self):
        """(B, T, S), position of query minus position of key; (1, T, S) if rows are uniform."""
        rows = slice(0, 1) if self.uniform else slice(None)
        return self.position_ids[rows, :, None] - self.key_position_ids[rows, None, :]

    @property
    def padding_mask(self):
        """(B, 1, 1, S), True where a key is a token; None if all are.

        A query at padding sees the real keys of its row: a softmax over no keys would be NaN.
        """
        return None if self.uniform else self.key_mask[:, None, None, :]

    def causal_mask(self, window=math.inf):
        """(B or 1, 1, T, S), True for a key that a query sees: itself and the window - 1 before it.

        A query at padding has the position of the token beside the padding, and sees the same keys.
        """
        if window not in self.causal_masks:
            self.causal_masks[window] = self.compute_causal_mask(window)
        return self.causal_masks[window]

    def compute_causal_mask(self, window):
        """Compute what `causal_mask` returns."""
        distance = self.distance()                                           # (B or 1, T, S)
        is_token = self.key_mask[:len(distance), None, :]                    # (B or 1, 1, S)
        return ((distance >= 0) & (distance < window) & is_token).unsqueeze(1)

    def is_triangle(self, window):
        """Is the mask a plain triangle? Then is_causal=True replaces it, at half the work."""
        # It is if all padding is on the right, where no token sees it, and no row is longer than
        # the window.
        return self.layout.right_padded and window >= self.mask.shape[1]


def attention(q, k, v, rows, dropout=0.0):
    """softmax(q k^T / sqrt(d)) v, where each query sees the real tokens of its own row.

    q: (M, H, d); k, v: (N, H, d); dropout: probability that an attention weight becomes 0, 0.0
    outside training. -> (M, H*d)
    """
    q, (k, v) = rows.pad_heads(q), rows.keys_values(k, v)        # (B, H, T, d), (B, H, S, d)
    return rows.merge_heads(dot_product_attention(
        q, k, v, attn_mask=rows.padding_mask, dropout_p=dropout))


def causal_attention(q, k, v, rows, window=math.inf, dropout=0.0, scale=None):
    """As `attention`, but a token sees only itself and the window - 1 tokens before it.

    q: (M, H, d); k, v: (N, K, d). If K < H, the first H/K heads of queries share the first head of
    keys and values, and so on. scale: factor of q k^T, 1 / sqrt(d) if None. -> (M, H*d)
    """
    q, (k, v) = rows.pad_heads(q), rows.keys_values(k, v)        # (B, H, T, d), (B, K, S, d)
    triangle = rows.is_triangle(window)
    return rows.merge_heads(dot_product_attention(
        q, k, v, attn_mask=None if triangle else rows.causal_mask(window), is_causal=triangle,
        dropout_p=dropout, scale=scale, enable_gqa=q.shape[1] != k.shape[1]))


def attention_by_hand(q, k, v, rows, seen=None, scale=None):
    """What the two functions above compute, step by step but slower; a test compares them.

    seen: (B, 1, T, S), True for the keys that a query sees; None: all real tokens of its row.
    """
    q, (k, v) = rows.pad_heads(q), rows.keys_values(k, v)        # (B, H, T, d), (B, K, S, d)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))  # (B, H, S, d)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = q @ k.transpose(-2, -1) * scale                              # (B, H, T, S)
    seen = rows.key_mask[:, None, None, :] if seen is None else seen
    scores = scores.masked_fill(~seen, float("-inf"))
    return rows.merge_heads(scores.softmax(-1) @ v)                       # (M, H*d)


def root_mean_square_norm(x, eps):
    """x / sqrt(mean(x^2) + eps) over the last dimension, in fp32 at least -> the dtype of x."""
    upcast = x.to(torch.promote_types(x.dtype, torch.float32))
    return (upcast * torch.rsqrt(upcast.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm times a weight: a layer norm that neither centres nor shifts."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return self.weight * root_mean_square_norm(x, self.eps)
