"""Are GPT-2, LLaMA, Mistral, Qwen 2 and 3, and Gemma 1, 2, 3 what transformers says they are, and
would the tests notice if not?

As in test_models.py: ten stored models with what transformers computed in float64
(reference/make_decoders.py), and transformers itself on random configurations, where it is
installed. Known-wrong variants must fail, each at its layer. Then what needs no reference: padding,
batch mates, no look ahead, attention by hand, refusals. Where the folder shared/ stands beside the
checkout, two models that really learnt something must still do it.
"""

import functools
import json
import math
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import MODELS, assert_padding_changes_nothing, batch_of, first_difference, fp32, trace
from hypothesis import HealthCheck, given, settings, strategies as st
from live import imported, loaded, may_refuse
from safetensors.torch import load_file, save_file
from stored import in_dtype, stored_models
from torch import nn

from minillmclf.classify.classifier import Classifier
from minillmclf.classify.family_heads import build_head
from minillmclf.classify.task import SingleLabel
from minillmclf.errors import InputError
from minillmclf.models import (build_backbone, initialise_weights, gemma, gpt2, layers, llama,
                               load_backbone, rotary, save_backbone)
from minillmclf.models.gemma import Gemma, Gemma2, Gemma2Layer, Gemma3, GemmaNorm
from minillmclf.models.config import LAYER_TYPES, REQUIRED
from minillmclf.models.gpt2 import GPT2
from minillmclf.models.layers import RMSNorm, Rows, attention_by_hand, causal_attention
from minillmclf.models.llama import Llama, LlamaLayer, Mistral, NormedHeadsLayer, Qwen2, Qwen3
from minillmclf.models.tensor_files import write_checkpoint
from minillmclf.models.weights import Checkpoint, export_tensors, load_parameters
from minillmclf.pretrain.losses import causal_lm_loss

CLASSIFIERS = ("gpt2_classifier", "qwen2_classifier", "gemma_classifier")
STORED = ("gpt2_lm", "llama_lm", "mistral_lm", "qwen2_lm", "qwen3_lm", "gemma2_lm", "gemma3_lm",
          *CLASSIFIERS)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "weights"
FP32 = fp32(width=48, depth=5)    # embeddings, three blocks, head


# ------------------------------------------------------------------------------------------- parity

def load(folder):
    """(the classifier or the body that a folder holds, its body); no tokenizer is needed."""
    checkpoint = Checkpoint(folder)
    if "score.weight" not in checkpoint:
        model = load_backbone(folder)
        return model, model
    body = build_backbone(checkpoint, lm_head=False)
    labels = list("abcdef")[:checkpoint.shapes["score.weight"][0]]
    model = Classifier(body, build_head(checkpoint.config["model_type"], body, len(labels)), None,
                       SingleLabel(labels), 9)
    model.report = load_parameters(model, checkpoint, model.rename_table())
    return model.eval(), body


def next_token_loss(body, ids, mask):
    """Mean cross-entropy of each next token; texts are padded on the right."""
    there = mask[:, 1:].bool()
    return F.cross_entropy(body.logits(body(ids, mask)[:, :-1][there]), ids[:, 1:][there])


def compute(folder, batch, dtype=torch.float32):
    """Ours in `folder` on a batch -> (every step, logits, loss; gradients by our paths; table)."""
    model, body = load(folder)
    model.to(dtype)
    ids, mask, table = batch["ids"], batch["mask"], model.rename_table()
    steps = trace(body, ids, mask)
    steps["norm"] = steps["hidden"][mask.bool()].detach()
    if model is body:
        logits, loss = body.logits(steps["hidden"])[mask.bool()], next_token_loss(body, ids, mask)
    else:
        logits = model.head(steps["hidden"], mask)
        loss = F.cross_entropy(logits, batch["labels"])
    loss.backward()
    gradients = {path: parameter.grad.T if table.is_transposed(path) else parameter.grad
                 for path, parameter in model.named_parameters()}
    return steps | {"logits": logits.detach(), "loss": loss.detach()}, gradients, table


def compare(found, expected, tolerance):
    """None, or the first step of what make_decoders.run computed that `compute` found otherwise;
    gradients last. tolerance: in parts of a step's largest number."""
    ours, gradients, table = found
    steps = ["embeddings", *sorted(name for name in expected if name.startswith("layer ")), "norm",
             "logits", "loss"]
    wanted = {table.path_of(name.removeprefix("gradient of ")): gradient
              for name, gradient in expected.items() if name.startswith("gradient of ")}
    assert len(wanted) > 10, "gradients of every kind are compared"
    in_order = {name: expected[name] for name in steps}
    return (first_difference(ours, in_order, tolerance, relative=True)
            or first_difference(gradients, wanted, 1e-4, relative=True))


stored = stored_models(STORED)


def parity(name, stored, dtype=torch.float32, tolerance=FP32):
    """None, or the first step of the stored model `name` that differs."""
    expected = in_dtype(stored[name], dtype)
    return compare(compute(MODELS / name, stored[name], dtype), expected, tolerance)


# In float64 the rotation is still in float32, on both sides.
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, FP32), (torch.float64, fp32(1, 1))])
@pytest.mark.parametrize("name", STORED)
def test_every_step_is_that_of_transformers(name, stored, dtype, tolerance):
    found = parity(name, stored, dtype, tolerance)
    assert found is None, f"{name} in {dtype}: not what transformers computed, {found}"


def test_the_stored_batches_are_ragged_and_the_weights_exaggerated(stored):
    for name, batch in stored.items():
        lengths = batch["mask"].sum(1)
        assert len(set(lengths.tolist())) >= 3, (
            f"{name}: padding could be wrong unseen, lengths are {lengths}")
        model, body = load(MODELS / name)
        assert lengths.max() > 2 * (body.config.get("sliding_window") or 0), (
            f"{name}: the window is wider than the texts")
        for norm in (module for module in model.modules()
                     if isinstance(module, (nn.LayerNorm, RMSNorm, GemmaNorm))):
            apart = (norm.weight - getattr(norm, "neutral", 1.0)).abs().mean()
            assert apart > 0.1, f"{name}: neutral weights hide a norm that is left out"


# ------------------------------------------------------------------------------------ random models

KINDS = {                                                # model_type -> classes of transformers
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"), "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"), "gemma": ("GemmaConfig", "GemmaForCausalLM"),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "gemma3": ("Gemma3Config", "Gemma3ForConditionalGeneration"),
}
VISION = dict(model_type="siglip_vision_model", hidden_size=4, intermediate_size=4,
              num_hidden_layers=1, num_attention_heads=1, image_size=4, patch_size=2)


def gpt2_numbers(draw):
    heads = draw(st.integers(1, 4))
    return dict(vocab_size=draw(st.integers(20, 40)), n_head=heads,
                n_embd=heads * draw(st.integers(2, 7)), n_layer=draw(st.integers(1, 3)),
                n_positions=draw(st.integers(14, 20)), n_inner=draw(st.sampled_from([None, 9, 24])),
                scale_attn_weights=draw(st.booleans()),
                scale_attn_by_inverse_layer_idx=draw(st.booleans()),
                tie_word_embeddings=draw(st.booleans()),
                layer_norm_epsilon=draw(st.sampled_from([1e-5, 1e-2])),
                bos_token_id=None, eos_token_id=None,
                activation_function=draw(st.sampled_from(
                    ["gelu", "relu", "gelu_new", "silu", "gelu_pytorch_tanh"])))


def rope_numbers(draw):
    """One rotation, as transformers' rope_parameters."""
    theta = {"rope_theta": draw(st.sampled_from([7.0, 100.0, 1e4]))}
    kind = draw(st.sampled_from(sorted(rotary.ROPE_NUMBERS)))
    numbers = {"default": {}, "linear": {"factor": draw(st.sampled_from([2.0, 8.0]))},
               "llama3": dict(
                   factor=8.0, low_freq_factor=draw(st.sampled_from([0.5, 1.0])),
                   high_freq_factor=draw(st.sampled_from([2.0, 4.0])),
                   original_max_position_embeddings=draw(st.sampled_from([8, 32])))}
    return theta | numbers[kind] | {"rope_type": kind}


def numbers(draw, kind):
    """A random configuration, as keyword arguments of transformers' class."""
    if kind == "gpt2":
        return gpt2_numbers(draw)
    heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    layers = draw(st.integers(1, 4))
    config = dict(vocab_size=draw(st.integers(20, 40)), num_attention_heads=heads * groups,
                  num_key_value_heads=heads, head_dim=draw(st.sampled_from([2, 4, 6])),
                  hidden_size=heads * groups * draw(st.integers(2, 5)), num_hidden_layers=layers,
                  intermediate_size=draw(st.integers(3, 20)), max_position_embeddings=64,
                  rms_norm_eps=draw(st.sampled_from([1e-6, 1e-2])),
                  tie_word_embeddings=draw(st.booleans()), rope_parameters=rope_numbers(draw),
                  pad_token_id=0, bos_token_id=None, eos_token_id=None)
    if kind == "llama":
        config |= dict(attention_bias=draw(st.booleans()), mlp_bias=draw(st.booleans()),
                       hidden_act=draw(st.sampled_from(["silu", "gelu", "relu"])))
        config["head_dim"] = (draw(st.sampled_from([config["head_dim"], None]))
                              if config["hidden_size"] % (2 * heads * groups) == 0
                              else config["head_dim"])
    if kind in ("mistral", "gemma2", "gemma3_text"):
        config["sliding_window"] = draw(st.integers(1, 9))
    if kind.startswith("qwen"):
        config |= dict(sliding_window=draw(st.integers(1, 9)),
                       max_window_layers=draw(st.integers(0, 4)),
                       use_sliding_window=draw(st.booleans()),
                       hidden_act=draw(st.sampled_from(["silu", "gelu"])))
        if config["use_sliding_window"]:
            config["layer_types"] = draw(st.none() | st.lists(st.sampled_from(sorted(LAYER_TYPES)),
                                                              min_size=layers, max_size=layers))
    if kind == "qwen3":
        config["attention_bias"] = draw(st.booleans())
    if kind == "mistral":
        config["sliding_window"] = draw(st.sampled_from([None, config["sliding_window"]]))
    if kind.startswith("gemma"):
        config["attention_bias"] = draw(st.booleans())
    if kind in ("gemma2", "gemma3_text"):
        config["query_pre_attn_scalar"] = draw(st.integers(1, 30))
        config["layer_types"] = draw(st.none() | st.lists(st.sampled_from(sorted(LAYER_TYPES)),
                                                          min_size=layers, max_size=layers))
    if kind == "gemma2":
        config |= dict(attn_logit_softcapping=draw(st.sampled_from([None, 1.5, 50.0])),
                       final_logit_softcapping=draw(st.sampled_from([None, 3.0])))
    if kind == "gemma3_text":
        config["sliding_window_pattern"] = draw(st.integers(2, 4))
        config["rope_parameters"] = {"full_attention": rope_numbers(draw),
                                     "sliding_attention": rope_numbers(draw)}
    return config


def spell_as_before(folder, word):
    """Rewrite rope_parameters of config.json as older versions do; word: "type" or "rope_type"."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    inner = config.get("text_config", config)
    rope = inner.pop("rope_parameters")
    if "full_attention" in rope:
        assert rope["sliding_attention"]["rope_type"] == "default", (
            "the old spelling has no place for another")
        inner["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    inner["rope_theta"], kind = rope.pop("rope_theta"), rope.pop("rope_type")
    inner["rope_scaling"] = None if kind == "default" else rope | {word: kind}
    path.write_text(json.dumps(config))


def build(transformers, kind, fields):
    """One of transformers' language models, with exaggerated weights to come."""
    config, model = (getattr(transformers, name) for name in KINDS[kind])
    if kind == "gemma3":
        fields = dict(text_config=fields, vision_config=VISION, mm_tokens_per_image=1,
                      tie_word_embeddings=fields["tie_word_embeddings"])
    return model(config(**fields, attn_implementation="eager"))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), seed=st.integers(0, 2**31))
@settings(max_examples=8, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow])
def test_random_models_are_those_of_transformers(kind, data, seed):
    transformers = imported("transformers")
    from reference import make_decoders
    fields = data.draw(st.composite(numbers)("gemma3_text" if kind == "gemma3" else kind))
    if kind == "gemma3":
        fields["tie_word_embeddings"] = True             # its files are never untied
    with may_refuse():
        model = make_decoders.exaggerate(build(transformers, kind, fields), seed)
    lengths = data.draw(
        st.lists(st.integers(1, 14), min_size=1, max_size=4).filter(lambda found: max(found) > 1))
    ids, mask = make_decoders.random_batch(fields["vocab_size"], seed, lengths)
    rope = fields.get("rope_parameters", {})
    sliding = rope.get("sliding_attention", {"rope_type": "default"})
    old = kind != "gpt2" and sliding["rope_type"] == "default"
    with tempfile.TemporaryDirectory() as folder:
        with may_refuse():
            model.save_pretrained(folder)
        if old and data.draw(st.booleans()):
            spell_as_before(Path(folder), data.draw(st.sampled_from(["type", "rope_type"])))
        ours = compute(Path(folder), {"ids": ids, "mask": mask}, torch.float64)
    with may_refuse():
        expected = make_decoders.run(model, ids, mask)
    found = compare(ours, expected, fp32(1, 5))               # transformers rotates in float32
    assert found is None, f"{kind}: {found}"


CLASSES = {"gpt2": "GPT2ForSequenceClassification", "llama": "LlamaForSequenceClassification",
           "mistral": "MistralForSequenceClassification",
           "qwen2": "Qwen2ForSequenceClassification", "qwen3": "Qwen3ForSequenceClassification",
           "gemma": "GemmaForSequenceClassification", "gemma2": "Gemma2ForSequenceClassification",
           "gemma3_text": "Gemma3TextForSequenceClassification"}


def plain(kind, **more):
    """A small configuration without surprises, as a config.json of today."""
    sizes = dict(vocab_size=30, hidden_size=12, num_hidden_layers=2, num_attention_heads=2,
                 num_key_value_heads=1, head_dim=4, intermediate_size=16, sliding_window=5,
                 pad_token_id=0, bos_token_id=None, eos_token_id=None)
    if kind == "gpt2":
        sizes = dict(vocab_size=30, n_embd=12, n_layer=2, n_head=2, n_positions=16, pad_token_id=0,
                     bos_token_id=None, eos_token_id=None)
    if kind.startswith("qwen"):
        sizes |= dict(use_sliding_window=True, max_window_layers=1)
    if kind in ("llama", "gemma"):
        del sizes["sliding_window"]
    return sizes | more


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_are_those_of_transformers(kind, side, tmp_path):
    transformers = imported("transformers")
    from reference import make_decoders
    with may_refuse():
        config = getattr(transformers, KINDS[kind][0])(**plain(kind, num_labels=4),
                                                       attn_implementation="eager")
        model = make_decoders.exaggerate(getattr(transformers, CLASSES[kind])(config), 5)
        model.save_pretrained(tmp_path)
    texts = [[3, 9, 4], [7], [5, 6, 7, 8, 9, 10, 11, 12]]
    ids, mask = batch_of(texts, side, 0)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        with may_refuse():
            theirs = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        ours, body = load(tmp_path)
        found = ours.head(body(ids, mask), mask)
    apart = (found - theirs).abs().max() / theirs.abs().max()
    assert apart <= FP32, (
        f"{kind}: other scores than {CLASSES[kind]}, padded on the {side}: {apart:.2g} apart")


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_left_padding_is_that_of_transformers_with_positions_said(kind, tmp_path):
    transformers = imported("transformers")
    from reference import make_decoders
    fields = plain("gemma3_text" if kind == "gemma3" else kind, tie_word_embeddings=True)
    ids, mask = batch_of([[3, 9, 4], [7, 2], [5, 6, 7, 8, 9, 10, 11, 12]], "left", 0)
    with may_refuse():
        model = make_decoders.exaggerate(build(transformers, kind, fields), 6)
        model.save_pretrained(tmp_path)
        theirs = model(input_ids=ids, attention_mask=mask,
                       position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    ours = load_backbone(tmp_path)
    apart = ((ours.logits(ours(ids, mask)) - theirs)[mask.bool()].abs().max()
             / theirs[mask.bool()].abs().max())
    assert apart <= FP32, f"{kind}: left padding changes the positions, {apart:.2g} apart"


@pytest.mark.parametrize("name", STORED)
@torch.inference_mode()
def test_what_is_saved_is_read_here_and_by_transformers(name, tmp_path, stored):
    transformers = imported("transformers")
    model, body = load(MODELS / name)
    ids, mask = stored[name]["ids"], stored[name]["mask"]
    save_backbone(body, tmp_path)
    logits = body.logits(body(ids, mask))[mask.bool()]
    again = load_backbone(tmp_path)
    assert torch.equal(again.logits(again(ids, mask))[mask.bool()], logits), (
        f"{name}: saved and loaded, another model")
    theirs, report = loaded(transformers.AutoModelForCausalLM.from_pretrained, tmp_path,
                            attn_implementation="eager", output_loading_info=True)
    with may_refuse():
        expected = theirs.eval()(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    assert not report["missing_keys"] and not report["unexpected_keys"], f"{name}: {report}"
    apart = (expected - logits).abs().max() / logits.abs().max()
    assert apart <= FP32, (
        f"{name}: transformers reads another model from our files, {apart:.2g} apart")
    if model is not body:
        kind = body.ARCHITECTURES["classifier"]
        write_checkpoint(tmp_path, body.source_config | {"architectures": [kind]},
                         export_tensors(model, model.rename_table()))
        theirs = loaded(getattr(transformers, kind).from_pretrained, tmp_path)
        with may_refuse():
            theirs = theirs(input_ids=ids, attention_mask=mask).logits
        apart = (theirs - stored[name]["logits"]).abs().max() / theirs.abs().max()
        assert apart <= FP32, f"{name}: transformers reads another classifier"


@pytest.mark.parametrize("name", [name for name in STORED if name not in CLASSIFIERS])
def test_the_loss_is_that_of_transformers(name, stored):
    transformers = imported("transformers")
    ids, mask = stored[name]["ids"], stored[name]["mask"]
    with may_refuse():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            MODELS / name, attn_implementation="eager").eval()
        loss = theirs(input_ids=ids, attention_mask=mask,
                      labels=ids.masked_fill(mask == 0, -100)).loss
    model = load_backbone(MODELS / name)
    ways = {"written out": next_token_loss(model, ids, mask),
            "in training": causal_lm_loss(model, ids, mask)}
    for way, found in ways.items():
        assert abs(found.item() - loss.item()) <= FP32 * loss.item(), (
            f"{name}: the loss {way} is {found}, transformers' is {loss}")


# ----------------------------------------------------------------------------- would it be noticed?

def reads(patch, cls, **changes):
    """Let `cls` read other numbers from config.json than stand there; a change may be a function of
    the fields."""
    read = cls.config_fields.__func__
    patch.setattr(cls, "config_fields", classmethod(
        lambda c, *given: (fields := read(c, *given))
        | {key: change(fields) if callable(change) else change for key, change in changes.items()}))


def erf_gelu(patch):
    for name in ("gelu_new", "gelu_pytorch_tanh"):
        patch.setitem(layers.ACTIVATIONS, name, layers.ACTIVATIONS["gelu"])


def other_eps(patch):
    for cls in (RMSNorm, GemmaNorm, nn.LayerNorm):
        init = cls.__init__
        patch.setattr(cls, "__init__", lambda self, width, eps, init=init: init(self, width, 1e-6))


def square_matrices_not_transposed(patch):
    patch.setattr(GPT2, "TRANSPOSED", ("qkv_proj", "up_proj", "down_proj"))


def positions_one_late(patch):
    rows = Rows.__init__

    def wrong(self, mask, layout=None):
        rows(self, mask, layout)
        self.positions = self.positions + 1
    patch.setattr(Rows, "__init__", wrong)


def same_scale_in_all_layers(patch):
    init = gpt2.GPT2Layer.__init__
    patch.setattr(gpt2.GPT2Layer, "__init__", lambda self, c, number: init(self, c, 0))


def keys_for_queries(patch):
    patch.setattr(gpt2, "causal_attention",
                  lambda q, k, v, *more, **named: causal_attention(k, q, v, *more, **named))


def post_norm(patch):
    def wrong(self, x, rows):
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1)).unbind(1)
        x = self.attention_norm(x + self.o_proj(causal_attention(q, k, v, rows, scale=self.scale)))
        return self.mlp_norm(x + self.down_proj(self.activation(self.up_proj(x))))
    patch.setattr(gpt2.GPT2Layer, "forward", wrong)


def neighbours_rotated(patch):
    def wrong(x, cos, sin):
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)
    patch.setattr(llama, "rotate", wrong)


def rotated_backwards_for_keys(patch):
    heads = LlamaLayer.rotated_heads
    patch.setattr(LlamaLayer, "rotated_heads",
                  lambda self, x, rows, turn: (heads(self, x, rows, turn)[0],
                                               heads(self, x, rows, (turn[0], -turn[1]))[1],
                                               heads(self, x, rows, turn)[2]))


def scaling_of_the_rotation_ignored(patch):
    patch.setattr(rotary, "llama3_speeds", lambda turn, rope: turn)


def all_speeds_slowed_alike(patch):
    patch.setattr(rotary, "llama3_speeds", lambda turn, rope: turn / rope["factor"])


def key_heads_interleaved(patch):
    def dealt(q, k, v):
        return q, *(x.repeat(1, q.shape[1] // x.shape[1], *[1] * (x.dim() - 2)) for x in (k, v))
    capped = gemma.capped_attention
    patch.setattr(llama, "causal_attention",
                  lambda q, k, v, *more: causal_attention(*dealt(q, k, v), *more))
    patch.setattr(gemma, "capped_attention", lambda q, k, v, *more: capped(*dealt(q, k, v), *more))


def gate_and_up_exchanged(patch):
    patch.setattr(
        LlamaLayer, "gated_mlp",
        lambda self, x: self.down_proj(self.gate_proj(x) * self.activation(self.up_proj(x))))


def own_head_ignored(patch):
    patch.setattr(Llama, "logits", lambda self, hidden: hidden @ self.word_embeddings.weight.T)


def window_one_wider(patch):
    causal = Rows.causal_mask
    patch.setattr(Rows, "causal_mask", lambda self, window=math.inf: causal(self, window + 1))


def window_one_narrower(patch):
    causal = Rows.causal_mask
    patch.setattr(Rows, "causal_mask", lambda self, window=math.inf: causal(self, window - 1))


def no_window(patch):
    causal = Rows.causal_mask
    patch.setattr(Rows, "causal_mask", lambda self, window=math.inf: causal(self))


def weight_for_one_plus_weight(patch):
    patch.setattr(GemmaNorm, "forward", RMSNorm.forward)


def unscaled_embeddings(patch):
    patch.setattr(Gemma, "embed", Llama.embed)


def attention_not_capped(patch):
    reads(patch, Gemma2, attn_logit_softcapping=None)


def scores_not_capped(patch):
    reads(patch, Gemma2, final_logit_softcapping=None)


def capped_after_the_mask(patch):
    def wrong(q, k, v, seen, scale, cap, dropout):
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        scores = (q @ k.transpose(-2, -1) * scale).masked_fill(~seen, -math.inf)
        return gemma.soft_cap(scores, cap).softmax(-1) @ v
    patch.setattr(gemma, "capped_attention", wrong)


def scaled_by_the_head(patch):
    reads(patch, Gemma2, query_pre_attn_scalar=lambda fields: fields["head_dim"])


def pattern_shifted(patch):
    reads(patch, Gemma2,
          layer_types=lambda fields: fields["layer_types"][1:] + fields["layer_types"][:1])


def norms_before_and_after_exchanged(patch):
    def wrong(self, x, rows, turn):
        x = x + self.attention_norm(self.attention(self.attention_post_norm(x), rows, turn))
        return x + self.mlp_norm(self.gated_mlp(self.mlp_post_norm(x)))
    patch.setattr(Gemma2Layer, "forward", wrong)


def post_norms_missing(patch):
    patch.setattr(Gemma2Layer, "attend", LlamaLayer.attend)
    patch.setattr(Gemma2Layer, "mlp", LlamaLayer.mlp)


def post_norm_after_the_sum(patch):
    def wrong(self, x, rows, turn):
        x = self.attention_post_norm(x + self.attention(self.attention_norm(x), rows, turn))
        return self.mlp_post_norm(x + self.gated_mlp(self.mlp_norm(x)))
    patch.setattr(Gemma2Layer, "forward", wrong)


def one_base_for_all(patch):
    reads(patch, Gemma3,
          rope=lambda fields: dict.fromkeys(fields["rope"], fields["rope"]["full_attention"]))


def local_base_for_all(patch):
    reads(patch, Gemma3,
          rope=lambda fields: dict.fromkeys(fields["rope"], fields["rope"]["sliding_attention"]))


def linear_scaling_ignored(patch):
    reads(patch, Gemma3, rope=lambda fields: fields["rope"] | {
        "full_attention": fields["rope"]["full_attention"] | {"rope_type": "default"}})


def queries_and_keys_not_normalised(patch):
    patch.setattr(NormedHeadsLayer, "project", LlamaLayer.project)


def normalised_after_the_rotation(patch):
    def wrong(self, x, rows, turn):
        q, k, v = LlamaLayer.project(self, x, x)
        return self.q_norm(llama.rotate(q, *turn)), self.k_norm(llama.rotate(k, *turn)), v
    patch.setattr(NormedHeadsLayer, "rotated_heads", wrong)


def query_and_key_norms_exchanged(patch):
    def wrong(self, x, queries):
        q, k, v = LlamaLayer.project(self, x, queries)
        return self.k_norm(q), self.q_norm(k), v
    patch.setattr(NormedHeadsLayer, "project", wrong)


def biases_left_out(patch):
    def wrong(self, x, queries):
        flat = (F.linear(x, proj.weight) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return (vectors.unflatten(-1, (-1, self.head_dim)) for vectors in flat)
    patch.setattr(LlamaLayer, "project", wrong)


def window_in_the_lower_layers(patch):
    reads(patch, Qwen2, layer_types=lambda fields: fields["layer_types"][::-1])


def window_in_all_layers(patch):
    reads(patch, Qwen2,
          layer_types=lambda fields: ["sliding_attention"] * len(fields["layer_types"]))


GPTS, ROTATED = ("gpt2_lm", "gpt2_classifier"), tuple(name for name in STORED if "gpt2" not in name)
QWENS = ("qwen2_lm", "qwen3_lm")
WITH_WINDOW = ("mistral_lm", "gemma2_lm", "gemma3_lm")
GEMMAS = ("gemma_classifier", "gemma2_lm", "gemma3_lm")
WRONG = [
    *((wrong, name, "layer 0") for name in GPTS for wrong in (
        erf_gelu, square_matrices_not_transposed, keys_for_queries, post_norm)),
    *((positions_one_late, name, "embeddings") for name in GPTS),
    (same_scale_in_all_layers, "gpt2_lm", "layer 1"),
    *((other_eps, name, "layer 0") for name in STORED),
    *((wrong, name, "layer 0") for name in ROTATED
      for wrong in (neighbours_rotated, gate_and_up_exchanged)),
    *((rotated_backwards_for_keys, name, "layer 0") for name in ROTATED if name != "gemma3_lm"),
    *((key_heads_interleaved, name, "layer 0")
      for name in ("llama_lm", "qwen3_lm", "gemma2_lm", "gemma3_lm")),
    *((wrong, "llama_lm", "layer 0")
      for wrong in (scaling_of_the_rotation_ignored, all_speeds_slowed_alike)),
    (own_head_ignored, "llama_lm", "logits"), (own_head_ignored, "qwen3_lm", "logits"),
    (biases_left_out, "qwen2_lm", "layer 0"), (biases_left_out, "qwen2_classifier", "layer 0"),
    *((wrong, "qwen3_lm", "layer 0")
      for wrong in (queries_and_keys_not_normalised, normalised_after_the_rotation,
                    query_and_key_norms_exchanged)),
    *((wrong, name, "layer 0")
      for name in QWENS for wrong in (window_in_the_lower_layers, window_in_all_layers)),
    *((wrong, name, "layer 1") for name in QWENS
      for wrong in (window_one_wider, window_one_narrower, no_window)),
    *((wrong, name, "layer 0") for name in WITH_WINDOW
      for wrong in (window_one_wider, window_one_narrower, no_window)),
    *((wrong, name, "layer 0") for name in GEMMAS
      for wrong in (erf_gelu, weight_for_one_plus_weight)),
    *((unscaled_embeddings, name, "embeddings") for name in GEMMAS),
    *((wrong, "gemma2_lm", "layer 0")
      for wrong in (attention_not_capped, capped_after_the_mask, pattern_shifted)),
    (scores_not_capped, "gemma2_lm", "logits"),
    *((wrong, name, "layer 0") for name in GEMMAS[1:] for wrong in (
        scaled_by_the_head, norms_before_and_after_exchanged, post_norms_missing,
        post_norm_after_the_sum)),
    (pattern_shifted, "gemma3_lm", "layer 1"),
    *((wrong, "gemma3_lm", "layer 0")
      for wrong in (one_base_for_all, queries_and_keys_not_normalised,
                    normalised_after_the_rotation)),
    *((wrong, "gemma3_lm", "layer 2") for wrong in (local_base_for_all, linear_scaling_ignored)),
]


@pytest.mark.parametrize("wrong, name, step",
                         [pytest.param(*w, id=f"{w[0].__name__}-{w[1]}") for w in WRONG])
def test_known_wrong_variants_fail_at_their_layer(wrong, name, step, stored, monkeypatch):
    wrong(monkeypatch)
    found = parity(name, stored)
    assert found is not None, (
        f"{wrong.__name__} is not noticed: the stored {name} cannot tell it from the right model")
    assert found.startswith(step + " differs"), (
        f"{wrong.__name__} should be seen first at {step}, but {found}")


def test_an_own_head_is_not_taken_for_a_copy(monkeypatch):
    reads(monkeypatch, Llama, tie_word_embeddings=True)
    with pytest.raises(InputError, match="lm_head.weight' should be tied to "
                       "word_embeddings.weight, but its values differ"):
        load_backbone(MODELS / "llama_lm")


# -------------------------------------------------------------------------------- padding and order

def states(model, texts, side="right", pad=0, width=None):
    """Hidden states of the real tokens of each text of a batch: [(T, D), ...]."""
    ids, mask = batch_of(texts, side, pad, width)
    return [row[m.bool()] for row, m in zip(model(ids, mask), mask)]


def random_texts(model, lengths, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(model.config["vocab_size"], (length,), generator=draw).tolist()
            for length in lengths]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, FP32), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", STORED)
@torch.inference_mode()
def test_padding_and_batch_mates_change_nothing(name, dtype, tolerance):
    model = load(MODELS / name)[1].to(dtype)
    texts = random_texts(model, (5, 14, 1, 8))
    texts[0][2] = texts[1][-1] = texts[3][0] = 0                        # a text may hold the pad id
    assert_padding_changes_nothing(name, functools.partial(states, model), texts, tolerance)


@pytest.mark.parametrize("name", STORED)
@torch.inference_mode()
def test_no_token_sees_a_later_one(name):
    model = load(MODELS / name)[1]
    ids = torch.tensor(random_texts(model, (13, 13)))
    base = model.logits(model(ids, torch.ones_like(ids)))
    for place in range(13):
        changed = ids.clone()
        changed[:, place] = (ids[:, place] + 1) % model.config["vocab_size"]
        found = model.logits(model(changed, torch.ones_like(ids)))
        assert torch.equal(found[:, :place], base[:, :place]), (
            f"{name}: token {place} changed, and what is before it moved")
        assert not torch.equal(found[:, place], base[:, place]), (
            f"{name}: token {place} changed and nothing noticed")


@pytest.mark.parametrize("name, reach", [
    ("gpt2_lm", 13), ("llama_lm", 13), ("mistral_lm", 7), ("gemma2_lm", 13)])
@torch.inference_mode()
def test_how_far_back_a_token_sees(name, reach):
    """Each of Mistral's two layers reaches 3 tokens back; one of Gemma 2's three sees all."""
    model, place = load(MODELS / name)[1].double(), 12
    ids = torch.tensor(random_texts(model, (13,)))
    base, seen = model(ids, torch.ones_like(ids))[0, place], []
    for other in range(13):
        changed = ids.clone()
        changed[0, other] = (ids[0, other] + 1) % model.config["vocab_size"]
        if not torch.equal(model(changed, torch.ones_like(ids))[0, place], base):
            seen.append(place - other)
    assert len(seen) == reach and max(seen) == reach - 1, (
        f"{name}: the last token sees those {seen} places before it")


def random_rows(lengths, side, heads, groups, width, seed):
    """Rows, and q (N, H, d), k and v (N, K, d)."""
    draw = torch.Generator().manual_seed(seed)
    rows = Rows(batch_of([[1] * length for length in lengths], side, 0)[1])
    sizes = [(sum(lengths), n, width) for n in (heads * groups, heads, heads)]
    return rows, *(torch.randn(size, generator=draw, dtype=torch.float64) * 3 for size in sizes)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
       side=st.sampled_from(["left", "right"]), heads=st.integers(1, 3),
       groups=st.integers(1, 3), width=st.integers(1, 5), scale=st.sampled_from([None, 0.1, 1.5]),
       window=st.sampled_from([1, 2, 5, math.inf]), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_attention_is_attention_by_hand(lengths, side, heads, groups, width, scale, window, seed):
    rows, q, k, v = random_rows(lengths, side, heads, groups, width, seed)
    fast = causal_attention(q, k, v, rows, window, scale=scale)
    slow = attention_by_hand(q, k, v, rows, rows.causal_mask(window), scale)
    assert (fast - slow).abs().max() <= 1e-12, (
        "the fast attention is not the one that the explicit steps define")
    scale = width ** -0.5 if scale is None else scale
    for cap, apart in ((None, 1e-12), (1e6, 1e-6)):
        capped = gemma.capped_attention(rows.pad_heads(q), *rows.keys_values(k, v),
                                        rows.causal_mask(window), scale, cap, 0.0)
        assert (rows.merge_heads(capped) - slow).abs().max() <= apart, (
            f"attention with the cap {cap} is not attention")


@pytest.mark.parametrize("mask, plain", [
    ([[1, 1, 1, 1], [1, 1, 1, 1]], True), ([[1, 1, 1, 1], [1, 0, 0, 0]], True),
    ([[1, 1, 1, 1], [0, 1, 1, 1]], False),
    ([[1, 1, 1, 1], [1, 1, 0, 1]], False), ([[1, 1, 0, 1], [1, 1, 0, 1]], False)])
@pytest.mark.parametrize("window", [math.inf, 4, 3])
def test_attention_without_a_mask_is_attention_with_one(mask, plain, window):
    """Full, padded right, padded left, with a hole: no mask only where it would be a triangle."""
    rows = Rows(torch.tensor(mask))
    assert rows.is_triangle(window) == (plain and window >= 4), (
        "a window that is shorter than the texts needs a mask")
    q, k, v = torch.randn(3, int(rows.mask.sum()), 2, 8, dtype=torch.float64,
                          generator=torch.Generator().manual_seed(0))
    slow = attention_by_hand(q, k, v, rows, rows.causal_mask(window))
    apart = (causal_attention(q, k, v, rows, window) - slow).abs().max()
    assert apart < 1e-12, f"{apart:.2g} apart"


def test_what_a_window_of_three_sees():
    rows = Rows(batch_of([[1] * 5, [1] * 2], "left", 0)[1])
    seen = rows.causal_mask(3)[:, 0].int().tolist()
    assert seen[0] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0],
                       [0, 0, 1, 1, 1]]
    assert seen[1][3:] == [[0, 0, 0, 1, 0], [0, 0, 0, 1, 1]], (
        "padding on the left is no token before the first")


# ------------------------------------------------------------------------- rotation, norms, dropout

@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 10.0},
                                  {"rope_type": "linear", "rope_theta": 10.0, "factor": 3.0}])
def test_a_rotation_is_that_of_its_formula_and_tells_distances_only(rope):
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4, 3, 6, generator=draw, dtype=torch.float64)
    places = torch.tensor([0, 1, 5, 40])
    turned = rotary.rotate(x, *rotary.cos_sin(rope, 6, places, x.dtype))
    pairs = torch.complex(x[..., :3], x[..., 3:])
    speed = 10.0 ** (-torch.arange(3) / 3) / rope.get("factor", 1.0)
    by_hand = pairs * torch.polar(torch.ones(4, 1, 3).double(),
                                  (places[:, None, None] * speed).double())
    assert (turned - torch.cat((by_hand.real, by_hand.imag), -1)).abs().max() <= 1e-5, (
        "not theta ** (-2i / d) a position")
    products = [(rotary.rotate(x, *rotary.cos_sin(rope, 6, places + far, x.dtype))
                 * rotary.rotate(y, *rotary.cos_sin(rope, 6, places + far + 2, x.dtype))).sum(-1)
                for far in (0, 17)]
    assert (products[0] - products[1]).abs().max() <= 1e-4, (
        "a product should depend on the distance alone")


def test_llama3_keeps_fast_pairs_and_slows_slow_ones():
    rope = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
                high_freq_factor=4.0, original_max_position_embeddings=8192)
    plain = rotary.rotation_speeds({"rope_type": "default", "rope_theta": 500000.0}, 128)
    ratio, turns = rotary.rotation_speeds(rope, 128) / plain, plain * 8192 / (2 * math.pi)
    assert (ratio[turns > 4] == 1).all() and torch.allclose(ratio[turns < 1], torch.tensor(1 / 8))
    between = ratio[(turns > 1) & (turns < 4)]
    assert (len(between) > 3 and (between.diff() < 0).all() and between.min() > 1 / 8
            and between.max() < 1)


def test_no_rotation_is_a_parameter_or_a_buffer():
    for name in ROTATED:
        assert not list(load(MODELS / name)[1].buffers()), (
            f"{name}: a buffer is a value that no file fills")


def test_fresh_norms_of_gemma_multiply_with_one():
    model = initialise_weights(Gemma.from_config(plain("gemma")), 0)
    assert not model.layers[0].attention_norm.weight.any() and not model.final_norm.weight.any()
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model.final_norm(x), RMSNorm(12, 1e-6)(x)), (
        "1 + 0 times the normalised vector")


def test_gemma_rounds_its_factor_with_the_weights():
    transformers = imported("transformers")
    model = Gemma.from_config(plain("gemma")).to(torch.bfloat16)
    with torch.no_grad(), may_refuse():
        config = transformers.GemmaConfig(**plain("gemma"))
        theirs = transformers.GemmaForCausalLM(config).to(torch.bfloat16)
        model.word_embeddings.weight.copy_(theirs.model.embed_tokens.weight)
        theirs.model.norm.weight.uniform_(-1, 1)
        model.final_norm.weight.copy_(theirs.model.norm.weight)
        ids = torch.arange(30).view(1, 30)
        found = model.embed(ids, Rows(torch.ones_like(ids)))
        expected = theirs.model.embed_tokens(ids)[0]
        assert torch.equal(found, expected), "in bf16 the embeddings should be the same bits"
        assert torch.equal(model.final_norm(found), theirs.model.norm(expected)), (
            "in bf16 the norm should be the same bits")


@pytest.mark.parametrize("name", STORED)
@torch.inference_mode()
def test_bf16_is_near(name, stored):
    model = load(MODELS / name)[1]
    ids, mask = stored[name]["ids"], stored[name]["mask"]
    exact, found = model(ids, mask), model.to(torch.bfloat16)(ids, mask)
    assert found.dtype == torch.bfloat16, f"{name}: a step leaves the dtype of the weights"
    assert (found - exact).abs().mean() < 0.1 * exact.abs().mean(), f"{name}: bf16 is another model"


def test_dropout_acts_in_training_only():
    cases = [(GPT2, plain("gpt2", embd_pdrop=0, resid_pdrop=0, attn_pdrop=0), key)
             for key in ("embd_pdrop", "resid_pdrop", "attn_pdrop")]
    cases += [(cls, plain(kind), "attention_dropout")
              for cls, kind in ((Llama, "llama"), (Mistral, "mistral"), (Gemma, "gemma"),
                                (Gemma2, "gemma2"), (Gemma3, "gemma3_text"))]
    ids, mask = torch.arange(8).view(1, 8), torch.ones(1, 8)
    for cls, config, key in cases:
        model = initialise_weights(cls.from_config(config | {key: 0.5}), 0, 0.5)
        assert not torch.equal(model.train()(ids, mask), model(ids, mask)), (
            f"{cls.__name__}: {key} does nothing in training")
        assert torch.equal(model.eval()(ids, mask), model(ids, mask)), (
            f"{cls.__name__}: {key} acts in evaluation")


# ---------------------------------------------------------------------------------- other spellings

def rewritten(folder, source, names, more=None, config=None):
    """A stored model with tensors renamed by `names`, tensors added, and another config.json."""
    tensors = {names(name): tensor
               for name, tensor in load_file(MODELS / source / "model.safetensors").items()}
    save_file(tensors | (more or {}), folder / "model.safetensors", metadata={"format": "pt"})
    config = config or json.loads((MODELS / source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    return load_backbone(folder)


def same(model, name):
    other, ids = load(MODELS / name)[1], torch.arange(1, 13).view(2, 6)
    return torch.equal(model(ids, torch.ones_like(ids)), other(ids, torch.ones_like(ids)))


@pytest.mark.parametrize("name, prefix", [
    ("gpt2_lm", "transformer."), ("mistral_lm", "model."), ("gemma2_lm", "model.")])
def test_files_without_a_prefix(name, prefix, tmp_path):
    assert same(rewritten(tmp_path, name, lambda tensor: tensor.removeprefix(prefix)), name)


def test_what_old_files_hold_besides_is_dropped(tmp_path):
    mask = {f"h.{i}.attn.bias": torch.ones(1, 1, 24, 24).tril() for i in range(3)}
    mask |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}
    model = rewritten(tmp_path, "gpt2_lm", lambda tensor: tensor.removeprefix("transformer."), mask)
    assert same(model, "gpt2_lm") and sorted(model.report.dropped) == sorted(mask)
    speeds = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    model = rewritten(tmp_path, "llama_lm", str, speeds)
    assert same(model, "llama_lm") and sorted(model.report.dropped) == sorted(speeds)


def test_a_copy_of_the_embeddings_may_stand_in_the_file(tmp_path):
    words = load_file(MODELS / "gpt2_lm" / "model.safetensors")["transformer.wte.weight"]
    assert (list(rewritten(tmp_path, "gpt2_lm", str, {"lm_head.weight": words.clone()}).report.tied)
            == ["lm_head.weight"])
    with pytest.raises(InputError, match="should be tied"):
        rewritten(tmp_path, "gpt2_lm", str, {"lm_head.weight": words + 1})
    words = load_file(MODELS / "gemma3_lm" / "model.safetensors")["model.embed_tokens.weight"]
    copy = "language_model.lm_head.weight"
    assert list(rewritten(tmp_path, "gemma3_lm", "language_model.{}".format,
                          {copy: words.clone()}).report.tied) == [copy]


@pytest.mark.parametrize("spelling", ["old", "new", "body"])
def test_the_text_part_of_files_that_also_see(spelling, tmp_path):
    prefix, sight = {"old": ("language_model.model.", ""),
                     "new": ("model.language_model.", "model."),
                     "body": ("language_model.", "")}[spelling]
    more = {sight + "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": torch.ones(2, 2),
            sight + "multi_modal_projector.mm_input_projection_weight": torch.ones(2, 2)}
    inner = json.loads((MODELS / "gemma3_lm" / "config.json").read_text())
    names = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    outer = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
             "vision_config": VISION, "text_config": inner, "mm_tokens_per_image": 1,
             "image_token_index": 40, "boi_token_index": 41, "eoi_token_index": 42,
             "eos_token_id": [1, 44], **names}
    model = rewritten(tmp_path, "gemma3_lm",
                      lambda tensor: prefix + tensor.removeprefix("model."), more, outer)
    assert same(model, "gemma3_lm") and sorted(model.report.dropped) == sorted(more)
    assert (model.source_config["model_type"] == "gemma3_text"
            and model.source_config["eos_token_id"] == [1, 44])
    assert model.source_config["id2label"] == names["id2label"], (
        "the names of the classes stand outside the text part")
    save_backbone(model, tmp_path)
    assert same(load_backbone(tmp_path), "gemma3_lm"), "saved, it is a text model"
    with pytest.raises(InputError, match="audio_config = .* .unknown"):
        Gemma3.from_config(Gemma3.own_config(outer | {"audio_config": {"layers": 2}}))


def test_a_text_part_that_leaves_all_sizes_out_has_those_of_transformers():
    with may_refuse():
        theirs = imported("transformers").Gemma3TextConfig().to_dict()
    ours = Gemma3.config_fields({"model_type": "gemma3_text"}, "config.json")
    for key in Gemma3.FIELDS:
        expected = theirs.get(key, theirs["hidden_activation"])
        assert ours[key] == expected, f"{key} is {ours[key]!r} here, {expected!r} in transformers"
    assert ours["rope"] == theirs["rope_parameters"]


@pytest.mark.parametrize("kind, cls", [
    ("gpt2", GPT2), ("llama", Llama), ("mistral", Mistral), ("qwen2", Qwen2), ("qwen3", Qwen3),
    ("gemma", Gemma), ("gemma2", Gemma2)])
def test_defaults_are_those_of_transformers(kind, cls):
    transformers = imported("transformers")
    with may_refuse():
        theirs = getattr(transformers, KINDS[kind][0])().to_dict()
    sizes = {key: theirs[key] for key, default in cls.FIELDS.items() if default is REQUIRED}
    with torch.device("meta"):
        ours = cls.from_config(
            {"model_type": kind, **sizes} | ({"n_layer": 1} if kind == "gpt2" else {})).config
    theirs |= {"n_inner": 3072, "n_layer": 1} if kind == "gpt2" else {}
    theirs |= ({"head_dim": theirs["hidden_size"] // theirs["num_attention_heads"]}
               if kind == "qwen2" else {})
    for key in cls.FIELDS:
        expected = theirs.get(key, theirs.get("hidden_activation"))
        assert ours[key] == expected, (
            f"{kind}: {key} is {ours[key]!r} here, {expected!r} in transformers")
    assert kind == "gpt2" or ours["rope"] == theirs["rope_parameters"]


@pytest.mark.parametrize("given, found", [
    ({}, "gelu_pytorch_tanh"),
    ({"hidden_act": "gelu"}, "gelu_pytorch_tanh"), ({"hidden_act": "relu"}, "relu"),
    ({"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}, "gelu_pytorch_tanh"),
    ({"hidden_act": "gelu_pytorch_tanh", "hidden_activation": None}, "gelu_pytorch_tanh")])
def test_the_gate_of_gemma_goes_by_two_names(given, found):
    assert Gemma.config_fields(plain("gemma") | given, "config.json")["hidden_act"] == found


# ---------------------------------------------------------------------------------- what is refused

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=8)
REFUSED = [
    (GPT2, dict(add_cross_attention=True), "add_cross_attention = True"),
    (GPT2, dict(n_head=5), "12 is not a multiple of n_head 5"),
    (GPT2, dict(activation_function="swish"), "activation_function = 'swish' is not supported"),
    (GPT2, dict(n_inner=2.5), "n_inner = 2.5 .should be a whole number"),
    (GPT2, dict(window=3), "window = 3 .unknown"),
    (Llama, dict(sliding_window=4), "sliding_window = 4 .unknown"),
    (Llama, dict(num_key_value_heads=3), "2 is not a multiple of "),
    (Llama, dict(num_key_value_heads=0), "num_key_value_heads = 0"),
    (Llama, dict(head_dim=3), "head_dim 3 is odd"),
    (Llama, dict(head_dim=None, num_attention_heads=5),
     "12 is not a multiple of num_attention_heads 5"),
    (Llama, dict(hidden_act="glu"), "hidden_act = 'glu' is not supported"),
    (Llama, dict(partial_rotary_factor=0.5), "partial_rotary_factor = 0.5"),
    (Llama, dict(rope_parameters={"partial_rotary_factor": 0.5}),
     "partial_rotary_factor other than 1"),
    (Llama, dict(rope_scaling={"type": "yarn", "factor": 2.0}),
     "rope_type = 'yarn' is not supported; supported: default, linear"),
    (Llama, dict(rope_scaling={"type": "linear"}), "missing or too many: factor"),
    (Llama, dict(rope_scaling={"type": "default", "factor": 2.0}), "missing or too many: factor"),
    (Llama, dict(rope_scaling={"type": "linear", "factor": "2"}),
     "factor = '2' .should be a number above 0"),
    (Llama, dict(rope_scaling=LLAMA3 | {"high_freq_factor": 1.0}),
     "low_freq_factor 1.0 must be below"),
    (Llama, dict(rope_scaling={"type": "linear", "rope_type": "llama3"}),
     "rope_type of the rotary embedding is given twice"),
    (Llama, dict(rope_theta=10.0, rope_parameters={"rope_theta": 20.0}),
     "rope_theta of .* twice, as 20.0 and as 10.0"),
    (Llama, dict(rope_parameters={"rope_type": "default"}, rope_scaling=LLAMA3),
     "rope_type of .* given twice"),
    (Llama, dict(rope_scaling=7), "7 should be an object"),
    (Llama, dict(rope_theta=0), "rope_theta = 0"),
    (Mistral, dict(sliding_window=0), "sliding_window = 0"),
    (Mistral, dict(sliding_window=2.5), "sliding_window = 2.5"),
    (Mistral, dict(attention_bias=True), "attention_bias = True"),
    (Mistral, dict(layer_types=["full_attention"] * 2), "layer_types"),
    (Qwen2, dict(attention_bias=False), "attention_bias = False .only True"),
    (Qwen2, dict(max_window_layers=-1),
     "max_window_layers = -1 .should be a whole number from 0 up"),
    (Qwen2, dict(max_window_layers=1.5), "max_window_layers = 1.5"),
    (Qwen2, dict(sliding_window=0), "sliding_window = 0"),
    (Qwen2, dict(use_sliding_window=1), "use_sliding_window = 1 .should be true or false"),
    (Qwen2, dict(use_sliding_window=False, layer_types=["sliding_attention"] * 2),
     "there is no window: use_sliding_window"),
    (Qwen3, dict(sliding_window=None, layer_types=["sliding_attention"] * 2), "there is no window"),
    (Qwen2, dict(layer_types=["full_attention"]), "names 1 layers, num_hidden_layers is 2"),
    (Qwen2, dict(layer_types=["full_attention", "chunked"]),
     "layer_types = 'chunked' is not supported"),
    (Qwen3, dict(rope_scaling={"type": "yarn", "factor": 4.0}),
     "rope_type = 'yarn' is not supported"),
    (Qwen3, dict(head_dim=5), "head_dim 5 is odd"),
    (Gemma, dict(use_bidirectional_attention=True),
     "use_bidirectional_attention = True is not supported"),
    (Gemma, dict(hidden_activation="relu"),
     "hidden_act and hidden_activation disagree: gelu_pytorch_tanh, relu"),
    (Gemma2, dict(hidden_act="silu"), "disagree"),
    (Gemma2, dict(attn_logit_softcapping=0), "attn_logit_softcapping = 0"),
    (Gemma2, dict(layer_types=["full_attention"]), "names 1 layers, num_hidden_layers is 2"),
    (Gemma2, dict(layer_types=["full_attention", "chunked"]),
     "layer_types = 'chunked' is not supported"),
    (Gemma2, dict(sliding_window=None), "sliding_window = None"),
    (Gemma2, dict(query_pre_attn_scalar=0), "query_pre_attn_scalar = 0"),
    (Gemma3, dict(attn_logit_softcapping=50.0), "attn_logit_softcapping = 50.0"),
    (Gemma3, dict(final_logit_softcapping=30.0), "final_logit_softcapping = 30.0"),
    (Gemma3, dict(use_bidirectional_attention=True), "use_bidirectional_attention"),
    (Gemma3, dict(rope_parameters={"rope_theta": 10.0}),
     "one object for full_attention and one for sliding_attention"),
    (Gemma3, dict(rope_parameters={"full_attention": {"rope_theta": 5.0}}, rope_theta=6.0),
     "rope_theta of .* given twice"),
    (Gemma3, dict(sliding_window_pattern=2, _sliding_window_pattern=3),
     "sliding_window_pattern and _sliding_window_pattern"),
]
KIND_OF = {GPT2: "gpt2", Llama: "llama", Mistral: "mistral", Qwen2: "qwen2", Qwen3: "qwen3",
           Gemma: "gemma", Gemma2: "gemma2", Gemma3: "gemma3_text"}


@pytest.mark.parametrize("cls, change, message", [
    pytest.param(*r, id=f"{r[0].__name__}-{i}") for i, r in enumerate(REFUSED)])
def test_what_is_not_built_is_refused_by_name(cls, change, message):
    cls.from_config(plain(KIND_OF[cls]))
    with pytest.raises(InputError, match=message) as error:
        cls.from_config(plain(KIND_OF[cls]) | change)
    assert str(error.value).startswith("config.json: ") and "\n" not in str(error.value)


def test_a_text_longer_than_the_positions_of_gpt2_is_an_error_with_both_numbers():
    model = load(MODELS / "gpt2_lm")[1]
    assert model.max_tokens == 24 and len(states(model, [[4] * 24, [5]], "left", width=40)[0]) == 24
    with pytest.raises(InputError, match="25 tokens .* 24 positions"):
        states(model, [[5], [4] * 25])


def test_an_untied_body_alone_has_no_logits(tmp_path):
    model = rewritten(tmp_path, "llama_lm", lambda tensor: tensor)
    assert model.has_logits and not model.tied
    tensors = load_file(MODELS / "llama_lm" / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="no language-model head: load one that was saved with it "
                       ".LlamaForCausalLM"):
        load_backbone(tmp_path).logits(torch.zeros(1, 24))


def test_reorder_and_upcast_is_the_same_maths(tmp_path, stored):
    config = (json.loads((MODELS / "gpt2_lm" / "config.json").read_text())
              | {"reorder_and_upcast_attn": True})
    transformers = imported("transformers")
    ids, mask = stored["gpt2_lm"]["ids"], stored["gpt2_lm"]["mask"]
    ours = rewritten(tmp_path, "gpt2_lm", str, config=config)
    with torch.inference_mode(), may_refuse():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, attn_implementation="eager").eval()
        assert theirs.transformer.h[0].attn.reorder_and_upcast_attn
        expected = theirs(input_ids=ids, attention_mask=mask).logits
        found = ours.logits(ours(ids, mask))
        apart = (found - expected)[mask.bool()].abs().max() / expected[mask.bool()].abs().max()
    assert apart <= FP32, f"{apart:.2g} apart"


# ------------------------------------------------------------------------------- models that learnt

def real(name):
    if not (SHARED / name).exists():
        pytest.skip(f"{name} is a real model that does not travel with the code: put it into "
                    "shared/weights/")
    return SHARED / name, load_backbone(SHARED / name)


@torch.inference_mode()
def continued(model, ids, count):
    """ids (B, T) and the `count` likeliest next tokens, each computed anew -> (B, T + count)."""
    for _ in range(count):
        last = model(ids, torch.ones_like(ids))[:, -1]
        ids = torch.cat([ids, model.logits(last).argmax(-1, keepdim=True)], 1)
    return ids


def test_a_real_gpt2_sorts():
    _, model = real("gpt-nano-sort")
    letters = torch.cartesian_prod(*[torch.arange(3)] * 6)                           # (729, 6)
    answers = continued(model, letters, 6)[:, 6:]
    right = (answers == letters.sort(1).values).all(1).sum().item()
    assert right == 729, f"{right} of 729 inputs are sorted right"


def test_a_real_gpt2_has_the_activations_that_its_authors_published():
    folder, model = real("gpt-nano-sort")
    golden = load_file(folder / "golden_activations.safetensors")
    steps = trace(model, golden["idx"], torch.ones_like(golden["idx"]))
    ours = {"x": steps["embeddings"], "ln_f": steps["hidden"],
            "lm_head": model.logits(steps["hidden"])}
    ours |= ({f"block{i}": steps[f"layer {i}"] for i in range(3)}
             | {"probs": ours["lm_head"].softmax(-1)})
    ours = {name: tensor.view(golden[name].shape).detach() for name, tensor in ours.items()}
    found = first_difference(ours, {name: golden[name] for name in ours}, 1e-5)
    assert found is None, f"not what the original model computed: {found}"


def test_a_real_llama_tells_its_story():
    folder, model = real("stories260K")
    sentencepiece = pytest.importorskip("sentencepiece",
                                        reason="its tokenizer is a SentencePiece model")
    ids = continued(model, torch.tensor([[1]]), 200)[0].tolist()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    text = processor.decode(ids)
    assert text == (folder / "expected_greedy_200.txt").read_text(encoding="utf-8")
