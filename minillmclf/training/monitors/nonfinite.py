"""Where did the first NaN or Inf arise? When training has diverged, a second pass with a hook on every module tells.

A NaN spreads to all that is computed from it, so what counts is the first module in the order of computing. In half
precision this is often a large number in one layer (T5 in fp16). Not here: the backward pass.
"""
import torch

from ..parallel.processes import is_shared


@torch.no_grad()
def first_nonfinite(model, batch):
    """Where the first number that is not finite arises in model(batch) -> one line that names the module, its share of
    such numbers and the largest number that it was given; None where all outputs are finite."""
    found, hooks = [], []

    def look(name, module, inputs, output):
        if not found:
            found.extend(describe(name, module, list(tensors_in(inputs)), list(tensors_in(output))))

    for name, module in model.named_modules():
        hooks.append(module.register_forward_hook(lambda m, i, o, name=name or "the model": look(name, m, i, o)))
    try:
        model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def describe(name, module, inputs, outputs):
    """[] if a module's outputs are finite, else [a line]."""
    broken = [t for t in outputs if not t.isfinite().all()]
    if not broken:
        return []
    if not all(t.isfinite().all() for t in inputs):                  # it came out of no module before this one
        around = name.rpartition(".")[0] or "the model"
        return [f"first not finite: what {name} is given; it arose in {around} itself"]
    share = 1 - broken[0].isfinite().float().mean().item()
    weights = {leaf: p.to_local() if is_shared(p) else p for leaf, p in module.named_parameters()}
    own = [leaf for leaf, p in weights.items() if not p.isfinite().all()]
    largest = max((t.abs().max().item() for t in inputs if t.numel()), default=0.0)
    cause = f"its {own[0]} is not finite" if own else f"the largest number that it was given is {largest:.3g}"
    return [f"first not finite: the output of {name} ({share:.1%} of its numbers; {cause})"]


def tensors_in(value):
    """The floating-point tensors among arguments or results."""
    if torch.is_tensor(value):
        yield from [value] if value.is_floating_point() else []
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
