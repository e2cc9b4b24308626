"""Reading config.json without guessing.

Every key is one of three kinds: a *field* that the model uses, a *fixed* key with the only value
that is built here, or an *inert* key that does not change the maths. Any other key may change the
answer, so it is an error, unless --ignore-config-key names it: then, at the user's risk, the key is
left out, of saved files too.

Each family has tables of what its config.json may hold (`ConfigTables`); `read_config` checks it.
"""
import os
import re
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError
from ..files import IGNORED_KEYS, check_fields, read_json, short
from .tensor_files import join_faults

REQUIRED = object()
LAYER_TYPES = ("sliding_attention", "full_attention")         # with a window, without

# Inert in every family, many from older transformers; those from max_length on steer generation.
INERT = frozenset("""
    architectures model_type transformers_version dtype torch_dtype _name_or_path name_or_path
    tokenizer_class id2label label2id num_labels _num_labels problem_type finetuning_task
    task_specific_params bos_token_id eos_token_id sep_token_id cls_token_id pad_token_id
    mask_token_id unk_token_id decoder_start_token_id initializer_range initializer_factor use_cache
    gradient_checkpointing chunk_size_feed_forward return_dict torchscript output_attentions
    output_hidden_states output_past directionality language minillmclf pooler_fc_size
    pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type
    _attn_implementation _attn_implementation_autoset attn_implementation _flash_attn_2_enabled
    auto_map _commit_hash use_bfloat16 tf_legacy_loss xla_device padding_idx is_llama_config
    transformers.js_config max_sequence_length model_max_length tokenizer_model_max_length
    tokenizer_padding_side
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens max_new_tokens prefix
    cache_implementation
""".split())
# fixed in every family whose own tables say nothing else
FIXED = dict(is_decoder=False, is_encoder_decoder=False, add_cross_attention=False, pruned_heads={},
             cross_attention_hidden_size=None, tie_encoder_decoder=False, quantization_config=None)


def all_instances(kind, values):
    return all(isinstance(value, kind) for value in values)


# for `check_fields`: the keys that are read outside the families; null counts as missing
COMMON_KEYS = {
    "architectures?": (lambda v: v is None or isinstance(v, list) and all_instances(str, v),
                       "a list of names"),
    "id2label?": (lambda v: v is None
                  or isinstance(v, dict) and all_instances((str, float, int), v.values()),
                  "an object with a name for each number"),
    "label2id?": (lambda v: v is None or isinstance(v, dict), "an object"),
    "num_labels?": (lambda v: v is None or type(v) is int and 0 < v <= 10**5,
                    "a whole number from 1 to 100000"),
    "quantization_config?": (lambda v: v is None or isinstance(v, dict), "an object"),
    "dtype?": (lambda v: v is None or isinstance(v, str), "a name"),
    "torch_dtype?": (lambda v: v is None or isinstance(v, str), "a name"),
}
# type of a field's default -> what a value should be
KINDS = {str: "a name", bool: "true or false", list: "a list", dict: "an object"}
# pattern of a number's name -> (test, what it should be); other numbers are whole, see `wrong_kind`
NUMBER_RANGES = {
    r".*_eps(ilon)?": (lambda v: 1e-30 <= v <= 1, "a number from 1e-30 to 1"),
    r".*(dropout|pdrop).*": (lambda v: 0 <= v < 1, "a number from 0 to below 1"),
    r"max_window_layers": (lambda v: type(v) is int and v in range(2**31),
                           "a whole number from 0 up"),
    r".*rope_theta": (lambda v: 1e-3 <= v <= 1e12, "a number from 0.001 to 1e12"),
    r".*softcapping": (lambda v: 1e-3 <= v <= 1e6, "a number from 0.001 to 1000000, or null"),
}


def layer_types_rule(c):
    """A rule for RULES: layer_types, if it is given, has a word for each layer."""
    if len(c["layer_types"]) not in (0, c["num_hidden_layers"]):
        return (f"layer_types names {len(c['layer_types'])} layers, num_hidden_layers is "
                f"{c['num_hidden_layers']}")


def read_model_config(folder):
    """The config.json of a model folder, its common keys checked -> dict."""
    where = Path(folder) / "config.json"
    if not where.exists() and where.parent.is_dir():
        raise InputError(f"{where}: is not there: {other_folder_to_name(where.parent)}")
    return check_fields(read_json(where), COMMON_KEYS, where)


def other_folder_to_name(folder):
    """What a user should name instead of a folder without a config.json."""
    inner = sorted({path.parent for name in ("config.json", "tuned.json")    # one or two folders in
                    for place in ("[!.]*", "[!.]*/*") for path in folder.glob(f"{place}/{name}")})
    if inner:                                                  # of folds or compare, or all of runs
        return (f"name a model inside this folder, such as {short(inner[0], 300)} ({len(inner)} in "
                "all)")
    return ("name the folder of a whole model; what was trained beside a base is first merged with "
            "it, python -m minillmclf.merge, or name its base")


@contextmanager
def ignoring_config_keys(keys):
    """with ignoring_config_keys(["key"]): ...   A config.json that is read there may have these
    keys; where they are unknown, they are left out."""
    before = os.environ.get(IGNORED_KEYS)
    os.environ[IGNORED_KEYS] = ",".join([before or "", *map(str, keys)])
    try:
        yield
    finally:
        os.environ.pop(IGNORED_KEYS)
        os.environ.update({} if before is None else {IGNORED_KEYS: before})


class ConfigTables:
    """What a family's config.json may hold. Every family overrides some of these."""

    FIELDS = {}         # name -> default, or REQUIRED
    FIXED = {}          # name -> the only value that is built; besides the FIXED above
    INERT = ()          # keys that do not change the maths; besides the INERT above
    CHOICES = {}        # field -> its supported values, or those of the items if it is a list
    MULTIPLES = ()      # (field, field that divides it), or with a third that lifts the rule if set
    DERIVED = {}        # field -> function of the fields, for a field that is null or missing
    RULES = ()          # functions of the fields -> what is wrong, or a false value


def read_config(config, family, where, **more):
    """A parsed config.json -> dict of the fields, and "ignored": unknown keys left out, if any.

    family: a class with `ConfigTables`; more: further rows for its FIXED. InputError names the file
    (`where`), the keys and what is supported.
    """
    fields, fixed = family.FIELDS, FIXED | family.FIXED | more
    known = {*fields, *fixed, *family.INERT, *INERT}
    unknown = {key for key in config if key not in known and not key.startswith("unsloth_")}
    ignored = unknown & set(os.environ.get(IGNORED_KEYS, "").split(","))
    faults = list(key_faults(config, fields, fixed, unknown - ignored))
    c = {key: config.get(key, default) for key, default in fields.items()}
    faults = faults or list(value_faults(c, family))
    if not faults:
        for key, derive in family.DERIVED.items():
            c[key] = derive(c) if c[key] is None else c[key]
        faults = [fault for rule in family.RULES if (fault := rule(c))]
    if faults:
        remedy = (". To go on without an unknown key, at your own risk: --ignore-config-key NAME"
                  if unknown - ignored else "")
        raise InputError(f"{where}: {join_faults(faults, 6)}{remedy}")
    return c | {"ignored": sorted(ignored)} if ignored else c


def key_faults(config, fields, fixed, unknown):
    """Yield what is wrong with single keys: unknown, of a wrong type, not built, missing."""
    for key, value in config.items():
        if key in unknown:
            yield f"{short(key)[1:-1]} = {short(value)} (unknown: it may change the maths)"
        elif key in fields and (kind := wrong_kind(key, value, fields[key])):
            yield f"{key} = {short(value)} (should be {kind})"
        elif key == "quantization_config" and value is not None:
            yield (f"{key}: the matrices are in four or eight bits, which is not read for this; "
                   "take the model that they were rounded from")
        elif key in fixed and key not in fields and value != fixed[key]:
            yield f"{key} = {short(value)} (only {fixed[key]!r} is built)"
    for key, default in fields.items():
        if default is REQUIRED and key not in config:
            yield f"{key} is missing"


def value_faults(c, family):
    """Yield what is wrong with fields of the right type, by the tables CHOICES and MULTIPLES."""
    for key, supported in family.CHOICES.items():
        values = c[key] if isinstance(c[key], list) else [c[key]]
        for value in values:
            if not isinstance(value, str) or value not in supported:
                yield list_supported(key, value, supported)
    for whole, part, *lifting in family.MULTIPLES:
        lifted = any(c[key] is not None for key in lifting)
        if not lifted and c[part] is not None and c[whole] % c[part]:
            yield (f"{whole} {c[whole]} is not a multiple of {part} {c[part]}"
                   + "".join(f", and {key} is not given" for key in lifting))


def wrong_kind(key, value, default):
    """None if a value fits the name and the default of its field, else what it should be."""
    if default is None and value is None:
        return None
    for kind, words in KINDS.items():
        if isinstance(default, kind):
            return None if isinstance(value, kind) else words
    for pattern, (test, words) in NUMBER_RANGES.items():
        if re.fullmatch(pattern, key):
            return None if type(value) in (int, float) and test(value) else words
    least = min(default, 1) if type(default) is int else 1            # a default of -1 allows -1
    least = 0 if key.endswith("token_id") else least
    if type(value) is not int or value < least:
        return f"a whole number from {least} up"
    return "a whole number below 2147483648" if value >= 2**31 else None


def list_supported(key, value, supported):
    return f"{key} = {short(value)} is not supported; supported: {', '.join(map(str, supported))}"


def look_up(table, name, key, where):
    """table[name], or an InputError that lists what there is."""
    if not isinstance(name, str) or name not in table:
        raise InputError(f"{where}: {list_supported(key, name, table)}")
    return table[name]
