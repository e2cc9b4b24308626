"""Which rows do evaluate and merge judge a saved model by?

  the run's own data, also under --data or another name: the rows of --split, split as then
  the data of a fold of a cross-validation: the rows that the fold held out
  another file with a column split, a folder, a bundled set: the rows of --split
  another file without a column split: all its rows

Own data are known by their sha256. Not here: how rows are read and split (text/), or encoded
(rows.py).
"""
import itertools
import shutil
from dataclasses import replace

from ..errors import InputError
from ..files import MERGED_RECORD, check_fields, find_model, read_json, short, write_json
from ..text.data import find_data, load_data, read_tables
from ..text.examples import read_examples, refuse_blank
from ..text.splits import row_splits, split_column
from ..text.table_files import MEMORY, read_table
from .outputs import input_paths
from .rows import hold_out_as_asked, reading_options, text_columns
from .settings import Settings, read_settings

HELD_OUT = "predictions.csv"             # of a fold's run: its held-out rows, and answers to them


def record_file(folder):
    """The run.json of a run folder, or merge's copy of it beside a merged model -> its path."""
    own, merged = folder / "run.json", folder / MERGED_RECORD
    return merged if merged.exists() and not own.exists() else own


def read_run_record(folder):
    """The record of a run or of a merged model. InputError if there is none, or it does not name
    its data."""
    path, is_object = record_file(folder), (lambda value: isinstance(value, dict), "an object")
    record = read_json(path) if path.exists() else {}
    check_fields(record, {"settings?": is_object, "data?": is_object}, path)
    if not {"settings", "data"} <= set(record) or record["settings"].get("data") == MEMORY:
        raise InputError(f"{folder}: holds no run.json that names its data: name rows "
                         "that it has not learned with --data")
    return record


def copy_record(folder, place):
    """Write beside a merged model what its run was trained on. folder: the run; place: the new
    model's folder. Nothing is written where `folder` holds no run that names its data."""
    try:
        record = read_run_record(folder)
    except InputError:
        return
    write_json(place / MERGED_RECORD, {key: record[key] for key in ("settings", "data")})
    if is_fold(record):
        shutil.copyfile(folder / HELD_OUT, place / HELD_OUT)


def is_fold(record):
    """Is this the record of one fold of a cross-validation?"""
    return str(record["data"].get("split")).startswith("fold ")


def paths_read(a):
    """What the command reads -> [(flag, path), ...] for check_out_file. merge calls it too."""
    folder = find_model(a.model)
    needs_run = a.data is None and not getattr(a, "method", None)        # the data of the run
    data = str(read_run_record(folder)["settings"].get("data")) if needs_run else None
    return [*input_paths(a), ("the run of --model", data)]


def is_learned(record, tables):
    """Are these Tables the data that the run of a run.json was trained on, split into files as
    then? A single file may have another name now. tables: from text.data.read_tables."""
    table = tables.get(None)                                   # the single file, None for a folder
    if (table is None) != (record["data"].get("split") == "files"):
        return False
    known = record["data"].get("sha256")
    if table is None:
        return known == {each.path.name: each.sha256 for each in tables.values()}
    return isinstance(known, dict) and table.sha256 in known.values()


def choose_rows(a, folder, model):
    """The rows to evaluate, read as the model's training rows were -> (Examples, their name, are
    they of the run's own data?).

    a: the command's flags; folder: of the model. InputError where the run's data have changed or
    are not found, where --quoting reads them in another way, and where --split has no rows.
    """
    options, split = reading_options(model, a), a.split or "test"
    options["multi_label"] = model.task.MULTI_LABEL
    record = record_if_there(a, folder)
    fold = is_fold(record)
    if fold and a.data is None:
        return *held_out_rows(a, folder, record), True
    name, tables, learned = read_data(a, folder, record, options)
    table = tables.get(None)
    if learned and fold and not (split_column(table) and split == "test"):   # test: in no fold
        return *held_out_rows(a, folder, record), True
    columns = text_columns(model, a.text_column, next(iter(tables.values())).columns)
    label = a.label_column or (model.reading or {}).get("label_column") or None
    if learned and not fold:
        refuse_other_quoting(a, folder, record)
        s = replace(read_settings({}, record_file(folder)), data=name)
        rows = rows_of_run(a, model, s, tables, options)
    elif table is None:
        rows = rows_of_folder(name, split, columns, label, options)
    else:
        rows, split = rows_of_file(a, table, columns, label, options)
    if not rows:
        mark = "" if learned else f"mark some (column split, or a file {split}.csv), or "
        raise InputError(f"{name}: has no {split} rows: {mark}choose another --split")
    return rows, f"{name}, {split}", learned


def record_if_there(a, folder):
    """The record of the model's run; with --data it may be missing, and then nothing is known."""
    try:
        return read_run_record(folder)
    except InputError:
        if a.data is None:
            raise
        return {"data": {}}


def read_data(a, folder, record, options):
    """Read --data, or else the data of the run -> (name, Tables, are they what the run has
    learned?). InputError where the run's data have changed since: its train rows may be test rows
    now."""
    name = a.data
    if name is None:
        name = read_settings({}, record_file(folder)).data
        refuse_lost_data(name, folder)
    tables = read_tables(name, options.get("quoting", "auto"))
    learned = is_learned(record, tables)
    if a.data is None and not learned:
        raise InputError(f"{name}: has changed since {folder} was trained on it: name rows "
                         "that it has not learned with --data")
    return name, tables, learned


def refuse_other_quoting(a, folder, record):
    """InputError if --quoting reads a run's own data in another way than the run did: the texts
    decide which rows are held out, so training rows could be judged."""
    asked = getattr(a, "quoting", None)
    known = record["settings"].get("quoting", Settings().quoting)
    if asked not in (None, known):
        raise InputError(f"--quoting {asked}: {short(folder, 200)} was trained on these data by "
                         f"--quoting {known}, and another reading splits them in another way: "
                         "leave --quoting out")


def refuse_lost_data(name, folder):
    """InputError if the data that a run.json names are not there."""
    try:
        find_data(name)
    except InputError:
        raise InputError(f"{short(folder, 200)}: was trained on {short(name, 200)}, which is not "
                         "found from here: say where these data lie now with --data") from None


def rows_of_run(a, model, s, tables, options):
    """The rows of --split of the data of a run, split as it was trained -> Examples. Other columns
    change what is read of these rows, not which rows they are."""
    columns = text_columns(model, None) if model.reading else s.text_column or None
    label = (model.reading or {}).get("label_column") or s.label_column or None
    table, split = tables.get(None), a.split or "test"             # a file is read once
    data = load_data(table or s.data, columns, label, s.seed, needs_dev=False, **options)
    rows = getattr(hold_out_as_asked(s, data), split)
    if a.text_column or a.label_column:
        lines = {row.row for row in rows}
        table = table or tables.get(split) or tables["train"]
        columns = data.columns
        if a.text_column:
            columns = text_columns(model, a.text_column, table.columns)
        rows = read_examples(table, columns, a.label_column or data.label_column, **options)
        rows = [row for row in rows if row.row in lines]
        refuse_blank(s.data, rows)
    return rows


def rows_of_folder(name, split, columns, label, options):
    """The rows of a split of a folder, as its files mark them -> Examples; [] if it has none."""
    data = load_data(name, columns, label, needs_dev=False, **options)
    if data.source["dev_from_train"]:
        data.train, data.dev = data.train + data.dev, []
    return getattr(data, split)


def rows_of_file(a, table, columns, label, options):
    """The rows of --split of a file that has a column split, else all -> (Examples, which)."""
    if not split_column(table) and a.split:
        raise InputError(f"{a.data}: has no column split, and all its rows are judged: leave "
                         f"--split {a.split} out, or add the column")
    rows, parts = read_examples(table, columns, label, **options), row_splits(table)
    split = a.split or "test" if split_column(table) else "all rows"
    rows = [row for row, part in zip(rows, parts) if split in (part, "all rows")]
    refuse_blank(a.data, rows)
    return rows, split


def held_out_rows(a, folder, record):
    """The rows that a fold's model has not seen, from its predictions.csv -> (Examples, name)."""
    part = record["data"]["split"]
    refuse_other_quoting(a, folder, record)
    if a.split not in (None, "test") or a.text_column or a.label_column:
        raise InputError(f"{folder}: is {part} of a cross-validation, and is judged on its "
                         "held-out rows, as they were read: leave out --split, --text-column and "
                         "--label-column, or name other rows with --data")
    table = read_table(folder / HELD_OUT, "double")
    columns = list(itertools.takewhile(lambda name: name != "label", table.columns[1:]))
    return read_examples(table, columns), f"{record['data'].get('path')}, held-out rows of {part}"
