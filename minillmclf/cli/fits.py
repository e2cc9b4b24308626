"""Does training fit into what is free on the device, and if not, which switch helps?

memory.py estimates what a step takes. What is free is asked of the system (device.py).
"""
from dataclasses import replace

import torch

from ..classify.classifier import Classifier
from ..errors import InputError
from ..tuning import LORA_METHODS
from ..tuning.quant_files import open_checkpoint
from .build import classifier_options
from .device import check_device, device_text, memory_of
from .memory import size_text, step_bytes, training_memory

USABLE = 0.8               # share of the free memory; the rest is for short-lived tensors
# changes of the settings that save memory, from the one that saves least
LESS_STATE = ({"dtype": "bf16"}, {"method": "lora"}, {"method": "lora", "dtype": "bf16"},
              {"method": "qlora"}, {"method": "qlora", "dtype": "bf16"})


def fit_line(table, device):
    """Does a step fit into what is free on a torch.device, and with which switch? -> a line.
    table: of `switch_table`."""
    free, (_, _, as_it_is) = memory_of(device)["free"], table[0]
    if free is None:
        return f"how much memory is free on {device_text(device)} is not known here"
    told = f"{size_text(free)} are free on {device_text(device)}: "
    if as_it_is <= USABLE * free:
        return told + "a step fits"
    enough = [flags for flags, _, needed in table[1:] if needed <= USABLE * free]
    if enough:
        return told + f"a step does not fit, with {enough[0]} it does"
    return told + ("with none of these switches a step fits: --method lora or qlora, --dtype bf16, "
                   "or a smaller model")


def least_bytes(s, labels, fields):
    """The bytes that a training step of these settings takes at least: weights, gradients and
    moments, without activations. No weights are read. None where they cannot be counted."""
    try:
        checkpoint, method = open_checkpoint(s.model), s.method
        if method in LORA_METHODS and hasattr(checkpoint, "packed"):
            method = "qlora"                           # the file is in four bits already
        model = Classifier.empty(checkpoint, labels, **classifier_options(s, fields))
        trained, state, _ = training_memory(model.backbone, model.head, method,
                                            model.max_length, s.dtype)
    except (InputError, NotImplementedError):          # said elsewhere; prefix runs the model
        return None
    return step_bytes(state, trained, 0)


def too_large_line(s, labels, fields=("text",)):
    """[a line] for a run that will not fit into what is free on its device, with the first switch
    that helps; [] if it may fit, or if that is not known. Called before weights are read.
    InputError if there is no such device."""
    device = torch.device(check_device(s.device))
    free, needed = memory_of(device)["free"], least_bytes(s, labels, fields)
    if free is None or needed is None or needed <= free:
        return []
    line = (f"this will not fit: {s.model} by --method {s.method} takes {size_text(needed)} and "
            f"more, {size_text(free)} are free on {device_text(device)}")
    for change in LESS_STATE:
        other = replace(s, **change)
        least = least_bytes(other, labels, fields) if other.method != "full" else None
        if least is not None and least <= free:
            flags = " ".join(f"--{name} {value}" for name, value in change.items())
            return [f"{line}; {flags} may fit"]
    return [f"{line}: take a smaller model"]
