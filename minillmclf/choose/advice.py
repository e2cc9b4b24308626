"""From facts about data, machine and models to a command to start with: python -m minillmclf.choose gathers the facts.

Each rule is one `if` with its reason, in the order of their weight; nothing is scored or learned. What was measured on the
same data goes before any rule of thumb.
"""
import math
import shlex
from pathlib import Path

from ..cli.settings import Settings

RULE = ("the rule of thumb",
        "  short texts, and speed: an encoder (BERT, RoBERTa, DeBERTa); it reads a text once, in both directions",
        "  one model that writes and classifies: a decoder (GPT-2, LLaMA, Mistral, Gemma), with --readout labels",
        "  text to text, classes among it: an encoder-decoder (T5, FLAN-T5), with --readout labels")
WANTED = {"classify": "encoder", "generate": "decoder", "text-to-text": "encoder-decoder"}
CONSTANT = ("majority class", "class frequencies")         # baselines that do not look at the text
UNBALANCED = 5             # largest / smallest class
FEW_CUT = 0.05             # share of texts that are cut: what is more is spoken of


def near(row, best):
    """Is a row's dev score within one standard error of that of the best row? Test scores choose nothing.

    The one-standard-error rule of Breiman et al. 1984 ("Classification and Regression Trees", 3.4.3); the error is that of
    a share of dev rows. Where it is not known (log loss, a comparison of an older version) only an equal score is near.
    """
    score, rows = best["dev"], best.get("dev_rows")
    error = math.sqrt(score * (1 - score) / rows) if rows and best["metric"] in ("accuracy", "macro_f1") else 0.0
    return abs(score - row["dev"]) <= error


def measured_flags(comparison, row):
    """The settings of one row, as flags of python -m minillmclf.train -> {name: value}."""
    asked, own = comparison["settings"], row["model"].partition("@")[2]
    shared = {key: value for key, value in asked.items() if key in vars(Settings()) and key not in ("out", "data", "seed")}
    named = [text.partition("@")[0] for text in asked.get("models", [])]
    model = row["model"].partition("@")[0]
    pairs = [pair.split("=", 1) for pair in (*own.split(","), *row["settings"].split(",")) if "=" in pair]
    return {"model": next((name for name in named if Path(name).name == model), model), "method": row["method"],
            **shared, **({"readout": row["readout"]} if row["readout"] != "head" else {}), **dict(pairs)}


def advise(facts):
    """Facts -> (flags of python -m minillmclf.train, reasons), a dict and a list. What was measured goes before any rule."""
    data, comparison = facts["data"], facts["comparison"]
    if comparison and comparison["cheapest"]:
        row = comparison["cheapest"]
        why = "it was the best of the comparison on dev" if row is comparison["best"] else "measured: the shortest training " \
            f"within one standard error of the best on dev ({comparison['best']['label']})"
        return measured_flags(comparison, row), [why]
    wanted = WANTED[facts["purpose"]]
    models = [model for model in facts["models"] if model["kind"] == wanted]
    why = [{"encoder": "to classify, an encoder is fastest", "decoder": "a decoder writes and classifies",
            "encoder-decoder": "an encoder-decoder is made for text to text"}[wanted] if models else
           f"there is no {wanted} among the models"]
    if comparison:
        why.insert(0, f"all that was trained is worse on dev than the best ({comparison['best']['label']})")
    models = models or facts["models"]
    fitting = [(model, way["method"]) for model in models for method in ("full", "lora", "qlora")
               for way in model["methods"] if way["method"] == method and way.get("fits")]
    if facts["machine"]["room"] is None:
        model, flags = models[0], {"method": "full"}
        why.append("how much memory is free is not known here")
    elif fitting:
        model, flags = fitting[0][0], {"method": fitting[0][1]}
        why.append("training in full fits" if flags["method"] == "full" else f"{flags['method']} fits, full does not")
    else:
        model, flags = models[0], {"method": "qlora", "micro_batch_size": 1, "checkpointing": "on"}
        why.append("nothing fits as it is: this takes least")
    flags = {"model": model["name"], **flags}
    if facts["purpose"] != "classify" or data["texts"] > 2 and not data["preference"]:
        flags["readout"] = "labels"
        why.append("label texts leave it a model that writes" if facts["purpose"] != "classify" else
                   f"label texts take {data['texts']} texts a row")
    if "readout" not in flags and data["preference"]:
        flags["preference"] = "bradley-terry"
        why.append("two answers to a prompt are compared")
    if "readout" not in flags and model["over"] > FEW_CUT and model["median"] <= model["limit"]:
        flags["keep"] = "head+tail"
        why.append(f"{model['over']:.0%} of the texts are cut: keep both ends")
    if {"readout", "preference"}.isdisjoint(flags) and model["median"] > model["limit"]:
        flags |= {"windows": "mean", "micro_batch_size": max(1, facts["rows_at_once"] // Settings().max_windows)}
        why.append("most texts are too long: windows read them whole, a few rows at a time")
    if data["imbalance"] > UNBALANCED:
        flags |= {"class_weights": "balanced", "metric": "macro_f1"}
        why.append(f"one class has {data['imbalance']:.1f} times the rows of another")
    return flags, why


def second_thoughts(record):
    """A finished run's record -> a line on what it does not beat and what to try, or []."""
    from ..training.metrics import gain
    from ..training.rates import default_lr
    given, results = Settings(**record["settings"]), record["results"]
    *plain, own = results
    metric = "micro_f1" if given.several_labels == "on" else "accuracy"
    metric = given.metric if given.metric != "ece" else metric
    lost = [name for name in plain if gain(metric, results[own], results[name]) < 0
            or name in CONSTANT and gain(metric, results[own], results[name]) == 0]
    if not lost:
        return []
    (usual, why), tries = default_lr(given), []
    if given.weights == "random":
        tries.append("--weights pretrained")
    if given.lr == usual:
        tries.append(f"another --lr ({3 * usual:.2g} or {usual / 3:.2g}; the usual is {usual:g})")
    else:
        tries.append(f"--lr {usual:g}, the usual one of {why}")
    if record["best_epoch"] >= given.epochs:
        tries.append(f"--epochs {2 * given.epochs}, for the last was the best")
    if given.method != "full":
        tries.append("--method full")
    tries.append("another --model (python -m minillmclf.choose looks at the data)")
    numbers = ", ".join(f"{name} {results[name][metric]:.3f}" for name in lost)
    score = f"{record['split']} {metric.replace('_', ' ')} {results[own][metric]:.3f}"
    return [f"WARNING: {score} is not better than {numbers}: try {'; '.join(tries)}"]


def command_of(flags):
    """The command line that the flags make."""
    given = (f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in flags.items())
    return f"python -m minillmclf.train {' '.join(given)}"
