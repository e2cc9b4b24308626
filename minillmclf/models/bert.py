"""Encoders: BERT (Devlin et al. 2018), RoBERTa (Liu et al. 2019) and its multilingual XLM-RoBERTa.

Every token sees every other token of its text, left and right. The block is the original post-norm
one: x = norm(x + attention(x)); x = norm(x + mlp(x)). RoBERTa differs in two numbers: its positions
begin at pad_id + 1, and it has one token type.

Not here: the masked-LM head (encoder.py); pooling and classification heads (classify/head.py).
"""
from torch import nn

from .config import REQUIRED
from .encoder import Encoder, MaskedLMHead
from .layers import ACTIVATIONS, attention


class BertLayer(nn.Module):
    """One block: attention over the text, then an MLP at each token. c: fields of config.json."""

    def __init__(self, c):
        super().__init__()
        D, F = c["hidden_size"], c["intermediate_size"]
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(D, D) for _ in range(4))
        self.attention_norm = nn.LayerNorm(D, eps=c["layer_norm_eps"])
        self.up_proj, self.down_proj = nn.Linear(D, F), nn.Linear(F, D)
        self.mlp_norm = nn.LayerNorm(D, eps=c["layer_norm_eps"])
        self.activation = ACTIVATIONS[c["hidden_act"]]
        self.dropout = nn.Dropout(c["hidden_dropout_prob"])
        self.heads = c["num_attention_heads"]
        self.attention_dropout = c["attention_probs_dropout_prob"]

    def project(self, x, queries):
        """x: (N, D); queries: (M, D), those of x -> q (M, H, d), k and v (N, H, d)."""
        projected = self.q_proj(queries), self.k_proj(x), self.v_proj(x)
        return (vectors.unflatten(-1, (self.heads, -1)) for vectors in projected)

    def attend(self, x, rows):
        """x: (N, D), rows: layers.Rows -> (M, D)."""
        queries, dropout = rows.queries(x), self.attention_dropout if self.training else 0.0
        attended = attention(*self.project(x, queries), rows, dropout)               # (M, D)
        return self.attention_norm(queries + self.dropout(self.o_proj(attended)))

    def mlp(self, x):
        """(M, D) -> (M, D)."""
        inner = self.activation(self.up_proj(x))                       # (M, intermediate_size)
        return self.mlp_norm(x + self.dropout(self.down_proj(inner)))

    def forward(self, x, rows):
        """x: (N, D) -> (M, D)."""
        return self.mlp(self.attend(x, rows))


class Bert(Encoder):
    """The BERT body: ids -> one vector for each token, and the masked-LM head if the file has one.

    `forward` (backbone.py): rows.pad(run(layers, embed(...), rows)). config.py explains the tables
    FIELDS to MULTIPLES, backbone.py the others. position_offset: row of the first position."""

    FIELDS = dict(
        vocab_size=REQUIRED, hidden_size=REQUIRED, num_hidden_layers=REQUIRED,
        num_attention_heads=REQUIRED, intermediate_size=REQUIRED, hidden_act="gelu",
        max_position_embeddings=512, type_vocab_size=2, layer_norm_eps=1e-12,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, classifier_dropout=None)
    FIXED = dict(position_embedding_type="absolute", tie_word_embeddings=True)
    CHOICES = {"hidden_act": ACTIVATIONS}
    MULTIPLES = (("hidden_size", "num_attention_heads"),)
    ARCHITECTURES = {"body": "BertModel", "lm_head": "BertForMaskedLM",
                     "classifier": "BertForSequenceClassification"}
    ALIASES = (("", "bert."),)          # a file of the body alone may have no "bert."
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
        "bert.pooler.dense": None,              # None: not part of the body; a head may load it
        "classifier": None,
        "cls.seq_relationship": None,
    }
    LM_NAMES = {
        "cls.predictions.transform.dense": "lm_head.dense",
        "cls.predictions.transform.LayerNorm": "lm_head.norm",
        "cls.predictions.bias": "lm_head.bias",
    }
    LM_TIES = {"cls.predictions.decoder.weight": "word_embeddings.weight",
               "cls.predictions.decoder.bias": "lm_head.bias"}
    LAYER = BertLayer

    def __init__(self, c, lm_head, position_offset=0, lm_activation=None):
        super().__init__()
        self.config, self.position_offset = c, position_offset
        D = c["hidden_size"]
        self.word_embeddings = nn.Embedding(c["vocab_size"], D)
        self.position_embeddings = nn.Embedding(c["max_position_embeddings"], D)
        self.type_embeddings = nn.Embedding(c["type_vocab_size"], D)
        self.embedding_norm = nn.LayerNorm(D, eps=c["layer_norm_eps"])
        self.dropout = nn.Dropout(c["hidden_dropout_prob"])
        self.layers = nn.ModuleList(self.LAYER(c) for _ in range(c["num_hidden_layers"]))
        self.lm_head = MaskedLMHead(c, lm_activation or c["hidden_act"]) if lm_head else None
        self.max_tokens, self.width = c["max_position_embeddings"] - position_offset, D
        dropout = c["classifier_dropout"]
        self.head_dropout = c["hidden_dropout_prob"] if dropout is None else dropout

    def embed(self, ids, rows, types):
        """ids, types: (B, T) -> (N, D), the norm of word + token type + position."""
        self.check_length(rows)
        x = self.word_embeddings(rows.unpad(ids)) + self.embed_types(types, ids, rows)   # (N, D)
        x = x + self.position_embeddings(rows.positions + self.position_offset)
        return self.dropout(self.embedding_norm(x))

    def run(self, layers, x, rows, context=None):
        """x: (N, D) through some of the blocks -> (M, D). context: not used by encoders."""
        for layer in layers:
            x = layer(x, rows)
        return x


class Roberta(Bert):
    """RoBERTa: BERT with positions from pad_id + 1 on, and with its own names of tensors."""

    FIELDS = {**Bert.FIELDS, "pad_token_id": 1}
    RULES = (lambda c: c["pad_token_id"] + 1 >= c["max_position_embeddings"]
             and f"pad_token_id {c['pad_token_id']} leaves none of max_position_embeddings "
             f"{c['max_position_embeddings']} to a text",)
    ARCHITECTURES = {"body": "RobertaModel", "lm_head": "RobertaForMaskedLM",
                     "classifier": "RobertaForSequenceClassification"}
    ALIASES = (("", "roberta."),)
    NAMES = {file.replace("bert.", "roberta.", 1): ours for file, ours in Bert.NAMES.items()
             if not file.startswith("cls")}
    NAMES |= {"classifier.dense": None, "classifier.out_proj": None}
    LM_NAMES = {"lm_head.dense": "lm_head.dense", "lm_head.layer_norm": "lm_head.norm",
                "lm_head.bias": "lm_head.bias"}
    LM_TIES = {"lm_head.decoder.weight": "word_embeddings.weight",
               "lm_head.decoder.bias": "lm_head.bias"}

    def __init__(self, c, lm_head):
        # 514 position rows serve 512 tokens: the first pad_id + 1 rows are never used.
        super().__init__(c, lm_head, c["pad_token_id"] + 1, "gelu")


class XlmRoberta(Roberta):
    """XLM-RoBERTa (Conneau et al. 2019): RoBERTa for 100 languages, with a Unigram vocabulary."""

    ARCHITECTURES = {kind: name.replace("Roberta", "XLMRoberta")
                     for kind, name in Roberta.ARCHITECTURES.items()}
