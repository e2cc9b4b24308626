"""Is T5 what transformers says it is, block by block, and would the tests notice if it were not?

As test_models.py: three tiny models with exaggerated weights and what transformers computed with
them in float64, stored by reference/make_t5.py; transformers itself on random configurations, where
it is installed; then what needs no reference: padding, causality, attention and buckets by hand,
what is refused. Known-wrong variants must fail, each at its step.
"""

import json
import math
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import MODELS, ROUNDED, batch_of, first_difference, fp32
from hypothesis import HealthCheck, given, settings, strategies as st
from live import imported, loaded, may_refuse, tokenizer_of
from safetensors.torch import load_file, save_file
from stored import in_dtype, stored_models

from minillmclf.classify.classifier import Classifier
from minillmclf.classify.family_heads import T5Head
from minillmclf.errors import InputError
from minillmclf.models import build_backbone, layers, load_backbone, save_backbone, t5_layers
from minillmclf.models.cache import Cache, CachedRows
from minillmclf.models.layers import Rows, root_mean_square_norm
from minillmclf.models.t5 import T5, GatedT5
from minillmclf.models.t5_layers import biased_attention, distance_buckets
from minillmclf.models.weights import Checkpoint, load_parameters

STORED = ("t5_lm", "flan_lm", "ul2_classifier")
FP32 = fp32(width=24, depth=8)    # two embeddings, five blocks, head
TINY = dict(model_type="t5", vocab_size=20, d_model=8, d_kv=3, d_ff=12, num_layers=1, num_heads=2,
            relative_attention_num_buckets=8, relative_attention_max_distance=14)


# ------------------------------------------------------------------------------------------- parity

def trace(body, ids, mask, decoder_ids, decoder_mask):
    """What a body computes, step by step, as make_t5.watched names the steps, (N, D) each, and
    "states" (B, T, D)."""
    steps, hooks = {}, []

    def keep(name):
        return lambda module, given, out: steps.update({name: out.detach()})
    for name, stack in (("encoder", body.encoder), ("decoder", body.decoder)):
        hooks.append(stack.layers[0].register_forward_pre_hook(
            lambda module, given, name=name: steps.update(
                {f"{name} embeddings": given[0].detach()})))
        hooks += [layer.register_forward_hook(keep(f"{name} layer {i}"))
                  for i, layer in enumerate(stack.layers)]
        hooks.append(stack.final_norm.register_forward_hook(keep(f"{name} output")))
    try:
        return steps | {"states": body(ids, mask, decoder_ids, decoder_mask)}
    finally:
        for hook in hooks:
            hook.remove()


def compute(folder, batch, dtype=torch.float32):
    """Ours in `folder` on a batch: every step, logits, loss, and gradients by the file's names."""
    body = load_backbone(folder).to(dtype)
    ids, mask, labels = batch["ids"], batch["mask"], batch["labels"]
    named = {file: body.get_parameter(ours) for file, ours in body.report.loaded.items()}
    if labels.dim() == 2:
        target, target_mask = labels.clamp(min=0), labels >= 0
        steps = trace(body, ids, mask, body.shift_right(target, target_mask), target_mask)
        logits = body.logits(steps["states"][target_mask])
        loss = F.cross_entropy(logits, target[target_mask])
    else:
        head = read_head(folder, body).to(dtype)
        named |= {f"{file}.{leaf}": getattr(head.get_submodule(ours.removeprefix("head.")), leaf)
                  for file, ours in T5Head.NAMES.items() for leaf in ("weight", "bias")}
        steps = trace(body, ids, mask, body.shift_right(ids, mask), mask)
        logits = head(body.states(ids, mask), mask)
        loss = F.cross_entropy(logits, labels)
    loss.backward()
    gradients = {"gradient of " + file: parameter.grad
                 for file, parameter in named.items() if parameter.grad is not None}
    return steps | {"logits": logits.detach(), "loss": loss.detach()} | gradients


def read_head(folder, body):
    """The classification head of a folder that has no tokenizer."""
    tensors = load_file(folder / "model.safetensors")
    head = T5Head(body, len(tensors["classification_head.out_proj.bias"]))
    head.load_state_dict({f"{ours.removeprefix('head.')}.{leaf}": tensors[f"{file}.{leaf}"]
                          for file, ours in T5Head.NAMES.items() for leaf in ("weight", "bias")})
    return head.eval()


def split(expected):
    """What is stored or computed by make_t5.run -> (steps, logits and loss in order, gradients)."""
    steps = [name for stack in ("encoder", "decoder")
             for name in (f"{stack} embeddings",
                          *sorted(n for n in expected if n.startswith(f"{stack} layer")),
                          f"{stack} output")]
    gradients = [name for name in expected if name.startswith("gradient of ")]
    return ({name: expected[name] for name in [*steps, "logits", "loss"]},
            {name: expected[name] for name in gradients})


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


def test_the_stored_batches_are_ragged_and_long_and_the_weights_exaggerated(stored):
    for name, batch in stored.items():
        body, lengths = load_backbone(MODELS / name), batch["mask"].sum(1)
        assert len(set(lengths.tolist())) >= 3, (
            f"{name}: padding could be wrong unseen, lengths are {lengths}")
        far = body.config["relative_attention_max_distance"]
        assert lengths.max() > far + 1, f"{name}: no two tokens are farther apart than {far}"
        if batch["labels"].dim() == 2:
            lengths = (batch["labels"] >= 0).sum(1)
            assert len(set(lengths.tolist())) >= 3 and lengths.max() > far + 1, (
                f"{name}: targets are {lengths} long")
        for norm in (module for module in body.modules() if isinstance(module, layers.RMSNorm)):
            assert (norm.weight - 1).abs().mean() > 0.1, (
                f"{name}: weights of 1 hide a norm that is left out")
        for stack in (body.encoder, body.decoder):
            assert stack.relative_bias.weight.std() > 0.1, (
                f"{name}: a flat table hides a wrong bucket")
        assert len(body.encoder.layers) != len(body.decoder.layers), (
            f"{name}: depths could be exchanged unseen")


def test_the_three_kinds_are_what_they_should_be(stored):
    kinds = {name: load_backbone(MODELS / name) for name in STORED}
    assert [type(kinds[name]) for name in STORED] == [T5, GatedT5, GatedT5]
    assert (kinds["t5_lm"].lm_head is None and kinds["t5_lm"].tied
            and kinds["t5_lm"].output_scale == 24 ** -0.5)
    assert kinds["flan_lm"].lm_head is not None, (
        "transformers 5 writes tie_word_embeddings true beside an own head")
    assert (kinds["flan_lm"].output_scale == 1.0
            and "gradient of lm_head.weight" in stored["flan_lm"])
    assert not torch.equal(kinds["flan_lm"].output_embeddings(),
                           kinds["flan_lm"].word_embeddings.weight)


def numbers(draw):
    """A random configuration, as keyword arguments of transformers' T5Config."""
    buckets = draw(st.integers(4, 12))
    return dict(vocab_size=draw(st.integers(20, 40)), num_heads=draw(st.integers(1, 4)),
                d_kv=draw(st.integers(1, 9)), d_model=draw(st.integers(4, 30)),
                d_ff=draw(st.integers(3, 40)), num_layers=draw(st.integers(1, 3)),
                num_decoder_layers=draw(st.sampled_from([None, 1, 2, 3])),
                feed_forward_proj=draw(st.sampled_from(
                    ["relu", "gelu", "gated-gelu", "gated-silu", "gated-relu"])),
                relative_attention_num_buckets=buckets,
                relative_attention_max_distance=draw(st.integers(buckets // 2 + 1, 20)),
                layer_norm_epsilon=draw(st.sampled_from([1e-6, 1e-3])),
                decoder_start_token_id=draw(st.integers(0, 5)),
                tie_word_embeddings=draw(st.booleans()))


def random_model(make_t5, kind, drawn, seed):
    """One of transformers' models: tied and scaled, own head and unscaled, or for classes."""
    transformers = imported("transformers")
    with may_refuse():
        config = transformers.T5Config(**drawn, num_labels=3, attn_implementation="eager")
        if kind == "own head":
            return make_t5.with_own_head(config, seed)
        name = "T5ForSequenceClassification" if kind == "classes" else "T5ForConditionalGeneration"
        return make_t5.exaggerate(getattr(transformers, name)(config), seed)


@pytest.mark.parametrize("kind", ["tied", "own head", "classes"])
@given(data=st.data(), seed=st.integers(0, 2**31))
@settings(max_examples=12, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow])
def test_random_models_are_those_of_transformers(kind, data, seed):
    imported("transformers")
    from reference import make_t5
    drawn = data.draw(st.composite(numbers)())
    model = random_model(make_t5, kind, drawn, seed)
    lengths = data.draw(st.lists(st.tuples(st.integers(1, 24), st.integers(1, 24)),
                                 min_size=1, max_size=4))
    if kind == "classes":
        batch = make_t5.class_batch(drawn["vocab_size"], seed, [source for source, _ in lengths])
    else:
        batch = make_t5.text_to_text_batch(drawn["vocab_size"], seed, lengths)
    with tempfile.TemporaryDirectory() as folder:
        with may_refuse():
            model.save_pretrained(folder)
        ours = compute(Path(folder), dict(zip(("ids", "mask", "labels"), batch)), torch.float64)
    with may_refuse():
        expected = make_t5.run(model, *batch)
    steps, gradients = split(expected)
    found = (first_difference(ours, steps, 1e-6)
             or first_difference(ours, gradients, 1e-4, relative=True))
    assert found is None, f"{kind}, {drawn}: {found}"


@given(count=st.integers(2, 40), more=st.integers(1, 200), far=st.integers(1, 600))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_buckets_are_those_of_transformers(count, more, far):
    theirs = imported("transformers.models.t5.modeling_t5")
    with may_refuse():
        bucket = theirs.T5Attention._relative_position_bucket
        behind, most = torch.arange(-far, far + 1), count // 2 + more
    ours = distance_buckets(behind.clamp(min=0), count, most)
    with may_refuse():
        assert torch.equal(ours, bucket(-behind, False, count, most)), (
            "the decoder's buckets differ")
    ours = distance_buckets(behind.abs(), count, most) + count * (behind < 0)
    with may_refuse():
        assert torch.equal(ours, bucket(-behind, True, 2 * count, most)), (
            "the encoder's buckets differ")


def test_a_sentinel_target_has_the_loss_of_transformers():
    transformers = imported("transformers")
    with may_refuse():
        theirs = transformers.T5ForConditionalGeneration.from_pretrained(
            MODELS / "t5_lm", attn_implementation="eager")
    body = load_backbone(MODELS / "t5_lm")
    a, b, c = 42, 41, 40                         # sentinels are the last ids, the first the highest
    ids = torch.tensor([[5, a, 9, 7, b, 1], [8, 6, a, 1, 0, 0]])
    labels = torch.tensor([[a, 6, 6, b, 12, c, 1], [a, 4, b, 1, -100, -100, -100]])
    mask, real = ids != 0, labels >= 0
    target = labels.clamp(min=0)
    states = body(ids, mask, body.shift_right(target, real), real)
    ours = F.cross_entropy(body.logits(states).flatten(0, 1), labels.flatten(), ignore_index=-100)
    with may_refuse():
        loss = theirs(input_ids=ids, attention_mask=mask, labels=labels).loss
    assert abs(ours - loss) <= FP32 * loss, f"{ours} here, {loss} in transformers"


# ----------------------------------------------------------------------------- would it be noticed?

def scaled_attention(patch):
    def wrong(q, k, v, bias, dropout):
        return biased_attention(q / math.sqrt(q.shape[-1]), k, v, bias, dropout)
    patch.setattr(t5_layers, "biased_attention", wrong)


def erf_gelu(patch):
    patch.setitem(layers.ACTIVATIONS, "gelu_new", layers.ACTIVATIONS["gelu"])


def other_scale(patch):
    patch.setattr(
        T5, "logits",
        lambda self, hidden: hidden @ self.output_embeddings().T * (24 ** -0.5 / self.output_scale))


def own_head_ignored(patch):
    patch.setattr(T5, "output_embeddings", lambda self: self.word_embeddings.weight)


def decoder_with_both_directions(patch):
    def wrong(self, rows):
        return t5_layers.EncoderStack.attention_bias(self, rows).masked_fill(
            ~rows.causal_mask(), -math.inf)
    patch.setattr(t5_layers.DecoderStack, "attention_bias", wrong)


def encoder_with_one_direction(patch):
    def wrong(self, rows):
        bucket = distance_buckets(rows.distance().clamp(min=0), self.buckets, self.max_distance)
        return self.relative_bias(bucket).permute(0, 3, 1, 2).masked_fill(
            ~rows.mask[:, None, None], -math.inf)
    patch.setattr(t5_layers.EncoderStack, "attention_bias", wrong)


def directions_exchanged(patch):
    behind = Rows.distance
    patch.setattr(t5_layers.EncoderStack, "attention_bias",
                  lambda self, rows: encoder_bias_of(self, -behind(rows), rows))


def encoder_bias_of(stack, behind, rows):
    bucket = (distance_buckets(behind.abs(), stack.buckets // 2, stack.max_distance)
              + stack.buckets // 2 * (behind < 0))
    return stack.relative_bias(bucket).permute(0, 3, 1, 2).masked_fill(
        ~rows.mask[:, None, None], -math.inf)


def no_wide_buckets(patch):
    patch.setattr(t5_layers, "distance_buckets",
                  lambda distance, count, most: distance.clamp(max=count - 1))


def other_distance(patch):
    patch.setattr(t5_layers, "distance_buckets",
                  lambda distance, count, most: distance_buckets(distance, count, 128))


def places_for_positions(patch):
    def wrong(self):
        places = torch.arange(self.mask.shape[1])
        return (places[:, None] - places)[None] + 1
    patch.setattr(Rows, "distance", wrong)


def bias_only_in_the_first_block(patch):
    attend, first = t5_layers.T5Layer.attend, []

    def wrong(self, x, rows, bias):
        first[:] = first if first and first[0] is bias else [bias, self]
        return attend(self, x, rows,
                      bias if first[1] is self else bias.masked_fill(bias > -math.inf, 0.0))
    patch.setattr(t5_layers.T5Layer, "attend", wrong)


def gates_exchanged(patch):
    patch.setattr(t5_layers.GatedLayer, "mlp_inner",
                  lambda self, x: self.activation(self.up_proj(x)) * self.gate_proj(x))


def post_norm(patch):
    def wrong(self, x, rows, bias):
        k, v = self.attention.keys_values(x, rows)
        return self.attention_norm(x + self.attention(x, rows, k, v, bias))
    patch.setattr(t5_layers.T5Layer, "attend", wrong)


def centred_norm(patch):
    def wrong(self, x):
        return self.weight * root_mean_square_norm(x - x.mean(-1, keepdim=True), self.eps)
    patch.setattr(layers.RMSNorm, "forward", wrong)


def other_eps(patch):
    patch.setattr(layers.RMSNorm, "forward",
                  lambda self, x: self.weight * root_mean_square_norm(x, 1e-6))


def no_last_norm(patch):
    def wrong(self, x, rows):
        bias = self.attention_bias(rows)
        for layer in self.layers:
            x = layer(x, rows, bias)
        self.final_norm(x)
        return x
    patch.setattr(t5_layers.EncoderStack, "forward", wrong)


def source_mask_ignored(patch):
    context = T5.decoder_context
    patch.setattr(T5, "decoder_context",
                  lambda self, memory, rows: (context(self, memory, rows)[0], None))


def encoder_mask_ignored(patch):
    def wrong(self, rows):
        return encoder_bias_of(self, rows.distance(), Rows(torch.ones_like(rows.mask)))
    patch.setattr(t5_layers.EncoderStack, "attention_bias", wrong)


def decoder_not_causal(patch):
    patch.setattr(Rows, "causal_mask", lambda self, window=None: self.mask[:, None, None, :])


def cross_attention_over_itself(patch):
    def wrong(self, x, rows, bias, source, source_bias):
        x = self.attend(x, rows, bias)
        seen = self.cross_norm(x)
        k, v = self.cross_attention.keys_values(seen, rows)
        return self.mlp(x + self.cross_attention(seen, rows, k, v, bias))
    patch.setattr(t5_layers.DecoderLayer, "forward", wrong)


def shift_missing(patch):
    patch.setattr(T5, "shift_right", lambda self, ids, *more: ids)


def other_start(patch):
    shift = T5.shift_right

    def wrong(self, *given):
        self.config["decoder_start_token_id"] = 1
        return shift(self, *given)
    patch.setattr(T5, "shift_right", wrong)


def mean_for_last(patch):
    from minillmclf.classify.head import pool
    patch.setattr("minillmclf.classify.head.pool",
                  lambda hidden, mask, how: pool(hidden, mask, "mean"))


def no_tanh(patch):
    patch.setattr(T5Head, "forward",
                  lambda self, hidden, mask: self.out(self.features(hidden, mask).atanh()))


LM, GATED = STORED[:2], STORED[1:]
EVERYWHERE = {"encoder layer 0": (scaled_attention, encoder_with_one_direction,
                                  directions_exchanged, no_wide_buckets, other_distance, post_norm,
                                  centred_norm, other_eps, encoder_mask_ignored,
                                  places_for_positions),
              "encoder layer 1": (bias_only_in_the_first_block,),
              "decoder embeddings": (shift_missing, other_start),
              "decoder layer 0": (decoder_with_both_directions, source_mask_ignored,
                                  decoder_not_causal, no_last_norm, cross_attention_over_itself)}
WRONG = [*((wrong, name, step)
           for step, wrongs in EVERYWHERE.items() for wrong in wrongs for name in STORED),
         *((gates_exchanged, name, "encoder layer 0") for name in GATED),
         (erf_gelu, "flan_lm", "encoder layer 0"), *((other_scale, name, "logits") for name in LM),
         (own_head_ignored, "flan_lm", "logits"),
         *((wrong, "ul2_classifier", "logits") for wrong in (mean_for_last, no_tanh))]


@pytest.mark.parametrize("wrong, name, step",
                         [pytest.param(*w, id=f"{w[0].__name__}-{w[1]}") for w in WRONG])
def test_known_wrong_variants_fail_at_their_step(wrong, name, step, stored, monkeypatch):
    wrong(monkeypatch)
    found = parity(name, stored)
    assert found is not None, (
        f"{wrong.__name__} is not noticed: the stored {name} cannot tell it from the right model")
    assert found.startswith(step + " "), (
        f"{wrong.__name__} should be seen first at {step}, but {found}")


# ---------------------------------------------------------------------------- padding and causality

def states(body, pairs, side="right", target_side="right", pad=0, width=None):
    """For each (source, target): states of the real tokens, memory then decoder (S + T, D)."""
    ids, mask = batch_of([source for source, _ in pairs], side, pad, width)
    target, target_mask = batch_of([target for _, target in pairs], target_side, pad, width)
    memory = body.encode(ids, mask)
    found = body.decode(target, target_mask, memory, mask)
    assert torch.equal(found, body(ids, mask, target, target_mask)), (
        "forward is encode, then decode")
    assert not memory[mask == 0].any() and not found[target_mask == 0].any(), (
        "a padded place is not zero")
    return [torch.cat([memory[row][mask[row].bool()], found[row][target_mask[row].bool()]])
            for row in range(len(pairs))]


def random_pairs(lengths, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(43, (length,), generator=draw).tolist() for length in row)
            for row in lengths]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, FP32), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", STORED)
@torch.inference_mode()
def test_padding_and_batch_mates_change_nothing(name, dtype, tolerance):
    body = load_backbone(MODELS / name, dtype)
    pairs = random_pairs([(5, 8), (26, 3), (1, 1), (8, 24)])
    pairs[0][0][2] = pairs[1][0][-1] = pairs[3][1][0] = 0         # a text may hold the padding's id
    alone = [states(body, [pair])[0] for pair in pairs]
    ways = {"padded right": states(body, pairs), "padded left": states(body, pairs, "left", "left"),
            "source left, target right": states(body, pairs, "left", "right"),
            "padded far": states(body, pairs, "left", "right", width=70),
            "other ids in the padding": states(body, pairs, pad=9),
            "ids beyond the vocabulary in the padding": states(
                body, pairs, "right", "left", pad=10**6),
            "other mates": [states(body, [pair, pairs[1][::-1], pairs[3]], "left", "left")[0]
                            for pair in pairs]}
    for way, found in ways.items():
        for number, (a, b) in enumerate(zip(alone, found)):
            apart = (a - b).abs().max() / alone[number].abs().max()
            assert apart <= tolerance, f"{name}: pair {number} alone and {way}: {apart:.2g} apart"


@pytest.mark.parametrize("side", ["left", "right"])
@torch.inference_mode()
def test_a_classifier_reads_the_same_on_either_side(side):
    body = load_backbone(MODELS / "ul2_classifier", torch.float64)
    head = read_head(MODELS / "ul2_classifier", body).double()
    texts = [source for source, _ in random_pairs([(5, 1), (26, 1), (1, 1)])]
    alone = torch.cat([head(body.states(*batch_of([text], "right")), torch.ones(1, len(text)))
                       for text in texts])
    ids, mask = batch_of(texts, side, pad=17)
    apart = (head(body.states(ids, mask), mask) - alone).abs().max()
    assert apart <= 1e-12, f"padding on the {side} changes the classes by {apart:.2g}"


@pytest.mark.parametrize("name", STORED)
@torch.inference_mode()
def test_the_target_sees_its_past_and_the_whole_source(name):
    body = load_backbone(MODELS / name)
    (source, target), = random_pairs([(19, 17)])

    def read(source, target):
        return body(*batch_of([source], "right"), *batch_of([target], "right"))[0]
    base = read(source, target)
    for place in range(len(target)):
        changed = read(source, target[:place] + [(target[place] + 1) % 43] + target[place + 1:])
        assert torch.equal(changed[:place], base[:place]), (
            f"{name}: a state before target token {place} saw it change")
        still = [i for i in range(place, len(target)) if (changed[i] - base[i]).abs().max() < 1e-5]
        assert not still, (
            f"{name}: target token {place} changed, the states at {still} do not see it")
    for place in range(len(source)):
        changed = read(source[:place] + [(source[place] + 1) % 43] + source[place + 1:], target)
        still = [i for i in range(len(target)) if (changed[i] - base[i]).abs().max() < 1e-5]
        assert not still, (
            f"{name}: source token {place} changed, the states at {still} do not see it")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", STORED)
@torch.inference_mode()
def test_token_by_token_is_the_same_as_at_once(name, side):
    body = load_backbone(MODELS / name, torch.float64)
    pairs = random_pairs([(9, 20), (21, 20), (3, 20)])
    ids, mask = batch_of([source for source, _ in pairs], side)
    start, start_mask, context = body.prepare_prompt(ids, mask)
    assert start.tolist() == [[0]] * 3 and start_mask.tolist() == [[1]] * 3, (
        "writing begins with the start token")
    assert list(context[0]) == list(body.decoder.layers)
    assert context[0][body.decoder.layers[0]][0].shape[:3] == (3, 3, 21), "k: (B, H, S, d)"
    target = torch.tensor([[0, *target] for _, target in pairs])
    whole, cache = body(ids, mask, target, torch.ones_like(target)), Cache()
    for place in range(target.shape[1]):
        rows = CachedRows(torch.ones(3, 1), cache)
        one = body.hidden_states(target[:, place:place + 1], rows, context)         # (B, D)
        assert (one - whole[:, place]).abs().max() <= 1e-12, (
            f"{name}: step {place} with a cache differs")


def test_shift_right_goes_by_the_mask():
    body = T5.from_config(TINY | {"decoder_start_token_id": 7})
    ids, mask = batch_of([[3, 4, 5], [6], [8, 9]], "right", pad=99)
    assert body.shift_right(ids, mask).tolist() == [[7, 3, 4], [7, 0, 0], [7, 8, 0]]
    ids, mask = batch_of([[3, 4, 5], [6], [8, 9]], "left", pad=99)
    assert body.shift_right(ids, mask.bool()).tolist() == [[7, 3, 4], [0, 0, 7], [0, 7, 8]]


# ------------------------------------------------------------------------------------------ by hand

def biased_attention_by_hand(q, k, v, bias):
    """What `biased_attention` computes, a step a line."""
    scores = q @ k.transpose(-2, -1)                                                  # (B, H, T, S)
    scores = scores if bias is None else scores + bias
    return scores.softmax(-1) @ v                                                     # (B, H, T, d)


@given(sizes=st.tuples(*[st.integers(1, 6)] * 5), biased=st.booleans(), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_attention_is_attention_by_hand(sizes, biased, seed):
    draw = torch.Generator().manual_seed(seed)
    B, H, T, S, d = sizes
    q, k, v = (torch.randn(B, H, n, d, generator=draw, dtype=torch.float64) * 2 for n in (T, S, S))
    bias = torch.randn(B, H, T, S, generator=draw, dtype=torch.float64)
    bias[..., 1:] = bias[..., 1:].masked_fill(
        torch.rand(B, H, T, S - 1, generator=draw) < 0.3, -math.inf)
    bias = bias if biased else None
    fast, slow = biased_attention(q, k, v, bias, 0.0), biased_attention_by_hand(q, k, v, bias)
    assert (fast - slow).abs().max() <= 1e-12, (
        "the fast attention is not the one that the explicit steps define")


def test_buckets_by_hand():
    found = distance_buckets(torch.arange(200), 32, 128).tolist()
    assert found[:16] == list(range(16)), "half of the buckets are for one distance each"
    assert found == sorted(found) and set(found) == set(range(32)), (
        "buckets rise, and none is left out")
    assert found[112:114] == [30, 31] and found[128:] == [31] * 72, (
        "the last is for all that is far")
    edges = [found.index(bucket) for bucket in range(16, 32)]
    assert edges == [math.ceil(16 * 8 ** (i / 16) - 1e-9) for i in range(16)], (
        "edges grow as a power")


def test_the_bias_is_one_table_for_all_blocks_and_of_each_direction():
    body = T5.from_config(TINY | {"num_layers": 3})
    assert sum("relative_bias" in name for name, _ in body.named_parameters()) == 2, (
        "one table for each stack")
    with torch.no_grad():
        # a bias that tells its bucket
        body.encoder.relative_bias.weight[:] = torch.arange(8.0)[:, None]
        body.decoder.relative_bias.weight[:] = torch.arange(8.0)[:, None]
    rows = Rows(torch.ones(1, 4))
    assert body.encoder.attention_bias(rows)[0, 0].tolist() == [
        [0, 5, 6, 6], [1, 0, 5, 6], [2, 1, 0, 5], [2, 2, 1, 0]]
    none = -math.inf
    one_way = [[0, none, none, none], [1, 0, none, none], [2, 1, 0, none], [3, 2, 1, 0]]
    assert body.decoder.attention_bias(rows)[0, 1].tolist() == one_way


def test_dropout_acts_in_training_only(monkeypatch):
    rated = {"dropout_rate": 0.25, "classifier_dropout": 0.4}
    body = T5.from_config(TINY | rated | {"num_layers": 2, "num_decoder_layers": 3})
    calls, rates = [], []
    for module in body.modules():
        if isinstance(module, torch.nn.Dropout):
            assert module.p == 0.25
            module.register_forward_hook(lambda module, given, out: calls.append(module))
    monkeypatch.setattr(t5_layers, "biased_attention",
                        lambda *given: rates.append(given[-1]) or biased_attention(*given))
    ids, mask = torch.arange(2, 12).view(1, 10), torch.ones(1, 10)
    assert not torch.equal(body.train().states(ids, mask), body.states(ids, mask)), (
        "no dropout in training")
    assert set(rates) == {0.25} and len(rates) == 2 * (2 + 2 * 3), (
        "on the weights of all attentions")
    assert len(calls) == 2 * (2 + 3 * 2 + 2 + 4 * 3), (
        "at a stack's ends, after attention, in and after an MLP")
    rates.clear()
    assert (torch.equal(body.eval().states(ids, mask), body.states(ids, mask))
            and set(rates) == {0.0})
    assert body.head_dropout == T5Head(body, 2).dropout.p == 0.4, "the head has a rate of its own"


# -------------------------------------------------------------------------------------------- files

def copied(name, tmp_path, change=None, **fields):
    """A stored model with other tensors and other fields of config.json (None: left out)."""
    folder = tmp_path / "model"
    folder.mkdir()
    tensors = load_file(MODELS / name / "model.safetensors")
    config = json.loads((MODELS / name / "config.json").read_text()) | fields
    if change:
        change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


@pytest.mark.parametrize("name", STORED[:2])
def test_a_model_goes_out_as_it_came_in(name, tmp_path):
    save_backbone(load_backbone(MODELS / name), tmp_path)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, MODELS / name))
    assert ours.keys() == theirs.keys(), f"names differ: {sorted(ours.keys() ^ theirs.keys())}"
    assert all(torch.equal(ours[file], theirs[file]) for file in theirs)
    transformers = imported("transformers")
    ids = torch.tensor([[5, 6, 7]])
    models = [loaded(transformers.T5ForConditionalGeneration.from_pretrained, folder)
              for folder in (tmp_path, MODELS / name)]
    with may_refuse():
        logits = [model(input_ids=ids, decoder_input_ids=ids).logits for model in models]
    assert torch.equal(*logits), "transformers reads another model"


def test_copies_of_the_embeddings_are_checked(tmp_path):
    files = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    folder = copied("t5_lm", tmp_path,
                    lambda t: t.update({file: t["shared.weight"].clone() for file in files}))
    body = load_backbone(folder)
    assert sorted(body.report.tied) == sorted(files) and body.lm_head is None
    for file in files:
        shutil.rmtree(folder)
        copied("t5_lm", tmp_path, lambda t: t.update({file: t["shared.weight"] + 1}))
        with pytest.raises(InputError, match=f"{file}' should be tied to word_embeddings.weight"):
            load_backbone(folder)


def test_copies_in_a_classifier_are_checked_too(tmp_path):
    file = "transformer.encoder.embed_tokens.weight"
    folder = copied("ul2_classifier", tmp_path,
                    lambda t: t.update({file: t["transformer.shared.weight"].clone()}))
    assert list(load_backbone(folder).report.tied) == [file]
    shutil.rmtree(folder)
    copied("ul2_classifier", tmp_path,
           lambda t: t.update({file: t["transformer.shared.weight"] + 1}))
    with pytest.raises(InputError, match=f"{file}' should be tied"):
        load_backbone(folder)


@pytest.mark.parametrize("fields, scale, own", [
    # T5 1.1 of transformers 4, and the same saved by 5
    (dict(tie_word_embeddings=False, scale_decoder_outputs=None), 1.0, True),
    (dict(tie_word_embeddings=True, scale_decoder_outputs=False), 1.0, True),
    (dict(tie_word_embeddings=False, scale_decoder_outputs=True), 24 ** -0.5, True)])
def test_scale_and_head_follow_the_file(fields, scale, own, tmp_path):
    body = load_backbone(copied("flan_lm", tmp_path, **fields))
    assert (body.output_scale, body.lm_head is not None) == (scale, own), fields


def test_a_head_that_is_no_copy_is_refused_where_the_config_says_tied_and_scaled(tmp_path):
    with pytest.raises(InputError,
                       match="lm_head.weight' should be tied to word_embeddings.weight"):
        load_backbone(copied("flan_lm", tmp_path, scale_decoder_outputs=True))
    with pytest.raises(InputError,
                       match="lm_head.weight' should be tied to word_embeddings.weight"):
        shutil.rmtree(tmp_path / "model")
        load_backbone(copied("flan_lm", tmp_path, tie_word_embeddings=None,
                             scale_decoder_outputs=None))


def test_without_a_head_the_config_decides(tmp_path):
    folder = copied("t5_lm", tmp_path, tie_word_embeddings=True, scale_decoder_outputs=False)
    assert load_backbone(folder).output_scale == 1.0, (
        "transformers 5 also makes models that are tied and not scaled")
    shutil.rmtree(folder)
    body = load_backbone(copied("t5_lm", tmp_path, tie_word_embeddings=False,
                                scale_decoder_outputs=None))
    with pytest.raises(InputError, match="no language-model head"):
        body.logits(torch.zeros(1, 24))


def test_an_own_head_that_is_not_taken_is_dropped():
    checkpoint = Checkpoint(MODELS / "flan_lm")
    body = build_backbone(checkpoint, lm_head=False)
    report = load_parameters(body, checkpoint, body.rename_table())
    assert report.dropped == ["lm_head.weight"] and not report.tied, (
        "lm_head.weight never was a copy in FLAN-T5")


def test_the_old_table_of_cross_attention_is_dropped(tmp_path):
    file = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    body = load_backbone(copied("t5_lm", tmp_path, lambda t: t.update({file: torch.ones(8, 3)})))
    assert body.report.dropped == [file]


@pytest.mark.parametrize("file, message", [
    ("decoder.block.1.layer.1.EncDecAttention.k.weight", "decoder.layers.1.cross_attention.k_proj"),
    ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
     "encoder.relative_bias"),
    ("shared.weight", "word_embeddings")])
def test_an_absent_tensor_is_a_fault(file, message, tmp_path):
    with pytest.raises(InputError, match="nothing in the file fills " + message):
        load_backbone(copied("t5_lm", tmp_path, lambda t: t.pop(file)))


def test_a_second_table_of_biases_is_a_fault(tmp_path):
    file = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    with pytest.raises(InputError, match=".*block.1.*relative_attention_bias.* is no tensor of T5"):
        load_backbone(copied("t5_lm", tmp_path, lambda t: t.update({file: torch.ones(8, 3)})))


def test_a_gate_in_a_model_without_one_is_a_fault(tmp_path):
    plain = dict(feed_forward_proj="relu", is_gated_act=False, dense_act_fn="relu")
    with pytest.raises(InputError, match="'decoder.block.0.layer.2.DenseReluDense.wi_0.weight' .* "
                       "is no tensor of T5"):
        load_backbone(copied("flan_lm", tmp_path, **plain))


@pytest.mark.parametrize("fields, message", [
    (dict(feed_forward_proj="gated-swish"),
     "feed_forward_proj = 'gated-swish' is not supported; supported: relu"),
    (dict(feed_forward_proj=None), "feed_forward_proj = None is not supported"),
    (dict(is_gated_act=True), "is_gated_act = True .only False is built"),
    (dict(feed_forward_proj="gated-gelu", dense_act_fn="gelu"),
     "dense_act_fn = 'gelu' .only 'gelu_new' is built"),
    (dict(is_encoder_decoder=False), "is_encoder_decoder = False"),
    (dict(is_decoder=True), "is_decoder = True"),
    (dict(num_decoder_layers=0), "num_decoder_layers = 0"),
    (dict(num_decoder_layers=1.5), "num_decoder_layers = 1.5"),
    (dict(relative_attention_num_buckets=3),
     "relative_attention_num_buckets 3 should be 4 or more"),
    (dict(relative_attention_max_distance=4), "less than twice relative_attention_max_distance 4"),
    (dict(decoder_start_token_id=20), "decoder_start_token_id 20 should lie below vocab_size 20"),
    (dict(decoder_start_token_id=None), "decoder_start_token_id = None"),
    (dict(d_kv="3"), "d_kv = '3'"),
    (dict(tie_word_embeddings="yes"), "tie_word_embeddings = 'yes' .should be true or false"),
    (dict(scale_decoder_outputs=1), "scale_decoder_outputs = 1 .should be true or false"),
    (dict(scalable_attention=True), "scalable_attention = True .unknown: it may change the maths")])
def test_what_is_not_built_is_refused(fields, message):
    with pytest.raises(InputError, match="a/config.json: .*" + message):
        T5.from_config(TINY | fields, where="a/config.json")


@pytest.mark.parametrize("name, kind", [
    ("relu", T5), ("gelu", T5), ("gated-gelu", GatedT5), ("gated-silu", GatedT5)])
def test_the_kind_follows_feed_forward_proj(name, kind):
    body = kind.from_config(TINY | {"feed_forward_proj": name, "n_positions": 512})
    assert type(body) is kind and body.max_tokens is None and body.config["num_decoder_layers"] == 1
    with pytest.raises(InputError, match="d_model is missing"):
        T5.from_config({key: value for key, value in TINY.items() if key != "d_model"})


def test_float16_is_refused_and_bfloat16_is_not():
    ids, mask = torch.tensor([[3, 4]]), torch.ones(1, 2)
    with pytest.raises(InputError, match="largest float16: use bfloat16 or float32"):
        T5.from_config(TINY).half().states(ids, mask)
    with pytest.raises(InputError, match="largest float16"), torch.autocast("cpu", torch.float16):
        T5.from_config(TINY).states(ids, mask)
    assert T5.from_config(TINY).bfloat16().states(ids, mask).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert T5.from_config(TINY).eval().states(
            *batch_of([[3, 4, 5], [6]], "right")).isfinite().all()


# ----------------------------------------------------------------------------------- classification

TEXTS = ["the film was slow", "no", "a book was late again and the film was lost",
         "not the book, the film"]


def write_tokenizer(folder):
    """A WordPiece tokenizer of 43 pieces or fewer that ends a text with </s>, as T5's does."""
    tokenizers = imported("tokenizers")
    words = ["<pad>", "</s>", "<unk>", ",",
             *"the a no not film book was slow late lost again and".split()]
    vocab = {word: i for i, word in enumerate(words)}
    with may_refuse():
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="<unk>"))
        tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
        tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(names | {"tokenizer_class": "PreTrainedTokenizerFast"}))


def scores_of_transformers(folder):
    """What transformers alone makes of TEXTS, by what is in a folder -> (scores, labels)."""
    transformers = imported("transformers")
    model = loaded(transformers.AutoModelForSequenceClassification.from_pretrained, folder).eval()
    tokenizer = tokenizer_of(folder, "T5Tokenizer")
    with torch.no_grad(), may_refuse():
        found = model(**tokenizer(TEXTS, padding=True, return_tensors="pt"))
    return found.logits, list(model.config.id2label.values())


def test_a_classifier_travels_both_ways(tmp_path):
    theirs = copied("ul2_classifier", tmp_path)
    write_tokenizer(theirs)
    model = Classifier.load(theirs)
    ours = model.compute_logits(model.encode(TEXTS)[0], batch_size=3)
    expected, labels = scores_of_transformers(theirs)
    assert labels == model.labels
    assert (ours - expected).abs().max() <= FP32 * expected.abs().max(), (
        "what transformers saved is read otherwise")
    with torch.no_grad():
        model.head.out.weight += 1.0
    model.save(tmp_path / "saved")
    changed, labels = scores_of_transformers(tmp_path / "saved")
    ours = model.compute_logits(model.encode(TEXTS)[0])
    assert labels == model.labels
    assert (ours - changed).abs().max() <= FP32 * changed.abs().max(), (
        "what we saved is read otherwise")
    assert (changed - expected).abs().max() > 1e-2, "the change was not saved"
    again = Classifier.load(tmp_path / "saved")
    assert torch.equal(again.compute_logits(again.encode(TEXTS)[0]), ours), (
        "what we saved, we read otherwise")


@pytest.mark.parametrize("name", ["t5_lm", "flan_lm"])
def test_a_language_model_becomes_a_classifier(name, tmp_path):
    folder = copied(name, tmp_path)
    write_tokenizer(folder)
    model = Classifier.from_backbone(folder, ["yes", "no"])
    fresh = model.report.newly_initialised
    assert fresh and all(path.startswith("head.") for path in fresh)
    model.save(tmp_path / "saved")
    expected, labels = scores_of_transformers(tmp_path / "saved")
    ours = model.compute_logits(model.encode(TEXTS)[0])
    assert labels == ["yes", "no"]
    assert (ours - expected).abs().max() <= FP32 * expected.abs().max(), f"{name}: read otherwise"
