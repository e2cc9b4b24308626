"""LoRA (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models") and DoRA (Liu et al. 2024, "DoRA:
Weight-Decomposed Low-Rank Adaptation"): a frozen matrix and a small update of it that learns.

The update of W (out, in) is s B A, with A (r, in) and B (out, r): r (in + out) numbers learn instead of in * out. B
starts at zero, so training starts at the model as it was. s = alpha / r, or alpha / sqrt(r), "rank-stabilised"
(Kalajdzievski 2023). `wrap` puts such updates around a model's linear layers, `merge` is its inverse. train() and eval()
never merge.

Not here: how layers are named (selection.py), adapters in files (peft_format.py), 4-bit matrices (quant.py), LoRA on
embeddings, the sum of several adapters. What else learns, the head first of all, is the caller's to say: a new head that
is left frozen stays random.
"""
import contextlib
import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InputError
from ..files import short
from .selection import base_weight, find_targets, is_plain, linears, per_path, replace

DEFAULT_TARGETS = dict.fromkeys(("bert", "roberta", "deberta-v2", "llama", "mistral", "gemma", "gemma2", "gemma3",
                                 "gemma3_text", "t5"), ("q_proj", "v_proj")) | {"gpt2": ("qkv_proj",)}    # as PEFT's


MOST_ALPHA = 10.0**6  # far above any that is used; 1e308 makes answers infinite


@dataclass(frozen=True)
class Numbers:
    """What one adapter is made with. dropout: probability on the input of A, in training."""
    rank: int
    alpha: float
    dropout: float = 0.0
    rank_stabilised: bool = False

    def __post_init__(self):
        if not (type(self.rank) is int and self.rank >= 1 and isinstance(self.alpha, (int, float))
                and 0 < self.alpha <= MOST_ALPHA and 0 <= self.dropout < 1):
            raise InputError(f"rank {short(self.rank)}, alpha {short(self.alpha)}, dropout "
                             f"{short(self.dropout)}: rank must "
                             f"be a whole number from 1, alpha above 0 and at most {MOST_ALPHA:g}, "
                             f"dropout from 0 to below 1")

    @property
    def scale(self):
        """s. Trap: alpha alone trains as well, but with an update r times as large as the papers' alpha means."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


class LoraLinear(nn.Module):
    """y = base(x) + (dropout(x) A^T) (s B)^T, with the A and B of the active adapter; active None: y = base(x)."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.lora_A, self.lora_B, self.numbers = nn.ParameterDict(), nn.ParameterDict(), {}
        self.active = None                                           # an adapter's name
        self.register_buffer("unmerged", None, persistent=False)     # while merged: base.weight as it was
        self.train(base.training)                                    # else a wrapped model in eval mode has dropout

    def add(self, name, numbers, generator):
        """A new adapter, active from now on: A uniform within 1 / sqrt(in), B zero."""
        W, A = base_weight(self.base), torch.empty(numbers.rank, self.in_features, device="cpu")
        nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)
        dtype = torch.promote_types(W.dtype, torch.float32)          # 16 bits would round small steps away
        self.lora_A[name] = nn.Parameter(A.to(W.device, dtype))                                             # (r, in)
        self.lora_B[name] = nn.Parameter(W.new_zeros(self.out_features, numbers.rank, dtype=dtype))         # (out, r)
        self.numbers[name], self.active = numbers, name

    def forward(self, x):
        """(..., in) -> (..., out)."""
        y = self.base(x)
        if self.idle():
            return y
        A, B, numbers = self.lora_A[self.active], self.lora_B[self.active], self.numbers[self.active]
        x = F.dropout(x.to(A.dtype), numbers.dropout, self.training)
        return y + (x @ A.T @ (numbers.scale * B).T).to(y.dtype)     # (..., in) -> (..., r) -> (..., out)

    def idle(self):
        """Is base(x) all there is to do?"""
        if self.unmerged is not None and self.training:
            raise InputError("merged LoRA adapters cannot learn: unmerge(model) before training")
        return self.active is None or self.unmerged is not None

    def update(self):
        """s B A, (out, in)."""
        return self.numbers[self.active].scale * (self.lora_B[self.active] @ self.lora_A[self.active])

    def tuned(self, W):
        """(out, in), what the active adapter makes of W."""
        return W + self.update()

    @property
    def weight(self):
        """(out, in), the one matrix that does what base and adapter do, dropout apart."""
        W = base_weight(self.base)
        return W if self.active is None or self.unmerged is not None else self.tuned(W).to(W.dtype)


class DoraLinear(LoraLinear):
    """LoRA turns the rows of W, and a vector m (out) says how long they are: W' = m (W + s B A) / |W + s B A|.

    m starts as the lengths of W's rows. The divisor counts as a constant in the backward pass (section 4.3 of the
    paper: cheaper, nearly as good). The price is W + s B A in every forward, (out, in) numbers for each layer.
    """

    def __init__(self, base):
        super().__init__(base)
        self.magnitude = nn.ParameterDict()

    def add(self, name, numbers, generator):
        super().add(name, numbers, generator)
        self.magnitude[name] = nn.Parameter(self.lengths(base_weight(self.base)))                           # (out,)

    @torch.no_grad()
    def lengths(self, W):
        """|W + s B A| of each row, (out,), a constant; never 0, for rows of zeros are divided by theirs too."""
        rows = W + self.update()
        return torch.linalg.norm(rows, dim=1).clamp(min=torch.finfo(rows.dtype).tiny)

    def tuned(self, W):
        return (self.magnitude[self.active] / self.lengths(W))[:, None] * (W + self.update())

    def forward(self, x):
        """(..., in) -> (..., out). Dropout takes from what W' - W sees, base(x) sees all. The bias has no factor."""
        y = self.base(x)
        if self.idle():
            return y
        A, B, numbers = self.lora_A[self.active], self.lora_B[self.active], self.numbers[self.active]
        W, bias = base_weight(self.base).to(A.dtype), self.base.bias
        if self.training and numbers.dropout:
            x = F.dropout(x.to(A.dtype), numbers.dropout)
            straight = F.linear(x, W)                                                                       # (..., out)
        else:
            straight = y if bias is None else y - bias               # the same numbers, at hand
        factor = self.magnitude[self.active] / self.lengths(W)                                              # (out,)
        return y + ((factor - 1) * straight + factor * (x.to(A.dtype) @ A.T @ (numbers.scale * B).T)).to(y.dtype)


def parameter_count(model, targets, rank, dora=False, ranks=None):
    """How many numbers `wrap` would add: r (in + out) for each layer, with DoRA + out."""
    layers = linears(model)
    return sum(r * (layers[path].in_features + layers[path].out_features) + dora * layers[path].out_features
               for path, r in per_path(find_targets(model, targets), rank, ranks).items())


def wrap(model, targets, rank, alpha, dropout=0.0, rank_stabilised=False, dora=False, ranks=None, alphas=None,
         name="default", seed=0):
    """Put an adapter around each target, in place, and make it the active one -> the paths. A follows from the seed.

    ranks, alphas: {regular expression for a path or its end: value} for layers that differ. Where there are adapters, it
    is a further one. Freezes the targets' own weights, nothing else. Raises InputError before anything has changed.
    """
    layers, paths, kind = linears(model), find_targets(model, targets), DoraLinear if dora else LoraLinear
    others = unmerged({path: layer for path, layer in layers.items() if isinstance(layer, LoraLinear)})
    ranks, alphas = per_path(paths, rank, ranks), per_path(paths, alpha, alphas)
    numbers = {path: Numbers(ranks[path], alphas[path], dropout, rank_stabilised) for path in paths}
    taken = any(name in layer.numbers for layer in others.values()) or hasattr(nn.ParameterDict, name)
    if taken or not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"adapter name {short(name)}: must be a new one of letters, digits, _ and "
                         f"-, no word of PyTorch's")
    for path in paths:
        if not is_plain(layers[path]) and type(layers[path]) is not kind:
            raise InputError(f"{path} is a {type(layers[path]).__name__}, it takes no {kind.__name__}: undo that first")
    generator = torch.Generator().manual_seed(seed)
    for layer in others.values():
        layer.active = None
    for path in paths:
        layer = others[path] if path in others else replace(model, path, kind(layers[path]))
        layer.add(name, numbers[path], generator)
    return paths


def wrapped(model):
    """{path: LoraLinear} of a model that has some."""
    layers = {path: module for path, module in model.named_modules() if isinstance(module, LoraLinear)}
    if not layers:
        raise InputError("this model has no LoRA adapters: wrap it first")
    return layers


def unmerged(layers):
    """The same layers; InputError if they are merged now."""
    if any(layer.unmerged is not None for layer in layers.values()):
        raise InputError("the LoRA adapters of this model are merged: unmerge(model) first")
    return layers


def mergeable(layers):
    """The same layers; InputError if an update would go into a 4-bit matrix."""
    for path, layer in layers.items():
        if layer.active is not None and hasattr(layer.base, "dequantised"):
            raise InputError(f"{path} has 4 bits a number, and rounding the sum to them again changes the answers: keep "
                             f"the adapter apart, or take a plain Linear with merge(model, dequantise=True)")
    return layers


@torch.no_grad()
def merge(model, dequantise=False):
    """Add the active adapters to their matrices and put the linear layers back in place -> the paths. Inverse of `wrap`.

    Adapters that are not active are dropped. dequantise: 4-bit layers become plain ones, with more memory.
    """
    layers = wrapped(model) if dequantise else mergeable(wrapped(model))
    for path, layer in layers.items():
        base = layer.base
        if layer.active is not None and hasattr(base, "dequantised"):
            base = nn.Linear(base.in_features, base.out_features, bias=False, device="meta").train(layer.training)
            base.weight, base.bias = nn.Parameter(layer.weight, requires_grad=False), layer.base.bias
        elif layer.active is not None:
            base.weight.copy_(layer.weight)
        replace(model, path, base)
    return list(layers)


@torch.no_grad()
def merge_weights(model):
    """As `merge`, but the wrappers stay and keep a copy of each matrix, so that `unmerge` gives back every bit of it."""
    for layer in unmerged(mergeable(wrapped(model))).values():
        if layer.active is not None:
            tuned, layer.unmerged = layer.weight, layer.base.weight.clone()
            layer.base.weight.copy_(tuned)


@torch.no_grad()
def unmerge(model):
    """Inverse of `merge_weights`."""
    for layer in wrapped(model).values():
        if layer.unmerged is not None:
            layer.base.weight.copy_(layer.unmerged)
            layer.unmerged = None


def switch(model, name):
    """Make the adapter `name` the active one; layers without it do without."""
    layers = unmerged(wrapped(model))
    adapter_parameters(model, name)                                  # is there one?
    for layer in layers.values():
        layer.active = name if name in layer.numbers else None


@contextlib.contextmanager
def disable(model):
    """with disable(model): the model computes what it did before `wrap`, bit for bit."""
    layers = unmerged(wrapped(model)).values()
    active = [layer.active for layer in layers]
    try:
        for layer in layers:
            layer.active = None
        yield
    finally:
        for layer, name in zip(layers, active, strict=True):
            layer.active = name


def adapter_parameters(model, name="default"):
    """{path: parameter} of an adapter: every A and B, and the magnitudes of DoRA."""
    own = (f"lora_A.{name}", f"lora_B.{name}", f"magnitude.{name}")
    found = {f"{path}.{n}": p for path, layer in wrapped(model).items() for n, p in layer.named_parameters() if n in own}
    if not found:
        known = sorted({known for layer in wrapped(model).values() for known in layer.numbers})
        raise InputError(f"no LoRA adapter {short(name)} in this model; it has {', '.join(known)}")
    return found
