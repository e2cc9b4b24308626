"""The adapter of a classifier, collected as PEFT writes it. Names: see names.py."""
from ...errors import InputError
from .. import lora, prefix, prompt, selection
from .config import is_saved_in_full, lora_fields
from .names import LORA_PARTS, base_parameters, head_module, other_layout


def collect_adapter(model, base, bias, saved):
    """The adapter of a classifier -> record, {file: tensor}, further keys of PEFT's config. base,
    bias, saved: as for `write_adapter`."""
    virtual = collect_virtual_tokens(model)
    layers = {} if virtual else lora.find_wrapped(model)
    table, parameters = model.rename_table(), base_parameters(model)
    names = table.file_names([*selection.find_linears(model), *parameters])
    head = [path for path in parameters if path.startswith("head.")]
    biases = [] if virtual else [name.replace(".base.", ".")
                                 for name in selection.trainable_biases(model, bias)]
    in_full = {path for path in parameters if is_saved_in_full(names.get(path, ""), saved)}
    in_full |= {*head, *biases}
    check_saved(layers, parameters, in_full)
    saved = sorted({*saved, *(head_module(names[path]) for path in head)})
    record, tensors = {"base_model_name_or_path": base, "modules_to_save": saved}, {}
    for path in in_full:
        file = names[path]
        if path in biases and path.removesuffix(".bias") in layers:
            file = file.removesuffix("bias") + "base_layer.bias"
        tensors[file] = other_layout(table, path, parameters[path])
    if virtual:
        own, tensors["prompt_embeddings"], more = virtual
        return record | own, tensors, more
    for path, layer in layers.items():
        for part, ours in LORA_PARTS.items():
            if hasattr(layer, ours):
                leaf = "" if part == "lora_magnitude_vector" else ".weight"
                tensors[f"{names[path]}.{part}{leaf}"] = getattr(layer, ours)[lora.ADAPTER_NAME]
    linears = [names[path] for path in selection.find_linears(model) if path in names]
    record |= lora_fields({names[path]: layer for path, layer in layers.items()}, linears, saved)
    more = {"fan_in_fan_out": any(table.is_transposed(f"{path}.weight") for path in layers)}
    return record | {"peft_type": "LORA", "bias": bias}, tensors, more


def collect_virtual_tokens(model):
    """Of a prefix or prompt: (part of a record, rows (P, ...), further config keys), or None."""
    attached, words = model.backbone.prefix, model.backbone.word_embeddings
    is_prefix, is_prompt = attached is not None, isinstance(words, prompt.PromptEmbedding)
    is_lora = any(isinstance(module, lora.LoraLinear) for module in model.modules())
    if [is_prefix, is_prompt, is_lora].count(True) > 1:
        raise InputError("this model has a prefix, a prompt or LoRA at once, but a folder of PEFT "
                         "holds one adapter")
    if not (is_prefix or is_prompt):
        return None
    rows = attached.embeddings() if is_prefix else words.vectors * model.backbone.embedding_scale
    layers, heads, width = prefix.prefix_shape(model.backbone)
    shape = {"num_layers": layers, "num_attention_heads": heads, "num_transformer_submodules": 1,
             "token_dim": heads * width if is_prefix else model.backbone.width}
    return {"peft_type": "PREFIX_TUNING" if is_prefix else "PROMPT_TUNING",
            "num_virtual_tokens": len(rows)}, rows, shape


def check_saved(layers, parameters, in_full):
    """InputError if a layer of the head is wrapped, or a trainable parameter would be lost."""
    inside = [path for path in layers if selection.in_head(path)]
    if inside:
        raise InputError(f"{', '.join(inside)}: the head learns as a whole, leave it out of the "
                         "targets")
    lost = [path for path, p in parameters.items() if p.requires_grad and path not in in_full]
    if lost:
        raise InputError(f"{len(lost)} parameters learn that the adapter would not hold, {lost[0]} "
                         "first: freeze them (requires_grad_(False)) or name their modules in "
                         "`saved`")
