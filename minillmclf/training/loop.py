"""Fine-tuning as one plain loop: batches, loss, backward, step; evaluate after each epoch, keep the best.

The loop sees `model(batch) -> scores (B, C)` and a loss; it never asks how the scores come about. It may be killed at
any moment: the next call with the same settings goes on from the last state on disk, and ends bit for bit where an
uninterrupted run ends, because everything random in a step follows from (seed, step).

It runs in one process, or in several under torchrun; what starts with `parallel.` does nothing in the first case.
"""
import random
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import InputError
from ..files import check_fields
from ..models.weights import write_tensors
from ..text.batch import make_batches, row_size
from .parallel import processes as parallel
from .checkpoint import is_count, is_number, load_state, numbers, read_state, save_state, seed_step
from .monitors.gradients import Checkup
from .features import remembered
from .metrics import better
from .monitors.nonfinite import first_nonfinite
from .losses import Classes
from .optim import build_optimizer, rate_factor, set_rate


MOST_COUNTED = 10_000                   # epochs whose steps are counted one by one

PROGRESS = {"step": (is_count, "a number of steps"), "losses": (numbers, "a list of numbers"),
            "history": (lambda v: isinstance(v, list) and all(isinstance(line, dict) and is_count(line.get("step"))
                                                              for line in v), "a list with the step of each epoch"),
            "best": (lambda v: v is None or isinstance(v, dict) and is_count(v.get("epoch")), "the best epoch, or null")}


@dataclass
class Rows:
    """One split, ready for the model: encoded, rows as text/batch.py has them, and labels, class numbers, or where a row
    may have several, for each row C numbers, 0.0 or 1.0."""
    encoded: list
    labels: list


def plan_epochs(train, s, size=row_size):
    """The batches of all epochs, settled beforehand by the seed -> Plan. size: of a row."""
    return Plan(train, s, size)


class Plan:
    """plan[number] -> the batches of an epoch, a list of lists of rows, made when they are asked for.

    epochs: how many there are; steps: in all of them. Where --batch-tokens makes epochs differ, `steps` is counted over the
    first MOST_COUNTED of them, and the rest taken to be like these.
    """

    def __init__(self, train, s, size=row_size):
        self.lengths, self.labels, self.s = list(map(size, train.encoded)), train.labels, s
        first = len(self[0])
        self.epochs = max(s.epochs, -(-s.min_steps // first))
        counted = min(self.epochs, MOST_COUNTED) if s.batch_tokens else 1
        self.steps = sum(len(self[number]) for number in range(counted)) * self.epochs // counted

    def __getitem__(self, number):
        s, seed = self.s, f"{self.s.seed}:{number}"
        rows = drawn(self.labels, seed) if s.sampling == "balanced" else range(len(self.lengths))
        batches = make_batches([self.lengths[row] for row in rows], s.batch_size, seed=seed, tokens=s.batch_tokens)
        return [[rows[place] for place in batch] for batch in batches]

    def __len__(self):
        return self.epochs

    def __iter__(self):
        return (self[number] for number in range(self.epochs))


def drawn(labels, seed):
    """As many rows as there are, each class alike (up to one row), by repeating rows of small classes -> row numbers.

    Of a class no row is drawn a second time before all are. Who learns from such an epoch takes all classes for equally
    likely: its probabilities need a calibration where they are not.
    """
    draw, rows = random.Random(f"balanced:{seed}"), {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    turns, chosen, left = sorted(rows), [], {label: [] for label in rows}
    draw.shuffle(turns)
    for place in range(len(labels)):
        label = turns[place % len(turns)]
        left[label] = left[label] or draw.sample(rows[label], len(rows[label]))
        chosen.append(left[label].pop())
    return chosen


def take_step(model, optimizer, train, rows, s, objective=None):
    """One optimiser step on the rows of one batch, in pieces of micro_batch_size rows -> the batch's mean loss.

    objective: of objectives.py, Classes, LabelSets or Completion. Each piece's summed loss is divided by what the whole batch counts, so the pieces add up to the big batch's gradient,
    also where several processes compute a share of the rows each.
    """
    device = next(model.parameters()).device
    objective = objective or Classes(smoothing=s.label_smoothing, gamma=s.focal)
    count = objective.count(torch.tensor([train.labels[row] for row in rows], device=device))
    pieces, total = parallel.pieces(rows, s.micro_batch_size), 0.0
    optimizer.zero_grad(set_to_none=True)
    for piece in pieces:
        batch = model.collate(train.encoded, piece or rows[:1], train.labels).to(device)
        with autocast(s, device):
            loss = objective(model, batch) / count
        if not piece:                                         # other processes have a row more: a borrowed one counts 0
            loss = loss * 0
        loss.backward()
        total += loss.item()
    total, trained = parallel.add_up(total), [p for p in model.parameters() if p.requires_grad]
    parallel.add_gradients(trained)
    norm = parallel.whole(torch.nn.utils.clip_grad_norm_(trained, s.clip if s.clip else float("inf")))
    if not torch.isfinite(norm):
        raise InputError(f"loss {total}, gradient norm {norm.item()}: training has diverged; lower --lr or set --precision "
                         f"fp32{where_diverged(model, train, pieces, s, device)}")
    optimizer.step()
    return total


def autocast(s, device):
    """The precision of forward passes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=s.precision == "bf16")


def where_diverged(model, train, pieces, s, device):
    """The module where numbers stopped being finite, as the end of a sentence."""
    found = None
    for piece in pieces:
        with autocast(s, device):
            found = found or first_nonfinite(model, model.collate(train.encoded, piece or [0], train.labels).to(device))
    return f"; {parallel.first_text(found) or 'the forward pass is finite: it arose in the loss or in the gradients'}"


def fit(model, train, dev, s, folder, stop=None, objective=None, on_step=None, on_epoch=None, on_finding=None):
    """Train on `train`, choose the best epoch on `dev` -> progress: "history", one dict an epoch, and "best".

    model: Classifier; train, dev: Rows; s: Settings; folder: where state.safetensors and best.safetensors live;
    stop: object whose `.asked` ends the loop between two steps; objective: as in `take_step`; on_step: called with (step, total, loss);
    on_epoch: called with a line of the history; on_finding: with what the gradient doctor says of the first steps.
    The model ends with its best weights. Returns None if it was stopped.
    """
    with remembered(model, [*train.encoded, *dev.encoded], s):
        return run_epochs(model, train, dev, s, folder, stop, objective, on_step, on_epoch, on_finding)


def run_epochs(model, train, dev, s, folder, stop, objective, on_step, on_epoch, on_finding):
    """What `fit` is, once it is settled how the body is asked."""
    state, best = Path(folder) / "state.safetensors", Path(folder) / "best.safetensors"
    optimizer = build_optimizer(model, s.lr, s.weight_decay, s.layer_decay, s.optimizer)
    progress = load_state(state, model, optimizer) or {"step": 0, "history": [], "best": None, "losses": []}
    plan, checkup = plan_epochs(train, s, model.row_size), Checkup(model, optimizer)
    check_progress(progress, s, state, best)
    total, step = plan.steps, progress["step"] - len(progress["losses"])
    for epoch in range(len(progress["history"]), plan.epochs):
        model.train()
        for rows in plan[epoch]:
            step += 1
            if step <= progress["step"]:
                continue
            seed_step(parallel.own_seed(s.seed), step)
            set_rate(optimizer, rate_factor(step - 1, total, round(s.warmup * total), s.schedule))
            loss = take_step(model, optimizer, train, rows, s, objective)
            progress["step"] = step
            progress["losses"].append(loss)
            for line in checkup.after_step():
                if on_finding:
                    on_finding(line)
            if on_step:
                on_step(step, total, loss)
            stopping = parallel.any_of(bool(stop and stop.asked))
            if step % s.save_every == 0 or stopping:
                save_state(state, model, optimizer, progress)
            if stopping:
                return None
        finish_epoch(model, dev, s, progress, best)
        if on_epoch:
            on_epoch(progress["history"][-1])
        top = progress["best"][s.metric]          # a tie is no progress: its first epoch counts
        reached = next(line["epoch"] for line in progress["history"] if line[s.metric] == top)
        if s.patience and epoch + 1 - reached >= s.patience:
            break
    parallel.wait()
    restore(model, best)
    return progress


def check_progress(progress, s, state, best):
    """Raise InputError unless a run can go on from what its state says, and from its best weights so far."""
    check_fields(progress, PROGRESS, state)
    history, found = progress["history"], progress["best"]
    begun = history[-1]["step"] if history else 0
    its = history[found["epoch"] - 1] if found and 1 <= found["epoch"] <= len(history) else {}
    if progress["step"] != begun + len(progress["losses"]) or bool(history) != bool(found) \
            or not all(is_number(line.get(name)) for line in history
                       for name in (s.metric, "log_loss")) \
            or found and its.get(s.metric) != found.get(s.metric):
        raise InputError(f"{state}: its steps, losses and best epoch do not fit together: --overwrite starts anew")
    if found and not best.exists():
        raise InputError(f"{best}: is not there, with the weights of the best epoch so far: --overwrite starts anew")


def finish_epoch(model, dev, s, progress, best):
    """Evaluate, write down, and keep the weights if they are the best so far."""
    epoch = len(progress["history"]) + 1
    try:
        probabilities = model.probabilities(parallel.scores(model, dev.encoded, s.eval_batch_size))
    except InputError:                                        # of the last step's weights
        raise InputError(f"epoch {epoch}: the answers to the dev rows are not finite: training has "
                         "diverged; lower --lr or set --precision fp32") from None
    record = {"epoch": epoch, "step": progress["step"], "train_loss": sum(progress["losses"]) / len(progress["losses"]),
              **model.task.measure(probabilities, dev.labels)}
    progress["losses"] = []
    progress["history"].append(record)
    earlier = progress["best"] and progress["history"][progress["best"]["epoch"] - 1]
    if better(s.metric, record, earlier):
        progress["best"] = {"epoch": epoch, s.metric: record[s.metric]}
        trained = {n: parallel.whole(p.detach()) for n, p in model.named_parameters() if p.requires_grad}
        if parallel.first():
            write_tensors(best, {n: p.cpu().contiguous() for n, p in trained.items()}, {"epoch": str(epoch)})


def restore(model, best):
    """Put the best epoch's weights back."""
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tensors = read_state(best, names)[0]
    with torch.no_grad():
        for name, tensor in tensors.items():
            names[name].copy_(parallel.share_like(tensor, names[name]))
    model.eval()
