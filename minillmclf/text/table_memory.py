"""Rows or columns in memory -> the Table that a JSONL file with these rows would give."""
import json
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError
from ..files import short
from .table_files import MEMORY, TableReader, Table

COLUMNS = {1: ("text",), 2: ("text_a", "text_b"), 3: ("prompt", "response_a", "response_b")}


def table_from_memory(data):
    """A list of (text, label), ((text_a, text_b), label) or dicts, a DataFrame, or a dict of lists
    -> Table. InputError names a row that is none of these."""
    def plain(value):                     # no JSON: an object, refused as text or label
        return value.tolist() if hasattr(value, "tolist") else {type(value).__name__: str(value)}
    def as_line(line, row):
        try:
            return json.dumps(row, default=plain, skipkeys=True).encode() + b"\n"
        except (ValueError, RecursionError):
            raise InputError(f"{MEMORY}, line {line}: holds a number of thousands of digits, or a "
                             "list that holds itself: give texts, names and numbers") from None
    reading = TableReader(Path(MEMORY), ".jsonl")
    rows = list(reading.rows(as_line(*row) for row in enumerate(read_records(data), 1)))
    if not rows:
        raise InputError(f"{MEMORY}: there are none: add rows")
    return Table(reading.path, tuple(reading.columns), rows, reading.file_hash.hexdigest())


def read_records(data):
    """What `table_from_memory` takes -> a list of {column: value}."""
    if isinstance(data, Mapping) or hasattr(data, "columns"):
        columns = {str(name): data[name] for name in getattr(data, "columns", data)}
        lengths = {name: len(values) if hasattr(values, "__len__") and not isinstance(values, str)
                   else None for name, values in columns.items()}
        if None in lengths.values() or len(set(lengths.values())) > 1:
            raise InputError(f"{MEMORY}: columns should be lists of one length, have "
                             f"{short(lengths, 200)}")
        return [dict(zip(columns, values)) for values in zip(*columns.values())]
    if isinstance(data, (bytes, set, frozenset)) or not hasattr(data, "__iter__"):
        raise InputError("data should be a path, a list of (text, label), or columns, is a "
                         f"{type(data).__name__}")
    return [read_record(row, f"{MEMORY}, line {line}") for line, row in enumerate(data, 1)]


def read_record(row, where):
    """One row of a list, or of a numpy array -> {column: value}."""
    row = row.tolist() if hasattr(row, "tolist") else row
    if isinstance(row, Mapping):
        return {str(name): value for name, value in row.items()}
    if isinstance(row, (tuple, list)) and len(row) == 2:
        texts = (row[0],) if isinstance(row[0], str) else row[0]
        if isinstance(texts, (tuple, list)) and len(texts) in COLUMNS:
            return {**dict(zip(COLUMNS[len(texts)], texts)), "label": row[1]}
    raise InputError(f"{where}: should be (text, label), ((text_a, text_b), label) or a dict, is "
                     f"{short(row)}")
