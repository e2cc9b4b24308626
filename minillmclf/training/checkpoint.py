"""The state of a training run in one safetensors file: kill the process anywhere and go on from the last whole one.

Tensors: the trainable parameters and AdamW's moments. Everything else (step, history, best score) is JSON in the
file's metadata. One file, replaced whole, so there is no moment at which half a state lies on disk. Random numbers need
no state: those of a step follow from (seed, step) alone, see `seed_step`.
"""
import hashlib
import json
import os

import torch

from ..errors import InputError
from ..models.weights import open_tensors, write_tensors


def seed_step(seed, step):
    """Seed torch for one step, so that dropout depends on (seed, step) and on nothing that came before."""
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def save_state(path, model, optimizer, progress):
    """Write parameters, optimiser moments and `progress` (a JSON-able dict) to one file, atomically."""
    names = {id(p): n for n, p in model.named_parameters()}
    tensors = {f"model.{n}": p.detach() for n, p in model.named_parameters() if p.requires_grad}
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            tensors[f"optimizer.{key}.{names[id(parameter)]}"] = value
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(path, tensors, {"progress": json.dumps(progress)})


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
    with torch.no_grad():
        for key in file.keys():
            kind, rest = key.split(".", 1)
            if kind == "model":
                names[rest].copy_(file.get_tensor(key))
            else:
                moment, name = rest.split(".", 1)
                optimizer.state[names[name]][moment] = file.get_tensor(key).to(names[name].device)
    return json.loads(metadata["progress"])
