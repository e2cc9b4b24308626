"""Classification heads: hidden states of a text -> one score for each class.

First a text's T vectors become one (`pool`), always by the mask: the id of a padding token may also stand in a text.
Then each family has its own small network on top, kept as transformers has it so that checkpoints travel both ways.
`PooledHead` is the plain alternative, a linear layer on any pooling; no other library knows it.
"""
import torch
from torch import nn

from ..errors import InputError

POOLINGS = ("first", "mean", "max", "last")


def pool(hidden, mask, how):
    """hidden (B, T, D), mask (B, T) -> (B, D): the first or last *real* token, or the mean or maximum over real tokens.

    Padding may stand on either side. Raises InputError for an unknown `how`.
    """
    real = mask.bool()
    if how in ("first", "last"):
        places = torch.arange(mask.shape[1], device=mask.device)
        where = places.where(real, -1).argmax(1) if how == "last" else real.int().argmax(1)        # (B,)
        return hidden[torch.arange(len(hidden), device=hidden.device), where]
    if how == "mean":
        return (hidden * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True)
    if how == "max":
        return hidden.masked_fill(~real.unsqueeze(-1), float("-inf")).amax(1)
    raise InputError(f"pooling {how!r} is not known; known: {', '.join(POOLINGS)}")


class BertHead(nn.Module):
    """BERT's: first token -> dense -> tanh (the "pooler") -> dropout -> classes."""

    NAMES = {"bert.pooler.dense": "head.dense", "classifier": "head.out"}
    ARCHITECTURE = "BertForSequenceClassification"

    def __init__(self, c, classes):
        super().__init__()
        self.dense = nn.Linear(c["hidden_size"], c["hidden_size"])
        self.dropout = nn.Dropout(head_dropout(c))
        self.out = nn.Linear(c["hidden_size"], classes)

    def features(self, hidden, mask):
        """(B, T, D) -> (B, D), what the last linear layer reads."""
        return torch.tanh(self.dense(pool(hidden, mask, "first")))

    def forward(self, hidden, mask):
        """(B, T, D) -> (B, C)."""
        return self.out(self.dropout(self.features(hidden, mask)))


class RobertaHead(BertHead):
    """RoBERTa's: as BERT's, with a dropout before the dense layer too, and other names."""

    NAMES = {"classifier.dense": "head.dense", "classifier.out_proj": "head.out"}
    ARCHITECTURE = "RobertaForSequenceClassification"

    def features(self, hidden, mask):
        return torch.tanh(self.dense(self.dropout(pool(hidden, mask, "first"))))


class PooledHead(nn.Module):
    """Any pooling -> dropout -> classes. Only this package reads it back: transformers has no such head."""

    NAMES = {"minillmclf_head": "head.out"}
    ARCHITECTURE = "MinillmclfPooledClassifier"

    def __init__(self, c, classes, how):
        super().__init__()
        self.how = how
        self.dropout = nn.Dropout(head_dropout(c))
        self.out = nn.Linear(c["hidden_size"], classes)

    def forward(self, hidden, mask):
        """(B, T, D) -> (B, C)."""
        return self.out(self.dropout(pool(hidden, mask, self.how)))


FAMILY_HEADS = {"bert": BertHead, "roberta": RobertaHead}


def build_head(model_type, config, classes, how="family"):
    """how: "family" for the head that transformers has for this model_type, or one of POOLINGS."""
    if how == "family":
        return FAMILY_HEADS[model_type](config, classes)
    if how not in POOLINGS:
        raise InputError(f"pooling {how!r} is not known; known: family, {', '.join(POOLINGS)}")
    return PooledHead(config, classes, how)


def head_dropout(c):
    """classifier_dropout where config.json sets it, else the body's."""
    return c["hidden_dropout_prob"] if c.get("classifier_dropout") is None else c["classifier_dropout"]
