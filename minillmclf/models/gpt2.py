"""GPT-2 (Radford et al. 2019): the decoder that the later ones are compared with.

A token sees itself and the tokens before it, so the last one has read the whole text. Positions are
learned vectors. The block is pre-norm: x = x + attention(norm(x)); x = x + mlp(norm(x)), with one
more norm at the end.

Trap: the files hold every matrix of a block as (in, out), because the layer was once a convolution
of width one ("Conv1D"). Square matrices load silently either way; TRANSPOSED turns them. Queries,
keys and values come from one matrix.

Here: the body and its language-model head. Not here: cross-attention, the double-heads model,
classification heads (classify/head.py).
"""
from torch import nn

from .backbone import Decoder
from .config import REQUIRED
from .layers import ACTIVATIONS, causal_attention


class GPT2Layer(nn.Module):
    """One block: attention to what came before, then an MLP at each token."""

    def __init__(self, c, number):
        super().__init__()
        D, F = c["n_embd"], c["n_inner"]                     # F: inner width of the MLP
        self.attention_norm = nn.LayerNorm(D, eps=c["layer_norm_epsilon"])
        self.qkv_proj, self.o_proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.mlp_norm = nn.LayerNorm(D, eps=c["layer_norm_epsilon"])
        self.up_proj, self.down_proj = nn.Linear(D, F), nn.Linear(F, D)
        self.activation = ACTIVATIONS[c["activation_function"]]
        self.dropout, self.attention_dropout = nn.Dropout(c["resid_pdrop"]), c["attn_pdrop"]
        self.heads = c["n_head"]
        self.scale = (D // self.heads) ** -0.5 if c["scale_attn_weights"] else 1.0
        if c["scale_attn_by_inverse_layer_idx"]:
            self.scale = self.scale / (number + 1)

    def attend(self, x, rows):
        """x: (N, D) -> (M, D): x of the queries plus what they read from all tokens."""
        p = self.attention_dropout if self.training else 0.0
        qkv = self.qkv_proj(self.attention_norm(x))                                  # (N, 3*D)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).unbind(1)                   # (N, H, d)
        mixed = causal_attention(rows.queries(q), k, v, rows, dropout=p, scale=self.scale)
        return rows.queries(x) + self.dropout(self.o_proj(mixed))           # mixed: (M, D)

    def mlp(self, x):
        """x: (M, D) -> (M, D)."""
        inner = self.activation(self.up_proj(self.mlp_norm(x)))                      # (M, F)
        return x + self.dropout(self.down_proj(inner))

    def forward(self, x, rows):
        """x: (N, D) -> (M, D)."""
        return self.mlp(self.attend(x, rows))


class GPT2(Decoder):
    """The GPT-2 body: ids -> one vector for each token."""

    FIELDS = dict(
        vocab_size=REQUIRED, n_embd=REQUIRED, n_layer=REQUIRED, n_head=REQUIRED, n_positions=1024,
        n_inner=None, activation_function="gelu_new", layer_norm_epsilon=1e-5, embd_pdrop=0.1,
        resid_pdrop=0.1, attn_pdrop=0.1, scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False, tie_word_embeddings=True)
    # reorder_and_upcast_attn only changes the order and the rounding of the maths
    INERT = ("n_ctx", "reorder_and_upcast_attn", "summary_type", "summary_use_proj",
             "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
             "predict_special_tokens")
    CHOICES = {"activation_function": ACTIVATIONS}
    MULTIPLES = (("n_embd", "n_head"),)
    DERIVED = {"n_inner": lambda c: 4 * c["n_embd"]}
    WIDTH_FIELD, DEPTH_FIELDS = "n_embd", {"layers": "n_layer"}
    ARCHITECTURES = {"body": "GPT2Model", "lm_head": "GPT2LMHeadModel",
                     "classifier": "GPT2ForSequenceClassification"}
    ALIASES = (("", "transformer."),)           # the first files have no prefix
    TRANSPOSED = ("qkv_proj", "o_proj", "up_proj", "down_proj")
    NAMES = {
        "transformer.wte": "word_embeddings",
        "transformer.wpe": "position_embeddings",
        "transformer.h.{}.ln_1": "layers.{}.attention_norm",
        "transformer.h.{}.attn.c_attn": "layers.{}.qkv_proj",
        "transformer.h.{}.attn.c_proj": "layers.{}.o_proj",
        "transformer.h.{}.attn.bias": None,            # the causal mask, in spite of its name
        "transformer.h.{}.attn.masked_bias": None,
        "transformer.h.{}.ln_2": "layers.{}.mlp_norm",
        "transformer.h.{}.mlp.c_fc": "layers.{}.up_proj",
        "transformer.h.{}.mlp.c_proj": "layers.{}.down_proj",
        "transformer.ln_f": "final_norm",
        "score": None,
    }

    def __init__(self, c, lm_head):
        super().__init__()
        self.config, self.width, self.max_tokens = c, c["n_embd"], c["n_positions"]
        self.word_embeddings = nn.Embedding(c["vocab_size"], self.width)
        self.position_embeddings = nn.Embedding(c["n_positions"], self.width)
        self.dropout = nn.Dropout(c["embd_pdrop"])
        self.layers = nn.ModuleList(GPT2Layer(c, number) for number in range(c["n_layer"]))
        self.final_norm = nn.LayerNorm(self.width, eps=c["layer_norm_epsilon"])
        self.lm_head = self.build_lm_head(lm_head)

    def embed(self, ids, rows, types=None):
        """ids (B, T) -> (N, D). Positions count real tokens, wherever the padding stands."""
        self.check_length(rows)
        x = self.word_embeddings(rows.unpad(ids)) + self.position_embeddings(rows.positions)
        return self.dropout(x)

    def run(self, layers, x, rows, context=None):
        """x: (N, D) through some of the blocks -> (M, D)."""
        for layer in layers:
            x = layer(x, rows)
        return x
