"""Multi-label: a row has any number of classes, each with a probability of its own.

A row gets each class whose probability, the sigmoid of its logit, reaches the class's threshold. A
threshold of 0.5 makes the fewest wrong decisions. But F1 does not count true negatives, and for a
rare class it is highest at a threshold well below 0.5 (Lipton et al. 2014, "Thresholding
Classifiers to Maximize F1 Score"). So the threshold of each class is fitted to dev rows (Yang 2001,
"A Study of Thresholding Strategies for Text Categorization", SCut). On few rows it fits their noise
too: test rows show what it is worth.

Not here: classes that depend on one another (classifier chains).
"""
import numpy as np

from ..errors import InputError
from ..files import short
from ..text.cells import split_label
from ..training.multilabel import (MULTILABEL_METRICS, BinaryCrossEntropy, evaluate_multilabel,
                                   positive_weights)
from .baseline import OneVersusRest
from .task import SingleLabel

DEFAULT_THRESHOLD = 0.5                             # the threshold before any is fitted
THRESHOLD_METRICS = ("exact_match", "micro_f1", "macro_f1")  # metrics that depend on thresholds


def best_threshold(probabilities, targets):
    """The threshold with the highest F1 of one class. probabilities (N,), targets (N,) of 0 and 1.

    F1 changes only where the threshold passes a probability, so it is enough to try the middle
    between each two neighbours, and one below all. Among equally good ones the nearest to 0.5 is
    taken; 0.5 for a class that no row has.
    """
    order = np.argsort(probabilities)[::-1]                        # (N,), the most probable first
    p = np.asarray(probabilities, dtype=np.float64)[order]
    true = np.asarray(targets)[order]
    if not true.any():
        return DEFAULT_THRESHOLD
    last = np.append(p[:-1] > p[1:], True)                 # (N,), is it the last of its equals?
    below = np.append(p[1:], 0.0)                                  # (N,), the next lower one
    middle = (p + below) / 2                                       # (N,), the thresholds to try
    middle = np.where(middle > below, middle, p)           # no float64 lies between: take the upper
    f1 = 2 * np.cumsum(true) / (np.arange(1, len(p) + 1) + true.sum())  # (N,), 2TP / (found + true)
    best = middle[last & (f1 == f1[last].max())]
    return float(best[np.abs(best - DEFAULT_THRESHOLD).argmin()])


def fit_thresholds(probabilities, targets):
    """probabilities (N, C), targets (N, C) -> the best threshold of each class, C numbers."""
    columns = zip(np.asarray(probabilities).T, np.asarray(targets).T)
    return [best_threshold(p, t) for p, t in columns]


def check_thresholds(thresholds, labels, where="thresholds"):
    """-> thresholds, C floats. InputError unless they lie from 0 to 1 and no label has a "|"."""
    good = isinstance(thresholds, (list, tuple)) and len(thresholds) == len(labels)
    if not good or not all(type(t) in (int, float) and 0 <= t <= 1 for t in thresholds):
        raise InputError(f"{where}: should be {len(labels)} numbers from 0 to 1, one for each "
                         f"class, is {short(thresholds)}")
    barred = [name for name in labels if "|" in name]
    if barred:
        raise InputError(f"{where}: the class {barred[0]!r} has a bar in its name, which separates "
                         "the names of a row with several labels: rename it")
    return [float(t) for t in thresholds]


class MultiLabel(SingleLabel):
    """Any number of classes a row. thresholds: C numbers; None: all 0.5."""

    MULTI_LABEL, PROBLEM_TYPE = True, "multi_label_classification"
    METRICS = tuple(MULTILABEL_METRICS)
    FREQUENCY_BASELINE, BAG_OF_WORDS = "class frequencies", OneVersusRest

    def __init__(self, labels, thresholds=None):
        super().__init__(labels)
        thresholds = [DEFAULT_THRESHOLD] * len(labels) if thresholds is None else thresholds
        self.thresholds = check_thresholds(thresholds, self.labels)

    def set_calibration(self, calibration, where="calibration"):
        if calibration is not None:
            raise InputError(f"{where}: a calibration is for one class a text; of several, each "
                             "has a threshold")

    def probabilities(self, logits):
        """Logits (N, C) -> probabilities, numpy (N, C). In float64: in float32 the sigmoid is 1 for
        any logit above 17, and the log loss infinite if that answer is wrong."""
        return logits.double().sigmoid().numpy()

    def answers(self, probabilities):
        """Probabilities (N, C) -> the names of each row's classes, such as "a|b", "" for none. In
        float32 a threshold between two probabilities could be rounded to one of them: float64."""
        reached = np.asarray(probabilities, np.float64) >= np.asarray(self.thresholds, np.float64)
        return ["|".join(name for name, yes in zip(self.labels, row) if yes) for row in reached]

    def targets(self, examples, name="the data"):
        """Examples -> for each a list of C numbers, 1.0 for a class that it has, else 0.0."""
        targets = [[0.0] * len(self.labels) for _ in examples]
        for target, example in zip(targets, examples):
            for label in split_label(example.label):
                target[self.class_number(label, example, name)] = 1.0
        return targets

    def build_objective(self, settings, targets):
        weigh = settings.class_weights == "balanced"
        return BinaryCrossEntropy(positive_weights(targets, self.labels) if weigh else None)

    def measure(self, probabilities, targets):
        return evaluate_multilabel(probabilities, targets, self.labels)

    def evaluate(self, probabilities, targets):
        """Metrics at the thresholds; under "at_half" some of them with 0.5 for every threshold."""
        plain = self.measure(probabilities, targets)
        return evaluate_multilabel(probabilities, targets, self.labels, self.thresholds) | {
            "thresholds": dict(zip(self.labels, self.thresholds)),
            "at_half": {name: plain[name] for name in THRESHOLD_METRICS}}

    def predict_frequencies(self, targets, rows):
        """The share of the targets with each class, repeated for each row -> (rows, C)."""
        return np.tile(np.mean(targets, axis=0), (rows, 1))

    def fit_to_dev(self, probabilities, examples):
        if not examples:                               # --dev none: the thresholds stay 0.5
            return self
        return MultiLabel(self.labels, fit_thresholds(probabilities(), self.targets(examples)))

    def metric_lines(self, results, name, examples, fitted=False):
        """As SingleLabel.metric_lines, some metrics both at 0.5 and at the fitted thresholds."""
        title = f"{name} ({len(examples)} rows)"
        wide = max(22, *map(len, [title, *results]))
        columns = "   at 0.5  fitted" + "  at 0.5  fitted" * 2 + "  log loss     ECE"
        lines = [f"{'':<{wide}}  exact match       micro F1        macro F1",
                 f"{title:<{wide}}{columns}"]
        for model, m in results.items():
            pairs = "".join(f"{m['at_half'][key]:9.3f}{m[key]:7.3f}" for key in THRESHOLD_METRICS)
            lines.append(f"{model:<{wide}}{pairs}{m['log_loss']:10.3f}{m['ece']:8.3f}")
        if fitted:
            lines.append("thresholds are fitted to these same rows: what they are worth shows on "
                         "others")
        model, last = list(results.items())[-1]
        wide = max(5, *map(len, self.labels))
        lines += ["", f"classes, {model}:",
                  f"  {'':<{wide}}  threshold  precision  recall     F1"]
        for c in self.labels:
            lines.append(f"  {c:<{wide}}{last['thresholds'][c]:11.3f}{last['precision'][c]:11.3f}"
                         f"{last['recall'][c]:8.3f}{last['f1'][c]:7.3f}")
        return lines

    def confusion_text(self, probabilities, targets, most=5):
        return ""

    def settings(self):
        return {"calibration": None, "thresholds": self.thresholds}

    def restore_settings(self, settings, where):
        super().restore_settings(settings, where)
        if settings.get("thresholds") is not None:
            self.thresholds = check_thresholds(settings["thresholds"], self.labels,
                                               f"{where}: thresholds")
