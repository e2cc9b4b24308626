"""Which rows are held out together: k folds with equal shares of every class; groups stay together.

Here: a fold for each row (k-fold cross-validation: Stone 1974, "Cross-Validatory Choice and
Assessment of Statistical Predictions"), and the dev rows of a fold's training part.

Why groups: where a prompt, an author or an article stands in many rows, a model that remembers it
scores well on held-out rows, and not on new data. Why shares: chance could leave a fold without
rows of a rare class. Every order is that of sha256(seed, key): the folds are the same everywhere.
"""
import hashlib
import json
from collections import Counter

import numpy as np

from ..errors import InputError
from ..text.data import Example, hold_out


def share_out(labels, groups, k, seed):
    """-> the fold, 0 to k - 1, of each row: `stratified` if no two rows share a group, else
    `grouped`."""
    if len(set(groups)) == len(groups):
        return stratified(labels, k, seed, groups)
    return grouped(labels, groups, k, seed)


def stratified(labels, k, seed, keys=None):
    """-> the fold, 0 to k - 1, of each row. Two folds differ by at most one row of each class, and
    by at most one row in all.

    labels: the class of each row; keys: a text for each row, all different, which decides its
    place, so that the order of rows does not matter (default: their numbers, and it does). Raises
    InputError for a class with fewer than k rows.
    """
    check_folds(k, len(labels), "rows")
    for label, rows in sorted(Counter(labels).items()):
        if rows < k:
            raise InputError(f"class {label!r} has {rows} rows for {k} folds: take fewer folds, or "
                             "add rows of it")
    keys = range(len(labels)) if keys is None else keys
    order = sorted(range(len(labels)), key=lambda row: (labels[row], draw(seed, keys[row])))
    folds = [0] * len(labels)
    for place, row in enumerate(order):            # dealt in turn; the next class goes on where the
        folds[row] = place % k                     # last one ended, so that sizes are even too
    return folds


def grouped(labels, groups, k, seed):
    """-> the fold, 0 to k - 1, of each row; rows of one group share theirs.

    labels, groups: the class and the group of each row. Greedy: the largest group first, each into
    the fold where it adds least to the sum of squares of the folds' shares, of each class and of
    all rows. The order of the rows does not matter; no bound is promised, for one group may be too
    large. Raises InputError for fewer groups than folds, and for a class with a single group: its
    rows could be held out or trained on, never both.
    """
    check_folds(k, len(set(groups)), "groups")
    classes = sorted(set(labels))
    column = {label: number for number, label in enumerate(classes)}
    counts = {}                                # group -> rows of each class, and of all (C + 1,)
    for label, group in zip(labels, groups):
        own = counts.setdefault(group, np.zeros(len(classes) + 1))
        own[[column[label], -1]] += 1
    for label, found in zip(classes, np.count_nonzero(list(counts.values()), axis=0)):
        if found < 2:
            raise InputError(f"class {label!r} stands in one group only: a fold would train "
                             "without it or be the only one to be tested on it; group by another "
                             "column, or add rows of it")
    weights = 1 / sum(counts.values()) ** 2                                         # (C + 1,)
    held, fold_of = np.zeros((k, len(classes) + 1)), {}
    for group in sorted(counts, key=lambda group: (-counts[group][-1], draw(seed, group))):
        own = counts[group]
        added = ((2 * held + own) * own * weights).sum(1)      # (k,): (held + own)^2 - held^2
        fold = int(np.argmin(np.round(added, 12)))             # of equal folds the first
        fold_of[group] = fold
        held[fold] += own
    return [fold_of[group] for group in groups]


def dev_rows(labels, groups, seed):
    """-> the numbers of the rows, about a tenth of each class, that choose the best epoch.

    A group gives all its rows or none; one whose classes no other group has stays in training
    (text.data.hold_out).
    """
    rows = [Example((str(group),), label, row)
            for row, (label, group) in enumerate(zip(labels, groups))]
    return [example.row for example in hold_out(rows, ("dev",), seed)["dev"]]


def check_folds(k, count, name):
    """At least two folds, and something for each."""
    if k < 2:
        raise InputError(f"{k} folds: there must be at least 2")
    if count < k:
        raise InputError(f"{count} {name} for {k} folds: take fewer folds, or more rows")


def draw(seed, key):
    """A pseudo-random number, as bytes."""
    return hashlib.sha256(json.dumps([seed, key]).encode()).digest()
