"""A classifier: backbone + readout + tokenizer + the names of its classes. It is built, saved, loaded and asked here.

What `save` writes is a Hugging Face folder: transformers' AutoModelForSequenceClassification gives the same logits and
the same label names, and what transformers saves, `load` reads. One that answers with label texts is a folder of
AutoModelForCausalLM, AutoModelForSeq2SeqLM or AutoModelForMaskedLM. Where a method keeps what it learns apart from the
base (tuning/), it writes that alone, and `load` puts both together again.
"""
from collections.abc import Mapping

import torch
from torch import nn

from ..errors import InputError
from ..files import check_fields, find_model, short
from ..models import build_backbone, fresh_weights, generate
from ..models.tensor_files import write_checkpoint
from ..models.weights import OWN_HEADS, Table
from ..text.batch import collate, join, make_batches, places, sequences
from ..text.cutting import check_keep
from ..text.tokenizers.tokenizer import load_tokenizer
from ..tuning import BESIDE_BASE, peft
from ..tuning.quant import Quantiser
from ..tuning.quant_files import export_4bit, open_checkpoint, read_into
from ..tuning.saved import TUNED, load_peft, load_tuned, save_tuned
from .calibrate import Calibration
from .preference import build_preference, read_preference
from .readout import (READING, build_labels, check_labels, labels_of, read_readout, read_settings,
                      text_length)
from .multilabel import HALF, check_thresholds, decide, named
from .swap import averaged, swapped
from .task import MultiLabel, SingleLabel
from .windows import use_windows


class Classifier(nn.Module):
    """classifier(batch) -> scores (B, C); classifier.predict(texts) -> probabilities (N, C); classifier.labels.

    head: what reads a class out, a head (head.py) or label texts (labels.py). readout: {} for a head, else what `labels`
    was built with; pool: how a head pools, None without one. calibration: corrects the scores of `predict`, or None.
    preference: {}, or what read_preference gives where a row is a prompt with two answers (preference.py). thresholds: a
    number for each class where a text may have several classes, or none (several.py), else None.
    reading: how the rows of the training data were read (`read_as`), or None.
    """

    def __init__(self, backbone, head, tokenizer, labels, config, max_length, pool, readout=None, preference=None):
        super().__init__()
        self.backbone, self.head, self.tokenizer = backbone, head, tokenizer
        self.labels, self.config, self.max_length, self.pool, self.readout = list(labels), config, max_length, pool, readout or {}
        self.preference = preference or {}
        self.base = self.quantise = self.tuning = self.calibration = None   # of what it is, and how it was tuned
        self.thresholds = self.reading = None

    @classmethod
    def from_backbone(cls, path, labels, readout="head", pool="family", max_length=None, seed=0, pretrained=True,
                      quantise=None, keep="head", windows=None, preference=None, **asked):
        """A new classifier on a pretrained body.

        path: a Hugging Face folder; labels: names in class order; max_length: tokens of a text, specials (and label texts)
        included (default: what the model can take); pretrained=False takes only the architecture and the tokenizer, all
        weights are fresh. quantise: "nf4" or "fp4" puts the body's linear layers into four bits as they are read; they are
        frozen then (tuning/quant.py). preference: {"kind": "head", "swap": "both"}, for a prompt with two answers
        (preference.py), or None.

        readout="head": its last layer is fresh, the same for the same seed; pool: "family" for the head that transformers
        has, or another of head.POOLS; keep: which end of a text that is too long
        (text/cutting.py); windows: read long documents in windows, {"pool": "mean", "overlap": 32,
        "max_windows": 8, "max_document": 8192} (windows.py), or None.

        readout="labels": a class is the log-probability of its label texts (labels.py). Then `asked` may have template
        ("Review: {text}\\nSentiment:"), label_texts ({label: [text, ...]}, default the names), fields (names of a row's texts
        in the template), instruction, shots ([(texts, label text), ...]: finished examples before every text), end and
        score_by (LabelReadout).
        """
        check_labels(labels)
        checkpoint = open_checkpoint(path)
        self = cls.empty(checkpoint, labels, read_readout(readout, asked, labels), pool, max_length, keep, windows, preference)
        self.base, self.quantise = str(path), quantise
        fresh_weights(self.head, seed)
        if not pretrained:
            fresh_weights(self.backbone.to_empty(device="cpu"), seed)
            return self.eval()
        whole = (*self.backbone.FULL_PRECISION, "lm_head")
        fresh = quantise and not hasattr(checkpoint, "packed")             # else the file has four bits already
        placer = Quantiser(lambda path: not set(whole) & set(path.split(".")), quantise) if fresh else None
        self.report = read_into(self, checkpoint, self.table(with_classes=False), ["head\\."], **({"place": placer} if placer else {}))
        self.kept_whole = placer.report(self)[1] if placer else []
        return self.eval()

    @classmethod
    def load(cls, path, base=None):
        """A classifier from a run folder, a Hugging Face folder with a classification head, or an adapter folder of PEFT,
        in eval mode. base: where the base of an adapter lies now, if not where the adapter says."""
        folder = find_model(path)
        if (folder / TUNED).exists():
            return load_tuned(folder, cls.from_backbone, base)
        if (folder / peft.CONFIG).exists():
            return load_peft(folder, cls.from_backbone, base)
        if base is not None:
            raise InputError(f"{path}: is a whole model, which has no base beside it: leave --base "
                             f"out")
        checkpoint = open_checkpoint(path)
        where = checkpoint.folder / "config.json"
        settings = read_settings(checkpoint.config, where)
        labels = labels_of(checkpoint.config, where)
        try:
            self = cls.empty(checkpoint, labels, settings["readout"], settings["pool"], settings["max_length"],
                             settings["keep"], settings["windows"], settings["preference"])
        except InputError as error:
            raise InputError(str(error) if str(checkpoint.folder) in str(error) else f"{where}: {error}") from None
        last = next((file + ".weight" for file, ours in self.head.NAMES.items() if ours.endswith(".out")), None)
        if last and last not in checkpoint:
            raise InputError(f"{path}: no classification head in it (no tensor {last}): fine-tune it first with "
                             f"python -m minillmclf.train --model {path}")
        self.report = read_into(self, checkpoint, self.table())
        self.calibrate(settings["calibration"], where)
        if settings["thresholds"] is not None:
            self.use_thresholds(settings["thresholds"], f"{where}: thresholds")
        return self.read_as(settings["reading"], f"{where}: reading").eval()

    @classmethod
    def empty(cls, checkpoint, labels, readout, pool, max_length, keep="head", windows=None, preference=None):
        """The modules that a checkpoint's config.json describes, not yet filled, and its tokenizer."""
        backbone = build_backbone(checkpoint, lm_head=bool(readout))
        config = backbone.source_config
        tokenizer = load_tokenizer(checkpoint.folder).refuse_second_bos()
        if len(tokenizer) > backbone.config["vocab_size"]:
            raise InputError(f"{checkpoint.folder}: the tokenizer's ids go to {len(tokenizer) - 1}, the embedding has only "
                             f"{backbone.config['vocab_size']} rows: these files do not belong together")
        size = text_length(max_length, backbone, tokenizer, checkpoint.folder)
        preference = read_preference(preference, labels, readout)
        if readout:
            if (keep, windows) != ("head", None):
                raise InputError("keep and windows go with the readout head: label texts cut a text before its template")
            backbone.vocabulary()                                          # InputError without a language-model head
            head, pool = build_labels(backbone, tokenizer, labels, readout), None
        else:
            if preference and windows is not None:
                raise InputError("windows go with one text or two: --preference reads a prompt with two answers")
            head = build_preference(preference.get("kind", "none"), config["model_type"], backbone, labels, pool)
            head.keep = check_keep(keep)
            if windows is not None:
                use_windows(head, backbone.width, size, windows)
        return cls(backbone, head, tokenizer, labels, config, size, pool, readout, preference)

    def table(self, with_classes=True):
        """How body and head lie in a file together. Without classes, the file's own last layer is dropped."""
        body, prefix = self.backbone.table(), "" if self.readout else self.backbone.CLASSIFIER_PREFIX
        names = OWN_HEADS | {prefix + file: ours and "backbone." + ours for file, ours in body.names.items()}
        names |= {file: ours if with_classes or not ours.endswith((".out", ".tie")) else None
                  for file, ours in self.head.NAMES.items()}
        ties = {prefix + file: "backbone." + ours for file, ours in body.ties.items()}
        return Table(names, ties, (*body.aliases, ("", prefix)), body.transposed, body.title)

    def settings(self):
        """What neither transformers nor PEFT has a place for; `load` reads it from config.json or minillmclf.json."""
        windows, calibration = (made and made.as_dict() for made in (self.head.windows, self.calibration))
        more = {"thresholds": self.thresholds} if self.several else {}
        more |= {"reading": self.reading} if self.reading else {}
        more |= {key: names for key, names in self.backbone.config.items() if key == "ignored"}
        return {"pool": self.pool, "max_length": self.max_length, "readout": self.readout, "keep": self.head.keep,
                "windows": windows, "calibration": calibration, "preference": self.preference,
                **more}

    def save(self, path):
        """Write config.json, model.safetensors and the tokenizer's files; each is replaced whole or left as it was. What was
        tuned beside its base goes into tuned.json and adapter/ instead."""
        if self.tuning is not None and self.tuning["method"] in BESIDE_BASE:
            return save_tuned(self, path)
        tensors, quantised = export_4bit(self, self.table())
        kind = self.backbone.ARCHITECTURES["lm_head" if self.readout else "classifier"]
        config = {**self.config, "architectures": [getattr(self.head, "ARCHITECTURE", kind)],
                  "id2label": {str(i): name for i, name in enumerate(self.labels)},
                  "label2id": {name: i for i, name in enumerate(self.labels)}, "minillmclf": self.settings()}
        config |= {"problem_type": "multi_label_classification" if self.several else "single_label_classification"}
        for key in ("num_labels", *(["problem_type"] if self.readout else [])):
            config.pop(key, None)
        config |= {"quantization_config": quantised} if quantised else {}
        self.tokenizer.save(path)
        write_checkpoint(path, config, tensors, keep=[name for name in tensors if ".weight." in name])

    def calibrate(self, calibration, where="calibration"):
        """Correct the scores of `predict` from now on. calibration: a Calibration, its dict as in a file, or None."""
        if not isinstance(calibration, (Calibration, type(None))):
            calibration = Calibration.from_dict(calibration, len(self.labels), where)
        if calibration is not None and self.several:
            raise InputError(f"{where}: a calibration is for one class a text; of several, each has a threshold")
        self.calibration = calibration

    @property
    def several(self):
        """May a text have several classes, or none?"""
        return self.thresholds is not None

    def use_thresholds(self, thresholds=None, where="thresholds"):
        """From now on a text has all classes whose probability reaches its threshold, several or none. thresholds: a number
        for each class in the order of `labels`; None: 0.5 for all."""
        if self.readout or self.preference or self.calibration:
            raise InputError(f"{where}: several classes a text go with a plain head: without label texts, preference, calibration")
        self.thresholds = check_thresholds([HALF] * len(self.labels) if thresholds is None else thresholds, self.labels, where)

    def read_as(self, reading, where="reading"):
        """Remember how rows are read: {"text_column": names, "label_column": name, ...}, or None.
        From then on a row has as many texts as there are names. -> self"""
        self.reading = reading and check_fields(reading, READING, where)
        return self

    def ask(self, **changes):
        """Ask for the label texts in another way: other words, other shots; what can change is in readout.ASKED."""
        if not self.readout:
            raise InputError("this classifier has a head, which cannot be asked: build it with readout=\"labels\"")
        asked = {key: value for key, value in self.readout.items() if key != "readout"}
        readout = read_readout("labels", asked | changes, self.labels)
        self.head = build_labels(self.backbone, self.tokenizer, self.labels, readout).to(next(self.parameters()).device)
        self.readout = readout

    @property
    def task(self):
        return (MultiLabel if self.several else SingleLabel)(self.labels)

    def row_size(self, row):
        """The places that a row takes in a batch, padding between its sequences included."""
        return places(row)

    def collate(self, encoded, rows, labels=None):
        """The rows with these numbers -> Batch."""
        return collate(encoded, rows, self.tokenizer.pad_id, labels)

    def inputs(self, batch):
        """ids, mask, types (B, T) of a batch; of all sequences, (S * B, T), where its rows hold several (text/batch.py)."""
        return batch.apart()

    def forward(self, batch):
        """Batch -> scores (B, C), before the softmax."""
        ids, mask, types = self.inputs(batch)
        layout = batch.layout if mask is batch.mask else None
        scores = self.head.read(self.backbone, ids, mask, types, layout)   # (B, C); (2B, C) for rows in both orders
        return scores if len(scores) == len(batch.ids) else averaged(scores, self.labels)

    def completion_loss(self, batch):
        """Minus log p(the label's text | the prompt), summed over all tokens of the batch's answers. -> scalar"""
        ids, mask, _ = self.inputs(batch)
        return self.head.completion_loss(self.backbone, ids, mask, batch.labels)

    def row(self, texts, once=False):
        """A tuple of texts -> a row as text/batch.py has it, was it shortened? once: in the order given only, as for training,
        also where the answers to both orders of two texts are averaged."""
        row, cut = self.head.lay_out(self.tokenizer, texts, self.max_length)
        if once or self.preference.get("swap") not in ("predict", "both"):
            return row, cut
        second, cut_too = self.head.lay_out(self.tokenizer, swapped(texts), self.max_length)
        return join(row, second), cut or cut_too

    def encode(self, texts, once=False):
        """A list of texts -> (rows, how many were shortened to max_length). A text is a string, or
        a tuple for a row of several; each row, and once, as for `row`. InputError for what is no
        list of texts and cannot be made one."""
        encoded, shortened = [], 0
        names = self.reading["text_column"] if self.reading else ()
        most = len(self.readout["fields"]) if self.readout else 3 if self.preference else 2
        many = len(names) or most
        for number, text in enumerate(as_list(texts), 1):
            parts = tuple(text) if isinstance(text, (tuple, list)) else (text,)
            if not all(isinstance(part, str) for part in parts) or len(parts) > many and not names:
                raise InputError(f"text {number}: a text is a string, or a tuple of {many} for a "
                                 f"row of several, not {short(text)}")
            if names and len(parts) != many:
                raise InputError(f"text {number}: this model was trained on {many} text(s) a row "
                                 f"({', '.join(names)}), not on {len(parts)}: give as many")
            if not any(part.strip() for part in parts):
                raise InputError(f"text {number} is empty: there is nothing to classify")
            try:
                row, cut = self.row(parts, once)
            except InputError as error:
                raise InputError(f"text {number}: {error}") from None
            encoded.append(row)
            shortened += cut
        return encoded, shortened

    @torch.inference_mode()
    def over(self, encoded, compute, columns, batch_size=64):
        """compute(batch) -> (B, columns), over encoded texts in batches sorted by length ->
        (N, columns), in the order given. What all texts begin with is read once
        (LabelReadout.share). InputError for numbers that are not finite."""
        rows = encoded if isinstance(encoded, (list, tuple)) else [None]
        if not all(isinstance(row, tuple) for row in rows):
            raise InputError("scores are of rows, model.encode(texts)[0], not of "
                             f"{short(encoded)}: give texts to predict")
        self.eval()
        device, out = next(self.parameters()).device, torch.empty(len(encoded), columns)
        with self.head.one_prompt([ids for row in encoded for ids, _ in sequences(row)]):
            for rows in make_batches(list(map(places, encoded)), batch_size):
                out[rows] = compute(collate(encoded, rows, self.tokenizer.pad_id).to(device)).float().cpu()
        broken = (~out.isfinite()).any(1).nonzero().flatten().tolist()
        if broken:
            raise InputError(f"text {broken[0] + 1}: the model's answer is not finite "
                             f"({len(broken)} of {len(out)} texts): its weights are damaged or too "
                             "large: fetch or train it again")
        return out

    def scores(self, encoded, batch_size=64):
        """Scores of encoded texts (N, C), on the CPU; calibrated, if the classifier is."""
        out = self.over(encoded, self, len(self.labels), batch_size)
        return out if self.calibration is None else self.calibration(out)

    def text_scores(self, encoded, batch_size=64):
        """Log-probability of each label text (N, L), in the order of `head.texts`; for the readout labels, and rows of one
        sequence each."""
        return self.over(encoded, lambda batch: self.head.text_scores(self.backbone, *self.inputs(batch)),
                         len(self.head.texts), batch_size)

    def probabilities(self, scores):
        """Scores (N, C) -> probabilities, numpy (N, C); a row's sum to one, unless a text may have several classes.

        The sigmoid is taken in float64: in float32 it is 1 for every score above 17, and one wrong row costs an endless log loss.
        """
        return (scores.double().sigmoid() if self.several else scores.softmax(-1)).numpy()

    def answers(self, probabilities):
        """(N, C) -> what is answered to each text: its class; or all its classes with bars between, "a|b", "" for none."""
        if self.several:
            return named(decide(probabilities, self.thresholds), self.labels)
        return [self.labels[best] for best in probabilities.argmax(1)]

    def predict(self, texts, batch_size=64):
        """Probabilities of the classes, numpy (N, C), columns in the order of `labels`."""
        return self.probabilities(self.scores(self.encode(texts)[0], batch_size))

    def write(self, texts, max_new_tokens=16, **choice):
        """What the model answers if nothing holds it to the label texts -> list of strings. choice: as for `generate`."""
        encoded, _ = self.encode(texts, once=True)
        if not encoded:
            return []
        batch = collate(encoded, range(len(encoded)), self.tokenizer.pad_id).to(next(self.parameters()).device)
        ids, mask, _ = self.inputs(batch)
        return [self.tokenizer.decode(new) for new in generate(self.backbone, ids, mask, max_new_tokens, **choice)]


def as_list(texts):
    """What was given as texts -> a list of them. InputError for what is none, and for what would
    give letters, names, or texts in no order: a lone string, a mapping, a table, a set."""
    wrong = isinstance(texts, (str, bytes, bytearray, Mapping, set, frozenset))
    try:
        walk = None if wrong or hasattr(texts, "columns") else iter(texts)
    except TypeError:
        walk = None
    if walk is None:
        raise InputError(f"texts should be a list of texts, not a {type(texts).__name__}: of one "
                         "text give [text], of a table the column, list(table['text'])")
    return list(walk)
