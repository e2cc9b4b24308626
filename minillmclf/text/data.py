"""Labelled data: a CSV, TSV or JSONL file, a folder of them, or a bundled name -> a Dataset of Examples.

Here: text columns, label names and their order, one label a row or several, train / dev / test. Not here: how rows are
read, strictly (table_files.py), tokens (tokenizer.py), batches (batch.py), the report (doctor.py).

Three rules: a class is its *name*, for two files rarely number classes alike; a row that cannot be read is an error
with its line, never a row that is dropped; nothing is taken from test: a missing dev split is carved out of train.
"""
import functools
import hashlib
import json
import math
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import short
from .table_files import SEPARATORS, Table, read_table, read_windows

SPLITS = {"train": "train training", "test": "test testing",
          "dev": "dev val valid validation eval evaluation development"}           # their names, in any case
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names.split()}
UNREAD = ".json .txt .ndjson .tab .parquet .arrow .feather .xls .xlsx .gz .zip .bz2 .xz".split()
HOT = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}      # in a column that is one class
LISTED = re.compile(r"""[\[({]\s*['"].*['"],?\s*[])}]|\[[-+\d.,\s]*]|\[[^][]*,[^][]*]""",
                    re.DOTALL)                                         # "['a', 'b']", "[a, b]"
LAYOUTS = (("text",), ("text_a", "text_b"), ("premise", "hypothesis"), ("prompt", "response_a", "response_b"))   # by default
BUNDLED = Path(__file__).resolve().parent.parent / "datasets"


@dataclass(frozen=True)
class Example:
    """One row: its texts (one, or several judged together), its label name, and the line where it starts."""
    texts: tuple[str, ...]
    label: str | None             # None where the file has no label column (prediction); of several: "a|b" (`label_set`)
    row: int                      # line of the source file, 1-based, the header being line 1


@dataclass
class Dataset:
    """Three lists of Examples with the names of the classes."""
    name: str
    train: list[Example]
    dev: list[Example]
    test: list[Example]           # may be empty
    labels: list[str]             # the classes of train in natural order: a place in this list is a class number
    columns: tuple[str, ...]      # the text columns that were read
    source: dict                  # for run.json: path, sha256 per file, split ("column", "files", "random"), seed
    several: bool = False         # may a row have several labels, or none? Then an Example's label is as of `label_set`
    label_column: str = ""        # the label column that was read


def read_examples(path, text_columns=None, label_column=None, need_labels=True, several=False,
                  quoting="auto") -> list[Example]:
    """All rows of one file, in file order; empty texts are allowed.

    text_columns: "a,b" or a sequence of names; by default those of LAYOUTS, the first of which it has one. label_column: by default
    `label`, else `winner`. need_labels=False: a row whose label cannot be read has the label None. several:
    as of `load_data`; quoting: as of table_files.py. Raises InputError.
    """
    table = read_table(Path(path), quoting)
    label_column = label_column or usual_label(table)
    columns = _choose_columns(table, text_columns, label_column, need_labels)
    return _examples(table, columns, label_column, several, need_labels)


def read_text_windows(path, size, text_columns=None, **how):
    """The texts of a file to be answered, `size` rows at a time -> (Table, its text columns, a
    tuple of texts for each row). Labels are not looked at. The columns are chosen by the first
    window; how: as for `read_windows`. InputError also for a row that holds no text at all."""
    columns = None
    for table in read_windows(Path(path), size, **how):
        columns = columns or _choose_columns(table, text_columns, "", False)
        examples = _examples(table, columns, None)
        refuse_blank(path, examples)
        yield table, columns, [example.texts for example in examples]


def usual_texts(table: Table) -> tuple[str, ...]:
    """The text columns where none are named."""
    return next((layout for layout in LAYOUTS if set(layout) & set(table.columns)), LAYOUTS[0])


def text_names(count: int) -> list[str]:
    """What `count` texts of a row are called in files that are written here: text, or text_a, text_b, ..."""
    return ["text"] if count == 1 else [f"text_{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"[:count]]


def usual_label(table: Table) -> str:
    """The label column where none is named."""
    return "winner" if "winner" in table.columns and "label" not in table.columns else "label"


def names_of(columns) -> tuple[str, ...]:
    """"a, b", or a sequence of names -> the names of columns."""
    names = columns.split(",") if isinstance(columns, str) else columns
    return tuple(name.strip() for name in names)


@functools.cache
def note(line):
    """A line on standard error, once in a process."""
    print(f"note: {line}", file=sys.stderr, flush=True)


def _choose_columns(table: Table, text_columns, label_column: str, need_labels: bool) -> tuple[str, ...]:
    columns = names_of(usual_texts(table) if text_columns is None else text_columns)
    labels, known = names_of(label_column), set(table.columns)
    if not columns or len(set(columns)) < len(columns) or set(columns) & set(labels):
        raise InputError(f"--text-column {short(','.join(columns))}: name columns, each once, other than "
                         f"{short(label_column)}")
    if len(set(labels)) < len(labels):
        raise InputError(f"--label-column {short(label_column)}: name each column once")
    asked = {"--text-column": columns} | ({"--label-column": labels} if need_labels else {})
    missing = [(option, name) for option, names in asked.items() for name in names if name not in known]
    if missing:
        (option, name), own = missing[0], SEPARATORS.get(table.path.suffix.lower())
        like = {column.strip().casefold(): column for column in table.columns}         # Text, LABEL
        found = {option for option, name in missing if name.casefold() in like}
        if found:
            remedy = "as they stand there: " + " ".join(
                f"{option} {','.join(like.get(name.casefold(), name) for name in names)}"
                for option, names in asked.items() if option in found)
        elif own and "|" in table.columns[0]:
            remedy = f"its fields seem to be separated by |: write {own!r} instead"
        else:
            above = ", or write a line with the columns' names above the rows if it has none"
            remedy = f"name one with {option}" + above * bool(own)
        raise InputError(f"{table.path}: no column {short(name)} in {short(list(table.columns), 300)}: {remedy}")
    if table.separator != SEPARATORS.get(table.path.suffix.lower()):
        note(f"{table.path}: {table.separator!r} stands between its fields, and is read so")
    return columns


def _examples(table: Table, columns: tuple[str, ...], label_column: str, several=False,
              need_labels=True) -> list[Example]:
    names, examples = names_of(label_column) if label_column else (), []
    labelled = bool(names) and set(names) <= set(table.columns)
    if len(names) > 1 and not several:
        raise InputError(f"--label-column {short(label_column)}: a column for each class goes with "
                         "--multi-label")
    read = label_set if several else label_name
    for row, record in table.rows:
        where, label = f"{table.path}, line {row}: column", None
        texts = tuple(_text(record.get(name), f"{where} '{name}'") for name in columns)
        try:
            if labelled and len(names) > 1:
                label = _hot(record, names, where)
            elif labelled:
                label = read(record.get(names[0]), f"{where} '{names[0]}'")
        except InputError:
            if need_labels:
                raise
        examples.append(Example(texts, label, row))
    return examples


def _hot(record, names, where: str) -> str:
    """A column for each class, 0 or 1 in each -> the labels of the row, as of `label_set`."""
    found = []
    for name in names:
        said = HOT.get(str(record.get(name)).strip().casefold())
        if said is None:
            raise InputError(f"{where} {short(name)} must hold 0 or 1, found {_found(record.get(name))}: "
                             "correct it, or leave the column out of --label-column")
        found += [name] if said else []
    return label_set(found, f"{where}s of --label-column")


def _found(value) -> str:
    """A cell for a message, as JSON has it."""
    return json.dumps(value)[:40]


def _text(value, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} must hold text, found {_found(value)}: write a string")
    if re.search("[\0\ud800-\udfff]", value):                      # JSON can spell both: "\u0000" and "\ud83d"
        raise InputError(f"{where} holds a null byte or half of a surrogate pair: remove it")
    return value


def label_name(value, where: str) -> str:
    """The name of a class: text without outer spaces; 1 and 1.0 -> "1", true -> "true". An InputError begins
    with `where`."""
    if isinstance(value, int) or isinstance(value, float) and math.isfinite(value):
        return json.dumps(int(value) if type(value) is float and value.is_integer() else value)
    if not isinstance(value, str) or value.strip().casefold() in ("", "nan", "null"):
        more = ' (several: ["a", "b"] with --multi-label)' if isinstance(value, list) else ""
        raise InputError(f"{where} must hold a label, found {_found(value)}: write one name, such as "
                         f'"yes" or "no"{more}, or remove the row')
    if LISTED.fullmatch(value.strip()):
        raise InputError(f'{where} holds a list as a text, {_found(value)}: write "a|b" with --multi-label, '
                         "or, of zeros and ones, a column for each class with --label-column a,b,c")
    return _text(value.strip(), where)


def label_set(value, where: str) -> str:
    """The labels of a row that may have several, as one text: names in natural order, bars between, "" for none.

    "b | a" -> "a|b"; of a JSONL file also ["b", "a"] -> "a|b", and [] -> "". An InputError begins with `where`.
    """
    if value is None:
        raise InputError(f'{where} must hold labels, found null: write "a|b" or ["a", "b"], and "" or [] for a row without any')
    cell = isinstance(value, str)
    names = (value.split("|") if value.strip() else []) if cell else value if isinstance(value, list) else [value]
    if cell and not all(name.strip() for name in names):
        raise InputError(f"{where} has an empty name beside a bar, {value[:40]!r}: write a name on both sides of each bar")
    names = [label_name(name, where) for name in names]
    for name in names:
        if "|" in name:
            raise InputError(f"{where} has the label {name!r}, but a bar stands between names: write each as an item of its own")
        if names.count(name) > 1:
            raise InputError(f"{where} names {name!r} twice: write each label of a row once")
    return "|".join(natural_order(names))


def names_in(label: str) -> list[str]:
    """The names in what `label_set` makes: "a|b" -> ["a", "b"], "" -> []."""
    return label.split("|") if label else []


def natural_order(labels) -> list[str]:
    """Numbers by value, then other names without regard to case: {"10", "b", "2", "A"} -> ["2", "10", "A", "b"]."""
    def key(label):
        number = re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", label)
        return (0, float(label), "", label) if number else (1, 0.0, label.casefold(), label)
    return sorted(labels, key=key)


def load_data(path_or_name, text_columns=None, label_column=None, seed=0, several=False,
              quoting="auto") -> Dataset:
    """Read labelled data with its splits; columns as in `read_examples`.

    path_or_name: a file, split by its column `split` or else 80/10/10 by `seed` (see `hold_out`); a folder with
    train.*, and perhaps dev.* and test.*; the name of a bundled set; or a Table. SPLITS has other names of
    splits. A missing dev split is carved out of train, a missing test split is []. InputError also for an empty text or
    a class train has not.

    several: a label cell names any number of classes, none too: "a|b", in JSONL also ["a", "b"]; or with
    label_column "a,b,c" each class has a column, with 0 or 1 in it. Otherwise "a|b" is the name of one class.
    """
    path = path_or_name.path if isinstance(path_or_name, Table) else _find(path_or_name)
    tables = {None: path_or_name} if isinstance(path_or_name, Table) else \
        _folder_tables(path, quoting) if path.is_dir() else {None: read_table(path, quoting)}
    first = next(iter(tables.values()))
    label_column = label_column or usual_label(first)
    _refuse_multi_hot(first, label_column)
    kind = "files" if None not in tables else "column" if split_column(first) else "random"
    parts = {"train": [], "dev": [], "test": []}
    for file_split, table in tables.items():                       # train is the first: the others need its columns
        text_columns = _choose_columns(table, text_columns, label_column, True)
        examples = _examples(table, text_columns, label_column, several)
        _refuse_empty(table.path, examples, text_columns)
        for example, split in zip(examples, row_splits(table, file_split)):
            parts[split].append(example)
    if dev_from_train := not parts["dev"]:
        parts |= hold_out(parts["train"], ("dev", "test") if kind == "random" else ("dev",), seed, several)
    if not parts["train"] or not parts["dev"]:
        raise InputError(f"{path}: {len(parts['train'])} train and {len(parts['dev'])} dev rows, where both are "
                         "needed: add rows of each class with different texts, or mark their split")
    names = names_in if several else lambda label: [label]
    labels = natural_order({name for example in parts["train"] for name in names(example.label)})
    unmarked = [name for name in names_of(label_column) if name not in labels]
    if several and len(names_of(label_column)) > 1 and unmarked:
        raise InputError(f"{path}: no train row has 1 in the column {short(unmarked[0])}: leave it out of "
                         "--label-column, or add rows")
    _check_labels(parts, labels, {split: tables.get(split, tables.get(None)) for split in parts}, names)
    source = {"path": str(getattr(path_or_name, "path", path_or_name)), "sha256": {table.path.name: table.sha256 for table in tables.values()},
              "split": kind, "seed": seed, "dev_from_train": dev_from_train}
    name = path.resolve().name if kind == "files" else path.stem
    return Dataset(name, parts["train"], parts["dev"], parts["test"], labels, text_columns, source,
                   several, label_column)


def _refuse_multi_hot(table: Table, label_column: str) -> None:
    """Raise InputError if each label cell is a list of zeros and ones, all of one length."""
    cells = [record.get(label_column) for _, record in table.rows]
    lists = [re.split(r"[|,;\s]+", cell.strip()) if isinstance(cell, str) else cell
             for cell in cells]
    if all(isinstance(items, list) and 1 < len(items) == len(lists[0])
           and all(str(item).strip().casefold() in HOT for item in items) for items in lists):
        raise InputError(f"{table.path}, line {table.rows[0][0]}: column {short(label_column)} holds "
                         f"{_found(cells[0])}, zeros and ones, and no names: write a column for each class and "
                         "name these, --label-column a,b,c")


def _find(path_or_name) -> Path:
    name, path = str(path_or_name), Path(path_or_name)
    bundled = {file.stem: file for file in sorted(BUNDLED.glob("*.csv"))}
    if name in bundled:                                            # ./tickets is a folder of one's own
        return bundled[name]
    try:
        if name and path.exists():
            return path
    except OSError:                                                # a name of thousands of characters
        pass
    raise InputError(f"{short(name, 200)}: no such file, folder or bundled data set: check the path, or name "
                     f"one of the bundled ones: {', '.join(bundled)}")


def _folder_tables(folder: Path, quoting: str) -> dict[str, Table]:
    files = {}                                                     # split -> its file, train first
    for file in sorted(folder.iterdir()):
        stem, suffix = file.stem.casefold(), file.suffix.lower()
        named = stem.partition(".")[0] in SPLIT_OF                 # test.csv.gz, test/
        if suffix in UNREAD[2:] or named and (suffix in UNREAD or file.is_dir()):
            raise InputError(f"{short(file, 200)}: is no .csv, .tsv or .jsonl file: convert it, or "
                             "move it out of the folder")
        if suffix not in SEPARATORS or stem.startswith(".") \
                or stem.endswith("_meta") and stem[:-5] in SPLIT_OF:           # of train's rows, but no texts
            continue
        split = SPLIT_OF.get(stem)
        if split in files:
            raise InputError(f"{folder}: {files[split].name} and {file.name} both stand for {split}: remove one")
        if split is None:
            raise InputError(f"{folder}: {short(file.name)} names no split: move it out of the folder, or call "
                             f"it train, dev or test ({', '.join(SPLIT_OF)} are known)")
        files[split] = file
    if "train" not in files:
        raise InputError(f"{folder}: no train.csv, train.tsv or train.jsonl in this folder: add it, or name a file")
    return {split: read_table(files[split], quoting) for split in sorted(files, key="train".__ne__)}


def split_column(table: Table) -> str | None:
    """The column that says which split a row is of: split, in any case."""
    found = [name for name in table.columns if name.strip().casefold() == "split"]
    return max(found, default=None)                                # of split and Split, split


def row_splits(table: Table, file_split: str | None = None) -> list[str]:
    """train, dev or test for each row, as the column says; else the split that the file stands for, or train."""
    column = split_column(table)
    if column is None:
        return [file_split or "train"] * len(table.rows)           # a lone file: hold_out comes later
    splits = []
    for row, record in table.rows:
        said = str(record.get(column))
        splits.append(SPLIT_OF.get(said.strip().casefold()))
        if splits[-1] is None or file_split not in (None, splits[-1]):
            wanted = file_split or f"train, dev or test ({', '.join(SPLIT_OF)} are known)"
            raise InputError(f"{table.path}, line {row}: column '{column}' says {short(said)}: write {wanted}")
    return splits


def text_key(texts: tuple[str, ...]) -> tuple[str, ...]:
    """What counts as the same text: equal but for case and the amount of white space."""
    return tuple(" ".join(text.casefold().split()) for text in texts)


def hold_out(examples, names, seed, several=False) -> dict[str, list[Example]]:
    """Take a tenth of the texts of each class for each split in `names`; the rest is "train".

    Texts are ordered by sha256(seed, text): the rows' order plays no part, and equal texts fall in one split. Of a
    class with no more texts than `names` all stay in train. A text whose rows have different labels counts as of a class
    of its own; a row with `several` labels as of the rarest of them.
    """
    labels, classes, place = {}, {}, {}
    for example, label in zip(examples, _rarest(examples) if several else [example.label for example in examples]):
        labels.setdefault(text_key(example.texts), set()).add(label)           # text -> the labels that it carries
    for text, its_labels in labels.items():                        # labels -> the texts that carry just these
        classes.setdefault(frozenset(its_labels), []).append(text)
    for texts in classes.values():                                 # text -> the split that takes it out of train
        texts.sort(key=lambda text: hashlib.sha256(json.dumps([seed, *text]).encode()).digest())
        size = max(1, round(len(texts) / 10)) if len(texts) > len(names) else 0
        for i, name in enumerate(names):
            place |= dict.fromkeys(texts[i * size:(i + 1) * size], name)
    parts = {name: [] for name in ("train", *names)}
    for example in examples:
        parts[place.get(text_key(example.texts), "train")].append(example)
    return parts


def _rarest(examples) -> list[str]:
    """Of each row's several labels the one that the fewest rows have, for a share of it is the easiest to miss (Sechidis
    et al. 2011, "On the Stratification of Multi-label Data", begin with it too); "" for a row without labels."""
    counts = Counter(name for example in examples for name in names_in(example.label))
    return [min(names_in(example.label), key=lambda name: (counts[name], name), default="") for example in examples]


def _refuse_empty(path: Path, examples, columns) -> None:
    for i, name in enumerate(columns):
        rows = [str(example.row) for example in examples if not example.texts[i].strip()]
        if rows:
            raise InputError(f"{path}: column '{name}' is empty in {len(rows)} row(s): remove or fill them (line "
                             f"{', '.join(rows[:10])}{', ...' if len(rows) > 10 else ''})")


def refuse_blank(path, examples) -> None:
    """Raise InputError with the lines of `examples` that hold no text at all."""
    rows = [str(example.row) for example in examples if not any(text.strip() for text in example.texts)]
    if rows:
        raise InputError(f"{path}: {len(rows)} empty texts (line {', '.join(rows[:10])}): remove or fill them")


def _check_labels(parts, labels, tables, names) -> None:
    if not labels:
        raise InputError(f"{tables['train'].path}: no train row has a label: name classes in its label column")
    if len(labels) < 2:
        raise InputError(f"{tables['train'].path}: train has one class only ({short(labels[0])}): add rows of "
                         "another")
    known = set(labels)
    for split, example in ((split, example) for split in parts for example in parts[split]):
        for foreign in set(names(example.label)) - known:
            some = ", ".join(map(short, labels[:20])) + f" and {len(labels) - 20} more" * (len(labels) > 20)
            hint = "; if a bar stands between several labels of a row, --multi-label" * ("|" in foreign)
            raise InputError(f"{tables[split].path}, line {example.row}: {split} has the label "
                             f"{short(foreign)}, train has not (only {some}): correct it, or add train rows of "
                             f"it{hint}")
