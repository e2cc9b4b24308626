"""What the tensors of a PEFT adapter are called, in its file and in a classifier.

A name in the file, once PEFT's prefix is off (files.py), is that of a layer in transformers and a
part. The rename table (models/weights.py) leads from the layer to its path in the model. In BERT:

    bert.encoder.layer.0.attention.self.query.lora_A.weight     a name in the file
    bert.encoder.layer.0.attention.self.query, lora_A           its layer, its part
    backbone.layers.0.q_proj                                    the path of the layer
    classifier.weight -> head.out.weight                        what was trained in full

In attach.py and collect.py, `file` is a name in a file, `path` one in the model. A *fault* is a
line about what is wrong; all are collected, then raised.
"""
import re

from ...errors import InputError
from ...files import short
from ...models.tensor_files import count_faults

# of a LoRA layer's A, B and DoRA's m: name in the file -> name in the model
LORA_PARTS = {"lora_A": "lora_A", "lora_B": "lora_B", "lora_magnitude_vector": "magnitude"}
LAYER = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?")
ADDED = re.compile(r"backbone\.prefix\.|.*\.word_embeddings\.vectors|.*\.(lora_[AB]|magnitude)\.")


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


def head_module(file):
    """A name for modules_to_save: bert.pooler.dense.weight -> pooler, score.weight -> score."""
    parts = file.split(".")[:-1]
    return parts[-2] if len(parts) > 1 else parts[0]
