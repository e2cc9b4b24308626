"""Lesson 9, the loop: cases and known-wrong variants."""
import hashlib
import math
import random
from types import SimpleNamespace

import torch
from torch import nn

from lessons.exercises.kit import Case, Exercise

# ---------------------------------------------------------------- 9.1 parameter_groups


class Parts(nn.Module):
    """Parameters of many shapes. The output shares the embedding's matrix; `position` is frozen."""

    def __init__(self, D):
        super().__init__()
        self.embedding = nn.Embedding(7, D)
        self.embedding_norm = nn.LayerNorm(D)
        self.position = nn.Embedding(4, D)
        self.layers = nn.ModuleList(nn.ModuleDict({
            "q_proj": nn.Linear(D, D), "norm_proj": nn.Linear(D, 2, bias=False),
            "attention_norm": nn.LayerNorm(D)}) for _ in range(2))
        self.scale = nn.Parameter(torch.ones(D))
        self.kernel = nn.Parameter(torch.ones(D, 2, 3))
        self.out = nn.Linear(D, 7)
        self.out.weight = self.embedding.weight


def wrong_groups(decays=lambda name, p: p.dim() >= 2, takes=lambda name, p: p.requires_grad,
                 rates=lambda lr, factor: (lr * factor, lr * factor), decay_of=lambda d, factor: d):
    """A variant: parameter_groups with one thing in it changed. rates: -> lr, base_lr."""
    def parameter_groups(model, lr, weight_decay, factor_of=None):
        groups = []
        for name, p in model.named_parameters():
            if takes(name, p):
                factor = factor_of(name, p) if factor_of else 1.0
                first, base = rates(lr, factor)
                decay = decay_of(weight_decay, factor) if decays(name, p) else 0.0
                groups.append({"params": [p], "lr": first, "base_lr": base, "weight_decay": decay})
        return groups
    return parameter_groups


def no_norm_or_bias(name, p):
    return "norm" not in name and "bias" not in name


class ParameterGroups(Exercise):
    """One or two products of Python's floats: compared to 1e-9."""
    tolerance = 1e-9
    variants = {
        "all parameters decay": wrong_groups(lambda name, p: True),
        "norms decay, biases alone do not":
            wrong_groups(lambda name, p: not name.endswith("bias")),
        "the names tell what decays": wrong_groups(no_norm_or_bias),
        "biases and norms decay, matrices do not": wrong_groups(lambda name, p: p.dim() < 2),
        "embeddings do not decay":
            wrong_groups(lambda name, p: p.dim() >= 2 and "embedding" not in name),
        "matrices decay, but tensors of three dimensions do not":
            wrong_groups(lambda name, p: p.dim() == 2),
        "frozen parameters are trained": wrong_groups(takes=lambda name, p: True),
        "what does not decay is not trained":
            wrong_groups(takes=lambda name, p: p.requires_grad and p.dim() >= 2),
        "factor_of is ignored": wrong_groups(rates=lambda lr, factor: (lr, lr)),
        "base_lr lacks the factor": wrong_groups(rates=lambda lr, factor: (lr * factor, lr)),
        "the decay is multiplied by the factor, too":
            wrong_groups(decay_of=lambda decay, factor: decay * factor),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2)))

    def inputs(self, draw):
        def case(name, kind, lr, weight_decay, factors=None):
            return Case(name, kind, {"D": int(draw.integers(2, 6)), "lr": lr,
                                     "weight_decay": weight_decay, "factors": factors})
        halves = {"embedding": 0.25, "layers.0": 0.5}
        return [case("no decay", "contract", 0.1, 0.0),
                case("decay", "parity", 3e-4, 0.01),
                case("another decay", "parity", 1e-3, 0.1),
                case("lower rates for lower layers", "parity", 1e-3, 0.1, halves)]

    def call(self, function, case):
        given = case.arguments
        model, factors = Parts(given["D"]), given["factors"]
        model.position.requires_grad_(False)

        def factor_of(name, parameter):
            return next((f for start, f in factors.items() if name.startswith(start)), 1.0)
        groups = function(model, given["lr"], given["weight_decay"],
                          *([factor_of] if factors else []))
        found = {}
        for name, parameter in model.named_parameters():
            mine = [[group[key] for key in ("lr", "base_lr", "weight_decay")] for group in groups
                    for each in group["params"] if each is parameter]
            found[f"[lr, base_lr, weight_decay] of {name}"] = mine[0] if len(mine) == 1 \
                else f"in {len(mine) or 'no'} groups"
        return found


# ---------------------------------------------------------------- 9.2 lr_factor

def wrong_factor(rise=lambda step, warmup: (step + 1) / (warmup + 1),
                 done=lambda step, total, warmup: (step - warmup) / max(1, total - warmup),
                 cosine=lambda done: 0.5 * (1 + math.cos(math.pi * done)),
                 rises=lambda step, warmup, schedule: step < warmup):
    def lr_factor(step, total, warmup, schedule):
        if rises(step, warmup, schedule):
            return rise(step, warmup)
        share = done(step, total, warmup)
        return {"linear": 1 - share, "cosine": cosine(share), "constant": 1.0}[schedule]
    return lr_factor


class LrFactor(Exercise):
    """A few operations on Python's floats: compared to 1e-9."""
    tolerance = 1e-9
    variants = {
        "the first step has the factor 0": wrong_factor(lambda step, warmup: step / warmup),
        "the factor is 1 in the last step of the warm-up":
            wrong_factor(lambda step, warmup: (step + 1) / warmup),
        "the fall starts with the run, not after the warm-up":
            wrong_factor(done=lambda step, total, warmup: step / total),
        "the last step has the factor 0":
            wrong_factor(done=lambda step, total, warmup: (step - warmup) / (total - 1 - warmup)),
        "the fall is one step ahead":
            wrong_factor(done=lambda step, total, warmup: (step - warmup + 1) / (total - warmup)),
        "the cosine falls to -1": wrong_factor(cosine=lambda done: math.cos(math.pi * done)),
        "the cosine is a quarter of a turn":
            wrong_factor(cosine=lambda done: math.cos(math.pi * done / 2)),
        "the cosine is in degrees":
            wrong_factor(cosine=lambda done: 0.5 * (1 + math.cos(math.radians(done)))),
        "there is no warm-up": wrong_factor(rises=lambda step, warmup, schedule: False),
        "a constant rate has no warm-up":
            wrong_factor(rises=lambda step, warmup, schedule: step < warmup and
                         schedule != "constant"),
    }
    hint_for = dict(zip(variants, (0, 0, 1, 1, 1, 2, 2, 2, 0, 3)))

    def inputs(self, draw):
        def case(name, kind, warmup, schedule):
            total = warmup + int(draw.integers(4, 12))
            return Case(name, kind, {"total": total, "warmup": warmup, "schedule": schedule})
        return [case("a linear fall", "contract", 2, "linear"),
                case("linear", "parity", 3, "linear"),
                case("linear, no warm-up", "parity", 0, "linear"),
                case("cosine", "parity", 4, "cosine"),
                case("constant", "parity", 3, "constant"),
                case("a warm-up of one step", "parity", 1, "cosine")]

    def call(self, function, case):
        given = case.arguments
        return {"factors": [float(function(step, given["total"], given["warmup"],
                                           given["schedule"])) for step in range(given["total"])]}


# ---------------------------------------------------------------- 9.3 add_gradients

class Mean(nn.Module):
    """A classifier: the mean of the tokens' embeddings, and a matrix. Padding does not count."""

    def __init__(self, embedding, out):
        super().__init__()
        self.embedding, self.out = nn.Parameter(embedding), nn.Parameter(out)       # (V, D), (D, C)

    def collate(self, encoded, rows, labels):
        width = max(len(encoded[row]) for row in rows)
        ids = [encoded[row] + [0] * (width - len(encoded[row])) for row in rows]
        mask = [[1.0] * len(encoded[row]) + [0.0] * (width - len(encoded[row])) for row in rows]
        return Part(torch.tensor(ids), torch.tensor(mask),
                    torch.tensor([labels[row] for row in rows]))

    def forward(self, batch):
        mask = batch.mask[:, :, None]                                               # (B, T, 1)
        pooled = (self.embedding[batch.ids] * mask).sum(1) / mask.sum(1)            # (B, D)
        return pooled @ self.out                                                    # (B, C)


class Part(SimpleNamespace):
    """ids, mask: (B, T); labels: (B)."""

    def __init__(self, ids, mask, labels):
        super().__init__(ids=ids, mask=mask, labels=labels)

    def to(self, device):
        return self


class Watched:
    """The weighted cross-entropy, summed; it notes what it was called with. sizes: rows of each
    call; added: did the gradient grow since the call before?"""

    def __init__(self, weights):
        self.weights, self.sizes, self.added, self.norm = weights, [], [], None

    def divisor(self, targets):
        return self.weights[targets].sum()

    def __call__(self, model, batch):
        norm = 0.0 if model.out.grad is None else model.out.grad.abs().sum().item()
        if self.norm is not None:
            self.added.append(norm != self.norm)
        self.norm = norm
        self.sizes.append(len(batch.labels))
        return nn.functional.cross_entropy(model(batch), batch.labels, weight=self.weights,
                                           reduction="sum")


def clear(model):
    for p in model.parameters():
        p.grad = None


def wrong_sum(quotient=lambda loss, divisor, own, rows, parts: loss / divisor, before=None,
              inside=None, once=False, keep=lambda parts, size: parts, returns=sum,
              whole=lambda size, rows: size or len(rows)):
    """A variant: add_gradients with one thing in it changed.

    quotient: own is the divisor of the micro-batch, rows and parts are counts; before, inside:
    called with the model before all micro-batches, or before each; once: one backward for all."""
    def add_gradients(model, train, rows, settings, objective, divisor):
        size = whole(settings.micro_batch_size, rows)
        parts = keep([rows[start:start + size] for start in range(0, len(rows), size)], size)
        losses, waiting = [], 0.0
        if before:
            before(model)
        for part in parts:
            if inside:
                inside(model)
            batch = model.collate(train.encoded, part, train.targets)
            own = objective.divisor(batch.labels)
            loss = quotient(objective(model, batch), divisor, own, len(rows), len(parts))
            if once:
                waiting = waiting + loss
            else:
                loss.backward()
            losses.append(loss.item())
        if once:
            waiting.backward()
        return returns(losses)
    return add_gradients


def within_the_batch(model, train, rows, settings, objective, divisor):
    return wrong_sum()(model, train, list(range(len(rows))), settings, objective, divisor)


def weighted_by_rows(model, train, rows, settings, objective, divisor):
    """Right as long as all rows have the same weight."""
    size, total = settings.micro_batch_size or len(rows), 0.0
    for start in range(0, len(rows), size):
        part = rows[start:start + size]
        batch = model.collate(train.encoded, part, train.targets)
        mean = objective(model, batch) / objective.divisor(batch.labels)
        loss = mean * len(part) / len(rows)
        loss.backward()
        total += loss.item()
    return total


class AddGradients(Exercise):
    """fp32 sums of at most 7 rows with numbers near 1: 1e-5."""
    variants = {
        "the mean of the micro-batches' means":
            wrong_sum(lambda loss, divisor, own, rows, parts: loss / own / parts),
        "the mean of the micro-batches' means, weighted by their numbers of rows": weighted_by_rows,
        "the means of the micro-batches are added up":
            wrong_sum(lambda loss, divisor, own, rows, parts: loss / own),
        "the number of rows takes the place of the divisor":
            wrong_sum(lambda loss, divisor, own, rows, parts: loss / rows),
        "divided by the divisor, and by the number of micro-batches":
            wrong_sum(lambda loss, divisor, own, rows, parts: loss / divisor / parts),
        "not divided at all": wrong_sum(lambda loss, divisor, own, rows, parts: loss),
        "the gradient is cleared before each micro-batch": wrong_sum(inside=clear),
        "the gradient is cleared before the first micro-batch": wrong_sum(before=clear),
        "the last, smaller micro-batch is left out":
            wrong_sum(keep=lambda parts, size: [part for part in parts if len(part) == size]),
        "the rows are counted within the batch": within_the_batch,
        "micro_batch_size 0 means one row at a time":
            wrong_sum(whole=lambda size, rows: size or 1),
        "micro_batch_size is taken for the number of micro-batches":
            wrong_sum(whole=lambda size, rows: -(-len(rows) // size) if size else len(rows)),
        "one backward after all micro-batches": wrong_sum(once=True),
        "the loss of the last micro-batch is returned":
            wrong_sum(returns=lambda losses: losses[-1]),
        "the mean of the micro-batches' losses is returned":
            wrong_sum(returns=lambda losses: sum(losses) / len(losses)),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4)))

    def inputs(self, draw):
        def case(name, kind, rows, size, weighted=True, before=0.0):
            encoded = [draw.integers(1, 9, length).tolist() for length in (3, 6, 1, 4, 2, 5, 3, 4)]
            weights = draw.uniform(3) * 3 + 0.5 if weighted else torch.ones(3)
            return Case(name, kind, {
                "encoded": encoded, "targets": [0, 1, 2, 2, 1, 0, 1, 2], "rows": rows, "size": size,
                "weights": weights, "embedding": draw.normal(9, 4), "out": draw.normal(4, 3),
                "before": before})
        return [case("two micro-batches", "contract", [1, 2, 5, 7], 2),
                case("the whole batch", "parity", [2, 0, 5], 0),
                case("equal micro-batches", "parity", [7, 2, 4, 1, 6, 3], 2, weighted=False),
                case("a smaller last one", "parity", [7, 2, 4, 1, 6, 3, 5], 3, weighted=False),
                case("rows with weights", "parity", [1, 4, 3, 2, 7, 0], 3),
                case("weights, and a smaller last one", "parity", [6, 3, 5, 0, 1], 2),
                case("a gradient that is there already", "parity", [6, 2, 3], 2, before=0.5)]

    def call(self, function, case):
        given = case.arguments
        model = Mean(given["embedding"], given["out"])
        if given["before"]:
            for p in model.parameters():
                p.grad = torch.full_like(p, given["before"])
        train = SimpleNamespace(encoded=given["encoded"], targets=given["targets"])
        settings = SimpleNamespace(micro_batch_size=given["size"], precision="fp32")
        objective, rows = Watched(given["weights"]), list(given["rows"])
        divisor = objective.divisor(torch.tensor([train.targets[row] for row in rows]))
        loss = function(model, train, rows, settings, objective, divisor)
        return {"the gradient of embedding": model.embedding.grad,
                "the gradient of out": model.out.grad, "the loss that is returned": loss,
                "the numbers of rows of the micro-batches": objective.sizes,
                "whether .grad has changed before each further micro-batch": objective.added}


# ---------------------------------------------------------------- 9.4 steps_left

def wrong_left(skip=lambda progress: len(progress["losses"]),
               first=lambda progress: progress["step"] + 1):
    def steps_left(batches, progress):
        return enumerate(batches[skip(progress):], first(progress))
    return steps_left


class StepsLeft(Exercise):
    """Whole numbers: compared exactly."""
    variants = {
        "the epoch starts over, and the numbers go on": wrong_left(lambda progress: 0),
        "the epoch starts over, with its old numbers":
            wrong_left(lambda progress: 0,
                       lambda progress: progress["step"] - len(progress["losses"]) + 1),
        "as many batches are skipped as steps were taken in all epochs":
            wrong_left(lambda progress: progress["step"]),
        "the last step is taken again":
            wrong_left(lambda progress: max(0, len(progress["losses"]) - 1),
                       lambda progress: progress["step"] + (not progress["losses"])),
        "one batch too many is skipped": wrong_left(lambda progress: len(progress["losses"]) + 1),
        "the numbers count the steps of this epoch":
            wrong_left(first=lambda progress: len(progress["losses"]) + 1),
        "the first number is that of the last step":
            wrong_left(first=lambda progress: progress["step"]),
        "the numbers begin at 1": wrong_left(first=lambda progress: 1),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 0, 1, 1, 1)))

    def inputs(self, draw):
        def case(name, kind, steps, epochs, taken):
            batches = [draw.integers(0, 99, 3).tolist() for _ in range(steps)]
            progress = {"step": steps * epochs + taken, "losses": draw.uniform(taken).tolist(),
                        "history": [{"epoch": epoch + 1} for epoch in range(epochs)], "best": None}
            return Case(name, kind, {"batches": batches, "progress": progress})
        return [case("a new run", "contract", 4, 0, 0),
                case("stopped in the first epoch", "parity", 5, 0, 3),
                case("stopped in the third epoch", "parity", 6, 2, 4),
                case("stopped between two epochs", "parity", 3, 2, 0),
                case("stopped after the last step of an epoch", "parity", 4, 1, 4)]

    def call(self, function, case):
        given = case.arguments
        return {"steps": [[number, list(rows)]
                          for number, rows in function(given["batches"], given["progress"])]}


# ---------------------------------------------------------------- 9.5 seed_step

def wrong_seed(number):
    def seed_step(seed, step):
        torch.manual_seed(number(seed, step))
    return seed_step


def once(seed, step):
    if step == 1:
        torch.manual_seed(seed)


def python_alone(seed, step):
    random.seed(f"{seed}:{step}")


def glued(seed, step):
    digest = hashlib.sha256(f"{seed}{step}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "little"))


class SeedStep(Exercise):
    """Any good way to mix the two numbers is right: draws are compared with each other alone."""
    variants = {
        "seed + step": wrong_seed(lambda seed, step: seed + step),
        "seed * step": wrong_seed(lambda seed, step: seed * step),
        "1000 * seed + step": wrong_seed(lambda seed, step: 1000 * seed + step),
        "the digits of seed and step stand side by side": glued,
        "the step is ignored": wrong_seed(lambda seed, step: seed),
        "the seed is ignored": wrong_seed(lambda seed, step: step),
        "it seeds in the first step only": once,
        "Python's numbers are seeded, not torch's": python_alone,
    }
    hint_for = dict(zip(variants, (2, 2, 2, 2, 1, 1, 0, 0)))

    def inputs(self, draw):
        def case(name, kind, pairs):
            return Case(name, kind, {"pairs": pairs, "noise": int(draw.integers(1, 99))})
        few = int(draw.integers(2, 9))
        return [case("one step", "contract", [[0, 1]]),
                case("the steps of a run", "parity", [[few, step] for step in range(1, 9)]),
                case("runs with other seeds", "parity", [[seed, few] for seed in range(5)]),
                case("seeds and steps", "parity", [[0, 2], [1, 1], [2, 0], [2, 3], [3, 2], [1, 6]]),
                case("products", "parity", [[1, 6], [2, 3], [3, 2], [6, 1], [0, 4], [0, 5]]),
                case("many steps", "parity", [[0, 1001], [1, 1], [0, 3007], [3, 7]]),
                case("many digits", "parity", [[1, 11], [11, 1], [2, 34], [23, 4]])]

    def call(self, function, case):
        torch.manual_seed(case.arguments["noise"])
        draws = []
        for seed, step in case.arguments["pairs"] * 2:
            torch.rand(3)                                # what came before must not count
            function(seed, step)
            draws.append(tuple(torch.rand(4).tolist()))
        half = len(draws) // 2
        return {"whether the same (seed, step) gives the same numbers":
                    draws[:half] == draws[half:],
                f"of {half} pairs (seed, step), how many give other random numbers":
                    len(set(draws[:half]))}


# ---------------------------------------------------------------- 9.6 is_better

SIGN = {"accuracy": 1, "macro_f1": 1, "log_loss": -1, "ece": -1}


def gain(metric, new, old):
    return SIGN[metric] * (new[metric] - old[metric])


def tie_goes_to_the_new(metric, new, old):
    return old is None or (gain(metric, new, old) or gain("log_loss", new, old)) >= 0


def higher_is_better(metric, new, old):
    return old is None or (new[metric] - old[metric] or gain("log_loss", new, old)) > 0


def ties_stay(metric, new, old):
    return old is None or gain(metric, new, old) > 0


def later_ties_win(metric, new, old):
    return old is None or gain(metric, new, old) >= 0


def loss_first(metric, new, old):
    return old is None or (gain("log_loss", new, old) or gain(metric, new, old)) > 0


def high_loss_breaks_ties(metric, new, old):
    return old is None or (gain(metric, new, old) or -gain("log_loss", new, old)) > 0


def train_loss_breaks_ties(metric, new, old):
    return old is None or (gain(metric, new, old) or old["train_loss"] - new["train_loss"]) > 0


def both_better(metric, new, old):
    return old is None or gain(metric, new, old) > 0 and gain("log_loss", new, old) > 0


class IsBetter(Exercise):
    """True or False: compared exactly."""
    variants = {
        "higher is better for all metrics": higher_is_better,
        "the log loss decides first": loss_first,
        "both the metric and the log loss must be better": both_better,
        "a tie of the metric goes to the old epoch": ties_stay,
        "a tie of the metric goes to the new epoch": later_ties_win,
        "a tie of metric and log loss goes to the new epoch": tie_goes_to_the_new,
        "the higher log loss breaks a tie": high_loss_breaks_ties,
        "the train loss breaks a tie": train_loss_breaks_ties,
        "the first epoch is not better than none":
            lambda metric, new, old: old is not None and tie_breaker(metric, new, old),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 1, 1, 1, 1, 1, 2)))

    def inputs(self, draw):
        def entry(value=0.5, log_loss=1.0, train_loss=0.7):
            return {"train_loss": train_loss, **dict.fromkeys(SIGN, value), "log_loss": log_loss}

        def case(name, kind, pairs, metrics=("accuracy", "macro_f1", "ece")):
            return Case(name, kind, {"pairs": pairs, "metrics": list(metrics)})
        step = 0.01 + float(draw.uniform()) / 4
        return [case("a better accuracy", "contract", [[entry(0.6), entry()]], ["accuracy"]),
                case("the first epoch", "parity", [[entry(), None]]),
                case("a metric that differs", "parity",
                     [[entry(0.5 + a, 1 + b), entry()] for a in (-step, step)
                      for b in (-step, 0.0, step)]),
                case("a tie", "parity", [[entry(0.5, 1 + b, 0.7 - c), entry()]
                                         for b in (-step, 0.0, step) for c in (-step, 0.0, step)]),
                case("by log loss", "parity", [[entry(0.5, 1 + b), entry(0.5 + step)]
                                               for b in (-step, step)], ["log_loss"])]

    def call(self, function, case):
        def told(metric, entry):
            return "None" if entry is None else " ".join(
                f"{name} {entry[name]:.2f}" for name in (metric, "log_loss", "train_loss"))
        return {f"is_better({metric!r}, new, old), new: {told(metric, new)}, old: "
                f"{told(metric, old)},": bool(function(metric, new, old))
                for new, old in case.arguments["pairs"] for metric in case.arguments["metrics"]}


def tie_breaker(metric, new, old):
    return (gain(metric, new, old) or gain("log_loss", new, old)) > 0
