"""Calibration after training: correct logits that favour a class, or that are overconfident.

Logits (N, C) of N rows come from a head, or are the log-probabilities of label texts, which need
not sum to one. The correction is (logits - bias) / temperature; three methods fit it:

    contextual    on texts without content, as "N/A"  Zhao et al. 2021, "Calibrate Before Use"
    batch         on rows without labels              Zhou et al. 2023, "Batch Calibration"
    temperature   on rows with labels that are not    Guo et al. 2017, "On Calibration of Modern
                  trained on                          Neural Networks"

The first two fit the bias and may change answers; a temperature changes only their probabilities.
The logits to fit on are those of Classifier.compute_logits with calibrated=False. With others a
second fit would undo the first. Fitting is done in float64, on logarithms. Not here: a scale for
each class, isotonic regression.
"""
import math
from dataclasses import asdict, dataclass

import torch

from ..errors import InputError
from ..files import short

CONTENT_FREE = ("N/A", "", "[MASK]")       # the inputs of `fit_contextual`
LOWEST, HIGHEST = 1 / 100, 100.0           # between them `fit_temperature` searches
LOWEST_IN_FILE = 1e-6                      # least temperature of a file; float32 overflows below
HALVINGS = 60                              # of the search interval: more than float64 can resolve


@dataclass
class Calibration:
    """logits -> (logits - bias) / temperature. bias: C log-probabilities; temperature: above 0."""

    bias: list[float]
    temperature: float = 1.0

    def __call__(self, logits):
        """Logits (N, C) -> corrected logits (N, C). InputError for logits that are not finite."""
        if check_logits(logits).shape[1] != len(self.bias):
            raise InputError(f"scores of {logits.shape[1]} classes, but a calibration for "
                             f"{len(self.bias)}: fit anew")
        wide = torch.promote_types(logits.dtype, torch.float32)         # 16 bits are too coarse
        bias = torch.tensor(self.bias, dtype=wide, device=logits.device)            # (C,)
        corrected = ((logits.to(wide) - bias) / self.temperature).to(logits.dtype)
        return check_logits(corrected, "calibrated scores")

    def as_dict(self):
        return asdict(self)

    @classmethod
    def from_dict(cls, d, classes, where):
        """d: of `as_dict`; classes: C; where: the name of d in errors. InputError for others."""
        if not isinstance(d, dict) or set(d) != {"bias", "temperature"}:
            raise InputError(f"{where} should have the keys bias and temperature and no other, not "
                             f"{short(d)}")
        bias, temperature = d["bias"], d["temperature"]
        if not isinstance(bias, list) or len(bias) != classes or not all(map(is_number, bias)):
            raise InputError(f"{where}: bias should be {classes} finite numbers, one for each "
                             f"class, not {short(bias)}")
        if not is_number(temperature) or temperature < LOWEST_IN_FILE:
            raise InputError(f"{where}: temperature should be a finite number above 0, not "
                             f"{short(temperature)} ({LOWEST_IN_FILE} is the least)")
        return cls([float(b) for b in bias], float(temperature))


def fit_contextual(logits):
    """Logits of content-free inputs (N, C) -> Calibration: bias is the log of mean probabilities.

    To subtract it is Zhao's W = diag(p_cf)^-1: it gives a single content-free input uniform
    probabilities. Rows are normalised *before* the mean; the code of the paper does it after."""
    return Calibration(log_mean_probability(logits, 1).tolist())


def fit_batch(logits):
    """Logits (N, C) of 2 rows or more -> Calibration: bias is the log of mean probabilities.

    This assumes equally frequent classes; where they are not, it removes the true frequencies too.
    """
    return Calibration(log_mean_probability(logits, 2).tolist())


def fit_temperature(logits, targets):
    """Logits (N, C), N class numbers -> Calibration with the temperature T of the lowest log loss.

    The loss is convex in 1/T: its slope, mean(expected logit - logit of the target), only rises.
    So the interval of log(1/T) is halved until the slope is 0. T is 1/100 if all rows are right,
    100 if all are wrong, and 1 if no other T is better.
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
    """Logits (N, C) -> (C,), the log of the mean over rows of softmax(row)."""
    logp = log_probabilities(logits, least)
    return logp.logsumexp(0) - math.log(len(logp))


def log_probabilities(logits, least):
    """Logits (N, C) of `least` rows or more -> log-probabilities (N, C), float64 on the CPU."""
    if len(check_logits(logits)) < least:
        raise InputError(f"calibration needs at least {least} rows of scores, not {len(logits)}: "
                         "give more")
    return logits.detach().cpu().double().log_softmax(1)


def check_logits(logits, what="scores"):
    """-> logits. InputError unless they are finite floating-point numbers (N, C), called `what`."""
    if logits.dim() != 2 or not logits.is_floating_point():
        raise InputError(f"{what} should be floating-point numbers (N, C), not {logits.dtype} "
                         f"{tuple(logits.shape)}")
    if wrong := (~logits.isfinite()).any(1).nonzero().flatten().tolist():
        raise InputError(f"{what}: row {wrong[0]} (from 0) is {short(logits[wrong[0]].tolist())}, "
                         "but each class needs a finite score; compute them in float32, or leave "
                         "that row out")
    return logits


def check_targets(targets, rows, classes):
    """Class numbers of N = `rows` rows -> tensor (N,) on the CPU. InputError for others."""
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
    """Is a value of a JSON file a number that float32 can hold?"""
    most = torch.finfo(torch.float32).max
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= most
