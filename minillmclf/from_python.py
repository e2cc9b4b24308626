"""fine_tune(model, data, ...): what the command train does, called from Python. It goes the same way: train.whole_run."""
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .errors import InputError
from .files import short
from .text.table_files import MEMORY, Reading, Table

COLUMNS = {1: ("text",), 2: ("text_a", "text_b"), 3: ("prompt", "response_a", "response_b")}     # of a row's texts


def fine_tune(model="mini-bert", data="tickets", out=None, on_epoch=None, say=None, overwrite=False, **settings):
    """Fine-tune a classifier, evaluate it, save it -> Classifier, with the weights of the best epoch.

    model: a Hugging Face folder, or a shipped name. data: a file, a folder or a bundled name, as for `load_data`; rows,
    a list of (text, label) or ((text_a, text_b), label), or of dicts; or columns, a DataFrame or a dict of lists, named
    as in a file: text, label, split. Without a column split the rows are split as a file's are.

    out: the run folder, as the command makes it: a stopped run goes on there, and a finished one is loaded. None: nothing
    is left behind but what is returned. on_epoch: called with a dict after each epoch: epoch, step, train_loss, and the
    metrics of dev. say: called with the lines that the command prints (print); None: silent. overwrite, settings: as
    the command's flags, with _ for -, as in lr=1e-4, method="lora"; for on and off also True and False, and a list, a
    dict or None (not given) where a flag takes names with commas, JSON or nothing.

    Raises InputError for what is wrong with data or settings, and KeyboardInterrupt after Ctrl-C has saved the state.
    """
    from .building import device_of
    from .classify.classifier import Classifier
    from .settings import read_settings
    from .train import load_dataset, show_record, silent, whole_run
    table = None if isinstance(data, (str, os.PathLike)) else table_of(data)
    config = settings.pop("config", None)
    settings |= {"model": model, "data": MEMORY if table else data, "out": out}
    s = read_settings({name: as_flag(value) for name, value in settings.items() if value is not None}, config)
    rows = load_dataset(s, table)
    with tempfile.TemporaryDirectory() as passing:
        folder = Path(s.out or passing)
        record = whole_run(s, rows, folder, overwrite, say or silent, on_epoch)
        if record is None:
            raise KeyboardInterrupt(f"stopped; the state is saved in {s.out}: the same call goes on from there" if s.out
                                    else "stopped; nothing is kept without out=")
        show_record(record, rows, s.out, say or silent)
        return Classifier.load(folder).to(device_of(s))


def as_flag(value):
    """A setting's value as its flag takes it: True -> "on", ["a", "b"] -> "a,b", {"a": "b"} -> JSON."""
    value = value.tolist() if hasattr(value, "tolist") else value               # a number of numpy
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else os.fspath(value) if isinstance(value, os.PathLike) else value


def table_of(data):
    """Rows or columns in memory -> Table, as a JSONL file with a line for each of these rows would be read."""
    reading, given = Reading(Path(MEMORY), ".jsonl", list), records(data)
    try:
        lines = [json.dumps(row, default=plain).encode() + b"\n" for row in given]
    except (TypeError, ValueError, RecursionError) as error:                    # a key that is no name; a list in itself
        raise InputError(f"{MEMORY}: cannot be written as JSON ({error}): give texts and labels") from None
    rows = list(reading.rows(lines))
    if not rows:
        raise InputError(f"{MEMORY}: there are none: add rows")
    return Table(reading.path, tuple(reading.columns), rows, reading.read.hexdigest())


def plain(value):
    """For json.dumps: a number or an array of numpy as Python has it; anything else as what is no text and no label."""
    return value.tolist() if hasattr(value, "tolist") else {type(value).__name__: str(value)}


def records(data):
    """What `fine_tune` takes as rows or columns -> a list of {column: value}. Raises InputError."""
    if isinstance(data, Mapping) or hasattr(data, "columns"):
        given = {str(name): data[name] for name in getattr(data, "columns", data)}
        lone = [name for name, values in given.items() if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__")]
        columns = {name: list(values) for name, values in given.items() if name not in lone}
        lengths = {name: len(values) for name, values in columns.items()}
        if lone or len(set(lengths.values())) > 1:
            found = f"{short(lone[0])} is none" if lone else f"have {short(lengths, 200)} rows"
            raise InputError(f"{MEMORY}: columns should be lists of one length, {found}")
        return [dict(zip(columns, values)) for values in zip(*columns.values())]
    if isinstance(data, (bytes, set, frozenset)) or not hasattr(data, "__iter__"):
        raise InputError(f"data should be a path, a list of (text, label) or columns, is a {type(data).__name__}")
    return [record(row, line) for line, row in enumerate(data, 1)]


def record(row, line):
    """(text, label), (several texts, label) or a dict -> {column: value}."""
    if isinstance(row, Mapping):
        return dict(row)
    texts, label = row if isinstance(row, (tuple, list)) and len(row) == 2 else (None, None)
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, (tuple, list)) or len(texts) not in COLUMNS:
        raise InputError(f"{MEMORY}, line {line}: should be (text, label), ((text_a, text_b), label) or a dict, is "
                         f"{short(row)}")
    return {**dict(zip(COLUMNS[len(texts)], texts)), "label": label}
