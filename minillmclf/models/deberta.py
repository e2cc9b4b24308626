"""Encoder with disentangled attention: DeBERTa-v2 and v3 (He et al. 2020, "DeBERTa", section 3.1;
He et al. 2021).

BERT adds a position to a word and then forgets which was which. DeBERTa keeps the two apart. How
much a query at position i looks at a key at position j is a sum of three scores; P is the vector of
the offset i - j, in one table for all layers:

    content to content    q_i . k_j             as in BERT
    content to position   q_i . key(P)          "c2p": what a word looks for at this distance
    position to content   query(P) . k_j        "p2c": which words are looked for at this distance

all divided by sqrt(d * 3), because there are three of them (a model may have fewer). Near offsets
have a row of the table each; with log buckets far ones share a row, more of them the farther they
are. So no text is too long. The rest of a block is that of BERT.

Here: the body; also models that have absolute positions besides, or token types. Not here: the
convolution of deberta-v2-xlarge, the enhanced mask decoder, v3's pretraining, the masked-LM head
(encoder.py), classification heads (classify/head.py).
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from .bert import BertLayer
from .config import REQUIRED
from .encoder import Encoder, MaskedLMHead
from .layers import ACTIVATIONS


def log_bucket(offset, buckets, most):
    """Offsets (any shape) -> signed buckets: up to buckets / 2 an offset is its own bucket, beyond
    that buckets grow as its logarithm.

    most: at the offset most - 1 bucket number buckets - 1 is reached; farther ones get numbers
    beyond it. In fp32, as models were trained: where the quotient should be a whole number, its
    rounding decides between two buckets.
    """
    middle = buckets // 2
    far = (offset.abs().clamp(min=middle).float() / middle).log()
    whole = torch.tensor((most - 1) / middle, dtype=torch.float32).log()
    far = torch.ceil(far / whole * (middle - 1)) + middle
    return torch.where(offset.abs() <= middle, offset, (far * offset.sign()).long())


def table_row(offset, buckets, most):
    """Offsets query - key (any shape) -> rows of the table, 0 to 2 * span - 1; offset 0 is at span.

    buckets: 0 for none, then there is a row for each offset and those from `most` on share the
    outermost.
    """
    span = buckets or most
    bucket = log_bucket(offset, buckets, most) if buckets else offset
    return (bucket + span).clamp(0, 2 * span - 1)


def disentangled_attention(q, k, v, positions, column, rows, dropout):
    """As `attention`, with scores for words and for offsets.

    q: (M, H, d) of the queries; k, v: (N, H, d). positions: keys and queries of the P offsets in
    use, (P, H, d) each, or None where the model has no such score. column: (B or 1, T, S), which
    of the P offsets a query and a key have. -> (M, H*d)
    """
    q, (k, v) = rows.pad_heads(q), rows.keys_values(k, v)        # (B, H, T, d), (B, H, S, d)
    terms = 1 + sum(each is not None for each in positions)
    scale = 1 / math.sqrt(q.shape[-1] * terms)
    # Scaled before the products: the sums of unscaled ones leave the range of fp16.
    keys, queries = (None if each is None else each.transpose(0, 1) * scale          # (H, P, d)
                     for each in positions)
    column = column.unsqueeze(1).expand(len(q), q.shape[1], -1, -1)      # (B, H, T, S)
    bias = q.new_zeros(1, 1, 1, k.shape[2])
    if keys is not None:
        bias = bias + (q @ keys.mT).gather(-1, column)                   # from (B, H, T, P)
    if queries is not None:
        bias = bias + (queries @ k.mT).gather(-2, column)                # from (B, H, P, S)
    if rows.padding_mask is not None:
        bias = bias.masked_fill(~rows.padding_mask, float("-inf"))
    return rows.merge_heads(F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale))


class DebertaLayer(BertLayer):
    """BERT's block with disentangled attention.

    Offsets become keys and queries by the same matrices as words do (share_att_key, all of v3), or
    by two of their own.
    """

    def __init__(self, c):
        super().__init__(c)
        D, self.shared, self.terms = c["hidden_size"], c["share_att_key"], c["pos_att_type"]
        own = [term in self.terms and not self.shared for term in ("c2p", "p2c")]
        self.pos_key_proj, self.pos_query_proj = (nn.Linear(D, D) if has else None for has in own)

    def project_offsets(self, table):
        """(P, D) -> keys and queries of the offsets, (P, H, d) each, or None without a score."""
        key, query = self.pos_key_proj, self.pos_query_proj
        if self.shared:
            key, query = self.k_proj, self.q_proj
        return [proj(table).unflatten(-1, (self.heads, -1)) if term in self.terms else None
                for term, proj in (("c2p", key), ("p2c", query))]

    def attend(self, x, rows, table, column):
        """x: (N, D) -> (M, D). table: (P, D), the offsets in use; column: (B or 1, T, S)."""
        queries, p = rows.queries(x), self.attention_dropout if self.training else 0.0
        positions = self.project_offsets(self.dropout(table))            # for all rows
        seen = disentangled_attention(*self.project(x, queries), positions, column, rows, p)
        return self.attention_norm(queries + self.dropout(self.o_proj(seen)))

    def forward(self, x, rows, table, column):
        """x: (N, D) -> (M, D)."""
        return self.mlp(self.attend(x, rows, table, column))


def only(key, size):
    """A rule for `Tables.RULES`: a field is null or the one size that is built."""
    def rule(c):
        if c[key] not in (None, size(c)):
            return (f"{key} = {c[key]} (only {size(c)} is built for hidden_size "
                    f"{c['hidden_size']} and {c['num_attention_heads']} heads)")
    return rule


def offsets_known(c):
    """The largest offset, as a config.json gives it."""
    most = c["max_relative_positions"]
    return most if most > 0 else c["max_position_embeddings"]


class Deberta(Encoder):
    """The DeBERTa body: ids -> one vector for each token, and the masked-LM head if it has one."""

    # transformers' defaults: silence about relative_attention means a model without it
    FIELDS = dict(
        vocab_size=REQUIRED, hidden_size=REQUIRED, num_hidden_layers=REQUIRED,
        num_attention_heads=REQUIRED, intermediate_size=REQUIRED, hidden_act="gelu",
        max_position_embeddings=512, type_vocab_size=0, layer_norm_eps=1e-7,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, relative_attention=False,
        pos_att_type=[], share_att_key=False, norm_rel_ebd="none", position_buckets=-1,
        max_relative_positions=-1, position_biased_input=True, legacy=True,
        pooler_hidden_act="gelu", pooler_dropout=0.0, cls_dropout=None, pooler_hidden_size=None,
        embedding_size=None, attention_head_size=None)
    FIXED = dict(conv_kernel_size=0, tie_word_embeddings=True)
    INERT = ("conv_act", "conv_groups")         # of the convolution, which is not there
    CHOICES = {"hidden_act": ACTIVATIONS, "pooler_hidden_act": ACTIVATIONS,
               "norm_rel_ebd": ("none", "layer_norm"), "pos_att_type": ("c2p", "p2c")}
    MULTIPLES = (("hidden_size", "num_attention_heads"),)
    RULES = (
        lambda c: not c["relative_attention"] and "relative_attention = false (only true is built; "
        "where it is missing, it is false)",
        only("embedding_size", lambda c: c["hidden_size"]),
        only("pooler_hidden_size", lambda c: c["hidden_size"]),
        only("attention_head_size", lambda c: c["hidden_size"] // c["num_attention_heads"]),
        lambda c: (c["position_buckets"] == 1
                   or offsets_known(c) - 1 <= c["position_buckets"] // 2)
        and f"position_buckets = {c['position_buckets']} with {offsets_known(c)} relative "
        "positions: there must be 2 or more buckets, and half of them fewer than "
        f"{offsets_known(c) - 1}")
    ARCHITECTURES = {"body": "DebertaV2Model", "lm_head": "DebertaV2ForMaskedLM",
                     "classifier": "DebertaV2ForSequenceClassification"}
    ALIASES = (("", "deberta."),)        # a file of the body alone may leave the prefix out
    NAMES = {
        "deberta.embeddings.word_embeddings": "word_embeddings",
        "deberta.embeddings.position_embeddings": "position_embeddings",
        "deberta.embeddings.token_type_embeddings": "type_embeddings",
        "deberta.embeddings.LayerNorm": "embedding_norm",
        "deberta.embeddings.position_ids": None,
        "deberta.encoder.rel_embeddings": "rel_embeddings",
        "deberta.encoder.LayerNorm": "rel_norm",
        "deberta.encoder.layer.{}.attention.self.query_proj": "layers.{}.q_proj",
        "deberta.encoder.layer.{}.attention.self.key_proj": "layers.{}.k_proj",
        "deberta.encoder.layer.{}.attention.self.value_proj": "layers.{}.v_proj",
        "deberta.encoder.layer.{}.attention.self.pos_key_proj": "layers.{}.pos_key_proj",
        "deberta.encoder.layer.{}.attention.self.pos_query_proj": "layers.{}.pos_query_proj",
        "deberta.encoder.layer.{}.attention.output.dense": "layers.{}.o_proj",
        "deberta.encoder.layer.{}.attention.output.LayerNorm": "layers.{}.attention_norm",
        "deberta.encoder.layer.{}.intermediate.dense": "layers.{}.up_proj",
        "deberta.encoder.layer.{}.output.dense": "layers.{}.down_proj",
        "deberta.encoder.layer.{}.output.LayerNorm": "layers.{}.mlp_norm",
        "pooler.dense": None,
        "classifier": None,
        # left over from pretraining, in files of v3
        "deberta.embeddings.word_embeddings._weight": None,
        "deberta.embeddings.position_embeddings._weight": None,
        "mask_predictions.*": None,
    }
    # One head under two names: Microsoft's, which transformers writes if "legacy" is false, and
    # transformers' own. Both are read; of two names for one parameter the last is written.
    MICROSOFT = {"lm_predictions.lm_head.dense": "lm_head.dense",
                 "lm_predictions.lm_head.LayerNorm": "lm_head.norm",
                 "lm_predictions.lm_head.bias": "lm_head.bias"}
    LEGACY = {"cls.predictions.transform.dense": "lm_head.dense",
              "cls.predictions.transform.LayerNorm": "lm_head.norm",
              "cls.predictions.bias": "lm_head.bias"}
    LM_NAMES = MICROSOFT | LEGACY
    LM_TIES = {"cls.predictions.decoder.weight": "word_embeddings.weight",
               "cls.predictions.decoder.bias": "lm_head.bias"}

    def __init__(self, c, lm_head):
        super().__init__()
        self.config, self.width = c, c["hidden_size"]
        D, eps = self.width, c["layer_norm_eps"]
        absolute, types = c["position_biased_input"], c["type_vocab_size"]
        self.buckets, self.most = max(c["position_buckets"], 0), offsets_known(c)
        self.word_embeddings = nn.Embedding(c["vocab_size"], D)
        self.position_embeddings = None
        if absolute:
            self.position_embeddings = nn.Embedding(c["max_position_embeddings"], D)
        self.type_embeddings = nn.Embedding(types, D) if types else None
        self.embedding_norm = nn.LayerNorm(D, eps=eps)
        self.dropout = nn.Dropout(c["hidden_dropout_prob"])
        self.rel_embeddings = nn.Embedding(2 * (self.buckets or self.most), D)
        norm = c["norm_rel_ebd"] == "layer_norm"
        self.rel_norm = nn.LayerNorm(D, eps=eps) if norm else nn.Identity()
        self.layers = nn.ModuleList(DebertaLayer(c) for _ in range(c["num_hidden_layers"]))
        self.lm_head = MaskedLMHead(c, c["hidden_act"]) if lm_head else None
        self.max_tokens = c["max_position_embeddings"] if absolute else None
        dropout = c["cls_dropout"]
        self.head_dropout = c["hidden_dropout_prob"] if dropout is None else dropout
        if not absolute:                        # Microsoft's files may hold them all the same
            self.NAMES = self.NAMES | {"deberta.embeddings.position_embeddings": None}
        if not c["legacy"]:
            self.LM_NAMES = self.LEGACY | self.MICROSOFT

    @classmethod
    def read(cls, config, where):
        terms = config.get("pos_att_type") or []
        if isinstance(terms, str):
            terms = [term.strip() for term in terms.lower().split("|")]
        return super().read({**config, "pos_att_type": terms}, where)

    def embed(self, ids, rows, types):
        """ids (B, T) -> (N, D): word, and position and token type where there are, normalised."""
        x = self.word_embeddings(rows.unpad(ids))                                    # (N, D)
        if self.position_embeddings is not None:
            self.check_length(rows)
            x = x + self.position_embeddings(rows.positions)
        if self.type_embeddings is not None:
            x = x + self.embed_types(types, ids, rows)
        return self.dropout(self.embedding_norm(x))

    def offsets(self, rows):
        """The rows of the table that a batch needs, and which of them each query and key need.

        -> (P, D), normalised, and (B or 1, T, S) of numbers below P. With a longest text of L
        tokens there are at most 2L - 1 offsets, fewer if buckets join them.
        """
        distance, most = rows.distance(), rows.longest - 1
        # On the CPU, so that the same logarithm chooses the buckets wherever the model is.
        needed = table_row(torch.arange(-most, most + 1, device="cpu"), self.buckets, self.most)
        needed, column = (each.to(distance.device) for each in needed.unique(return_inverse=True))
        return self.rel_norm(self.rel_embeddings(needed)), column[distance + most]

    def run(self, layers, x, rows, context=None):
        """x: (N, D) through some of the blocks -> (N, D)."""
        table, column = self.offsets(rows)
        for layer in layers:
            x = layer(x, rows, table, column)
        return x
