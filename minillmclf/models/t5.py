"""The encoder-decoder: T5 (Raffel et al. 2019, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer"), T5 1.1 and FLAN-T5 (Chung et al. 2022), UL2 (Tay et al. 2022).

An encoder reads the source, every token seeing every other. A decoder writes the target: each token sees those before
it and, through cross-attention, the whole source. Blocks are "pre-norm": x = x + attention(norm(x)); x = x +
mlp(norm(x)). No position is added to a token: a learned number per head and distance is added to the attention scores
(distances fall into buckets), which are not divided by sqrt(d). T5 1.1 gates its MLP (Shazeer 2020).

Here: both stacks and the language-model head. Not here: classification heads (classify/head.py), writing text
(cache.py), span corruption (training/losses.py), float16: T5's states pass its largest number, 65504.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InputError
from .backbone import Backbone
from .config import REQUIRED, choose, read_config
from .layers import ACTIVATIONS, RMSNorm, Rows, merge_heads, split_heads


def distance_buckets(distance, count, most):
    """Distances from 0 up -> buckets 0 .. count - 1: half of them for one distance each, the others as wide as the
    logarithm makes them; all distances from `most` on are in the last.
    """
    exact = count // 2
    wide = torch.log(distance.clamp(min=1).float() / exact) / math.log(most / exact) * (count - exact)
    return torch.where(distance < exact, distance, (exact + wide.long()).clamp(max=count - 1))


def biased_attention(q, k, v, bias, dropout):
    """softmax(q k^T + bias) v, without 1 / sqrt(d): T5's initial weights are smaller instead.

    q: (B, H, T, d), k and v: (B, H, S, d); bias: added to the scores, -inf where a key must not be seen, or None.
    dropout: probability on the attention weights, 0.0 outside training. -> (B, H, T, d).
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=1.0)


def biased_attention_by_hand(q, k, v, bias):
    """What `biased_attention` computes, a step a line (no dropout). Slower; a test holds the two equal."""
    scores = q @ k.transpose(-2, -1)                                                  # (B, H, T, S)
    scores = scores if bias is None else scores + bias
    return scores.softmax(-1) @ v                                                     # (B, H, T, d)


class T5Attention(nn.Module):
    """Queries of one text, keys and values of the same text or of another; heads of any width, no biases."""

    def __init__(self, c):
        super().__init__()
        self.heads, self.p = c["num_heads"], c["dropout_rate"]
        D, inner = c["d_model"], c["num_heads"] * c["d_kv"]                           # inner need not be D
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(D, inner, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(inner, D, bias=False)

    def keys(self, x, rows):
        """x: (N, D) packed in `rows` -> keys and values, (B, H, S, d) each."""
        return split_heads(self.k_proj(x), rows, self.heads), split_heads(self.v_proj(x), rows, self.heads)

    def forward(self, x, rows, k, v, bias):
        """x: (N, D) packed in `rows`, asks; k, v: (B, H, S, d) answer; bias as in `biased_attention`. -> (N, D)."""
        q = split_heads(self.q_proj(x), rows, self.heads)                             # (B, H, T, d)
        return self.o_proj(merge_heads(biased_attention(q, k, v, bias, self.p if self.training else 0.0), rows))


class T5Layer(nn.Module):
    """A block of the encoder: attention over the text, then an MLP at each token; each reads a normalised x."""

    def __init__(self, c):
        super().__init__()
        D, inner, eps = c["d_model"], c["d_ff"], c["layer_norm_epsilon"]
        self.attention, self.attention_norm = T5Attention(c), RMSNorm(D, eps)
        self.up_proj, self.down_proj = nn.Linear(D, inner, bias=False), nn.Linear(inner, D, bias=False)
        self.mlp_norm, self.dropout = RMSNorm(D, eps), nn.Dropout(c["dropout_rate"])
        self.activation = ACTIVATIONS[c["dense_act_fn"]]

    def attend(self, x, rows, bias):
        """Self-attention of the tokens that ask, added: (N, D) -> (N, D)."""
        seen = self.attention_norm(x)
        k, v = rows.recall(*self.attention.keys(seen, rows.whole))                    # (B, H, S, d)
        return rows.asking(x) + self.dropout(self.attention(rows.asking(seen), rows, k, v, bias))

    def expand(self, x):
        """What the MLP holds inside: (N, D) -> (N, F)."""
        return self.activation(self.up_proj(x))

    def mlp(self, x):
        """The MLP, added: (N, D) -> (N, D)."""
        return x + self.dropout(self.down_proj(self.dropout(self.expand(self.mlp_norm(x)))))

    def forward(self, x, rows, bias):
        """x: (N, D) packed -> (N, D)."""
        return self.mlp(self.attend(x, rows, bias))


class GatedLayer(T5Layer):
    """The block of T5 1.1 and UL2: the MLP's inner values are multiplied with a gate."""

    def __init__(self, c):
        super().__init__(c)
        self.gate_proj = nn.Linear(c["d_model"], c["d_ff"], bias=False)

    def expand(self, x):
        return self.activation(self.gate_proj(x)) * self.up_proj(x)                   # differs: T5Layer


class DecoderLayer(T5Layer):
    """A block of the decoder: between self-attention and MLP, it looks at the source."""

    def __init__(self, c):
        super().__init__(c)
        self.cross_attention, self.cross_norm = T5Attention(c), RMSNorm(c["d_model"], c["layer_norm_epsilon"])

    def forward(self, x, rows, bias, source, source_bias):
        """x: (N, D) packed; source: keys and values of the source, (B, H, S, d) each; source_bias: (B, 1, 1, S)."""
        x = self.attend(x, rows, bias)
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), rows, *source, source_bias))  # differs: T5Layer
        return self.mlp(x)


class GatedDecoderLayer(GatedLayer, DecoderLayer):
    """The gate of the one, the cross-attention of the other."""


class EncoderStack(nn.Module):
    """A stack of blocks, the one table of biases that they all share, and a norm at the end."""

    def __init__(self, c, layer, count):
        super().__init__()
        self.buckets, self.most = c["relative_attention_num_buckets"], c["relative_attention_max_distance"]
        self.relative_bias = nn.Embedding(self.buckets, c["num_heads"])
        self.layers = nn.ModuleList(layer(c) for _ in range(count))
        self.final_norm = RMSNorm(c["d_model"], c["layer_norm_epsilon"])
        self.dropout = nn.Dropout(c["dropout_rate"])

    def bias(self, rows):
        """(B or 1, H, T, S), added to all scores. Half of the buckets are for keys behind the query."""
        behind, half = rows.behind(), self.buckets // 2                               # (B or 1, T, S)
        bucket = distance_buckets(behind.abs(), half, self.most) + half * (behind < 0)
        bias = self.relative_bias(bucket).permute(0, 3, 1, 2)                         # (B or 1, H, T, S)
        return bias if rows.key_mask is None else bias.masked_fill(~rows.key_mask, -math.inf)

    def forward(self, x, rows):
        """x: (N, D) packed -> (N, D)."""
        x, bias = self.dropout(x), self.bias(rows)
        for layer in self.layers:
            x = layer(x, rows, bias)
        return self.dropout(self.final_norm(x))


class DecoderStack(EncoderStack):
    """The same with a look at the source; all buckets are for keys behind the query, since none after it is seen."""

    def bias(self, rows):
        bucket = distance_buckets(rows.behind().clamp(min=0), self.buckets, self.most)    # differs: EncoderStack
        return self.relative_bias(bucket).permute(0, 3, 1, 2).masked_fill(~rows.causal(), -math.inf)

    def forward(self, x, rows, sources, source_mask):
        """x: (N, D) packed; sources: a (k, v) for each block; source_mask: (B, 1, 1, S) or None. -> (N, D)."""
        x, bias = self.dropout(x), self.bias(rows)
        unseen = None if source_mask is None else x.new_zeros(source_mask.shape).masked_fill(~source_mask, -math.inf)
        for (layer, at), source in zip(rows.through(self.layers), sources, strict=True):
            bias = bias if at is rows else self.bias(at)                              # of one token of a row
            x = layer(x, at, bias, source, unseen)
        return self.dropout(self.final_norm(x))


def attention_names(file, ours):
    """The rows of one attention."""
    return {f"{file}.{letter}": f"{ours}.{letter}_proj" for letter in "qkvo"}


def mlp_names(**names):
    """The rows of the MLPs of both stacks: name in the file = name here."""
    return {f"{stack}.block.{{}}.layer.{place}.DenseReluDense.{file}": f"{stack}.layers.{{}}.{ours}"
            for stack, place in (("encoder", 1), ("decoder", 2)) for file, ours in names.items()}


BOTH_NAMES = {
    "shared": "word_embeddings",
    **attention_names("encoder.block.{}.layer.0.SelfAttention", "encoder.layers.{}.attention"),
    "encoder.block.{}.layer.0.layer_norm": "encoder.layers.{}.attention_norm",
    "encoder.block.{}.layer.1.layer_norm": "encoder.layers.{}.mlp_norm",
    "encoder.final_layer_norm": "encoder.final_norm",
    **attention_names("decoder.block.{}.layer.0.SelfAttention", "decoder.layers.{}.attention"),
    "decoder.block.{}.layer.0.layer_norm": "decoder.layers.{}.attention_norm",
    **attention_names("decoder.block.{}.layer.1.EncDecAttention", "decoder.layers.{}.cross_attention"),
    "decoder.block.{}.layer.1.layer_norm": "decoder.layers.{}.cross_norm",
    "decoder.block.{}.layer.2.layer_norm": "decoder.layers.{}.mlp_norm",
    "decoder.final_layer_norm": "decoder.final_norm",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias": "encoder.relative_bias",     # in block 0 alone
    "decoder.block.0.layer.0.SelfAttention.relative_attention_bias": "decoder.relative_bias",
    "decoder.block.{}.layer.1.EncDecAttention.relative_attention_bias": None,       # in old files, never used
    "classification_head.dense": None,
    "classification_head.out_proj": None,
}


class T5(Backbone):
    """T5 1.0: source and target ids -> one vector for each token of the target.

    The vocabulary's matrix is that of the word embeddings, applied to states times D^-0.5; T5 1.1 and later have one of
    their own, applied to the states as they are.
    """

    FIELDS = dict(vocab_size=REQUIRED, d_model=REQUIRED, d_kv=REQUIRED, d_ff=REQUIRED, num_layers=REQUIRED,
                  num_heads=REQUIRED, num_decoder_layers=None, relative_attention_num_buckets=32,
                  relative_attention_max_distance=128, layer_norm_epsilon=1e-6, dropout_rate=0.1,
                  classifier_dropout=0.0, feed_forward_proj="relu", tie_word_embeddings=True, decoder_start_token_id=0)
    FIXED = dict(is_encoder_decoder=True)
    WIDTH = "d_model"
    DEPTHS = {"encoder.layers": "num_layers", "decoder.layers": "num_decoder_layers"}
    ARCHITECTURES = {"body": "T5Model", "lm_head": "T5ForConditionalGeneration",
                     "classifier": "T5ForSequenceClassification"}
    CLASSIFIER_PREFIX, BLOCKS, ANSWERS = "transformer.", "decoder.layers", "apart"
    KEPT_WHOLE = ("down_proj",)                                # it makes T5's largest numbers; transformers keeps it too
    SPELLINGS = ((CLASSIFIER_PREFIX, ""),)
    NAMES = BOTH_NAMES | mlp_names(wi="up_proj", wo="down_proj")
    LM_NAMES = {"lm_head": "lm_head"}
    TIES = dict.fromkeys(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "word_embeddings.weight")
    LM_TIES = {"lm_head.weight": "word_embeddings.weight"}     # where tied and scaled
    LAYERS = (T5Layer, DecoderLayer)

    def __init__(self, c, lm_head):
        super().__init__()
        self.config, self.width, self.head_dropout = c, c["d_model"], c["classifier_dropout"]
        self.word_embeddings = nn.Embedding(c["vocab_size"], self.width)
        self.encoder = EncoderStack(c, self.LAYERS[0], c["num_layers"])
        self.decoder = DecoderStack(c, self.LAYERS[1], c["num_decoder_layers"])
        self.tied, scaled = c["tie_word_embeddings"], c["scale_decoder_outputs"]
        self.output_scale = self.width ** -0.5 if scaled else 1.0
        # transformers 5 writes "tied" into every file: if nothing is scaled, an lm_head.weight is a matrix of its own
        copied = self.tied and scaled
        self.LM_TIES = T5.LM_TIES if copied else {}
        self.lm_head = nn.Linear(self.width, c["vocab_size"], bias=False) if lm_head and not copied else None

    @classmethod
    def from_config(cls, config, lm_head=False, where="config.json"):
        """A model with fresh weights from a parsed config.json; `where` names the file in errors. -> T5 or GatedT5"""
        name = config.get("feed_forward_proj", "relu")
        kind, activation = choose(FEED_FORWARD, name, "feed_forward_proj", where)
        fields = cls.FIELDS | {"scale_decoder_outputs": config.get("tie_word_embeddings", True)}
        fixed = cls.FIXED | {"is_gated_act": name.startswith("gated-"), "dense_act_fn": activation}
        c = read_config(config, fields, fixed, where, inert=("n_positions",))
        c["dense_act_fn"] = activation
        c["num_decoder_layers"] = c["num_layers"] if c["num_decoder_layers"] is None else c["num_decoder_layers"]
        buckets, most = c["relative_attention_num_buckets"], c["relative_attention_max_distance"]
        if not 4 <= buckets < 2 * most:
            raise InputError(f"{where}: relative_attention_num_buckets {buckets} should be 4 or more and less than "
                             f"twice relative_attention_max_distance {most}")
        if c["decoder_start_token_id"] >= c["vocab_size"]:
            raise InputError(f"{where}: decoder_start_token_id {c['decoder_start_token_id']} should lie below "
                             f"vocab_size {c['vocab_size']}")
        return kind(c, lm_head)

    def initial_std(self):
        """Standard deviations of fresh weights, by the last part of a module's name: those of Mesh-TensorFlow. Queries
        start small, since attention does not divide its scores by sqrt(d)."""
        c = self.config
        D, d, inner = c["d_model"], c["d_kv"], c["num_heads"] * c["d_kv"]
        std = dict.fromkeys(("k_proj", "v_proj", "up_proj", "gate_proj", "relative_bias"), D ** -0.5)
        return std | {"q_proj": (D * d) ** -0.5, "o_proj": inner ** -0.5, "down_proj": c["d_ff"] ** -0.5,
                      "word_embeddings": 1.0, "lm_head": 1.0}

    def embed(self, ids, rows):
        """ids (B, T) -> (N, D). Both stacks share one table."""
        x = self.word_embeddings(rows.pack(ids))
        half = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        if torch.float16 in (half, x.dtype):
            raise InputError("T5's states may pass 65504, the largest float16: use bfloat16 or float32")
        return x

    def encode(self, ids, mask):
        """ids, mask: (B, S) -> memory (B, S, D), zeros at padding."""
        rows = Rows(mask)
        return rows.spread(self.encoder(self.embed(ids, rows), rows))

    def cross_keys(self, memory, source_rows):
        """memory: (B, S, D) -> [(k, v)] for each decoder block, (B, H, S, d) each: computed once for a source."""
        memory = source_rows.pack(memory)                                             # (N, D)
        return [layer.cross_attention.keys(memory, source_rows) for layer in self.decoder.layers]

    def context(self, memory, memory_mask):
        """What the decoder needs of a source: (cross keys, source mask (B, 1, 1, S), or None if nothing is padded)."""
        rows = Rows(memory_mask)
        return self.cross_keys(memory, rows), rows.key_mask

    def prompt(self, ids, mask):
        """Where writing begins: source ids and mask (B, S) -> start ids (B, 1), their mask (B, 1), context."""
        start = ids.new_full((len(ids), 1), self.config["decoder_start_token_id"])
        return start, torch.ones_like(start), self.context(self.encode(ids, mask), mask)

    def hidden(self, ids, rows, context):
        """Target ids (B, T), their rows, a source's context -> (N, D) packed."""
        return self.decoder(self.embed(ids, rows), rows, *context)

    def decode(self, decoder_ids, decoder_mask, memory, memory_mask, read=None):
        """Target (B, T), memory (B, S, D) and its mask (B, S) -> (B, T, D), zeros at padding. read: as in `states`."""
        rows = self.rows(decoder_mask, read)
        return rows.read_from(self.hidden(decoder_ids, rows, self.context(memory, memory_mask)))

    def forward(self, ids, mask, decoder_ids, decoder_mask, read=None):
        """Source ids and mask (B, S), target ids and mask (B, T), the target shifted right -> (B, T, D). read: as
        in `states`."""
        return self.decode(decoder_ids, decoder_mask, self.encode(ids, mask), mask, read)

    def shift_right(self, ids, mask):
        """What the decoder reads to write a text: each token moves a place to the right, the start token goes first.

        ids, mask: (B, T) -> (B, T), 0 at padding. Padding may stand on either side.
        """
        rows = Rows(mask)
        before = rows.pack(ids).roll(1)                                               # (N,)
        return rows.spread(before.masked_fill(rows.positions == 0, self.config["decoder_start_token_id"]))

    def states(self, ids, mask, types=None, read=None):
        """What a classifier reads, (B, T, D): the decoder's states, where source and target are the same text."""
        return self(ids, mask, self.shift_right(ids, mask), mask, read)

    def logits(self, hidden):
        """hidden (..., D) -> scores over the vocabulary (..., V)."""
        return super().logits(hidden * self.output_scale)


class GatedT5(T5):
    """T5 1.1, FLAN-T5 and UL2: as T5, with gated MLPs."""

    NAMES = BOTH_NAMES | mlp_names(wi_0="gate_proj", wi_1="up_proj", wo="down_proj")
    LAYERS = (GatedLayer, GatedDecoderLayer)


FEED_FORWARD = {"relu": (T5, "relu"), "gated-gelu": (GatedT5, "gelu_new"), "gated-silu": (GatedT5, "silu"),
                "gelu": (T5, "gelu"), "gated-relu": (GatedT5, "relu")}
