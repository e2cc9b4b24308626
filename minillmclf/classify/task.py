"""What depends on the kind of answer: targets, loss, probabilities, answers, metrics, tables.

`SingleLabel` is the usual case, one class a row. Its subclasses `MultiLabel` (multilabel.py) and
`Preference` (preference.py) override what differs. The rest of the package calls these methods and
never asks which task it has; build.py chooses.
"""
from collections import Counter

import torch

from ..errors import InputError, did_you_mean
from ..text.batch import collate, row_size
from ..training.losses import CrossEntropy
from ..training.metrics import METRICS, evaluate
from .baseline import BagOfWords, class_frequencies, run_baselines
from .calibrate import Calibration
from .family_heads import build_head


class SingleLabel:
    """One class a row: softmax and cross-entropy. labels: the names of the classes, in order."""

    MULTI_LABEL = False                                 # may a row have any number of labels?
    PROBLEM_TYPE = "single_label_classification"        # problem_type in config.json
    MAX_TEXTS = 2                                       # of a row that a head reads
    METRICS = tuple(METRICS)                            # in the order printed
    PREDICT_EXAMPLE = '"a text"'                        # an argument of the command predict
    FREQUENCY_BASELINE, BAG_OF_WORDS = "majority class", BagOfWords      # name, class (baseline.py)

    def __init__(self, labels):
        self.labels, self.calibration = list(labels), None
        self.class_numbers = {label: number for number, label in enumerate(self.labels)}

    @classmethod
    def check_columns(cls, columns, readout):
        """InputError unless rows may have these text columns. readout: "head" or "labels"."""
        if len(columns) > 2 and readout == "head":
            raise InputError(
                f"a head reads one text or two of a row, not {len(columns)}: name these in the "
                f"place of --text-column {','.join(columns)}, or use --readout labels; two answers "
                "to a prompt are compared with --preference")

    # ---------------------------------------------------------------- rows and logits

    row_size, collate = staticmethod(row_size), staticmethod(collate)

    def build_head(self, model_type, backbone, how):
        """A new head for this task; arguments as for build_head."""
        return build_head(model_type, backbone, len(self.labels), how)

    def encode_row(self, head, tokenizer, texts, max_length, training=False):
        """A tuple of texts -> (a row of token ids, was it cut?), as Classifier.encode_row."""
        return head.encode_row(tokenizer, texts, max_length)

    def sequences(self, row):
        """A row of token ids -> a list of (ids, types), the sequences that the backbone reads."""
        return [row]

    def merge_sequences(self, logits, rows):
        """Logits of the sequences of a batch -> logits (B, C) of its rows. rows: their number B."""
        return logits

    def set_calibration(self, calibration, where="calibration"):
        """Set the calibration of logits. calibration: a Calibration, its `as_dict`, or None."""
        if isinstance(calibration, Calibration) or calibration is None:
            self.calibration = calibration
        else:
            self.calibration = Calibration.from_dict(calibration, len(self.labels), where)

    def probabilities(self, logits):
        """Logits (N, C) -> probabilities, numpy (N, C)."""
        return logits.softmax(-1).numpy()

    def answers(self, probabilities):
        """Probabilities (N, C) -> the answer to each row, a list of names."""
        return [self.labels[best] for best in probabilities.argmax(1)]

    # ---------------------------------------------------------------- training and metrics

    def training_examples(self, examples):
        """The training split of the data -> the examples that the model learns from."""
        return examples

    def targets(self, examples, name="the data"):
        """Examples -> a list of class numbers. name: what errors call the data."""
        return [self.class_number(example.label, example, name) for example in examples]

    def class_number(self, label, example, name):
        """The class number of a label. InputError if the model does not have that label."""
        if label not in self.class_numbers:
            numbered = [f"LABEL_{number}" for number in range(len(self.labels))]
            if self.labels == numbered and not label.startswith("LABEL_"):
                raise InputError(f"{name}, line {example.row}: label {label!r}: the model's "
                                 f"{len(numbered)} classes have no names: write them, in class "
                                 'order, as "id2label": {"0": NAME, "1": ...} into its config.json '
                                 "(of an adapter: that of its base)")
            raise InputError(f"{name}, line {example.row}: label {label!r} is not one of the "
                             f"model's: {', '.join(self.labels)}: correct it, or leave the row "
                             f"out{did_you_mean(label, self.labels)}")
        return self.class_numbers[label]

    def build_objective(self, settings, targets):
        """The objective of training (training/losses.py). targets: of the training rows."""
        weights = None
        if settings.class_weights == "balanced":            # rows / (classes x rows of the class)
            counts = torch.bincount(torch.tensor(targets), minlength=len(self.labels)).float()
            weights = len(targets) / (len(self.labels) * counts)
        return CrossEntropy(weights, settings.label_smoothing, settings.focal_gamma)

    def measure(self, probabilities, targets):
        """Probabilities (N, C), N targets -> {metric: number}, METRICS and perhaps more."""
        return evaluate(probabilities, targets, self.labels)

    def evaluate(self, probabilities, targets):
        """Probabilities (N, C), N targets -> {metric: number} of a finished model: all of them."""
        return self.measure(probabilities, targets)

    def fit_to_dev(self, probabilities, examples):
        """-> a task fitted to dev examples, here self. probabilities: a function, () -> (N, C)."""
        return self

    def baselines(self, data, quick=False):
        """What a model has to beat -> {name: metrics}. quick: without slow baselines."""
        return run_baselines(data, self, quick)

    def predict_frequencies(self, targets, rows):
        """The frequencies of the classes among the targets, repeated for each row -> (rows, C)."""
        return class_frequencies(targets, rows, len(self.labels))

    # ---------------------------------------------------------------- what is printed

    def metric_lines(self, results, name, examples, fitted=False):
        """A line for each model, then the F1 of each class for the last model -> list of lines.

        results: {model: metrics} on the examples; name: of their split; fitted: was the task fitted
        to these same examples?
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

    def confusion_text(self, probabilities, targets, most=5):
        """The most frequent pairs of a target and a wrong answer, as text."""
        wrong = Counter((t, a) for t, a in zip(targets, probabilities.argmax(1)) if t != a)
        lines = [f"  {count:4d} x {self.labels[t]} taken for {self.labels[a]}"
                 for (t, a), count in wrong.most_common(most)]
        return "\n".join(["Most frequent confusions:", *(lines or ["  none"])])

    def check_rows(self, model, texts):
        """Check the texts of all rows before training -> {name: result}, lines to print."""
        return {}, []

    def check_answers(self, model, texts, logits):
        """Check a model's answers -> {name: result}. logits: a function, encoded rows -> (N, C)."""
        return {}

    def answer_lines(self, record):
        """Lines to print about the result of `check_answers`. record: the dict in run.json."""
        return []

    # ---------------------------------------------------------------- files

    def settings(self):
        """-> the part of Classifier.settings that describes the task."""
        return {"calibration": self.calibration and self.calibration.as_dict()}

    def restore_settings(self, settings, where):
        """Apply what `settings` returned. where: the file that errors name."""
        self.set_calibration(settings.get("calibration"), f"{where}: calibration")
