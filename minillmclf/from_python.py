"""fine_tune(model, data, ...): what python -m minillmclf.train does, called from Python."""
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from . import train
from .cli.build import device_of
from .cli.settings import read_settings
from .errors import InputError
from .files import short
from .text.table_files import MEMORY, Reading, Table

COLUMNS = {1: ("text",), 2: ("text_a", "text_b"), 3: ("prompt", "response_a", "response_b")}


def fine_tune(model="mini-bert", data="tickets", out=None, on_epoch=None, say=None,
              overwrite=False, **settings):
    """Fine-tune a classifier, evaluate it, save it -> Classifier with the best epoch's weights.

    model: a Hugging Face folder, or a shipped name. data: a path or a bundled name; a list of
    (text, label), ((text_a, text_b), label) or dicts; a DataFrame or a dict of lists, with the
    columns of a file. out: the run folder, where a stopped run goes on and a finished one is
    loaded; None: no file is left behind. on_epoch: called after each epoch with a dict: epoch,
    step, train_loss, the metrics of dev. say: called with each line that the command prints.
    settings: the command's flags, with _ for -, their values as in `as_flag`; None: not given.

    Raises InputError for wrong data and settings; KeyboardInterrupt once Ctrl-C saved the state.
    """
    from .classify.classifier import Classifier            # it loads torch
    table = None if isinstance(data, (str, os.PathLike)) else table_of(data)
    config, say = settings.pop("config", None), say or train.silent
    settings |= {"model": model, "data": MEMORY if table else data, "out": out}
    given = {name: as_flag(value) for name, value in settings.items() if value is not None}
    s = read_settings(given, config)
    rows = train.load_dataset(s, table)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(s.out or scratch)
        record = train.whole_run(s, rows, folder, overwrite, say, on_epoch)
        if record is None:
            kept = f"saved in {s.out}; the same call goes on" if s.out else "nothing is kept"
            raise KeyboardInterrupt(f"stopped: {kept}")
        train.show_record(record, rows, s.out, say)
        return Classifier.load(folder).to(device_of(s))


def as_flag(value):
    """A value as a flag takes it: True -> "on", ["a", "b"] -> "a,b", {"a": "b"} -> JSON."""
    value = value.tolist() if hasattr(value, "tolist") else value          # a number of numpy
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return json.dumps(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def table_of(data):
    """Rows or columns in memory -> Table, read as a JSONL file with these rows would be."""
    def plain(value):                     # what JSON cannot hold becomes neither text nor label
        return value.tolist() if hasattr(value, "tolist") else {type(value).__name__: str(value)}
    reading = Reading(Path(MEMORY), ".jsonl", list)
    lines = (json.dumps(row, default=plain, skipkeys=True) + "\n" for row in records(data))
    rows = list(reading.rows(map(str.encode, lines)))
    if not rows:
        raise InputError(f"{MEMORY}: there are none: add rows")
    return Table(reading.path, tuple(reading.columns), rows, reading.read.hexdigest())


def records(data):
    """What `fine_tune` takes as rows or columns -> a list of {column: value}."""
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
    return [record(row, f"{MEMORY}, line {line}") for line, row in enumerate(data, 1)]


def record(row, where):
    """One row of a list -> {column: value}."""
    if isinstance(row, Mapping):
        return {str(name): value for name, value in row.items()}
    if isinstance(row, (tuple, list)) and len(row) == 2:
        texts = (row[0],) if isinstance(row[0], str) else row[0]
        if isinstance(texts, (tuple, list)) and len(texts) in COLUMNS:
            return {**dict(zip(COLUMNS[len(texts)], texts)), "label": row[1]}
    raise InputError(f"{where}: should be (text, label), ((text_a, text_b), label) or a dict, is "
                     f"{short(row)}")
