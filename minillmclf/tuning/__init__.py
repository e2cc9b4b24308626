"""Which weights learn? `choose_weights` freezes all but a method's own.

full: everything. head: only the readout. last-N: the readout and the N highest blocks of the backbone.
"""
import re

from ..errors import InputError


def choose_weights(model, method):
    """Set requires_grad on every parameter of a classifier -> (trainable, total) numbers of parameters."""
    blocks = len(model.backbone.layers)
    last = re.fullmatch(r"last-(\d+)", method)
    if method not in ("full", "head") and not (last and 1 <= int(last.group(1)) <= blocks):
        raise InputError(f"--method {method}: known are full, head and last-N with N from 1 to the model's {blocks} blocks")
    lowest = blocks - int(last.group(1)) if last else blocks
    for name, parameter in model.named_parameters():
        block = re.match(r"backbone\.layers\.(\d+)\.", name)
        high = block is not None and int(block.group(1)) >= lowest
        parameter.requires_grad_(method == "full" or name.startswith("head.") or high)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)
