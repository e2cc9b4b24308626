"""A submission file: the columns and rows that a competition's sample asks for, and a look at it as a stranger would.

folds.py makes the probabilities; here they are written down, and every fault is found before a file is.
"""
import csv
import io
import math
from dataclasses import dataclass

from ..errors import InputError


@dataclass
class Form:
    """What a submission must look like."""
    columns: list                 # the header
    classes: list                 # for each column its class number, None for the ids
    ids: list                     # of the rows, in order


def read_form(sample, id_column, labels, arena, test):
    """A sample submission -> Form. Raises InputError where its columns are no classes, or its ids not those of the test."""
    from .arena import WINNERS, read_ids
    from .arena import LABELS as SIDES
    number = {name: i for i, label in enumerate(labels) for name in (label, f"p_{label}")}
    number |= {column: labels.index(side) for column, side in zip(WINNERS, SIDES) if side in labels} if arena else {}
    classes = [None if column == id_column else number.get(column, column) for column in sample.columns]
    if sorted(map(str, classes)) != sorted(["None", *map(str, range(len(labels)))]):
        raise InputError(f"{sample.path}: has the columns {', '.join(sample.columns)}, which should be {id_column} and one "
                         f"for each of the {len(labels)} classes {', '.join(labels)}")
    ids, known = read_ids(sample, id_column), set(test.ids)
    foreign, missing = [i for i in ids if i not in known], sorted(known - set(ids))
    if foreign or missing:
        raise InputError(f"{sample.path}: {len(foreign)} of {len(ids)} ids are not in {test.path}, {len(missing)} of its "
                         f"{len(known)} are missing ({(foreign + missing)[0]!r:.60}, ...): take a sample for these rows")
    return Form(list(sample.columns), classes, ids)


def table_text(header, rows):
    """A CSV file as text."""
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    return out.getvalue()


def submission_text(form, ids, probabilities):
    """submission.csv in the form's columns and rows. ids: of the rows of probabilities (N, C)."""
    place = {name: row for row, name in enumerate(ids)}
    return table_text(form.columns, [[name if c is None else f"{probabilities[place[name]][c]:.10f}" for c in form.classes]
                                     for name in form.ids])


def check_submission(text, form, where):
    """Read a submission as a stranger would. Raises InputError at the first thing that is not as the form has it."""
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    if header != form.columns:
        raise InputError(f"{where}: the columns are {', '.join(header)}, should be {', '.join(form.columns)}")
    if len(rows) != len(form.ids):
        raise InputError(f"{where}: {len(rows)} rows, should be {len(form.ids)}")
    for line, (row, name) in enumerate(zip(rows, form.ids), 2):
        if len(row) != len(header):
            raise InputError(f"{where}, line {line}: {len(row)} fields, should be {len(header)}")
        values = dict(zip(form.classes, row))
        if values.pop(None) != name:
            raise InputError(f"{where}, line {line}: the id is {row[form.classes.index(None)]!r:.60}, should be {name!r:.60}")
        try:
            numbers = [float(value) for value in values.values()]
        except ValueError as error:
            raise InputError(f"{where}, line {line}: {error}") from None
        if not all(math.isfinite(x) and 0 <= x <= 1 for x in numbers):
            raise InputError(f"{where}, line {line}: probabilities {numbers}, should be finite and from 0 to 1")
        if abs(sum(numbers) - 1) > 1e-6:
            raise InputError(f"{where}, line {line}: probabilities {numbers} sum to {sum(numbers):.8f}, should be 1")
