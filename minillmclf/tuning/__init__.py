"""Which weights learn? `choose_weights` freezes all but a method's own.

full: everything. head: only the readout. last-N: the readout, the N highest blocks of the backbone (of an
encoder-decoder: of its decoder) and the norm above them.
"""
import re

from ..errors import InputError


def choose_weights(model, method):
    """Set requires_grad on every parameter of a classifier -> (trainable, total) numbers of parameters."""
    stack = "backbone." + model.backbone.BLOCKS                       # where the blocks are, low to high
    blocks = len(model.get_submodule(stack))
    last = re.fullmatch(r"last-(\d+)", method)
    if method not in ("full", "head") and not (last and 1 <= int(last.group(1)) <= blocks):
        raise InputError(f"--method {method}: known are full, head and last-N with N from 1 to the model's {blocks} blocks")
    learning = ["head."]
    if last:
        learning += [f"{stack}.{block}." for block in range(blocks - int(last.group(1)), blocks)]
        learning.append(stack.removesuffix("layers") + "final_norm.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(method == "full" or name.startswith(tuple(learning)))
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)
