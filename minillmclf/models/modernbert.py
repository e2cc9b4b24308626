"""ModernBERT (Warner et al. 2024, "Smarter, Better, Faster, Longer"): BERT's task, LLaMA's parts.

As in BERT every token looks both ways. As in LLaMA norms stand before attention and MLP, queries
and keys are rotated, the MLP has a gate (Shazeer 2020, "GeGLU"), and nothing has a bias. What is
its own: two layers of three are *local*, where a token sees those at most 64 positions away, on
either side. So a text of 8,192 tokens costs little more a token than a short one. Every third layer
is *global*, the first one too. Local and global layers rotate at different speeds.

Traps: `local_attention` counts both sides, 128 for 64. The first block has no norm before attention
(the embeddings were normalised just before). The pretrained head of masked words and the head of a
classifier have the same names in files, "head.dense" and "head.norm": only "decoder" tells.

Here: the body and the masked-LM head. Not here: the classification head
(classify/family_heads.py).
"""
from torch import nn

from .config import LAYER_TYPES, REQUIRED, layer_types_rule
from .encoder import Encoder, MaskedLMHead
from .half_attention import dot_product_attention
from .layers import ACTIVATIONS
from .rotary import cos_sin, read_two_ropes, rotate


def nearby_mask(rows, reach):
    """(B or 1, 1, T, S), True where a key is a token at most `reach` positions away from a query;
    None if every query sees all keys."""
    if rows.longest <= reach + 1:                             # no two tokens are farther apart
        return rows.padding_mask
    near = rows.distance().abs() <= reach                                       # (B or 1, T, S)
    return (near & rows.key_mask[:len(near), None, :]).unsqueeze(1)


def masked_attention(q, k, v, rows, seen, dropout=0.0):
    """layers.attention, where a query sees the keys that `seen` allows (None: all).

    q: (M, H, d); k, v: (N, H, d); seen: (B or 1, 1, T or 1, S) -> (M, H*d)
    """
    q, (k, v) = rows.pad_heads(q), rows.keys_values(k, v)        # (B, H, T, d), (B, H, S, d)
    return rows.merge_heads(dot_product_attention(
        q, k, v, attn_mask=seen, dropout_p=dropout))


def layer_norm(c):
    """A layer norm as config.json describes all of them, usually without a bias."""
    return nn.LayerNorm(c["hidden_size"], eps=c["norm_eps"], bias=c["norm_bias"])


class ModernBertLayer(nn.Module):
    """One block: x = x + attention(norm(x)); x = x + mlp(norm(x)). The first has one norm only."""

    def __init__(self, c, number):
        super().__init__()
        D, inner = c["hidden_size"], c["intermediate_size"]
        self.attention_norm = layer_norm(c) if number > 0 else nn.Identity()
        self.qkv_proj = nn.Linear(D, 3 * D, bias=c["attention_bias"])
        self.o_proj = nn.Linear(D, D, bias=c["attention_bias"])
        self.mlp_norm = layer_norm(c)
        self.gate_up_proj = nn.Linear(D, 2 * inner, bias=c["mlp_bias"])  # both in one matrix
        self.down_proj = nn.Linear(inner, D, bias=c["mlp_bias"])
        self.activation = ACTIVATIONS[c["hidden_activation"]]
        self.heads, self.kind = c["num_attention_heads"], c["layer_types"][number]
        self.dropout = nn.Dropout(c["attention_dropout"])
        self.mlp_dropout = nn.Dropout(c["mlp_dropout"])

    def attend(self, x, rows, rotation, seen):
        """x: (N, D) -> (M, D). rotation: cosines and sines, (N, 1, d/2) each; seen: the mask of
        `masked_attention`."""
        p = self.dropout.p if self.training else 0.0
        qkv = self.qkv_proj(self.attention_norm(x))                                  # (N, 3*D)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).unbind(1)                   # (N, H, d)
        q, k = (rotate(vectors, *rotation) for vectors in (q, k))
        mixed = masked_attention(rows.queries(q), k, v, rows, seen, p)               # (M, D)
        return rows.queries(x) + self.dropout(self.o_proj(mixed))

    def mlp(self, x):
        """x: (M, D) -> (M, D)."""
        gate, up = self.gate_up_proj(self.mlp_norm(x)).chunk(2, dim=-1)              # 2x (M, F)
        return x + self.down_proj(self.mlp_dropout(self.activation(gate) * up))

    def forward(self, x, rows, rotation, seen):
        """x: (N, D) -> (M, D)."""
        return self.mlp(self.attend(x, rows, rotation, seen))


class ModernBertLMHead(MaskedLMHead):
    """The masked-LM head, with one bias: that of the words."""

    def __init__(self, c):
        super().__init__(c | {"layer_norm_eps": c["norm_eps"]}, c["classifier_activation"])
        D = c["hidden_size"]
        self.dense, self.norm = nn.Linear(D, D, bias=c["classifier_bias"]), layer_norm(c)  # differs


class ModernBert(Encoder):
    """The ModernBERT body: ids -> one vector for each token, and the masked-LM head."""

    FIELDS = dict(
        vocab_size=REQUIRED, hidden_size=REQUIRED, intermediate_size=REQUIRED,
        num_hidden_layers=REQUIRED, num_attention_heads=REQUIRED, hidden_activation="gelu",
        max_position_embeddings=8192, norm_eps=1e-5, norm_bias=False, attention_bias=False,
        mlp_bias=False, layer_types=[], global_attn_every_n_layers=3, local_attention=128,
        global_rope_theta=160000.0, local_rope_theta=10000.0, embedding_dropout=0.0,
        attention_dropout=0.0, mlp_dropout=0.0, classifier_pooling="cls", classifier_dropout=0.0,
        classifier_bias=False, classifier_activation="gelu")
    FIXED = dict(tie_word_embeddings=True, decoder_bias=True, rope_scaling=None)
    # the first files hold BERT's layer_norm_eps and position_embedding_type too, without a meaning
    INERT = ("rope_parameters", "layer_norm_eps", "position_embedding_type", "sparse_prediction",
             "sparse_pred_ignore_index", "initializer_cutoff_factor", "reference_compile",
             "deterministic_flash_attn", "repad_logits_with_grad")
    CHOICES = {"hidden_activation": ACTIVATIONS, "classifier_activation": ACTIVATIONS,
               "classifier_pooling": ("cls", "mean"), "layer_types": LAYER_TYPES}
    MULTIPLES = (("hidden_size", "num_attention_heads"),)
    RULES = (layer_types_rule, lambda c: c["hidden_size"] // c["num_attention_heads"] % 2
             and f"hidden_size {c['hidden_size']} gives {c['num_attention_heads']} heads an odd "
             "width each, but a rotation turns pairs of numbers")
    ARCHITECTURES = {"body": "ModernBertModel", "lm_head": "ModernBertForMaskedLM",
                     "classifier": "ModernBertForSequenceClassification"}
    ALIASES = (("", "model."),)
    TOKEN_TYPES = False
    NAMES = {
        "model.embeddings.tok_embeddings": "word_embeddings",
        "model.embeddings.norm": "embedding_norm",
        "model.layers.{}.attn_norm": "layers.{}.attention_norm",
        "model.layers.{}.attn.Wqkv": "layers.{}.qkv_proj",
        "model.layers.{}.attn.Wo": "layers.{}.o_proj",
        "model.layers.{}.mlp_norm": "layers.{}.mlp_norm",
        "model.layers.{}.mlp.Wi": "layers.{}.gate_up_proj",
        "model.layers.{}.mlp.Wo": "layers.{}.down_proj",
        "model.final_norm": "final_norm",
        "classifier": None,
    }
    LM_NAMES = {"head.dense": "lm_head.dense", "head.norm": "lm_head.norm",
                "decoder.bias": "lm_head.bias"}
    LM_TIES = {"decoder.weight": "word_embeddings.weight"}
    SHARED_NAMES = ("head.dense", "head.norm")

    def __init__(self, c, lm_head):
        super().__init__()
        self.config, self.width, self.max_tokens = c, c["hidden_size"], c["max_position_embeddings"]
        self.word_embeddings = nn.Embedding(c["vocab_size"], self.width)
        self.embedding_norm, self.final_norm = layer_norm(c), layer_norm(c)
        self.dropout = nn.Dropout(c["embedding_dropout"])
        self.layers = nn.ModuleList(ModernBertLayer(c, number)
                                    for number in range(c["num_hidden_layers"]))
        self.lm_head = ModernBertLMHead(c) if lm_head else None
        self.head_dropout = c["classifier_dropout"]

    @classmethod
    def config_fields(cls, config, where):
        """The checked fields, with the type of each layer, and both rotations as "rope"."""
        c = super().config_fields(config, where)
        every = c["global_attn_every_n_layers"]
        kinds = ["sliding_attention" if number % every else "full_attention"
                 for number in range(c["num_hidden_layers"])]
        rope = read_two_ropes(config, where, ("global_rope_theta", 160000.0),
                              ("local_rope_theta", 10000.0))
        return c | {"layer_types": c["layer_types"] or kinds, "rope": rope}

    def embed(self, ids, rows, types=None):
        """ids (B, T) -> (N, D), the norm of word embeddings: positions come in by rotation."""
        return self.dropout(self.embedding_norm(self.word_embeddings(rows.unpad(ids))))

    def run(self, layers, x, rows, context=None):
        """x: (N, D) through some of the blocks -> (M, D)."""
        c, d = self.config, self.width // self.config["num_attention_heads"]
        rotations = {kind: cos_sin(rope, d, rows.positions, x.dtype)             # 2x (N, 1, d/2)
                     for kind, rope in c["rope"].items()}
        seen = {"full_attention": rows.padding_mask,
                "sliding_attention": nearby_mask(rows, c["local_attention"] // 2)}
        for layer in layers:
            x = layer(x, rows, rotations[layer.kind], seen[layer.kind])
        return x

    def finish(self, x):
        return self.final_norm(x)
