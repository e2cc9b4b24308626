"""Stacking: a small regression on what several models say of rows that they have not seen.

    bag = bag_of_words_member(rows, groups, folds, test_texts, labels)
    bert = read_member("runs/bert", ids, test_texts, labels)            # of minillmclf.folds
    stack = fit_stack(rows, [bag, bert], folds, labels)
    probabilities = stack.predict(test_texts, [bag, bert])

A model knows its own training rows, so its answers to them do not tell how far it can be trusted.
Its answers out of fold do: a regression on these learns how much each model is worth (Wolpert 1992,
"Stacked Generalization"). Rows are preferences, (prompt, a, b) with the classes a, b and tie; each
is seen in both orders, so if a and b change places, so do the answers. Beside the members' log-
probabilities the regression sees lengths, for an answer may win by its length alone.
"""
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..classify.baseline import BagOfWords
from ..classify.swap import (add_swapped, average_orders, side_numbers, swap_columns, swap_label,
                             swap_texts)
from ..errors import InputError
from ..files import short
from ..models.tensor_files import open_tensors
from ..text.examples import Example
from ..text.table_files import read_table
from ..training.probe import features_of, minimise
from .arena import EMPTY, as_pair
from .split import choose_dev_rows
from .submission import scores_key

STRENGTHS = (10.0, 30.0, 100.0, 300.0, 1000.0)   # of the stack's L2 penalty; other folds choose
VECTOR_STRENGTH = 3000.0                         # of `vector_member`, whose features are many
LOWEST = 1e-7                                    # least probability of a member


@dataclass
class Member:
    """A model of a stack: log-probabilities of N rows, each by the model that has not seen it, and
    of M test rows, whose probability is the mean over the models of all folds."""
    name: str
    out_of_fold: torch.Tensor        # (N, C), float64
    test: torch.Tensor               # (M, C), float64


# ------------------------------------------------------------------------------------- members

def make_member(name, fit, rows, folds, test_texts):
    """A model that is fitted anew for each fold -> Member. fit: takes row numbers and the fold, and
    returns a function, texts of n rows -> log-probabilities (n, C)."""
    folds, parts, each = np.asarray(folds), [], []
    for fold in range(folds.max() + 1):
        predict = fit(np.flatnonzero(folds != fold).tolist(), fold)
        held = np.flatnonzero(folds == fold)
        parts.append((held, predict([rows[i].texts for i in held]).double()))
        each.append(predict(test_texts))
    logs = torch.empty(len(rows), parts[0][1].shape[1], dtype=torch.float64)        # (N, C)
    for held, part in parts:
        logs[held] = part
    return Member(name, logs, log_mean(each))


def both_orders(rows, labels):
    """Examples -> texts and class numbers of these, then of the same with a and b exchanged."""
    both = add_swapped(rows)
    return [row.texts for row in both], [labels.index(row.label) for row in both]


def log_mean(each):
    """k tensors of logits (M, C) -> the log of the mean of their probabilities, (M, C)."""
    logs = torch.stack([one.double().log_softmax(1) for one in each])               # (k, M, C)
    return logs.logsumexp(0) - math.log(len(each))


def read_member(folder, ids, test_texts, labels, folds=None):
    """A folder of `python -m minillmclf.folds --test ...` -> Member, with columns as `labels`. ids:
    of the N rows of --data, in their order; test_texts: (prompt, a, b) of the M rows of --test;
    folds: (N,), what they should be. InputError if the folder has other rows, test rows, classes or
    folds: a row that another member has learned from would leak."""
    path = Path(folder) / "oof.csv"
    table = read_table(path, "double")
    rows = [row for _, row in table.rows]
    columns = ["id", "fold", *(f"p_{label}" for label in labels)]
    if missing := [name for name in columns if name not in rows[0]]:
        raise InputError(f"{path}: has no column {short(missing[0])}: it should be of a run of "
                         f"folds on the classes {', '.join(labels)}")
    if [row["id"] for row in rows] != [str(name) for name in ids]:
        raise InputError(f"{path}: its {len(rows)} rows are not the {len(ids)} rows of the data: "
                         "run folds on these data")
    own = [int(row["fold"]) - 1 for row in rows]
    if folds is not None and own != list(folds):
        raise InputError(f"{path}: has other folds than the rest of the stack: run folds with the "
                         "same --folds, --group and --seed")
    p = np.array([[row[f"p_{label}"] for label in labels] for row in rows], float)  # (N, C)
    its_columns = [name for name in table.columns if name.startswith("p_")]
    order = [its_columns.index(name) for name in columns[2:]]
    each = [read_scores(Path(folder) / f"fold-{fold + 1}", test_texts, len(labels))[:, order]
            for fold in range(max(own) + 1)]
    return Member(Path(folder).name, torch.from_numpy(np.log(np.clip(p, LOWEST, 1))),
                  log_mean(each))


def read_scores(fold, texts, classes):
    """The logits (M, classes) that folds has kept for the test rows in the folder of a fold.
    InputError if they are of other texts, or have another shape."""
    path = fold / "scores-test.safetensors"
    for needed in (path, fold / "run.json"):
        if not needed.exists():
            raise InputError(f"{needed}: is not there: run folds with --test")
    with open_tensors(path) as file:
        scores, key = file.get_tensor("scores"), file.metadata()
    read = (texts, [as_pair(row) for row in texts])        # by a model of three texts, or of two
    if key not in [scores_key(fold, [Example(row, None, 0) for row in rows]) for rows in read]:
        raise InputError(f"{path}: its {len(scores)} rows are not these {len(texts)} test rows, or "
                         "the run has changed: run folds with these rows as --test, in a new --out")
    if tuple(scores.shape) != (len(texts), classes):
        raise InputError(f"{path}: scores of shape {tuple(scores.shape)}, should be "
                         f"{(len(texts), classes)}: run folds on the classes of the stack")
    return scores


class PairBag(BagOfWords):
    """A bag of words for preferences, whose penalty is chosen by the log loss."""
    PENALTIES = (3e-4, 1e-3, 3e-3)

    def dev_score(self, logits, y):
        return -float(self.loss(logits, y))


def bag_of_words_member(rows, groups, folds, test_texts, labels):
    """Logistic regression on words and word pairs, in both orders -> Member. rows: N Examples;
    groups, folds: of each. A fold's penalty is chosen on dev rows out of the other folds."""
    def fit(numbers, fold):
        dev = choose_dev_rows(numbers, rows, groups, f"bag:{fold}")
        bag = PairBag(len(labels)).fit(
            *both_orders([rows[i] for i in numbers if i not in dev], labels),
            *both_orders([rows[i] for i in sorted(dev)], labels))

        def predict(texts):
            swapped = [swap_texts(row) for row in texts]
            p = np.concatenate([bag.predict(texts), bag.predict(swapped)])          # (2n, C)
            return average_orders(torch.from_numpy(np.log(p)), labels)              # (n, C)
        return predict
    return make_member("bag of words", fit, rows, folds, test_texts)


# ------------------------------------------------------------------- a model's vectors of texts

def vector_member(name, model, rows, folds, test_texts, labels):
    """Logistic regression on a backbone's vectors of the prompt and of both answers -> Member.

    model: a Classifier, whose head only pools; it is not trained, so one pass over all texts serves
    all folds. The differences of the answers' vectors tell a from b, their sum tells ties. Lengths
    are fitted first, and the vectors to what these leave: they would else be spent on lengths.
    """
    known = text_vectors(model, [row.texts for row in rows] + list(test_texts))

    def features(texts):
        return pair_features(*(torch.stack([known[row[i]] for row in texts]) for i in range(3)))

    def fit(numbers, fold):
        texts, y = both_orders([rows[i] for i in numbers], labels)
        base = fit_lengths(texts, y, len(labels))
        rest = fit_regression(features(texts), y, len(labels), VECTOR_STRENGTH, base(texts).float())
        return lambda texts: (base(texts) + rest(features(texts))).log_softmax(1)
    return make_member(name, fit, rows, folds, test_texts)


def text_vectors(model, rows):
    """Rows of texts -> {text: what the last layer of the classifier's head reads, of length 1}."""
    texts = sorted({text for row in rows for text in row})
    encoded = [encode_text(model, text) for text in texts]
    vectors = model.compute_in_batches(encoded, lambda batch: features_of(model, batch),
                                       model.head.out.in_features)                  # (texts, D)
    return dict(zip(texts, F.normalize(vectors.clone(), dim=1)))


def encode_text(model, text):
    """A text -> a row. A text without a token, such as a lone zero-width space, is "(empty)"."""
    try:
        return model.encode([(text,)])[0][0]
    except InputError:
        return model.encode([(EMPTY,)])[0][0]


def pair_features(prompt, a, b):
    """Vectors (N, D) of length 1 -> (N, 3D + 2). If a and b change places, the first 2D + 1 columns
    change their sign, and the others stay."""
    near = prompt * (a - b)                                                         # (N, D)
    return torch.cat([a - b, near, near.sum(1, keepdim=True), a + b,
                      (a * b).sum(1, keepdim=True)], 1)


# ------------------------------------------------------------------------------------- lengths

def length_features(texts):
    """N rows (prompt, a, b) -> (N, 11), float64. How much longer a is than b in characters, words
    and lines, how much less it repeats its words, and two bounded forms of the first: these change
    their sign with the order. How alike the lengths are, how long all is, are a and b equal."""
    return torch.tensor([row_lengths(*row) for row in texts], dtype=torch.float64)


def row_lengths(prompt, a, b):
    """The 11 numbers of one row: 6 that change their sign with the order, then 5 that do not."""
    ratios = [math.log1p(count(a)) - math.log1p(count(b))          # logs of (1 + n_a) / (1 + n_b)
              for count in (len, lambda text: len(text.split()), lambda text: text.count("\n"))]
    longer = ratios[0]
    return [*ratios, distinct_words(a) - distinct_words(b), math.tanh(2 * longer),
            math.tanh(6 * longer), abs(longer), math.exp(-(longer / 0.3) ** 2),
            math.log1p(len(a) + len(b)), math.log1p(len(prompt)), float(a == b)]


def fit_lengths(texts, targets, classes):
    """Regression on `length_features` alone -> a function, texts of n rows -> logits (n, C)."""
    logits = fit_regression(length_features(texts), targets, classes, STRENGTHS[0])
    return lambda texts: logits(length_features(texts))


def distinct_words(text):
    """The share of a text's words that are no repetition."""
    words = text.lower().split()
    return len(set(words)) / max(1, len(words))


# ------------------------------------------------------------------------------------- the stack

def fit_regression(x, targets, classes, strength, base=0.0):
    """Multinomial logistic regression: sum of the log loss + strength / 2 times the squared weights
    of features with variance 1 -> a function, x (n, F) -> logits (n, C).

    x: (N, F), float32 or float64; the unit of a feature does not matter, nor does one that is
    constant. base: logits (N, C) to which those of the regression are added in fitting.
    """
    targets = torch.as_tensor(targets)
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(scale > 1e-9, scale, torch.ones_like(scale))
    z = (x - mean) / scale
    weight = torch.zeros(x.shape[1], classes, dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, requires_grad=True)
    minimise(lambda: F.cross_entropy(base + z @ weight + bias, targets, reduction="sum")
             + strength / 2 * (weight ** 2).sum(), [weight, bias], steps=200)
    return lambda new: ((new - mean) / scale @ weight + bias).detach()


@dataclass
class Stack:
    """A fitted stack. strength: of its penalty; out_of_fold: log-probabilities (N, C) of its rows,
    each by a stack that was fitted to the other folds; logits: a function of its inputs."""
    strength: float
    out_of_fold: torch.Tensor
    logits: object
    lengths: bool

    def predict(self, texts, members):
        """Texts of M test rows, the members in their order -> probabilities, numpy (M, C)."""
        x = stack_inputs(texts, [member.test for member in members], self.lengths)
        return self.logits(x).softmax(1).numpy()


def stack_inputs(texts, logs, lengths=True):
    """Texts (prompt, a, b) of N rows, log-probabilities (N, C) of each member -> (N, F)."""
    parts = [length_features(texts), *logs] if lengths else list(logs)
    return torch.cat(parts, 1)


def fit_stack(rows, members, folds, labels, lengths=True):
    """Fit the regression to what the members say out of fold -> Stack. rows: N Examples; lengths:
    are `length_features` inputs, too? The strength has the least log loss on held-out folds."""
    if not lengths and not members:
        raise InputError("a stack needs a member, or lengths: give one of them")
    sides, folds = side_numbers(labels), torch.as_tensor(np.array(folds))
    logs = [member.out_of_fold for member in members]
    x = torch.stack([                                                            # (2, N, F)
        stack_inputs([row.texts for row in rows], logs, lengths),
        stack_inputs([swap_texts(row.texts) for row in rows],
                     [swap_columns(each, labels) for each in logs], lengths)])
    y = torch.tensor([[labels.index(row.label) for row in rows],
                      [labels.index(swap_label(row.label)) for row in rows]])    # (2, N)

    def fit(chosen, strength):
        return fit_regression(x[:, chosen].flatten(0, 1), y[:, chosen].flatten(), len(sides),
                              strength)

    def held_out(strength):
        out = torch.empty(len(rows), len(sides), dtype=torch.float64)
        for fold in folds.unique():
            out[folds == fold] = fit(folds != fold, strength)(x[0, folds == fold]).log_softmax(1)
        return out
    found = {strength: held_out(strength) for strength in STRENGTHS}
    best = min(found, key=lambda strength: F.nll_loss(found[strength], y[0]).item())
    every = torch.ones(len(rows), dtype=torch.bool)
    return Stack(best, found[best], fit(every, best), lengths)
