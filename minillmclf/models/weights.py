"""Checkpoints in and out: tensors under Hugging Face names <-> the parameters of our modules.

A rename table is data, {name in the file: path of the parameter in the model}, with `{}` for the
number of a layer and None for a tensor that is dropped on purpose. A row may also name a module,
for its weight and its bias. Loading reads the table from left to right, saving from right to left.
Loading checks that every tensor has a row, every parameter is filled, shapes agree and tied
tensors are equal, and reports all faults at once. Not here: the files (tensor_files.py).
"""
import os
import re
from dataclasses import dataclass, field

import torch
from torch import nn

from ..errors import InputError
from ..files import find_model, short
from .config import read_model_config
from .tensor_files import count_faults, find_tensors, open_tensors, read_tensor, remedy_for

WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")  # DataParallel, torch.compile
READABLE = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")   # dtypes, as safetensors names them
# end of a name in the file -> end of the path; gamma and beta: old names in norms
LEAVES = {".weight": ".weight", ".bias": ".bias", ".gamma": ".weight", ".beta": ".bias", "": ""}
OWN_HEADS = {"minillmclf_*": None}       # our heads' tensors are dropped where no row names them


@dataclass
class RenameTable:
    """The rename table of a model, with what else is known of its files.

    names: name in the file -> path or None; a row "x.*" drops all that begins with "x.". ties: name
    in the file -> path of the parameter that it must equal. aliases: pairs of prefixes, (in a file,
    in `names`), for files that use another prefix. transposed: modules whose weight is (in, out) in
    the file, not (out, in). title: what errors call this table.
    """
    names: dict
    ties: dict = field(default_factory=dict)
    aliases: tuple = ()
    transposed: tuple = ()
    title: str = "the rename table"

    def aliases_of(self, name):
        """A name in the file -> a list: the name, then the name under each alias of its prefix."""
        more = (new + name[len(old):] for old, new in self.aliases if name.startswith(old))
        return [name, *more]

    def path_of(self, name):
        """A name in the file -> its path here; None if it is dropped; KeyError if no row fits."""
        for alias in self.aliases_of(name):
            for pattern, layer in ((alias, ""), split_layer_number(alias)):
                for leaf, own_leaf in LEAVES.items():
                    row = pattern.removesuffix(leaf)
                    if pattern.endswith(leaf) and row in self.names:
                        ours = self.names[row]
                        return None if ours is None else (ours + own_leaf).replace("{}", layer)
        if any(name.startswith(row[:-1]) for row in self.names if row.endswith("*")):
            return None
        raise KeyError(name)

    def tied_to(self, name):
        """The path of the parameter that a tensor in the file is a copy of, or None."""
        return next((self.ties[each] for each in self.aliases_of(name) if each in self.ties), None)

    def file_names(self, paths):
        """Paths of modules or parameters -> {path: name in the file}, of those that have one."""
        by_path = {ours: file for file, ours in self.names.items() if ours is not None}
        found = {}
        for path in paths:
            pattern, layer = split_layer_number(path)
            module, leaf = os.path.splitext(pattern)         # "norm.bias" -> "norm", ".bias"
            if pattern in by_path:
                found[path] = by_path[pattern].replace("{}", layer)
            elif module in by_path:
                found[path] = (by_path[module] + leaf).replace("{}", layer)
        return found

    def is_transposed(self, path):
        """Is the parameter at `path` transposed in the file?"""
        module, _, leaf = path.rpartition(".")
        return leaf == "weight" and module.rpartition(".")[2] in self.transposed


def split_layer_number(name):
    """"layers.3.q_proj.bias" -> ("layers.{}.q_proj.bias", "3"); "norm.bias" -> ("norm.bias", "")"""
    layer = re.search(r"\.(\d+)\.", name)
    if layer is None:
        return name, ""
    return name[:layer.start(1)] + "{}" + name[layer.end(1):], layer.group(1)


@dataclass
class LoadReport:
    """What became of every tensor. loaded, tied: {name in the file: path}; dropped: names in the
    file; newly_initialised: paths of the parameters that the file does not have."""
    loaded: dict = field(default_factory=dict)
    tied: dict = field(default_factory=dict)
    dropped: list = field(default_factory=list)
    newly_initialised: list = field(default_factory=list)

    def summary(self):
        """How many tensors, in one line; the command `inspect` prints their names."""
        counts = {"tied": self.tied, "dropped": self.dropped, "new": self.newly_initialised}
        more = (f", {len(names)} {word}" for word, names in counts.items() if names)
        return f"{len(self.loaded)} tensors loaded" + "".join(more)


class Checkpoint:
    """A model folder, by its path or a shipped name: its config.json and its tensors.

    files: {name of a tensor: its file}; stored_names: {name: the name in that file}, which has a
    prefix if the model was saved inside a wrapper; shapes, dtypes: {name: shape}, {name: dtype}.
    """

    def __init__(self, folder):
        self.folder = find_model(folder)
        self.config = read_model_config(self.folder)
        found = find_tensors(self.folder)
        self.stored_names = {WRAPPERS.sub("", name): name for name in found}
        if len(self.stored_names) < len(found):
            raise InputError(f"{self.folder}: holds tensors twice, as they are and behind module. "
                             f"or _orig_mod. (DataParallel, torch.compile): save it unwrapped")
        self.files = {name: found[stored] for name, stored in self.stored_names.items()}
        self.shapes, self.dtypes = {}, {}
        for path in sorted(set(self.files.values())):
            with open_tensors(path) as file:
                for name in (name for name, holder in self.files.items() if holder == path):
                    view = file.get_slice(self.stored_names[name])
                    self.shapes[name], self.dtypes[name] = tuple(view.get_shape()), view.get_dtype()

    def __contains__(self, name):
        return name in self.files

    def tensor(self, name):
        """Read one tensor; it does not share memory with the file."""
        return read_tensor(self.files[name], self.stored_names[name])


def set_tensor(model, path, tensor):
    """Make `tensor` the parameter at `path`."""
    module, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(module), leaf, nn.Parameter(tensor))


def load_parameters(model, checkpoint, table, optional=(), dtype=torch.float32, place=set_tensor):
    """Load a checkpoint's tensors into `model` by its rename table -> LoadReport.

    optional: regular expressions for beginnings of paths that the file may lack. dtype: of all
    tensors, or a function of the path. place(model, path, tensor) sets one parameter. With a model
    on "meta" no tensor is in memory twice. After an InputError, of all faults, `model` is unusable.
    """
    parameters, report, faults, filled = dict(model.named_parameters()), LoadReport(), [], {}
    remedy = "download the files again, or save the model again"
    for name, shape in checkpoint.shapes.items():
        if table.tied_to(name):
            report.tied[name] = table.tied_to(name)
            continue
        try:
            ours = table.path_of(name)
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
    report.newly_initialised = unfilled = [path for path in parameters if path not in filled]
    faults += [f"nothing in the file fills {path} {tuple(parameters[path].shape)}"
               for path in unfilled if not any(re.match(pattern, path) for pattern in optional)]
    faults = faults or place_tensors(model, checkpoint, report, table, dtype, place)
    if faults:
        raise InputError(f"{checkpoint.folder}: {count_faults(faults)}: {remedy}")
    return report


def shape_fault(name, shape, ours, parameter, transposed):
    """-> [a fault] if the tensor `name` has another shape than the parameter at `ours`, else []."""
    expected = tuple(parameter.shape[::-1] if transposed else parameter.shape)
    return [] if shape == expected else [f"{name!r} is {shape}, {ours} is {expected}"]


def place_tensors(model, checkpoint, report, table, dtype, place):
    """Read and place the tensors that report.loaded lists, then compare the tied ones -> faults."""
    faults = []
    for name, ours in report.loaded.items():
        if checkpoint.dtypes[name] not in READABLE:
            faults.append(f"{name!r} holds {checkpoint.dtypes[name]}, floats are expected")
            continue
        wanted = dtype if isinstance(dtype, torch.dtype) else dtype(ours)
        tensor = checkpoint.tensor(name).to(wanted)
        # min and max are NaN where any value is
        if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            faults.append(f"{name!r} holds values that are not finite in "
                          f"{str(wanted).removeprefix('torch.')}")
        else:
            tensor = tensor.T if table.is_transposed(ours) else tensor
            place(model, ours, tensor.contiguous())
    if faults:
        return faults                                  # what was not placed cannot be compared
    for name, ours in report.tied.items():
        parameter = model.get_parameter(ours)
        if (checkpoint.dtypes[name] not in READABLE
                or not torch.equal(checkpoint.tensor(name).to(parameter), parameter)):
            faults.append(f"{name!r} should be tied to {ours}, but its values differ")
    return faults


def export_tensors(model, table):
    """The model's parameters -> {name in the file: tensor}. KeyError for a parameter without a
    row: the file would lack it."""
    parameters = {path: parameter.detach() for path, parameter in model.named_parameters()}
    names, tensors = table.file_names(parameters), {}
    for path, tensor in parameters.items():
        tensor = tensor.T if table.is_transposed(path) else tensor
        tensors[names[path]] = tensor.contiguous()
    return tensors
