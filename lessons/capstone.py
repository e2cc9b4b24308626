"""python -m lessons.capstone SUBMISSION --data test.csv: the table of a report, computed again.

SUBMISSION holds run folders of train, or the cells/ of a comparison. The metrics of each run come
from the probabilities in its predictions.csv and from the labels of --data, and from nothing else.
Then they are held against those that the run claims in run.json.

  python -m lessons.capstone runs/capstone --data tickets
  python -m lessons.capstone answers --data hidden.csv --key id

The second judges answers of predict, a CSV file or a folder of such files, to rows whose labels
only the instructor has. Rows that are missing, extra or there twice are refused, and so is another
text than that of --data. Exit code 0: each claim holds; 1: one does not; 2: refused.

Predictions do not show whether a run has trained on the rows that it answers, nor whether a model
has made them: train a run again (train --config run.json), or keep the labels back.
"""
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minillmclf.cli.parser import Parser, run
from minillmclf.cli.settings import add_settings
from minillmclf.cli.tables import markdown_table
from minillmclf.errors import InputError
from minillmclf.files import read_json, short
from minillmclf.text.cells import natural_order
from minillmclf.text.data import find_data
from minillmclf.text.examples import default_label_column, make_examples, text_column_names
from minillmclf.text.splits import row_splits, split_column, split_files
from minillmclf.text.table_files import read_table
from minillmclf.training.metrics import METRICS, evaluate

ROUNDING_ERROR = 5e-7              # half of the last digit of a probability in predictions.csv
BINS = 15                          # of the calibration error, as in training/metrics.py
NO_CLAIM = ["-"] * 4, None, None, None


@dataclass
class Truth:
    """The rows to judge by. rows: {key: (texts, label)}; columns: the names of the text columns."""
    name: str
    rows: dict
    columns: tuple
    labels: list


def parse(arguments=None):
    p = Parser(prog="python -m lessons.capstone", usage="%(prog)s SUBMISSION --data DATA",
               description=__doc__)
    p.add_argument("submission", help="a folder of runs; a CSV file of predict, or such a folder")
    p.add_argument("--data", required=True, help="a file, a folder, or a bundled set's name")
    p.add_argument("--split", choices=["train", "dev", "test"], default="test",
                   help="which rows, where --data has splits [test]")
    p.add_argument("--key", default="line", metavar="COLUMN", help="the column that says which row "
                   "is answered: one of both files, or the line in --data [line]")
    p.add_argument("--text-column", help="name(s) of the text column(s) of --data")
    p.add_argument("--label-column", help="name of its label column")
    add_settings(p, ["quoting"], grouped=False)
    return p.parse_args(arguments)


# ---------------------------------------------------------------- what is right

def read_truth(a):
    """The rows of --data -> Truth."""
    path = find_data(a.data)
    if path.is_dir():
        files = split_files(path)
        if a.split not in files:
            raise InputError(f"{a.data}: has no file of {a.split} rows: choose another --split")
        path = files[a.split]
    table = read_table(path, getattr(a, "quoting", "auto"))
    columns, examples = make_examples(table, a.text_column,
                                      a.label_column or default_label_column(table))
    splits = row_splits(table) if split_column(table) else [a.split] * len(examples)
    if a.key != "line" and a.key not in table.columns:
        raise InputError(f"{path}: no column {short(a.key)} for --key")
    rows = {}
    for (line, record), example, split in zip(table.rows, examples, splits):
        key = str(line if a.key == "line" else record.get(a.key))
        if split == a.split:
            if key in rows:
                raise InputError(f"{path}, line {line}: {a.key} {short(key)} stands twice: name a "
                                 "column of --data that numbers its rows with --key")
            rows[key] = (example.texts, example.label)
    if not rows:
        raise InputError(f"{path}: has no {a.split} rows: choose another --split")
    return Truth(str(a.data), rows, columns, natural_order({label for _, label in rows.values()}))


# ---------------------------------------------------------------- what was answered

def read_answers(path, truth, key):
    """A file of answers -> (probabilities (N, C), answers (N,), targets (N,), the C labels), in
    the order of truth.rows. InputError for any fault."""
    if not path.is_file():
        raise InputError(f"{path}: is not there: finish the run, or take its folder out")
    table = read_table(path, "double")
    answer = "predicted" if "predicted" in table.columns else "label"
    if key not in table.columns or answer not in table.columns:
        raise InputError(f"{path}: no column {short(key if key not in table.columns else answer)} "
                         f"in {short(list(table.columns), 200)}: name the column with --key, of a "
                         f"file that train, or predict with --out NAME.csv, has written")
    names = list(table.columns)[list(table.columns).index(answer) + 1:]
    labels = [name.removeprefix("p_") for name in names if name.startswith("p_")]
    if missing := [label for label in truth.labels if label not in labels]:
        raise InputError(f"{path}: no column p_{short(missing[0])[1:-1]}: write a probability for "
                         f"each class of {truth.name}, {', '.join(map(str, truth.labels))}")
    check_keys(path, [row[key] for _, row in table.rows], truth, key)
    check_texts(path, table, truth, key)
    rows = {row[key]: (f"{path}, line {line}", row) for line, row in table.rows}
    ordered = [rows[each] for each in truth.rows]
    read = [read_answer(where, row, answer, labels) for where, row in ordered]
    targets = [labels.index(label) for _, label in truth.rows.values()]
    return np.array([p for p, _ in read]), np.array([a for _, a in read]), np.array(targets), labels


def check_keys(path, keys, truth, key):
    """InputError unless each row is answered once."""
    counts = Counter(keys)
    kinds = {"missing": [each for each in truth.rows if each not in counts],
             "extra": [each for each in counts if each not in truth.rows],
             "there more than once": [each for each, count in counts.items() if count > 1]}
    faults = [f"{len(found)} {words} ({key} {', '.join(short(each)[1:-1] for each in found[:5])}"
              f"{', ...' if len(found) > 5 else ''})" for words, found in kinds.items() if found]
    if faults:
        raise InputError(f"{path}: {len(keys)} answers to the {len(truth.rows)} rows of "
                         f"{truth.name}: {'; '.join(faults)}: answer each row once")


def check_texts(path, table, truth, key):
    """InputError for an answer to another text. Texts have the names of --data, or train's."""
    usual = text_column_names(len(truth.columns))
    names = truth.columns if set(truth.columns) <= set(table.columns) else usual
    if not set(names) <= set(table.columns):
        raise InputError(f"{path}: no column {short(usual[0])}: keep the texts beside the answers")
    for line, row in table.rows:
        given, texts = tuple(row[name] for name in names), truth.rows[row[key]][0]
        if given != texts:
            raise InputError(f"{path}, line {line}: {key} {short(row[key])} of {truth.name} has "
                             f"another text, {short(texts[0])}: answer the rows of this file")


def read_answer(where, row, answer, labels):
    """A row of the file -> (its C probabilities, the number of the class that it answers)."""
    try:
        p = [float(row[f"p_{label}"]) for label in labels]
    except ValueError:
        p = [float("nan")]
    if not all(0 <= each <= 1 for each in p) or abs(sum(p) - 1) > max(1e-4, len(p) * 1e-6):
        raise InputError(f"{where}: expected {len(labels)} probabilities from 0 to 1 with the sum "
                         f"1, found {short([row[f'p_{label}'] for label in labels], 120)}")
    if row[answer] not in labels or p[labels.index(row[answer])] < max(p):
        raise InputError(f"{where}: answers {short(row[answer])}, but the likeliest class is "
                         f"{short(labels[p.index(max(p))])}")
    return p, labels.index(row[answer])


# ---------------------------------------------------------------- metrics, and claims

def recompute(probabilities, answers, targets, labels):
    """-> ({metric: number}, {metric: by how much a claim may differ, (below, above)}).

    A claim was computed before the probabilities were rounded to six digits.
    """
    rows = np.arange(len(targets))
    p = np.clip(probabilities, ROUNDING_ERROR, 1)
    p[rows, answers] += ROUNDING_ERROR / 10                    # the answer wins ties
    metrics = evaluate(p, targets, labels)
    true = probabilities[rows, targets]
    low = -np.log(np.minimum(true + ROUNDING_ERROR, 1)).mean()
    high = -np.log(np.clip(true - ROUNDING_ERROR, 1e-15, 1)).mean()
    places = probabilities.max(1) * BINS
    at_edge = (abs(places - places.round()) <= BINS * ROUNDING_ERROR * 1.01).sum()
    ece = 2 * ROUNDING_ERROR + 2 * float(at_edge) / len(targets)
    loss = metrics["log_loss"]
    return metrics, {"accuracy": (1e-9, 1e-9), "macro_f1": (1e-9, 1e-9), "ece": (ece, ece),
                     "log_loss": (loss - low + 1e-9, high - loss + 1e-9)}


def read_claim(folder):
    """What a run says of itself -> (its kind: model, method, readout, seed; its metrics; how many
    parameters are trainable; seconds of training)."""
    path = folder / "run.json"
    is_baseline = not path.is_file()
    if not is_baseline:
        record = read_json(path)
        results = record.get("results") or {}
        claimed = list(results.values())[-1] if isinstance(results, dict) and results else None
        trainable = (record.get("parameters") or {}).get("trainable")
        seconds = (record.get("timing") or {}).get("train_seconds")
    else:
        path = folder / "cell.json"                            # a baseline of compare has no run
        record = read_json(path)
        claimed, trainable, seconds = (record.get(key) for key in (
            "test", "trainable", "train_seconds"))
    settings = record.get("settings")
    numbers = [trainable, seconds]
    if isinstance(claimed, dict):
        numbers += map(claimed.get, METRICS)
    if not isinstance(settings, dict) or not isinstance(claimed, dict) or not all(
            isinstance(each, (int, float)) for each in numbers):
        raise InputError(f"{path}: claims no {', '.join(METRICS)}: finish the run, or take its "
                         "folder out")
    kind = ["a baseline", "-", "-", settings.get("seed")] if is_baseline else [
        Path(str(settings.get("model"))).name, *map(settings.get, ("method", "readout", "seed"))]
    return kind, claimed, trainable, seconds


def verdict(metrics, allowed, claimed):
    """"holds", or the claims that do not: "accuracy 0.900"."""
    wrong = [f"{name} {claimed[name]:.3f}" for name, (below, above) in allowed.items()
             if not metrics[name] - below <= claimed[name] <= metrics[name] + above]
    return ", ".join(wrong) + " is not so" if wrong else "holds"


def submitted(submission):
    """A folder or file -> [(name, path of the answers, run folder or None), ...]."""
    top = Path(submission)
    runs = {path.parent for name in ("run.json", "cell.json") for path in top.rglob(name)}
    if runs:
        return [(top.name if each == top else each.relative_to(top).as_posix(),
                 each / "predictions.csv", each) for each in sorted(runs)]
    files = [top] if top.is_file() else sorted(top.glob("*.csv"))
    if not files:
        raise InputError(f"{submission}: holds neither a run.json of train nor a CSV file of "
                         "predict: name the folder of the runs, or of the answers")
    return [(path.stem, path, None) for path in files]


def table_row(name, path, folder, truth, key):
    """Answers -> (the cells of their row, does their claim hold?)."""
    kind, claimed, trainable, seconds = read_claim(folder) if folder else NO_CLAIM
    metrics, allowed = recompute(*read_answers(path, truth, key))
    said = verdict(metrics, allowed, claimed) if claimed else "-"
    numbers = [f"{metrics[metric]:.3f}" for metric in METRICS]
    costs = ["-" if value is None else f"{value:,}" for value in (trainable, seconds)]
    return [name, *kind, *numbers, *costs, said], said in ("holds", "-")


def main(arguments=None):
    a = parse(arguments)
    truth = read_truth(a)
    rows = [table_row(*each, truth, a.key) for each in submitted(a.submission)]
    header = ["run", "model", "method", "readout", "seed", *METRICS, "trainable *", "train s *",
              "claim"]
    print("\n".join(markdown_table(header, [cells for cells, _ in rows])))
    print(f"\n{len(truth.rows)} rows of {truth.name}. * as the run says: not computed again.")
    return 0 if all(holds for _, holds in rows) else 1


if __name__ == "__main__":
    run(main)
