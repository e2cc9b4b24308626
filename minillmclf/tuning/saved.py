"""A tuned classifier on disk, where only what was learned is kept: OUT/tuned.json and OUT/adapter/.

tuned.json says which base, in what precision, which recipe, which classes. adapter/ holds what was learned: LoRA, DoRA,
prefix and prompt as PEFT lays them out (peft_format.py); bottlenecks, which PEFT does not know, under our own names.
The base is looked at again when such a folder is loaded: on another base an adapter gives other answers, and says nothing.
"""
import hashlib
import json
import os
import re
from pathlib import Path

import torch

from ..errors import InputError
from ..files import CHECKPOINTS, NEW, check_fields, find_model, read_json, short, write_text
from ..models.config import ignoring
from ..models.weights import Checkpoint, write_tensors
from ..text.tokenizers.files import READERS
from . import APART, BOTTLENECKS, UPDATES, adapter, attach, choose_weights, lora, peft_format
from .peft_config import is_whole
from .peft_model import told
from .quant import CODES, dequantise_linears

TUNED, ADAPTER = "tuned.json", "adapter"
# of a tokenizer
COMPANIONS = ("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SAMPLE = 2**20  # bytes that an earlier fingerprint had looked at, at both ends of a file of weights


def is_object(value):
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def is_word(value):
    return isinstance(value, str) and len(value) < 100


def is_names(value):
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_recipe(value):
    return is_object(value) and value.get("method") in [*APART] and is_names(value.get("saved",
                                                                                       [])) \
        and value.get("bias", "none") in ("none", "all", "lora_only") \
        and (value["method"] not in BOTTLENECKS or is_whole(value.get("size")))


def or_none(test):
    return lambda value: value is None or test(value)


# what files say of a classifier: {key: (test, what it should be)}; details are checked in use
SETTINGS = {
    "labels?": (is_names, "a list of names"), "pool?": (or_none(is_word), "a word"),
    "keep?": (is_word, "a word"), "max_length?": (or_none(is_whole), "a whole number from 1"),
    "thresholds?": (or_none(lambda v: isinstance(v, list)), "a list of numbers"),
    **dict.fromkeys(("readout?", "windows?", "calibration?", "preference?"),
                    (or_none(is_object), "an object"))}
RECORD = SETTINGS | {
    "labels": SETTINGS["labels?"], "recipe": (is_recipe, "a method and its numbers"),
    "base": (lambda v: isinstance(v, str) and v, "a folder's name"),
    "base_path?": (lambda v: isinstance(v, str), "a path"),
    "fingerprint": (lambda v: isinstance(v, str) or is_object(v), "an object of sums"),
    "quantise": (lambda v: v in [None, *CODES], f"{', '.join(CODES)} or null")}


# ---------------------------------------------------------------------------------------- the base

def sums(folder):
    """{name of a file: sha256 of all that is in it}, of what a model's answers follow from:
    configuration, weights, tokenizer."""
    folder = Path(folder)
    tokenizer = [name for name in READERS if (folder / name).exists()][:1]
    names = {"config.json", *(path.name for path in Checkpoint(folder).files.values()), *tokenizer,
             *(name for name in COMPANIONS if (folder / name).exists())}

    def digest(path):
        found = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(SAMPLE):
                found.update(block)
        return found.hexdigest()
    return {name: digest(folder / name) for name in sorted(names)}


def fingerprint(folder):
    """A short text that changes with a model's config.json, its weights or its tokenizer."""
    return hashlib.sha256(json.dumps(sums(folder), sort_keys=True).encode()).hexdigest()


def changed(folder, kept):
    """The names of the files of a base that are not as they were. kept: `sums` of then, or the text
    of earlier versions."""
    if isinstance(kept, dict):
        found = sums(folder)
        return [name for name in sorted({*found, *kept}) if found.get(name) != kept.get(name)]
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("model*.safetensors")):
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            for place in (0, max(0, size - SAMPLE)):
                file.seek(place)
                digest.update(f"{path.name} {size}".encode() + file.read(SAMPLE))
    return [] if digest.hexdigest() == kept else ["config.json or weights"]


def place_of(base, folder):
    """How tuned.json names its base: a shipped one by its name; one that lies near, below the
    folder of the runs' folder, from the run on, so that both may be moved; else in full."""
    base, folder = Path(base).resolve(), Path(folder).resolve()
    folder = Path(*(part for part in folder.parts if part != NEW))         # a run that is moved when it is whole
    near = next(path for path in (*folder.parents[1::-1], folder) if path != path.parent)
    if base.parent == CHECKPOINTS:
        return {"base": base.name}
    there = os.path.relpath(base, folder) if near in base.parents else str(base)
    there = there if os.sep in there else os.path.join(".", there)
    return {"base": there, "base_path": str(base)}


def find_base(names, folder, asked=None):
    """The folder of an adapter's base, as find_model takes it.

    asked: where it lies now; else the first that is there of `names`, each a shipped name, or a
    path from the adapter's folder or from where we are.
    """
    if asked is not None:
        find_model(asked)
        return str(asked)
    for name in filter(None, names):
        try:
            if Path(name).name == name and (CHECKPOINTS / name).is_dir():
                return name
            for path in ((Path(folder) / name).resolve(), Path(name)):
                if path.is_dir():
                    return str(path)
        except (OSError, ValueError, RuntimeError):      # too long for a path; a loop of links
            pass
    name, fetch = names[0], ""
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        fetch = f" (of huggingface.co: hf download {name} --local-dir FOLDER)"
    raise InputError(f"{short(folder, 200)}: holds an adapter, and its base {short(name, 200)} is "
                     f"missing, no such model folder: say where it is with --base FOLDER{fetch}")


def base_of(folder):
    """The folder of the base of a tuned run or of an adapter; None for a folder that holds a whole
    model."""
    if (folder / TUNED).exists():
        record = check_fields(read_json(folder / TUNED), RECORD, folder / TUNED)
        return find_base([record["base"], record.get("base_path")], folder)
    if (folder / peft_format.CONFIG).exists():
        config = read_json(folder / peft_format.CONFIG)
        return find_base([str(config.get("base_model_name_or_path"))], folder)
    return None


# --------------------------------------------------------------------------------- our own folders

def save_tuned(model, folder):
    """Write what a classifier has learned beside its base; the folder has no base in it."""
    folder, base, recipe = Path(folder), find_model(model.base), model.recipe
    if recipe["method"] in BOTTLENECKS:
        tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if name in learned(model)}
        write_tensors(folder / ADAPTER / peft_format.TENSORS, tensors, {"format": "pt"})
    else:
        more = {key: recipe[key] for key in ("bias", "saved") if key in recipe}
        layers = (layer for layer in model.modules() if isinstance(layer, lora.LoraLinear))
        active = {layer.active for layer in layers} - {None}
        peft_format.write_adapter(folder / ADAPTER, model, {"base": str(base.resolve()), **more},
                                  *active or ["default"])
    record = {**place_of(base, folder), "fingerprint": sums(base), "quantise": model.quantise,
              "recipe": recipe, "labels": model.labels, **model.settings()}
    write_text(folder / TUNED, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def learned(model):
    """The names of what a bottleneck recipe has trained."""
    return {*adapter.trained_parameters(model, norms=model.recipe["method"] == "houlsby"),
            *(name for name, _ in model.named_parameters() if name.startswith("head."))}


def load_tuned(folder, build, base=None):
    """The classifier of a folder that `save_tuned` wrote, in eval mode.

    build: Classifier.from_backbone; base: where its base lies now, if not where tuned.json says.
    """
    folder, where = Path(folder), Path(folder) / TUNED
    record = check_fields(read_json(where), RECORD, where)
    recipe = record["recipe"]
    base = find_base([record["base"], record.get("base_path")], folder, base)
    differing = changed(find_model(base), record["fingerprint"])
    if differing:
        raise InputError(f"{where}: the base {short(base, 200)} has changed since this was trained "
                         f"on it ({short(differing, 200)[1:-1]}): bring back the files that it "
                         f"had, name "
                         f"them with --base FOLDER, or train again")
    tensors = folder / ADAPTER / peft_format.TENSORS
    if recipe["method"] in BOTTLENECKS:
        adapter_record, numbers = {}, peft_format.read_floats(tensors)
    else:
        adapter_record, numbers = peft_format.read_adapter(folder / ADAPTER)
    if adapter_record and adapter_record["method"] != recipe["method"].replace("qlora", "lora"):
        raise InputError(f"{where}: tells of {recipe['method']}, but {ADAPTER}/ holds "
                         f"{adapter_record['method']}: save the run again")
    model = build_as(build, base, record["labels"], record, where, quantise=record["quantise"])
    if adapter_record:
        peft_format.apply_adapter(model, adapter_record, numbers)
        model.recipe = {**model.recipe, **recipe}
    else:
        model.recipe = recipe
        sizes = {t.shape[0] for name, t in numbers.items() if name.endswith(".down.weight")
                 and t.dim() == 2}
        if sizes != {recipe["size"]}:  # looked at before anything of that size is built
            raise InputError(f"{tensors}: holds bottlenecks of width "
                             f"{short(sorted(sizes))[1:-1] or 'none'}, {TUNED} says "
                             f"{recipe['size']}: save the run again")
        attach(model, recipe)
        fill_learned(model, numbers, tensors)
        choose_weights(model, recipe["method"])
    return model.eval()


def build_as(build, base, labels, settings, where, **more):
    """A classifier with what Classifier.settings says of it, as it stands in a file (`where`)."""
    try:
        with ignoring(settings.get("ignored") or []):
            model = build(base, labels, pool=settings.get("pool") or "family",
                          max_length=settings.get("max_length"), keep=settings.get("keep", "head"),
                          windows=settings.get("windows"), preference=settings.get("preference"),
                          multi_label=settings.get("thresholds") is not None,
                          **more, **settings.get("readout") or {})
    except TypeError as error:
        raise InputError(f"{where}: {error}: save it again") from None
    return model.restore(settings, where)


def fill_learned(model, tensors, path):
    """Fill in bottlenecks and head from the tensors of a file under our own names; InputError
    unless it has exactly those."""
    parameters, expected = dict(model.named_parameters()), learned(model)
    faults = [f"{name} is missing" for name in sorted(expected - set(tensors))]
    faults += [f"{short(name, 200)} is not expected" for name in sorted(set(tensors) - expected)]
    faults += [f"{name} is {tuple(tensors[name].shape)}, should be {tuple(parameters[name].shape)}"
               for name in sorted(expected & set(tensors)) if tensors[name].shape != parameters[name].shape]
    told(path, faults)
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


# --------------------------------------------------------------------------------- folders of PEFT

def load_peft(folder, build, base=None):
    """A classifier from an adapter folder of PEFT. base: where its base lies now, if not where the
    adapter says."""
    record, tensors = peft_format.read_adapter(folder)
    if not (base or record["base"]):
        raise InputError(f"{folder}: the adapter does not say which base it was trained on: name "
                         f"it with --base FOLDER")
    base, where = find_base([record["base"]], folder, base), Path(folder) / peft_format.OURS
    own = check_fields(read_json(where), SETTINGS, where) if where.exists() else {}
    model = build_as(build, base, own.get("labels") or guess_labels(tensors, folder, base), own,
                     where)
    peft_format.apply_adapter(model, record, tensors)
    return model.eval()


def guess_labels(tensors, folder, base):
    """The names of the base's classes, if they are as many as the last layer of the head has rows;
    else LABEL_0, LABEL_1, ..."""
    last = [t for name, t in tensors.items() if name.rpartition(".weight")[0].split(".")[-1] in ("classifier", "score", "out_proj")]
    if len(last) != 1 or not last[0].dim():
        raise InputError(f"{folder}: no classification head in this adapter: it was saved without one, train it again")
    names = read_json(find_model(base) / "config.json").get("id2label")
    names = [names.get(str(i)) for i in range(len(names))] if isinstance(names, dict) else []
    fits = len(names) == len(last[0]) == len({*map(str, names)}) and is_names(names)
    return names if fits else [f"LABEL_{i}" for i in range(len(last[0]))]


# ----------------------------------------------------------------------------------------- merging

def merge_tuned(model, dequantise=False):
    """Add what LoRA or DoRA has learned to the base's matrices: a plain classifier, with the same answers, in place.

    dequantise: a 4-bit base becomes one in full precision, all of it; else such a base is refused.
    """
    method = (model.recipe or {}).get("method", "full")
    if method not in UPDATES:
        why = f"what {method} has learned is no change of matrices" if method in APART else \
            "this is a whole model already"
        raise InputError(f"only lora, dora and qlora can be merged, and {why}: use the folder "
                         f"as it is")
    lora.merge(model, dequantise)
    if dequantise:
        dequantise_linears(model)
    model.recipe = None
    return model
