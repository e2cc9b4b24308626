"""adapter_config.json, the half of a PEFT adapter that says how its numbers are meant, and a record of it.

Each key that changes the answers has a row in a table: its name in a record, which is that of lora.wrap where there is
one, its default, and a test. Keys known to change nothing are skipped. Any other key that says something is an error that
names it: an option that somebody invents next year must not be overlooked.

Which layers are meant (`meant`) follows PEFT's rules, for the names that transformers gives them; peft_model.py turns
those into ours. Reference: https://huggingface.co/docs/peft/package_reference/lora
"""
import re
from collections import Counter

from ..files import short
from . import lora, selection

CONFIG = "adapter_config.json"
INERT = {"peft_type", "peft_version", "task_type", "auto_mapping", "revision", "inference_mode", "fan_in_fan_out",
         "megatron_core", "qalora_group_size", "eva_config", "token_dim", "num_transformer_submodules", "num_layers",
         "num_attention_heads", "init_weights", "encoder_hidden_size", "prefix_projection", "prompt_tuning_init",
         "prompt_tuning_init_text", "tokenizer_name_or_path"}        # they change no answer, or the shapes say it too


def is_names(value):
    return isinstance(value, list) and all(isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) for name in value)


def is_whole(value):
    return type(value) is int and 1 <= value <= 10**9


def is_alpha(value):
    return type(value) in (int, float) and 0 < value <= lora.MOST_ALPHA


def each(test, kind=list):
    """Is it a list, or an object, of what passes the test?"""
    return lambda value: isinstance(value, kind) and all(map(test, value.values() if kind is dict
                                                             else value))


def is_layer(value):
    return type(value) is int and value >= 0


BASE, SAVED = ("base", None, lambda v: v is None or isinstance(v, str), "a path"), ("saved", [], is_names, "names")
# key of adapter_config.json: (name in a record, default, test, what it should be). No default: the key must be there
LORA_FIELDS = {
    "r": ("rank", None, is_whole, "a whole number from 1"),
    "lora_alpha": ("alpha", None, is_alpha, f"a number above 0, at most {lora.MOST_ALPHA:g}"),
    "lora_dropout": ("dropout", 0.0, lambda v: type(v) in (int, float) and 0 <= v < 1, "from 0 to below 1"),
    "use_rslora": ("rank_stabilised", False, lambda v: type(v) is bool, "true or false"),
    "use_dora": ("method", False, lambda v: type(v) is bool, "true or false"),
    "target_modules": ("targets", None, lambda v: v and (isinstance(v, str) or is_names(v)), "names or a pattern"),
    "exclude_modules": ("exclude", [], lambda v: isinstance(v, str) or is_names(v), "names or a pattern"),
    "layers_to_transform": ("layers", [], lambda v: is_layer(v) or each(is_layer)(v),
                            "layer numbers"),
    "layers_pattern": ("layers_pattern", [], lambda v: is_names([v] if isinstance(v, str) else v), "names"),
    "rank_pattern": ("ranks", {}, each(is_whole, dict), "an object of whole numbers from 1"),
    "alpha_pattern": ("alphas", {}, each(is_alpha, dict), f"an object of numbers above 0, at most "
                      f"{lora.MOST_ALPHA:g}"),
    "bias": ("bias", "none", lambda v: v in ("none", "all", "lora_only"), "none, all or lora_only"),
    "modules_to_save": SAVED, "base_model_name_or_path": BASE,
    "init_lora_weights": ("start", True, lambda v: v in (True, False, "gaussian", "orthogonal", "eva"),
                          "a start that leaves the base's matrices alone; convert it to plain LoRA with PEFT"),
}
PROMPT_FIELDS = {"num_virtual_tokens": ("tokens", None, is_whole, "a whole number from 1"),
                 "modules_to_save": SAVED, "base_model_name_or_path": BASE}
METHODS = {"LORA": ("lora", LORA_FIELDS), "PREFIX_TUNING": ("prefix", PROMPT_FIELDS),
           "PROMPT_TUNING": ("prompt", PROMPT_FIELDS)}


def read_config(config):
    """adapter_config.json, parsed -> (record, faults)."""
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in METHODS:
        return {}, [f"{CONFIG}: peft_type {short(kind)} is not supported; supported: "
                    f"{', '.join(METHODS)}"]
    method, fields = METHODS[kind]
    record, faults = {}, []
    for key, (ours, default, test, expected) in fields.items():
        value = default if config.get(key) is None else config[key]
        record[ours] = value
        if not test(value):
            faults.append(f"{CONFIG}: {key} = {short(value)} (should be {expected})")
    faults += [f"{CONFIG}: {short(key)[1:-1]} = {short(value)} is not supported: it might change "
               f"the answers"
               for key, value in config.items() if value and key not in fields and key not in INERT]
    if kind == "PREFIX_TUNING" and (config.get("num_transformer_submodules") or 1) != 1:
        faults.append(f"{CONFIG}: num_transformer_submodules = "
                      f"{short(config['num_transformer_submodules'])} puts a prefix before an "
                      f"encoder-decoder's source too, which is not built (1 is)")
    record.pop("start", None)                                        # how A and B began
    record["method"] = "dora" if record.get("method") else method
    return record, faults


def write_config(record):
    """A record -> what adapter_config.json should hold for it, but for what only the model tells."""
    kind, (_, fields) = next(item for item in METHODS.items() if item[1][0] == record["method"].replace("dora", "lora"))
    config = {key: record[ours] if record[ours] != [] else None for key, (ours, *_) in fields.items() if ours in record}
    config |= {"init_lora_weights": True, "use_dora": record["method"] == "dora"} if kind == "LORA" else {}
    return config | {"peft_type": kind, "task_type": "SEQ_CLS", "inference_mode": True}


# ------------------------------------------------------------------------------------------------ which layers

def hits(which, names, where):
    """Those of the names that are in a list or end in one of it, or that a regular expression
    describes."""
    if isinstance(which, str):
        return selection.matching(which, names, f"{CONFIG}: {where}")
    return [name for name in names if any(f".{name}".endswith(f".{end}") for end in which)]


def part_of(name, modules):
    """Is it one of these modules or inside of one? So PEFT leaves targets out that are saved as a
    whole."""
    return any(f".{module}." in f".{name}." for module in modules)


def saved_with(name, modules):
    """Does a parameter lie in a module whose path ends so? "norm" means input_layernorm too: so
    PEFT saves modules."""
    inside = name.split(".")[:-1]
    return any(".".join(inside[:n]).endswith(tuple(modules)) for n in range(1, len(inside) + 1))


def meant(record, names):
    """Those of these linear layers that the record's targets mean, by PEFT's rules."""
    targets, layers, patterns = record["targets"], record["layers"], record["layers_pattern"]
    excluded = set(hits(record["exclude"] or [], names, "exclude_modules"))
    names = [name for name in names if name not in excluded and not part_of(name, record["saved"])]
    if targets == "all-linear":                          # the head of a T5 too, unless it is saved as a whole
        return [name for name in names if name not in ("score", "classifier", "lm_head")]
    names = hits(targets, names, "target_modules")
    if layers == [] or isinstance(targets, str):
        return names
    patterns = [patterns] if isinstance(patterns, str) else patterns or [r"[^.]*"]
    layers = [layers] if isinstance(layers, int) else layers

    def number(name):
        found = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name) for pattern in patterns)
        return next((int(match[1]) for match in found if match), None)
    return [name for name in names if number(name) in layers]


def describe(layers, linears, saved, name):
    """What a record says of the layers {name in transformers: LoraLinear} of an adapter; linears: the names of all."""
    numbers = {file: layer.numbers[name] for file, layer in layers.items()}
    rank, alpha = (Counter(getattr(each, key) for each in numbers.values()).most_common(1)[0][0]
                   for key in ("rank", "alpha"))
    one, ends = next(iter(numbers.values())), sorted({file.rpartition(".")[2] for file in numbers})
    exact = {file for file in hits(ends, linears, "") if not part_of(file, saved)} == set(numbers)
    return {"method": "dora" if isinstance(next(iter(layers.values())), lora.DoraLinear) else "lora",
            "rank": rank, "alpha": alpha, "dropout": one.dropout, "rank_stabilised": one.rank_stabilised,
            "targets": ends if exact else sorted(numbers), "exclude": [], "layers": [], "layers_pattern": [],
            "ranks": {file: each.rank for file, each in numbers.items() if each.rank != rank},
            "alphas": {file: each.alpha for file, each in numbers.items() if each.alpha != alpha}}
