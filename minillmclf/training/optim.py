"""AdamW: weight decay for matrices alone, and a schedule of the learning rate.

AdamW: Loshchilov and Hutter 2017. AdamW in 8 bits: Dettmers et al. 2021 (arXiv:2110.02861); paged:
Dettmers et al. 2023 (QLoRA).
"""
import math

import torch

from ..errors import InputError

BITSANDBYTES = {"adamw8bit": "AdamW8bit", "paged-adamw": "PagedAdamW"}      # --optimizer -> class


def parameter_groups(model, lr, weight_decay, factor_of=None):
    """The trainable parameters in groups -> [{"params", "lr", "base_lr", "weight_decay"}, ...].

    Weight decay is for matrices only. factor_of(name, parameter): a factor of a parameter's lr
    (lr_factors.py); None: 1 for all.
    """
    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.dim() >= 2 else 0.0
            base_lr = lr * factor_of(name, parameter) if factor_of else lr
            groups.setdefault((base_lr, decay), []).append(parameter)
    return [{"params": parameters, "lr": base_lr, "base_lr": base_lr, "weight_decay": decay}
            for (base_lr, decay), parameters in groups.items()]


def build_optimizer(model, lr, weight_decay, factor_of=None, kind="adamw"):
    """The optimiser of a model's trainable parameters. kind: "adamw", or a key of BITSANDBYTES."""
    groups = parameter_groups(model, lr, weight_decay, factor_of)
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
