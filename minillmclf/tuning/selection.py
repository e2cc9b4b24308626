"""Linear layers and biases are chosen by name; a name that matches nothing is an error.

Here too: BitFit (Ben Zaken et al. 2022), which trains biases alone. Not here: what is put around a
layer (lora.py, bottleneck.py).
"""
import re
from itertools import chain

import torch
from torch import nn

from ..errors import InputError
from ..files import short
from ..text.patterns import Clock, compile_pattern


def base_weight(base):
    """The matrix (out, in) of a linear layer. A 4-bit layer (linear4bit.py, which imports this) is
    known by its method `dequantised`."""
    return base.dequantised() if hasattr(base, "dequantised") else base.weight


def place_beside(base):
    """The device and the dtype of what learns beside a linear layer. At least fp32: 16 bits would
    round small steps away. A 4-bit weight is not dequantised for it."""
    is_4bit = hasattr(base, "dequantised")
    dtype = getattr(base, "dtype", torch.float32) if is_4bit else base.weight.dtype
    device = next(chain(base.buffers(), base.parameters())).device
    return device, torch.promote_types(dtype, torch.float32)


def four_bit_sizes(model):
    """{path: how many numbers it has} of the matrices of a model that are in four bits."""
    return {path: layer.in_features * layer.out_features
            for path, layer in model.named_modules() if hasattr(layer, "quantised")}


def find_linears(model):
    """{path: module} of the linear layers, in order; a wrapped one appears as its wrapper."""
    linears = {}
    for path, module in model.named_modules():              # a wrapper comes before what is in it
        parent = path.rpartition(".")[0]
        if path and hasattr(module, "in_features") and parent not in linears:
            linears[path] = module
    return linears


def in_head(path):
    """Does this path lie in the classification head or the language-model head?"""
    return not {"head", "lm_head"}.isdisjoint(path.split("."))


def matching_paths(pattern, paths, where="targets"):
    """The paths that the regular expression matches as a whole."""
    compiled = compile_pattern(pattern, where, clock=Clock())
    return [path for path in paths if compiled.fullmatch(path)]


def find_targets(model, targets):
    """The paths of the linear layers that `targets` selects, in the model's order.

    targets: a list of leaf names or endings of paths, "all-linear", or a regular expression for
    whole paths. A layer of a head is taken only where a list names it ("head.dense"). Raises
    InputError for a name that matches nothing.
    """
    paths = list(find_linears(model))
    body = [path for path in paths if not in_head(path)]
    if targets == "all-linear":
        hits = {targets: body}
    elif isinstance(targets, str):
        hits = {targets: matching_paths(targets, body)}
    else:
        hits = {name: [path for path in (paths if in_head(name) else body)
                       if f".{path}".endswith(f".{name}")] for name in targets}
    missing = [name for name, found in hits.items() if not found]
    if missing or not hits:
        kinds = dict.fromkeys(re.sub(r"\b\d+\b", "N", path) for path in paths)
        raise InputError(f"targets {short(missing)}: no such linear layer, or only in the head; "
                         "give a list of names, all-linear or a regular expression for whole "
                         f"paths; linear layers here: {', '.join(kinds)}")
    return [path for path in paths if any(path in found for found in hits.values())]


def values_by_path(paths, default, patterns):
    """{path: value}: that of the first pattern, {regular expression: value}, that matches the path
    or its end, else the default. InputError for a pattern that decides no value."""
    patterns, clock = patterns or {}, Clock()
    if len(patterns) > len(paths):
        raise InputError(f"{len(patterns)} patterns for ranks or alphas, but {len(paths)} targets: "
                         "drop some")
    compiled = {pattern: compile_pattern(rf"(.*\.)?({pattern})", "a pattern for ranks or alphas",
                                         clock=clock) for pattern in patterns}
    values, used = {}, set()
    for path in paths:
        first = next((p for p in patterns if compiled[p].fullmatch(path)), None)
        values[path] = default if first is None else patterns[first]
        used.add(first)
    for pattern in patterns.keys() - used:
        raise InputError(f"pattern {short(pattern)} decides about none of the {len(paths)} "
                         "targets: correct it or drop it")
    return values


def check_unwrapped(layers, paths, wrapper):
    """InputError unless the layers at `paths` are linear, plain or 4-bit, and have no wrapper."""
    for path in paths:
        if not (isinstance(layers[path], nn.Linear) or hasattr(layers[path], "dequantised")):
            raise InputError(f"{path} is a {type(layers[path]).__name__}, it takes no {wrapper}: "
                             "undo that first")


def find_modules(model, kind, name):
    """{path: module} of the modules of the class `kind`; InputError if there is none."""
    modules = {path: module for path, module in model.named_modules() if isinstance(module, kind)}
    if not modules:
        raise InputError(f"this model has no {name} adapters: wrap it first")
    return modules


def trainable_biases(model, which):
    """The names of the biases to train. which: "none"; "all", all outside the classification head;
    "lora_only", those of the layers that LoRA wraps."""
    if which not in ("none", "all", "lora_only"):
        raise InputError(f"bias {short(which)} is not known; known: none, all, lora_only")
    if which == "none":
        return []
    biases = [name for name, _ in model.named_parameters() if name.split(".")[-1] == "bias"]
    if which == "lora_only":
        return [name for name in biases if name.endswith(".base.bias")]
    return [name for name in biases if "head" not in name.split(".")]


def bitfit_parameters(model):
    """The names of the parameters that BitFit trains; InputError for a family without biases."""
    names = trainable_biases(model, "all")
    if not names:
        raise InputError("BitFit trains biases, and this model's body has none (as LLaMA, Gemma "
                         "and T5): use LoRA")
    return names
