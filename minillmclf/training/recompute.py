"""Activation checkpointing: keep a block's input only, and compute its inside again when gradients come to it.

Memory for activations falls from about 15 to 35 vectors a token and block to one; a step takes about a third longer.
Gradients are the same: random numbers are set back, so that dropout drops the same neurons twice.
Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".

Not here: which blocks are worth it (all are done). Of torch's two ways the older ("reentrant") gives no gradient to a
block whose input needs none, so with frozen embeddings LoRA would learn nothing; it is not used.
"""
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..models.layers import Rows


def blocks_of(model):
    """All blocks of a model, low to high: what stands in a ModuleList named `layers`. -> list of modules"""
    return [block for name, module in model.named_modules() if isinstance(module, nn.ModuleList)
            and name.rpartition(".")[2] == "layers" for block in module]


def recompute_blocks(model):
    """From now on every block of the model is computed again in the backward pass. -> how many blocks"""
    blocks = blocks_of(model)
    for block in blocks:
        block.forward = Recomputed(block.forward)
    return len(blocks)


class Recomputed:
    """A block's forward that keeps its arguments instead of what it computes on the way."""

    def __init__(self, forward):
        self.forward = forward

    def __call__(self, *arguments):
        if not torch.is_grad_enabled():
            return self.forward(*arguments)
        rows = [getattr(a, "rows", a) for a in arguments if isinstance(a, Rows)]     # with their keys
        cached = [(each, each.layer) for each in rows if hasattr(each, "layer")]

        def run(*arguments):
            for rows, layer in cached:              # rows behind a prefix count layers: back to where this block began
                rows.layer = layer
            return self.forward(*arguments)
        return checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=True)
