"""LLaMA 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024) and Mistral (Jiang et al. 2023).

What differs from GPT-2: RMSNorm for the layer norm; no learned positions, queries and keys are rotated (rotary.py); an
MLP with a gate, down(silu(gate(x)) * up(x)) (Shazeer 2020, "SwiGLU"); several query heads may share a head of keys and
values (GQA); biases are rare. Mistral is the same wiring with a window: a token sees itself and the window - 1 before it.

Here: the body, tied or untied. Not here: mixtures of experts; heads for classes (classify/head.py).
"""
import math

from torch import nn

from ..errors import InputError
from ..files import short
from .backbone import Decoder
from .config import REQUIRED, choose, multiple, read_config
from .layers import ACTIVATIONS, RMSNorm, causal_attention
from .rotary import ROPE_KEYS, angles, read_rope, rotate


class LlamaLayer(nn.Module):
    """One block: x = x + attention(norm(x)); x = x + mlp(norm(x)). `window` and `scale` are numbers of this layer."""

    def __init__(self, c, norm, window, scale):
        super().__init__()
        D, F, H, K, d = (c[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads",
                                            "num_key_value_heads", "head_dim"))
        self.attention_norm, self.mlp_norm = norm(D, c["rms_norm_eps"]), norm(D, c["rms_norm_eps"])
        self.q_proj = nn.Linear(D, H * d, bias=c["attention_bias"])
        self.k_proj, self.v_proj = (nn.Linear(D, K * d, bias=c["attention_bias"]) for _ in range(2))
        self.o_proj = nn.Linear(H * d, D, bias=c["attention_bias"])
        self.gate_proj, self.up_proj = (nn.Linear(D, F, bias=c["mlp_bias"]) for _ in range(2))
        self.down_proj = nn.Linear(F, D, bias=c["mlp_bias"])
        self.activation = ACTIVATIONS[c["hidden_act"]]
        self.head_dim, self.window, self.scale, self.attention_dropout = d, window, scale, c["attention_dropout"]

    def project(self, x, rows):
        """x: (N, D) -> q (N, H, d) of the tokens that ask, k and v (N, K, d) of all."""
        each = (self.q_proj, rows.asking(x)), (self.k_proj, x), (self.v_proj, x)
        return (proj(x).unflatten(-1, (-1, self.head_dim)) for proj, x in each)

    def heads(self, x, rows, turn):
        """x: (N, D) -> q, k and v as of `project`, q and k rotated. turn: cosines and sines of the positions."""
        q, k, v = self.project(x, rows)
        return rotate(q, *map(rows.asking, turn)), rotate(k, *turn), v

    def attend(self, x, rows, turn):
        """(N, D) -> (N, D)."""
        p = self.attention_dropout if self.training else 0.0
        return self.o_proj(causal_attention(*self.heads(x, rows, turn), rows, self.window, p, self.scale))

    def mlp(self, x):
        """(N, D) -> (N, D)."""
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))

    def forward(self, x, rows, turn):
        """x: (N, D) packed -> (N, D), from the attention on of the tokens that ask."""
        x = rows.asking(x) + self.attend(self.attention_norm(x), rows, turn)
        return x + self.mlp(self.mlp_norm(x))


class Llama(Decoder):
    """The LLaMA body: ids -> one vector for each token."""

    FIELDS = dict(vocab_size=REQUIRED, hidden_size=REQUIRED, intermediate_size=REQUIRED, num_hidden_layers=REQUIRED,
                  num_attention_heads=REQUIRED, num_key_value_heads=None, head_dim=None, hidden_act="silu",
                  max_position_embeddings=2048, rms_norm_eps=1e-6, attention_bias=False, mlp_bias=False,
                  attention_dropout=0.0, tie_word_embeddings=False)
    FIXED = dict(partial_rotary_factor=1.0, rope_interleaved=False)
    # rotary.py reads the first, `read` the last; pretraining_tp cuts a product into parts
    INERT = (*ROPE_KEYS, "pretraining_tp", "layer_types")
    ARCHITECTURES = {"body": "LlamaModel", "lm_head": "LlamaForCausalLM", "classifier": "LlamaForSequenceClassification"}
    SPELLINGS = (("", "model."),)                       # a file of the body alone leaves the prefix out
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
        self.dropout = nn.Identity()                    # this family has none here
        self.layers = nn.ModuleList(self.layer(number) for number in range(c["num_hidden_layers"]))
        self.final_norm = self.NORM(self.width, c["rms_norm_eps"])
        self.tied = c["tie_word_embeddings"]
        self.lm_head = self.own_head(c["vocab_size"]) if lm_head and not self.tied else None

    def layer(self, number):
        """Block `number`, here all alike."""
        c = self.config
        return LlamaLayer(c, self.NORM, c.get("sliding_window") or math.inf, c["head_dim"] ** -0.5)

    @classmethod
    def read(cls, config, where):
        """The checked fields of a config.json, those with one possible value too."""
        c = cls.FIXED | read_config(config, cls.FIELDS, cls.FIXED, where, cls.INERT)
        choose(ACTIVATIONS, c["hidden_act"], "hidden_act", where)
        H = c["num_attention_heads"]
        if c["head_dim"] is None:
            multiple(c, "hidden_size", "num_attention_heads", where, ", and head_dim is not given")
        c["head_dim"] = c["hidden_size"] // H if c["head_dim"] is None else c["head_dim"]
        c["num_key_value_heads"] = H if c["num_key_value_heads"] is None else c["num_key_value_heads"]
        multiple(c, "num_attention_heads", "num_key_value_heads", where)
        if c["head_dim"] % 2:
            raise InputError(f"{where}: head_dim {c['head_dim']} is odd, but a rotation turns pairs of numbers")
        kinds, layers = config.get("layer_types"), c["num_hidden_layers"]
        kind = "sliding_attention" if c.get("sliding_window") else "full_attention"
        if "layer_types" not in cls.FIELDS and kinds is not None and not (
                isinstance(kinds, list) and len(kinds) == layers and {*map(str, kinds)} == {kind}):
            raise InputError(f"{where}: layer_types = {short(kinds)} (only {kind!r} for each of "
                             f"{layers} layers is built)")
        return c | {"rope": cls.read_rotation(config, where)}

    @classmethod
    def read_rotation(cls, config, where):
        """How queries and keys are rotated."""
        return read_rope(config, where)

    @classmethod
    def from_config(cls, config, lm_head=False, where="config.json"):
        """A model with fresh weights from a parsed config.json; `where` names the file in errors."""
        return cls(cls.read(config, where), lm_head)

    def embed(self, ids, rows):
        """ids (B, T) -> (N, D)."""
        return self.dropout(self.word_embeddings(rows.pack(ids)))

    def hidden(self, ids, rows, context=None):
        """ids (B, T) and their rows -> (N, D) packed."""
        x = self.embed(ids, rows)                                                                       # (N, D)
        turn = angles(self.config["rope"], self.config["head_dim"], rows.positions, x.dtype)            # 2 x (N, 1, d/2)
        for layer, at in rows.through(self.layers):
            x = layer(x, at, turn)
        return self.final_norm(x)


class Mistral(Llama):
    """Mistral: LLaMA with a window, so that the keys and values that a token needs do not grow with the text."""

    FIELDS = {key: default for key, default in Llama.FIELDS.items() if not key.endswith("_bias")}
    FIELDS |= dict(num_key_value_heads=8, max_position_embeddings=131072, sliding_window=None)
    FIXED = Llama.FIXED | dict(attention_bias=False, mlp_bias=False)
    ARCHITECTURES = {kind: name.replace("Llama", "Mistral") for kind, name in Llama.ARCHITECTURES.items()}

    @classmethod
    def read(cls, config, where):
        # null: no window; not given: 4096
        return super().read({"sliding_window": 4096, **config}, where)
