"""Bottleneck adapters: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", and Pfeiffer et al. 2020,
"AdapterFusion" (their single adapters).

Behind a linear layer of width D stands a small network, D -> size -> D, and its result is added: y + up(act(down(y))).
`up` starts at zero, so training starts at the model as it was. What lies between down and up is not linear, so unlike
LoRA it cannot be merged into the matrix: it stays, and costs time.

houlsby    behind o_proj of every attention (a decoder's cross-attention too) and behind down_proj of every MLP: before
           the residual sum, as in the paper. Where a family normalises a sublayer's output, the norm comes after.
           The paper trains the norms too: `trained_parameters(model, norms=True)`
pfeiffer   behind down_proj only. In the original, `down` reads the MLP's output after residual sum and norm, and the
           result is added before them; here it reads the MLP's output alone, so adapters of the one mean nothing to
           the other.

Here a dropout of the sublayer comes after the adapter. Not here: fusing several adapters, files.
"""
import torch
from torch import nn

from ..errors import InputError
from ..files import short
from ..models.config import choose
from ..models.layers import ACTIVATIONS
from .selection import base_weight, find_targets, in_head, is_plain, linears, replace

PLACES = {"houlsby": ("o_proj", "down_proj"), "pfeiffer": ("down_proj",)}


class Bottleneck(nn.Module):
    """y = base(x); y + up(act(down(y))). `base` is frozen, `down` starts as normal(0, 0.01), `up` and biases as zero."""

    def __init__(self, base, size, activation, generator):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.down = nn.Linear(self.out_features, size, device="cpu")
        self.up = nn.Linear(size, self.out_features, device="cpu")
        self.activation = activation
        with torch.no_grad():
            self.down.weight.normal_(0.0, 0.01, generator=generator)
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()
        W = base_weight(base)
        for part in (self.down, self.up):
            part.to(W.device, torch.promote_types(W.dtype, torch.float32))       # 16 bits would round small steps away
        self.train(base.training)

    def forward(self, x):
        """(..., in) -> (..., out)."""
        y = self.base(x)
        return y + self.up(self.activation(self.down(y.to(self.down.weight.dtype)))).to(y.dtype)   # D -> size -> D


def find_places(model, place):
    """The paths that get a bottleneck; place: houlsby or pfeiffer."""
    return find_targets(model, list(choose(PLACES, place, "place", "adapter")))


def parameter_count(model, place, size):
    """How many numbers `wrap` would add: 2 D size in matrices and size + D in biases for each place."""
    layers = linears(model)
    widths = [layers[path].out_features for path in find_places(model, place)]
    return sum(2 * D * size + size + D for D in widths)


def wrap(model, place, size, activation="gelu", seed=0):
    """Put a bottleneck behind each linear layer of `place`, in place -> the paths. Deterministic by seed.

    size: width in the middle; activation: a name of models.layers.ACTIVATIONS. Freezes the wrapped layers' own weights,
    nothing else. Raises InputError before anything has changed.
    """
    layers, paths = linears(model), find_places(model, place)
    act = choose(ACTIVATIONS, activation, "activation", "adapter")
    if type(size) is not int or size < 1:
        raise InputError(f"adapter size {short(size)}: must be a whole number from 1, usually D / "
                         f"16")
    for path in paths:
        if not is_plain(layers[path]):
            raise InputError(f"{path} is a {type(layers[path]).__name__}, it takes no bottleneck: undo that first")
    generator = torch.Generator().manual_seed(seed)
    for path in paths:
        replace(model, path, Bottleneck(layers[path], size, act, generator))
    return paths


def wrapped(model):
    """{path: Bottleneck} of a model that has some."""
    found = {path: module for path, module in model.named_modules() if isinstance(module, Bottleneck)}
    if not found:
        raise InputError("this model has no bottleneck adapters: wrap it first")
    return found


def unwrap(model):
    """Take the bottlenecks out again -> the paths. The inverse of `wrap`: what they have learned is dropped."""
    layers = wrapped(model)
    for path, layer in layers.items():
        replace(model, path, layer.base)
    return list(layers)


def trained_parameters(model, norms=False):
    """{path: parameter} of the bottlenecks; norms: and of the body's norms, which Houlsby et al. train too."""
    own = tuple(f"{path}.{part}." for path in wrapped(model) for part in ("down", "up"))
    return {name: parameter for name, parameter in model.named_parameters() if name.startswith(own)
            or norms and name.rpartition(".")[0].endswith("norm") and not in_head(name)}
