"""From the tensors of a PEFT adapter to a classifier, and back.

Names go through the model's rename table (models/weights.py) both ways: `file` is a name in a file,
`path` one in the model. A *fault* is a line about what is wrong; all are collected, then raised. A
head in neither base nor adapter would stay random. So the file must have all that the config names
and nothing without a place, and must fill every newly initialised weight.
"""
import re

import torch

from ...errors import InputError
from ...files import short
from ...models.tensor_files import count_faults
from ...models.weights import LoadReport, shape_fault
from .. import lora, prefix, prompt, selection
from .config import is_saved_in_full, lora_fields, method_of, target_layers

# of a LoRA layer's A, B and DoRA's m: name in the file -> name in the model
LORA_PARTS = {"lora_A": "lora_A", "lora_B": "lora_B", "lora_magnitude_vector": "magnitude"}
LAYER = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?")
ADDED = re.compile(r"backbone\.prefix\.|.*\.word_embeddings\.vectors|.*\.(lora_[AB]|magnitude)\.")
# key of a tuning config -> key of a record
TUNING_KEYS = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "bias": "bias",
               "use_rslora": "use_rslora", "targets": "target_modules",
               "saved": "modules_to_save", "tokens": "num_virtual_tokens"}


def raise_faults(where, faults):
    """InputError if there are faults, which names the first. where: the file that has them."""
    if faults:
        raise InputError(f"{where}: {count_faults(faults)}")


def short_name(name):
    """A name from a file, for a message, without quotes."""
    return short(name, 200)[1:-1]


def split_tensors(tensors):
    """-> {layer: {"lora_A": (r, in), "lora_B": (out, r), ...}}, {name in the base: tensor}."""
    layers, others = {}, {}
    for name, tensor in tensors.items():
        found = LAYER.fullmatch(name)
        if found:
            layers.setdefault(found[1], {})[found[2]] = tensor
        else:
            others[name.replace(".base_layer.bias", ".bias")] = tensor
    return layers, others


def base_parameters(model):
    """{path as before wrapping: parameter}, without the parameters that a method has added."""
    return {path.replace(".base.", "."): p for path, p in model.named_parameters()
            if not ADDED.match(path)}


def other_layout(table, path, tensor):
    """A tensor in the file's layout -> in ours, or back: transposed if it is a GPT-2 matrix."""
    return tensor.T if table.is_transposed(path) else tensor


# ------------------------------------------------------------------------------------ into a model

def apply_adapter(model, record, tensors, where="adapter"):
    """Attach to a classifier what the record says and fill in all tensors -> LoadReport. where: its
    folder, for messages.

    Then the parameters of the adapter are trainable, no others, and `model.tuning` is set, so that
    the classifier can be saved. Raises InputError before anything has changed, for a layer without
    tensors, a tensor without a place, a wrong shape or a weight that would stay random.
    """
    layers, others = split_tensors(tensors)
    is_lora = record["peft_type"] == "LORA"
    if is_lora:
        places, faults = place_layers(model, record, layers, others)
    else:
        places, rows = {}, others.pop("prompt_embeddings")
        faults = prompt_faults(model, record, rows)
    fills, other_faults = place_others(model, record, others, places.values())
    faults += other_faults
    settings = {"labels": model.labels, **model.settings()}
    for key in ("labels", "pool", "readout"):
        if key in record and record[key] != settings[key]:
            faults.append(f"{key} of the adapter: {short(record[key], 200)}, of the model: "
                          f"{short(settings[key], 200)}")
    raise_faults(where, faults)
    with torch.no_grad():
        added = wrap_layers(model, record, layers, places) if is_lora else \
            attach_virtual_tokens(model, record, rows)
        parameters = base_parameters(model)
        for file, path in fills.items():
            parameters[path].copy_(other_layout(model.rename_table(), path, others[file]))
    model.requires_grad_(False)
    for path in added.values():
        model.get_parameter(path).requires_grad_(True)
    for path in fills.values():
        parameters[path].requires_grad_(True)
    model.tuning = {ours: record[key] for ours, key in TUNING_KEYS.items() if key in record}
    model.tuning["method"] = method_of(record)
    return LoadReport(loaded=added | fills)


def wrap_layers(model, record, layers, places):
    """Wrap the layers at `places`, {file: path}, and fill A, B and m -> {file: path} of these."""
    config = lora.LoraConfig(*(record[key] for key in ("r", "lora_alpha", "lora_dropout",
                                                       "use_rslora", "use_dora")))

    def exceptions(default, patterns):                  # {pattern of a path: value}, as wrap takes
        values = selection.values_by_path(layers, default, patterns)
        return {re.escape(places[file]): v for file, v in values.items() if v != default}
    lora.wrap(model, list(places.values()), config, exceptions(config.rank, record["rank_pattern"]),
              exceptions(config.alpha, record["alpha_pattern"]))
    filled = {}
    for file, path in places.items():
        for part, tensor in layers[file].items():
            target = f"{path}.{LORA_PARTS[part]}.{lora.ADAPTER_NAME}"
            model.get_parameter(target).copy_(tensor)
            filled[f"{file}.{part}"] = target
    return filled


def attach_virtual_tokens(model, record, rows):
    """Put the prefix or prompt with these rows (P, ...) before every text -> {file: path}."""
    tokens = record["num_virtual_tokens"]
    prefix.shorten_texts(model, tokens)
    if method_of(record) == "prefix":
        prefix.attach_prefix(model, tokens).load(rows)
        return {"prompt_embeddings": "backbone.prefix.embedding.weight"}
    prompt.attach_prompt(model, tokens)
    model.backbone.word_embeddings.vectors.copy_(rows / model.backbone.embedding_scale)
    return {"prompt_embeddings": "backbone.word_embeddings.vectors"}


def prompt_faults(model, record, rows):
    """-> [], or [what is wrong] with the shape of the rows of a prefix or a prompt."""
    layers, heads, width = prefix.prefix_shape(model.backbone)
    is_prefix = method_of(record) == "prefix"
    columns = layers * 2 * heads * width if is_prefix else model.backbone.width
    shape = (record["num_virtual_tokens"], columns)
    fits = tuple(rows.shape) == shape
    return [] if fits else [f"'prompt_embeddings' is {tuple(rows.shape)}, should be {shape}"]


def place_layers(model, record, layers, others):
    """Find the layers that get LoRA -> {file: path}, faults. layers, others: of split_tensors."""
    linears, table = selection.find_linears(model), model.rename_table()
    path_of = {file: path for path, file in table.file_names(linears).items()}
    for old, new in table.aliases:           # for a model without a head PEFT omits e.g. "bert."
        aliases = {old + file.removeprefix(new): path for file, path in path_of.items()
                   if file.startswith(new)}
        if set(layers) <= set(aliases) and not set(layers) <= set(path_of):
            path_of = aliases
    expected = target_layers(record, [file for file in path_of if f"{file}.weight" not in others])
    faults = [f"targets {short(record['target_modules'])} mean {file}, the file has nothing for it"
              for file in expected if file not in layers]
    for file in layers:
        if file not in expected:
            why = "but the config does not mean it" if file in path_of else \
                "this model has no such linear layer"
            faults.append(f"{short_name(file)} is in the file, {why}")
    if faults:
        return {}, faults
    for file, rank in selection.values_by_path(layers, record["r"], record["rank_pattern"]).items():
        base = linears[path_of[file]]
        shapes = {"lora_A": (rank, base.in_features), "lora_B": (base.out_features, rank),
                  "lora_magnitude_vector": (base.out_features,)}
        faults += [f"{file}.{part} is {tuple(tensor.shape)}, should be {shapes[part]}"
                   for part, tensor in layers[file].items() if tuple(tensor.shape) != shapes[part]]
    return {file: path_of[file] for file in layers}, faults


def place_others(model, record, others, wrapped):
    """Find the places of biases and of modules trained in full -> {file: path}, faults. wrapped:
    the paths of the layers that get LoRA."""
    table, parameters = model.rename_table(), base_parameters(model)
    names, in_full = table.file_names(parameters), record["modules_to_save"]        # {path: file}
    new = model.report.newly_initialised if hasattr(model, "report") else \
        [path for path in parameters if selection.in_head(path)]
    saved = [path for path, file in names.items() if is_saved_in_full(file, in_full)]
    if record.get("bias") == "lora_only":                               # they are not wrapped yet
        biases = [f"{path}.bias" for path in wrapped if f"{path}.bias" in parameters]
    else:
        biases = selection.trainable_biases(model, record.get("bias", "none"))
    expected = {*new, *saved, *biases}
    tied = model.head.label_options and model.backbone.tied
    fills, faults = {}, []
    for file, tensor in others.items():
        try:
            path = table.path_of(file)
        except KeyError:
            path = None
        if path in fills.values():
            why = f"fills {path} a second time"
        elif path not in parameters:
            why = f"{tuple(tensor.shape)} has no place in this model"
        elif tied and path == "backbone.word_embeddings.weight":
            why = "learned, but the language-model head did not: here both are one matrix"
        elif not (path in expected or selection.in_head(path) or "word_embeddings" in path):
            why = "is in the file, but the config names no such module in modules_to_save or bias"
        else:
            fills[file] = path
            faults += shape_fault(file, tuple(tensor.shape), path, parameters[path],
                                  table.is_transposed(path))
            continue
        faults.append(f"{short(file, 200)} {why}")
    empty = sorted(expected - set(fills.values()))
    faults += [f"nothing fills {path} ({names[path]}): it learned, by the config"
               for path in empty if path not in new]
    lost = {path: names[path] for path in empty if path in new}
    return fills, faults + head_faults(model, lost, in_full)


def head_faults(model, lost, in_full):
    """-> [], or one fault with a remedy. lost: {path: file} of the parts of the head that are in
    neither base nor adapter; in_full: the record's modules_to_save."""
    if not lost:
        return []
    parts = ", ".join(f"{path} ({file})" for path, file in lost.items())
    modules = sorted({*in_full, *map(head_module, lost.values())})
    remedy = f"train it again with modules_to_save={modules}".replace("'", '"')
    if modules == sorted(in_full):
        remedy = "the adapter's file is not whole: copy it again"
    elif hasattr(model, "report") and set(lost.values()) <= {*model.report.dropped}:
        remedy += ", or, if it learned with the base's head, save what PEFT's merge_and_unload() " \
            "returns, with the tokenizer, and name that folder"
    return [f"nothing fills {parts}: new in this model, it would stay random: {remedy}"]


# ---------------------------------------------------------------------------------- out of a model

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


def head_module(file):
    """A name for modules_to_save: bert.pooler.dense.weight -> pooler, score.weight -> score."""
    parts = file.split(".")[:-1]
    return parts[-2] if len(parts) > 1 else parts[0]
