"""Preference pairs: what do models add to the lengths and the words of the answers?

  python tests/reference/stacking.py --data PREF_DIR --models mini-bert mini-llama
  python tests/reference/stacking.py --data PREF_DIR --write OUT_DIR
  python tests/reference/stacking.py --data PREF_DIR --members RUN_DIR

PREF_DIR has train.csv, dev.csv and test.csv with prompt, response_a, response_b and label. Rows of
train and dev are divided into folds by their prompts; each model's vectors of the texts, at most
--max-length tokens each, get a logistic regression that is fitted anew for each fold
(minillmclf/folds/stacking.py, `vector_member`). A stack of lengths, bag of words and models is
fitted to the out-of-fold predictions. Prints log losses out of fold and on test, and what the
models add, with a paired bootstrap over rows. A model's regression is added to one on lengths; so
that it gets no credit for these, all is repeated with a member of lengths alone on both sides.
--write writes the rows as train.csv and test.csv for `python -m minillmclf.folds`, whose folders
--members takes in (with --group prompt, and the same --folds). --rows N takes N rows of train and
dev, evenly, to save time.
"""
import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
import torch

from minillmclf import Classifier
from minillmclf.classify.baseline import class_frequencies
from minillmclf.classify.swap import longer_answer
from minillmclf.folds.reading import group_key
from minillmclf.folds.split import assign_folds
from minillmclf.folds.arena import FIELDS, WINNERS
from minillmclf.folds.stacking import (bag_of_words_member, both_orders, fit_lengths, fit_stack,
                                       make_member, read_member, vector_member)
from minillmclf.text.examples import read_examples
from minillmclf.training.statistics import bootstrap_interval

LABELS = ["a", "b", "tie"]


def losses(probabilities, rows):
    """(N, 3), N Examples -> the log loss of each row (N,)."""
    p = np.asarray(probabilities, dtype=np.float64)[np.arange(len(rows)),
                                                    [LABELS.index(row.label) for row in rows]]
    return -np.log(np.clip(p, 1e-15, 1))


def length_member(rows, folds, tests):
    """What `vector_member` says without its vectors -> Member."""
    def fit(numbers, fold):
        logits = fit_lengths(*both_orders([rows[i] for i in numbers], LABELS), len(LABELS))
        return lambda texts: logits(texts).log_softmax(1)
    return make_member("lengths alone", fit, rows, folds, tests)


def members_of(a, rows, groups, folds, tests):
    """The bag of words and each model -> {name: Member}, {name: seconds of processor time}."""
    found, seconds, begin = {}, {}, time.process_time()
    found["bag of words"] = bag_of_words_member(rows, groups, folds, tests, LABELS)
    seconds["bag of words"] = time.process_time() - begin
    found["lengths alone"] = length_member(rows, folds, tests)
    for name in a.models:
        begin = time.process_time()
        model = Classifier.from_backbone(name, LABELS, pool="mean", max_length=a.max_length)
        found[Path(name).name] = vector_member(name, model, rows, folds, tests, LABELS)
        seconds[Path(name).name] = time.process_time() - begin
        print(f"{name}: {seconds[Path(name).name]:.0f} s", flush=True)
    for folder in a.members:
        found[Path(folder).name] = read_member(folder, range(len(rows)), tests, LABELS, folds)
    return found, seconds


def write_files(folder, rows, unseen):
    """train.csv and test.csv for the command folds, ids from 0 in both."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, each, columns in (("train.csv", rows, WINNERS), ("test.csv", unseen, ())):
        with open(Path(folder, name), "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", *FIELDS, *columns])
            for number, row in enumerate(each):
                marks = [int(row.label == label) for label in LABELS] if columns else ()
                writer.writerow([number, *row.texts, *marks])


def report(name, out_of_fold, test):
    out = "" if out_of_fold is None else f"{out_of_fold.mean():.4f}"
    print(f"{name:<62}{out:>8}{test.mean():>9.4f}", flush=True)


def added(name, with_models, without):
    """How much lower the log loss is with the models: mean and paired interval."""
    gain = without - with_models
    low, high = bootstrap_interval(lambda rows: gain[rows].mean(), len(gain), draws=2000)
    print(f"{name}: the models lower the log loss by {gain.mean():.4f} [{low:.4f}, {high:.4f}]",
          flush=True)
    return [float(gain.mean()), low, high]


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True)
    p.add_argument("--models", nargs="*", default=["mini-bert", "mini-llama"])
    p.add_argument("--members", nargs="*", default=[], help="folders of minillmclf.folds")
    p.add_argument("--write", help="a folder for train.csv and test.csv; nothing is fitted")
    p.add_argument("--folds", type=int, default=3)
    p.add_argument("--rows", type=int, default=0,
                   help="rows of train and dev, taken evenly (0: all)")
    p.add_argument("--max-length", type=int, default=128)
    p.add_argument("--out", help="a JSON file for all losses")
    a = p.parse_args()
    rows = [row for split in ("train", "dev")
            for row in read_examples(Path(a.data, f"{split}.csv"))]
    if a.rows:
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, a.rows).round().astype(int)]
    unseen = read_examples(Path(a.data, "test.csv"))
    if a.write:
        write_files(a.write, rows, unseen)
        return
    tests, groups = [row.texts for row in unseen], [group_key(row.texts[:1]) for row in rows]
    folds = assign_folds([row.label for row in rows], groups, a.folds, 0)
    print(f"{len(rows)} rows in {a.folds} folds, {len(unseen)} test rows, "
          f"{torch.get_num_threads()} thread(s)")
    members, seconds = members_of(a, rows, groups, folds, tests)
    print(f"\n{'log loss':<62}{'folds':>8}{'test':>9}")
    y = [LABELS.index(row.label) for row in rows]
    report("class frequencies", None, losses(class_frequencies(y, len(tests), 3), unseen))
    report("the longer answer wins", None, losses(longer_answer(rows, tests, LABELS), unseen))
    bag, alone, *names = members
    kept, every, control = {}, [bag, *names], [bag, alone, *names]
    for with_lengths, chosen in (
            (True, []), (False, [bag]), (True, [bag]), (True, [bag, alone]), (False, names),
            *((True, [bag, name]) for name in names), (True, every), (True, control)):
        stack = fit_stack(rows, [members[name] for name in chosen], folds, LABELS, with_lengths)
        title = " + ".join(["lengths"] * with_lengths + chosen)
        kept[title] = (losses(stack.out_of_fold.exp(), rows),
                       losses(stack.predict(tests, [members[name] for name in chosen]), unseen))
        report(title, *kept[title])
    gains = {}
    for title, one, other in (
            ("", every, [bag]), (", lengths alone in both", control, [bag, alone])):
        pairs = zip(*(kept["lengths + " + " + ".join(each)] for each in (one, other)))
        print()
        gains |= {place + title: added(place + title, *pair)
                  for place, pair in zip(("out of fold", "on test"), pairs)}
    print("\nseconds of processor time:", {name: round(value) for name, value in seconds.items()},
          f"in all {time.process_time():.0f}")
    if a.out:
        means = {title: [float(each.mean()) for each in pair] for title, pair in kept.items()}
        Path(a.out).write_text(json.dumps({"gains": gains, "losses": means}, indent=2) + "\n")


if __name__ == "__main__":
    main()
