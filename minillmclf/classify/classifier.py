"""A classifier: backbone + readout + tokenizer + the names of its classes. It is built, saved, loaded and asked here.

What `save` writes is a Hugging Face folder: transformers' AutoModelForSequenceClassification gives the same logits and
the same label names, and what transformers saves, `load` reads. One that answers with label texts is a folder of
AutoModelForCausalLM, AutoModelForSeq2SeqLM or AutoModelForMaskedLM. Where a method keeps what it learns apart from the
base (tuning/), it writes that alone, and `load` puts both together again.
"""
import math

import torch
from torch import nn

from ..errors import InputError
from ..files import find_model
from ..models import build_backbone, fresh_weights, generate
from ..models.weights import Table, write_checkpoint
from ..text.batch import collate, make_batches
from ..text.cutting import check_keep
from ..text.tokenizer import load_tokenizer
from ..tuning import APART, peft_format
from ..tuning.quant import Quantiser
from ..tuning.quant_files import export_4bit, open_checkpoint, read_into
from ..tuning.saved import TUNED, load_peft, load_tuned, save_tuned
from .calibrate import Calibration
from .head import build_head
from .readout import build_labels, check_labels, labels_of, read_readout, read_settings
from .windows import use_windows

UNSAID = 512         # tokens of a text, where neither the model nor its tokenizer says how many it takes


class Classifier(nn.Module):
    """classifier(batch) -> scores (B, C); classifier.predict(texts) -> probabilities (N, C); classifier.labels.

    head: what reads a class out, a head (head.py) or label texts (labels.py). readout: {} for a head, else what `labels`
    was built with; pool: how a head pools, None without one. calibration: corrects the scores of `predict`, or None.
    """

    def __init__(self, backbone, head, tokenizer, labels, config, max_length, pool, readout=None):
        super().__init__()
        self.backbone, self.head, self.tokenizer = backbone, head, tokenizer
        self.labels, self.config, self.max_length, self.pool, self.readout = list(labels), config, max_length, pool, readout or {}
        self.base = self.quantise = self.recipe = self.prompt = self.calibration = None   # of what it is, and how it was tuned

    @classmethod
    def from_backbone(cls, path, labels, readout="head", pool="family", max_length=None, seed=0, pretrained=True,
                      quantise=None, keep="head", windows=None, **asked):
        """A new classifier on a pretrained body.

        path: a Hugging Face folder; labels: names in class order; max_length: tokens of a text, specials (and label texts)
        included (default: what the model can take); pretrained=False takes only the architecture and the tokenizer, all
        weights are fresh. quantise: "nf4" or "fp4" puts the body's linear layers into four bits as they are read; they are
        frozen then (tuning/quant.py).

        readout="head": its last layer is fresh, the same for the same seed; pool: "family" for the head that transformers
        has, or first, mean, max, last; keep: which end of a text that is too long (text/cutting.py); windows: read long
        documents in windows, {"pool": "mean", "overlap": 32, "max_windows": 8, "max_document": 8192} (windows.py), or None.

        readout="labels": a class is the log-probability of its label texts (labels.py). Then `asked` may have template
        ("Review: {text}\\nSentiment:"), label_texts ({label: [text, ...]}, default the names), fields (names of a row's texts
        in the template), instruction, shots ([(texts, label text), ...]: finished examples before every text), end and
        score_by (LabelReadout).
        """
        check_labels(labels)
        checkpoint = open_checkpoint(path)
        self = cls.empty(checkpoint, labels, read_readout(readout, asked, labels), pool, max_length, keep, windows)
        self.base, self.quantise = str(path), quantise
        fresh_weights(self.head, seed)
        if not pretrained:
            fresh_weights(self.backbone.to_empty(device="cpu"), seed)
            return self.eval()
        whole = (*self.backbone.KEPT_WHOLE, "lm_head")
        fresh = quantise and not hasattr(checkpoint, "packed")             # else the file has four bits already
        placer = Quantiser(lambda path: not set(whole) & set(path.split(".")), quantise) if fresh else None
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
        settings = read_settings(checkpoint.config, where)
        labels = labels_of(checkpoint.config, where)
        try:
            self = cls.empty(checkpoint, labels, settings["readout"], settings["pool"], settings["max_length"],
                             settings["keep"], settings["windows"])
        except InputError as error:
            raise InputError(str(error) if str(checkpoint.folder) in str(error) else f"{where}: {error}") from None
        last = next((file + ".weight" for file, ours in self.head.NAMES.items() if ours == "head.out"), None)
        if last and last not in checkpoint:
            raise InputError(f"{path}: no classification head in it (no tensor {last}): fine-tune it first with "
                             f"python -m minillmclf.train --model {path}")
        self.report = read_into(self, checkpoint, self.table())
        self.calibrate(settings["calibration"], where)
        return self.eval()

    @classmethod
    def empty(cls, checkpoint, labels, readout, pool, max_length, keep="head", windows=None):
        """The modules that a checkpoint's config.json describes, not yet filled, and its tokenizer."""
        backbone = build_backbone(checkpoint, lm_head=bool(readout))
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
        if readout:
            if (keep, windows) != ("head", None):
                raise InputError("keep and windows go with the readout head: label texts cut a text before its template")
            backbone.vocabulary()                                          # InputError without a language-model head
            head, pool = build_labels(backbone, tokenizer, labels, readout), None
        else:
            head = build_head(config["model_type"], backbone, len(labels), pool)
            head.keep = check_keep(keep)
            if windows is not None:
                use_windows(head, backbone.width, max_length or most, windows)
        return cls(backbone, head, tokenizer, labels, config, max_length or most, pool, readout)

    def table(self, with_classes=True):
        """How body and head lie in a file together. Without classes, the file's own last layer is dropped."""
        body, prefix = self.backbone.table(), "" if self.readout else self.backbone.CLASSIFIER_PREFIX
        names = {prefix + file: ours and "backbone." + ours for file, ours in body.names.items()}
        names |= {file: ours if with_classes or ours != "head.out" else None for file, ours in self.head.NAMES.items()}
        ties = {prefix + file: "backbone." + ours for file, ours in body.ties.items()}
        return Table(names, ties, (*body.spellings, ("", prefix)), body.transposed, body.title)

    def settings(self):
        """What neither transformers nor PEFT has a place for; `load` reads it from config.json or minillmclf.json."""
        windows, calibration = (made and made.as_dict() for made in (self.head.windows, self.calibration))
        return {"pool": self.pool, "max_length": self.max_length, "readout": self.readout, "keep": self.head.keep,
                "windows": windows, "calibration": calibration}

    def save(self, path):
        """Write config.json, model.safetensors and the tokenizer's files; each is replaced whole or left as it was. What was
        tuned beside its base goes into tuned.json and adapter/ instead."""
        if self.recipe is not None and self.recipe["method"] in APART:
            return save_tuned(self, path)
        tensors, quantised = export_4bit(self, self.table())
        kind = self.backbone.ARCHITECTURES["lm_head" if self.readout else "classifier"]
        config = {**self.config, "architectures": [getattr(self.head, "ARCHITECTURE", kind)],
                  "id2label": {str(i): name for i, name in enumerate(self.labels)},
                  "label2id": {name: i for i, name in enumerate(self.labels)}, "minillmclf": self.settings()}
        config |= {} if self.readout else {"problem_type": "single_label_classification"}
        config.pop("num_labels", None)
        config |= {"quantization_config": quantised} if quantised else {}
        self.tokenizer.save(path)
        write_checkpoint(path, config, tensors, keep=[name for name in tensors if ".weight." in name])

    def calibrate(self, calibration, where="calibration"):
        """Correct the scores of `predict` from now on. calibration: a Calibration, its dict as in a file, or None."""
        if not isinstance(calibration, (Calibration, type(None))):
            calibration = Calibration.from_dict(calibration, len(self.labels), where)
        self.calibration = calibration

    def ask(self, **changes):
        """Ask for the label texts in another way: other words, other shots; what can change is in readout.ASKED."""
        if not self.readout:
            raise InputError("this classifier has a head, which cannot be asked: build it with readout=\"labels\"")
        asked = {key: value for key, value in self.readout.items() if key != "readout"}
        readout = read_readout("labels", asked | changes, self.labels)
        self.head = build_labels(self.backbone, self.tokenizer, self.labels, readout).to(next(self.parameters()).device)
        self.readout = readout

    def inputs(self, batch):
        """ids, mask, types (B, T) of a batch, with the learned words of a prompt (tuning/prompt.py) where there is one."""
        ids, mask, types = batch.ids, batch.mask, batch.types
        return (ids, mask, types) if self.prompt is None else self.prompt.extend(ids, mask, types)

    def forward(self, batch):
        """Batch -> scores (B, C), before the softmax."""
        return self.head.read(self.backbone, *self.inputs(batch))

    def completion_loss(self, batch):
        """Minus log p(the label's text | the prompt), summed over all tokens of the batch's answers. -> scalar"""
        ids, mask, _ = self.inputs(batch)
        return self.head.completion_loss(self.backbone, ids, mask, batch.labels)

    def encode(self, texts):
        """texts: strings, or tuples for rows of several texts -> ([(ids, types)], how many were shortened to max_length)."""
        encoded, shortened, many = [], 0, len(self.readout["fields"]) if self.readout else 2
        for number, text in enumerate(texts, 1):
            parts = tuple(text) if isinstance(text, (tuple, list)) else (text,)
            if len(parts) > many or not all(isinstance(part, str) for part in parts):
                raise InputError(f"text {number}: a text is a string, or a tuple of {many} for a row of several, not {text!r:.60}")
            if not any(part.strip() for part in parts):
                raise InputError(f"text {number} is empty: there is nothing to classify")
            try:
                row, cut = self.head.lay_out(self.tokenizer, parts, self.max_length)
            except InputError as error:
                raise InputError(f"text {number}: {error}") from None
            encoded.append(row)
            shortened += cut
        return encoded, shortened

    @torch.inference_mode()
    def over(self, encoded, compute, columns, batch_size=64):
        """compute(batch) -> (B, columns), over encoded texts in batches sorted by length -> (N, columns), in the
        order given. What all texts begin with is read once (LabelReadout.share)."""
        self.eval()
        device, out = next(self.parameters()).device, torch.empty(len(encoded), columns)
        before = 0 if self.prompt is None else self.prompt.tokens
        with self.head.one_prompt([ids for ids, _ in encoded], before):
            for rows in make_batches([len(ids) for ids, _ in encoded], batch_size):
                out[rows] = compute(collate(encoded, rows, self.tokenizer.pad_id).to(device)).float().cpu()
        return out

    def scores(self, encoded, batch_size=64):
        """Scores of encoded texts (N, C), on the CPU; calibrated, if the classifier is."""
        out = self.over(encoded, self, len(self.labels), batch_size)
        return out if self.calibration is None else self.calibration(out)

    def text_scores(self, encoded, batch_size=64):
        """Log-probability of each label text (N, L), in the order of `head.texts`; for the readout labels."""
        return self.over(encoded, lambda batch: self.head.text_scores(self.backbone, *self.inputs(batch)),
                         len(self.head.texts), batch_size)

    def predict(self, texts, batch_size=64):
        """Probabilities of the classes, numpy (N, C), columns in the order of `labels`."""
        return self.scores(self.encode(texts)[0], batch_size).softmax(-1).numpy()

    def write(self, texts, max_new_tokens=16, **choice):
        """What the model answers if nothing holds it to the label texts -> list of strings. choice: as for `generate`."""
        encoded, _ = self.encode(texts)
        if not encoded:
            return []
        batch = collate(encoded, range(len(encoded)), self.tokenizer.pad_id).to(next(self.parameters()).device)
        ids, mask, _ = self.inputs(batch)
        return [self.tokenizer.decode(new) for new in generate(self.backbone, ids, mask, max_new_tokens, **choice)]
