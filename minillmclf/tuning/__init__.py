"""Which weights are trained? A tuning config names a method and its options; `tune` applies it.

  full              everything
  head              the head alone
  last-N            the head, the last N blocks (in an encoder-decoder: of the decoder) and the
                    norm after them
  bitfit            biases and the head
  lora dora qlora   small updates of frozen matrices (lora.py); qlora: of 4-bit matrices (quant.py)
  houlsby pfeiffer  bottlenecks after frozen layers (bottleneck.py)
  prefix prompt     new keys and values, or new words, before every text (prefix.py, prompt.py)

A head is always trained in full: a newly initialised one that is frozen would stay random.
A classifier that answers with label texts has no head.
"""
import re
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import InputError
from ..models import built_in_fp32
from . import bottleneck, lora, prefix, prompt, selection

LORA_METHODS, BOTTLENECK_METHODS = ("lora", "dora", "qlora"), ("houlsby", "pfeiffer")
ADAPTER_METHODS = (*LORA_METHODS, *BOTTLENECK_METHODS, "prefix", "prompt")  # saved without base
LORA_OPTIONS = ("rank", "alpha", "dropout", "use_rslora", "targets", "bias")


def attach_lora(model, config, seed):
    method = config["method"]
    if method == "qlora" and not selection.four_bit_sizes(model):
        raise InputError("--method qlora: this model is not in four bits: build it with quantise, "
                         "on pretrained weights")
    numbers = [config[key] for key in ("rank", "alpha", "dropout", "use_rslora")]
    targets = config["targets"] or list(lora.DEFAULT_TARGETS[model.config["model_type"]])
    lora.wrap(model, targets, lora.LoraConfig(*numbers, use_dora=method == "dora"), seed=seed)


def lora_parameters(model, config):
    return [*lora.trainable_parameters(model), *selection.trainable_biases(model, config["bias"])]


def attach_bottlenecks(model, config, seed):
    bottleneck.wrap(model, config["method"], config["size"], seed)


def bottleneck_parameters(model, config):
    return bottleneck.trainable_parameters(model, norms=config["method"] == "houlsby")


def attach_prefix(model, config, seed):
    prefix.shorten_texts(model, config["tokens"])
    prefix.attach_prefix(model, config["tokens"], config["projection"], seed)


def attach_prompt(model, config, seed):
    prefix.shorten_texts(model, config["tokens"])
    prompt.attach_prompt(model, config["tokens"], seed=seed)


def last_block_parameters(model, config):
    stack, count = block_stack(model)
    first = count - int(config["method"].removeprefix("last-"))
    trained = [f"{stack}.{block}." for block in range(first, count)]
    trained.append(stack.removesuffix("layers") + "final_norm.")
    return [name for name, _ in model.named_parameters() if name.startswith(tuple(trained))]


@dataclass(frozen=True)
class Method:
    """A way of tuning.

    trainable(model, config) -> names of the parameters that it trains besides the head's, or a dict
    with these keys; options: the keys of its config besides "method"; attach(model, config, seed)
    adds its new modules, and detach(model) removes them.
    """
    trainable: Callable = lambda model, config: ()
    options: tuple = ()
    attach: Callable = lambda model, config, seed: None
    detach: Callable = lambda model: None


METHODS = {
    "full": Method(lambda model, config: dict(model.named_parameters())),
    "head": Method(),
    "last-N": Method(last_block_parameters),
    "bitfit": Method(lambda model, config: selection.bitfit_parameters(model)),
    "houlsby": Method(bottleneck_parameters, ("size",), attach_bottlenecks, bottleneck.unwrap),
    "pfeiffer": Method(bottleneck_parameters, ("size",), attach_bottlenecks, bottleneck.unwrap),
    "lora": Method(lora_parameters, LORA_OPTIONS, attach_lora, lora.merge),
    "dora": Method(lora_parameters, LORA_OPTIONS, attach_lora, lora.merge),
    "qlora": Method(lora_parameters, (*LORA_OPTIONS, "quantise"), attach_lora, lora.merge),
    "prefix": Method(lambda model, config: prefix.trainable_parameters(model),
                     ("tokens", "projection"), attach_prefix, prefix.detach_prefix),
    "prompt": Method(lambda model, config: prompt.trainable_parameters(model),
                     ("tokens",), attach_prompt, prompt.detach_prompt),
}


def block_stack(model):
    """The stack of blocks from which last-N takes the last -> its path, its number of blocks."""
    stack = "backbone." + model.backbone.BLOCKS_PATH
    return stack, len(model.get_submodule(stack))


def find_method(name, model):
    """The Method of this name; "last-3" is last-N. InputError for an unknown one."""
    _, blocks = block_stack(model)
    last = re.fullmatch(r"last-(\d+)", name)
    if last and 1 <= int(last[1]) <= blocks:
        return METHODS["last-N"]
    if name not in METHODS or name == "last-N":
        raise InputError(f"--method {name}: known are {', '.join(METHODS)}, with N from 1 to the "
                         f"model's {blocks} blocks")
    return METHODS[name]


def trainable_names(model, method, bias="none"):
    """The names of the parameters that a method trains, once its new modules are attached."""
    chosen = find_method(method, model).trainable(model, {"method": method, "bias": bias})
    return {*chosen, *(name for name, _ in model.named_parameters() if name.startswith("head."))}


def trained_in_place(model, method):
    """The names of the parameters of whole blocks that a method trains in place, known before it is
    attached (frozen.py rounds other matrices). Biases and norms, which some methods train too, are
    not among them."""
    chosen = find_method(method, model)
    in_place = chosen in (METHODS["full"], METHODS["last-N"])
    return {*chosen.trainable(model, {"method": method})} if in_place else set()


def set_trainable(model, method, bias="none"):
    """Set requires_grad of all parameters of a classifier -> (trainable, total), how many numbers.
    A 4-bit matrix is no parameter, but its numbers count in the total."""
    trainable = trainable_names(model, method, bias)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    return (sum(p.numel() for p in model.parameters() if p.requires_grad),
            sum(p.numel() for p in model.parameters())
            + sum(selection.four_bit_sizes(model).values()))


@built_in_fp32()
def tune(model, config, seed=0):
    """Apply a tuning config to a classifier -> (trainable, total) numbers of parameters.

    config: {"method": ..., and the options of its Method}; it becomes `model.tuning`. The seed
    decides new weights. Raises InputError for an unknown method, for numbers that do not fit, or if
    4-bit matrices, or nothing at all, would be trained.
    """
    method = find_method(config["method"], model)
    if method in (METHODS["full"], METHODS["last-N"]) and selection.four_bit_sizes(model):
        raise InputError(f"matrices in four bits cannot learn, and --method {config['method']} "
                         "trains them: take --method qlora, or the base in full precision")
    method.attach(model, config, seed)
    model.tuning = config
    trainable, total = set_trainable(model, config["method"], config.get("bias", "none"))
    if not trainable:
        raise InputError(f"--method {config['method']}: nothing would learn: with label texts "
                         "there is no head, and this method leaves the rest of "
                         f"{type(model.backbone).__name__} as it is: choose another one")
    return trainable, total
