"""A classifier: backbone + readout + tokenizer + task. Here: from texts to answers. build.py makes
one from a backbone; saved.py saves and loads it.

`save` writes a Hugging Face folder, for which transformers' AutoModelForSequenceClassification
gives the same logits and label names; `load` reads what transformers saves.
"""
import torch
from torch import nn

from ..errors import InputError
from ..files import check_fields, short
from ..models import generate
from ..models.weights import OWN_HEADS, RenameTable
from ..text.batch import make_batches
from . import build, rows_memory, saved
from .readout import as_rows


class Classifier(nn.Module):
    """classifier(batch) -> logits (B, C); classifier.predict(texts) -> probabilities (N, C).

    head: a readout, from the backbone's hidden states to logits (readout.py); task: what depends on
    the kind of answer (task.py); labels: the names of the classes, in order; max_length: most
    tokens of a row, special ones included; reading: see `set_reading`; base: the folder of the
    backbone; tuning: the tuning config of a method of tuning/, or None; learned: see learned.py.
    """

    def __init__(self, backbone, head, tokenizer, task, max_length=None):
        super().__init__()
        self.backbone, self.head, self.tokenizer, self.task = backbone, head, tokenizer, task
        self.labels, self.config, self.max_length = task.labels, backbone.source_config, max_length
        self.reading = self.base = self.tuning = self.learned = None

    # ------------------------------------------------------------------- folders

    @classmethod
    def from_backbone(cls, path, labels, readout="head", **options):
        """A new classifier on a pretrained backbone. path: a Hugging Face folder or a shipped name;
        labels: names in class order; readout, options: see build.Options. The last layer of a head
        is newly initialised from the option seed."""
        return build.from_backbone(cls, path, labels, {"readout": readout, **options})

    @classmethod
    def empty(cls, checkpoint, labels, readout="head", **options):
        """As from_backbone, without loaded weights. checkpoint: a models.weights.Checkpoint."""
        options = build.read_options(labels, {"readout": readout, **options})
        return build.build_unfilled(cls, checkpoint, labels, options)

    @classmethod
    def load(cls, path, base=None, device=None):
        """A classifier in eval mode, from a run folder, a Hugging Face folder with a classification
        head, or the folder of an adapter. base: the folder of an adapter's base model, if it is no
        longer where the adapter says. device: for the weights, None for the CPU."""
        model = saved.load(cls, path, base, device)
        return model if device is None else model.to(device)

    def save(self, path, in_run=False):
        """Write config.json, weights and tokenizer, or, after a method like LoRA, what was trained.
        An earlier model in the folder goes, and so do the files of its run. in_run: they stay, for
        that run saves. InputError if the folder is the base of the adapter."""
        saved.save(self, path, in_run)

    def settings(self):
        """-> the dict that config.json has under "minillmclf", which transformers ignores."""
        return saved.settings_of(self)

    def restore_settings(self, settings, where):
        """Apply what `settings` returned, except what build.py reads. where: for errors. -> self"""
        self.task.restore_settings(settings, where)
        return self.set_reading(settings.get("reading"), f"{where}: reading")

    def set_reading(self, reading, where="reading"):
        """Set how rows of data are read: {"text_column": names, "label_column": name, ...} or None.
        From then on a row must have as many texts as there are names. -> self"""
        self.reading = reading and check_fields(reading, saved.READING, where)
        return self

    def rename_table(self, with_classes=True):
        """The rename table of backbone and head. with_classes=False leaves out the last layer of a
        head in the file, which is for other classes."""
        body = self.backbone.rename_table()
        prefix = "" if self.head.label_options else self.backbone.CLASSIFIER_PREFIX
        names = {prefix + file: path and "backbone." + path for file, path in body.names.items()}
        names = OWN_HEADS | names | self.head.tensor_names(with_classes)
        ties = {prefix + file: "backbone." + path for file, path in body.ties.items()}
        return RenameTable(names, ties, (*body.aliases, ("", prefix)), body.transposed, body.title)

    # ------------------------------------------------------------------- texts to logits

    def encode_row(self, texts, training=False):
        """A tuple of texts -> (a row of token ids, was it cut?). training: is the row to be trained
        on? Some tasks encode a row differently for prediction."""
        return self.task.encode_row(self.head, self.tokenizer, texts, self.max_length, training)

    def encode(self, texts, training=False, lines=None):
        """A list of rows, each a string or a tuple of texts -> (rows of token ids, how many were
        cut to max_length). training: as for `encode_row`; lines: of a file, named in errors."""
        encoded, shortened = [], 0
        names = self.reading["text_column"] if self.reading else ()
        for number, row in enumerate(as_rows(texts, names, self.head.max_texts)):
            try:
                row, cut = self.encode_row(row, training)
            except InputError as error:
                place = f"line {lines[number]}" if lines else f"text {number + 1}"
                raise InputError(f"{place}: {error}") from None
            encoded.append(row)
            shortened += cut
        return encoded, shortened

    def row_size(self, row):
        """The number of tokens of a row, padding between its sequences included."""
        return self.task.row_size(row)

    def collate(self, encoded, rows, labels=None):
        """Some rows of `encode` -> Batch; arguments as in text.batch.collate."""
        return self.task.collate(encoded, rows, self.tokenizer.pad_id, labels)

    def forward(self, batch, read=None):
        """Batch -> logits (B, C). read: a method of the head to call in place of head.read."""
        if read is not None:
            return read(self.backbone, batch.ids, batch.mask, batch.types)
        logits = self.head.read(self.backbone, batch.ids, batch.mask, batch.types, batch.layout)
        return self.task.merge_sequences(logits, len(batch.rows))

    @torch.inference_mode()
    @rows_memory.name_rows_switch
    def compute_in_batches(self, encoded, compute, columns, batch_size=64):
        """Apply compute, Batch -> (B, columns), to N rows of `encode` -> (N, columns) on the CPU,
        in the order of `encoded`. InputError for a result that is not finite."""
        is_list = isinstance(encoded, (list, tuple))
        if not (is_list and all(isinstance(row, tuple) for row in encoded)):
            raise InputError("scores are of rows, model.encode(texts)[0], not of "
                             f"{short(encoded)}: give texts to predict")
        self.eval()
        device, out = next(self.parameters()).device, torch.empty(len(encoded), columns).float()
        with self.head.shared_work(self, encoded):
            for rows in make_batches(list(map(self.row_size, encoded)), batch_size):
                out[rows] = compute(self.collate(encoded, rows).to(device)).float().cpu()
        if bad := (~out.isfinite()).any(1).nonzero().flatten().tolist():
            raise InputError(f"text {bad[0] + 1}: the model's answer is not finite ({len(bad)} of "
                             f"{len(out)} texts): its weights are damaged: fetch or train it again")
        return out

    def compute_logits(self, encoded, batch_size=64, calibrated=True):
        """N rows of `encode` -> logits (N, C) on the CPU. calibrated: after calibration, if any."""
        logits = self.compute_in_batches(encoded, self, len(self.labels), batch_size)
        calibration = self.task.calibration if calibrated else None
        return logits if calibration is None else calibration(logits)

    # ------------------------------------------------------------------- logits to answers

    def probabilities(self, logits):
        """Logits (N, C) -> probabilities, numpy (N, C)."""
        return self.task.probabilities(logits)

    def answers(self, probabilities):
        """Probabilities (N, C) -> the answer to each row, a list of N strings."""
        return self.task.answers(probabilities)

    def predict(self, texts, batch_size=64):
        """N texts -> probabilities, numpy (N, C), with the columns in the order of `labels`."""
        return self.probabilities(self.compute_logits(self.encode(texts)[0], batch_size))

    def generate(self, texts, max_new_tokens=16, **choice):
        """Texts -> what the language model writes after each, a list of strings. choice: options
        of models.generate."""
        encoded, _ = self.encode(texts, training=True)             # one sequence a row
        if not encoded:
            return []
        batch = self.collate(encoded, range(len(encoded))).to(next(self.parameters()).device)
        new_ids = generate(self.backbone, batch.ids, batch.mask, max_new_tokens, **choice)
        return [self.tokenizer.decode(ids) for ids in new_ids]
