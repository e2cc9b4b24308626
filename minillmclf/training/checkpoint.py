"""The state of a training run in one safetensors file: kill the process anywhere and go on from the last whole one.

Tensors: the trainable parameters and what the optimiser keeps for each. Everything else (step, history, best score) is
JSON in the file's metadata. One file, replaced whole, so there is no moment at which half a state lies on disk. Random
numbers need no state: those of a step follow from (seed, step) alone, see `seed_step`. Tensors that several processes
share (parallel.py) are written whole, so any number of processes can go on from them.
"""
import hashlib
import json
import os

import torch

from ..errors import InputError
from ..files import check_fields, parse_json, short
from ..models.tensor_files import open_tensors, write_tensors
from .parallel.processes import first, share_like, whole

ANEW = "remove it or choose another --out (train and folds: --overwrite starts anew)"


def seed_step(seed, step):
    """Seed torch for one step, so that dropout depends on (seed, step) and on nothing that came before."""
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def save_state(path, model, optimizer, progress):
    """Write parameters, the optimiser's state and `progress` (a JSON-able dict) to one file, atomically."""
    names = {id(p): n for n, p in model.named_parameters()}
    tensors = {f"model.{n}": whole(p.detach()) for n, p in model.named_parameters() if p.requires_grad}
    numbers = {}                                              # bitsandbytes counts steps with plain numbers
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            name = f"optimizer.{key}.{names[id(parameter)]}"
            if torch.is_tensor(value):
                tensors[name] = whole(value)
            else:
                numbers[name] = value
    if not first():
        return
    tensors = apart({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    more = {"numbers": json.dumps(numbers)} if numbers else {}
    write_tensors(path, tensors, {"progress": json.dumps(progress), **more})


def apart(tensors):
    """A copy of each tensor whose memory stands under another name already: a file holds every name for itself."""
    seen = set()
    for name, tensor in tensors.items():
        tensors[name] = tensor.clone() if tensor.numel() and tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return tensors


def load_state(path, model, optimizer):
    """Put a saved state back -> progress, or None where there is no file."""
    if not os.path.exists(path):
        return None
    names = {n: p for n, p in model.named_parameters() if p.requires_grad}
    tensors, metadata = read_state(path, {f"model.{n}": p for n, p in names.items()}, "optimizer.")
    progress = check_fields(metadata["progress"], {"step": (is_count, "a number of steps")}, path)
    begin_states(optimizer)
    try:
        with torch.no_grad():
            for name, parameter in names.items():
                parameter.copy_(share_like(tensors.pop(f"model.{name}"), parameter))
            for key, value in (tensors | metadata.get("numbers", {})).items():
                _, moment, name = key.split(".", 2)
                put(optimizer.state[names[name]], moment, value, names[name])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: {short(error, 200)} in what the optimiser kept: {ANEW}") from None
    if not hasattr(optimizer, "init_state") and len({frozenset(state) for state in optimizer.state.values()}) > 1:
        raise InputError(f"{path}: a part of what the optimiser kept is missing: {ANEW}")
    return progress


def read_state(path, expected, more="\0"):
    """Tensors and metadata of a file of training, or InputError unless it has the tensors of `expected`, {name: tensor}, in
    their shapes and types, and none beside them but those that
    begin with `more`; all numbers are finite. -> {name: tensor}, {key: value}
    """
    try:
        with open_tensors(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = {key: parse_json(value, path) for key, value in (file.metadata() or {}).items() if key != "format"}
    except InputError as error:
        raise InputError(f"{error}; {ANEW}") from None
    kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()
             if not name.startswith(more)}
    differ = {name for name, tensor in expected.items()
              if kinds.get(name) != (tensor.shape, tensor.dtype)}
    differ |= kinds.keys() - expected.keys()
    if differ or more != "\0" and "progress" not in metadata:
        raise InputError(f"{path}: not a training state of this run ({len(differ)} parameters differ): {ANEW}")
    broken = [name for name, tensor in tensors.items()
              if tensor.is_floating_point() and not tensor.float().isfinite().all()]
    if broken:
        raise InputError(f"{path}: {len(broken)} of its tensors are not finite, {broken[0]} first: {ANEW}")
    return tensors, metadata


def is_count(value):
    """Is it a whole number, 0 or more?"""
    return type(value) is int and value >= 0


def is_number(value):
    return type(value) in (int, float)


def numbers(value):
    """Is it a list of numbers?"""
    return isinstance(value, list) and all(map(is_number, value))


def begin_states(optimizer):
    """Let an optimiser of bitsandbytes lay out its state: in 8 bits or not, in paged memory or not, is its own affair."""
    if hasattr(optimizer, "init_state"):
        for number, group in enumerate(optimizer.param_groups):
            for place, parameter in enumerate(group["params"]):
                optimizer.init_state(group, parameter, number, place)


def put(state, moment, value, parameter):
    """Fill in what is laid out already, else take the tensor, or the plain number, itself."""
    value = share_like(value, parameter) if torch.is_tensor(value) else value
    if torch.is_tensor(state.get(moment)):
        state[moment].copy_(value)
    elif torch.is_tensor(value) and (
            value.shape != parameter.shape or value.dtype != parameter.dtype if value.dim() else
            value.dtype not in (parameter.dtype, torch.float32)):                       # a count
        raise ValueError(f"{moment} of shape {tuple(value.shape)} in {value.dtype}, not "
                         f"{tuple(parameter.shape)}")
    else:
        state[moment] = value
