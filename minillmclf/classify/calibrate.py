"""Calibration: correct logits that lean to a class, or that are too sure, after training.

Logits (N, C) are a head's, or the log-probabilities of label texts, which need not sum to one.
Every method gives one map, (logits - bias) / temperature; what it is fitted to differs:

    contextual    texts that say nothing, such as "N/A"    Zhao et al. 2021, "Calibrate Before Use"
    batch         rows without labels                      Zhou et al. 2023, "Batch Calibration"
    temperature   rows with labels, not those of training  Guo et al. 2017, "On Calibration of
                                                           Modern Neural Networks"

The first two move the bias and may change answers; a temperature changes only how sure they are.
All is fitted in float64 and in logarithms. Not here: a scale for each class, isotonic regression.
"""
import math
from dataclasses import asdict, dataclass

import torch

from ..errors import InputError
from ..files import short

CONTENT_FREE = ("N/A", "", "[MASK]")       # inputs without content
LOWEST, HIGHEST = 1 / 100, 100.0           # the temperatures that are tried
LEAST = 1e-6                               # a temperature in a file: below, float32 overflows
HALVINGS = 60                              # of the interval between them, beyond float64


@dataclass
class Calibration:
    """logits -> (logits - bias) / temperature. bias: C log-probabilities; temperature: above 0."""

    bias: list[float]
    temperature: float = 1.0

    def __call__(self, logits):
        """(N, C) -> (N, C), of the same dtype and device. InputError if they are not finite."""
        if check_logits(logits).shape[1] != len(self.bias):
            raise InputError(f"scores of {logits.shape[1]} classes, but a calibration for "
                             f"{len(self.bias)}: fit anew")
        exact = torch.promote_types(logits.dtype, torch.float32)        # 16 bits round the result
        bias = torch.tensor(self.bias, dtype=exact, device=logits.device)
        found = ((logits.to(exact) - bias) / self.temperature).to(logits.dtype)
        return check_logits(found, "calibrated scores")

    def as_dict(self):
        """What `from_dict` reads, for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, d, classes, where):
        """d: as `as_dict` gives it; classes: how many; where: the file and key for errors."""
        if not isinstance(d, dict) or set(d) != {"bias", "temperature"}:
            raise InputError(f"{where} should have the keys bias and temperature and no other, not "
                             f"{short(d)}")
        bias, temperature = d["bias"], d["temperature"]
        if not isinstance(bias, list) or len(bias) != classes or not all(map(is_number, bias)):
            raise InputError(f"{where}: bias should be {classes} finite numbers, one for each "
                             f"class, not {short(bias)}")
        if not is_number(temperature) or temperature < LEAST:
            raise InputError(f"{where}: temperature should be a finite number above 0, not "
                             f"{short(temperature)} ({LEAST} is the least)")
        return cls([float(b) for b in bias], float(temperature))


def contextual(logits):
    """logits (M, C) of the M content-free inputs -> Calibration: their mean answer is the bias.

    Subtracting it is Zhao's W = diag(p_cf)^-1, so a single content-free input comes out uniform.
    Rows are made to sum to one *before* the mean; the paper's own code does it after.
    """
    return Calibration(log_mean_probability(logits, 1).tolist())


def batch(logits):
    """logits (N, C) of 2 rows or more without labels -> Calibration: their mean answer is the bias.

    Afterwards the mean of p(y|x) / exp(bias) is 1 for every class. It assumes that the classes are
    about equally frequent; where they are not, it removes their true frequency too.
    """
    return Calibration(log_mean_probability(logits, 2).tolist())


def temperature(logits, targets):
    """logits (N, C), targets: N class numbers -> Calibration of the least mean log loss, no bias.

    The loss is convex in 1/T, so its slope, mean(expected logit - logit of the target), only rises:
    halve the interval of log(1/T) until it is 0. Where all rows are right the search ends at 1/100
    (at 100 where all are wrong). T stays 1 if no other is better.
    """
    logp = log_probabilities(logits, 1)                                             # (N, C)
    targets = check_targets(targets, *logp.shape)

    def loss(sharpness):
        return -(logp * sharpness).log_softmax(1)[torch.arange(len(targets)), targets].mean()

    gaps = logp - logp.gather(1, targets[:, None])              # (N, C), minus the target's logit
    low, high = -math.log(HIGHEST), -math.log(LOWEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        slope = ((logp * math.exp(middle)).softmax(1) * gaps).sum(1).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    sharpness = math.exp((low + high) / 2)
    best = 1 / sharpness if loss(sharpness) < loss(1.0) else 1.0
    return Calibration([0.0] * logp.shape[1], best)


def log_mean_probability(logits, least):
    """(N, C) -> (C,), the log of the mean over rows of softmax(row)."""
    logp = log_probabilities(logits, least)
    return logp.logsumexp(0) - math.log(len(logp))


def log_probabilities(logits, least):
    """(N, C) -> (N, C), rows whose exp sums to one, float64 on the CPU. InputError for fewer than
    `least` rows."""
    if len(check_logits(logits)) < least:
        raise InputError(f"calibration needs at least {least} rows of scores, not {len(logits)}: "
                         "give more")
    return logits.detach().cpu().double().log_softmax(1)


def check_logits(logits, what="scores"):
    """-> the logits, if they are floating-point numbers (N, C) and finite."""
    if logits.dim() != 2 or not logits.is_floating_point():
        raise InputError(f"{what} should be floating-point numbers (N, C), not {logits.dtype} "
                         f"{tuple(logits.shape)}")
    if wrong := (~logits.isfinite()).any(1).nonzero().flatten().tolist():
        raise InputError(f"{what}: row {wrong[0]} (from 0) is {short(logits[wrong[0]].tolist())}, "
                         "but each class needs a finite score; compute them in float32, or leave "
                         "that row out")
    return logits


def check_targets(targets, rows, classes):
    """N class numbers -> (N,) on the CPU."""
    targets = torch.as_tensor(targets).cpu()
    if targets.shape != (rows,) or targets.is_floating_point():
        raise InputError(f"labels should be {rows} class numbers, one for each row of scores, not "
                         f"{targets.dtype} {tuple(targets.shape)}")
    if wrong := ((targets < 0) | (targets >= classes)).nonzero().flatten().tolist():
        raise InputError(f"labels: row {wrong[0]} (from 0) has class {targets[wrong[0]]}, but the "
                         f"scores are for classes 0 to {classes - 1}; leave out rows without a "
                         "label")
    return targets.long()


def is_number(value):
    """Is it a number of a JSON file that float32 can hold?"""
    most = torch.finfo(torch.float32).max
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= most
