"""A tuned classifier on disk, where only what was trained is kept: OUT/tuned.json and OUT/adapter/.

tuned.json names the base, its precision, the tuning config (key "recipe") and the classes. adapter/
holds what was trained: LoRA, DoRA, prefix and prompt in PEFT's layout (peft/); bottlenecks, which
PEFT does not know, under our own names. Loading either compares the base's files with those at the
time of training: on another base an adapter gives wrong answers, without an error.
"""
import re
from pathlib import Path

import torch

from ..errors import InputError
from ..files import check_fields, find_model, is_names, is_text, read_json, short, write_json
from ..models.config import ignoring_config_keys
from ..models.tensor_files import write_tensors
from . import ADAPTER_METHODS, BOTTLENECK_METHODS, LORA_METHODS, METHODS, lora, peft, set_trainable
from . import trainable_names
from .base import base_record, changed_files, find_base, hash_files
from .frozen import DTYPES
from .linear4bit import dequantise_linears
from .peft.config import is_positive, read_config
from .peft.files import read_floats
from .peft.names import raise_faults
from .quant import CODES

TUNED, ADAPTER = "tuned.json", "adapter"
TENSORS = Path(ADAPTER) / peft.TENSORS
RENAMED_KEYS = {"rank_stabilised": "use_rslora"}    # keys of earlier versions' tuning configs


def is_object(value):
    return isinstance(value, dict)


def is_word(value):
    return is_text(value) and len(value) < 100


def is_tuning(value):
    return (is_object(value) and value.get("method") in [*ADAPTER_METHODS]
            and is_names(value.get("saved", []))
            and value.get("bias", "none") in ("none", "all", "lora_only")
            and (value["method"] not in BOTTLENECK_METHODS or is_positive(value.get("size"))))


def none_or(test):
    return lambda value: value is None or test(value)


# A classifier in files, tables for check_fields: key -> (test, what it should be); a key with "?"
# may be missing. Details are checked where they are used. The fingerprint is of `hash_files`.
OBJECT = (none_or(is_object), "an object")
SETTINGS = {
    "labels?": (is_names, "a list of names"), "pool?": (none_or(is_word), "a word"),
    "keep?": (is_word, "a word"), "max_length?": (none_or(is_positive), "a whole number from 1"),
    "thresholds?": (none_or(lambda v: isinstance(v, list)), "a list of numbers"),
    "dtype?": (lambda v: v in DTYPES, " or ".join(DTYPES)), "readout?": OBJECT, "windows?": OBJECT,
    "calibration?": OBJECT, "preference?": OBJECT,
    "fingerprint?": (lambda v: is_text(v) or is_object(v), "an object of sums")}
RECORD = SETTINGS | {
    "labels": SETTINGS["labels?"], "recipe": (is_tuning, "a method and its numbers"),
    "base": (lambda v: is_text(v) and v, "a folder's name"), "base_path?": (is_text, "a path"),
    "fingerprint": SETTINGS["fingerprint?"],
    "quantise": (lambda v: v in [None, *CODES], f"{', '.join(CODES)} or null")}


def base_of(folder):
    """The folder of the base of a tuned run or an adapter; None for a complete model's folder."""
    if (folder / TUNED).exists():
        record = check_fields(read_json(folder / TUNED), RECORD, folder / TUNED)
        return find_base([record["base"], record.get("base_path")], folder)
    if (folder / peft.CONFIG).exists():
        config = read_json(folder / peft.CONFIG)
        return find_base([str(config.get("base_model_name_or_path"))], folder)
    return None


def stored_method(folder):
    """The tuning method of what lies in a folder, "full" for a complete model; None: no model."""
    if (folder / TUNED).exists():
        return check_fields(read_json(folder / TUNED), RECORD, folder / TUNED)["recipe"]["method"]
    if (folder / peft.CONFIG).exists():
        record, faults = read_config(read_json(folder / peft.CONFIG))
        raise_faults(folder, faults)
        return peft.method_of(record)
    return "full" if (folder / "config.json").exists() else None


def save_tuned(model, folder):
    """Write the trained parameters of a classifier and tuned.json, without the base."""
    folder, base, tuning = Path(folder), find_model(model.base), model.tuning
    sums = hash_files(base)
    if tuning["method"] in BOTTLENECK_METHODS:
        names = trainable_names(model, tuning["method"])
        tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()
                   if name in names}
        write_tensors(folder / TENSORS, tensors, {"format": "pt"})
    else:
        peft.write_adapter(folder / ADAPTER, model, str(base.resolve()),
                           tuning.get("bias", "none"), tuning.get("saved", []), sums)
    record = {**base_record(base, folder), "quantise": model.quantise, "recipe": tuning,
              "fingerprint": sums, "labels": model.labels, **model.settings()}
    write_json(folder / TUNED, record)


def check_base(base, saved, where):
    """InputError unless a base's files are as when `saved` was taken of them. where: for errors."""
    differing = changed_files(find_model(base), saved)
    if differing:
        raise InputError(f"{where}: the base {short(base, 200)} has changed since this was trained "
                         f"on it ({short(differing, 200)[1:-1]}): bring back the files that it "
                         "had, name them with --base FOLDER, or train again")


def load_tuned(folder, build, base=None):
    """The classifier of a folder that `save_tuned` wrote, in eval mode.

    build: Classifier.from_backbone; base: where its base is now, if not where tuned.json says.
    """
    folder, where = Path(folder), Path(folder) / TUNED
    record = check_fields(read_json(where), RECORD, where)
    tuning = {RENAMED_KEYS.get(key, key): value for key, value in record["recipe"].items()}
    method = tuning["method"]
    base = find_base([record["base"], record.get("base_path")], folder, base)
    check_base(base, record["fingerprint"], where)
    if method in BOTTLENECK_METHODS:
        tensors = read_bottlenecks(folder / TENSORS, tuning["size"])
    else:
        adapter, tensors = peft.read_adapter(folder / ADAPTER)
        found = peft.method_of(adapter)
        if found != method.replace("qlora", "lora"):
            raise InputError(f"{where}: tells of {method}, but {ADAPTER}/ holds {found}: save the "
                             "run again")
    model = build_from(build, base, record["labels"], record, where, quantise=record["quantise"],
                       method=method)
    if method in BOTTLENECK_METHODS:
        METHODS[method].attach(model, tuning, seed=0)
        fill_bottlenecks(model, method, tensors, folder / TENSORS)
        model.tuning = tuning
    else:
        peft.apply_adapter(model, adapter, tensors, folder / ADAPTER)
        model.tuning |= tuning
    return model.eval()


def build_from(build, base, labels, settings, where, **more):
    """A classifier with these `settings` (Classifier.settings), read from the file `where`."""
    try:
        with ignoring_config_keys(settings.get("ignored") or []):
            model = build(base, labels, pool=settings.get("pool") or "family",
                          max_length=settings.get("max_length"), keep=settings.get("keep", "head"),
                          windows=settings.get("windows"), preference=settings.get("preference"),
                          multi_label=settings.get("thresholds") is not None,
                          dtype=settings.get("dtype", "fp32"),
                          **more, **settings.get("readout") or {})
    except TypeError as error:
        raise InputError(f"{where}: {error}: save it again") from None
    return model.restore_settings(settings, where)


def read_bottlenecks(path, size):
    """The tensors of bottlenecks and head; InputError unless the bottlenecks have this width."""
    tensors = read_floats(path)
    sizes = {len(tensor) for name, tensor in tensors.items()
             if name.endswith(".down.weight") and tensor.dim() == 2}
    if sizes != {size}:
        raise InputError(f"{path}: holds bottlenecks of width "
                         f"{short(sorted(sizes))[1:-1] or 'none'}, {TUNED} says {size}: save the "
                         "run again")
    return tensors


@torch.no_grad()
def fill_bottlenecks(model, method, tensors, path):
    """Fill in bottlenecks and head; InputError unless the file has exactly their tensors."""
    names = trainable_names(model, method)
    parameters = {name: p for name, p in model.named_parameters() if name in names}
    found, expected = ({name: tuple(t.shape) for name, t in each.items()}
                       for each in (tensors, parameters))
    raise_faults(path, [f"{short(name, 200)} is {found.get(name, 'missing')}, should be "
                        f"{expected.get(name, 'missing')}" for name in sorted({*found, *expected})
                        if found.get(name) != expected.get(name)])
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
    set_trainable(model, method)


def load_peft(folder, build, base=None):
    """A classifier from an adapter folder of PEFT, or from the adapter/ of a run of ours.

    build: Classifier.from_backbone; base: where its base is now, if not where the adapter says.
    Only an adapter of ours tells whether the base's files have changed since.
    """
    record, tensors = peft.read_adapter(folder)
    if not (base or record["base_model_name_or_path"]):
        raise InputError(f"{folder}: the adapter does not say which base it was trained on: name "
                         "it with --base FOLDER")
    base = find_base([record["base_model_name_or_path"]], folder, base)
    where = Path(folder) / peft.OWN_FILE
    own = check_fields(read_json(where), SETTINGS, where) if where.exists() else {}
    if "fingerprint" in own:
        check_base(base, own["fingerprint"], where)
    labels = own.get("labels") or guess_labels(tensors, base)
    model = build_from(build, base, labels, own, where, method=peft.method_of(record))
    if not where.exists():                      # PEFT made it: long texts were cut by the tokenizer
        model.head.keep = model.tokenizer.kept_end
    peft.apply_adapter(model, record, tensors, folder)
    return model.eval()


def guess_labels(tensors, base):
    """The base's class names if the adapter's head has as many rows, else LABEL_0, LABEL_1, ...

    Without a head in the adapter: two names, and `apply_adapter` says what is missing.
    """
    last_layers = [t for name, t in tensors.items() if re.fullmatch(        # (C, D), or B (C, r)
        r"(.*\.)?(classifier|score|out_proj)\.(lora_B\.)?weight", name, re.S)]
    if len(last_layers) != 1 or not last_layers[0].dim():
        return ["LABEL_0", "LABEL_1"]
    classes = len(last_layers[0])
    names = read_json(find_model(base) / "config.json").get("id2label")
    names = [names.get(str(i)) for i in range(len(names))] if isinstance(names, dict) else []
    fits = len(names) == classes == len({*map(str, names)}) and is_names(names)
    return names if fits else [f"LABEL_{i}" for i in range(classes)]


def check_mergeable(method, where="model"):
    """InputError unless what this tuning method learns is a change of matrices."""
    if method not in LORA_METHODS:
        why = "this is a whole model already"
        if method in ADAPTER_METHODS:
            why = f"what {method} has learned is no change of matrices"
        raise InputError(f"{where}: only lora, dora and qlora can be merged, and {why}: use the "
                         "folder as it is")


def merge_tuned(model, dequantise=False):
    """Add what LoRA or DoRA has learned to the base's matrices -> the model, a plain classifier.

    dequantise: put a whole 4-bit base into full precision; without it such a base is refused.
    """
    check_mergeable((model.tuning or {}).get("method", "full"))
    lora.merge(model, dequantise)
    if dequantise:
        dequantise_linears(model)
    model.tuning = None
    return model
