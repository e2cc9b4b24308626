"""Calibration: scores that lean to a class, or are too sure of themselves, made fairer after the model is done.

A classifier's scores (N, C) stand before the softmax: a head's logits, or the log-probabilities of label texts, which
need not sum to one. Every method ends in the same map, (scores - bias) / temperature; what it is fitted to differs:

    contextual    texts that say nothing, such as "N/A"    Zhao et al. 2021, "Calibrate Before Use"
    batch         rows without labels                      Zhou et al. 2023, "Batch Calibration"
    temperature   rows with labels, not those of training  Guo et al. 2017, "On Calibration of Modern Neural Networks"

The first two move the bias and may change answers; a temperature never does, only how sure they are. All is fitted in
float64 and in logarithms, so scores of -1e4 do no harm. Not here: a scale for each class (vector and matrix scaling),
isotonic regression.
"""
import math
from dataclasses import asdict, dataclass

import torch

from ..errors import InputError
from ..files import short
from ..training.metrics import evaluate

CONTENT_FREE = ("N/A", "", "[MASK]")       # inputs without content
LOWEST, HIGHEST = 1 / 100, 100.0           # the temperatures that are tried
LEAST = 1e-6  # a temperature in a file: with less, scores are too large for float32
HALVINGS = 60                              # of the interval between them: far below what float64 tells apart


@dataclass
class Calibration:
    """scores -> (scores - bias) / temperature. bias: C log-probabilities; temperature: above 0.

    Both together: c = batch(scores), then Calibration(c.bias, temperature(c(dev_scores), dev_labels).temperature).
    """

    bias: list[float]
    temperature: float = 1.0

    def __call__(self, scores):
        """(N, C) -> (N, C), of the same dtype and on the same device. Raises InputError if they are not finite."""
        check_scores(scores)
        if scores.shape[1] != len(self.bias):
            raise InputError(f"scores of {scores.shape[1]} classes, but a calibration for {len(self.bias)}: fit anew")
        exact = torch.promote_types(scores.dtype, torch.float32)           # half precision would round the difference
        bias = torch.tensor(self.bias, dtype=exact, device=scores.device)
        return check_scores(((scores.to(exact) - bias) / self.temperature).to(scores.dtype), "calibrated scores")

    def as_dict(self):
        """What `from_dict` reads, for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, d, classes, where):
        """d: as `as_dict` gives it; classes: how many there are; where: the file and key that errors name."""
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


def contextual(scores):
    """scores (M, C) of the M content-free inputs -> Calibration: what is answered when nothing was asked is the bias.

    bias = log of the mean over the M rows of softmax(row). Subtracting it is Zhao's W = diag(p_cf)^-1, so a single
    content-free input comes out uniform. Rows are made to sum to one *before* the mean, so that each counts alike; the
    paper's own code does it after, where an input whose label texts are all unlikely counts less.
    """
    return Calibration(log_mean_probability(scores, 1).tolist())


def batch(scores):
    """scores (N, C) of at least 2 rows without labels -> Calibration: the classes' mean shares are the bias.

    bias = log of the mean over the N rows of softmax(row), the form that divides p(y|x) by the mean of p(y|x) over the
    batch: afterwards the mean of p(y|x) / exp(bias) is 1 for every class. It assumes that the classes are about equally
    frequent; where they are not, it takes their true frequency for a bias, and removes it.
    """
    return Calibration(log_mean_probability(scores, 2).tolist())


def temperature(scores, labels):
    """scores (N, C), labels: N class numbers -> Calibration without bias, of the least mean log loss.

    The loss is convex in 1/T, so its slope there, mean(expected score - score of the label), only rises: halve the
    interval of log(1/T) until it is 0. Where all rows are right, ever smaller T are ever better, and the search ends at
    1/100 (at 100 where the scores mislead). T stays 1 if no other is better, as where all scores of each row are equal.
    """
    logp = log_probabilities(scores, 1)                                    # (N, C)
    labels = check_labels(labels, *logp.shape)

    def loss(sharpness):
        return -(logp * sharpness).log_softmax(1)[torch.arange(len(labels)), labels].mean()

    gaps = logp - logp.gather(1, labels[:, None])                          # (N, C), score minus that of the label
    low, high = -math.log(HIGHEST), -math.log(LOWEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        slope = ((logp * math.exp(middle)).softmax(1) * gaps).sum(1).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    sharpness = math.exp((low + high) / 2)
    return Calibration([0.0] * logp.shape[1], 1 / sharpness if loss(sharpness) < loss(1.0) else 1.0)


def compare(scores, labels, names, calibrations):
    """scores (N, C), {name: Calibration} -> {"as they are": metrics, name: metrics, ...}, metrics as of `evaluate`.

    labels: N class numbers, of rows that nothing was fitted to; names: of the classes.
    """
    labels = check_labels(labels, *check_scores(scores).shape).numpy()
    if len(names) != scores.shape[1]:
        raise InputError(f"scores of {scores.shape[1]} classes, but {len(names)} names: give one for each class")
    ways = {"as they are": Calibration([0.0] * scores.shape[1]), **calibrations}
    return {way: evaluate(log_probabilities(c(scores), 1).exp().numpy(), labels, names) for way, c in ways.items()}


def log_mean_probability(scores, least):
    """(N, C) -> (C,), the log of the mean over rows of softmax(row)."""
    logp = log_probabilities(scores, least)
    return logp.logsumexp(0) - math.log(len(logp))


def log_probabilities(scores, least):
    """(N, C) -> (N, C), rows whose exp sums to one, float64 on the CPU. InputError for fewer than `least` rows."""
    if len(check_scores(scores)) < least:
        raise InputError(f"calibration needs at least {least} rows of scores, not {len(scores)}: give more")
    return scores.detach().cpu().double().log_softmax(1)


def check_scores(scores, what="scores"):
    """-> the scores, if they are floating-point numbers (N, C) and finite."""
    if scores.dim() != 2 or not scores.is_floating_point():
        raise InputError(f"{what} should be floating-point numbers (N, C), not {scores.dtype} {tuple(scores.shape)}")
    if wrong := (~scores.isfinite()).any(1).nonzero().flatten().tolist():
        raise InputError(f"{what}: row {wrong[0]} (from 0) is {short(scores[wrong[0]].tolist())}, "
                         f"but each class needs "
                         f"a finite score; compute them in float32, or leave that row out")
    return scores


def check_labels(labels, rows, classes):
    """N class numbers -> (N,) on the CPU."""
    labels = torch.as_tensor(labels).cpu()
    if labels.shape != (rows,) or labels.is_floating_point():
        raise InputError(f"labels should be {rows} class numbers, one for each row of scores, not {labels.dtype} "
                         f"{tuple(labels.shape)}")
    if wrong := ((labels < 0) | (labels >= classes)).nonzero().flatten().tolist():
        raise InputError(f"labels: row {wrong[0]} (from 0) has class {labels[wrong[0]]}, but the scores are for "
                         f"classes 0 to {classes - 1}; leave out rows without a label")
    return labels.long()


def is_number(value):
    """A number of a JSON file that float32 can hold?"""
    most = torch.finfo(torch.float32).max
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= most
