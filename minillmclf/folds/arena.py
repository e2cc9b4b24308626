"""Battles of an arena: a prompt, the responses of two models, and the winner: a, b or a tie.

The columns of a .csv, .tsv or .jsonl file tell which layout it has:

  competition   id, model_a, model_b, prompt, response_a, response_b, winner_model_a,
                winner_model_b, winner_tie (Kaggle, "LLM Classification Finetuning"): a text is a
                JSON list of strings, one for each turn; winners are 0 or 1
  plain         prompt, response_a, response_b, label (or winner): a, b, tie, or model_a, model_b,
                tie (bothbad)

If all three texts of a row are JSON lists of strings or nulls, these are its turns; else no text is
parsed, for a model may have answered with a list. Before each of several turns stands a line like
"[turn 2]". Half of a surrogate pair, as "\\ud83d" alone, becomes U+FFFD, and a blank turn becomes
"(empty)", so that no row is lost. Not here: cutting long texts.
"""
import json
import math
from pathlib import Path

from ..errors import InputError
from ..files import short
from ..text.cells import UNWRITABLE, as_json
from ..text.examples import Example, default_label_column
from ..text.table_files import Table, read_table

FIELDS = ("prompt", "response_a", "response_b")
LABELS = ("a", "b", "tie")
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")       # columns, in the order of LABELS
WINNER_MARKS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
WINNER_NAMES = {"a": "a", "b": "b", "tie": "tie", "model_a": "a", "model_b": "b",
                "tie (bothbad)": "tie"}
EMPTY = "(empty)"
REMEDY = "correct or remove the row"


def is_arena(columns):
    """Are these the columns of battles, with or without winners?"""
    return set(FIELDS) <= set(columns)


def read_arena(path, need_labels=True, quoting="auto"):
    """All rows of a file -> Examples with texts (prompt, response_a, response_b), and their ids.

    path: of the file, or the Table read from it. A label is "a", "b" or "tie"; one that cannot be
    read is None, or an InputError with the row's line if need_labels. Ids: from `read_ids`."""
    table = path if isinstance(path, Table) else read_table(Path(path), quoting)
    path = table.path
    columns = short(list(table.columns), 300)
    for name in FIELDS:
        if name not in table.columns:
            raise InputError(f"{path}: no column '{name}' in {columns}: an arena file has "
                             f"{', '.join(FIELDS)}")
    if need_labels and not {*WINNERS, "winner", "label"} & {*table.columns}:
        raise InputError(f"{path}: names no winner, has {columns}: add winner (a, b, tie), or "
                         f"{', '.join(WINNERS)}")
    examples = []
    column = None if set(WINNERS) & set(table.columns) else default_label_column(table)
    for line, record in table.rows:
        where = f"{path}, line {line}: column"
        try:
            label = read_winner(record, column, where)
        except InputError:
            if need_labels:
                raise
            label = None
        examples.append(Example(read_texts(record, where), label, line))
    return examples, read_ids(table)


def read_winner(record, column, where):
    """The label of a row: "a", "b" or "tie". column: the name of the column that holds the winner;
    None if the three columns WINNERS do. An InputError begins with `where`."""
    if column is None:
        cells = [str(record.get(name)).strip() for name in WINNERS]
        marks = [WINNER_MARKS.get(cell) for cell in cells]
        if None in marks or sum(marks) != 1:
            raise InputError(f"{where} '{', '.join(WINNERS)}' must hold one 1 and two 0, found "
                             f"{', '.join(cells):.60}: {REMEDY}")
        return LABELS[marks.index(1)]
    value = record.get(column)
    label = WINNER_NAMES.get(value.strip().casefold()) if isinstance(value, str) else None
    if label is None:
        raise InputError(f"{where} '{column}' must hold {', '.join(WINNER_NAMES)}, found "
                         f"{as_json(value)}: {REMEDY}")
    return label


def read_texts(record, where):
    """The three texts of a row, each as one string."""
    cells = [record.get(name) for name in FIELDS]
    turns = [read_turns(cell) for cell in cells]
    if None in turns:
        for name, cell in zip(FIELDS, cells):
            if not isinstance(cell, str):
                raise InputError(f"{where} '{name}' must hold a text or a list of texts, found "
                                 f"{as_json(cell)}: {REMEDY}")
        turns = [[cell] for cell in cells]
    return tuple(join_turns(one) for one in turns)


def as_pair(texts):
    """(prompt, a, b) -> (prompt and a, b), for a model that reads two texts."""
    prompt, a, b = texts
    return f"{prompt}\n\n{a}", b


def read_turns(cell):
    """A cell as a list of turns, each a string or None; None if the cell is no such list."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell, strict=False)          # some lists hold bare line breaks
        except (ValueError, RecursionError):
            return None
    if not isinstance(cell, list) or not cell:
        return None
    return cell if all(turn is None or isinstance(turn, str) for turn in cell) else None


def join_turns(turns):
    """["Hi", None] -> "[turn 1]\\nHi\\n\\n[turn 2]\\n(empty)"; a single turn has no "[turn 1]"."""
    texts = []
    for turn in turns:
        text = UNWRITABLE.sub("\ufffd", turn or "")
        texts.append(text if text.strip() else EMPTY)
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"[turn {number}]\n{text}" for number, text in enumerate(texts, 1))


def read_ids(table, column="id"):
    """The ids of a table's rows: those in `column`, all different; without it, line numbers."""
    if column not in table.columns:
        return [str(line) for line, _ in table.rows]
    seen = {}                                              # id -> its line
    for line, record in table.rows:
        value = record.get(column)
        row_id = str(value).strip()
        is_number = isinstance(value, (int, float)) and math.isfinite(value)
        if row_id in seen or not (is_number or isinstance(value, str)):
            again = f" as line {seen[row_id]} does" if row_id in seen else ""
            raise InputError(f"{table.path}, line {line}: column '{column}' says {short(value)}"
                             f"{again}: give each row an id of its own, a text or a number")
        seen[row_id] = line
    return list(seen)
