"""Adapters in files, as PEFT writes and reads them: adapter_config.json, adapter_model.safetensors.

Names are those of transformers, for a layer x of the base:

    base_model.model.x.lora_A.weight   (r, in); x.lora_B.weight (out, r); x.lora_magnitude_vector
                                       (out,) of DoRA; x.base_layer.bias if it was trained
    base_model.model.classifier.weight what was trained in full: the head, first of all

A prefix or a prompt (prefix.py, prompt.py) is one tensor, `prompt_embeddings` (P, ...), and its
head is called base_model.classifier.weight. Our prefix of an encoder-decoder stands before its
decoder alone, which PEFT cannot compute, so only this package can read such a folder.

Trap: unless told to, PEFT saves no `pooler` of DeBERTa and no `classification_head` of T5, and does
not warn: the next model gets random ones. Here the head is always saved, and an adapter without one
is refused (attach.py).

Files of microsoft/LoRA (`...query.lora_A`, no config) are read once an adapter_config.json with
peft_type, r, lora_alpha and target_modules lies beside them. Not here: other methods (AdaLoRA,
IA3), several adapters at once, LoRA on embeddings, initialisations that change the base (PiSSA,
LoftQ), the network of a prefix, pickles.

files.py: folders; config.py: adapter_config.json; names.py: what tensors are called; attach.py:
from tensors to a classifier; collect.py: back.
Reference: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""
from .attach import apply_adapter
from .config import CONFIG, method_of
from .files import OWN_FILE, TENSORS, read_adapter, write_adapter

__all__ = ["CONFIG", "OWN_FILE", "TENSORS", "apply_adapter", "method_of", "read_adapter",
           "write_adapter"]
