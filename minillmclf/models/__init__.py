"""What is each architecture? One file per family, one class per wiring.

Reading order: layers.py (rows and attention), bert.py (encoders), weights.py (checkpoints in and out), config.py.
`MODELS` is the only registry: model_type of config.json -> class.
"""
import torch

from .bert import Bert, Roberta
from .config import choose
from .weights import Checkpoint, export, fill, write_checkpoint

MODELS = {"bert": Bert, "roberta": Roberta}


def model_class(config, where="config.json"):
    """The class for a parsed config.json; an unsupported model_type is an InputError that lists what there is."""
    return choose(MODELS, config.get("model_type"), "model_type", where)


def load_backbone(path):
    """A pretrained body from a Hugging Face folder -> model, in fp32, eval mode, with `.report` of what went where.

    model(ids, mask, types=None) -> hidden (B, T, D); model.logits(hidden) -> (..., V) where the checkpoint has a
    language-model head. Raises InputError naming the file and every fault.
    """
    checkpoint = Checkpoint(path)
    where = checkpoint.folder / "config.json"
    cls = model_class(checkpoint.config, where)
    lm_head = any(name in checkpoint for file in cls.LM_NAMES for name in (file, file + ".weight"))
    model = cls.from_config(checkpoint.config, lm_head=lm_head, where=where)
    names = {**cls.NAMES, **cls.LM_NAMES} if lm_head else cls.NAMES
    model.report = fill(model, checkpoint, names, cls.TIES, cls.PREFIX, table=f"{cls.__name__}.NAMES")
    model.source_config = checkpoint.config
    return model.eval()


def save_backbone(model, folder, dtype=torch.float32, more=None):
    """Write a body (and its language-model head, if it has one) as a Hugging Face folder; the tokenizer is not here.

    more: further tensors that travel with it, by their names in the file (BERT's pooler).
    """
    names = {**model.NAMES, **model.LM_NAMES} if model.lm_head is not None else model.NAMES
    kind = "body" if model.lm_head is None else "lm_head"
    config = {**model.source_config, "architectures": [model.ARCHITECTURES[kind]]}
    write_checkpoint(folder, config, export(model, names) | (more or {}), dtype)


def fresh_weights(model, seed, std=0.02):
    """Initialise a model as BERT was: normal(0, 0.02) matrices and embeddings, zero biases, unit norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, std, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)
    return model
