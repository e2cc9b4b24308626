"""Where did the first NaN or Inf arise? After training has diverged, a second forward pass with a
hook on every module finds out.

A NaN spreads to all that is computed from it, so the first module that outputs one is named. In
half precision the cause is often one large number in one layer (T5 in fp16). Not here: the
backward pass.
"""
import torch

from ..loop import Diverged, autocast
from ..parallel.processes import full_tensor


def locate_divergence(step):
    """Wrap a step of the loop: its error Diverged also says where the first NaN or Inf arose."""
    def step_and_locate(model, optimizer, train, rows, settings):
        try:
            return step(model, optimizer, train, rows, settings)
        except Diverged as error:
            found = find_in_batch(model, train, rows, settings)
            raise Diverged(f"{error}; {found}") from None
    return step_and_locate


def find_in_batch(model, train, rows, settings):
    """Search each micro-batch by `find_nonfinite` -> the end of an error message."""
    device, size = next(model.parameters()).device, settings.micro_batch_size or len(rows)
    for start in range(0, len(rows), size):
        batch = model.collate(train.encoded, rows[start:start + size], train.targets).to(device)
        with autocast(settings, device):
            found = find_nonfinite(model, batch)
        if found:
            return found
    return "the forward pass is finite: it arose in the loss or in the gradients"


@torch.no_grad()
def find_nonfinite(model, batch):
    """A line that says where model(batch) outputs its first NaN or Inf; None if nowhere."""
    found, hooks = [], []

    def hook_of(name):
        def look(module, inputs, output):
            if not found:
                tensors = list(tensors_in(inputs)), list(tensors_in(output))
                found.extend(describe_nonfinite(name, module, *tensors))
        return look
    for name, module in model.named_modules():
        hooks.append(module.register_forward_hook(hook_of(name or "the model")))
    try:
        model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def describe_nonfinite(name, module, inputs, outputs):
    """[] if a module's outputs are finite, else [a line]: the module, the share of its output that
    is not finite, and a weight that is not, or else the largest number among its inputs."""
    broken = [t for t in outputs if not t.isfinite().all()]
    if not broken:
        return []
    if not all(t.isfinite().all() for t in inputs):                  # yet no module output it
        around = name.rpartition(".")[0] or "the model"
        return [f"first not finite: what {name} is given; it arose in {around} itself"]
    share = 1 - broken[0].isfinite().float().mean().item()
    own = [leaf for leaf, p in module.named_parameters() if not full_tensor(p).isfinite().all()]
    largest = max((t.abs().max().item() for t in inputs if t.numel()), default=0.0)
    cause = f"its {own[0]} is not finite" if own else \
        f"the largest number that it was given is {largest:.3g}"
    return [f"first not finite: the output of {name} ({share:.1%} of its numbers; {cause})"]


def tensors_in(value):
    """The floating-point tensors among arguments or results."""
    if torch.is_tensor(value):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
