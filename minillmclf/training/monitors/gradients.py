"""The gradient doctor: does what should learn get gradients, and does what is frozen stay as it is?

Such faults are silent ones: a loss that falls through the head alone looks like learning. A trainable tensor whose
gradient is zero at one step may be in order (LoRA's A, while B is still 0), so zero counts only when it stays. All looks
are taken in the first three steps of a process; later ones pay nothing. Numbers that are not finite: nonfinite.py.
"""
from dataclasses import dataclass

import torch

from ...errors import InputError
from ..parallel.processes import whole


@dataclass
class Report:
    """lines: to print; faults: those of them that tell of something wrong; zero: names of tensors that should learn and
    have a gradient of zeros only."""
    lines: list
    faults: list
    zero: list


def examine_gradients(model, earlier=None):
    """Look at the gradients that lie in a model after a backward pass -> Report.

    earlier: the Report of the step before; with it, a gradient that was zero then and is zero now is a fault.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    missing = [name for name, p in trained.items() if p.grad is None]
    zero = [name for name, p in trained.items() if p.grad is not None and not whole(p.grad).any()]
    broken = [name for name, p in trained.items() if p.grad is not None and not whole(p.grad).isfinite().all()]
    leaking = [name for name, p in frozen.items() if p.grad is not None]
    still = [name for name in zero if earlier is not None and name in earlier.zero]
    findings = {"no gradient: the loss does not depend on them, or a part of the model cuts gradients off": missing,
                "a gradient of zeros at two steps in a row: nothing reaches them": still,
                "a gradient that is not finite": broken,
                "a gradient although they are frozen: it costs memory and is not used": leaking}
    faults = [f"WARNING: gradients: {len(names)} of {len(frozen if names is leaking else trained)} "
              f"{'frozen' if names is leaking else 'trainable'} tensors have {what} ({shortened(names)})"
              for what, names in findings.items() if names]
    well = "all with a gradient" if not zero else f"all with a gradient, {len(zero)} of zeros so far ({shortened(zero)})"
    lines = faults or [f"gradients: {len(trained)} trainable tensors, {well}; {len(frozen)} frozen, none with one"]
    return Report(lines, faults, zero)


def shortened(names):
    """The first three of many names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


class Checkup:
    """The first three steps of a process: `after_step() -> lines to print`, nothing later.

    Raises InputError where the optimiser holds other tensors than the model, and where a frozen tensor has changed.
    """

    def __init__(self, model, optimizer):
        self.model, self.optimizer, self.steps, self.report = model, optimizer, 0, None
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = dict(model.named_parameters())
        lost = [name for name, p in named.items() if p.requires_grad and id(p) not in held]
        if lost or held - {id(p) for p in named.values()}:
            raise InputError(f"the optimiser does not hold these trainable tensors ({shortened(lost)}): it was built "
                             f"before the model was moved or changed; build it last")
        frozen = spaced([name for name, p in named.items() if not p.requires_grad])
        self.before = {name: checksum(p) for name, p in named.items() if p.requires_grad or name in frozen}

    def after_step(self):
        self.steps += 1
        if self.steps > 3:
            return []
        if self.steps == 3:
            return self.compare()
        if self.report is not None and not self.report.zero:
            return []
        self.report = examine_gradients(self.model, self.report)
        return [] if self.steps == 1 and self.report.zero and not self.report.faults else self.report.lines

    def compare(self):
        """After three steps: all tensors that should have changed, and a few that should not."""
        named = dict(self.model.named_parameters())
        changed = {name for name, value in self.before.items() if checksum(named[name]) != value}
        wrong = sorted(name for name in changed if not named[name].requires_grad)
        if wrong:
            raise InputError(f"after three steps frozen tensors have changed ({shortened(wrong)}): something writes to them "
                             f"besides the optimiser; the result would not be what was asked for")
        learning = [name for name in self.before if named[name].requires_grad]
        if learning and not changed:
            return [f"WARNING: after three steps none of {shortened(learning)} has changed: --lr is too small for them"]
        rates = {id(p): group["lr"] for group in self.optimizer.param_groups for p in group["params"]}

        def shows(p):                                        # or is the step too small for fp32 to add it to such numbers?
            return not rates[id(p)] or whole(p.detach()).abs().min().item() * 2**-20 < rates[id(p)]
        still = [n for n in learning if n not in changed and n not in self.report.zero and shows(named[n])]
        return [f"WARNING: after three steps {len(still)} of {len(learning)} trainable tensors have not changed "
                f"({shortened(still)}): the optimiser does not reach them"] if still else []


def spaced(names, count=4):
    """`count` of the names at even distances, the first and the last among them."""
    return names if len(names) <= count else [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]


def checksum(tensor):
    """The sum in float64, as a number (NaN where the tensor holds one)."""
    return whole(tensor.detach()).sum(dtype=torch.float64).item()
