"""Accuracy and log loss, which metrics.py reports among others."""
import numpy as np


def accuracy(probabilities, targets):
    """Probabilities (N, C), class numbers (N,) -> a float, the share of right answers: of rows
    whose target is the class with the largest probability."""
    return float((probabilities.argmax(1) == targets).mean())


def log_loss(probabilities, targets):
    """Probabilities (N, C), class numbers (N,) -> a float, the mean over rows of -log(probability
    of the target). A probability below 1e-15 counts as 1e-15, so that the loss stays finite."""
    of_targets = probabilities[np.arange(len(targets)), targets]                  # (N,)
    return float(-np.log(np.clip(of_targets, 1e-15, 1.0)).mean())
