"""LLaMA 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024) and Mistral (Jiang et al. 2023).

What differs from GPT-2: RMSNorm instead of layer norm; rotated queries and keys (rotary.py) instead
of learned positions; an MLP with a gate, down(silu(gate(x)) * up(x)) (Shazeer 2020, "SwiGLU");
several query heads may share a head of keys and values (GQA); most files have no biases. Mistral
adds a window: a token sees itself and the window - 1 tokens before it.

Here: the body and its language-model head. Not here: mixtures of experts, classification heads.
"""
import math

from torch import nn

from ..errors import InputError
from ..files import short
from .backbone import Decoder
from .config import REQUIRED
from .layers import ACTIVATIONS, RMSNorm, causal_attention
from .rotary import ROPE_KEYS, cos_sin, read_rope, rotate


class LlamaLayer(nn.Module):
    """One block: x = x + attention(norm(x)); x = x + mlp(norm(x)).

    norm: the class of its norms; window: how many tokens a token sees, itself included; scale:
    what attention scores are multiplied with.
    """

    def __init__(self, c, norm, window, scale):
        super().__init__()
        D, F, H = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
        K, d = c["num_key_value_heads"], c["head_dim"]
        self.attention_norm, self.mlp_norm = (norm(D, c["rms_norm_eps"]) for _ in range(2))
        self.q_proj = nn.Linear(D, H * d, bias=c["attention_bias"])
        self.k_proj, self.v_proj = (nn.Linear(D, K * d, bias=c["attention_bias"]) for _ in range(2))
        self.o_proj = nn.Linear(H * d, D, bias=c["attention_bias"])
        self.gate_proj, self.up_proj = (nn.Linear(D, F, bias=c["mlp_bias"]) for _ in range(2))
        self.down_proj = nn.Linear(F, D, bias=c["mlp_bias"])
        self.activation = ACTIVATIONS[c["hidden_act"]]
        self.head_dim, self.window, self.scale = d, window, scale
        self.attention_dropout = c["attention_dropout"]

    def project(self, x, queries):
        """x: (N, D); queries: (M, D), those of x -> q (M, H, d), k and v (N, K, d)."""
        flat = self.q_proj(queries), self.k_proj(x), self.v_proj(x)
        return (vectors.unflatten(-1, (-1, self.head_dim)) for vectors in flat)

    def rotated_heads(self, x, rows, rotation):
        """As `project`, with rotated queries and keys. rotation: cosines and sines (N, 1, d/2)."""
        q, k, v = self.project(x, rows.queries(x))
        cos, sin = rotation
        return rotate(q, rows.queries(cos), rows.queries(sin)), rotate(k, cos, sin), v

    def attention(self, x, rows, rotation):
        """x: (N, D), normalised -> (M, D)."""
        q, k, v = self.rotated_heads(x, rows, rotation)
        p = self.attention_dropout if self.training else 0.0
        return self.o_proj(causal_attention(q, k, v, rows, self.window, p, self.scale))

    def gated_mlp(self, x):
        """x: (M, D), normalised -> (M, D)."""
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))

    def attend(self, x, rows, rotation):
        """x: (N, D) -> (M, D)."""
        return rows.queries(x) + self.attention(self.attention_norm(x), rows, rotation)

    def mlp(self, x):
        """x: (M, D) -> (M, D)."""
        return x + self.gated_mlp(self.mlp_norm(x))

    def forward(self, x, rows, rotation):
        """x: (N, D) -> (M, D)."""
        return self.mlp(self.attend(x, rows, rotation))


class Llama(Decoder):
    """The LLaMA body: ids -> one vector for each token."""

    FIELDS = dict(
        vocab_size=REQUIRED, hidden_size=REQUIRED, intermediate_size=REQUIRED,
        num_hidden_layers=REQUIRED, num_attention_heads=REQUIRED, num_key_value_heads=None,
        head_dim=None, hidden_act="silu", max_position_embeddings=2048, rms_norm_eps=1e-6,
        attention_bias=False, mlp_bias=False, attention_dropout=0.0, tie_word_embeddings=False)
    FIXED = dict(partial_rotary_factor=1.0, rope_interleaved=False)
    # rotary.py reads ROPE_KEYS, `config_fields` layer_types; pretraining_tp only splits up a matmul
    INERT = (*ROPE_KEYS, "pretraining_tp", "layer_types")
    CHOICES = {"hidden_act": ACTIVATIONS}
    MULTIPLES = (("hidden_size", "num_attention_heads", "head_dim"),
                 ("num_attention_heads", "num_key_value_heads"))
    DERIVED = {"head_dim": lambda c: c["hidden_size"] // c["num_attention_heads"],
               "num_key_value_heads": lambda c: c["num_attention_heads"]}
    RULES = (lambda c: c["head_dim"] % 2
             and f"head_dim {c['head_dim']} is odd, but a rotation turns pairs of numbers",)
    ARCHITECTURES = {"body": "LlamaModel", "lm_head": "LlamaForCausalLM",
                     "classifier": "LlamaForSequenceClassification"}
    ALIASES = (("", "model."),)                  # a file of the body alone has no prefix
    NAMES = {
        "model.embed_tokens": "word_embeddings",
        "model.layers.{}.input_layernorm": "layers.{}.attention_norm",
        "model.layers.{}.self_attn.q_proj": "layers.{}.q_proj",
        "model.layers.{}.self_attn.k_proj": "layers.{}.k_proj",
        "model.layers.{}.self_attn.v_proj": "layers.{}.v_proj",
        "model.layers.{}.self_attn.o_proj": "layers.{}.o_proj",
        "model.layers.{}.self_attn.rotary_emb.inv_freq": None,
        "model.layers.{}.post_attention_layernorm": "layers.{}.mlp_norm",
        "model.layers.{}.mlp.gate_proj": "layers.{}.gate_proj",
        "model.layers.{}.mlp.up_proj": "layers.{}.up_proj",
        "model.layers.{}.mlp.down_proj": "layers.{}.down_proj",
        "model.norm": "final_norm",
        "score": None,
    }
    NORM = RMSNorm

    def __init__(self, c, lm_head):
        super().__init__()
        self.config, self.width, self.max_tokens = c, c["hidden_size"], c["max_position_embeddings"]
        self.word_embeddings = nn.Embedding(c["vocab_size"], self.width)
        self.dropout = nn.Identity()                    # of embeddings; GPT-2 has one, LLaMA none
        self.layers = nn.ModuleList(map(self.build_layer, range(c["num_hidden_layers"])))
        self.final_norm = self.NORM(self.width, c["rms_norm_eps"])
        self.lm_head = self.build_lm_head(lm_head)

    def build_layer(self, number):
        """A new block; `number` makes no difference here, but in Gemma 2."""
        c = self.config
        window = c.get("sliding_window") or math.inf
        return LlamaLayer(c, self.NORM, window, c["head_dim"] ** -0.5)

    @classmethod
    def config_fields(cls, config, where):
        """The checked fields of a config.json, those of FIXED included."""
        c = cls.FIXED | super().config_fields(config, where)
        kinds, count = config.get("layer_types"), c["num_hidden_layers"]
        if "layer_types" not in cls.FIELDS and kinds is not None:
            kind = "sliding_attention" if c.get("sliding_window") else "full_attention"
            if not (isinstance(kinds, list) and len(kinds) == kinds.count(kind) == count):
                raise InputError(f"{where}: layer_types = {short(kinds)} (only {kind!r} for each "
                                 f"of {count} layers is built)")
        return c | {"rope": cls.read_rotation(config, where)}

    @classmethod
    def read_rotation(cls, config, where):
        """How queries and keys are rotated."""
        return read_rope(config, where)

    def embed(self, ids, rows, types=None):
        """ids (B, T) -> (N, D)."""
        return self.dropout(self.word_embeddings(rows.unpad(ids)))

    def run(self, layers, x, rows, context=None):
        """x: (N, D) through some of the blocks -> (M, D)."""
        c = self.config
        rotation = cos_sin(c["rope"], c["head_dim"], rows.positions, x.dtype)    # 2x (N, 1, d/2)
        for layer in layers:
            x = layer(x, rows, rotation)
        return x


class Mistral(Llama):
    """Mistral: LLaMA with a window, so that a token reads no more keys in a longer text."""

    FIELDS = {key: default for key, default in Llama.FIELDS.items() if not key.endswith("_bias")}
    FIELDS |= dict(num_key_value_heads=8, max_position_embeddings=131072, sliding_window=None)
    FIXED = Llama.FIXED | dict(attention_bias=False, mlp_bias=False)
    ARCHITECTURES = {kind: name.replace("Llama", "Mistral")
                     for kind, name in Llama.ARCHITECTURES.items()}

    @classmethod
    def config_fields(cls, config, where):
        # no window if it is null, 4096 if it is missing
        return super().config_fields({"sliding_window": 4096, **config}, where)
