"""From settings to a classifier: what train, evaluate, compare and inspect build, each in the same way."""
import re

from ..errors import InputError
from ..files import short

HOW = ("quoting",)        # settings of how files are read, beside the names of columns


def build(s, labels, fields=("text",)):
    """The classifier that the settings describe, on its device, with the method's weights trainable. fields: the names of
    a row's texts in a template."""
    import torch

    from ..classify.classifier import Classifier
    from ..tuning import tune
    if s.method == "qlora" and s.weights != "pretrained":
        raise InputError("--method qlora --weights random: there is nothing to learn in random weights that are frozen")
    model = Classifier.from_backbone(
        s.model, labels, **options_of(s, fields), seed=s.seed, pretrained=s.weights == "pretrained",
        quantise=s.quantise if s.method == "qlora" else None)
    trainable, total = tune(model, recipe_of(s), s.seed)
    device = device_of(s)
    try:
        torch.zeros(1, device=device).item()               # fails where a device is only a name
        return model.to(device), trainable, total
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(f"--device {s.device}: {str(error).splitlines()[0]}") from None


def device_of(s):
    """The name of the device that the settings ask for."""
    import torch
    return s.device if s.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def reading_of(s, data):
    """How the rows of a run are read, for its model to remember (Classifier.read_as)."""
    more = {name: getattr(s, name) for name in HOW if hasattr(s, name)}
    label = s.label_column or data.label_column
    return {"text_column": list(data.columns), "label_column": label, **more}


def text_columns(model, asked):
    """The text columns that a model is to read of a file: those of --text-column (`asked`), else
    those that it was trained on; None, the usual ones, where it does not know. InputError for
    another number of them."""
    known = model.reading["text_column"] if model.reading else None
    names = [name.strip() for name in asked.split(",")] if asked else known
    if known and len(names) != len(known):
        raise InputError(f"--text-column {short(asked)}: names {len(names)}, and this model was "
                         f"trained on {len(known)} text(s) a row ({', '.join(known)}): name all")
    fields = model.head.described.get("fields", ["text"])
    return names or (None if fields in (["text"], ["text_a", "text_b"]) else fields)


def how_to_read(model, flags):
    """How else a file is read, as flags say or the model remembers -> keywords for text.data."""
    known = model.reading or {}
    said = {name: getattr(flags, name, None) or known.get(name) for name in HOW}
    return {name: value for name, value in said.items() if value}


def options_of(s, fields=("text",)):
    """The part of the settings that says what the modules of a classifier are, as in
    classify.build.Options. fields: the names of a row's texts in a template."""
    found = {"readout": s.readout, "pool": s.pool, "max_length": s.max_length or None,
             "keep": s.keep, "preference": {"kind": s.preference, "swap": s.swap},
             "multi_label": s.several_labels == "on"}
    if s.windows != "none":
        found["windows"] = {"pool": s.windows, "overlap": s.overlap, "max_windows": s.max_windows,
                            "max_document": s.max_document}
    if s.readout == "labels":
        end = "eos" if (s.objective, s.end) == ("completion", "auto") else s.end
        found |= {"template": s.template, "label_texts": s.label_texts, "fields": list(fields),
                  "instruction": s.instruction, "end": end, "score_by": s.score_by}
    return found


def task_kind(s):
    """The class of the task that the settings describe, before the data are read."""
    from ..classify.multilabel import MultiLabel
    from ..classify.preference import Preference
    from ..classify.task import SingleLabel
    if s.several_labels == "on":
        return MultiLabel
    compared = s.preference != "none" or s.swap != "none" and s.readout == "labels"
    return Preference if compared else SingleLabel


def task_of(settings, data):
    """The task of a run, without its model. settings: a dict, as in its run.json."""
    from ..classify import build as modules
    described = {"fields": data.columns} if settings.get("readout") == "labels" else {}
    preference = {"kind": settings.get("preference"), "swap": settings.get("swap")}
    return modules.task_of(data.labels, described, preference, settings.get("several_labels") == "on")


def recipe_of(s):
    """The part of the settings that says how to tune, as tuning.tune has it."""
    from ..tuning import METHODS
    targets = s.targets.split(",") if re.fullmatch(r"[\w.]+(,[\w.]+)*", s.targets) else s.targets or None
    numbers = {"rank": s.rank, "alpha": s.alpha, "dropout": s.adapter_dropout, "use_rslora": s.rank_stabilised == "on",
               "targets": s.targets if s.targets == "all-linear" else targets, "bias": s.bias, "quantise": s.quantise,
               "size": s.adapter_size, "tokens": s.virtual_tokens, "projection": s.projection == "on"}
    options = METHODS[s.method].options if s.method in METHODS else ()            # none: last-3
    return {"method": s.method, **{name: numbers[name] for name in options}}


def encode(model, examples, training=False):
    """One split for the loop -> Rows, how many texts were cut. training: as for model.encode."""
    from ..training.plan import Rows
    encoded, shortened = model.encode([e.texts for e in examples], training)
    return Rows(encoded, model.task.targets(examples)), shortened
