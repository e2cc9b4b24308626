"""How many bytes of activations does training hold? Measured, by a forward pass in training mode.

The tensors that autograd saves are added up (`saved_activation_bytes`). Dropout is on: with it,
torch's attention on a CPU saves its weights, T x T for each head; without it, none. Autograd saves
little of a frozen block, but while the block is computed, all its activations exist: so those of at
least one whole block are counted (`peak_activations`). memory.py makes an estimate of it.
"""
import weakref
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..training.recompute import all_blocks
from ..tuning.prompt import new_word_ids


def dummy_logits(model, length, rows, precision):
    """The logits (B, C) of B = `rows` made-up texts of `length` tokens; None on device "meta"."""
    if any(parameter.is_meta for parameter in model.parameters()):
        return None
    ids = torch.tensor([new_word_ids(model) + [0] * length] * (rows * model.head.SEQUENCES_PER_ROW))
    mask = torch.ones_like(ids)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return model.head.read(model.backbone, ids, mask)


def saved_activation_bytes(model, length, rows=1, precision="fp32"):
    """Bytes of activations that autograd saves in a forward pass of `rows` texts."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}                          # address -> bytes

    def count(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()          # a tensor saved by its own operation would never be freed
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        logits = dummy_logits(model, length, rows, precision)  # noqa: F841  the graph lives
    return sum(saved.values())


class AliveBytes(TorchDispatchMode):
    """with AliveBytes() as count: ...   Bytes of the tensors that the block makes and still holds:
    count.now, and their highest number so far, count.peak."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = set(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs))
                  if torch.is_tensor(t)}
        for tensor in tree_leaves(out):
            if torch.is_tensor(tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.alive and key not in inputs:            # a view takes no memory
                    self.alive.add(key)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.free, key, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def free(self, key, count):
        self.alive.discard(key)
        self.now -= count


def peak_in_forward(model, length, rows=1, precision="fp32"):
    """-> the most bytes of activations that exist at once in a forward pass, and the number of
    blocks whose outputs need a gradient."""
    grad_blocks = []

    def note(block, inputs, out):
        grad_blocks.append(any(torch.is_tensor(t) and t.requires_grad for t in tree_leaves(out)))
    hooks = [block.register_forward_hook(note) for block in all_blocks(model)]
    try:
        with AliveBytes() as count:
            dummy_logits(model, length, rows, precision)
    finally:
        for hook in hooks:
            hook.remove()
    return count.peak, sum(grad_blocks)


@contextmanager
def all_trainable(model):
    """with all_trainable(model): ...   Inside, no parameter is frozen."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def peak_activations(model, kept, kept_in_full, in_forward, grad_blocks):
    """Bytes of activations at the peak of a step, if some of the model's weights are frozen.

    kept: what autograd saves; kept_in_full: what it would save if nothing were frozen; in_forward,
    grad_blocks: from `peak_in_forward`. While the gradient of a frozen block is computed, all its
    activations exist, though few of them are saved.
    """
    blocks = len(all_blocks(model))
    inside = max(0, kept_in_full // blocks - kept // grad_blocks) if grad_blocks else 0
    return max(in_forward, kept + inside)
