"""Encoders: BERT (Devlin et al. 2018) and RoBERTa (Liu et al. 2019).

Every token sees every other token of its text, left and right. The block is the original "post-norm" one:
x = norm(x + attention(x)); x = norm(x + mlp(x)). RoBERTa is the same wiring with two other numbers: its positions
begin at pad_id + 1, and it has one token type.

Here: the body and the masked-LM head. Not here: pooling and classification heads (classify/head.py).
"""
import re

import torch
from torch import nn

from ..errors import InputError
from .backbone import Backbone
from .config import REQUIRED, choose, multiple, read_config
from .layers import ACTIVATIONS, attention


class BertLayer(nn.Module):
    """One block: attention over the text, then an MLP at each token; each is added and then normalised."""

    def __init__(self, c):
        super().__init__()
        D, F = c["hidden_size"], c["intermediate_size"]
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(D, D) for _ in range(4))
        self.attention_norm = nn.LayerNorm(D, eps=c["layer_norm_eps"])
        self.up_proj, self.down_proj = nn.Linear(D, F), nn.Linear(F, D)
        self.mlp_norm = nn.LayerNorm(D, eps=c["layer_norm_eps"])
        self.activation = ACTIVATIONS[c["hidden_act"]]
        self.dropout = nn.Dropout(c["hidden_dropout_prob"])
        self.heads, self.attention_dropout = c["num_attention_heads"], c["attention_probs_dropout_prob"]

    def forward(self, x, rows):
        """x: (N, D) packed -> (N, D), from the attention on of the tokens that ask."""
        p, asking = self.attention_dropout if self.training else 0.0, rows.asking(x)
        seen = attention(self.q_proj(asking), self.k_proj(x), self.v_proj(x), rows, self.heads, p)     # (N, D)
        x = self.attention_norm(asking + self.dropout(self.o_proj(seen)))
        return self.mlp_norm(x + self.dropout(self.down_proj(self.activation(self.up_proj(x)))))   # (N, D)


class MaskedLMHead(nn.Module):
    """hidden -> vocabulary: dense, activation, norm, then the word embeddings themselves as the last matrix."""

    def __init__(self, c, activation):
        super().__init__()
        self.dense = nn.Linear(c["hidden_size"], c["hidden_size"])
        self.norm = nn.LayerNorm(c["hidden_size"], eps=c["layer_norm_eps"])
        self.bias = nn.Parameter(torch.zeros(c["vocab_size"]))
        self.activation = ACTIVATIONS[activation]

    def forward(self, hidden, embeddings):
        """hidden: (..., D), embeddings: (V, D) -> (..., V)."""
        return self.norm(self.activation(self.dense(hidden))) @ embeddings.T + self.bias


class Encoder(Backbone):
    """What the encoders share: token types, and a masked-LM head whose last matrix is the word embeddings."""

    def states(self, ids, mask, types=None, read=None):
        return self(ids, mask, types, read)

    def vocabulary(self):
        """(V, D), what the masked-LM head ends in: the word embeddings."""
        return super().vocabulary() if self.lm_head is None else self.word_embeddings.weight

    def logits(self, hidden):
        """hidden (..., D) -> scores over the vocabulary (..., V); needs a checkpoint with a masked-LM head."""
        if self.lm_head is None:
            raise InputError("this checkpoint has no masked-LM head: load one that was saved with it (*ForMaskedLM)")
        return self.lm_head(hidden, self.word_embeddings.weight)


class Bert(Encoder):
    """The BERT body: ids -> one vector for each token, and, where the checkpoint has it, the masked-LM head."""

    FIELDS = dict(vocab_size=REQUIRED, hidden_size=REQUIRED, num_hidden_layers=REQUIRED, num_attention_heads=REQUIRED,
                  intermediate_size=REQUIRED, hidden_act="gelu", max_position_embeddings=512, type_vocab_size=2,
                  layer_norm_eps=1e-12, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
                  classifier_dropout=None)
    FIXED = dict(position_embedding_type="absolute", tie_word_embeddings=True)
    ARCHITECTURES = {"body": "BertModel", "lm_head": "BertForMaskedLM", "classifier": "BertForSequenceClassification"}
    SPELLINGS = (("", "bert."),)     # a file of the body alone may leave the prefix out
    NAMES = {
        "bert.embeddings.word_embeddings": "word_embeddings",
        "bert.embeddings.position_embeddings": "position_embeddings",
        "bert.embeddings.token_type_embeddings": "type_embeddings",
        "bert.embeddings.LayerNorm": "embedding_norm",
        "bert.embeddings.position_ids": None,
        "bert.encoder.layer.{}.attention.self.query": "layers.{}.q_proj",
        "bert.encoder.layer.{}.attention.self.key": "layers.{}.k_proj",
        "bert.encoder.layer.{}.attention.self.value": "layers.{}.v_proj",
        "bert.encoder.layer.{}.attention.output.dense": "layers.{}.o_proj",
        "bert.encoder.layer.{}.attention.output.LayerNorm": "layers.{}.attention_norm",
        "bert.encoder.layer.{}.intermediate.dense": "layers.{}.up_proj",
        "bert.encoder.layer.{}.output.dense": "layers.{}.down_proj",
        "bert.encoder.layer.{}.output.LayerNorm": "layers.{}.mlp_norm",
        "bert.pooler.dense": None,
        "classifier": None,
        "cls.seq_relationship": None,
    }
    LM_NAMES = {
        "cls.predictions.transform.dense": "lm_head.dense",
        "cls.predictions.transform.LayerNorm": "lm_head.norm",
        "cls.predictions.bias": "lm_head.bias",
    }
    LM_TIES = {"cls.predictions.decoder.weight": "word_embeddings.weight", "cls.predictions.decoder.bias": "lm_head.bias"}

    def __init__(self, c, position_offset, lm_activation, lm_head):
        super().__init__()
        self.config, self.position_offset = c, position_offset
        D = c["hidden_size"]
        self.word_embeddings = nn.Embedding(c["vocab_size"], D)
        self.position_embeddings = nn.Embedding(c["max_position_embeddings"], D)
        self.type_embeddings = nn.Embedding(c["type_vocab_size"], D)
        self.embedding_norm = nn.LayerNorm(D, eps=c["layer_norm_eps"])
        self.dropout = nn.Dropout(c["hidden_dropout_prob"])
        self.layers = nn.ModuleList(BertLayer(c) for _ in range(c["num_hidden_layers"]))
        self.lm_head = MaskedLMHead(c, lm_activation) if lm_head else None
        self.max_tokens, self.width = c["max_position_embeddings"] - position_offset, D
        self.head_dropout = c["hidden_dropout_prob"] if c["classifier_dropout"] is None else c["classifier_dropout"]

    @classmethod
    def read(cls, config, where):
        """The checked fields of a config.json."""
        c = read_config(config, cls.FIELDS, cls.FIXED, where)
        choose(ACTIVATIONS, c["hidden_act"], "hidden_act", where)
        multiple(c, "hidden_size", "num_attention_heads", where)
        return c

    @classmethod
    def from_config(cls, config, lm_head=False, where="config.json"):
        """A model with fresh weights from a parsed config.json; `where` names the file in errors."""
        c = cls.read(config, where)
        return cls(c, position_offset=0, lm_activation=c["hidden_act"], lm_head=lm_head)

    def embed(self, ids, rows, types):
        """ids (B, T) -> (N, D): word + position + token type, normalised."""
        self.check_length(rows)
        types = torch.zeros_like(ids) if types is None else types
        if int(types.max()) >= self.type_embeddings.num_embeddings:
            raise InputError(f"token type {int(types.max())}: this model has {self.type_embeddings.num_embeddings} token type(s), "
                             f"numbered from 0")
        x = self.word_embeddings(rows.pack(ids)) + self.type_embeddings(rows.pack(types))           # (N, D)
        x = x + self.position_embeddings(rows.positions + self.position_offset)
        return self.dropout(self.embedding_norm(x))

    def forward(self, ids, mask, types=None, read=None):
        """ids, mask, types: (B, T) -> hidden (B, T, D), zeros at padding. mask is 1 where a token is.

        types: 0 for the first text of a pair, 1 for the second; None means all 0. read: as in `states`.
        """
        rows = self.rows(mask, read)
        x = self.embed(ids, rows, types)                                                            # (N, D)
        for layer, at in rows.through(self.layers):
            x = layer(x, at)
        return rows.read_from(x)                                                                    # (B, T, D)


class Roberta(Bert):
    """RoBERTa: BERT with positions that begin at pad_id + 1 and its own tensor names."""

    FIELDS = {**Bert.FIELDS, "pad_token_id": 1}
    ARCHITECTURES = {"body": "RobertaModel", "lm_head": "RobertaForMaskedLM",
                     "classifier": "RobertaForSequenceClassification"}
    SPELLINGS = (("", "roberta."),)
    NAMES = {re.sub("^bert", "roberta", file): ours for file, ours in Bert.NAMES.items() if not file.startswith("cls")}
    NAMES |= {"classifier.dense": None, "classifier.out_proj": None}
    LM_NAMES = {"lm_head.dense": "lm_head.dense", "lm_head.layer_norm": "lm_head.norm", "lm_head.bias": "lm_head.bias"}
    LM_TIES = {"lm_head.decoder.weight": "word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias"}

    @classmethod
    def from_config(cls, config, lm_head=False, where="config.json"):
        c = cls.read(config, where)
        # 514 position rows serve 512 tokens: the first pad_id + 1 rows are never used.
        if c["pad_token_id"] + 1 >= c["max_position_embeddings"]:
            raise InputError(f"{where}: pad_token_id {c['pad_token_id']} leaves none of "
                             f"max_position_embeddings {c['max_position_embeddings']} to a text")
        return cls(c, position_offset=c["pad_token_id"] + 1, lm_activation="gelu", lm_head=lm_head)
