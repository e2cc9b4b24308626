"""Few rows of each class: how the ways to train compare, on sets that lie in a folder.

  python tests/reference/few_rows.py --model MINILM --sets DIR --rows 10 25 --seeds 2

Rows are drawn by the seed, the same for all ways; at most --test rows judge. Ways: `bag of words`,
a TF-IDF logistic regression; `probe`, a logistic regression on frozen pooled states; `full`, as
train does for many rows; `probe, then full` (LP-FT); `contrastive`, which train chooses by itself;
`setfit`, where that package is installed, with its own defaults but one thread. A table in
Markdown: the mean accuracy over the seeds, their standard deviation, and seconds of the processor.
"""
import argparse
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
    """-> training rows, test rows: [(text, label)] each."""
    rng, rows = random.Random(f"few:{seed}"), {}
    for example in data.train:
        rows.setdefault(example.label, []).append(example)
    chosen = [e for label in sorted(rows) for e in rng.sample(rows[label], min(per_class,
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


def by_setfit(model, train, test):
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments
    net = SetFitModel.from_pretrained(str(model))
    rows = Dataset.from_dict({"text": [t for t, _ in train], "label": [label for _, label in train]})
    Trainer(net, TrainingArguments(), train_dataset=rows).train()
    return accuracy(list(net.predict([text for text, _ in test])), test)


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--sets", required=True, help="a folder with trec6/, banking77/, ...")
    p.add_argument("--names", nargs="+", default=SETS)
    p.add_argument("--rows", nargs="+", type=int, default=[10])
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--test", type=int, default=500)
    p.add_argument("--ways", nargs="+", default=["bag of words", *WAYS])
    a = p.parse_args()
    torch.set_num_threads(1)
    print(f"| set | rows a class | {' | '.join(a.ways)} |\n|---|---|{'---|' * len(a.ways)}")
    for name in a.names:
        data = load_data(name if name == "tickets" else Path(a.sets) / name)
        for per_class in a.rows:
            cells = []
            for way in a.ways:
                scores, began = [], time.process_time()
                for seed in range(a.seeds):
                    train, test = draw(data, per_class, seed, a.test)
                    if way == "bag of words":
                        scores.append(by_words(train, test))
                    elif way == "setfit":
                        scores.append(by_setfit(a.model, train, test))
                    else:
                        scores.append(by_model(a.model, train, test, WAYS[way] | {"seed": seed}))
                seconds = (time.process_time() - began) / a.seeds
                spread = statistics.stdev(scores) if a.seeds > 1 else 0.0
                cells.append(f"{statistics.mean(scores):.3f} +- {spread:.3f}, {seconds:.0f} s")
            print(f"| {name} | {per_class} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
