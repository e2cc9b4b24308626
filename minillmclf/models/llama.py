"""LLaMA 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024), Mistral (Jiang et al. 2023), and
Qwen 2, 2.5 and 3 (Yang et al. 2024, 2024, 2025).

What differs from GPT-2: RMSNorm instead of layer norm; rotated queries and keys (rotary.py) instead
of learned positions; an MLP with a gate, down(silu(gate(x)) * up(x)) (Shazeer 2020, "SwiGLU");
several query heads may share a head of keys and values (GQA); most files have no biases. Mistral
adds a window: a token sees itself and the window - 1 tokens before it. Qwen may have one in its
upper layers. Qwen 2 has biases on queries, keys and values, and on nothing else; Qwen 3 has none,
but normalises queries and keys head by head, so that no attention score explodes in training.

Here: the body and its language-model head. Not here: mixtures of experts, classification heads.
A line marked "differs" replaces one of the parent class.
"""
import math

from torch import nn

from ..errors import InputError
from ..files import short
from .backbone import Decoder
from .config import LAYER_TYPES, REQUIRED, layer_types_rule
from .layers import ACTIVATIONS, RMSNorm, causal_attention
from .rotary import ROPE_KEYS, cos_sin, read_rope, rotate


class LlamaLayer(nn.Module):
    """One block: x = x + attention(norm(x)); x = x + mlp(norm(x)).

    norm: the class of its norms; window: how many tokens a token sees, itself included; scale:
    what attention scores are multiplied by.
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


class Qwen2Layer(LlamaLayer):
    """LLaMA's block with biases on queries, keys and values alone."""

    def __init__(self, c, norm, window, scale):
        super().__init__(c, norm, window, scale)
        self.o_proj = nn.Linear(self.o_proj.in_features, c["hidden_size"], bias=False)   # differs


class NormedHeadsLayer(LlamaLayer):
    """LLaMA's block with normalised queries and keys, head by head, before they are rotated."""

    def __init__(self, c, norm, window, scale):
        super().__init__(c, norm, window, scale)
        self.q_norm, self.k_norm = (norm(c["head_dim"], c["rms_norm_eps"]) for _ in range(2))

    def project(self, x, queries):
        """x: (N, D); queries: (M, D), those of x -> q (M, H, d), k and v (N, K, d)."""
        q, k, v = super().project(x, queries)
        return self.q_norm(q), self.k_norm(k), v                                     # differs


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
    NORM, LAYER = RMSNorm, LlamaLayer

    def __init__(self, c, lm_head):
        super().__init__()
        self.config, self.width, self.max_tokens = c, c["hidden_size"], c["max_position_embeddings"]
        self.word_embeddings = nn.Embedding(c["vocab_size"], self.width)
        self.dropout = nn.Identity()                    # of embeddings; GPT-2 has one, LLaMA none
        self.layers = nn.ModuleList(map(self.build_layer, range(c["num_hidden_layers"])))
        self.final_norm = self.NORM(self.width, c["rms_norm_eps"])
        self.lm_head = self.build_lm_head(lm_head)

    def build_layer(self, number):
        """A new block, with a window if `layer_types` says so."""
        c = self.config
        has_window = c["layer_types"][number] == "sliding_attention"
        window = c["sliding_window"] if has_window else math.inf
        scale = c.get("query_pre_attn_scalar", c["head_dim"]) ** -0.5                # Gemma 2
        return self.LAYER(c, self.NORM, window, scale)

    @classmethod
    def config_fields(cls, config, where):
        """The checked fields of a config.json, those of FIXED too: a block reads them (biases)."""
        c = cls.FIXED | super().config_fields(config, where)
        if "layer_types" not in cls.FIELDS:
            kind = "sliding_attention" if c.get("sliding_window") else "full_attention"
            c["layer_types"] = [kind] * c["num_hidden_layers"]
            if config.get("layer_types") not in (None, c["layer_types"]):
                raise InputError(f"{where}: layer_types = {short(config['layer_types'])} (only "
                                 f"{kind!r} for each of {len(c['layer_types'])} layers is built)")
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
        # no window if sliding_window is null, 4096 if it is missing
        return super().config_fields({"sliding_window": 4096, **config}, where)


class Qwen2(Llama):
    """Qwen 2 and 2.5: LLaMA with biases on q, k and v, and perhaps a window in the upper layers."""

    FIELDS = {key: default for key, default in Llama.FIELDS.items() if not key.endswith("_bias")}
    FIELDS |= dict(num_key_value_heads=32, max_position_embeddings=32768, sliding_window=None,
                   use_sliding_window=False, max_window_layers=28, layer_types=[])
    FIXED = Llama.FIXED | dict(attention_bias=True, mlp_bias=False)
    INERT = ROPE_KEYS
    CHOICES = Llama.CHOICES | {"layer_types": LAYER_TYPES}
    RULES = (*Llama.RULES, layer_types_rule, lambda c: "sliding_attention" in c["layer_types"]
             and not (c["use_sliding_window"] and c["sliding_window"])
             and "layer_types has sliding_attention, but there is no window: use_sliding_window "
             "should be true and sliding_window a number")
    ARCHITECTURES = {kind: name.replace("Llama", "Qwen2")
                     for kind, name in Llama.ARCHITECTURES.items()}
    LAYER = Qwen2Layer

    @classmethod
    def config_fields(cls, config, where):
        """The checked fields; sliding_window is None unless use_sliding_window is true."""
        c = super().config_fields({"sliding_window": 4096, **config}, where)
        count, window = c["num_hidden_layers"], c["use_sliding_window"] and c["sliding_window"]
        full = c["max_window_layers"] if window else count             # the layers without a window
        kinds = ["full_attention" if number < full else "sliding_attention"
                 for number in range(count)]
        return c | {"sliding_window": window or None, "layer_types": c["layer_types"] or kinds}


class Qwen3(Qwen2):
    """Qwen 3: normalised queries and keys in place of biases."""

    FIELDS = Qwen2.FIELDS | dict(head_dim=128, attention_bias=False)
    FIXED = Llama.FIXED | dict(mlp_bias=False)
    ARCHITECTURES = {kind: name.replace("Llama", "Qwen3")
                     for kind, name in Llama.ARCHITECTURES.items()}
    NAMES = Llama.NAMES | {"model.layers.{}.self_attn.q_norm": "layers.{}.q_norm",
                           "model.layers.{}.self_attn.k_norm": "layers.{}.k_norm"}
    LAYER = NormedHeadsLayer
