"""Safetensors files: read a tensor, find the tensors of a model folder, write a model folder.

Nothing is ever unpickled: for a folder with only pytorch_model.bin the error says how to convert
it. File format: https://github.com/huggingface/safetensors
"""
import json
import os
import re
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import InputError, NoMemory, is_no_memory
from ..files import (NEW_MODEL, is_utf8, move_files, read_json, remove_path, replacing_file, short,
                     write_text)

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
WEIGHTS = (SINGLE_FILE, INDEX_FILE, "model-*-of-*.safetensors")      # patterns of files' names
MODEL_KEYS = ("model_type", "architectures", "peft_type", "recipe")  # a model's JSON files have one
SHARD_BYTES = 5 * 10**9
# pattern of a tensor's name that is not in NAMES -> what is wrong, and what to do
REMEDIES = (
    (r"_scale(_inv)?$|\.(qweight|qzeros|scales|g_idx|SCB|absmax)$", "the model was quantised in a "
     "way that is not read here: take the files that it was quantised from"),
    (r"^base_model\.|\.lora_[AB]\.|\.base_layer\.", "an adapter of PEFT is in it: save it merged "
     "(merge_and_unload), or name the adapter's own folder"),
    ("", "the weights are of another model than config.json describes: download both again, or "
     "save them with transformers (from_pretrained(DIR).save_pretrained(NEW))"))


def open_tensors(path):
    """A memory-mapped safetensors file. InputError if it is cut short or no safetensors file,
    NoMemory where there is no room for it."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: is no ordinary file: a safetensors file is expected")
    if not is_utf8(path):
        raise InputError(f"{short(path, 300)}: its name is not UTF-8, and safetensors opens no "
                         "such file: rename the file or the folder")
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:
        size = os.path.getsize(path) if os.path.exists(path) else 0
        if is_no_memory(error):
            raise NoMemory(f"{path}: not enough memory to open its {size:,} bytes: allow more "
                           "(ulimit -v), take a smaller model or use a larger machine") from None
        if not isinstance(error, (SafetensorError, OSError)):
            raise
        raise InputError(f"{path}: not a whole safetensors file ({size} bytes; "
                         f"{short(str(error), 200)[1:-1]}): download or save it again") from None


def read_tensor(path, name):
    """A copy of one tensor of a file, so that a model does not change when its file does. Only one
    tensor at a time is in memory twice."""
    with open_tensors(path) as file:
        return file.get_tensor(name).clone()


def write_tensors(path, tensors, metadata):
    """Write one safetensors file completely, or leave an earlier one as it was."""
    with replacing_file(path) as temporary:
        try:
            save_file(tensors, str(temporary), metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from None


def find_tensors(folder):
    """The tensors of a model folder -> {name: the file it is in}.

    They lie in model.safetensors, or in shards with an index. A tensor that the index does not name
    is no part of the model.
    """
    if (folder / SINGLE_FILE).exists():
        with open_tensors(folder / SINGLE_FILE) as file:
            return dict.fromkeys(file.keys(), folder / SINGLE_FILE)
    if (folder / INDEX_FILE).exists():
        return find_shards(folder / INDEX_FILE)
    if list(folder.glob("*.bin")):
        raise InputError(f"{folder}: only .bin files, which are pickles and never opened here; "
                         "convert once with transformers: "
                         "AutoModel.from_pretrained(DIR).save_pretrained(DIR)")
    raise InputError(f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE} is there: download or save "
                     "it again")


def find_shards(index):
    """An index file -> {name of a tensor: the shard it is in}, every shard checked."""
    shard_of, folder = read_json(index).get("weight_map"), index.parent
    if (not isinstance(shard_of, dict) or not shard_of
            or not all(isinstance(shard, str) for shard in shard_of.values())):
        raise InputError(f"{index}: has no weight_map: download the folder again")
    shards, faults, held = sorted(set(shard_of.values())), [], {}       # held: {shard: its tensors}
    for shard in shards:
        if Path(shard).name != shard:
            faults.append(f"shard {short(shard)[1:-1]} lies outside the folder")
        elif not os.path.isfile(folder / shard):
            faults.append(f"shard {short(shard)[1:-1]} is not there")
    if faults:
        raise InputError(f"{index}: {join_faults(faults)}: download the folder again")
    for shard in shards:
        with open_tensors(folder / shard) as file:
            held[shard] = set(file.keys())
    absent = [name for name, shard in shard_of.items() if name not in held[shard]]
    if absent:
        raise InputError(f"{index}: names {len(absent)} tensors that its shards lack, "
                         f"{short(absent[0])} first: the index is stale, download the folder again")
    return {name: folder / shard for name, shard in shard_of.items()}


def remedy_for(name):
    """What is wrong with a tensor that is no part of the model, and what to do."""
    return next(text for sign, text in REMEDIES if re.search(sign, name))


def count_faults(faults):
    """How many faults there are, and the first of them -> a line."""
    return f"{len(faults)} fault{'s' * (len(faults) > 1)}: {join_faults(faults)}"


def join_faults(faults, most=8):
    """The first faults in one line, and how many more there are."""
    more = [f"and {len(faults) - most} more"] if len(faults) > most else []
    return "; ".join(faults[:most] + more)


def write_checkpoint(folder, config, tensors, dtype=torch.float32, shard_bytes=SHARD_BYTES,
                     keep=()):
    """Save config.json and model.safetensors, or shards of at most `shard_bytes` and their index.

    dtype: of all tensors of floats but those named in `keep`. Each file is replaced completely or
    left as it was; the files of an earlier model in the folder are removed at the end.
    """
    folder = Path(folder)
    config = {**config, "dtype": str(dtype).removeprefix("torch.")}
    config.pop("torch_dtype", None)
    shards = cut_shards(tensors, dtype.itemsize, shard_bytes)
    files, total_size = [SINGLE_FILE], 0                                                # in bytes
    if len(shards) > 1:
        files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors"
                 for number in range(1, len(shards) + 1)]
    for file, names in zip(files, shards):
        part = {name: tensors[name].cpu() for name in names}
        part |= {name: tensor.to(dtype) for name, tensor in part.items()
                 if name not in keep and tensor.is_floating_point()}
        write_tensors(folder / file, part, {"format": "pt"})
        total_size += sum(tensor.nbytes for tensor in part.values())
    if len(files) > 1:
        total = sum(tensor.numel() for tensor in tensors.values())
        index = {"metadata": {"total_size": total_size, "total_parameters": total},
                 "weight_map": {name: file for file, names in zip(files, shards)
                                for name in names}}
        write_text(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
    write_text(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    stale = {path for path in folder.glob("model-*-of-*.safetensors") if path.name not in files}
    for path in stale | {folder / (SINGLE_FILE if len(files) > 1 else INDEX_FILE)}:
        path.unlink(missing_ok=True)


def cut_shards(tensors, itemsize, shard_bytes):
    """The names in lists, one for each shard of at most `shard_bytes` (or of one tensor)."""
    shards, shard_size = [[]], 0
    for name, tensor in tensors.items():
        size = tensor.numel() * itemsize                                                # in bytes
        if shards[-1] and shard_size + size > shard_bytes:
            shards.append([])
            shard_size = 0
        shards[-1].append(name)
        shard_size += size
    return shards


def refuse_other_files(folder, names):
    """InputError if a file that a model is known by is there, and is that of something else."""
    for path in (folder / name for name in names):
        try:
            other = path.exists() and not set(MODEL_KEYS) & set(read_json(path))
        except InputError:
            other = True
        if other:
            raise InputError(f"{folder}: holds a {path.name} that is not a model's, and a "
                             "model that is saved there would replace it: choose another folder, "
                             "or remove the file")


@contextmanager
def replacing_model(folder, names, weights=WEIGHTS, records=()):
    """with replacing_model(folder, names) as place: ...   Save a new model in the folder `place`:
    it replaces the one in `folder` when the block ends. If the block fails, the old one stays.

    names: the files that a model is known by. They are removed first and moved last, so nobody can
    load half a model. weights: patterns of the old model's other files. records: names of files
    that describe the old model; they go before all others. `place` is `folder` itself if there is
    no old model. InputError for a file of these names that is not a model's.
    """
    folder, place = Path(folder), Path(folder) / NEW_MODEL
    if not any((folder / name).exists() for name in (*names, NEW_MODEL, *records)):
        yield folder
        return
    refuse_other_files(folder, names)
    remove_path(place)                                         # of a killed process
    try:
        yield place
    except BaseException:
        remove_path(place)
        raise
    old = [path for pattern in weights for path in folder.glob(pattern)]
    for path in [*(folder / name for name in (*records, *names)), *old]:
        remove_path(path)
    move_files(place, folder, names)
