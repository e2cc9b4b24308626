"""Checkpoints in and out: safetensors files in Hugging Face names <-> our modules.

A rename table is data: {name in the file: path here}, `{}` for a layer's number, None for "dropped on purpose". A row
may name a module, and then stands for its weight and its bias. Loading uses the table forwards, saving backwards, and
everything is checked before anything is used: every tensor of the file has a row, every parameter is filled, shapes
agree, ties are equal. All faults are reported at once.

Nothing is ever unpickled: a folder that holds only pytorch_model.bin is refused with the way to convert it.
File format: https://github.com/huggingface/safetensors
"""
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import InputError
from ..files import find_model, read_json, replacing, write_text

LEAVES = {".weight": ".weight", ".bias": ".bias", ".gamma": ".weight", ".beta": ".bias", "": ""}   # gamma, beta: before 2019


@dataclass
class Report:
    """Where every tensor went. loaded: file name -> ours; dropped, fresh: names; `fresh` were not in the file."""
    loaded: dict = field(default_factory=dict)
    dropped: list = field(default_factory=list)
    tied: list = field(default_factory=list)
    fresh: list = field(default_factory=list)

    def line(self):
        text = f"{len(self.loaded)} tensors loaded, {len(self.tied)} tied"
        text += f", {len(self.dropped)} dropped on purpose ({', '.join(sorted(self.dropped))})" if self.dropped else ""
        return text + (f", {len(self.fresh)} new ({', '.join(self.fresh)})" if self.fresh else "")


class Checkpoint:
    """A model folder, by its path or a shipped name: config.json, and the tensors of model.safetensors or of the shards
    that the index names."""

    def __init__(self, folder):
        self.folder = find_model(folder)
        self.config = read_json(self.folder / "config.json")
        self.files = self._find_files()                   # tensor name -> open file

    def _find_files(self):
        index, single = self.folder / "model.safetensors.index.json", self.folder / "model.safetensors"
        if single.exists():
            handle = open_tensors(single)
            return {name: handle for name in handle.keys()}
        if index.exists():
            return self._open_shards(index)
        if list(self.folder.glob("*.bin")):
            raise InputError(f"{self.folder}: only .bin files, which are pickles and never opened here; convert once with "
                             f"transformers: AutoModel.from_pretrained(DIR).save_pretrained(DIR)")
        raise InputError(f"{self.folder}: neither model.safetensors nor model.safetensors.index.json is there: "
                         f"download or save it again")

    def _open_shards(self, index):
        where = read_json(index).get("weight_map")
        if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
            raise InputError(f"{index}: has no weight_map: download the folder again")
        outside = sorted({f for f in where.values() if Path(f).name != f})
        missing = sorted({f for f in where.values() if not (self.folder / f).exists()} - set(outside))
        if outside or missing:
            raise InputError(f"{index}: " + "; ".join([f"{f} lies outside the folder" for f in outside]
                             + [f"shard {f} is not there" for f in missing]) + ": download the folder again")
        opened = {f: open_tensors(self.folder / f) for f in sorted(set(where.values()))}
        absent = [n for n, f in where.items() if n not in opened[f].keys()]
        if absent:
            raise InputError(f"{index}: names {len(absent)} tensors that its shards lack, {absent[0]!r} first: "
                             f"the index is stale, download the folder again")
        return {name: opened[file] for name, file in where.items()}

    def __contains__(self, name):
        return name in self.files

    def tensor(self, name):
        return self.files[name].get_tensor(name)

    def shape(self, name):
        return tuple(self.files[name].get_slice(name).get_shape())


def open_tensors(path):
    """A memory-mapped safetensors file; a truncated or foreign one is an InputError."""
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        size = os.path.getsize(path) if os.path.exists(path) else 0
        raise InputError(f"{path}: not a whole safetensors file ({size} bytes; {error}): download or save it again") from None


def generic(name):
    """"layers.3.q_proj.bias" -> ("layers.{}.q_proj.bias", "3"); a name without a layer's number stays, with ""."""
    layer = re.search(r"\.(\d+)\.", name)
    return (name[:layer.start(1)] + "{}" + name[layer.end(1):], layer.group(1)) if layer else (name, "")


def translate(name, names, prefix):
    """The path here of a file's tensor name; None if it is dropped on purpose; KeyError if no row fits."""
    pattern, layer = generic(name)
    for candidate in (pattern, prefix + pattern):
        for leaf, ours in LEAVES.items():
            row = candidate[:-len(leaf)] if leaf else candidate
            if candidate.endswith(leaf) and row in names:
                target = names[row]
                return None if target is None else (target + ours).replace("{}", layer)
    raise KeyError(name)


def fill(model, checkpoint, names, ties=None, prefix="", fresh=(), table="NAMES"):
    """Copy a checkpoint's tensors into `model` by the rename table -> Report.

    ties: file tensor -> parameter here that it must equal. fresh: patterns (regex) of parameters that may be absent
    from the file and then keep their new values. table: what to call the table in an error.
    Raises InputError with every fault found; `model` is then unusable.
    """
    parameters, report, faults = dict(model.named_parameters()), Report(), []
    for name in checkpoint.files:
        if name in (ties or {}):
            report.tied.append(name)
            continue
        try:
            ours = translate(name, names, prefix)
        except KeyError:
            faults.append(f"{table} has no row for {name!r} {checkpoint.shape(name)}: add one, or map it to None")
            continue
        if ours is None:
            report.dropped.append(name)
        elif ours not in parameters:
            faults.append(f"{name!r} belongs to {ours}, which this model does not have")
        elif ours in report.loaded.values():
            faults.append(f"{name!r} fills {ours} a second time")
        elif checkpoint.shape(name) != tuple(parameters[ours].shape):
            faults.append(f"{name!r} is {checkpoint.shape(name)}, {ours} is {tuple(parameters[ours].shape)}")
        else:
            report.loaded[name] = ours
    report.fresh = [p for p in parameters if p not in report.loaded.values()]
    faults += [f"nothing in the file fills {p} {tuple(parameters[p].shape)}" for p in report.fresh
               if not any(re.match(pattern, p) for pattern in fresh)]
    if not faults:
        faults = copy_tensors(parameters, checkpoint, report, ties or {})
    if faults:
        raise InputError(f"{checkpoint.folder}: {len(faults)} faults: " + "; ".join(faults))
    return report


def copy_tensors(parameters, checkpoint, report, ties):
    """Fill in the values; -> faults: tensors that are no (finite) floats, ties that are not equal."""
    faults = []
    with torch.no_grad():
        for name, ours in report.loaded.items():
            tensor = checkpoint.tensor(name)
            if not tensor.is_floating_point():
                faults.append(f"{name!r} holds {tensor.dtype}, floats are expected")
            elif not tensor.float().isfinite().all():
                faults.append(f"{name!r} holds values that are not finite")
            else:
                parameters[ours].copy_(tensor)
        for name in report.tied:
            if not torch.equal(checkpoint.tensor(name).float(), parameters[ties[name]].float()):
                faults.append(f"{name!r} should be tied to {ties[name]}, but its values differ")
    return faults


def export(model, names):
    """The model's parameters under their names in the file: the rename table backwards -> {name: tensor}."""
    rows = {ours: file for file, ours in names.items() if ours is not None}
    tensors = {}
    for path, parameter in model.named_parameters():
        pattern, layer = generic(path)
        module, leaf = os.path.splitext(pattern)
        row = rows[pattern] if pattern in rows else rows[module] + leaf
        tensors[row.replace("{}", layer)] = parameter.detach().contiguous()
    return tensors


def write_checkpoint(folder, config, tensors, dtype=torch.float32):
    """Save config.json and model.safetensors; each file is replaced whole or left as it was."""
    folder = Path(folder)
    tensors = {name: tensor.to("cpu", dtype) for name, tensor in tensors.items()}
    config = {**config, "dtype": str(dtype).removeprefix("torch.")}
    config.pop("torch_dtype", None)
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_text(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path, tensors, metadata):
    """One safetensors file, whole or not at all."""
    with replacing(path) as temporary:
        try:
            save_file(tensors, str(temporary), metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from None
