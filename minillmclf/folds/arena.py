"""Battles of an arena: a prompt, two models' responses, and which one people prefer: a, b, or a tie.

Two layouts of a .csv, .tsv or .jsonl file, told by their columns:

  competition   id, model_a, model_b, prompt, response_a, response_b, winner_model_a, winner_model_b, winner_tie
                (Kaggle, "LLM Classification Finetuning"): a text is a JSON list of strings, one a turn; winners are 0 or 1
  plain         prompt, response_a, response_b, winner (or label): a, b, tie; also model_a, model_b, tie (bothbad)

A row is a conversation of several turns if its three texts are all JSON lists of strings or nulls; else they stand as
they are: a response may well be a list that a model wrote. Turns are joined with a line "[turn 2]" before each; with
one turn there is none. Half of a surrogate pair, as "\\ud83d" alone, becomes U+FFFD; a turn without a word says "(empty)",
so that the model sees that there was nothing, and no row is lost. Not here: which parts are cut where a text is too long.
"""
import json
import math
import re
from pathlib import Path

from ..errors import InputError
from ..files import short
from ..text.data import Example
from ..text.table_files import read_table

FIELDS = ("prompt", "response_a", "response_b")
LABELS = ("a", "b", "tie")
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")         # columns, in the order of LABELS
NAMES = {"a": "a", "b": "b", "tie": "tie", "model_a": "a", "model_b": "b", "tie (bothbad)": "tie"}
EMPTY = "(empty)"


def is_arena(columns):
    """Are these the columns of a battle? The winner may be missing: then there is something to predict."""
    return set(FIELDS) <= set(columns)


def read_arena(path, need_labels=True, quoting="auto"):
    """All rows of a file -> Examples with texts (prompt, response_a, response_b), and a list of their ids.

    label: "a", "b" or "tie"; None where the file names no winner, which is an InputError if need_labels. ids: the column
    id, texts that must all differ; without one the lines. Raises InputError with the line of a row that cannot be read.
    """
    table = read_table(Path(path), quoting)
    missing = [name for name in FIELDS if name not in table.columns]
    if missing:
        raise InputError(f"{path}: no column '{missing[0]}' in {short(list(table.columns), 300)}: an arena "
                         f"file has {', '.join(FIELDS)}")
    column, read = winner_reader(table)
    if read is None and need_labels:
        raise InputError(f"{path}: names no winner, has {short(list(table.columns), 300)}: add winner "
                         f"(a, b, tie), or {', '.join(WINNERS)}")
    examples = []
    for line, record in table.rows:
        where = f"{path}, line {line}: column"
        try:
            label = read and read(record, f"{where} '{column}'")
        except InputError:
            if need_labels:
                raise
            label = None
        examples.append(Example(read_texts(record, where), label, line))
    return examples, read_ids(table)


def winner_reader(table):
    """How this file names the winner -> its column (or None), a function of (record, where) -> label (or None)."""
    if set(WINNERS) & set(table.columns):
        return ", ".join(WINNERS), three_columns
    column = next((name for name in ("winner", "label") if name in table.columns), None)
    return column, column and (lambda record, where: one_column(record.get(column), where))


def three_columns(record, where):
    """0 or 1 for each of a, b and tie, exactly one of them 1 -> its label."""
    said = [str(record.get(name)).strip() for name in WINNERS]
    marks = [{"0": 0, "1": 1, "0.0": 0, "1.0": 1}.get(value) for value in said]
    if None in marks or sum(marks) != 1:
        raise InputError(f"{where} must hold one 1 and two 0, found {', '.join(said):.60}: correct or remove the row")
    return LABELS[marks.index(1)]


def one_column(value, where):
    """The name of the winner -> its label."""
    label = NAMES.get(value.strip().casefold()) if isinstance(value, str) else None
    if label is None:
        raise InputError(f"{where} must hold {', '.join(NAMES)}, found {json.dumps(value)[:40]}: correct or remove the row")
    return label


def read_texts(record, where):
    """The three texts of a row, each in one string."""
    cells = [record.get(name) for name in FIELDS]
    turns = [read_turns(cell) for cell in cells]
    if all(turn is not None for turn in turns):
        return tuple(join_turns(turn) for turn in turns)
    for name, cell in zip(FIELDS, cells):
        if not isinstance(cell, str):
            raise InputError(f"{where} '{name}' must hold a text or a list of texts, found {json.dumps(cell)[:40]}: "
                             "correct or remove the row")
    return tuple(join_turns([cell]) for cell in cells)


def read_turns(cell):
    """A cell as a list of turns, strings or None; None if it is something else."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell, strict=False)                # not strict: some lists hold bare line breaks
        except (ValueError, RecursionError):
            return None
    good = isinstance(cell, list) and cell and all(turn is None or isinstance(turn, str) for turn in cell)
    return cell if good else None


def join_turns(turns):
    """["Hi", None] -> "[turn 1]\\nHi\\n\\n[turn 2]\\n(empty)"; a single turn stands alone."""
    texts = [clean(turn or "") for turn in turns]
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"[turn {number}]\n{text}" for number, text in enumerate(texts, 1))


def clean(text):
    """A text that can be written as UTF-8 and has at least a word in it."""
    text = re.sub("[\0\ud800-\udfff]", "\ufffd", text)
    return text if text.strip() else EMPTY


def read_ids(table, column="id"):
    """What a table's rows are called: the column's texts, or the lines if there is no such column."""
    if column not in table.columns:
        return [str(line) for line, _ in table.rows]
    seen = {}
    for line, record in table.rows:
        value = record.get(column)
        name, number = str(value).strip(), isinstance(value, (int, float)) and math.isfinite(value)
        if name in seen or not (number or isinstance(value, str)):
            again = f" as line {seen[name]} does" if name in seen else ""
            raise InputError(f"{table.path}, line {line}: column '{column}' says {short(value)}{again}: give "
                             "each row an id of its own, a text or a number")
        seen[name] = line
    return list(seen)
