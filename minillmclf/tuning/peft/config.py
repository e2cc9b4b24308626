"""adapter_config.json, the part of a PEFT adapter that says what its numbers mean.

Each key that changes the answers has a row in a table: its default, a test, and what it should be. Keys known to change
nothing are ignored. Any other key with a value is an error that names it: an option that somebody invents next year must
not be overlooked. A *record* is such a file once it was checked: PEFT's keys, with the defaults filled in.

Which layers are meant (`meant`) follows PEFT's rules, for the names that transformers gives them.
Reference: https://huggingface.co/docs/peft/package_reference/lora
"""
import re
from collections import Counter

from ...files import short
from .. import lora, selection

CONFIG = "adapter_config.json"
INERT = set("""peft_type peft_version task_type auto_mapping revision inference_mode fan_in_fan_out megatron_core
    qalora_group_size eva_config token_dim num_transformer_submodules num_layers num_attention_heads init_weights
    encoder_hidden_size prefix_projection prompt_tuning_init prompt_tuning_init_text
    tokenizer_name_or_path""".split())              # they change no answer, or the tensors' shapes say it too


def is_names(value):
    return isinstance(value, list) and all(isinstance(name, str) and re.fullmatch(r"[\w.-]+", name)
                                           for name in value)


def is_count(value):
    return type(value) is int and 1 <= value <= 10**9


def is_alpha(value):
    return type(value) in (int, float) and 0 < value <= lora.MOST_ALPHA


def is_layers(value):
    return all(type(v) is int and v >= 0 for v in (value if isinstance(value, list) else [value]))


def values_are(test):
    return lambda value: isinstance(value, dict) and all(map(test, value.values()))


# kinds of values: (test, what the value should be)
COUNT = (is_count, "a whole number from 1")
ALPHA = (is_alpha, f"a number above 0, at most {lora.MOST_ALPHA:g}")
RATE = (lambda v: type(v) in (int, float) and 0 <= v < 1, "from 0 to below 1")
SWITCH = (lambda v: type(v) is bool, "true or false")
NAMES = (is_names, "names")
LAYERS_OF = (lambda v: is_names([v] if isinstance(v, str) else v), "names")
SOME = (lambda v: v and (isinstance(v, str) or is_names(v)), "names or a pattern")
ANY = (lambda v: isinstance(v, str) or is_names(v), "names or a pattern")
LAYERS = (is_layers, "layer numbers")
COUNTS = (values_are(is_count), "an object of whole numbers from 1")
ALPHAS = (values_are(is_alpha), f"an object of numbers above 0, at most {lora.MOST_ALPHA:g}")
BIAS = (lambda v: v in ("none", "all", "lora_only"), "none, all or lora_only")
START = (lambda v: v in (True, False, "gaussian", "orthogonal", "eva"),
         "a start that leaves the base's matrices alone; convert it to plain LoRA with PEFT")
PATH = (lambda v: v is None or isinstance(v, str), "a path")

ALL = {"modules_to_save": ([], NAMES), "base_model_name_or_path": (None, PATH)}
PROMPT = {"num_virtual_tokens": (None, COUNT)} | ALL
LORA = {
    "r": (None, COUNT), "lora_alpha": (None, ALPHA), "lora_dropout": (0.0, RATE),
    "use_rslora": (False, SWITCH), "use_dora": (False, SWITCH), "bias": ("none", BIAS),
    "target_modules": (None, SOME), "exclude_modules": ([], ANY),
    "layers_to_transform": ([], LAYERS), "layers_pattern": ([], LAYERS_OF),
    "rank_pattern": ({}, COUNTS), "alpha_pattern": ({}, ALPHAS),
    "init_lora_weights": (True, START)} | ALL
# peft_type -> {key: (default, kind)}; a default that its kind refuses: the key must be there
FIELDS = {"LORA": LORA, "PREFIX_TUNING": PROMPT, "PROMPT_TUNING": PROMPT}
METHODS = {"LORA": "lora", "PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt"}
TYPES = {"lora": "LORA", "dora": "LORA", "prefix": "PREFIX_TUNING", "prompt": "PROMPT_TUNING"}


def method_of(record):
    """lora, dora, prefix or prompt."""
    return "dora" if record.get("use_dora") else METHODS[record["peft_type"]]


def read_config(config):
    """adapter_config.json, parsed -> (record, faults)."""
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in FIELDS:
        return {}, [f"{CONFIG}: peft_type {short(kind)} is not supported; supported: "
                    f"{', '.join(FIELDS)}"]
    record, faults = {"peft_type": kind}, []
    for key, (default, (test, expected)) in FIELDS[kind].items():
        record[key] = default if config.get(key) is None else config[key]
        if not test(record[key]):
            faults.append(f"{CONFIG}: {key} = {short(record[key])} (should be {expected})")
    for key, value in config.items():
        if value and key not in FIELDS[kind] and key not in INERT:
            faults.append(f"{CONFIG}: {short(key)[1:-1]} = {short(value)} is not supported: it might "
                          "change the answers")
    submodules = config.get("num_transformer_submodules") or 1
    if kind == "PREFIX_TUNING" and submodules != 1:
        faults.append(f"{CONFIG}: num_transformer_submodules = {short(submodules)} puts a prefix "
                      "before an encoder-decoder's source too, which is not built (1 is)")
    return record, faults


# ------------------------------------------------------------------------------------------------ which layers

def hits(which, names, where):
    """Those of the names that are in a list or end in one of it, or that a regular expression matches."""
    if isinstance(which, str):
        return selection.matching(which, names, f"{CONFIG}: {where}")
    return [name for name in names if any(f".{name}".endswith(f".{end}") for end in which)]


def part_of(name, modules):
    """Is it one of these modules or inside of one? PEFT leaves targets out that are saved in full."""
    return any(f".{module}." in f".{name}." for module in modules)


def saved_with(name, modules):
    """Does a parameter lie in a module whose path ends so? "norm" means input_layernorm too: so PEFT saves modules."""
    inside = name.split(".")[:-1]
    return any(".".join(inside[:n]).endswith(tuple(modules)) for n in range(1, len(inside) + 1))


def meant(record, names):
    """Those of these linear layers that the record's targets mean, by PEFT's rules."""
    targets, layers, patterns = (record[key] for key in ("target_modules", "layers_to_transform",
                                                         "layers_pattern"))
    excluded = set(hits(record["exclude_modules"], names, "exclude_modules"))
    names = [name for name in names
             if name not in excluded and not part_of(name, record["modules_to_save"])]
    if targets == "all-linear":                          # the head of a T5 too, unless it is saved in full
        return [name for name in names if name not in ("score", "classifier", "lm_head")]
    names = hits(targets, names, "target_modules")
    if layers == [] or isinstance(targets, str):
        return names
    patterns = [patterns] if isinstance(patterns, str) else patterns or [r"[^.]*"]
    layers = [layers] if isinstance(layers, int) else layers

    def layer_of(name):
        found = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name) for pattern in patterns)
        return next((int(match[1]) for match in found if match), None)
    return [name for name in names if layer_of(name) in layers]


def describe(layers, linears, saved):
    """The record's part about LoRA layers. layers: {name in transformers: LoraLinear}; linears: the names of all; saved:
    modules that are saved in full."""
    configs = {file: layer.config for file, layer in layers.items()}
    one = next(iter(configs.values()))
    rank = Counter(each.rank for each in configs.values()).most_common(1)[0][0]
    alpha = Counter(each.alpha for each in configs.values()).most_common(1)[0][0]
    leaves = sorted({file.rpartition(".")[2] for file in configs})
    by_leaves = {file for file in hits(leaves, linears, "") if not part_of(file, saved)}
    return {key: default for key, (default, _) in LORA.items() if key not in ALL} | {
        "r": rank, "lora_alpha": alpha, "lora_dropout": one.dropout, "use_rslora": one.use_rslora,
        "use_dora": one.use_dora,
        "target_modules": leaves if by_leaves == set(configs) else sorted(configs),
        "rank_pattern": {file: c.rank for file, c in configs.items() if c.rank != rank},
        "alpha_pattern": {file: c.alpha for file, c in configs.items() if c.alpha != alpha}}
