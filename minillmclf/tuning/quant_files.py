"""4-bit layers in files, laid out as transformers and bitsandbytes write them.

A 4-bit layer `x` is stored as x.weight (n/2, 1) uint8, x.weight.absmax, x.weight.quant_map (the 16
numbers) and x.weight.quant_state.bitsandbytes__nf4, the bytes of a JSON object with kind,
blocksize, dtype and shape. Double quantisation adds x.weight.nested_absmax and
x.weight.nested_quant_map. config.json gets a quantization_config.
"""
import json
import math
import re

import torch
from torch import nn

from ..errors import InputError
from ..files import check_fields, find_model, parse_json, short
from ..models.config import read_model_config
from ..models.tensor_files import join_faults, read_tensor
from ..models.weights import Checkpoint, export_tensors, load_parameters
from .frozen import Placer
from .linear4bit import Linear4bit, Quantiser, dtype_name
from .quant import BLOCKSIZES, CODES, FLOATS, NESTED_BLOCKSIZE, Quantised, dynamic_map

STATE_NAME = "weight.quant_state.bitsandbytes__"
# quantization_config: key -> the supported values; None: any value, as it changes nothing here
SUPPORTED = {
    "quant_method": ("bitsandbytes", None), "load_in_4bit": (True,), "_load_in_4bit": (True,),
    "load_in_8bit": (False,), "_load_in_8bit": (False,), "bnb_4bit_quant_type": tuple(CODES),
    "bnb_4bit_quant_storage": ("uint8", None), "bnb_4bit_compute_dtype": (*FLOATS, None),
    "bnb_4bit_use_double_quant": (True, False), "llm_int8_enable_fp32_cpu_offload": (False,),
    "llm_int8_has_fp16_weight": (False,), "llm_int8_threshold": None, "llm_int8_skip_modules": None}


def is_size(value):
    return type(value) is int and 0 < value < 2**31


# a quant_state, and what double quantisation adds to it: key -> (test, meaning)
STATE_FIELDS = {
    "quant_type": (lambda v: v in (*CODES,), " or ".join(CODES)),
    "dtype": (lambda v: v in (*FLOATS,), " or ".join(FLOATS)),
    "blocksize": (lambda v: v in BLOCKSIZES, f"one of {BLOCKSIZES}"),
    "shape": (lambda v: isinstance(v, list) and len(v) == 2 and all(map(is_size, v)),
              "two whole numbers")}
NESTED_FIELDS = {
    "nested_blocksize": (lambda v: v == NESTED_BLOCKSIZE, NESTED_BLOCKSIZE),
    "nested_dtype": (lambda v: v == "float32", "float32"),
    "nested_offset": (lambda v: type(v) in (int, float) and abs(v) < 1e30, "a number below 1e30")}


def layer_to_tensors(layer):
    """A Linear4bit -> {name: tensor}; in a file the layer's name stands before each name."""
    q = layer.quantised
    state = {"quant_type": q.kind, "blocksize": q.blocksize, "dtype": dtype_name(q.dtype),
             "shape": list(q.shape)}
    tensors = {"weight": q.packed, "weight.absmax": q.absmax,
               "weight.quant_map": CODES[q.kind].clone()}
    if q.offset is not None:
        state |= {"nested_blocksize": NESTED_BLOCKSIZE, "nested_dtype": "float32",
                  "nested_offset": q.offset.item()}
        tensors |= {"weight.nested_absmax": q.nested_absmax,
                    "weight.nested_quant_map": dynamic_map().clone()}
    text = json.dumps(state).encode()
    return tensors | {STATE_NAME + q.kind: torch.tensor(list(text), dtype=torch.uint8)}


def layer_from_tensors(tensors, bias=None, where="a 4-bit layer"):
    """The inverse of `layer_to_tensors`, also for files of transformers -> Linear4bit.

    where: file and module, for errors. InputError if something is missing, corrupt or does not fit.
    """
    state = read_state(tensors, where)
    kind, blocksize, shape = state["quant_type"], state["blocksize"], tuple(state["shape"])
    nested = "nested_offset" in state
    blocks = math.ceil(math.prod(shape) / blocksize)
    expected = {                                                  # name -> dtype, shape, values
        "weight": (torch.uint8, (math.ceil(math.prod(shape) / 2), 1), None),
        "weight.absmax": (torch.uint8 if nested else torch.float32, (blocks,), None),
        "weight.quant_map": (torch.float32, (16,), CODES[kind])}
    if nested:
        expected |= {
            "weight.nested_absmax": (torch.float32, (math.ceil(blocks / NESTED_BLOCKSIZE),), None),
            "weight.nested_quant_map": (torch.float32, (256,), dynamic_map())}
    for name, description in expected.items():
        check_tensor(tensors, name, *description, where)
    q = Quantised(tensors["weight"], tensors["weight.absmax"], kind, blocksize, shape,
                  FLOATS[state["dtype"]])
    if nested:
        q.nested_absmax = tensors["weight.nested_absmax"]
        q.offset = torch.tensor(float(state["nested_offset"]), device=q.packed.device)
    return Linear4bit(q, bias)


def read_state(tensors, where):
    """The JSON object with kind, blocksize, dtype and shape, from the bytes of a tensor."""
    name = next((name for name in tensors if name.startswith(STATE_NAME)), None)
    if name is None:
        raise InputError(f"{where}: {STATE_NAME}* is missing, which says how it was quantised: "
                         "download the file again")
    where = f"{where}: {name}"
    try:
        text = bytes(tensors[name].tolist()).decode()
    except (ValueError, TypeError) as error:                                    # no bytes, no text
        raise InputError(f"{where}: is corrupt ({error}): download the file again") from None
    state = parse_json(text, where)
    nested = NESTED_FIELDS if isinstance(state, dict) and "nested_offset" in state else {}
    return check_fields(state, STATE_FIELDS | nested, where)


def check_tensor(tensors, name, dtype, shape, values, where):
    """InputError unless this tensor is there and finite, and has these `values` if not None."""
    if name not in tensors:
        raise InputError(f"{where}: {name} is missing: a 4-bit weight cannot be read without it")
    found = tensors[name]
    if found.dtype != dtype or tuple(found.shape) != shape or not found.isfinite().all():
        raise InputError(f"{where}: {name} is {dtype_name(found.dtype)} {tuple(found.shape)}, "
                         f"should be finite {dtype_name(dtype)} {shape}: download the file again")
    if values is not None and not torch.allclose(found.cpu(), values, rtol=0, atol=1e-6):
        raise InputError(f"{where}: {name} has other values than here, its bytes mean other "
                         "numbers: quantise anew")


# ------------------------------------------------------------------------------- whole checkpoints

class FourBitCheckpoint(Checkpoint):
    """A model folder in which some linear layers have four bits.

    packed: {4-bit layer: {name as in `layer_to_tensors`: name in the file}}. `files` has all
    other tensors, `all_files` all.
    """

    def __init__(self, folder):
        super().__init__(folder)
        self.config = {**self.config}
        check_quantization(self.config.pop("quantization_config"), self.folder / "config.json")
        layers = [name.partition("." + STATE_NAME)[0] for name in self.files if STATE_NAME in name]
        self.packed = {layer: {name.removeprefix(layer + "."): name for name in self.files
                               if f"{name}.".startswith(layer + ".weight.")}        # also .weight
                       for layer in layers}
        self.all_files = dict(self.files)
        for parts in self.packed.values():
            for name in parts.values():
                del self.files[name], self.shapes[name], self.dtypes[name]

    def __contains__(self, name):
        return name in self.all_files

    def read_layer(self, name, bias):
        """The 4-bit layer of this name; bias: its parameter, or None."""
        parts = {part: read_tensor(self.all_files[whole], self.stored_names[whole])
                 for part, whole in self.packed[name].items()}
        return layer_from_tensors(parts, bias, f"{self.folder}: {name}")


def check_quantization(settings, where):
    """InputError unless a quantization_config describes 4-bit layers that are supported here."""
    wrong = []
    for key, value in settings.items():
        allowed = SUPPORTED.get(key, (None,))
        if allowed is not None and value not in allowed:
            wrong.append(f"{short(key)[1:-1]} = {short(value)}")               # without its quotes
    if wrong or not settings.get("load_in_4bit", settings.get("_load_in_4bit")):
        raise InputError(f"{where}: quantization_config has "
                         f"{join_faults(wrong) or 'no load_in_4bit'}: only 4-bit layers of "
                         "bitsandbytes are supported, take the files that this model was quantised "
                         "from")


def has_four_bits(folder):
    """Does the config.json of a model folder say that its matrices are in four bits?"""
    return read_model_config(find_model(folder)).get("quantization_config") is not None


def kind_of(model):
    """The type of a model's 4-bit layers, "nf4" or "fp4"; None if there is none."""
    return next((layer.kind for layer in model.modules() if isinstance(layer, Linear4bit)), None)


def open_checkpoint(folder):
    """The Checkpoint of a model folder, with or without 4-bit layers."""
    return FourBitCheckpoint(folder) if has_four_bits(folder) else Checkpoint(folder)


def fill_from(model, checkpoint, table, fresh=(), device=None, **options):
    """As models.weights.load_parameters, for a checkpoint with or without 4-bit layers ->
    LoadReport. device: of the 4-bit layers, None for the CPU."""
    paths = {}
    for layer in getattr(checkpoint, "packed", {}):
        try:
            path = table.path_of(layer + ".weight")
        except KeyError as error:
            raise InputError(f"{checkpoint.folder}: {table.title} has no row for the 4-bit layer "
                             f"{error}") from None
        if path:
            paths[layer] = path
    optional = [*fresh, *map(re.escape, paths.values())]
    report = load_parameters(model, checkpoint, table, optional, **options)
    for layer, path in paths.items():
        owner = path.removesuffix(".weight")
        old = model.get_submodule(owner)
        new = checkpoint.read_layer(layer, old.bias)
        shape = (old.out_features, old.in_features)
        if new.shape != shape:
            raise InputError(f"{checkpoint.folder}: {layer} is {new.shape}, {owner} is {shape}")
        model.set_submodule(owner, new if device is None else new.to(device))
        report.loaded[layer + ".weight"] = path
        report.newly_initialised.remove(path)
    return report


def load_weights(model, checkpoint, table, fresh=(), quantise=None, half=(), device=None):
    """Fill a classifier from a checkpoint, a tensor at a time -> LoadReport, the paths that were
    not quantised; [] if none was to be.

    fresh: patterns of paths that need not be in the file; quantise: "nf4" or "fp4" for the linear
    layers of the backbone as they are read, or None; a 4-bit file is never quantised anew. half:
    paths of matrices that are held in bf16, if not in four bits; device: of all that is read.
    """
    quantiser = None
    if quantise and not hasattr(checkpoint, "packed"):
        whole = set(model.backbone.FULL_PRECISION)
        quantiser = Quantiser(lambda path: whole.isdisjoint(path.split(".")), quantise)
    place = Placer(half, device, quantiser)
    report = fill_from(model, checkpoint, table, fresh, device, place=place,
                       dtype=lambda path: place.dtype_of(model, path))
    return report, quantiser.list_paths(model)[1] if quantiser else []


def export_4bit(model, table):
    """models.weights.export with 4-bit layers -> ({name: tensor}, quantization_config or None)."""
    tensors, settings, not_quantised = export_tensors(model, table), None, []
    linears = {path: layer for path, layer in model.named_modules()
               if isinstance(layer, (nn.Linear, Linear4bit))}
    for path, name in table.file_names(linears).items():
        layer = linears[path]
        if isinstance(layer, nn.Linear):
            not_quantised.append(name)
            continue
        tensors |= {f"{name}.{part}": tensor for part, tensor in layer_to_tensors(layer).items()}
        settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
                    "bnb_4bit_quant_type": layer.kind,
                    "bnb_4bit_use_double_quant": layer.offset is not None,
                    "bnb_4bit_compute_dtype": "float32", "bnb_4bit_quant_storage": "uint8",
                    "llm_int8_skip_modules": not_quantised}
    return tensors, settings
