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
from torch import nn

from ..errors import InputError
from ..files import find_model, read_json, replacing, short, write_text
from .config import read_model_config

SHARD_BYTES = 5 * 10**9
# heads that only classify/ knows: rows that drop them where they are not taken
OWN_HEADS = dict.fromkeys(f"minillmclf_{part}.*" for part in ("head", "tie", "pool", "windows"))
WRAPPED = re.compile(r"^(module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")   # DataParallel, torch.compile
READABLE = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
# what a name that no row fits tells -> what its user can do
REMEDIES = (
    (r"_scale(_inv)?$|\.(qweight|qzeros|scales|g_idx|SCB|absmax)$", "the model was quantised in a "
     "way that is not read here: take the files that it was quantised from"),
    (r"^base_model\.|\.lora_[AB]\.|\.base_layer\.", "an adapter of PEFT is in it: save it merged "
     "(merge_and_unload), or name the adapter's own folder"),
    ("", "the weights are of another model than config.json describes: download both again, or "
     "save them with transformers (from_pretrained(DIR).save_pretrained(NEW))"))
LEAVES = {".weight": ".weight", ".bias": ".bias", ".gamma": ".weight", ".beta": ".bias", "": ""}   # gamma, beta: before 2019


@dataclass
class Table:
    """How the tensors of a model lie in a file.

    names: name in the file -> path here; "x.*" drops whatever begins with "x.". ties: name in the file -> the parameter
    here that it must equal. spellings: (beginning in a file, beginning in `names`) for names that files spell otherwise.
    transposed: modules whose weight lies in the file as (in, out), not as (out, in). title: what errors call this table.
    """
    names: dict
    ties: dict = field(default_factory=dict)
    spellings: tuple = ()
    transposed: tuple = ()
    title: str = "the rename table"

    def file_names(self, paths):
        """{path of a module or parameter here: its name in the file}; without those that have none."""
        rows, found = {ours: file for file, ours in self.names.items() if ours is not None}, {}
        for path in paths:
            pattern, layer = generic(path)
            module, leaf = os.path.splitext(pattern)
            row = rows[pattern] if pattern in rows else module in rows and rows[module] + leaf
            if row:
                found[path] = row.replace("{}", layer)
        return found

    def turned(self, path):
        """Does this parameter lie transposed in the file?"""
        module, _, leaf = path.rpartition(".")
        return leaf == "weight" and module.rpartition(".")[2] in self.transposed


@dataclass
class Report:
    """Where every tensor went. loaded, tied: file name -> ours; dropped, fresh: names; `fresh` were not in the file."""
    loaded: dict = field(default_factory=dict)
    tied: dict = field(default_factory=dict)
    dropped: list = field(default_factory=list)
    fresh: list = field(default_factory=list)

    def line(self):
        """How many of each, on one line; `inspect` has the names."""
        counts = {"tied": self.tied, "dropped": self.dropped, "new": self.fresh}
        more = [f", {len(names)} {word}" for word, names in counts.items() if names]
        return f"{len(self.loaded)} tensors loaded" + "".join(more)


class Checkpoint:
    """A model folder, by its path or a shipped name: config.json, and the tensors of model.safetensors or of the shards
    that the index names. A tensor in a shard that the index does not name is no part of the model.

    files: {name of a tensor: the file it is in}; stored: {name: its name there}, which may say how
    the model was wrapped.
    """

    def __init__(self, folder):
        self.folder = find_model(folder)
        self.config = read_model_config(self.folder)
        found = self._find_files()
        self.stored = {WRAPPED.sub("", name): name for name in found}
        if len(self.stored) < len(found):
            raise InputError(f"{self.folder}: holds tensors twice, as they are and behind module. "
                             f"or _orig_mod. (DataParallel, torch.compile): save it unwrapped")
        self.files = {name: found[own] for name, own in self.stored.items()}
        self.shapes, self.dtypes = {}, {}
        for path in sorted(set(self.files.values())):
            with open_tensors(path) as file:
                for name in (name for name, where in self.files.items() if where == path):
                    view = file.get_slice(self.stored[name])
                    self.shapes[name], self.dtypes[name] = tuple(view.get_shape()), view.get_dtype()

    def _find_files(self):
        index, single = self.folder / "model.safetensors.index.json", self.folder / "model.safetensors"
        if single.exists():
            with open_tensors(single) as file:
                return dict.fromkeys(file.keys(), single)
        if index.exists():
            return self._find_shards(index)
        if list(self.folder.glob("*.bin")):
            raise InputError(f"{self.folder}: only .bin files, which are pickles and never opened here; convert once with "
                             f"transformers: AutoModel.from_pretrained(DIR).save_pretrained(DIR)")
        raise InputError(f"{self.folder}: neither model.safetensors nor model.safetensors.index.json is there: "
                         f"download or save it again")

    def _find_shards(self, index):
        where = read_json(index).get("weight_map")
        if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
            raise InputError(f"{index}: has no weight_map: download the folder again")
        faults = [f"shard {short(f)[1:-1]} "
                  + ("is not there" if Path(f).name == f else "lies outside the folder")
                  for f in sorted(set(where.values()))
                  if Path(f).name != f or not os.path.isfile(self.folder / f)]
        if faults:
            raise InputError(f"{index}: {listed(faults)}: download the folder again")
        held = {}
        for shard in sorted(set(where.values())):
            with open_tensors(self.folder / shard) as file:
                held[shard] = set(file.keys())
        absent = [n for n, f in where.items() if n not in held[f]]
        if absent:
            raise InputError(f"{index}: names {len(absent)} tensors that its shards lack, "
                             f"{short(absent[0])} first: the index is stale, download the folder "
                             f"again")
        return {name: self.folder / file for name, file in where.items()}

    def __contains__(self, name):
        return name in self.files

    def tensor(self, name):
        """One tensor, in memory of its own.

        The file is mapped, the tensor copied out and the mapping closed: so a model takes its own size and one tensor
        more, and a file that somebody replaces later changes no loaded model.
        """
        return read_tensor(self.files[name], self.stored[name])


def open_tensors(path):
    """A memory-mapped safetensors file; a truncated or foreign one is an InputError."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: is no ordinary file: a safetensors file is expected")
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        size = os.path.getsize(path) if os.path.exists(path) else 0
        raise InputError(f"{path}: not a whole safetensors file ({size} bytes; "
                         f"{short(str(error), 200)[1:-1]}): download or save it again") from None


def read_tensor(path, name):
    """A tensor of a file, in memory of its own."""
    with open_tensors(path) as file:
        return file.get_tensor(name).clone()


def generic(name):
    """"layers.3.q_proj.bias" -> ("layers.{}.q_proj.bias", "3"); a name without a layer's number stays, with ""."""
    layer = re.search(r"\.(\d+)\.", name)
    return (name[:layer.start(1)] + "{}" + name[layer.end(1):], layer.group(1)) if layer else (name, "")


def spelled(name, table):
    """A file's tensor name in the ways in which `names` and `ties` may have it."""
    return [new + name[len(old):] for old, new in (("", ""), *table.spellings) if name.startswith(old)]


def translate(name, table):
    """The path here of a file's tensor name; None if it is dropped on purpose; KeyError if no row fits."""
    for candidate in spelled(name, table):
        for pattern, layer in ((candidate, ""), generic(candidate)):
            for leaf, ours in LEAVES.items():
                row = pattern[:-len(leaf)] if leaf else pattern
                if pattern.endswith(leaf) and row in table.names:
                    target = table.names[row]
                    return None if target is None else (target + ours).replace("{}", layer)
    if any(name.startswith(row[:-1]) for row in table.names if row.endswith(".*")):
        return None
    raise KeyError(name)


def tie_of(name, table):
    """The parameter here that a file's tensor is a copy of; None if it is no copy."""
    return next((table.ties[candidate] for candidate in spelled(name, table) if candidate in table.ties), None)


def place(model, path, tensor):
    """Make `tensor` the parameter at `path`."""
    module, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(module), leaf, nn.Parameter(tensor))


def fill(model, checkpoint, table, fresh=(), dtype=torch.float32, place=place):
    """Put a checkpoint's tensors into `model` by its rename table -> Report.

    fresh: patterns (regex) of parameters that may be absent from the file and then keep their new values. A model that
    was built on the "meta" device, without memory, gets each tensor as it is read, so none ever exists twice.
    place(model, path, tensor): what is done with a tensor that was read (tuning/quant.py puts it into four bits).
    Raises InputError with every fault found; `model` is then unusable.
    """
    parameters, report, faults, filled = dict(model.named_parameters()), Report(), [], {}
    remedy = "download the files again, or save the model again"
    for name in checkpoint.files:
        if tie_of(name, table):
            report.tied[name] = tie_of(name, table)
            continue
        try:
            ours = translate(name, table)
        except KeyError:
            faults.append(f"{short(name, 120)} {checkpoint.shapes[name]} is no tensor of "
                          f"{table.title}")
            remedy = next(text for sign, text in REMEDIES if re.search(sign, name))
            continue
        if ours is None:
            report.dropped.append(name)
        elif ours not in parameters:
            faults.append(f"{name!r} belongs to {ours}, which this model does not have")
        elif ours in filled:
            faults.append(f"{name!r} fills {ours} a second time, after {filled[ours]!r}")
        else:
            report.loaded[name], filled[ours] = ours, name
            faults += shape_fault(name, checkpoint.shapes[name], ours, parameters[ours], table.turned(ours))
    report.fresh = [p for p in parameters if p not in filled]
    faults += [f"nothing in the file fills {p} {tuple(parameters[p].shape)}" for p in report.fresh
               if not any(re.match(pattern, p) for pattern in fresh)]
    faults = faults or place_tensors(model, checkpoint, report, table, dtype, place)
    if faults:
        raise InputError(f"{checkpoint.folder}: {len(faults)} faults: {listed(faults)}: {remedy}")
    return report


def listed(faults, most=8):
    """The first faults in one line, and how many more there are."""
    more = [f"and {len(faults) - most} more"] if len(faults) > most else []
    return "; ".join(faults[:most] + more)


def shape_fault(name, shape, ours, parameter, turned):
    """[] or [what is wrong] with the shape of a file's tensor."""
    expected = tuple(parameter.shape[::-1] if turned else parameter.shape)
    return [] if shape == expected else [f"{name!r} is {shape}, {ours} is {expected}"]


def place_tensors(model, checkpoint, report, table, dtype, place):
    """Fill in the values; -> faults: tensors that are no (finite) floats, ties that are not equal."""
    faults = []
    for name, ours in report.loaded.items():
        if checkpoint.dtypes[name] not in READABLE:
            faults.append(f"{name!r} holds {checkpoint.dtypes[name]}, floats are expected")
            continue
        tensor = checkpoint.tensor(name).to(dtype)
        # NaN passes through min and max
        if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            faults.append(f"{name!r} holds values that are not finite in "
                          f"{str(dtype).removeprefix('torch.')}")
        else:
            place(model, ours, (tensor.T if table.turned(ours) else tensor).contiguous())
    for name, ours in report.tied.items():
        mine = model.get_parameter(ours)
        if not faults and not (checkpoint.dtypes[name] in READABLE
                               and torch.equal(checkpoint.tensor(name).to(dtype), mine)):
            faults.append(f"{name!r} should be tied to {ours}, but its values differ")
    return faults


def export(model, table):
    """The model's parameters under their names in the file: the rename table backwards -> {name: tensor}.

    A parameter without a row is a KeyError: it would be lost.
    """
    parameters = {path: parameter.detach() for path, parameter in model.named_parameters()}
    names = table.file_names(parameters)
    return {names[path]: (tensor.T if table.turned(path) else tensor).contiguous() for path, tensor in parameters.items()}


def write_checkpoint(folder, config, tensors, dtype=torch.float32, shard_bytes=SHARD_BYTES, keep=()):
    """Save config.json and model.safetensors, or shards of at most `shard_bytes` and their index if it would be larger.

    dtype: of all floats but those named in `keep`. Each file is replaced whole or left as it was; what an earlier model left in the folder is removed at the end.
    """
    folder = Path(folder)
    config = {**config, "dtype": str(dtype).removeprefix("torch.")}
    config.pop("torch_dtype", None)
    shards = cut_shards(tensors, dtype.itemsize, shard_bytes)
    files = shard_names(len(shards))
    for file, names in zip(files, shards):
        part = {name: tensors[name].cpu() if name in keep or not tensors[name].is_floating_point() else
                tensors[name].to("cpu", dtype) for name in names}
        write_tensors(folder / file, part, {"format": "pt"})
    if len(files) > 1:
        total = sum(tensor.numel() for tensor in tensors.values())
        index = {"metadata": {"total_size": total * dtype.itemsize, "total_parameters": total},
                 "weight_map": {name: file for file, names in zip(files, shards) for name in names}}
        write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
    write_text(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    remove_earlier(folder, files)


def cut_shards(tensors, itemsize, shard_bytes):
    """Names in order, cut so that each part has at most `shard_bytes`; a larger tensor is a part of its own."""
    shards, size = [[]], 0
    for name, tensor in tensors.items():
        own = tensor.numel() * itemsize
        if shards[-1] and size + own > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += own
    return shards


def shard_names(count):
    """model.safetensors, or model-00001-of-00003.safetensors and so on."""
    return ["model.safetensors"] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def remove_earlier(folder, files):
    """Remove the weights that an earlier save left: other shards, or a whole file or an index that no longer holds."""
    stale = {path for path in folder.glob("model-*-of-*.safetensors") if path.name not in files}
    stale.add(folder / ("model.safetensors" if len(files) > 1 else "model.safetensors.index.json"))
    for path in stale:
        path.unlink(missing_ok=True)


def write_tensors(path, tensors, metadata):
    """One safetensors file, whole or not at all."""
    with replacing(path) as temporary:
        try:
            save_file(tensors, str(temporary), metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from None
