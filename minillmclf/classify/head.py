"""Classification heads: the hidden states of a text -> one logit for each class.

`pool` makes one vector of a text's T vectors. Each family has its own small network on top, the
same as in transformers, so files can be exchanged: here those of BERT, RoBERTa and the decoders,
the others in family_heads.py. `PooledHead` is the plain alternative, a linear layer on any pooling;
only this package can load it. The pooling "attention" learns which tokens count (Lin et al. 2017,
"A Structured Self-Attentive Sentence Embedding", arXiv:1703.03130).
"""
import torch
from torch import nn

from ..errors import InputError
from .readout import Readout

POOLINGS = ("first", "mean", "max", "last")
POOLS = ("family", *POOLINGS, "attention")      # values of --pool; "family": family_heads.py
WRONG_POOLING = "position"                      # a bug to study, see `pool`; no value of --pool


def pool(hidden, mask, how):
    """hidden (B, T, D), mask (B, T) -> (B, D): that of the first or last *real* token, or the mean
    or maximum over real tokens. how: one of POOLINGS.

    Padding may stand on either side. how="position" takes [:, -1], a common mistake, kept to study:
    a text's logits then depend on the longest text of its batch, and no error shows it.
    """
    if how == WRONG_POOLING:
        return hidden[:, -1]
    real = mask.bool()
    if how in ("first", "last"):
        columns = torch.arange(mask.shape[1], device=mask.device)                   # (T,)
        last = columns.where(real, -1).argmax(1)                                    # (B,)
        column = last if how == "last" else real.int().argmax(1)                    # (B,)
        return hidden[torch.arange(len(hidden), device=hidden.device), column]
    if how == "mean":
        return (hidden * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True)
    if how == "max":
        return hidden.masked_fill(~real.unsqueeze(-1), float("-inf")).amax(1)
    raise InputError(f"pooling {how!r} is not known; known: {', '.join(POOLINGS)}")


def attention_layers(width, hidden=128):
    """U, from width to hidden, and v, from hidden to 1: newly initialised layers of attention."""
    return nn.Linear(width, hidden, bias=False), nn.Linear(hidden, 1, bias=False)


def attention_weights(U, v, vectors, mask=None):
    """The weight of each vector h: the softmax over T of v . tanh(U h), in fp32 at least.

    vectors (..., T, D), mask (..., T) or None -> weights (..., T), 0 at padding, sum 1.
    """
    logits = v(torch.tanh(U(vectors))).squeeze(-1)                                  # (..., T)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits if mask is None else logits.masked_fill(~mask.bool(), float("-inf"))
    return logits.softmax(-1).to(vectors.dtype)


class Head(Readout):
    """A readout in two steps: `features` makes one vector of a text, `class_logits` its logits."""

    CLASS_LAYERS = (".out",)    # ends of the paths of layers that depend on the classes
    pool_option = "family"      # what the user asked for, one of POOLS
    pooling = None              # of tokens: one of POOLINGS, "attention" or WRONG_POOLING

    def features(self, hidden, mask):
        """hidden (B, T, D), mask (B, T) -> (B, D), the input of the last layer."""
        return pool(hidden, mask, self.pooling)

    def class_logits(self, features):
        """(B, D) -> logits (B, C). Subclasses have `dropout` and the linear layer `out`."""
        return self.out(self.dropout(features))

    def forward(self, hidden, mask):
        """hidden (B, T, D), mask (B, T) -> logits (B, C)."""
        return self.class_logits(self.features(hidden, mask))

    def states_to_pool(self, backbone, ids, mask, types=None, layout=None):
        """ids, mask, types (B, T) and text.batch.Layout -> the arguments of `features`: hidden
        (B, T, D) and mask (B, T), or (B, 1, D) and (B, 1) if the head reads one token."""
        if self.pooling not in ("first", "last"):
            return backbone.states(ids, mask, types, layout=layout), mask
        return backbone.states(ids, mask, types, self.pooling, layout), torch.ones_like(mask[:, :1])

    def read(self, backbone, ids, mask, types=None, layout=None):
        """ids, mask, types (B, T) and text.batch.Layout -> logits (B, C)."""
        return self(*self.states_to_pool(backbone, ids, mask, types, layout))


class BertHead(Head):
    """BERT: first token -> dense -> tanh (together the "pooler") -> dropout -> classes."""

    NAMES = {"bert.pooler.dense": "head.dense", "classifier": "head.out"}
    pooling = "first"

    def __init__(self, backbone, classes):
        super().__init__()
        self.dense = nn.Linear(backbone.width, backbone.width)
        self.dropout = nn.Dropout(backbone.head_dropout)
        self.out = nn.Linear(backbone.width, classes)

    def features(self, hidden, mask):
        return torch.tanh(self.dense(pool(hidden, mask, self.pooling)))


class RobertaHead(BertHead):
    """RoBERTa: as BERT, with dropout before the dense layer too."""

    NAMES = {"classifier.dense": "head.dense", "classifier.out_proj": "head.out"}

    def features(self, hidden, mask):
        return torch.tanh(self.dense(self.dropout(pool(hidden, mask, self.pooling))))


class ScoreHead(Head):
    """Decoders: last real token, the only one that has seen the whole text -> classes."""

    NAMES = {"score": "head.out"}
    pooling = "last"

    def __init__(self, backbone, classes):
        super().__init__()
        self.out = nn.Linear(backbone.width, classes, bias=False)

    def class_logits(self, features):
        return self.out(features)


class PooledHead(Head):
    """Any pooling -> dropout -> classes."""

    NAMES = {"minillmclf_head": "head.out"}
    ARCHITECTURE = "MinillmclfPooledClassifier"

    def __init__(self, backbone, classes, how):
        super().__init__()
        self.pooling = self.pool_option = how
        self.dropout = nn.Dropout(backbone.head_dropout)
        self.out = nn.Linear(backbone.width, classes)
        if how == "attention":
            self.U, self.v = attention_layers(backbone.width)
            self.NAMES = self.NAMES | {"minillmclf_pool.U": "head.U", "minillmclf_pool.v": "head.v"}

    def features(self, hidden, mask):
        if self.pooling == "attention":
            weights = attention_weights(self.U, self.v, hidden, mask)               # (B, T)
            return (weights.unsqueeze(1) @ hidden).squeeze(1)                       # (B, D)
        return pool(hidden, mask, self.pooling)
