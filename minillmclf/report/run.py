"""A finished run, read from its folder: run.json, metrics.jsonl and predictions.csv of train.
All that the page shows is checked here. Neither a model nor data are read."""
from pathlib import Path

import numpy as np

from ..cli.settings import with_current_names
from ..errors import InputError
from ..files import is_number, read_json
from ..text.table_files import read_table
from ..training.metrics import METRICS

REMEDY = "train the run again with --overwrite"
REQUIRED = {                  # key of run.json -> its type; "data.rows" is the key rows in data
    "settings": dict, "settings.metric": str, "data.labels": list, "data.rows": dict,
    "doctor.warnings": list, "versions": dict, "parameters.trainable": int, "parameters.total": int,
    "split": str, "results": dict, "best_epoch": int, "timing.train_seconds": (int, float)}


class FinishedRun:
    """What the folder of a finished run holds.

    record: run.json; labels, split, results: parts of it; history: the lines of metrics.jsonl.
    Of the N rows of predictions.csv, lines: line numbers in the data; fields: names of the text
    columns; texts: N lists of texts; targets, answers: (N,) class numbers; probabilities: (N, C).
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.record = read_record(self.folder)
        self.labels, self.split = self.record["data"]["labels"], self.record["split"]
        self.results = self.record["results"]
        self.history = read_history(self.folder / "metrics.jsonl", self.record)
        self.read_predictions(self.folder / "predictions.csv")

    def read_predictions(self, path):
        table = read_table(path, "double")
        names = [f"p_{label}".strip() for label in self.labels]
        self.fields = table.columns[1:-2 - len(names)]       # between "line" and "label"
        expected = ("line", *self.fields, "label", "predicted", *names)
        if table.columns != expected or not self.fields:
            raise InputError(f"{path}: its columns are not line, text, label, predicted and a p_ "
                             f"for each of the {len(names)} classes of run.json "
                             f"({', '.join(self.labels)}): {REMEDY}")
        self.lines, self.texts, classes, probabilities = [], [], [], []
        for line, row in table.rows:
            where = f"{path}, line {line}"
            self.lines.append(row["line"])
            self.texts.append([row[field] for field in self.fields])
            classes.append([class_number(row[column], self.labels, where)
                            for column in ("label", "predicted")])
            probabilities.append([read_probability(row[n], f"{where}: {n}") for n in names])
        self.targets, self.answers = np.array(classes).T                     # (N,) each
        self.probabilities = np.array(probabilities)                         # (N, C)
        accuracy = float((self.targets == self.answers).mean())
        recorded = list(self.results.values())[-1]["accuracy"]
        if abs(accuracy - recorded) > 1e-6:
            raise InputError(f"{path}: {len(self.lines)} rows, of which {accuracy:.4f} are right, "
                             f"but run.json says {recorded:.4f}: {REMEDY}")


def read_record(folder):
    """The run.json of a finished run with one label a row, or InputError."""
    path = folder / "run.json"
    if not path.is_file():
        raise InputError(f"{folder}: holds no run.json: give the folder of a run that "
                         "minillmclf.train has made")
    record = read_json(path)
    if isinstance(record.get("settings"), dict):
        record["settings"] = with_current_names(record["settings"])
    if record.get("finished") is False:
        raise InputError(f"{folder}: this run is not finished: give its training command again, it "
                         "goes on from there")
    if entry_of(record, "settings.multi_label") == "on":
        raise InputError(f"{folder}: report is for one label a row, and this run has several: look "
                         "at it with minillmclf.evaluate")
    faulty = [key for key, kind in REQUIRED.items() if not isinstance(entry_of(record, key), kind)]
    if "results" not in faulty:
        results = record["results"].values()
        if not results or not all(map(is_metrics, results)):
            faulty.append("results")
    if faulty:
        raise InputError(f"{path}: {', '.join(faulty)} missing, or not as minillmclf.train writes "
                         "it: give the folder of a run that it has made")
    return record


def entry_of(record, name):
    """"data.rows" -> record["data"]["rows"], or None."""
    for key in name.split("."):
        record = record.get(key) if isinstance(record, dict) else None
    return record


def is_metrics(metrics):
    """Is it a dict as training.metrics.evaluate returns it?"""
    f1 = entry_of(metrics, "f1")
    if not isinstance(f1, dict):
        return False
    return all(is_number(value) for value in [*map(metrics.get, METRICS), *f1.values()])


def read_history(path, record):
    """The lines of metrics.jsonl, each with all numbers that the page shows, or InputError."""
    keys = ("epoch", "train_loss")
    if record["settings"].get("dev") != "none":
        keys += ("log_loss", "accuracy", record["settings"]["metric"])
    rows = read_table(path).rows
    for line, row in rows:
        missing = [key for key in keys if not is_number(row.get(key))]
        if missing:
            raise InputError(f"{path}, line {line}: {', '.join(missing)} should be a number: "
                             f"{REMEDY}")
    best = record["best_epoch"]
    if best not in [row["epoch"] for _, row in rows]:
        raise InputError(f"{path}: has no epoch {best}, which run.json calls the best: {REMEDY}")
    return [row for _, row in rows]


def class_number(name, labels, where):
    if name not in labels:
        raise InputError(f"{where}: {name!r:.60} is not a class of run.json "
                         f"({', '.join(labels)}): {REMEDY}")
    return labels.index(name)


def read_probability(text, what):
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InputError(f"{what} should be a probability from 0 to 1, is {text!r:.60}: {REMEDY}")
    return value
