"""What any model has to beat: the majority class, and logistic regression on a bag of words; where a row may have several
labels, how frequent each class is, and a logistic regression for each of them.

The bag counts words and pairs of neighbours, weighted by TF-IDF with the usual smoothing (Salton and Buckley 1988):
(1 + log tf) * (1 + log((1 + rows) / (1 + df))), rows scaled to length 1. Only the terms in the most rows are kept, so that
the weights and what L-BFGS remembers of them stay below 400 MB whatever the data.
"""
import math
import re
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F

MOST_TERMS, MOST_WEIGHTS = 100_000, 3_000_000      # of the vocabulary; of the vocabulary times classes
HISTORY = 10                                       # steps that L-BFGS remembers, two vectors of all weights for each


def majority(train_labels, rows, classes):
    """The frequencies of the classes in train, for every row -> probabilities (rows, classes)."""
    shares = np.bincount(train_labels, minlength=classes) / len(train_labels)
    return np.tile(shares, (rows, 1))


def frequencies(train_truth, rows):
    """The share of train rows that have each class, for every row: train_truth (N, C) of 0 and 1 -> (rows, C)."""
    return np.tile(np.mean(train_truth, axis=0), (rows, 1))


def terms(texts):
    """Lower-case words of a text (or of a pair, kept apart), and the pairs of neighbours."""
    parts = (texts,) if isinstance(texts, str) else texts
    found = []
    for number, part in enumerate(parts):
        words = [f"{number}:{word}" for word in re.findall(r"\w\w+", part.lower())]
        found += words + [a + " " + b for a, b in zip(words, words[1:])]
    return found


class BagOfWords:
    """TF-IDF of words and word pairs -> logistic regression, fitted to the optimum by L-BFGS."""

    STRENGTHS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)           # of the L2 penalty; dev chooses

    def __init__(self, classes):
        self.classes = classes

    def fit(self, texts, labels, dev_texts, dev_labels):
        """Learn the vocabulary and weights from train; choose the penalty by `merit` on dev. -> self"""
        frequency = Counter(term for text in texts for term in set(terms(text)))
        most = min(MOST_TERMS, MOST_WEIGHTS // self.classes)
        kept = sorted(frequency, key=lambda term: (-frequency[term], term))[:most] if len(frequency) > most else frequency
        self.index = {term: i for i, term in enumerate(sorted(kept))}
        self.idf = {term: 1 + math.log((1 + len(texts)) / (1 + n)) for term, n in frequency.items()}
        x, y, dev = self.features(texts), torch.tensor(labels), self.features(dev_texts)
        fitted = [self.regress(x, y, strength) for strength in self.STRENGTHS]
        merits = [self.merit(self.apply(dev, w), torch.tensor(dev_labels)) for w in fitted]
        self.weights = fitted[merits.index(max(merits))]
        return self

    def cost(self, scores, y):
        """What is minimised: scores (N, C), y (N,) -> scalar."""
        return F.cross_entropy(scores, y)

    def merit(self, scores, y):
        """What chooses the penalty: the number of right answers."""
        return int((scores.argmax(1) == y).sum())

    def features(self, texts):
        """-> sparse (rows, vocabulary), rows of length 1."""
        rows, columns, values = [], [], []
        for number, text in enumerate(texts):
            counts = {t: n for t, n in Counter(terms(text)).items() if t in self.index}
            weighted = {t: (1 + math.log(n)) * self.idf[t] for t, n in counts.items()}
            length = math.sqrt(sum(v * v for v in weighted.values())) or 1.0
            rows += [number] * len(weighted)
            columns += [self.index[t] for t in weighted]
            values += [v / length for v in weighted.values()]
        return torch.sparse_coo_tensor([rows, columns], values, (len(texts), len(self.index)), check_invariants=False).coalesce()

    def regress(self, x, y, strength):
        """Logistic regression, multinomial here -> (weights (vocabulary, C), bias (C,))."""
        w, b = (torch.zeros(shape, requires_grad=True) for shape in ((x.shape[1], self.classes), (self.classes,)))
        solver = torch.optim.LBFGS([w, b], max_iter=100, history_size=HISTORY, line_search_fn="strong_wolfe")

        def loss():
            solver.zero_grad()
            value = self.cost(torch.sparse.mm(x, w) + b, y) + strength * (w ** 2).sum()
            value.backward()
            return value
        solver.step(loss)
        return w.detach(), b.detach()

    def apply(self, x, weights):
        return torch.sparse.mm(x, weights[0]) + weights[1]

    def predict(self, texts):
        """-> probabilities (rows, C), numpy."""
        return self.apply(self.features(texts), self.weights).softmax(-1).numpy()


class OneVersusRest(BagOfWords):
    """The same features -> a logistic regression for each class, has the row it or not: several labels a row. Labels are
    (N, C) of 0 and 1."""

    def cost(self, scores, y):
        """As each class alone has it: the mean over rows, summed over classes."""
        return F.binary_cross_entropy_with_logits(scores, y, reduction="sum") / len(y)

    def merit(self, scores, y):
        """Minus the log loss: how many sets are right is settled by thresholds, which come later."""
        return -float(self.cost(scores, y))

    def predict(self, texts):
        """-> probabilities (rows, C), numpy; a row's do not sum to one."""
        return self.apply(self.features(texts), self.weights).double().sigmoid().numpy()
