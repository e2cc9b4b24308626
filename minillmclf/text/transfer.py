"""Tensors on their way to a device, in one copy: a program waits for each copy from its memory."""
from dataclasses import replace

import torch


def move(tensors, device):
    """Move {name: tensor} to a device -> {name: tensor}. All whole numbers go in one copy."""
    if all(x.device == torch.device(device) for x in tensors.values()):
        return tensors
    whole = {name: x for name, x in tensors.items() if not x.is_floating_point()}
    flat = torch.cat([x.flatten().long() for x in whole.values()]).to(device)
    parts = flat.split([x.numel() for x in whole.values()])
    moved = {name: part.view(x.shape).to(x.dtype)
             for (name, x), part in zip(whole.items(), parts)}
    return {name: moved[name] if name in moved else x.to(device) for name, x in tensors.items()}


def move_record(record, device, inner=None):
    """Move all tensors of a dataclass -> another such. inner: the name of a field that is itself a
    dataclass with tensors, or None there."""
    within = getattr(record, inner) if inner else None
    moved = move(tensors_of(record) | {(inner, name): x for name, x in tensors_of(within).items()},
                 device)
    fields = {name: moved[name] for name in tensors_of(record)}
    if within is not None:
        fields[inner] = replace(within, **{name: moved[inner, name] for name in tensors_of(within)})
    return replace(record, **fields)


def tensors_of(record):
    """{name: tensor} of the fields of a dataclass; {} of None."""
    fields = {} if record is None else vars(record)
    return {name: x for name, x in fields.items() if isinstance(x, torch.Tensor)}
