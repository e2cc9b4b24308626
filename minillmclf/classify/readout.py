"""What the classifier calls to read classes out of a backbone: a head (head.py) or another readout.

Here: how a row of the data becomes token ids, and what a folder keeps of a readout. A readout adds
`read(backbone, ids, mask, types, layout) -> logits (B, C)`.
"""
import contextlib
from collections.abc import Mapping

from torch import nn

from ..errors import InputError
from ..files import short
from ..text.cutting import cut_to


class Readout(nn.Module):
    """One text or two -> a row of token ids -> (by `read`) logits of the classes."""

    NAMES = {}                  # tensor in a file -> path here; a row stands for weight and bias
    LAST = ()                   # endings of the paths that depend on the classes
    ARCHITECTURE = None         # its name in config.json where transformers has no such model
    described = {}              # what a readout without weights of its own was built from
    most_texts = 2              # texts in a row of the data
    pooling = how = None        # how a head pools
    keep = "head"               # which end of a text that is too long (text/cutting.py)

    def lay_out(self, tokenizer, texts, max_length):
        """A row's one text or two -> (ids, token types), was it cut to max_length tokens?"""
        parts = self.parts(tokenizer, texts)
        special = tokenizer.num_special_tokens(len(parts) == 2)
        ids, cut = cut_to(parts, max_length - special, self.keep)
        return tokenizer.layout(*ids), cut > 0

    def parts(self, tokenizer, texts):
        """The ids of each text of a row. InputError for a row without a token."""
        parts = [tokenizer.ids(text) for text in texts]
        if not any(parts):
            raise InputError(f"the text {short(texts[0])} holds no token, only characters that the "
                             "tokenizer drops")
        return parts

    def length(self, tokenizer, texts):
        """Tokens of a row before anything is cut."""
        special = tokenizer.num_special_tokens(len(texts) == 2)
        return special + sum(len(tokenizer.ids(text)) for text in texts)

    def limit(self, max_length):
        """The setting that bounds a row, and its number of tokens."""
        return "max_length", max_length

    def settings(self):
        """What a folder keeps of it beside its weights."""
        return {"pool": self.pooling, "keep": self.keep, "readout": self.described}

    def file_names(self, with_classes=True):
        """NAMES; without classes, the layers that depend on them have the path None."""
        return {file: path if with_classes or not path.endswith(self.LAST) else None
                for file, path in self.NAMES.items()}

    def reading(self, model, encoded):
        """A context in which all of these rows will be read: a readout may share work there."""
        return contextlib.nullcontext()


def as_rows(texts, names, most):
    """Texts that a user gave, each a string or a tuple of strings -> a tuple for each.

    names: the text columns that the model was trained on, all of which a row has, or () where they
    are not known; most: how many texts a row may have then. InputError for what is no list of
    texts, also for a lone string, a mapping, a table or a set.
    """
    wrong = isinstance(texts, (str, bytes, bytearray, Mapping, set, frozenset))
    try:
        rows = None if wrong or hasattr(texts, "columns") else iter(texts)
    except TypeError:
        rows = None
    if rows is None:
        raise InputError(f"texts should be a list of texts, not a {type(texts).__name__}: of one "
                         "text give [text], of a table the column, list(table['text'])")
    for number, text in enumerate(rows, 1):
        row, many = tuple(text) if isinstance(text, (tuple, list)) else (text,), len(names) or most
        if not all(isinstance(part, str) for part in row) or len(row) > many and not names:
            raise InputError(f"text {number}: a text is a string, or a tuple of {many} for a row "
                             f"of several, not {short(text)}")
        if names and len(row) != many:
            raise InputError(f"text {number}: this model was trained on {many} text(s) a row "
                             f"({', '.join(names)}), not on {len(row)}: give as many")
        if not any(part.strip() for part in row):
            raise InputError(f"text {number} is empty: there is nothing to classify")
        yield row
