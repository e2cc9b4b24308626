"""bf16: attention in it on a CPU, and a backbone whose weights lie in it, for answering.

Such a backbone takes half the memory, and is faster on a GPU and on a CPU with AMX or
AVX512-BF16. Products are of bf16 numbers; torch adds them up in fp32. Hidden states leave it in
fp32, so that heads, softmax and losses are as before.
"""
import torch
import torch.nn.functional as F


def convert_to_bf16(backbone):
    """Convert the weights of a models.Backbone, in place. What `states`, `forward` and `logits`
    return stays fp32."""
    backbone.to(torch.bfloat16)
    finish, logits = backbone.finish, backbone.logits

    def finish_in_fp32(x):
        return finish(x).float()                                                   # (N, D)

    def logits_in_fp32(hidden):
        return logits(hidden.to(torch.bfloat16)).float()                           # (..., V)
    backbone.finish, backbone.logits = finish_in_fp32, logits_in_fp32


def dot_product_attention(q, k, v, attn_mask=None, **options):
    """F.scaled_dot_product_attention, q: (B, H, T, d), k, v: (B, K, S, d). On a CPU, bf16 is
    computed in fp32: torch's own backward pass in bf16 takes up to 30 times as long."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, **options)
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.float()
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=attn_mask,
                                              **options).to(q.dtype)
