"""A submission file: it has the columns and rows of a competition's sample, and is checked. And
oof.csv, which has the same probabilities of the training rows."""
import csv
import hashlib
import io
import json
import math
from dataclasses import dataclass

from ..cli.tables import csv_text
from ..errors import InputError
from ..models.tensor_files import open_tensors
from .arena import LABELS, WINNERS, read_ids


@dataclass
class SubmissionForm:
    """What a submission should look like. columns: the header; classes: the class number of each
    column, None for the one of ids; ids: of the rows, in order."""
    columns: list
    classes: list
    ids: list


def read_form(sample, id_column, labels, arena, test):
    """A sample submission -> SubmissionForm. Raises InputError unless it has a column for each
    class and an id for each row of `test`. sample: a Table; arena: are the rows battles?"""
    class_of = {}
    for i, label in enumerate(labels):
        class_of |= {label: i, f"p_{label}": i}
    if arena:
        winners = zip(WINNERS, LABELS)
        class_of |= {column: labels.index(label) for column, label in winners if label in labels}
    classes = [None if name == id_column else class_of.get(name, -1) for name in sample.columns]
    if sorted(c for c in classes if c is not None) != list(range(len(labels))):
        raise InputError(f"{sample.path}: has the columns {', '.join(sample.columns)}, which "
                         f"should be {id_column} and one for each of the {len(labels)} classes "
                         f"{', '.join(labels)}")
    ids, known = read_ids(sample, id_column), set(test.ids)
    unknown, missing = [name for name in ids if name not in known], sorted(known - set(ids))
    if unknown or missing:
        raise InputError(f"{sample.path}: {len(unknown)} of {len(ids)} ids are not in {test.path}, "
                         f"{len(missing)} of its {len(known)} are missing "
                         f"({(unknown + missing)[0]!r:.60}, ...): take a sample for these rows")
    return SubmissionForm(list(sample.columns), classes, ids)


def oof_text(source, logits, folds, labels):
    """oof.csv as text: id, line in the source, fold, label, predicted label, probabilities."""
    rows = []
    for i, (example, p) in enumerate(zip(source.examples, logits.softmax(-1).numpy())):
        rows.append([source.ids[i], example.row, folds[i] + 1, example.label, labels[p.argmax()],
                     *(f"{x:.8f}" for x in p)])
    header = ["id", "line", "fold", "label", "predicted", *(f"p_{label}" for label in labels)]
    return csv_text(header, rows)


def submission_text(form, ids, probabilities):
    """submission.csv as text. probabilities: (N, C); ids: of these N rows."""
    row_of, rows = dict(zip(ids, probabilities)), []
    for name in form.ids:
        rows.append([name if c is None else f"{row_of[name][c]:.10f}" for c in form.classes])
    return csv_text(form.columns, rows)


def check_submission(text, form, where):
    """Raise InputError for the first fault in the text of a submission. where: for the error."""
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    if header != form.columns:
        raise InputError(f"{where}: the columns are {', '.join(header)}, should be "
                         f"{', '.join(form.columns)}")
    if len(rows) != len(form.ids):
        raise InputError(f"{where}: {len(rows)} rows, should be {len(form.ids)}")
    for line, (row, name) in enumerate(zip(rows, form.ids), 2):
        fault = row_fault(row, name, form)
        if fault:
            raise InputError(f"{where}, line {line}: {fault}")


def row_fault(row, name, form):
    """What is wrong with the row of this id, or None."""
    if len(row) != len(form.columns):
        return f"{len(row)} fields, should be {len(form.columns)}"
    values = dict(zip(form.classes, row))
    found = values.pop(None)
    if found != name:
        return f"the id is {found!r:.60}, should be {name!r:.60}"
    try:
        numbers = [float(value) for value in values.values()]
    except ValueError as error:
        return str(error)
    if not all(math.isfinite(x) and 0 <= x <= 1 for x in numbers):
        return f"probabilities {numbers}, should be finite and from 0 to 1"
    if abs(sum(numbers) - 1) > 1e-6:
        return f"probabilities {numbers} sum to {sum(numbers):.8f}, should be 1"
    return None


def scores_key(folder, examples):
    """A hash of a fold's run and of texts: the metadata of the scores that are cached for them."""
    texts, run_json = [e.texts for e in examples], (folder / "run.json").read_bytes()
    return {"key": hashlib.sha256(run_json + json.dumps(texts).encode()).hexdigest()}


def refuse_other_submission(path, form, fold, examples):
    """InputError if the submission `path` has another form, or answers other texts than those of
    the examples. fold: the folder of a fold, whose cached scores tell which texts these were."""
    cached, same = fold / "scores-test.safetensors", True
    if not path.exists():
        return
    try:
        check_submission(path.read_bytes().decode(), form, path)
    except (ValueError, csv.Error):                        # InputError, too
        same = False
    if same and cached.exists():
        with open_tensors(cached) as file:
            same = file.metadata() == scores_key(fold, examples)
    if not same:
        raise InputError(f"{path}: answers other rows than --test has now, or has other columns "
                         "than --sample: move it to another place and give the command again, or "
                         "--overwrite, which trains anew")
