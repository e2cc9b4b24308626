"""The optimiser's settings: who is decayed, how fast each layer learns, how the rate rises and falls.

AdamW: Loshchilov and Hutter 2017. Lower rates for lower layers: Howard and Ruder 2018, "discriminative fine-tuning".
In 8 bits: Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization"; paged: Dettmers et al. 2023 (QLoRA).
"""
import math
import re

import torch

from ..errors import InputError

FOREIGN = {"adamw8bit": "AdamW8bit", "paged-adamw": "PagedAdamW"}     # our name -> class in bitsandbytes.optim


def depth_of(name, layers):
    """0 for embeddings, 1..layers for the blocks, layers + 1 for what stands above the backbone."""
    block = re.search(r"\blayers\.(\d+)\.", name)
    if block:
        return int(block.group(1)) + 1
    return 0 if "embedding" in name else layers + 1


def parameter_groups(model, lr, weight_decay, layer_decay=1.0, by_size=False):
    """Groups for AdamW: matrices are decayed, biases and norms are not; a layer one step lower learns `layer_decay`
    times as fast. Frozen parameters are left out. -> list of dicts with params, lr, weight_decay.

    by_size: a tensor's rate is lr times its root mean square now (Shazeer and Stern 2018, "Adafactor"). A fresh T5 wants
    it: its embeddings are 16 times as large as its matrices, and one step for all is too little for the one or too much
    for the others.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    layers = max((depth_of(n, -1) for n, _ in model.named_parameters()), default=0)
    groups = {}
    for name, parameter in named:
        decay = weight_decay if parameter.dim() >= 2 else 0.0
        rate = lr * layer_decay ** (layers + 1 - depth_of(name, layers))
        rate *= max(parameter.detach().float().square().mean().sqrt().item(), 1e-3) if by_size else 1
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": p, "lr": rate, "base_lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


def build_optimizer(model, lr, weight_decay, layer_decay=1.0, kind="adamw", by_size=False):
    """AdamW over the trainable parameters, in one fused pass; kind: "adamw", or a name of FOREIGN. The rest: as above."""
    groups = parameter_groups(model, lr, weight_decay, layer_decay, by_size)
    if kind == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    try:
        from bitsandbytes import optim as foreign
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(f"--optimizer {kind} needs the package bitsandbytes ({str(error).splitlines()[0]}): "
                         f"pip install bitsandbytes, or take --optimizer adamw") from None
    if any(hasattr(p, "full_tensor") for group in groups for p in group["params"]):
        raise InputError(f"--optimizer {kind} works on whole tensors, --parallel fsdp shares them out: take adamw or ddp")
    return getattr(foreign, FOREIGN[kind])(groups)


def rate_factor(step, total, warmup, schedule):
    """What the learning rate is multiplied with at `step` (0-based): up over `warmup` steps, then down to 0 at `total`.

    schedule: "linear", "cosine" or "constant".
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total - warmup)                     # 0 ... 1
    return {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[schedule]


def set_rate(optimizer, factor):
    """Scale every group's own learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
