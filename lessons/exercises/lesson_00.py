"""Lesson 0, the map: cases and known-wrong variants of two metrics and of the simplest baseline."""
import numpy as np
import torch

from lessons.exercises.kit import Case, Exercise


def probabilities_of(draw, rows, classes, first=0):
    """(rows, classes) float64, each row sums to 1. first: a whole number that class 0 has more.

    Whole numbers are divided by their sum: no machine rounds that otherwise, as it may a softmax.
    """
    parts = draw.integers(1, 10 ** 5, rows, classes) ** 2
    parts[:, 0] += first
    return parts.double() / parts.sum(1, keepdim=True)


def rows_of(draw, name, kind, rows, classes):
    """A case of drawn probabilities and targets."""
    return Case(name, kind, {"probabilities": probabilities_of(draw, rows, classes),
                             "targets": draw.integers(0, classes, rows)})


def table(rows):
    return torch.tensor(rows, dtype=torch.float64)


def number_of(function, case):
    """What a function of probabilities and targets, numpy arrays, returns. numpy's own float64 is a
    float, too."""
    given = case.arguments
    found = function(given["probabilities"].numpy(), given["targets"].numpy())
    return float(found) if isinstance(found, float) else found


# ---------------------------------------------------------------- 0.1 accuracy

def of_targets(p, t):
    return p[np.arange(len(t)), t]


def mean_of_classes(p, t):
    """The mean of the classes' own shares of right answers."""
    return float(np.mean([(p.argmax(1) == t)[t == c].mean() for c in np.unique(t)]))


class Accuracy(Exercise):
    """A share of at most 40 rows in fp64: 1e-5 is far more than rounding."""
    variants = {
        "the smallest probability gives the answer":
            lambda p, t: float((p.argmin(1) == t).mean()),
        "an answer counts only if its probability is above 0.5":
            lambda p, t: float(((p.argmax(1) == t) & (p.max(1) > 0.5)).mean()),
        "the share of wrong answers": lambda p, t: float((p.argmax(1) != t).mean()),
        "the mean probability of the targets": lambda p, t: float(of_targets(p, t).mean()),
        "the mean probability of the answers": lambda p, t: float(p.max(1).mean()),
        "the number of right answers, not their share":
            lambda p, t: float((p.argmax(1) == t).sum()),
        "a percentage": lambda p, t: 100 * float((p.argmax(1) == t).mean()),
        "the number of right answers is divided by the number of classes":
            lambda p, t: float((p.argmax(1) == t).sum() / p.shape[1]),
        "the mean of the accuracies of the classes": mean_of_classes,
    }
    hint_for = dict(zip(variants, (0, 0, 1, 1, 1, 2, 2, 2, 2)))

    def inputs(self, draw):
        rare = torch.tensor([0] * 8 + [1, 2])
        by_hand = table([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3], [0.1, 0.3, 0.6], [0.3, 0.4, 0.3],
                         [0.5, 0.1, 0.4]])
        return [rows_of(draw, "twelve rows, three classes", "contract", 12, 3),
                Case("five rows by hand", "parity", {"probabilities": by_hand,
                                                     "targets": torch.tensor([0, 0, 2, 2, 1])}),
                rows_of(draw, "two classes", "parity", 9, 2),
                rows_of(draw, "eight classes", "parity", 40, 8),
                Case("a frequent class and two rare ones", "parity",
                     {"probabilities": probabilities_of(draw, 10, 3, first=2 * 10 ** 9),
                      "targets": rare}),
                Case("one row, and its answer is right", "parity",
                     {"probabilities": table([[0.3, 0.4, 0.3]]), "targets": torch.tensor([1])})]

    def call(self, function, case):
        return {"accuracy": number_of(function, case)}


# ---------------------------------------------------------------- 0.2 log_loss

LEAST = 1e-15


def wrong_loss(pick=of_targets, log=np.log, finish=lambda logs, p: -logs.mean(), least=LEAST):
    """A variant: log_loss with one thing in it changed."""
    def log_loss(probabilities, targets):
        picked = pick(probabilities, targets)
        with np.errstate(divide="ignore"):
            return float(finish(log(np.maximum(picked, least)), probabilities))
    return log_loss


def softmax_again(p, t):
    grown = np.exp(p)
    return of_targets(grown / grown.sum(1, keepdims=True), t)


class LogLoss(Exercise):
    """A mean of at most 40 logarithms in fp64: 1e-5 is far more than rounding."""
    variants = {
        "the probability of the answer, not that of the target":
            wrong_loss(lambda p, t: p.max(1)),
        "the targets of all rows are looked up in each row": wrong_loss(lambda p, t: p[:, t]),
        "the minus is missing": wrong_loss(finish=lambda logs, p: logs.mean()),
        "the logarithm is that to the base 2": wrong_loss(log=np.log2),
        "the logarithm is that to the base 10": wrong_loss(log=np.log10),
        "one minus the probability, without a logarithm":
            wrong_loss(log=lambda p: p, finish=lambda each, p: (1 - each).mean()),
        "the sum over the rows, not the mean": wrong_loss(finish=lambda logs, p: -logs.sum()),
        "the logarithm of the mean probability": wrong_loss(
            log=lambda p: p, finish=lambda each, p: -np.log(each.mean())),
        "the mean is over rows and classes":
            wrong_loss(finish=lambda logs, p: -logs.sum() / p.size),
        "a probability of 0 makes the loss infinite": wrong_loss(least=0.0),
        "the probabilities go through a softmax once more": wrong_loss(softmax_again),
        "the targets of all rows are looked up in each row, and 0 gives an infinite loss":
            wrong_loss(lambda p, t: p[:, t], least=0.0),
    }
    hint_for = dict(zip(variants, (0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 4, 0)))

    def inputs(self, draw):
        guessing = torch.full((4, 8), 1 / 8, dtype=torch.float64)
        by_hand = table([[0.5, 0.25, 0.25], [0.9, 0.1, 0.0], [0.2, 0.2, 0.6]])
        sure = table([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
        return [rows_of(draw, "ten rows, three classes", "contract", 10, 3),
                Case("three rows by hand", "parity", {"probabilities": by_hand,
                                                      "targets": torch.tensor([0, 1, 2])}),
                Case("mere guessing among eight classes", "parity",
                     {"probabilities": guessing, "targets": draw.integers(0, 8, 4)}),
                rows_of(draw, "eight classes", "parity", 40, 8),
                Case("sure and right, sure and wrong", "parity",
                     {"probabilities": sure, "targets": torch.tensor([0, 0, 1])})]

    def call(self, function, case):
        return {"log loss": number_of(function, case)}


# ---------------------------------------------------------------- 0.3 class_frequencies

def wrong_shares(count=lambda t, classes: np.bincount(t, minlength=classes),
                 divide=lambda counts, t, rows: counts / len(t),
                 repeat=lambda shares, rows: np.tile(shares, (rows, 1))):
    """A variant: class_frequencies with one thing in it changed."""
    def class_frequencies(train_targets, rows, classes):
        counts = count(train_targets, classes)
        return repeat(divide(counts, train_targets, rows), rows)
    return class_frequencies


class ClassFrequencies(Exercise):
    """Quotients of small whole numbers in fp64: 1e-5 is far more than rounding."""
    variants = {
        "each class gets 1/C": wrong_shares(lambda t, classes: np.ones(classes),
                                            lambda counts, t, rows: counts / len(counts)),
        "the most frequent class gets 1, the others 0": wrong_shares(
            divide=lambda counts, t, rows: np.eye(len(counts))[counts.argmax()]),
        "counts, not shares": wrong_shares(divide=lambda counts, t, rows: counts),
        "divided by the number of rows to answer":
            wrong_shares(divide=lambda counts, t, rows: counts / rows),
        "divided by the count of the most frequent class":
            wrong_shares(divide=lambda counts, t, rows: counts / counts.max()),
        "divided by the number of classes":
            wrong_shares(divide=lambda counts, t, rows: counts / len(counts)),
        "classes that never occur are left out":
            wrong_shares(lambda t, classes: np.unique(t, return_counts=True)[1]),
        "classes after the last one that occurs are left out":
            wrong_shares(lambda t, classes: np.bincount(t)),
        "one row, whatever `rows` says": wrong_shares(repeat=lambda shares, rows: shares),
        "the classes are the rows of the result":
            wrong_shares(repeat=lambda shares, rows: np.tile(shares, (rows, 1)).T),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 0, 0, 1, 1, 2, 2)))

    def inputs(self, draw):
        def case(name, kind, targets, rows, classes):
            return Case(name, kind, {"train_targets": targets, "rows": rows, "classes": classes})
        many = draw.integers(0, 6, 50).tolist()
        return [case("three classes", "contract", [0, 2, 1, 0, 0, 2, 0], 4, 3),
                case("two classes, one of them rare", "parity", [0] * 9 + [1], 3, 2),
                case("many rows to train on", "parity", many, 7, 6),
                case("the middle class never occurs", "parity", [2, 0, 0, 2, 0], 2, 3),
                case("the last classes never occur", "parity", [1, 0, 1], 5, 4),
                case("one row to answer", "parity", [1, 1, 0, 2], 1, 3)]

    def call(self, function, case):
        found = np.asarray(function(**case.arguments), dtype=np.float64)
        return {"probabilities": torch.from_numpy(found.copy())}
