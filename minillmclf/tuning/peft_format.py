"""Adapters in files, as the PEFT library writes and reads them: adapter_config.json and adapter_model.safetensors.

Names are those of transformers:

    base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight   (r, in), .lora_B.weight (out, r),
                                                     .lora_magnitude_vector (out,) of DoRA, .base_layer.bias if it learned
    base_model.model.classifier.weight                 what learned as a whole: the head, first of all

A prefix or a prompt (prefix.py, prompt.py) is one tensor, `prompt_embeddings` (P, ...), and its head is called
base_model.classifier.weight. PEFT cannot compute a prefix of an encoder-decoder that stands before its decoder alone, as
ours does: such a folder is read here only.

Trap: PEFT saves no `pooler` of DeBERTa and no `classification_head` of T5 unless told to, and says nothing: the next
model gets random ones. Here the head is always saved, and an adapter that lacks one is refused (peft_model.py).

Files of microsoft/LoRA (`...query.lora_A`, no config) are read once an adapter_config.json with peft_type, r, lora_alpha
and target_modules lies beside them. Not here: other methods (AdaLoRA, IA3), LoRA on embeddings, starts that change the
base (PiSSA, LoftQ), a prefix with its network, pickles.
Reference: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""
import json
import re
from pathlib import Path

import torch

from ..errors import InputError
from ..files import read_json, short, write_text
from ..models.weights import open_tensors, write_tensors
from .peft_config import CONFIG, read_config, write_config
from .peft_model import apply_adapter, bare, collect, split, switch, told

__all__ = ["CONFIG", "OURS", "TENSORS", "apply_adapter", "read_adapter", "switch", "write_adapter"]
TENSORS, OURS = "adapter_model.safetensors", "minillmclf.json"
OWN = ("labels", "pool", "max_length", "readout")         # what PEFT has no place for, and what decides the scores
TASKS = {"behind": "CAUSAL_LM", "apart": "SEQ_2_SEQ_LM", "in place": None}       # of a model that answers with label texts
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BEFORE = {"lora": "base_model.model.", "dora": "base_model.model.", "prefix": "base_model.", "prompt": "base_model."}


# ------------------------------------------------------------------------------------------------ reading

def read_adapter(folder):
    """A folder as PEFT writes it -> (record, {name of a tensor without "base_model.model.": tensor}).

    record: plain values. base: the base's path or None; method: lora, dora, prefix or prompt; saved: modules that learned
    as a whole; labels, pool, max_length, readout if we wrote it. Of LoRA: rank, alpha, dropout, rank_stabilised, ranks, alphas as
    lora.wrap has them; targets, exclude, layers, layers_pattern: which layers, by PEFT's rules; bias. Of others: tokens.
    Raises InputError with every fault found.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
        raise InputError(f"{folder}: no {CONFIG} here" + (f", but in {', '.join(inside)}: name that folder" if inside else
                         "; files of microsoft/LoRA have none, write one with peft_type, r, lora_alpha, target_modules"))
    config = read_json(folder / CONFIG)
    record, faults = read_config(config)
    tensors = {} if faults else read_tensors(folder, BEFORE[record["method"]])
    told(folder, faults or part_faults(record, tensors))
    own = read_json(folder / OURS) if (folder / OURS).exists() else {}
    return record | {key: own[key] for key in OWN if key in own}, tensors


def read_tensors(folder, before):
    """{name: tensor}, without what PEFT puts before every name, and without its inner copies of saved modules."""
    path = folder / TENSORS
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise InputError(f"{folder}: only adapter_model.bin, which is a pickle and never opened here; convert it once "
                         f"with PEFT: PeftModel.from_pretrained(BASE, DIR).save_pretrained(DIR)")
    tensors = read_floats(path, before)

    def is_copy(name):                                   # bias="all" saves classifier.bias three times
        module, inner, leaf = re.fullmatch(r"(.*?)(?:\.(original_module|modules_to_save)\.(.*))?",
                                           name, re.S).groups()
        return inner and any(f"{module}.{tail}" in tensors for tail in (leaf, leaf.partition(".")[2]))
    return {name: tensor for name, tensor in tensors.items() if not is_copy(name)}


def read_floats(path, before=""):
    """The tensors of a file {name without `before`: tensor}; InputError unless all are finite
    numbers in float32's range."""
    with open_tensors(path) as file:
        tensors = {name.removeprefix(before): file.get_tensor(name).clone() for name in file.keys()}

    def fault(tensor):
        if tensor.dtype not in FLOATS:
            return f"holds {tensor.dtype}, floats are expected, of 16 bits or more"
        # NaN passes through both
        finite = not tensor.numel() or torch.stack(tensor.float().aminmax()).isfinite().all()
        return None if finite else "holds values that are not finite"
    faults = {name: fault(tensor) for name, tensor in tensors.items()}
    told(path, [f"{short(name, 200)} {why}" for name, why in faults.items() if why])
    return tensors


def part_faults(record, tensors):
    """Are the tensors those of the method: every A with its B, and with DoRA its magnitude, of shapes that fit?"""
    layers, whole = split(tensors)
    if record["method"] in ("prefix", "prompt"):
        numbers = whole.get("prompt_embeddings", torch.empty(0))
        wrong = numbers.dim() != 2 or len(numbers) != record["tokens"] or layers
        return [f"'prompt_embeddings' is {tuple(numbers.shape)}, should have {record['tokens']} rows"] if wrong else []
    expected = {"lora_A", "lora_B", *(["lora_magnitude_vector"] if record["method"] == "dora" else [])}
    faults = [f"{short(name, 200)} is no tensor of LoRA on a linear layer" for name in whole
              if re.search(r"\.(lora_\w+|base_layer\.weight)\b", name)]
    for layer, parts in layers.items():
        A, B = (parts.get(part, torch.empty(0)) for part in ("lora_A", "lora_B"))
        if set(parts) != expected:
            faults.append(f"{bare(layer)} has {', '.join(sorted(parts))}, should have "
                          f"{', '.join(sorted(expected))}")
        elif A.dim() != 2 or B.dim() != 2 or len(A) != B.shape[1]:
            faults.append(f"{bare(layer)}: lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)} "
                          f"should be (r, in) and (out, r)")
    return faults if layers else [*faults, f"no tensor of LoRA in {TENSORS}"]


# ------------------------------------------------------------------------------------------------ writing

def write_adapter(folder, model, record, name="default"):
    """Save a classifier's adapter, prefix or prompt in PEFT's layout -> the record in full. The config is written last.

    record: what the model does not tell: bias ("none"), base (the path of the base model, None), saved (further modules
    that learned as a whole, as transformers names them). Ranks, alphas and layers are the model's; the head is always
    saved. Raises InputError if anything else learns (requires_grad), for it would be lost.
    """
    folder, (record, tensors, more) = Path(folder), collect(model, record, name)
    before = BEFORE[record["method"]]
    tensors = {file if file == "prompt_embeddings" else before + file: tensor for file, tensor in tensors.items()}
    more |= {"task_type": TASKS[model.backbone.ANSWERS]} if model.head.described else {}
    if record["method"] == "prefix" and model.backbone.ANSWERS == "apart":       # PEFT has none before a decoder alone
        more["task_type"] = None
    own = {"labels": model.labels, **model.settings()}
    write_tensors(folder / TENSORS, {file: tensors[file].detach().cpu().contiguous() for file in sorted(tensors)},
                  {"format": "pt"})
    record |= {key: own[key] for key in OWN}
    write_text(folder / OURS, json.dumps(own, indent=2, ensure_ascii=False) + "\n")
    config = json.dumps(write_config(record) | more, indent=2, ensure_ascii=False, sort_keys=True)
    write_text(folder / CONFIG, config + "\n")
    return record
