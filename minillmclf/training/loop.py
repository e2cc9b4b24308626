"""Fine-tuning in one plain loop: batch, loss, backward, step; evaluate each epoch, keep the best.

The loop sees `model(batch) -> logits (B, C)` and an objective (losses.py). The store keeps the
run's files (checkpoint.py): a run may be killed at any moment, and the next call with the same
settings resumes it from the last state on disk. The result is, on a CPU bit for bit, that of a run
without interruption, because everything random in a step follows from (seed, step).
Optional features are attached from outside: a step is a function, which others may wrap.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import InputError
from . import lr_factors
from .checkpoint import seed_step
from .losses import CrossEntropy
from .metrics import is_better
from .optim import build_optimizer, lr_factor, set_lr
from .plan import plan_epochs


class Diverged(InputError):
    """Training has diverged: a gradient or a probability is not finite."""


@dataclass
class Hooks:
    """Callbacks: on_step(step, number of steps, loss); before_dev(), before the dev rows are
    answered; on_epoch(history[-1])."""
    on_step: Callable = lambda *_: None
    before_dev: Callable = lambda: None
    on_epoch: Callable = lambda *_: None


def take_step(model, optimizer, train, rows, settings, objective=None, update=None):
    """One optimiser step on a batch -> its mean loss, a number.

    train: plan.Split; rows: the row numbers of the batch; objective: such as CrossEntropy;
    update: called in place of update_weights.
    """
    objective = objective or CrossEntropy(None, settings.label_smoothing, settings.focal_gamma)
    divisor = objective.divisor(torch.tensor([train.targets[row] for row in rows]))
    optimizer.zero_grad(set_to_none=True)
    loss = add_gradients(model, train, rows, settings, objective, divisor)
    (update or update_weights)(model, optimizer, settings, loss)
    return loss


def add_gradients(model, train, rows, settings, objective, divisor):
    """Add the gradient of (summed loss of `rows`) / divisor to the parameters -> that quotient.

    A micro-batch has micro_batch_size rows (0: all). `divisor` is that of the full batch, so the
    gradients of the micro-batches add up to that of the full batch.
    """
    device, total = next(model.parameters()).device, 0.0
    size = settings.micro_batch_size or len(rows)
    for start in range(0, len(rows), size):
        batch = model.collate(train.encoded, rows[start:start + size], train.targets).to(device)
        with autocast(settings, device):
            loss = objective(model, batch) / divisor
        loss.backward()
        total += loss.item()
    return total


def autocast(settings, device):
    """The context of a forward pass in the precision of the settings: "fp32", "bf16" or "fp16"."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def update_weights(model, optimizer, settings, loss):
    """Clip the gradient and take the optimiser's step. A gradient that is not finite raises
    Diverged, and the weights stay as they are. loss: a number for that error's text."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    norm = float(torch.nn.utils.clip_grad_norm_(trainable, settings.clip or math.inf))
    if not math.isfinite(norm):
        raise Diverged(f"loss {loss}, gradient norm {norm}: training has diverged; lower --lr or "
                       "set --precision fp32")
    optimizer.step()


def fit(model, train, dev, settings, store, step=take_step, hooks=Hooks()):
    """Train on `train`, choose the best epoch on `dev` -> progress, or None if the user stopped.
    progress: "history", a dict per epoch; "best"; "step"; "losses" of the unfinished epoch.

    model: a Classifier, which has the weights of its best epoch at the end; train, dev: plan.Split;
    store: checkpoint.Store; step: called as take_step, without the objective.
    """
    s = settings
    factors = lr_factors.of_settings(model, s)
    optimizer = build_optimizer(model, s.lr, s.weight_decay, factors, s.optimizer)
    progress = store.resume(model, optimizer, s.metric if dev.encoded else None)
    plan = plan_epochs(model, train, s)
    warmup = round(s.warmup * plan.steps)
    for epoch in range(len(progress["history"]), plan.epochs):
        if is_patience_over(progress, s):
            break
        model.train()
        for number, rows in steps_left(plan[epoch], progress):
            seed_step(s.seed, number)
            set_lr(optimizer, lr_factor(number - 1, plan.steps, warmup, s.schedule))
            loss = step(model, optimizer, train, rows, s)
            progress["step"] = number
            progress["losses"].append(loss)
            hooks.on_step(number, plan.steps, loss)
            stopping = store.is_stop_asked()
            if number % s.save_every == 0 or stopping:
                store.save(model, optimizer, progress)
            if stopping:
                return None
        hooks.before_dev()
        finish_epoch(model, dev, s, store, progress)
        hooks.on_epoch(progress["history"][-1])
    if not progress["history"]:                            # no epochs: the model as it began
        hooks.before_dev()
        finish_epoch(model, dev, s, store, progress)
    store.save(model, optimizer, progress)                 # what follows may be stopped too
    store.load_best(model)
    return progress


def steps_left(batches, progress):
    """The steps of an epoch that a run has not taken yet -> (number, rows) of each.

    batches: the row numbers of each step of the epoch; progress: as `fit` keeps it. The numbers
    count the steps of all epochs, from 1.
    """
    taken = len(progress["losses"])                        # in this epoch, before an interruption
    return enumerate(batches[taken:], progress["step"] + 1)


def finish_epoch(model, dev, settings, store, progress):
    """Evaluate on dev, add the results to the history, save the weights if they are the best. If
    there are no dev rows, those of the last epoch are."""
    metric, losses, epoch = settings.metric, progress["losses"], len(progress["history"]) + 1
    entry = {"epoch": epoch, "step": progress["step"],
             "train_loss": sum(losses) / max(1, len(losses))}
    if dev.encoded:
        try:
            logits = model.compute_logits(dev.encoded, settings.eval_batch_size)        # (N, C)
        except InputError:
            raise Diverged(f"epoch {epoch}: the answers to the dev rows are not finite: training "
                           "has diverged; lower --lr or set --precision fp32") from None
        entry |= model.task.measure(model.probabilities(logits), dev.targets)
    progress["losses"] = []
    progress["history"].append(entry)
    best = progress["best"] and progress["history"][progress["best"]["epoch"] - 1]     # or None
    if not dev.encoded or is_better(metric, entry, best):
        progress["best"] = {"epoch": epoch, metric: entry.get(metric)}
        store.save_best(model, epoch)


def is_patience_over(progress, settings):
    """Was the best value on dev first reached `patience` epochs ago, or earlier?"""
    values = [entry[settings.metric] for entry in progress["history"] if settings.metric in entry]
    return bool(settings.patience and values) and (
        len(values) - 1 - values.index(progress["best"][settings.metric]) >= settings.patience)
