"""4-bit layers in files, laid out as transformers and bitsandbytes write them; reading and writing whole checkpoints of them.

A layer `x` with a 4-bit weight has in the file, beside `x.weight` (n/2, 1) in bytes, x.weight.absmax, x.weight.quant_map
(the 16 numbers), with double quantisation x.weight.nested_absmax and x.weight.nested_quant_map, and as a JSON object in
bytes x.weight.quant_state.bitsandbytes__nf4: kind, blocksize, dtype, shape. config.json has quantization_config.
"""
import json
import math
import re

import torch
from torch import nn

from ..errors import InputError
from ..files import check_fields, find_model, parse_json, short
from ..models.config import read_model_config
from ..models.weights import Checkpoint, export, fill, listed, read_tensor, translate
from .quant import (BLOCKSIZES, CODES, FLOATS, NESTED, Linear4bit, Quantised, Quantiser, dynamic_map,
                    name_of)

STATE = "weight.quant_state.bitsandbytes__"
# quantization_config: key -> the values that change nothing here
SUPPORTED = {"quant_method": ("bitsandbytes", None), "load_in_4bit": (True,), "_load_in_4bit": (True,), "load_in_8bit": (False,),
             "_load_in_8bit": (False,), "bnb_4bit_quant_type": tuple(CODES), "bnb_4bit_quant_storage": ("uint8", None),
             "bnb_4bit_compute_dtype": (*FLOATS, None), "bnb_4bit_use_double_quant": (True, False),
             "llm_int8_enable_fp32_cpu_offload": (False,), "llm_int8_has_fp16_weight": (False,)}
# what a quant_state holds, and with double quantisation besides
STATE_FIELDS = {"quant_type": (lambda v: v in (*CODES,), " or ".join(CODES)),
                "dtype": (lambda v: v in (*FLOATS,), " or ".join(FLOATS)),
                "blocksize": (lambda v: v in BLOCKSIZES, f"one of {BLOCKSIZES}"),
                "shape": (lambda v: isinstance(v, list) and len(v) == 2
                          and all(type(n) is int and 0 < n < 2**31 for n in v),
                          "two whole numbers")}
NESTED_FIELDS = {"nested_blocksize": (lambda v: v == NESTED, NESTED),
                 "nested_dtype": (lambda v: v == "float32", "float32"),
                 "nested_offset": (lambda v: type(v) in (int, float) and abs(v) < 1e30,
                                   "a number below 1e30")}
OF_8_BITS = ("llm_int8_threshold", "llm_int8_skip_modules")         # of other layers; which were skipped the tensors say


def to_file(layer):
    """A layer's weight as transformers and bitsandbytes write it -> {what follows the module's name: tensor}."""
    q = layer.quantised
    state = {"quant_type": q.kind, "blocksize": q.blocksize, "dtype": name_of(q.dtype), "shape": list(q.shape)}
    tensors = {"weight": q.packed, "weight.absmax": q.absmax, "weight.quant_map": CODES[q.kind].clone()}
    if q.offset is not None:
        state |= {"nested_blocksize": NESTED, "nested_dtype": "float32", "nested_offset": q.offset.item()}
        tensors |= {"weight.nested_absmax": q.nested_absmax, "weight.nested_quant_map": dynamic_map().clone()}
    return tensors | {STATE + q.kind: torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)}


def from_file(tensors, bias=None, where="a 4-bit layer"):
    """The inverse of `to_file`, also for what transformers and bitsandbytes have written -> Linear4bit.

    tensors: {what follows the module's name: tensor}; where: the file and the module, for errors. Raises InputError if
    something is missing, corrupt or does not fit.
    """
    state = read_state(tensors, where)
    q = Quantised(tensors.get("weight"), tensors.get("weight.absmax"), state["quant_type"], state["blocksize"],
                  tuple(state["shape"]), FLOATS[state["dtype"]])
    nested = "nested_offset" in state
    numbers = q.shape[0] * q.shape[1]
    blocks = math.ceil(numbers / q.blocksize)
    expect(tensors, "weight", torch.uint8, (math.ceil(numbers / 2), 1), where)
    expect(tensors, "weight.absmax", torch.uint8 if nested else torch.float32, (blocks,), where)
    expect(tensors, "weight.quant_map", torch.float32, (16,), where, CODES[q.kind])
    if nested:
        expect(tensors, "weight.nested_absmax", torch.float32, (math.ceil(blocks / NESTED),), where)
        expect(tensors, "weight.nested_quant_map", torch.float32, (256,), where, dynamic_map())
        q.nested_absmax = tensors["weight.nested_absmax"]
        q.offset = torch.tensor(float(state["nested_offset"]), device=q.packed.device)
    return Linear4bit(q, bias)


def read_state(tensors, where):
    """The JSON object with kind, blocksize, dtype and shape, which lies in the file as bytes in a tensor; checked."""
    name = next((name for name in tensors if name.startswith(STATE)), None)
    if name is None:
        raise InputError(f"{where}: {STATE}* is missing, which says how it was quantised: download the file again")
    where = f"{where}: {name}"
    try:
        text = bytes(tensors[name].tolist()).decode()
    except (ValueError, TypeError) as error:                       # no bytes, no text
        raise InputError(f"{where}: is corrupt ({error}): download the file again") from None
    state = parse_json(text, where)
    nested = NESTED_FIELDS if isinstance(state, dict) and "nested_offset" in state else {}
    return check_fields(state, STATE_FIELDS | nested, where)


def expect(tensors, name, dtype, shape, where, values=None):
    """InputError unless there is such a tensor, finite, and with these values if they are given."""
    if name not in tensors:
        raise InputError(f"{where}: {name} is missing: a 4-bit weight cannot be read without it")
    found = tensors[name]
    if found.dtype != dtype or tuple(found.shape) != shape or not found.isfinite().all():
        raise InputError(f"{where}: {name} is {name_of(found.dtype)} {tuple(found.shape)}, should be finite "
                         f"{name_of(dtype)} {shape}: download the file again")
    if values is not None and not torch.allclose(found.cpu(), values, rtol=0, atol=1e-6):
        raise InputError(f"{where}: {name} has other values than here, its bytes mean other numbers: quantise anew")


# ------------------------------------------------------------------------------------------------ whole checkpoints

class FourBitCheckpoint(Checkpoint):
    """A folder some of whose linear layers have four bits. `files` holds the other tensors, as those of any checkpoint;
    `packed` those of the 4-bit layers: {name of the layer: {what follows it: name in the file}}."""

    def __init__(self, folder):
        super().__init__(folder)
        self.config = {**self.config}
        check_quantised(self.config.pop("quantization_config"), self.folder / "config.json")
        self.packed = {name[:name.index(STATE) - 1]: {} for name in self.files if STATE in name}
        for layer, parts in self.packed.items():
            for name in [name for name in self.files if name == layer + ".weight" or name.startswith(layer + ".weight.")]:
                parts[name[len(layer) + 1:]] = name
        self.held = dict(self.files)                           # `files` loses what the layers are made of
        for name in (name for parts in self.packed.values() for name in parts.values()):
            del self.files[name], self.shapes[name], self.dtypes[name]

    def __contains__(self, name):
        return name in self.held

    def layer(self, name, bias):
        """The 4-bit layer of this name; bias: its parameter, or None."""
        parts = {part: read_tensor(self.held[file], self.stored[file])
                 for part, file in self.packed[name].items()}
        return from_file(parts, bias, f"{self.folder}: {name}")


def check_quantised(settings, where):
    """InputError unless a quantization_config describes 4-bit layers of bitsandbytes as they are built here."""
    wrong = [f"{short(key)[1:-1]} = {short(value)}" for key, value in settings.items()
             if key not in OF_8_BITS and value not in SUPPORTED.get(key, (None,))]
    if wrong or not settings.get("load_in_4bit", settings.get("_load_in_4bit")):
        raise InputError(f"{where}: quantization_config has {listed(wrong) or 'no load_in_4bit'}: "
                         f"only 4-bit layers of bitsandbytes are supported, take the files that "
                         f"this model was quantised from")


def open_checkpoint(folder):
    """A model folder, with or without 4-bit layers."""
    quantised = read_model_config(find_model(folder)).get("quantization_config")
    return Checkpoint(folder) if quantised is None else FourBitCheckpoint(folder)


def read_into(model, checkpoint, table, fresh=(), **options):
    """weights.fill for either kind of checkpoint -> Report."""
    packed = getattr(checkpoint, "packed", {})
    try:
        paths = {layer: translate(layer + ".weight", table) for layer in packed}
    except KeyError as error:
        raise InputError(f"{checkpoint.folder}: {table.title} has no row for the 4-bit layer {error}") from None
    paths = {layer: path for layer, path in paths.items() if path}
    report = fill(model, checkpoint, table, [*fresh, *map(re.escape, paths.values())], **options)
    for layer, path in paths.items():
        owner = path.removesuffix(".weight")
        old, new = model.get_submodule(owner), checkpoint.layer(layer, model.get_submodule(owner).bias)
        if new.shape != (old.out_features, old.in_features):
            raise InputError(f"{checkpoint.folder}: {layer} is {new.shape}, {owner} is {(old.out_features, old.in_features)}")
        model.set_submodule(owner, new)
        report.loaded[layer + ".weight"] = path
        report.fresh.remove(path)
    return report


def load_weights(model, checkpoint, table, fresh=(), quantise=None):
    """Fill a classifier from a folder of either kind -> Report, the linear layers that are not put
    into four bits.

    fresh: patterns of paths that need not be in the file; quantise: "nf4" or "fp4" for the linear
    layers of the backbone, as they are read, unless they have four bits in the file.
    """
    if not quantise or hasattr(checkpoint, "packed"):
        return read_into(model, checkpoint, table, fresh), []
    kept = {*model.backbone.KEPT_WHOLE, "lm_head"}
    quantiser = Quantiser(lambda path: not kept & set(path.split(".")), quantise)
    report = read_into(model, checkpoint, table, fresh, place=quantiser)
    return report, quantiser.report(model)[1]


def export_4bit(model, table):
    """What weights.export gives, and the 4-bit layers -> ({name: tensor}, quantization_config or None)."""
    tensors, settings, whole = export(model, table), None, []
    linears = {path: layer for path, layer in model.named_modules() if isinstance(layer, (nn.Linear, Linear4bit))}
    for path, name in table.file_names(linears).items():
        layer = linears[path]
        if isinstance(layer, nn.Linear):
            whole.append(name)
        else:
            tensors |= {f"{name}.{part}": tensor for part, tensor in to_file(layer).items()}
            settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
                        "bnb_4bit_quant_type": layer.kind, "bnb_4bit_use_double_quant": layer.offset is not None,
                        "bnb_4bit_compute_dtype": "float32", "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": whole}
    return tensors, settings
