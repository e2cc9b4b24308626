"""Which rows are held out together: k folds with equal shares of every class, and groups that are never torn apart.

Here: fold numbers for rows (k-fold cross-validation: Stone 1974, "Cross-Validatory Choice and Assessment of Statistical
Predictions"), and the dev rows that a fold's own training part gives up. Not here: training (the command folds.py).

Why groups: where the same prompt, author or article stands in many rows, a model that remembers it does well on held-out
rows for a reason that new data does not give. Why shares: of a class with few rows, chance could leave a fold none.
All order is that of sha256(seed, key): other machines, and other runs, find the same folds.
"""
import hashlib
import json
from collections import Counter

import numpy as np

from ..errors import InputError
from ..files import short
from ..text.data import Example, hold_out, text_key


def share_out(labels, groups, k, seed):
    """-> the fold, 0 to k - 1, of each row: `stratified` where each row is a group of its own, else `grouped`."""
    alone = len(set(groups)) == len(groups)
    return stratified(labels, k, seed, groups) if alone else grouped(labels, groups, k, seed)


def stratified(labels, k, seed, keys=None):
    """-> the fold, 0 to k - 1, of each row. Two folds differ by at most one row of each class, and one row in all.

    labels: the class of each row; keys: a text for each row, all different, from which chance is drawn, so that the order
    of the rows plays no part (default: their numbers, and it does). Raises InputError if a class has fewer than k rows.
    """
    check_folds(k, len(labels), "rows")
    few = [(label, rows) for label, rows in sorted(Counter(labels).items()) if rows < k]
    if few:
        raise InputError(f"class {few[0][0]!r} has {few[0][1]} rows for {k} folds: take fewer folds, or add rows of it")
    keys = range(len(labels)) if keys is None else keys
    order = sorted(range(len(labels)), key=lambda row: (labels[row], draw(seed, keys[row])))
    folds = [0] * len(labels)
    for place, row in enumerate(order):                    # dealt in turn, class after class: where one class ends, the
        folds[row] = place % k                             # next goes on, so that the folds' sizes are even too
    return folds


def grouped(labels, groups, k, seed):
    """-> the fold, 0 to k - 1, of each row; rows of one group share theirs.

    labels: the class of each row; groups: the name of its group, a text. Greedy: the largest group first, each into the
    fold where it adds least to the sum of squares of the folds' shares, of each class and of all rows. The order of rows
    plays no part. No bound is promised: one group may be larger than a fold should be. Raises InputError if there are
    fewer groups than folds, or a class stands in one group only (its rows could be held out, or trained on, never both).
    """
    check_folds(k, len(set(groups)), "groups")
    classes = sorted(set(labels))
    number, members = {label: i for i, label in enumerate(classes)}, {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    counts = {group: np.bincount([number[labels[row]] for row in rows], minlength=len(classes))
              for group, rows in members.items()}                                          # (C,) each
    for label, own in zip(classes, zip(*counts.values())):
        if np.count_nonzero(own) < 2:
            raise InputError(f"class {label!r} stands in one group only: a fold would train without it or be the only one to "
                             "be tested on it; group by another column, or add rows of it")
    total = np.sum(list(counts.values()), axis=0)                                          # (C,)
    weights = np.append(1 / total ** 2, 1 / len(labels) ** 2)                              # (C + 1,)
    held, place = np.zeros((k, len(classes) + 1)), {}                                      # rows of each class, and of all
    for group in sorted(members, key=lambda group: (-len(members[group]), draw(seed, group))):
        own = np.append(counts[group], len(members[group]))
        added = ((2 * held + own) * own * weights).sum(1)                                  # (k,): (h + o)^2 - h^2
        place[group] = int(np.argmin(np.round(added, 12)))     # rounded: equal folds stay equal, the first of them is taken
        held[place[group]] += own
    return [place[group] for group in groups]


def dev_rows(labels, groups, seed):
    """-> the numbers of the rows, about a tenth of each class, by which a training part chooses its best epoch.

    A group gives all its rows or none; one whose classes no other group has stays in training (data.hold_out).
    """
    rows = [Example((str(group),), label, row) for row, (label, group) in enumerate(zip(labels, groups))]
    return [example.row for example in hold_out(rows, ("dev",), seed)["dev"]]


def read_groups(table, columns):
    """data.Table, "author,title" -> the group of each row. Raises InputError for a missing column or an empty cell."""
    names = [name.strip() for name in columns.split(",")]
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise InputError(f"{table.path}: --group: no column {short(missing[0])} in "
                         f"{short(list(table.columns), 300)}: name one of these")
    groups = []
    for line, record in table.rows:
        values = [record.get(name) for name in names]
        if any(value is None or str(value).strip() == "" for value in values):
            raise InputError(f"{table.path}, line {line}: --group {columns}: the cell is empty: fill it, or group by another")
        groups.append(group_key(value if isinstance(value, str) else json.dumps(value) for value in values))
    return groups


def group_key(texts):
    """One text for several, the same where they are equal but for case and the amount of white space."""
    return json.dumps(text_key(texts))


def check_folds(k, things, name):
    """At least two folds, and something for each."""
    if k < 2:
        raise InputError(f"{k} folds: there must be at least 2")
    if things < k:
        raise InputError(f"{things} {name} for {k} folds: take fewer folds, or more rows")


def draw(seed, key):
    """A number by chance, the same wherever it is drawn."""
    return hashlib.sha256(json.dumps([seed, key]).encode()).digest()
