"""python -m minillmclf.evaluate: how good is a saved classifier on labelled data?

  python -m minillmclf.evaluate --model runs/mini-bert-tickets-full-0
  python -m minillmclf.evaluate --model runs/mine --data other.csv --out other.json

  python -m minillmclf.evaluate --model checkpoints/gpt2 --method prompt --data tickets --shots 8

Without --data, the data of the run itself. A bundled set, a folder, or a file with a split column gives its --split; any
other file is taken whole. Prints accuracy, macro F1, log loss, ECE, F1 of each class and the most frequent confusions; of a
model that answers with several labels, what its thresholds are worth (classify/multilabel.py).

--method prompt asks a language model that has learned nothing here, in words: --template, --label-texts, --instruction and
--shots of the data's training rows. Prints each way to read its log-probabilities, plain and calibrated.
"""
import argparse
import json
import os
import random
from dataclasses import replace
from pathlib import Path

from .cli.build import how_to_read, text_columns
from .cli.parser import Parser, run
from .errors import InputError
from .files import check_fields, check_out, find_model, named
from .cli.settings import add_settings, read_settings


PROMPT_FLAGS = ("template", "label_texts", "instruction", "end", "max_length", "device", "seed", "text_column", "label_column",
                "swap", "quoting")


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.evaluate", description=__doc__,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="a run folder, or a Hugging Face folder with a classification head")
    p.add_argument("--data", help="a file, a folder, or a bundled set's name (default: what the run was trained on)")
    p.add_argument("--split", choices=["train", "dev", "test"], default="test", help="which rows [test]")
    p.add_argument("--text-column", help="name(s) of the text column(s)")
    p.add_argument("--label-column", help="name of the label column")
    add_settings(p, ["quoting"])
    p.add_argument("--batch-size", type=int, default=64, help="rows at a time [64]")
    p.add_argument("--base", help="of an adapter: the folder of its base, where that lies "
                   "elsewhere now")
    p.add_argument("--swap", choices=["none", "predict"], help="of two answers to a prompt: take the mean over both orders, or "
                                                               "not (default: as trained)")
    p.add_argument("--out", help="also write the metrics to this JSON file")
    p.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    g = p.add_argument_group("with --method prompt")
    g.add_argument("--method", choices=["prompt"], help="prompt: ask a language model instead of a saved classifier")
    add_settings(g, ["template", "label_texts", "instruction", "end", "max_length", "device", "seed"])
    g.add_argument("--shots", type=int, default=0, help="finished examples before every row, in all, balanced [0]")
    g.add_argument("--neighbours", metavar="ENCODER", help="as shots, the rows that are nearest by this encoder (mini-bert)")
    g.add_argument("--rows", type=int, default=0, help="judge so many rows only, drawn by the seed (0: all)")
    g.add_argument("--beams", type=int, default=0, help="show where decoding with so many beams errs (1: greedy)")
    g.add_argument("--variance", action="store_true", help="five wordings and five orders of the shots, each judged")
    return p.parse_args(arguments)


def own_record(folder):
    """The run.json of a run folder, which names its data, or InputError."""
    from .files import read_json
    from .text.table_files import MEMORY
    record = read_json(folder / "run.json") if (folder / "run.json").exists() else {}
    if "settings" not in record or "data" not in record or record["settings"].get("data") == MEMORY:
        raise InputError(f"{folder}: holds no run.json that names its data: give --data")
    one = (lambda v: isinstance(v, dict), "an object")
    return check_fields(record, {"settings": one, "data": one}, folder / "run.json")


def apart(a):
    """What the command reads, as files.check_out has it; without --data also that of the run."""
    folder = find_model(a.model)
    own = a.data is None and not getattr(a, "method", None)
    data = str(own_record(folder)["settings"].get("data")) if own else None
    return [*named(a), ("the run of --model", data)]


def choose_rows(a, folder, model):
    """The rows to be judged, read as those of the training -> (list of Example, their name)."""
    from .text.data import load_data, read_examples, refuse_blank, row_splits, split_column
    from .text.table_files import read_table
    columns, how = text_columns(model, a.text_column), how_to_read(model, a)
    multi_label = model.task.MULTI_LABEL
    label = a.label_column or (model.reading or {}).get("label_column") or None
    if a.data is None:
        record = own_record(folder)
        s = read_settings({}, folder / "run.json")
        columns = columns if model.reading else a.text_column or s.text_column or None
        data = load_data(s.data, columns, label or s.label_column or None, s.seed, multi_label, **how)
        if data.source["sha256"] != record["data"].get("sha256"):          # another split: train rows may be test rows now
            raise InputError(f"{s.data}: has changed since {folder} was trained on it: name the rows to judge with --data")
    elif os.path.isfile(a.data):
        rows, table = read_examples(a.data, columns, label, several=multi_label, **how), read_table(
            Path(a.data), **how)
        marked = split_column(table)
        asked = [row for row, split in zip(rows, row_splits(table))
                 if not marked or split == a.split]
        refuse_blank(a.data, asked)
        if asked:
            return asked, f"{a.data}, {a.split if marked else 'all rows'}"
    if a.data is not None:               # a bundled set, a folder, a split carved out of train
        data = load_data(a.data, columns, label, several=multi_label, **how)
    rows, name = getattr(data, a.split), data.source["path"]
    if not rows:
        raise InputError(f"{name}: has no {a.split} rows: choose another --split")
    return rows, f"{name}, {a.split}"


def main(arguments=None):
    a = parse(arguments)
    asked = [f for f in (*PROMPT_FLAGS[:7], "shots", "neighbours", "rows", "beams", "variance") if getattr(a, f, None)]
    if asked and a.method is None:
        raise InputError(f"--{asked[0].replace('_', '-')} goes with --method prompt")
    if a.out:
        check_out(a.out, a.overwrite, apart(a))
    return prompted(a) if a.method == "prompt" else judged(a)


def judged(a):
    """A saved classifier."""
    folder = find_model(a.model)
    if a.data is None:
        own_record(folder)                                 # a mistake is told before a model is loaded
    from .classify.classifier import Classifier
    from .classify.preference import use_swap
    model = Classifier.load(folder, a.base)
    if a.out and model.base:
        check_out(a.out, a.overwrite, [("the base of --model", find_model(model.base))])
    rows, name = choose_rows(a, folder, model)
    use_swap(model, a.swap)
    texts, targets = [e.texts for e in rows], model.task.targets(rows, name)
    encoded, shortened = model.encode(texts)
    probabilities = model.probabilities(model.scores(encoded, a.batch_size))
    metrics = model.task.evaluate(probabilities, targets)
    own_dev = a.data is None and a.split == "dev"
    print("\n".join(model.task.table({folder.name: metrics}, name, rows, fitted=own_dev)))
    most = model.head.limit(model.max_length)[1]
    mistakes = model.task.mistakes(probabilities, targets)
    print(f"\n{shortened} of {len(rows)} texts cut to {most} tokens. {mistakes}".rstrip())
    return write_out(a, name, rows, metrics | checked(model, texts, a.batch_size))


def checked(model, texts, batch_size):
    """What the task has to say of rows and answers: printed -> for the file of --out."""
    answers = model.task.check_answers(model, texts, lambda rows: model.scores(rows, batch_size))
    found, lines = model.task.check_rows(model, texts)
    lines += model.task.answer_lines(answers)
    if lines:
        print("\n".join(lines))
    return answers | found


def write_out(a, name, rows, metrics):
    """The metrics in the file of --out, if there is one -> exit code."""
    from .files import write_text
    if a.out:
        write_text(a.out, json.dumps({"model": str(a.model), "data": name, "rows": len(rows), **metrics}, indent=2) + "\n")
    return 0


def check_prompted(a):
    """InputError for flags that do not go together."""
    if a.data is None or a.split == "train":
        raise InputError("--method prompt needs --data with a dev or test split")
    if a.base is not None:
        raise InputError("--base goes with an adapter, and --method prompt asks a whole model: "
                         "leave it out")
    if a.shots < 0 or a.rows < 0 or a.beams < 0:
        raise InputError(f"--shots {a.shots}, --rows {a.rows}, --beams {a.beams}: should be 0 or more")
    if a.neighbours and not a.shots:
        raise InputError("--neighbours needs a number of --shots")
    idle = [flag for flag in ("neighbours", "template", "beams") if a.variance and getattr(a, flag, None)]
    if idle:
        raise InputError(f"--{idle[0]} does nothing beside --variance, which has wordings of its own and the same shots for all rows")


def prompted(a):
    """A language model that is asked in words."""
    from .classify.label_text import prompting
    from .cli.build import build
    from .train import load_dataset
    from .training.metrics import evaluate
    check_prompted(a)
    flags = {name: getattr(a, name) for name in PROMPT_FLAGS if getattr(a, name, None) is not None}
    s = read_settings({**flags, "model": a.model, "data": a.data, "readout": "labels", "method": "full"})
    data = load_dataset(s)
    rows = data.test if a.split == "test" else data.dev
    rows = random.Random(f"judged:{s.seed}").sample(rows, a.rows) if 0 < a.rows < len(rows) else rows
    name = f"{data.source['path']}, {a.split}"
    if not rows:
        raise InputError(f"{name}: no such rows: choose another --split")
    model, _, _ = build(s, data.labels, data.columns)
    task = model.task
    if a.beams and model.backbone.KIND == "encoder":
        raise InputError("--beams: an encoder fills in its masks at once, there is nothing to decode step by step")
    targets = task.targets(rows, name)
    if a.variance:
        return vary(a, model.eval(), data, rows, s, name)
    texts, dev_texts = [e.texts for e in rows], data.dev if a.split == "test" else []
    if a.neighbours:
        encoded, cut, shorter = prompting.with_nearest_shots(model, data.train, rows, a.shots, a.neighbours)
        print(f"{a.shots} shots, each row's nearest by {a.neighbours}; shortened before {shorter} of {len(rows)} rows\n")
        dev = prompting.with_nearest_shots(model, data.train, dev_texts, a.shots, a.neighbours)[0] if dev_texts else []
    else:
        shorter = prompting.show_shots(model, data.train, a.shots, s.seed)
        print(model.head.prompt.shown(model.head.fitted(model.tokenizer, rows[0].texts, model.max_length)[0]))
        print(f"\n{a.shots} shots, {shorter} of them shortened. Above: the first prompt, and where the label goes.\n")
        (encoded, cut), dev = model.encode(texts), model.encode([e.texts for e in dev_texts])[0] if dev_texts else []
    ways = prompting.read_all(model, encoded, dev, task.targets(dev_texts, name), not a.neighbours, a.batch_size)
    results = {way: evaluate(scores.softmax(-1).numpy(), targets, data.labels) for way, scores in ways.items()}
    shown = task.baselines(replace(data, test=rows), quick=True) | results
    print("\n".join(task.table(shown, name, rows)[:len(shown) + 1]))
    print(f"\n{cut} of {len(rows)} rows cut to {model.max_length} tokens")
    if a.beams:
        print("\n".join(prompting.decoding_report(model, encoded, rows, a.beams, a.batch_size)))
    swap = {} if a.neighbours else checked(model, texts, a.batch_size)
    return write_out(a, name, rows, {"settings": {"readout": model.head.described, "max_length": model.max_length, "seed": s.seed,
                                                  "shots": a.shots, "neighbours": a.neighbours}, "results": results, **swap})


def vary(a, model, data, rows, s, name):
    """How far accuracy depends on the wording and on the order of the shots."""
    from .classify.label_text import prompting
    found = prompting.variance(model, data, rows, a.shots, s.seed, batch_size=a.batch_size)
    spreads = {way: prompting.spread(found, way) for way in ("as it is", "contextual", "batch")}
    print(f"\n{name} ({len(rows)} rows): accuracy over {len(found)} prompts\n{'':<22}    mean     min     max      sd")
    for way, values in spreads.items():
        print(f"{way:<22}" + "".join(f"{values[key]:8.3f}" for key in ("mean", "min", "max", "sd")))
    return write_out(a, name, rows, {"prompts": found, "spread": spreads})


if __name__ == "__main__":
    run(main)
