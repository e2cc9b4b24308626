"""Several labels a row: which classes does a text get, when each has a probability of its own?

A class is answered where its probability, the sigmoid of its score, reaches its threshold. 0.5 is right where only the
number of wrong decisions counts. F1 does not care for classes rightly left out, and of a rare class it is highest at a
threshold well below 0.5 (Lipton et al. 2014, "Thresholding Classifiers to Maximize F1 Score"); so a threshold for each
class is fitted to rows that nothing was learned from (Yang 2001, "A Study of Thresholding Strategies for Text
Categorization", SCut). With few of them it fits their chance too: what it is worth shows on test rows, where the final
table has both.

Here: thresholds and what follows from them; the loss is in training/losses.py, the metrics in training/metrics.py.
Not here: classes that depend on one another (classifier chains), a number of labels that is guessed for each row.
"""

import numpy as np

from ..errors import InputError
from ..files import short
from ..text.data import names_in
from ..training.multilabel import evaluate_multilabel

HALF = 0.5                                                       # the threshold where none is fitted
AT_HALF = ("exact_match", "micro_f1", "macro_f1")                # the metrics that thresholds change


def multi_hot(examples, labels, name="the data"):
    """Which classes each row has -> a list of C numbers, 0.0 or 1.0, a row. InputError for a label that is not in `labels`."""
    number, rows = {label: i for i, label in enumerate(labels)}, []
    for example in examples:
        rows.append([0.0] * len(labels))
        for label in names_in(example.label):
            if label not in number:
                raise InputError(f"{name}, line {example.row}: label {label!r} is not one of the model's: {', '.join(labels)}")
            rows[-1][number[label]] = 1.0
    return rows


def best_threshold(probabilities, truth):
    """The threshold with the highest F1 of one class: probabilities (N,), truth (N,) of 0 and 1 -> number.

    F1 changes only where the threshold passes a row, so one between every two neighbours is all there is to try, and one
    below all rows. Of equal ones it is the nearest to 0.5. A class that no row has keeps 0.5.
    """
    order = np.argsort(probabilities)[::-1]                                  # (N,), the surest row first
    p, true = np.asarray(probabilities, dtype=np.float64)[order], np.asarray(truth)[order]
    if not true.any():
        return HALF
    last = np.append(p[:-1] > p[1:], True)                                   # (N,), equal ones are answered together
    below = np.append(p[1:], 0.0)
    between = (p + below) / 2
    between = np.where(between > below, between, p)                          # of two neighbours in float64 it is one of them
    f1 = 2 * np.cumsum(true) / (np.arange(1, len(p) + 1) + true.sum())       # (N,), with the rows up to here answered
    best = between[last & (f1 == f1[last].max())]
    return float(best[np.abs(best - HALF).argmin()])


def fit_thresholds(probabilities, truth):
    """A threshold for each class, the best on these rows: (N, C) both -> list of C numbers. Never fit them to test rows."""
    return [best_threshold(p, t) for p, t in zip(np.asarray(probabilities).T, np.asarray(truth).T)]


def check_thresholds(thresholds, labels, where="thresholds"):
    """-> the thresholds, one for each class, if they are numbers from 0 to 1 and no name holds a bar."""
    good = isinstance(thresholds, (list, tuple)) and len(thresholds) == len(labels)
    if not good or not all(type(t) in (int, float) and 0 <= t <= 1 for t in thresholds):
        raise InputError(f"{where}: should be {len(labels)} numbers from 0 to 1, one for each "
                         f"class, is {short(thresholds)}")
    barred = [name for name in labels if "|" in name]
    if barred:
        raise InputError(f"{where}: the class {barred[0]!r} has a bar in its name, which stands between the names of a row with "
                         "several labels: rename it")
    return [float(t) for t in thresholds]


def decide(probabilities, thresholds):
    """(N, C) -> (N, C) bool, the classes that each row gets.

    In float64: rounded to the probabilities' float32, a threshold between two rows could fall on one of them.
    """
    return np.asarray(probabilities, dtype=np.float64) >= np.asarray(thresholds, dtype=np.float64)


def named(decided, labels):
    """(N, C) bool -> for each row the names of its classes with bars between, "a|b", "" for none."""
    return ["|".join(name for name, yes in zip(labels, row) if yes) for row in decided]


def judge(probabilities, truth, labels, thresholds):
    """Metrics of `evaluate_multilabel` by the thresholds; besides these, and under "at_half" what they would be at 0.5."""
    plain = evaluate_multilabel(probabilities, truth, labels)
    return evaluate_multilabel(probabilities, truth, labels, thresholds) | {
        "thresholds": dict(zip(labels, thresholds)), "at_half": {name: plain[name] for name in AT_HALF}}


BASELINES = "class frequencies", "bag of words"


def baselines(data, names=BASELINES):
    """How frequent each class is, and bag-of-words regressions, on the same split, with thresholds fitted to dev as the
    model's are -> name -> metrics on test (or dev), as of `judge`."""
    from .baseline import OneVersusRest, frequencies
    final = "test" if data.test else "dev"
    texts = {split: [e.texts for e in getattr(data, split)] for split in ("train", "dev", final)}
    truth = {split: multi_hot(getattr(data, split), data.labels) for split in texts}
    answer = {"class frequencies": lambda: lambda texts: frequencies(truth["train"], len(texts)),
              "bag of words": lambda: OneVersusRest(len(data.labels)).fit(texts["train"], truth["train"], texts["dev"],
                                                                          truth["dev"]).predict}
    asked = {name: answer[name]() for name in names}
    return {name: judge(ask(texts[final]), truth[final], data.labels, fit_thresholds(ask(texts["dev"]), truth["dev"]))
            for name, ask in asked.items()}


def finish(model, data, split, dev, probabilities):
    """The metrics of a run's model: thresholds are fitted to dev and stay with the model.

    dev, probabilities: what the model says of the dev rows and of those of `split`, (N, C).
    """
    model.use_thresholds(fit_thresholds(dev, multi_hot(data.dev, model.labels)))
    return judge(probabilities, multi_hot(getattr(data, split), model.labels), model.labels, model.thresholds)


def table(results, labels, name, examples, fitted_to="dev"):
    """The final table: a line a model, each metric at 0.5 and by its thresholds; then the classes of the last model. fitted_to:
    the name of the rows that thresholds were fitted to."""
    title = f"{name} ({len(examples)} rows)"
    wide = max(22, *map(len, [title, *results]))
    lines = [f"{'':<{wide}}  exact match       micro F1        macro F1",
             f"{title:<{wide}}   at 0.5  fitted" + "  at 0.5  fitted" * 2 + "  log loss     ECE"]
    for model, m in results.items():
        pairs = "".join(f"{m['at_half'][metric]:9.3f}{m[metric]:7.3f}" for metric in AT_HALF)
        lines.append(f"{model:<{wide}}{pairs}{m['log_loss']:10.3f}{m['ece']:8.3f}")
    if name == fitted_to:
        lines.append("thresholds are fitted to these same rows: what they are worth shows on others")
    model, last = list(results.items())[-1]
    width = max(5, *map(len, labels))
    lines += ["", f"classes, {model}:", f"  {'':<{width}}  threshold  precision  recall     F1"]
    for c in labels:
        numbers = f"{last['thresholds'][c]:11.3f}{last['precision'][c]:11.3f}{last['recall'][c]:8.3f}{last['f1'][c]:7.3f}"
        lines.append(f"  {c:<{width}}{numbers}")
    return lines
