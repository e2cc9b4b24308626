"""How good are the answers? Metrics of probabilities (N, C) and targets (N,) of N rows.

Expected calibration error (ECE): Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""
import numpy as np

from .scores import accuracy, log_loss

METRICS = {"accuracy": 1, "macro_f1": 1, "log_loss": -1, "ece": -1}     # -1: lower is better


def evaluate(probabilities, targets, labels):
    """Probabilities (N, C), class numbers (N,), C labels -> {metric: number}, and under "f1"
    {label: number}.

    As in scikit-learn, macro_f1 is the mean over the classes that occur in the targets or in the
    answers. The f1 of any other class is given as 0.
    """
    probabilities, targets = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    answers = probabilities.argmax(1)                                             # (N,)
    f1 = [class_f1(answers == c, targets == c) for c in range(len(labels))]
    occurring = np.union1d(answers, targets)                                      # class numbers
    return {"accuracy": accuracy(probabilities, targets),
            "macro_f1": float(np.mean([f1[c] for c in occurring])),
            "log_loss": log_loss(probabilities, targets),
            "ece": calibration_error(probabilities.max(1), answers == targets),
            "f1": by_label(labels, f1)}


def by_label(labels, numbers):
    """C names, C numbers -> {name: number, to 6 decimals}."""
    return {name: round(float(number), 6) for name, number in zip(labels, numbers)}


def class_f1(answered, true):
    """F1, 2 TP / (2 TP + FP + FN), of boolean arrays (N,); 0 if the class occurs in neither."""
    hits, errors = (answered & true).sum(), (answered != true).sum()
    return float(2 * hits / (2 * hits + errors)) if hits + errors else 0.0


def calibration_error(confidence, right, bins=15):
    """ECE: mean |confidence - accuracy| over bins of equal width, weighted by their rows.

    confidence: (N,), the probability of each answer; right: (N,) bool, is that answer right?
    """
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)                # (N,)
    gaps = [abs(confidence[bin_of == b].sum() - right[bin_of == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(confidence))


def improvement(metric, new, old):
    """How much better `new` is than `old`, two dicts of metrics; negative if it is worse. A metric
    that is not in METRICS is better if it is higher."""
    return METRICS.get(metric, 1) * (new[metric] - old[metric])


def is_better(metric, new, old):
    """Is `new` better than `old`, a dict or None? The log loss breaks ties."""
    return old is None or (improvement(metric, new, old) or improvement("log_loss", new, old)) > 0
