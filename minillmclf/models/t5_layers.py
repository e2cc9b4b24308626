"""The blocks and stacks of T5 (t5.py): attention with biases in place of positions, MLPs with and
without a gate, cross-attention.

Raffel et al. 2019, section 2.1; the gate: Shazeer 2020, "GLU Variants Improve Transformer". A line
marked "differs" replaces one of the parent class.
"""
import math

import torch
from torch import nn

from .half_attention import dot_product_attention
from .layers import ACTIVATIONS, RMSNorm


def distance_buckets(distance, count, max_distance):
    """Distances from 0 up -> buckets 0 .. count - 1.

    Half of the buckets hold one distance each, the others ranges that grow on a log scale. The last
    one holds all distances from `max_distance` on.
    """
    exact = count // 2
    share = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = exact + (share * (count - exact)).long()
    return torch.where(distance < exact, distance, far.clamp(max=count - 1))


def biased_attention(q, k, v, bias, dropout):
    """softmax(q k^T + bias) v, without 1 / sqrt(d): T5's initial weights are smaller instead.

    q: (B, H, T, d), k and v: (B, H, S, d); bias: added to the scores, -inf where a key must not be
    seen, or None; dropout: probability on the attention weights. -> (B, H, T, d)
    """
    return dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=1.0)


class T5Attention(nn.Module):
    """Attention to the same text or to another; heads of any width."""

    def __init__(self, c):
        super().__init__()
        self.heads, self.attention_dropout = c["num_heads"], c["dropout_rate"]
        D, inner = c["d_model"], c["num_heads"] * c["d_kv"]                      # inner = H*d
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(D, inner, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(inner, D, bias=False)

    def keys_values(self, x, rows):
        """x: (N, D) -> the keys and values that queries of `rows` look at, (B, H, S, d) each."""
        flat = self.k_proj(x), self.v_proj(x)
        return rows.keys_values(*(vectors.unflatten(-1, (self.heads, -1)) for vectors in flat))

    def forward(self, x, rows, k, v, bias):
        """x: (M, D), the queries of `rows`; k, v: (B, H, S, d); bias: added to the scores q k^T,
        (B or 1, 1 or H, T or 1, S), or None -> (M, D)."""
        q = rows.pad_heads(self.q_proj(x).unflatten(-1, (self.heads, -1)))       # (B, H, T, d)
        mixed = biased_attention(q, k, v, bias, self.attention_dropout if self.training else 0.0)
        return self.o_proj(rows.merge_heads(mixed))


class T5Layer(nn.Module):
    """A block of the encoder: attention over the text, then an MLP at each token."""

    def __init__(self, c):
        super().__init__()
        D, inner, eps = c["d_model"], c["d_ff"], c["layer_norm_epsilon"]
        self.attention, self.attention_norm = T5Attention(c), RMSNorm(D, eps)
        self.up_proj, self.down_proj = (nn.Linear(*size, bias=False)
                                        for size in ((D, inner), (inner, D)))
        self.mlp_norm, self.dropout = RMSNorm(D, eps), nn.Dropout(c["dropout_rate"])
        self.activation = ACTIVATIONS[c["dense_act_fn"]]

    def attend(self, x, rows, bias):
        """x: (N, D) -> (M, D)."""
        normed = self.attention_norm(x)
        k, v = self.attention.keys_values(normed, rows)                          # (B, H, S, d)
        mixed = self.attention(rows.queries(normed), rows, k, v, bias)           # (M, D)
        return rows.queries(x) + self.dropout(mixed)

    def mlp_inner(self, x):
        """x: (M, D) -> the inner values of the MLP, (M, F)."""
        return self.activation(self.up_proj(x))

    def mlp(self, x):
        """x: (M, D) -> (M, D)."""
        inner = self.dropout(self.mlp_inner(self.mlp_norm(x)))                   # (M, F)
        return x + self.dropout(self.down_proj(inner))

    def forward(self, x, rows, bias):
        """x: (N, D) -> (M, D)."""
        return self.mlp(self.attend(x, rows, bias))


class GatedLayer(T5Layer):
    """The block of T5 1.1 and UL2: the MLP's inner values are multiplied by a gate."""

    def __init__(self, c):
        super().__init__(c)
        self.gate_proj = nn.Linear(c["d_model"], c["d_ff"], bias=False)

    def mlp_inner(self, x):
        """x: (M, D) -> the inner values times their gates, (M, F)."""
        return self.activation(self.gate_proj(x)) * self.up_proj(x)              # differs


class DecoderLayer(T5Layer):
    """A block of the decoder: self-attention, cross-attention to the source, MLP."""

    def __init__(self, c):
        super().__init__(c)
        self.cross_attention = T5Attention(c)
        self.cross_norm = RMSNorm(c["d_model"], c["layer_norm_epsilon"])

    def forward(self, x, rows, bias, source, source_bias):
        """x: (N, D) -> (M, D). source: its keys and values, (B, H, S, d) each; source_bias:
        (B, 1, 1, S) or None."""
        x = self.attend(x, rows, bias)
        mixed = self.cross_attention(self.cross_norm(x), rows, *source, source_bias)   # (M, D)
        return self.mlp(x + self.dropout(mixed))                                 # differs


class GatedDecoderLayer(GatedLayer, DecoderLayer):
    """A decoder's block with a gated MLP."""


class EncoderStack(nn.Module):
    """A stack of blocks with one table of biases for all of them, and a norm at the end."""

    def __init__(self, c, layer, count):
        super().__init__()
        self.buckets = c["relative_attention_num_buckets"]
        self.max_distance = c["relative_attention_max_distance"]
        self.relative_bias = nn.Embedding(self.buckets, c["num_heads"])
        self.layers = nn.ModuleList(layer(c) for _ in range(count))
        self.final_norm = RMSNorm(c["d_model"], c["layer_norm_epsilon"])
        self.dropout = nn.Dropout(c["dropout_rate"])

    def attention_bias(self, rows):
        """What is added to scores, (B or 1, H, T, S); half of the buckets are for later keys."""
        distance, half = rows.distance(), self.buckets // 2                      # (B or 1, T, S)
        bucket = distance_buckets(distance.abs(), half, self.max_distance) + half * (distance < 0)
        bias = self.relative_bias(bucket).permute(0, 3, 1, 2)                    # (B or 1, H, T, S)
        mask = rows.padding_mask
        return bias if mask is None else bias.masked_fill(~mask, -math.inf)

    def forward(self, x, rows):
        """x: (N, D) -> (N, D)."""
        bias = self.attention_bias(rows)
        for layer in self.layers:
            x = layer(x, rows, bias)
        return self.dropout(self.final_norm(x))


class DecoderStack(EncoderStack):
    """A stack with cross-attention, by `run`. No later key is seen: all buckets are for earlier."""

    def attention_bias(self, rows):
        distance = rows.distance().clamp(min=0)                                  # differs
        bucket = distance_buckets(distance, self.buckets, self.max_distance)
        bias = self.relative_bias(bucket).permute(0, 3, 1, 2)                    # (B or 1, H, T, S)
        return bias.masked_fill(~rows.causal_mask(), -math.inf)

    def run(self, layers, x, rows, sources, source_mask):
        """x: (N, D) through some of the blocks -> (M, D). sources: {block: its k and v of the
        source}; source_mask: (B, 1, 1, S), or None if nothing is padded."""
        bias, source_bias = self.attention_bias(rows), None
        if source_mask is not None:
            source_bias = x.new_zeros(source_mask.shape).masked_fill(~source_mask, -math.inf)
        for layer in layers:
            x = layer(x, rows, bias, sources[layer], source_bias)
        return x
