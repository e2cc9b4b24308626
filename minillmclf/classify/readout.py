"""A readout turns the hidden states of a backbone into logits: a head (head.py), or label texts.

Here: how a row of the data becomes token ids, and what a model folder stores of a readout. A
subclass adds `read(backbone, ids, mask, types, layout) -> logits (B, C)`.
"""
import contextlib
from collections.abc import Mapping

from torch import nn

from ..errors import InputError
from ..files import short
from ..text.cutting import text_ids, truncate_all


class Readout(nn.Module):
    """The texts of a row -> token ids -> (by `read`) logits."""

    NAMES = {}                  # rename table (models/weights.py): name in a file -> path
    CLASS_LAYERS = ()           # ends of the paths whose parameters depend on the classes
    ARCHITECTURE = None         # its name in config.json if transformers has no such model
    label_options = {}          # see label_text/options.py; empty for a head
    max_texts = 2               # texts of a row, at most
    SEQUENCES_PER_ROW = 1       # that the backbone reads
    pool_option = pooling = None    # see head.Head
    keep = "head"               # which end of a long text is kept (text/cutting.py)

    def encode_row(self, tokenizer, texts, max_length):
        """The texts of a row -> (ids, token types), was it cut to max_length tokens?"""
        parts = text_ids(tokenizer, texts)
        special = tokenizer.num_special_tokens(len(parts) == 2)
        ids, cut = truncate_all(parts, max_length - special, self.keep)
        return tokenizer.add_special_tokens(*ids), cut > 0

    def count_tokens(self, tokenizer, texts):
        """The number of tokens of a row before it is cut."""
        special = tokenizer.num_special_tokens(len(texts) == 2)
        return special + sum(len(tokenizer.ids(text)) for text in texts)

    def length_limit(self, max_length):
        """-> the name and the value of the setting that limits the tokens of a row."""
        return "max_length", max_length

    def settings(self):
        """-> the part of Classifier.settings that describes the readout."""
        return {"pool": self.pool_option, "keep": self.keep, "readout": self.label_options}

    def tensor_names(self, with_classes=True):
        """-> NAMES; with_classes=False maps what depends on the classes to None: not loaded."""
        return {file: path if with_classes or not path.endswith(self.CLASS_LAYERS) else None
                for file, path in self.NAMES.items()}

    def shared_work(self, model, encoded):
        """A context in which `model` reads all rows `encoded`: a subclass may share work there."""
        return contextlib.nullcontext()


def as_rows(texts, names, most):
    """A user's list of texts, each a string or a tuple of strings -> an iterator over tuples.

    names: the text columns of the training data; a row needs a text for each. Without names, (), a
    row has at most `most` texts. InputError for a single string, a mapping, a table or a set."""
    wrong = isinstance(texts, (str, bytes, bytearray, Mapping, set, frozenset))
    try:
        rows = None if wrong or hasattr(texts, "columns") else iter(texts)
    except TypeError:
        rows = None
    if rows is None:
        raise InputError(f"texts should be a list of texts, not a {type(texts).__name__}: of one "
                         "text give [text], of a table the column, list(table['text'])")
    limit = len(names) or most
    for number, text in enumerate(rows, 1):
        row = tuple(text) if isinstance(text, (tuple, list)) else (text,)
        if not all(isinstance(part, str) for part in row) or (len(row) > limit and not names):
            raise InputError(f"text {number}: a text is a string, or a tuple of {limit} for a row "
                             f"of several, not {short(text)}")
        if names and len(row) != limit:
            raise InputError(f"text {number}: this model was trained on {limit} text(s) a row "
                             f"({', '.join(names)}), not on {len(row)}: give as many "
                             "(predict: in a file, --data)")
        if not any(part.strip() for part in row):
            raise InputError(f"text {number} is empty: there is nothing to classify")
        yield row
