"""python -m minillmclf.choose: which kind of model, and which way to adapt it, for these data on this machine?

  python -m minillmclf.choose --data my.csv
  python -m minillmclf.choose --data my.csv --models mini-bert path/to/llama --batch-size 16 --comparison runs/compare

Prints the rule of thumb; what the data say to it (rows, classes, lengths in each model's own tokens); what this machine says
(memory to train each model by each method, on texts as long as the 95th percentile); what python -m minillmclf.compare has
measured on these data, if it has; and a command to start with. It trains nothing. The advice is advice.py: a few rules, each
with its reason. --json prints all of it for programs.
"""
import argparse
import json
import math
import os
from collections import Counter
from pathlib import Path

from .advice import FEW_CUT, RULE, UNBALANCED, WANTED, advise, command_of, near
from ..cli.parser import Parser, run
from ..errors import InputError
from ..files import CHECKPOINTS, check_fields, find_model, read_json
from ..cli.settings import Settings, add_settings, read_settings, refuse_several
from ..text.doctor import SPLITS, unknown_line, unknown_share

ASKED = ("data", "text_column", "label_column", "quoting", "batch_size", "micro_batch_size",
         "max_length")
USABLE = 0.8               # of the free memory: an estimate leaves out what passes by (memory.py)


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.choose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", nargs="+", metavar="MODEL", help="folders or shipped names [all in checkpoints/]")
    p.add_argument("--purpose", choices=list(WANTED), default="classify", help="what the model is for, besides [classify]")
    p.add_argument("--comparison", help="folder of a comparison [the newest in runs/ that has these data]")
    p.add_argument("--json", action="store_true", help="print all facts and the advice as JSON")
    return add_settings(p, ASKED).parse_args(arguments)


# ----------------------------------------------------------------------------------------------------------- facts

def data_facts(data):
    """Rows, classes and texts of a Dataset, all that no tokenizer is needed for -> dict."""
    rows = Counter(example.label for example in data.train)
    rarest = min(rows, key=rows.get)
    return {"rows": {name: len(getattr(data, name)) for name in ("train", "dev", "test")}, "labels": data.labels,
            "rarest": rarest, "rarest_rows": rows[rarest], "imbalance": max(rows.values()) / rows[rarest],
            "texts": len(data.columns), "preference": len(data.columns) == 3 and {"a", "b", "tie"} == set(data.labels)}


def machine_facts():
    """Cores, and memory in bytes -> dict; None where it is not known. room: what training may take of it."""
    import torch
    memory = {"total": None, "free": None}
    if Path("/proc/meminfo").exists():
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        memory = {"total": 1024 * int(lines["MemTotal"].split()[0]), "free": 1024 * int(lines["MemAvailable"].split()[0])}
    gpu = None
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        gpu = {"name": torch.cuda.get_device_name(), "total": total, "free": free}
    return {"cores": os.cpu_count(), "memory": memory, "gpu": gpu, "room": (gpu or memory)["free"]}


def percentile(numbers, percent):
    """Nearest rank: the smallest that `percent` of the numbers do not exceed."""
    return sorted(numbers)[math.ceil(percent * len(numbers) / 100) - 1]


def at_once(s):
    """Texts that a step holds on the device at a time."""
    return min(s.micro_batch_size or s.batch_size, s.batch_size)


def model_facts(name, data, s, machine):
    """Lengths in this model's tokens, and what each method takes -> dict. A model that memory does not hold is not loaded:
    its weights are counted all the same, but what a step keeps of a text is not known then."""
    from ..classify.classifier import Classifier
    from ..cli.memory import METHODS, step_bytes, training_memory
    from ..models import load_backbone
    from ..tuning.quant_files import open_checkpoint
    folder = find_model(name)
    empty = Classifier.empty(open_checkpoint(folder), data.labels, max_length=s.max_length or None)
    splits = {name: [example.texts for example in getattr(data, name)] for name in SPLITS}
    rows = [texts for split in splits.values() for texts in split]
    lengths = [empty.head.length(empty.tokenizer, texts) for texts in rows]
    weights = 4 * sum(p.numel() for p in empty.parameters())
    free, room = machine["memory"]["free"], machine["room"]
    loaded = free is None or weights <= free
    body, head = (load_backbone(folder), empty.head.to_empty(device="cpu")) if loaded else (empty.backbone, empty.head)
    length = min(percentile(lengths, 95), empty.max_length)
    found = {"name": str(name), "kind": body.KIND, "median": percentile(lengths, 50), "p95": percentile(lengths, 95),
             "limit": empty.max_length, "over": sum(n > empty.max_length for n in lengths) / len(lengths), "length": length,
             "unknown": {name: unknown_share(empty.tokenizer, split) for name, split in splits.items()},
             "label_tokens": sum(len(empty.tokenizer.ids(label)) for label in data.labels), "methods": []}
    for method in METHODS:
        try:
            trained, always, text = training_memory(body, head, method, length)
        except InputError as error:
            found["methods"].append({"method": method, "reason": str(error).partition(":")[0]})
            continue
        except NotImplementedError:                        # prefix runs the model, which "meta" cannot
            found["methods"].append({"method": method, "reason": "not known: the model does not fit into memory"})
            continue
        needed = step_bytes(always, trained, at_once(s) * text, at_once(s) < s.batch_size)
        fits = None if room is None else needed <= USABLE * room and (loaded or None)
        found["methods"].append({"method": method, "trainable": trained, "bytes": needed, "at_least": not loaded,
                                 "fits": fits})
    return found


def all_models(names, data, s, machine):
    """model_facts of every model; of those that only lie in checkpoints/, what cannot be is left out -> (facts, reasons)."""
    found, left_out = [], []
    for name in names or sorted(path.parent.name for path in CHECKPOINTS.glob("*/config.json")):
        try:
            found.append(model_facts(name, data, s, machine))
        except InputError as error:
            if names:
                raise
            left_out.append(f"{name}: left out: {error}")
    if not found:
        raise InputError("no model to choose from: name one with --models "
                         f"({CHECKPOINTS / 'README.md'} says how to bring one)")
    return found, left_out


# ------------------------------------------------------------------------------------------------------ a comparison

def same_data(folder, data):
    """Was this comparison made of the same data?"""
    path = folder / "settings.json"
    made = check_fields(read_json(path), MADE, path).get("data", Settings().data)
    return made == data or Path(made).resolve() == Path(data).resolve()


def is_metric(value):
    from ..training.metrics import METRICS                # which needs numpy: --help does not wait for it
    return isinstance(value, str) and value in METRICS


TEXT = (lambda v: isinstance(v, str), "a text")
NUMBER = (lambda v: v is None or type(v) in (int, float), "a number, or null")
SPREAD = (lambda v: isinstance(v, dict) and all(type(v.get(name)) in (int, float) for name in (
    "mean", "low", "high")), "an object with mean, low and high")
ROW = {**dict.fromkeys(("label", "model", "method", "readout", "split", "settings"), TEXT),
       "score": SPREAD,
       "metric": (is_metric, "a metric"),
       "size": (lambda v: v == "all" or type(v) is int, "a number, or all"), "dev_rows?": NUMBER,
       "dev": (lambda v: type(v) in (int, float), "a number"),
       "train_seconds": NUMBER, "ms_per_text": NUMBER, "best": (lambda v: type(v) is bool, "true or false")}
MADE = {"models?": (lambda v: v is None or isinstance(v, list) and all(
            isinstance(name, str) for name in v), "a list of names"),
        **{f"{name}?": (lambda v, kind=type(default): type(v) is kind or
                        kind is float and type(v) is int, "as train takes it")
           for name, default in vars(Settings()).items() if name != "lr"}}


def comparison_facts(asked, data):
    """The numbers of a comparison at its largest size -> dict, or None where none is asked and none is found in runs/.

    best: with the best dev score; cheapest: with the shortest training of those trained rows whose dev score is near it
    (advice.near); fastest: of all trained rows, with the least time for a text. Test scores are reported and choose nothing.
    """
    from ..training.metrics import METRICS
    if asked and not same_data(Path(asked), data):
        raise InputError(f"--comparison {asked}: was made of other data than {data}: name those with --data, or leave it out")
    found = [Path(asked)] if asked else sorted(
        (table.parent for table in Path("runs").glob("*/table.json") if (table.parent / "settings.json").exists()
         and same_data(table.parent, data)), key=lambda folder: (folder / "table.json").stat().st_mtime)
    if not found:
        return None
    path = found[-1] / "table.json"
    rows = read_json(path).get("rows")
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: has no rows: make it with python -m minillmclf.compare")
    for row in rows:
        check_fields(row, ROW, path)
    if not any(row["best"] for row in rows):
        raise InputError(f"{path}: has no best row: make it with python -m minillmclf.compare")
    sizes = {row["size"] for row in rows}
    rows = [row for row in rows if row["size"] == ("all" if "all" in sizes else max(sizes))]
    trained = [row for row in rows if row["method"] and row["train_seconds"] is not None]
    best = max(rows, key=lambda row: METRICS[row["metric"]] * row["dev"])
    return {"folder": str(found[-1]), "settings": read_json(found[-1] / "settings.json"),
            "best": best,
            "cheapest": min((row for row in trained if near(row, best)), key=lambda row: row["train_seconds"], default=None),
            "fastest": min((row for row in trained if row["ms_per_text"] is not None), key=lambda row: row["ms_per_text"],
                           default=None)}


# --------------------------------------------------------------------------------------------------------- the page

def data_lines(data, models):
    """What the data say."""
    rows, many = data["rows"], data["texts"]
    triple = "a preference triple a row" if data["preference"] else f"{many} texts a row"
    texts = {1: "one text a row", 2: "a pair of texts a row"}.get(many, triple)
    remedy = ": --class-weights balanced" if data["imbalance"] > UNBALANCED else ""
    lines = ["what the data say",
             f"  {sum(rows.values()):,} rows ({rows['train']:,} train, {rows['dev']:,} dev, {rows['test']:,} test), {texts}, "
             f"{len(data['labels'])} classes",
             f"  the rarest class, {data['rarest']!r:.40}, has {data['rarest_rows']:,} train rows, "
             f"the largest {data['imbalance']:.1f} times as many{remedy}",
             f"  {'tokens':28} {'kind':16} {'median':>8} {'95 %':>8} {'it takes':>9} {'longer':>7}   "
             "classes x tokens of a label text"]
    classes = len(data["labels"])
    for m in models:
        lines.append(f"  {m['name'][-28:]:28} {m['kind']:16} {m['median']:>8,} {m['p95']:>8,} {m['limit']:>9,} "
                     f"{m['over']:>7.1%}   {classes} x {m['label_tokens'] / classes:.1f} = {m['label_tokens']}")
    lines += [f"  {m['name'][-28:]}: {line}" for m in models for line in unknown_line(m["unknown"])]
    if any(m["over"] > FEW_CUT for m in models):
        lines.append("  longer texts are cut: --windows mean reads them whole, --keep head+tail keeps both ends")
    return lines


def machine_lines(facts):
    """What the machine says, and the table model x method."""
    from ..cli.memory import size
    machine, amount = facts["machine"], (lambda count: "not known" if count is None else size(count))
    gpu, memory = machine["gpu"], machine["memory"]
    card = f"GPU {gpu['name']}, free {size(gpu['free'])} of {size(gpu['total'])}" if gpu else "no GPU"
    lines = ["what this machine says",
             f"  {machine['cores']} cores; memory {amount(memory['total'])}, free {amount(memory['free'])}; {card}",
             f"  to train in fp32 with AdamW, {facts['rows_at_once']} texts at a time (NO: takes more than {USABLE:.0%} of "
             "what is free)",
             f"  {'model':28} {'method':10} {'tokens a text':>13} {'parameters that learn':>22} {'memory':>12}   fits"]
    for m in facts["models"]:
        for way in m["methods"]:
            start = f"  {m['name'][-28:]:28} {way['method']:10} {m['length']:>13,}"
            if "reason" in way:
                lines.append(f"{start} {way['reason']}"[:120])
                continue
            fits = {True: "yes", False: "NO", None: "not known"}[way["fits"]]
            needed = "> " * way["at_least"] + size(way["bytes"])
            lines.append(f"{start} {way['trainable']:>22,} {needed:>12}   {fits}")
    return lines


def comparison_lines(found):
    """The numbers of the comparison that decide."""
    if not found:
        return ["no comparison of these data in runs/: python -m minillmclf.compare measures"]
    best = found["best"]
    metric = f"{best['split']} {best['metric'].replace('_', ' ')}"
    lines = [f"what {found['folder']} has measured (chosen by dev; {metric} with its interval, and dev)"]
    for what, key in (("best on dev", "best"), ("shortest training near the best", "cheapest"), ("fastest", "fastest")):
        row = found[key]
        if row:
            score, costs = row["score"], {"trained in {:,.0f} s": row["train_seconds"], "{:.2f} ms a text": row["ms_per_text"]}
            cost = [text.format(number) for text, number in costs.items() if number is not None]
            lines += [f"  {what + ':':34} {' '.join(filter(None, [row['label'], row['settings']]))}",
                      f"  {'':34} {score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}], "
                      + ", ".join([f"dev {row['dev']:.3f}", *cost])]
    return lines


def main(arguments=None):
    a = parse(arguments)
    given = {key: value for key, value in vars(a).items() if key in ASKED}
    refuse_several(read_settings(given), "choose")
    s = read_settings({**given, "readout": "labels"})                                  # takes any number of texts
    for name in a.models or ():
        find_model(name)
    from ..train import load_dataset
    data, comparison = load_dataset(s), comparison_facts(a.comparison, s.data)
    machine = machine_facts()
    models, left_out = all_models(a.models, data, s, machine)
    facts = {"purpose": a.purpose, "rows_at_once": at_once(s), "data": data_facts(data), "machine": machine, "models": models,
             "left_out": left_out, "comparison": comparison}
    flags, why = advise(facts)
    flags |= {"data": s.data} | {key: value for key, value in given.items() if key not in flags}
    if a.json:
        facts["advice"] = {"flags": flags, "why": why, "command": command_of(flags)}
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    pages = [RULE, [*data_lines(facts["data"], models), *(f"  {line}"[:120] for line in left_out)], machine_lines(facts),
             comparison_lines(comparison), ["start with: " + command_of(flags), f"  because {'; '.join(why)}"]]
    print("\n\n".join("\n".join(page) for page in pages))
    return 0


if __name__ == "__main__":
    run(main)
