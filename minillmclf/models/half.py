"""bf16, 16-bit numbers with the range of fp32, used for frozen matrices or for a whole backbone.

Frozen matrices in bf16 take half the memory; `product` computes with them in fp32, so that
training beside them is as beside the same rounded numbers in fp32 (tuning/frozen.py chooses them).

For answering, a whole backbone may be bf16. Such a backbone is faster on a GPU and on a CPU with
AMX or AVX512-BF16. Products are of bf16 numbers; torch adds them up in fp32. Hidden states leave it
in fp32, so that heads, softmax and losses are as before.
"""
import torch
import torch.nn.functional as F
from torch import nn


MAX_WIDENED = 2**22      # numbers of a matrix that lie in fp32 at a time, 16 MB


# ---------------------------------------------------------------------------- matrices in bf16

def row_blocks(W):
    """W (out, in) -> slices of its rows, each of at most MAX_WIDENED numbers, or of one row."""
    step = max(1, MAX_WIDENED // W.shape[1])
    return [slice(first, first + step) for first in range(0, len(W), step)]


class WidenedProduct(torch.autograd.Function):
    """x W^T + b for a frozen W of fewer bits than x, with gradients for x and b.

    The forward and the backward pass each widen W, a block of rows at a time, and drop it: a
    product by autograd would keep the widened matrix of every layer until the backward pass. Most
    matrices are one block; word embeddings that give logits are many.
    """

    @staticmethod
    def forward(ctx, x, W, bias):
        ctx.save_for_backward(W)
        blocks = row_blocks(W)
        if len(blocks) == 1:
            return F.linear(x, W.to(x.dtype), bias)                                    # (..., out)
        y = x.new_empty(*x.shape[:-1], len(W))                                         # (..., out)
        for rows in blocks:
            y[..., rows] = F.linear(x, W[rows].to(x.dtype), None if bias is None else bias[rows])
        return y

    @staticmethod
    def backward(ctx, grad):
        """grad (..., out) -> gradients of x (..., in), of W (None), of the bias (out,)."""
        (W,), grad_x, grad_bias = ctx.saved_tensors, None, None
        if ctx.needs_input_grad[0]:
            for rows in row_blocks(W):
                part = grad[..., rows] @ W[rows].to(grad.dtype)                         # (..., in)
                grad_x = part if grad_x is None else grad_x.add_(part)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)                            # (out,)
        return grad_x, None, grad_bias


def product(x, W, bias=None):
    """x W^T + b, x: (..., in), W: (out, in), bias: (out,) or None -> (..., out).

    Where W is bf16 and x is fp32, W is widened to fp32 for this product. The result equals that of
    an fp32 matrix with the same numbers: to the bit for up to MAX_WIDENED of them, else up to
    rounding. Under autocast both take autocast's dtype.
    """
    is_widened = W.dtype == torch.bfloat16 and x.dtype != torch.bfloat16
    if not is_widened or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, W, bias)
    return WidenedProduct.apply(x, W, bias)


class HalfLinear(nn.Linear):
    """A linear layer with a frozen bf16 weight (out, in). Its bias keeps its precision."""

    def __init__(self, weight, bias=None):
        nn.Module.__init__(self)                    # that of nn.Linear would draw random numbers
        self.out_features, self.in_features = weight.shape
        self.weight, self.bias = nn.Parameter(weight.bfloat16(), requires_grad=False), bias

    def forward(self, x):
        """(..., in) -> (..., out)."""
        return product(x, self.weight, self.bias)


class HalfEmbedding(nn.Embedding):
    """Embeddings with a frozen bf16 table (V, D). Vectors leave it in fp32, or as they are where
    the whole backbone is bf16 (answers_in_bf16)."""

    answers_in_bf16 = False

    def __init__(self, weight):
        super().__init__(*weight.shape, _weight=weight.bfloat16(), _freeze=True)

    def forward(self, ids):
        """(...) -> (..., D)."""
        vectors = super().forward(ids)
        is_half = vectors.dtype == torch.bfloat16
        return vectors.float() if is_half and not self.answers_in_bf16 else vectors


# ---------------------------------------------------------------------------- a whole backbone

def convert_to_bf16(backbone):
    """Convert a models.Backbone to bf16, in place. `finish` and `logits` are wrapped, so that
    `states`, `forward` and `logits` still return fp32."""
    backbone.to(torch.bfloat16)
    for module in backbone.modules():
        if isinstance(module, HalfEmbedding):
            module.answers_in_bf16 = True
    finish, logits = backbone.finish, backbone.logits

    def finish_in_fp32(x):
        return finish(x).float()                                                   # (N, D)

    def logits_in_fp32(hidden):
        return logits(hidden.to(torch.bfloat16)).float()                           # (..., V)
    backbone.finish, backbone.logits = finish_in_fp32, logits_in_fp32
