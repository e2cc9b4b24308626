"""What predict reads and writes: rows of texts in windows, and their answers as JSON lines or CSV.

A row is (texts, others, line): a tuple of texts, a dict of the other columns of its file, and its
line there; None for a text on the command line.
"""
import io
import itertools
import json

from . import stream
from ..cli.tables import csv_line
from ..errors import InputError
from ..files import short
from ..text.examples import read_text_chunks, text_column_names
from ..text.table_files import decode_lines, split_at_returns


class AnswerColumns:
    """The names of an answer's columns. The other columns of the input keep their names.

    `choose_names` sets the attributes others, texts, label, cut, probabilities (in JSON) and
    per_class (in CSV: a column of probabilities for each class).
    """

    def __init__(self, labels, as_csv, show_cut):
        self.labels, self.as_csv, self.show_cut = labels, as_csv, show_cut

    def choose_names(self, columns, others=()):
        """columns: the input's text columns; others: its other columns, in order."""
        self.others, usual = list(others), text_column_names(len(columns))
        self.texts = list(columns) if set(others) & set(usual) else usual
        taken = {*others, *self.texts}

        def free(*names):
            """The first of `names` that is not taken, else the last of them with a number."""
            numbered = (f"{names[-1]}_{n}" for n in itertools.count(2))
            name = next(name for name in itertools.chain(names, numbered) if name not in taken)
            taken.add(name)
            return name
        self.label, self.probabilities = free("label", "predicted"), free("probabilities")
        self.per_class, self.cut = [free(f"p_{name}") for name in self.labels], free("cut")


def read_rows(path, text_columns, reading, columns):
    """Yield the rows of a file in windows: (rows, sha256 of the file so far).

    text_columns, reading: as for read_text_chunks. The first window sets the names of `columns`, an
    AnswerColumns. A column that begins later is an error if an answer has that name, or if answers
    are CSV.
    """
    first = True
    for table, chosen, texts in read_text_chunks(path, stream.WINDOW, text_columns, **reading):
        others = [name for name in dict.fromkeys(table.columns) if name not in chosen]
        if first:
            columns.choose_names(chosen, others)
        late = set(others) - set(columns.others)
        own = {columns.label, columns.probabilities, columns.cut, *columns.texts}
        if late and (columns.as_csv or late & own):
            raise InputError(f"{path}: the column {short(min(late))} begins after row "
                             f"{stream.WINDOW}: write it into the first row too")
        records = [{name: value for name, value in record.items() if name not in chosen}
                   for _, record in table.rows]
        yield list(zip(texts, records, (line for line, _ in table.rows))), table.sha256
        first = False


def read_lines(standard_input):
    """Yield the lines of standard input, each a text, in windows: (rows, None). An empty line is an
    error: to leave it out would shift the answers."""
    lines = split_at_returns(decode_lines(standard_input.buffer, "standard input"))
    numbered, number = enumerate((line.rstrip("\r\n") for line in lines), 1), 0
    while window := list(itertools.islice(numbered, stream.WINDOW)):
        for number, line in window:
            if not line.strip():
                raise InputError(f"standard input: line {number} is empty: give a text on each "
                                 "line")
        yield [((line,), {}, number) for number, line in window], None
    if not number:
        raise InputError("standard input: no lines: give a text on each line")


def render_answers(texts, others, answers, probabilities, cut, columns, first):
    """The answers of a window, as the text to write.

    texts, others, answers, probabilities: one for each row; cut: whether each row was cut, or None;
    first: is it the first window, which has the header of a CSV file?
    """
    out = io.StringIO(newline="")
    if first and columns.as_csv:
        out.write(csv_line([*columns.others, *columns.texts, columns.label, *columns.per_class,
                            *([columns.cut] if cut else [])]))
    for n, (row, other, answer, p) in enumerate(zip(texts, others, answers, probabilities)):
        if columns.as_csv:
            out.write(csv_line([*(csv_cell(other.get(name)) for name in columns.others), *row,
                                answer, *(f"{x:.6f}" for x in p),
                                *([csv_cell(cut[n])] if cut else [])]))
            continue
        record = {**other, **dict(zip(columns.texts, row)), columns.label: answer}
        record[columns.probabilities] = {name: round(float(x), 6)
                                         for name, x in zip(columns.labels, p)}
        if cut:
            record[columns.cut] = cut[n]
        out.write(json.dumps(record, ensure_ascii=False) + "\n")
    return out.getvalue()


def csv_cell(value):
    """A value of JSON -> a cell of CSV: a text as it is, null as "", all else as JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)
