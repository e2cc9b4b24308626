"""AdamW: weight decay for matrices alone, a learning rate for each layer, a schedule.

AdamW: Loshchilov and Hutter 2017. Lower rates for lower layers: Howard and Ruder 2018,
"discriminative fine-tuning". AdamW in 8 bits: Dettmers et al. 2021 (arXiv:2110.02861); paged:
Dettmers et al. 2023 (QLoRA).
"""
import math
import re

import torch

from ..errors import InputError

BITSANDBYTES = {"adamw8bit": "AdamW8bit", "paged-adamw": "PagedAdamW"}      # --optimizer -> class


def depth_of(name, layers):
    """A parameter's depth: 0 for embeddings, 1 to `layers` for blocks, layers + 1 for the head."""
    block = re.search(r"\blayers\.(\d+)\.", name)
    if block:
        return int(block.group(1)) + 1
    return 0 if "embedding" in name else layers + 1


def parameter_groups(model, lr, weight_decay, layer_decay=1.0, by_size=False):
    """The trainable parameters in groups -> [{"params", "lr", "base_lr", "weight_decay"}, ...].

    Weight decay is for matrices only. The lr of a layer is layer_decay times that of the one above.
    by_size multiplies a tensor's lr by its root mean square (Shazeer and Stern 2018, "Adafactor"):
    a newly initialised T5 has embeddings 16 times as large as its matrices, and no one lr suits it.
    """
    # the number of blocks: depth_of(name, -1) is 1, 2, ... for blocks, and 0 for all else
    layers = max((depth_of(name, -1) for name, _ in model.named_parameters()), default=0)
    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.dim() >= 2 else 0.0
            base_lr = lr * layer_decay ** (layers + 1 - depth_of(name, layers))
            if by_size:
                base_lr *= max(parameter.detach().float().square().mean().sqrt().item(), 1e-3)
            groups.setdefault((base_lr, decay), []).append(parameter)
    return [{"params": parameters, "lr": base_lr, "base_lr": base_lr, "weight_decay": decay}
            for (base_lr, decay), parameters in groups.items()]


def build_optimizer(model, lr, weight_decay, layer_decay=1.0, kind="adamw", by_size=False):
    """The optimiser of a model's trainable parameters. kind: "adamw", or a key of BITSANDBYTES."""
    groups = parameter_groups(model, lr, weight_decay, layer_decay, by_size)
    if kind == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    try:
        from bitsandbytes import optim as package                       # optional, slow to load
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(f"--optimizer {kind} needs the package bitsandbytes "
                         f"({str(error).splitlines()[0]}): pip install bitsandbytes, or take "
                         "--optimizer adamw") from None
    return getattr(package, BITSANDBYTES[kind])(groups)


def lr_factor(step, total, warmup, schedule):
    """The factor of the learning rate at `step` (from 0): it rises to 1 over `warmup` steps, then
    falls to 0 at step `total`. schedule: "linear", "cosine", or "constant", which does not fall."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total - warmup)                     # 0 ... 1
    return {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)),
            "constant": 1.0}[schedule]


def set_lr(optimizer, factor):
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
