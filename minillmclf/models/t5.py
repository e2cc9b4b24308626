"""The encoder-decoder: T5 (Raffel et al. 2019, "Exploring the Limits of Transfer Learning with a
Unified Text-to-Text Transformer"), T5 1.1 and FLAN-T5 (Chung et al. 2022), UL2 (Tay et al. 2022).

An encoder reads the source, every token seeing every other. A decoder writes the target: a token
sees those before it and, through cross-attention, the whole source. Blocks are pre-norm:
x = x + attention(norm(x)); x = x + mlp(norm(x)). Tokens have no position embeddings; instead, a
learned number for each head and bucket of distances is added to the attention scores, which are not
divided by sqrt(d). T5 1.1 has a gate in its MLP (Shazeer 2020).

Here: the whole model with its language-model head. Not here: its blocks and stacks (t5_layers.py),
classification heads (classify/head.py), writing text (cache.py), span corruption
(pretrain/losses.py), float16 (T5's states exceed 65504).
"""
import torch
from torch import nn

from ..errors import InputError
from .backbone import Backbone
from .config import REQUIRED, look_up, read_config
from .layers import Rows
from .t5_layers import (DecoderLayer, DecoderStack, EncoderStack, GatedDecoderLayer, GatedLayer,
                        T5Layer)


def attention_names(file, ours):
    """Rows of NAMES for one attention. file, ours: its prefix in the file, and here."""
    return {f"{file}.{letter}": f"{ours}.{letter}_proj" for letter in "qkvo"}


def mlp_names(**names):
    """Rows of NAMES for the MLPs of both stacks. names: name in the file = name here."""
    return {f"{stack}.block.{{}}.layer.{place}.DenseReluDense.{file}": f"{stack}.layers.{{}}.{ours}"
            for stack, place in (("encoder", 1), ("decoder", 2)) for file, ours in names.items()}


SHARED_NAMES = {                # rows that T5 and GatedT5 share
    "shared": "word_embeddings",
    **attention_names("encoder.block.{}.layer.0.SelfAttention", "encoder.layers.{}.attention"),
    "encoder.block.{}.layer.0.layer_norm": "encoder.layers.{}.attention_norm",
    "encoder.block.{}.layer.1.layer_norm": "encoder.layers.{}.mlp_norm",
    "encoder.final_layer_norm": "encoder.final_norm",
    **attention_names("decoder.block.{}.layer.0.SelfAttention", "decoder.layers.{}.attention"),
    "decoder.block.{}.layer.0.layer_norm": "decoder.layers.{}.attention_norm",
    **attention_names("decoder.block.{}.layer.1.EncDecAttention",
                      "decoder.layers.{}.cross_attention"),
    "decoder.block.{}.layer.1.layer_norm": "decoder.layers.{}.cross_norm",
    "decoder.block.{}.layer.2.layer_norm": "decoder.layers.{}.mlp_norm",
    "decoder.final_layer_norm": "decoder.final_norm",
    # stored in block 0, for all blocks
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias": "encoder.relative_bias",
    "decoder.block.0.layer.0.SelfAttention.relative_attention_bias": "decoder.relative_bias",
    # unused, in old files; then a head, which classify/ reads
    "decoder.block.{}.layer.1.EncDecAttention.relative_attention_bias": None,
    "classification_head.dense": None,
    "classification_head.out_proj": None,
}


class T5(Backbone):
    """T5 1.0: source and target ids -> one vector for each token of the target.

    Its logits are (D^-0.5 * states) times the word embeddings; T5 1.1 has a matrix of its own.
    """

    KIND = "encoder-decoder"
    FIELDS = dict(
        vocab_size=REQUIRED, d_model=REQUIRED, d_kv=REQUIRED, d_ff=REQUIRED, num_layers=REQUIRED,
        num_heads=REQUIRED, num_decoder_layers=None, relative_attention_num_buckets=32,
        relative_attention_max_distance=128, layer_norm_epsilon=1e-6, dropout_rate=0.1,
        classifier_dropout=0.0, feed_forward_proj="relu", tie_word_embeddings=True,
        decoder_start_token_id=0, scale_decoder_outputs=True)
    FIXED = dict(is_encoder_decoder=True)
    INERT = ("n_positions",)
    DERIVED = {"num_decoder_layers": lambda c: c["num_layers"]}
    RULES = (
        lambda c: not 4 <= c["relative_attention_num_buckets"]
        < 2 * c["relative_attention_max_distance"]
        and f"relative_attention_num_buckets {c['relative_attention_num_buckets']} should be 4 or "
        "more and less than twice relative_attention_max_distance "
        f"{c['relative_attention_max_distance']}",
        lambda c: c["decoder_start_token_id"] >= c["vocab_size"]
        and f"decoder_start_token_id {c['decoder_start_token_id']} should lie below vocab_size "
        f"{c['vocab_size']}")
    WIDTH_FIELD = "d_model"
    DEPTH_FIELDS = {"encoder.layers": "num_layers", "decoder.layers": "num_decoder_layers"}
    ARCHITECTURES = {"body": "T5Model", "lm_head": "T5ForConditionalGeneration",
                     "classifier": "T5ForSequenceClassification"}
    CLASSIFIER_PREFIX, BLOCKS_PATH = "transformer.", "decoder.layers"
    FULL_PRECISION = ("down_proj",)            # its results are T5's largest numbers
    ALIASES = ((CLASSIFIER_PREFIX, ""),)
    NAMES = SHARED_NAMES | mlp_names(wi="up_proj", wo="down_proj")
    LM_NAMES = {"lm_head": "lm_head"}
    TIES = dict.fromkeys(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
                         "word_embeddings.weight")
    LM_TIES = {"lm_head.weight": "word_embeddings.weight"}     # if tied and scaled
    LAYER_CLASSES = (T5Layer, DecoderLayer)

    def __init__(self, c, lm_head):
        super().__init__()
        self.config, self.width, self.head_dropout = c, c["d_model"], c["classifier_dropout"]
        self.word_embeddings = nn.Embedding(c["vocab_size"], self.width)
        self.dropout = nn.Dropout(c["dropout_rate"])
        self.encoder = EncoderStack(c, self.LAYER_CLASSES[0], c["num_layers"])
        self.decoder = DecoderStack(c, self.LAYER_CLASSES[1], c["num_decoder_layers"])
        self.tied, scaled = c["tie_word_embeddings"], c["scale_decoder_outputs"]
        self.output_scale = self.width ** -0.5 if scaled else 1.0
        # transformers 5 writes "tied" into all files; without a scale lm_head.weight is no copy
        copied = self.tied and scaled
        self.LM_TIES = T5.LM_TIES if copied else {}
        has_own_head = lm_head and not copied
        self.lm_head = nn.Linear(self.width, c["vocab_size"], bias=False) if has_own_head else None

    @classmethod
    def from_config(cls, config, lm_head=False, where="config.json"):
        """As for every family; a T5 or a GatedT5, by `feed_forward_proj`."""
        name = config.get("feed_forward_proj", "relu")
        kind, activation = look_up(FEED_FORWARD, name, "feed_forward_proj", where)
        # older files do not say whether logits are scaled: they are where embeddings are tied
        config = {"scale_decoder_outputs": config.get("tie_word_embeddings", True), **config}
        c = read_config(config, cls, where, dense_act_fn=activation,
                        is_gated_act=name.startswith("gated-"))
        return kind(c | {"dense_act_fn": activation}, lm_head)

    def initial_std(self):
        """Standard deviations of newly initialised weights, by the last part of a module's name:
        those of Mesh-TensorFlow. Queries start small, because scores are not divided by sqrt(d)."""
        c = self.config
        D, d, inner = c["d_model"], c["d_kv"], c["num_heads"] * c["d_kv"]
        like_width = ("k_proj", "v_proj", "up_proj", "gate_proj", "relative_bias")
        return dict.fromkeys(like_width, D ** -0.5) | {
            "q_proj": (D * d) ** -0.5, "o_proj": inner ** -0.5, "down_proj": c["d_ff"] ** -0.5,
            "word_embeddings": 1.0, "lm_head": 1.0}

    # ------------------------------------------------------------------------- source

    def embed(self, ids, rows, types=None):
        """ids (B, T) -> (N, D). Both stacks share one table."""
        x, device = self.dropout(self.word_embeddings(rows.unpad(ids))), ids.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        if torch.float16 in (dtype, x.dtype):
            raise InputError("T5's states may pass 65504, the largest float16: use bfloat16 or "
                             "float32")
        return x

    def read_source(self, ids, mask, layout=None):
        """ids, mask: (B, S) -> the encoder's output, memory (N, D), and its rows."""
        rows = Rows(mask, layout)
        return self.encoder(self.embed(ids, rows), rows), rows

    def encode(self, ids, mask):
        """ids, mask: (B, S) -> memory (B, S, D), zeros at padding."""
        memory, rows = self.read_source(ids, mask)
        return rows.pad(memory)

    def decoder_context(self, memory, rows):
        """What the decoder needs of a source, computed once: {block: its keys and values of the
        source}, and the padding mask. memory: (N, D), of the encoder; rows: of the source."""
        return {layer: layer.cross_attention.keys_values(memory, rows)
                for layer in self.decoder.layers}, rows.padding_mask

    # ------------------------------------------------------------------------- target

    def shift_right(self, ids, mask, layout=None):
        """What the decoder reads to write a text: the start token, then all tokens but the last.

        ids, mask: (B, T) -> (B, T), 0 at padding. Padding may stand on either side.
        """
        rows, start = Rows(mask, layout), self.config["decoder_start_token_id"]
        before = rows.unpad(ids).roll(1)                                         # (N,)
        return rows.pad(before.masked_fill(rows.positions == 0, start))

    def prepare(self, ids, mask, types=None, layout=None):
        """For a classifier, which reads the decoder's states: the text is source and target."""
        context = self.decoder_context(*self.read_source(ids, mask, layout))
        rows = self.make_rows(mask, layout)
        return self.embed(self.shift_right(ids, mask, layout), rows), rows, context

    def run(self, layers, x, rows, context):
        """x: (N, D) through some of the decoder's blocks -> (M, D). context: `decoder_context`."""
        return self.decoder.run(layers, x, rows, *context)

    def finish(self, x):
        return self.decoder.dropout(self.decoder.final_norm(x))

    def decode(self, decoder_ids, decoder_mask, memory, memory_mask):
        """Target ids and mask (B, T), memory (B, S, D) and mask (B, S) -> hidden (B, T, D)."""
        rows, source = self.make_rows(decoder_mask), Rows(memory_mask)
        context = self.decoder_context(source.unpad(memory), source)
        return rows.pad(self.hidden_states(decoder_ids, rows, context))

    def forward(self, ids, mask, decoder_ids, decoder_mask):
        """Source ids and mask (B, S), target ids, shifted right, and mask (B, T) -> (B, T, D)."""
        return self.decode(decoder_ids, decoder_mask, self.encode(ids, mask), mask)

    def prepare_prompt(self, ids, mask):
        """Source ids and mask (B, S) -> start token ids and their mask (B, 1), context."""
        start = ids.new_full((len(ids), 1), self.config["decoder_start_token_id"])
        return start, torch.ones_like(start), self.decoder_context(*self.read_source(ids, mask))

    def logits(self, hidden):
        """hidden (..., D) -> logits over the vocabulary (..., V)."""
        return super().logits(hidden * self.output_scale)


class GatedT5(T5):
    """T5 1.1, FLAN-T5 and UL2: as T5, with gated MLPs."""

    NAMES = SHARED_NAMES | mlp_names(wi_0="gate_proj", wi_1="up_proj", wo="down_proj")
    LAYER_CLASSES = (GatedLayer, GatedDecoderLayer)


# feed_forward_proj -> class, activation
FEED_FORWARD = {"relu": (T5, "relu"), "gated-gelu": (GatedT5, "gelu_new"),
                "gated-silu": (GatedT5, "silu"), "gelu": (T5, "gelu"),
                "gated-relu": (GatedT5, "relu")}
