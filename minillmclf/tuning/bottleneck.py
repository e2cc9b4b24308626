"""Bottleneck adapters: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", and
Pfeiffer et al. 2020, "AdapterFusion" (their single adapters).

After a linear layer of width D comes a small network, D -> size -> D, and its result is added:
y + up(gelu(down(y))). `up` starts at zero, so training starts at the base model. The network is not
linear, so unlike LoRA it cannot be merged into the matrix: it stays, and costs time.

houlsby    after o_proj of every attention (a decoder's cross-attention too) and after down_proj of
           every MLP: before the residual sum, as in the paper. Where a family normalises a
           sublayer's output, the norm comes after. The paper trains the norms too.
pfeiffer   after down_proj only. In the original, `down` reads the MLP's output after residual sum
           and norm; here it reads the MLP's output alone, so adapters trained with the one do not
           work in the other.

The dropout of a sublayer acts after the adapter. Not here: fusing several adapters, files.
"""
import torch
from torch import nn

from ..errors import InputError
from ..files import short
from ..models.config import look_up
from ..models.layers import ACTIVATIONS
from . import selection
from .selection import base_weight, check_plain, find_targets, in_head, linears

PLACES = {"houlsby": ("o_proj", "down_proj"), "pfeiffer": ("down_proj",)}


class Bottleneck(nn.Module):
    """y = base(x); y + up(gelu(down(y))). down.weight starts as normal(0, 0.01), the rest as 0."""

    def __init__(self, base, size, generator):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.down = nn.Linear(self.out_features, size, device="cpu")
        self.up = nn.Linear(size, self.out_features, device="cpu")
        self.activation = ACTIVATIONS["gelu"]
        with torch.no_grad():
            self.down.weight.normal_(0.0, 0.01, generator=generator)
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()
        W = base_weight(base)
        for part in (self.down, self.up):                # 16 bits would round small steps away
            part.to(W.device, torch.promote_types(W.dtype, torch.float32))
        self.train(base.training)

    def forward(self, x):
        """(..., in) -> (..., out)."""
        y = self.base(x)
        inner = self.activation(self.down(y.to(self.down.weight.dtype)))              # (..., size)
        return y + self.up(inner).to(y.dtype)


def wrap(model, place, size, seed=0):
    """Put a bottleneck after each linear layer that `place` names in PLACES -> the paths.

    size: width in the middle. The seed decides the first values. Freezes the wrapped layers' own
    weights, nothing else. Raises InputError before anything has changed.
    """
    leaves = look_up(PLACES, place, "place", "adapter")
    layers, paths = linears(model), find_targets(model, list(leaves))
    if type(size) is not int or size < 1:
        raise InputError(f"adapter size {short(size)}: must be a whole number from 1, usually D / "
                         "16")
    check_plain(layers, paths, "bottleneck")
    generator = torch.Generator().manual_seed(seed)
    for path in paths:
        model.set_submodule(path, Bottleneck(layers[path], size, generator))
    return paths


def unwrap(model):
    """Take the bottlenecks out again -> the paths. Inverse of `wrap`: what they learned is lost."""
    layers = wrapped(model)
    for path, layer in layers.items():
        model.set_submodule(path, layer.base)
    return list(layers)


def wrapped(model):
    """{path: Bottleneck}; InputError for a model without one."""
    return selection.wrapped(model, Bottleneck, "bottleneck")


def trainable_parameters(model, norms=False):
    """{path: parameter} of the bottlenecks; norms: also those of the body's norms."""
    own = tuple(f"{path}.{part}." for path in wrapped(model) for part in ("down", "up"))
    found = {}
    for name, parameter in model.named_parameters():
        is_norm = name.rpartition(".")[0].endswith("norm") and not in_head(name)
        if name.startswith(own) or norms and is_norm:
            found[name] = parameter
    return found
