"""From the tensors of a PEFT adapter to a classifier, which is wrapped (lora.py) or has something before its texts
(prefix.py, prompt.py), and back.

Names go through the model's rename table (models/weights.py), forwards and backwards. An adapter is worth nothing without
what else was trained: a head that is in neither the base nor the adapter would stay random. So all that the config means
must be there, all that is there must have a place, and every newly initialised weight of the model must be filled: else
nothing is changed.
"""
import re

import torch

from ...errors import InputError
from ...files import short
from ...models.weights import Report, listed, shape_fault, translate
from .. import lora, prefix, prompt, selection
from .config import TYPES, describe, meant, method_of, saved_with

PARTS = {"lora_A": "lora_A", "lora_B": "lora_B", "lora_magnitude_vector": "magnitude"}        # in the file: here
LAYER = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?")
# what a tuning config has of a record: key there -> key here
TUNING = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "use_rslora": "use_rslora",
          "targets": "target_modules", "bias": "bias", "saved": "modules_to_save",
          "tokens": "num_virtual_tokens"}


def raise_faults(where, faults):
    """Raise InputError with the first of the faults, if there are any; `where` is what has them."""
    if faults:
        raise InputError(f"{where}: {len(faults)} faults: {listed(faults)}")


def bare(name):
    """A name from a file, for a message, without quotes."""
    return short(name, 200)[1:-1]


def split(tensors):
    """-> {layer: {"lora_A": (r, in), "lora_B": (out, r), ...}} and the other tensors, by their names in the base."""
    layers, others = {}, {}
    for name, tensor in tensors.items():
        found = LAYER.fullmatch(name)
        if found:
            layers.setdefault(found[1], {})[found[2]] = tensor
        else:
            others[name.replace(".base_layer.bias", ".bias")] = tensor
    return layers, others


def plain_parameters(model):
    """{path as if nothing were wrapped: parameter} of all that no method has added."""
    added = re.compile(r"backbone\.(prefix\.|word_embeddings\.vectors)|.*\.(lora_A|lora_B|magnitude)\.")
    return {path.replace(".base.", "."): p for path, p in model.named_parameters()
            if not added.match(path)}


def oriented(table, path, tensor):
    """A parameter as it lies in the file, or the other way round: GPT-2's matrices are transposed there."""
    return tensor.T if table.turned(path) else tensor


# ------------------------------------------------------------------------------------------------ into a model

def apply_adapter(model, record, tensors):
    """Wrap a classifier's layers as the record says, fill in all tensors -> Report: where each went.

    What the adapter holds is what is trained if training goes on; `model.tuning` says how it was
    made, so that the classifier can be saved. Raises InputError with the faults before anything has
    changed: a layer, a shape or a place that is missing, a weight that would stay random.
    """
    layers, others = split(tensors)
    if record["peft_type"] == "LORA":
        places, faults = place_layers(model, record, layers, others)
    else:
        numbers, places = others.pop("prompt_embeddings"), {}
        faults = prompt_faults(model, record, numbers)
    fills, more = place_others(model, record, others, places.values())
    faults += more
    for key in ("labels", "pool", "readout"):
        if key in record and record[key] != getattr(model, key):
            faults.append(f"{key} of the adapter: {short(record[key], 200)}, of the model: "
                          f"{short(getattr(model, key), 200)}")
    raise_faults("adapter", faults)
    if record["peft_type"] == "LORA":
        own = wrap_layers(model, record, layers, places)
    else:
        own = put_before_texts(model, record, numbers)
    parameters, table = plain_parameters(model), model.table()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for file, path in fills.items():
        parameters[path].data.copy_(oriented(table, path, others[file]))
    for path in own.values():
        model.get_parameter(path).requires_grad_(True)
    for path in fills.values():
        parameters[path].requires_grad_(True)
    model.tuning = {"method": method_of(record),
                    **{ours: record[key] for ours, key in TUNING.items() if key in record}}
    return Report(loaded=own | fills)


@torch.no_grad()
def wrap_layers(model, record, layers, places):
    """Wrap the layers and fill A, B and m -> {name in the file: path here}."""
    config = lora.LoraConfig(*(record[key] for key in ("r", "lora_alpha", "lora_dropout",
                                                       "use_rslora", "use_dora")))

    def by_path(default, patterns):
        values = selection.per_path(layers, default, patterns)
        return {re.escape(places[layer]): value for layer, value in values.items()
                if value != default}
    lora.wrap(model, list(places.values()), config, by_path(config.rank, record["rank_pattern"]),
              by_path(config.alpha, record["alpha_pattern"]))
    own = {}
    for layer, path in places.items():
        for part, tensor in layers[layer].items():
            own[f"{layer}.{part}"] = f"{path}.{PARTS[part]}.{lora.NAME}"
            model.get_parameter(own[f"{layer}.{part}"]).copy_(tensor)
    return own


@torch.no_grad()
def put_before_texts(model, record, numbers):
    """Put the prefix or the prompt before every text -> {name in the file: path here}."""
    tokens = record["num_virtual_tokens"]
    prefix.shorten_texts(model, tokens)
    if method_of(record) == "prefix":
        prefix.attach_prefix(model, tokens).load(numbers)
        return {"prompt_embeddings": "backbone.prefix.embedding.weight"}
    prompt.attach_prompt(model, tokens)
    model.backbone.word_embeddings.vectors.copy_(numbers / model.backbone.word_factor)
    return {"prompt_embeddings": "backbone.word_embeddings.vectors"}


def prompt_faults(model, record, numbers):
    """[] or [what is wrong] with the shape of a prefix or a prompt."""
    layers, heads, width = prefix.shape_of(model.backbone)
    is_prefix = method_of(record) == "prefix"
    columns = layers * 2 * heads * width if is_prefix else model.backbone.width
    shape = (record["num_virtual_tokens"], columns)
    fits = tuple(numbers.shape) == shape
    return [] if fits else [f"'prompt_embeddings' is {tuple(numbers.shape)}, should be {shape}"]


def place_layers(model, record, layers, others):
    """-> {layer in the file: path here}, faults."""
    linears, table = selection.linears(model), model.table()
    names = {file: path for path, file in table.file_names(linears).items()}
    for old, new in table.spellings:                     # around a body alone, PEFT leaves "bert." out
        if not set(layers) <= set(names):
            aliases = {old + file[len(new):]: path for file, path in names.items()
                       if file.startswith(new)}
            names = aliases if set(layers) <= set(aliases) else names
    expected = meant(record, [file for file in names if f"{file}.weight" not in others])
    faults = [f"targets {short(record['target_modules'])} mean {file}, the file has nothing for it"
              for file in expected if file not in layers]
    for file in layers:
        if file not in expected:
            why = "but the config does not mean it" if file in names else \
                "this model has no such linear layer"
            faults.append(f"{bare(file)} is in the file, {why}")
    if faults:
        return {}, faults
    for file, rank in selection.per_path(layers, record["r"], record["rank_pattern"]).items():
        base = linears[names[file]]
        shapes = {"lora_A": (rank, base.in_features), "lora_B": (base.out_features, rank),
                  "lora_magnitude_vector": (base.out_features,)}
        faults += [f"{file}.{part} is {tuple(tensor.shape)}, should be {shapes[part]}"
                   for part, tensor in layers[file].items() if tuple(tensor.shape) != shapes[part]]
    return {file: names[file] for file in layers}, faults


def place_others(model, record, others, wrapped):
    """The tensors of biases and of modules trained in full -> {name in the file: path here}, faults.

    wrapped: the paths of the layers that get LoRA.
    """
    table, parameters = model.table(), plain_parameters(model)
    names, bias = table.file_names(parameters), record.get("bias", "none")
    new = model.report.fresh if hasattr(model, "report") else \
        [path for path in parameters if selection.in_head(path)]
    biases = [f"{path}.bias" for path in wrapped if f"{path}.bias" in parameters] \
        if bias == "lora_only" else selection.trainable_biases(model, bias)
    saved = [path for path, file in names.items() if saved_with(file, record["modules_to_save"])]
    expected, fills, faults = {*new, *saved, *biases}, {}, []
    for file, tensor in others.items():
        try:
            path = translate(file, table)
        except KeyError:
            path = None
        what = short(file, 200)
        if path in fills.values():
            faults.append(f"{what} fills {path} a second time")
        elif path not in parameters:
            faults.append(f"{what} {tuple(tensor.shape)} has no place in this model")
        elif model.readout and model.backbone.tied and path == "backbone.word_embeddings.weight":
            faults.append(f"{what} learned, but the language-model head did not: here both are one "
                          "matrix")
        elif not (path in expected or selection.in_head(path) or "word_embeddings" in path):
            faults.append(f"{what} is in the file, but the config names no such module in "
                          "modules_to_save or bias")
        else:
            fills[file] = path
            faults += shape_fault(file, tuple(tensor.shape), path, parameters[path], table.turned(path))
    for path in sorted(expected - set(fills.values())):
        why = "is new in this model and would stay random" if path in new else \
            "learned, by the config"
        faults.append(f"nothing fills {path} ({names[path]}): it {why}")
    return fills, faults


# ------------------------------------------------------------------------------------------------ out of a model

def collect(model, base, bias, saved):
    """An adapter of a classifier -> its record, {name in transformers: tensor}, what else PEFT's config needs.

    base, bias, saved: as for `write_adapter`.
    """
    before = before_texts(model)
    layers = {} if before else lora.wrapped(model)
    table, parameters = model.table(), plain_parameters(model)
    names = table.file_names([*selection.linears(model), *parameters])
    head = [path for path in parameters if path.startswith("head.")]
    biases = [] if before else [name.replace(".base.", ".")
                                for name in selection.trainable_biases(model, bias)]
    in_full = {path for path in parameters if saved_with(names.get(path, ""), saved)}
    in_full |= {*head, *biases}
    check_saved(layers, parameters, in_full)
    saved = sorted({*saved, *(head_module(names[path]) for path in head)})
    record, tensors = {"base_model_name_or_path": base, "modules_to_save": saved}, {}
    for path in in_full:
        file = names[path]
        if path in biases and path.removesuffix(".bias") in layers:
            file = file.removesuffix("bias") + "base_layer.bias"
        tensors[file] = oriented(table, path, parameters[path])
    if before:
        own, tensors["prompt_embeddings"], more = before
        return record | own, tensors, more
    for path, layer in layers.items():
        for part, ours in PARTS.items():
            if hasattr(layer, ours):
                leaf = "" if part == "lora_magnitude_vector" else ".weight"
                tensors[f"{names[path]}.{part}{leaf}"] = getattr(layer, ours)[lora.NAME]
    linears = [names[path] for path in selection.linears(model) if path in names]
    record |= describe({names[path]: layer for path, layer in layers.items()}, linears, saved)
    transposed = any(table.turned(f"{path}.weight") for path in layers)
    return record | {"peft_type": "LORA", "bias": bias}, tensors, {"fan_in_fan_out": transposed}


def before_texts(model):
    """A prefix or a prompt -> its part of a record, its numbers (P, ...), its shape for PEFT's config; else None."""
    standing, words = model.backbone.prefix, model.backbone.word_embeddings
    kinds = {"prefix": standing is not None, "prompt": isinstance(words, prompt.PromptEmbedding),
             "lora": any(isinstance(layer, lora.LoraLinear) for layer in model.modules())}
    if sum(kinds.values()) > 1:
        raise InputError("this model has a prefix, a prompt or LoRA at once, but a folder of PEFT "
                         "holds one adapter")
    if kinds["prefix"]:
        method, numbers = "prefix", standing.numbers()
    elif kinds["prompt"]:
        method, numbers = "prompt", words.vectors * model.backbone.word_factor
    else:
        return None
    layers, heads, width = prefix.shape_of(model.backbone)
    shape = {"num_layers": layers, "num_attention_heads": heads, "num_transformer_submodules": 1,
             "token_dim": heads * width if method == "prefix" else model.backbone.width}
    return {"peft_type": TYPES[method], "num_virtual_tokens": len(numbers)}, numbers, shape


def check_saved(layers, parameters, in_full):
    """InputError if a layer of the head is wrapped, or a parameter is trainable that is not among those saved in full."""
    inside = [path for path in layers if selection.in_head(path)]
    if inside:
        raise InputError(f"{', '.join(inside)}: the head learns as a whole, leave it out of the targets")
    lost = [path for path, p in parameters.items() if p.requires_grad and path not in in_full]
    if lost:
        raise InputError(f"{len(lost)} parameters learn that the adapter would not hold, {lost[0]} "
                         "first: freeze them (requires_grad_(False)) or name their modules in `saved`")


def head_module(file):
    """bert.pooler.dense.weight -> pooler, classifier.dense.weight -> classifier, score.weight -> score."""
    parts = file.split(".")[:-1]
    return parts[-2] if len(parts) > 1 else parts[0]
