"""Reading config.json without guessing.

Every key is one of three kinds: a *field* the model uses, a key whose value is *fixed* because only that value is built
here, or an *inert* key that does not touch the maths. Any other key may change the answer, so it is an error.
"""
from ..errors import InputError

REQUIRED = object()

INERT = frozenset("""
    architectures model_type transformers_version dtype torch_dtype _name_or_path name_or_path tokenizer_class
    id2label label2id num_labels problem_type finetuning_task task_specific_params
    bos_token_id eos_token_id sep_token_id cls_token_id pad_token_id mask_token_id unk_token_id decoder_start_token_id
    initializer_range initializer_factor use_cache gradient_checkpointing chunk_size_feed_forward return_dict torchscript
    output_attentions output_hidden_states output_past directionality language minillmclf
    pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type
    _attn_implementation _attn_implementation_autoset attn_implementation
""".split())


def read_config(config, fields, fixed, where, inert=()):
    """config: the parsed config.json; fields: name -> default or REQUIRED; fixed: name -> the one value that is built;
    inert: keys that a family has besides the common ones and that do not touch its maths.

    -> dict of the fields. Raises InputError with the file, the key and what is supported; `where` names the file.
    """
    faults = []
    for key, value in config.items():
        if key in fixed and value != fixed[key]:
            faults.append(f"{key} = {value!r} (only {fixed[key]!r} is built)")
        elif key not in fields and key not in fixed and key not in INERT and key not in inert:
            faults.append(f"{key} = {value!r} (unknown: it may change the maths)")
    faults += [f"{key} is missing" for key, default in fields.items() if default is REQUIRED and key not in config]
    for key in fields.keys() & config.keys():
        if kind := wrong_kind(config[key], fields[key]):
            faults.append(f"{key} = {config[key]!r} (should be {kind})")
    if faults:
        faults = faults if len(faults) <= 6 else [*faults[:6], f"and {len(faults) - 6} more"]
        raise InputError(f"{where}: " + "; ".join(faults) + f". Known fields: {', '.join(fields)}")
    return {key: config.get(key, default) for key, default in fields.items()}


def wrong_kind(value, default):
    """None if a value is of the kind that its field's default shows, else what it should be, in words."""
    if default is REQUIRED:
        return None if type(value) is int and value > 0 else "a whole number from 1 up"
    for kind, words in ((str, "a name"), (bool, "true or false"), (list, "a list"), (dict, "an object")):
        if isinstance(default, kind):
            return None if isinstance(value, kind) else words
    kinds = (int,) if type(default) is int else (int, float)
    return None if value is default or type(value) in kinds and value >= 0 else f"a number of type {kinds[-1].__name__}"


def choose(table, name, key, where):
    """table[name], or an InputError that lists what there is."""
    if not isinstance(name, str) or name not in table:
        raise InputError(f"{where}: {key} = {name!r} is not supported; supported: {', '.join(map(str, table))}")
    return table[name]
