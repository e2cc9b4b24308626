"""From facts about data, machine and models to a command to start with.

A rule is a condition, flags and a reason; nothing is scored or learned. What a comparison has
measured on the same data counts more than any rule. The facts: facts.py and measured.py.
"""
import math
import shlex
from pathlib import Path

from ..cli.checks import unread_settings
from ..cli.settings import FEW, Settings, flag, is_switch, with_current_names

RULE_OF_THUMB = """\
the rule of thumb
  short texts, and speed: an encoder (DistilBERT, BERT, RoBERTa, DeBERTa); it reads a text once, \
in both directions
  long texts: an encoder for 8,192 tokens (ModernBERT); other languages: XLM-RoBERTa
  one model that writes and classifies: a decoder (GPT-2, LLaMA, Mistral, Qwen, Gemma), with \
--readout labels
  text to text, classes among it: an encoder-decoder (T5, FLAN-T5), with --readout labels"""
KIND_FOR = {"classify": "encoder", "generate": "decoder", "text-to-text": "encoder-decoder"}
WHY = {"encoder": "to classify, an encoder is fastest",
       "decoder": "a decoder writes and classifies",
       "encoder-decoder": "an encoder-decoder is made for text to text"}
UNBALANCED = 5             # above this ratio of largest to smallest class, weights are advised
FEW_ROWS_GAIN = {"contrastive": "0.686", "full": "0.627"}    # accuracy: tickets, MiniLM, 10 rows
FEW_CUT_SHARE = 0.05       # if a larger share of the texts is cut, something is advised


def is_near(row, best):
    """Is a row's dev score within one standard error of the best row's?

    The one-standard-error rule of Breiman et al. 1984 ("Classification and Regression Trees",
    3.4.3), with the standard error of a proportion. If the error is not known (log loss, or a
    comparison by an older version), only an equal score is near.
    """
    score, rows, error = best["dev"], best.get("dev_rows"), 0.0
    if rows and best["metric"] in ("accuracy", "macro_f1"):
        error = math.sqrt(score * (1 - score) / rows)
    return abs(score - row["dev"]) <= error


def measured_flags(comparison, row):
    """The settings of a comparison's row, as flags of python -m minillmclf.train."""
    given = comparison["settings"]                         # the flags of the comparison
    name, _, own = row["model"].partition("@")
    paths = [model.partition("@")[0] for model in given.get("models") or ()]
    path = next((path for path in paths if Path(path).name == name), name)
    flags = {"model": path, "method": row["method"]}
    flags |= {key: value for key, value in given.items()
              if key in vars(Settings()) and key not in ("out", "data", "seed")}
    if row["readout"] != "head":
        flags["readout"] = row["readout"]
    pairs = f"{own},{row['settings']}".split(",")
    of_row = with_current_names(dict(pair.split("=", 1) for pair in pairs if "=" in pair))
    unread = unread_settings(vars(Settings()) | flags | of_row)       # only other rows read these
    return {key: value for key, value in flags.items() if key not in unread} | of_row


def advise(facts):
    """-> (flags of python -m minillmclf.train, a dict; the reasons, a list)."""
    comparison = facts["comparison"]
    if not comparison:
        return advise_by_rules(facts)
    row, best = comparison["cheapest"], comparison["best"]
    if row is None:
        flags, why = advise_by_rules(facts)
        label = best["label"]
        return flags, [f"all that was trained is worse on dev than the best ({label})", *why]
    why = "it was the best of the comparison on dev"
    if row is not best:
        why = ("measured: the shortest training within one standard error of the best on dev "
               f"({best['label']})")
    flags = measured_flags(comparison, row)
    if facts["data"]["few"]:                   # no comparison chooses the settings for few rows
        flags["few_rows"] = "off"
    return flags, [why]


def advise_by_rules(facts):
    """The advice without a comparison -> the same as `advise`."""
    data, purpose = facts["data"], facts["purpose"]
    model, flags, why = first_fitting_model(facts)
    preference, texts, long = data["preference"], data["texts"], model["median"] > model["limit"]
    rows = max(1, facts["rows_at_once"] // Settings().max_windows)   # each of up to max_windows
    rules = [         # (does it apply?, flags that rule it out if they are set, flags, reason)
        (purpose != "classify", (),
         {"readout": "labels"}, "label texts leave it a model that writes"),
        (texts > 2 and not preference, ("readout",),
         {"readout": "labels"}, f"label texts take {texts} texts a row"),
        (preference, ("readout",),
         {"preference": "bradley-terry"}, "two answers to a prompt are compared"),
        (model["over"] > FEW_CUT_SHARE and not long, ("readout",),
         {"truncation_side": "middle"},
         f"{model['over']:.0%} of the texts are cut: keep both ends"),
        (long, ("readout", "preference"), {"windows": "mean", "micro_batch_size": rows},
         "most texts are too long: windows read them whole, a few rows at a time"),
        (data["imbalance"] > UNBALANCED, (),
         {"class_weights": "balanced", "metric": "macro_f1"},
         f"one class has {data['imbalance']:.1f} times the rows of another"),
        (data["rows_per_class"] < FEW and flags["method"] == "full",
         ("readout", "preference", "windows", "micro_batch_size"), {"few_rows": "on"},
         f"{data['rows_per_class']:.0f} rows a class are few: on 10 of tickets MiniLM had "
         "{contrastive} by contrastive training, {full} by plain (lessons/measurements/few_rows.md)"
         .format(**FEW_ROWS_GAIN))]
    for applies, unless, more, reason in rules:
        if applies and not set(unless) & {*flags, *facts["asked"]}:
            flags |= more
            why.append(reason)
    return flags, why


def first_fitting_model(facts):
    """The first model of the right kind that fits into memory -> (its facts, flags with the first
    method that fits, reasons)."""
    kind = KIND_FOR[facts["purpose"]]
    models = [model for model in facts["models"] if model["kind"] == kind]
    why = [WHY[kind] if models else f"there is no {kind} among the models"]
    models = models or facts["models"]
    if facts["machine"]["room"] is None:
        why.append("how much memory is free is not known here")
        return models[0], {"model": models[0]["name"], "method": "full"}, why
    for model in models:
        known = {method["method"]: method for method in model["methods"]}
        for method in ("full", "lora", "qlora"):
            if known[method].get("fits"):
                why.append("training in full fits" if method == "full" else
                           f"{method} fits, {known['full'].get('reason', 'full does not')}")
                return model, {"model": model["name"], "method": method}, why
    why.append("nothing fits as it is: this takes least")
    return models[0], {"model": models[0]["name"], "method": "qlora", "micro_batch_size": 1,
                       "gradient_checkpointing": "on"}, why


def command_of(flags):
    """The command line of these flags."""
    words = [flag(name) if value == "on" and is_switch(name) else
             f"{flag(name)} {shlex.quote(str(value))}" for name, value in flags.items()]
    return " ".join(["python -m minillmclf.train", *words])
