"""Which weights learn? A recipe names a method and its numbers; `tune` carries it out on a classifier.

  full              everything
  head              the readout alone
  last-N            the readout, the N highest blocks (of an encoder-decoder: of its decoder) and the norm above them
  bitfit            biases and the readout
  lora dora qlora   small updates of frozen matrices (lora.py); qlora: of matrices in four bits (quant.py)
  houlsby pfeiffer  bottlenecks behind frozen layers (adapter.py)
  prefix prompt     keys and values, or new words, before every text (prefix.py, prompt.py)

A head always learns, as a whole: a fresh one that were frozen would stay random. Label texts have none.
"""
import re

from ..errors import InputError
from . import adapter, lora, prefix, prompt, selection

# method -> what its recipe has besides "method", as the settings call it
OPTIONS = {"full": (), "head": (), "last-N": (), "bitfit": (), "houlsby": ("size",), "pfeiffer": ("size",),
           **dict.fromkeys(("lora", "dora"), ("rank", "alpha", "dropout", "rank_stabilised", "targets", "bias")),
           "qlora": ("rank", "alpha", "dropout", "rank_stabilised", "targets", "bias", "quantise"),
           "prefix": ("tokens", "projection"), "prompt": ("tokens",)}
UPDATES, BOTTLENECKS = ("lora", "dora", "qlora"), ("houlsby", "pfeiffer")
APART = (*UPDATES, *BOTTLENECKS, "prefix", "prompt")         # what is learned is kept apart from the base


def kind_of(method, blocks):
    """The row of OPTIONS that a method belongs to; last-3 is last-N. InputError for an unknown one. blocks: the model's."""
    last = re.fullmatch(r"last-(\d+)", method)
    if last and 1 <= int(last.group(1)) <= blocks:
        return "last-N"
    if method not in OPTIONS or method == "last-N":
        raise InputError(f"--method {method}: known are {', '.join(OPTIONS)}, with N from 1 to the model's {blocks} blocks")
    return method


def attach(model, recipe, seed=0):
    """Put into a classifier what the recipe's method adds to it, in place. Fresh weights follow from the seed."""
    r, method = recipe, recipe["method"]
    if method in UPDATES:
        targets = r["targets"] or list(lora.DEFAULT_TARGETS[model.config["model_type"]])
        if method == "qlora" and not any(hasattr(module, "dequantised") for module in model.modules()):
            raise InputError("--method qlora: this model is not in four bits: build it with quantise, on pretrained weights")
        lora.wrap(model, targets, r["rank"], r["alpha"], r["dropout"], r["rank_stabilised"], method == "dora", seed=seed)
    elif method in BOTTLENECKS:
        adapter.wrap(model, method, r["size"], seed=seed)
    elif method == "prefix":
        prefix.attach_prefix(model, r["tokens"], r["projection"], seed=seed)
        model.max_length = min(model.max_length, model.backbone.max_input_tokens or model.max_length)
    elif method == "prompt":
        longest = prompt.attach_prompt(model, r["tokens"], seed=seed).longest
        model.max_length = min(model.max_length, longest or model.max_length)


def learning(model, method, bias="none"):
    """The names of the parameters that learn by a method, once `attach` has put in what it adds."""
    stack = "backbone." + model.backbone.BLOCKS                       # where the blocks are, low to high
    blocks = len(model.get_submodule(stack))
    kind, names = kind_of(method, blocks), [name for name, _ in model.named_parameters()]
    learn = {name for name in names if name.startswith("head.") or kind == "full"}
    if kind == "last-N":
        high = [f"{stack}.{block}." for block in range(blocks - int(method[5:]), blocks)]
        learn |= {name for name in names if name.startswith((*high, stack.removesuffix("layers") + "final_norm."))}
    elif kind == "bitfit":
        learn |= set(selection.bitfit(model))
    elif kind in UPDATES:
        learn |= {*lora.adapter_parameters(model), *selection.learning_biases(model, bias)}
    elif kind in BOTTLENECKS:
        learn |= set(adapter.trained_parameters(model, norms=kind == "houlsby"))
    elif kind in ("prefix", "prompt"):
        learn |= set({"prefix": prefix, "prompt": prompt}[kind].trained_parameters(model))
    return learn


def choose_weights(model, method, bias="none"):
    """Set requires_grad on every parameter of a classifier -> (trainable, total) numbers of parameters."""
    learn = learning(model, method, bias)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learn)
    frozen = sum(module.in_features * module.out_features for module in model.modules() if hasattr(module, "quantised"))
    return (sum(p.numel() for p in model.parameters() if p.requires_grad), sum(p.numel() for p in model.parameters()) + frozen)


def tune(model, recipe, seed=0):
    """Carry out a recipe on a classifier -> (trainable, total) numbers of parameters; `model.recipe` remembers it.

    recipe: {"method": ..., and what OPTIONS says}. Raises InputError for an unknown method or numbers that do not fit.
    """
    kind_of(recipe["method"], len(model.backbone.get_submodule(model.backbone.BLOCKS)))
    attach(model, recipe, seed)
    model.recipe = recipe
    trainable, total = choose_weights(model, recipe["method"], recipe.get("bias", "none"))
    if not trainable:
        raise InputError(f"--method {recipe['method']}: nothing would learn: with label texts there is no head, and this "
                         f"method leaves the rest of {type(model.backbone).__name__} as it is: choose another one")
    return trainable, total
