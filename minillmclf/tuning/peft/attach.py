"""The tensors of a PEFT adapter, put into a classifier. Names: see names.py.

A head that is in neither base nor adapter would stay random. So the file must have all that the
record names and nothing without a place, and must fill every newly initialised weight.
"""
import re

import torch

from ...files import short
from ...models.weights import LoadReport, shape_fault
from .. import lora, prefix, prompt, selection
from .config import is_saved_in_full, method_of, target_layers
from .names import (LORA_PARTS, base_parameters, head_module, other_layout, raise_faults,
                    short_name, split_tensors)

# key of a tuning config -> key of a record
TUNING_KEYS = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "bias": "bias",
               "use_rslora": "use_rslora", "targets": "target_modules",
               "saved": "modules_to_save", "tokens": "num_virtual_tokens"}


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


# ------------------------------------------------------------------------ where tensors belong

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
    new = newly_initialised(model, parameters)
    saved = [path for path, file in names.items() if is_saved_in_full(file, in_full)]
    expected = {*new, *saved, *learned_biases(model, record, parameters, wrapped)}
    tied = model.head.label_options and model.backbone.tied
    fills, faults = {}, []

    def objection(path, tensor):
        """Why a tensor cannot be put at `path`, or ""."""
        if path in fills.values():
            return f"fills {path} a second time"
        if path not in parameters:
            return f"{tuple(tensor.shape)} has no place in this model"
        if tied and path == "backbone.word_embeddings.weight":
            return "learned, but the language-model head did not: here both are one matrix"
        if not (path in expected or selection.in_head(path) or "word_embeddings" in path):
            return "is in the file, but the config names no such module in modules_to_save or bias"
        return ""
    for file, tensor in others.items():
        try:
            path = table.path_of(file)
        except KeyError:
            path = None
        if reason := objection(path, tensor):
            faults.append(f"{short(file, 200)} {reason}")
        else:
            fills[file] = path
            faults += shape_fault(file, tuple(tensor.shape), path, parameters[path],
                                  table.is_transposed(path))
    empty = sorted(expected - set(fills.values()))
    faults += [f"nothing fills {path} ({names[path]}): it learned, by the config"
               for path in empty if path not in new]
    lost = {path: names[path] for path in empty if path in new}
    return fills, faults + head_faults(model, lost, in_full)


def newly_initialised(model, parameters):
    """The paths that the base's file did not fill; without a report of its loading, the head's."""
    if hasattr(model, "report"):
        return model.report.newly_initialised
    return [path for path in parameters if selection.in_head(path)]


def learned_biases(model, record, parameters, wrapped):
    """The paths of the biases that learned, by the record; wrapped: as for `place_others`."""
    if record.get("bias") == "lora_only":                               # they are not wrapped yet
        return [f"{path}.bias" for path in wrapped if f"{path}.bias" in parameters]
    return selection.trainable_biases(model, record.get("bias", "none"))


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


def prompt_faults(model, record, rows):
    """-> [], or [what is wrong] with the shape of the rows of a prefix or a prompt."""
    columns = model.backbone.width
    if method_of(record) == "prefix":
        layers, heads, width = prefix.prefix_shape(model.backbone)
        columns = layers * 2 * heads * width                    # keys and values of each layer
    shape = (record["num_virtual_tokens"], columns)
    fits = tuple(rows.shape) == shape
    return [] if fits else [f"'prompt_embeddings' is {tuple(rows.shape)}, should be {shape}"]
