"""Encoder with disentangled attention: DeBERTa-v2 and v3 (He et al. 2020, "DeBERTa", section 3.1;
He et al. 2021).

BERT adds a position to a word and then forgets which was which. DeBERTa keeps the two apart. How
much a query at position i looks at a key at position j is a sum of three scores; r is the vector of
the offset i - j, from one table for all layers:

    content to content    q_i . k_j             as in BERT
    content to position   q_i . key(r)          "c2p": what a word looks for at this distance
    position to content   query(r) . k_j        "p2c": which words are looked for at this distance

all divided by sqrt(d * 3), because there are three of them (a model may have fewer). Each near
offset has its own row of the table. With log buckets far offsets share rows, the farther the more,
so no text is too long. The rest of a block is that of BERT.

Here: the body, also with absolute positions or token types. Not here: the convolution of
deberta-v2-xlarge, the enhanced mask decoder, v3's pretraining, the masked-LM head (encoder.py),
classification heads (classify/head.py).
"""
import math

import torch
from torch import nn

from ..text.transfer import move
from .bert import BertLayer
from .config import REQUIRED
from .encoder import Encoder, MaskedLMHead
from .half_attention import dot_product_attention
from .layers import ACTIVATIONS


def log_buckets(offset, buckets, max_distance):
    """Offsets (any shape) -> signed buckets: up to buckets / 2 an offset is its own bucket, beyond
    that the bucket grows with the logarithm of the offset.

    Offset max_distance - 1 falls into bucket buckets - 1, farther ones into higher buckets. In
    fp32, as in training: where the quotient should be a whole number, rounding decides the bucket.
    """
    middle = buckets // 2
    far = (offset.abs().clamp(min=middle).float() / middle).log()
    farthest = torch.tensor((max_distance - 1) / middle, dtype=torch.float32).log()
    far = torch.ceil(far / farthest * (middle - 1)) + middle
    return torch.where(offset.abs() <= middle, offset, (far * offset.sign()).long())


def table_rows(offset, buckets, max_distance):
    """Offsets query - key (any shape) -> rows of the table, 0 to 2 * span - 1; offset 0 is at span.

    buckets: 0 for none. Then each offset has a row; those from max_distance on share the last one.
    """
    span = buckets or max_distance
    bucket = log_buckets(offset, buckets, max_distance) if buckets else offset
    return (bucket + span).clamp(0, 2 * span - 1)


def disentangled_attention(q, k, v, positions, column, rows, dropout):
    """As `attention`, with the scores of offsets added.

    q: (M, H, d) of the queries; k, v: (N, H, d). positions: keys and queries of the P offsets in
    use, (P, H, d) each, or None for a score that the model lacks. column: (B or 1, T, S), the
    number of the offset, 0 to P - 1, between a query and a key. -> (M, H*d)
    """
    q, (k, v) = rows.pad_heads(q), rows.keys_values(k, v)        # (B, H, T, d), (B, H, S, d)
    scores = 1 + sum(vectors is not None for vectors in positions)
    scale = 1 / math.sqrt(q.shape[-1] * scores)
    # Scaled before the products: the sums of unscaled ones leave the range of fp16.
    keys, queries = (None if vectors is None else vectors.transpose(0, 1) * scale    # (H, P, d)
                     for vectors in positions)
    column = column.unsqueeze(1).expand(len(q), q.shape[1], -1, -1)      # (B, H, T, S)
    bias = q.new_zeros(1, 1, 1, k.shape[2])
    if keys is not None:
        bias = bias + (q @ keys.mT).gather(-1, column)                   # from (B, H, T, P)
    if queries is not None:
        bias = bias + (queries @ k.mT).gather(-2, column)                # from (B, H, P, S)
    if rows.padding_mask is not None:
        bias = bias.masked_fill(~rows.padding_mask, float("-inf"))
    return rows.merge_heads(dot_product_attention(
        q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale))


class DebertaLayer(BertLayer):
    """BERT's block with disentangled attention.

    Keys and queries of offsets come from the matrices of words (share_att_key) or from two more.
    """

    def __init__(self, c):
        super().__init__(c)
        D, self.shared, self.terms = c["hidden_size"], c["share_att_key"], c["pos_att_type"]
        self.pos_key_proj, self.pos_query_proj = (
            nn.Linear(D, D) if term in self.terms and not self.shared else None
            for term in ("c2p", "p2c"))

    def project_offsets(self, table):
        """(P, D) -> keys and queries of P offsets, (P, H, d) each; None for a score it lacks."""
        key, query = self.pos_key_proj, self.pos_query_proj
        if self.shared:
            key, query = self.k_proj, self.q_proj
        return [proj(table).unflatten(-1, (self.heads, -1)) if term in self.terms else None
                for term, proj in (("c2p", key), ("p2c", query))]

    def attend(self, x, rows, table, column):
        """x: (N, D) -> (M, D). table, column: what `Deberta.offsets` returns."""
        queries, p = rows.queries(x), self.attention_dropout if self.training else 0.0
        positions = self.project_offsets(self.dropout(table))            # (P, H, d) each, or None
        mixed = disentangled_attention(*self.project(x, queries), positions, column, rows, p)
        return self.attention_norm(queries + self.dropout(self.o_proj(mixed)))

    def forward(self, x, rows, table, column):
        """x: (N, D) -> (M, D)."""
        return self.mlp(self.attend(x, rows, table, column))


def size_rule(key, size):
    """A rule for RULES: a field is null or has the one value that is built, size(fields)."""
    def rule(c):
        if c[key] not in (None, size(c)):
            return (f"{key} = {c[key]} (only {size(c)} is built for hidden_size "
                    f"{c['hidden_size']} and {c['num_attention_heads']} heads)")
    return rule


def max_offset(c):
    """How far offsets reach: a value of -1 means the number of positions."""
    most = c["max_relative_positions"]
    return most if most > 0 else c["max_position_embeddings"]


class Deberta(Encoder):
    """The DeBERTa body: ids -> one vector for each token, and the masked-LM head if it has one."""

    # the defaults of transformers, where no relative_attention means false
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
    INERT = ("conv_act", "conv_groups")         # of the convolution, which is not built
    CHOICES = {"hidden_act": ACTIVATIONS, "pooler_hidden_act": ACTIVATIONS,
               "norm_rel_ebd": ("none", "layer_norm"), "pos_att_type": ("c2p", "p2c")}
    MULTIPLES = (("hidden_size", "num_attention_heads"),)
    RULES = (
        lambda c: not c["relative_attention"] and "relative_attention = false (only true is built; "
        "where it is missing, it is false)",
        size_rule("embedding_size", lambda c: c["hidden_size"]),
        size_rule("pooler_hidden_size", lambda c: c["hidden_size"]),
        size_rule("attention_head_size", lambda c: c["hidden_size"] // c["num_attention_heads"]),
        lambda c: (c["position_buckets"] == 1
                   or max_offset(c) - 1 <= c["position_buckets"] // 2)
        and f"position_buckets = {c['position_buckets']} with {max_offset(c)} relative "
        "positions: there must be 2 or more buckets, and half of them fewer than "
        f"{max_offset(c) - 1}")
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
    # Two sets of names for one head: Microsoft's, which transformers writes if "legacy" is false,
    # and that of transformers. Both are read; the set that stands last in LM_NAMES is written.
    MICROSOFT_NAMES = {"lm_predictions.lm_head.dense": "lm_head.dense",
                       "lm_predictions.lm_head.LayerNorm": "lm_head.norm",
                       "lm_predictions.lm_head.bias": "lm_head.bias"}
    LEGACY_NAMES = {"cls.predictions.transform.dense": "lm_head.dense",
                    "cls.predictions.transform.LayerNorm": "lm_head.norm",
                    "cls.predictions.bias": "lm_head.bias"}
    LM_NAMES = MICROSOFT_NAMES | LEGACY_NAMES
    LM_TIES = {"cls.predictions.decoder.weight": "word_embeddings.weight",
               "cls.predictions.decoder.bias": "lm_head.bias"}

    def __init__(self, c, lm_head):
        super().__init__()
        self.config, self.width = c, c["hidden_size"]
        D, eps = self.width, c["layer_norm_eps"]
        absolute, types = c["position_biased_input"], c["type_vocab_size"]
        self.buckets, self.max_distance = max(c["position_buckets"], 0), max_offset(c)
        self.word_embeddings = nn.Embedding(c["vocab_size"], D)
        self.position_embeddings = None
        if absolute:
            self.position_embeddings = nn.Embedding(c["max_position_embeddings"], D)
        self.type_embeddings = nn.Embedding(types, D) if types else None
        self.embedding_norm = nn.LayerNorm(D, eps=eps)
        self.dropout = nn.Dropout(c["hidden_dropout_prob"])
        self.rel_embeddings = nn.Embedding(2 * (self.buckets or self.max_distance), D)
        norm = c["norm_rel_ebd"] == "layer_norm"
        self.rel_norm = nn.LayerNorm(D, eps=eps) if norm else nn.Identity()
        self.layers = nn.ModuleList(DebertaLayer(c) for _ in range(c["num_hidden_layers"]))
        self.lm_head = MaskedLMHead(c, c["hidden_act"]) if lm_head else None
        self.max_tokens = c["max_position_embeddings"] if absolute else None
        dropout = c["cls_dropout"]
        self.head_dropout = c["hidden_dropout_prob"] if dropout is None else dropout
        if not absolute:                        # Microsoft's files may hold them, unused
            self.NAMES = self.NAMES | {"deberta.embeddings.position_embeddings": None}
        if not c["legacy"]:
            self.LM_NAMES = self.LEGACY_NAMES | self.MICROSOFT_NAMES

    @classmethod
    def config_fields(cls, config, where):
        terms = config.get("pos_att_type") or []
        if isinstance(terms, str):
            terms = [term.strip() for term in terms.lower().split("|")]
        return super().config_fields({**config, "pos_att_type": terms}, where)

    def embed(self, ids, rows, types):
        """ids (B, T) -> (N, D): word (+ position) (+ token type) embeddings, normalised."""
        x = self.word_embeddings(rows.unpad(ids))                                    # (N, D)
        if self.position_embeddings is not None:
            self.check_length(rows)
            x = x + self.position_embeddings(rows.positions)
        if self.type_embeddings is not None:
            x = x + self.embed_types(types, ids, rows)
        return self.dropout(self.embedding_norm(x))

    def offsets(self, rows):
        """table: the P rows of rel_embeddings that a batch needs, normalised, (P, D). column: which
        of them belongs to each pair of query and key, 0 to P - 1, (B or 1, T, S).

        Texts of at most L tokens have at most 2L - 1 offsets, fewer rows if buckets join them.
        """
        distance, farthest = rows.distance(), rows.longest - 1
        # On the CPU, so that the same logarithm chooses the buckets wherever the model is.
        offsets = torch.arange(-farthest, farthest + 1, device="cpu")                # (2L - 1,)
        row_of = table_rows(offsets, self.buckets, self.max_distance)                # (2L - 1,)
        needed, column_of = row_of.unique(return_inverse=True)           # (P,), (2L - 1,)
        moved = move({"needed": needed, "column_of": column_of}, distance.device)
        table = self.rel_norm(self.rel_embeddings(moved["needed"]))                  # (P, D)
        return table, moved["column_of"][distance + farthest]

    def run(self, layers, x, rows, context=None):
        """x: (N, D) through some of the blocks -> (M, D)."""
        table, column = self.offsets(rows)
        for layer in layers:
            x = layer(x, rows, table, column)
        return x
