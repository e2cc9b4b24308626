"""InputError is the one kind of error for everything that a user can put right, but for a lack of
memory: NoMemory.

The message names the file, row or key, the numbers, and the remedy. The commands print it as one
line and exit with code 2.
"""
import difflib
import re

# a regex: torch says so, and the system
NO_MEMORY = "can't allocate memory|out of memory|alloc_cpu|Cannot allocate memory"


class InputError(ValueError):
    """A file, a row or a setting is wrong."""


class NoMemory(MemoryError):
    """There is too little memory. The message names the numbers, and what to lower."""


def is_no_memory(error):
    """Does an exception say that there is too little memory?"""
    return isinstance(error, MemoryError) or (
        isinstance(error, Exception) and bool(re.search(NO_MEMORY, str(error))))


def is_exercise(error):
    """Does an error come from a function of the lessons that a student has still to write?"""
    return isinstance(error, NotImplementedError) and str(error).startswith("Exercise ")


class Stopped(Exception):
    """The run was asked to stop and has saved its state. The message says how to continue it."""


OUR_NAMES = {            # what users of transformers and PEFT would type -> what it is called here
    "learning_rate": "lr", "num_train_epochs": "epochs", "num_epochs": "epochs",
    "model_name_or_path": "model", "pretrained_model": "model", "output_dir": "out",
    "per_device_train_batch_size": "batch_size", "train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation", "max_seq_length": "max_length",
    "max_grad_norm": "clip", "warmup_ratio": "warmup", "warmup_steps": "warmup",
    "lr_scheduler_type": "schedule", "label_smoothing_factor": "label_smoothing",
    "optim": "optimizer", "save_steps": "save_every", "metric_for_best_model": "metric",
    "early_stopping_patience": "patience", "bf16": "precision", "fp16": "precision",
    "overwrite_output_dir": "overwrite",
    "dataset_name": "data", "train_file": "data", "test_file": "test",
    "text_column_name": "text_column", "label_column_name": "label_column", "peft_type": "method",
    "lora_r": "rank", "r": "rank", "lora_alpha": "alpha", "lora_dropout": "adapter_dropout",
    "target_modules": "targets", "lora_target_modules": "targets",
    "num_virtual_tokens": "virtual_tokens", "max_train_samples": "rows_per_class",
    "load_in_4bit": "quantise", "use_cpu": "device"}


def did_you_mean(word, known):
    """"; did you mean X?", X being the known word in MEANT or the one most alike; or ""."""
    plain = {name.lstrip("-").replace("-", "_").casefold(): name for name in map(str, known)}
    word = str(word)[:100].lstrip("-").replace("-", "_").casefold()
    meant = OUR_NAMES.get(word)
    near = [meant] if meant in plain else difflib.get_close_matches(word, plain, 1, 0.6)
    return f"; did you mean {plain[near[0]]}?" if near else ""
