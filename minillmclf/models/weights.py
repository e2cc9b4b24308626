"""Checkpoints in and out: tensors under Hugging Face names <-> the parameters of our modules.

A rename table is data: {name in the file: path here}, `{}` for a layer's number, None for "dropped
on purpose". A row may name a module, and then stands for its weight and its bias. Loading uses the
table forwards, saving backwards. All is checked before it is used, and all faults are reported at
once: every tensor has a row, every parameter is filled, shapes agree, ties are equal.
Not here: the files themselves (tensor_files.py).
"""
import os
import re
from dataclasses import dataclass, field

import torch
from torch import nn

from ..errors import InputError
from ..files import find_model, short
from .config import read_model_config
from .tensor_files import find_tensors, listed, open_tensors, read_tensor, remedy_for

WRAPPED = re.compile(r"^(module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")  # DataParallel, torch.compile
READABLE = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
# ending of a name in the file -> of the parameter here; gamma and beta: before 2019
LEAVES = {".weight": ".weight", ".bias": ".bias", ".gamma": ".weight", ".beta": ".bias", "": ""}
OWN_HEADS = {"minillmclf_*": None}       # rows of the heads that only this package writes


@dataclass
class Table:
    """How the tensors of a model lie in a file.

    names: name in the file -> path here, or None; "x.*" drops whatever begins with "x.". ties: name
    in the file -> the parameter here that it must equal. aliases: (beginning in a file,
    beginning in `names`), for files that name it differently. transposed: modules whose weight lies
    in the file as (in, out), not as (out, in). title: what errors call this table.
    """
    names: dict
    ties: dict = field(default_factory=dict)
    aliases: tuple = ()
    transposed: tuple = ()
    title: str = "the rename table"

    def candidates(self, name):
        """The names that a tensor of a file may have in `names` and `ties`."""
        more = (new + name[len(old):] for old, new in self.aliases if name.startswith(old))
        return [name, *more]

    def path(self, name):
        """The path here of a file's tensor; None if it is dropped; KeyError if no row fits."""
        for alias in self.candidates(name):
            for pattern, layer in ((alias, ""), generic(alias)):
                for leaf, ours in LEAVES.items():
                    row = pattern.removesuffix(leaf)
                    if pattern.endswith(leaf) and row in self.names:
                        target = self.names[row]
                        return target and (target + ours).replace("{}", layer)
        if any(name.startswith(row[:-1]) for row in self.names if row.endswith("*")):
            return None
        raise KeyError(name)

    def tied_to(self, name):
        """The parameter here that a file's tensor is a copy of; None if it is no copy."""
        found = (self.ties[alias] for alias in self.candidates(name) if alias in self.ties)
        return next(found, None)

    def file_names(self, paths):
        """{path of a module or parameter here: its name in the file}, of those that have one."""
        rows = {ours: file for file, ours in self.names.items() if ours is not None}
        found = {}
        for path in paths:
            pattern, layer = generic(path)
            module, leaf = os.path.splitext(pattern)
            row = rows.get(pattern) or module in rows and rows[module] + leaf
            if row:
                found[path] = row.replace("{}", layer)
        return found

    def is_transposed(self, path):
        """Does this parameter lie transposed in the file?"""
        module, _, leaf = path.rpartition(".")
        return leaf == "weight" and module.rpartition(".")[2] in self.transposed


def generic(name):
    """"layers.3.q_proj.bias" -> ("layers.{}.q_proj.bias", "3"); without a number: the name, ""."""
    layer = re.search(r"\.(\d+)\.", name)
    if layer is None:
        return name, ""
    return name[:layer.start(1)] + "{}" + name[layer.end(1):], layer.group(1)


@dataclass
class Report:
    """Where every tensor went. loaded, tied: {name in the file: path here}; dropped: names in the
    file; fresh: newly initialised parameters, which the file does not have."""
    loaded: dict = field(default_factory=dict)
    tied: dict = field(default_factory=dict)
    dropped: list = field(default_factory=list)
    fresh: list = field(default_factory=list)

    def line(self):
        """How many of each, on one line; `inspect` has the names."""
        counts = {"tied": self.tied, "dropped": self.dropped, "new": self.fresh}
        more = (f", {len(names)} {word}" for word, names in counts.items() if names)
        return f"{len(self.loaded)} tensors loaded" + "".join(more)


class Checkpoint:
    """A model folder, by its path or a shipped name: its config.json and its tensors.

    files: {name of a tensor: the file it is in}; stored: {name: its name there}, which may tell how
    the model was wrapped; shapes, dtypes: of each tensor.
    """

    def __init__(self, folder):
        self.folder = find_model(folder)
        self.config = read_model_config(self.folder)
        found = find_tensors(self.folder)
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

    def __contains__(self, name):
        return name in self.files

    def tensor(self, name):
        """One tensor, in memory of its own."""
        return read_tensor(self.files[name], self.stored[name])


def place(model, path, tensor):
    """Make `tensor` the parameter at `path`."""
    module, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(module), leaf, nn.Parameter(tensor))


def fill(model, checkpoint, table, fresh=(), dtype=torch.float32, place=place):
    """Put a checkpoint's tensors into `model` by its rename table -> Report.

    fresh: patterns (regex) of parameters that the file may lack. place(model, path, tensor): what
    is done with each tensor. A model on the "meta" device, without memory, gets each tensor as it
    is read, so none exists twice. InputError with every fault; `model` is then unusable.
    """
    parameters, report, faults, filled = dict(model.named_parameters()), Report(), [], {}
    remedy = "download the files again, or save the model again"
    for name, shape in checkpoint.shapes.items():
        if table.tied_to(name):
            report.tied[name] = table.tied_to(name)
            continue
        try:
            ours = table.path(name)
        except KeyError:
            faults.append(f"{short(name, 120)} {shape} is no tensor of {table.title}")
            remedy = remedy_for(name)
            continue
        if ours is None:
            report.dropped.append(name)
        elif ours not in parameters:
            faults.append(f"{name!r} belongs to {ours}, which this model does not have")
        elif ours in filled:
            faults.append(f"{name!r} fills {ours} a second time, after {filled[ours]!r}")
        else:
            report.loaded[name], filled[ours] = ours, name
            faults += shape_fault(name, shape, ours, parameters[ours], table.is_transposed(ours))
    report.fresh = [path for path in parameters if path not in filled]
    faults += [f"nothing in the file fills {path} {tuple(parameters[path].shape)}"
               for path in report.fresh if not any(re.match(pattern, path) for pattern in fresh)]
    faults = faults or place_tensors(model, checkpoint, report, table, dtype, place)
    if faults:
        raise InputError(f"{checkpoint.folder}: {len(faults)} faults: {listed(faults)}: {remedy}")
    return report


def shape_fault(name, shape, ours, parameter, transposed):
    """[] or [what is wrong] with the shape of a file's tensor."""
    expected = tuple(parameter.shape[::-1] if transposed else parameter.shape)
    return [] if shape == expected else [f"{name!r} is {shape}, {ours} is {expected}"]


def place_tensors(model, checkpoint, report, table, dtype, place):
    """Fill in the values -> faults: tensors that are no finite floats, ties that are not equal."""
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
            tensor = tensor.T if table.is_transposed(ours) else tensor
            place(model, ours, tensor.contiguous())
    for name, ours in {} if faults else report.tied.items():
        if (checkpoint.dtypes[name] not in READABLE
                or not torch.equal(checkpoint.tensor(name).to(dtype), model.get_parameter(ours))):
            faults.append(f"{name!r} should be tied to {ours}, but its values differ")
    return faults


def export(model, table):
    """The model's parameters under their names in the file: the table backwards -> {name: tensor}.

    A parameter without a row is a KeyError: it would be lost.
    """
    parameters = {path: parameter.detach() for path, parameter in model.named_parameters()}
    names, tensors = table.file_names(parameters), {}
    for path, tensor in parameters.items():
        tensor = tensor.T if table.is_transposed(path) else tensor
        tensors[names[path]] = tensor.contiguous()
    return tensors
