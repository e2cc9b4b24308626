"""python -m minillmclf.compare: which model should I take, and how should I adapt it? Measured on the same rows and seeds.

  python -m minillmclf.compare --models majority bag-of-words mini-bert@weights=random mini-bert --learning-curve 10 25 all
  python -m minillmclf.compare --models mini-bert minilm --methods full lora head --sweep lr=1e-4,3e-4 rank=4,8 --seeds 3

Without arguments: the shipped models, by head and by label texts, in full, by LoRA, QLoRA and head alone, on tickets.
A model is a folder or a shipped name, with settings of its own after @, comma between them (a method may have some, too:
lora@lr=3e-3,rank=16); or one of the two baselines.
Each is combined with every method, every readout and every value of --sweep; what cannot be is left out with the reason.
Each cell, a run in OUT/cells, trains in a process of its own. A comparison that was stopped goes on when the same command
is given again, and a cell that is finished is kept as long as its settings, its model and its data are the same.
Writes table.md, table.csv (a line a cell) and table.json: test scores with intervals, differences to the best row, costs;
in the JSON under "rows", beside "sweep" (every candidate's dev score), "not_made" and "left_out" (what could not be, and why).
"""
import json
import time
from dataclasses import fields, replace
from pathlib import Path

from .candidates import (BASELINES, OWN, ROWS, SHIPPED, TUNED, expand, labels_of, obstacle,
                         read_sweep)
from ..cli.parser import Parser, run
from ..errors import InputError
from ..files import check_folder, find_model, locked, write_text
from ..cli.settings import Settings, add_settings, read_settings, refuse_multi_label

ASKED = ("models", "methods", "readouts", "sweep", "learning_curve", "seeds", "out")


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.compare", usage="%(prog)s [--flag VALUE ...]",
               description=__doc__)
    p.add_argument("--models", nargs="+", metavar="MODEL[@key=value,...]", help="[the baselines and the shipped models]")
    p.add_argument("--methods", nargs="+", metavar="METHOD[@key=value,...]", help="each model with each of them [that of --method]")
    p.add_argument("--readouts", nargs="+", choices=["head", "labels"], help="and with each of these [that of --readout]")
    p.add_argument("--sweep", nargs="+", default=[], metavar="KEY=VALUE,...",
                   help="and with each of these settings; the best on dev rows is chosen, and it alone has a test score")
    p.add_argument("--learning-curve", nargs="+", default=["all"], metavar="N", help="training rows a class, or all [all]")
    p.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... [3]")
    p.add_argument("--out", default="runs/compare", help="folder of the comparison [runs/compare]")
    p.add_argument("--overwrite", action="store_true",
                   help="write into a folder that holds other things")
    return add_settings(p, [f.name for f in fields(Settings) if f.name not in OWN]).parse_args(arguments)


def complete(a):
    """Where no models are named, the comparison of the README."""
    if a.models is None:
        a.models = [*BASELINES, *SHIPPED]
        a.methods = a.methods or ([*TUNED] if not hasattr(a, "method") else None)
        a.readouts = a.readouts or (["head", "labels"] if not hasattr(a, "readout") else None)


def check(a):
    """All mistakes in what the comparison itself is asked, before the first hour of work."""
    asked = {key: getattr(a, key) for key in ("multi_label", "label_column") if hasattr(a, key)}
    refuse_multi_label(Settings(**asked), "compare")
    if a.seeds < 1:
        raise InputError(f"--seeds {a.seeds}: should be 1 or more")
    for size in a.learning_curve:
        if size != "all" and not (size.isdigit() and int(size) > 0):
            raise InputError(f"--learning-curve {size}: should be a number of rows a class, or all")
    for flag in ("method", "readout"):
        if hasattr(a, flag) and getattr(a, flag + "s"):
            raise InputError(f"--{flag} and --{flag}s: give one of them")
    for flag in ("models", "methods", "readouts", "learning_curve"):
        given = getattr(a, flag) or []
        for name in given:
            if given.count(name) > 1:
                raise InputError(f"--{flag.replace('_', '-')}: {name} is named twice")


def possible(candidates, labels):
    """Those candidates that can be, and a line for each that cannot -> (candidates, lines); InputError if none is left."""
    from ..cli.rows import load_dataset
    kept, left_out, data = [], [], {}
    for c in candidates:
        key = c.settings.text_column
        data[key] = data.get(key) or load_dataset(replace(c.settings, readout="labels"))     # takes any number of texts
        reason = "" if c.baseline else obstacle(c, data[key])
        if reason:
            left_out.append(f"{title(c, labels)}: not possible: {reason}")
        else:
            kept.append(c)
    if not kept:
        raise InputError(f"nothing to compare: {left_out[0]}")
    return kept, left_out


def one_split(s, out):
    """The same test rows for every seed -> (path of the data, sha256 of its files).

    A file without a column `split`, which each run would split by its own seed, is written to OUT/split.jsonl with the split
    of seed 0.
    """
    from ..text.table_files import read_table
    from ..cli.rows import load_dataset
    data, path = load_dataset(replace(s, readout="labels")), Path(out) / "split.jsonl"
    if data.source["split"] != "random":
        return s.data, data.source["sha256"]
    split = {example.row: name for name in ("train", "dev", "test") for example in getattr(data, name)}
    rows = [{**row, "split": split[line]} for line, row in read_table(Path(s.data), s.quoting).rows]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = text.encode("utf-8", "backslashreplace").decode()   # half a surrogate pair as in JSON
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return str(path), {"split.jsonl": read_table(path).sha256}


def title(candidate, labels):
    """A candidate in a message: "mini-bert, lora, lr=0.001"."""
    return ", ".join(filter(None, [labels[candidate.group], candidate.swept]))


def duration(seconds):
    """85 -> 1 min 25 s"""
    hours, minutes, seconds = int(seconds) // 3600, int(seconds) % 3600 // 60, int(seconds) % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def run_all(a, candidates, labels, sha256, metric):
    """Every cell, with a line of progress each -> list of {"candidate", "number", "size", "seed", "record", "folder"}.

    The baselines come last: the peak that Linux tells of a process begins with what the process that started it has held,
    so this one has to stay small until the last cell is trained.
    """
    from .cells import folder_of, run_cell
    cells = [{"candidate": c, "number": number, "size": size, "seed": seed, "folder": folder_of(a.out, c, size, seed)}
             for size in a.learning_curve for number, c in enumerate(candidates) for seed in range(a.seeds)]
    spent, trained = [], sum(not cell["candidate"].baseline for cell in cells)
    for place, cell in enumerate(sorted(cells, key=lambda cell: cell["candidate"].baseline), 1):
        c, started = cell["candidate"], time.monotonic()
        cell["record"], work = run_cell(c, sha256, cell["folder"], cell["size"], cell["seed"])
        seconds, r = time.monotonic() - started, cell["record"]
        spent += [seconds] * work
        said = f"dev {metric} {r['dev'][metric]:.3f}" if r["state"] == "finished" else f"not possible: {r['reason']}"
        left = f"; about {duration(sum(spent) / len(spent) * (trained - place))} left" if spent and place < trained else ""
        print(f"[{place} of {len(cells)}] {title(c, labels)}, {cell['size']} rows a class, seed {cell['seed']}: "
              f"{said}, {duration(seconds) if work else 'finished before'}{left}", flush=True)
    return cells


def main(arguments=None):
    a = parse(arguments)
    overwrite = vars(a).pop("overwrite")
    complete(a)
    check(a)
    flags = {k: v for k, v in vars(a).items() if k not in ASKED}
    metric = flags.get("metric", Settings().metric)
    candidates = expand(a.models, a.methods or [flags.get("method", "full")], a.readouts or [flags.get("readout", "head")],
                        read_sweep(a.sweep), flags)
    labels = labels_of(candidates)
    candidates, left_out = possible(candidates, labels)
    out = Path(a.out)
    check_folder(out, (out / "cells").exists(), overwrite, [("--data", flags.get("data")), *(
        ("--models", find_model(c.settings.model)) for c in candidates if not c.baseline)])
    with locked(out):
        (out / "cells").mkdir(parents=True, exist_ok=True)     # it says whose folder this is
        return measure(a, candidates, left_out, labels, metric, flags)


def measure(a, candidates, left_out, labels, metric, flags):
    """Run all cells, and write down what came out -> exit code."""
    out = Path(a.out)
    path, sha256 = one_split(read_settings({key: flags[key] for key in (*ROWS, "text_column") if key in flags}), out)
    candidates = [replace(c, settings=replace(c.settings, data=path)) for c in candidates]
    print("\n".join(left_out + [f"{len(candidates)} x {len(a.learning_curve)} sizes x {a.seeds} seeds"]), flush=True)
    cells = run_all(a, candidates, labels, sha256, metric)
    from .summary import summarise
    from .table import lines_of_csv, markdown
    summary = summarise(cells, labels, metric)
    text = markdown(summary, left_out)
    write_text(out / "table.csv", lines_of_csv(cells, labels, summary))
    write_text(out / "table.md", text)
    write_text(out / "table.json", json.dumps(summary | {"not_made": left_out}, indent=2, ensure_ascii=False) + "\n")
    write_text(out / "settings.json", json.dumps({**{key: getattr(a, key) for key in ASKED}, **flags}, indent=2) + "\n")
    print(f"\n{text}\nsaved in {a.out}{draw(summary['rows'], out)}")
    return 0


def draw(rows, out):
    """Quality against cost, and the learning curve where there is one, as pictures -> what to say of them."""
    from ..report import pictures
    trained, sizes = [row for row in rows if row["trainable"]], {row["size"] for row in rows}
    largest = "all" if "all" in sizes else max(sizes)
    try:
        made = {"cost.svg": pictures.cost([row for row in trained if row["size"] == largest])} if trained else {}
        made |= {"curve.svg": pictures.learning_curve(rows)} if len(sizes) > 1 else {}
    except InputError as error:
        return f"; no pictures: {error}"
    for name, figure in made.items():
        pictures.save(figure, out / name)
    return "".join(f", {name}" for name in made)


if __name__ == "__main__":
    run(main)
