"""Multi-label training: its loss, the weights of that loss, and its metrics.

A row may have several classes, or none: its targets are C numbers, 0 or 1, and each class is a
yes-or-no question of its own. The thresholds, and the answers by them: classify/multilabel.py.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import InputError
from .metrics import by_label, calibration_error, class_f1

MULTILABEL_METRICS = {"exact_match": 1, "micro_f1": 1, "macro_f1": 1, "log_loss": -1, "ece": -1}


@dataclass
class BinaryCrossEntropy:
    """An objective like losses.CrossEntropy, for targets (B, C): binary cross-entropy per class.

    It is transformers' problem_type multi_label_classification; the mean is over rows x classes.
    weights: (C,), the factor of a class's loss in rows that have the class, or None.
    """
    weights: torch.Tensor | None = None

    def divisor(self, targets):
        """Targets (B, C) -> scalar, the divisor of the summed loss of rows with these targets."""
        return torch.tensor(float(targets.numel()))

    def __call__(self, model, batch):
        """The loss of a batch, summed over rows and classes -> scalar."""
        logits = model(batch).float()
        weights = None if self.weights is None else self.weights.to(logits.device)
        return F.binary_cross_entropy_with_logits(logits, batch.labels, pos_weight=weights,
                                                  reduction="sum")


def positive_weights(targets, labels):
    """Targets (N, C) of 0 and 1 -> (C,): (rows without a class) / (rows with it).

    With these weights the rows with a class and those without it count alike in its loss.
    InputError for a class that all rows have, or none: its weight would be 0, or infinite.
    """
    targets = torch.as_tensor(targets)
    rows, positives = len(targets), targets.sum(0)                               # (C,)
    for name, count in zip(labels, positives.tolist()):
        if count in (0, rows):
            raise InputError(f"--class-weights balanced: {int(count)} of {rows} train rows have "
                             f"the class {name!r}: add others, or use --class-weights none")
    return (rows - positives) / positives


def evaluate_multilabel(probabilities, targets, labels, thresholds=0.5):
    """Probabilities and targets (N, C) -> dict of MULTILABEL_METRICS, and precision, recall and f1,
    each {class: number}.

    thresholds: a class is answered where its probability reaches its threshold; a number, or (C,).
    exact_match: the share of rows whose classes are all right. micro_f1 counts all N x C decisions
    together. macro_f1 is the mean over all classes; one that occurs nowhere counts 0, as in
    scikit-learn. log_loss (binary) and ece are over all decisions too.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)                  # (N, C)
    targets = np.asarray(targets).astype(bool)                                   # (N, C)
    answers = probabilities >= np.asarray(thresholds, dtype=np.float64)          # (N, C)
    f1 = [class_f1(answered, true) for answered, true in zip(answers.T, targets.T)]
    right, answered, true = (answers & targets).sum(0), answers.sum(0), targets.sum(0)   # (C,)
    p_target = np.where(targets, probabilities, 1 - probabilities)
    return {"exact_match": float((answers == targets).all(1).mean()),
            "micro_f1": class_f1(answers, targets),
            "macro_f1": float(np.mean(f1)),
            "log_loss": float(-np.log(np.clip(p_target, 1e-15, 1.0)).mean()),
            "ece": calibration_error(probabilities.ravel(), targets.ravel()),
            "precision": by_label(labels, right / np.maximum(answered, 1)),      # 0: never answered
            "recall": by_label(labels, right / np.maximum(true, 1)),             # 0: in no row
            "f1": by_label(labels, f1)}
