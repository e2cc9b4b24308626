"""Classification heads: hidden states of a text -> one score for each class.

First a text's T vectors become one (`pool`), always by the mask: the id of a padding token may also stand in a text.
Then each family has its own small network on top, kept as transformers has it so that checkpoints travel both ways.
`PooledHead` is the plain alternative, a linear layer on any pooling; no other library knows it.
Pooling by "attention" learns which tokens count (Lin et al. 2017, "A Structured Self-Attentive
Sentence Embedding", arXiv:1703.03130, with one row of theirs).
"""
import contextlib

import torch
from torch import nn

from ..errors import InputError
from ..files import short
from ..models.layers import ACTIVATIONS
from ..text.cutting import cut_to

POOLINGS = ("first", "mean", "max", "last")
POOLS = ("family", *POOLINGS, "attention")             # of a head
MISTAKE = "position"        # the batch's last place, padding or not: to learn from, not offered


def pool(hidden, mask, how):
    """hidden (B, T, D), mask (B, T) -> (B, D): the first or last *real* token, or the mean or maximum over real tokens.

    Padding may stand on either side. how="position" takes the token at [:, -1], as if no row had
    padding: a text's answer then depends on how long its batch mates are, and nothing fails. This
    mistake of a book's design is here to be seen. Raises InputError for an unknown `how`.
    """
    if how == MISTAKE:
        return hidden[:, -1]
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


def query(width, hidden=128):
    """The layers U and v of `attention`; hidden: rows of U."""
    return nn.Linear(width, hidden, bias=False), nn.Linear(hidden, 1, bias=False)


def attention(U, v, vectors, mask=None):
    """What each of T vectors counts, softmax over T of v . tanh(U h), computed in fp32 at least.

    vectors (..., T, D), mask (..., T) or None for all -> (..., T), together 1 and 0 at padding.
    """
    scores = v(torch.tanh(U(vectors))).squeeze(-1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores if mask is None else scores.masked_fill(~mask.bool(), float("-inf"))
    return scores.softmax(-1).to(vectors.dtype)


class Head(nn.Module):
    """What all heads share, and label tokens (labels.py) have too: how a row is laid out, and how its classes are read.

    A head gives `features(hidden, mask)`, (B, T, D) -> (B, D), and `classes(features)`, (B, D) -> (B, C).
    keep: which end of a text that is too long (text/cutting.py). windows: how long documents are read (windows.py), or None.
    """

    SEQUENCES = 1               # that a row of a batch holds for it (text/batch.py)
    how = None                  # of POOLS, how it makes one vector of a text's; None: otherwise

    def __init__(self):
        super().__init__()
        self.keep, self.windows = "head", None

    def lay_out(self, tokenizer, parts, max_length):
        """A row's one text or two -> (ids, token types), was it shortened to max_length tokens?"""
        pieces = [tokenizer.ids(part) for part in parts]
        if not any(pieces):
            raise InputError(f"the text {short(parts[0])} holds no token, only characters that the "
                             "tokenizer drops")
        if self.windows is not None:
            return self.windows.lay_out(tokenizer, pieces, max_length, self.keep)
        ids, cut = cut_to(pieces, max_length - tokenizer.num_special_tokens(len(parts) == 2), self.keep)
        return tokenizer.layout(*ids), cut > 0

    def length(self, tokenizer, parts):
        """Tokens of a row before anything is cut."""
        return sum(len(tokenizer.ids(part)) for part in parts) + tokenizer.num_special_tokens(len(parts) == 2)

    def limit(self, max_length):
        """The setting that bounds a row, and how many of its tokens are looked at."""
        return ("max_length", max_length) if self.windows is None else ("max_document", self.windows.max_document)

    def forward(self, hidden, mask):
        """(B, T, D) -> (B, C)."""
        return self.classes(self.features(hidden, mask))

    def states(self, backbone, ids, mask, types=None, layout=None):
        """ids, mask, types: (B, T) -> hidden (B, T, D) and mask, as `features` reads them. Of a head that pools one token of
        a row, the body computes no other in its last block: hidden (B, 1, D), a text of one token, and its mask (B, 1)."""
        if self.how not in ("first", "last"):
            return backbone.states(ids, mask, types, layout=layout), mask
        return backbone.states(ids, mask, types, self.how, layout), torch.ones_like(mask[:, :1])

    def read(self, backbone, ids, mask, types=None, layout=None):
        """ids, mask, types: (B, T) and the mask's layout -> scores of the classes (B, C)."""
        if self.windows is not None:
            return self.windows.read(self, backbone, ids, mask, types)
        return self(*self.states(backbone, ids, mask, types, layout))

    def one_prompt(self, rows, before=0):
        """Texts that begin alike are nothing special to a head (labels.py has a use for it)."""
        return contextlib.nullcontext()

    def completion_loss(self, backbone, ids, mask, labels):
        raise InputError("a head writes no answer: the objective completion needs the readout labels")


class BertHead(Head):
    """BERT's: first token -> dense -> tanh (the "pooler") -> dropout -> classes."""

    NAMES = {"bert.pooler.dense": "head.dense", "classifier": "head.out"}
    how = "first"

    def __init__(self, backbone, classes):
        super().__init__()
        self.dense = nn.Linear(backbone.width, backbone.width)
        self.dropout = nn.Dropout(backbone.head_dropout)
        self.out = nn.Linear(backbone.width, classes)

    def features(self, hidden, mask):
        """(B, T, D) -> (B, D), what the last linear layer reads."""
        return torch.tanh(self.dense(pool(hidden, mask, self.how)))

    def classes(self, features):
        """(B, D) -> (B, C)."""
        return self.out(self.dropout(features))


class RobertaHead(BertHead):
    """RoBERTa's: as BERT's, with a dropout before the dense layer too, and other names."""

    NAMES = {"classifier.dense": "head.dense", "classifier.out_proj": "head.out"}

    def features(self, hidden, mask):
        return torch.tanh(self.dense(self.dropout(pool(hidden, mask, self.how))))


class DebertaHead(BertHead):
    """DeBERTa's: as RoBERTa's, with another activation and the dropout of its pooler's own."""

    NAMES = {"pooler.dense": "head.dense", "classifier": "head.out"}

    def __init__(self, backbone, classes):
        super().__init__(backbone, classes)
        self.pooler_dropout = nn.Dropout(backbone.config["pooler_dropout"])
        self.activation = ACTIVATIONS[backbone.config["pooler_hidden_act"]]

    def features(self, hidden, mask):
        return self.activation(self.dense(self.pooler_dropout(pool(hidden, mask, self.how))))


class ScoreHead(Head):
    """The decoders': last real token, the only one that has seen the whole text -> classes, without a bias."""

    NAMES = {"score": "head.out"}
    how = "last"

    def __init__(self, backbone, classes):
        super().__init__()
        self.out = nn.Linear(backbone.width, classes, bias=False)

    def features(self, hidden, mask):
        """(B, T, D) -> (B, D)."""
        return pool(hidden, mask, self.how)

    def classes(self, features):
        """(B, D) -> (B, C)."""
        return self.out(features)


class T5Head(BertHead):
    """T5's: the decoder's state at the end-of-sequence token, the last of every text -> dense -> tanh -> classes."""

    NAMES = {"classification_head.dense": "head.dense", "classification_head.out_proj": "head.out"}
    how = "last"

    def features(self, hidden, mask):
        return torch.tanh(self.dense(self.dropout(pool(hidden, mask, self.how))))


class PooledHead(Head):
    """Any pooling -> dropout -> classes. Only this package reads it back: transformers has no such head."""

    NAMES = {"minillmclf_head": "head.out"}
    ARCHITECTURE = "MinillmclfPooledClassifier"

    def __init__(self, backbone, classes, how):
        super().__init__()
        self.how = how
        self.dropout = nn.Dropout(backbone.head_dropout)
        self.out = nn.Linear(backbone.width, classes)
        if how == "attention":
            self.U, self.v = query(backbone.width)
            self.NAMES = self.NAMES | {"minillmclf_pool.U": "head.U", "minillmclf_pool.v": "head.v"}

    def features(self, hidden, mask):
        """(B, T, D) -> (B, D)."""
        if self.how == "attention":
            return (attention(self.U, self.v, hidden, mask).unsqueeze(1) @ hidden).squeeze(1)
        return pool(hidden, mask, self.how)

    def classes(self, features):
        """(B, D) -> (B, C)."""
        return self.out(self.dropout(features))


FAMILY_HEADS = {"bert": BertHead, "roberta": RobertaHead, "deberta-v2": DebertaHead, "t5": T5Head,
                **dict.fromkeys(("gpt2", "llama", "mistral", "gemma", "gemma2", "gemma3", "gemma3_text"), ScoreHead)}


def build_head(model_type, backbone, classes, how="family"):
    """how, of POOLS: "family" for the head that transformers has for this model_type."""
    if how == "family":
        return FAMILY_HEADS[model_type](backbone, classes)
    if how not in (*POOLS, MISTAKE):
        raise InputError(f"pooling {how!r} is not known; known: {', '.join(POOLS)}")
    return PooledHead(backbone, classes, how)
