"""Which linear layers, and which biases, does a method mean? Paths are chosen by name, and a name that means none is an error.

Here too: BitFit (Ben Zaken et al. 2022), in which biases alone learn. Not here: what is put around a layer (lora.py, adapter.py).
"""
import re

from torch import nn

from ..errors import InputError
from ..files import short
from ..text.patterns import Clock, compile_pattern


def base_weight(base):
    """The matrix (out, in) of a linear layer; of a 4-bit one, the numbers that it stands for."""
    return base.dequantised() if hasattr(base, "dequantised") else base.weight


def is_plain(module):
    """Is it a linear layer, of floats or of 4 bits, and no wrapper of one?"""
    return isinstance(module, nn.Linear) or hasattr(module, "dequantised")


def linears(model):
    """{path: module} of the linear layers, in order; a wrapped one is there once, as its wrapper."""
    found = {}
    for path, module in model.named_modules():
        if path and hasattr(module, "in_features") and path.rpartition(".")[0] not in found:
            found[path] = module
    return found


def in_head(path):
    """Is it part of a readout, of classes or of the vocabulary?"""
    return not {"head", "lm_head"}.isdisjoint(path.split("."))


def matching(pattern, paths, where="targets"):
    """Those of the paths that the regular expression describes as a whole."""
    compiled = compile_pattern(pattern, where, clock=Clock())
    return [path for path in paths if compiled.fullmatch(path)]


def find_targets(model, targets):
    """The paths of the linear layers that `targets` means, in the model's order; InputError if a name means none.

    targets: a list of leaf names or endings of paths, or "all-linear", or a regular expression for whole paths. A head
    is taken only where a list names it ("head.dense"): it learns as a whole anyway.
    """
    paths = list(linears(model))
    body = [path for path in paths if not in_head(path)]
    if isinstance(targets, str):
        hits = {targets: body if targets == "all-linear" else matching(targets, body)}
    else:
        hits = {name: [path for path in (paths if in_head(name) else body) if f".{path}".endswith(f".{name}")]
                for name in targets}
    missing = [name for name, found in hits.items() if not found]
    if missing or not hits:
        kinds = dict.fromkeys(re.sub(r"\b\d+\b", "N", path) for path in paths)
        raise InputError(f"targets {short(missing)}: no such linear layer, or only in the head; "
                         f"give a list of names, "
                         f"all-linear or a regular expression for whole paths; linear layers here: {', '.join(kinds)}")
    return [path for path in paths if any(path in found for found in hits.values())]


def per_path(paths, default, patterns):
    """{path: value}, the value of the first pattern that fits the path or its end, else the default."""
    patterns, clock = patterns or {}, Clock()
    if len(patterns) > len(paths):
        raise InputError(f"{len(patterns)} patterns for ranks or alphas, but {len(paths)} targets: "
                         f"drop some")
    compiled = {p: compile_pattern(rf"(.*\.)?({p})", "a pattern for ranks or alphas", clock=clock)
                for p in patterns}
    chosen = {path: next((p for p in patterns if compiled[p].fullmatch(path)), None)
              for path in paths}
    for pattern in set(patterns) - set(chosen.values()):
        raise InputError(f"pattern {short(pattern)} decides about none of the {len(paths)} "
                         f"targets: correct it or drop it")
    return {path: default if pattern is None else patterns[pattern] for path, pattern in chosen.items()}


def replace(model, path, module):
    """Put `module` in the place of the one at `path` -> module."""
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
    return module


def learning_biases(model, which):
    """The names of the biases that learn: "none", "all" outside a classification head, "lora_only" of wrapped layers."""
    if which not in ("none", "all", "lora_only"):
        raise InputError(f"bias {short(which)} is not known; known: none, all, lora_only")
    biases = [name for name, _ in model.named_parameters() if name.split(".")[-1] == "bias"]
    if which == "lora_only":
        return [name for name in biases if name.endswith(".base.bias")]
    return [name for name in biases if which == "all" and "head" not in name.split(".")]


def bitfit(model):
    """The names of the parameters that BitFit trains: the biases. InputError for a family that has none."""
    names = learning_biases(model, "all")
    if not names:
        raise InputError("BitFit trains biases, and this model's body has none (as LLaMA, Gemma and T5): use LoRA")
    return names
