"""What depends on the kind of answer: one class a row, or several (multi-label)."""
from dataclasses import dataclass

from ..training.metrics import evaluate
from ..training.multilabel import evaluate_multilabel


@dataclass
class SingleLabel:
    """Each row has one class."""
    labels: list

    def evaluate(self, probabilities, targets):
        """Probabilities (N, C) and class numbers (N,) -> dict of metrics."""
        return evaluate(probabilities, targets, self.labels)


@dataclass
class MultiLabel:
    """A row may have several classes, or none."""
    labels: list

    def evaluate(self, probabilities, targets):
        """Probabilities and targets of 0 and 1, (N, C) both -> dict of metrics."""
        return evaluate_multilabel(probabilities, targets, self.labels)
