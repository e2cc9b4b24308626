"""What several test files share: the stored models, and the comparison that names the first layer that differs."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")              # no test needs the network

import torch

torch.set_num_threads(1)                                  # the models are tiny: threads only get in each other's way

MODELS = Path(__file__).parent / "fixtures" / "models"    # written by reference/make_fixtures.py


def trace(model, ids, mask, types=None):
    """What a body computes, step by step: {"embeddings": (N, D), "layer 0": (N, D), ..., "hidden": (B, T, D)}."""
    steps, modules = {}, {"embeddings": model.dropout} | {f"layer {i}": layer for i, layer in enumerate(model.layers)}

    def keep(name):
        return lambda module, given, out: steps.update({name: out.detach()})
    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        return steps | {"hidden": model(ids, mask, *(() if types is None else (types,)))}
    finally:
        for hook in hooks:
            hook.remove()


def first_difference(ours, reference, tolerance, relative=False):
    """None, or which tensor of `reference`, in its order, is the first that `ours` has not, and by how much.

    tolerance: the largest difference of a number that passes; relative: in parts of the tensor's largest number (and of
    1e-6 at least, for a gradient may be nothing but rounding).
    """
    for name, expected in reference.items():
        if name not in ours:
            return f"{name} is missing"
        found = ours[name]
        if found.shape != expected.shape:
            return f"{name} has shape {tuple(found.shape)}, not {tuple(expected.shape)}"
        unit = max(expected.abs().max().item(), 1e-6) if relative else 1.0
        difference = (found - expected).abs().max().item() / unit
        if not difference <= tolerance:           # so written that NaN is a difference too
            return f"{name} differs by {difference:.2g} (tolerance {tolerance:g})"
    return None
