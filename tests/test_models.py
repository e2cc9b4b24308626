"""Are BERT, DistilBERT, RoBERTa and XLM-RoBERTa what transformers says they are, layer by layer,
and would the tests notice if they were not?

Two references: eight tiny models with exaggerated weights and what transformers computed with them
in float64, stored by reference/make_fixtures.py (always), and transformers itself on random
configurations (where it is installed). Then what needs no reference: padding, batch mates,
attention by hand. Known-wrong variants must fail, each at its layer.
"""

import functools
import json
import math
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import (MODELS, ROUNDED, assert_padding_changes_nothing, batch_of, first_difference,
                      fp32)
from hypothesis import HealthCheck, given, settings, strategies as st
from live import imported, may_refuse
from stored import compute_encoder, in_dtype, stored_models

from minillmclf.classify.classifier import Classifier
from minillmclf.classify.family_heads import DistilBertHead
from minillmclf.classify.head import POOLINGS, BertHead, pool
from minillmclf.errors import InputError
from minillmclf.models import bert, distilbert, initialise_weights, layers, load_backbone
from minillmclf.models.bert import Bert, Roberta
from minillmclf.models.distilbert import DistilBert
from minillmclf.models.layers import Rows, attention, attention_by_hand

BOTH = ("bert_classifier", "roberta_classifier", "distilbert_classifier", "xlm_roberta_classifier")
MASKED = ("bert_masked_lm", "roberta_masked_lm", "distilbert_masked_lm", "xlm_roberta_masked_lm")
STORED = BOTH + MASKED
FP32 = fp32(width=48, depth=5)    # embeddings, three blocks, head


# ------------------------------------------------------------------------------------------- parity

def load(folder):
    """(the classifier or body that a folder holds, its body); only classifiers have a tokenizer."""
    model = Classifier.load(folder) if (folder / "texts.json").exists() else load_backbone(folder)
    return model, getattr(model, "backbone", model)


def compute(folder, batch, dtype=torch.float32):
    """stored.compute_encoder of our model in `folder`."""
    model, body = load(folder)
    model.to(dtype)
    return compute_encoder(model, body, batch)


def split(expected):
    """What make_fixtures.run gives -> (layers, logits and loss in order, gradients)."""
    steps = ["embeddings", *sorted(name for name in expected if name.startswith("layer ")),
             "logits", "loss"]
    gradients = [name for name in expected if name.startswith("gradient of ")]
    return {name: expected[name] for name in steps}, {name: expected[name] for name in gradients}


stored = stored_models(STORED)


def parity(name, stored, dtype=torch.float32, tolerance=FP32):
    """None, or the first step of the stored model `name` that differs by more than these parts of
    its largest number."""
    steps, gradients = split(in_dtype(stored[name], dtype))
    ours = compute(MODELS / name, stored[name], dtype)
    return (first_difference(ours, steps, tolerance, relative=True)
            or first_difference(ours, gradients, 1e-4, relative=True))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, FP32), (torch.float64, ROUNDED)])
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
        for norm in (module for module in model.modules()
                     if isinstance(module, torch.nn.LayerNorm)):
            assert (norm.weight - 1).abs().mean() > 0.1, (
                f"{name}: weights of 1 hide a norm that is left out")
            assert norm.bias.abs().mean() > 0.1, f"{name}: biases of 0 hide a bias that is left out"
    for name in ("bert_classifier", "distilbert_classifier", "distilbert_masked_lm"):
        assert stored[name]["types"].any(), (
            f"{name}: without pairs, token types that are ignored, or not, would not show")


def test_stored_logits_come_from_the_texts_too(stored):
    for name in BOTH:
        model, _ = load(MODELS / name)
        texts = json.loads((MODELS / name / "texts.json").read_text())
        texts = [text if isinstance(text, str) else tuple(text) for text in texts]
        ids = [ids for ids, _ in model.encode(texts)[0]]
        theirs = [row[m.bool()].tolist()
                  for row, m in zip(stored[name]["ids"], stored[name]["mask"])]
        assert ids == theirs, f"{name}: our tokenizer gives other ids than transformers'"
        scores = model.compute_logits(model.encode(texts)[0], batch_size=2)
        found = first_difference({"scores": scores}, {"scores": stored[name]["logits"]}, FP32,
                                 relative=True)
        assert found is None, (
            f"{name}: batches sorted by length give other scores or another order, {found}")


def numbers(draw, family):
    """A random configuration, as keyword arguments of transformers' class for the family."""
    heads = draw(st.sampled_from([1, 2, 3, 4]))
    config = dict(
        vocab_size=draw(st.integers(20, 40)), num_attention_heads=heads,
        hidden_size=heads * draw(st.integers(2, 9)), num_hidden_layers=draw(st.integers(1, 3)),
        intermediate_size=draw(st.integers(3, 40)),
        hidden_act=draw(st.sampled_from(["gelu", "relu", "gelu_new", "silu", "gelu_pytorch_tanh"])),
        type_vocab_size=draw(st.integers(1, 3)),
        layer_norm_eps=draw(st.sampled_from([1e-12, 1e-5, 1e-2])),
        max_position_embeddings=draw(st.integers(24, 30)))
    if family == "DistilBert":
        fields = {own: config[bert] for own, bert in DistilBert.BERT_FIELDS.items()
                  if bert in config}
        return fields | {name: config[name] for name in ("vocab_size", "max_position_embeddings")}
    return config | {"pad_token_id": draw(st.integers(0, 9))} if "Roberta" in family else config


@pytest.mark.parametrize("family", ["Bert", "Roberta", "XLMRoberta", "DistilBert"])
@given(data=st.data(), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow])
def test_random_models_are_those_of_transformers(family, data, seed):
    transformers = imported("transformers")
    from reference import make_fixtures
    drawn = data.draw(st.composite(numbers)(family))
    with may_refuse():
        config = getattr(transformers, family + "Config")(**drawn, attn_implementation="eager")
        model = make_fixtures.exaggerate(
            getattr(transformers, family + "ForMaskedLM")(config), seed)
    lengths = data.draw(st.lists(st.integers(1, 14), min_size=1, max_size=4))
    ids, mask, types = make_fixtures.random_batch(config, seed, lengths)
    batch = {"ids": ids, "mask": mask, "types": types,
             "labels": make_fixtures.masked_labels(ids, mask)}
    batch["labels"][0, 0] = 7                    # a text of one token has no other place to predict
    with tempfile.TemporaryDirectory() as folder:
        with may_refuse():
            model.save_pretrained(folder)
        ours = compute(Path(folder), batch, torch.float64)
    with may_refuse():
        expected = make_fixtures.run(model, **batch)
    steps, gradients = split(expected)
    # transformers takes the loss in float32
    found = first_difference(ours, steps, fp32(1, 2), relative=True)
    found = found or first_difference(ours, gradients, 1e-4, relative=True)
    assert found is None, f"{family}: {found}"


# ----------------------------------------------------------------------------- would it be noticed?

def tanh_gelu(patch):
    patch.setitem(layers.ACTIVATIONS, "gelu", layers.ACTIVATIONS["gelu_new"])


def erf_gelu(patch):
    patch.setitem(layers.ACTIVATIONS, "gelu_new", layers.ACTIVATIONS["gelu"])


def other_eps(patch):
    read = Bert.config_fields.__func__
    patch.setattr(Bert, "config_fields",
                  classmethod(lambda cls, *given: read(cls, *given) | {"layer_norm_eps": 1e-12}))


def eps_of_roberta(patch):
    read = DistilBert.config_fields.__func__
    patch.setattr(DistilBert, "config_fields",
                  classmethod(lambda cls, *given: read(cls, *given) | {"layer_norm_eps": 1e-5}))


def positions_from_zero(patch):
    embed = Bert.embed

    def wrong(self, ids, rows, types):
        self.position_offset = 0
        return embed(self, ids, rows, types)
    patch.setattr(Bert, "embed", wrong)


def positions_one_late(patch):
    rows = Rows.__init__

    def wrong(self, mask, layout=None):
        rows(self, mask, layout)
        self.positions = self.positions + 1
    patch.setattr(Rows, "__init__", wrong)


def types_ignored(patch):
    embed = Bert.embed
    patch.setattr(Bert, "embed", lambda self, ids, rows, types: embed(self, ids, rows, None))


def pre_norm(patch):
    def wrong(self, x, rows):
        seen = self.attention_norm(x)
        x = x + self.o_proj(attention(*self.project(seen, seen), rows))
        return x + self.down_proj(self.activation(self.up_proj(self.mlp_norm(x))))
    patch.setattr(bert.BertLayer, "forward", wrong)


def no_residual(patch):
    def wrong(self, x, rows):
        seen = attention(*self.project(x, x), rows)
        x = self.attention_norm(self.o_proj(seen))
        return self.mlp_norm(self.down_proj(self.activation(self.up_proj(x))))
    patch.setattr(bert.BertLayer, "forward", wrong)


def mask_ignored(patch):
    patch.setattr(Rows, "padding_mask", None)


def causal(patch):
    def wrong(rows):
        earlier = torch.ones(rows.mask.shape[1], rows.mask.shape[1]).tril().bool()
        return rows.mask[:, None, None, :] & earlier
    patch.setattr(Rows, "padding_mask", property(wrong))


def unscaled(patch):
    def wrong(q, k, v, rows, dropout):
        return attention(q * math.sqrt(q.shape[2]), k, v, rows, dropout)
    for file in (bert, distilbert):
        patch.setattr(file, "attention", wrong)


def scaled_by_the_model(patch):
    def wrong(q, k, v, rows, dropout):
        return attention(q / math.sqrt(q.shape[1]), k, v, rows, dropout)
    for file in (bert, distilbert):
        patch.setattr(file, "attention", wrong)


def heads_interleaved(patch):
    project = bert.BertLayer.project

    def wrong(self, x, queries):
        return (y.flatten(1).unflatten(-1, (-1, self.heads)).transpose(1, 2)
                for y in project(self, x, queries))
    patch.setattr(bert.BertLayer, "project", wrong)


def keys_for_queries(patch):
    for file in (bert, distilbert):
        patch.setattr(file, "attention", lambda q, k, v, *more: attention(k, q, v, *more))


def dropout_left_on(patch):
    patch.setattr(torch.nn.Module, "eval", lambda self: self)


def mean_for_first(patch):
    for file in ("head", "family_heads"):
        patch.setattr(f"minillmclf.classify.{file}.pool",
                      lambda hidden, mask, how: pool(hidden, mask, "mean"))


def no_tanh(patch):
    patch.setattr(BertHead, "forward",
                  lambda self, hidden, mask: self.out(self.dense(hidden[:, 0])))


def tanh_for_relu(patch):
    patch.setattr(DistilBertHead, "features", BertHead.features)


def types_added(patch):
    patch.setattr(DistilBert, "embed_types",
                  lambda self, types, ids, rows: self.word_embeddings(rows.unpad(types)))


def lm_without_activation(patch):
    patch.setattr(bert.MaskedLMHead, "forward",
                  lambda self, hidden, words: self.norm(self.dense(hidden)) @ words.T + self.bias)


def lm_without_bias(patch):
    patch.setattr(
        bert.MaskedLMHead, "forward",
        lambda self, hidden, words: self.norm(self.activation(self.dense(hidden))) @ words.T)


WRONG_BLOCKS = (pre_norm, no_residual, mask_ignored, causal, unscaled, scaled_by_the_model,
                heads_interleaved, keys_for_queries)
DISTILLED, ROBERTAS = BOTH[2:3] + MASKED[2:3], [name for name in STORED if "roberta" in name]
WRONG = [*((tanh_gelu, name, "layer 0") for name in BOTH), (erf_gelu, "bert_masked_lm", "layer 0"),
         *((other_eps, name, "embeddings") for name in STORED if name not in DISTILLED),
         *((eps_of_roberta, name, "embeddings") for name in DISTILLED),
         *((positions_from_zero, name, "embeddings") for name in ROBERTAS),
         *((positions_one_late, name, "embeddings") for name in STORED if name not in ROBERTAS),
         *((types_ignored, name, "embeddings") for name in ("bert_classifier", "bert_masked_lm")),
         *((types_added, name, "embeddings") for name in DISTILLED),
         (tanh_for_relu, "distilbert_classifier", "logits"),
         (dropout_left_on, "bert_classifier", "embeddings"),
         (dropout_left_on, "distilbert_classifier", "embeddings"),
         *((wrong, name, "layer 0") for name in STORED for wrong in WRONG_BLOCKS),
         *((wrong, name, "logits") for name in BOTH for wrong in (mean_for_first, no_tanh)),
         *((wrong, name, "logits") for name in MASKED
           for wrong in (lm_without_activation, lm_without_bias))]


@pytest.mark.parametrize("wrong, name, step",
                         [pytest.param(*w, id=f"{w[0].__name__}-{w[1]}") for w in WRONG])
def test_known_wrong_variants_fail_at_their_layer(wrong, name, step, stored, monkeypatch):
    wrong(monkeypatch)
    found = parity(name, stored)
    assert found is not None, (
        f"{wrong.__name__} is not noticed: the stored {name} cannot tell it from the right model")
    assert found.startswith(step + " differs"), (
        f"{wrong.__name__} should be seen first at {step}, but {found}")


def test_a_wrong_last_layer_is_named_and_so_is_nan(stored):
    steps, _ = split(stored["bert_classifier"])
    bent = dict(steps, **{"layer 2": steps["layer 2"] + 1e-3})
    assert first_difference(bent, steps, 1e-5) == "layer 2 differs by 0.001 (tolerance 1e-05)"
    for wrong in (steps["layer 1"] * math.nan, steps["layer 1"][:-1]):
        found = first_difference(dict(steps, **{"layer 1": wrong}), steps, 1e-5)
        assert found.startswith("layer 1 "), "NaN or another shape is not seen"
    del bent["layer 0"]
    assert first_difference(bent, steps, 1e-5) == "layer 0 is missing"


# --------------------------------------------------------------------------------- padding and rows

def states(model, texts, side="right", pad=0, width=None):
    """Hidden states of the real tokens of each text of a batch: [(T, D), ...]."""
    ids, mask = batch_of(texts, side, pad, width)
    types = ids % 2 if model.config["type_vocab_size"] > 1 or not model.TOKEN_TYPES else None
    return [row[m.bool()] for row, m in zip(model(ids, mask, types), mask)]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, FP32), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", STORED)
@torch.inference_mode()
def test_padding_and_batch_mates_change_nothing(name, dtype, tolerance):
    model = load(MODELS / name)[1].to(dtype)
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(model.config["vocab_size"], (length,), generator=draw).tolist()
             for length in (5, 11, 1, 8)]
    # a text may hold the padding's id as a token
    texts[0][2] = texts[1][-1] = texts[3][0] = model.config.get("pad_token_id", 0)
    assert_padding_changes_nothing(name, functools.partial(states, model), texts, tolerance)


@pytest.mark.parametrize("name", BOTH)
@torch.inference_mode()
def test_every_token_sees_all_others(name):
    model = load(MODELS / name)[1]
    text = list(range(5, 14))
    base = states(model, [text])[0]
    for place in range(len(text)):
        changed = states(model, [text[:place] + [20] + text[place + 1:]])[0]
        still = [i for i in range(len(text)) if (changed[i] - base[i]).abs().max() < 1e-4]
        assert not still, f"{name}: token {place} changed, but the states at {still} do not see it"


def test_padding_is_zero_and_types_default_to_zero(stored):
    model, batch = load(MODELS / "bert_classifier")[1], stored["bert_classifier"]
    hidden = model(batch["ids"], batch["mask"], torch.zeros_like(batch["ids"]))
    assert hidden.shape == (*batch["ids"].shape, model.config["hidden_size"])
    assert not hidden[batch["mask"] == 0].any(), (
        "a padded place holds something that a later sum could pick up")
    assert torch.equal(hidden, model(batch["ids"], batch["mask"].bool())), (
        "no types are types 0, a bool mask is a mask")


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
       side=st.sampled_from(["left", "right"]), heads=st.sampled_from([1, 2, 4]),
       seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_attention_is_attention_by_hand(lengths, side, heads, seed):
    draw = torch.Generator().manual_seed(seed)
    rows = Rows(batch_of([[1] * length for length in lengths], side, 0)[1])
    q, k, v = torch.randn(3, sum(lengths), heads, 8 // heads, generator=draw,
                          dtype=torch.float64) * 3
    fast, slow = attention(q, k, v, rows), attention_by_hand(q, k, v, rows)
    assert (fast - slow).abs().max() <= 1e-12, (
        "the fast attention is not the one that the explicit steps define")


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
       side=st.sampled_from(["left", "right"]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_rows_pad_and_unpad_are_inverse(lengths, side):
    rows = Rows(batch_of([[1] * length for length in lengths], side, 0)[1])
    packed = torch.arange(1.0, 2 * sum(lengths) + 1).view(-1, 2)                       # (N, 2)
    assert torch.equal(rows.unpad(rows.pad(packed)), packed), "a token came back elsewhere"
    assert not rows.pad(packed)[~rows.mask].any(), "padding is not zero"
    assert rows.positions.tolist() == [i for length in lengths for i in range(length)], (
        "positions follow the mask")


def test_activations_are_their_formulas():
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    tanh = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))
    formulas = {"gelu": 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), "gelu_new": tanh,
                "gelu_pytorch_tanh": tanh, "relu": x.clamp(min=0), "silu": x / (1 + torch.exp(-x))}
    assert set(formulas) == set(layers.ACTIVATIONS), "a new activation needs its formula here"
    found = first_difference({name: f(x) for name, f in layers.ACTIVATIONS.items()},
                             formulas, 1e-12)
    assert found is None, f"not what its name in config.json means: {found}"


def test_dropout_acts_in_training_only():
    sizes = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                 intermediate_size=8)
    off = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    for key in off:
        model = initialise_weights(Bert.from_config(sizes | off | {key: 0.5}), 0, 0.5)
        ids, mask = torch.arange(8).view(1, 8), torch.ones(1, 8)
        assert not torch.equal(model.train()(ids, mask), model(ids, mask)), (
            f"{key} does nothing in training")
        assert torch.equal(model.eval()(ids, mask), model(ids, mask)), f"{key} acts in evaluation"
    sizes = dict(vocab_size=9, dim=8, n_layers=1, n_heads=2, hidden_dim=8)
    for key in ("dropout", "attention_dropout"):
        config = sizes | {"dropout": 0, "attention_dropout": 0, key: 0.5}
        distilled = initialise_weights(DistilBert.from_config(config), 0, 0.5)
        assert not torch.equal(distilled.train()(ids, mask), distilled(ids, mask)), (
            f"{key} does nothing in training")
        assert torch.equal(distilled.eval()(ids, mask), distilled(ids, mask)), (
            f"{key} acts in evaluation")
    calls = []
    for module in (model.dropout, model.layers[0].dropout):
        module.register_forward_hook(lambda module, given, out: calls.append(module))
    model(ids, mask)
    assert calls == [model.dropout, *[model.layers[0].dropout] * 2], (
        "after the embeddings, attention and MLP of a block")


# ---------------------------------------------------------------------------------- what is refused

def test_a_row_without_a_token_is_an_error():
    with pytest.raises(InputError, match="batch row 1 holds no token .1 such of 3."):
        Rows(torch.tensor([[1, 1], [0, 0], [0, 1]]))


@pytest.mark.parametrize("name, most", [
    ("bert_classifier", 24), ("roberta_classifier", 68), ("roberta_masked_lm", 66),
    ("distilbert_masked_lm", 24), ("xlm_roberta_masked_lm", 87)])
def test_a_text_longer_than_the_positions_is_an_error_with_both_numbers(name, most):
    model = load(MODELS / name)[1]
    assert model.max_tokens == most, (
        f"{name}: {model.position_embeddings.num_embeddings} rows serve {most} tokens")
    assert len(states(model, [[4] * most, [5]])[0]) == most
    with pytest.raises(InputError, match=rf"{most + 1} tokens .* {most} positions"):
        states(model, [[5], [4] * (most + 1)])


def test_514_rows_of_roberta_serve_512_tokens():
    config = dict(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
                  intermediate_size=4, max_position_embeddings=514, type_vocab_size=1,
                  pad_token_id=1)
    model = Roberta.from_config(config)
    (states(initialise_weights(model, 0).eval(), [[3] * 512])[0]
     @ torch.arange(4.0).square()).sum().backward()
    used = model.position_embeddings.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert used == list(range(2, 514)), (
        f"512 tokens should use the rows 2 to 513, they use {used[0]} to {used[-1]}")
    with pytest.raises(InputError, match="513 tokens .* 512 positions"):
        states(model, [[3] * 513])


def test_logits_without_a_language_model_head_are_an_error(stored):
    with pytest.raises(InputError, match="no masked-LM head"):
        load(MODELS / "bert_classifier")[1].logits(torch.zeros(1, 32))


# ------------------------------------------------------------------------------------------ pooling

def pool_by_hand(hidden, mask, how):
    """Row by row, over the real tokens only."""
    real = [row[m.bool()] for row, m in zip(hidden, mask)]
    return torch.stack(
        [{"first": x[0], "last": x[-1], "mean": x.mean(0), "max": x.max(0).values}[how]
         for x in real])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("how", POOLINGS)
def test_pooling_is_that_of_the_real_tokens(how, side):
    _, mask = batch_of([[1] * 4, [1], [1] * 6], side, 0)
    # around -3, so that a zero would be the maximum
    hidden = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0)) - 3
    for kind in (mask, mask.bool(), mask.float()):
        found = pool(hidden, kind, how)
        assert (found - pool_by_hand(hidden, mask, how)).abs().max() <= 1e-6, (
            f"{how} counts padding on the {side}")


@pytest.mark.parametrize("how", POOLINGS)
@pytest.mark.parametrize("name", BOTH)
@torch.inference_mode()
def test_pooling_goes_by_the_mask_not_by_the_pad_id(name, how):
    model = load(MODELS / name)[1].double()
    pad = model.config.get("pad_token_id", 0)
    texts = [[pad, 7, 8, pad, 9, pad, pad], [pad, 6], [5, 4, 7, 8, 9, 11, 12, 13, 14]]
    alone = torch.cat([pool(model(*batch_of([text], "right", pad)), torch.ones(1, len(text)), how)
                       for text in texts])
    for side in ("left", "right"):
        ids, mask = batch_of(texts, side, pad)
        hidden = model(ids, mask)
        apart = (pool(hidden, mask, how) - alone).abs().max()
        assert apart <= 1e-12, f"{how}: a text padded on the {side} is pooled elsewhere"
        apart = (pool(hidden, ids != pad, how) - alone)[:2].abs().amax(1)
        assert apart.max() > 1e-3, (
            f"{how}: this test cannot tell a mask from ids that are not the pad id")


def test_an_unknown_pooling_is_an_error():
    with pytest.raises(InputError, match="'median' is not known; known: first, mean, max, last"):
        pool(torch.zeros(1, 2, 3), torch.ones(1, 2), "median")
