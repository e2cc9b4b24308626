"""The classification heads of further families, and which head a model gets.

Each is the network of transformers, with its names of tensors. Here: T5, DeBERTa, DistilBERT and
ModernBERT. Not here: pooling, and the heads of BERT, RoBERTa and the decoders (head.py).
"""
from torch import nn

from ..errors import InputError
from ..models.layers import ACTIVATIONS
from ..models.modernbert import layer_norm
from .head import (POOLS, WRONG_POOLING, BertHead, PooledHead, RobertaHead, ScoreHead, pool)


class T5Head(RobertaHead):
    """T5: as RoBERTa, but on the last token of the decoder, the end-of-sequence token."""

    NAMES = {"classification_head.dense": "head.dense", "classification_head.out_proj": "head.out"}
    pooling = "last"


class DebertaHead(BertHead):
    """DeBERTa: as RoBERTa, with the activation and the first dropout that config.json sets."""

    NAMES = {"pooler.dense": "head.dense", "classifier": "head.out"}

    def __init__(self, backbone, classes):
        super().__init__(backbone, classes)
        self.pooler_dropout = nn.Dropout(backbone.config["pooler_dropout"])
        self.activation = ACTIVATIONS[backbone.config["pooler_hidden_act"]]

    def features(self, hidden, mask):
        first = pool(hidden, mask, self.pooling)                                    # (B, D)
        return self.activation(self.dense(self.pooler_dropout(first)))


class DistilBertHead(BertHead):
    """DistilBERT: as BERT, with relu for tanh."""

    NAMES = {"pre_classifier": "head.dense", "classifier": "head.out"}

    def features(self, hidden, mask):
        return ACTIVATIONS["relu"](self.dense(pool(hidden, mask, self.pooling)))


class ModernBertHead(BertHead):
    """ModernBERT: first token, or the mean of all -> dense -> activation -> norm -> dropout ->
    classes. Its masked-LM head begins with the same dense, activation and norm."""

    NAMES = {"head.dense": "head.dense", "head.norm": "head.norm", "classifier": "head.out"}

    def __init__(self, backbone, classes):
        super().__init__(backbone, classes)
        c, D = backbone.config, backbone.width
        self.pooling = {"cls": "first", "mean": "mean"}[c["classifier_pooling"]]
        self.dense, self.norm = nn.Linear(D, D, bias=c["classifier_bias"]), layer_norm(c)
        self.activation = ACTIVATIONS[c["classifier_activation"]]

    def features(self, hidden, mask):
        return self.norm(self.activation(self.dense(pool(hidden, mask, self.pooling))))


FAMILY_HEADS = {
    "bert": BertHead, "distilbert": DistilBertHead, "roberta": RobertaHead,
    "xlm-roberta": RobertaHead, "deberta-v2": DebertaHead,
    "modernbert": ModernBertHead, "t5": T5Head,
    **dict.fromkeys(("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3",
                     "gemma3_text"), ScoreHead)}


def build_head(model_type, backbone, classes, how="family"):
    """-> Head. classes: their number; how: one of POOLS; "family": the head of transformers."""
    if how == "family":
        return FAMILY_HEADS[model_type](backbone, classes)
    if how not in (*POOLS, WRONG_POOLING):
        raise InputError(f"pooling {how!r} is not known; known: {', '.join(POOLS)}")
    return PooledHead(backbone, classes, how)
