"""Attention, as torch computes it; but bf16 on a CPU, where torch is slow, takes another way.

bf16 is what autocast gives for --precision bf16, and what a backbone of half.py has.
"""
import math

import torch
import torch.nn.functional as F


def dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, **options):
    """F.scaled_dot_product_attention, q: (B, H, T, d), k, v: (B, K, S, d) -> (B, H, T, d).

    Trap: on a CPU, torch's own backward pass in bf16 takes up to 30 times as long as in fp32. So
    bf16 inputs are computed in fp32 there; with dropout, by plain products in bf16.
    """
    if v.device.type != "cpu" or v.dtype != torch.bfloat16:  # q, k may be fp32: they were rotated
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p,
                                              **options)
    if dropout_p:
        return attention_with_dropout(q, k, v, attn_mask, dropout_p, **options)
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.float()
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=attn_mask,
                                              **options).to(v.dtype)


def attention_with_dropout(q, k, v, attn_mask, dropout_p, is_causal=False, **options):
    """As `dot_product_attention`, step by step in the dtype of v. Each query must see a key.
    torch has no faster way: with dropout it too computes all scores. options: scale, enable_gqa."""
    scale = options.get("scale") or 1 / math.sqrt(q.shape[-1])
    if options.get("enable_gqa"):                                              # (B, H, S, d)
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q.to(v.dtype) * scale) @ k.to(v.dtype).mT                        # (B, H, T, S)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None and attn_mask.is_floating_point():
        scores = scores + attn_mask.to(scores.dtype)
    elif attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    return dropout(scores.softmax(-1), dropout_p) @ v


def dropout(x, p):
    """F.dropout on a CPU in a sixth of its time -> x with zeros, the others divided by 1 - p.

    torch draws a random number for each element. Here one of 64 bits serves four elements, so p,
    from 0 to below 1, is rounded to a multiple of 1/65536.
    """
    drawn = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64).random_(-2**63, None)
    numbers = drawn.view(torch.int16)[:x.numel()].view(x.shape)                # -32768 to 32767
    num_dropped = min(round(p * 2**16), 2**16 - 1)                 # of the 65536 possible numbers
    kept = numbers >= num_dropped - 2**15
    return x * kept.to(x.dtype).mul_(1 / (1 - p))
