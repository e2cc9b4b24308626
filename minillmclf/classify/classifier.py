"""A classifier: backbone + readout + tokenizer + the names of its classes. It is built, saved, loaded and asked here.

What `save` writes is a Hugging Face folder: transformers' AutoModelForSequenceClassification gives the same logits and
the same label names, and what transformers saves, `load` reads. Where a method keeps what it learns apart from the base
(tuning/), it writes that alone, and `load` puts both together again.
"""
import math

import torch
from torch import nn

from ..errors import InputError
from ..files import find_model
from ..models import build_backbone, fresh_weights
from ..models.weights import Table, write_checkpoint
from ..text.batch import collate, make_batches
from ..text.prompt import fit
from ..text.tokenizer import load_tokenizer
from ..tuning import APART, peft_format
from ..tuning.quant import Quantiser
from ..tuning.quant_files import export_4bit, open_checkpoint, read_into
from ..tuning.saved import TUNED, load_peft, load_tuned, save_tuned
from .head import POOLINGS, build_head

UNSAID = 512         # tokens of a text, where neither the model nor its tokenizer says how many it takes

class Classifier(nn.Module):
    """classifier(batch) -> scores (B, C); classifier.predict(texts) -> probabilities (N, C); classifier.labels."""

    def __init__(self, backbone, head, tokenizer, labels, config, max_length, pool):
        super().__init__()
        self.backbone, self.head, self.tokenizer = backbone, head, tokenizer
        self.labels, self.config, self.max_length, self.pool = list(labels), config, max_length, pool
        self.base = self.quantise = self.recipe = self.prompt = None      # of what it was built, and how it was tuned

    @classmethod
    def from_backbone(cls, path, labels, readout="head", pool="family", max_length=None, seed=0, pretrained=True,
                      quantise=None):
        """A new classifier on a pretrained body: the head's last layer is fresh, the same for the same seed.

        path: a Hugging Face folder; labels: names in class order; pool: "family" for the head that transformers has,
        or first, mean, max, last; max_length: tokens of a text, specials included (default: what the model can take);
        pretrained=False takes only the architecture and the tokenizer, all weights are fresh. quantise: "nf4" or "fp4"
        puts the body's linear layers into four bits as they are read; they are frozen then (tuning/quant.py).
        """
        if readout != "head":
            raise InputError(f"readout {readout!r} is not built; built: head")
        check_labels(labels)
        checkpoint = open_checkpoint(path)
        self = cls.empty(checkpoint, labels, pool, max_length)
        self.base, self.quantise = str(path), quantise
        fresh_weights(self.head, seed)
        if not pretrained:
            fresh_weights(self.backbone.to_empty(device="cpu"), seed)
            return self.eval()
        whole = self.backbone.KEPT_WHOLE
        fresh = quantise and not hasattr(checkpoint, "packed")             # else the file has four bits already
        placer = Quantiser(lambda path: path.rpartition(".")[2] not in whole, quantise) if fresh else None
        self.report = read_into(self, checkpoint, self.table(with_classes=False), ["head\\."], **({"place": placer} if placer else {}))
        self.kept_whole = placer.report(self)[1] if placer else []
        return self.eval()

    @classmethod
    def load(cls, path, base=None):
        """A classifier from a run folder, a Hugging Face folder with a classification head, or an adapter folder of PEFT,
        in eval mode. base: where the base of such an adapter lies now, if not where the adapter says."""
        folder = find_model(path)
        if (folder / TUNED).exists():
            return load_tuned(folder, cls.from_backbone)
        if (folder / peft_format.CONFIG).exists():
            return load_peft(folder, cls.from_backbone, base)
        checkpoint = open_checkpoint(path)
        where = checkpoint.folder / "config.json"
        settings = checkpoint.config.get("minillmclf", {})
        if not isinstance(settings, dict) or settings.get("pool", "family") not in ("family", *POOLINGS):
            raise InputError(f"{where}: minillmclf = {settings!r:.80} is not known; pool is family, {', '.join(POOLINGS)}")
        problem = checkpoint.config.get("problem_type")
        if problem not in (None, "single_label_classification"):
            raise InputError(f"{where}: problem_type {problem!r} is not supported; supported: single_label_classification")
        self = cls.empty(checkpoint, labels_of(checkpoint.config, where), settings.get("pool", "family"),
                         settings.get("max_length"))
        last = next(file for file, ours in self.head.NAMES.items() if ours == "head.out") + ".weight"
        if last not in checkpoint:
            raise InputError(f"{path}: no classification head in it (no tensor {last}): fine-tune it first with "
                             f"python -m minillmclf.train --model {path}")
        self.report = read_into(self, checkpoint, self.table())
        return self.eval()

    @classmethod
    def empty(cls, checkpoint, labels, pool, max_length):
        """The modules that a checkpoint's config.json describes, not yet filled, and its tokenizer."""
        backbone = build_backbone(checkpoint, lm_head=False)
        config, tokenizer = backbone.source_config, load_tokenizer(checkpoint.folder)
        if len(tokenizer) > backbone.config["vocab_size"]:
            raise InputError(f"{checkpoint.folder}: the tokenizer's ids go to {len(tokenizer) - 1}, the embedding has only "
                             f"{backbone.config['vocab_size']} rows: these files do not belong together")
        most = min(backbone.max_tokens or math.inf, tokenizer.max_length or backbone.max_tokens or UNSAID)
        tokenizer.max_length = most
        highest = backbone.max_tokens or math.inf
        if max_length is not None and not (type(max_length) is int and tokenizer.overhead(True) < max_length <= highest):
            raise InputError(f"max_length {max_length!r}: must lie between {tokenizer.overhead(True) + 1} and the "
                             f"{highest} positions of {checkpoint.folder}")
        head = build_head(config["model_type"], backbone, len(labels), pool)
        return cls(backbone, head, tokenizer, labels, config, max_length or most, pool)

    def table(self, with_classes=True):
        """How body and head lie in a file together. Without classes, the file's own last layer is dropped."""
        body, prefix = self.backbone.table(), self.backbone.CLASSIFIER_PREFIX
        names = {prefix + file: ours and "backbone." + ours for file, ours in body.names.items()}
        names |= {file: ours if with_classes or ours != "head.out" else None for file, ours in self.head.NAMES.items()}
        ties = {prefix + file: "backbone." + ours for file, ours in body.ties.items()}
        return Table(names, ties, (*body.spellings, ("", prefix)), body.transposed, body.title)

    def save(self, path):
        """Write config.json, model.safetensors and the tokenizer's files; each is replaced whole or left as it was. What was
        tuned beside its base goes into tuned.json and adapter/ instead."""
        if self.recipe is not None and self.recipe["method"] in APART:
            return save_tuned(self, path)
        tensors, quantised = export_4bit(self, self.table())
        kind = getattr(self.head, "ARCHITECTURE", self.backbone.ARCHITECTURES["classifier"])
        config = {**self.config, "architectures": [kind], "problem_type": "single_label_classification",
                  "id2label": {str(i): name for i, name in enumerate(self.labels)},
                  "label2id": {name: i for i, name in enumerate(self.labels)},
                  "minillmclf": {"pool": self.pool, "max_length": self.max_length}}
        config.pop("num_labels", None)
        config |= {"quantization_config": quantised} if quantised else {}
        self.tokenizer.save(path)
        write_checkpoint(path, config, tensors, keep=[name for name in tensors if ".weight." in name])

    def forward(self, batch):
        """Batch -> scores (B, C), before the softmax."""
        ids, mask, types = batch.ids, batch.mask, batch.types
        if self.prompt is not None:
            ids, mask, types = self.prompt.extend(ids, mask, types)
        return self.head(self.backbone.states(ids, mask, types), mask)

    def encode(self, texts):
        """texts: strings, or tuples for pairs -> ([(ids, types)], how many texts were shortened to max_length)."""
        encoded, shortened = [], 0
        for number, text in enumerate(texts):
            parts = tuple(text) if isinstance(text, (tuple, list)) else (text,)
            if len(parts) > 2 or not all(isinstance(part, str) for part in parts):
                raise InputError(f"text {number + 1}: a text is a string, or a tuple of two for a pair, not {text!r:.60}")
            if not any(part.strip() for part in parts):
                raise InputError(f"text {number + 1} is empty: there is nothing to classify")
            pieces = [self.tokenizer.ids(part) for part in parts]
            if not any(pieces):
                raise InputError(f"text {number + 1} holds no token, only characters that the tokenizer drops: {text!r:.60}")
            ids, cut = fit(pieces, self.max_length - self.tokenizer.overhead(len(parts) == 2))
            encoded.append(self.tokenizer.layout(*ids))
            shortened += cut > 0
        return encoded, shortened

    @torch.inference_mode()
    def scores(self, encoded, batch_size=64):
        """Scores of encoded texts (N, C), in the order given, on the model's device; batches are sorted by length."""
        self.eval()
        device = next(self.parameters()).device
        out = torch.empty(len(encoded), len(self.labels))
        for rows in make_batches([len(ids) for ids, _ in encoded], batch_size):
            out[rows] = self(collate(encoded, rows, self.tokenizer.pad_id).to(device)).float().cpu()
        return out

    def predict(self, texts, batch_size=64):
        """Probabilities of the classes, numpy (N, C), columns in the order of `labels`."""
        return self.scores(self.encode(texts)[0], batch_size).softmax(-1).numpy()


def check_labels(labels, where="a classifier"):
    """At least two different names."""
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise InputError(f"{where}: labels must be at least two different names, got {list(labels)}")


def labels_of(config, where):
    """The label names of a config.json, in class order."""
    names = config.get("id2label")
    if names is None:
        names = {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
        raise InputError(f"{where}: id2label should number its classes from 0 up, is {names!r:.100}")
    labels = [str(names[str(i)]) for i in range(len(names))]
    check_labels(labels, where)
    return labels
