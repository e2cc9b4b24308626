"""What is each architecture? One file per family, one class per wiring.

Reading order: layers.py (rows and attention), backbone.py (the contract), bert.py, gpt2.py, rotary.py, llama.py, gemma.py,
t5.py, deberta.py (the families), cache.py (writing text), tree.py (many continuations at once), weights.py (checkpoints in and out), config.py.
`MODELS` is the only registry: model_type of config.json -> class.
"""
import re

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from ..files import short
from .bert import Bert, Roberta
from .cache import generate
from .config import choose
from .deberta import Deberta
from .gemma import Gemma, Gemma2, Gemma3
from .gpt2 import GPT2
from .llama import Llama, Mistral
from .t5 import T5
from .weights import OWN_HEADS, Checkpoint, Table, export, fill, translate, write_checkpoint

MODELS = {"bert": Bert, "roberta": Roberta, "deberta-v2": Deberta, "gpt2": GPT2, "llama": Llama, "mistral": Mistral,
          "gemma": Gemma, "gemma2": Gemma2, "gemma3_text": Gemma3, "gemma3": Gemma3, "t5": T5}


def model_class(config, where="config.json"):
    """The class for a parsed config.json; an unsupported model_type is an InputError that lists what there is."""
    return choose(MODELS, config.get("model_type"), "model_type", where)


def load_backbone(path, dtype=torch.float32):
    """A pretrained body from a Hugging Face folder -> model, in eval mode, with `.report` of what went where.

    path: a folder, or the name of a shipped model; dtype: what the weights become, whatever the file holds.
    model(ids, mask) -> hidden (B, T, D); model.logits(hidden) -> (..., V) where the checkpoint has a language-model
    head. Raises InputError naming the file and every fault.
    """
    checkpoint = Checkpoint(path)
    model = build_backbone(checkpoint, lm_head=True)
    table = model.table()
    table.names |= OWN_HEADS
    model.report = fill(model, checkpoint, table, dtype=dtype)
    return model.eval()


class Unfilled(TorchFunctionMode):
    """with Unfilled(): ...   New layers draw no random numbers: a file will fill them. (To draw on the "meta" device, torch
    would load its compiler, which takes longer than all else.)"""

    DRAWN = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        tensor = [*args, *(kwargs or {}).values()][0] if function in self.DRAWN else None
        return function(*args, **(kwargs or {})) if tensor is None else tensor


def build_backbone(checkpoint, lm_head):
    """The architecture that a checkpoint's config.json describes, on the "meta" device: it takes no memory yet.

    lm_head: take a language-model head too, if the file has one.
    """
    where = checkpoint.folder / "config.json"
    cls = model_class(checkpoint.config, where)
    config = cls.own_config(checkpoint.config)
    check_sizes(checkpoint, cls, config, where)
    try:
        with torch.device("meta"), Unfilled():
            lm_head = lm_head and holds_head(checkpoint, cls)
            model = cls.from_config(config, lm_head=lm_head, where=where)
    except RuntimeError as error:                                  # more bytes than can be counted
        words = str(error).splitlines()[0]
        raise InputError(f"{where}: its sizes cannot be built ({words:.120})") from None
    ignored = model.config.get("ignored", ())
    model.source_config = {key: value for key, value in config.items() if key not in ignored}
    return model


def check_sizes(checkpoint, cls, config, where):
    """InputError, before anything is built, where config.json has other sizes than the tensors:
    rows and width of the word embeddings, more blocks in a stack."""
    table, found = Table(cls.NAMES, spellings=cls.SPELLINGS), dict.fromkeys(cls.DEPTHS.values(), 0)
    for name, shape in checkpoint.shapes.items():
        try:
            ours = translate(name, table) or ""
        except KeyError:
            continue
        stack, number, _ = re.fullmatch(r"(.*?)\.(\d+)\.(.*)|.*", ours).groups()
        if stack in cls.DEPTHS:
            found[cls.DEPTHS[stack]] = max(found[cls.DEPTHS[stack]], int(number) + 1)
        elif ours == "word_embeddings.weight" and len(shape) == 2:
            found["vocab_size"], found[cls.WIDTH] = shape
    depths = cls.DEPTHS.values()                 # of blocks that are left over `fill` tells by name
    faults = [f"{key} = {short(config[key])}, the tensors have {size}"
              for key, size in found.items() if type(config.get(key)) is int
              and (config[key] > size or config[key] < size and key not in depths)]
    if faults:
        raise InputError(f"{where}: {'; '.join(faults)}: the files do not belong together, "
                         "download both again")


def holds_head(checkpoint, cls):
    """Has the file tensors of a language-model head?"""
    table = Table(cls.LM_NAMES, spellings=cls.SPELLINGS)
    for name in checkpoint.files:
        try:
            translate(name, table)
            return True
        except KeyError:
            continue
    return False


def save_backbone(model, folder, dtype=torch.float32, more=None):
    """Write a body (and its language-model head, if it has one) as a Hugging Face folder; the tokenizer is not here.

    more: further tensors that travel with it, by their names in the file (BERT's pooler).
    """
    kind = "lm_head" if model.has_logits else "body"
    config = {**model.source_config, "architectures": [model.ARCHITECTURES[kind]]}
    write_checkpoint(folder, config, export(model, model.table()) | (more or {}), dtype)


def fresh_weights(model, seed, std=None):
    """Initialise a model: normal matrices and embeddings, zero biases, unit norms.

    std: of all of them; None: as the family's own `initial_std` says (T5), else 0.02 as BERT was.
    """
    generator, own = torch.Generator().manual_seed(seed), {}
    if std is None and hasattr(model, "initial_std"):
        own = model.initial_std()                                             # last part of a module's name -> std
    with torch.no_grad():
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() >= 2:
                    parameter.normal_(0.0, own.get(path.rpartition(".")[2], std or 0.02), generator=generator)
                elif name == "bias":
                    parameter.zero_()
                else:
                    parameter.fill_(getattr(module, "neutral", 1.0))       # Gemma's norms multiply with 1 + weight
    return model
