"""Few rows of each class: how the ways to train compare, on sets that lie in a folder.

  python tests/reference/few_rows.py --model MINILM --as minilm --sets DIR --rows 10 25 --seeds 5
  python tests/reference/few_rows.py --table

Rows are drawn by the seed, the same for all ways; at most TEST_ROWS test rows judge. Ways: `bag of
words`, a TF-IDF logistic regression; `probe`, a logistic regression on frozen pooled states;
`full`, as train does for many rows; `probe, then full` (LP-FT); `contrastive`, which train chooses
by itself; `setfit`, where that package is installed, with its own defaults. One thread.

Each run is a line of lessons/measurements/few_rows.jsonl: model (its name, without a path), set,
rows a class, seed, way, accuracy, seconds of the processor, steps of training. A run that stands
there is not made again. --table makes the tables of few_rows.md of all lines: for each model the
mean accuracy, its standard deviation, how many seeds if fewer than the most, the median of the
seconds, and for SetFit the median of the steps; the mean over the sets; and how many points
`contrastive` is ahead of other ways on the same draws.
"""
import argparse
import json
import random
import re
import statistics
import tempfile
import time
from pathlib import Path

import torch

from minillmclf import fine_tune
from minillmclf.classify.baseline import BagOfWords
from minillmclf.text.data import load_data

HERE = Path(__file__).resolve().parents[2] / "lessons" / "measurements"
RUNS, PAGE = HERE / "few_rows.jsonl", HERE / "few_rows.md"
SETS = ("tickets", "trec6", "banking77", "sst2", "ag_news")
MANY = {"few_rows": "off"}
LPFT = {"few_rows": "off", "dev": "none", "head_init": "probe", "pool": "mean", "lr": 1e-4,
        "epochs": 1, "min_steps": 60}
WAYS = {"probe": {"few_rows": "on", "method": "head"}, "full": MANY, "probe, then full": LPFT,
        "contrastive": {"few_rows": "on"}}
ALL_WAYS = ("bag of words", *WAYS, "setfit")
# Which rows choose the epoch? `probe, then full` of 120 steps, made only where --ways names them.
EPOCHS = {f"epoch: {name}": LPFT | {"dev": dev, "min_steps": 120}
          for name, dev in (("the last", "none"), ("a tenth", "split"), ("folds", "cross"))}
KEYS = ("model", "set", "rows", "seed", "way")             # what a run is known by
MODELS, OTHERS = ("mini-bert", "minilm"), ("full", "probe, then full", "setfit")
COUNTS = ("5", "10", "25", "50", "all")                     # rows a class, in the tables' order
COMPARED = ("mini-llama", "mini-t5", "mini-bert, lora", "mini-bert, bitfit", "mini-bert, houlsby",
            "mini-bert, prefix", "mini-bert, last-1", "mini-llama, lora")     # without own tables
TEST_ROWS = 500


def draw(data, per_class, seed, judges="test"):
    """per_class: a number or "all"; judges: "test" or "dev", the rows that judge a model
    -> training rows, rows that judge: [(text, label)] each."""
    rng, rows = random.Random(f"few:{seed}"), {}
    for example in data.train:
        rows.setdefault(example.label, []).append(example)
    chosen = []
    for label in sorted(rows):
        most = len(rows[label])
        chosen += rng.sample(rows[label], most if per_class == "all" else min(int(per_class), most))
    others = getattr(data, judges)
    judged = random.Random("judged").sample(others, min(TEST_ROWS, len(others)))
    return [[(e.texts[0], e.label) for e in part] for part in (chosen, judged)]


def accuracy(answers, rows):
    return sum(answer == label for answer, (_, label) in zip(answers, rows)) / len(rows)


def by_model(model, train, test, settings):
    """A way of WAYS: the rows have no split of their own but the test rows -> accuracy, steps."""
    rows, steps = train + test, [0]
    table = {"text": [text for text, _ in rows], "label": [label for _, label in rows],
             "split": ["train"] * len(train) + ["test"] * len(test)}
    found = fine_tune(model, table, baselines="off", **settings,
                      on_epoch=lambda epoch: steps.append(epoch["step"]))
    probabilities = found.predict([text for text, _ in test])
    return accuracy([found.labels[best] for best in probabilities.argmax(1)], test), steps[-1]


def by_words(train, test):
    labels = sorted({label for _, label in train})
    bag = BagOfWords(len(labels))
    bag.fit([(text,) for text, _ in train], [labels.index(label) for _, label in train], [], [])
    answers = bag.predict([(text,) for text, _ in test]).argmax(1)
    return accuracy([labels[best] for best in answers], test), 0


def by_setfit(model, train, test, seed, steps=-1):
    """steps: the most steps of contrastive pairs; -1: an epoch of them, SetFit's default."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments
    net = SetFitModel.from_pretrained(str(model))
    net.model_body.float()            # it keeps the 16 bits of a file, and would train in them
    rows = Dataset.from_dict({
        "text": [t for t, _ in train], "label": [label for _, label in train]})
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(net, TrainingArguments(folder, seed=seed, report_to="none",
                                                 save_strategy="no", max_steps=steps),
                          train_dataset=rows)
        trainer.train()
    taken = trainer.st_trainer.state.global_step
    return accuracy(list(net.predict([text for text, _ in test])), test), taken


def run(a, key):
    """A run that `key`, {name of KEYS: value}, describes -> the same with its results."""
    name, way, seed = key["set"], key["way"], key["seed"]
    train, test = draw(load_data(name if name == "tickets" else Path(a.sets) / name),
                       key["rows"], seed, a.judges)
    began = time.process_time()
    if way == "bag of words":
        score, steps = by_words(train, test)
    elif way == "setfit":
        score, steps = by_setfit(a.model, train, test, seed, a.setfit_steps)
    else:
        score, steps = by_model(a.model, train, test,
                                {"method": a.method, "seed": seed} | (WAYS | EPOCHS)[way])
    seconds = time.process_time() - began
    return key | {"accuracy": round(score, 4), "seconds": round(seconds, 1), "steps": steps}


def read(path):
    """The runs in a file -> {values of KEYS: run}."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {tuple(line[name] for name in KEYS): line for line in map(json.loads, lines)}


def cell(runs, seeds):
    """The runs of a way -> a cell of the table. seeds: of the way that has most of them."""
    if not runs:
        return "-"
    scores = [line["accuracy"] for line in runs]
    spread = f" +- {statistics.stdev(scores):.3f}" if len(runs) > 1 else ""
    few = "" if len(runs) == seeds else f" ({len(runs)} seed{'s' * (len(runs) > 1)})"
    cost = f"{statistics.median(line['seconds'] for line in runs):.0f} s"
    if runs[0]["way"] == "setfit":
        cost += f", {statistics.median(line['steps'] for line in runs):.0f} steps"
    return f"{statistics.mean(scores):.3f}{spread}{few}, {cost}"


def place(value, known):
    """What to sort by: the place of a value among the known ones, which come first."""
    return (known.index(value), value) if value in known else (len(known), value)


def table_of(model, runs):
    """The runs of all models -> the table of one, in Markdown."""
    own = [line for line in runs if line["model"] == model]
    ways = sorted({line["way"] for line in own}, key=lambda way: place(way, ALL_WAYS))
    seeds = len({line["seed"] for line in own})
    lines = [f"| set ({model}) | rows a class | {' | '.join(ways)} |",
             f"|---|---|{'---|' * len(ways)}"]
    for name, rows in sorted({(line["set"], line["rows"]) for line in own},
                             key=lambda row: (place(row[0], SETS), COUNTS.index(row[1]))):
        cells = [cell([line for line in own if (line["set"], line["rows"], line["way"])
                       == (name, rows, way)], seeds) for way in ways]
        lines.append(f"| {name} | {rows} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def scores_of(runs, model, name, rows, way):
    """-> {seed: accuracy} of one cell of a table."""
    return {line["seed"]: line["accuracy"] for line in runs
            if (line["model"], line["set"], line["rows"], line["way"]) == (model, name, rows, way)}


def table_of_means(runs):
    """The accuracy of each way, the mean over the sets that all ways were run on, in Markdown."""
    ways = ("full", "probe", "probe, then full", "contrastive")
    lines = [f"| mean of the sets | rows a class | {' | '.join(ways)} |",
             f"|---|---|{'---|' * len(ways)}"]
    for model in MODELS:
        for rows in COUNTS:
            cells = [[scores_of(runs, model, name, rows, way).values() for way in ways]
                     for name in SETS]
            means = [[statistics.mean(cell) for cell in row] for row in cells if all(row)]
            if means:
                shown = [f"{statistics.mean(column):.3f}" for column in zip(*means)]
                lines.append(f"| {model}, {len(means)} sets | {rows} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def table_of_differences(runs):
    """By how many points contrastive is ahead of a way: mean over the draws that both were run on,
    and on how many of them it is ahead, in Markdown."""
    lines = [f"| contrastive is ahead of | rows a class | {' | '.join(SETS)} |",
             f"|---|---|{'---|' * len(SETS)}"]
    for model in (*MODELS, *COMPARED):
        for way in OTHERS:
            for rows in COUNTS:
                cells = []
                for name in SETS:
                    one = scores_of(runs, model, name, rows, "contrastive")
                    other = scores_of(runs, model, name, rows, way)
                    ahead = [one[seed] - other[seed] for seed in sorted(one.keys() & other)]
                    wins = sum(points > 0 for points in ahead)
                    cells.append(f"{100 * statistics.mean(ahead):+.1f}, {wins} of {len(ahead)}"
                                 if ahead else "-")
                if set(cells) != {"-"}:
                    lines.append(f"| {way}, {model} | {rows} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_tables(page, runs):
    """The text of the page with all tables, each where its old one stands."""
    tables = {f"set ({model})": table_of(model, runs)
              for model in sorted({line["model"] for line in runs} - {*COMPARED})}
    tables["mean of the sets"] = table_of_means(runs)
    tables["contrastive is ahead of"] = table_of_differences(runs)
    for corner, table in tables.items():
        pattern = rf"^\| {re.escape(corner)} \|.*\n(\|.*\n)*"
        if not re.search(pattern, page, re.M):
            raise SystemExit(f"{PAGE.name}: has no table '{corner}': write the line "
                             f"'| {corner} |' where it should stand")
        page = re.sub(pattern, lambda _, table=table: table, page, flags=re.M)
    return page


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--table", action="store_true", help="make the page's tables, and run nothing")
    p.add_argument("--model")
    p.add_argument("--as", dest="name", help="the model's name in the file (its folder's name)")
    p.add_argument("--sets", help="a folder with trec6/, banking77/, ...")
    p.add_argument("--names", nargs="+", default=SETS)
    p.add_argument("--rows", nargs="+", default=["10"])
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--ways", nargs="+", default=["bag of words", *WAYS])
    p.add_argument("--method", default="full", help="of all ways but the probe [full]")
    p.add_argument("--judges", choices=("test", "dev"), default="test", help="the rows that judge")
    p.add_argument("--setfit-steps", type=int, default=-1, help="SetFit's most steps (an epoch)")
    p.add_argument("--out", type=Path, default=RUNS)
    a = p.parse_args()
    if a.table:
        page = with_tables(PAGE.read_text(encoding="utf-8"), list(read(a.out).values()))
        PAGE.write_text(page, encoding="utf-8")
        return
    torch.set_num_threads(1)
    name, done = a.name or Path(a.model).name, read(a.out)
    asked = [(name, set_name, rows, seed, way) for seed in range(a.seeds) for rows in a.rows
             for set_name in a.names for way in a.ways]
    for key in asked:
        if key not in done:
            line = run(a, dict(zip(KEYS, key)))
            with a.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
