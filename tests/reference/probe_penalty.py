"""The penalty of the probe (training/probe.py): how sure are its answers after few rows?

  python tests/reference/probe_penalty.py --model mini-bert --sets DIR --rows 10 25 --seeds 3

The rows are those of few_rows.py. The model is frozen, its states are pooled by their mean. A line
for each penalty: accuracy, log loss and ECE on the test rows, the mean over all draws.
"""
import argparse
from pathlib import Path

import few_rows
import numpy as np
import torch

from minillmclf import Classifier
from minillmclf.text.data import load_data
from minillmclf.training.losses import CrossEntropy
from minillmclf.training.metrics import evaluate
from minillmclf.training.plan import Split
from minillmclf.training.probe import fit_probe

SETS = ("trec6", "sst2", "ag_news", "tweet_emotion")
NAMES = ("accuracy", "log_loss", "ece")


def measure(a, data, rows, seed):
    """A draw of rows -> for each penalty the metrics of the test rows, a list of lists."""
    train, test = few_rows.draw(data, rows, seed)
    labels = sorted({label for _, label in train})
    model = Classifier.from_backbone(a.model, labels, pool="mean")
    split = Split(model.encode([text for text, _ in train])[0],
                  [labels.index(label) for _, label in train])
    targets, found = [labels.index(label) for _, label in test], []
    for strength in a.penalties:
        fit_probe(model, split, CrossEntropy(None, 0.0, 0.0), strength=strength)
        metrics = evaluate(model.predict([text for text, _ in test]), targets, labels)
        found.append([metrics[name] for name in NAMES])
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--sets", type=Path, required=True, help="a folder with trec6/, sst2/, ...")
    p.add_argument("--names", nargs="+", default=SETS)
    p.add_argument("--rows", nargs="+", default=["10"])
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--penalties", nargs="+", type=float, default=[3.0, 1.0, 0.3, 0.1, 0.03, 0.01])
    a = p.parse_args()
    torch.set_num_threads(1)
    found = [measure(a, load_data(a.sets / name), rows, seed) for name in a.names for rows in a.rows
             for seed in range(a.seeds)]                           # (draws, penalties, metrics)
    print(f"| penalty | {' | '.join(NAMES)} |\n|---|---|---|---|")
    for strength, metrics in zip(a.penalties, np.mean(found, axis=0)):
        print(f"| {strength:g} | {' | '.join(f'{value:.3f}' for value in metrics)} |")


if __name__ == "__main__":
    main()
