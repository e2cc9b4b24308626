"""From the tensors of a PEFT adapter to a classifier of ours, which is wrapped (lora.py) or has something before its
texts (prefix.py, prompt.py), and back.

Names go through the model's rename table (models/weights.py), forwards and backwards. An adapter is worth nothing without
what else learned: a head that is in neither the base nor the adapter would stay random. So all that the config means must
be there, all that is there must have a place, and every new weight of the model must be filled: else nothing is changed.

Several adapters may stand on one base; each has its own head, which `switch` takes along. Folders: peft_format.py.
"""
import re

import torch

from ..errors import InputError
from ..files import short
from ..models.weights import Report, shape_fault, translate
from . import lora, prefix, prompt, selection
from .peft_config import describe, meant, saved_with

PARTS = {"lora_A": "lora_A", "lora_B": "lora_B", "lora_magnitude_vector": "magnitude"}        # in the file: here
LAYER = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?")
# of a record
RECIPE = ("method", "rank", "alpha", "dropout", "rank_stabilised", "targets", "bias", "saved",
          "tokens")


def bare(name):
    """A name from a file, for a message, without quotes."""
    return short(name, 200)[1:-1]


def told(where, faults, most=8):
    """Raise InputError with the first of the faults, if there are any; `where` is what they are
    faults of."""
    if faults:
        more = f"; and {len(faults) - most} more" if len(faults) > most else ""
        raise InputError(f"{where}: {len(faults)} faults: " + "; ".join(faults[:most]) + more)


def split(tensors):
    """-> {layer: {"lora_A": (r, in), "lora_B": (out, r), ...}} and the other tensors, by their names in the base."""
    layers, whole = {}, {}
    for name, tensor in tensors.items():
        found = LAYER.fullmatch(name)
        if found:
            layers.setdefault(found[1], {})[found[2]] = tensor
        else:
            whole[name.replace(".base_layer.bias", ".bias")] = tensor
    return layers, whole


# ------------------------------------------------------------------------------------------------ names

def plain_parameters(model):
    """{path as if nothing were wrapped: parameter} of all that is no adapter."""
    before = ("backbone.prefix.", "backbone.word_embeddings.vectors")
    own = {id(p) for layer in model.modules() if isinstance(layer, lora.LoraLinear)
           for name, p in layer.named_parameters() if not name.startswith("base.")}
    return {path.replace(".base.", "."): p for path, p in model.named_parameters()
            if id(p) not in own and not path.startswith(before)}


# ------------------------------------------------------------------------------------------------ into a model

def apply_adapter(model, record, tensors, name="default"):
    """Wrap a classifier's layers as the record says, fill in all tensors -> Report: where each went.

    The adapter becomes the active one, and what belongs to it is what learns if training goes on;
    `model.recipe` says how it was made, so that the classifier can be saved. Raises InputError with
    the faults before anything has changed: a layer, a shape or a place that is missing, a weight
    that would stay new.
    """
    layers, whole = split(tensors)
    numbers = whole.pop("prompt_embeddings") if record["method"] in ("prefix", "prompt") else None
    places, faults = place_layers(model, record, layers, whole) if numbers is None else ({}, [])
    fills, more = place_whole(model, record, whole, places.values())
    faults += more + ([] if numbers is None else prompt_faults(model, record, numbers))
    own = {"labels": model.labels, **model.settings()}
    faults += [f"{key} of the adapter: {short(record[key], 200)}, of the model: {short(own[key], 200)}"
               for key in ("labels", "pool", "readout") if key in record and record[key] != own[key]]
    told(f"adapter {name!r}", faults)
    own = wrap_layers(model, record, layers, places, name) if numbers is None else attach(model, record, numbers)
    bring(model, name, {path: whole[file].T if model.table().turned(path) else whole[file]
                        for file, path in fills.items()})
    parameters = plain_parameters(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in [*map(model.get_parameter, own.values()), *(parameters[path] for path in fills.values())]:
        parameter.requires_grad_(True)
    model.recipe = {key: record[key] for key in RECIPE if key in record}
    return Report(loaded=own | fills)


def wrap_layers(model, record, layers, places, name):
    """Wrap the layers and fill A, B and m -> {name in the file: path here}."""
    def differing(default, patterns):
        values = selection.per_path(layers, default, patterns)
        return {re.escape(places[layer]): value for layer, value in values.items() if value != default}
    lora.wrap(model, list(places.values()), record["rank"], record["alpha"], record["dropout"], record["rank_stabilised"],
              record["method"] == "dora", differing(record["rank"], record["ranks"]),
              differing(record["alpha"], record["alphas"]), name)
    own = {f"{layer}.{part}": f"{path}.{PARTS[part]}.{name}" for layer, path in places.items() for part in layers[layer]}
    with torch.no_grad():
        for file, path in own.items():
            layer, _, part = file.rpartition(".")
            model.get_parameter(path).copy_(layers[layer][part])
    return own


def attach(model, record, numbers):
    """Put the prefix or the prompt before every text -> {name in the file: path here}. Texts may be
    shorter by it."""
    model.max_length = min(model.max_length, prefix.room_behind(model.backbone, record["tokens"])
                           or model.max_length)
    if record["method"] == "prefix":
        prefix.attach_prefix(model, record["tokens"]).load(numbers)
        return {"prompt_embeddings": "backbone.prefix.embedding.weight"}
    prompt.attach_prompt(model, record["tokens"])
    with torch.no_grad():
        model.backbone.word_embeddings.vectors.copy_(numbers / model.backbone.word_factor)
    return {"prompt_embeddings": "backbone.word_embeddings.vectors"}


def prompt_faults(model, record, numbers):
    """[] or [what is wrong] with the shape of a prefix or a prompt."""
    layers, heads, width = prefix.shape_of(model.backbone)
    columns = layers * 2 * heads * width if record["method"] == "prefix" else model.backbone.width
    shape = (record["tokens"], columns)
    return [] if tuple(numbers.shape) == shape else [f"'prompt_embeddings' is {tuple(numbers.shape)}, should be {shape}"]


def place_layers(model, record, layers, whole):
    """-> {layer in the file: path here}, faults."""
    linears = selection.linears(model)
    names = {file: path for path, file in model.table().file_names(linears).items()}
    spellings = [{old + file[len(new):]: path for file, path in names.items() if file.startswith(new)}
                 for old, new in (("", ""), *model.table().spellings)]
    names = next((spelled for spelled in spellings if set(layers) <= set(spelled)), names)
    expected = meant(record, [file for file in names if f"{file}.weight" not in whole])
    faults = [f"targets {short(record['targets'])} mean {file}, the file has nothing for it"
              for file in expected
              if file not in layers]
    faults += [f"{bare(file)} is in the file, " + (
        "but the config does not mean it" if file in names else
        "this model has no such linear layer")
        for file in layers if file not in expected]
    if faults:
        return {}, faults
    for file, rank in selection.per_path(layers, record["rank"], record["ranks"]).items():
        base = linears[names[file]]
        shapes = {"lora_A": (rank, base.in_features), "lora_B": (base.out_features, rank),
                  "lora_magnitude_vector": (base.out_features,)}
        faults += [f"{file}.{part} is {tuple(tensor.shape)}, should be {shapes[part]}"
                   for part, tensor in layers[file].items() if tuple(tensor.shape) != shapes[part]]
    return {file: names[file] for file in layers}, faults


def biases(parameters, which, wrapped):
    """The biases that learn: "none", "all" outside of the head, "lora_only" of the wrapped layers."""
    return [path for path in parameters if path.endswith(".bias") and (
            which == "all" and not selection.in_head(path) or which == "lora_only" and path.removesuffix(".bias") in wrapped)]


def place_whole(model, record, whole, wrapped):
    """The tensors of biases and of whole modules -> {name in the file: path here}, faults."""
    table, parameters, fills, faults = model.table(), plain_parameters(model), {}, []
    names = model.table().file_names(parameters)
    fresh = model.report.fresh if hasattr(model, "report") else [path for path in parameters if selection.in_head(path)]
    saved = [path for path, file in names.items() if saved_with(file, record["saved"])]
    expected = {*fresh, *saved, *biases(parameters, record.get("bias", "none"), set(wrapped))}
    for file, tensor in whole.items():
        try:
            path = translate(file, table)
        except KeyError:
            path = None
        if path in fills.values():
            faults.append(f"{short(file, 200)} fills {path} a second time")
        elif path not in parameters:
            faults.append(f"{short(file, 200)} {tuple(tensor.shape)} has no place in this model")
        elif model.head.described and model.backbone.tied and path == "backbone.word_embeddings.weight":
            faults.append(f"{short(file, 200)} learned, but the language-model head did not: here "
                          f"both are one matrix")
        elif path not in expected and not selection.in_head(path) and "word_embeddings" not in path:
            faults.append(f"{short(file, 200)} is in the file, but the config names no such module "
                          f"in modules_to_save or bias")
        else:
            fills[file] = path
            faults += shape_fault(file, tuple(tensor.shape), path, parameters[path], table.turned(path))
    why = {path: "is new in this model and would stay random" if path in fresh else "learned, by the config"
           for path in sorted(expected - set(fills.values()))}
    faults += [f"nothing fills {path} ({names[path]}): it {reason}" for path, reason in why.items()]
    return fills, faults


# ------------------------------------------------------------------------------------------------ several adapters

def bring(model, name, values):
    """Fill in what an adapter brings beside its layers, {path of the unwrapped model: tensor}; `switch` takes it out."""
    if not hasattr(model, "brought"):
        model.brought, model.shown = {None: {}}, None                 # None: the base's own
    parameters = plain_parameters(model)
    model.brought[None] |= {path: parameters[path].detach().clone() for path in values if path not in model.brought[None]}
    model.brought[name] = dict(values)
    show(model, name)


@torch.no_grad()
def show(model, name):
    """Keep the present values of what the adapter at work brought, and put those of `name` in their place."""
    parameters = plain_parameters(model)
    for path in model.brought[model.shown]:
        model.brought[model.shown][path] = parameters[path].detach().clone()
    for path, value in (model.brought[None] | model.brought.get(name, {})).items():
        parameters[path].copy_(value)
    model.shown = name


def switch(model, name):
    """As lora.switch, with the head and the biases that the adapter brought."""
    lora.switch(model, name)
    if hasattr(model, "brought"):
        show(model, name)


# ------------------------------------------------------------------------------------------------ out of a model

def collect(model, record, name):
    """An adapter of a classifier -> its record in full, {name in transformers: tensor}, what else PEFT's config needs.

    record: as `write_adapter` has it. Raises InputError if anything learns (requires_grad) that would be lost.
    """
    standing = prompt_of(model)
    layers = {} if standing else {path: layer for path, layer in lora.wrapped(model).items() if name in layer.numbers}
    parameters = plain_parameters(model)
    names = model.table().file_names([*selection.linears(model), *parameters])
    head = [path for path in parameters if path.startswith("head.")]
    record = {"base": None, "saved": []} | record
    learned = biases(parameters, "none" if standing else record.setdefault("bias", "none"), layers)
    saved = (path for path in parameters if saved_with(names.get(path, ""), record["saved"]))
    whole = {*saved, *head, *learned}
    check_kept(model, name, layers, whole)
    record["saved"] = sorted({*record["saved"], *(head_module(names[path]) for path in head)})
    tensors = {}
    for path in whole:
        module, _, leaf = names[path].rpartition(".")
        inside = path in learned and path.removesuffix(".bias") in layers
        file = f"{module}.base_layer.{leaf}" if inside else names[path]
        tensors[file] = parameters[path].T if model.table().turned(path) else parameters[path]
    if standing:
        return record | standing[0], tensors | {"prompt_embeddings": standing[1]}, standing[2]
    for path, layer in layers.items():
        for part, ours in PARTS.items():
            if hasattr(layer, ours):
                leaf = "" if part == "lora_magnitude_vector" else ".weight"
                tensors[f"{names[path]}.{part}{leaf}"] = getattr(layer, ours)[name]
    linears = [names[path] for path in selection.linears(model) if path in names]
    record |= describe({names[path]: layer for path, layer in layers.items()}, linears, record["saved"], name)
    return record, tensors, {"fan_in_fan_out": any(model.table().turned(f"{path}.weight") for path in layers)}


def prompt_of(model):
    """A prefix or a prompt -> what a record says of it, its numbers (P, ...), its shape for PEFT; None without one."""
    standing, words = model.backbone.prefix, model.backbone.word_embeddings
    kinds = [standing is not None, isinstance(words, prompt.PromptEmbedding),
             any(isinstance(layer, lora.LoraLinear) for layer in model.modules())]
    if sum(kinds) > 1:
        raise InputError("this model has a prefix, a prompt or LoRA at once, but a folder of PEFT holds one adapter")
    if not any(kinds[:2]):
        return None
    layers, heads, width = prefix.shape_of(model.backbone)
    shape = {"num_layers": layers, "num_attention_heads": heads, "num_transformer_submodules": 1,
             "token_dim": heads * width if kinds[0] else model.backbone.width}
    if kinds[0]:
        return {"method": "prefix", "tokens": standing.tokens}, standing.numbers(), shape
    return {"method": "prompt", "tokens": len(words.vectors)}, words.vectors * model.backbone.word_factor, shape


def check_kept(model, name, layers, whole):
    """InputError unless `name` is at work, no layer of the head is wrapped, and nothing else learns."""
    if prompt_of(model) is None:
        lora.adapter_parameters(model, name)                                      # is there one?
    if any(layer.active != name for layer in layers.values()):
        raise InputError(f"adapter {name!r} is not the active one, so the head may be another's: call "
                         f"switch(model, {name!r}) first")
    inside = [path for path in layers if selection.in_head(path)]
    if inside:
        raise InputError(f"{', '.join(inside)}: the head learns as a whole, leave it out of the targets")
    lost = [path for path, p in plain_parameters(model).items() if p.requires_grad and path not in whole]
    if lost:
        raise InputError(f"{len(lost)} parameters learn that the adapter would not hold, {lost[0]} first: freeze them "
                         f"(requires_grad_(False)) or name their modules in record['saved']")


def head_module(file):
    """bert.pooler.dense.weight -> pooler, classifier.dense.weight -> classifier, score.weight -> score."""
    parts = file.split(".")[:-1]
    return parts[-2] if len(parts) > 1 else parts[0]
