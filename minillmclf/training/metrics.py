"""How good are the answers? Everything from probabilities (N, C) and true class numbers (N,), in numpy.

Expected calibration error: Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""
import numpy as np

METRICS = {"accuracy": 1, "macro_f1": 1, "log_loss": -1, "ece": -1}       # name -> +1 if more is better


def evaluate(probabilities, truth, labels):
    """-> dict with accuracy, macro_f1, log_loss, ece, and f1 of each class by its name."""
    probabilities, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(truth)
    answer = probabilities.argmax(1)
    f1 = [class_f1(answer == c, truth == c) for c in range(len(labels))]
    own = probabilities[np.arange(len(truth)), truth]
    return {"accuracy": float((answer == truth).mean()),
            "macro_f1": float(np.mean(f1)),
            "log_loss": float(-np.log(np.clip(own, 1e-15, 1.0)).mean()),
            "ece": calibration_error(probabilities.max(1), answer == truth),
            "f1": {name: round(score, 6) for name, score in zip(labels, f1)}}


def class_f1(answered, true):
    """2 TP / (2 TP + FP + FN) of boolean arrays; 0 where the class occurs in neither."""
    hits, misses = (answered & true).sum(), (answered != true).sum()
    return float(2 * hits / (2 * hits + misses)) if hits + misses else 0.0


def calibration_error(confidence, right, bins=15):
    """Mean |confidence - accuracy| over equal bins of confidence, weighted by their size."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[which == b].sum() - right[which == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(confidence))


def better(metric, new, old):
    """Is `new` a better value of the metric than `old` (None: there is none yet)?"""
    return old is None or METRICS[metric] * (new - old) > 0
