"""A backbone whose weights lie in bf16, for answering: half the memory, and faster on a GPU and on
a CPU that multiplies bf16 (AMX, AVX512-BF16).

Products are of bf16 numbers; torch adds them up in fp32. Hidden states leave the backbone in fp32,
so that heads, softmax and losses are as before. What it writes to files would be bf16, too.
"""
import torch


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
