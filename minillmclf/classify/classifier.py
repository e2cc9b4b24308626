"""A classifier: backbone + readout + tokenizer + task. Here it answers texts; build.py and saved.py
make one from a folder and write one to a folder.

What `save` writes is a Hugging Face folder: transformers' AutoModelForSequenceClassification gives
the same logits and the same label names, and what transformers saves, `load` reads.
"""
import torch
from torch import nn

from ..errors import InputError
from ..files import check_fields, short
from ..models import generate
from ..models.weights import OWN_HEADS, Table
from ..text.batch import make_batches
from . import build, saved
from .readout import as_rows


class Classifier(nn.Module):
    """classifier(batch) -> logits (B, C); classifier.predict(texts) -> probabilities (N, C).

    head: a readout (readout.py), which has `read(backbone, ids, mask, types, layout) -> logits`; task: what
    depends on the kind of answer (task.py); labels: the names of the classes, in order; max_length:
    tokens of a row, special ones included; reading: how the rows of the training data were read,
    or None; base, tuning: the folder of the backbone and how it was tuned, if it was.
    """

    def __init__(self, backbone, head, tokenizer, task, max_length=None):
        super().__init__()
        self.backbone, self.head, self.tokenizer, self.task = backbone, head, tokenizer, task
        self.labels, self.config = task.labels, backbone.source_config
        self.max_length, self.reading = max_length, None
        self.base = self.tuning = None

    # ------------------------------------------------------------------- folders

    @classmethod
    def from_backbone(cls, path, labels, readout="head", **options):
        """A new classifier on a pretrained backbone. path: a Hugging Face folder or a shipped name;
        labels: names in class order; readout, options: see build.Options. The last layer of a head
        is newly initialised, the same for the same seed."""
        return build.from_backbone(cls, path, labels, {"readout": readout, **options})

    @classmethod
    def empty(cls, checkpoint, labels, readout="head", **options):
        """The same modules without weights, on the device "meta". checkpoint: an open folder."""
        options = build.read_options(labels, {"readout": readout, **options})
        return build.modules(cls, checkpoint, labels, options)

    @classmethod
    def load(cls, path, base=None):
        """A classifier from a run folder, a Hugging Face folder with a classification head, or an
        adapter's folder, in eval mode. base: where an adapter's base lies now, if not where the
        adapter says."""
        return saved.load(cls, path, base)

    def save(self, path):
        """Write config.json, model.safetensors and the tokenizer's files; of an adapter only what
        was trained."""
        saved.save(self, path)

    def settings(self):
        """What config.json keeps of it that transformers has no place for."""
        return saved.settings_of(self)

    def restore(self, settings, where):
        """Take over such settings, but those that shape the modules. -> self"""
        self.task.restore(settings, where)
        return self.read_as(settings.get("reading"), f"{where}: reading")

    def read_as(self, reading, where="reading"):
        """Remember how rows are read: {"text_column": names, "label_column": name, ...}, or None.
        From then on a row has as many texts as there are names. -> self"""
        self.reading = reading and check_fields(reading, saved.READING, where)
        return self

    def table(self, with_classes=True):
        """How backbone and head lie in a file together. Without classes, the file's own last layer
        is dropped."""
        body = self.backbone.table()
        prefix = "" if self.head.described else self.backbone.CLASSIFIER_PREFIX
        names = {prefix + file: path and "backbone." + path for file, path in body.names.items()}
        names = OWN_HEADS | names | self.head.file_names(with_classes)
        ties = {prefix + file: "backbone." + path for file, path in body.ties.items()}
        return Table(names, ties, (*body.aliases, ("", prefix)), body.transposed, body.title)

    # ------------------------------------------------------------------- texts to logits

    def row(self, texts, training=False):
        """A tuple of texts -> a row of token ids, was it cut? training: a row to learn from; some
        tasks lay out a row that is to be answered in another way."""
        return self.task.lay_out(self.head, self.tokenizer, texts, self.max_length, training)

    def encode(self, texts, training=False):
        """A list of texts -> (rows of token ids, how many texts were cut to max_length). A text is
        a string, or a tuple for a row of several; training: as for `row`."""
        encoded, shortened = [], 0
        names = self.reading["text_column"] if self.reading else ()
        for number, row in enumerate(as_rows(texts, names, self.head.most_texts), 1):
            try:
                row, cut = self.row(row, training)
            except InputError as error:
                raise InputError(f"text {number}: {error}") from None
            encoded.append(row)
            shortened += cut
        return encoded, shortened

    def row_size(self, row):
        """Places that a row of token ids takes in a batch."""
        return self.task.row_size(row)

    def collate(self, encoded, rows, labels=None):
        """encoded: rows of token ids; rows: the numbers of some; labels: targets of all, or None
        -> Batch."""
        return self.task.collate(encoded, rows, self.tokenizer.pad_id, labels)

    def forward(self, batch, read=None):
        """Batch -> logits (B, C). read: another method of the head; then -> what that gives."""
        if read is not None:
            return read(self.backbone, batch.ids, batch.mask, batch.types)
        logits = self.head.read(self.backbone, batch.ids, batch.mask, batch.types, batch.layout)
        return self.task.merge(logits, len(batch.rows))

    @torch.inference_mode()
    def over(self, encoded, compute, columns, batch_size=64):
        """compute(batch) -> (B, columns), over rows of token ids in batches sorted by length ->
        (N, columns) on the CPU, in the order given. InputError for numbers that are not finite."""
        rows = encoded if isinstance(encoded, (list, tuple)) else [None]
        if not all(isinstance(row, tuple) for row in rows):
            raise InputError("scores are of rows, model.encode(texts)[0], not of "
                             f"{short(encoded)}: give texts to predict")
        self.eval()
        device, out = next(self.parameters()).device, torch.empty(len(encoded), columns)
        with self.head.reading(self, encoded):
            for rows in make_batches(list(map(self.row_size, encoded)), batch_size):
                out[rows] = compute(self.collate(encoded, rows).to(device)).float().cpu()
        broken = (~out.isfinite()).any(1).nonzero().flatten().tolist()
        if broken:
            raise InputError(f"text {broken[0] + 1}: the model's answer is not finite "
                             f"({len(broken)} of {len(out)} texts): its weights are damaged or too "
                             "large: fetch or train it again")
        return out

    def scores(self, encoded, batch_size=64):
        """Logits (N, C) of rows of token ids, on the CPU; calibrated, if the task is."""
        return self.task.calibrated(self.over(encoded, self, len(self.labels), batch_size))

    # ------------------------------------------------------------------- logits to answers

    def probabilities(self, logits):
        """Logits (N, C) -> probabilities, numpy (N, C)."""
        return self.task.probabilities(logits)

    def answers(self, probabilities):
        """Probabilities (N, C) -> the answer to each text, a list of strings."""
        return self.task.answers(probabilities)

    def predict(self, texts, batch_size=64):
        """Texts -> probabilities of the classes, numpy (N, C), columns in the order of `labels`."""
        return self.probabilities(self.scores(self.encode(texts)[0], batch_size))

    def write(self, texts, max_new_tokens=16, **choice):
        """What the language model itself writes after each text -> list of strings. choice: as for
        `generate`."""
        encoded, _ = self.encode(texts, training=True)
        if not encoded:
            return []
        batch = self.collate(encoded, range(len(encoded))).to(next(self.parameters()).device)
        found = generate(self.backbone, batch.ids, batch.mask, max_new_tokens, **choice)
        return [self.tokenizer.decode(new) for new in found]
