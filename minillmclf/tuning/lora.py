"""LoRA (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models") and DoRA (Liu et al.
2024, "DoRA: Weight-Decomposed Low-Rank Adaptation"): a frozen matrix and a small trainable update.

The update of W (out, in) is s B A, with A (r, in) and B (out, r): r (in + out) numbers are trained
instead of in * out. B starts at zero, so training starts at the base model. s = alpha / r, or with
`use_rslora` alpha / sqrt(r) (Kalajdzievski 2023). `wrap` puts such updates around a model's linear
layers; `merge` is its inverse. train() and eval() never merge.

Not here: the choice of layers (selection.py), files (peft/), 4-bit matrices (quant.py), embeddings.
"""
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InputError
from ..files import short
from . import selection
from .frozen import widen
from .linear4bit import plain_linear
from .selection import (base_weight, check_unwrapped, find_linears, find_targets, place_beside,
                        values_by_path)

DEFAULT_TARGETS = dict.fromkeys(                                     # as PEFT's
    ("bert", "distilbert", "roberta", "xlm-roberta", "deberta-v2", "llama", "mistral", "qwen2",
     "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text", "t5"), ("q_proj", "v_proj")) | {
         "gpt2": ("qkv_proj",), "modernbert": ("qkv_proj",)}
MAX_ALPHA = 10.0**6       # far above any in use; a huge one makes the logits infinite
ADAPTER_NAME = "default"  # of each adapter, as in PEFT; it is part of parameter names


@dataclass(frozen=True)
class LoraConfig:
    """The numbers of an adapter. dropout: probability on the input of A, in training."""
    rank: int
    alpha: float
    dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False

    def __post_init__(self):
        if not (type(self.rank) is int and self.rank >= 1 and isinstance(self.alpha, (int, float))
                and 0 < self.alpha <= MAX_ALPHA and 0 <= self.dropout < 1):
            raise InputError(f"rank {short(self.rank)}, alpha {short(self.alpha)}, dropout "
                             f"{short(self.dropout)}: rank must be a whole number from 1, alpha "
                             f"above 0 and at most {MAX_ALPHA:g}, dropout from 0 to below 1")

    @property
    def scale(self):
        """s. Trap: without the divisor training works too, with an update r times too large."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


class LoraLinear(nn.Module):
    """y = base(x) + (dropout(x) A^T) (s B)^T. A starts uniform in +-1/sqrt(in), as kaiming_uniform_
    with a = sqrt(5) does, B as 0."""

    def __init__(self, base, config, generator):
        """base: a linear layer, plain or 4-bit; config: LoraConfig; generator: of A's numbers."""
        super().__init__()
        self.base, self.config = base.requires_grad_(False), config
        self.in_features, self.out_features = base.in_features, base.out_features
        A = torch.empty(config.rank, self.in_features, device="cpu")
        nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)
        device, dtype = place_beside(base)
        B = torch.zeros(self.out_features, config.rank, device=device, dtype=dtype)
        self.lora_A = nn.ParameterDict({ADAPTER_NAME: A.to(device, dtype)})                # (r, in)
        self.lora_B = nn.ParameterDict({ADAPTER_NAME: B})                                 # (out, r)
        self.train(base.training)                   # a new module is in training mode: dropout

    @property
    def A(self):
        return self.lora_A[ADAPTER_NAME]

    @property
    def B(self):
        return self.lora_B[ADAPTER_NAME]

    def forward(self, x):
        """(..., in) -> (..., out)."""
        y = self.base(x)
        x = F.dropout(x.to(self.A.dtype), self.config.dropout, self.training)
        return y.add_(self.apply_update(x).to(y.dtype))         # in place: no third (..., out)

    def apply_update(self, x):
        """s B A x, (..., in) -> (..., r) -> (..., out)."""
        return x @ self.A.T @ (self.config.scale * self.B).T

    def update_matrix(self):
        """s B A, (out, in)."""
        return self.config.scale * (self.B @ self.A)

    def updated_weight(self, W):
        """W (out, in) -> W plus what was learned, (out, in)."""
        return W + self.update_matrix()

    @property
    def weight(self):
        """(out, in), the one matrix that equals base and adapter, without dropout."""
        W = base_weight(self.base)
        return self.updated_weight(W).to(W.dtype)


class DoraLinear(LoraLinear):
    """LoRA for the direction of W's rows, and m (out,) for their lengths.

    W' = m (W + s B A) / |W + s B A|, row by row; m starts as the lengths of W's rows. The backward
    pass treats the divisor as a constant (section 4.3 of the paper: cheaper, nearly as good).
    Every forward pass of a layer computes W + s B A, (out, in).
    """

    def __init__(self, base, config, generator):
        super().__init__(base, config, generator)
        self.magnitude = nn.ParameterDict({ADAPTER_NAME: self.row_norms(base_weight(base))})

    @property
    def m(self):
        return self.magnitude[ADAPTER_NAME]

    @torch.no_grad()
    def row_norms(self, W):
        """|W + s B A| of each row, (out,), without gradient; never 0, as others divide by it."""
        rows = W + self.update_matrix()
        return torch.linalg.norm(rows, dim=1).clamp(min=torch.finfo(rows.dtype).tiny)

    def updated_weight(self, W):
        return (self.m / self.row_norms(W))[:, None] * (W + self.update_matrix())

    def forward(self, x):
        """(..., in) -> (..., out): base(x) + (W' - W) x, with dropout in the second term alone."""
        y = self.base(x)
        W, bias = base_weight(self.base).to(self.A.dtype), self.base.bias
        if self.training and self.config.dropout:
            x = F.dropout(x.to(self.A.dtype), self.config.dropout)
            Wx = F.linear(x, W)                                                         # (..., out)
        else:
            Wx = y if bias is None else y - bias           # the same, without a second matmul
        factor = self.m / self.row_norms(W)                                                 # (out,)
        change = (factor - 1) * Wx + factor * self.apply_update(x.to(self.A.dtype))
        return y + change.to(y.dtype)


def wrap(model, targets, config, ranks=None, alphas=None, seed=0):
    """Wrap each target in an adapter -> the paths. The seed decides A.

    targets: as in `find_targets`; ranks, alphas: {regular expression for a path or its end: value}
    for layers that differ from `config`. Freezes the targets' own weights, nothing else. Raises
    InputError before anything has changed.
    """
    layers, paths = find_linears(model), find_targets(model, targets)
    ranks = values_by_path(paths, config.rank, ranks)
    alphas = values_by_path(paths, config.alpha, alphas)
    configs = {path: replace(config, rank=ranks[path], alpha=alphas[path]) for path in paths}
    wrapper = DoraLinear if config.use_dora else LoraLinear
    check_unwrapped(layers, paths, wrapper.__name__)
    generator = torch.Generator().manual_seed(seed)
    for path in paths:
        model.set_submodule(path, wrapper(layers[path], configs[path], generator))
    return paths


@torch.no_grad()
def merge(model, dequantise=False):
    """Add each update to its matrix and unwrap the linear layer -> the paths.

    Inverse of `wrap`. dequantise: make 4-bit layers plain ones; without it they are an InputError.
    """
    layers = find_wrapped(model)
    for path, layer in layers.items():
        if hasattr(layer.base, "dequantised") and not dequantise:
            raise InputError(f"{path} has 4 bits a number, and rounding the sum to them again "
                             "changes the answers: keep the adapter apart, or take a plain Linear "
                             "with merge(model, dequantise=True)")
    for path, layer in layers.items():
        widen(layer)                            # a base in bf16 would round the sum
        base = layer.base
        if hasattr(base, "dequantised"):
            base = plain_linear(base, layer.weight)
        else:
            base.weight.copy_(layer.weight)
        model.set_submodule(path, base)
    return list(layers)


def find_wrapped(model):
    """{path: LoraLinear}; InputError for a model without one."""
    return selection.find_modules(model, LoraLinear, "LoRA")


def trainable_parameters(model):
    """{path: parameter} of the adapters: every A and B, and the magnitudes of DoRA."""
    return {f"{path}.{name}": parameter for path, layer in find_wrapped(model).items()
            for name, parameter in layer.named_parameters() if not name.startswith("base.")}
