"""From the rows of a table to Examples: which columns hold the texts and the label of a row.

Not here: how rows are read (table_files.py), what a cell means (cells.py), classes and splits
(data.py).
"""
import functools
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import short
from .cells import as_json, check_text, label_name, label_set
from .table_files import SEPARATORS, Table, read_chunks, read_table

DEFAULT_COLUMNS = (("text",), ("text_a", "text_b"), ("premise", "hypothesis"),
                   ("prompt", "response_a", "response_b"))
ZERO_ONE = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}   # cells of a class


@dataclass(frozen=True)
class Example:
    """One row of a file."""
    texts: tuple[str, ...]        # one text, or several that are judged together
    label: str | None             # as `label_name` or `label_set` makes it, or None
    row: int                      # its first line in the file, from 1, where a CSV has its header


def read_examples(path, text_columns=None, label_column=None, need_labels=True, multi_label=False,
                  quoting="auto") -> list[Example]:
    """All rows of one file (or Table), in file order; empty texts are allowed.

    text_columns: "a,b" or a sequence of names; default: the first of DEFAULT_COLUMNS of which the
    file has a column. label_column: by default `label`, else `winner`. need_labels=False: a label
    that is missing or cannot be read becomes None. multi_label: as in data.load_data; quoting: as
    in table_files.py. Raises InputError.
    """
    table = path if isinstance(path, Table) else read_table(Path(path), quoting)
    label_column = label_column or default_label_column(table)
    return make_examples(table, text_columns, label_column, need_labels, multi_label)[1]


def read_text_chunks(path, size, text_columns=None, **how):
    """Unlabelled texts, `size` rows at a time -> (Table, its text columns, the texts of each row).

    The first chunk decides the columns; how: further arguments of `read_chunks`. InputError also
    for a row without any text.
    """
    for table in read_chunks(Path(path), size, **how):
        text_columns, examples = make_examples(table, text_columns, "", False)
        refuse_blank(path, examples)
        yield table, text_columns, [example.texts for example in examples]


def default_label_column(table: Table) -> str:
    """The label column where none is named: label, else winner. A file with both gets a note."""
    if {"label", "winner"} <= {*table.columns}:
        print_note(f"{table.path}: of its columns label and winner, label is read (another: "
                   "--label-column winner)")
        return "label"
    return "winner" if "winner" in table.columns else "label"


def text_column_names(count: int) -> list[str]:
    """Column names for the texts of a row in a file that we write: text, or text_a, text_b, ..."""
    letters = "abcdefghijklmnopqrstuvwxyz"[:count]
    return ["text"] if count == 1 else [f"text_{letter}" for letter in letters]


def split_names(columns, known=()) -> tuple[str, ...]:
    """Names of columns from "a, b" or from a sequence. The longest that is `known` comes first:
    the name of a column may hold commas, or begin with a blank."""
    parts, names = columns.split(",") if isinstance(columns, str) else list(columns), []
    known = {name for name in known if "," in name or name.strip() != name}
    while parts:
        size = len(parts) if isinstance(columns, str) and known else 1
        while size > 1 and not {joined := ",".join(parts[:size]), joined.strip()} & known:
            size -= 1
        name, parts = ",".join(parts[:size]), parts[size:]
        names.append(name if name in known else name.strip())
    return tuple(names)


@functools.cache
def print_note(line):
    """Print a line on standard error, once in a process."""
    print(f"note: {line}", file=sys.stderr, flush=True)


def choose_columns(table: Table, text_columns, label_column: str, need_labels: bool):
    """-> the text columns to read, the label columns. InputError if they are wrong."""
    labels, known = split_names(label_column, table.columns), set(table.columns)
    if text_columns is None:
        found = (names for names in DEFAULT_COLUMNS if known.intersection(names))
        text_columns = next(found, DEFAULT_COLUMNS[0])
    columns = split_names(text_columns, table.columns)
    if not columns or len(set(columns)) < len(columns) or set(columns) & set(labels):
        raise InputError(f"--text-column {short(','.join(columns))}: name columns, each once, "
                         f"other than {short(label_column)}")
    if len(set(labels)) < len(labels):
        raise InputError(f"--label-column {short(label_column)}: name each column once")
    wanted = {"--text-column": columns} | ({"--label-column": labels} if need_labels else {})
    for option, names in wanted.items():
        missing = next((name for name in names if name not in known), None)
        if missing is not None:
            raise InputError(f"{table.path}: no column {short(missing)} in "
                             f"{short(list(table.columns), 300)}: "
                             f"{column_hint(table, wanted, option)}")
    if table.separator != SEPARATORS.get(table.path.suffix.lower()):
        print_note(f"{table.path}: {table.separator!r} stands between its fields, and is read so")
    return columns, labels


def column_hint(table: Table, wanted: dict, option: str) -> str:
    """What to do about a missing column. wanted: {option: names}; option: that of the column."""
    actual = {name.strip().casefold(): name for name in table.columns}         # finds Text, LABEL
    flags = []
    for flag, names in wanted.items():
        found = [name if name in table.columns else actual.get(name.casefold(), name)
                 for name in names]
        if found != list(names):
            flags.append(f"{flag} {shlex.quote(','.join(found))}")
    if flags:
        return "as they stand there: " + " ".join(flags)
    separator = SEPARATORS.get(table.path.suffix.lower())
    if separator and "|" in table.columns[0]:
        return f"its fields seem to be separated by |: write {separator!r} instead"
    if separator and (mark := next((mark for mark in ";\t" if mark in table.columns[0]), None)):
        return (f"its fields seem to be separated by {mark!r}: write the line sep={mark} above the "
                "header")
    no_header = ", or write a line with the columns' names above the rows if it has none"
    return f"name one with {option}" + no_header * bool(separator)


def make_examples(table: Table, text_columns, label_column, need_labels=True, multi_label=False):
    """As read_examples, of a Table -> the text columns, a list of Examples."""
    columns, names = choose_columns(table, text_columns, label_column, need_labels)
    if len(names) == 1 and "," in names[0] and multi_label:
        raise InputError(f"{table.path}: --label-column {short(label_column)}: is one column, and "
                         "commas stand between several: rename it without a comma")
    if len(names) > 1 and not multi_label:
        raise InputError(f"--label-column {short(label_column)}: a column for each class goes with "
                         "--multi-label")
    labelled, examples = label_column and set(names) <= set(table.columns), []
    for row, record in table.rows:
        where, label = f"{table.path}, line {row}: column", None
        texts = tuple(check_text(record.get(name), f"{where} '{name}'") for name in columns)
        try:
            if labelled:
                label = read_label(record, names, where, multi_label)
        except InputError:
            if need_labels:
                raise
        examples.append(Example(texts, label, row))
    return columns, examples


def read_label(record, names, where: str, multi_label: bool) -> str:
    """The label of a row. names: the label column, or a column for each class with 0 or 1 in it."""
    if len(names) == 1:
        read = label_set if multi_label else label_name
        return read(record.get(names[0]), f"{where} '{names[0]}'")
    found = []
    for name in names:
        value = record.get(name)
        number = ZERO_ONE.get(str(value).strip().casefold())
        if number is None:
            raise InputError(f"{where} {short(name)} must hold 0 or 1, found {as_json(value)}: "
                             "correct it, or leave the column out of --label-column")
        found += [name] * number
    return label_set(found, f"{where}s of --label-column")


def refuse_blank(path, examples, columns=()) -> None:
    """InputError for rows without any text; with columns, for rows with an empty text in one."""
    for place, name in enumerate(columns):
        blank = [example for example in examples if not example.texts[place].strip()]
        if blank:
            raise InputError(f"{path}: column '{name}' is empty in {len(blank)} row(s): remove or "
                             f"fill them (line {line_numbers(blank)})")
    blank = [example for example in examples if not any(map(str.strip, example.texts))]
    if blank:
        raise InputError(f"{path}: {len(blank)} empty texts (line {line_numbers(blank)}): remove "
                         "or fill them")


def line_numbers(examples) -> str:
    rows = [str(example.row) for example in examples[:10]]
    return ", ".join(rows) + ", ..." * (len(examples) > 10)


def text_key(texts: tuple[str, ...]) -> tuple[str, ...]:
    """A key that is equal for texts that differ only in case and white space."""
    return tuple(" ".join(text.casefold().split()) for text in texts)
