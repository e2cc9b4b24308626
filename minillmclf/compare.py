"""python -m minillmclf.compare: several models on the same split, at several sizes of the training set, over several seeds.

  python -m minillmclf.compare --models majority bag-of-words mini-bert@weights=random mini-bert --learning-curve 10 25 all

A model is a folder or a shipped name, with settings of its own after @, comma between them; or one of the two baselines.
Each cell is a run in OUT/cells, so a comparison that was stopped goes on when the same command is given again. All models
of a cell train on the same rows. Writes table.md and table.csv: mean and standard deviation of test accuracy over seeds.
"""
import argparse
import csv
import io
import json
import statistics
from dataclasses import fields, replace
from pathlib import Path

from .commands import Parser, Stopped, run
from .errors import InputError
from .files import find_model
from .settings import Settings, add_settings, read_settings, with_contents

BASELINES = {"majority": "majority class", "bag-of-words": "bag of words"}
OWN = ("model", "out", "rows_per_class", "seed")           # settings that the comparison itself decides
ROWS = ("data", "label_column")                            # and those that all its models share


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.compare", description=__doc__,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", nargs="+", required=True, metavar="MODEL[@key=value,...]")
    p.add_argument("--learning-curve", nargs="+", default=["all"], metavar="N", help="training rows a class, or all [all]")
    p.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... [3]")
    p.add_argument("--out", default="runs/compare", help="folder of the comparison [runs/compare]")
    return add_settings(p, [f.name for f in fields(Settings) if f.name not in OWN]).parse_args(arguments)


def parse_model(text, settings):
    """"mini-bert@lr=1e-4,pool=mean" -> the settings of that model."""
    name, _, own = text.partition("@")
    kinds, values = {f.name: f.type for f in fields(Settings)}, {}
    for pair in filter(None, own.split(",")):
        key, _, value = pair.partition("=")
        if key not in kinds or key in OWN + ROWS:
            raise InputError(f"--models {text}: {key!r} is not a setting of a model")
        try:
            values[key] = kinds[key](value)
        except ValueError:
            raise InputError(f"--models {text}: {key} should be a {kinds[key].__name__}, is {value!r}") from None
    return with_contents(replace(settings, model=name, **values).check())


def run_cell(settings, folder):
    """One training run, unless it is finished already -> its metrics on test (or dev)."""
    from . import train
    s = replace(settings, out=str(folder))
    data = train.load_dataset(s)
    record = train.open_run(s, folder, data, overwrite=False) or train.train_run(s, data, folder, say=lambda line: None)
    if record is None:
        raise Stopped("stopped; the same command goes on from there")
    return list(record["results"].values())[-1]


def baseline_cell(name, settings):
    """A baseline on the same rows as the models of this cell."""
    from . import train
    return train.baselines(train.load_dataset(settings), [BASELINES[name]])[BASELINES[name]]


def cells(a, settings):
    """Every (model text, size, seed) and the metrics that it reached, one by one."""
    for size in a.learning_curve:
        if size != "all" and not (size.isdigit() and int(size) > 0):
            raise InputError(f"--learning-curve {size}: should be a number of rows a class, or all")
    wanted = [(m, size, seed) for size in a.learning_curve for m in a.models for seed in range(a.seeds)]
    for number, (model, size, seed) in enumerate(wanted, 1):
        s = replace(settings, seed=seed, rows_per_class=0 if size == "all" else int(size))
        print(f"\n[{number} of {len(wanted)}] {model}, {size} rows a class, seed {seed}", flush=True)
        if model in BASELINES:
            metrics = baseline_cell(model, s)
        else:
            own = parse_model(model, s)
            label = "".join(c if c.isalnum() or c in "-.=_@" else "_" for c in model)
            metrics = run_cell(own, Path(a.out) / "cells" / f"{label}-{size}-{seed}")
        yield model, size, seed, metrics


def render(found, models, sizes):
    """The Markdown table: a row a model, a column a size, mean +- standard deviation of accuracy over the seeds."""
    lines = ["| test accuracy | " + " | ".join(f"{size} rows a class" for size in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
    for model in models:
        row = []
        for size in sizes:
            values = [m["accuracy"] for name, at, _, m in found if (name, at) == (model, size)]
            spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            row.append(f"{statistics.mean(values):.3f}{spread}")
        lines.append(f"| {Path(model.partition('@')[0]).name}{'@' + model.partition('@')[2] if '@' in model else ''} | "
                     + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def main(arguments=None):
    a = parse(arguments)
    flags = {k: v for k, v in vars(a).items() if k not in ("models", "learning_curve", "seeds", "out")}
    settings = read_settings(flags)
    if a.seeds < 1:                                         # all mistakes before the first hour of work
        raise InputError(f"--seeds {a.seeds}: should be 1 or more")
    for flag, given in (("--models", a.models), ("--learning-curve", a.learning_curve)):
        for name in given:
            if given.count(name) > 1:
                raise InputError(f"{flag}: {name} is named twice")
    for model in a.models:
        if model not in BASELINES:
            find_model(parse_model(model, settings).model)
    found = list(cells(a, settings))
    from .files import write_text
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "rows_per_class", "seed", "accuracy", "macro_f1", "log_loss", "ece"])
    writer.writerows([model, size, seed, *(f"{m[k]:.6f}" for k in ("accuracy", "macro_f1", "log_loss", "ece"))]
                     for model, size, seed, m in found)
    write_text(Path(a.out) / "table.csv", out.getvalue())
    text = render(found, a.models, a.learning_curve)
    write_text(Path(a.out) / "table.md", text)
    write_text(Path(a.out) / "settings.json", json.dumps({"models": a.models, "sizes": a.learning_curve, "seeds": a.seeds, **flags}, indent=2) + "\n")
    print("\n" + text + f"\nsaved in {a.out}")
    return 0


if __name__ == "__main__":
    run(main)
