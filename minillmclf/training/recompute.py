"""Activation checkpointing: keep only a block's input, and run the block again for gradients.

Activations then take one vector per token and block instead of about 15 to 35; a step
takes about half as long again, a third by the count of its products. Gradients are the same: the
random state is restored, so dropout drops the same neurons twice.
Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".

Not here: a choice of blocks (all are checkpointed), and the older of torch's two implementations:
"reentrant" gives no gradient to a block whose input needs none, so LoRA would learn nothing on
frozen embeddings.
"""
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..models.layers import Rows


def block_stacks(model):
    """The stacks of blocks of a model, one or two: each ModuleList named `layers`."""
    return [module for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "layers"]


def all_blocks(model):
    """All blocks of a model, low to high."""
    return [block for stack in block_stacks(model) for block in stack]


def recompute_blocks(model):
    """Let every block be computed again in the backward pass -> the number of blocks."""
    blocks = all_blocks(model)
    for block in blocks:
        block.forward = RecomputedForward(block.forward)
    return len(blocks)


class RecomputedForward:
    """A block's forward that keeps its arguments instead of its activations."""

    def __init__(self, forward):
        self.forward = forward

    def __call__(self, *arguments):
        """The block's arguments -> what its forward returns."""
        if not torch.is_grad_enabled():
            return self.forward(*arguments)
        rows = [getattr(a, "rows", a) for a in arguments if isinstance(a, Rows)]   # FewQueries.rows
        prefixed = [(each, each.layer) for each in rows if hasattr(each, "layer")]    # CachedRows

        def run(*arguments):
            for cached, layer in prefixed:        # the first run has raised it: set it back
                cached.layer = layer
            return self.forward(*arguments)
        return checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=True)
