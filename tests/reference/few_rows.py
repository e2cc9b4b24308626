"""Few rows of each class: how the ways to train compare, on sets that lie in a folder.

  python tests/reference/few_rows.py --model MINILM --sets DIR --rows 10 25 all --seeds 5 --out FILE

Rows are drawn by the seed, the same for all ways; at most --test rows judge. Ways: `bag of words`,
a TF-IDF logistic regression; `probe`, a logistic regression on frozen pooled states; `full`, as
train does for many rows; `probe, then full` (LP-FT); `contrastive`, which train chooses by itself;
`setfit`, where that package is installed, with its own defaults. One thread. Each run is a line in
--out, and is not run again; the table in Markdown is made of all lines there: the mean accuracy,
its standard deviation, how many seeds if fewer than asked, and the median of the processor's
seconds.
"""
import argparse
import json
import random
import statistics
import time
from pathlib import Path

import torch

from minillmclf import fine_tune
from minillmclf.classify.baseline import BagOfWords
from minillmclf.text.data import load_data

SETS = ("tickets", "trec6", "banking77", "sst2", "ag_news")
MANY = {"few_rows": "off"}
LPFT = {"few_rows": "off", "dev": "none", "head_init": "probe", "pool": "mean", "lr": 1e-4,
        "epochs": 1, "min_steps": 60}
WAYS = {"probe": {"few_rows": "on", "method": "head"}, "full": MANY, "probe, then full": LPFT,
        "contrastive": {"few_rows": "on"}}


def draw(data, per_class, seed, test_rows):
    """per_class: a number or "all" -> training rows, test rows: [(text, label)] each."""
    rng, rows = random.Random(f"few:{seed}"), {}
    for example in data.train:
        rows.setdefault(example.label, []).append(example)
    chosen = [e for label in sorted(rows) for e in rng.sample(
        rows[label], len(rows[label]) if per_class == "all" else min(int(per_class),
                                                                     len(rows[label])))]
    judged = random.Random("judged").sample(data.test, min(test_rows, len(data.test)))
    return [[(e.texts[0], e.label) for e in part] for part in (chosen, judged)]


def accuracy(answers, rows):
    return sum(answer == label for answer, (_, label) in zip(answers, rows)) / len(rows)


def by_model(model, train, test, settings):
    """A way of WAYS: the rows have no split of their own but the test rows -> accuracy."""
    table = {"text": [text for text, _ in train + test], "label": [label for _, label in train + test],
             "split": ["train"] * len(train) + ["test"] * len(test)}
    found = fine_tune(model, table, baselines="off", **settings)
    probabilities = found.predict([text for text, _ in test])
    return accuracy([found.labels[best] for best in probabilities.argmax(1)], test)


def by_words(train, test):
    labels = sorted({label for _, label in train})
    bag = BagOfWords(len(labels))
    bag.fit([(text,) for text, _ in train], [labels.index(label) for _, label in train], [], [])
    return accuracy([labels[best] for best in bag.predict([(text,) for text, _ in test]).argmax(1)],
                    test)


def by_setfit(model, train, test, seed):
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments
    net = SetFitModel.from_pretrained(str(model))
    rows = Dataset.from_dict({"text": [t for t, _ in train], "label": [label for _, label in train]})
    Trainer(net, TrainingArguments(seed=seed, report_to="none"), train_dataset=rows).train()
    return accuracy(list(net.predict([text for text, _ in test])), test)


def run(way, model, train, test, seed):
    """-> accuracy on the test rows."""
    if way == "bag of words":
        return by_words(train, test)
    if way == "setfit":
        return by_setfit(model, train, test, seed)
    return by_model(model, train, test, WAYS[way] | {"seed": seed})


def read(path):
    """{(model, set, rows, way, seed): [accuracy, seconds]} of the lines in a file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {tuple(key): value for key, value in map(json.loads, lines)}


def cell(found, seeds):
    """[[accuracy, seconds], ...] -> a cell of the table."""
    if not found:
        return "-"
    scores, seconds = zip(*found)
    spread = f" +- {statistics.stdev(scores):.3f}" if len(found) > 1 else ""
    few = "" if len(found) == seeds else f" ({len(found)} seed{'s' * (len(found) > 1)})"
    return f"{statistics.mean(scores):.3f}{spread}{few}, {statistics.median(seconds):.0f} s"


def print_table(a, found):
    print(f"| set | rows a class | {' | '.join(a.ways)} |\n|---|---|{'---|' * len(a.ways)}")
    for name in a.names:
        for per_class in a.rows:
            cells = [cell([found[key] for seed in range(a.seeds)
                           if (key := (a.model, name, per_class, way, seed)) in found], a.seeds)
                     for way in a.ways]
            print(f"| {name} | {per_class} | {' | '.join(cells)} |")


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--sets", required=True, help="a folder with trec6/, banking77/, ...")
    p.add_argument("--names", nargs="+", default=SETS)
    p.add_argument("--rows", nargs="+", default=["10"])
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--test", type=int, default=500)
    p.add_argument("--ways", nargs="+", default=["bag of words", *WAYS])
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    torch.set_num_threads(1)
    found = read(a.out)
    asked = [(seed, per_class, name, way) for seed in range(a.seeds) for per_class in a.rows
             for name in a.names for way in a.ways]
    for seed, per_class, name, way in asked:
        key = (a.model, name, per_class, way, seed)
        if key in found:
            continue
        data = load_data(name if name == "tickets" else Path(a.sets) / name)
        train, test = draw(data, per_class, seed, a.test)
        began = time.process_time()
        found[key] = [run(way, a.model, train, test, seed), time.process_time() - began]
        with a.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, found[key]]) + "\n")
    print_table(a, found)


if __name__ == "__main__":
    main()
