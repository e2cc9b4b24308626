"""A linear layer in four bits (quant.py), and how it comes into a model and out of it again.

Dettmers et al. 2023, "QLoRA", section 3. Not here: its files (quant_files.py).
"""
from functools import cached_property

import torch
from torch import nn

from ..errors import InputError
from .quant import (FrozenLinear, Quantised, can_fuse, dequantise, fused_product, interleave,
                    quantise)
from .selection import in_head


def dtype_name(dtype):
    """torch.float32 -> "float32"."""
    return str(dtype).removeprefix("torch.")


class Linear4bit(nn.Module):
    """A linear layer with a frozen Quantised weight (out, in); its bias is a parameter or None.

    Its buffers are `weight` (the packed bytes), `absmax`, `nested_absmax`, `offset`.
    """

    def __init__(self, q, bias=None):
        super().__init__()
        self.kind, self.blocksize, self.shape, self.dtype = q.kind, q.blocksize, q.shape, q.dtype
        self.out_features, self.in_features = q.shape
        for name in ("absmax", "nested_absmax", "offset"):
            self.register_buffer(name, getattr(q, name))
        self.register_buffer("weight", q.packed)
        is_parameter = bias is None or isinstance(bias, nn.Parameter)
        self.register_parameter("bias", bias if is_parameter else nn.Parameter(bias))

    @classmethod
    def from_linear(cls, weight, bias=None, kind="nf4", double=True):
        """weight: (out, in) float; bias: (out,) or None."""
        return cls(quantise(weight, kind, double=double), bias)

    @property
    def quantised(self):
        return Quantised(self.weight, self.absmax, self.kind, self.blocksize, self.shape,
                         self.dtype, self.nested_absmax, self.offset)

    def dequantised(self):
        """The weight (out, in), in the dtype that it had before."""
        return dequantise(self.quantised)

    def forward(self, x):
        """(..., in) -> (..., out), in float32 or bfloat16. In float16 a fifth of the 7B runs of the
        QLoRA paper failed."""
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        if dtype not in (torch.float32, torch.bfloat16):
            raise InputError("a 4-bit layer computes in float32 or bfloat16, not in "
                             f"{dtype_name(dtype)}")
        if x.shape[-1] != self.in_features:
            raise InputError(f"this 4-bit layer reads vectors of {self.in_features} numbers, not "
                             f"of {x.shape[-1]}")
        x = x.to(dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        if not torch.is_grad_enabled() and can_fuse(x, self.quantised):
            y = fused_product(x, self.interleaved, self.quantised)
            return y if bias is None else y + bias
        return FrozenLinear.apply(x, bias, self.quantised)

    @cached_property
    def interleaved(self):
        """As `interleave`; made for the first such product and kept: 4.25 bits a weight more."""
        return interleave(self.quantised)

    def _apply(self, fn, recurse=True):
        """model.to(device) moves everything; model.to(dtype) changes the bias alone, since rounding
        the buffers would change the weight."""
        buffers = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        device = self.weight.device
        for name, buffer in buffers.items():
            setattr(self, name, buffer.to(device))
        vars(self).pop("interleaved", None)
        return self

    def extra_repr(self):
        bias = self.bias is not None
        return f"{self.in_features} -> {self.out_features}, bias={bias}, {self.kind}"


def plain_linear(layer, weight):
    """A frozen nn.Linear with this weight, to replace `layer`, which is in 4 bits or in bf16."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight, plain.bias = nn.Parameter(weight, requires_grad=False), layer.bias
    return plain.train(layer.training)


class Quantiser:
    """Puts the weights of the chosen linear layers into a model, in four bits.

    A loader calls `quantiser(model, path, tensor)` for each `is_chosen` weight as it reads it. So
    if the model is on the "meta" device, at most one layer at a time is in full precision. chosen:
    a function, path of a linear layer -> bool. Heads keep their precision.
    """

    def __init__(self, chosen=lambda path: True, kind="nf4"):
        self.chosen, self.kind, self.replaced = chosen, kind, []

    def is_chosen(self, model, path):
        """Is the parameter at `path` the weight of a chosen linear layer?"""
        owner, leaf = path.rpartition(".")[::2]
        return (leaf == "weight" and isinstance(model.get_submodule(owner), nn.Linear)
                and not in_head(owner) and self.chosen(owner))

    def __call__(self, model, path, tensor):
        owner = path.removesuffix(".weight")
        module = model.get_submodule(owner)
        layer = Linear4bit.from_linear(tensor, module.bias, self.kind)
        model.set_submodule(owner, layer.train(module.training))
        self.replaced.append(owner)

    def list_paths(self, model):
        """-> (paths in four bits, paths of all other modules with parameters). InputError if no
        layer was chosen: the model would be as large as before."""
        others = [path for path, module in model.named_modules()
                  if not isinstance(module, Linear4bit) and list(module.parameters(recurse=False))]
        if not self.replaced:
            raise InputError("no linear layer outside the heads was chosen for four bits; among "
                             f"the others are {', '.join(others[:9])}")
        return self.replaced, others


def quantise_linears(model, chosen=lambda path: True, kind="nf4"):
    """Put the chosen linear layers of a model into four bits -> as Quantiser.list_paths."""
    quantiser = Quantiser(chosen, kind)
    paths = [path for path, _ in model.named_parameters() if quantiser.is_chosen(model, path)]
    for path in paths:
        quantiser(model, path, model.get_parameter(path).detach())
    return quantiser.list_paths(model)


@torch.no_grad()
def dequantise_linears(model):
    """Replace all 4-bit layers of a model by plain ones with the same, rounded weights."""
    layers = [(path, m) for path, m in model.named_modules() if isinstance(m, Linear4bit)]
    for path, layer in layers:
        model.set_submodule(path, plain_linear(layer, layer.dequantised()))
