"""What depends on the kind of answer: targets, loss, probabilities, answers, metrics, tables.

`SingleLabel` is the usual case, one class a row. `MultiLabel` (multilabel.py) and `Preference`
(preference.py) are subclasses that override what is different there. The rest of the package calls
these methods and never asks which task it has; build.py chooses.
"""
from collections import Counter

import torch

from ..errors import InputError
from ..text.batch import collate, row_size
from ..training.losses import CrossEntropy
from ..training.metrics import METRICS, evaluate
from .baseline import BagOfWords, baselines, majority
from .calibrate import Calibration
from .head import build_head


class SingleLabel:
    """One class a row: softmax and cross-entropy. labels: the names of the classes, in order."""

    MULTI_LABEL = False                                 # may a row have any number of labels?
    PROBLEM = "single_label_classification"             # problem_type in config.json
    TEXTS = 2                                           # of a row that a head reads, at most
    METRICS = tuple(METRICS)                            # in the order printed
    EXAMPLE = '"a text"'                                # argument of predict, as an example
    FREQUENCIES, BAG = "majority class", BagOfWords     # the baselines (baseline.py)

    def __init__(self, labels):
        self.labels, self.calibration = list(labels), None
        self.numbers = {label: number for number, label in enumerate(self.labels)}

    @classmethod
    def check_columns(cls, columns, readout):
        """InputError unless the task can have these text columns. readout: "head" or "labels"."""
        if len(columns) > 2 and readout == "head":
            raise InputError(
                f"a head reads one text or two of a row, not {len(columns)}: name these in the "
                f"place of --text-column {','.join(columns)}, or use --readout labels; two answers "
                "to a prompt are compared with --preference")

    # ---------------------------------------------------------------- rows and logits

    row_size, collate = staticmethod(row_size), staticmethod(collate)

    def head(self, model_type, backbone, how):
        """The head that reads this task's answers; arguments as for head.build_head."""
        return build_head(model_type, backbone, len(self.labels), how)

    def lay_out(self, head, tokenizer, texts, max_length, training=False):
        """A row's texts -> a row of token ids, was it cut? training: a row to learn from."""
        return head.lay_out(tokenizer, texts, max_length)

    def sequences(self, row):
        """The sequences (ids, types) of a row, which the backbone reads one by one."""
        return [row]

    def merge(self, logits, rows):
        """Logits of a batch's sequences -> of its rows (B, C), B = rows."""
        return logits

    def calibrate(self, calibration, where="calibration"):
        """Correct logits from now on. calibration: a Calibration, its dict, or None."""
        if isinstance(calibration, Calibration) or calibration is None:
            self.calibration = calibration
        else:
            self.calibration = Calibration.from_dict(calibration, len(self.labels), where)

    def calibrated(self, logits):
        """Logits (N, C) -> the same, corrected if the task has a calibration."""
        return logits if self.calibration is None else self.calibration(logits)

    def probabilities(self, logits):
        """Logits (N, C) -> probabilities, numpy (N, C)."""
        return logits.softmax(-1).numpy()

    def answers(self, probabilities):
        """(N, C) -> the answer to each row, a list of names."""
        return [self.labels[best] for best in probabilities.argmax(1)]

    # ---------------------------------------------------------------- training and metrics

    def training_rows(self, examples):
        """The examples to train on, made of those of the data."""
        return examples

    def targets(self, examples, name="the data"):
        """The class number of each row. name: of the data, for errors."""
        return [self.number(example.label, example, name) for example in examples]

    def number(self, label, example, name):
        """The number of a class. InputError if the model does not have it."""
        if label not in self.numbers:
            raise InputError(f"{name}, line {example.row}: label {label!r} is not one of the "
                             f"model's: {', '.join(self.labels)}")
        return self.numbers[label]

    def loss(self, settings, targets):
        """What training minimises, of training/losses.py. targets: those of the training rows."""
        weights = None
        if settings.class_weights == "balanced":            # rows / (classes x rows of the class)
            counts = torch.bincount(torch.tensor(targets), minlength=len(self.labels)).float()
            weights = len(targets) / (len(self.labels) * counts)
        return CrossEntropy(weights, settings.label_smoothing, settings.focal)

    def measure(self, probabilities, targets):
        """(N, C), N targets -> {name: number} of an epoch, METRICS among them."""
        return evaluate(probabilities, targets, self.labels)

    def evaluate(self, probabilities, targets):
        """(N, C), N targets -> all metrics of a finished model."""
        return self.measure(probabilities, targets)

    def fitted(self, probabilities, examples):
        """This task with what is fitted to dev examples. probabilities: () -> their (N, C)."""
        return self

    def baselines(self, data, quick=False):
        """What a model has to beat -> {name: metrics}. quick: only those that cost nothing."""
        return baselines(data, self, quick)

    def frequencies(self, targets, rows):
        """How frequent each class is among the targets, for every row -> (rows, C)."""
        return majority(targets, rows, len(self.labels))

    # ---------------------------------------------------------------- what is printed

    def table(self, results, name, examples, fitted=False):
        """A line for each model, then F1 of each class for the last one -> list of lines.

        results: {model: metrics} on the examples; name: of these; fitted: were thresholds fitted
        to these same rows?
        """
        lines = [f"{name} ({len(examples)} rows)     accuracy  macro F1  log loss     ECE"]
        lines += [f"{model:<22}{m['accuracy']:8.3f}{m['macro_f1']:10.3f}{m['log_loss']:10.3f}"
                  f"{m['ece']:8.3f}" for model, m in results.items()]
        model, last = list(results.items())[-1]
        wide, present = max(map(len, self.labels)), {example.label for example in examples}
        lines += ["", f"F1 of each class, {model}:"]
        for label in self.labels:
            note = "" if label in present else "  (no rows of it here)"
            lines.append(f"  {label:<{wide}}  {last['f1'][label]:.3f}{note}")
        return lines

    def mistakes(self, probabilities, targets, most=5):
        """The most frequent mistakes, as text."""
        wrong = Counter((t, a) for t, a in zip(targets, probabilities.argmax(1)) if t != a)
        lines = [f"  {count:4d} x {self.labels[t]} taken for {self.labels[a]}"
                 for (t, a), count in wrong.most_common(most)]
        return "\n".join(["Most frequent confusions:", *(lines or ["  none"])])

    def check_rows(self, model, texts):
        """A check of rows before they are used -> its result, a dict, and lines that tell it."""
        return {}, []

    def check_answers(self, model, texts, logits):
        """A check of the answers -> its result. logits: a function of rows of `encode`."""
        return {}

    def answer_lines(self, record):
        """Lines that tell the result of `check_answers`, which is in the record."""
        return []

    # ---------------------------------------------------------------- files

    def settings(self):
        """What a folder keeps of the task."""
        return {"calibration": self.calibration and self.calibration.as_dict()}

    def restore(self, settings, where):
        """Take over such settings. where: the file that errors name."""
        self.calibrate(settings.get("calibration"), f"{where}: calibration")
