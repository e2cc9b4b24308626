"""python -m minillmclf.evaluate: how good is a saved classifier on labelled data?

  python -m minillmclf.evaluate --model runs/mini-bert-tickets-full-0
  python -m minillmclf.evaluate --model runs/mine --data other.csv --out other.json

Without --data, the data of the run itself. A bundled set, a folder, or a file with a split column gives its --split; any
other file is taken whole. Prints accuracy, macro F1, log loss, ECE, F1 of each class and the most frequent confusions.
"""
import argparse
import json
from collections import Counter
from pathlib import Path

from .commands import Parser, run
from .errors import InputError
from .files import find_model
from .settings import read_settings


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.evaluate", description=__doc__,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="a run folder, or a Hugging Face folder with a classification head")
    p.add_argument("--data", help="a file, a folder, or a bundled set's name (default: what the run was trained on)")
    p.add_argument("--split", choices=["train", "dev", "test"], default="test", help="which rows [test]")
    p.add_argument("--text-column", help="name(s) of the text column(s)")
    p.add_argument("--label-column", help="name of the label column")
    p.add_argument("--batch-size", type=int, default=64, help="rows at a time [64]")
    p.add_argument("--out", help="also write the metrics to this JSON file")
    return p.parse_args(arguments)


def choose_rows(a, folder):
    """The rows to be judged -> (list of Example, what they are called)."""
    from .files import read_json
    from .text.data import load_data, read_examples, read_table, refuse_blank
    if a.data is None:
        record = read_json(folder / "run.json") if (folder / "run.json").exists() else {}
        if "settings" not in record or "data" not in record:
            raise InputError(f"{folder}: holds no run.json that names its data: give --data")
        s = read_settings({}, folder / "run.json")
        data = load_data(s.data, a.text_column or s.text_column or None, a.label_column or s.label_column or None, s.seed)
        if data.source["sha256"] != record["data"].get("sha256"):          # another split: train rows may be test rows now
            raise InputError(f"{s.data}: has changed since {folder} was trained on it: name the rows to judge with --data")
    elif Path(a.data).is_file() and "split" not in read_table(Path(a.data)).columns:
        rows = read_examples(a.data, a.text_column, a.label_column)
        refuse_blank(a.data, rows)
        return rows, f"{a.data}, all rows"
    else:
        data = load_data(a.data, a.text_column, a.label_column)
    rows, name = getattr(data, a.split), data.source["path"]
    if not rows:
        raise InputError(f"{name}: has no {a.split} rows: choose another --split")
    return rows, f"{name}, {a.split}"


def confusions(truth, answers, labels, most=5):
    """The most frequent mistakes -> lines."""
    wrong = Counter((t, a) for t, a in zip(truth, answers) if t != a)
    return [f"  {n:4d} x {labels[t]} taken for {labels[a]}" for (t, a), n in wrong.most_common(most)]


def main(arguments=None):
    a = parse(arguments)
    folder = find_model(a.model)
    rows, name = choose_rows(a, folder)
    from .classify.classifier import Classifier
    from .files import write_text
    from .train import table
    from .training.metrics import evaluate
    model = Classifier.load(folder)
    foreign = next((e for e in rows if e.label not in model.labels), None)
    if foreign:
        raise InputError(f"{name}, line {foreign.row}: label {foreign.label!r} is not one of the model's: {', '.join(model.labels)}")
    encoded, shortened = model.encode([e.texts for e in rows])
    probabilities = model.scores(encoded, a.batch_size).softmax(-1).numpy()
    truth = [model.labels.index(e.label) for e in rows]
    metrics = evaluate(probabilities, truth, model.labels)
    print("\n".join(table({folder.name: metrics}, model.labels, name, len(rows))))
    print(f"\n{shortened} of {len(rows)} texts cut to {model.max_length} tokens. Most frequent confusions:")
    print("\n".join(confusions(truth, probabilities.argmax(1), model.labels) or ["  none"]))
    if a.out:
        write_text(a.out, json.dumps({"model": str(a.model), "data": name, "rows": len(rows), **metrics}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run(main)
