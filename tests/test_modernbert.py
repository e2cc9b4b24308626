"""Is ModernBERT what transformers says it is, layer by layer, and would the tests notice if it were
not?

As test_deberta.py: two stored models with exaggerated weights (reference/make_modernbert.py), one
wired as the released files and one otherwise wherever the family allows it; transformers itself on
random configurations; known-wrong variants; and what needs no reference. All batches are ragged,
with texts that are much longer than the window.
"""
import functools
import json
import math
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import MODELS, assert_padding_changes_nothing, batch_of, first_difference, fp32
from hypothesis import HealthCheck, given, settings, strategies as st
from live import imported, loaded, may_refuse
from safetensors.torch import load_file, save_file
from small import PIECES
from stored import compute_encoder, in_dtype, load_without_tokenizer, stored_models
from torch import nn

from minillmclf.classify.classifier import Classifier
from minillmclf.classify.family_heads import ModernBertHead
from minillmclf.errors import InputError
from minillmclf.models import initialise_weights, load_backbone, modernbert, save_backbone
from minillmclf.models.config import REQUIRED
from minillmclf.models.layers import ACTIVATIONS, Rows, attention_by_hand
from minillmclf.models.modernbert import ModernBert, ModernBertLayer, masked_attention, nearby_mask
from minillmclf.text.tokenizers.tokenizer import WordPiece

CLASSIFIER, MASKED_LM = STORED = ("modernbert_classifier", "modernbert_masked_lm")
FP32 = fp32(width=48, depth=6)    # embeddings, four blocks, head
# as the first released files have it (written down from memory of the hub, not copied from there)
RELEASED = dict(
    model_type="modernbert", architectures=["ModernBertForMaskedLM"], attention_bias=False,
    attention_dropout=0.0, bos_token_id=50281, classifier_activation="gelu", classifier_bias=False,
    classifier_dropout=0.0, classifier_pooling="mean", cls_token_id=50281, decoder_bias=True,
    deterministic_flash_attn=False, embedding_dropout=0.0, eos_token_id=50282,
    global_attn_every_n_layers=3, global_rope_theta=160000.0, gradient_checkpointing=False,
    hidden_activation="gelu", hidden_size=768, initializer_cutoff_factor=2.0,
    initializer_range=0.02, intermediate_size=1152, layer_norm_eps=1e-05, local_attention=128,
    local_rope_theta=10000.0, max_position_embeddings=8192, mlp_bias=False, mlp_dropout=0.0,
    norm_bias=False, norm_eps=1e-05, num_attention_heads=12, num_hidden_layers=22,
    pad_token_id=50283, position_embedding_type="absolute", reference_compile=None,
    repad_logits_with_grad=False, sep_token_id=50282, sparse_pred_ignore_index=-100,
    sparse_prediction=False, tie_word_embeddings=True, torch_dtype="float32", vocab_size=50368)
TINY = dict(model_type="modernbert", vocab_size=30, hidden_size=8, num_hidden_layers=4,
            num_attention_heads=2, intermediate_size=6, max_position_embeddings=40,
            local_attention=4)


# ------------------------------------------------------------------------------------------- parity

load = load_without_tokenizer


def compute(folder, batch, dtype=torch.float32):
    """stored.compute_encoder of our model in `folder`."""
    model, body = load(folder)
    model.to(dtype)
    return compute_encoder(model, body, batch)


def compare(ours, expected, tolerance):
    """None, or the first step of what make_modernbert.run computed that `compute` found otherwise;
    gradients last."""
    order = ["embeddings", *sorted(name for name in expected if name.startswith("layer ")), "norm",
             "logits", "loss"]
    gradients = {name: tensor
                 for name, tensor in expected.items() if name.startswith("gradient of ")}
    assert len(gradients) > 10, "gradients of every kind are compared"
    steps = {name: expected[name] for name in order}
    return (first_difference(ours, steps, tolerance, relative=True)
            or first_difference(ours, gradients, 1e-4, relative=True))


stored = stored_models(STORED)


@pytest.fixture(scope="module")
def transformers():
    return imported("transformers")


def parity(name, stored, dtype=torch.float32, tolerance=FP32):
    """None, or the first step of the stored model `name` that differs by more than these parts of
    its largest number."""
    expected = in_dtype(stored[name], dtype)
    return compare(compute(MODELS / name, stored[name], dtype), expected, tolerance)


# In float64 the rotation is still in float32, on both sides.
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, FP32), (torch.float64, fp32(1, 1))])
@pytest.mark.parametrize("name", STORED)
def test_every_step_is_that_of_transformers(name, stored, dtype, tolerance):
    found = parity(name, stored, dtype, tolerance)
    assert found is None, f"{name} in {dtype}: not what transformers computed, {found}"


def test_the_stored_batches_show_what_could_be_wrong(stored):
    for name, batch in stored.items():
        lengths, (model, body) = batch["mask"].sum(1), load(MODELS / name)
        assert len(set(lengths.tolist())) >= 3, (
            f"{name}: padding could be wrong unseen, lengths are {lengths}")
        assert lengths.max() > 3 * body.config["local_attention"], (
            f"{name}: no text is much longer than the window")
        for norm in (module for module in model.modules() if isinstance(module, nn.LayerNorm)):
            assert (norm.weight - 1).abs().mean() > 0.1, (
                f"{name}: weights of 1 hide a norm that is left out")
            assert norm.bias is None or norm.bias.abs().mean() > 0.1, (
                f"{name}: biases of 0 hide a bias that is left out")
    kinds = [load(MODELS / name)[1].config["layer_types"][0] for name in STORED]
    assert kinds == ["full_attention", "sliding_attention"], (
        "the first layer is global in one model, local in the other")


# ------------------------------------------------------------------------------------ random models

def rope(draw):
    kind = draw(st.sampled_from(["default", "linear"]))
    theta = {"rope_theta": draw(st.sampled_from([7.0, 1e4]))}
    return theta | {"rope_type": kind} | ({"factor": 4.0} if kind == "linear" else {})


@st.composite
def numbers(draw):
    """A random configuration, as keyword arguments of transformers' ModernBertConfig."""
    heads, layers = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    activations = sorted(ACTIVATIONS)
    config = dict(vocab_size=draw(st.integers(20, 40)), num_attention_heads=heads,
                  num_hidden_layers=layers, hidden_size=heads * draw(st.sampled_from([2, 4, 6])),
                  intermediate_size=draw(st.integers(3, 20)), max_position_embeddings=64,
                  norm_eps=draw(st.sampled_from([1e-5, 1e-2])),
                  local_attention=draw(st.integers(1, 12)),
                  hidden_activation=draw(st.sampled_from(activations)),
                  classifier_activation=draw(st.sampled_from(activations)),
                  classifier_pooling=draw(st.sampled_from(["cls", "mean"])), pad_token_id=0,
                  bos_token_id=None, eos_token_id=None, cls_token_id=None, sep_token_id=None,
                  rope_parameters={"full_attention": rope(draw), "sliding_attention": rope(draw)})
    config |= {key: draw(st.booleans())
               for key in ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")}
    if draw(st.booleans()):
        return config | {"global_attn_every_n_layers": draw(st.integers(1, 4))}
    kinds = st.sampled_from(["full_attention", "sliding_attention"])
    return config | {"layer_types": draw(st.lists(kinds, min_size=layers, max_size=layers))}


@pytest.mark.parametrize("kind", ["ModernBertForMaskedLM", "ModernBertForSequenceClassification"])
@given(drawn=numbers(), data=st.data(), seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow])
def test_random_models_are_those_of_transformers(kind, drawn, data, seed):
    transformers = imported("transformers")
    from reference import make_fixtures, make_modernbert
    with may_refuse():
        config = transformers.ModernBertConfig(**drawn, num_labels=3, attn_implementation="eager")
        model = make_modernbert.exaggerate(getattr(transformers, kind)(config), seed)
    lengths = data.draw(st.lists(st.integers(2, 20), min_size=1, max_size=4))
    ids, mask, _ = make_fixtures.random_batch(config, seed, lengths)
    labels = (make_fixtures.masked_labels(ids, mask) if "Masked" in kind
              else torch.arange(len(ids)) % 3)
    with tempfile.TemporaryDirectory() as folder:
        with may_refuse():
            model.save_pretrained(folder)
        ours = compute(Path(folder), {"ids": ids, "mask": mask, "labels": labels}, torch.float64)
    with may_refuse():
        expected = make_modernbert.run(model, ids, mask, labels)
    found = compare(ours, expected, fp32(1, 6))               # transformers rotates in float32
    assert found is None, f"{kind}: {found}"


def test_old_spellings_are_the_new_ones(tmp_path):
    """Released files have a base for each kind of layer and the distance of global layers; new ones
    have two tables."""
    for number, every in enumerate((1, 2, 3, 9)):
        old = TINY | {"global_rope_theta": 50.0, "local_rope_theta": 5.0,
                      "global_attn_every_n_layers": every}
        kinds = ["full_attention",
                 *("full_attention" if n % every == 0 else "sliding_attention" for n in (1, 2, 3))]
        new = TINY | {"layer_types": kinds, "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 50.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5.0}}}
        models = [initialise_weights(ModernBert.from_config(config), 0, 0.3).eval()
                  for config in (old, new)]
        ids, mask = batch_of([list(range(1, 20)), [4, 5, 6]])
        assert torch.equal(*(model(ids, mask) for model in models)), f"every {every}"
        transformers = imported("transformers")
        with may_refuse():
            theirs = transformers.ModernBertConfig(
                **{key: value for key, value in old.items() if key != "model_type"})
        assert theirs.layer_types == models[0].config["layer_types"] == kinds
        assert ({kind: numbers["rope_theta"] for kind, numbers in theirs.rope_parameters.items()}
                == {kind: numbers["rope_theta"]
                    for kind, numbers in models[0].config["rope"].items()})


def test_the_released_configuration_is_read():
    c = ModernBert.config_fields(RELEASED, "config.json")
    assert c["layer_types"].count("full_attention") == 8 and c["layer_types"][:4] == [
        "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert (c["rope"]["full_attention"]["rope_theta"],
            c["rope"]["sliding_attention"]["rope_theta"]) == (160000.0, 10000.0)
    with torch.device("meta"):
        model = ModernBert.from_config(RELEASED, lm_head=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == 149_655_232, (
        "ModernBERT-base: 149 million")
    assert model.max_tokens == 8192


def test_defaults_are_those_of_transformers(transformers):
    with may_refuse():
        theirs = transformers.ModernBertConfig().to_dict()
    sizes = {key: theirs[key] for key, default in ModernBert.FIELDS.items() if default is REQUIRED}
    ours = ModernBert.config_fields({"model_type": "modernbert", **sizes}, "config.json")
    for key in ModernBert.FIELDS:
        if key in theirs:
            assert ours[key] == theirs[key], (
                f"{key} is {ours[key]!r} here, {theirs[key]!r} in transformers")
    assert ours["rope"] == theirs["rope_parameters"] and ours["local_attention"] == 128


# ----------------------------------------------------------------------------- would it be noticed?

def reads(patch, **changes):
    """Let ModernBERT read other numbers from config.json than stand there; a change may be a
    function of the fields."""
    read = ModernBert.config_fields.__func__
    patch.setattr(ModernBert, "config_fields", classmethod(
        lambda c, *given: (fields := read(c, *given))
        | {key: change(fields) if callable(change) else change for key, change in changes.items()}))


def tanh_gelu(patch):
    patch.setitem(ACTIVATIONS, "gelu", ACTIVATIONS["gelu_new"])


def other_eps(patch):
    reads(patch, norm_eps=1e-5)


def window_of_both_sides(patch):
    reads(patch, local_attention=lambda fields: 2 * fields["local_attention"])


def window_one_narrower(patch):
    patch.setattr(modernbert, "nearby_mask", lambda rows, reach: nearby_mask(rows, reach - 1))


def window_one_wider(patch):
    patch.setattr(modernbert, "nearby_mask", lambda rows, reach: nearby_mask(rows, reach + 1))


def no_window(patch):
    patch.setattr(modernbert, "nearby_mask", lambda rows, reach: rows.padding_mask)


def window_backwards_only(patch):
    patch.setattr(modernbert, "nearby_mask", lambda rows, reach: rows.causal_mask(reach + 1))


def padding_seen(patch):
    def wrong(rows, reach):
        return (rows.distance().abs() <= reach).unsqueeze(1)
    patch.setattr(modernbert, "nearby_mask", wrong)
    patch.setattr(Rows, "padding_mask", None)


def one_base_for_all(patch):
    reads(patch,
          rope=lambda fields: dict.fromkeys(fields["rope"], fields["rope"]["full_attention"]))


def local_base_for_all(patch):
    reads(patch,
          rope=lambda fields: dict.fromkeys(fields["rope"], fields["rope"]["sliding_attention"]))


def every_layer_local(patch):
    reads(patch, layer_types=lambda fields: ["sliding_attention"] * len(fields["layer_types"]))


def global_layers_one_late(patch):
    reads(patch, layer_types=lambda fields: fields["layer_types"][-1:] + fields["layer_types"][:-1])


def neighbours_rotated(patch):
    def wrong(x, cos, sin):
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)
    patch.setattr(modernbert, "rotate", wrong)


def gate_and_up_exchanged(patch):
    def wrong(self, x):
        up, gate = self.gate_up_proj(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down_proj(self.activation(gate) * up)
    patch.setattr(ModernBertLayer, "mlp", wrong)


def heads_before_thirds(patch):
    def wrong(self, x, rows, rotation, seen):
        qkv = self.qkv_proj(self.attention_norm(x))
        q, k, v = qkv.unflatten(-1, (self.heads, 3, -1)).unbind(2)
        q, k = (modernbert.rotate(vectors, *rotation) for vectors in (q, k))
        return x + self.o_proj(masked_attention(q, k, v, rows, seen))
    patch.setattr(ModernBertLayer, "attend", wrong)


def norm_before_the_first_block(patch):
    def wrong(self, x, rows, rotation, seen):
        if isinstance(self.attention_norm, nn.Identity):
            x = F.layer_norm(x, x.shape[-1:], eps=1e-3)
        return self.mlp(self.attend(x, rows, rotation, seen))
    patch.setattr(ModernBertLayer, "forward", wrong)


def post_norm(patch):
    def wrong(self, x, rows, rotation, seen):
        norm, self.attention_norm = self.attention_norm, nn.Identity()
        try:
            x = norm(self.attend(x, rows, rotation, seen))
        finally:
            self.attention_norm = norm
        return self.mlp(x)
    patch.setattr(ModernBertLayer, "forward", wrong)


def no_final_norm(patch):
    patch.setattr(ModernBert, "finish", lambda self, x: x)


def embeddings_not_normalised(patch):
    patch.setattr(
        ModernBert, "embed",
        lambda self, ids, rows, types=None: self.dropout(self.word_embeddings(rows.unpad(ids))))


def first_for_mean(patch):
    reads(patch, classifier_pooling="cls")


def head_without_norm(patch):
    patch.setattr(ModernBertHead, "features", lambda self, hidden, mask: self.activation(self.dense(
        (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True))))


def lm_without_activation(patch):
    patch.setattr(modernbert.ModernBertLMHead, "forward",
                  lambda self, hidden, words: self.norm(self.dense(hidden)) @ words.T + self.bias)


def lm_without_bias(patch):
    patch.setattr(
        modernbert.ModernBertLMHead, "forward",
        lambda self, hidden, words: self.norm(self.activation(self.dense(hidden))) @ words.T)


LOCAL = {CLASSIFIER: "layer 1", MASKED_LM: "layer 0"}        # the first layer with a window
WRONG = [(tanh_gelu, CLASSIFIER, "layer 0"), *((other_eps, name, "embeddings") for name in STORED),
         *((embeddings_not_normalised, name, "embeddings") for name in STORED),
         *((wrong, name, LOCAL[name]) for name in STORED
           for wrong in (window_of_both_sides, window_one_narrower, window_one_wider, no_window,
                         window_backwards_only)),
         *((wrong, name, "layer 0") for name in STORED
           for wrong in (padding_seen, neighbours_rotated, gate_and_up_exchanged,
                         heads_before_thirds)),
         (one_base_for_all, CLASSIFIER, "layer 1"), (one_base_for_all, MASKED_LM, "layer 0"),
         (local_base_for_all, CLASSIFIER, "layer 0"), (local_base_for_all, MASKED_LM, "layer 1"),
         (every_layer_local, CLASSIFIER, "layer 0"), (every_layer_local, MASKED_LM, "layer 1"),
         (global_layers_one_late, CLASSIFIER, "layer 1"),
         (norm_before_the_first_block, CLASSIFIER, "layer 0"), (post_norm, CLASSIFIER, "layer 1"),
         *((no_final_norm, name, "norm") for name in STORED),
         *((wrong, CLASSIFIER, "logits") for wrong in (first_for_mean, head_without_norm)),
         *((wrong, MASKED_LM, "logits") for wrong in (lm_without_activation, lm_without_bias))]


@pytest.mark.parametrize("wrong, name, step",
                         [pytest.param(*w, id=f"{w[0].__name__}-{w[1]}") for w in WRONG])
def test_known_wrong_variants_fail_at_their_layer(wrong, name, step, stored, monkeypatch):
    wrong(monkeypatch)
    found = parity(name, stored)
    assert found is not None, (
        f"{wrong.__name__} is not noticed: the stored {name} cannot tell it from the right model")
    assert found.startswith(step + " differs"), (
        f"{wrong.__name__} should be seen first at {step}, but {found}")


# ------------------------------------------------------------------------------ windows and padding

def states(model, texts, side="right", pad=0, width=None):
    """Hidden states of the real tokens of each text of a batch: [(T, D), ...]."""
    ids, mask = batch_of(texts, side, pad, width)
    return [row[m.bool()] for row, m in zip(model(ids, mask), mask)]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, FP32), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", STORED)
@torch.inference_mode()
def test_padding_and_batch_mates_change_nothing(name, dtype, tolerance):
    model = load(MODELS / name)[1].to(dtype)
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(60, (length,), generator=draw).tolist() for length in (5, 31, 1, 12)]
    texts[0][2] = texts[1][-1] = texts[3][0] = 0       # a text may hold the padding's id as a token
    assert_padding_changes_nothing(name, functools.partial(states, model), texts, tolerance)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
       side=st.sampled_from(["left", "right"]), reach=st.integers(0, 9), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_local_attention_is_attention_by_hand(lengths, side, reach, seed):
    draw = torch.Generator().manual_seed(seed)
    rows = Rows(batch_of([[1] * length for length in lengths], side, 0)[1])
    q, k, v = torch.randn(3, sum(lengths), 2, 4, generator=draw, dtype=torch.float64) * 3
    seen = torch.zeros(len(lengths), 1, rows.mask.shape[1], rows.mask.shape[1], dtype=torch.bool)
    for row, real in enumerate(rows.mask):                             # written out, token by token
        places = real.nonzero().flatten().tolist()
        for i, query in enumerate(places):
            for j, key in enumerate(places):
                seen[row, 0, query, key] = abs(i - j) <= reach
        seen[row, 0, ~real, places[0]] = True         # padding may see what it likes, but something
    found = masked_attention(q, k, v, rows, nearby_mask(rows, reach))
    assert (found.isfinite().all()
            and (found - attention_by_hand(q, k, v, rows, seen)).abs().max() <= 1e-12)


@torch.inference_mode()
def test_a_token_sees_both_ways_as_far_as_the_window_and_global_layers_reach():
    text = list(range(1, 26))
    for kinds, reach in ((["sliding_attention"], 2), (["sliding_attention"] * 2, 4),
                         (["full_attention"], 24), (["full_attention", "sliding_attention"], 24)):
        config = TINY | {"layer_types": kinds, "num_hidden_layers": len(kinds)}
        model = initialise_weights(ModernBert.from_config(config), 3, 0.5).double().eval()
        base = states(model, [text])[0]
        for place in (0, 12, 24):
            changed = states(model, [text[:place] + [27] + text[place + 1:]])[0]
            moved = [i for i in range(25) if not torch.equal(changed[i], base[i])]
            assert moved == [i for i in range(25) if abs(i - place) <= reach], (
                f"{kinds}: token {place} reaches {moved}")


def test_dropout_acts_in_training_only():
    ids, mask = torch.arange(8).view(1, 8), torch.ones(1, 8)
    for key in ("embedding_dropout", "attention_dropout", "mlp_dropout"):
        model = initialise_weights(ModernBert.from_config(TINY | {key: 0.5}), 0, 0.5)
        assert not torch.equal(model.train()(ids, mask), model(ids, mask)), (
            f"{key} does nothing in training")
        assert torch.equal(model.eval()(ids, mask), model(ids, mask)), f"{key} acts in evaluation"


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_dropout_stands_where_transformers_has_it(pooling, transformers, tmp_path):
    """The same random numbers drop the same: no padding, all states, both draw as many numbers."""
    shutil.copytree(MODELS / CLASSIFIER, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"embedding_dropout": 0.3, "mlp_dropout": 0.2, "classifier_dropout": 0.4,
               "classifier_pooling": pooling}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, body = load(tmp_path)
    ids = torch.randint(60, (3, 9), generator=torch.Generator().manual_seed(1))
    with may_refuse():
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).train()
        torch.manual_seed(0)
        expected = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.detach()
    model.train()
    torch.manual_seed(0)
    found = model.head(body.states(ids, torch.ones_like(ids)), torch.ones_like(ids)).detach()
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max(), f"{found} and {expected}"


# -------------------------------------------------------------------------------------------- files

def tokenized(folder, source):
    """A copy of a stored model with a tokenizer of the right size."""
    shutil.copytree(MODELS / source, folder, dirs_exist_ok=True)
    WordPiece.from_vocab(PIECES[:60]).save(folder)
    return folder


def test_the_head_of_masked_words_is_where_a_classifier_begins(tmp_path, transformers):
    """As in transformers: of a language model's files only "classifier" is new; of a classifier's,
    no word is guessed."""
    folder = tokenized(tmp_path / "lm", MASKED_LM)
    model = Classifier.from_backbone(folder, ["no", "yes"])
    tensors = load_file(folder / "model.safetensors")
    assert model.report.newly_initialised == ["head.out.weight", "head.out.bias"]
    assert model.report.dropped == ["decoder.bias"]
    assert torch.equal(model.head.dense.weight, tensors["head.dense.weight"])
    assert torch.equal(model.head.norm.bias, tensors["head.norm.bias"])
    with may_refuse():
        _, theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True)
    assert set(theirs["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert Classifier.from_backbone(folder, ["no", "yes"], pool="mean").report.dropped == [
        "decoder.bias", "head.dense.bias", "head.dense.weight", "head.norm.bias",
        "head.norm.weight"]
    body = load_backbone(MODELS / CLASSIFIER)
    assert not body.has_logits and sorted(body.report.dropped) == [
        "classifier.bias", "classifier.weight", "head.dense.weight", "head.norm.weight"]
    with pytest.raises(InputError, match="no language-model head"):
        Classifier.from_backbone(tokenized(tmp_path / "classes", CLASSIFIER), ["no", "yes"],
                                 readout="labels", template="{text} [MASK]")


@pytest.mark.parametrize("missing",
                         ["head.dense.weight", "decoder.bias", "model.layers.1.attn_norm.weight"])
def test_a_missing_tensor_is_named_or_says_that_there_is_no_head(missing, tmp_path):
    folder = tokenized(tmp_path, MASKED_LM)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if name != missing},
              folder / "model.safetensors")
    if missing == "decoder.bias":
        assert not load_backbone(folder).has_logits
        return
    with pytest.raises(InputError, match="nothing in the file fills "
                       "(lm_head.dense.weight|layers.1.attention_norm.weight)"):
        load_backbone(folder)


@pytest.mark.parametrize("name", STORED)
@torch.inference_mode()
def test_what_is_saved_is_read_here_and_by_transformers(name, tmp_path, stored, transformers):
    body = load_backbone(MODELS / name)
    ids, mask = stored[name]["ids"], stored[name]["mask"]
    save_backbone(body, tmp_path)
    hidden = body(ids, mask)
    assert torch.equal(load_backbone(tmp_path)(ids, mask), hidden), (
        f"{name}: saved and loaded, another model")
    kind = transformers.AutoModelForMaskedLM if body.has_logits else transformers.AutoModel
    theirs, report = loaded(kind.from_pretrained, tmp_path, output_loading_info=True)
    assert not any(report.values()), f"{name}: {report}"
    with may_refuse():
        out = theirs(input_ids=ids, attention_mask=mask)
    if body.has_logits:
        expected, found = out.logits, body.logits(hidden)
    else:
        expected, found = out.last_hidden_state, hidden
    apart = (expected - found)[mask.bool()].abs().max() / found[mask.bool()].abs().max()
    assert apart <= FP32, (
        f"{name}: transformers reads another model from our files, {apart:.2g} apart")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_body_alone_has_no_prefix(prefix, tmp_path):
    shutil.copytree(MODELS / CLASSIFIER, tmp_path, dirs_exist_ok=True)
    tensors = load_file(MODELS / CLASSIFIER / "model.safetensors")
    save_file({prefix + name.removeprefix("model."): tensor for name, tensor in tensors.items()
               if name.startswith("model.")}, tmp_path / "model.safetensors")
    ids, mask = batch_of([list(range(1, 30)), [5, 6]])
    with torch.no_grad():
        assert torch.equal(load_backbone(tmp_path)(ids, mask),
                           load_backbone(MODELS / CLASSIFIER)(ids, mask))


@pytest.mark.parametrize("change, message", [
    (dict(hidden_size=6), "hidden_size 6 gives 2 heads an odd width"),
    (dict(num_attention_heads=3), "8 is not a multiple of num_attention_heads 3"),
    (dict(layer_types=["full_attention"]), "names 1 layers, num_hidden_layers is 4"),
    (dict(layer_types=["full_attention"] * 3 + ["chunked"]),
     "layer_types = 'chunked' is not supported"),
    (dict(classifier_pooling="max"),
     "classifier_pooling = 'max' is not supported; supported: cls, mean"),
    (dict(hidden_activation="swish"), "hidden_activation = 'swish'"),
    (dict(local_attention=0), "local_attention = 0"),
    (dict(local_attention=[64, 64]), "local_attention = .64, 64"),
    (dict(global_attn_every_n_layers=0), "global_attn_every_n_layers = 0"),
    (dict(local_rope_theta=None), "local_rope_theta = None .should be a number from"),
    (dict(rope_scaling={"type": "linear", "factor": 2.0}), "rope_scaling = .* .only None"),
    (dict(rope_parameters={"rope_theta": 5.0}),
     "one object for full_attention and one for sliding_attention"),
    (dict(rope_parameters={"sliding_attention": {"rope_theta": 5.0}}, local_rope_theta=6.0),
     "rope_theta of .* given twice"),
    (dict(decoder_bias=False), "decoder_bias = False .only True"),
    (dict(tie_word_embeddings=False), "tie_word_embeddings"),
    (dict(norm_eps=0), "norm_eps = 0"), (dict(mlp_dropout=1.0), "mlp_dropout = 1.0"),
    (dict(head_dim=8), "head_dim = 8 .unknown")])
def test_what_is_not_built_is_refused_by_name(change, message):
    ModernBert.from_config(TINY)
    with pytest.raises(InputError, match=message) as error:
        ModernBert.from_config(TINY | change)
    assert str(error.value).startswith("config.json: ") and "\n" not in str(error.value)


def test_in_a_long_text_nothing_changes_beyond_the_reach_of_the_windows():
    """A thousand tokens, two local layers that reach 4 positions each."""
    config = TINY | {"layer_types": ["sliding_attention"] * 2, "num_hidden_layers": 2,
                     "local_attention": 8, "max_position_embeddings": 1000}
    model = initialise_weights(ModernBert.from_config(config), 3, 0.5).double().eval()
    ids = torch.randint(1, 30, (1, 1000), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        whole, part = model(ids, torch.ones_like(ids)), model(ids[:, :100], torch.ones(1, 100))
    assert (whole[:, :92] - part[:, :92]).abs().max() <= 1e-12 and math.isfinite(whole.sum())
    assert (whole[:, 92:100] - part[:, 92:]).abs().amin(-1).max() > 0, (
        "the last eight see what was cut off")
