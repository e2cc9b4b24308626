"""The folder of a PEFT adapter, read and written: a record (config.py) and tensors."""
import json
import re
from pathlib import Path

import torch

from ...errors import InputError
from ...files import read_json, short, write_json, write_text
from ...models.tensor_files import open_tensors, write_tensors
from .collect import collect_adapter
from .config import CONFIG, method_of, read_config
from .names import raise_faults, short_name, split_tensors

TENSORS, OWN_FILE = "adapter_model.safetensors", "minillmclf.json"
OWN_KEYS = ("labels", "pool", "max_length", "readout")  # they change answers; PEFT has no such keys
LABEL_TEXT_TASKS = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM", "encoder": None}
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def name_prefix(record):
    """PEFT's prefix for the names of all tensors but `prompt_embeddings`."""
    return "base_model.model." if record["peft_type"] == "LORA" else "base_model."


def read_adapter(folder):
    """A folder in PEFT's layout -> (record, {name without PEFT's prefix: tensor}).

    record: see config.py; if this package wrote the folder, it has the OWN_KEYS too. Raises
    InputError with every fault found.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
        raise InputError(f"{folder}: no {CONFIG} here" + (
            f", but in {', '.join(inside)}: name that folder" if inside else
            "; files of microsoft/LoRA have none, write one with peft_type, r, lora_alpha, "
            "target_modules"))
    record, faults = read_config(read_json(folder / CONFIG))
    tensors = {} if faults else read_tensors(folder, name_prefix(record))
    raise_faults(folder, faults or tensor_faults(record, tensors))
    own = read_json(folder / OWN_FILE) if (folder / OWN_FILE).exists() else {}
    return record | {key: own[key] for key in OWN_KEYS if key in own}, tensors


def read_tensors(folder, prefix):
    """{name without PEFT's prefix: tensor}, without the copies that PEFT keeps of saved modules."""
    path = folder / TENSORS
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise InputError(f"{folder}: only adapter_model.bin, which is a pickle and never opened "
                         "here; convert it once with PEFT: "
                         "PeftModel.from_pretrained(BASE, DIR).save_pretrained(DIR)")
    tensors = read_floats(path, prefix)

    def is_copy(name):                          # bias="all" saves classifier.bias three times
        found = re.fullmatch(r"(.*?)\.(original_module|modules_to_save)\.(.*)", name, re.S)
        tails = (found[3], found[3].partition(".")[2]) if found else ()
        return any(f"{found[1]}.{tail}" in tensors for tail in tails)
    return {name: tensor for name, tensor in tensors.items() if not is_copy(name)}


def read_floats(path, prefix=""):
    """A file -> {name without prefix: tensor}; InputError unless all are floats, finite in fp32."""
    with open_tensors(path) as file:
        tensors = {name.removeprefix(prefix): file.get_tensor(name).clone() for name in file.keys()}
    faults = []
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOAT_DTYPES:
            faults.append(f"{short(name, 200)} holds {tensor.dtype}, floats are expected, of 16 "
                          "bits or more")
        elif not tensor.float().isfinite().all():
            faults.append(f"{short(name, 200)} holds values that are not finite")
    raise_faults(path, faults)
    return tensors


def tensor_faults(record, tensors):
    """The faults among the tensors: an A without its B, a magnitude too many, a wrong shape."""
    layers, others = split_tensors(tensors)
    if record["peft_type"] != "LORA":
        rows = others.get("prompt_embeddings", torch.empty(0))
        fits = rows.dim() == 2 and len(rows) == record["num_virtual_tokens"] and not layers
        return [] if fits else [f"'prompt_embeddings' is {tuple(rows.shape)}, should have "
                                f"{record['num_virtual_tokens']} rows"]
    expected = ["lora_A", "lora_B", *["lora_magnitude_vector"] * record["use_dora"]]
    faults = [f"{short(name, 200)} is no tensor of LoRA on a linear layer" for name in others
              if re.search(r"\.(lora_\w+|base_layer\.weight)\b", name)]
    for layer, parts in layers.items():
        A, B = (parts.get(part, torch.empty(0)) for part in ("lora_A", "lora_B"))
        if sorted(parts) != expected:
            faults.append(f"{short_name(layer)} has {', '.join(sorted(parts))}, should have "
                          f"{', '.join(expected)}")
        elif A.dim() != 2 or B.dim() != 2 or len(A) != B.shape[1]:
            faults.append(f"{short_name(layer)}: lora_A {tuple(A.shape)} and lora_B "
                          f"{tuple(B.shape)} should be (r, in) and (out, r)")
    return faults if layers else [*faults, f"no tensor of LoRA in {TENSORS}"]


def write_adapter(folder, model, base=None, bias="none", saved=(), sums=None):
    """Save a classifier's adapter, prefix or prompt in PEFT's layout -> its record.

    base: the path of the base model; bias: which biases were trained; saved: further modules that
    were trained in full, as transformers names them; sums: of the base's files (base.hash_files).
    The head is always saved. InputError if another parameter is trainable: it would be lost.
    """
    folder, (record, tensors, more) = Path(folder), collect_adapter(model, base, bias, saved)
    prefix, own = name_prefix(record), {"labels": model.labels, **model.settings()}
    own |= {"fingerprint": sums} if sums else {}
    named = {name if name == "prompt_embeddings" else prefix + name:
             tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    write_tensors(folder / TENSORS, named, {"format": "pt"})
    write_json(folder / OWN_FILE, own)
    config = {key: None if value == [] else value for key, value in record.items()}
    config |= {"task_type": task_type(model, record), "inference_mode": True, **more}
    text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True)
    write_text(folder / CONFIG, text + "\n")           # last: now the folder is complete
    return record | {key: own[key] for key in OWN_KEYS}


def task_type(model, record):
    """PEFT's task_type; None for a prefix of an encoder-decoder, which PEFT puts elsewhere."""
    kind = model.backbone.KIND
    if method_of(record) == "prefix" and kind == "encoder-decoder":
        return None
    return LABEL_TEXT_TASKS[kind] if model.head.label_options else "SEQ_CLS"
