"""Gemma 1, 2 and 3 (Gemma Team 2024, 2024, 2025): LLaMA's wiring, with small changes each time.

Gemma    norms multiply by 1 + weight, word embeddings by sqrt(D), the gate is a GELU (tanh
         form), the width of a head is free, the word embeddings are also the language-model head.
Gemma 2  + the results of attention and MLP are normalised too before they are added; attention
         scores and logits are softly capped; config.json gives the scale of queries; every other
         layer has a window.
Gemma 3  + queries and keys are normalised head by head, and nothing is capped; after five layers
         with a window and a fast rotation comes one without a window, with a slow rotation.

Trap: without one of these changes a model still answers, only worse. A norm with `weight` instead
of `1 + weight` shows at once; a missing cap or window only shows on long texts.

Here: the bodies, and the text part of Gemma 3 files with images. Not here: images, attention to
later tokens. A line marked "differs" replaces one of the parent class.
"""
import math

import torch
from torch import nn

from ..errors import InputError
from ..files import short
from .config import LAYER_TYPES, layer_types_rule, wrong_kind
from .layers import root_mean_square_norm
from .llama import Llama, LlamaLayer, NormedHeadsLayer
from .rotary import ROPE_KEYS, cos_sin, read_two_ropes

TANH_GELU = "gelu_pytorch_tanh"


class GemmaNorm(nn.Module):
    """RMSNorm that multiplies by 1 + weight instead of weight."""

    neutral = 0.0                                    # the weight that changes nothing

    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), eps

    def forward(self, x):
        """x: (..., D) -> the norm times 1 + weight, in the dtype of x."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))       # rounded only at the end
        weight = 1 + self.weight.to(wide.dtype)
        return (root_mean_square_norm(wide, self.eps) * weight).to(x.dtype)


def soft_cap(x, cap):
    """x squeezed between -cap and cap, almost unchanged near 0. cap None: no bound."""
    return x if cap is None else cap * torch.tanh(x / cap)


def capped_attention(q, k, v, seen, scale, cap, dropout):
    """softmax(soft_cap(q k^T * scale)) v, over the keys that `seen` (B or 1, 1, T, S) allows.

    Capped before the mask, because a cap makes -inf finite. Written out, because the fused
    attention of torch has no cap. q: (B, H, T, d); k, v: (B, K, S, d) -> (B, H, T, d)
    """
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))  # (B, H, S, d)
    scores = soft_cap(q @ k.transpose(-2, -1) * scale, cap)                        # (B, H, T, S)
    scores = scores.masked_fill(~seen, -math.inf)
    wide = scores.to(torch.promote_types(q.dtype, torch.float32))
    return nn.functional.dropout(wide.softmax(-1).to(q.dtype), dropout) @ v


class Gemma(Llama):
    """Gemma 1: LLaMA with another norm and scaled word embeddings."""

    FIELDS = {key: default for key, default in Llama.FIELDS.items() if key != "mlp_bias"}
    FIELDS |= dict(num_key_value_heads=16, head_dim=256, hidden_act=TANH_GELU,
                   max_position_embeddings=8192, tie_word_embeddings=True)
    FIXED = Llama.FIXED | dict(mlp_bias=False)
    INERT = (*ROPE_KEYS, "layer_types", "hidden_activation", "use_bidirectional_attention")
    ARCHITECTURES = {kind: name.replace("Llama", "Gemma")
                     for kind, name in Llama.ARCHITECTURES.items()}
    NORM = GemmaNorm
    ACTIVATION_KEY = "hidden_act"
    # the first files say "gelu", but the models were trained with the tanh form
    ACTIVATION_ALIASES = {"gelu": TANH_GELU}

    @classmethod
    def config_fields(cls, config, where):
        if config.get("use_bidirectional_attention"):
            value = short(config["use_bidirectional_attention"])
            raise InputError(f"{where}: use_bidirectional_attention = {value} is not supported: a "
                             "token sees what stands before it")
        # one key counts; what the others say, if anything, must not contradict it
        given = [config.get(cls.ACTIVATION_KEY) or TANH_GELU,
                 config.get("hidden_act"), config.get("hidden_activation")]
        meant = {cls.ACTIVATION_ALIASES.get(name, name) for name in map(str, filter(None, given))}
        if len(meant) > 1:
            raise InputError(f"{where}: hidden_act and hidden_activation disagree: "
                             f"{short(', '.join(sorted(meant)))[1:-1]}")
        return super().config_fields(config | {"hidden_act": meant.pop()}, where)

    @property
    def embedding_scale(self):
        return self.width ** 0.5

    def embed(self, ids, rows, types=None):
        x = self.word_embeddings(rows.unpad(ids))                                    # (N, D)
        # the factor has the dtype of x too: in bf16 55.4 becomes 55.5
        return self.dropout(x * x.new_tensor(self.embedding_scale))


class Gemma2Layer(LlamaLayer):
    """One block: x = x + norm(attention(norm(x))); x = x + norm(mlp(norm(x))), with a soft cap."""

    def __init__(self, c, norm, window, scale):
        super().__init__(c, norm, window, scale)
        D, eps = c["hidden_size"], c["rms_norm_eps"]
        self.attention_post_norm, self.mlp_post_norm = norm(D, eps), norm(D, eps)
        self.cap = c["attn_logit_softcapping"]

    def attention(self, x, rows, rotation):
        q, k, v = self.rotated_heads(x, rows, rotation)
        q, (k, v) = rows.pad_heads(q), rows.keys_values(k, v)                        # (B, H, T, d)
        p = self.attention_dropout if self.training else 0.0
        mixed = capped_attention(q, k, v, rows.causal_mask(self.window), self.scale, self.cap, p)
        return self.o_proj(rows.merge_heads(mixed))                                  # differs

    def attend(self, x, rows, rotation):
        added = self.attention(self.attention_norm(x), rows, rotation)
        return rows.queries(x) + self.attention_post_norm(added)                     # differs

    def mlp(self, x):
        return x + self.mlp_post_norm(self.gated_mlp(self.mlp_norm(x)))              # differs


class Gemma2(Gemma):
    """Gemma 2: every other layer with a window, norms after attention and MLP, soft caps."""

    FIELDS = Gemma.FIELDS | dict(
        num_key_value_heads=4, query_pre_attn_scalar=256, sliding_window=4096, layer_types=[],
        attn_logit_softcapping=None, final_logit_softcapping=None)
    CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}   # null: no cap
    CHOICES = Gemma.CHOICES | {"layer_types": LAYER_TYPES}
    RULES = (*Gemma.RULES, layer_types_rule)
    ARCHITECTURES = {kind: name.replace("Llama", "Gemma2")
                     for kind, name in Llama.ARCHITECTURES.items()}
    # post_attention_layernorm: after attention; in LLaMA's files, before the MLP
    NAMES = Llama.NAMES | {
        "model.layers.{}.post_attention_layernorm": "layers.{}.attention_post_norm",
        "model.layers.{}.pre_feedforward_layernorm": "layers.{}.mlp_norm",
        "model.layers.{}.post_feedforward_layernorm": "layers.{}.mlp_post_norm",
    }
    ACTIVATION_KEY, ACTIVATION_ALIASES = "hidden_activation", {}
    LAYER, FULL_EVERY = Gemma2Layer, 2      # every FULL_EVERY-th layer has no window

    @classmethod
    def config_fields(cls, config, where):
        c = super().config_fields(cls.CAPS | config, where)
        every = cls.full_every(config, where)
        if not c["layer_types"]:
            c["layer_types"] = ["full_attention" if number % every == 0 else "sliding_attention"
                                for number in range(1, c["num_hidden_layers"] + 1)]
        return c

    @classmethod
    def full_every(cls, config, where):
        """n: every n-th layer has no window. Gemma 3 reads it from config.json."""
        return cls.FULL_EVERY

    def logits(self, hidden):
        """hidden (..., D) -> logits over the vocabulary (..., V), capped."""
        return soft_cap(super().logits(hidden), self.config["final_logit_softcapping"])


class Gemma3Layer(NormedHeadsLayer, Gemma2Layer):
    """Gemma 2's block with normalised queries and keys, as in Qwen 3, and without caps."""

    attention = LlamaLayer.attention              # differs from Gemma2Layer: nothing is capped


class Gemma3(Gemma2):
    """Gemma 3: five layers with a window to one without, two rotations; text only."""

    FIELDS = {key: default for key, default in Gemma2.FIELDS.items() if key not in Gemma2.CAPS}
    # defaults for what its files leave out
    FIELDS |= dict(vocab_size=262208, hidden_size=2304, intermediate_size=9216,
                   num_hidden_layers=26, num_attention_heads=8, max_position_embeddings=131072)
    FIXED = Gemma2.FIXED | dict.fromkeys(Gemma2.CAPS)
    CAPS = {}
    INERT = (*Gemma2.INERT, "rope_local_base_freq", "sliding_window_pattern",
             "_sliding_window_pattern")
    ARCHITECTURES = {"body": "Gemma3TextModel", "lm_head": "Gemma3ForCausalLM",
                     "classifier": "Gemma3TextForSequenceClassification"}
    ALIASES = (("", "model."), ("language_model.model.", "model."),
               ("model.language_model.", "model."), ("language_model.", "model."))
    NAMES = Gemma2.NAMES | {
        "model.layers.{}.self_attn.q_norm": "layers.{}.q_norm",
        "model.layers.{}.self_attn.k_norm": "layers.{}.k_norm",
        "vision_tower.*": None, "model.vision_tower.*": None,
        "multi_modal_projector.*": None, "model.multi_modal_projector.*": None,
    }
    LM_TIES = Gemma2.LM_TIES | {"language_model.lm_head.weight": "word_embeddings.weight"}
    LAYER, FULL_EVERY = Gemma3Layer, 6
    VISION_KEYS = ("text_config", "vision_config", "mm_tokens_per_image", "boi_token_index",
                   "eoi_token_index", "image_token_index", "boi_token_id", "eoi_token_id",
                   "image_token_id")

    @classmethod
    def own_config(cls, config):
        """The text part of a config.json with images; outer keys (eos_token_id) replace its own."""
        if "text_config" not in config:
            return config
        inner = config["text_config"]
        outer = {key: value for key, value in config.items() if key not in cls.VISION_KEYS}
        if not isinstance(inner, dict) or inner.get("model_type", "gemma3_text") != "gemma3_text":
            raise InputError(f"config.json: text_config = {short(inner)} should describe a "
                             "gemma3_text")
        return inner | outer | {"model_type": "gemma3_text"}

    @classmethod
    def full_every(cls, config, where):
        found = {}
        for key in ("sliding_window_pattern", "_sliding_window_pattern"):
            if config.get(key) is not None:
                if fault := wrong_kind(key, config[key], cls.FULL_EVERY):
                    raise InputError(f"{where}: {key} = {short(config[key])} (should be {fault})")
                found[key] = config[key]
        if len(set(found.values())) > 1:
            raise InputError(f"{where}: sliding_window_pattern and _sliding_window_pattern "
                             f"disagree: {found}")
        return next(iter(found.values()), cls.FULL_EVERY)

    @classmethod
    def read_rotation(cls, config, where):
        return read_two_ropes(config, where, ("rope_theta", 1e6), ("rope_local_base_freq", 1e4))

    def run(self, layers, x, rows, context=None):
        c = self.config
        fast, slow = (cos_sin(c["rope"][kind], c["head_dim"], rows.positions, x.dtype)
                       for kind in ("sliding_attention", "full_attention"))
        for layer in layers:
            x = layer(x, rows, fast if layer.window < math.inf else slow)            # differs
        return x
