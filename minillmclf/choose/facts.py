"""Facts about the data, the machine and the models: `advise` reads them, --json prints them."""
import os
from collections import Counter

import torch

from ..classify.classifier import Classifier
from ..classify.sentence_vectors import sentence_settings
from ..classify.swap import is_preference
from ..errors import InputError, is_exercise
from ..files import CHECKPOINTS, find_model
from ..text.doctor import SPLITS, examine_data, percentile, shared_warnings, unknown_share
from ..cli.device import memory_of
from ..cli.few_rows import are_few, learned_rows, rows_a_class
from ..cli.fits import USABLE
from ..cli.memory import MEASURED_METHODS, step_bytes, training_memory
from ..cli.settings import Settings
from ..tuning.quant_files import open_checkpoint


def data_facts(data):
    """Rows, classes and texts of a Dataset -> dict. "rows_per_class": of those that are learned
    with the settings for few rows; "few": does train choose these by itself? "warnings": of texts
    in two splits."""
    rows = Counter(example.label for example in data.train)
    rarest, learned = min(rows, key=rows.get), learned_rows(Settings(), data, ())
    return {"rows": {name: len(getattr(data, name)) for name in SPLITS}, "labels": data.labels,
            "rarest": rarest, "rarest_rows": rows[rarest],
            "imbalance": max(rows.values()) / rows[rarest], "texts": len(data.columns),
            "preference": is_preference(data), "rows_per_class": rows_a_class(learned, data),
            "few": are_few(learned, data), "warnings": [*shared_warnings(examine_data(data))]}


def machine_facts():
    """Cores and bytes of memory (None: not known) -> dict. "room": free on the GPU, else on CPU."""
    memory, gpu = memory_of(torch.device("cpu")), None
    if torch.cuda.is_available():
        gpu = {"name": torch.cuda.get_device_name(), **memory_of(torch.device("cuda"))}
    return {"cores": os.cpu_count(), "memory": memory, "gpu": gpu, "room": (gpu or memory)["free"]}


def rows_at_once(s):
    """How many rows of a step are on the device at a time."""
    return min(s.micro_batch_size or s.batch_size, s.batch_size)


def model_facts(name, data, s, machine):
    """Lengths in this model's tokens, and the memory that each method takes -> dict.

    "median", "p95": of the texts' lengths; "limit": tokens that the model takes; "over": share of
    the texts that are longer; "length": of the texts for which memory is counted; "label_tokens":
    of all label texts together; "methods": from `method_facts`. A model that is larger than the
    free memory is not loaded: then its weights are counted, but not its activations.
    """
    folder = find_model(name)
    most = s.max_length or sentence_settings(folder).get("max_length")       # as train has it
    empty = Classifier.empty(open_checkpoint(folder), data.labels, max_length=most)
    splits = {split: [example.texts for example in getattr(data, split)] for split in SPLITS}
    lengths = [empty.head.count_tokens(empty.tokenizer, texts)
               for rows in splits.values() for texts in rows]
    weights = 4 * sum(p.numel() for p in empty.parameters())
    free = machine["memory"]["free"]
    is_loaded = free is None or weights <= free
    model = Classifier.from_backbone(folder, data.labels) if is_loaded else empty
    backbone, head = model.backbone, model.head
    limit, p95 = empty.max_length, percentile(lengths, 95)
    facts = {"name": str(name), "kind": backbone.KIND, "median": percentile(lengths, 50),
             "p95": p95, "limit": limit, "over": sum(n > limit for n in lengths) / len(lengths),
             "length": min(p95, limit),
             "unknown": {split: unknown_share(empty.tokenizer, rows)
                         for split, rows in splits.items()},
             "label_tokens": sum(len(empty.tokenizer.ids(label)) for label in data.labels)}
    facts["methods"] = [method_facts(method, backbone, head, facts["length"], s, machine["room"],
                                     is_loaded) for method in MEASURED_METHODS]
    return facts


def method_facts(method, backbone, head, length, s, room, is_loaded):
    """Memory to train by a method -> dict, with a "reason" if it is not known. room: free bytes, or
    None; "fits": None if it is not known; "at_least": are the activations left out of "bytes"?"""
    try:
        trained, state, of_text = training_memory(backbone, head, method, length)
    except InputError as error:
        return {"method": method, "reason": str(error).partition(":")[0]}
    except NotImplementedError as error:                   # prefix runs the model
        if is_exercise(error):
            raise
        return {"method": method, "reason": "not known: the model does not fit into memory"}
    rows = rows_at_once(s)
    needed = step_bytes(state, trained, rows * of_text, rows < s.batch_size)
    fits = None if room is None else needed <= USABLE * room
    if fits and not is_loaded:                             # activations are not counted
        fits = None
    return {"method": method, "trainable": trained, "bytes": needed, "at_least": not is_loaded,
            "fits": fits}


def all_model_facts(names, data, s, machine):
    """`model_facts` of the named models, or of all in checkpoints/ -> (list, a line for each model
    that is left out)."""
    facts, left_out = [], []
    for name in names or sorted(path.parent.name for path in CHECKPOINTS.glob("*/config.json")):
        try:
            facts.append(model_facts(name, data, s, machine))
        except InputError as error:
            if names:
                raise
            left_out.append(f"{name}: left out: {error}")
    if not facts:
        raise InputError("no model to choose from: name one with --models "
                         f"({CHECKPOINTS / 'README.md'} says how to bring one)")
    return facts, left_out
