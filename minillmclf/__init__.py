"""minillmclf: how a language model becomes a text classifier, by hand, in plain PyTorch.

The floor plan, in reading order:

  text/      how do words become tensors?           tokenizer, data, prompt, batch
  models/    what is each architecture?             layers, backbone, bert, gpt2, llama, gemma, t5, deberta, cache, tree, weights
  classify/  how does a model answer with a class?  readout, head, task, classifier, build, saved
  tuning/    which weights are trained?            selection, lora, bottleneck, prefix, prompt, quant, peft/, saved
  training/  the plain loop and what it needs       loop, optim, objectives, metrics, checkpoint, doctor, parallel, recompute
  train, evaluate, predict, merge, compare, choose, folds, report, pretrain, inspect, labels
                                                   the commands: python -m minillmclf.<name>

Public names: fine_tune, Classifier, load_backbone, load_tokenizer, load_data, generate, InputError.
They are loaded when first used, so that `--help` need not wait for torch.
"""
import importlib

__version__ = "0.1.0"

_PUBLIC = {"Classifier": ".classify.classifier", "load_backbone": ".models", "load_tokenizer": ".text.tokenizers.tokenizer",
           "load_data": ".text.data", "generate": ".models.cache", "InputError": ".errors",
           "fine_tune": ".from_python"}


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'minillmclf' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name], __name__), name)


def __dir__():
    return [*_PUBLIC, "__version__"]
