"""Baselines, which any model has to beat: the frequencies of the classes, logistic regression on a
bag of words, and, for two answers to a prompt, "the longer answer wins".

The features are terms, words and pairs of neighbouring words, weighted by TF-IDF with the usual
smoothing (Salton and Buckley 1988): (1 + log tf) * (1 + log((1 + rows) / (1 + df))). tf counts a
term in its row, df the rows that have it. Each row is then scaled to length 1. Only the most
frequent terms are kept: weights and L-BFGS stay below 400 MB of memory.
"""
import math
import re
import warnings
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F

from ..training.probe import minimise
from .swap import is_preference, longer_answer

MAX_TERMS, MAX_WEIGHTS = 100_000, 3_000_000        # V; V times C


def run_baselines(data, task, quick=False):
    """A Dataset -> {name of a baseline: its metrics on test, or on dev if there is no test}.

    quick: without the bag of words, which takes minutes on very many rows or classes.
    """
    final = "test" if data.test else "dev"
    rows = {split: getattr(data, split) for split in ("train", "dev", final)}
    texts = {split: [example.texts for example in rows[split]] for split in rows}
    targets = {split: task.targets(rows[split]) for split in rows}
    models = {task.FREQUENCY_BASELINE:              # texts of N rows -> probabilities (N, C)
              lambda texts: task.predict_frequencies(targets["train"], len(texts))}
    if not quick:
        bag = task.BAG_OF_WORDS(len(task.labels))
        bag.fit(texts["train"], targets["train"], texts["dev"], targets["dev"])
        models["bag of words"] = bag.predict
    if is_preference(data):
        models["longer answer"] = lambda texts: longer_answer(rows["train"], texts, task.labels)
    metrics = {}
    for name, predict in models.items():
        fitted = task.fit_to_dev(lambda: predict(texts["dev"]), rows["dev"])
        metrics[name] = fitted.evaluate(predict(texts[final]), targets[final])
    return metrics


def class_frequencies(train_targets, rows, classes):
    """N class numbers -> the share of each class among them, repeated for each row: (rows, C), the
    probabilities of the baseline "majority class". classes: their number C."""
    shares = np.bincount(train_targets, minlength=classes) / len(train_targets)         # (C,)
    return np.tile(shares, (rows, 1))


def terms_of(texts):
    """The texts of a row -> its words and pairs of neighbours: "A cat sat" -> ["0:cat", "0:sat",
    "0:cat 0:sat"], where 0 is the number of the text."""
    terms = []
    for number, text in enumerate((texts,) if isinstance(texts, str) else texts):
        words = [f"{number}:{word}" for word in re.findall(r"\w\w+", text.lower())]
        terms += words + [a + " " + b for a, b in zip(words, words[1:])]
    return terms


def rows_of(x):
    """A sparse matrix, stored row by row: 14 times as fast in products with a dense one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return x.coalesce().to_sparse_csr()


class Product(torch.autograd.Function):
    """x @ w of a constant sparse x (N, V), with x.t() at hand for the gradient of w (V, C)."""

    @staticmethod
    def forward(context, x, transposed, w):
        context.transposed = transposed
        return x @ w

    @staticmethod
    def backward(context, gradient):
        return None, None, context.transposed @ gradient


class BagOfWords:
    """Logistic regression on the TF-IDF of V words and word pairs, fitted by L-BFGS."""

    PENALTIES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)           # factors of the L2 norm; dev rows choose

    def __init__(self, classes):
        self.classes = classes

    def fit(self, texts, targets, dev_texts, dev_targets):
        """Learn terms and weights from train; choose the penalty by `dev_score` on dev. -> self"""
        frequency = Counter(term for text in texts for term in set(terms_of(text)))
        most = min(MAX_TERMS, MAX_WEIGHTS // self.classes)
        vocabulary = sorted(frequency, key=lambda term: (-frequency[term], term))[:most]
        self.index = {term: i for i, term in enumerate(sorted(vocabulary))}
        self.idf = {term: 1 + math.log((1 + len(texts)) / (1 + n)) for term, n in frequency.items()}
        if not dev_texts:                      # none were held out: choose on the training rows
            dev_texts, dev_targets = texts, targets
        x, y, dev = self.features(texts), torch.tensor(targets), self.features(dev_texts)
        by_row, by_term = rows_of(x), rows_of(x.t())
        fitted = [self.fit_weights(by_row, by_term, y, penalty) for penalty in self.PENALTIES]
        scores = [self.dev_score(self.logits(dev, w), torch.tensor(dev_targets)) for w in fitted]
        self.weights = fitted[scores.index(max(scores))]
        return self

    def loss(self, logits, y):
        """logits (N, C), targets y (N,) -> the loss, a scalar."""
        return F.cross_entropy(logits, y)

    def dev_score(self, logits, y):
        """The number of right answers."""
        return int((logits.argmax(1) == y).sum())

    def features(self, texts):
        """Texts of N rows -> sparse (N, V)."""
        rows, columns, values = [], [], []
        for number, text in enumerate(texts):
            counts = {t: n for t, n in Counter(terms_of(text)).items() if t in self.index}
            weighted = {t: (1 + math.log(n)) * self.idf[t] for t, n in counts.items()}
            length = math.sqrt(sum(v * v for v in weighted.values())) or 1.0
            rows += [number] * len(weighted)
            columns += [self.index[t] for t in weighted]
            values += [v / length for v in weighted.values()]
        shape = len(texts), len(self.index)
        return torch.sparse_coo_tensor([rows, columns], values, shape,
                                       check_invariants=False).coalesce()

    def fit_weights(self, x, transposed, y, penalty):
        """x (N, V), x.t(), y -> weights w (V, C) and bias (C,) of least loss + penalty * |w|^2."""
        w = torch.zeros(x.shape[1], self.classes, requires_grad=True)
        b = torch.zeros(self.classes, requires_grad=True)

        def compute_loss():
            logits = Product.apply(x, transposed, w) + b
            return self.loss(logits, y) + penalty * (w ** 2).sum()
        minimise(compute_loss, [w, b])
        return w.detach(), b.detach()

    def logits(self, x, weights):
        """x (N, V), what `fit_weights` returns -> logits (N, C)."""
        return torch.sparse.mm(x, weights[0]) + weights[1]

    def predict(self, texts):
        """Texts of N rows -> probabilities, numpy (N, C)."""
        return self.logits(self.features(texts), self.weights).softmax(-1).numpy()


class OneVersusRest(BagOfWords):
    """Multi-label: a logistic regression for each class. Targets are (N, C) of 0 and 1."""

    def loss(self, logits, y):
        """The loss is summed over classes, so each is fitted as if it were the only one."""
        return F.binary_cross_entropy_with_logits(logits, y, reduction="sum") / len(y)

    def dev_score(self, logits, y):
        """Minus the log loss: right answers cannot be counted before thresholds are fitted."""
        return -float(self.loss(logits, y))

    def predict(self, texts):
        """Texts of N rows -> probabilities, numpy (N, C), which do not sum to one."""
        return self.logits(self.features(texts), self.weights).double().sigmoid().numpy()
