"""Encoder with disentangled attention: DeBERTa-v2 and v3 (He et al. 2020, "DeBERTa", section 3.1; He et al. 2021).

BERT adds a position to a word and then forgets which was which. DeBERTa keeps the two apart. How much a query at place
i looks at a key at place j is a sum of three scores; P is the vector of the offset i - j, in one table for all layers:

    content to content    q_i . k_j             as in BERT
    content to position   q_i . key(P)          "c2p": what a word looks for at this distance
    position to content   query(P) . k_j        "p2c": which words are looked for at this distance

all divided by sqrt(d * 3), for there are three of them (a model may have fewer). Near offsets have a row of the table
each; with log buckets far ones share a row, the more the farther. So no text is too long. The rest of a block is that
of BERT.

Here: the body and the masked-LM head; also models that have absolute positions besides, or token types. Not here: the
convolution of deberta-v2-xlarge, the enhanced mask decoder, v3's pretraining, classification heads (classify/head.py).
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InputError
from .bert import BertLayer, Encoder, MaskedLMHead
from .config import REQUIRED, choose, multiple, read_config
from .layers import ACTIVATIONS, merge_heads, split_heads

TERMS = ("c2p", "p2c")


def log_bucket(offset, buckets, most):
    """Offsets (any shape) -> signed buckets: up to buckets / 2 an offset is its own, beyond they grow as its logarithm.

    most: at the offset most - 1 bucket number buckets - 1 is reached; what lies farther gets numbers beyond it.
    In fp32, as models were trained: where the quotient should be a whole number, its rounding decides between two.
    """
    middle = buckets // 2
    far = (offset.abs().clamp(min=middle).float() / middle).log()
    whole = torch.tensor((most - 1) / middle, dtype=torch.float32).log()
    far = torch.ceil(far / whole * (middle - 1)) + middle
    return torch.where(offset.abs() <= middle, offset, (far * offset.sign()).long())


def table_row(offset, buckets, most):
    """Offsets query - key (any shape) -> rows of the table, 0 to 2 * span - 1; offset 0 is in the middle, at span.

    buckets: 0 for none, then there is a row for each offset and those from `most` on share the outermost.
    """
    span = buckets or most
    return ((log_bucket(offset, buckets, most) if buckets else offset) + span).clamp(0, 2 * span - 1)


def disentangled_attention(q, k, v, position_k, position_q, column, rows, heads, dropout):
    """Attention with scores for words and for offsets, each token over the real tokens of its own row.

    q, k, v: (N, H*d) packed, q of the tokens that ask. position_k, position_q: (P, H*d), the keys and queries of the P
    offsets in use; None: this model has no such score. column: (B or 1, T, S), which of the P it is for query and key.
    -> (N, H*d).
    """
    q, (k, v) = split_heads(q, rows, heads), (split_heads(x, rows.whole, heads) for x in (k, v))       # (B, H, T, d)
    k, v = rows.recall(k, v)                                                             # (B, H, S, d)
    terms = 1 + (position_k is not None) + (position_q is not None)
    scale = 1 / math.sqrt(q.shape[-1] * terms)
    column = column.unsqueeze(1).expand(len(q), heads, -1, -1)                           # (B, H, T, S)
    bias = q.new_zeros(1, 1, 1, k.shape[2])
    # Scaled before the products: the sums of unscaled ones leave the range of fp16.
    if position_k is not None:
        offsets = position_k.unflatten(-1, (heads, -1)).transpose(0, 1) * scale          # (H, P, d)
        bias = bias + (q @ offsets.mT).gather(-1, column)                                # (B, H, T, P) -> (B, H, T, S)
    if position_q is not None:
        offsets = position_q.unflatten(-1, (heads, -1)).transpose(0, 1) * scale          # (H, P, d)
        bias = bias + (offsets @ k.mT).gather(-2, column)                                # (B, H, P, S) -> (B, H, T, S)
    if rows.key_mask is not None:
        bias = bias.masked_fill(~rows.key_mask, float("-inf"))
    return merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale), rows)


def disentangled_attention_by_hand(q, k, v, table_k, table_q, rows, heads, buckets, most):
    """What `disentangled_attention` computes, pair by pair of places (no dropout). Far slower; a test holds them equal.

    table_k, table_q: (2 * span, H*d), keys and queries of the whole table, or None.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in (q, k, v))                          # (N, H, d)
    tables = [None if x is None else x.unflatten(-1, (heads, -1)) for x in (table_k, table_q)]    # (2 * span, H, d)
    seen, begin = [], 0
    for length in rows.lengths.tolist():
        row, begin = range(begin, begin + length), begin + length                        # the places of a text's tokens
        for i in row:
            scores = []
            for j in row:
                P = int(table_row(torch.tensor(i - j), buckets, most))
                pairs = [(q[i], k[j])]                                                   # (H, d) each
                pairs += [(q[i], tables[0][P])] if table_k is not None else []
                pairs += [(tables[1][P], k[j])] if table_q is not None else []
                scale = 1 / math.sqrt(q.shape[-1] * len(pairs))
                scores.append(sum((a * scale * b).sum(-1) for a, b in pairs))            # (H,)
            scores = torch.stack(scores).to(torch.promote_types(q.dtype, torch.float32))  # (T, H)
            weights = scores.softmax(0).to(v.dtype)
            seen.append((weights.unsqueeze(-1) * v[row.start:row.stop]).sum(0).flatten())     # (H*d,)
    return torch.stack(seen)                                                             # (N, H*d)


class DebertaLayer(BertLayer):
    """BERT's block with disentangled attention. Offsets become keys and queries by the same matrices as words do
    (share_att_key, all of v3), or by two of their own."""

    def __init__(self, c):
        super().__init__(c)
        D, self.shared, self.terms = c["hidden_size"], c["share_att_key"], c["pos_att_type"]
        self.pos_key_proj = nn.Linear(D, D) if "c2p" in self.terms and not self.shared else None
        self.pos_query_proj = nn.Linear(D, D) if "p2c" in self.terms and not self.shared else None

    def project(self, table):
        """(P, D) -> keys and queries of the offsets, (P, D) each; None where the model has no such score."""
        key, query = (self.k_proj, self.q_proj) if self.shared else (self.pos_key_proj, self.pos_query_proj)
        return key(table) if "c2p" in self.terms else None, query(table) if "p2c" in self.terms else None

    def forward(self, x, rows, table, column):
        """x: (N, D) packed, table: (P, D) the offsets in use, column: (B or 1, T, S) -> (N, D)."""
        p, asking = self.attention_dropout if self.training else 0.0, rows.asking(x)
        position_k, position_q = self.project(self.dropout(table))                            # (P, D), for all rows
        seen = disentangled_attention(self.q_proj(asking), self.k_proj(x), self.v_proj(x),    # the change from BERT
                                      position_k, position_q, column, rows, self.heads, p)    # (N, D)
        x = self.attention_norm(asking + self.dropout(self.o_proj(seen)))
        return self.mlp_norm(x + self.dropout(self.down_proj(self.activation(self.up_proj(x)))))   # (N, D)


class Deberta(Encoder):
    """The DeBERTa body: ids -> one vector for each token, and, where the checkpoint has it, the masked-LM head."""

    # The defaults are transformers': a config.json that is silent about relative_attention means a model without.
    FIELDS = dict(vocab_size=REQUIRED, hidden_size=REQUIRED, num_hidden_layers=REQUIRED, num_attention_heads=REQUIRED,
                  intermediate_size=REQUIRED, hidden_act="gelu", max_position_embeddings=512, type_vocab_size=0,
                  layer_norm_eps=1e-7, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
                  relative_attention=False, pos_att_type=[], share_att_key=False, norm_rel_ebd="none",
                  position_buckets=-1, max_relative_positions=-1, position_biased_input=True, legacy=True,
                  pooler_hidden_act="gelu", pooler_dropout=0.0, cls_dropout=None,
                  pooler_hidden_size=None, embedding_size=None, attention_head_size=None)
    FIXED = dict(conv_kernel_size=0, tie_word_embeddings=True)
    INERT = ("conv_act", "conv_groups")         # of the convolution, which is not there
    ARCHITECTURES = {"body": "DebertaV2Model", "lm_head": "DebertaV2ForMaskedLM",
                     "classifier": "DebertaV2ForSequenceClassification"}
    SPELLINGS = (("", "deberta."),)             # a file of the body alone may leave the prefix out
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
        "deberta.embeddings.word_embeddings._weight": None,         # left over from pretraining, in files of v3
        "deberta.embeddings.position_embeddings._weight": None,
        "mask_predictions.*": None,             # v3 was trained to tell replaced tokens: that head is not built
    }
    # One head under two names: Microsoft's, which transformers writes if "legacy" is false, and transformers' own. Both
    # are read; of two names for one parameter the last is written.
    MICROSOFT = {"lm_predictions.lm_head.dense": "lm_head.dense", "lm_predictions.lm_head.LayerNorm": "lm_head.norm",
                 "lm_predictions.lm_head.bias": "lm_head.bias"}
    LEGACY = {"cls.predictions.transform.dense": "lm_head.dense", "cls.predictions.transform.LayerNorm": "lm_head.norm",
              "cls.predictions.bias": "lm_head.bias"}
    LM_NAMES = MICROSOFT | LEGACY
    LM_TIES = {"cls.predictions.decoder.weight": "word_embeddings.weight",
               "cls.predictions.decoder.bias": "lm_head.bias"}

    def __init__(self, c, lm_head):
        super().__init__()
        self.config, self.width = c, c["hidden_size"]
        D, eps = self.width, c["layer_norm_eps"]
        absolute, types = c["position_biased_input"], c["type_vocab_size"]
        self.buckets = max(c["position_buckets"], 0)
        self.most = c["max_relative_positions"] if c["max_relative_positions"] > 0 else c["max_position_embeddings"]
        self.word_embeddings = nn.Embedding(c["vocab_size"], D)
        self.position_embeddings = nn.Embedding(c["max_position_embeddings"], D) if absolute else None
        self.type_embeddings = nn.Embedding(types, D) if types else None
        self.embedding_norm = nn.LayerNorm(D, eps=eps)
        self.dropout = nn.Dropout(c["hidden_dropout_prob"])
        self.rel_embeddings = nn.Embedding(2 * (self.buckets or self.most), D)
        self.rel_norm = nn.LayerNorm(D, eps=eps) if c["norm_rel_ebd"] == "layer_norm" else nn.Identity()
        self.layers = nn.ModuleList(DebertaLayer(c) for _ in range(c["num_hidden_layers"]))
        self.lm_head = MaskedLMHead(c, c["hidden_act"]) if lm_head else None
        self.max_tokens = c["max_position_embeddings"] if absolute else None
        self.head_dropout = c["hidden_dropout_prob"] if c["cls_dropout"] is None else c["cls_dropout"]
        if not absolute:                        # Microsoft's files may hold them all the same
            self.NAMES = self.NAMES | {"deberta.embeddings.position_embeddings": None}
        if not c["legacy"]:
            self.LM_NAMES = self.LEGACY | self.MICROSOFT

    @classmethod
    def from_config(cls, config, lm_head=False, where="config.json"):
        """A model with fresh weights from a parsed config.json; `where` names the file in errors."""
        terms = config.get("pos_att_type") or []
        terms = [term.strip() for term in terms.lower().split("|")] if isinstance(terms, str) else terms
        c = read_config({**config, "pos_att_type": terms}, cls.FIELDS, cls.FIXED, where, cls.INERT)
        check_config(c, where)
        return cls(c, lm_head)

    def embed(self, ids, rows, types):
        """ids (B, T) -> (N, D): word, and position and token type where the model has them, normalised."""
        x = self.word_embeddings(rows.pack(ids))                                                    # (N, D)
        if self.position_embeddings is not None:
            self.check_length(rows)
            x = x + self.position_embeddings(rows.positions)
        if self.type_embeddings is not None:
            types = torch.zeros_like(ids) if types is None else types
            if int(types.max()) >= self.type_embeddings.num_embeddings:
                raise InputError(f"token type {int(types.max())}: this model has {self.type_embeddings.num_embeddings} "
                                 f"token type(s), numbered from 0")
            x = x + self.type_embeddings(rows.pack(types))
        return self.dropout(self.embedding_norm(x))

    def offsets(self, rows):
        """The rows of the table that this batch needs, and which of them each query needs for each key.

        -> (P, D), normalised, and (B or 1, T, S) of numbers below P. The distances of all pairs are only 2L - 1 for a
        longest text of L tokens, fewer if buckets join them; more with a prefix, whose tokens stand before the text.
        """
        least, most, device = 1 - int(rows.whole.lengths.max()), int(rows.positions.max()), rows.grid.device
        # On the CPU, so that one and the same logarithm chooses the buckets wherever the model is.
        needed = table_row(torch.arange(least, most + 1, device="cpu"), self.buckets, self.most)     # (2L - 1,)
        needed, column = (x.to(device) for x in needed.unique(return_inverse=True))                  # (P,), (2L - 1,)
        behind = rows.behind().clamp(min=least)             # a padded query before its text may be farther from the end
        return self.rel_norm(self.rel_embeddings(needed)), column[behind - least]

    def forward(self, ids, mask, types=None, read=None):
        """ids, mask, types: (B, T) -> hidden (B, T, D), zeros at padding. mask is 1 where a token is.

        types: as in BERT; a model with type_vocab_size 0, as all of v3, has no use for them. read: as in `states`.
        """
        rows = self.rows(mask, read)
        x, offsets = self.embed(ids, rows, types), self.offsets(rows)                               # (N, D)
        for layer, at in rows.through(self.layers):
            offsets = offsets if at is rows else self.offsets(at)       # to one token of a row: about half as many
            x = layer(x, at, *offsets)
        return rows.read_from(x)                                                                    # (B, T, D)


def check_config(c, where):
    """The fields that must fit each other, or that say less than all that transformers knows; else an InputError."""
    D, H, buckets = c["hidden_size"], c["num_attention_heads"], c["position_buckets"]
    for key in ("hidden_act", "pooler_hidden_act"):
        choose(ACTIVATIONS, c[key], key, where)
    choose({"none": None, "layer_norm": None}, c["norm_rel_ebd"], "norm_rel_ebd", where)
    for term in c["pos_att_type"]:
        choose(dict.fromkeys(TERMS), term, "pos_att_type", where)
    if not c["relative_attention"]:
        raise InputError(f"{where}: relative_attention = false (only true is built; where it is missing, it is false)")
    multiple(c, "hidden_size", "num_attention_heads", where)
    for key, built in (("embedding_size", D), ("pooler_hidden_size", D), ("attention_head_size", D // H)):
        if c[key] not in (None, built):
            raise InputError(f"{where}: {key} = {c[key]} (only {built} is built for hidden_size {D} and {H} heads)")
    most = c["max_relative_positions"] if c["max_relative_positions"] > 0 else c["max_position_embeddings"]
    if buckets == 1 or most - 1 <= buckets // 2:
        raise InputError(f"{where}: position_buckets = {buckets} with {most} relative positions: there must be 2 or "
                         f"more buckets, and half of them fewer than {most - 1}")
