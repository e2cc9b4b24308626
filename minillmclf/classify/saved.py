"""A classifier in a folder: what `save` writes and `load` reads.

A classifier with a head becomes a folder for AutoModelForSequenceClassification, one with label
texts a folder for AutoModelForCausalLM, AutoModelForSeq2SeqLM or AutoModelForMaskedLM. Settings
that transformers does not have are in config.json under "minillmclf". After a tuning method that
leaves the base unchanged, only what was trained is saved (tuning/saved.py).
"""
import shlex
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from ..errors import InputError
from ..files import find_model, is_names, is_text, run_records, short
from ..models import built_in_fp32
from ..models.tensor_files import WEIGHTS, replacing_model, write_checkpoint
from ..tuning import ADAPTER_METHODS, peft
from ..tuning.frozen import frozen_matrices, half_modules
from ..tuning.quant_files import export_4bit, load_weights, open_checkpoint
from ..tuning.saved import ADAPTER, TUNED, load_peft, load_tuned, save_tuned
from .build import build_unfilled, check_different, read_options
from .head import POOLS, WRONG_POOLING
from .learned import FILE, read_learned, unite, write_learned

READING = {"text_column": (lambda v: is_names(v) and len(v) > 0, "a list of names"),
           "label_column?": (is_text, "a name"), "quoting?": (is_text, "a word")}
DEFAULTS = {"pool": None, "max_length": None, "readout": {}, "keep": "head", "windows": None,
            "calibration": None, "preference": {}}      # keys of "minillmclf" -> defaults
OPTIONAL_KEYS = ("thresholds", "reading", "ignored", "dtype")  # further keys, written only if set
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification")


def settings_of(model):
    """A classifier -> the settings that stand under "minillmclf" in config.json."""
    settings = {**DEFAULTS, "max_length": model.max_length}
    settings |= model.head.settings() | model.task.settings()
    settings |= {"reading": model.reading} if model.reading else {}
    settings |= {"dtype": "bf16"} if half_modules(model) else {}
    if "ignored" in model.backbone.config:              # keys of config.json, ignored on request
        settings["ignored"] = model.backbone.config["ignored"]
    return settings


def read_settings(config, where):
    """A config.json -> labels, settings as of `settings_of`, the arguments of from_backbone."""
    settings, problem = config.get("minillmclf", {}), config.get("problem_type")
    is_known = isinstance(settings, dict) and set(settings) <= {*DEFAULTS, *OPTIONAL_KEYS}
    if is_known:              # label options in "readout" must not replace what stands beside it
        readout, others = settings.get("readout", {}), DEFAULTS.keys() - {"readout"}
        is_known = isinstance(readout, dict) and others.isdisjoint(readout)
    if not is_known or settings.get("pool") not in (None, *POOLS, WRONG_POOLING):
        raise InputError(f"{where}: minillmclf = {settings!r:.80} is not known; pool is "
                         f"{', '.join(POOLS)}")
    if problem not in (None, *PROBLEM_TYPES):
        raise InputError(f"{where}: problem_type {short(problem)} is not supported; supported: "
                         f"{', '.join(PROBLEM_TYPES)}")
    multi_label = problem == PROBLEM_TYPES[1]
    if settings.get("thresholds") is not None and not multi_label:
        raise InputError(f"{where}: minillmclf has thresholds, which go with problem_type "
                         f"{PROBLEM_TYPES[1]}, not {problem!r}")
    settings = DEFAULTS | settings
    options = {key: settings[key] for key in ("max_length", "keep", "windows", "preference")}
    options |= {"pool": settings["pool"] or "family", "multi_label": multi_label}
    return labels_of(config, where), settings, options | settings["readout"]


def labels_of(config, where):
    """The label names of a config.json, in class order."""
    names = config.get("id2label")
    if names is None:
        names = {str(i): f"LABEL_{i}" for i in range(config.get("num_labels") or 2)}
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
        raise InputError(f"{where}: id2label should number its classes from 0 up, is "
                         f"{short(names, 100)}")
    labels = [str(names[str(i)]) for i in range(len(names))]
    check_different(labels, where)
    return labels


def stored_half(model, checkpoint):
    """The paths of the matrices that lie in bf16 in a file with --dtype bf16 -> a set."""
    table, stored = model.rename_table(), set()
    for name in checkpoint.files:
        if checkpoint.dtypes[name] == "BF16" and not table.tied_to(name):
            with suppress(KeyError):                    # no row: load_weights tells of it
                stored.add(table.path_of(name))
    return frozen_matrices(model, ()) & stored


@built_in_fp32()
def load(cls, path, base=None, device=None):
    """As Classifier.load. cls: Classifier."""
    folder, build = find_model(path), partial(cls.from_backbone, device=device)
    if (folder / TUNED).exists():
        return with_learned(load_tuned(folder, build, base), folder / ADAPTER)
    if (folder / peft.CONFIG).exists():
        return with_learned(load_peft(folder, build, base), folder)
    if base is not None:
        raise InputError(f"{path}: is a whole model, which has no base beside it: leave --base out")
    checkpoint = open_checkpoint(path)
    where = checkpoint.folder / "config.json"
    labels, settings, options = read_settings(checkpoint.config, where)
    try:
        model = build_unfilled(cls, checkpoint, labels, read_options(labels, options))
    except InputError as error:
        has_folder = str(checkpoint.folder) in str(error)
        raise InputError(str(error) if has_folder else f"{where}: {error}") from None
    last_layer = next((file for file, to in model.head.NAMES.items() if to.endswith(".out")), None)
    if last_layer and last_layer + ".weight" not in checkpoint:
        raise InputError(f"{path}: no classification head in it (no tensor {last_layer}.weight): "
                         f"fine-tune it first with python -m minillmclf.train --model "
                         f"{shlex.quote(str(path))}")
    if options["keep"] == "head" and not model.head.label_options:
        model.head.keep = model.tokenizer.kept_end      # "tail" if transformers cuts on the left
    half = stored_half(model, checkpoint) if settings.get("dtype") == "bf16" else ()
    model.report, _ = load_weights(model, checkpoint, model.rename_table(), half=half,
                                   device=device)
    return with_learned(model.restore_settings(settings, where).eval(), checkpoint.folder)


def with_learned(model, folder):
    """Add the hashes in a folder to what a classifier has learned, perhaps its base alone. -> it"""
    model.learned = unite(model.learned, read_learned(folder))
    return model


def save(model, path, in_run=False):
    """As Classifier.save."""
    is_adapter = model.tuning is not None and model.tuning["method"] in ADAPTER_METHODS
    if is_adapter and find_model(model.base).resolve() == Path(path).resolve():
        raise InputError(f"{path}: is the base of this adapter, which needs it: choose another "
                         "folder")
    files = (*WEIGHTS, FILE, "tokenizer.json", "tokenizer_config.json", peft.TENSORS,
             peft.OWN_FILE, f"{ADAPTER}/{FILE}")
    if (Path(path) / TUNED).exists():
        files += tuple(f"{ADAPTER}/{name}" for name in (peft.CONFIG, peft.TENSORS, peft.OWN_FILE))
    records = () if in_run else run_records(path)
    with replacing_model(path, ("config.json", peft.CONFIG, TUNED), files, records) as place:
        write_learned(place / ADAPTER if is_adapter else place, model.learned)
        (save_tuned if is_adapter else save_whole)(model, place)


def save_whole(model, path):
    """Write all parameters of a classifier, config.json and its tokenizer."""
    tensors, quantised = export_4bit(model, model.rename_table())
    label_texts = bool(model.head.label_options)
    kind = model.backbone.ARCHITECTURES["lm_head" if label_texts else "classifier"]
    config = {**model.config, "architectures": [model.head.ARCHITECTURE or kind],
              "id2label": {str(i): name for i, name in enumerate(model.labels)},
              "label2id": {name: i for i, name in enumerate(model.labels)},
              "minillmclf": model.settings(), "problem_type": model.task.PROBLEM_TYPE}
    for key in ("num_labels", *(["problem_type"] if label_texts else [])):
        config.pop(key, None)
    config |= {"quantization_config": quantised} if quantised else {}
    model.tokenizer.save(path, model.head.keep, None if label_texts else model.max_length)
    if quantised:                   # transformers computes in one dtype beside four bits: in fp32
        config["minillmclf"].pop("dtype", None)
    own_dtypes = [name for name, tensor in tensors.items()                 # parts of 4-bit layers
                  if ".weight." in name or tensor.dtype == torch.bfloat16 and not quantised]
    write_checkpoint(path, config, tensors, keep=own_dtypes)
