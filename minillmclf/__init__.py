"""minillmclf: how a language model becomes a text classifier, by hand, in plain PyTorch.

The core tour, in reading order:

  text/tokenizers/wordpiece.py   words become pieces, and pieces become ids
  text/batch.py                  texts of several lengths become one tensor with a mask
  models/layers.py               the parts that most architectures share: norms, attention
  models/bert.py                 ids become vectors, a block at a time
  models/weights.py              a checkpoint's tensors are checked and become parameters
  classify/head.py               vectors become logits
  classify/classifier.py         tokenizer, backbone and head are one model: load, predict, save
  training/losses.py             what training minimises
  training/optim.py              AdamW, weight decay, the learning rate of each step
  training/loop.py               batches, steps, epochs, and the best epoch
  training/metrics.py            accuracy, macro F1, log loss, calibration error
  train.py                       the command: flags, then cli/training_run.py
  cli/training_run.py            from a file of rows to a saved classifier

Beside the tour:

  text/                          other tokenizers, data files, templates, checks of the data
  models/                        GPT-2, LLaMA, Gemma, T5, DeBERTa, ModernBERT; how they generate
  tuning/                        which parameters are trained: LoRA, QLoRA, adapters, prefixes
  training/                      resuming a stopped run, several processes, less memory, checks
  classify/                      label texts, multi-label, preference, long documents, calibration
  cli/                           what the commands share: settings, flags, the run folder
  files.py errors.py             reading and writing files; InputError, for a user's mistakes

The commands, python -m minillmclf.<name>: train, evaluate, predict, report, compare, choose, folds,
labels, inspect, merge, pretrain, and grade, for the exercises of lessons/. From Python: fine_tune
(from_python.py), Classifier, load_backbone, load_tokenizer, load_data, generate, InputError.
"""
import importlib

__version__ = "0.1.0"

_PUBLIC = {                        # loaded when first used, so that --help need not wait for torch
    "fine_tune": ".from_python", "Classifier": ".classify.classifier", "load_backbone": ".models",
    "load_tokenizer": ".text.tokenizers.tokenizer", "load_data": ".text.data",
    "generate": ".models.cache", "InputError": ".errors"}


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'minillmclf' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name], __name__), name)


def __dir__():
    return [*_PUBLIC, "__version__"]
