"""adapter_config.json, the part of a PEFT adapter that says what its numbers mean.

Each key that changes the answers has a row in a table. Keys known to change nothing are ignored.
Any other key with a value is an error that names it: an option of a later PEFT must not be
overlooked. A *record* is such a file after the check: PEFT's keys, defaults filled in.
Target layers are chosen by PEFT's rules, among the names of layers in transformers.
Reference: https://huggingface.co/docs/peft/package_reference/lora
"""
import re
from statistics import mode

from ...files import is_text, short
from .. import lora, selection

CONFIG = "adapter_config.json"
INERT = set("""peft_type peft_version task_type auto_mapping revision inference_mode fan_in_fan_out
    megatron_core qalora_group_size eva_config token_dim num_transformer_submodules num_layers
    num_attention_heads init_weights encoder_hidden_size prefix_projection prompt_tuning_init
    prompt_tuning_init_text tokenizer_name_or_path""".split())       # some are read off the tensors


def is_name(value):
    return is_text(value) and bool(re.fullmatch(r"[\w.-]+", value))


def is_positive(value):
    return type(value) is int and 1 <= value <= 10**9


def is_alpha(value):
    return type(value) in (int, float) and 0 < value <= lora.MAX_ALPHA


def is_layer(value):
    return type(value) is int and value >= 0


def all_pass(test, kind):
    """-> a test of a list, or of a dict: do all of its values pass `test`? kind: list or dict."""
    return lambda value: isinstance(value, kind) and all(
        map(test, value.values() if kind is dict else value))


def any_passes(*tests):
    return lambda value: any(test(value) for test in tests)


COUNT = (is_positive, "a whole number from 1")
SWITCH = (lambda v: type(v) is bool, "true or false")
NAMES = (all_pass(is_name, list), "names")
PATTERN = (any_passes(is_text, NAMES[0]), "names or a pattern")
# peft_type -> {key: (default, test, what it should be)}; if the default fails, the key is required
COMMON_FIELDS = {"modules_to_save": ([], *NAMES),
                 "base_model_name_or_path": (None, lambda v: v is None or is_text(v), "a path")}
LORA_FIELDS = {
    "r": (None, *COUNT),
    "lora_alpha": (None, is_alpha, f"a number above 0, at most {lora.MAX_ALPHA:g}"),
    "lora_dropout": (0.0, lambda v: type(v) in (int, float) and 0 <= v < 1, "from 0 to below 1"),
    "use_rslora": (False, *SWITCH),
    "use_dora": (False, *SWITCH),
    "bias": ("none", lambda v: v in ("none", "all", "lora_only"), "none, all or lora_only"),
    "target_modules": ("", lambda v: v and PATTERN[0](v), PATTERN[1]),
    "exclude_modules": ([], *PATTERN),
    "layers_to_transform": ([], any_passes(is_layer, all_pass(is_layer, list)), "layer numbers"),
    "layers_pattern": ([], any_passes(is_name, NAMES[0]), NAMES[1]),
    "rank_pattern": ({}, all_pass(is_positive, dict), "an object of whole numbers from 1"),
    "alpha_pattern": ({}, all_pass(is_alpha, dict),
                      f"an object of numbers above 0, at most {lora.MAX_ALPHA:g}"),
    "init_lora_weights": (True, lambda v: v in (True, False, "gaussian", "orthogonal", "eva"),
                          "a start that leaves the base's matrices alone; convert it to plain LoRA "
                          "with PEFT")}
PROMPT_FIELDS = {"num_virtual_tokens": (None, *COUNT)} | COMMON_FIELDS
FIELDS = {"LORA": LORA_FIELDS | COMMON_FIELDS,
          **dict.fromkeys(("PREFIX_TUNING", "PROMPT_TUNING"), PROMPT_FIELDS)}
METHODS = {"LORA": "lora", "PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt"}


def method_of(record):
    """-> "lora", "dora", "prefix" or "prompt"."""
    return "dora" if record.get("use_dora") else METHODS[record["peft_type"]]


def read_config(config):
    """adapter_config.json, parsed -> (record, faults)."""
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in FIELDS:
        return {}, [f"{CONFIG}: peft_type {short(kind)} is not supported; supported: "
                    f"{', '.join(FIELDS)}"]
    record, faults = {"peft_type": kind}, []
    for key, (default, test, expected) in FIELDS[kind].items():
        record[key] = default if config.get(key) is None else config[key]
        if not test(record[key]):
            faults.append(f"{CONFIG}: {key} = {short(config.get(key))} (should be {expected})")
    for key, value in config.items():
        if value and key not in FIELDS[kind] and key not in INERT:
            faults.append(f"{CONFIG}: {short(key)[1:-1]} = {short(value)} is not supported: it "
                          "might change the answers")
    submodules = config.get("num_transformer_submodules") or 1
    if kind == "PREFIX_TUNING" and submodules != 1:
        faults.append(f"{CONFIG}: num_transformer_submodules = {short(submodules)} puts a prefix "
                      "before an encoder-decoder's source too, which is not built (1 is)")
    return record, faults


def match_targets(targets, names, where):
    """The names that `targets` selects: a regular expression, or a list of names or their ends."""
    if isinstance(targets, str):
        return selection.matching_paths(targets, names, f"{CONFIG}: {where}")
    return [name for name in names if any(f".{name}".endswith(f".{end}") for end in targets)]


def drop_inside(names, modules):
    """The names of layers without those inside `modules`, which PEFT saves in full instead."""
    return [name for name in names if not any(f".{m}." in f".{name}." for m in modules)]


def is_saved_in_full(name, modules):
    """Does this parameter lie in a module that PEFT would save in full, one whose path ends in one
    of `modules`? "norm" means input_layernorm too."""
    inside = name.split(".")[:-1]
    return any(".".join(inside[:n]).endswith(tuple(modules)) for n in range(1, len(inside) + 1))


def target_layers(record, names):
    """Those of `names`, all linear layers, that get LoRA by the record."""
    targets, layers, patterns = (record[key] for key in ("target_modules", "layers_to_transform",
                                                         "layers_pattern"))
    excluded = set(match_targets(record["exclude_modules"], names, "exclude_modules"))
    names = drop_inside([name for name in names if name not in excluded], record["modules_to_save"])
    if targets == "all-linear":                     # T5's head too, unless it is saved in full
        return [name for name in names if name not in ("score", "classifier", "lm_head")]
    names = match_targets(targets, names, "target_modules")
    if layers == [] or isinstance(targets, str):
        return names
    patterns = [patterns] if isinstance(patterns, str) else patterns or [r"[^.]*"]
    layers = [layers] if isinstance(layers, int) else layers

    def layer_of(name):
        matches = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name) for pattern in patterns)
        return next((int(match[1]) for match in matches if match), None)
    return [name for name in names if layer_of(name) in layers]


def lora_fields(layers, linears, saved):
    """The values of LORA_FIELDS. layers: {name in transformers: LoraLinear}; linears: the names of
    all linear layers; saved: modules that are saved in full.

    The most frequent rank and alpha are the adapter's, others become patterns. Targets are named by
    their last part ("query") if that means the same layers to PEFT, else in full."""
    configs = {file: layer.config for file, layer in layers.items()}
    one = next(iter(configs.values()))                      # they differ in rank and alpha alone
    rank = mode(each.rank for each in configs.values())
    alpha = mode(each.alpha for each in configs.values())
    leaves = sorted({file.rpartition(".")[2] for file in configs})
    leaves_suffice = set(drop_inside(match_targets(leaves, linears, ""), saved)) == set(configs)
    return {key: default for key, (default, *_) in LORA_FIELDS.items()} | {
        "r": rank, "lora_alpha": alpha, "lora_dropout": one.dropout, "use_rslora": one.use_rslora,
        "use_dora": one.use_dora, "target_modules": leaves if leaves_suffice else sorted(configs),
        "rank_pattern": {file: c.rank for file, c in configs.items() if c.rank != rank},
        "alpha_pattern": {file: c.alpha for file, c in configs.items() if c.alpha != alpha}}
