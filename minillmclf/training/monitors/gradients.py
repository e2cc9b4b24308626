"""A check of the first steps: does what is trainable get gradients, and does what is frozen stay?

Such faults are silent: a loss that falls by the head alone looks like learning. A gradient of zeros
may be right at one step (LoRA's A, while B is 0), so it is a fault only at two steps in a row. Only
the first three steps of a process are checked; later ones cost nothing. Where a NaN arises:
nonfinite.py.
"""
from dataclasses import dataclass

import torch

from ...errors import InputError
from ..parallel.processes import full_tensor

CHECKED_STEPS = 3


def check_first_steps(step, say, left_out=()):
    """Wrap a step of the loop: each line about the first steps is passed to say(line). left_out:
    names of trainable tensors that the loss does not reach, as something else fits them."""
    check = None

    def checked(model, optimizer, *more):
        nonlocal check
        check = check or FirstStepsCheck(model, optimizer, left_out)
        loss = step(model, optimizer, *more)
        for line in check.after_step():
            say(line)
        return loss
    return checked


@dataclass
class GradientReport:
    """lines: to print; faults: the lines that are warnings, then the only ones; zero: names of the
    trainable tensors whose gradient is all zeros."""
    lines: list
    faults: list
    zero: list


def examine_gradients(model, earlier=None, left_out=()):
    """Examine the gradients of a model after a backward pass -> GradientReport.

    earlier: the report of the step before; a gradient of zeros then and now is a fault. left_out:
    names of parameters that are not examined.
    """
    named = [(name, p) for name, p in model.named_parameters() if name not in left_out]
    trained = [name for name, p in named if p.requires_grad]
    frozen = [name for name, p in named if not p.requires_grad]
    missing = [name for name, p in named if p.requires_grad and p.grad is None]
    leaking = [name for name, p in named if not p.requires_grad and p.grad is not None]
    zero, broken = [], []
    for name, p in named:
        if p.requires_grad and p.grad is not None:
            gradient = full_tensor(p.grad)
            if not gradient.any():
                zero.append(name)
            if not gradient.isfinite().all():
                broken.append(name)
    zero_twice = [name for name in zero if earlier is not None and name in earlier.zero]
    findings = [
        (missing, trained, "trainable tensors have no gradient: the loss does not depend on them, "
                           "or a part of the model cuts gradients off"),
        (zero_twice, trained, "trainable tensors have a gradient of zeros at two steps in a "
         "row: nothing reaches them"),
        (broken, trained, "trainable tensors have a gradient that is not finite"),
        (leaking, frozen, "frozen tensors have a gradient although they are frozen: it costs "
                          "memory and is not used")]
    faults = [f"WARNING: gradients: {len(names)} of {len(group)} {what} ({first_names(names)})"
              for names, group, what in findings if names]
    zeros = f", {len(zero)} of zeros so far ({first_names(zero)})" if zero else ""
    lines = faults or [f"gradients: {len(trained)} trainable tensors, all with a gradient{zeros}; "
                       f"{len(frozen)} frozen, none with one"]
    return GradientReport(lines, faults, zero)


def first_names(names):
    """The first three names, as text."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


class FirstStepsCheck:
    """`after_step()` -> lines to print; [] after the third step.

    Raises InputError if the optimiser holds other tensors than the model, or a frozen one changes.
    """

    def __init__(self, model, optimizer, left_out=()):
        self.model, self.optimizer, self.left_out = model, optimizer, left_out
        self.steps, self.gradients = 0, None
        in_groups = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = dict(model.named_parameters())
        lost = [name for name, p in named.items() if p.requires_grad and id(p) not in in_groups]
        if lost or in_groups - {id(p) for p in named.values()}:
            raise InputError("the optimiser does not hold these trainable tensors "
                             f"({first_names(lost)}): it was built before the model was moved or "
                             "changed; build it last")
        frozen = evenly_spaced([name for name, p in named.items() if not p.requires_grad])
        self.checksums = {name: checksum(p) for name, p in named.items()
                          if name not in left_out and (p.requires_grad or name in frozen)}

    def after_step(self):
        self.steps += 1
        if self.steps > CHECKED_STEPS:
            return []
        if self.steps == CHECKED_STEPS:
            return self.compare_weights()
        if self.gradients is not None and not self.gradients.zero:      # reported one step ago
            return []
        found = self.gradients = examine_gradients(self.model, self.gradients, self.left_out)
        wait = self.steps == 1 and found.zero and not found.faults      # zeros may end at step 2
        return [] if wait else found.lines

    def compare_weights(self):
        """Have all trainable tensors changed, and no frozen one of the sample? -> lines to print"""
        named = dict(self.model.named_parameters())
        changed = {name for name, value in self.checksums.items() if checksum(named[name]) != value}
        wrong = sorted(name for name in changed if not named[name].requires_grad)
        if wrong:
            raise InputError("after three steps frozen tensors have changed "
                             f"({first_names(wrong)}): something writes to them besides the "
                             "optimiser; the result would not be what was asked for")
        trained = [name for name in self.checksums if named[name].requires_grad]
        if trained and not changed:
            return [f"WARNING: after three steps none of {first_names(trained)} has changed: --lr "
                    "is too small for them"]
        groups = self.optimizer.param_groups
        lr_of = {id(p): group["lr"] for group in groups for p in group["params"]}
        unchanged = []
        for name in trained:
            if name not in changed and name not in self.gradients.zero:
                smallest = full_tensor(named[name].detach()).abs().min().item()
                lr = lr_of[id(named[name])]
                if not lr or smallest * 2**-20 < lr:          # else fp32 cannot add so small a step
                    unchanged.append(name)
        if not unchanged:
            return []
        return [f"WARNING: after three steps {len(unchanged)} of {len(trained)} trainable tensors "
                f"have not changed ({first_names(unchanged)}): the optimiser does not reach them"]


def evenly_spaced(names, count=4):
    """`count` evenly spaced names, with the first and the last."""
    if len(names) <= count:
        return names
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]


def checksum(tensor):
    """The sum of a tensor's bits, read as whole numbers: every device adds these up exactly, and
    some (MPS) have no float64."""
    whole = full_tensor(tensor.detach())
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[whole.itemsize]
    return whole.view(bits).sum(dtype=torch.int64).item()
