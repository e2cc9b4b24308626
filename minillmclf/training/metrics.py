"""How good are the answers? Everything from probabilities (N, C) and true class numbers (N,), in numpy; where a row may have
several labels, from a probability and a 0 or 1 for each class, (N, C) both (`evaluate_sets`).

Expected calibration error: Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""
import numpy as np

METRICS = {"accuracy": 1, "macro_f1": 1, "log_loss": -1, "ece": -1}       # name -> +1 if more is better
SET_METRICS = {"exact_match": 1, "micro_f1": 1, "macro_f1": 1, "log_loss": -1, "ece": -1}       # of several labels a row


def evaluate(probabilities, truth, labels):
    """-> dict with accuracy, macro_f1, log_loss, ece, and f1 of each class by its name.

    macro_f1 is the mean over the classes that occur, in the targets or in the answers (as scikit-learn has it): a class that
    occurs in neither says nothing about the answers. Its own f1 is written as 0.
    """
    probabilities, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(truth)
    answer = probabilities.argmax(1)
    f1 = [class_f1(answer == c, truth == c) for c in range(len(labels))]
    own = probabilities[np.arange(len(truth)), truth]
    occurs = np.union1d(answer, truth)
    return {"accuracy": float((answer == truth).mean()),
            "macro_f1": float(np.mean([f1[c] for c in occurs])),
            "log_loss": float(-np.log(np.clip(own, 1e-15, 1.0)).mean()),
            "ece": calibration_error(probabilities.max(1), answer == truth),
            "f1": by_name(labels, f1)}


def evaluate_sets(probabilities, truth, labels, thresholds=0.5):
    """Several labels a row -> dict with exact_match, micro_f1, macro_f1, log_loss, ece, and precision, recall and f1 of each
    class by its name.

    thresholds: a class is answered where its probability reaches its threshold; one number, or (C,). exact_match: share of
    rows whose answer is the true set, no class more and none less. micro F1 counts all N x C decisions together, macro F1 is
    the mean over all classes (as scikit-learn has it for several labels a row, a class that occurs nowhere counts 0). log_loss (binary) and ece are over all decisions too, ece of "the row has this class", so that
    it asks of rows with p = 0.1 whether a tenth of them has it.
    """
    probabilities, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(truth).astype(bool)     # (N, C)
    answer = probabilities >= np.asarray(thresholds, dtype=np.float64)                                       # (N, C)
    f1 = [class_f1(a, t) for a, t in zip(answer.T, truth.T)]
    right, answered, true = (answer & truth).sum(0), answer.sum(0), truth.sum(0)                             # (C,)
    own = np.where(truth, probabilities, 1 - probabilities)
    return {"exact_match": float((answer == truth).all(1).mean()), "micro_f1": class_f1(answer, truth),
            "macro_f1": float(np.mean(f1)), "log_loss": float(-np.log(np.clip(own, 1e-15, 1.0)).mean()),
            "ece": calibration_error(probabilities.ravel(), truth.ravel()),
            "precision": by_name(labels, right / np.maximum(answered, 1)),       # 0 where the class is never answered
            "recall": by_name(labels, right / np.maximum(true, 1)),              # 0 where no row has it
            "f1": by_name(labels, f1)}


def by_name(labels, numbers):
    return {name: round(float(number), 6) for name, number in zip(labels, numbers)}


def class_f1(answered, true):
    """2 TP / (2 TP + FP + FN) of boolean arrays; 0 where the class occurs in neither."""
    hits, misses = (answered & true).sum(), (answered != true).sum()
    return float(2 * hits / (2 * hits + misses)) if hits + misses else 0.0


def calibration_error(confidence, right, bins=15):
    """Mean |confidence - accuracy| over equal bins of confidence, weighted by their size. confidence, right: (N,)."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[which == b].sum() - right[which == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(confidence))


def gain(metric, new, old):
    """How much better `new` is than `old`, both with all metrics; below 0 if it is worse."""
    return {**METRICS, **SET_METRICS}[metric] * (new[metric] - old[metric])


def better(metric, new, old):
    """Is `new` better than `old` (None: none yet), both with all metrics? Log loss breaks ties."""
    return old is None or (gain(metric, new, old) or gain("log_loss", new, old)) > 0
