"""Training in fp16 (--precision fp16): for GPUs that have no fast bf16, such as a T4 or a V100.

fp16 has 11 significant bits, bf16 8. But below 6e-8 fp16 has only 0: small gradients are lost.
So the gradient of the loss is multiplied by a scale, and those of the parameters, which are in
fp32, are divided by it (Micikevicius et al. 2017, arXiv:1710.03740). If some gradient is then not
finite, the scale was too large: it is halved, and the step is computed again. After GROW_AFTER
steps without overflow it is doubled. torch.amp.GradScaler has the same numbers, but skips a step
that overflows; a run of 100 steps can spare none.

It attaches to a step of the loop by the arguments `objective` and `update`.
"""
import math

from ..files import check_fields
from . import loop

FIRST_SCALE, LEAST_SCALE, LARGEST_SCALE = 2.0**16, 1.0, 2.0**24
GROW_AFTER = 2000
SCALE_FIELDS = {
    "scale": (lambda v: type(v) is float and LEAST_SCALE <= v <= LARGEST_SCALE,
              f"from {LEAST_SCALE} to {LARGEST_SCALE}"),
    "good_steps": (lambda v: type(v) is int and 0 <= v < GROW_AFTER, "a number of steps")}


class Overflow(Exception):
    """A scaled gradient is not finite, and a smaller scale may mend that."""


class LossScale:
    """scale: the factor of the next step's gradient; good_steps: steps without overflow since the
    scale was set."""

    def __init__(self):
        self.scale, self.good_steps = FIRST_SCALE, 0

    def shrink(self):
        self.scale, self.good_steps = self.scale / 2, 0

    def count_good_step(self):
        self.good_steps += 1
        if self.good_steps == GROW_AFTER:
            self.scale, self.good_steps = min(self.scale * 2, LARGEST_SCALE), 0

    def update_weights(self, model, optimizer, settings, loss):
        """As loop.update_weights, for scaled gradients, which are divided by the scale first.
        Overflow if a gradient is not finite, or Diverged if no smaller scale can mend that."""
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(self.scale)
        try:
            loop.update_weights(model, optimizer, settings, loss)
        except loop.Diverged:
            if math.isfinite(loss) and self.scale > LEAST_SCALE:
                raise Overflow from None
            raise


class ScaledObjective:
    """An objective, such as losses.CrossEntropy, with a scaled gradient."""

    def __init__(self, objective, scale):
        self.objective, self.divisor, self.scale = objective, objective.divisor, scale

    def __call__(self, model, batch):
        """The summed loss of a batch, itself not scaled -> scalar."""
        loss = self.objective(model, batch)
        loss.register_hook(lambda gradient: gradient * self.scale)
        return loss


def step_in_fp16(take_step, objective, loss_scale):
    """-> a function as loop.take_step without its last two arguments. take_step: that of loop.py
    or of parallel/processes.py, in which all processes find the same gradients."""
    def step(model, optimizer, train, rows, settings):
        while True:
            scaled = ScaledObjective(objective, loss_scale.scale)
            try:
                loss = take_step(model, optimizer, train, rows, settings, scaled,
                                 loss_scale.update_weights)
            except Overflow:
                loss_scale.shrink()
            else:
                loss_scale.count_good_step()
                return loss
    return step


def keep_scale(store, loss_scale):
    """Let a checkpoint.Store save and load the scale with the state of a run. -> the store"""
    save, load = store.save, store.load

    def save_with_scale(model, optimizer, progress):
        save(model, optimizer, progress | {"loss_scale": vars(loss_scale)})

    def load_with_scale(model, optimizer):
        progress = load(model, optimizer)
        if progress is not None:
            kept = check_fields(progress.pop("loss_scale", None), SCALE_FIELDS, store.state)
            loss_scale.scale, loss_scale.good_steps = kept["scale"], kept["good_steps"]
        return progress
    store.save, store.load = save_with_scale, load_with_scale
    return store
