"""Rows with several labels, made of the bundled tickets: two messages of different classes as one
text (three of four rows), or one message alone. No message is in two splits.

  python tests/reference/joined.py joined.csv
  python -m minillmclf.train --data joined.csv --multi-label --epochs 5
"""
import csv
import random
import sys

from minillmclf import load_data

ROWS = {"train": 600, "dev": 150, "test": 400}


def joined(examples, rows, rng):
    """So many different rows -> [(text, "label|label")]."""
    made = set()
    while len(made) < rows:
        chosen = rng.sample(examples, 2 if rng.random() < 0.75 else 1)
        if len({e.label for e in chosen}) == len(chosen):
            made.add(
                (" ".join(e.texts[0] for e in chosen), "|".join(sorted(e.label for e in chosen))))
    return sorted(made)


def main(out):
    data, rng = load_data("tickets"), random.Random("joined:0")
    with open(out, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "split"])
        for split, rows in ROWS.items():
            writer.writerows([*row, split] for row in joined(getattr(data, split), rows, rng))


if __name__ == "__main__":
    main(*sys.argv[1:])
