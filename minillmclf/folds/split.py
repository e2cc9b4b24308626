"""Assign rows to k folds, with equal shares of every class, and no group in two folds.

Here: a fold for each row (k-fold cross-validation: Stone 1974, "Cross-Validatory Choice and
Assessment of Statistical Predictions"), the dev rows of a fold's training part, and a warning of
texts in several folds.

Why groups: if many rows share a prompt, an author or an article, a model that memorises it scores
well on held-out rows, but not on new data. Why equal shares: by chance a fold could get no row of a
rare class. Rows are ordered by sha256(seed, key), so the folds are the same on every machine.
"""
import hashlib
import json
from collections import Counter

import numpy as np

from ..errors import InputError
from ..text.data import hold_out
from ..text.examples import Example, text_key


def assign_folds(labels, groups, k, seed):
    """-> the fold, 0 to k - 1, of each row: `stratified_folds` if every group is a single row, else
    `grouped_folds`."""
    if len(set(groups)) == len(groups):
        return stratified_folds(labels, k, seed, groups)
    return grouped_folds(labels, groups, k, seed)


def stratified_folds(labels, k, seed, keys=None):
    """-> the fold, 0 to k - 1, of each row. Two folds differ by at most one row of each class, and
    by at most one row in all.

    labels: the class of each row; keys: a text for each row, all different (default: row numbers).
    Rows are ordered by their keys, so with texts their order in the file does not matter. Raises
    InputError for a class with fewer than k rows.
    """
    check_folds(k, len(labels), "rows")
    for label, rows in sorted(Counter(labels).items()):
        if rows < k:
            raise InputError(f"class {label!r} has {rows} rows for {k} folds: take fewer folds, or "
                             "add rows of it")
    keys = range(len(labels)) if keys is None else keys
    order = sorted(range(len(labels)), key=lambda row: (labels[row], sort_key(seed, keys[row])))
    folds = [0] * len(labels)
    for place, row in enumerate(order):            # dealt like cards. A class goes on where the
        folds[row] = place % k                     # last one ended, so sizes are even too
    return folds


def grouped_folds(labels, groups, k, seed):
    """-> the fold, 0 to k - 1, of each row; rows of one group share theirs.

    labels, groups: the class and the group of each row. A fold has a share of each class, and one
    of all rows. Greedy: the largest group comes first, and each goes into the fold where it adds
    least to the sum of the squared shares. The order of the rows does not matter. Shares may differ
    much, if a group is very large. Raises InputError for fewer groups than folds, and for a class
    in a single group: the fold that tests it would train without it.
    """
    check_folds(k, len(set(groups)), "groups")
    classes = sorted(set(labels))
    column = {label: number for number, label in enumerate(classes)}
    counts = {}                               # group -> (C + 1,) rows of each class, and in all
    for label, group in zip(labels, groups):
        own = counts.setdefault(group, np.zeros(len(classes) + 1))
        own[column[label]] += 1
        own[-1] += 1
    for label, its_groups in zip(classes, np.count_nonzero(list(counts.values()), axis=0)):
        if its_groups < 2:
            raise InputError(f"class {label!r} stands in one group only: a fold would train "
                             "without it or be the only one to be tested on it; group by another "
                             "column, or add rows of it")
    weights = 1 / sum(counts.values()) ** 2                                         # (C + 1,)
    totals, fold_of = np.zeros((k, len(classes) + 1)), {}      # totals: rows so far in each fold
    for group in sorted(counts, key=lambda group: (-counts[group][-1], sort_key(seed, group))):
        own = counts[group]
        added = ((2 * totals + own) * own * weights).sum(1)    # (k,) (totals + own)^2 - totals^2
        fold = int(np.argmin(np.round(added, 12)))             # ties: the first fold
        fold_of[group] = fold
        totals[fold] += own
    return [fold_of[group] for group in groups]


def choose_dev_rows(rows, examples, groups, seed):
    """Row numbers -> the set of those that are dev rows, about a tenth of each class. They choose
    the best epoch. examples, groups: of all rows.

    All rows of a group are chosen, or none. A group stays in training if no other has one of its
    classes (text.data.hold_out).
    """
    parts = hold_out([Example((str(groups[i]),), examples[i].label, i) for i in rows], ("dev",),
                     seed)
    return {example.row for example in parts["dev"]}


def straddling_warning(examples, folds):
    """-> a list of one warning, or none: how many texts stand in more than one fold, as they may
    where a group is more than a text. Texts are equal as in text.examples.text_key."""
    found = {}
    for example, fold in zip(examples, folds):
        found.setdefault(text_key(example.texts), set()).add(fold)
    count = sum(len(its_folds) > 1 for its_folds in found.values())
    if not count:
        return []
    return [f"WARNING: {count} text(s) stand in several folds, and flatter the scores: put equal "
            "texts into one group, or remove the copies"]


def check_folds(k, count, name):
    """InputError unless k is at least 2 and at most `count`."""
    if k < 2:
        raise InputError(f"{k} folds: there must be at least 2")
    if count < k:
        raise InputError(f"{count} {name} for {k} folds: take fewer folds, or more rows")


def sort_key(seed, key):
    """Pseudo-random bytes that depend on nothing else, to sort by."""
    return hashlib.sha256(json.dumps([seed, key]).encode()).digest()
