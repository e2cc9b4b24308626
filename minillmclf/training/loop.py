"""Fine-tuning as one plain loop: batches, loss, backward, step; evaluate after each epoch, keep the best.

The loop sees `model(batch) -> scores (B, C)` and a loss; it never asks how the scores come about. It may be killed at
any moment: the next call with the same settings goes on from the last state on disk, and ends bit for bit where an
uninterrupted run ends, because everything random in a step follows from (seed, step).
"""
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import InputError
from ..models.weights import open_tensors, write_tensors
from ..text.batch import collate, make_batches
from .checkpoint import load_state, save_state, seed_step
from .metrics import better, evaluate
from .objectives import class_count, class_loss
from .optim import build_optimizer, rate_factor, set_rate


@dataclass
class Rows:
    """One split, ready for the model: encoded [(ids, types)] and labels, class numbers."""
    encoded: list
    labels: list


def plan_epochs(train, s):
    """The batches of all epochs, a list of lists of rows each; settled beforehand by the seed."""
    lengths = [len(ids) for ids, _ in train.encoded]
    per_epoch = len(make_batches(lengths, s.batch_size, seed=f"{s.seed}:0", tokens=s.batch_tokens))
    epochs = max(s.epochs, math.ceil(s.min_steps / per_epoch))
    return [make_batches(lengths, s.batch_size, seed=f"{s.seed}:{epoch}", tokens=s.batch_tokens) for epoch in range(epochs)]


def take_step(model, optimizer, train, rows, s, class_weights):
    """One optimiser step on the rows of one batch, in pieces of micro_batch_size rows -> the batch's mean loss.

    Each piece's summed loss is divided by what the whole batch counts, so the pieces add up to the big batch's gradient.
    """
    device = next(model.parameters()).device
    weights = None if class_weights is None else class_weights.to(device)
    count = class_count(torch.tensor([train.labels[row] for row in rows], device=device), weights).to(device)
    size, total = s.micro_batch_size or len(rows), 0.0
    optimizer.zero_grad(set_to_none=True)
    for start in range(0, len(rows), size):
        batch = collate(train.encoded, rows[start:start + size], labels=train.labels).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=s.precision == "bf16"):
            scores = model(batch)
        loss = class_loss(scores, batch.labels, weights, s.label_smoothing) / count
        loss.backward()
        total += loss.item()
    trained = [p for p in model.parameters() if p.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(trained, s.clip if s.clip else float("inf"))
    if not torch.isfinite(norm):
        raise InputError(f"loss {total}, gradient norm {norm.item()}: training has diverged; lower --lr or set --precision fp32")
    optimizer.step()
    return total


def fit(model, train, dev, s, folder, stop=None, class_weights=None, on_step=None, on_epoch=None):
    """Train on `train`, choose the best epoch on `dev` -> progress: "history", one dict an epoch, and "best".

    model: Classifier; train, dev: Rows; s: Settings; folder: where state.safetensors and best.safetensors live;
    stop: object whose `.asked` ends the loop between two steps; on_step: called with (step, total, loss);
    on_epoch: called with an epoch's line of the history.
    The model ends with its best weights. Returns None if it was stopped.
    """
    state, best = Path(folder) / "state.safetensors", Path(folder) / "best.safetensors"
    optimizer = build_optimizer(model, s.lr, s.weight_decay, s.layer_decay)
    progress = load_state(state, model, optimizer) or {"step": 0, "history": [], "best": None, "losses": []}
    plan = plan_epochs(train, s)
    total, step = sum(map(len, plan)), 0
    for epoch, batches in enumerate(plan):
        if len(progress["history"]) > epoch:
            step += len(batches)
            continue
        model.train()
        for rows in batches:
            step += 1
            if step <= progress["step"]:
                continue
            seed_step(s.seed, step)
            set_rate(optimizer, rate_factor(step - 1, total, round(s.warmup * total), s.schedule))
            loss = take_step(model, optimizer, train, rows, s, class_weights)
            progress["step"] = step
            progress["losses"].append(loss)
            if on_step:
                on_step(step, total, loss)
            if step % s.save_every == 0 or (stop and stop.asked):
                save_state(state, model, optimizer, progress)
            if stop and stop.asked:
                return None
        finish_epoch(model, dev, s, progress, best)
        if on_epoch:
            on_epoch(progress["history"][-1])
        if s.patience and epoch + 1 - progress["best"]["epoch"] >= s.patience:
            break
    restore(model, best)
    return progress


def finish_epoch(model, dev, s, progress, best):
    """Evaluate, write down, and keep the weights if they are the best so far."""
    probabilities = model.scores(dev.encoded, s.eval_batch_size).softmax(-1).numpy()
    epoch = len(progress["history"]) + 1
    record = {"epoch": epoch, "step": progress["step"], "train_loss": sum(progress["losses"]) / len(progress["losses"]),
              **evaluate(probabilities, dev.labels, model.labels)}
    progress["losses"] = []
    progress["history"].append(record)
    if better(s.metric, record[s.metric], progress["best"] and progress["best"][s.metric]):
        progress["best"] = {"epoch": epoch, s.metric: record[s.metric]}
        trained = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}
        write_tensors(best, trained, {"epoch": str(epoch)})


def restore(model, best):
    """Put the best epoch's weights back."""
    file, names = open_tensors(best), dict(model.named_parameters())
    with torch.no_grad():
        for name in file.keys():
            names[name].copy_(file.get_tensor(name))
    model.eval()
