"""Is DeBERTa what transformers says it is, layer by layer, and would the tests notice if not?

As test_models.py: two stored models with exaggerated weights (reference/make_deberta.py), one wired
as v3 and one otherwise wherever the family allows it; transformers itself on random configurations;
known-wrong variants; and what needs no reference. All batches are ragged, with texts longer than
the table of offsets.
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
from test_models import split

from minillmclf.classify.classifier import Classifier
from minillmclf.classify.family_heads import DebertaHead
from minillmclf.errors import InputError
from minillmclf.models import (backbone, build_backbone, deberta, export_tensors, load_parameters,
                               initialise_weights, load_backbone, save_backbone)
from minillmclf.models.deberta import (Deberta, DebertaLayer, disentangled_attention, log_buckets,
                                       table_rows)
from minillmclf.models.layers import Rows
from minillmclf.models.weights import Checkpoint
from minillmclf.text.tokenizers.tokenizer import WordPiece

CLASSIFIER, MASKED_LM = STORED = ("deberta_classifier", "deberta_masked_lm")
FP32 = fp32(width=48, depth=5)    # embeddings, three blocks, head
TINY = dict(model_type="deberta-v2", vocab_size=30, hidden_size=8, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=8, max_position_embeddings=12,
            relative_attention=True, position_buckets=4, norm_rel_ebd="layer_norm",
            share_att_key=True, pos_att_type=["c2p", "p2c"], position_biased_input=False)


# ---------------------------------------------------------------------------- parity

load = load_without_tokenizer


def compute(folder, batch, dtype=torch.float32):
    """stored.compute_encoder of our model in `folder`."""
    model, body = load(folder)
    model.to(dtype)
    # transformers takes the loss in fp32, whatever the model's dtype is
    return compute_encoder(model, body, batch,
                           lambda logits, labels: F.cross_entropy(logits.float(), labels))


stored = stored_models(STORED)


@pytest.fixture(scope="module")
def transformers():
    return imported("transformers")


def parity(name, stored, dtype=torch.float32, tolerance=FP32):
    """None, or the first step of the stored model `name` that differs.

    By more than these parts of its largest number, that is."""
    steps, gradients = split(in_dtype(stored[name], dtype))
    ours = compute(MODELS / name, stored[name], dtype)
    return (first_difference(ours, steps, tolerance, relative=True)
            or first_difference(ours, gradients, 1e-4, relative=True))


# In float64 transformers still takes one root in float32.
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
        assert lengths.max() > body.max_distance > body.buckets, (
            f"{name}: no text is longer than the table of offsets")
        assert batch["types"].any(), f"{name}: without pairs, ignored token types would not show"
        for norm in [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]:
            assert (norm.weight - 1).abs().mean() > 0.1, (
                f"{name}: weights of 1 hide a norm that is left out")
            assert norm.bias.abs().mean() > 0.1, f"{name}: biases of 0 hide a bias that is left out"
        gradients = " ".join(split(batch)[1])
        for part in ("rel_embeddings", "query_proj", "key_proj", "value_proj", "word_embeddings"):
            assert part in gradients, f"{name}: no gradient of {part} is compared"


@st.composite
def numbers(draw):
    """A random configuration, as keyword arguments of transformers' DebertaV2Config."""
    heads = draw(st.sampled_from([1, 2, 3]))
    buckets = draw(st.sampled_from([-1, 0, 2, 3, 4, 7, 10]))
    terms = draw(st.sampled_from(
        [[], ["c2p"], ["p2c"], ["c2p", "p2c"], "p2c|c2p", "C2P | p2c", "p2c", None]))
    return dict(
        vocab_size=draw(st.integers(20, 40)), num_attention_heads=heads, pos_att_type=terms,
        hidden_size=heads * draw(st.integers(2, 9)), num_hidden_layers=draw(st.integers(1, 2)),
        intermediate_size=draw(st.integers(3, 40)),
        hidden_act=draw(st.sampled_from(["gelu", "relu", "gelu_new"])),
        type_vocab_size=draw(st.integers(0, 2)),
        layer_norm_eps=draw(st.sampled_from([1e-7, 1e-5, 1e-2])),
        max_position_embeddings=draw(st.integers(24, 30)), relative_attention=True,
        position_buckets=buckets, max_relative_positions=draw(st.sampled_from([-1, 0, 8, 13, 60])),
        legacy=draw(st.booleans()), norm_rel_ebd=draw(st.sampled_from(["none", "layer_norm"])),
        share_att_key=draw(st.booleans()), position_biased_input=draw(st.booleans()),
        pooler_hidden_act=draw(st.sampled_from(["gelu", "relu"])))


@given(drawn=numbers(), lengths=st.lists(st.integers(1, 24), min_size=1, max_size=4),
       classify=st.booleans(), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_random_models_are_those_of_transformers(transformers, drawn, lengths, classify, seed):
    from reference import make_deberta, make_fixtures
    with may_refuse():
        kind = (transformers.DebertaV2ForSequenceClassification if classify
                else transformers.DebertaV2ForMaskedLM)
        model = make_fixtures.exaggerate(kind(transformers.DebertaV2Config(**drawn)), seed)
    ids, mask, types = make_deberta.random_batch(model.config, seed, lengths)
    labels = torch.arange(len(ids)) % 2 if classify else make_fixtures.masked_labels(ids, mask)
    if not classify:
        labels[0, 0] = 7  # a text of one token has no other place to predict
    batch = {"ids": ids, "mask": mask, "types": types, "labels": labels}
    with tempfile.TemporaryDirectory() as folder:
        with may_refuse():
            model.save_pretrained(folder)
        ours = compute(Path(folder), batch, torch.float64)
    with may_refuse():
        expected = make_deberta.run(model, **batch)
    steps, gradients = split(expected)
    # transformers takes a root in float32
    found = first_difference(ours, steps, fp32(1, 4), relative=True)
    found = found or first_difference(ours, gradients, 1e-4, relative=True)
    assert found is None, f"{drawn}: {found}"


# ---------------------------------------------------------------------------- would it be noticed?

def scaled_by_the_content_alone(patch):
    def wrong(q, k, v, positions, *rest):
        positions = positions[0], positions[1] * math.sqrt(3)
        return disentangled_attention(q * math.sqrt(3), k, v, positions, *rest)
    patch.setattr(deberta, "disentangled_attention", wrong)


def without_p2c(patch):
    patch.setattr(deberta, "disentangled_attention",
                  lambda q, k, v, positions, *rest: disentangled_attention(
                      q * math.sqrt(2 / 3), k, v, (positions[0], None), *rest))


def without_c2p(patch):
    patch.setattr(deberta, "disentangled_attention",
                  lambda q, k, v, positions, *rest: disentangled_attention(
                      q, k * math.sqrt(2 / 3), v, (None, positions[1]), *rest))


def p2c_mirrored(patch):
    patch.setattr(deberta, "disentangled_attention",
                  lambda q, k, v, positions, *rest: disentangled_attention(
                      q, k, v, (positions[0], positions[1].flip(0)), *rest))


def key_minus_query(patch):
    patch.setattr(Rows, "distance", lambda self, distance=Rows.distance: distance(self).mT)


def keys_of_offsets_by_the_queries_matrix(patch):
    patch.setattr(
        DebertaLayer, "project_offsets",
        lambda self, table, project=DebertaLayer.project_offsets: project(self, table)[::-1])


def no_log_buckets(patch):
    patch.setattr(deberta, "log_buckets", lambda offset, buckets, most: offset)


def rounded_down(patch):
    patch.setattr(torch, "ceil", torch.floor)


def last_bucket_one_too_far(patch):
    patch.setattr(deberta, "log_buckets",
                  lambda offset, buckets, most: log_buckets(offset, buckets, most + 1))


def far_offsets_wrap_around(patch):
    patch.setattr(deberta, "table_rows",
                  lambda offset, buckets, most: (offset + most).remainder(2 * most))


def padding_counts_as_distance(patch):
    def wrong(self):
        places = torch.arange(self.mask.shape[1])
        most = self.lengths.max() - 1
        return (2 * (places[:, None] - places)).clamp(-most, most).unsqueeze(0)
    patch.setattr(Rows, "distance", wrong)


def table_not_normalised(patch):
    def wrong(self, rows, offsets=Deberta.offsets):
        self.rel_norm.forward = lambda x: x
        return offsets(self, rows)
    patch.setattr(Deberta, "offsets", wrong)


def table_normalised(patch):
    def wrong(self, rows, offsets=Deberta.offsets):
        table, column = offsets(self, rows)
        return F.layer_norm(table, table.shape[-1:]), column
    patch.setattr(Deberta, "offsets", wrong)


def absolute_positions_left_in(patch):
    def wrong(self, ids, rows, types, embed=Deberta.embed):
        self.max_tokens, self.position_embeddings = 99, torch.nn.Embedding(99, self.width)
        torch.nn.init.normal_(self.position_embeddings.weight, std=0.02,
                              generator=torch.Generator().manual_seed(0))
        return embed(self, ids, rows, types)
    patch.setattr(Deberta, "embed", wrong)


def absolute_positions_left_out(patch):
    def wrong(self, ids, rows, types, embed=Deberta.embed):
        self.position_embeddings.weight.data.zero_()
        return embed(self, ids, rows, types)
    patch.setattr(Deberta, "embed", wrong)


def types_ignored(patch):
    patch.setattr(Deberta, "embed",
                  lambda self, ids, rows, types, embed=Deberta.embed: embed(self, ids, rows, None))


def other_eps(patch):
    patch.setattr(backbone, "read_config",
                  lambda *given, read=backbone.read_config: read(*given) | {"layer_norm_eps": 1e-7})


def mask_ignored(patch):
    patch.setattr(Rows, "padding_mask", None)


def tanh_pooler(patch):
    def wrong(self, hidden, mask):
        self.activation = torch.tanh
        return features(self, hidden, mask)
    features = DebertaHead.features
    patch.setattr(DebertaHead, "features", wrong)


def lm_with_another_activation(patch):
    patch.setattr(deberta, "MaskedLMHead",
                  lambda c, activation, head=deberta.MaskedLMHead: head(c, "relu"))


EVERYWHERE = (scaled_by_the_content_alone, without_p2c, without_c2p, p2c_mirrored, key_minus_query,
              mask_ignored, keys_of_offsets_by_the_queries_matrix, padding_counts_as_distance)
WRONG = [
    *((wrong, name, "layer 0") for name in STORED for wrong in EVERYWHERE),
    *((wrong, CLASSIFIER, "layer 0")
      for wrong in (no_log_buckets, rounded_down, last_bucket_one_too_far, table_not_normalised)),
    (far_offsets_wrap_around, MASKED_LM, "layer 0"), (table_normalised, MASKED_LM, "layer 0"),
    (absolute_positions_left_in, CLASSIFIER, "embeddings"),
    (absolute_positions_left_out, MASKED_LM, "embeddings"),
    (types_ignored, MASKED_LM, "embeddings"), *((other_eps, name, "embeddings") for name in STORED),
    (tanh_pooler, CLASSIFIER, "logits"), (lm_with_another_activation, MASKED_LM, "logits")]


@pytest.mark.parametrize("wrong, name, step", [
    pytest.param(*w, id=f"{w[0].__name__}-{w[1]}") for w in WRONG])
def test_known_wrong_variants_fail_at_their_layer(wrong, name, step, stored, monkeypatch):
    wrong(monkeypatch)
    found = parity(name, stored)
    assert found is not None, (
        f"{wrong.__name__} is not noticed: the stored {name} cannot tell it from the right model")
    assert found.startswith(step + " differs"), (
        f"{wrong.__name__} should be seen first at {step}, but {found}")


# ---------------------------------------------------------------------------- attention and offsets

def disentangled_attention_by_hand(q, k, v, table_k, table_q, rows, heads, buckets, most):
    """What `disentangled_attention` computes, pair by pair of places (no dropout).

    table_k, table_q: (2 * span, H*d), keys and queries of the whole table, or None.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in (q, k, v))                          # (N, H, d)
    # (2 * span, H, d)
    tables = [None if x is None else x.unflatten(-1, (heads, -1)) for x in (table_k, table_q)]
    seen, begin = [], 0
    for length in rows.lengths.tolist():
        row, begin = range(begin, begin + length), begin + length  # the places of a text's tokens
        for i in row:
            scores = []
            for j in row:
                P = int(table_rows(torch.tensor(i - j), buckets, most))
                pairs = [(q[i], k[j])]  # (H, d) each
                pairs += [(q[i], tables[0][P])] if table_k is not None else []
                pairs += [(tables[1][P], k[j])] if table_q is not None else []
                scale = 1 / math.sqrt(q.shape[-1] * len(pairs))
                scores.append(sum((a * scale * b).sum(-1) for a, b in pairs))            # (H,)
            scores = torch.stack(scores).to(torch.promote_types(q.dtype, torch.float32))  # (T, H)
            weights = scores.softmax(0).to(v.dtype)
            seen.append((weights.unsqueeze(-1) * v[row.start:row.stop]).sum(0).flatten())  # (H*d,)
    return torch.stack(seen)                                                             # (N, H*d)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
       side=st.sampled_from(["left", "right"]), heads=st.sampled_from([1, 2, 4]),
       buckets=st.sampled_from([0, 2, 4, 5]), most=st.sampled_from([4, 6, 20]),
       terms=st.sampled_from(["", "c2p", "p2c", "c2p|p2c"]), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_fast_attention_is_that_by_hand(lengths, side, heads, buckets, most, terms, seed):
    draw = torch.Generator().manual_seed(seed)
    rows = Rows(batch_of([[1] * length for length in lengths], side, 0)[1])
    q, k, v = torch.randn(3, sum(lengths), 8, generator=draw, dtype=torch.float64) * 3
    tables = torch.randn(2, 2 * (buckets or most), 8, generator=draw, dtype=torch.float64) * 3
    table_k, table_q = (
        table if term in terms else None for term, table in zip(("c2p", "p2c"), tables))
    slow = disentangled_attention_by_hand(q, k, v, table_k, table_q, rows, heads, buckets, most)
    # the whole table is projected, every row of it
    all_rows = table_rows(rows.distance(), buckets, most)
    q, k, v, table_k, table_q = (
        x if x is None else x.unflatten(1, (heads, -1)) for x in (q, k, v, table_k, table_q))
    fast = disentangled_attention(q, k, v, (table_k, table_q), all_rows, rows, 0.0)
    assert (fast - slow).abs().max() <= 1e-12, (
        "the fast attention is not the one that the explicit steps define")


@pytest.mark.parametrize("buckets, most", [(4, 12), (0, 12), (4, 40), (256, 512)])
def test_only_the_offsets_in_use_are_projected_and_they_are_the_right_ones(buckets, most):
    model = Deberta.from_config(
        TINY | {"position_buckets": buckets or -1, "max_relative_positions": most})
    for lengths, side in (
            ([1], "right"), ([3, 9, 1], "left"), ([30, 2], "right"), ([5, 5], "right")):
        rows = Rows(batch_of([[1] * length for length in lengths], side, 0)[1])
        table, column = model.offsets(rows)
        assert len(table) <= min(2 * max(lengths) - 1, 2 * (buckets or most)), (
            "more is projected than is used")
        whole = model.rel_norm(model.rel_embeddings.weight)
        whole = whole[table_rows(rows.distance(), buckets, most)]
        assert (table[column] - whole).abs().max() <= 1e-6, (
            f"a pair has the vector of another offset: {lengths}")


def test_log_buckets_are_their_formula():
    def by_hand(n, buckets, most):
        middle = buckets // 2
        if abs(n) <= middle:
            return n
        share = math.log(abs(n) / middle) / math.log((most - 1) / middle)
        return int(math.copysign(math.ceil(share * (middle - 1)) + middle, n))
    for buckets, most in ((256, 512), (8, 20), (32, 128)):
        offsets = torch.arange(-1500, 1501)
        found = log_buckets(offsets, buckets, most)
        assert found.tolist() == [by_hand(n, buckets, most) for n in offsets.tolist()]
        assert torch.equal(found, -found.flip(0)), "left and right are not alike"
        assert (found.diff() >= 0).all(), "a farther token is in a nearer bucket"
    assert log_buckets(torch.tensor([0, 1, -128, 129, 511, 512]), 256, 512).tolist() == [
        0, 1, -128, 129, 255, 256]
    assert table_rows(torch.tensor([-900, -512, -511, 0, 511, 900]), 256, 512).tolist() == [
        0, 0, 1, 256, 511, 511]
    assert table_rows(torch.tensor([-20, -9, 0, 8, 9, 20]), 0, 9).tolist() == [0, 0, 9, 17, 17, 17]


def test_log_buckets_are_those_of_transformers(transformers):
    with may_refuse():
        from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
    offsets = torch.arange(600)[:, None] - torch.arange(600)
    for buckets, most in ((256, 512), (256, 1024), (128, 512), (32, 128), (8, 20), (7, 20), (2, 9),
                          (3, 9), (64, 512)):
        with may_refuse():
            theirs = make_log_bucket_position(offsets, buckets, most).long()
        assert torch.equal(log_buckets(offsets, buckets, most), theirs), (
            f"{buckets} buckets to {most}: another bucket")


def test_fp16_sums_that_would_overflow_stay_finite():
    rows = Rows(torch.tensor([[1, 1, 1], [1, 0, 0]]))
    big = torch.full((4, 64), 40.0, dtype=torch.float16)
    assert (big @ big.T).isinf().all(), "this test cannot tell where the scale is applied"
    column = table_rows(rows.distance(), 0, 2)
    one = big.unsqueeze(1)
    found = disentangled_attention(one, one, one, (one, one), column, rows, 0.0)
    assert (found == 40).all(), "a score is infinite before it is scaled: NaN in fp16"
    assert (disentangled_attention_by_hand(big, big, big, big, big, rows, 1, 0, 2) == 40).all()


@pytest.mark.parametrize("name", STORED)
def test_bf16_learns(name, stored):
    body, batch = load(MODELS / name)[1], stored[name]
    exact = body(batch["ids"], batch["mask"], batch["types"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = body.train()(batch["ids"], batch["mask"], batch["types"])
        body.eval()
        apart = (body(batch["ids"], batch["mask"], batch["types"]) - exact).abs().mean()
    hidden.square().sum().backward()
    assert apart < 0.05, f"{name}: in bf16 the states are {apart:.2g} apart on average"
    assert all(p.grad is not None and p.grad.isfinite().all() for part, p in body.named_parameters()
               if not part.startswith("lm_head")), f"{name}: a gradient is missing or not finite"


# ---------------------------------------------------------------------------- padding and rows

def states(model, texts, side="right", pad=0, width=None):
    """Hidden states of the real tokens of each text of a batch: [(T, D), ...]."""
    ids, mask = batch_of(texts, side, pad, width)
    return [row[m.bool()] for row, m in zip(model(ids, mask, ids % 2), mask)]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, FP32), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", STORED)
@torch.inference_mode()
def test_padding_and_batch_mates_change_nothing(name, dtype, tolerance):
    model = load(MODELS / name)[1].to(dtype)
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(model.config["vocab_size"], (length,), generator=draw).tolist()
             for length in (5, 26, 1, 8)]
    texts[0][2] = texts[1][-1] = texts[3][0] = 0  # a text may hold the padding's id as a token
    assert_padding_changes_nothing(name, functools.partial(states, model), texts, tolerance)


@pytest.mark.parametrize("name", STORED)
@torch.inference_mode()
def test_every_token_sees_all_others_and_their_order(name):
    model = load(MODELS / name)[1]
    text = list(range(5, 14))
    base = states(model, [text])[0]
    for place in range(len(text)):
        changed = states(model, [text[:place] + [20] + text[place + 1:]])[0]
        still = [i for i in range(len(text)) if (changed[i] - base[i]).abs().max() < 1e-4]
        assert not still, f"{name}: token {place} changed, but the states at {still} do not see it"
    backwards = torch.tensor([text[::-1]])
    turned = model(backwards, torch.ones(1, 9), backwards % 2)[0].flip(0)
    assert (turned - base).abs().amax(1).min() > 1e-3, (
        f"{name}: a text read backwards looks the same")


def test_padding_is_zero_and_types_are_for_models_that_have_them(stored):
    for name, has_types in ((CLASSIFIER, False), (MASKED_LM, True)):
        model, batch = load(MODELS / name)[1], stored[name]
        zeros, ones = torch.zeros_like(batch["ids"]), torch.ones_like(batch["ids"])
        hidden = model(batch["ids"], batch["mask"], zeros)
        assert not hidden[batch["mask"] == 0].any(), (
            "a padded place holds something that a later sum could pick up")
        assert torch.equal(hidden, model(batch["ids"], batch["mask"].bool())), (
            "no types are types 0")
        other = model.states(batch["ids"], batch["mask"], ones)
        assert torch.equal(hidden, other) != has_types, name
    with pytest.raises(InputError, match="token type 2: this model has 2 token type"):
        model(batch["ids"], batch["mask"], 2 * ones)


def test_dropout_acts_in_training_only_and_on_the_offsets_too():
    off = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0, "num_hidden_layers": 1}
    ids, mask = torch.arange(8).view(1, 8), torch.ones(1, 8)
    for key in list(off)[:2]:
        model = initialise_weights(Deberta.from_config(TINY | off | {key: 0.5}), 0, 0.5)
        assert not torch.equal(model.train()(ids, mask), model(ids, mask)), (
            f"{key} does nothing in training")
        assert torch.equal(model.eval()(ids, mask), model(ids, mask)), f"{key} acts in evaluation"
    calls = []
    model.layers[0].dropout.register_forward_hook(
        lambda module, given, out: calls.append(tuple(out.shape)))
    model(ids, mask)
    assert calls == [(model.offsets(Rows(mask))[0].shape), (8, 8), (8, 8)], (
        "on the offsets, after attention and MLP")


def test_a_text_has_no_longest_length_without_absolute_positions():
    model = load(MODELS / CLASSIFIER)[1]
    assert model.max_tokens is None and states(model, [[4] * 300])[0].isfinite().all()
    model = load(MODELS / MASKED_LM)[1]
    assert model.max_tokens == 48 and len(states(model, [[4] * 48])[0]) == 48
    with pytest.raises(InputError, match="49 tokens .* 48 positions"):
        states(model, [[5], [4] * 49])


# ---------------------------------------------------------------------------- files, both ways

def rewritten(folder, tensors, config):
    """Write a folder of these tensors and this config.json -> its path."""
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", STORED)
def test_what_is_saved_is_what_was_loaded(name, tmp_path):
    model, body = load(MODELS / name)
    file = load_file(MODELS / name / "model.safetensors")
    assert not model.report.dropped and not model.report.newly_initialised, model.report.summary()
    written = export_tensors(model, model.rename_table())
    assert set(written) == set(file) and all(torch.equal(written[key], file[key]) for key in file)
    bare = {key.removeprefix("deberta."): tensor
            for key, tensor in export_tensors(body, body.rename_table()).items()}
    again = load_backbone(rewritten(tmp_path / "bare", bare, body.source_config))
    assert torch.equal(states(again, [[5, 6, 7]])[0], states(body, [[5, 6, 7]])[0]), (
        "names without the prefix")


def test_a_file_as_microsoft_released_it_is_read_and_its_masked_lm_head_found(
        tmp_path, transformers):
    file, config = (load_file(MODELS / CLASSIFIER / "model.safetensors"),
                    json.loads((MODELS / CLASSIFIER / "config.json").read_text()))
    body = {key: tensor for key, tensor in file.items() if key.startswith("deberta.")}
    draw, D, V = torch.Generator().manual_seed(0), 32, 60
    head = {"dense.weight": (D, D), "dense.bias": (D,), "LayerNorm.weight": (D,),
            "LayerNorm.bias": (D,), "bias": (V,)}
    head = {"lm_predictions.lm_head." + key: torch.randn(shape, generator=draw)
            for key, shape in head.items()}
    rest = {"mask_predictions.dense.weight": (D, D), "mask_predictions.LayerNorm.bias": (D,),
            "mask_predictions.classifier.bias": (1,),
            "deberta.embeddings.position_embeddings.weight": (512, D),
            "deberta.embeddings.word_embeddings._weight": (V, D)}
    rest = {key: torch.zeros(shape) for key, shape in rest.items()}
    released = {
        key: value for key, value in config.items()  # as short as config.json of deberta-v3-base
        if key not in ("legacy", "pooler_hidden_act", "pooler_hidden_size", "architectures")}
    released["pos_att_type"] = "p2c|c2p"
    folder = rewritten(tmp_path / "released", body | head | rest, released)
    model = load_backbone(folder)
    assert sorted(model.report.dropped) == sorted(rest), model.report.summary()
    rewritten(tmp_path / "named", body | head, released | {"legacy": False})
    # its config.json does not say legacy = false: as cls.predictions
    save_backbone(model, tmp_path / "ours")
    ids, mask = batch_of([[4, 5, 6], list(range(7, 40))], "right", 0)
    with torch.inference_mode():
        ours = model.logits(model(ids, mask))[mask.bool()]
        for name in ("named", "ours"):
            load_theirs = transformers.DebertaV2ForMaskedLM.from_pretrained
            theirs, loading = loaded(load_theirs, tmp_path / name, output_loading_info=True)
            with may_refuse():
                logits = theirs.eval()(ids, mask).logits[mask.bool()]
            assert not loading["missing_keys"], (
                f"{name}: not found in our file: {loading['missing_keys']}")
            found = first_difference({"logits": ours}, {"logits": logits}, FP32, relative=True)
            assert found is None, f"{name}: transformers scores otherwise, {found}"
    headless = build_backbone(Checkpoint(folder), lm_head=False)
    load_parameters(headless, Checkpoint(folder), headless.rename_table())
    with pytest.raises(InputError, match="no masked-LM head"):
        headless.logits(torch.zeros(1, D))


def test_a_head_under_both_names_is_an_error(tmp_path):
    file = load_file(MODELS / MASKED_LM / "model.safetensors")
    twice = file | {"cls.predictions.bias": file["lm_predictions.lm_head.bias"].clone()}
    rewritten(tmp_path / "twice", twice,
              json.loads((MODELS / MASKED_LM / "config.json").read_text()))
    with pytest.raises(InputError, match="fills lm_head.bias a second time"):
        load_backbone(tmp_path / "twice")


def test_a_classifier_travels_both_ways(tmp_path, transformers):
    from reference import make_deberta, make_fixtures
    names = ["praise", "question", "complaint"]
    with may_refuse():
        config = transformers.DebertaV2Config(
            **make_deberta.V3 | {"vocab_size": len(PIECES), "cls_dropout": 0.3},
            pooler_dropout=0.2, id2label=dict(enumerate(names)))
        theirs = make_fixtures.exaggerate(
            transformers.DebertaV2ForSequenceClassification(config), 5)
        theirs.save_pretrained(tmp_path / "theirs")
    WordPiece.from_vocab(PIECES).save(tmp_path / "theirs")
    model = Classifier.load(tmp_path / "theirs")
    assert (model.labels == names and not model.report.dropped
            and not model.report.newly_initialised), model.report.summary()
    for ours, reference in ((model.head.dropout, theirs.dropout),
                            (model.head.pooler_dropout, theirs.pooler.dropout)):
        assert 0 < ours.p == reference.p, "another dropout than in transformers"
    texts = ["the garden was old and very big", "soup",
             ("a rose?", "with new soil, some rain today.")]
    encoded = model.encode(texts)[0]
    ids, mask = batch_of([ids for ids, _ in encoded], "right", 0)
    model.save(tmp_path / "ours")
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    again = loaded(load, tmp_path / "ours")
    with torch.inference_mode():
        with may_refuse():
            answers = {"what they saved": theirs(ids, mask).logits,
                       "what we saved": again(ids, mask).logits}
        for name, logits in answers.items():
            found = first_difference({"logits": model.compute_logits(encoded)}, {"logits": logits},
                                     FP32, relative=True)
            assert found is None, f"{name}: transformers answers otherwise, {found}"
    assert again.config.id2label == dict(enumerate(names))
    body = loaded(transformers.DebertaV2Model.from_pretrained, tmp_path / "ours")
    with torch.inference_mode():
        with may_refuse():
            hidden = body(ids, mask).last_hidden_state
        found = first_difference({"hidden": model.backbone(ids, mask)[mask.bool()]},
                                 {"hidden": hidden[mask.bool()]}, FP32, relative=True)
    assert found is None, f"the body in transformers is another, {found}"


# ---------------------------------------------------------------------------- what is refused

REFUSED = [({"conv_kernel_size": 3}, r"conv_kernel_size = 3 \(only 0 is built\)"),
           ({"relative_attention": False}, "relative_attention = false"),
           ({"relative_attention": None}, "relative_attention = None .should be true or false"),
           ({"pos_att_type": ["c2p", "p2p"]},
            "pos_att_type = 'p2p' is not supported; supported: c2p, p2c"),
           ({"pos_att_type": "c2p,p2c"}, "pos_att_type = 'c2p,p2c' is not supported"),
           ({"pos_att_type": 3}, "pos_att_type = 3 .should be a list"),
           ({"norm_rel_ebd": "batch_norm"},
            "norm_rel_ebd = 'batch_norm' is not .*; supported: none, layer_norm"),
           ({"share_att_key": "yes"}, "share_att_key = 'yes' .should be true or false"),
           ({"position_buckets": 24}, "position_buckets = 24 with 12 relative positions"),
           ({"position_buckets": 1}, "position_buckets = 1 with 12"),
           ({"position_buckets": -2}, "position_buckets = -2"),
           ({"max_relative_positions": 3}, "position_buckets = 4 with 3 relative positions"),
           ({"embedding_size": 4}, "embedding_size = 4 .only 8 is built"),
           ({"pooler_hidden_size": 16}, "pooler_hidden_size = 16 .only 8 is built"),
           ({"attention_head_size": 8}, "attention_head_size = 8 .only 4 is built"),
           ({"pooler_hidden_act": "tanh"}, "pooler_hidden_act = 'tanh' is not supported"),
           ({"hidden_act": "swish"}, "hidden_act = 'swish' is not supported"),
           ({"tie_word_embeddings": False}, "tie_word_embeddings = False"),
           ({"num_attention_heads": 3}, "hidden_size 8 is not a multiple of num_attention_heads 3"),
           ({"talking_head": True}, r"talking_head = True \(unknown: it may change the maths\)")]


@pytest.mark.parametrize("changed, message", REFUSED, ids=[
    "-".join(changed) for changed, _ in REFUSED])
def test_what_would_change_the_maths_is_refused_by_name(changed, message):
    Deberta.from_config(TINY)
    with pytest.raises(InputError, match="^somewhere: .*" + message):
        Deberta.from_config(TINY | changed, where="somewhere")


def test_silence_about_relative_attention_means_none_of_it():
    fault = "relative_attention = false .only true is built; where it is missing, it is"
    with pytest.raises(InputError, match=fault):
        Deberta.from_config(
            {key: value for key, value in TINY.items() if key != "relative_attention"})


def test_values_that_say_what_is_built_anyway_are_accepted():
    same = {"embedding_size": 8, "pooler_hidden_size": 8, "attention_head_size": 4,
            "conv_kernel_size": 0, "conv_act": "gelu", "conv_groups": 1, "pos_att_type": " P2C|c2p"}
    assert Deberta.from_config(TINY | same).config["pos_att_type"] == ["p2c", "c2p"]


def test_a_norm_of_the_table_that_config_does_not_name_is_an_error(tmp_path):
    shutil.copytree(MODELS / CLASSIFIER, tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"norm_rel_ebd": "none"}))
    with pytest.raises(InputError,
                       match="'deberta.encoder.LayerNorm.weight' belongs to backbone.rel_norm"):
        load(tmp_path / "copy")
