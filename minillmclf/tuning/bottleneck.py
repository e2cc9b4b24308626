"""Bottleneck adapters: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", and
Pfeiffer et al. 2020, "AdapterFusion" (their single adapters).

After a linear layer of width D comes a small network, D -> size -> D, and its result is added:
y + up(gelu(down(y))). `up` starts at zero, so training starts at the base model. The network is not
linear, so unlike LoRA it cannot be merged into the matrix: it stays, and costs time.

houlsby    after o_proj of every attention (a decoder's cross-attention too) and after down_proj of
           every MLP: before the residual sum, as in the paper. Where a family normalises a
           sublayer's output, it does so after the adapter. The paper trains the norms too.
pfeiffer   after down_proj only. In the original, `down` reads the MLP's output after residual sum
           and norm; here it reads the MLP's output alone: adapters trained there do not work here.

The dropout of a sublayer acts after the adapter. Not here: fusing several adapters, files.
"""
import torch
from torch import nn

from ..errors import InputError
from ..files import short
from ..models.config import look_up
from ..models.layers import ACTIVATIONS
from . import selection
from .selection import check_unwrapped, find_linears, find_targets, in_head, place_beside

WRAPPED_LAYERS = {"houlsby": ("o_proj", "down_proj"), "pfeiffer": ("down_proj",)}


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
        for part in (self.down, self.up):
            part.to(*place_beside(base))
        self.train(base.training)

    def forward(self, x):
        """(..., in) -> (..., out)."""
        y = self.base(x)
        inner = self.activation(self.down(y.to(self.down.weight.dtype)))              # (..., size)
        return y + self.up(inner).to(y.dtype)


def wrap(model, place, size, seed=0):
    """Put a bottleneck after each layer of WRAPPED_LAYERS[place] -> the paths of these layers.

    size: the width in the middle. The seed decides the first values. Freezes the layers' own
    weights, nothing else. Raises InputError before anything has changed.
    """
    leaves = look_up(WRAPPED_LAYERS, place, "place", "adapter")
    layers, paths = find_linears(model), find_targets(model, list(leaves))
    if type(size) is not int or size < 1:
        raise InputError(f"adapter size {short(size)}: must be a whole number from 1, usually D / "
                         "16")
    check_unwrapped(layers, paths, "bottleneck")
    generator = torch.Generator().manual_seed(seed)
    for path in paths:
        model.set_submodule(path, Bottleneck(layers[path], size, generator))
    return paths


def unwrap(model):
    """Inverse of `wrap`: take the bottlenecks out -> the paths. What they learned is lost."""
    layers = find_wrapped(model)
    for path, layer in layers.items():
        model.set_submodule(path, layer.base)
    return list(layers)


def find_wrapped(model):
    """{path: Bottleneck}; InputError for a model without one."""
    return selection.find_modules(model, Bottleneck, "bottleneck")


def trainable_parameters(model, norms=False):
    """{path: parameter} of the bottlenecks, and with norms=True of the backbone's norms."""
    added = tuple(f"{path}.{part}." for path in find_wrapped(model) for part in ("down", "up"))
    found = {}
    for name, parameter in model.named_parameters():
        is_norm = name.rpartition(".")[0].endswith("norm") and not in_head(name)
        if name.startswith(added) or (norms and is_norm):
            found[name] = parameter
    return found
