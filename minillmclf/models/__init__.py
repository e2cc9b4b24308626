"""What is each architecture? One file per family, one class per wiring.

Reading order: layers.py (padding and attention), bert.py with encoder.py, backbone.py (the
contract), distilbert.py, gpt2.py, rotary.py, llama.py, gemma.py, t5.py, deberta.py, modernbert.py
(the families); weights.py, tensor_files.py, config.py (checkpoints in and out); last_token.py (the
last block only where it is read), cache.py (writing text), tree.py (many continuations at once);
half.py and half_attention.py (bf16).

`MODELS` is the only registry: model_type of config.json -> class.
"""
import re
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from ..files import short
from .bert import Bert, Roberta, XlmRoberta
from .cache import generate as generate
from .config import look_up
from .deberta import Deberta
from .distilbert import DistilBert
from .gemma import Gemma, Gemma2, Gemma3
from .gpt2 import GPT2
from .llama import Llama, Mistral, Qwen2, Qwen3
from .modernbert import ModernBert
from .t5 import T5
from .tensor_files import write_checkpoint
from .weights import OWN_HEADS, Checkpoint, RenameTable, export_tensors, load_parameters

MODELS = {"bert": Bert, "distilbert": DistilBert, "roberta": Roberta, "xlm-roberta": XlmRoberta,
          "deberta-v2": Deberta, "modernbert": ModernBert, "gpt2": GPT2, "llama": Llama,
          "mistral": Mistral, "qwen2": Qwen2, "qwen3": Qwen3, "gemma": Gemma, "gemma2": Gemma2,
          "gemma3_text": Gemma3, "gemma3": Gemma3, "t5": T5}


def model_class(config, where="config.json"):
    """The class for a parsed config.json. InputError for a model_type that is not supported."""
    return look_up(MODELS, config.get("model_type"), "model_type", where)


@contextmanager
def built_in_fp32():
    """As a decorator or with a block: what is built there has parameters in fp32, also after the
    user's torch.set_default_dtype."""
    before = torch.get_default_dtype()
    try:
        if before != torch.float32:
            torch.set_default_dtype(torch.float32)
        yield
    finally:
        if before != torch.float32:
            torch.set_default_dtype(before)


@built_in_fp32()
def load_backbone(path, dtype=torch.float32):
    """A pretrained body from a Hugging Face folder -> model, in eval mode, with a `.report`.

    path: a folder, or the name of a shipped model; dtype: of the weights, whatever the file holds.
    model(ids, mask) -> hidden (B, T, D); model.logits(hidden) -> (..., V) where the checkpoint has
    a language-model head. Raises InputError naming the file and every fault.
    """
    checkpoint = Checkpoint(path)
    model = build_backbone(checkpoint, lm_head=True)
    table = model.rename_table()
    table = replace(table, names=OWN_HEADS | table.names)
    model.report = load_parameters(model, checkpoint, table, dtype=dtype)
    return model.eval()


class NoRandomInit(TorchFunctionMode):
    """with NoRandomInit(): ...   New layers draw no random numbers, because a file will fill them.

    (Drawing on the "meta" device would make torch load its compiler, which is slow.)
    """

    RANDOM_INITS = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.RANDOM_INITS:
            return args[0] if args else next(iter(kwargs.values()))     # the tensor, as it is
        return function(*args, **(kwargs or {}))


def build_backbone(checkpoint, lm_head):
    """The model that a checkpoint's config.json describes, without memory yet (device "meta").

    lm_head: build the language-model head too, if the file has one of its own.
    """
    where = checkpoint.folder / "config.json"
    cls = model_class(checkpoint.config, where)
    config = cls.own_config(checkpoint.config)
    check_sizes(checkpoint, cls, config, where)
    rows = {file: path for file, path in cls.LM_NAMES.items() if file not in cls.SHARED_NAMES}
    in_file = names_by_path(checkpoint, RenameTable(rows, {}, cls.ALIASES))
    try:
        with torch.device("meta"), NoRandomInit():
            model = cls.from_config(config, lm_head=lm_head and bool(in_file), where=where)
    except RuntimeError as error:                                       # too many bytes to count
        words = str(error).splitlines()[0]
        raise InputError(f"{where}: its sizes cannot be built ({words:.120})") from None
    ignored = model.config.get("ignored", ())
    model.source_config = {key: value for key, value in config.items() if key not in ignored}
    return model


def names_by_path(checkpoint, table):
    """{path in the model, or None: name in the file} of the tensors that have a row in a table."""
    found = {}
    for name in checkpoint.files:
        try:
            found[table.path_of(name)] = name
        except KeyError:
            continue
    return found


def check_sizes(checkpoint, cls, config, where):
    """InputError, before anything is built, where config.json has other sizes than the tensors.

    Compared are the shape of the word embeddings and the number of blocks. Blocks in the file that
    config.json does not count are left to `load_parameters`, which names them.
    """
    found = dict.fromkeys(cls.DEPTH_FIELDS.values(), 0)       # field -> its value by the tensors
    for path, name in names_by_path(checkpoint, RenameTable(cls.NAMES, {}, cls.ALIASES)).items():
        shape = checkpoint.shapes[name]
        block = re.match(r"(.*?)\.(\d+)\.", path or "")       # "layers.3." of a longer path
        if block and block[1] in cls.DEPTH_FIELDS:
            key = cls.DEPTH_FIELDS[block[1]]
            found[key] = max(found[key], int(block[2]) + 1)
        elif path == "word_embeddings.weight" and len(shape) == 2:
            found["vocab_size"], found[cls.WIDTH_FIELD] = shape
    faults = []
    for key, size in found.items():
        claimed, is_depth = config.get(key), key in cls.DEPTH_FIELDS.values()
        if type(claimed) is int and (claimed > size or claimed < size and not is_depth):
            faults.append(f"{key} = {short(claimed)}, the tensors have {size}")
    if faults:
        raise InputError(f"{where}: {'; '.join(faults)}: the files do not belong together, "
                         "download both again")


def save_backbone(model, folder, dtype=torch.float32, more=None):
    """Write a body, with its language-model head if it has one, as a Hugging Face folder.

    The tokenizer is not written. more: {name in the file: tensor}, further ones (BERT's pooler).
    """
    name = model.ARCHITECTURES["lm_head" if model.has_logits else "body"]
    config = {**model.source_config, "architectures": [name]}
    tensors = export_tensors(model, model.rename_table()) | (more or {})
    write_checkpoint(folder, config, tensors, dtype)


def initialise_weights(model, seed, std=None):
    """Initialise a model: normal matrices and embeddings, zero biases, unit norms.

    std: of all matrices; None: that of the family's `initial_std` (T5), else 0.02, as for BERT.
    """
    generator, own_stds = torch.Generator().manual_seed(seed), {}     # last part of a path -> std
    if std is None:
        std, own_stds = 0.02, model.initial_std() if hasattr(model, "initial_std") else {}
    with torch.no_grad():
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() >= 2:
                    own_std = own_stds.get(path.rpartition(".")[2], std)
                    parameter.normal_(0.0, own_std, generator=generator)
                elif name == "bias":
                    parameter.zero_()
                else:
                    parameter.fill_(getattr(module, "neutral", 1.0))         # GemmaNorm: 0.0
    return model
