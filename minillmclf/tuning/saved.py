"""A tuned classifier on disk, where only what was learned is kept: OUT/tuned.json and OUT/adapter/.

tuned.json says which base, in what precision, which recipe, which classes. adapter/ holds what was learned: LoRA, DoRA,
prefix and prompt as PEFT lays them out (peft_format.py); bottlenecks, which PEFT does not know, under our own names.
The base is looked at again when such a folder is loaded: on another base an adapter gives other answers, and says nothing.
"""
import hashlib
import json
from pathlib import Path

import torch

from ..errors import InputError
from ..files import find_model, read_json, write_text
from ..models.config import ignoring
from ..models.weights import open_tensors, write_tensors
from . import BOTTLENECKS, adapter, attach, choose_weights, lora, peft_format
from .quant import dequantise_linears

TUNED, ADAPTER = "tuned.json", "adapter"
SAMPLE = 2**20                          # bytes looked at, at both ends of a file of weights


def fingerprint(folder):
    """A short text that changes with a model's config.json, or with the size, head or tail of its weights."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("model*.safetensors")):
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            for place in (0, max(0, size - SAMPLE)):
                file.seek(place)
                digest.update(f"{path.name} {size}".encode() + file.read(SAMPLE))
    return digest.hexdigest()


def save_tuned(model, folder):
    """Write what a classifier has learned beside its base; the folder has no base in it."""
    folder, base = Path(folder), find_model(model.base)
    if model.recipe["method"] in BOTTLENECKS:
        tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if name in learned(model)}
        write_tensors(folder / ADAPTER / peft_format.TENSORS, tensors, {"format": "pt"})
    else:
        more = {"bias": model.recipe["bias"]} if "bias" in model.recipe else {}
        peft_format.write_adapter(folder / ADAPTER, model, {"base": str(base), **more})
    record = {"base": str(model.base), "fingerprint": fingerprint(base), "quantise": model.quantise, "recipe": model.recipe,
              "labels": model.labels, **model.settings()}
    write_text(folder / TUNED, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def learned(model):
    """The names of what a bottleneck recipe has trained."""
    return {*adapter.trained_parameters(model, norms=model.recipe["method"] == "houlsby"),
            *(name for name, _ in model.named_parameters() if name.startswith("head."))}


def load_tuned(folder, build):
    """The classifier of a folder that `save_tuned` wrote, in eval mode. build: Classifier.from_backbone."""
    folder = Path(folder)
    record = read_json(folder / TUNED)
    try:
        base, recipe = find_model(record["base"]), record["recipe"]
        model = build_as(build, record["base"], record["labels"], record, folder / TUNED, quantise=record["quantise"])
        if fingerprint(base) != record["fingerprint"]:
            raise InputError(f"{folder / TUNED}: the base {record['base']} has changed since this was trained on it: "
                             f"bring back the files that it had, or train again")
        model.recipe = recipe
        if recipe["method"] in BOTTLENECKS:
            attach(model, recipe)
            fill_learned(model, folder / ADAPTER / peft_format.TENSORS)
        else:
            peft_format.apply_adapter(model, *peft_format.read_adapter(folder / ADAPTER))
        choose_weights(model, recipe["method"], recipe.get("bias", "none"))
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / TUNED}: {error} is missing or of the wrong kind: save the run again") from None
    return model.eval()


def build_as(build, base, labels, settings, where, **more):
    """A classifier with what Classifier.settings says of it, as it stands in a file (`where`)."""
    readout = settings.get("readout") or {}
    if not isinstance(readout, dict) or not all(isinstance(key, str) for key in readout):
        raise InputError(f"{where}: readout should be an object, is {readout!r:.60}")
    pool = settings.get("pool") or "family"
    with ignoring(settings.get("ignored") or []):
        model = build(base, labels, pool=pool, max_length=settings.get("max_length"),
                      keep=settings.get("keep", "head"), windows=settings.get("windows"),
                      preference=settings.get("preference"), **more, **readout)
    model.calibrate(settings.get("calibration"), f"{where}: calibration")
    if settings.get("thresholds") is not None:
        model.use_thresholds(settings["thresholds"], f"{where}: thresholds")
    return model.read_as(settings.get("reading"), f"{where}: reading")


def fill_learned(model, path):
    """Fill in bottlenecks and head from a file under our own names; InputError unless it has exactly those."""
    with open_tensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    parameters, expected = dict(model.named_parameters()), learned(model)
    faults = [f"{name} is missing" for name in sorted(expected - set(tensors))]
    faults += [f"{name} is not expected" for name in sorted(set(tensors) - expected)]
    faults += [f"{name} is {tuple(tensors[name].shape)}, should be {tuple(parameters[name].shape)}"
               for name in sorted(expected & set(tensors)) if tensors[name].shape != parameters[name].shape]
    if faults:
        raise InputError(f"{path}: {len(faults)} faults: " + "; ".join(faults[:6]))
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def load_peft(folder, build, base=None):
    """A classifier from an adapter folder of PEFT. base: the path of its base, where the adapter does not tell."""
    record, tensors = peft_format.read_adapter(folder)
    base = base or record["base"]
    if base is None:
        raise InputError(f"{folder}: the adapter does not say which base it was trained on: name it with base=")
    own = read_json(Path(folder) / peft_format.OURS) if (Path(folder) / peft_format.OURS).exists() else {}
    labels = own.get("labels") or guess_labels(tensors, folder)
    model = build_as(build, base, labels, own, Path(folder) / peft_format.OURS)
    peft_format.apply_adapter(model, record, tensors)
    return model.eval()


def guess_labels(tensors, folder):
    """LABEL_0, LABEL_1, ...: as many as the last layer of the head has rows."""
    last = [t for name, t in tensors.items() if name.rpartition(".weight")[0].split(".")[-1] in ("classifier", "score", "out_proj")]
    if len(last) != 1:
        raise InputError(f"{folder}: no classification head in this adapter: it was saved without one, train it again")
    return [f"LABEL_{i}" for i in range(len(last[0]))]


def merge_tuned(model, dequantise=False):
    """Add what LoRA or DoRA has learned to the base's matrices: a plain classifier, with the same answers, in place.

    dequantise: a 4-bit base becomes one in full precision, all of it; else such a base is refused.
    """
    if getattr(model, "recipe", None) is None or model.recipe["method"] not in ("lora", "dora", "qlora"):
        raise InputError("only lora, dora and qlora can be merged: bottlenecks, prefixes and prompts are no matrices")
    lora.merge(model, dequantise)
    if dequantise:
        dequantise_linears(model)
    model.recipe = None
    return model
