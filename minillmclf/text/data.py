"""Labelled data: a CSV, TSV or JSONL file, a folder of them, or a bundled name -> a Dataset.

Here: the splits, the classes, rows held out of train. Not here: how rows are read (table_files.py)
and become Examples (examples.py), which split a row is of (splits.py), tokens (tokenizers/),
batches (batch.py), checks of the data (doctor.py).

Three rules. A class is its *name*: two files rarely number classes alike. A row that cannot be read
is an error that names its line; no row is dropped. Nothing is taken from test: a missing dev split
is carved out of train.
"""
import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import short, stays_local
from .cells import as_json, natural_order, split_label
from .examples import (ZERO_ONE, Example, default_label_column, make_examples, refuse_blank,
                       split_names, text_key)
from .splits import row_splits, split_column, split_files
from .table_files import Table, read_table

BUNDLED = Path(__file__).resolve().parent.parent / "datasets"


@dataclass
class Dataset:
    """The splits of a data set and the names of its classes."""
    name: str
    train: list[Example]
    dev: list[Example]
    test: list[Example]           # may be empty
    labels: list[str]             # the classes of train in natural order: class number -> name
    columns: tuple[str, ...]      # the text columns that were read
    source: dict                  # path, sha256 of each file, kind of split, seed
    multi_label: bool = False     # any number of labels for a row? (`label_set`)
    label_column: str = ""        # the label column that was read


def load_data(path_or_name, text_columns=None, label_column=None, seed=0, multi_label=False,
              quoting="auto", needs_dev=True) -> Dataset:
    """Read labelled data with its splits; columns as for examples.read_examples.

    path_or_name: a file, split by its column `split` or else 80/10/10 by `seed` (`hold_out`); a
    folder with train.* and perhaps dev.* and test.* (or other names in splits.py); a bundled name;
    or a Table. A missing dev split is carved out of train, a missing test split is []. InputError
    also for an empty text and for a class that train does not have.

    multi_label: a label cell names any number of classes, or none: "a|b", in JSONL also
    ["a", "b"]; or with label_column "a,b,c" each class has a column of 0 and 1. Otherwise "a|b" is
    the name of one class. needs_dev: is it an error if no dev rows can be held out?
    """
    tables = read_tables(path_or_name, quoting)
    first = next(iter(tables.values()))
    label_column = label_column or default_label_column(first)
    refuse_multi_hot(first, label_column)
    parts = {"train": [], "dev": [], "test": []}
    for file_split, table in tables.items():           # train is first: it decides the columns
        text_columns, examples = make_examples(table, text_columns, label_column, True, multi_label)
        refuse_blank(table.path, examples, text_columns)
        for example, split in zip(examples, row_splits(table, file_split)):
            parts[split].append(example)
    kind = "files" if None not in tables else "column" if split_column(first) else "random"
    path = first.path.parent if kind == "files" else first.path
    if dev_from_train := not parts["dev"]:
        held_out = ("dev", "test") if kind == "random" else ("dev",)
        parts |= hold_out(parts["train"], held_out, seed, multi_label)
    if not parts["train"] or needs_dev and not parts["dev"]:
        other = "mark their split" if kind == "random" else "dev rows (--dev none does without)"
        raise InputError(f"{path}: {len(parts['train'])} train and {len(parts['dev'])} dev rows, "
                         "where both are needed: add rows of each class with different texts, or "
                         f"{other}")
    paths = {split: tables.get(split, first).path for split in parts}
    labels = find_classes(parts, paths, split_names(label_column, first.columns), multi_label)
    source = {"path": str(getattr(path_or_name, "path", path_or_name)),
              "sha256": {table.path.name: table.sha256 for table in tables.values()},
              "split": kind, "seed": seed, "dev_from_train": dev_from_train}
    return Dataset(path.resolve().name if kind == "files" else path.stem, parts["train"],
                   parts["dev"], parts["test"], labels, text_columns, source, multi_label,
                   label_column)


def refuse_multi_hot(table: Table, label_column: str) -> None:
    """InputError if each label cell is a list of zeros and ones, all of one length."""
    cells = [record.get(label_column) for _, record in table.rows]
    lists = [re.split(r"[|,;\s]+", cell.strip()) if isinstance(cell, str) else cell
             for cell in cells]
    if all(isinstance(items, list) and 1 < len(items) == len(lists[0])
           and all(str(item).strip().casefold() in ZERO_ONE for item in items)
           for items in lists):
        raise InputError(f"{table.path}, line {table.rows[0][0]}: column {short(label_column)} "
                         f"holds {as_json(cells[0])}, zeros and ones, and no names: write a column "
                         "for each class and name these, --label-column a,b,c")


def read_tables(path_or_name, quoting: str) -> dict:
    """{the split of a file: its Table}, train first; {None: Table} for a single file."""
    if isinstance(path_or_name, Table):
        return {None: path_or_name}
    path = find_data(path_or_name)
    if not path.is_dir():
        return {None: read_table(path, quoting)}
    files = split_files(path)
    return {split: read_table(files[split], quoting) for split in sorted(files, key="train".__ne__)}


def find_data(path_or_name) -> Path:
    """A bundled name or a path -> the file or folder. ./tickets is never the bundled set, nor is a
    Path where something lies."""
    name, path = str(path_or_name), Path(path_or_name)
    bundled = {file.stem: file for file in sorted(BUNDLED.glob("*.csv"))}
    there = bool(name) and os.path.exists(path)        # False, no error, for an impossible name
    if name in bundled and not (there and isinstance(path_or_name, os.PathLike)):
        return bundled[name]
    if there:
        return stays_local(path, bundled)
    raise InputError(f"{short(name, 200)}: no such file, folder or bundled data set: check the "
                     f"path, or name one of the bundled ones: {', '.join(bundled)}")


def find_classes(parts, paths, label_columns, multi_label) -> list[str]:
    """The classes of train in natural order. InputError if too few, or if dev or test has others.

    parts, paths: {split: its Examples, its file}; label_columns: a name for each label column.
    """
    counts = Counter(name for e in parts["train"] for name in split_label(e.label, multi_label))
    labels = natural_order(counts)
    for name in label_columns:
        if len(label_columns) > 1 and name not in counts:
            raise InputError(f"{paths['train']}: no train row has 1 in the column {short(name)}: "
                             "leave it out of --label-column, or add rows")
    if not labels:
        raise InputError(f"{paths['train']}: no train row has a label: name classes in its label "
                         "column")
    if len(labels) < 2:
        raise InputError(f"{paths['train']}: train has one class only ({short(labels[0])}): add "
                         "rows of another")
    for split, examples in parts.items():
        for example in examples:
            for name in split_label(example.label, multi_label):
                if name not in counts:
                    known = ", ".join(map(short, labels[:20]))
                    known += f" and {len(labels) - 20} more" * (len(labels) > 20)
                    bar = "; if a bar stands between several labels of a row, --multi-label"
                    raise InputError(f"{paths[split]}, line {example.row}: {split} has the label "
                                     f"{short(name)}, train has not (only {known}): correct it, or "
                                     f"add train rows of it{bar * ('|' in name)}")
    return labels


def hold_out(examples, names, seed, multi_label=False) -> dict[str, list[Example]]:
    """Take a tenth of the texts of each class for each split in `names`; the rest is "train".

    Texts are ordered by sha256(seed, text), so the order of the rows does not matter, and equal
    texts fall in one split. A class with no more texts than `names` stays in train. Texts that are
    repeated with other labels form classes of their own; a row with several labels belongs to the
    class of the rarest.
    """
    labels, classes, split_of = {}, {}, {}
    classes_of_rows = rarest_labels(examples) if multi_label else [e.label for e in examples]
    for example, label in zip(examples, classes_of_rows):
        labels.setdefault(text_key(example.texts), set()).add(label)
    for text, its_labels in labels.items():
        classes.setdefault(frozenset(its_labels), []).append(text)
    for texts in classes.values():
        texts.sort(key=lambda text: hashlib.sha256(json.dumps([seed, *text]).encode()).digest())
        size = max(1, round(len(texts) / 10)) if len(texts) > len(names) else 0
        for i, name in enumerate(names):
            split_of |= dict.fromkeys(texts[i * size:(i + 1) * size], name)
    parts = {name: [] for name in ("train", *names)}
    for example in examples:
        parts[split_of.get(text_key(example.texts), "train")].append(example)
    return parts


def rarest_labels(examples) -> list[str]:
    """Of the labels of each row the one that the fewest rows have; "" for no label. Of a rare label
    a split may easily get no row (Sechidis et al. 2011, "On the Stratification of Multi-label
    Data")."""
    rows = [split_label(example.label) for example in examples]
    counts = Counter(name for names in rows for name in names)
    return [min(names, key=lambda name: (counts[name], name), default="") for names in rows]
