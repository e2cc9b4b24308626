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
from ..models.weights import open_tensors, write_tensors
from .parallel import first, share_like, whole


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
    file = open_tensors(path)
    metadata = file.metadata() or {}
    names = dict(model.named_parameters())
    expected = {f"model.{n}" for n, p in names.items() if p.requires_grad}
    found = {key for key in file.keys() if key.startswith("model.")}
    if "progress" not in metadata or found != expected:
        raise InputError(f"{path}: not a training state of this run ({len(found ^ expected)} parameters differ): "
                         f"remove it or choose another --out")
    begin_states(optimizer)
    with torch.no_grad():
        for key in file.keys():
            kind, rest = key.split(".", 1)
            if kind == "model":
                names[rest].copy_(share_like(file.get_tensor(key), names[rest]))
            else:
                moment, name = rest.split(".", 1)
                put(optimizer.state[names[name]], moment, share_like(file.get_tensor(key), names[name]))
    for key, value in json.loads(metadata.get("numbers", "{}")).items():
        _, moment, name = key.split(".", 2)
        optimizer.state[names[name]][moment] = value
    return json.loads(metadata["progress"])


def begin_states(optimizer):
    """Let an optimiser of bitsandbytes lay out its state: in 8 bits or not, in paged memory or not, is its own affair."""
    if hasattr(optimizer, "init_state"):
        for number, group in enumerate(optimizer.param_groups):
            for place, parameter in enumerate(group["params"]):
                optimizer.init_state(group, parameter, number, place)


def put(state, moment, tensor):
    """Fill in what is laid out already, else take the tensor itself."""
    if moment in state:
        state[moment].copy_(tensor)
    else:
        state[moment] = tensor
