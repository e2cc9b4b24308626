"""Reading the rows of --data and of --test, each with its id, its texts and its group."""
import json
from dataclasses import dataclass, replace
from pathlib import Path

from ..cli.build import task_class
from ..errors import InputError
from ..files import short
from ..text.examples import default_label_column, make_examples, refuse_blank, split_names, text_key
from ..text.splits import row_splits, split_column
from ..text.table_files import read_table
from .arena import FIELDS, LABELS, WINNERS, as_pair, is_arena, read_arena, read_ids
from .submission import SubmissionForm, read_form


@dataclass
class Source:
    """The rows of one file. groups: a key for each row, the same for rows of one group; columns:
    names of an Example's texts; winners: {label: its winner_ column}, {} if there are none."""
    path: Path
    examples: list
    ids: list
    groups: list
    columns: tuple
    sha256: str
    arena: bool
    winners: dict


def read_source(path, s, group="", id_column="id", labelled=True):
    """A file -> Source. labelled: it must have labels, and rows marked test in its column `split`
    are left out. group: names of columns, "author,title"; "": equal texts are a group."""
    table = read_table(path, s.quoting)
    arena = is_arena(table.columns) and not (s.text_column or s.label_column)
    if arena:
        examples, columns = read_arena(table, labelled)[0], FIELDS
    else:
        label_column = s.label_column or default_label_column(table)
        columns, examples = make_examples(table, s.text_column or None, label_column, labelled)
    task = task_class(s)
    if arena and s.readout == "head" and task.MAX_TEXTS < 3:
        examples = [replace(e, texts=as_pair(e.texts)) for e in examples]
        columns = ("text_a", "text_b")
    task.check_columns(columns, s.readout)
    refuse_blank(path, examples)
    groups = read_groups(table, group) if group else [group_key(e.texts) for e in examples]
    winners = dict(zip(LABELS, WINNERS)) if arena and set(WINNERS) <= set(table.columns) else {}
    source = Source(path, examples, read_ids(table, id_column), groups, columns, table.sha256,
                    arena, winners)
    return without_test_rows(source, table) if labelled and split_column(table) else source


def without_test_rows(source, table):
    """A Source without the rows that the column `split` of its Table marks test."""
    keep = [i for i, split in enumerate(row_splits(table)) if split != "test"]
    rows = len(source.examples)
    if len(keep) < rows:
        print(f"{source.path}: {rows - len(keep)} of {rows} rows are marked test in the "
              "column split: left out")
    return replace(source, **{name: [getattr(source, name)[i] for i in keep]
                              for name in ("examples", "ids", "groups")})


def read_groups(table, columns):
    """"author,title" -> the group of each row. InputError for a missing column or an empty cell."""
    names = split_names(columns, table.columns)
    for name in names:
        if name not in table.columns:
            raise InputError(f"{table.path}: --group: no column {short(name)} in "
                             f"{short(list(table.columns), 300)}: name one of these")
    groups = []
    for line, record in table.rows:
        values = [record.get(name) for name in names]
        if any(value is None or str(value).strip() == "" for value in values):
            raise InputError(f"{table.path}, line {line}: --group {columns}: the cell is empty: "
                             "fill it, or group by another")
        groups.append(group_key([value if isinstance(value, str) else json.dumps(value)
                                 for value in values]))
    return groups


def group_key(texts):
    """A key for a list of texts. Texts that differ in case and white space only have one key."""
    return json.dumps(text_key(texts))


def read_test(a, s, labels, source):
    """Read --test, and --sample -> (Source, SubmissionForm); (None, None) without --test.

    source: the rows of --data; --test must have the same columns.
    """
    if a.test is None:
        if a.sample is not None:
            raise InputError("--sample goes with --test: name the file of the rows to answer")
        return None, None
    sample = a.sample and read_table(Path(a.sample))
    id_column = "id" if not sample or "id" in sample.columns else sample.columns[0]
    test = read_source(Path(a.test), s, id_column=id_column, labelled=False)
    if test.columns != source.columns or test.arena != source.arena:
        raise InputError(f"{a.test}: holds {', '.join(test.columns)}, but {source.path} "
                         f"{', '.join(source.columns)}: the same are needed")
    if not sample:
        header = [source.winners.get(label, f"p_{label}") for label in labels]
        return test, SubmissionForm(["id", *header], [None, *range(len(labels))], test.ids)
    if id_column not in read_table(Path(a.test), s.quoting).columns:
        raise InputError(f"{a.test}: no column '{id_column}', by which {a.sample} names its rows: "
                         "add it")
    return test, read_form(sample, id_column, labels, source.arena, test)
