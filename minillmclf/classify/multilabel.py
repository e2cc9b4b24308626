"""Multi-label: a row has any number of classes, each with a probability of its own.

A class is answered where its probability, the sigmoid of its logit, reaches its threshold. 0.5 is
right where only the number of wrong decisions counts. F1 ignores classes that are rightly left out,
and of a rare class it is highest at a threshold well below 0.5 (Lipton et al. 2014, "Thresholding
Classifiers to Maximize F1 Score"); so a threshold for each class is fitted to rows that nothing was
learned from (Yang 2001, "A Study of Thresholding Strategies for Text Categorization", SCut). Few
rows are fitted by chance too: test rows show what a threshold is worth.

Not here: classes that depend on one another (classifier chains).
"""
import numpy as np

from ..errors import InputError
from ..files import short
from ..text.data import names_in
from ..training.multilabel import (MULTILABEL_METRICS, BinaryCrossEntropy, evaluate_multilabel,
                                   positive_weights)
from .baseline import OneVersusRest, frequencies
from .task import SingleLabel

HALF = 0.5                                          # the threshold where none is fitted
AT_HALF = ("exact_match", "micro_f1", "macro_f1")   # metrics that thresholds change


def best_threshold(probabilities, targets):
    """The threshold with the highest F1 of one class: (N,) and (N,) of 0 and 1 -> number.

    F1 changes only where the threshold passes a row, so it is enough to try one between every two
    neighbours and one below all rows. Of equal ones it is the nearest to 0.5. A class that no row
    has keeps 0.5.
    """
    order = np.argsort(probabilities)[::-1]                        # (N,), the most probable first
    p = np.asarray(probabilities, dtype=np.float64)[order]
    true = np.asarray(targets)[order]
    if not true.any():
        return HALF
    last = np.append(p[:-1] > p[1:], True)                 # (N,), the last of equal probabilities
    below = np.append(p[1:], 0.0)
    between = (p + below) / 2
    between = np.where(between > below, between, p)          # neighbours in float64: one of the two
    f1 = 2 * np.cumsum(true) / (np.arange(1, len(p) + 1) + true.sum())      # (N,) at each cut
    best = between[last & (f1 == f1[last].max())]
    return float(best[np.abs(best - HALF).argmin()])


def fit_thresholds(probabilities, targets):
    """The best threshold of each class on these rows: (N, C) both -> list of C numbers."""
    columns = zip(np.asarray(probabilities).T, np.asarray(targets).T)
    return [best_threshold(p, t) for p, t in columns]


def check_thresholds(thresholds, labels, where="thresholds"):
    """-> the thresholds, if they are numbers from 0 to 1, one a class, and no name holds a bar."""
    good = isinstance(thresholds, (list, tuple)) and len(thresholds) == len(labels)
    if not good or not all(type(t) in (int, float) and 0 <= t <= 1 for t in thresholds):
        raise InputError(f"{where}: should be {len(labels)} numbers from 0 to 1, one for each "
                         f"class, is {short(thresholds)}")
    barred = [name for name in labels if "|" in name]
    if barred:
        raise InputError(f"{where}: the class {barred[0]!r} has a bar in its name, which separates "
                         "the names of a row with several labels: rename it")
    return [float(t) for t in thresholds]


def decide(probabilities, thresholds):
    """(N, C) -> (N, C) bool, the classes of each row. In float64: rounded to float32, a threshold
    between two rows could fall on one of them."""
    return np.asarray(probabilities, np.float64) >= np.asarray(thresholds, np.float64)


class MultiLabel(SingleLabel):
    """Any number of classes a row. thresholds: one for each class, by default 0.5."""

    MULTI_LABEL, PROBLEM = True, "multi_label_classification"
    METRICS = tuple(MULTILABEL_METRICS)
    FREQUENCIES, BAG = "class frequencies", OneVersusRest
    frequencies = staticmethod(frequencies)

    def __init__(self, labels, thresholds=None):
        super().__init__(labels)
        thresholds = [HALF] * len(labels) if thresholds is None else thresholds
        self.thresholds = check_thresholds(thresholds, self.labels)

    def calibrate(self, calibration, where="calibration"):
        if calibration is not None:
            raise InputError(f"{where}: a calibration is for one class a text; of several, each "
                             "has a threshold")

    def probabilities(self, logits):
        """In float64: in float32 the sigmoid is 1 for every logit above 17, and one wrong row would
        have an infinite log loss."""
        return logits.double().sigmoid().numpy()

    def answers(self, probabilities):
        """(N, C) -> for each row the names of its classes with bars between, "a|b", "" for none."""
        return ["|".join(name for name, yes in zip(self.labels, row) if yes)
                for row in decide(probabilities, self.thresholds)]

    def targets(self, examples, name="the data"):
        """Which classes each row has -> a list of C numbers, 0.0 or 1.0, a row."""
        rows = [[0.0] * len(self.labels) for _ in examples]
        for row, example in zip(rows, examples):
            for label in names_in(example.label):
                row[self.number(label, example, name)] = 1.0
        return rows

    def loss(self, settings, targets):
        weigh = settings.class_weights == "balanced"
        return BinaryCrossEntropy(positive_weights(targets, self.labels) if weigh else None)

    def measure(self, probabilities, targets):
        return evaluate_multilabel(probabilities, targets, self.labels)

    def evaluate(self, probabilities, targets):
        """Metrics at the thresholds; beside them, under "at_half", what they would be at 0.5."""
        plain = self.measure(probabilities, targets)
        return evaluate_multilabel(probabilities, targets, self.labels, self.thresholds) | {
            "thresholds": dict(zip(self.labels, self.thresholds)),
            "at_half": {name: plain[name] for name in AT_HALF}}

    def fitted(self, probabilities, examples):
        return MultiLabel(self.labels, fit_thresholds(probabilities(), self.targets(examples)))

    def table(self, results, name, examples, fitted=False):
        """Each metric at 0.5 and at the thresholds; then the classes of the last model."""
        title = f"{name} ({len(examples)} rows)"
        wide = max(22, *map(len, [title, *results]))
        columns = "   at 0.5  fitted" + "  at 0.5  fitted" * 2 + "  log loss     ECE"
        lines = [f"{'':<{wide}}  exact match       micro F1        macro F1",
                 f"{title:<{wide}}{columns}"]
        for model, m in results.items():
            pairs = "".join(f"{m['at_half'][metric]:9.3f}{m[metric]:7.3f}" for metric in AT_HALF)
            lines.append(f"{model:<{wide}}{pairs}{m['log_loss']:10.3f}{m['ece']:8.3f}")
        if fitted:
            lines.append("thresholds are fitted to these same rows: what they are worth shows on "
                         "others")
        model, last = list(results.items())[-1]
        width = max(5, *map(len, self.labels))
        lines += ["", f"classes, {model}:",
                  f"  {'':<{width}}  threshold  precision  recall     F1"]
        for c in self.labels:
            lines.append(f"  {c:<{width}}{last['thresholds'][c]:11.3f}{last['precision'][c]:11.3f}"
                         f"{last['recall'][c]:8.3f}{last['f1'][c]:7.3f}")
        return lines

    def mistakes(self, probabilities, targets, most=5):
        return ""

    def settings(self):
        return {"calibration": None, "thresholds": self.thresholds}

    def restore(self, settings, where):
        super().restore(settings, where)
        if settings.get("thresholds") is not None:
            self.thresholds = check_thresholds(settings["thresholds"], self.labels,
                                               f"{where}: thresholds")
